"""Make a scenario of its file, or start it.

A scenario is several machines and the networks between them. The machines are made side by side and plugged in; then
files and setup scripts of the folder are put into them, in the order of the file, and the state *start* is kept, to
which `reset` goes back. A scenario that is there is never changed.

Examples
--------
up shop                     # shop/scenario.toml
up shop/scenario.toml --name shop-b   # one more of it, from its start
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vmlab.commands import _arguments as words

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
    from vmlab.lab import Lab
    from vmlab.scenario import Scenario

GROUP = "scenarios"
ORDER = 1


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("file", metavar="FILE", help="the scenario's file, or its folder")
    parser.add_argument("--name", metavar="NAME", help="another name than the file's")
    words.force(parser)


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Scenario:
    """Return the scenario."""
    with ui.progress(f"up {args.file}", "reading the file") as tell:
        return lab.up(args.file, name=args.name, force=args.force, progress=tell)
