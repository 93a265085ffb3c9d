"""Stop the CPUs of machines; everything stays as it is.

Examples
--------
pause web
pause '*'                   # all of them
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
ORDER = 7


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.things(parser)


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Machine | Scenario | MachineTable:
    """Return the machines."""
    machines = words.chosen_things(lab, args.machines)
    with ui.progress(f"pause {machine_names(machines)}", "waiting until the CPUs stand still"):
        each(machines, lambda machine: machine.pause())
    return words.one_or_table(lab, machines)
