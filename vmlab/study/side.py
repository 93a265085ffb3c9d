"""One of the two states of a comparison, and what is found out about it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from vmlab.compare import insideparse
from vmlab.compare.state import Files, Origin
from vmlab.engine import load
from vmlab.errors import AgentError, VMLabError, WrongState
from vmlab.guest import agent
from vmlab.machines.throwaway import Forks, fork
from vmlab.records import SnapshotRecord
from vmlab.store.store import Store
from vmlab.study import present
from vmlab.study.disks import Disks, disks, flushed_disks
from vmlab.study.present import Present
from vmlab.study.which import Place

#: Seconds that the script inside gets; in an emulated guest at full load it takes a while.
INSIDE_TIMEOUT = 180
#: How far back it is looked for a snapshot that the RAM of both states came from.
GENERATIONS = 100


class Side:
    """One of the two states of a comparison, and what has been found out about it.

    Attributes
    ----------
    title
        ``web@clean``; ``web (now)`` for a present.
    machine
        The name of its machine.
    record
        The snapshot that holds it; for a present one that nobody else sees, and that goes with this object.
    """

    def __init__(self, store: Store, place: Place) -> None:
        self._store = store
        #: Holds a present that was caught, for as long as this lives.
        self.present: Present | None = None
        if place.snapshot is None:
            self.machine, self.title = place.machine, f"{place.machine} (now)"
            self.record, self.present = present.catch(store, place.machine)
        else:
            self.record = store.snapshot(place.snapshot)
            self.machine = machine_name(self.record)
            self.title = title(store, self.record)
        self._forks = Forks()
        # Not cached_property: before Python 3.12 that lets only one object of a class work at a time.
        self._disks: Disks | None = None
        self._disks_guard = threading.Lock()
        self._inside: insideparse.Inside | None = None
        self._inside_guard = threading.Lock()

    def __repr__(self) -> str:
        return f"<Side {self.title}>"

    @cached_property
    def state(self) -> Files:
        """Its files, as they were at that instant."""
        return state_of(self._store, self.record, self.title)

    def need_file(self, name: str) -> None:
        """Make sure that a small file of it is what was written; :class:`SnapshotDamaged` says which is not."""
        load.need_file(self._store, self.record, name)

    @property
    def disks(self) -> Disks:
        """Its disks to read files from: with the guest's page cache, if that can be had."""
        try:
            return self.flush()
        finally:
            self.wait()

    def flush(self) -> Disks:
        """Return its disks as soon as they can be read: what wrote them out may still be there (see `wait`)."""
        with self._disks_guard:
            if self._disks is None:
                self._disks = flushed_disks(self._store, self.record, forks=self._forks)
            return self._disks

    @property
    def inside(self) -> insideparse.Inside:
        """What its guest says of itself, asked in a throw-away fork.

        Raises
        ------
        AgentError
            It has no agent, or that does not answer.
        WrongState
            It is off.
        """
        record = self.record
        if record.ram is None:
            raise WrongState(f"{self.title} is off: there is no guest that could be asked.")
        if not record.spec.agent:
            raise AgentError(f"{self.title} has no guest agent that could be asked.")
        with self._inside_guard:
            if self._inside is None:
                try:
                    with fork(self._store, record, "ask what is inside", self._forks) as (_, domain):
                        self._inside = ask(self.title, domain)
                finally:
                    self.wait()
            return self._inside

    def stop(self) -> None:
        """End the forks of it that are being asked; after `wait` what they were asked can be asked again."""
        self._forks.stop()

    def wait(self) -> None:
        """Wait until nothing is left of the forks in which it was looked at."""
        self._forks.wait()
        if self._forks.stopped:
            self._forks = Forks()

    def to_json(self) -> dict[str, Any]:
        """Return what it is."""
        return {
            **self.state.to_json(),
            "machine": self.machine,
            "snapshot": None if self.present is not None else self._store.label(self.record.id).name,
            "created": self.record.created,
        }


def machine_name(record: SnapshotRecord) -> str:
    """Return the name that a snapshot's machine had when it was taken; for a ready state, that of the image."""
    return record.image if record.kind == "ready" else record.machine_name


def title(store: Store, record: SnapshotRecord) -> str:
    """Return what a snapshot is called: ``web@clean``."""
    return f"{machine_name(record)}@{store.label(record.id).name}"


def state_of(store: Store, record: SnapshotRecord, name: str = "") -> Files:
    """Return the files of a snapshot, for the functions of ``vmlab.compare``."""
    folder = store.snapshot_folder(record.id)
    screen = folder / "screen.png"
    ram = record.ram
    return Files(
        title=name or title(store, record),
        ram=folder / "ram" if ram is not None else None,
        registers=folder / "registers.txt" if ram is not None else None,
        screen=screen if record.screen is not None else None,
        disks=disks(store, record),
        memory=record.spec.memory,
        ram_base=store.snapshot_folder(ram.base) / "ram" if ram is not None and ram.base else None,
        disk_names=record.spec.disks,
        snapshot=record.id,
        origins=tuple(_origins(store, record)),
    )


def _origins(store: Store, record: SnapshotRecord) -> Iterator[Origin]:
    for _ in range(GENERATIONS):
        ram = record.ram
        if ram is None or ram.origin is None:
            return
        yield Origin(ram.origin, store.snapshot_folder(record.id) / "changed", ram.changed)
        try:
            record = store.snapshot(ram.origin)
        except VMLabError:
            # It was forgotten: what it came from is not known any more.
            return


def ask(title: str, domain: Any) -> insideparse.Inside:
    """Ask a running guest, through its agent, what is inside."""
    result = agent.script(domain, insideparse.SCRIPT, timeout=INSIDE_TIMEOUT)
    if result.truncated:
        raise AgentError(
            f"What is inside {title} is more than can be read: {result.truncated:,} bytes were lost."
        )
    return insideparse.parse(title, result.stdout)
