"""Search the RAM of machines and snapshots for a text or for bytes.

States are named as in diff: with a machine alone, all its live snapshots and its present are searched, which tells in
which of them the text stands. Text is found as UTF-8 and as UTF-16. The guests notice nothing.

Examples
--------
search web "BEGIN RSA PRIVATE KEY"
search web --in clean "password"       # one snapshot
search web --hex deadbeef
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vmlab.commands import _arguments as words
from vmlab.commands import _names
from vmlab.errors import UsageError

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
    from vmlab.lab import Lab
    from vmlab.views.search import SearchView

GROUP = "snapshots"
ORDER = 11


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.machine(parser)
    words.guests(parser.add_argument("text", metavar="TEXT", help="what to search for"))
    words.completed(
        parser.add_argument(
            "--in",
            dest="states",
            metavar="STATE",
            action="append",
            help="only this snapshot, or this machine's present; can be given several times",
        ),
        _names.snapshots,
    )
    parser.add_argument("--hex", action="store_true", help="the text is bytes in hexadecimal")


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> SearchView:
    """Return what was found in each state."""
    from vmlab.views.search import SearchView

    what: str | bytes = args.text
    if args.hex:
        try:
            what = bytes.fromhex(args.text)
        except ValueError:
            raise UsageError(f"{args.text!r} is not hexadecimal.", hint="for example deadbeef") from None
    with ui.progress(f"search {args.machine}", "reading the RAM of each state"):
        return SearchView(lab.search([args.machine, *(args.states or ())], what))
