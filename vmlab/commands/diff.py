"""Show what differs between two states, part by part.

The parts are files, screen, CPU registers, devices, RAM, disk, and what is inside.

A state is a snapshot or a machine as it is now. One name: a machine against the snapshot that it stands on. A
machine and a snapshot of it: from that to now. A machine and two snapshots: from the one to the other. Two
machines: as they are now. NAME@SNAPSHOT names a snapshot of any machine.

No machine is disturbed: a running one stands still for some milliseconds, as for a snapshot, and what has to
be asked of a guest is asked in forks that are thrown away. What is inside (processes, ports, users, packages,
settings) takes seconds, so it is compared only with --inside or --all. A part that could not be compared is
told as such, never as equal.

More than two states are compared each with the next. A scenario and one or two of its states: machine by machine.

Examples
--------
diff web                    # what has changed since the snapshot that it stands on
diff web clean              # from the snapshot 'clean' until now
diff web clean s2 --files
diff web db                 # two machines
diff web@clean db@s1 --all
diff web clean --inside --baseline
diff web clean --strings    # also the texts that came to RAM, and that went
diff web s1 s2 s3           # what changed from each to the next
diff shop before            # a scenario, from its state 'before' until now
"""

from __future__ import annotations

import argparse
import functools
from typing import TYPE_CHECKING

from vmlab.commands import _arguments as words
from vmlab.commands import _names
from vmlab.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmlab.commands.ui import UI
    from vmlab.lab import Lab
    from vmlab.render.progress import Progress
    from vmlab.scenario import ScenarioDiff
    from vmlab.study.diff import Diff
    from vmlab.study.timeline import Timeline

GROUP = "snapshots"
ORDER = 9

#: Option -> parts, and its help.
OPTIONS = {
    "files": (("files",), "files and folders"),
    "disk": (("disk",), "bytes of the disks"),
    "ram": (("ram",), "pages of RAM"),
    "devices": (("registers", "devices"), "CPU registers and devices"),
    "screen": (("screen",), "the screen"),
    "inside": (("inside",), "processes, ports, users, packages, services, modules, settings"),
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.completed(
        parser.add_argument("states", metavar="STATE", nargs="+", help="machines and snapshots, as above"),
        _names.states,
    )
    for name, (_, text) in OPTIONS.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    parser.add_argument("--all", action="store_true", help="all of these; without any, all but --inside")
    parser.add_argument(
        "--strings",
        action="store_true",
        help="also the printable strings in the changed pages of RAM, which takes about a second",
    )
    parser.add_argument(
        "--baseline",
        action="store_true",
        help="measure first what changes by itself: let a fork of the first state run idle for some seconds",
    )
    parser.add_argument("--html", metavar="FILE", help="also write it as one HTML file")


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Diff | ScenarioDiff | Timeline:
    """Return the comparison, with the parts compared that were asked for."""
    from vmlab.study import diff, which

    chosen = [part for name, (parts, _) in OPTIONS.items() if getattr(args, name) for part in parts]
    parts = diff.PARTS if args.all else tuple(chosen) or diff.USUAL
    if any(args.states[0].partition("@")[0] == scenario.name for scenario in lab.scenarios):
        return _scenario(lab, args, ui, parts)
    if len(which.states(lab.store, args.states)) > 2:
        return _row(lab, args, ui, parts)

    if args.strings and "ram" not in parts:
        parts = (*parts, "ram")
    with ui.progress(f"compare {' '.join(args.states)}") as tell:
        made = diff.make(lab.store, args.states)
        made.compare(*parts, tell=lambda part: tell(part, None))
        if args.strings and made.part("ram").result is not None:
            tell("strings", None)
            _ = made.strings
        if args.baseline:
            tell("what changes by itself", None)
            made.baseline()
            made.compare(*parts)
    _write(args, ui, made)
    return made


def _scenario(lab: Lab, args: argparse.Namespace, ui: UI, parts: Sequence[str]) -> ScenarioDiff:
    """Compare states of a scenario: ``shop``, ``shop before``, ``shop@before``, ``shop before after``."""
    for name in ("baseline", "strings", "html"):
        if getattr(args, name):
            raise UsageError(
                f"--{name} is for one machine.", hint="compare one of its machines: `%vm diff A B`"
            )
    name, _, first = args.states[0].partition("@")
    rest = [word.removeprefix(f"{name}@") for word in args.states[1:]]
    with ui.progress(f"compare {' '.join(args.states)}") as tell:
        made = lab.scenario(name).diff(*([first] if first else []), *rest)
        for machine, found in made.machines.items():
            found.compare(*parts, tell=functools.partial(_tell, tell, machine))
    return made


def _tell(tell: Progress, machine: str, part: str) -> None:
    tell(f"{machine}: {part}", None)


def _row(lab: Lab, args: argparse.Namespace, ui: UI, parts: Sequence[str]) -> Timeline:
    """Compare more than two states, each with the next."""
    for name in ("baseline", "strings"):
        if getattr(args, name):
            raise UsageError(
                f"--{name} is for two states.", hint=f"compare two of them: `%vm diff A B --{name}`"
            )
    with ui.progress(f"compare {' '.join(args.states)}") as tell:
        found = lab.timeline(args.states, layers=parts, progress=tell)
    _write(args, ui, found)
    return found


def _write(args: argparse.Namespace, ui: UI, made: Diff | Timeline) -> None:
    if not args.html:
        return
    try:
        ui.say(f"written: {made.to_html(args.html)}")
    except OSError as error:
        raise UsageError(
            f"'{args.html}' cannot be written ({error.strerror}).", hint="name another file"
        ) from error
