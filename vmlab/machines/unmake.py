"""Machines that could not be made, or were made for a moment, go; and what nothing refers to any more."""

from __future__ import annotations

import contextlib
import logging
import shutil

from vmlab.engine.domain import domain_of
from vmlab.errors import VMLabError
from vmlab.hypervisor.domain import Domain
from vmlab.records import MachineRecord
from vmlab.store import collect as garbage
from vmlab.store.store import Store

log = logging.getLogger(__name__)


def unmake(store: Store, record: MachineRecord, domain: Domain) -> None:
    """End a machine that is not to be, and remove all that is its own."""
    try:
        if domain.uuid == record.uuid:
            domain.destroy()
            domain.undefine()
    except VMLabError as error:
        log.warning("%s could not be ended: %s", record.name, error)
    store.drop_layers(record.layers)
    with contextlib.suppress(OSError):
        store.remove_machine(record.name)


def _sweep(store: Store, name: str) -> None:
    """Remove a machine that somebody made for a moment (to bake, to verify) and did not live to remove."""
    if store.machine(name).throwaway:
        # A process that was killed lets go of its locks some milliseconds later.
        with store.lock(name, "sweep", timeout=0.5):
            unmake(store, store.machine(name), domain_of(store, name))
            shutil.rmtree(store.home / "cache" / name, ignore_errors=True)


def collect(store: Store) -> garbage.Collected:
    """Delete what nothing refers to any more."""
    for name in store.machine_names():
        with contextlib.suppress(VMLabError):
            _sweep(store, name)
    return garbage.collect(store)


def collect_quietly(store: Store) -> None:
    """Collect, where nobody waits for it; the next collection gets what this one did not."""
    try:
        collect(store)
    except (VMLabError, OSError) as error:
        log.warning("not all that nothing refers to could be deleted: %s", error)
