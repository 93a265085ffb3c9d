"""Make new machines that go on from where one is.

They share the memory and disk that they do not change, so a fork is quick and small.

Examples
--------
fork web                    # one more, with a name chosen for you
fork web w1 w2
fork web --count 3
fork web w1 --snapshot clean
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
    from vmlab.machine import Machine
    from vmlab.scenario import Scenario
    from vmlab.views.machines import MachineTable

GROUP = "snapshots"
ORDER = 5


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.thing(parser)
    parser.add_argument("names", metavar="NEW", nargs="*", help="names of the new machines")
    parser.add_argument(
        "-n", "--count", type=words.count, metavar="N", help="how many, with names chosen for you"
    )
    words.completed(
        parser.add_argument(
            "-s", "--snapshot", metavar="SNAPSHOT", help="from this snapshot instead of the present"
        ),
        _names.snapshots,
    )
    words.clock(parser)
    words.force(parser)


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Machine | Scenario | MachineTable:
    """Return the new machine, or all of them."""
    if args.names and args.count not in (None, len(args.names)):
        raise UsageError(
            f"{len(args.names)} names do not make {args.count} machines.",
            hint="give names, or `count=`, or as many of both",
        )
    thing = lab.named(args.machine)
    how = {
        "names": args.names or None,
        "count": None if args.names else args.count or 1,
        "snapshot": args.snapshot,
        "force": args.force,
    }
    with ui.progress(f"fork {thing.name}", "new machines start from its state"):
        if thing.name in lab:
            made = lab.machine(thing.name).fork(clock=args.clock, **how)
        else:
            words.need_then(args)
            made = lab.scenario(thing.name).fork(**how)
    return words.one_or_table(lab, made)
