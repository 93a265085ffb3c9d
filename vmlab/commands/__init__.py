"""The verbs: what ``%vm``, the command line and the documentation have in common.

Each module is a verb; see :class:`Verb` for what it has to offer. A new one is a new file, and nothing else: it is
found, gets its help, its completion, its ``--json``, and its place in ``%vm`` and ``vmlab``.
"""

from vmlab.commands._lines import Line, Places, fill, parse_line, read, split, verb_of
from vmlab.commands._verbs import EXPAND, GROUPS, HelpAsked, Parser, Verb, parse, verb, verbs

__all__ = [
    "EXPAND",
    "GROUPS",
    "HelpAsked",
    "Line",
    "Parser",
    "Places",
    "Verb",
    "fill",
    "parse",
    "parse_line",
    "read",
    "split",
    "verb",
    "verb_of",
    "verbs",
]
