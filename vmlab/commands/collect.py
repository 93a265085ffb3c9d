"""Free what nothing refers to any more.

That is layers and snapshots that no machine needs. What was deleted goes by itself within two minutes; this
says what goes now, and what is left to go.

Nothing that is listed anywhere is touched.

Examples
--------
collect
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
    from vmlab.lab import Lab
    from vmlab.store.collect import Collected

GROUP = "host"
ORDER = 5


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    del parser  # takes none


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Collected:
    """Return what was freed."""
    with ui.progress("collect", "deleting what nothing refers to"):
        return lab.collect()
