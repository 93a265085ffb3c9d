"""RAM, registers, devices, screen and disk of real guests, compared; the truth comes from the guest and from QEMU."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vmlab.compare.devices import compare_devices, read_devices
from vmlab.compare.disk import BLOCK, compare_disks
from vmlab.compare.memory import Memory
from vmlab.compare.ram import compare_ram
from vmlab.compare.ramsearch import find_in_ram
from vmlab.compare.ramstrings import compare_strings
from vmlab.compare.registers import compare_registers, parse_registers, read_registers
from vmlab.compare.screen import compare_screens
from vmlab.compare.state import Files
from vmlab.engine import delta
from vmlab.engine.mapped_ram import PAGE
from vmlab.lab import Lab
from vmlab.machine import Machine, Snapshot
from vmlab.records import SnapshotRecord
from vmlab.study.present import catch
from vmlab.study.side import state_of as state_with_origins

MIB = 1 << 20


def state_of(lab: Lab, record: SnapshotRecord) -> Files:
    """Return the files of a snapshot."""
    store = lab.store
    folder = store.snapshot_folder(record.id)
    screen = folder / "screen.png"
    base = record.ram.base if record.ram is not None else None
    return Files(
        store.label(record.id).name,
        folder / "ram" if record.ram is not None else None,
        folder / "registers.txt" if record.ram is not None else None,
        screen if screen.exists() else None,
        [store.layer_path(layer) for layer in record.layers.values()],
        record.spec.memory,
        store.snapshot_folder(base) / "ram" if base is not None else None,
        tuple(record.layers),
    )


def snapshot(lab: Lab, machine: Machine, name: str) -> Files:
    return state_of(lab, lab.store.snapshot(machine.snapshot(name).id))


@pytest.fixture
def scratch(lab: Lab, names: object) -> Iterator[Path]:
    """A folder that QEMU may write to."""
    folder = lab.account.make_dir(lab.store.home / "cache" / "test-compare")
    yield folder
    shutil.rmtree(folder)


def dump(machine: Machine, path: Path) -> np.ndarray:
    """Return all of a paused guest's memory as QEMU itself writes it, in pages."""
    machine.domain.qmp("pmemsave", val=0, size=machine.memory * MIB, filename=str(path))
    return np.fromfile(path, np.uint8).reshape(-1, PAGE)


def mark(token: str, number: int) -> bytes:
    """Return what the guest writes at the start of a page: made by it, so that no command line holds it."""
    return hashlib.sha256(f"{token} {number}\n".encode()).hexdigest().encode()


WRITE = """#!/bin/sh
mkdir -p /run/marked
for n in $(seq 1 40); do
    { echo "%s $n" | sha256sum | cut -c1-64 | tr -d '\\n'; head -c 4032 /dev/zero | tr '\\0' x; } > /run/marked/$n
done
"""


def test_ram_that_a_guest_wrote(lab: Lab, tiny: Machine, scratch: Path) -> None:
    """Marks that the guest writes are found where QEMU's own dump has them, and only in changed pages."""
    tiny.pause()
    was = dump(tiny, scratch / "was")
    before = snapshot(lab, tiny, "before")
    tiny.resume()
    tiny.script(WRITE % "first")
    tiny.pause()
    is_now = dump(tiny, scratch / "is")
    after = snapshot(lab, tiny, "after")

    diff = compare_ram(before, after)
    truth = (was != is_now).any(axis=1)
    # Between 640 KiB and 1 MiB the processor sees video memory and firmware instead of this RAM.
    truth[0xA0:0x100] = diff.changed[0xA0:0x100]
    assert np.flatnonzero(diff.changed != truth).tolist() == []
    assert diff.pages >= 40
    inside = np.ones(len(truth), bool)
    inside[0xA0:0x100] = False
    assert diff.differing == pytest.approx((was != is_now)[inside].sum(), abs=0x60 * PAGE)

    memory = is_now.tobytes()
    for number in range(1, 41):
        text = mark("first", number)
        found = find_in_ram(after, text).addresses
        expected, at = [], memory.find(text)
        while at >= 0:
            expected.append(at)
            at = memory.find(text, at + 1)
        assert found == expected
        # A file of tmpfs lies in a page of its own.
        assert any(address % PAGE == 0 and diff.changed[address // PAGE] for address in found)
        assert not find_in_ram(before, text)
    came = [text for text, _ in compare_strings(before, after, diff).came]
    assert any(mark("first", 7).decode() in text for text in came)


BUSY = """( n=$1; while :; do
    n=$((n + 1)); f=/dev/shm/f$((n % 37))
    head -c $((n * 7919 % 300000)) /dev/urandom > $f
    [ $((n % 5)) = 0 ] && rm -f /dev/shm/f$((n % 11))
    dd if=/dev/urandom of=/dev/shm/big bs=4096 count=3 seek=$((n * 613 % 900)) conv=notrunc
    dd if=/dev/zero of=/dev/shm/big bs=4096 count=2 seek=$((n * 331 % 900)) conv=notrunc
done ) > /dev/null 2>&1 &"""


def test_lists_of_changed_pages_leave_nothing_out(
    lab: Lab, tiny: Machine, names: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guests write, free and zero memory all the time; every two states are compared with the lists and without.

    All of them are kept whole, as when much has changed: those that are not share the file of what did not.
    """
    monkeypatch.setattr(delta, "pays", lambda *_: False)
    tiny.succeed(BUSY)
    assert tiny.root is not None
    states: dict[str, Snapshot] = {"ready": tiny.root, "a": tiny.snapshot("a")}
    caught = {}
    states["b"] = tiny.snapshot("b")
    one, two = lab.fork(states["a"], [names(), names()])
    states["fork"], states["other fork"] = one.snapshot("x"), two.snapshot("x")
    tiny.revert("a")
    states["reverted"] = tiny.snapshot("c")
    tiny.revert("b")
    tiny.undo()
    states["undone"] = tiny.snapshot("d")
    (third,) = lab.fork(states["fork"], [names()])
    states["fork of a fork"] = third.snapshot("y")
    caught["running"] = catch(lab.store, third.name)
    two.pause()
    caught["paused"] = catch(lab.store, two.name)
    tiny.pause()
    states["held"] = tiny.snapshot("e")

    # In the order in which they were taken, but for that which is taken last.
    records = {name: snapshot._record for name, snapshot in states.items() if name != "held"}
    records |= {name: record for name, (record, _) in caught.items()} | {"held": states["held"]._record}
    files = {name: state_with_origins(lab.store, record) for name, record in records.items()}
    assert [len(state.origins) for state in files.values()] == [0, 1, 1, 2, 2, 2, 2, 3, 3, 2, 2]
    # Every seventh pair meets every state on both sides; all of them take a minute.
    for first, second in list(itertools.permutations(files, 2))[:: 1 if os.environ.get("VMLAB_ALL") else 7]:
        before, after = files[first], files[second]
        quick, full = compare_ram(before, after), compare_ram(before, replace(after, snapshot="", origins=()))
        assert quick.to_json() == full.to_json(), (first, second)
        assert np.array_equal(quick.changed, full.changed), (first, second)
        assert np.array_equal(quick.occupied, full.occupied), (first, second)
        assert quick.pages
        assert quick.read < full.read or "paused" in (first, second), (first, second)
    # A guest that has changed little is compared at that cost.
    little = compare_ram(files["ready"], files["a"])
    assert little.read < 0.3 * little.populated[1] * PAGE

    # A damaged list is not used, and found when the snapshot is looked at closely; nothing depends on it.
    assert states["a"].verify().ok
    path = states["a"].folder / "changed"
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    damaged = compare_ram(files["a"], files["b"])
    assert damaged.read == compare_ram(files["a"], replace(files["b"], origins=())).read
    found = states["a"].verify()
    assert (found.ok, found.files, found.ram) == (False, False, True)
    assert "list of changed pages" in str(found)
    tiny.revert("a")


def test_registers_are_those_that_qemu_reports(lab: Lab, tiny: Machine) -> None:
    """The snapshot's report is QEMU's for the paused guest, and the stream holds the same numbers."""
    tiny.pause()
    report = parse_registers(tiny.domain.hmp("info registers -a").replace("\r", ""))
    before = snapshot(lab, tiny, "before")
    assert read_registers(before) == report
    cpu = read_devices(before).by_name["cpu", 0].fields
    names = ("RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", *(f"R{n}" for n in range(8, 16)))
    for number, name in enumerate(names):
        assert report[0][name].value == cpu[f"env.regs[{number}]"].value
    assert report[0]["RIP"].value == cpu["env.eip"].value
    assert report[0]["CR3"].value == cpu["env.cr[3]"].value
    assert report[0]["GS base"].value == cpu["env.segs[5].base"].value
    assert not compare_registers(before, before)

    tiny.resume()
    # The tables of the kernel stay; what the CPU was just doing does not.
    tiny.script("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
    tiny.pause()
    now = parse_registers(tiny.domain.hmp("info registers -a").replace("\r", ""))
    diff = compare_registers(before, snapshot(lab, tiny, "after"))
    expected = {
        name: (report[0][name].value, now[0][name].value)
        for name in report[0]
        if report[0][name].value != now[0][name].value
    }
    assert {change.name: (change.before, change.after) for change in diff} == expected
    assert "IDT base" not in diff


def test_devices_that_are_moved_on_purpose(lab: Lab, tiny: Machine) -> None:
    before = snapshot(lab, tiny, "before")
    tiny.succeed(
        "for led in /sys/class/leds/*capslock; do echo 1 > $led/brightness; done",
        "echo +7200 > /sys/class/rtc/rtc0/wakealarm",
        "stty -F /dev/ttyS0 57600",
        "echo changed > /moved && sync",
    )
    diff = compare_devices(before, snapshot(lab, tiny, "after"))
    assert diff["keyboard"].changes
    seen = {
        (device.name, change.name): (change.before, change.after)
        for device in diff
        for change in device.changes
    }
    assert seen["keyboard", "LEDs"] == ("0 (off)", "4 (caps lock)")
    # Not the hours alone: two hours from now they may be what they are without an alarm, 0.
    alarm = {("clock (RTC)", f"alarm, {unit}") for unit in ("hours", "minutes", "seconds")}
    assert alarm & seen.keys()
    assert ("clock (RTC)", "next alarm (ns)") in seen
    assert seen["serial port 0", "divisor"] == ("12 (9600 baud)", "2 (57600 baud)")
    taken = seen["disk queue", "queue 'requests', position"]
    assert isinstance(taken[0], int)
    assert taken[0] < taken[1]
    assert "timer (PIT)" in diff.unchanged or "timer (PIT)" in diff
    assert not diff.undescribed


def test_a_present_that_was_left_is_compared_with_its_base(lab: Lab, tiny: Machine) -> None:
    """What a revert keeps holds changed pages only, and devices without a description: O(delta), and by name."""
    assert tiny.root is not None
    base = state_of(lab, tiny.root._record)
    tiny.script(WRITE % "left")
    tiny.succeed("for led in /sys/class/leds/*numlock; do echo 1 > $led/brightness; done")
    tiny.revert(tiny.root)
    (record,) = lab.store.snapshots_of(tiny.uuid, ("undo",))
    left = state_of(lab, record)
    assert left.ram_base == base.ram

    diff = compare_ram(base, left)
    with Memory(left) as memory:
        own = int((memory.source == 1).sum())
    assert diff.read <= own * PAGE < 64 * MIB
    assert 40 <= diff.pages <= own
    for number in (1, 40):
        assert find_in_ram(left, mark("left", number))
        assert not find_in_ram(base, mark("left", number))

    devices = compare_devices(base, left)
    assert "CPU 0" in devices or "clock of the virtual machine" in devices
    assert "keyboard" in devices
    assert not {"CPU 0", "keyboard", "disk queue"} & set(devices.undescribed)
    assert compare_registers(base, left).total > 80


def test_disk_blocks_that_a_guest_wrote(lab: Lab, tiny: Machine, tmp_path: Path) -> None:
    before = snapshot(lab, tiny, "before")
    tiny.succeed("head -c 300000 /dev/urandom > /new && sync")
    after = snapshot(lab, tiny, "after")
    disk = compare_disks(before, after)["vda"]
    raws = []
    for state in (before, after):
        raw = tmp_path / state.title
        # Frozen layers; QEMU itself has them open and locked for reading only.
        subprocess.run(["qemu-img", "convert", "-U", "-O", "raw", state.disks[0], raw], check=True)
        raws.append(np.fromfile(raw, np.uint8).reshape(-1, BLOCK))
    assert disk.blocks.tolist() == np.flatnonzero((raws[0] != raws[1]).any(axis=1)).tolist()
    assert disk.size >= 300000
    assert disk.written >= disk.size


@pytest.mark.timeout(400)
def test_a_desktop_whose_pointer_moves(lab: Lab, desktop: Machine) -> None:
    desktop.pointer.move(100, 700)
    before = snapshot(lab, desktop, "before")
    desktop.pointer.move(700, 100)
    desktop.type("echo seen-on-the-desktop > /tmp/seen\n")
    desktop.wait_for_file("/tmp/seen")
    after = snapshot(lab, desktop, "after")

    screens = compare_screens(before, after)
    assert screens
    assert 0 < screens.share < 0.5
    assert sum(box.pixels for box in screens.boxes) == screens.pixels

    devices = compare_devices(before, after)
    (pointer,) = [device for device in devices if device.name.startswith("pointer")]
    assert any("position" in change.name or "queue" in change.name for change in pointer.changes)
    assert compare_ram(before, after).pages > 0
    assert find_in_ram(after, "seen-on-the-desktop")
    assert not find_in_ram(before, "seen-on-the-desktop")
