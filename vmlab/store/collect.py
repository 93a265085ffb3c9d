"""Deleting what nothing refers to: the only place in vmlab that deletes snapshots and disk layers.

References go from machines (their layers, the snapshot they stand on, the RAM that is mapped or kept for undo) and from
snapshots that are not forgotten, to layers and what these stand on, to RAM bases, and to the files of images.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from vmlab.errors import NotFound, VMLabError
from vmlab.store import locks
from vmlab.store.records import MachineRecord, SnapshotRecord
from vmlab.store.store import Store, allocated

#: Seconds after which a half-written snapshot or base is taken for abandoned.
_ABANDONED = 3600.0
#: Seconds for which what nothing refers to is left alone: the record that refers to it may be about to be written.
_YOUNG = 60.0


@dataclass
class Collected:
    """What a collection deleted.

    Attributes
    ----------
    snapshots, layers, bases
        How many of each.
    bytes
        What they took on the disk.
    unreadable
        Records that could not be read. As long as there are any, no disk is deleted: they may refer to it.
    """

    snapshots: int = 0
    layers: int = 0
    bases: int = 0
    bytes: int = 0
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
        with contextlib.suppress(NotFound):
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
    for folder in (store.snapshot_folder(snapshot), store.compared_folder(snapshot)):
        _remove(folder)
    store.hold_path(snapshot).unlink(missing_ok=True)


def _standing_on(machine: MachineRecord) -> tuple[str | None, str | None]:
    return machine.here, machine.root


def collect(store: Store) -> Collected:
    """Delete every snapshot, layer and base that nothing refers to, and abandoned halves; return what went."""
    done = Collected()
    # Only one at a time, and never while a machine is between two records.
    with store.lock("@store", "collect what nothing refers to"):
        snapshots: dict[str, SnapshotRecord] = {}
        for identity in store.snapshot_ids():
            with contextlib.suppress(VMLabError):
                snapshots[identity] = store.snapshot(identity)
        keep, layers, bases, unreadable = _referenced(store, snapshots)
        folders = list((store.home / "snapshots").glob("[!.]*"))
        done.unreadable = sum(folder.name not in snapshots for folder in folders) + unreadable
        for identity in snapshots.keys() - keep if not unreadable else ():
            done.snapshots += 1
            done.bytes += _remove(store.snapshot_folder(identity))
            (store.home / "cache" / "checked" / identity).unlink(missing_ok=True)
            store.hold_path(identity).unlink(missing_ok=True)
        if not done.unreadable:
            for file in (store.home / "layers").glob("[!.]*"):
                # The disk before its record, so that what is left of it is found again if we die in between.
                if file.stem not in layers and file.suffix == ".qcow2" and _age(file) > _YOUNG:
                    done.layers += 1
                    done.bytes += _remove(file)
                    file.with_suffix(".json").unlink(missing_ok=True)
                elif (
                    file.stem not in layers
                    and not file.with_suffix(".qcow2").exists()
                    and _age(file) > _YOUNG
                ):
                    file.unlink(missing_ok=True)
            for folder in (store.home / "bases").glob("[!.]*"):
                if folder.name not in bases and _age(folder) > _YOUNG:
                    done.bases += 1
                    done.bytes += _remove(folder)
        done.bytes += _clear_compared(store, keep)
        for pattern in (
            "snapshots/.new-*",
            "bases/.new-*",
            "images/.new-gone-*",
            "machines/.gone-*",
            "cache/compared/.new-*",
        ):
            for half in store.home.glob(pattern):
                if _age(half) > _ABANDONED:
                    done.bytes += _remove(half)
        store.keep_spare()
    return done


def _clear_compared(store: Store, keep: set[str]) -> int:
    """Delete what comparing has kept of snapshots that are gone, and return the bytes."""
    for path in (store.home / "locks").glob("*.hold"):
        if _age(path) > _YOUNG and not locks.is_held(path):
            path.unlink(missing_ok=True)
    folders = (store.home / "cache" / "compared").glob("[!.]*")
    return sum(_remove(folder) for folder in folders if folder.name not in keep)


def _referenced(
    store: Store, snapshots: dict[str, SnapshotRecord]
) -> tuple[set[str], set[str], set[str], int]:
    """Return the snapshots, layers and bases that something refers to, and how many records could not be read."""
    bases = {store.base_id(name) for name in store.image_names()}
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
        tops.update((machine.pending or {}).get("layers", {}).values())
        roots.update(
            s for s in (machine.resume, machine.mapped, machine.undo, machine.here, machine.root) if s
        )
    for identity, record in snapshots.items():
        forgotten = _forgotten(store, identity)
        alive = record.machine in owners if record.kind == "snapshot" else record.spec.base in bases
        # A new one may belong to an operation that has not written its machine's record yet.
        young = _age(store.snapshot_folder(identity)) < _YOUNG
        if record.kind == "present":
            alive = locks.is_held(store.hold_path(identity))
        if not forgotten and (young or (alive and record.kind != "undo")):
            roots.add(identity)
    keep: set[str] = set()
    for identity in roots & snapshots.keys():
        keep.add(identity)
        ram = snapshots[identity].ram
        if ram is not None and ram.base:
            keep.add(ram.base)
    for identity in keep & snapshots.keys():
        tops.update(snapshots[identity].layers.values())
        bases.add(snapshots[identity].spec.base)
    # The same holds for new layers.
    tops.update(file.stem for file in (store.home / "layers").glob("[!.]*.json") if _age(file) < _YOUNG)
    layers, broken = _chains(store, tops, bases)
    return keep, layers, bases, unreadable + broken


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
        except FileNotFoundError:
            # Either it has gone meanwhile, or what lies below it is not known any more.
            unreadable += store.layer_path(top).exists()
        except VMLabError:
            unreadable += 1
    return layers, unreadable


def _forgotten(store: Store, snapshot: str) -> bool:
    return store.label(snapshot).forgotten


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
    import time

    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
