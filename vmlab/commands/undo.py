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

GROUP = "snapshots"
ORDER = 4


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.machine(parser)
    words.clock(parser)


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Machine:
    """Return the machine."""
    machine = lab.machine(args.machine)
    with ui.progress(f"undo {machine.name}", "the present that was left comes back"):
        machine.undo(clock=args.clock)
    return machine
