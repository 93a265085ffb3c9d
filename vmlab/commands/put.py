"""Copy a file or folder into a machine.

Examples
--------
put web setup.sh /root/setup.sh
put web setup.sh /root/     # under the same name
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vmlab.commands import _arguments as words
from vmlab.errors import UsageError
from vmlab.views.notes import Note

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
    from vmlab.lab import Lab

GROUP = "inside"
ORDER = 3


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.machine(parser)
    parser.add_argument("local", metavar="FILE", help="file or folder on this host")
    parser.add_argument(
        "remote", metavar="PATH", help="where to in the guest; a folder, into which it goes, if it ends in /"
    )


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Note:
    """Return what was copied."""
    source = Path(args.local).expanduser()
    if not source.exists():
        raise UsageError(f"There is no {args.local} here.", folder=Path.cwd())
    with ui.progress(f"put {source.name} into {args.machine}", "copying into the guest"):
        target = lab.machine(args.machine).put(source, args.remote, tell=ui.say)
    return Note(
        f"{args.local} → {args.machine}:{target}", local=str(source), machine=args.machine, remote=target
    )
