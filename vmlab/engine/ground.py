"""What a machine's present is kept over as a delta."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vmlab.engine import delta, mapped_ram
from vmlab.errors import VMLabError
from vmlab.hypervisor.domain import Domain
from vmlab.records import MachineRecord, SnapshotRecord
from vmlab.store.store import Store

if TYPE_CHECKING:
    from vmlab.engine.memory import Pages


@dataclass(frozen=True)
class Ground:
    """What a machine's present is kept over as a delta.

    Attributes
    ----------
    base
        A whole snapshot, which the present equals in all pages that the guest has not changed, but for ``others``.
    mapped
        The file that its RAM is mapped from.
    others
        Where a delta was folded into that file: the pages of the delta.
    """

    base: SnapshotRecord
    mapped: Path
    others: Pages | None = None


def find(store: Store, machine: MachineRecord, domain: Domain) -> Ground | None:
    """Return the ground of what a machine's guest has changed since it was started; None if it booted.

    By what its QEMU really maps: the record may be older than that.
    """
    pid = domain.pid
    if machine.mapped is None or pid is None:
        return None
    with contextlib.suppress(VMLabError):
        record = store.snapshot(machine.mapped)
        below = record.ram.base if record.ram is not None else None
        base = store.snapshot(below) if below is not None else record
        folder = store.snapshot_folder(base.id)
        if base.ram is None or not (folder / "thin").exists():
            return None
        if delta.maps(pid, folder):
            return Ground(base, folder / "ram")
        folded = store.folded_folder(record.id)
        if below is not None and delta.maps(pid, folded):
            path = store.snapshot_folder(record.id) / "ram"
            with path.open("rb") as file:
                others = mapped_ram.read_bitmap(file.fileno(), mapped_ram.parse(path).main)
            return Ground(base, folded / "ram", others)
    return None


def newest(store: Store, machine: MachineRecord, domain: Domain, run: str) -> Ground | None:
    """Return the ground for a snapshot: the last whole one that was taken in the same QEMU, if there is one.

    The pages that the guest has not changed by now it had not changed then, so they are in that one, too.
    """
    ground = find(store, machine, domain)
    if ground is not None and machine.whole is not None and machine.whole_run == run != "":
        with contextlib.suppress(VMLabError):
            return replace(ground, base=store.snapshot(machine.whole), others=None)
    return ground
