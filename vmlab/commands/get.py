"""Copy a file or folder out of a machine.

Examples
--------
get web /etc/hostname
get web /etc ./web-etc
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vmlab.commands import _arguments as words
from vmlab.views.notes import Note

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
    from vmlab.lab import Lab

GROUP = "inside"
ORDER = 4


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.machine(parser)
    parser.add_argument("remote", metavar="PATH", help="file or folder in the guest")
    parser.add_argument(
        "local",
        metavar="FILE",
        nargs="?",
        help="where to on this host; here, under the same name, if not given",
    )


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Note:
    """Return where it was copied to."""
    with ui.progress(f"get {args.remote} from {args.machine}", "copying out of the guest"):
        target = lab.machine(args.machine).get(args.remote, args.local, tell=ui.say)
    return Note(
        f"{args.machine}:{args.remote} → {target}",
        machine=args.machine,
        remote=args.remote,
        local=str(target),
    )
