"""Show how a file, a process, a register or all changed over states.

States are named as in diff: a machine, then snapshots of it; with the machine alone, all its snapshots in the order in
which they were taken, and its present. NAME@SNAPSHOT names a snapshot of any machine.

Examples
--------
timeline web --file /etc/motd       # in all snapshots, and now
timeline web s1 s2 s3               # what changed from each to the next
timeline web clean s2 --process sshd
timeline web --register rip
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vmlab.commands import _arguments as words
from vmlab.commands import _names

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
    from vmlab.lab import Lab
    from vmlab.study.timeline import Timeline

GROUP = "snapshots"
ORDER = 10


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.completed(
        parser.add_argument("states", metavar="STATE", nargs="+", help="machines and snapshots, as in diff"),
        _names.states,
    )
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--file", metavar="PATH", help="a file's size, mode, owner and content")
    words.free(
        one.add_argument("--process", metavar="TEXT", help="processes with this text in their command line")
    )
    one.add_argument(
        "--register", metavar="NAME", help="a CPU register, as in rip, or 1:rip of the second CPU"
    )


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Timeline:
    """Return the timeline."""
    with ui.progress(f"timeline of {args.states[0]}") as tell:
        return lab.timeline(
            args.states,
            file=args.file,
            process=args.process,
            register=args.register,
            progress=tell,
        )
