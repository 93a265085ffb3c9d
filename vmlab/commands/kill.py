"""Switch machines off at once, as pulling the plug would.

Examples
--------
kill web
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
ORDER = 5


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.machines(parser)


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Machine | Scenario | MachineTable:
    """Return the machines."""
    machines = words.chosen(lab, args.machines)
    with ui.progress(f"kill {machine_names(machines)}", "waiting until QEMU has ended"):
        each(machines, lambda machine: machine.kill())
    return words.one_or_table(lab, machines)
