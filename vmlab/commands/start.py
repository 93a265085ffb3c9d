"""Start machines: boot them, or go on where they were.

A paused machine is resumed. One that was stopped with its RAM kept continues at the very instruction.

Examples
--------
start web
start web db
start 'w*' --force          # even if the host is short of RAM
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vmlab.commands import _arguments as words
from vmlab.commands._arguments import each
from vmlab.views.notes import machine_names

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
    from vmlab.lab import Lab
    from vmlab.machine import Machine
    from vmlab.scenario import Scenario
    from vmlab.views.machines import MachineTable

GROUP = "machines"
ORDER = 3


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.things(parser)
    parser.add_argument(
        "--boot", action="store_true", help="boot from disk even if there is RAM to continue from"
    )
    words.force(parser)


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Machine | Scenario | MachineTable:
    """Return the machines."""
    machines = words.chosen_things(lab, args.machines)
    with ui.progress(f"start {machine_names(machines)}", "waiting for QEMU"):
        each(machines, lambda machine: machine.start(boot=args.boot, force=args.force))
    return words.one_or_table(lab, machines)
