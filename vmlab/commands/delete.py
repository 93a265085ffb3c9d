"""Delete machines, with their snapshots.

What other machines were forked from stays as long as they need it.

Examples
--------
delete web
delete 'test*'
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vmlab.commands import _arguments as words
from vmlab.commands._arguments import each
from vmlab.views.notes import Note
from vmlab.views.notes import words as in_words

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
    from vmlab.lab import Lab

GROUP = "machines"
ORDER = 9


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.things(parser)


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Note:
    """Return what was deleted."""
    machines = words.chosen_things(lab, args.machines)
    names = [machine.name for machine in machines]
    with ui.progress(f"delete {in_words(names)}", "waiting until QEMU has ended"):
        each(machines, lambda machine: machine.delete())
    return Note(f"Deleted {in_words(names)}.", deleted=names)
