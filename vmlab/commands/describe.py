"""Say what a snapshot is, or give it another name.

Examples
--------
describe web clean "nothing installed yet"
describe web "what I stand on"             # the snapshot you stand on
describe web clean --name fresh
describe web clean                         # shows it
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vmlab.commands import _arguments as words
from vmlab.commands import _names
from vmlab.errors import NotFound, UsageError

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
    from vmlab.lab import Lab
    from vmlab.machine import Machine, Snapshot
    from vmlab.scenario import Scenario, State

GROUP = "snapshots"
ORDER = 7


def _read(machine: Machine | Scenario, given: list[str]) -> tuple[Snapshot | State, str | None]:
    """Return which snapshot is meant, and the text; one text alone is a snapshot's name if it is one."""
    if len(given) > 2:
        raise UsageError("A description is one text; put it in quotes.", got=" ".join(given))
    if len(given) == 2:
        return machine.find(given[0]), given[1]
    if given:
        try:
            return machine.find(given[0]), None
        except NotFound:
            if " " not in given[0]:  # one plain word is more likely a misspelt name than a description
                raise
    if machine.here is None:
        raise NotFound(
            f"{machine.name} has no snapshot yet.", hint=f"take one: `%vm snapshot {machine.name} NAME`"
        )
    return machine.here, given[0] if given else None


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.thing(parser)
    words.free(
        words.completed(
            parser.add_argument(
                "words", metavar="[SNAPSHOT] [TEXT]", nargs="*", help="which one, and what it is"
            ),
            _names.snapshots,
        )
    )
    parser.add_argument("--name", metavar="NEW", help="its new name")


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Snapshot | State:
    """Return the snapshot, or the machine."""
    machine = lab.named(args.machine)
    snapshot, text = _read(machine, args.words)
    if text is not None:
        snapshot.describe(text)
    if args.name:
        snapshot.rename(args.name)
    return machine.find(snapshot.id)
