"""Free a scenario's RAM, and keep what it is in the middle of.

Its machines end, and `start` goes on from there. It takes no RAM and no CPU meanwhile. (What virsh calls suspend is
`pause` here.)

Examples
--------
suspend shop
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vmlab.commands import _arguments as words
from vmlab.commands import _names

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
    from vmlab.lab import Lab
    from vmlab.scenario import Scenario

GROUP = "scenarios"
ORDER = 3


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.completed(
        parser.add_argument("scenario", metavar="SCENARIO", help="name of the scenario"), _names.scenarios
    )


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Scenario:
    """Return the scenario."""
    scenario = lab.scenario(args.scenario)
    with ui.progress(f"suspend {scenario.name}", "what its machines are in the middle of is kept"):
        return scenario.suspend()
