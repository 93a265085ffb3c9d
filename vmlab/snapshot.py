"""Snapshots: immutable nodes in a machine's tree."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vmlab.engine import proof, save
from vmlab.errors import AlreadyExists, NotFound, UsageError
from vmlab.render.shown import Shown
from vmlab.store import collect
from vmlab.store.records import SnapshotRecord, check_name

if TYPE_CHECKING:
    from vmlab.diff import Diff
    from vmlab.lab import Lab
    from vmlab.machine import Machine


class Snapshot(Shown):
    """An immutable state of a machine: its disks, and if it was taken live, its RAM, devices and CPUs.

    Made by :meth:`vmlab.Machine.snapshot`, found by :attr:`vmlab.Machine.snapshots`.
    """

    def __init__(self, lab: Lab, record: SnapshotRecord) -> None:
        self._lab = lab
        self._record = record

    def __repr__(self) -> str:
        return f"<Snapshot {self.machine_name}/{self.name} ({'live' if self.live else 'offline'})>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Snapshot) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def id(self) -> str:
        """Its identifier: unique in the store, sorts by time."""
        return self._record.id

    @property
    def name(self) -> str:
        """Its name, unique among the snapshots of its machine."""
        return self._lab.store.label(self.id).name

    @property
    def description(self) -> str:
        """What somebody said of it."""
        return self._lab.store.label(self.id).description

    @property
    def machine_name(self) -> str:
        """The name that its machine had when it was taken; for a ready state, that of the image."""
        return self._record.image if self._record.kind == "ready" else self._record.machine_name

    @property
    def machine(self) -> Machine | None:
        """The machine it was taken of; None if that is gone, and for the ready state of an image."""
        return next((m for m in self._lab.machines if m.uuid == self._record.machine), None)

    @property
    def kind(self) -> str:
        """``snapshot``, ``ready`` (an image's booted state) or ``undo`` (a present that was left)."""
        return self._record.kind

    @property
    def created(self) -> dt.datetime:
        """When it was taken, in UTC."""
        return dt.datetime.fromisoformat(self._record.created)

    @property
    def live(self) -> bool:
        """Whether it holds RAM, devices and CPUs."""
        return self._record.ram is not None

    @property
    def parent(self) -> Snapshot | None:
        """The snapshot it hangs on in the tree."""
        return self._lab.find_snapshot(self._lab.store.label(self.id).parent)

    @property
    def ram_bytes(self) -> int:
        """Bytes on disk of its RAM."""
        return save.sizes(self._lab.store, self._record)[0]

    @property
    def disk_bytes(self) -> int:
        """Bytes on disk of what changed on its disks since the snapshot before."""
        return save.sizes(self._lab.store, self._record)[1]

    @property
    def size(self) -> int:
        """Bytes on disk of all of it."""
        return sum(save.sizes(self._lab.store, self._record))

    @property
    def memory(self) -> int:
        """RAM of the guest in MiB."""
        return self._record.spec.memory

    @property
    def pause_ms(self) -> float | None:
        """For how long the guest stood still for it, by QEMU's own clock: STOP to RESUME."""
        return self._record.pause_ms

    @property
    def total_ms(self) -> float | None:
        """How long taking it took."""
        return self._record.total_ms

    @property
    def here(self) -> bool:
        """Whether a machine's present stands on it."""
        return any(m.here == self for m in self._lab.machines)

    @property
    def png(self) -> bytes | None:
        """Its screen as a PNG file; None if it is offline or has no screen."""
        path = self.folder / "screen.png"
        return path.read_bytes() if path.exists() else None

    @property
    def folder(self) -> Path:
        """The folder of its files."""
        return self._lab.store.snapshot_folder(self.id)

    def describe(self, text: str) -> None:
        """Say what it is."""
        store = self._lab.store
        store.save_label(self.id, replace(store.label(self.id), description=text))

    def rename(self, name: str) -> None:
        """Give it another name.

        Raises
        ------
        BadName, AlreadyExists
        """
        check_name("snapshot", name)
        store = self._lab.store
        for other in store.snapshots_of(self._record.machine):
            if other.id != self.id and store.label(other.id).name == name:
                raise AlreadyExists(
                    f"There is a snapshot named '{name}' already.", hint="choose another name"
                )
        store.save_label(self.id, replace(store.label(self.id), name=name))

    def forget(self) -> None:
        """Take it out of the tree, wherever it is; what nothing else is built on is deleted."""
        store = self._lab.store
        if self.kind == "ready":
            raise UsageError(
                f"The ready state of the image '{self.machine_name}' is what new machines start from.",
                hint=f"it goes with its image: `%vm images --delete {self.machine_name}`",
            )
        if store.label(self.id).forgotten or not self.folder.exists():
            raise NotFound(f"The snapshot '{self.name}' is forgotten already.")
        collect.forget(store, self.id)
        self._lab.collect()

    def verify(self) -> proof.Verification:
        """Prove that it continues exactly where it was taken: registers, RAM and screen.

        Raises
        ------
        WrongState
            It is offline.
        """
        return proof.verify(self._lab.store, self._record, self.name)

    def revert(self, *, clock: Literal["then", "now"] = "then") -> Machine:
        """Make the present of its machine equal to it, and return the machine."""
        machine = self.machine
        if machine is None:
            raise NotFound(
                f"The machine of snapshot '{self.name}' is gone.",
                hint="make a new one from it with .fork('name')",
            )
        machine.revert(self, clock=clock)
        return machine

    def diff(self, other: Snapshot | Machine | str | None = None) -> Diff:
        """Compare it with another state, by default with the present of its machine; see :meth:`vmlab.Lab.diff`."""
        return self._lab.diff(self, other)

    def fork(self, name: str, *, clock: Literal["then", "now"] = "then") -> Machine:
        """Make a new machine that starts from it."""
        return self._lab.fork(self, [name], clock=clock)[0]

    def to_json(self) -> dict[str, Any]:
        """Return what is known of it."""
        parent = self.parent
        ram, disk = save.sizes(self._lab.store, self._record)
        return {
            "id": self.id,
            "name": self.name,
            "machine": self.machine_name,
            "description": self.description,
            "created": self._record.created,
            "live": self.live,
            "parent": parent.name if parent else None,
            "here": self.here,
            "ram_bytes": ram,
            "disk_bytes": disk,
            "memory": self.memory,
            "pause_ms": self.pause_ms,
            "total_ms": self.total_ms,
            "qemu": self._record.qemu,
        }
