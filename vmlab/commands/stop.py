"""Shut machines down cleanly, as their power button would.

Examples
--------
stop web
stop 'w*' --timeout 120
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
ORDER = 4


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.things(parser)
    words.timeout(parser, default=90.0, help="how long the guest may take")


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Machine | Scenario | MachineTable:
    """Return the machines."""
    machines = words.chosen_things(lab, args.machines)
    with ui.progress(f"stop {machine_names(machines)}", "waiting until the guest has powered off"):
        each(machines, lambda machine: machine.stop(timeout=args.timeout), at_once=True)
    return words.one_or_table(lab, machines)
