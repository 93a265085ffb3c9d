"""Reading disks and file systems: chains of files, partitions, damage; what a comparison says and how."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from help.disk_images import Truth, gpt_disk, make_image, overlay, scratch, tool
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmlab.compare.blocks import Disk, differing
from vmlab.compare.ext4 import Ext4
from vmlab.compare.files import FilesDiff, compare_files
from vmlab.compare.filestate import FileState, printable
from vmlab.compare.partitions import partitions
from vmlab.errors import DiskUnreadable


@pytest.fixture
def folder() -> Iterator[Path]:
    with scratch() as name:
        yield Path(name)


def debugfs(image: Path, *commands: str) -> str:
    script = image.with_name("script")
    script.write_text("".join(f"{command}\n" for command in commands))
    return tool("debugfs", "-w", "-f", script, image)


# -- chains of disk files ------------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**32),
    options=st.lists(
        st.sampled_from(
            ["cluster_size=64k", "cluster_size=512", "cluster_size=4k", "cluster_size=2M", "compat=0.10"]
        ),
        min_size=1,
        max_size=4,
    ),
    packed=st.booleans(),
    raw=st.booleans(),
)
def test_chains_read_as_qemu_reads_them(seed: int, options: list[str], packed: bool, raw: bool) -> None:
    chance = random.Random(seed)
    with scratch() as name:
        folder = Path(name)
        size = chance.choice([1 << 20, 3 * 512 * 1000, 6 << 20])
        base = folder / "base"
        data = bytearray(size)
        for _ in range(12):
            at = chance.randrange(size)
            data[at : at + 50000] = chance.randbytes(min(50000, size - at))
        base.write_bytes(data)
        top, kind = base, "raw"
        if not raw:
            top, kind = folder / "base.qcow2", "qcow2"
            tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", *(["-c"] if packed else []), base, top)
        disks = [top]
        for number, option in enumerate(options):
            size += chance.choice([0, 512 * 77, 1 << 20])
            made = folder / f"{number}.qcow2"
            tool(
                "qemu-img",
                "create",
                "-q",
                "-f",
                "qcow2",
                "-o",
                option,
                "-F",
                kind,
                "-b",
                top.name,
                made,
                size,
            )
            script = []
            for _ in range(chance.randrange(6)):
                at = chance.randrange(size // 512) * 512
                length = min(chance.randrange(1, 300) * 512, size - at)
                script += ["-c", f"{chance.choice(['write -P 7', 'write -z', 'write -P 9'])} {at} {length}"]
            tool("qemu-io", "-f", "qcow2", *script, made)
            top, kind = made, "qcow2"
            disks.append(top)
        whole = {}
        for disk in disks:
            tool(
                "qemu-img",
                "convert",
                "-O",
                "raw",
                *(["-f", "raw"] if disk == base else []),
                disk,
                folder / "flat",
            )
            whole[disk] = (folder / "flat").read_bytes()
            assert Disk(disk).read(0, size + 5000) == whole[disk].ljust(size + 5000, b"\0")
        x, y = chance.choice(disks), chance.choice(disks)
        start = chance.choice([0, 512, 63 * 512])
        for block in (512, 1024, 4096):
            p, q = whole[x][start:], whole[y][start:]
            count = -(-max(len(p), len(q)) // block)
            rows = [np.frombuffer(d.ljust(count * block, b"\0"), np.uint8).reshape(-1, block) for d in (p, q)]
            expected = np.flatnonzero((rows[0] != rows[1]).any(axis=1))
            assert differing(Disk(x), Disk(y), block, start).tolist() == expected.tolist()


def test_common_files_are_not_read(folder: Path) -> None:
    base = folder / "base"
    base.write_bytes(os.urandom(4 << 20))
    for name in ("a", "b"):
        tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base", folder / name)
    tool("qemu-io", "-c", "write -P 1 65536 512", folder / "b")
    a, b = Disk(folder / "a"), Disk(folder / "b")
    base.write_bytes(b"")
    assert differing(a, b, 512, 0, 65536).tolist() == []
    assert 128 in differing(a, b, 512).tolist()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-o", "extended_l2=on"], "extended L2"),
        (["-o", "data_file=data.raw,data_file_raw=on"], "another file"),
    ],
)
def test_what_cannot_be_read_is_said(folder: Path, options: list[str], said: str) -> None:
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", *options, "a.qcow2", "1M"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    with pytest.raises(DiskUnreadable, match=said):
        Disk(folder / "a.qcow2")


def test_a_chain_that_is_broken(folder: Path) -> None:
    tool("qemu-img", "create", "-q", "-f", "qcow2", folder / "a", "1M")
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "a", folder / "b")
    tool("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "b", folder / "a")
    with pytest.raises(DiskUnreadable, match="circle"):
        Disk(folder / "b")
    (folder / "a").unlink()
    with pytest.raises(DiskUnreadable, match="cannot be read"):
        Disk(folder / "b")
    (folder / "c").write_bytes((folder / "b").read_bytes()[:200])
    with pytest.raises(DiskUnreadable, match=r"too early|no sense"):
        Disk(folder / "c")


# -- partitions ----------------------------------------------------------------------------------------------------


def mbr_disk(path: Path, image: Path) -> Path:
    """Put an image into the second logical partition, at a sector that is no multiple of eight."""
    data = image.read_bytes()
    entry = struct.Struct("<B3xB3xII")
    disk = bytearray((1000 + 4096 + 63) * 512 + len(data))

    def table(at: int, *entries: tuple[int, int, int]) -> None:
        for n, (kind, first, count) in enumerate(entries):
            disk[at + 446 + 16 * n :][:0] = b""
            entry.pack_into(disk, at + 446 + 16 * n, 0, kind, first, count)
        disk[at + 510 : at + 512] = b"\x55\xaa"

    table(0, (0x82, 63, 100), (0x0F, 1000, 4096 + 63 + len(data) // 512))
    table(1000 * 512, (0x83, 63, 500), (0x05, 4096, 63 + len(data) // 512))
    table((1000 + 4096) * 512, (0x83, 63, len(data) // 512))
    disk[(1000 + 4096 + 63) * 512 :] = data
    path.write_bytes(disk)
    return path


@pytest.mark.parametrize(
    ("table", "name"), [("mbr", "vda6"), ("gpt", "vda3"), ("backup", "vda3"), ("none", "vda")]
)
def test_file_systems_in_partitions(folder: Path, table: str, name: str) -> None:
    (folder / "tree").mkdir()
    (folder / "tree" / "file").write_text("one\n")
    image = make_image(folder / "image", "1k", "4M", folder / "tree")

    def disk(name: str) -> Path:
        if table == "mbr":
            return mbr_disk(folder / name, image)
        if table == "none":
            (folder / name).write_bytes(image.read_bytes())
            return folder / name
        return gpt_disk(folder / name, {3: image}, backup_only=table == "backup")

    before = disk("before")
    (folder / "tree" / "file").write_text("two\n")
    debugfs(image, "rm file", f"write {folder}/tree/file file", "sif file mode 0100640")
    found = compare_files([before], [disk("after")])
    entry = found.changed("/file")
    assert entry.volume == name
    assert {"content", "mode"} <= set(entry.what)
    assert entry.text_diff() == "--- a/file\n+++ b/file\n@@ -1 +1 @@\n-one\n+two\n"


def test_boot_records_of_whole_disks_are_no_partitions(folder: Path) -> None:
    disk = folder / "fat"
    disk.write_bytes(bytes(8 << 20))
    tool("mkfs.vfat", disk)
    assert [(p.number, p.kind) for p in partitions(Disk(disk))] == [(0, "fat")]


def test_other_file_systems_are_never_called_equal(folder: Path) -> None:
    before, after = folder / "before", folder / "after"
    before.write_bytes(bytes(0x10040) + b"_BHRfS_M" + bytes((8 << 20) - 0x10048))
    after.write_bytes(before.read_bytes())
    found = compare_files([before], [after])
    assert (found.equal, found.unread, found.unchanged("/x")) == (True, [], True)
    with after.open("r+b") as file:
        file.seek(5 << 20)
        file.write(b"x")
    found = compare_files([before], [after])
    assert (found.equal, len(found)) == (False, 0)
    assert found.unread == [
        "vda is btrfs, which vmlab cannot read; 4,096 bytes of it differ, see the part 'disk'."
    ]
    with pytest.raises(AssertionError, match="cannot be said to be unchanged"):
        found.unchanged("/x")
    assert not compare_files([before], []).equal


# -- what a comparison says ----------------------------------------------------------------------------------------


@pytest.fixture
def said(folder: Path) -> FilesDiff:
    """A comparison of two states with a little of everything, made without root."""
    tree = folder / "tree"
    for name in ("etc", "srv/data", "home"):
        (tree / name).mkdir(parents=True)
    (tree / "etc/passwd").write_text("root\n")
    (tree / "etc/motd").write_text("hello\nworld\n")
    (tree / "etc/shadow").write_text("x")
    (tree / "etc/hosts").write_text("x")
    (tree / "srv/data/file").write_text("x")
    (tree / "home/binary").write_bytes(bytes(range(256)))
    image = make_image(folder / "image", "ext4", "8M", tree)
    before = folder / "before"
    before.write_bytes(image.read_bytes())
    (folder / "new").write_text("hello\nthere\nworld")
    debugfs(
        image,
        "rm /etc/motd",
        f"write {folder}/new /etc/motd",
        f"write {folder}/new /home/new",
        "symlink /home/link /etc/motd",
        "cd /home",
        "mknod pipe p",
        "cd /",
        "rm /home/binary",
        "sif /etc/hosts mode 0100600",
        "ea_set /etc/hosts user.note text",
        "ln /srv/data /srv/moved",
        "unlink /srv/data",
        "ln /etc/passwd /home/passwd",
        "sif /etc/passwd links_count 2",
    )
    return compare_files([before], [overlay(before, image, folder / "layer")])


def test_entries(said: FilesDiff) -> None:
    kinds = {e.path: (e.kind, e.type, e.old_path, e.link_to) for e in said if e.kind != "touched"}
    assert kinds == {
        "/etc/motd": ("changed", "file", None, None),
        "/etc/hosts": ("metadata", "file", None, None),
        "/home/new": ("added", "file", None, None),
        "/home/link": ("added", "symlink", None, None),
        "/home/pipe": ("added", "fifo", None, None),
        "/home/binary": ("removed", "file", None, None),
        "/home/passwd": ("added", "file", None, "/etc/passwd"),
        "/srv/moved": ("renamed", "directory", "/srv/data", None),
    }
    hosts = said.changed("/etc/hosts")
    assert hosts.what == ("mode", "attributes")
    assert hosts.after is not None
    assert (hosts.after.attributes, hosts.after.mode) == ({"user.note": b"text"}, 0o600)
    link = said.added("/home/link").after
    assert link is not None
    assert link.target == "/etc/motd"
    assert said.added("/home/link").text_diff() is None
    assert said.removed("/home/binary").text_diff() is None
    assert said.added("/home/new").text_diff() == (
        "--- /dev/null\n+++ b/home/new\n@@ -0,0 +1,3 @@\n+hello\n+there\n+world\n\\ No newline at end of file\n"
    )


def test_assertions_say_what_was_there_instead(said: FilesDiff) -> None:
    assert said.added("/home/new")
    assert said.renamed("/srv/data", "/srv/moved")
    assert said.unchanged("/etc/shadow")
    for call, message in (
        (
            lambda: said.added("/etc/shadow"),
            "/etc/shadow was not added: it was there before, and nothing about it differs.",
        ),
        (lambda: said.added("/nothing"), "/nothing was not added: there is no such path, before or after."),
        (lambda: said.added("/etc/motd"), "/etc/motd was not added: it was changed (content"),
        (
            lambda: said.removed("/srv/data"),
            "/srv/data was not removed: /srv/moved was renamed; it was /srv/data.",
        ),
        (
            lambda: said.removed("/srv/data/file"),
            "/srv/data/file was not removed: it moved along, /srv/moved was renamed",
        ),
        (lambda: said.changed("/home/new"), "/home/new was not changed: it was added."),
        (lambda: said.unchanged("/etc"), "/etc/hosts has other metadata (mode, attributes), and 1 more."),
        (
            lambda: said.unchanged("/srv/data/file"),
            "/srv/data/file is not where it was: /srv/moved was renamed",
        ),
    ):
        with pytest.raises(AssertionError) as caught:
            call()
        assert str(caught.value).startswith(message)


def test_other_forms(said: FilesDiff) -> None:
    assert said.summary().startswith("4 added, 1 removed, 1 changed, 1 renamed, 1 with other metadata")
    data = json.loads(json.dumps(said.to_json()))
    assert data["counts"]["added"] == 4
    assert data["complete"] is True
    motd = next(e for e in data["entries"] if e["path"] == "/etc/motd")
    assert motd["before"]["size"] == 12
    assert len(motd["after"]["sha256"]) == 64
    pandas = pytest.importorskip("pandas")
    assert isinstance(said.to_pandas(), pandas.DataFrame)


def test_names_can_always_be_printed() -> None:
    assert printable(os.fsdecode(b"/a\xff\n\x1b[0mb\xc3\xbc")) == "/a\\xff\\n\\x1b[0mbü"


def test_file_systems_that_have_nothing_in_common_are_walked(folder: Path) -> None:
    tree = folder / "tree"
    (tree / "a").mkdir(parents=True)
    (tree / "a/same").write_bytes(b"x" * 10000)
    (tree / "a/other").write_text("one")
    before = make_image(folder / "before", "ext4", "8M", tree)
    (tree / "a/other").write_text("two")
    os.utime(tree / "a/other", (10, 10))
    (tree / "a/new").write_text("new")
    after = make_image(folder / "after", "1k", "8M", tree)
    found = compare_files([before], [after])
    assert {e.path: e.what for e in found if e.kind in ("changed", "added")} == {
        "/a/other": ("content", "mtime"),
        "/a/new": (),
    }
    assert "/a/same" not in found


# -- damage --------------------------------------------------------------------------------------------------------


def seen(disk: Path) -> Truth:
    """Return what walking all of it finds."""
    fs = Ext4(Disk(disk), 0, disk.stat().st_size)
    found: Truth = {}
    for path, inode in fs.walk():
        state = FileState.of(fs, inode)
        content = b"".join(fs.parts(inode)) if state.type == "file" and inode.size < 1 << 24 else inode.size
        found[path] = {
            "type": inode.format, "mode": inode.mode, "owner": inode.uid, "group": inode.gid, "mtime": inode.mtime,
            "content": content if state.type == "file" else None, "target": state.target, "device": state.device,
            "attributes": state.attributes, "flags": state.flags,
        }  # fmt: skip
    return found


def damaged_image(folder: Path, flavour: str) -> Path:
    tree = folder / "tree"
    for n in range(6):
        (tree / f"d{n}" / "inner").mkdir(parents=True)
        for m in range(8):
            (tree / f"d{n}" / f"f{m}").write_bytes(bytes([n, m]) * 900 * m)
    (tree / "link").symlink_to("x" * 100)
    with (tree / "sparse").open("wb") as file:
        for n in range(12):
            file.seek(n * 20000)
            file.write(b"piece")
    return make_image(folder / "image", flavour, "3M", tree)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("flavour", ["ext4", "plain", "ext2", "inline"])
def test_damage_is_an_error_or_a_difference_and_never_a_hang(folder: Path, flavour: str) -> None:
    image = damaged_image(folder, flavour)
    good = image.read_bytes()
    used = np.flatnonzero(np.frombuffer(good, np.uint8).reshape(-1, 512).any(axis=1))
    disk = folder / "damaged"
    before = seen(image)

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(seed=st.integers(0, 2**32))
    def damage(seed: int) -> None:
        chance = random.Random(seed)
        data = bytearray(good)
        for _ in range(chance.choice([1, 1, 3, 20])):
            at = int(chance.choice(used)) * 512 + chance.randrange(512)
            length = chance.choice([1, 2, 4])
            data[at : at + length] = chance.choice(
                [bytes(length), b"\xff" * length, chance.randbytes(length)]
            )
        disk.write_bytes(data)
        started = time.monotonic()
        try:
            found = compare_files([image], [disk])
            found.to_json()
        except DiskUnreadable:
            return
        finally:
            assert time.monotonic() - started < 20
        if found.unread:
            assert not found.equal
            return
        try:
            after = seen(disk)
        except DiskUnreadable:
            assert data != good
            return
        changed = {p for p in before.keys() & after.keys() if before[p] != after[p]}
        named = {os.fsencode(e.path) for e in found if e.what != ("replaced",)}
        assert changed <= named
        assert named <= changed | (before.keys() ^ after.keys())
        places = [p for e in found for p in (e.path, e.old_path) if p is not None]
        for path in before.keys() ^ after.keys():
            text = os.fsdecode(path)
            assert any(text == p or text.startswith(p + "/") for p in places), path

    damage()


def test_a_truncated_disk(folder: Path) -> None:
    image = make_image(folder / "image", "ext4", "4M")
    (folder / "short").write_bytes(image.read_bytes()[: 2 << 20])
    found = compare_files([image], [folder / "short"])
    assert not found.equal
    assert "it says that it is" in found.unread[0]


def test_unknown_features(folder: Path) -> None:
    image = make_image(folder / "image", "plain", "4M")
    data = bytearray(image.read_bytes())
    data[1024 + 96 + 3] |= 0x10
    (folder / "new").write_bytes(data)
    (unread,) = compare_files([image], [folder / "new"]).unread
    assert "0x10000000" in unread


# -- the journal ---------------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), flavour=st.sampled_from(["ext4", "1k", "old", "ext3"]))
def test_the_journal_is_replayed_as_e2fsck_does(seed: int, flavour: str) -> None:
    chance = random.Random(seed)
    with scratch() as name:
        folder = Path(name)
        image = make_image(folder / "image", flavour, "16M")
        block = Ext4(Disk(image), 0, 16 << 20).sb.block_size
        checked = flavour in ("ext4", "1k")
        # Blocks that nothing uses.
        last = (16 << 20) // block - 1
        free = list(range(last - 30, last))
        commands = []
        for number in range(chance.randrange(1, 9)):
            some = sorted(chance.sample(free, chance.randrange(1, 6)))
            if chance.random() < 0.3:
                commands.append(f"jw -r {','.join(map(str, some))}")
                continue
            # Some begin with the journal's own magic number.
            data = b"".join(chance.choice([b"", b"\xc0\x3b\x39\x98"]) + chance.randbytes(block) for _ in some)
            file = folder / f"data{number}"
            file.write_bytes(b"".join(data[n * block :][:block] for n in range(len(some))))
            commands.append(f"jw -b {','.join(map(str, some))} {file}")
        debugfs(image, f"jo {'-c -v 3' if checked else ''}", *commands, "jc")
        fs = Ext4(Disk(image), 0, 16 << 20)
        assert fs.replay.transactions == len(commands)
        got = fs.read_blocks(np.array(free, np.int64))
        replayed = folder / "replayed"
        replayed.write_bytes(image.read_bytes())
        subprocess.run(
            ["/sbin/e2fsck", "-E", "journal_only", "-p", replayed], capture_output=True, check=False
        )
        truth = replayed.read_bytes()
        assert truth != image.read_bytes()
        for row, number in zip(got, free, strict=True):
            assert row.tobytes() == truth[number * block :][:block], number
        if fs.replay.blocks.size:
            # One changed byte in a copy of the journal is found where there are checksums.
            place = int(fs.replay.source[0]) * block + 100
            data = bytearray(image.read_bytes())
            data[place] ^= 1
            (folder / "bad").write_bytes(data)
            if checked:
                with pytest.raises(DiskUnreadable, match="journal"):
                    Ext4(Disk(folder / "bad"), 0, 16 << 20)
