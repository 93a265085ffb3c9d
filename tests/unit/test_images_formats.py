"""Disks in other formats, compressed, or in several files: the same bits as qemu-img's, and nothing that was not given.

Every image here is made on the spot, by qemu-img or by hand.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import random
import shutil
import struct
import subprocess
import zipfile
from pathlib import Path

import pytest

from vmlab.errors import BuildFailed, NotFound, UsageError, VMLabError
from vmlab.hypervisor.account import Account
from vmlab.images import import_image, read

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")

#: Name of the file, and qemu-img's words that make it.
FORMATS = {
    "sparse.vmdk": ["vmdk", "-o", "subformat=monolithicSparse"],
    "flat.vmdk": ["vmdk", "-o", "subformat=monolithicFlat"],
    "split.vmdk": ["vmdk", "-o", "subformat=twoGbMaxExtentSparse"],
    "splitflat.vmdk": ["vmdk", "-o", "subformat=twoGbMaxExtentFlat"],
    "stream.vmdk": ["vmdk", "-o", "subformat=streamOptimized"],
    "grown.vdi": ["vdi"],
    "whole.vdi": ["vdi", "-o", "static=on"],
    "grown.vhd": ["vpc", "-o", "subformat=dynamic"],
    "whole.vhd": ["vpc", "-o", "subformat=fixed"],
    "grown.vhdx": ["vhdx", "-o", "subformat=dynamic"],
    "whole.vhdx": ["vhdx", "-o", "subformat=fixed"],
    "disk.qed": ["qed"],
    "disk.qcow": ["qcow"],
    "packed.qcow2": ["qcow2", "-c"],
    "old.qcow2": ["qcow2", "-o", "compat=0.10"],
}
SIZE = 3 << 20
EVERYTHING = os.environ.get("VMLAB_ALL") == "1"


def run(*words: object) -> str:
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def take(tmp_path):
    """Import into a store of this test's own."""
    me = Account("me", os.geteuid(), os.getegid(), tmp_path, tmp_path, tmp_path / "socket", is_service=False)

    def take(source=None, name="mine", **options):
        return import_image(tmp_path / "images", me, name, source, **options)

    return take


@pytest.fixture
def raw(tmp_path):
    """A disk with a boot sector, data here and there, and holes; in a folder of its own."""
    path = tmp_path / "disks" / "disk.raw"
    path.parent.mkdir()
    rand = random.Random(7)
    data = bytearray(SIZE)
    data[510:512] = b"\x55\xaa"
    for at in (4096, 1 << 20, (2 << 20) + 512, SIZE - 5000):
        data[at : at + 4900] = rand.randbytes(4900)
    path.write_bytes(data)
    return path


def make(raw: Path, name: str) -> Path:
    form, *options = FORMATS[name]
    path = raw.with_name(name)
    run("qemu-img", "convert", "-f", "raw", "-O", form, *options, raw, path)
    return path


def bits(path: Path, form: str, **options: object) -> bytes:
    """Return what qemu-img reads of a disk."""
    out = path.with_name("as-read.raw")
    run("qemu-img", "convert", "-f", form, "-O", "raw", path, out)
    data = out.read_bytes()
    out.unlink()
    return data


def bits_of(folder: Path) -> bytes:
    [disk] = read(folder).disks
    found = bits(folder / disk["file"], disk["format"])
    assert len(found) == disk["size"]
    return found


def nothing_left(tmp_path):
    folder = tmp_path / "images"
    return not folder.exists() or list(folder.iterdir()) == []


def overlay(path: Path, below: str, form: str, below_form: str, at: int = 8192) -> Path:
    """Make a disk of changes to another one, which it calls ``below``; some bytes are changed."""
    run("qemu-img", "create", "-q", "-f", form, "-b", below, "-F", below_form, path)
    run("qemu-io", "-f", form, "-c", f"write -P 0x5a {at} 3000", path)
    return path


# formats ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_bits_as_qemu_img_reads(take, raw, name):
    path = make(raw, name)
    expected = bits(path, FORMATS[name][0])
    # Where a format counts in cylinders the disk grows; what was there stays.
    assert expected[:SIZE] == raw.read_bytes()
    folder = take(path)
    assert bits_of(folder) == expected
    assert sorted(p.name for p in folder.iterdir()) == ["disk.qcow2", "image.json"]


def test_vmware_servers_own_kind(take, raw):
    """ESX writes ``vmfs`` where others write ``monolithicFlat``; qemu-img cannot make it, but reads it."""
    path = make(raw, "flat.vmdk")
    text = (
        path.read_text().replace("monolithicFlat", "vmfs").replace("FLAT", "VMFS").replace('vmdk" 0', 'vmdk"')
    )
    path.write_text(text)
    assert bits_of(take(path)) == bits(path, "vmdk") == raw.read_bytes()


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "whole.vhd"])
def test_what_was_cut_short_is_refused(take, raw, tmp_path, name):
    """QEMU would read zeros where the file has ended."""
    path = make(raw, name)
    parts = [p for p in raw.parent.iterdir() if p.name not in (raw.name, name)]
    file = parts[-1] if parts else path
    # Growing files end in what is needed least: an empty half of a block, a copy of the header.
    os.truncate(file, file.stat().st_size * 2 // 5)
    with pytest.raises(BuildFailed, match=r"cut short|damaged"):
        take(path)
    assert nothing_left(tmp_path)


def test_a_fixed_vhd_that_lost_its_end_is_no_raw_disk_with_less(take, raw, tmp_path):
    with raw.open("r+b") as file:
        file.seek(446)
        file.write(struct.pack("<BxxxBxxxII", 0x80, 0x83, 1, SIZE // 512 - 1))
    path = make(raw, "whole.vhd")
    os.truncate(path, path.stat().st_size - 70000)
    with pytest.raises(BuildFailed, match="cut short"):
        take(path)


def test_a_disk_larger_than_any_is_refused_before_it_is_written(take, tmp_path):
    path = tmp_path / "huge.qed"
    run("qemu-img", "create", "-q", "-f", "qed", path, "20T")
    with pytest.raises(BuildFailed, match="larger than"):
        take(path)
    assert nothing_left(tmp_path)


def test_encrypted_disks_are_refused(take, tmp_path):
    path = tmp_path / "secret.qcow2"
    secret = "secret,id=s,data=x"
    options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
    run("qemu-img", "create", "-q", "--object", secret, "-f", "qcow2", "-o", options, path, "1M")
    with pytest.raises(BuildFailed, match="encrypted"):
        take(path)


# compressed ---------------------------------------------------------------------------------------------------------


def pack(path: Path, kind: str) -> Path:
    target = path.with_name(f"{path.name}.{kind}")
    if kind == "zip":
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(path, f"folder/{path.name}")
    elif kind == "zst":
        run("zstd", "-q", path, "-o", target)
    else:
        data = path.read_bytes()
        module = {"gz": gzip, "bz2": bz2, "xz": lzma}[kind]
        # Two streams in one file, as parallel compressors write them.
        target.write_bytes(module.compress(data[:70000]) + module.compress(data[70000:]))
    return target


PACKED = ("gz", "bz2", "xz", "zst", "zip")
SOME = ("grown.vdi", "stream.vmdk", "split.vmdk", "packed.qcow2")


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("name", ["disk.raw", *(FORMATS if EVERYTHING else SOME)])
def test_compressed_disks(take, raw, name, kind):
    path = raw if name == "disk.raw" else make(raw, name)
    expected = bits(path, "raw" if path == raw else FORMATS[name][0])
    seen = []
    packed = pack(path, kind)
    digest = run("sha256sum", packed).split()[0]
    folder = take(packed, sha256=digest, progress=lambda step, fraction: seen.append(step))
    assert bits_of(folder) == expected
    assert any(step.startswith("unpacking") for step in seen)
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("kind", PACKED)
def test_compressed_and_cut_short(take, raw, tmp_path, kind):
    path = pack(raw, kind)
    data = path.read_bytes()
    for cut in (
        data[: len(data) // 2],
        data[:-3],
        data[: len(data) // 2] + b"oops" + data[len(data) // 2 + 4 :],
    ):
        path.write_bytes(cut)
        with pytest.raises(BuildFailed, match="unpacked"):
            take(path)
    assert nothing_left(tmp_path)


def test_zeros_become_holes(take, raw):
    path = raw.with_name("big.gz")
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(raw.read_bytes())
        for _ in range(100):
            file.write(bytes(1 << 20))
    copy = take(path) / "disk.img"
    assert copy.stat().st_size == SIZE + (100 << 20)
    assert copy.stat().st_blocks * 512 < SIZE


def test_a_small_file_cannot_ask_for_much_memory(take, tmp_path):
    """The strongest settings want a GiB and more to be read again."""
    huge = {"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}
    path = tmp_path / "disk.xz"
    packer = lzma.LZMACompressor(lzma.FORMAT_XZ, filters=[{**huge, "dict_size": 300 << 20}])
    path.write_bytes(packer.compress(bytes(4096)) + packer.flush())
    with pytest.raises(BuildFailed, match="unpacked"):
        take(path)
    path = tmp_path / "disk.zst"
    with path.open("wb") as out:
        subprocess.run(
            ["zstd", "-q", "--ultra", "--long=30", "-c"], input=bytes(4096), stdout=out, check=True
        )
    # Of a pipe it cannot know how little there is.
    with pytest.raises(BuildFailed, match="unpacked"):
        take(path)


def test_archives_of_several_files_and_compressed_twice(take, raw, tmp_path):
    path = tmp_path / "two.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("one.raw", b"x")
        archive.writestr("two.raw", b"y")
    with pytest.raises(BuildFailed, match="2 files") as caught:
        take(path)
    assert "one.raw" in caught.value.evidence["files"]
    with pytest.raises(BuildFailed, match="more than once"):
        take(pack(pack(raw, "gz"), "xz"))
    assert nothing_left(tmp_path)


# several files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "below"),
    [
        ("qcow2", "disk.raw"),
        ("qcow2", "grown.vdi"),
        ("qed", "disk.raw"),
        ("qcow", "disk.raw"),
        ("vmdk", "sparse.vmdk"),
    ],
)
def test_a_chain_in_one_folder_is_flattened(take, raw, form, below):
    if below != raw.name:
        make(raw, below)
    name = "raw" if below == raw.name else FORMATS[below][0]
    one = overlay(raw.with_name("one"), below, form, name)
    two = overlay(raw.with_name("two"), "one", form, form, at=1 << 20)
    expected = bits(two, form)
    assert expected != bits(one, form) != raw.read_bytes()
    folder = take(two)
    assert bits_of(folder) == expected
    assert len(list(folder.iterdir())) == 2
    info = json.loads(run("qemu-img", "info", "--output=json", folder / "disk.qcow2"))
    assert "backing-filename" not in info


def test_a_file_elsewhere_is_taken_only_if_it_is_named(take, raw, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for shown in (str(elsewhere / "disk.raw"), "../elsewhere/disk.raw", "./disk.raw"):
        raw.rename(elsewhere / raw.name)
        (raw.with_name("trap")).unlink(missing_ok=True)
        run(
            "qemu-img",
            "create",
            "-q",
            "-u",
            "-f",
            "qcow2",
            "-b",
            shown,
            "-F",
            "raw",
            raw.with_name("trap"),
            SIZE,
        )
        with pytest.raises(BuildFailed, match="changes to another disk") as caught:
            take(raw.with_name("trap"))
        assert "--backing" in caught.value.hint
        assert caught.value.evidence["other_disk"] == shown
        assert nothing_left(tmp_path)
        (elsewhere / raw.name).rename(raw)
    assert bits_of(take(raw.with_name("trap"), backing=[raw])) == raw.read_bytes()


@pytest.mark.parametrize("what", ["link", "fifo", "folder", "nothing"])
def test_beside_the_disk_only_ordinary_files_are_taken(take, raw, tmp_path, what):
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(512))
    there = raw.with_name("below")
    if what == "link":
        there.symlink_to(secret)
    elif what == "fifo":
        os.mkfifo(there)
    elif what == "folder":
        there.mkdir()
    run(
        "qemu-img",
        "create",
        "-q",
        "-u",
        "-f",
        "qcow2",
        "-b",
        "below",
        "-F",
        "raw",
        raw.with_name("trap"),
        SIZE,
    )
    with pytest.raises(BuildFailed, match="another disk"):
        take(raw.with_name("trap"))
    assert nothing_left(tmp_path)


def test_a_disk_without_what_it_is_built_on(take, raw, tmp_path):
    path = overlay(raw.with_name("one"), "disk.raw", "qcow2", "raw")
    # What is compressed lies in its folder, too.
    assert bits_of(take(pack(path, "gz"))) == bits(path, "qcow2")
    folder = tmp_path / "alone"
    folder.mkdir()
    path.rename(folder / "one")
    with pytest.raises(BuildFailed, match="cannot be opened in its folder"):
        take(folder / "one", name="other")


def test_chains_that_bite_their_tail(take, raw):
    one, two = raw.with_name("one"), raw.with_name("two")
    run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "two", "-F", "qcow2", one, SIZE)
    run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "one", "-F", "qcow2", two, SIZE)
    with pytest.raises(BuildFailed, match="stands on itself"):
        take(one)


def test_a_file_that_nothing_needs_is_a_mistake(take, raw, tmp_path):
    (tmp_path / "other").write_bytes(bytes(512))
    with pytest.raises(UsageError, match="other"):
        take(raw, backing=[tmp_path / "other"])
    with pytest.raises(NotFound):
        take(raw, backing=[tmp_path / "nothing"])
    assert nothing_left(tmp_path)


def test_a_qcow2_with_its_data_beside_it(take, raw, monkeypatch):
    path = raw.with_name("meta.qcow2")
    words = ["-o", "data_file=data,data_file_raw=on"]
    # QEMU looks for it in the folder that it runs in.
    monkeypatch.chdir(raw.parent)
    run("qemu-img", "create", "-q", "-f", "qcow2", *words, path, SIZE)
    run("qemu-io", "-f", "qcow2", "-c", "write -P 0x21 65536 65536", path)
    assert bits_of(take(path)) == bits(path, "qcow2") == raw.with_name("data").read_bytes()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('RW 1 FLAT "/etc/passwd" 0', "consists of several files"),
        ('RW 1 FLAT "../secret" 0', "consists of several files"),
        ('RW 1 FLAT "link" 0', "consists of several files"),
        ('RW 1 FLAT "" 0', "kind that cannot be read"),
        ('RW 9 FLAT "part" 0', "cut short"),
        ("RW 1 ZERO", "kind that cannot be read"),
        ('NOACCESS 1 FLAT "part" 0', "kind that cannot be read"),
        ('RW 1 VMFSRDM "part"', "kind that cannot be read"),
        ('RW 1 SPARSE "part"', "VMDK"),
        ("", "damaged"),
    ],
)
def test_what_a_vmdk_may_not_consist_of(take, tmp_path, line, words):
    (tmp_path / "secret").write_bytes(b"\0" * 512)
    (tmp_path / "disks").mkdir()
    (tmp_path / "disks" / "part").write_bytes(bytes(512))
    (tmp_path / "disks" / "link").symlink_to(tmp_path / "secret")
    path = tmp_path / "disks" / "trap.vmdk"
    text = '# Disk DescriptorFile\nversion=1\nCID=00000001\nparentCID=ffffffff\ncreateType="monolithicFlat"\n'
    path.write_text(f"{text}{line}\n")
    with pytest.raises(BuildFailed, match=words):
        take(path)
    assert nothing_left(tmp_path)


def test_a_vmdk_that_hides_its_description_is_not_followed(take, raw, tmp_path):
    """With a capacity of 0 QEMU reads parts by name from the text inside, at the top and in a part."""
    text = f'# Disk DescriptorFile\ncreateType="monolithicFlat"\nRW 1 FLAT "{raw}" 0\n'.encode()
    trap = struct.pack("<4sIIQQQQIQQQ", b"KDMV", 1, 3, 0, 128, 1, 1, 512, 0, 0, 128).ljust(512, b"\0")
    (raw.parent / "trap.vmdk").write_bytes(trap + text.ljust(1 << 16, b"\0"))
    with pytest.raises(BuildFailed, match="data elsewhere"):
        take(raw.parent / "trap.vmdk")
    outer = '# Disk DescriptorFile\ncreateType="twoGbMaxExtentSparse"\nRW 1 SPARSE "trap.vmdk"\n'
    (raw.parent / "outer.vmdk").write_text(outer)
    with pytest.raises(BuildFailed, match="data elsewhere"):
        take(raw.parent / "outer.vmdk")
    assert nothing_left(tmp_path)


def test_a_differencing_vhd_is_refused(take, raw):
    path = make(raw, "grown.vhd")
    data = bytearray(path.read_bytes())
    for at in (0, len(data) - 512):
        data[at + 60 : at + 64] = struct.pack(">I", 4)
        data[at + 64 : at + 68] = bytes(4)
        data[at + 64 : at + 68] = struct.pack(">I", ~sum(data[at : at + 512]) & 0xFFFFFFFF)
    path.write_bytes(data)
    with pytest.raises(BuildFailed, match="changes to another disk"):
        take(path)


def test_any_damage_ends_in_a_plain_error(take, raw, tmp_path):
    """Bytes turned at random in the first kilobytes: refused in a sentence, or read as a disk; never anything else."""
    rand = random.Random(3)
    rounds = 20 if EVERYTHING else 1
    for name in FORMATS:
        whole = make(raw, name).read_bytes()
        for number in range(rounds):
            data = bytearray(whole)
            for _ in range(20):
                data[rand.randrange(min(len(data), 1536))] = rand.randrange(256)
            raw.with_name(name).write_bytes(data)
            try:
                take(raw.with_name(name), name=f"x{number}", replace=True)
            except VMLabError as error:
                assert error.message.endswith(".")  # noqa: PT017 - either way is right
