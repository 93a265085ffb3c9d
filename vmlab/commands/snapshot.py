"""Take a snapshot of a machine as it is now.

Of a running machine it holds RAM, every device and the CPU, and the guest hardly notices; of a machine that
is off, its disk. Of a scenario it holds all its machines at one moment, and the frames that are under way between them.

Examples
--------
snapshot web                               # named s1, s2 ...
snapshot web clean
snapshot web clean -d "before the upgrade"
snapshot web clean --replace               # in the place of the 'clean' that is there
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vmlab.commands import _arguments as words
from vmlab.errors import UsageError

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
    from vmlab.lab import Lab
    from vmlab.machine import Snapshot
    from vmlab.scenario import State

GROUP = "snapshots"
ORDER = 1


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.thing(parser)
    parser.add_argument(
        "name", metavar="SNAPSHOT", nargs="?", help="its name; chosen for you if you give none"
    )
    words.free(parser.add_argument("-d", "--description", metavar="TEXT", default="", help="what it is"))
    parser.add_argument(
        "--replace", action="store_true", help="forget the snapshot of that name, if there is one"
    )


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Snapshot | State:
    """Return the new snapshot."""
    with ui.progress(f"snapshot {args.machine}", "its state is copied"):
        thing = lab.named(args.machine)
        if args.machine in lab:
            return lab.machine(args.machine).snapshot(args.name, args.description, replace=args.replace)
        if args.replace:
            raise UsageError(
                "A scenario's snapshot is not replaced.",
                hint=f"forget the old one first: `%vm forget {args.machine} {args.name or 'NAME'}`",
            )
        return thing.snapshot(args.name, args.description)
