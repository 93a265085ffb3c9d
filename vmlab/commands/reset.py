"""Go back to the start of a scenario.

All its machines are as they were right after their setup. What you leave is kept, and `undo` brings it back.

Examples
--------
reset shop
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
ORDER = 2


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.completed(
        parser.add_argument("scenario", metavar="SCENARIO", help="name of the scenario"), _names.scenarios
    )
    words.force(parser)


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Scenario:
    """Return the scenario."""
    scenario = lab.scenario(args.scenario)
    with ui.progress(f"reset {scenario.name}", "its start takes the place of the present"):
        return scenario.reset(force=args.force)
