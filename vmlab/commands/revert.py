"""Go back to a snapshot.

The machine is again exactly what it was then. A live snapshot goes on running at the instruction where it
was taken. What you leave is kept, and `undo` brings it back, until the next revert.

Examples
--------
revert web                  # to the snapshot you stand on
revert web clean
revert web clean --clock now
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vmlab.commands import _arguments as words

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
    from vmlab.lab import Lab
    from vmlab.machine import Machine
    from vmlab.scenario import Scenario

GROUP = "snapshots"
ORDER = 3


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.thing(parser)
    words.snapshot(parser, optional=True, help="where to; without it, the snapshot you stand on")
    words.clock(parser)
    parser.add_argument(
        "--no-keep", dest="keep", action="store_false", help="do not keep what you leave: it cannot be undone"
    )
    words.force(parser)


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Machine | Scenario:
    """Return the machine, or the scenario."""
    thing = lab.named(args.machine)
    with ui.progress(f"revert {thing.name}", "the snapshot takes the place of the present"):
        if thing.name in lab:
            return lab.machine(thing.name).revert(
                args.snapshot, clock=args.clock, keep=args.keep, force=args.force
            )
        words.need_then(args)
        return lab.scenario(thing.name).revert(args.snapshot, keep=args.keep, force=args.force)
