"""What machines take of their host."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vmlab.engine import load, save
from vmlab.engine.domain import domain_of, state_of
from vmlab.errors import NotFound, RecordDamaged, VMLabError
from vmlab.hypervisor import host
from vmlab.render.shown import Shown
from vmlab.store.store import Store, allocated


@dataclass(frozen=True)
class Usage(Shown):
    """What a machine takes now.

    Attributes
    ----------
    cpu_percent
        Of one CPU, over the last moment; 200 is two CPUs at full load.
    cpu_seconds
        CPU time since it was started.
    memory_pss
        Bytes of RAM really taken, QEMU itself included: a page that N machines share counts 1/N. Pages of files that
        only it maps and has not changed are not counted: the kernel drops them when it likes.
    memory_guest, memory_qemu
        The two parts of it: the guest's RAM, and QEMU itself with its devices (the guest's screen above all).
    memory_private, memory_shared
        Bytes that only it has, and that it shares with others or with a snapshot's file.
    memory
        Bytes of RAM that the guest believes to have.
    disk
        Bytes on disk of its present (its own layers and files); snapshots are counted in the tree.
    snapshots
        Bytes on disk of its snapshots.
    """

    name: str
    state: str
    cpu_percent: float
    cpu_seconds: float
    memory_pss: int
    memory_guest: int
    memory_qemu: int
    memory_private: int
    memory_shared: int
    memory: int
    disk: int
    snapshots: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the attributes by name; ``memory`` as ``memory_size``, since a machine's ``memory`` is in MiB."""
        return {("memory_size" if name == "memory" else name): value for name, value in vars(self).items()}


@dataclass(frozen=True)
class Sample:
    """The CPU time that a machine had used at some moment, both in seconds."""

    at: float
    cpu_seconds: float

    def percent_since(self, before: Sample) -> float:
        """Return how much of one CPU it took between two samples; 0 if no time has passed."""
        if self.at <= before.at:
            return 0.0
        return round(max(self.cpu_seconds - before.cpu_seconds, 0) / (self.at - before.at) * 100, 1)


def sample(store: Store, name: str) -> Sample:
    """Look at the clock and at what CPU time a machine has used."""
    return Sample(time.monotonic(), domain_of(store, name).cpu_seconds())


def usage(store: Store, names: Sequence[str], over: float = 0.25) -> list[Usage]:
    """Return what each machine takes; CPU is measured over ``over`` seconds, for all of them at once."""
    before = [sample(store, name) for name in names]
    if over and names:
        time.sleep(over)
    found = []
    for name, then in zip(names, before, strict=True):
        percent = sample(store, name).percent_since(then) if over else 0.0
        # One may be deleted meanwhile.
        with contextlib.suppress(NotFound):
            found.append(_usage(store, name, percent))
    return found


def _usage(store: Store, name: str, percent: float) -> Usage:
    domain = domain_of(store, name)
    folder = allocated(store.machine_folder(name))
    try:
        record = store.machine(name)
    except RecordDamaged:
        # What it has on disk beside its folder is not known, nor how much RAM its guest has.
        return Usage(
            name=name,
            state="damaged",
            cpu_percent=percent,
            cpu_seconds=domain.cpu_seconds(),
            memory=0,
            disk=folder,
            **_memory(domain.pid),
        )
    if domain.pid is not None:
        # virsh may have started it after the last guest that needed a way out had ended.
        load.open_ways(store, record)
    ram = record.spec.memory << 20
    disk = sum(allocated(store.layer_path(layer)) for layer in record.layers.values())
    taken = 0
    for snapshot in store.snapshots_of(record.uuid, ("snapshot",)):
        taken += sum(save.sizes(store, snapshot))
    if record.undo:
        with contextlib.suppress(VMLabError):
            taken += allocated(store.snapshot_folder(record.undo))
    return Usage(
        name=name,
        state=state_of(store, record),
        cpu_percent=percent,
        cpu_seconds=domain.cpu_seconds(),
        memory=ram,
        disk=disk + folder,
        snapshots=taken,
        **_memory(domain.pid, ram),
    )


def _memory(pid: int | None, ram: int = 0) -> dict[str, int]:
    """Return what a process takes, as attributes of its usage."""
    taken = host.memory_taken(pid, ram) if pid else dict.fromkeys(("pss", "guest", "private", "shared"), 0)
    return {
        "memory_pss": taken["pss"],
        "memory_guest": taken["guest"],
        "memory_qemu": taken["pss"] - taken["guest"],
        "memory_private": taken["private"],
        "memory_shared": taken["shared"],
    }
