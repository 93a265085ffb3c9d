"""Say what this host can do, and how to mend what it cannot.

Examples
--------
doctor
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
    from vmlab.lab import Lab

GROUP = "host"
ORDER = 4
#: It must work where no lab can be opened.
NEEDS_LAB = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    del parser  # takes none


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Any:
    """Return the findings."""
    from vmlab.host.doctor import examine

    with ui.progress("examine this host", "looking at programs, devices and memory"):
        return examine()
