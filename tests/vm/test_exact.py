"""A snapshot continues exactly where it was taken: registers, RAM, screen, pointer; and a difference is found."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vmlab.engine import delta, emulated, mapped_ram, stream
from vmlab.guest.keys import Pointer
from vmlab.guest.screen import Screenshot
from vmlab.hypervisor.domain import Domain
from vmlab.lab import Lab
from vmlab.machine import Machine, Snapshot


def registers(machine: Machine) -> str:
    return machine.domain.hmp("info registers -a").replace("\r", "")


def recorded(snapshot: Snapshot) -> tuple[str, Screenshot]:
    """Return the registers and the screen that were recorded when a snapshot was taken."""
    png = snapshot.png
    assert png is not None
    return (snapshot.folder / "registers.txt").read_text(), Screenshot.open(png)


def assert_exact(snapshot: Snapshot) -> None:
    proof = snapshot.verify()
    assert proof.ok, str(proof)
    assert (proof.registers, proof.ram, proof.screen, proof.files) == (True, True, True, True)
    assert all(int(rip, 16) for rip in proof.rip)
    assert f"RIP={proof.rip[0]}" in recorded(snapshot)[0].replace("EIP=", "RIP=")


def test_a_game_goes_on_in_the_middle(invaders: Machine) -> None:
    first = invaders.screenshot()
    invaders.keys("right", "right", "right", "spc")
    playing = invaders.wait_for_screen(lambda now: now != first, timeout=20)
    running = invaders.snapshot("playing")
    invaders.pause()
    paused = invaders.snapshot("held")
    assert [running.live, paused.live] == [True, True]
    invaders.resume()
    invaders.wait_for_screen(lambda now: now != playing and now != recorded(paused)[1], timeout=20)

    for snapshot in (running, paused):
        assert_exact(snapshot)

    # Not a throw-away guest but the machine itself: it stands before its first instruction, and so it stays.
    invaders.revert(paused)
    assert invaders.state == "paused"
    was, screen = recorded(paused)
    assert registers(invaders) == was
    # The game hides the cursor of text mode, the one thing that a text screen shows and no snapshot holds.
    assert invaders.screenshot() == screen
    time.sleep(0.3)
    assert registers(invaders) == was

    # And then the game goes on, from there.
    invaders.resume()
    invaders.wait_for_screen(lambda now: now != screen, timeout=20)
    invaders.revert(running)
    assert invaders.state == "running"
    invaders.wait_for_screen(lambda now: now != recorded(running)[1], timeout=20)


def test_a_busy_guest(tiny: Machine) -> None:
    """A program that counts in its memory as fast as it can, and never reads it back from anywhere."""
    # The file is replaced: while it is written anew it is empty for a moment.
    write = "echo $n > /dev/shm/new && mv /dev/shm/new /dev/shm/count"
    count = f"n=0; while :; do n=$((n+1)); [ $((n % 500)) = 0 ] && {write}; done"
    tiny.succeed(f"( {count} ) > /dev/null 2>&1 &")
    tiny.wait_for_file("/dev/shm/count")
    look = "cat /dev/shm/count /run/nonce /proc/sys/kernel/random/boot_id"
    count, nonce, boot = tiny.succeed(look).split()
    snapshot = tiny.snapshot()
    tiny.wait_until_succeeds(f"test $(cat /dev/shm/count) -gt {int(count) + 20000}")
    far = int(tiny.succeed("cat /dev/shm/count"))
    assert_exact(snapshot)

    tiny.revert(snapshot)
    again, nonce_again, boot_again = tiny.succeed(look).split()
    assert (nonce_again, boot_again) == (nonce, boot)
    assert int(count) <= int(again) < far
    # It counts on: the same process, not a new one.
    tiny.wait_until_succeeds(f"test $(cat /dev/shm/count) -gt {again}")

    # What a machine that itself runs on mapped RAM saves is as exact.
    assert_exact(tiny.snapshot("second-generation"))
    assert_exact(snapshot)


def locate(machine: Machine) -> tuple[int, int]:
    """Return where the guest's own X server has the pointer."""
    said = machine.succeed("DISPLAY=:0 xdotool getmouselocation --shell")
    values = dict(line.split("=") for line in said.split())
    return int(values["X"]), int(values["Y"])


def windows(machine: Machine) -> dict[str, str]:
    """Return place and size of every window on the screen, by title."""
    said = machine.succeed(
        "export DISPLAY=:0; for w in $(xdotool search --onlyvisible --name '^(Terminal|Clock|Eyes|Calculator)$');"
        " do echo $(xdotool getwindowname $w) $(xdotool getwindowgeometry --shell $w | grep -E '^(X|Y|W|H)'); done"
    )
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in said.splitlines()}


def test_windows_and_pointer_are_where_they_were(desktop: Machine) -> None:
    pointer = Pointer(desktop.domain, desktop.screenshot().size)
    desktop.succeed("DISPLAY=:0 setsid xcalc -title Calculator > /dev/null 2>&1 &")
    desktop.wait_until_succeeds("DISPLAY=:0 xdotool search --onlyvisible --name '^Calculator$'")
    pointer.move(417, 333)
    desktop.wait_until_succeeds("DISPLAY=:0 xdotool getmouselocation | grep -q 'x:417 y:333'")
    layout = windows(desktop)
    assert set(layout) == {"Terminal", "Clock", "Eyes", "Calculator"}
    desktop.pause()
    snapshot = desktop.snapshot("tidy")
    was, screen = recorded(snapshot)
    assert desktop.screenshot() == screen
    desktop.resume()

    # Wreck it.
    pointer.move(11, 700)
    desktop.succeed(
        "export DISPLAY=:0; xdotool search --name '^Calculator$' windowkill;"
        " xdotool search --name '^Eyes$' windowmove 5 300; rm -rf /usr/share/icewm /home/user; touch /wrecked"
    )
    desktop.wait_until_succeeds("DISPLAY=:0 xdotool getmouselocation | grep -q 'x:11 y:700'")
    assert windows(desktop) != layout
    assert desktop.screenshot() != screen

    desktop.revert(snapshot)
    # Exactly as it was, before anything runs ...
    assert desktop.state == "paused"
    assert desktop.screenshot() == screen
    assert registers(desktop) == was
    # ... and for the guest itself, when it does.
    desktop.resume()
    assert locate(desktop) == (417, 333)
    assert windows(desktop) == layout
    desktop.succeed("test -d /home/user && test -d /usr/share/icewm && ! test -e /wrecked")
    # The eyes look where the pointer is: they have got no event since, so they were drawn for it.
    assert_exact(snapshot)


def test_a_running_desktop_is_exact_too(desktop: Machine) -> None:
    """Nobody holds it still: the clock's hand moves, the terminal scrolls, while the snapshot is taken."""
    desktop.succeed(
        "DISPLAY=:0 setsid xterm -T Busy -e sh -c 'while :; do date +%N; done' > /dev/null 2>&1 &"
    )
    desktop.wait_until_succeeds("DISPLAY=:0 xdotool search --onlyvisible --name '^Busy$'")
    assert_exact(desktop.snapshot())


@pytest.fixture
def other(fresh_lab: Lab, names: Callable[..., str]) -> Iterator[Snapshot]:
    """A snapshot in a store of its own, so that its files can be damaged."""
    with fresh_lab.create(names("tiny"), "tiny", bake=False) as machine:
        machine.wait_for_agent()
        yield machine.snapshot("whole")


def edit_manifest(snapshot: Snapshot, change: Callable[[dict[str, object]], None]) -> None:
    path = snapshot.folder / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.chmod(0o644)
    path.write_text(json.dumps(data))


def test_a_difference_is_found(other: Snapshot) -> None:
    store = other._store
    assert other.verify().ok

    def again() -> Snapshot:
        return Snapshot(store, store.snapshot(other.id))

    # One byte of one page of RAM.
    ram = other.folder / "ram"
    ram.chmod(0o644)
    main = mapped_ram.parse(ram).main
    with ram.open("r+b") as file:
        page = next(n for n, there in enumerate(mapped_ram.read_bitmap(file.fileno(), main)) if there)
        at = main.pages_offset + page * mapped_ram.PAGE + 77
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    found = again().verify()
    assert not found.ok
    assert (found.ram, found.files, found.registers) == (False, False, True)
    assert "RAM" in str(found)
    assert "NOT identical" in str(found)
    with ram.open("r+b") as file:
        file.seek(at)
        file.write(byte)
    assert again().verify().ok

    # One register: as if the snapshot had been taken one instruction later.
    dump = other.folder / "registers.txt"
    text = dump.read_text()
    dump.chmod(0o644)
    rip = other.verify().rip[0]
    dump.write_text(text.replace(rip, f"{int(rip, 16) + 1:016x}", 1))
    found = again().verify()
    assert (found.ok, found.registers, found.ram) == (False, False, True)
    assert rip in str(found)
    dump.write_text(text)

    # The screen: another fingerprint, and a picture that differs by more than the cursor.
    path = other.folder / "screen.png"
    path.chmod(0o644)
    picture = Screenshot.open(path).image.convert("RGB")
    picture.paste((255, 0, 0), (100, 100, 200, 200))
    picture.save(path)
    edit_manifest(other, lambda data: data.update(screen="0" * 64))
    found = again().verify()
    assert (found.ok, found.screen, found.registers) == (False, False, True)


def test_verify_leaves_nothing_behind(tiny: Machine, lab: Lab) -> None:
    snapshot = tiny.snapshot()
    before = {m.name for m in lab.machines}, sorted(p.name for p in Path(lab.home, "layers").iterdir())
    assert_exact(snapshot)
    here = {m.name for m in lab.machines}
    assert here <= before[0] | {n for n in here if n.startswith(("verify", "test", "tiny", "desktop"))}
    assert not any("verify" in name for name in here)
    assert not list((lab.home / "cache").glob("verify-*"))
    assert tiny.state == "running"


def different_pages(
    machine: Machine, folder: Path, spoil: Callable[[Path], None] | None = None
) -> dict[str, int]:
    """Save a running guest, and count the pages of the file that differ from what the stopped guest has in memory.

    Parameters
    ----------
    spoil
        Does something to the file first.
    """
    domain = machine.domain
    with domain.events() as events:
        stream.write(domain, folder, events)
    try:
        if spoil is not None:
            spoil(folder / "ram")
        emulated.put_right(domain, folder)
        path, where, found = folder / "ram", delta.addresses(domain), {}
        layout = mapped_ram.parse(path)
        mapped_ram.scrub(path, layout)
        with open(f"/proc/{domain.pid}/mem", "rb", buffering=0) as memory, path.open("rb") as file:
            for block in layout.blocks:
                memory.seek(where[block.id][0])
                file.seek(block.pages_offset)
                # Read straight from the process: nobody's bookkeeping of changed pages is in between.
                has, saved = (np.frombuffer(f.read(block.used), np.uint8) for f in (memory, file))
                differs = (has != saved)[: block.used // mapped_ram.PAGE * mapped_ram.PAGE].reshape(
                    -1, mapped_ram.PAGE
                )
                found[block.id] = int(differs.any(axis=1).sum())
        return found
    finally:
        (folder / "ram").unlink()
        domain.qmp("cont")


@pytest.mark.parametrize("bake", [None, False])
def test_nothing_is_lost_when_the_disk_is_slower_than_the_guest(
    lab: Lab, names: Callable[..., str], monkeypatch: pytest.MonkeyPatch, bake: bool | None
) -> None:
    """A guest that changes its memory while it is written, for several passes, is saved as it is when it stops.

    QEMU's emulation of CPUs forgets to watch memory that is not its first (physmem.c: tlb_reset_dirty_range_all is
    called with an offset in the block), so the mapped memory of a fork has to be the first.
    """
    real = Domain.qmp

    def slow(domain: Domain, execute: str, /, **arguments: Any) -> Any:
        if "max_bandwidth" in arguments:
            arguments |= {"max_bandwidth": 30 << 20, "downtime_limit": 1}
        return real(domain, execute, **arguments)

    monkeypatch.setattr(Domain, "qmp", slow)
    with lab.create(names("tiny"), "tiny", bake=bake) as machine:
        machine.wait_for_agent()
        # One program alone, in a loop without any system call, so that the guest's kernel has no reason to interfere.
        machine.succeed(
            "setsid awk 'BEGIN { for (;;) for (i = 0; i < 30000; i++) a[i] += 1 }' < /dev/null > /dev/null 2>&1 &"
        )
        time.sleep(1)
        folder = lab.account.make_dir(lab.home / "cache" / machine.name)
        try:
            for _ in range(3):
                assert not any(different_pages(machine, folder).values())
        finally:
            folder.rmdir()


def test_pages_that_were_written_to_without_a_trace_are_saved(lab: Lab, names: Callable[..., str]) -> None:
    """QEMU's emulated CPUs lose some where a thread has to wait at the wrong moment; nobody can make it do so."""

    def spoil(path: Path) -> None:
        main = mapped_ram.parse(path).main
        with path.open("r+b") as file:
            held = mapped_ram.read_bitmap(file.fileno(), main)
            some = np.flatnonzero(held)[np.linspace(0, held.sum() - 1, 4000).astype(int)]
            for page in some[::2]:
                os.pwrite(file.fileno(), b"what was there before", main.pages_offset + int(page) * 4096)
            held[some[1::2]] = False
            mapped_ram.write_bitmap(file.fileno(), main, held)

    with lab.create(names("tiny"), "tiny", bake=False) as machine:
        machine.wait_for_agent()
        folder = lab.account.make_dir(lab.home / "cache" / machine.name)
        try:
            assert not any(different_pages(machine, folder, spoil).values())
        finally:
            folder.rmdir()


def test_the_smallest_guest_survives_many_snapshots(invaders: Machine) -> None:
    """Less RAM than QEMU's usual video memory: emulation then asserts (tlb_reset_dirty_range_all) and ends."""
    for _ in range(4):
        assert invaders.snapshot().live
    assert invaders.state == "running"
