"""The digest of a disk is that of what the guest sees, however it lies in layers; what was read says so."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from help.small_store import new_machine, new_snapshot, new_store

from vmlab.compare import digest
from vmlab.compare.blocks import Disk
from vmlab.compare.digest import BLOCK
from vmlab.machines import digests
from vmlab.records import write_json

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")

SIZE = 5 * (1 << 20) + 512


def qemu_img(*words: object) -> None:
    subprocess.run(["qemu-img", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def expected(path: Path, kind: str = "qcow2") -> str:
    """Return the digest by its definition, of what qemu-img reads."""
    raw = path.with_suffix(".raw")
    qemu_img("convert", "-f", kind, "-O", "raw", path, raw)
    data = raw.read_bytes()
    rows = [hashlib.sha256(data[at : at + BLOCK]).digest() for at in range(0, len(data), BLOCK)]
    return hashlib.sha256(b"".join(rows)).hexdigest()


def write(path: Path, at: int, data: bytes) -> None:
    source = path.with_suffix(".part")
    source.write_bytes(data)
    words = f"write -s {source} {at} {len(data)}"
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", words, path], check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
def chain(tmp_path: Path) -> list[Path]:
    """A base, and two layers over it: with data, zeros over data, the last bytes, and an edge that is crossed."""
    base, first, second = (tmp_path / f"{name}.qcow2" for name in ("base", "first", "second"))
    raw = tmp_path / "source"
    raw.write_bytes(os.urandom(BLOCK * 3) + bytes(SIZE - BLOCK * 3))
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", raw, base)
    qemu_img("create", "-f", "qcow2", "-F", "qcow2", "-b", base, first)
    write(first, BLOCK - 1024, os.urandom(2048))
    write(first, 2 * BLOCK, bytes(BLOCK))
    qemu_img("create", "-f", "qcow2", "-F", "qcow2", "-b", first, second)
    write(second, SIZE - 512, os.urandom(512))
    write(second, 40 * BLOCK, os.urandom(BLOCK))
    return [base, first, second]


def test_it_is_that_of_what_the_guest_sees(chain: list[Path]) -> None:
    below = None
    for path in chain:
        disk = Disk(path)
        whole = digest.take(disk)
        assert whole.hex == expected(path)
        # By reading only what its own file holds, too.
        found = digest.take(disk, below)
        assert found.hex == whole.hex
        below = disk, found


def test_it_survives_fewer_layers(chain: list[Path], tmp_path: Path) -> None:
    before = digest.take(Disk(chain[-1])).hex
    flat = tmp_path / "flat.qcow2"
    qemu_img("convert", "-f", "qcow2", "-O", "qcow2", chain[-1], flat)
    assert digest.take(Disk(flat)).hex == before
    qemu_img("rebase", "-f", "qcow2", "-F", "qcow2", "-b", chain[0], chain[-1])
    assert digest.take(Disk(chain[-1])).hex == before


def test_what_is_not_what_it_was_is_found(chain: list[Path], tmp_path: Path) -> None:
    disk = Disk(chain[-1])
    before = digest.take(disk)
    assert not len(before.differing(digest.take(disk)))
    write(chain[1], BLOCK * 7 + 5 * 512, b"x" * 512)
    after = Disk(chain[-1])
    assert before.differing(digest.take(after)).tolist() == [7]
    assert digest.file_with(after, 7) == chain[1]
    # What was written down is whole, or nothing.
    kept = tmp_path / "kept.digest"
    before.write(kept)
    read = digest.read(kept)
    assert read is not None
    assert read.hex == before.hex
    data = bytearray(kept.read_bytes())
    for broken in (
        bytes(data[:-1]),
        bytes(data[: len(data) // 64 * 32]),
        b"",
        bytes([data[0] ^ 1]) + bytes(data[1:]),
    ):
        kept.write_bytes(broken)
        assert digest.read(kept) is None
    kept.unlink()
    assert digest.read(kept) is None


@pytest.mark.parametrize("harmed", ["the top layer", "a layer below", "the image", "nothing"])
def test_a_snapshots_disks_are_held_against_their_digests(tmp_path: Path, harmed: str) -> None:
    store = new_store(tmp_path / "store")
    description = store.image("img")
    source = store.image_folder("img") / "disk.qcow2"
    write(source, 0, os.urandom(BLOCK))
    digests_of_files = {"disk.qcow2": hashlib.sha256(source.read_bytes()).hexdigest()}
    write_json(store.image_folder("img") / "image.json", {**description, "sha256": digests_of_files})
    machine = new_machine(store, "web", store.adopt("img"))
    machine.layers = {"vda": store.add_layer(base=f"{machine.spec.base}/disk.qcow2").id}
    store.add_machine(machine)
    for at in (2, 3):
        write(store.layer_path(machine.layers["vda"]), at * BLOCK, os.urandom(BLOCK))
        lower, machine.layers = machine.layers, store.add_layers(machine.layers, live=True)
        taken = store.snapshot(new_snapshot(store, machine, lower))
    # Nothing was taken yet: it says so, and the image is held against what it was made of.
    first = digests.check(store, taken)
    assert first.same
    assert "for the first time" in first.covered[0]
    assert "disk.qcow2" in first.covered[1]
    digests.run(store)
    (top,) = taken.layers.values()
    assert digests.of(store, taken)["vda"] == expected(store.layer_path(top))
    path = {
        "the top layer": store.layer_path(top),
        "a layer below": store.layer_path(store.layer(top).backing or ""),
        "the image": store.base_folder(machine.spec.base) / "disk.qcow2",
    }.get(harmed)
    if path is not None:
        path.chmod(0o600)
        at = {"the top layer": 3, "a layer below": 2, "the image": 0}[harmed]
        write(path, at * BLOCK + 512, b"x" * 512)
    found = digests.check(store, taken)
    assert found.same is (path is None)
    assert "every byte that the guest sees" in found.covered[0]
    if path is not None:
        assert "in 1 of " in found.differences[0]
        assert all(str(path) in text for text in found.differences)
        path.unlink()
        gone = digests.check(store, taken)
        assert not gone.same
        assert str(path) in "".join(gone.differences)
