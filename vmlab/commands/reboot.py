"""Restart machines, and wait until commands can be run in them again.

Examples
--------
reboot web
reboot --hard web     # by the reset button, without asking the guest
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
ORDER = 6


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.machines(parser)
    parser.add_argument(
        "--hard", action="store_true", help="at once; what the guest had not written to its disk is lost"
    )
    words.timeout(parser, default=300.0, help="how long the guest may take")


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Machine | Scenario | MachineTable:
    """Return the machines."""
    machines = words.chosen(lab, args.machines)
    with ui.progress(f"reboot {machine_names(machines)}", "waiting until the guest answers again"):
        each(machines, lambda machine: machine.reboot(hard=args.hard, timeout=args.timeout), at_once=True)
    return words.one_or_table(lab, machines)
