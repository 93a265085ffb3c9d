"""Forget snapshots; the others stay whole.

They can be anywhere in the tree.

Examples
--------
forget web clean
forget web first second
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vmlab.commands import _arguments as words
from vmlab.commands import _names
from vmlab.errors import UsageError
from vmlab.views.notes import Note
from vmlab.views.notes import words as in_words

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
    from vmlab.lab import Lab

GROUP = "snapshots"
ORDER = 6


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.thing(parser)
    words.completed(
        parser.add_argument("snapshots", metavar="SNAPSHOT", nargs="+", help="which ones"), _names.snapshots
    )


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Note:
    """Return what was forgotten."""
    machine = lab.named(args.machine)
    chosen = [
        machine.find(name) for name in dict.fromkeys(args.snapshots)
    ]  # all are looked up before one is forgotten
    names = [snapshot.name for snapshot in chosen]
    for snapshot in chosen if machine.name in lab else ():
        if snapshot not in machine.snapshots:
            # The root of its tree: an image's ready state, or what it was forked from.
            raise UsageError(
                f"'{snapshot.name}' is a snapshot of {snapshot.machine_name}, not of {machine.name}.",
                hint=f"forget it there, if you mean it: `%vm forget {snapshot.machine_name} {snapshot.name}`"
                if snapshot.kind != "ready"
                else f"it goes with its image: `%vm images --delete {snapshot.machine_name}`",
            )
    with ui.progress(f"forget {in_words(names)}", "deleting what nothing else is built on"):
        for snapshot in chosen:
            snapshot.forget()
    return Note(f"Forgot {in_words(names)} of {machine.name}.", machine=machine.name, forgotten=names)
