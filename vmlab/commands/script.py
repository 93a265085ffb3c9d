"""Run a script in one machine, or in several at once.

In a notebook, write `%%vm NAME` as the first line of a cell, and the script below it. The first line of the
script chooses the interpreter (#!/usr/bin/python3); without one it is run by /bin/sh -e, which ends at the
first command that fails. Kernel > Interrupt, or Ctrl-C, reaches the process in the guest.

Examples
--------
vmlab script web < setup.sh
script web db --file setup.sh --timeout 5m
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vmlab.commands import _arguments as words
from vmlab.commands._scripts import check, run_script
from vmlab.errors import UsageError
from vmlab.views.commands import Ended, EndedMany

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
    from vmlab.lab import Lab

GROUP = "inside"
ORDER = 2


def _text(args: argparse.Namespace, ui: UI) -> str:
    """Return the script: the cell's body, the file, or what was piped in."""
    body: str | None = getattr(args, "body", None)
    if body is None and args.file:
        try:
            body = Path(args.file).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"The script {args.file} cannot be read.", reason=error) from error
    if body is None:
        piped = ui.input()
        body = None if piped is None else piped.decode(errors="replace")
    if body is None or not body.strip():
        raise UsageError(
            "There is no script.",
            hint="in a notebook, write %%vm NAME as the first line of a cell and the script below it; on the "
            "command line, pipe it in or use --file",
        )
    return body


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.machines(parser)
    words.timeout(parser, default=None, help="end it after this time")
    parser.add_argument("-u", "--user", metavar="USER", help="as this user instead of root")
    parser.add_argument(
        "--err",
        choices=("show", "merge", "hide"),
        default="show",
        help="standard error: show it apart (default), merge it with the output, or hide it",
    )
    parser.add_argument(
        "--no-raise", dest="check", action="store_false", help="a status other than 0 is no error"
    )
    parser.add_argument("--file", metavar="FILE", help="read the script from this file")


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Ended | EndedMany:
    """Return how the script ended, for each machine."""
    text = _text(args, ui)
    machines = words.chosen(lab, args.machines)
    results = run_script(machines, text, ui, timeout=args.timeout, errors=args.err, user=args.user)
    args.results = results  # for --out of %%vm, which must have them even if a status was not 0
    if args.check:
        check(results, "script")
    if len(machines) == 1:
        return Ended(machines[0].name, results[machines[0].name])
    return EndedMany(results)
