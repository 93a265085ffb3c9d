"""Make a machine whole whose record is damaged.

The record is written anew from what libvirt, the machine's disk and its snapshots tell. Its present, its snapshots and
their tree stay what they are; its description is lost, and of forwarded ports only those of its last snapshot are
known. A machine whose record is whole stays as it is.

Examples
--------
mend web
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
ORDER = 11


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.machine(parser)


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Machine:
    """Return the machine."""
    return lab.machine(args.machine).mend()
