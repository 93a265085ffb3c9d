"""Comparing FAT, NTFS and XFS by walking both sides, and LVM: against what the kernel, ntfs-3g and mtools say."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from help import disk_images
from help.disk_images import Disorder, can_mount, check, make_image, mounted, overlay, tool, truth

from vmlab.compare.blocks import Disk, Mapped, Segment
from vmlab.compare.files import FilesDiff, compare_files
from vmlab.compare.lvm import logical_volumes
from vmlab.compare.walk import LIBRARIES, Walk
from vmlab.errors import DiskUnreadable
from vmlab.study.timeline import find_file

SBIN = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def needs(*programs: str, library: str | None = None) -> None:
    for program in programs:
        if shutil.which(program, path=SBIN) is None:
            pytest.skip(f"{program} is not installed")
    if library is not None:
        pytest.importorskip(library)


def compare(before: Path, after: Path) -> FilesDiff:
    """Compare two raw images as two states of one machine."""
    return compare_files([before], [overlay(before, after, after.with_suffix(".qcow2"))])


def blank(path: Path, size: str) -> Path:
    path.unlink(missing_ok=True)
    path.touch()
    os.truncate(path, int(size[:-1]) << 20)
    return path


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with disk_images.scratch() as name:
        yield Path(name)


# -- FAT ---------------------------------------------------------------------------------------------------------------


def mtools(*argv: object) -> str:
    return tool(*argv, env=os.environ | {"MTOOLS_SKIP_CHECK": "1", "TZ": "UTC"})


@pytest.fixture(params=[12, 16, 32])
def fat(request: pytest.FixtureRequest, folder: Path) -> tuple[Path, Path]:
    needs("mkfs.vfat", "mcopy", library="pyfsfat")
    source = folder / "source"
    shutil.rmtree(source, ignore_errors=True)
    chance = random.Random(request.param)
    for name in ["a.txt", "Ein längerer Name.txt", "EFI/BOOT/BOOTX64.EFI", "EFI/empty", "sub/deep/er/x.bin"]:
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"" if name.endswith("empty") else chance.randbytes(chance.randrange(1, 60000)))
        os.utime(path, (1_700_000_000, 1_700_000_000))
    before = blank(folder / "fat.raw", {12: "2M", 16: "20M", 32: "70M"}[request.param])
    tool("mkfs.vfat", "-F", request.param, "-n", "LABEL", before)
    mtools("mcopy", "-m", "-s", "-i", before, *sorted(source.iterdir()), "::")
    after = folder / "fat-after.raw"
    shutil.copy(before, after)
    return before, after


def test_fat(fat: tuple[Path, Path], folder: Path) -> None:
    before, after = fat
    assert compare(before, after).equal
    source = folder / "source"
    (folder / "new.txt").write_bytes(b"new\n")
    os.utime(folder / "new.txt", (1_700_000_002, 1_700_000_002))
    mtools("mcopy", "-m", "-i", after, folder / "new.txt", "::sub/new.txt")
    mtools("mdel", "-i", after, "::EFI/empty")
    mtools("mmove", "-i", after, "::EFI/BOOT/BOOTX64.EFI", "::sub/MOVED.EFI")
    mtools("mattrib", "+r", "+h", "-i", after, "::a.txt")
    (folder / "other").write_bytes(b"x" + (source / "Ein längerer Name.txt").read_bytes()[1:])
    os.utime(folder / "other", (1_700_000_000, 1_700_000_000))
    mtools("mcopy", "-o", "-m", "-i", after, folder / "other", "::Ein längerer Name.txt")
    found = compare(before, after)
    assert found.volumes[0].kind == "fat"
    assert found.volumes[0].label == "LABEL"
    assert not found.unread
    assert (
        found.added("/sub/new.txt").text_diff() == "--- /dev/null\n+++ b/sub/new.txt\n@@ -0,0 +1 @@\n+new\n"
    )
    assert found.added("/sub/new.txt").after.mtime == 1_700_000_002 * 10**9  # type: ignore[union-attr]
    found.removed("/EFI/empty")
    found.renamed("/EFI/BOOT/BOOTX64.EFI", "/sub/MOVED.EFI")
    assert found.changed("/a.txt").what == ("mode", "flags")
    assert found.changed("/a.txt").after.flags == "RH"  # type: ignore[union-attr]
    # Content that differs while size and time are the same.
    assert found.changed("/Ein längerer Name.txt").what == ("content",)
    assert {e.path for e in found} == {
        "/sub/new.txt", "/EFI/empty", "/sub/MOVED.EFI", "/a.txt", "/Ein längerer Name.txt",
    }  # fmt: skip
    assert found.unchanged("/sub/deep")
    with pytest.raises(AssertionError, match="it was there before, and nothing about it differs"):
        found.added("/sub/deep/er/x.bin")
    with pytest.raises(AssertionError, match="there is no such path"):
        found.added("/nothing")
    entry = found.changed("/Ein längerer Name.txt")
    assert entry.after is not None
    data = (folder / "other").read_bytes()
    assert entry.after.read() == data
    assert entry.to_json()["after"]["sha256"] == entry.after.sha256


def test_fat_at_random(fat: tuple[Path, Path], folder: Path) -> None:
    """Many files come, go and change; mtools reads back what is there, byte by byte."""
    before, after = fat
    chance = random.Random(7)
    known = {f"/{p.relative_to(folder / 'source')}": p.read_bytes()
             for p in (folder / "source").rglob("*") if p.is_file()}  # fmt: skip
    now = dict(known)
    for number in range(25):
        path = chance.choice([*now, f"/sub/File number {number}.dat", f"/EFI/n{number}"])
        if path in now and chance.random() < 0.4:
            mtools("mdel", "-i", after, f"::{path}")
            del now[path]
            continue
        (folder / "data").write_bytes(chance.randbytes(chance.choice([0, 1, 3000, 30000])))
        mtools("mcopy", "-o", "-i", after, folder / "data", f"::{path}")
        now[path] = (folder / "data").read_bytes()
    found = compare(before, after)
    assert not found.unread
    assert {e.path for e in found if e.kind == "added"} == now.keys() - known.keys()
    assert {e.path for e in found if e.kind == "removed"} == known.keys() - now.keys()
    assert {e.path for e in found if "content" in e.what} == {
        p for p in now.keys() & known.keys() if now[p] != known[p]
    }
    for entry in found:
        if entry.after is not None and entry.type == "file":
            assert entry.after.read() == now[entry.path]


def test_a_file_of_fat(fat: tuple[Path, Path], folder: Path) -> None:
    before, after = fat
    assert find_file({"vda": before}, "/nothing") is None
    name = "/Ein längerer Name.txt"
    data = (folder / "source" / name[1:]).read_bytes()
    # The same content in another place.
    mtools("mcopy", "-i", after, folder / "source" / name[1:], "::again.txt")
    (folder / "other").write_bytes(b"x" + data[1:])
    mtools("mcopy", "-i", after, folder / "other", "::other.txt")
    states = [find_file({"vda": disk}, path) for disk, path in (
        (before, name), (after, name), (after, "/again.txt"), (after, "/other.txt"))]  # fmt: skip
    assert [s is not None and s.read() for s in states[:3]] == [data] * 3
    prints = [s.fingerprint for s in states if s is not None]
    assert prints[0] == prints[1] == prints[2] != prints[3]


def test_fat_that_was_made_apart(folder: Path) -> None:
    """Clusters, dates and sizes are alike in two builds of one image, and say nothing."""
    needs("mkfs.vfat", "mcopy", library="pyfsfat")
    images = []
    for names in ("abc", "bcd"):
        images.append(blank(folder / f"fat-{names}.raw", "2M"))
        tool("mkfs.vfat", "-i", "1", images[-1])
        for name in names:
            (folder / name).write_text(f"content {name}")
            os.utime(folder / name, (1_700_000_000, 1_700_000_000))
            mtools("mcopy", "-m", "-i", images[-1], folder / name, f"::{name}")
    found = compare_files([images[0]], [images[1]])
    assert {(e.kind, e.path) for e in found} == {("removed", "/a"), ("added", "/d")}


# -- XFS and NTFS ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def ntfs_mounted(image: Path, top: Path) -> Iterator[Path]:
    top.mkdir(exist_ok=True)
    tool("mount.ntfs-3g", "-o", "noatime", image, top)
    try:
        yield top
    finally:
        tool("umount", top)


def names_of_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library gives no names that are no UTF-8; there is a test of those."""
    monkeypatch.setattr(disk_images, "NAMES", [n for n in disk_images.NAMES if isinstance(n, str)])


def make_xfs(path: Path, *options: str) -> Path:
    needs("mkfs.xfs", library="pyfsxfs")
    if not can_mount() or "xfs" not in Path("/proc/filesystems").read_text():
        pytest.skip("this host cannot mount XFS")
    tool("mkfs.xfs", "-q", "-f", *options, blank(path, "300M"))
    return path


@pytest.mark.parametrize(
    ("seed", "options"), [(0, ()), (1, ()), (2, ("-i", "nrext64=1")), (0, ("-b", "size=1024"))]
)
def test_xfs_at_random(
    seed: int, options: tuple[str, ...], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names_of_text(monkeypatch)
    before = make_xfs(folder / "xfs.raw", *options)
    with mounted(before, folder / "mount") as top:
        Disorder(top, seed).happen(150)
        first = truth(top)
    after = folder / "xfs-after.raw"
    shutil.copy(before, after)
    with mounted(after, folder / "mount") as top:
        Disorder(top, seed + 1000).happen(60)
        second = truth(top)
    found = compare(before, after)
    assert not found.unread
    check(found, first, second)


def test_xfs_a_byte_in_any_group(folder: Path) -> None:
    """The library says wrongly where content in other allocation groups than the first is."""
    before = make_xfs(folder / "xfs.raw")
    with mounted(before, folder / "mount") as top:
        for number in range(8):
            (top / f"{number}").mkdir()
            (top / f"{number}" / "file").write_bytes(random.Random(number).randbytes(20000))
            (top / f"{number}" / "link").symlink_to("t" * 1000)
            os.setxattr(top / f"{number}" / "file", "user.x", bytes([65 + number]) * 6000)
        first = truth(top)
    after = folder / "xfs-after.raw"
    shutil.copy(before, after)
    data = before.read_bytes()
    with after.open("r+b") as file:
        for number in (0, 3, 5, 6):
            content = random.Random(number).randbytes(20000)
            at = data.index(content[:512])
            file.seek(at + 9000)
            file.write(bytes([content[9000] ^ 1]))
    found = compare(before, after)
    assert {e.path: e.what for e in found} == {f"/{n}/file": ("content",) for n in (0, 3, 5, 6)}
    for entry in found:
        assert entry.before is not None
        assert entry.before.attributes == first[os.fsencode(entry.path)]["attributes"]
    assert (
        compare_files([make_xfs(folder / "other.raw")], [before]).added("/3/link").after.target == "t" * 1000
    )  # type: ignore[union-attr]


def test_a_file_of_xfs(folder: Path) -> None:
    before = make_xfs(folder / "xfs.raw")
    with mounted(before, folder / "mount") as top:
        (top / "a").write_bytes(b"x" * 5000)
        with (top / "large").open("wb") as file:
            file.seek(5 << 40)
            file.write(b"one")
            file.truncate(7 << 40)
    after = folder / "xfs-after.raw"
    shutil.copy(before, after)
    with mounted(after, folder / "mount") as top:
        (top / "a").unlink()
        (top / "b").write_bytes(b"y" * 9000)
        (top / "a").write_bytes(b"x" * 5000)
        with (top / "large").open("r+b") as file:
            file.seek(5 << 40)
            file.write(b"two")
    for name, same in (("/a", True), ("/large", False)):
        first, second = (find_file({"vda": disk}, name) for disk in (before, after))
        assert first is not None
        assert second is not None
        assert (first.fingerprint == second.fingerprint) is same


def test_xfs_log(folder: Path) -> None:
    """A frozen file system is complete, as a live snapshot of it is; one in use may lack what is in its log."""
    before = make_xfs(folder / "xfs.raw")
    frozen, used = folder / "frozen.raw", folder / "used.raw"
    with mounted(before, folder / "mount") as top:
        (top / "first").write_bytes(b"first\n")
        tool("fsfreeze", "-f", top)
        try:
            shutil.copy(before, frozen)
        finally:
            tool("fsfreeze", "-u", top)
        (top / "second").write_bytes(b"second\n")
        os.sync()
        shutil.copy(before, used)
    found = compare(frozen, before)
    assert not found.unread
    found.added("/second")
    assert compare(frozen, used).unread == [
        "vda is xfs; its log was not replayed, so that the latest changes may be missing."
    ]


def test_xfs_names_that_are_no_text(folder: Path) -> None:
    before = make_xfs(folder / "xfs.raw")
    after = folder / "xfs-after.raw"
    shutil.copy(before, after)
    with mounted(after, folder / "mount") as top:
        (Path(os.fsdecode(os.fsencode(top) + b"/\xff"))).touch()
        (top / "a").touch()
        for size in (2, 3000, 3100, 20000, 30000, 65536):
            os.setxattr(top / "a", f"user.{size}", b"%d" % size * (size // len(str(size))))
        attributes = truth(top)[b"/a"]["attributes"]
    found = compare(before, after)
    assert found.unread == ["vda is xfs; names that are no Unicode are not read (1)."]
    assert found.added("/a").after.attributes == attributes  # type: ignore[union-attr]


def make_ntfs(path: Path) -> Path:
    needs("mkntfs", "mount.ntfs-3g", library="pyfsntfs")
    if not can_mount() or not Path("/dev/fuse").exists():
        pytest.skip("this host cannot mount NTFS")
    tool("mkntfs", "-q", "-F", "-L", "label", blank(path, "24M"))
    return path


@pytest.mark.parametrize("seed", range(2))
def test_ntfs_at_random(seed: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names_of_text(monkeypatch)
    before = make_ntfs(folder / "ntfs.raw")

    def happen(top: Path, seed: int, count: int) -> None:
        disorder = Disorder(top, seed)
        # What ntfs-3g keeps in ways of its own.
        for name in ("special", "symlink", "attribute", "attribute_away", "chown", "chmod"):
            monkeypatch.setattr(disorder, name, disorder.create)
        disorder.happen(count)

    with ntfs_mounted(before, folder / "mount") as top:
        happen(top, seed, 120)
        first = truth(top)
    after = folder / "ntfs-after.raw"
    shutil.copy(before, after)
    with ntfs_mounted(after, folder / "mount") as top:
        happen(top, seed + 1000, 60)
        second = truth(top)
    found = compare(before, after)
    assert not found.unread
    assert found.volumes[0].label == "label"
    for side in (first, second):
        for values in side.values():
            # Read-only or not is all that the reader says of modes.
            values.pop("mode")
            values.pop("attributes")
    check(found, first, second)


def test_ntfs_streams(folder: Path) -> None:
    before = make_ntfs(folder / "ntfs.raw")
    with ntfs_mounted(before, folder / "mount") as top:
        for name in "abc":
            (top / name).write_bytes(b"x" * 5000)
            os.setxattr(top / name, "user.Zone.Identifier", b"[ZoneTransfer]\r\nZoneId=3\r\n")
            os.setxattr(top / name, "user.large", b"1" * 30000)
    after = folder / "ntfs-after.raw"
    shutil.copy(before, after)
    with ntfs_mounted(after, folder / "mount") as top:
        os.setxattr(top / "a", "user.Zone.Identifier", b"[ZoneTransfer]\r\nZoneId=2\r\n")
        os.removexattr(top / "b", "user.Zone.Identifier")
        os.setxattr(top / "c", "user.large", b"1" * 29999 + b"2")
    found = compare(before, after)
    assert {e.path: e.what for e in found} == dict.fromkeys(["/a", "/b", "/c"], ("attributes",))
    entry = found.changed("/a")
    assert entry.after is not None
    assert entry.before is not None
    assert entry.before.attributes["user.Zone.Identifier"] == b"[ZoneTransfer]\r\nZoneId=3\r\n"
    assert entry.after.attributes["user.Zone.Identifier"] == b"[ZoneTransfer]\r\nZoneId=2\r\n"


# -- damage ------------------------------------------------------------------------------------------------------------


def formatted(kind: str, folder: Path) -> Path:
    if kind == "fat":
        needs("mkfs.vfat", "mcopy", library="pyfsfat")
        image = blank(folder / "damage.raw", "4M")
        tool("mkfs.vfat", image)
        (folder / "f").write_bytes(random.Random(1).randbytes(50000))
        mtools("mmd", "-i", image, "::d")
        for name in ("::one", "::d/two with a long name", "::d/three"):
            mtools("mcopy", "-i", image, folder / "f", name)
        return image
    image = {"xfs": make_xfs, "ntfs": make_ntfs}[kind](folder / "damage.raw")
    with {"xfs": mounted, "ntfs": ntfs_mounted}[kind](image, folder / "mount") as top:
        (top / "d").mkdir()
        for name in ["one", *(f"d/number {n}" for n in range(60))]:
            (top / name).write_bytes(random.Random(name).randbytes(3000))
    return image


@pytest.mark.parametrize("kind", LIBRARIES)
def test_damage(kind: str, folder: Path) -> None:
    """Whatever bytes there are: an answer in time, and never a crash of ours."""
    image = formatted(kind, folder)
    good = image.read_bytes()
    pieces = [n for n in range(0, len(good), 512) if any(good[n : n + 512])]
    meta = [n for n in pieces if n < 1 << 20] or pieces
    damaged = folder / "damaged.raw"
    chance = random.Random(11)
    said = 0
    for _ in range(14 if "VMLAB_ALL" in os.environ else 6):
        bad = bytearray(good)
        for _ in range(chance.choice([1, 4, 40])):
            at = chance.choice(meta if chance.random() < 0.7 else pieces) + chance.randrange(512)
            bad[at] = chance.randrange(256)
        damaged.write_bytes(bad)
        start = time.monotonic()
        # What has no signature any more is of an unknown kind; the rest is read, or said to be unreadable.
        found = compare_files([image], [damaged])
        assert time.monotonic() - start < 30
        said += bool(found)
    assert said


def test_a_changed_byte_of_content_is_never_equal(folder: Path) -> None:
    needs("mkfs.vfat", "mcopy", library="pyfsfat")
    image = formatted("fat", folder)
    data = (folder / "f").read_bytes()
    at = image.read_bytes().index(data[:512]) + 700
    after = folder / "after.raw"
    shutil.copy(image, after)
    with after.open("r+b") as file:
        file.seek(at)
        file.write(bytes([data[700] ^ 1]))
    (entry,) = compare_files([image], [after])
    assert entry.what == ("content",)


def test_a_library_that_crashes_or_stands_still(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens in the other process is said, and harms nothing."""
    image = formatted("fat", folder)
    disk = Disk(image)
    side = Mapped(disk, [Segment(0, 0, disk.size)])
    for number, words in ((signal.SIGSEGV, "crashed"), (signal.SIGSTOP, "did not get on")):
        monkeypatch.setattr("vmlab.compare.walk.PATIENCE", 3)
        walk = Walk("fat", side, side)
        os.kill(walk._process.pid, number)
        with pytest.raises(DiskUnreadable, match=words):
            walk.changes(np.zeros(1, np.int64))
        assert walk._process.poll() is not None


def test_the_process_ends_with_the_result(folder: Path) -> None:
    image = formatted("fat", folder)
    after = folder / "after.raw"
    shutil.copy(image, after)
    mtools("mdel", "-i", after, "::one")
    found = compare_files([image], [after])
    walk = found._sides[0].places[0].fs._walk  # type: ignore[attr-defined]
    process = walk._process
    assert process.poll() is None
    del walk, found
    assert process.poll() is not None


def test_without_the_library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("mkfs.vfat")
    before = blank(folder / "before.raw", "2M")
    tool("mkfs.vfat", "-i", "1", before)
    after = blank(folder / "after.raw", "2M")
    tool("mkfs.vfat", "-i", "2", after)
    monkeypatch.setitem(LIBRARIES, "fat", "pyfs_of_nobody")
    (unread,) = compare_files([before], [after]).unread
    assert unread.startswith("vda is fat, for which a library is missing (`pip install vmlab[filesystems]`);")


# -- LVM ---------------------------------------------------------------------------------------------------------------


def lvm(loop: str, *argv: object) -> str:
    """Run a tool of LVM on one device only, without device mapper."""
    config = (
        f'devices {{ filter=["a|^{loop}$|", "r|.*|"] use_devicesfile=0 }} backup {{ backup=0 archive=0 }}'
    )
    driver = [] if argv[0] in ("pvcreate", "vgcreate") else ["--driverloaded", "n"]
    return tool(argv[0], "--config", config, *driver, *argv[1:])


@pytest.fixture
def group(folder: Path) -> Iterator[tuple[Path, Callable[..., str]]]:
    needs("pvcreate", "lvcreate", "losetup")
    if not can_mount():
        pytest.skip("this host has no loop devices")
    image = blank(folder / "pv.raw", "100M")
    loop = tool("losetup", "-f", "--show", image).strip()
    try:
        lvm(loop, "pvcreate", "-q", loop)
        lvm(loop, "vgcreate", "-q", "vg", loop)
        for name, extents in (("root", 4), ("data", 3)):
            lvm(loop, "lvcreate", "-q", "-an", "-Zn", "-Wn", "-l", extents, "-n", name, "vg")
        lvm(loop, "lvextend", "-q", "-l", "+2", "vg/root")
        yield image, lambda *argv: lvm(loop, *argv)
    finally:
        tool("losetup", "-d", loop)


def put(image: Path, name: str, content: Path, folder: Path) -> None:
    """Write a file system into a logical volume, where LVM's own tool says that it is."""
    data = content.read_bytes()
    loop = tool("losetup", "-f", "--show", image).strip()
    try:
        rows = lvm(loop, "lvs", "--noheadings", "--nosuffix", "--units", "b", "--segments", "-o",
                   "lv_name,seg_start,seg_size,seg_pe_ranges,vg_extent_size").split("\n")  # fmt: skip
        start = int(float(lvm(loop, "pvs", "--noheadings", "--nosuffix", "--units", "b", "-o", "pe_start")))
    finally:
        tool("losetup", "-d", loop)
    with image.open("r+b") as file:
        for row in rows:
            if row.split()[:1] == [name]:
                _, logical, size, ranges, extent = row.split()
                file.seek(start + int(ranges.rpartition(":")[2].partition("-")[0]) * int(extent))
                file.write(data[int(logical) : int(logical) + int(size)])


def test_lvm(group: tuple[Path, Callable[..., str]], folder: Path) -> None:
    before, _ = group
    parts = logical_volumes(Disk(before), 0, 100 << 20)
    assert [(v.group, v.name, len(v.segments)) for v in parts] == [("vg", "data", 1), ("vg", "root", 2)]
    # ext4 in two parts, FAT in one.
    tree = folder / "tree"
    (tree / "etc").mkdir(parents=True, exist_ok=True)
    for n in range(300):
        (tree / "etc" / f"{n}").write_bytes(random.Random(n).randbytes(60000))
    put(before, "root", make_image(folder / "root.raw", size="24M", tree=tree), folder)
    needs("mkfs.vfat", "mcopy", library="pyfsfat")
    tool("mkfs.vfat", blank(folder / "data.raw", "12M"))
    mtools("mcopy", "-i", folder / "data.raw", tree / "etc" / "1", "::")
    put(before, "data", folder / "data.raw", folder)
    after = folder / "pv-after.raw"
    shutil.copy(before, after)
    for command in (f"write {tree}/etc/9 /etc/new", "rm /etc/7"):
        tool("debugfs", "-w", "-R", command, folder / "root.raw")
    put(after, "root", folder / "root.raw", folder)
    mtools("mdel", "-i", folder / "data.raw", "::1")
    put(after, "data", folder / "data.raw", folder)
    found = compare(before, after)
    assert not found.unread
    assert {v.name: v.kind for v in found.volumes} == {"vda/vg/data": "fat", "vda/vg/root": "ext"}
    assert found.added("/etc/new").after.read() == (tree / "etc" / "9").read_bytes()  # type: ignore[union-attr]
    found.removed("/etc/7")
    assert found.removed("/1").volume == "vda/vg/data"
    assert found.unchanged("/etc/200")


def test_a_root_in_lvm(group: tuple[Path, Callable[..., str]], folder: Path) -> None:
    """What is not on the /boot that is read by itself may be there."""
    image, _ = group
    tree = folder / "top"
    shutil.rmtree(tree, ignore_errors=True)
    (tree / "etc").mkdir(parents=True)
    (tree / "etc" / "fstab").write_text(
        "/dev/mapper/vg-root / ext4 x\n/dev/vg/data /srv ext4 x\n/dev/vdb /boot ext4 x\n"
    )
    (tree / "etc" / "motd").write_text("one")
    put(image, "root", make_image(folder / "root.raw", size="24M", tree=tree), folder)
    put(image, "data", make_image(folder / "data.raw", size="12M"), folder)
    boot = make_image(folder / "boot.raw", size="4M")
    disks = {"vda": image, "vdb": boot}
    before = find_file(disks, "/etc/motd")
    assert before is not None
    assert before.read() == b"one"
    assert find_file(disks, "/boot/nothing") is None
    assert find_file(disks, "/boot/lost+found") is not None
    after = folder / "pv-after.raw"
    shutil.copy(image, after)
    tool("debugfs", "-w", "-R", "ea_set /etc/motd user.x y", folder / "root.raw")
    put(after, "root", folder / "root.raw", folder)
    tool("debugfs", "-w", "-R", f"write {tree}/etc/motd new", folder / "data.raw")
    put(after, "data", folder / "data.raw", folder)
    found = compare_files([image, boot], [after, boot])
    assert found.changed("/etc/motd").what == ("attributes",)
    assert found.added("/srv/new").volume == "vda/vg/data"
    assert {v.name: v.mount for v in found.volumes} == {
        "vda/vg/root": "/", "vda/vg/data": "/srv", "vdb": "/boot",
    }  # fmt: skip
    assert found.unchanged("/boot/lost+found")


def test_lvm_that_was_changed(group: tuple[Path, Callable[..., str]], folder: Path) -> None:
    image, run = group
    before = folder / "pv-before.raw"
    put(image, "data", make_image(folder / "data.raw", size="12M"), folder)
    put(image, "root", make_image(folder / "root.raw", size="24M"), folder)
    shutil.copy(image, before)
    run("lvremove", "-q", "-f", "vg/root")
    run("lvcreate", "-q", "-an", "-Zn", "-Wn", "-l", 2, "-n", "more", "vg")
    run("lvcreate", "-q", "-an", "-Zn", "-Wn", "-l", 4, "--type", "zero", "-n", "zero", "vg")
    run("lvextend", "-q", "-l", "+3", "vg/data")
    found = compare(before, image)
    assert {v.name: v.unread for v in found.volumes} == {
        "vda/vg/data": None,
        "vda/vg/more": "The volume vda/vg/more is there only after; its files are not listed.",
        "vda/vg/zero": "The volume vda/vg/zero is there only after; its files are not listed.",
        "vda/vg/root": "The volume vda/vg/root is there only before; its files are not listed.",
    }
    assert compare_files([image], [image]).equal
    zero = next(v for v in logical_volumes(Disk(image), 0, 100 << 20) if v.name == "zero")
    assert zero.unread == "it is zero, not linear"


def test_lvm_damage(group: tuple[Path, Callable[..., str]], folder: Path) -> None:
    image, _ = group
    good = image.read_bytes()
    chance = random.Random(3)
    after = folder / "pv-after.raw"
    shutil.copy(image, after)
    for _ in range(25):
        at = chance.choice([512, 4096, 4096 + 512]) + chance.randrange(512)
        with after.open("r+b") as file:
            file.seek(at)
            file.write(bytes([good[at] ^ (1 << chance.randrange(8))]))
        with contextlib.suppress(DiskUnreadable):
            assert bool(compare_files([image], [after])) in (True, False)
        with after.open("r+b") as file:
            file.seek(at)
            file.write(good[at : at + 1])


def test_importing_needs_no_library() -> None:
    code = "import sys, vmlab.compare.files as f; sys.exit(any(n.startswith('pyfs') for n in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
