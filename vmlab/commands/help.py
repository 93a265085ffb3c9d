"""Show all verbs, or explain one.

Examples
--------
help
help revert
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vmlab.commands import _arguments as words
from vmlab.commands import _names, _verbs
from vmlab.views.help import HelpView, VerbHelp

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
    from vmlab.lab import Lab

GROUP = "host"
ORDER = 9
NEEDS_LAB = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.completed(
        parser.add_argument("verb", metavar="VERB", nargs="?", help="explain this one"), _names.verbs
    )


def run(lab: Lab | None, args: argparse.Namespace, ui: UI) -> HelpView | VerbHelp:
    """Return the help."""
    if args.verb:
        return VerbHelp(_verbs.verb(args.verb, ui.prefix).parser(ui.prefix).format_help())
    groups = {
        title: [(verb.name, verb.summary) for verb in _verbs.verbs().values() if verb.group == key]
        for key, title in _verbs.GROUPS.items()
    }
    return HelpView(groups, prefix=ui.prefix)
