"""The verbs: what ``%vm``, the command line and the documentation have in common.

Each module is a verb; see :class:`Verb` for what it has to offer. A new one is a new file, and nothing else: it is
found, gets its help, its completion, its ``--json``, and its place in ``%vm`` and ``vmlab``.
"""

from vmlab.commands._core import GROUPS, HelpAsked, Parser, Verb, parse, parse_line, split, verb, verbs

__all__ = ["GROUPS", "HelpAsked", "Parser", "Verb", "parse", "parse_line", "split", "verb", "verbs"]
