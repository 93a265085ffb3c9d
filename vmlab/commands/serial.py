"""Show what a machine wrote on its serial line, or send it a line.

Examples
--------
serial web                  # the last 40 lines
serial web --lines 0        # all of it
serial web --send root
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vmlab.commands import _arguments as words
from vmlab.views.commands import Plain
from vmlab.views.notes import Note

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
    from vmlab.lab import Lab

GROUP = "inside"
ORDER = 9


def _lines(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of lines")
    return int(text)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.machine(parser)
    parser.add_argument(
        "-n", "--lines", type=_lines, metavar="N", default=40, help="how many, 0 for all (default: 40)"
    )
    words.guests(parser.add_argument("--send", metavar="TEXT", help="send this text and Enter instead"))


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Note | Plain:
    """Return the text."""
    machine = lab.machine(args.machine)
    if args.send is not None:
        machine.send_serial(args.send + "\n")
        return Note(f"{machine.name}: sent {args.send!r}", machine=machine.name, sent=args.send)
    return Plain(machine.serial(args.lines or None), title=f"{machine.name}, serial line")
