"""Which files differ between two snapshots of real guests: against what the guest itself says of them."""

from __future__ import annotations

import base64
import os
import pickle
import statistics
import time
from dataclasses import replace
from pathlib import Path

import pytest
from help import disk_images

from vmlab.compare.blocks import Disk
from vmlab.compare.ext4 import Ext4
from vmlab.compare.files import FilesDiff, compare_files
from vmlab.compare.filestate import FileState
from vmlab.lab import Lab
from vmlab.machine import Machine, Snapshot

TOP = "/srv/disorder"
exhaustive = pytest.mark.skipif("VMLAB_ALL" not in os.environ, reason="exhaustive: scripts/test --all")


def disks(lab: Lab, snapshot: Snapshot) -> list[Path]:
    """Return the top layers of a snapshot's disks."""
    return [lab.store.layer_path(layer) for layer in lab.store.snapshot(snapshot.id).layers.values()]


def python(machine: Machine, code: str) -> str:
    """Run Python in the guest, with the tools of our tests."""
    text = f"import sys; sys.path.insert(0, '/run'); from disk_images import *; {code}"
    return machine.succeed(f"python3 -B -c {text!r}", timeout=200)


def told(machine: Machine) -> disk_images.Truth:
    """Return what the guest says of all below ``TOP``."""
    code = f"import pickle, base64; print(base64.b64encode(pickle.dumps(truth(Path('{TOP}')))).decode())"
    found: disk_images.Truth = pickle.loads(base64.b64decode(python(machine, code)))
    return found


def inside(found: FilesDiff) -> FilesDiff:
    """Return what a diff says of all below ``TOP``, with paths as the guest tells them."""

    def short(path: str | None) -> str | None:
        return None if path is None else path[len(TOP) :] or "/"

    return FilesDiff(
        tuple(
            replace(e, path=short(e.path) or "", old_path=short(e.old_path), link_to=short(e.link_to))
            for e in found.below(TOP)
        ),
        found.volumes,
    )


@pytest.fixture
def guest(desktop: Machine) -> Machine:
    """A desktop with our tools in memory and an empty folder."""
    desktop.put(Path(disk_images.__file__), "/run/disk_images.py")
    desktop.succeed(f"mkdir {TOP}")
    return desktop


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=exhaustive)])
def test_random_changes_in_a_guest(lab: Lab, guest: Machine, seed: int) -> None:
    python(guest, f"Disorder(Path('{TOP}'), {seed}).happen(120)")
    guest.succeed("sync")
    before_told = told(guest)
    before = guest.snapshot("before")
    python(guest, f"Disorder(Path('{TOP}'), {seed} + 100).happen(60)")
    # Contents go to their place, the rest at least to the journal; nothing makes it leave the journal.
    guest.succeed("sync")
    after_told = told(guest)
    after = guest.snapshot("after")
    layer = Disk(disks(lab, after)[0])
    assert Ext4(layer, 0, layer.size).replay.transactions > 0
    found = compare_files(disks(lab, before), disks(lab, after))
    disk_images.check(inside(found), before_told, after_told)
    assert found.unread == []
    # And the other way round.
    disk_images.check(inside(compare_files(disks(lab, after), disks(lab, before))), after_told, before_told)


@pytest.mark.timeout(600)
def test_large_things(lab: Lab, guest: Machine) -> None:
    """Most of it is only in the guest's page cache when the snapshots are taken."""
    guest.succeed(
        f"cd {TOP} && truncate -s 6G sparse && printf one | dd of=sparse bs=1 seek=5G conv=notrunc 2>&1"
        " && mkdir crowd && cd crowd && seq 3000 | xargs touch"
        f" && cd {TOP} && mkdir -p $(seq -s / 1 300)"
    )
    before = guest.snapshot("before")
    deep = "/".join(str(n) for n in range(1, 301))
    guest.succeed(
        f"cd {TOP} && printf two | dd of=sparse bs=1 seek=5G conv=notrunc 2>&1"
        f" && mv crowd/1234 crowd/renamed && rm crowd/77 && touch {deep}/file"
    )
    after = guest.snapshot("after")
    with before.diff(after) as diff:
        found = diff.files
    assert diff.before.disks.flushed
    assert diff.after.disks.flushed
    said = {e.path.removeprefix(TOP): (e.kind, e.old_path) for e in found.below(TOP) if e.kind != "touched"}
    assert said == {
        "/sparse": ("changed", None),
        "/crowd/renamed": ("renamed", f"{TOP}/crowd/1234"),
        "/crowd/77": ("removed", None),
        f"/{deep}/file": ("added", None),
    }
    sparse = found.changed(f"{TOP}/sparse")
    assert sparse.after is not None
    assert sparse.after.size == 6 << 30
    assert sparse.after._fs.read(sparse.after._inode, 5 << 30, 10) == b"two" + bytes(7)


@pytest.mark.timeout(600)
def test_what_people_do_and_how_long_it_takes(lab: Lab, guest: Machine) -> None:
    guest.succeed("sync")
    before = guest.snapshot("before")
    edited = guest.succeed(
        "cd /etc && for f in $(find . -maxdepth 1 -type f -size +0 | sort | head -10);"
        " do echo edited >> $f && readlink -f $f; done"
    ).split()
    package = "xterm"
    files = guest.succeed(f"dpkg -L {package} | while read f; do test -f $f && echo $f; done; true").split()
    guest.succeed(f"dpkg -r --force-depends {package} && sync", timeout=200)
    gone = guest.succeed(f"for f in {' '.join(files)}; do test -e $f -o -L $f || echo $f; done").split()
    after = guest.snapshot("after")
    x, y = disks(lab, before), disks(lab, after)

    times = []
    for _ in range(5):
        started = time.perf_counter()
        found = compare_files(x, y)
        times.append(time.perf_counter() - started)
    assert len(edited) == 10
    assert len(gone) > 10
    for path in edited:
        text = found.changed(path).text_diff()
        assert text is not None
        assert "+edited\n" in text
    for path in gone:
        assert found.removed(path)
    assert found.changed("/var/lib/dpkg/status")
    assert found.unchanged("/etc/shadow")

    # Walking all of both sides says the same, and takes far longer.
    started = time.perf_counter()
    expected = {path: (a, b) for path, a, b in walked(Disk(x[0]), Disk(y[0])) if a != b}
    whole = time.perf_counter() - started
    assert expected.keys() == {e.path for e in found}
    assert statistics.median(times) < 1
    assert whole > 5 * statistics.median(times)


def walked(x: Disk, y: Disk) -> list[tuple[str, object, object]]:
    """Return all paths with what each side says of them: everything is read."""
    found = []
    for disk in (x, y):
        fs = Ext4(disk, 0, disk.size)
        found.append({})
        for path, inode in fs.walk():
            state = FileState.of(fs, inode)
            size = 0 if state.type == "directory" else state.size
            told = (replace(state, size=size, inode=0), state.attributes, state.sha256)
            found[-1][path.decode("utf-8", "surrogateescape")] = told
    return [(path, found[0].get(path), found[1].get(path)) for path in found[0].keys() | found[1].keys()]


@pytest.mark.timeout(600)
def test_a_timeline_follows_the_tree(lab: Lab, tiny: Machine) -> None:
    tiny.succeed("echo a >/root/log")
    tiny.snapshot("s1")
    tiny.succeed("echo b >>/root/log")
    tiny.snapshot("s2")
    tiny.revert("s1")
    tiny.snapshot("s3")
    tiny.succeed("echo c >>/root/log")
    found = lab.timeline([tiny], file="/root/log")
    name = tiny.name
    assert [(m.title, m.since, m.changed) for m in found] == [
        (f"{name}@s1", "", False),
        (f"{name}@s2", f"{name}@s1", True),
        # Not another than what it came from, whatever its sibling did.
        (f"{name}@s3", f"{name}@s1", False),
        (f"{name} (now)", f"{name}@s3", True),
    ]
    assert "+c" in found[-1].detail
    assert "b" not in found[-1].detail.splitlines()[-1]
