"""A snapshot of a running machine holds what its guest has changed, and is as good as one that holds everything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vmlab.engine import delta, mapped_ram
from vmlab.engine.mapped_ram import MAPPED_RAM, PAGE
from vmlab.errors import NoSpace, SnapshotDamaged
from vmlab.lab import Lab
from vmlab.machine import Machine, Snapshot
from vmlab.store.store import allocated

MIB = 1 << 20


def base_of(snapshot: Snapshot) -> str | None:
    """Return the snapshot over which one holds what changed; None: it holds everything."""
    ram = snapshot._record.ram
    assert ram is not None
    return ram.base


def held(snapshot: Snapshot) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Return which pages of RAM a snapshot itself holds."""
    path = snapshot.folder / "ram"
    with path.open("rb") as file:
        return mapped_ram.read_bitmap(file.fileno(), mapped_ram.parse(path).main)


def fill(machine: Machine, name: str, mib: int) -> str:
    """Fill some of a guest's RAM with random bytes and return their checksum."""
    path = f"/dev/shm/{name}"
    machine.succeed(
        f"mount -o remount,size=90% /dev/shm; head -c {mib * MIB} /dev/urandom > {path}", timeout=120
    )
    return checksum(machine, name)


def checksum(machine: Machine, name: str) -> str:
    return str(machine.succeed(f"md5sum < /dev/shm/{name}", timeout=60))


def test_a_snapshot_holds_what_changed(lab: Lab, tiny: Machine) -> None:
    root = tiny._record.root
    first = fill(tiny, "one", 3)
    one = tiny.snapshot("one")
    second = fill(tiny, "two", 3)
    two = tiny.snapshot("two")
    tiny.pause()
    three = tiny.snapshot("three")
    assert [base_of(snapshot) for snapshot in (one, two, three)] == [root] * 3
    for snapshot in (one, two, three):
        # What it says it takes: the pages that changed, and little more (devices, the screen's memory).
        pages = held(snapshot).sum() * PAGE
        assert pages + 2 * MIB > snapshot.ram_bytes
        assert snapshot.ram_bytes >= allocated(snapshot.folder / "ram") > 0
        assert snapshot.verify().ok
    # Compared, only their own pages are read: those of the base are the same file's.
    changes = lab.diff(f"{tiny.name}@one", f"{tiny.name}@two").ram
    assert changes.pages >= 3 * MIB // PAGE
    assert changes.read <= (held(one) | held(two)).sum() * PAGE
    again = tiny.snapshot("again")
    assert not lab.diff(f"{tiny.name}@three", f"{tiny.name}@again").ram.pages
    assert np.array_equal(held(three), held(again))

    tiny.revert("one")
    assert checksum(tiny, "one") == first
    tiny.succeed("! test -e /dev/shm/two")
    tiny.revert("two")
    assert checksum(tiny, "two") == second
    # A delta of a guest that came from a delta stands on the same base.
    four = tiny.snapshot("four")
    assert base_of(four) == root
    with tiny.fork(snapshot="two") as fork:
        assert checksum(fork, "two") == second
        five = fork.snapshot("five")
        assert five.verify().ok
    assert four.verify().ok


def test_a_page_that_holds_what_it_held_is_not_stored(tiny: Machine) -> None:
    tiny.pause()
    domain = tiny._domain()
    pid, (address, size) = domain.pid, delta.addresses(domain)[MAPPED_RAM]
    assert pid is not None
    own = delta.changed(pid, address, size // PAGE)
    touched = np.flatnonzero(~own)[:1000]
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        for page in touched.tolist():
            memory.seek(address + page * PAGE)
            data = memory.read(PAGE)
            memory.seek(address + page * PAGE)
            memory.write(data)
    assert delta.changed(pid, address, size // PAGE)[touched].all()
    snapshot = tiny.snapshot()
    assert not held(snapshot)[touched].any()
    assert snapshot.verify().ok


def test_when_much_has_changed_all_is_kept_and_the_next_stands_on_that(
    lab: Lab, tiny: Machine, names: Callable[..., str]
) -> None:
    small = tiny.snapshot("small")
    root = base_of(small)
    assert root is not None
    much = allocated(lab.store.snapshot_folder(root) / "ram") // MIB
    first = fill(tiny, "much", much // 2 + 2)
    whole = tiny.snapshot("whole")
    assert base_of(whole) is None
    tiny.succeed("echo more > /dev/shm/more")
    after = tiny.snapshot("after")
    assert base_of(after) == whole.id
    assert after.ram_bytes < whole.ram_bytes / 4
    # Also as a present that is looked at.
    tiny.succeed("echo still more > /dev/shm/more")
    changes = lab.diff(f"{tiny.name}@after", tiny.name).ram
    assert 0 < changes.pages < much * MIB // PAGE // 4

    # In any order they are forgotten, and what others need stays.
    whole.forget()
    small.forget()
    lab.collect()
    assert after.verify().ok
    tiny.revert("after")
    assert checksum(tiny, "much") == first
    assert tiny.succeed("cat /dev/shm/more") == "more\n"
    # It runs on the whole one now, so that is what its next ones stand on.
    assert base_of(tiny.snapshot("later")) == whole.id
    tiny.undo()
    assert tiny.succeed("cat /dev/shm/more") == "still more\n"


@pytest.mark.parametrize("what", ["its own", "the base's"])
def test_damage_to_a_delta_is_found(what: str, lab: Lab, tiny: Machine) -> None:
    much = allocated(lab.store.snapshot_folder(str(tiny._record.root)) / "ram") // MIB
    first = fill(tiny, "much", much // 2 + 2)
    base = tiny.snapshot("base")
    assert base_of(base) is None
    fill(tiny, "one", 1)
    snapshot = tiny.snapshot("delta")
    assert base_of(snapshot) == base.id
    path = (snapshot if what == "its own" else base).folder / "ram"
    at = mapped_ram.parse(path).main.pages_offset
    page = int(np.flatnonzero(held(snapshot) if what == "its own" else held(base) & ~held(snapshot))[7])
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(at + page * PAGE + 11)
        byte = file.read(1)
        file.seek(at + page * PAGE + 11)
        file.write(bytes([byte[0] ^ 1]))
    proof = snapshot.verify()
    assert not proof.ok
    assert not proof.files
    assert any(path.parent.name in line for line in proof.differences)
    # What a revert reads of it, it looks at before it touches the guest.
    own = snapshot.folder / "ram"
    own.chmod(0o600)
    with own.open("r+b") as file:
        file.seek(mapped_ram.parse(own).devices_offset + 500)
        file.write(b"no device")
    for call in (lambda: tiny.revert("delta"), lambda: tiny.fork(snapshot="delta")):
        with pytest.raises(SnapshotDamaged):
            call()
    assert tiny.state == "running"
    assert checksum(tiny, "much") == first


def test_forks_of_a_delta_share_its_pages(lab: Lab, tiny: Machine, names: Callable[..., str]) -> None:
    much = fill(tiny, "much", 12)
    snapshot = tiny.snapshot("delta")
    root = base_of(snapshot)
    assert root is not None
    # One alone has them to itself.
    (alone,) = lab.fork(snapshot, [names()])
    assert not lab.store.folded_folder(snapshot.id).exists()
    one, two = lab.fork(snapshot, [names(), names()])
    assert lab.limits().disk_folded >= allocated(lab.store.snapshot_folder(root) / "ram")
    lone = delta.count(alone._domain())
    assert lone is not None
    for fork in (one, two):
        own = delta.count(fork._domain())
        assert own is not None
        assert own < lone - 8 * MIB
        assert checksum(fork, "much") == much

    # What such a fork has is what it has changed, and what the delta had.
    first = one.snapshot("first")
    assert base_of(first) == root
    assert first.verify().ok
    changes = lab.diff(f"{tiny.name}@delta", f"{one.name}@first").ram
    assert changes.read <= (held(snapshot) | held(first)).sum() * PAGE
    one.succeed("echo one > /dev/shm/one")
    one.revert("first")
    one.undo()
    assert one.succeed("cat /dev/shm/one") == "one\n"
    assert checksum(one, "much") == much

    # It goes when space is short, and with it nothing but the memory that the next forks would share.
    with pytest.raises(NoSpace):
        lab.store.need_space(1 << 60, "for a test")
    assert not lab.limits().disk_folded
    two.succeed("echo two > /dev/shm/two")
    second = two.snapshot("second")
    assert second.verify().ok
    assert checksum(two, "much") == much
    two.revert("second")
    assert two.succeed("cat /dev/shm/two") == "two\n"
    assert checksum(two, "much") == much
