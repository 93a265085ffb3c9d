"""The collection never deletes what something refers to, and in the end deletes all that nothing refers to.

The records are those that snapshots, reverts, forks and the rest leave, in any order; the layers are real qcow2 files.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from help.small_store import new_machine, new_snapshot, new_store
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from vmlab.errors import RecordDamaged
from vmlab.guest.wait import until
from vmlab.records import (
    MachineRecord,
    SnapshotRecord,
    new_id,
    write_json,
)
from vmlab.store import collect as collecting
from vmlab.store import locks
from vmlab.store import store as stores
from vmlab.store.collect import collect_later
from vmlab.store.store import Store

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")


def usable(store: Store, identity: str | None) -> bool:
    """Whether a machine could be started in that state, or there is none."""
    if identity is None:
        return True
    record = store.snapshot(identity)
    if record.ram is not None:
        assert (store.snapshot_folder(identity) / "ram").exists()
        if record.ram.base is not None:
            assert (store.snapshot_folder(record.ram.base) / "ram").exists()
    return all(whole(store, layer) for layer in record.layers.values())


def whole(store: Store, layer: str) -> bool:
    for record in store.layer_chain(layer):
        assert store.layer_path(record.id).exists()
        if record.base:
            assert (store.home / "bases" / record.base).exists()
    return True


class Life(RuleBasedStateMachine):
    """Machines that are made, snapshotted, reverted, forked, forgotten and deleted in any order."""

    machines = Bundle("machines")
    pick = st.integers(0, 99)

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="vmlab-collect-"))
        self.store = new_store(self.home)
        self.count = 0

    def teardown(self) -> None:
        for name in self.store.machine_names():
            self.store.remove_machine(name)
        shutil.rmtree(self.store.image_folder("img"), ignore_errors=True)
        collecting.collect(self.store)
        # What nothing refers to is gone to the last file.
        left = [p.name for folder in ("layers", "snapshots", "bases") for p in (self.home / folder).iterdir()]
        shutil.rmtree(self.home)
        assert left == []

    def snapshots(self, machine: MachineRecord) -> list[SnapshotRecord]:
        return self.store.snapshots_of(machine.uuid)

    @rule(target=machines)
    def create(self) -> Any:
        if not (self.store.image_folder("img") / "image.json").exists():
            return multiple()
        self.count += 1
        base = self.store.adopt("img")
        record = new_machine(self.store, f"m{self.count}", base)
        record.layers = {"vda": self.store.add_layer(base=f"{base}/disk.qcow2").id}
        self.store.add_machine(record)
        return record.name

    @rule(name=machines, live=st.booleans())
    def snapshot(self, name: str, live: bool) -> None:
        record = self.store.machine(name)
        lower = record.layers
        record.layers = self.store.add_layers(lower, live=live)
        self.store.save_machine(record)
        record.here = new_snapshot(self.store, record, lower, live=live)
        self.store.save_machine(record)

    @rule(name=machines, pick=pick, keep=st.booleans(), undo=st.booleans())
    def revert(self, name: str, pick: int, keep: bool, undo: bool) -> None:
        record = self.store.machine(name)
        known = [self.store.snapshot(record.undo)] if undo and record.undo else self.snapshots(record)
        if not known:
            return
        target, before, kept = known[pick % len(known)], replace(record), None
        if keep:
            base = record.mapped
            if base is not None:
                ram = self.store.snapshot(base).ram
                base = ram.base if ram is not None and ram.base else base
            kept = new_snapshot(self.store, record, record.layers, kind="undo", base=base)
        record.layers = self.store.add_layers(target.layers)
        record.here = target.id if target.kind != "undo" else self.store.label(target.id).parent
        record.mapped = target.id if target.ram is not None else None
        record.undo = kept
        self.store.save_machine(record)
        if before.undo is not None and self.store.snapshot(before.undo).kind == "undo":
            self.store.save_label(before.undo, replace(self.store.label(before.undo), forgotten=True))

    @rule(target=machines, name=machines, pick=pick)
    def fork(self, name: str, pick: int) -> Any:
        known = self.snapshots(self.store.machine(name))
        if not known:
            return multiple()
        self.count += 1
        source = known[pick % len(known)]
        record = new_machine(self.store, f"m{self.count}", source.spec.base, here=source.id, root=source.id)
        record.layers, record.mapped = self.store.add_layers(source.layers), source.id
        self.store.add_machine(record)
        return record.name

    @rule(name=machines, pick=pick)
    def forget(self, name: str, pick: int) -> None:
        known = self.snapshots(self.store.machine(name))
        if known:
            collecting.forget(self.store, known[pick % len(known)].id)

    @rule(name=machines)
    def power_off(self, name: str) -> None:
        record = self.store.machine(name)
        record.mapped = None
        self.store.save_machine(record)

    @rule(name=consumes(machines))
    def delete(self, name: str) -> None:
        self.store.remove_machine(name)

    @rule()
    def rebuild_the_image(self) -> None:
        folder = self.store.image_folder("img")
        if folder.exists():
            shutil.rmtree(folder)
        else:
            new_store(self.home)

    @rule(name=machines)
    def die_with_layers_that_nothing_refers_to(self, name: str) -> None:
        self.store.add_layers(self.store.machine(name).layers)
        (self.store.home / "layers" / f"{new_id()}.qcow2").touch()

    @rule()
    def collect(self) -> None:
        collecting.collect(self.store)

    @invariant()
    def all_that_is_referred_to_is_there(self) -> None:
        for name in self.store.machine_names():
            record = self.store.machine(name)
            assert all(whole(self.store, layer) for layer in record.layers.values())
            for state in (record.here, record.root, record.continues, record.mapped, record.undo):
                assert usable(self.store, state)
            for snapshot in self.snapshots(record):
                assert usable(self.store, snapshot.id)


@pytest.mark.timeout(600)
def test_any_life(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing is in the middle of anything here; and flat copies come early.
    monkeypatch.setattr(collecting, "_YOUNG", -1e9)
    monkeypatch.setattr(stores, "FLATTEN_AT", 4)
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Life, settings=settings(max_examples=25, stateful_step_count=20, deadline=None)
    )


# -- single cases ------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path / "store")


@pytest.fixture
def machine(store: Store) -> MachineRecord:
    base = store.adopt("img")
    record = new_machine(store, "web", base)
    record.layers = {"vda": store.add_layer(base=f"{base}/disk.qcow2").id}
    store.add_machine(record)
    return record


@pytest.fixture(autouse=True)
def nobody_else_collects(monkeypatch: pytest.MonkeyPatch) -> list[Store]:
    """Whoever collects leaves the rest to a process; here it would take what a test makes old for really old."""
    asked: list[Store] = []
    monkeypatch.setattr(collecting, "collect_later", asked.append)
    return asked


def grow_old(store: Store) -> None:
    for folder in ("snapshots", "layers", "bases"):
        for path in (store.home / folder).iterdir():
            os.utime(path, (time.time() - 7200,) * 2)


def take(store: Store, machine: MachineRecord) -> str:
    lower, machine.layers = machine.layers, store.add_layers(machine.layers, live=True)
    machine.here = new_snapshot(store, machine, lower)
    store.save_machine(machine)
    return machine.here


def test_what_is_new_is_left_alone_with_all_that_it_stands_on(store: Store, machine: MachineRecord) -> None:
    """An operation may have made it, and be about to write the record that refers to it."""
    first = take(store, machine)
    frozen = store.snapshot(first).layers
    grow_old(store)
    fresh = store.add_layers(frozen)
    undo = new_snapshot(store, machine, machine.layers, kind="undo", base=first)
    store.remove_machine("web")
    collecting.collect(store)
    assert whole(store, fresh["vda"])
    assert usable(store, undo)
    grow_old(store)
    collecting.collect(store)
    assert not list((store.home / "layers").iterdir())
    assert not list((store.home / "snapshots").iterdir())


def test_whatever_happens_between_two_looks_nothing_is_lost(
    store: Store, machine: MachineRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others take snapshots, keep presents and go back while somebody collects, however long that takes."""
    looks = ("machine_names", "machine", "snapshot_folders", "snapshot", "label", "layer_chain")
    first, made, left, late = take(store, machine), list[str](), 0, 0.0
    clock = SimpleNamespace(time=lambda: time.time() + late)
    monkeypatch.setattr(collecting, "time", clock)

    def look_at_present() -> None:
        made.append(new_snapshot(store, machine, store.add_layers(machine.layers), kind="present"))
        held.append(locks.Hold(store.hold_path(made[-1])))

    def keep_for_undo_and_go_back() -> None:
        made.append(new_snapshot(store, machine, machine.layers, kind="undo", base=first))
        machine.layers, machine.undo = store.add_layers(store.snapshot(first).layers), made[-1]
        store.save_machine(machine)

    def take_one() -> None:
        made.append(take(store, machine))

    def watch(name: str) -> None:
        original = getattr(Store, name)

        def looked(*args: Any, **options: Any) -> Any:
            nonlocal left, late
            found = original(*args, **options)
            left -= 1
            if left == 0:
                happens()
                late = 120.0
            return found

        monkeypatch.setattr(Store, name, looked)

    for name in looks:
        watch(name)
    held: list[locks.Hold] = []
    for happens in (look_at_present, keep_for_undo_and_go_back, take_one):
        for number in range(1, 100):
            made.clear()
            grow_old(store)
            left, late = number, 0.0
            collecting.collect(store)
            if left > 0:
                break
            assert all(usable(store, identity) for identity in made), (happens, number)
            assert whole(store, machine.layers["vda"]), (happens, number)
            for hold in held:
                hold.release()
            left = 0
            for identity in made:
                if identity != machine.undo:
                    collecting.forget(store, identity)
        else:
            raise AssertionError("it never came to its end")


@pytest.mark.parametrize("harm", ["manifest", "machine", "layer"])
def test_where_a_record_cannot_be_read_no_disk_is_deleted(
    harm: str, store: Store, machine: MachineRecord
) -> None:
    """It may refer to anything."""
    first = take(store, machine)
    take(store, machine)
    frozen = store.snapshot(first).layers["vda"]
    path = {
        "manifest": store.snapshot_folder(first) / "manifest.json",
        "machine": store.machine_folder("web") / "machine.json",
        "layer": store.home / "layers" / f"{machine.layers['vda']}.json",
    }[harm]
    content = path.read_text()
    path.chmod(0o644)
    path.write_text('{"format": 7')
    grow_old(store)
    before = sorted(p.name for p in (store.home / "layers").iterdir())
    done = collecting.collect(store)
    assert done.unreadable
    assert done.layers == 0
    assert sorted(p.name for p in (store.home / "layers").iterdir()) == before
    path.write_text(content)
    assert usable(store, first)
    assert whole(store, frozen)
    collecting.collect(store)
    assert usable(store, first)


def test_a_lost_label_does_not_make_a_snapshot_forgotten(store: Store, machine: MachineRecord) -> None:
    first = take(store, machine)
    (store.snapshot_folder(first) / "label.json").unlink()
    grow_old(store)
    collecting.collect(store)
    assert [s.id for s in store.snapshots_of(machine.uuid)] == [first]
    assert store.label(first).name == first


def test_forgetting_keeps_what_a_machine_writes_meanwhile(store: Store, machine: MachineRecord) -> None:
    """Another process holds the machine and changes its record: neither change is lost."""
    import threading

    first = take(store, machine)
    with store.lock("web", "snapshot"):
        record = store.machine("web")
        other = threading.Thread(target=collecting.forget, args=(store, first))
        other.start()
        other.join(0.3)
        record.description = "written meanwhile"
        store.save_machine(record)
    other.join()
    record = store.machine("web")
    assert record.description == "written meanwhile"
    assert record.here is None
    assert store.label(first).forgotten


def test_flat_copies_keep_the_content(
    store: Store, machine: MachineRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk over many layers reads the same through its flat copy, and through the copies made from that."""
    monkeypatch.setattr(stores, "FLATTEN_AT", 5)

    def write(layer: str, at: int, byte: int) -> None:
        argv = [
            "qemu-io",
            "-f",
            "qcow2",
            "-c",
            f"write -P {byte} {at << 16} 64k",
            str(store.layer_path(layer)),
        ]
        subprocess.run(argv, check=True, capture_output=True)

    def read(layer: str) -> bytes:
        raw = store.home / "raw"
        subprocess.run(["qemu-img", "convert", "-O", "raw", store.layer_path(layer), raw], check=True)
        return raw.read_bytes()

    expected = bytearray(1 << 20)
    layers = machine.layers
    for number in range(1, 12):
        at = number * 5 % 16
        write(layers["vda"], at, number)
        expected[at << 16 : (at + 1) << 16] = bytes([number]) * 65536
        below, layers = layers, store.add_layers(layers, live=number % 3 == 0)
        assert read(layers["vda"]) == bytes(expected)
        assert read(below["vda"]) == bytes(expected)
        assert store.depth(layers) <= 9
    machine.layers = layers
    store.save_machine(machine)
    grow_old(store)
    collecting.collect(store)
    assert read(layers["vda"]) == bytes(expected)


def test_space_comes_back_by_itself(
    store: Store, machine: MachineRecord, nobody_else_collects: list[Store]
) -> None:
    """A process that nobody waits for frees it, and ends; it never makes anew a store that is gone."""
    first = take(store, machine)
    ram = store.snapshot_folder(first) / "ram"
    ram.chmod(0o600)
    ram.write_bytes(os.urandom(1 << 20))
    store.remove_machine("web")
    done = collecting.collect(store)
    # What is new is left alone, is told, and somebody looks after it.
    assert done.later > 1 << 20
    assert nobody_else_collects == [store]
    assert collecting.waiting(store) == done.later
    assert store.snapshot_folder(first).exists()
    grow_old(store)
    collect_later(store)
    until(lambda: not store.snapshot_folder(first).exists(), 60, "the collector frees the space")
    until(lambda: not list((store.home / "locks").iterdir()), 60, "the collector ends")
    assert not list((store.home / "layers").iterdir())
    assert collecting.waiting(store) == 0


def test_halves_go_when_nobody_writes_them(store: Store, machine: MachineRecord) -> None:
    folder = store.home / "snapshots" / ".new-dead"
    folder.mkdir()
    (folder / "ram").write_bytes(b"x" * 5000)
    gone = store.home / "machines" / ".gone-web-1"
    gone.mkdir()
    with contextlib.ExitStack() as stack:
        writing = stack.enter_context(store.new_snapshot(new_id()))
        write_json(writing / "manifest.json", {})
        for path in (folder, writing):
            os.utime(path, (0, 0))
        assert collecting.collect(store).bytes
        assert writing.exists()
        assert not folder.exists()
        assert not gone.exists()
        # It comes to nothing.
        with pytest.raises(RecordDamaged):
            stack.close()
    assert not writing.exists()
