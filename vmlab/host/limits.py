"""What the host has, what the machines take of it, and what stays reserved."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from vmlab.errors import UsageError
from vmlab.hypervisor import host
from vmlab.machines.usage import usage
from vmlab.records import LimitsRecord
from vmlab.render.shown import Shown
from vmlab.store.collect import waiting
from vmlab.store.store import Store, allocated


@dataclass(frozen=True)
class Limits(Shown):
    """What the host has, what the machines take of it, and what stays reserved; sizes in bytes.

    Attributes
    ----------
    memory_total, memory_available
        RAM of the host, and what programs can still take.
    memory_taken
        RAM that the machines really take (PSS).
    disk_total, disk_free, disk_taken
        The store's disk, and what the store takes.
    disk_folded
        What of that is there only so that forks share more memory: it goes first when space is short.
    disk_freeing
        What of that was deleted and goes by itself within two minutes.
    cpus, running
        CPUs of the host, and how many machines run.
    reserve_memory, reserve_disk, max_running
        What new guests and snapshots must leave free, and how many guests may run at once.
    """

    memory_total: int
    memory_available: int
    memory_taken: int
    disk_total: int
    disk_free: int
    disk_taken: int
    disk_folded: int
    disk_freeing: int
    cpus: int
    running: int
    reserve_memory: int
    reserve_disk: int
    max_running: int | None

    def to_json(self) -> dict[str, Any]:
        """Return the attributes by name."""
        return dict(vars(self))


def read(store: Store) -> Limits:
    """Return what the host has, what the machines take, and what stays reserved."""
    found = os.statvfs(store.home)
    stored = store.limits
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    usages = usage(store, store.machine_names(throwaway=False), over=0)
    return Limits(
        memory_total=total,
        memory_available=host.available_memory(),
        memory_taken=sum(u.memory_pss for u in usages),
        disk_total=found.f_blocks * found.f_frsize,
        disk_free=store.free(),
        disk_taken=allocated(store.home),
        disk_folded=allocated(store.folded_folder()),
        disk_freeing=waiting(store),
        cpus=os.cpu_count() or 1,
        running=sum(u.state == "running" for u in usages),
        reserve_memory=stored.reserve_memory << 20,
        reserve_disk=stored.reserve_disk,
        max_running=stored.max_running,
    )


def change(
    store: Store, *, reserve_memory: int | None, reserve_disk: int | None, max_running: int | None
) -> None:
    """Change what stays reserved; see :meth:`vmlab.Lab.set_limits`."""
    stored = store.limits
    if min(reserve_memory or 0, reserve_disk or 0, max_running or 0) < 0:
        raise UsageError("A limit cannot be negative.")
    store.save_limits(
        LimitsRecord(
            stored.reserve_memory if reserve_memory is None else reserve_memory,
            stored.reserve_disk if reserve_disk is None else reserve_disk,
            stored.max_running if max_running is None else max_running or None,
        )
    )
