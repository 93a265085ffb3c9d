"""Bad days: what is killed, full, damaged, gone or silent gives a plain sentence and loses nothing.

Each test uses the machine afterwards. All of it happens in a lab of its own, with its own libvirt
daemon, so that it can be damaged and killed at will.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from help.bad_lab import a_page, chain_is_sound, copy_image, halves, mark, marks
from help.saboteur import Saboteur, end_daemon, kill, own_lab

from vmlab.engine import delta, mapped_ram
from vmlab.engine.load import free_port
from vmlab.errors import (
    AgentTimeout,
    Busy,
    HypervisorError,
    ImageMissing,
    NoSpace,
    NotFound,
    SnapshotDamaged,
    SnapshotIncompatible,
    VMLabError,
    WrongState,
)
from vmlab.guest.wait import until
from vmlab.lab import Lab
from vmlab.machine import Machine
from vmlab.records import write_json
from vmlab.store.store import MOST_LAYERS, SHORTEN_AT, Store

# -- killed in the middle ----------------------------------------------------------------------------------------------


def each_step(
    saboteur: Saboteur,
    verb: str,
    machine: str = "",
    argument: str | None = None,
    *,
    every: int = 1,
    **more: Any,
) -> Iterator[dict[str, Any]]:
    """Do something again and again, with the process killed before its first step, its second ... until it is done.

    Yields what became of it: where it was killed, or with another ``victim``, how it ended. ``{}`` in the words stands
    for the number of the step. To save time only ``every`` so many steps are taken, unless VMLAB_ALL is set.
    """
    for step in range(1, 200, 1 if "VMLAB_ALL" in os.environ else every):
        wanted = argument.format(step) if argument else None
        report = saboteur.run(verb, machine.format(step), wanted, step=step, **more)
        if not report["at"]:
            assert "error" not in report, report
            return
        report["step"] = step
        yield report
    raise AssertionError("it never came to its end")


#: A snapshot holds what has changed, or everything.
both_kinds = pytest.mark.parametrize("whole", [False, True], ids=["delta", "whole"])


@both_kinds
def test_the_process_is_killed_anywhere_in_a_snapshot(whole: bool, saboteur: Saboteur, box: Machine) -> None:
    mark(box, "second")
    for where in each_step(saboteur, "snapshot", box.name, "half-{}", whole=whole, every=1 + 2 * whole):
        box.start()
        assert box.state == "running", where
        assert marks(box) == "second second", where
        for snapshot in box.snapshots[1:]:
            # Whole or not at all.
            assert snapshot.verify().ok, where
            snapshot.forget()
    box.revert("good")
    assert marks(box) == "first first"


def test_the_process_is_killed_anywhere_in_a_revert(saboteur: Saboteur, box: Machine) -> None:
    mark(box, "second")
    for where in each_step(saboteur, "revert", box.name, "good", every=3):
        if box.state == "running":
            # Nobody has noticed: what is done from here on must not be lost by what comes next.
            found = marks(box)
            mark(box, "worked")
            box.start()
            assert marks(box) == "worked worked", where
        else:
            box.start()
            found = marks(box)
        assert found in ("first first", "second second"), where
        if found == "first first":
            box.undo()
            assert marks(box) == "second second", where
        mark(box, "second")
    assert marks(box) == "first first"
    box.undo()
    assert marks(box) == "second second"


def test_the_process_is_killed_anywhere_in_an_offline_snapshot(saboteur: Saboteur, ours: Lab) -> None:
    with ours.create(f"off-{uuid.uuid4().hex[:6]}", "tiny", start=False) as off:
        for where in each_step(saboteur, "snapshot", off.name, "half-{}"):
            frozen = {layer for snapshot in off.snapshots for layer in snapshot._record.layers.values()}
            # The machine never writes to the disk of a snapshot.
            assert not frozen & set(off._record.layers.values()), where
        assert len(off.snapshots) >= 1
        off.revert(off.snapshots[0])
        assert chain_is_sound(off)


@pytest.mark.parametrize("verb", ["fork", "rename"])
def test_the_process_is_killed_anywhere_in(verb: str, saboteur: Saboteur, ours: Lab, box: Machine) -> None:
    """A machine comes to be, or to its new name, as a whole; the original goes on."""
    mark(box, "second")
    name, new = box.name, f"{verb}{uuid.uuid4().hex[:4]}-"
    try:
        for where in each_step(saboteur, verb, name, new + "{}", every=5):
            here = new + str(where["step"])
            if here in ours:
                assert ours.machine(here).start().state == "running", where
                assert marks(ours.machine(here)) == "second second", where
                if verb == "rename":
                    ours.machine(here).rename(name)
                else:
                    ours.machine(here).delete()
            box = ours.machine(name)
            assert box.start().state == "running", where
            assert marks(box) == "second second", where
            assert box.find("good"), where
    finally:
        for machine in ours.machines:
            if machine.name.startswith(new):
                machine.delete()


def test_the_process_is_killed_anywhere_in_create_and_delete(saboteur: Saboteur, ours: Lab) -> None:
    stem = f"new{uuid.uuid4().hex[:4]}-"
    for where in each_step(saboteur, "create", stem + "{}", "tiny", every=3):
        if (name := stem + str(where["step"])) in ours:
            assert ours.machine(name).start().succeed("echo up") == "up\n", where
    made = [machine for machine in ours.machines if machine.name.startswith(stem)]
    assert made
    for machine in made[1:]:
        machine.delete()
    for where in each_step(saboteur, "delete", made[0].name):
        with contextlib.suppress(NotFound):
            ours.machine(made[0].name)
            continue
        # It is gone as a whole; for the rest of the steps another one.
        made[0] = ours.create(made[0].name, "tiny")
        assert made[0].state == "running", where
    assert made[0].name not in ours


def test_what_a_killed_process_made_for_a_moment_is_swept(
    saboteur: Saboteur, ours: Lab, box: Machine
) -> None:
    for step in (8, 12):
        assert saboteur.run("verify", box.name, "good", step=step)["died"]
    # In the store only: a lab does not show them.
    assert [name for name in ours.store.machine_names() if name.startswith("verify-")]
    assert not [m.name for m in ours.machines if m.name.startswith("verify-")]
    ours.collect()
    assert not [name for name in ours.store.machine_names() if name.startswith("verify-")]
    assert not list((ours.home / "cache").glob("verify-*"))
    assert box.find("good").verify().ok


@both_kinds
def test_an_interrupt_anywhere_in_a_snapshot(
    whole: bool, saboteur: Saboteur, ours: Lab, box: Machine
) -> None:
    mark(box, "second")
    before = halves(ours.store)
    every = 2 + 3 * whole
    for where in each_step(
        saboteur, "snapshot", box.name, "half-{}", victim="interrupt", whole=whole, every=every
    ):
        # The guest runs without anybody's help.
        assert box.state == "running", where
        assert marks(box) == "second second", where
        assert all(s.verify().ok for s in box.snapshots[1:]), where
        for snapshot in box.snapshots[1:]:
            snapshot.forget()
        assert not halves(ours.store) - before, where


def test_an_interrupt_anywhere_in_a_revert(saboteur: Saboteur, box: Machine) -> None:
    mark(box, "second")
    for where in each_step(saboteur, "revert", box.name, "good", victim="interrupt", every=5):
        assert box.state == "running", where
        if marks(box) == "first first":
            box.undo()
        assert marks(box) == "second second", where


@both_kinds
def test_qemu_is_killed_anywhere_in_a_snapshot(
    whole: bool, saboteur: Saboteur, ours: Lab, box: Machine
) -> None:
    good, before = box.find("good"), halves(ours.store)
    every = 2 + 3 * whole
    for where in each_step(
        saboteur, "snapshot", box.name, "half-{}", victim="qemu", whole=whole, every=every
    ):
        if "error" in where:
            assert where["kind"] == "HypervisorError", where
            assert "ended while" in where["error"], where
            assert "Next:" in where["error"], where
        for snapshot in box.snapshots[1:]:
            assert snapshot.verify().ok, where
            snapshot.forget()
        assert not halves(ours.store) - before, where
        until(lambda: box.state == "off", 30, "libvirt to notice")
        assert chain_is_sound(box), where
        box.revert(good)
        assert marks(box) == "first first", where


def test_qemu_is_killed_anywhere_in_a_revert(saboteur: Saboteur, ours: Lab, box: Machine) -> None:
    mark(box, "second")
    ready, before = box.snapshot("ready"), halves(ours.store)
    for where in each_step(saboteur, "revert", box.name, "good", victim="qemu", every=4):
        if "error" in where:
            # The old QEMU is not needed for it; the new one is.
            assert "create" in where["steps"][: where["step"]], where
            assert where["kind"] == "HypervisorError", where
            assert "Next:" in where["error"], where
        assert not halves(ours.store) - before, where
        # Where the old QEMU was killed, its RAM is lost, and the rest is as it was; where the new one was, nothing is.
        box.revert(ready)
        assert marks(box) == "second second", where


def test_nobody_waits_for_libvirt_to_hear_that_qemu_died(box: Machine) -> None:
    """What is done right after a QEMU has died is done as with a machine that is off."""

    def die() -> None:
        if box.state != "running":
            box.revert("good", keep=False)
        kill(box.domain.pid)

    die()
    box.revert("good")
    assert marks(box) == "first first"
    die()
    # The present that the revert left had no guest any more.
    assert box.undo().state == "off"
    die()
    assert not box.snapshot("dead").live
    die()
    fork = box.fork()
    assert fork.state == "off"
    fork.delete()
    die()
    box.rename(f"{box.name}-n")
    assert box.start().state == "running"
    die()
    assert box.diff("good").disk is not None
    box.revert("good")
    assert marks(box) == "first first"


@pytest.mark.parametrize(
    ("verb", "argument", "every"),
    [
        ("snapshot", "half-{}", 7),
        ("revert", "good", 8),
        ("undo", None, 9),
        ("rename", "{}", 8),
        ("fork", "{}", 6),
    ],
)
def test_a_step_is_refused_anywhere_in(
    verb: str, argument: str | None, every: int, saboteur: Saboteur, ours: Lab, box: Machine
) -> None:
    """The verb is done all the same, or the machine is as it was and runs; nothing is left half done."""
    mark(box, "second")
    if verb == "undo":
        box.revert("good")
    wanted = "first first" if verb == "revert" else "second second"
    was = "first first" if verb == "undo" else "second second"
    name, before = box.name, halves(ours.store)
    new = f"{verb}{uuid.uuid4().hex[:4]}-"
    words = argument.replace("{}", new + "{}") if argument and verb in ("rename", "fork") else argument
    try:
        for where in each_step(saboteur, verb, name, words, victim="refusal", every=every):
            other = new + str(where["step"])
            failed = "error" in where
            now = ours.machine(other if verb == "rename" and not failed else name)
            assert now.state == "running", where
            assert marks(now) == (was if failed else wanted), where
            assert (other in ours) == (verb in ("rename", "fork") and not failed), where
            assert not halves(ours.store) - before, where
            if failed:
                assert where["kind"] == "HypervisorError", where
                continue
            if verb == "rename":
                now.rename(name)
            elif verb == "fork":
                assert marks(ours.machine(other)) == "second second", where
                ours.machine(other).delete()
            elif verb in ("revert", "undo"):
                box.undo()
                assert marks(box) == was, where
    finally:
        for machine in ours.machines:
            if machine.name.startswith(new):
                machine.delete()


def test_what_was_on_the_disk_is_there_after_qemu_was_killed(box: Machine) -> None:
    mark(box, "second")
    kill(box.domain.pid)
    until(lambda: box.state == "off", 30, "libvirt to notice")
    with pytest.raises(WrongState, match="is not running"):
        box.execute("true")
    box.start()
    box.wait_for_agent()
    assert box.succeed("cat /root/mark") == "second\n"


# -- libvirtd ----------------------------------------------------------------------------------------------------------


def test_libvirtd_is_restarted(ours: Lab, box: Machine) -> None:
    mark(box, "second")
    end_daemon(ours)
    assert box.state == "running"
    assert marks(box) == "second second"
    end_daemon(ours)
    assert {m.name: m.state for m in ours}[box.name] == "running"
    end_daemon(ours)
    snapshot = box.snapshot()
    assert snapshot.pause_ms is not None
    end_daemon(ours)
    box.revert("good")
    assert marks(box) == "first first"
    end_daemon(ours)
    assert snapshot.verify().ok
    end_daemon(ours)
    fork = box.fork(snapshot=snapshot)
    assert marks(fork) == "second second"
    end_daemon(ours)
    fork.delete()


@both_kinds
def test_libvirtd_is_killed_in_a_snapshot(whole: bool, saboteur: Saboteur, ours: Lab, box: Machine) -> None:
    mark(box, "second")
    before = halves(ours.store)
    steps = saboteur.run("snapshot", box.name, "first", whole=whole)["steps"]
    for name in ("_wait" if whole else "qmp xen-save-devices-state", "switch_disks", "qmp cont"):
        step = steps.index(name) + 1
        report = saboteur.run("snapshot", box.name, f"half-{step}", step=step, whole=whole, victim="libvirtd")
        if "error" in report:
            assert report["kind"] == "HypervisorError", report
            assert f"half-{step}" not in [s.name for s in box.snapshots]
        assert box.state == "running", report
        assert marks(box) == "second second", report
        assert not halves(ours.store) - before
    assert box.snapshot().verify().ok


# -- no room -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(ours: Lab) -> Iterator[Lab]:
    """A lab whose store is on a disk of its own, of which little is free.

    Not a tmpfs: that fills a hole of a file when it is first read, and a guest whose RAM is mapped from one would be
    ended (SIGBUS) by its first look at memory that it never had.
    """
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk to fill")
    home = ours.account.make_dir(ours.account.home / f"small-{uuid.uuid4().hex[:6]}")
    disk = home.with_suffix(".ext4")
    with disk.open("wb") as file:
        file.truncate(680 << 20)
    owner = f"root_owner={ours.account.uid}:{ours.account.gid}"
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-E", owner, str(disk)], check=True)
    done = subprocess.run(["mount", "-o", "loop", str(disk), str(home)], capture_output=True, text=True)
    if done.returncode:
        disk.unlink()
        home.rmdir()
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    try:
        lab = own_lab(home)
        # Its daemon stays the one of the other lab: only the store is small.
        lab.account = lab.store.account = ours.account
        lab.set_limits(reserve_disk=0)
        copy_image(ours, lab, "tiny", how=copy)
        yield lab
        for machine in lab.machines:
            with contextlib.suppress(VMLabError):
                machine.delete()
    finally:
        subprocess.run(["umount", "-l", str(home)], check=True)
        disk.unlink()
        home.rmdir()


def copy(source: Path, target: Path) -> None:
    """Copy a file or a folder with its holes."""
    subprocess.run(["cp", "-a", "--sparse=always", "-T", str(source), str(target)], check=True)


def fill(lab: Lab, leave: int = 0) -> Path:
    """Fill the disk of a lab, but for some bytes."""
    path = lab.home / "filler"
    with path.open("wb") as file, contextlib.suppress(OSError):
        os.posix_fallocate(file.fileno(), 0, max(lab.store.free() - leave, 1))
    with path.open("ab") as file, contextlib.suppress(OSError):
        while lab.store.free() > leave:
            file.write(bytes(min(4096, lab.store.free() - leave)))
            file.flush()
    return path


def small_box(lab: Lab) -> Machine:
    machine = lab.create(f"small-{uuid.uuid4().hex[:6]}", "tiny")
    mark(machine, "first")
    machine.snapshot("good")
    mark(machine, "second")
    return machine


def test_the_disk_becomes_full_during_a_snapshot(small: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    box, need_space = small_box(small), Store.need_space

    def somebody_is_faster(store: Store, count: int, what: str) -> None:
        need_space(store, count, what)
        fill(small, leave=1 << 20)

    monkeypatch.setattr(Store, "need_space", somebody_is_faster)
    with pytest.raises(NoSpace) as caught:
        box.snapshot("half")
    monkeypatch.undo()
    assert caught.value.message.endswith(".")
    assert caught.value.hint
    assert box.state == "running"
    assert marks(box) == "second second"
    assert [s.name for s in box.snapshots] == ["good"]
    assert not halves(small.store)
    (small.home / "filler").unlink()
    assert box.snapshot("whole").verify().ok
    box.revert("good")
    assert marks(box) == "first first"


def test_the_disk_is_full_to_the_last_byte(small: Lab) -> None:
    """Nothing can be done but what makes room; and that can."""
    box = small_box(small)
    second = box.snapshot("second")
    fill(small)
    for call in (box.snapshot, lambda: box.revert("good"), lambda: box.fork("other", snapshot="good"),
                 lambda: small.create("new", "tiny")):  # fmt: skip
        with pytest.raises(NoSpace) as caught:
            call()
        assert caught.value.hint
    assert box.state == "running"
    assert marks(box) == "second second"
    second.forget()
    (small.home / "filler").unlink()
    assert [s.name for s in box.snapshots] == ["good"]
    box.revert("good")
    assert marks(box) == "first first"
    fill(small)
    box.delete()
    assert len(small) == 0


def test_the_disk_becomes_full_under_a_guest(small: Lab) -> None:
    """QEMU stops it instead of telling it of an error; with room again it goes on, and has lost nothing."""
    box = small_box(small)
    fill(small, leave=2 << 20)
    # Not before this command has ended, which a guest that stands still cannot tell.
    write = "sleep 2; dd if=/dev/urandom of=/root/big bs=1M count=12 && sync"
    write += " && sha256sum /root/big >/run/new && mv /run/new /run/sum"
    box.succeed(f"({write}) >/run/log 2>&1 &")
    until(lambda: box.state == "paused", 60, "QEMU to stop the guest")
    with pytest.raises(WrongState, match="no room left") as caught:
        box.execute("true")
    assert "resume" in str(caught.value.hint)
    assert "no room left" in str(box.why)
    with pytest.raises(WrongState, match="stopped again at once: there is no room left"):
        box.resume()
    (small.home / "filler").unlink()
    box.resume()
    box.wait_for_file("/run/sum")
    assert box.succeed("echo 3 >/proc/sys/vm/drop_caches; sha256sum -c /run/sum").strip() == "/root/big: OK"
    assert marks(box) == "second second"
    box.snapshot("later")
    box.revert("good")
    assert marks(box) == "first first"


# -- damaged -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library(ours: Lab) -> Iterator[Machine]:
    """A machine at ``second``, with the snapshots ``good`` and ``second``; tests damage ``good`` and put it right.

    Both hold everything, as when much has changed, so that neither stands on the other.
    """
    machine = ours.create(f"library-{uuid.uuid4().hex[:6]}", "tiny")
    mark(machine, "first")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delta, "pays", lambda *_: False)
        machine.snapshot("good")
        mark(machine, "second")
        machine.snapshot("second")
    yield machine
    machine.delete()


def flip(path: Path, offset: int, count: int = 64) -> None:
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(offset)
        data = file.read(count)
        file.seek(offset)
        file.write(bytes(byte ^ 0x55 for byte in data))


def set_manifest(folder: Path, **values: Any) -> None:
    path = folder / "manifest.json"
    write_json(path, {**json.loads(path.read_text()), **values})


DAMAGES = {
    "the devices": lambda folder: flip(folder / "thin", mapped_ram.parse(folder / "thin").devices_offset + 500),
    "the header": lambda folder: flip(folder / "thin", 4096),
    "truncated RAM": lambda folder: os.truncate(folder / "ram", 10 << 20),
    "grown RAM": lambda folder: os.truncate(folder / "ram", 1 << 30),
    "truncated devices": lambda folder: os.truncate(folder / "thin", (folder / "thin").stat().st_size - 100),
    "another manifest": lambda folder: (folder / "manifest.json").write_text('{"format": 1, "id": 3}'),
    "an older QEMU": lambda folder: set_manifest(folder, qemu="99.0.0"),
    "RAM after a power cut": lambda folder: (
        flip(folder / "ram", a_page(folder / "ram")),
        set_manifest(folder, boot="before"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_snapshot_is_refused(what: str, ours: Lab, library: Machine, tmp_path: Path) -> None:
    good = library.find("good")
    kept = tmp_path / "kept"
    copy(good.folder, kept)
    DAMAGES[what](good.folder)
    expected = SnapshotIncompatible if what == "an older QEMU" else SnapshotDamaged
    for call in (lambda: library.revert("good"), lambda: library.fork(snapshot="good")):
        with pytest.raises(expected) as caught:
            call()
        assert caught.value.message.endswith("."), caught.value.message
        assert caught.value.hint
    # It has not been touched, and all the rest works.
    assert library.state == "running"
    assert marks(library) == "second second"
    ours.collect()
    library.revert("second")
    assert marks(library) == "second second"
    # Nor is the snapshot lost, if the file comes back.
    shutil.rmtree(good.folder)
    copy(kept, good.folder)
    library.revert("good")
    assert marks(library) == "first first"
    library.revert("second")


def test_verify_finds_what_a_revert_cannot_see(library: Machine, tmp_path: Path) -> None:
    good = library.find("good")
    assert good.verify().ok
    kept = tmp_path / "kept"
    copy(good.folder / "ram", kept)
    flip(good.folder / "ram", a_page(good.folder / "ram"))
    found = good.verify()
    assert not found.ok
    assert found.files is False
    assert "NOT identical" in str(found)
    copy(kept, good.folder / "ram")
    flip(good.folder / "ram", mapped_ram.parse(good.folder / "ram").devices_offset + 500)
    assert not good.verify().files
    copy(kept, good.folder / "ram")
    assert good.verify().ok


def test_a_sound_snapshot_is_checked_once_after_a_reboot_of_the_host(ours: Lab, library: Machine) -> None:
    good = library.find("good")
    set_manifest(good.folder, boot="another")
    library.revert("good")
    assert marks(library) == "first first"
    assert (ours.home / "cache" / "checked" / good.id).exists()
    library.revert("second")


def test_qemu_refuses_a_state_that_looks_sound(library: Machine) -> None:
    """The present comes back, running, although its QEMU had ended already."""
    thin = library.find("good").folder / "thin"
    content = thin.read_bytes()[4096:4200]
    at = 4096 + content.index(b"mapped-ram")
    thin.chmod(0o644)
    with thin.open("r+b") as file:
        file.seek(at)
        file.write(b"mapped-rat")
    mark(library, "third")
    with pytest.raises(HypervisorError) as caught:
        library.revert("good")
    assert "as it was before" in str(caught.value.hint)
    assert library.state == "running"
    assert marks(library) == "third third"
    with thin.open("r+b") as file:
        file.seek(at)
        file.write(b"mapped-ram")
    library.revert("good")
    assert marks(library) == "first first"
    library.undo()
    assert marks(library) == "third third"
    library.revert("second")


def test_a_layer_is_gone_or_damaged(ours: Lab, library: Machine, tmp_path: Path) -> None:
    # The layer of `second` is one that `good` does not stand on.
    second = library.find("second")
    library.revert("good")
    path = ours.store.layer_path(second._record.layers["vda"])
    kept = tmp_path / "layer"
    shutil.copy2(path, kept)
    for harm in (path.unlink, lambda: path.write_bytes(b"nothing of the kind")):
        harm()
        for call in (lambda: library.revert("second"), lambda: library.fork(snapshot="second")):
            with pytest.raises(SnapshotDamaged, match="disk layer of snapshot 'second'"):
                call()
        assert marks(library) == "first first"
        ours.collect()
        shutil.copy2(kept, path)
        ours.account.own(path)
    library.revert("second")
    assert marks(library) == "second second"


def test_a_label_is_lost(ours: Lab, library: Machine) -> None:
    good = library.find("good")
    path = good.folder / "label.json"
    text = path.read_text()
    for harm in (path.unlink, lambda: path.write_text("{")):
        harm()
        ours.collect()
        assert good.id in [s.id for s in library.snapshots]
        library.revert(good.id)
        assert marks(library) == "first first"
    path.write_text(text)
    library.revert("second")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"qemu": "10.99.0"}, "which is older"),
        ({"machine_type": "pc-q35-99.9"}, "pc-q35-99.9"),
        ({"host_cpu": "Another CPU @ 9 GHz"}, "another CPU"),
    ],
)
def test_a_snapshot_from_another_world(change: dict[str, str], said: str, library: Machine) -> None:
    folder = library.find("good").folder
    before = json.loads((folder / "manifest.json").read_text())
    if "machine_type" in change:
        change = {"spec": {**before["spec"], **change}}  # type: ignore[dict-item]
    set_manifest(folder, **change)
    for call in (
        lambda: library.revert("good"),
        lambda: library.fork(snapshot="good"),
        library.find("good").verify,
    ):
        with pytest.raises(SnapshotIncompatible, match=said) as caught:
            call()
        assert caught.value.hint
    assert marks(library) == "second second"
    write_json(folder / "manifest.json", before)
    assert library.find("good").verify().ok


# -- images that are gone ----------------------------------------------------------------------------------------------


def test_an_image_is_gone_under_its_machines(ours: Lab) -> None:
    copy = ours.store.image_folder("mine")
    shutil.copytree(ours.store.image_folder("tiny"), copy)
    ours.account.own(copy, recursive=True)
    description = json.loads((copy / "image.json").read_text())
    write_json(copy / "image.json", {**description, "name": "mine"})
    box = ours.create(f"mine-{uuid.uuid4().hex[:6]}", "mine")
    mark(box, "first")
    good = box.snapshot("good")
    # A file of it first, then all of it.
    (copy / "disk.qcow2").unlink()
    other = {**description["sha256"], "disk.qcow2": "0" * 64}  # another one than its machines stand on
    write_json(copy / "image.json", {**description, "name": "mine", "sha256": other})
    with pytest.raises(ImageMissing, match=r"disk\.qcow2") as caught:
        ours.create("never", "mine")
    assert caught.value.hint
    shutil.rmtree(copy)
    with pytest.raises(NotFound):
        ours.create("never", "mine")
    assert "never" not in ours
    ours.collect()
    mark(box, "second")
    box.revert(good)
    assert marks(box) == "first first"
    fork = box.fork(snapshot=good)
    assert marks(fork) == "first first"
    fork.delete()
    # The files that its machines stand on go, too: what runs goes on.
    base = ours.home / "bases" / box.spec.base
    kernel = (base / "vmlinuz").read_bytes()
    (base / "vmlinuz").unlink()
    with pytest.raises(ImageMissing, match="vmlinuz") as caught:
        box.revert(good)
    assert caught.value.hint
    assert marks(box) == "first first"
    (base / "vmlinuz").write_bytes(kernel)
    box.revert(good)
    assert marks(box) == "first first"
    box.delete()


# -- guests that are silent, or panic ----------------------------------------------------------------------------------


def test_an_agent_that_never_answers(box: Machine) -> None:
    box.succeed("(sleep 0.3; kill -STOP $(pidof qemu-ga)) >/dev/null 2>&1 &")
    time.sleep(1)
    with pytest.raises(AgentTimeout, match="does not answer") as caught:
        box.execute("true")
    assert caught.value.hint
    assert box.screenshot() is not None
    mute = box.snapshot("mute")
    assert mute.verify().ok
    box.revert("good")
    assert marks(box) == "first first"


def test_an_agent_that_is_not_there(ours: Lab, box: Machine) -> None:
    box.succeed("sed -i /agent/d /etc/inittab; kill -HUP 1; (sleep 0.3; killall qemu-ga) >/dev/null 2>&1 &")
    time.sleep(1)
    with pytest.raises(AgentTimeout) as caught:
        box.execute("true")
    assert caught.value.hint
    box.revert("good")
    assert marks(box) == "first first"


def test_a_guest_that_panics(box: Machine) -> None:
    good = box.find("good")
    box.succeed("(sleep 0.3; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 &")
    until(lambda: box.state == "crashed", 30, "the panic to be noticed")
    with pytest.raises(WrongState, match="panicked") as caught:
        box.execute("true")
    assert "revert" in str(caught.value.hint)
    for call in (box.resume, box.pause):
        with pytest.raises(WrongState) as caught:
            call()
        assert "revert" in str(caught.value.hint)
    assert box.screenshot() is not None
    box.revert(good)
    assert box.state == "running"
    assert marks(box) == "first first"
    assert [s.name for s in box.snapshots] == ["good"]


# -- two at once -------------------------------------------------------------------------------------------------------


HOLDER = """
import sys
from pathlib import Path
from vmlab.store.locks import locked
with locked(Path(sys.argv[1]), "revert"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_second_waits_or_is_told(ours: Lab, box: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ours.home / "locks" / f"{box.name}.lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(Busy) as caught, ours.store.lock(box.name, "snapshot", timeout=0):
        pass
    assert str(holder.pid) in caught.value.message
    assert "revert" in caught.value.message
    # What only looks need not wait; what runs in the guest might be reverted under it.
    assert box.state == "running"
    assert box.screenshot() is not None
    said = list[str]()

    def tell(text: str) -> None:
        said.append(text)
        holder.communicate()

    monkeypatch.setattr(ours, "tell", tell)
    assert marks(box) == "first first"
    assert str(holder.pid) in said[0]
    box.snapshot("after")


def test_two_processes_do_things_to_one_machine(ours: Lab, saboteur: Saboteur, box: Machine) -> None:
    mark(box, "second")
    reports = list[dict[str, Any]]()
    others = [threading.Thread(target=lambda: reports.append(saboteur.run("snapshot", box.name, "theirs")))]
    others.append(threading.Thread(target=lambda: box.revert("good")))
    others.append(threading.Thread(target=lambda: ours.machine(box.name).snapshot("mine")))
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert "error" not in reports[0]
    assert {s.name for s in box.snapshots} == {"good", "theirs", "mine"}
    assert all(s.verify().ok for s in box.snapshots)
    for name in ("theirs", "mine", "good"):
        box.revert(name)
        assert marks(box) in ("first first", "second second")
    assert marks(box) == "first first"


# -- forgetting and deleting what others are built on ------------------------------------------------------------------


def grow_old(store: Store) -> None:
    """Let everything in a store be older than what a collection spares."""
    then = time.time() - 7200
    for folder in ("snapshots", "layers", "bases"):
        for path in (store.home / folder).iterdir():
            os.utime(path, (then, then))


def test_what_others_are_built_on_is_forgotten(ours: Lab, box: Machine) -> None:
    for text in ("b", "c"):
        mark(box, text)
        box.snapshot(text)
    mark(box, "present")
    box.find("b").forget()
    grow_old(ours.store)
    ours.collect()
    assert box.find("c").parent == box.find("good")
    box.revert("c")
    assert marks(box) == "c c"
    box.undo()
    assert marks(box) == "present present"
    fork = box.fork(snapshot="c")
    # All that the fork and the undo are made of is forgotten, then its machine deleted.
    for name in ("c", "good"):
        box.find(name).forget()
    assert box.here is None or box.here.name == "ready"
    grow_old(ours.store)
    ours.collect()
    mark(fork, "fork")
    later = fork.snapshot("later")
    fork.revert(later)
    assert marks(fork) == "fork fork"
    box.undo()
    assert marks(box) == "c c"
    box.undo()
    assert marks(box) == "present present"
    box.delete()
    grow_old(ours.store)
    ours.collect()
    fork.revert(later)
    assert marks(fork) == "fork fork"
    assert later.verify().ok
    fork.delete()
    grow_old(ours.store)
    ours.collect()
    assert later.id not in ours.store.snapshot_ids()


def test_the_base_of_an_undo_is_forgotten(ours: Lab, box: Machine) -> None:
    """An undo may hold only the pages that changed since a snapshot: forgetting that takes nothing from it."""
    box.revert("good")
    mark(box, "second")
    box.snapshot("other")
    mark(box, "third")
    box.revert("other")
    undo = ours.store.snapshot(str(box._record.undo))
    assert undo.ram is not None
    assert undo.ram.base is not None
    for snapshot in box.snapshots:
        snapshot.forget()
    grow_old(ours.store)
    ours.collect()
    box.undo()
    assert marks(box) == "third third"


# -- long lines of snapshots -------------------------------------------------------------------------------------------


def test_many_snapshots_in_a_line(ours: Lab, box: Machine) -> None:
    """libvirt cannot start a guest whose disk stands on more than 25 layers, nor find it again."""
    for number in range(30):
        if number % 10 == 0:
            mark(box, str(number))
        box.snapshot(f"n{number}")
    assert ours.store.depth(box._record.layers) < 25
    end_daemon(ours)
    assert marks(box) == "20 20"
    for name, text in (("n29", "20"), ("n15", "10"), ("n3", "0"), ("good", "first"), ("n29", "20")):
        box.revert(name)
        assert marks(box) == f"{text} {text}"
    fork = box.fork(snapshot="n28")
    assert marks(fork) == "20 20"
    fork.delete()
    for name in ("n0", "n12", "n21", "n22", "n23"):
        box.find(name).forget()
    grow_old(ours.store)
    ours.collect()
    assert box.find("n24").verify().ok
    box.revert("n24")
    assert marks(box) == "20 20"


def deepen(lab: Lab, machine: Machine, layers: int) -> None:
    """Take snapshots until the machine stands on that many layers."""
    while lab.store.depth(machine._record.layers) < layers:
        machine.snapshot()


def test_nothing_under_way_ends_when_a_chain_is_shortened(ours: Lab, tmp_path: Path) -> None:
    file, back = tmp_path / "file", tmp_path / "back"
    file.write_bytes(os.urandom(300_000))
    enough, port = threading.Event(), free_port()
    with ours.create(f"busy-{uuid.uuid4().hex[:6]}", "tiny", forwards=[(port, 7)]) as busy:

        def put() -> int:
            for number in itertools.count(1):
                busy.put(file, "/root/file")
                if enough.is_set():
                    return number
            raise AssertionError

        busy.succeed("while :; do nc -l -p 7 -e cat; done </dev/null >/dev/null 2>&1 &")
        pid = busy._domain().pid
        with ThreadPoolExecutor() as pool, _echoing(port) as line:
            waiting = "until [ -e /run/enough ]; do sleep 0.1; done; echo came through"
            command, puts = pool.submit(busy.execute, waiting, timeout=200), pool.submit(put)
            try:
                deepen(ours, busy, SHORTEN_AT - 1)
                for _ in range(3):
                    busy.snapshot()
                    assert _says_again(line)
                assert ours.store.depth(busy._record.layers) < SHORTEN_AT - 1
            finally:
                enough.set()
                busy.succeed("touch /run/enough")
            assert command.result().stdout == "came through\n"
            assert puts.result() > 0
        assert busy._domain().pid == pid
        busy.get("/root/file", back)
        assert back.read_bytes() == file.read_bytes()
        assert busy.succeed("ls -A /root").split() == ["file"]


def _echoing(port: int) -> socket.socket:
    """Return a connection to a port of a guest that sends back what it gets; until it listens, there is none."""
    while True:
        line = socket.create_connection(("127.0.0.1", port), 60)
        with contextlib.suppress(ConnectionError):
            if _says_again(line):
                return line
        line.close()


def _says_again(line: socket.socket) -> bool:
    line.sendall(b"still there")
    return line.recv(100) == b"still there"


def test_the_process_dies_while_a_chain_is_shortened(saboteur: Saboteur, ours: Lab, box: Machine) -> None:
    box.succeed("head -c 8000000 /dev/urandom >/root/much; sync; md5sum /root/much >/root/sum")
    deepen(ours, box, SHORTEN_AT - 1)
    mark(box, "second")
    pid = box._domain().pid
    report = saboteur.run("snapshot", box.name, "half", step="pull")
    assert report["at"] == "pull"
    # What it had asked for goes on without it, as slow as it can be.
    record = ours.store.machine(box.name)
    assert record.pending is not None
    ((target, layer),) = record.layers.items()
    lowest = list(ours.store.layer_chain(layer))[-1]
    box._domain()._find().blockRebase(target, str(ours.store.layer_path(lowest.id)), 1, 0)
    assert box._domain()._find().blockJobInfo(target)
    box.snapshot("after")
    assert ours.store.depth(box._record.layers) < SHORTEN_AT
    assert not box._domain()._find().blockJobInfo(target)
    assert box._domain().pid == pid
    assert marks(box) == "second second"
    for name in ("half", "after"):
        box.revert(name)
        assert marks(box) == "second second"
        box.succeed("echo 3 >/proc/sys/vm/drop_caches; md5sum -c /root/sum")
    box.kill()
    assert chain_is_sound(box)


def test_a_chain_that_cannot_be_shortened_is_refused_before_libvirt_loses_its_guest(
    ours: Lab, box: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No room for what would be copied.
    monkeypatch.setattr(Store, "need_space", _full_for("to copy"))
    deepen(ours, box, MOST_LAYERS)
    mark(box, "second")
    before = ours.store.machine(box.name)
    with pytest.raises(WrongState, match=f"{MOST_LAYERS} snapshots in a line.* no room") as refused:
        box.snapshot("one-too-many")
    assert refused.value.hint
    assert ours.store.machine(box.name) == before
    end_daemon(ours)
    assert marks(box) == "second second"
    monkeypatch.undo()
    box.snapshot("now")
    assert ours.store.depth(box._record.layers) < SHORTEN_AT
    box.revert("now")
    assert marks(box) == "second second"


def _full_for(what: str) -> Callable[..., None]:
    enough = Store.need_space

    def need_space(self: Store, count: int, for_what: str) -> None:
        if what in for_what:
            raise NoSpace("There is no room.", hint="forget snapshots")
        enough(self, count, for_what)

    return need_space
