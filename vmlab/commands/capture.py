"""Show what was on a network: who talked to whom, and the last frames.

The switch keeps the last 4 MiB of each network: it need not be told before. A network of a scenario is named as
SCENARIO NETWORK, or as SCENARIO.NETWORK.

Examples
--------
capture shop dmz
capture lan --last 5
capture shop dmz --to dmz.pcapng   # for Wireshark or tcpdump
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vmlab.commands import _arguments as words
from vmlab.commands import _names
from vmlab.errors import UsageError

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
    from vmlab.lab import Lab
    from vmlab.views.capture import CaptureView

GROUP = "scenarios"
ORDER = 4


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.completed(
        parser.add_argument(
            "names", metavar="NETWORK", nargs="+", help="the network, or a scenario and its network"
        ),
        _names.networks,
    )
    parser.add_argument("--last", type=words.count, metavar="N", help="show so many frames (default: 50)")
    parser.add_argument("--to", metavar="FILE", help="also write it as pcapng")


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> CaptureView:
    """Return the tables."""
    from vmlab.views.capture import LAST, CaptureView

    if len(args.names) > 2:
        raise UsageError("That are too many names.", hint="one network, or a scenario and its network")
    found = lab.network(".".join(args.names)).capture()
    if args.to:
        try:
            ui.say(f"written: {found.save(args.to)}")
        except OSError as error:
            raise UsageError(
                f"'{args.to}' cannot be written ({error.strerror}).", hint="name another file"
            ) from error
    return CaptureView(found, args.last or LAST)
