"""Type text on a machine's keyboard, as a person would.

Examples
--------
type d1 "ls -la"
type d1 "ls -la" --enter    # and press Enter
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
ORDER = 6


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.machine(parser)
    words.guests(
        parser.add_argument(
            "words", metavar="TEXT", nargs="+", help="the text; in quotes if it has several spaces"
        )
    )
    parser.add_argument("-e", "--enter", action="store_true", help="press Enter after it")


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Note:
    """Return what was typed."""
    text = " ".join(args.words) + ("\n" if args.enter else "")
    lab.machine(args.machine).type(text)
    return Note(f"{args.machine}: typed {len(text)} characters", machine=args.machine, characters=len(text))
