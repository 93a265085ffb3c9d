"""Changed extents of disks: real qcow2 chains, written to by qemu-io, against their whole contents."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vmlab.compare import picture
from vmlab.compare.disk import BLOCK, compare_disks
from vmlab.compare.state import Files
from vmlab.errors import DiskUnreadable

pytestmark = pytest.mark.skipif(shutil.which("qemu-io") is None, reason="needs qemu-img and qemu-io")

MIB = 1 << 20


def run(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True, capture_output=True)


def layer(path: Path, *writes: str, backing: Path | None = None, size: str = "64M") -> Path:
    """Make a qcow2 file and write to it: ``write -P 1 0 64k``."""
    under = ["-b", backing, "-F", "qcow2"] if backing is not None else []
    run("qemu-img", "create", "-q", "-f", "qcow2", *under, path, *([] if backing is not None else [size]))
    if writes:
        run("qemu-io", "-f", "qcow2", *(word for write in writes for word in ("-c", write)), path)
    return path


def content(path: Path) -> np.ndarray:
    raw = path.with_suffix(".raw")
    run("qemu-img", "convert", "-O", "raw", path, raw)
    return np.fromfile(raw, np.uint8).reshape(-1, BLOCK)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return layer(tmp_path_factory.mktemp("disks") / "base", "write -P 7 1M 2M", "write -P 9 40M 100k")


def state(title: str, *disks: Path) -> Files:
    return Files(title, disks=list(disks), disk_names=("vda", "vdb"))


def test_changed_extents_are_those_of_the_content(base: Path, tmp_path: Path) -> None:
    before = layer(tmp_path / "before", "write -P 1 0 8k", backing=base)
    # Written over with the same, zeroed, new, and a part of a cluster.
    after = layer(
        tmp_path / "after",
        "write -P 7 1M 64k",
        "write -z 40M 64k",
        "write -P 3 50M 5k",
        "write -P 1 0 4k",
        backing=base,
    )
    diff = compare_disks(state("before", before), state("after", after))
    truth = np.flatnonzero((content(before) != content(after)).any(axis=1))
    disk = diff["vda"]
    assert disk.blocks.tolist() == truth.tolist()
    assert [(extent.offset, extent.size) for extent in disk.extents] == [
        (4096, 4096), (40 * MIB, 65536), (50 * MIB, 8192),
    ]  # fmt: skip
    assert disk.size == diff.size == len(truth) * BLOCK
    assert disk.written == 4 * 65536
    assert disk.summary == "vda differs in 76 KiB, at 3 places (256 KiB were written to)."
    assert json.loads(json.dumps(diff.to_json()))["disks"][0]["extents_total"] == 3


def test_the_same_disk_and_other_numbers_of_disks(base: Path, tmp_path: Path) -> None:
    same = compare_disks(state("a", base), state("b", base))
    assert not same
    assert same.summary == "vda does not differ."
    more = compare_disks(state("a", base), state("b", base, layer(tmp_path / "new")))
    assert more
    assert more["vdb"].summary == "vdb is there only after."
    assert compare_disks(Files("a"), Files("b")).summary == "There are no disks."


def test_a_disk_that_grew(base: Path, tmp_path: Path) -> None:
    large = layer(tmp_path / "large", backing=base)
    run("qemu-img", "resize", "-q", large, "80M")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 5 70M 4k", large)
    disk = compare_disks(state("a", base), state("b", large))["vda"]
    assert [(extent.offset, extent.size) for extent in disk.extents] == [(70 * MIB, 4096)]
    assert "its size was 64 MiB and is 80 MiB" in disk.summary


def test_the_map_shows_where(base: Path, tmp_path: Path) -> None:
    after = layer(tmp_path / "after", "write -P 3 32M 8M", backing=base)
    disk = compare_disks(state("a", base), state("b", after))["vda"]
    image = Image.open(io.BytesIO(disk.map()))
    assert image.size == (picture.STRIP_WIDTH, picture.STRIP_HEIGHT)

    def at(mib: float) -> tuple[int, ...]:
        colour = image.getpixel((int(mib * picture.STRIP_WIDTH / 64), 5))
        assert isinstance(colour, tuple)
        return colour

    assert at(36)[:3] == (177, 0, 38)
    assert at(2)[3] > at(20)[3]
    assert at(2)[0] < at(2)[2]


def test_what_cannot_be_read(base: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes(base.read_bytes()[:60])
    with pytest.raises(DiskUnreadable):
        compare_disks(state("a", base), state("b", tmp_path / "none"))
    with pytest.raises(DiskUnreadable):
        compare_disks(state("a", base), state("b", bad))
