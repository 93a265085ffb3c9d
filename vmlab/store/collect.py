"""Deleting what nothing refers to: the only place in vmlab that deletes snapshots and disk layers.

References go from machines (their layers, the snapshot they stand on, the RAM that is mapped or kept for undo) and from
snapshots that are not forgotten, to layers and what these stand on, to RAM bases, and to the files of images.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from vmlab.errors import VMLabError
from vmlab.store.records import Label, SnapshotRecord
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
    """

    snapshots: int = 0
    layers: int = 0
    bases: int = 0
    bytes: int = 0

    def to_json(self) -> dict[str, int]:
        """Return the numbers by name."""
        return dict(vars(self))


def forget(store: Store, snapshot: str) -> None:
    """Take a snapshot out of the tree: those that hang on it now hang on what it hung on.

    Its files go with the next collection, unless something is built on them.
    """
    label = store.label(snapshot)
    for other in store.snapshot_ids():
        with contextlib.suppress(VMLabError, FileNotFoundError):
            found = store.label(other)
            if found.parent == snapshot:
                store.save_label(other, Label(found.name, label.parent, found.description, found.forgotten))
    for name in store.machine_names():
        record = store.machine(name)
        if snapshot in (record.here, record.root):
            record.here = label.parent if record.here == snapshot else record.here
            record.root = label.parent if record.root == snapshot else record.root
            store.save_machine(record)
    store.save_label(snapshot, Label(label.name, label.parent, label.description, forgotten=True))


def collect(store: Store) -> Collected:
    """Delete every snapshot, layer and base that nothing refers to, and abandoned halves; return what went."""
    done = Collected()
    # Only one at a time, and never while a machine is between two records.
    with store.lock("@store", "collect what nothing refers to"):
        snapshots: dict[str, SnapshotRecord] = {}
        for identity in store.snapshot_ids():
            with contextlib.suppress(VMLabError):
                snapshots[identity] = store.snapshot(identity)
        keep, layers, bases = _referenced(store, snapshots)
        for identity in snapshots.keys() - keep:
            if _age(store.snapshot_folder(identity)) < _YOUNG and not _forgotten(store, identity):
                # It may belong to an operation that has not written its machine's record yet.
                continue
            done.snapshots += 1
            done.bytes += _remove(store.snapshot_folder(identity))
            (store.home / "cache" / "checked" / identity).unlink(missing_ok=True)
        for record in (store.home / "layers").glob("*.json"):
            if record.stem not in layers and _age(record) > _YOUNG:
                done.layers += 1
                done.bytes += _remove(store.layer_path(record.stem))
                record.unlink(missing_ok=True)
        for folder in (store.home / "bases").glob("[!.]*"):
            if folder.name not in bases and _age(folder) > _YOUNG:
                done.bases += 1
                done.bytes += _remove(folder)
        for pattern in ("snapshots/.new-*", "bases/.new-*", "machines/.gone-*"):
            for half in store.home.glob(pattern):
                if _age(half) > _ABANDONED:
                    done.bytes += _remove(half)
    return done


def _referenced(
    store: Store, snapshots: dict[str, SnapshotRecord]
) -> tuple[set[str], set[str], set[str]]:
    """Return the snapshots, layers and bases that something refers to."""
    bases = {store.base_id(name) for name in store.image_names()}
    roots: set[str] = set()
    tops: set[str] = set()
    owners = set()
    for name in store.machine_names():
        machine = store.machine(name)
        owners.add(machine.uuid)
        bases.add(machine.spec.base)
        tops.update(machine.layers.values())
        tops.update((machine.pending or {}).get("layers", {}).values())
        roots.update(s for s in (machine.resume, machine.mapped, machine.undo, machine.here, machine.root) if s)
    for identity, record in snapshots.items():
        forgotten = _forgotten(store, identity)
        alive = record.machine in owners if record.kind == "snapshot" else record.spec.base in bases
        if not forgotten and alive and record.kind != "undo":
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
    layers: set[str] = set()
    for top in tops:
        with contextlib.suppress(VMLabError, FileNotFoundError):
            for layer in store.layer_chain(top):
                layers.add(layer.id)
                if layer.base:
                    bases.add(layer.base.partition("/")[0])
    return keep, layers, bases


def _forgotten(store: Store, snapshot: str) -> bool:
    with contextlib.suppress(VMLabError, FileNotFoundError):
        return store.label(snapshot).forgotten
    return True


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
