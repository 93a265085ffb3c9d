"""Undo the last revert: bring back what it left, running.

Examples
--------
undo web
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
ORDER = 4


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.thing(parser)
    words.clock(parser)


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Machine | Scenario:
    """Return the machine, or the scenario."""
    thing = lab.named(args.machine)
    with ui.progress(f"undo {thing.name}", "the present that was left comes back"):
        if thing.name in lab:
            return lab.machine(thing.name).undo(clock=args.clock)
        words.need_then(args)
        return lab.scenario(thing.name).undo()
