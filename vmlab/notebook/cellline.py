"""The first line of a ``%%vm`` cell."""

from __future__ import annotations

import argparse

from vmlab import commands
from vmlab.commands import Parser


def cell_parser() -> Parser:
    """Return the parser of a cell's first line: the ``script`` verb's, with ``--out``."""
    verb = commands.verb("script")
    parser = Parser(
        "%%vm",
        description="Run the cell's body as a script in one machine, or in several at once.",
    )
    verb.module.arguments(parser)
    parser.add_argument(
        "-o",
        "--out",
        metavar="VAR",
        type=_variable,
        help="put the result into this variable: a CommandResult, or a dict of them by name",
    )
    parser.add_argument("--expand", action="store_true", help=commands.EXPAND)
    return parser


def _variable(text: str) -> str:
    if not text.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} cannot be the name of a variable")
    return text
