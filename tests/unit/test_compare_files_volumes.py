"""Disks that are made to mislead, several volumes of one guest, and paths as people name them."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from help.disk_images import gpt_disk, make_image, overlay, scratch, tool

from vmlab.compare import files, textdiff
from vmlab.compare.files import FilesDiff, compare_files
from vmlab.compare.renames import Pair, pairs
from vmlab.errors import DiskUnreadable
from vmlab.study.timeline import find_file

MIB = 1 << 20


@pytest.fixture
def folder() -> Iterator[Path]:
    with scratch() as name:
        yield Path(name)


def debugfs(image: Path, *commands: str) -> str:
    script = image.with_name("script")
    script.write_text("".join(f"{command}\n" for command in commands))
    return tool("debugfs", "-w", "-f", script, image)


def tree(top: Path, **contents: str) -> Path:
    """Make a tree of small files, named ``etc__motd`` for ``/etc/motd``; of a link, the target behind an arrow."""
    for name, text in contents.items():
        path = top / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if text.startswith("-> "):
            path.symlink_to(text[3:])
        else:
            path.write_text(text)
    return top


def partitioned(path: Path, *images: Path, entries: list[tuple[int, int]] | None = None) -> Path:
    """Put images on a disk with an MBR, the first at 1 MiB, each at the next whole MiB."""
    with path.open("wb") as disk:
        at, found = MIB, []
        for image in images:
            disk.seek(at)
            disk.write(image.read_bytes())
            found.append((at // 512, image.stat().st_size // 512))
            at += -(-image.stat().st_size // MIB) * MIB
        disk.truncate(at)
        disk.seek(440)
        disk.write(b"\x0d\xf0\xad\x0b")
        disk.seek(446)
        for start, count in entries or found:
            disk.write(struct.pack("<B3xB3xII", 0, 0x83, start, count))
        disk.seek(510)
        disk.write(b"\x55\xaa")
    return path


def copy(image: Path, name: str) -> Path:
    return Path(shutil.copyfile(image, image.with_name(name)))


def write(path: Path, at: int, data: bytes) -> Path:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)
    return path


def at(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(64)


@pytest.fixture
def root(folder: Path) -> Path:
    return make_image(folder / "root", "ext4", "8M", tree(folder / "tree", etc__motd="hello\n" * 1000))


def motd(disk: Path) -> int:
    """Return where on a disk the content of /etc/motd is."""
    return disk.read_bytes().index(b"hello\n" * 600)


# -- partitions --------------------------------------------------------------------------------------------------------

STALE = {
    "swap": (4086, b"SWAPSPACE2"),
    "ext": (1080, b"\x53\xef"),
    "xfs": (0, b"XFSB"),
    "btrfs": (0x10040, b"_BHRfS_M"),
    "LVM": (512, b"LABELONE" + bytes(16) + b"LVM2 001"),
    "iso9660": (0x8001, b"CD001"),
    "ntfs": (3, b"NTFS    "),
    "fat": (82, b"FAT32   "),
}


@pytest.mark.parametrize("kind", STALE)
def test_a_stale_signature_hides_no_partition(folder: Path, root: Path, kind: str) -> None:
    before = write(partitioned(folder / "before", root), *STALE[kind])
    after = copy(before, "after")
    write(after, motd(after), b"HELLO!")
    found = compare_files([before], [after])
    assert found.changed("/etc/motd").volume == "vda1"
    assert not found.unread


def test_a_partition_that_reaches_past_the_end_is_cut(folder: Path, root: Path) -> None:
    size = root.stat().st_size // 512
    before = partitioned(folder / "before", root, entries=[(2048, size + 8), (63, 1000)])
    after = copy(before, "after")
    write(after, motd(after), b"HELLO!")
    found = compare_files([before], [after])
    assert found.changed("/etc/motd").volume == "vda1"
    assert [v.name for v in found.volumes] == ["vda1", "vda2"]


def test_what_is_in_no_partition_is_never_called_equal(folder: Path, root: Path) -> None:
    before = partitioned(folder / "before", root)
    for place, number in ((4096, 512), (9 * MIB + 700, 512), (100, 512)):
        with before.open("r+b") as file:
            file.truncate(10 * MIB)
        after = write(copy(before, "after"), place, b"x")
        found = compare_files([before], [after])
        assert not found.equal
        assert found.unread == [
            f"{number} bytes of vda outside of its partitions differ, see the part 'disk'."
        ]
    assert compare_files([before], [before]).equal


def test_a_damaged_table_is_no_reason_to_trust_what_is_older(folder: Path) -> None:
    """Changes in swap are nobody's file; but is it swap?"""
    before = gpt_disk(folder / "before", {1: blank(folder / "blank", 6 * MIB)})
    for place in (512, 8 * MIB - 512):
        write(before, place, b"damage")
    write(before, *STALE["swap"])
    after = write(copy(before, "after"), 5 * MIB, b"x")
    assert not compare_files([before], [after]).equal
    assert compare_files([before], [before]).equal


# -- one volume of several cannot be read ------------------------------------------------------------------------------


def test_one_unreadable_volume_takes_nothing_from_the_others(folder: Path, root: Path) -> None:
    before = partitioned(folder / "before", root)
    after = copy(before, "after")
    write(after, motd(after), b"HELLO!")
    other = folder / "other"
    other.write_bytes(bytes(8 * MIB))
    tool("mke2fs", "-q", "-F", "-t", "ext4", "-O", "encrypt", other)
    found = compare_files([before, other], [after, write(copy(other, "other2"), 5 * MIB, b"x")])
    assert found.changed("/etc/motd")
    assert not found.equal
    assert len(found.unread) == 1
    assert "encrypt" in found.unread[0]
    with pytest.raises(AssertionError, match="cannot be said to be unchanged"):
        found.unchanged("/lost+found")
    damaged = compare_files([other], [write(copy(other, "other3"), 1024 + 40, b"\xff" * 8)])
    assert not damaged.equal


def test_damaged_lvm_takes_nothing_from_the_others(folder: Path, root: Path) -> None:
    after = write(copy(root, "after"), motd(root), b"HELLO!")
    physical = folder / "physical"
    physical.write_bytes(bytes(MIB))
    write(physical, *STALE["LVM"])
    changed = write(copy(physical, "physical2"), 5000, b"x")
    found = compare_files([root, physical], [after, changed])
    assert found.changed("/etc/motd")
    assert not found.equal
    assert "LVM, which is damaged" in found.unread[0]
    assert compare_files([physical], [physical]).equal


# -- paths -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def linked(folder: Path) -> tuple[Path, Path]:
    """A system whose /bin is a link, as Debian's is, and the same with another program."""
    names = {
        "usr__bin__ls": "good", "usr__bin__cp": "good", "bin": "-> usr/bin", "etc__sh": "-> /bin/ls",
        "loop": "-> loop2", "loop2": "-> loop", "etc__nowhere": "-> /none",
    }  # fmt: skip
    before = make_image(folder / "before", "ext4", "8M", tree(folder / "tree", **names))
    after = copy(before, "after")
    (folder / "evil").write_text("evil")
    debugfs(after, "rm /usr/bin/ls", f"write {folder}/evil /usr/bin/ls")
    return before, after


def test_links_on_the_way_are_followed(linked: tuple[Path, Path]) -> None:
    found = compare_files([linked[0]], [linked[1]])
    assert found.changed("/bin/ls") is found.get("/usr/bin/ls")
    assert "//bin/./ls/" in found
    for path in ("/bin/ls", "/bin", "/bin/", "//usr//bin/ls", "/usr/../bin/ls", "/etc/sh", "/"):
        with pytest.raises(AssertionError, match=r"/usr/bin/ls was changed|/usr/bin/ls has other"):
            found.unchanged(path)
    assert found.unchanged("/bin/cp")
    assert found.unchanged("/etc/nowhere")
    assert [e.path for e in found.below("/bin") if e.kind != "touched"] == ["/usr/bin/ls"]
    with pytest.raises(AssertionError, match=r"/bin/ls was not added: /usr/bin/ls was changed"):
        found.added("/bin/ls")


def test_what_is_not_there_is_not_unchanged(linked: tuple[Path, Path]) -> None:
    found = compare_files([linked[0]], [linked[1]])
    for path in ("/etc/nothing", "/bin/nothing", "/loop/x", "/usr/bin/cp/x"):
        with pytest.raises(AssertionError, match="there is no such path"):
            found.unchanged(path)
    # Nor where nothing differs at all.
    same = compare_files([linked[0]], [linked[0]])
    assert same.unchanged("/bin/ls")
    with pytest.raises(AssertionError, match="there is no such path"):
        same.unchanged("/bin/nothing")


def test_a_link_that_leads_elsewhere_is_a_change(folder: Path) -> None:
    contents = {"a__x": "1", "b__x": "1", "link": "-> a"}
    before = make_image(folder / "before", "ext4", "8M", tree(folder / "tree", **contents))
    after = copy(before, "after")
    debugfs(after, "rm /link", "symlink /link b")
    found = compare_files([before], [after])
    for path in ("/link", "/link/x"):
        with pytest.raises(AssertionError):
            found.unchanged(path)


# -- several volumes ---------------------------------------------------------------------------------------------------


def volumes(folder: Path, boot: str, *, fstab: str | None = None) -> Path:
    """Make a disk with a root and a /boot, and a third volume that nobody names."""
    shutil.rmtree(folder / "trees", ignore_errors=True)
    if fstab is None:
        fstab = "# comment\nLABEL=top / ext4 noatime 0 1\nUUID={} /boot/ ext4 0 2\ntmpfs /tmp tmpfs 0 0\n"
    top = make_image(
        folder / "1",
        "ext4",
        "8M",
        tree(
            folder / "trees" / "1", etc__fstab=fstab.format(UUID.upper()), etc__motd="hello", boot__hidden="x"
        ),
    )
    tool("tune2fs", "-L", "top", top)
    second = make_image(
        folder / "2", "ext4", "4M", tree(folder / "trees" / "2", grub__grub="one", grub__x=boot)
    )
    tool("tune2fs", "-U", UUID, second)
    third = make_image(folder / "3", "ext2", "4M", tree(folder / "trees" / "3", etc__motd=boot))
    return partitioned(folder / "disk", top, second, third)


UUID = "5f3e9a52-6f0b-4d57-9d86-0b8c3c5b7f10"


def changed_volumes(folder: Path, fstab: str | None = None) -> FilesDiff:
    before = copy(volumes(folder, "one", fstab=fstab), "before")
    after = copy(before, "after")
    for number, command in ((2, "/grub/x"), (3, "/etc/motd")):
        (folder / "two").write_text("two!")
        image = folder / str(number)
        debugfs(image, f"rm {command}", f"write {folder}/two {command}", f"write {folder}/two /new")
        place = MIB * {2: 9, 3: 13}[number]
        write(after, place, image.read_bytes())
    return compare_files([before], [overlay(before, after, folder / "layer")])


def test_paths_are_those_of_the_guest(folder: Path) -> None:
    found = changed_volumes(folder)
    assert {v.name: v.mount for v in found.volumes} == {"vda1": "/", "vda2": "/boot", "vda3": None}
    entry = found.added("/boot/new")
    assert (entry.path, entry.shown, entry.volume) == ("/boot/new", "/boot/new", "vda2")
    assert str(entry) == "/boot/new was added"
    text = found.changed("/boot/grub/x").text_diff()
    assert text is not None
    assert text.startswith("--- a/boot/grub/x\n+++ b/boot/grub/x\n")
    assert [e.path for e in found.below("/boot/grub") if e.kind != "touched"] == ["/boot/grub/x"]
    assert found.unchanged("/boot/grub/grub")
    with pytest.raises(AssertionError, match=r"/boot/grub/x was changed .*, and 1 more"):
        found.unchanged("/boot")
    # What a mount hides is not there; what is somewhere else may be meant.
    with pytest.raises(AssertionError, match="there is no such path"):
        found.unchanged("/boot/hidden")
    with pytest.raises(AssertionError, match="vda3:/etc/motd"):
        found.unchanged("/etc/motd")
    shown = {e["shown"]: e["path"] for e in json.loads(json.dumps(found.to_json()))["entries"]}
    assert shown["vda3:/etc/motd"] == "/etc/motd"
    assert shown["/boot/grub/x"] == "/boot/grub/x"


@pytest.mark.parametrize(
    "name", ["/dev/vda2", "PARTUUID=0badf00d-02", f"/dev/disk/by-uuid/{UUID}", f'UUID="{UUID}"']
)
def test_ways_to_name_a_volume(folder: Path, name: str) -> None:
    found = changed_volumes(folder, f"/dev/vda1 / ext4 x\n{name} /b\\040oot ext4 x\n")
    assert {v.name: v.mount for v in found.volumes} == {"vda1": "/", "vda2": "/b oot", "vda3": None}


def test_without_a_table_nobody_knows_where(folder: Path) -> None:
    found = changed_volumes(folder, "none")
    assert {v.mount for v in found.volumes if v.name != "vda1"} == {None}
    assert found.added("/new").shown in ("vda2:/new", "vda3:/new")
    with pytest.raises(AssertionError, match=r"vda3:/etc/motd was changed"):
        found.unchanged("/etc/motd")


def test_one_volume_alone_needs_no_table(linked: tuple[Path, Path]) -> None:
    entry = compare_files([linked[0]], [linked[1]]).changed("/usr/bin/ls")
    assert entry.shown == entry.path


def test_gpt_names(folder: Path) -> None:
    top = tree(folder / "top", etc__fstab=f"/dev/vda1 / ext4 x\nPARTUUID={UUID} /data ext4 x\n")
    images = {1: make_image(folder / "1", "ext4", "8M", top), 2: make_image(folder / "2", "ext4", "4M")}
    disk = gpt_disk(folder / "disk", images, {2: UUID})
    after = copy(disk, "after")
    (folder / "x").write_text("x")
    debugfs(folder / "2", f"write {folder}/x /x")
    write(after, 9 * MIB, (folder / "2").read_bytes())
    assert compare_files([disk], [after]).added("/data/x").volume == "vda2"


# -- renames -----------------------------------------------------------------------------------------------------------


def test_a_file_that_was_moved_onto_another(folder: Path) -> None:
    image = make_image(
        folder / "image", "ext4", "8M", tree(folder / "tree", a="AAA", b="BBB", d1__x="", d2__y="")
    )
    after = copy(image, "after")
    debugfs(
        after,
        "kill_file /b",
        "unlink /b",
        "ln /a /b",
        "unlink /a",
        "rm /d2/y",
        "rmdir /d2",
        "ln /d1 /d2",
        "unlink /d1",
    )
    found = compare_files([image], [overlay(image, after, folder / "layer")])
    gone = found.removed("/a")
    assert (gone.link_to, gone.moved_to) == (None, "/b")
    assert str(gone) == "/a was removed: it is /b now"
    assert gone.to_json()["moved_to"] == "/b"
    assert "content" in found.changed("/b").what
    assert found.removed("/d1").moved_to == "/d2"


def test_a_hard_link_that_stays_is_named(folder: Path) -> None:
    image = make_image(folder / "image", "ext4", "8M", tree(folder / "tree", a="AAA"))
    debugfs(image, "ln /a /b", "sif /a links_count 2")
    after = copy(image, "after")
    debugfs(after, "unlink /b", "sif /a links_count 1")
    gone = compare_files([image], [overlay(image, after, folder / "layer")]).removed("/b")
    assert (gone.link_to, gone.moved_to) == ("/a", None)


def test_numbers_of_images_that_were_made_apart_mean_nothing(folder: Path) -> None:
    images = []
    for names in ("abc", "bcd"):
        top = tree(folder / names, **{name: f"content {name}" for name in names})
        images.append(make_image(folder / f"image-{names}", "ext4", "8M", top))
        tool("tune2fs", "-U", UUID, images[-1])
    found = compare_files([images[0]], [images[1]])
    assert {(e.kind, e.path) for e in found if e.path in ("/a", "/d")} == {("removed", "/a"), ("added", "/d")}
    assert not found.of("renamed")


def test_without_a_common_layer_nothing_in_a_moved_directory_is_left_out(folder: Path) -> None:
    top = tree(folder / "tree", d__x="", d__e__y="")
    image = make_image(folder / "image", "ext4", "8M", top)
    after = copy(image, "after")
    debugfs(after, "ln /d /n", "unlink /d")
    found = compare_files([image], [after])
    inside = ("", "/x", "/e", "/e/y")
    assert {e.path for e in found.of("removed")} == {f"/d{name}" for name in inside}
    assert {e.path for e in found.of("added")} == {f"/n{name}" for name in inside}


def test_names_that_go_together() -> None:
    before = {b"/": 2, b"/d": 3, b"/d/x": 4, b"/d/y": 5, b"/a": 6, b"/b": 6, b"/c": 6, b"/none": None}
    after = {b"/": 2, b"/e": 3, b"/e/x": 4, b"/e/z": 5, b"/n/b": 6, b"/c": 6, b"/m": 6, b"/new": None}
    assert list(pairs(before, after)) == [
        Pair(b"/d", b"/e", renamed=True),
        Pair(b"/d/x", b"/e/x"),
        Pair(b"/d/y", b"/e/z", renamed=True),
        Pair(b"/a", b"/m", renamed=True),
        Pair(b"/b", b"/n/b", renamed=True),
        Pair(None, b"/new"),
        Pair(b"/none", None),
    ]


def test_many_renames_take_no_longer_each() -> None:
    number = 60_000
    before: dict[bytes, int] = {b"/%d/x" % n: n for n in range(number)} | {
        b"/l/%d" % n: -1 for n in range(number)
    }
    before |= {b"/%d" % n: number + n for n in range(number)}
    after: dict[bytes, int] = {b"/n%d/x" % n: n for n in range(number)} | {
        b"/m/%d" % n: -1 for n in range(number)
    }
    after |= {b"/n%d" % n: number + n for n in range(number)}
    started = time.process_time()
    found = list(pairs(before, after))
    assert time.process_time() - started < 5
    assert sum(pair.renamed for pair in found) == 2 * number


# -- a timeline of one file --------------------------------------------------------------------------------------------


def test_a_file_of_any_volume(folder: Path) -> None:
    disk = volumes(folder, "one")
    found = find_file({"vda": disk}, "/boot/grub/x")
    assert found is not None
    assert found.read() == b"one"
    assert find_file({"vda": disk}, "/boot/nothing") is None
    assert find_file({"vda": disk}, "/boot/hidden") is None
    disk = volumes(folder, "one", fstab="/dev/vda1 / ext4 x\n/dev/mapper/luks-x /home ext4 x\n")
    assert find_file({"vda": disk}, "/etc/nothing") is None
    with pytest.raises(DiskUnreadable, match="/home is on /dev/mapper/luks-x"):
        find_file({"vda": disk}, "/home/x")


def test_a_file_that_may_be_where_nobody_can_look(folder: Path) -> None:
    """Not to be found is not the same as not to be there."""
    boot = make_image(folder / "boot", "ext4", "4M", tree(folder / "tree", grub="x"))
    other = folder / "other"
    other.write_bytes(bytes(MIB))
    write(other, *STALE["btrfs"])
    disks = {"vda": partitioned(folder / "disk", boot, other)}
    assert find_file(disks, "/grub") is not None
    with pytest.raises(DiskUnreadable, match="vda2 is btrfs"):
        find_file(disks, "/etc/motd")
    assert find_file({"vda": boot}, "/etc/motd") is None
    with pytest.raises(DiskUnreadable):
        find_file({"vda": write(other, 0, b"x")}, "/etc/motd")


def test_links_are_followed_to_a_file(linked: tuple[Path, Path]) -> None:
    contents = [state.read() for disk in linked if (state := find_file({"vda": disk}, "/bin/ls"))]
    assert contents == [b"good", b"evil"]


@pytest.mark.parametrize("flavour", ["ext4", "1k", "ext2", "inline"])
def test_fingerprints_know_content_only(folder: Path, flavour: str) -> None:
    top = folder / "tree"
    top.mkdir()
    chance = random.Random(flavour)
    names = {}
    for number in range(12):
        data = bytearray(chance.choice([0, 5, 100, 5000, 300_000]))
        for _ in range(3):
            place = chance.randrange(len(data) + 1)
            data[place : place + 700] = chance.randbytes(len(data[place : place + 700]))
        names[f"{number}"] = bytes(data)
        # The same with holes, and with another byte.
        names[f"{number}-holes"] = bytes(data)
        if data:
            data[chance.randrange(len(data))] ^= 1
            names[f"{number}-other"] = bytes(data)
        names[f"{number}-longer"] = bytes(data) + b"\0"
    for name, data in names.items():
        with (top / name).open("wb") as file:
            for place in range(0, len(data), 4096):
                if "holes" not in name or any(data[place : place + 4096]):
                    file.seek(place)
                    file.write(data[place : place + 4096])
            file.truncate(len(data))
    image = make_image(folder / "image", flavour, "24M", top)
    other = make_image(folder / "other", "1k", "24M", top)
    found: dict[str, bytes] = {}
    for disk in (image, other):
        for name, data in names.items():
            state = find_file({"vda": disk}, f"/{name}")
            assert state is not None
            assert state.fingerprint is not None
            assert found.setdefault(state.fingerprint, data) == data
    assert len(found) == len(set(names.values()))


def test_the_fingerprint_of_a_large_file_with_nothing_in_it(folder: Path) -> None:
    image = make_image(folder / "image", "ext4", "8M", tree(folder / "tree", f="x" * 5000))
    debugfs(image, "sif /f size 15000000000000")
    after = copy(image, "after")
    # Not its first byte: the block before ends in a checksum, whose last byte may be an x too.
    write(after, after.read_bytes().index(b"x" * 4096) + 1, b"y")
    started = time.process_time()
    first, second = (find_file({"vda": disk}, "/f") for disk in (image, after))
    assert first is not None
    assert second is not None
    assert first.fingerprint != second.fingerprint
    assert first.fingerprint == find_file({"vda": copy(image, "copy")}, "/f").fingerprint  # type: ignore[union-attr]
    assert compare_files([image], [after]).changed("/f").what == ("content",)
    assert time.process_time() - started < 5


# -- what a few bytes can cost -----------------------------------------------------------------------------------------

_LIMITED = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (1500 << 20, 1500 << 20))
from vmlab.compare.files import compare_files
found = compare_files([Path(sys.argv[1])], [Path(sys.argv[2])])
assert not found.equal
print(*found.unread)
# Not getrusage(): that also counts what the process that forked us had.
(peak,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(peak) >> 10)
"""


def limited(before: Path, after: Path) -> str:
    """Compare with little memory, and return what could not be read."""
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, before, after],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    *said, peak = done.stdout.splitlines()
    assert int(peak) < 500
    return " ".join(said)


def blank(path: Path, size: int) -> Path:
    path.touch()
    os.truncate(path, size)
    return path


def test_a_superblock_that_asks_for_much(folder: Path) -> None:
    image = blank(folder / "image", 4 << 30)
    tool("mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^uninit_bg,64bit", image)
    tool("cp", "--sparse=always", image, folder / "before")
    block = bytearray(at(image, 1024).ljust(1024))
    with image.open("rb") as file:
        file.seek(1024)
        block = bytearray(file.read(1024))
    groups = -(-(struct.unpack_from("<I", block, 4)[0] - 1) // 2)
    struct.pack_into("<I", block, 32, 2)
    struct.pack_into("<I", block, 40, 1)
    struct.pack_into("<I", block, 0, groups)
    struct.pack_into("<H", block, 254, 512)
    write(image, 1024, bytes(block))
    assert "makes no sense" in limited(folder / "before", image)


@pytest.fixture
def indirect(folder: Path) -> tuple[Path, int]:
    """A large ext3 and the place of its file's inode."""
    image = blank(folder / "image", 2 << 30)
    tool("mke2fs", "-q", "-F", "-t", "ext3", "-b", "4096", "-I", "256", image)
    (folder / "small").write_text("x")
    debugfs(image, f"write {folder}/small f", f"write {folder}/small g")
    said = re.search(r"at block (\d+), offset 0x(\w+)", debugfs(image, "imap f"))
    assert said is not None
    return image, int(said[1]) * 4096 + int(said[2], 16)


def test_trees_of_nothing(folder: Path, indirect: tuple[Path, int]) -> None:
    """Three hundred blocks that lead to three hundred thousand which hold nothing, and are on no disk."""
    image, inode = indirect
    # Between what each group begins with.
    free = (block for block in range(70_000, 1 << 19) if block % 32768 > 2048)
    top, *middle = itertools.islice(free, 301)
    write(image, inode + 40 + 14 * 4, struct.pack("<I", top))
    write(image, top * 4096, struct.pack(f"<{len(middle)}I", *middle))
    for block in middle:
        write(image, block * 4096, struct.pack("<1024I", *itertools.islice(free, 1024)))
    tool("cp", "--sparse=always", image, folder / "after")
    after = write(folder / "after", inode + 16, b"\1")
    # It is as it should be, however odd.
    assert limited(image, after) == ""


def test_blocks_that_belong_to_several_files(folder: Path, indirect: tuple[Path, int]) -> None:
    image, inode = indirect
    tool("cp", "--sparse=always", image, folder / "after")
    after = folder / "after"
    write(after, inode + 256 + 40, at(after, inode + 40)[:4])
    assert "belongs to several inodes" in limited(image, after)


# -- what is shown -----------------------------------------------------------------------------------------------------


def shuffled(number: int, kinds: int, seed: int) -> str:
    chance = random.Random(seed)
    return "".join(f"{chance.randrange(kinds):x}\n" for _ in range(number))


def test_a_text_diff_never_takes_long(folder: Path) -> None:
    contents = {f"f{n}": shuffled(40_000 if n else 10_000, 120, n) for n in range(3)}
    before = make_image(folder / "before", "ext4", "8M", tree(folder / "tree", **contents))
    for n in range(3):
        (folder / "tree" / f"f{n}").write_text(shuffled(40_000 if n else 10_000, 120, n + 10))
    after = make_image(folder / "after", "1k", "8M", folder / "tree")
    found = compare_files([before], [after])
    started = time.process_time()
    for entry in found.of("changed"):
        entry.text_diff()
    assert time.process_time() - started < 3


def test_a_text_diff_of_a_log(folder: Path) -> None:
    """Lines of one kind, to which some are added: nothing of that is hard."""
    text = "the same line\n" * 15_000
    before = make_image(folder / "before", "ext4", "8M", tree(folder / "tree", log=text))
    (folder / "tree" / "log").write_text(f"{text}more\n")
    after = make_image(folder / "after", "1k", "8M", folder / "tree")
    started = time.process_time()
    assert compare_files([before], [after]).changed("/log").text_diff() == (
        "--- a/log\n+++ b/log\n@@ -14998,3 +14998,4 @@\n the same line\n the same line\n the same line\n+more\n"
    )
    assert time.process_time() - started < 2


@pytest.mark.parametrize("seed", range(60))
def test_text_diffs_can_be_applied(folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    old = [f"{chance.choice('abcdef')}\n" for _ in range(chance.randrange(0, 40))]
    new = list(old)
    for _ in range(chance.randrange(0, 6)):
        place = chance.randrange(len(new) + 1)
        new[place : place + chance.randrange(3)] = [
            f"{chance.choice('abxyz')}\n" for _ in range(chance.randrange(3))
        ]
    if new and chance.random() < 0.3:
        new[-1] = new[-1].rstrip("\n")
    (folder / "file").write_text("".join(old))
    text = textdiff.unified(old, new, "a/file", "b/file", chance.choice([0, 1, 3]))
    assert text is not None
    assert bool(text) == (old != new)
    if text:
        (folder / "patch").write_text(text)
        tool("patch", "-s", "--unified", folder / "file", folder / "patch")
    assert (folder / "file").read_text() == "".join(new) if new else True


def test_hashes_in_json_have_an_end(linked: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    found = compare_files([linked[0]], [linked[1]])
    hashes = [e["after"]["sha256"] for e in found.to_json()["entries"] if e["type"] == "file"]
    assert all(hashes)
    monkeypatch.setattr(files, "HASH_TOTAL", 7)
    hashes = [e["after"]["sha256"] for e in found.to_json()["entries"] if e["type"] == "file"]
    assert hashes == [None]
