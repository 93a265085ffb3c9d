"""Press keys on a machine's keyboard.

Keys pressed together are joined by '-' or '+'; several chords are pressed one after the other.

Examples
--------
keys d1 ctrl-alt-f2
keys d1 down down ret
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vmlab.commands import _arguments as words
from vmlab.views.notes import Note

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
    from vmlab.lab import Lab

GROUP = "inside"
ORDER = 5


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.machine(parser)
    words.guests(
        parser.add_argument("chords", metavar="KEYS", nargs="+", help="such as ret, alt-f4, ctrl-alt-del")
    )


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Note:
    """Return what was pressed."""
    lab.machine(args.machine).keys(*args.chords)
    return Note(
        f"{args.machine}: pressed {' '.join(args.chords)}", machine=args.machine, keys=list(args.chords)
    )
