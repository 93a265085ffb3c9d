"""Show a machine's snapshots as a tree, and where you are in it.

Examples
--------
tree web
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vmlab.commands import _arguments as words

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
    from vmlab.lab import Lab
    from vmlab.tree import Tree

GROUP = "snapshots"
ORDER = 2


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.thing(parser)


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Tree:
    """Return the tree."""
    return lab.named(args.machine).tree()
