"""List the networks between machines, or delete one.

A network is made when the first machine is plugged into it (`create --nic`). It joins machines and leads nowhere else;
each card has an address in it, which the guest is given when it asks (DHCP).

Examples
--------
network
network --delete lan        # once no machine uses it any more
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vmlab.commands import _arguments as words
from vmlab.commands import _names
from vmlab.views.networks import NetworkTable
from vmlab.views.notes import Note

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
    from vmlab.lab import Lab

GROUP = "host"
ORDER = 6


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.completed(
        parser.add_argument("--delete", metavar="NETWORK", help="delete this one"), _names.networks
    )


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> NetworkTable | Note:
    """Return a table of networks."""
    if args.delete:
        lab.delete_network(args.delete)
        return Note(f"Deleted the network {args.delete}.", deleted=args.delete)
    return NetworkTable(lab.networks)
