"""Let paused machines go on.

Examples
--------
resume web
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
ORDER = 8


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.things(parser)


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Machine | Scenario | MachineTable:
    """Return the machines."""
    machines = words.chosen_things(lab, args.machines)
    with ui.progress(f"resume {machine_names(machines)}", "waiting until the CPUs go on"):
        each(machines, lambda machine: machine.resume())
    return words.one_or_table(lab, machines)
