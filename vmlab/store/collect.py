"""Deleting what nothing refers to: the only place in vmlab that deletes snapshots and disk layers.

References go from machines (their layers, the snapshot they stand on, the RAM that is mapped or kept for undo), from
states of scenarios, and from snapshots that are not forgotten, to layers and what these stand on, to RAM bases, and to
the files of images.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

from vmlab.errors import ImageMissing, NotFound, RecordDamaged, VMLabError
from vmlab.hypervisor import host
from vmlab.records import MachineRecord, SnapshotRecord
from vmlab.render.shown import Shown
from vmlab.store import detached, locks, places, scenarios
from vmlab.store.store import Store, allocated

#: What the process that frees space locks, so that there is one for a store.
COLLECTOR = "@collector"
#: Seconds after which a half-made base or the like is taken for abandoned.
_ABANDONED = 3600.0
#: Seconds for which what nothing refers to is left alone: the record that refers to it may be about to be written.
_YOUNG = 60.0


@dataclass
class Collected(Shown):
    """What a collection deleted.

    Attributes
    ----------
    snapshots, layers, bases
        How many of each.
    bytes
        What they took on the disk.
    later
        Bytes that nothing refers to either, and that go by themselves within two minutes.
    unreadable
        Records that could not be read. As long as there are any, no disk is deleted: they may refer to it.
    """

    snapshots: int = 0
    layers: int = 0
    bases: int = 0
    bytes: int = 0
    later: int = 0
    unreadable: int = 0

    def to_json(self) -> dict[str, int]:
        """Return the numbers by name."""
        return dict(vars(self))


def forget(store: Store, snapshot: str) -> None:
    """Take a snapshot out of the tree: those that hang on it now hang on what it hung on.

    Its files go with the next collection, unless something is built on them.
    """
    label = store.label(snapshot)
    for other in store.snapshot_ids():
        # Another one may go, with its machine, at this moment.
        with contextlib.suppress(FileNotFoundError, NotFound):
            found = store.label(other)
            if found.parent == snapshot:
                store.save_label(other, replace(found, parent=label.parent))
    for name in store.machine_names():
        # What a damaged record refers to nobody knows.
        with contextlib.suppress(NotFound, RecordDamaged):
            if snapshot not in _standing_on(store.machine(name)):
                continue
            # Somebody may be at work on it, and would lose what they write, or we.
            with store.lock(name, f"forget {label.name}"):
                record = store.machine(name)
                if snapshot in _standing_on(record):
                    record.here = label.parent if record.here == snapshot else record.here
                    record.root = label.parent if record.root == snapshot else record.root
                    store.save_machine(record)
    store.save_label(snapshot, replace(label, forgotten=True))


def discard(store: Store, snapshot: str) -> None:
    """Delete a present that was only to be looked at; its disk layers go with the next collection.

    No machine stands on it but throw-away forks, which are gone before, or will be.
    """
    for folder in (
        store.snapshot_folder(snapshot),
        store.compared_folder(snapshot),
        store.folded_folder(snapshot),
    ):
        _remove(folder)
    locks.remove(store.hold_path(snapshot))
    collect_later(store)


def collect_later(store: Store) -> None:
    """Let what nothing refers to be deleted when it is old enough, also when this process is gone by then."""
    detached.start(store, "vmlab.store.collector", COLLECTOR)


def _standing_on(machine: MachineRecord) -> tuple[str | None, str | None]:
    return machine.here, machine.root


@dataclass
class _Rubbish:
    """What can be deleted.

    Attributes
    ----------
    snapshots
        Their ids.
    layers, records
        Files of disk layers, and records of layers whose disk is gone.
    folders
        Bases; what comparing and forks have kept of snapshots that are gone; halves of what was being made or deleted.
    unreadable
        How many records could not be read.
    """

    snapshots: set[str]
    layers: list[Path]
    records: list[Path]
    bases: list[Path]
    folders: list[Path]
    unreadable: int

    def bytes(self, store: Store) -> int:
        """Return what all of it takes on the disk."""
        snapshots = [store.snapshot_folder(snapshot) for snapshot in self.snapshots]
        return sum(map(allocated, [*snapshots, *self.layers, *self.records, *self.bases, *self.folders]))


def _rubbish(store: Store, young: float) -> _Rubbish:
    """Return what nothing refers to; what is younger than ``young`` seconds may still be meant for something.

    Younger now, before anything is read: however long it takes to read all, what is made meanwhile stays young.
    """
    old = time.time() - young
    found = _referenced(store, old)
    # As long as a record cannot be read nobody knows what it refers to.
    gone = found.known - found.snapshots if not found.unreadable else set()
    unreadable = found.unreadable + len(found.damaged & found.snapshots)
    rubbish = _Rubbish(gone, [], [], [], _halves(store), unreadable)
    for cached in (store.compared_folder(), store.folded_folder()):
        # What is young may be of a snapshot that came after all had been looked at.
        rubbish.folders += [
            folder
            for folder in cached.glob("[!.]*")
            if folder.name not in found.snapshots and (folder.name in gone or _since(folder) < old)
        ]
    if unreadable:
        return rubbish
    for file in (store.home / "layers").glob("[!.]*"):
        if file.stem in found.layers or _since(file) >= old:
            continue
        if file.suffix == ".qcow2":
            rubbish.layers.append(file)
        elif not file.with_suffix(".qcow2").exists():
            rubbish.records.append(file)
    for folder in store.base_folders():
        if folder.name not in found.bases and _since(folder) < old:
            rubbish.bases.append(folder)
    return rubbish


def _halves(store: Store) -> list[Path]:
    """Return what somebody was making, or deleting, and did not live to end."""
    written = places.snapshot_folder(store.home)
    made = (
        places.base_folder(store.home),
        store.home / "machines",
        store.compared_folder(),
        store.folded_folder(),
        store.home / "scenarios",
        *(store.home / "scenarios").glob("[!.]*/states"),
    )
    halves: list[Path] = []
    states = (store.home / "scenarios").glob("[!.]*/states")
    for folder in (written, *made, store.home / "images", store.home / "scenarios", *states):
        halves += [*folder.glob(".new-gone-*"), *folder.glob(".gone-*")]
    # A snapshot is locked as long as it is written.
    halves += [
        folder
        for folder in written.glob(".new-*")
        if folder not in halves and _age(folder) > _YOUNG and not locks.is_held(folder)
    ]
    news = [half for folder in made for half in folder.glob(".new-*")]
    return halves + [half for half in news if half not in halves and _age(half) > _ABANDONED]


def waiting(store: Store) -> int:
    """Return the bytes that are being freed: nothing refers to them, and they are left for a moment all the same."""
    return _rubbish(store, 0).bytes(store)


def collect(store: Store) -> Collected:
    """Delete every snapshot, layer and base that nothing refers to, and abandoned halves; return what went."""
    done = Collected()
    # Only one at a time, and never while a machine is between two records.
    with store.lock("@store", "collect what nothing refers to"):
        rubbish = _rubbish(store, _YOUNG)
        done.unreadable = rubbish.unreadable
        for identity in rubbish.snapshots:
            done.snapshots += 1
            done.bytes += _remove(store.snapshot_folder(identity))
            (store.home / "cache" / "checked" / identity).unlink(missing_ok=True)
            locks.remove(store.hold_path(identity))
        for file in rubbish.layers:
            # The disk before its record, so that what is left of it is found again if we die in between.
            done.layers += 1
            done.bytes += _remove(file)
            for suffix in (".json", ".digest"):
                file.with_suffix(suffix).unlink(missing_ok=True)
        for file in rubbish.records:
            file.unlink(missing_ok=True)
        for folder in rubbish.bases:
            done.bases += 1
            done.bytes += _remove(folder)
        done.bytes += sum(_remove(folder) for folder in rubbish.folders)
        for path in (store.home / "locks").iterdir():
            # Of those who died with one.
            if path != store.lock_path("@store") and _age(path) > _YOUNG:
                locks.remove(path)
        store.keep_spare()
    done.later = waiting(store)
    if done.later:
        collect_later(store)
    return done


@dataclass
class _Referenced:
    """What something refers to, and what was looked at.

    Attributes
    ----------
    known, damaged
        The snapshots that there were, and those of them that cannot be read.
    snapshots, layers, bases
        What something refers to.
    unreadable
        How many records, but those of snapshots, could not be read.
    """

    known: set[str]
    damaged: set[str]
    snapshots: set[str]
    layers: set[str]
    bases: set[str]
    unreadable: int


def _referenced(store: Store, old: float) -> _Referenced:
    """Return what something refers to, or may, because it is not older than that time.

    Others work meanwhile. A snapshot is there before its machine moves on from the layers that it holds: so machines
    are read first, then snapshots, each once, and new layers last.
    """
    bases = _image_bases(store)
    roots: set[str] = set()
    tops: set[str] = set()
    owners = set()
    unreadable = 0
    for name in store.machine_names():
        try:
            machine = store.machine(name)
        except NotFound:
            continue
        except VMLabError:
            unreadable += 1
            continue
        owners.add(machine.uuid)
        bases.add(machine.spec.base)
        tops.update(machine.layers.values())
        tops.update(machine.pending.layers.values() if machine.pending else ())
        roots.update(
            s
            for s in (
                machine.continues,
                machine.mapped,
                machine.nvram,
                machine.whole if host.is_alive(machine.whole_run) else None,
                machine.undo,
                machine.here,
                machine.root,
            )
            if s
        )
    stated, broken_states = scenarios.snapshots(store)
    roots |= stated
    unreadable += broken_states
    snapshots, damaged = _snapshots(store)
    for identity, record in snapshots.items():
        forgotten = store.label(identity).forgotten
        alive = record.machine in owners if record.kind == "snapshot" else record.spec.base in bases
        # A new one may belong to an operation that has not written its machine's record yet.
        is_young = _since(store.snapshot_folder(identity)) >= old
        if record.kind == "present":
            alive = locks.is_held(store.hold_path(identity))
        if not forgotten and (is_young or (alive and record.kind != "undo")):
            roots.add(identity)
    roots.update(identity for identity in damaged if _is_missed(store, identity, owners))
    keep: set[str] = set()
    for identity in roots & (snapshots.keys() | damaged):
        keep.add(identity)
        ram = snapshots[identity].ram if identity in snapshots else None
        if ram is not None and ram.base:
            keep.add(ram.base)
    for identity in keep & snapshots.keys():
        tops.update(snapshots[identity].layers.values())
        bases.add(snapshots[identity].spec.base)
    # The same holds for new layers.
    tops.update(file.stem for file in (store.home / "layers").glob("[!.]*.json") if _since(file) >= old)
    layers, broken = _chains(store, tops, bases)
    return _Referenced(snapshots.keys() | damaged, damaged, keep, layers, bases, unreadable + broken)


def _snapshots(store: Store) -> tuple[dict[str, SnapshotRecord], set[str]]:
    """Return the snapshots that there are, and the ids of those that cannot be read."""
    snapshots: dict[str, SnapshotRecord] = {}
    damaged = set()
    for folder in store.snapshot_folders():
        try:
            snapshots[folder.name] = store.snapshot(folder.name)
        except VMLabError:
            # Not one that has gone meanwhile.
            if folder.exists():
                damaged.add(folder.name)
    return snapshots, damaged


def _is_missed(store: Store, snapshot: str, owners: set[str]) -> bool:
    """Whether a snapshot that cannot be read is somebody's: it stays, since its manifest may come back."""
    label = store.label(snapshot)
    if label.forgotten:
        return False
    owner = store.damaged(snapshot).machine
    if label.kind in ("ready", "undo", "present"):
        # Nobody sees it. A machine that stands on it says so in its record; a ready state is made anew.
        return False
    return not owner or owner in owners


def _image_bases(store: Store) -> set[str]:
    """Return the bases of images, and where an image cannot be read, all that may be of it."""
    bases, damaged = set(), set()
    for name in store.image_names():
        try:
            store.image(name)
            bases.add(store.base_id(name))
        except (ImageMissing, OSError):
            damaged.add(name)
        except NotFound:
            continue
    for folder in store.base_folders() if damaged else ():
        try:
            image = store.base(folder.name).get("image")
        except ImageMissing:
            image = None
        if image is None or image in damaged:
            bases.add(folder.name)
    return bases


def _chains(store: Store, tops: set[str], bases: set[str]) -> tuple[set[str], int]:
    """Return all layers that these stand on, adding the bases, and how many of them are not known to their end."""
    layers: set[str] = set()
    unreadable, left = 0, list(tops)
    while left:
        top = left.pop()
        try:
            for layer in store.layer_chain(top):
                if layer.id in layers:
                    break
                layers.add(layer.id)
                if layer.base:
                    bases.add(layer.base.partition("/")[0])
                if layer.flat:
                    left.append(layer.flat)
        except RecordDamaged as error:
            # Where it is gone, either it has gone meanwhile, or what lies below it is not known any more.
            gone = isinstance(error.__cause__, FileNotFoundError)
            unreadable += not gone or store.layer_path(top).exists()
    return layers, unreadable


def _remove(path: Path) -> int:
    size = allocated(path)
    if path.is_dir():
        # Under another name first: a snapshot disappears whole, too.
        gone = path.with_name(f".new-gone-{path.name.lstrip('.')}-{os.getpid()}")
        with contextlib.suppress(OSError):
            path.rename(gone)
            path = gone
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    return size


def _age(path: Path) -> float:
    return time.time() - _since(path)


def _since(path: Path) -> float:
    """Return the time since when something is there as it is."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()
