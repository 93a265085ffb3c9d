"""List machines, and what each really takes.

Of the host's RAM a machine takes now what its guest has of its own, plus its part of what it shares with others,
plus what QEMU itself needs.

Examples
--------
list
list 'web*'                 # only these
list shop                   # a scenario: its machines and networks
"""

from __future__ import annotations

import argparse
import contextlib
from typing import TYPE_CHECKING

from vmlab.commands import _arguments as words
from vmlab.errors import NotFound

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
    from vmlab.lab import Lab
    from vmlab.views.machines import MachineTable
    from vmlab.views.scenarios import ScenarioView

GROUP = "machines"
ORDER = 2


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.machines(parser, optional=True)


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> MachineTable | ScenarioView:
    """Return a table of machines; of one scenario also its networks, and where it stands."""
    if len(args.machines) == 1 and args.machines[0] not in lab:
        with contextlib.suppress(NotFound):
            scenario = lab.scenario(args.machines[0])
            from vmlab.views.scenarios import ScenarioView

            return ScenarioView(scenario, lab.usage(scenario.machines))
    machines = words.chosen(lab, args.machines) if args.machines else lab.machines
    return words.table(lab, machines)
