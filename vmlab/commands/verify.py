"""Prove that a snapshot comes back exactly.

It is restored in a guest that is thrown away, and compared before the first instruction.

CPU registers, all of the RAM, the devices and the screen are compared with what was recorded when the
snapshot was taken, and all disks down to the image with the digests that were taken in the background
soon after; of a machine that was off, the disks. It says what it covered. The machine itself is not touched.

Examples
--------
verify web clean
verify web                  # the snapshot you stand on
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from vmlab.commands import _arguments as words
from vmlab.errors import NotFound

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
    from vmlab.lab import Lab

GROUP = "snapshots"
ORDER = 8


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.machine(parser)
    words.snapshot(parser, optional=True, help="which one; without it, the snapshot you stand on")


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Any:
    """Return the verification."""
    machine = lab.machine(args.machine)
    snapshot = machine.find(args.snapshot) if args.snapshot else machine.here
    if snapshot is None:
        raise NotFound(
            f"{machine.name} has no snapshot yet.", hint=f"take one: `%vm snapshot {machine.name} NAME`"
        )
    with ui.progress(
        f"verify {machine.name}@{snapshot.name}", "comparing it with a guest that goes on from it"
    ):
        return snapshot.verify()
