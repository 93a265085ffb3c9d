"""Give a machine another name.

Its snapshots, and machines forked from it, stay what they are.

Examples
--------
rename web server
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vmlab.commands import _arguments as words

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
    from vmlab.lab import Lab
    from vmlab.machine import Machine

GROUP = "machines"
ORDER = 10


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.machine(parser)
    parser.add_argument("new", metavar="NEW", help="its new name")


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Machine:
    """Return the machine."""
    lab.machine(args.machine).rename(args.new)
    return lab.machine(args.new)
