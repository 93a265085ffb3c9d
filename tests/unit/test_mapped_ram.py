"""The mapped-ram format: read to the byte, and never trusted."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
from pathlib import Path

import numpy as np
import pytest
from help.ram_files import DEVICES, MIB, is_plain, write_stream
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmlab.engine import delta, mapped_ram
from vmlab.engine.mapped_ram import PAGE, STREAM_OFFSET
from vmlab.errors import SnapshotDamaged


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stream") / "ram"
    return write_stream(
        path,
        {
            "pc.ram": {0: b"zero", 3: b"three", 9: bytes(PAGE)},
            "0000:00:01.0/vga.vram": {1: b"picture"},
            "/rom@x": {},
        },
        sizes={"/rom@x": 5000},
    )


def test_the_layout_is_read_to_the_byte(stream: Path) -> None:
    layout = mapped_ram.parse(stream)
    assert layout.machine_type == "pc-q35-10.0"
    assert [block.id for block in layout.blocks] == ["pc.ram", "0000:00:01.0/vga.vram", "/rom@x"]
    assert [block.used for block in layout.blocks] == [16 * PAGE, 16 * PAGE, 5000]
    assert layout.main.pages_offset % MIB == 0
    assert mapped_ram.device_bytes(stream, layout) == DEVICES
    with stream.open("rb") as file:
        file.seek(layout.main.id_offset)
        assert file.read(6) == b"pc.ram"
        assert np.flatnonzero(mapped_ram.read_bitmap(file.fileno(), layout.main)).tolist() == [0, 3, 9]


def test_thin_has_all_but_the_main_pages(stream: Path, tmp_path: Path) -> None:
    thin = tmp_path / "thin"
    mapped_ram.make_thin(stream, thin)
    full, layout = mapped_ram.parse(stream), mapped_ram.parse(thin)
    assert layout.main.id == mapped_ram.MAPPED_RAM
    assert layout.size == full.size
    assert mapped_ram.device_bytes(thin, layout) == DEVICES
    with thin.open("rb") as file:
        assert not mapped_ram.read_bitmap(file.fileno(), layout.main).any()
        assert os.pread(file.fileno(), layout.main.used, layout.main.pages_offset) == bytes(layout.main.used)
        small = layout.small[0]
        assert mapped_ram.read_bitmap(file.fileno(), small)[1]
        assert os.pread(file.fileno(), 7, small.pages_offset + PAGE) == b"picture"


def test_scrub_removes_pages_that_lost_their_bit(tmp_path: Path) -> None:
    path = write_stream(tmp_path / "ram", {"pc.ram": {0: b"kept", 5: b"stale"}})
    layout = mapped_ram.parse(path)
    with path.open("r+b") as file:
        mapped_ram.write_bitmap(file.fileno(), layout.main, np.arange(16) == 0)
    assert mapped_ram.scrub(path, layout) >= 1
    with path.open("rb") as file:
        assert os.pread(file.fileno(), PAGE, layout.main.pages_offset + 5 * PAGE) == bytes(PAGE)
        assert os.pread(file.fileno(), 4, layout.main.pages_offset) == b"kept"
    assert mapped_ram.scrub(path, layout) == 0 or mapped_ram.parse(path) == layout


pages = st.dictionaries(st.integers(0, 15), st.binary(min_size=1, max_size=20), max_size=6)


@settings(deadline=None)
@given(base=pages, delta=pages)
def test_the_digest_is_of_what_the_guest_sees(
    tmp_path_factory: pytest.TempPathFactory, base: dict[int, bytes], delta: dict[int, bytes]
) -> None:
    """A base and a delta have the digest of their sum, whichever of the pages are zero or in both."""
    folder = tmp_path_factory.mktemp("digest")

    def written(name: str, content: dict[int, bytes]) -> tuple[Path, mapped_ram.Layout]:
        path = write_stream(folder / name, {"pc.ram": content})
        return path, mapped_ram.parse(path)

    together = written("sum", {**base, **delta})
    assert mapped_ram.digest([written("base", base), written("delta", delta)]) == mapped_ram.digest(
        [together]
    )
    other = {**base, **delta}
    other[7] = b"something else " + hashlib.sha256(repr(other).encode()).digest()[:4]
    assert mapped_ram.digest([written("other", other)]) != mapped_ram.digest([together])


def use(path: Path) -> None:
    """Do all that is done with a snapshot's file."""
    layout = mapped_ram.parse(path)
    mapped_ram.device_bytes(path, layout)
    mapped_ram.digest([(path, layout)])
    thin = path.with_name("thin")
    thin.unlink(missing_ok=True)
    mapped_ram.make_thin(path, thin, layout)
    mapped_ram.parse(thin)


fuzzed = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@fuzzed
@given(cut=st.floats(0, 1))
def test_a_truncated_file_is_damaged(stream: Path, tmp_path: Path, cut: float) -> None:
    size = stream.stat().st_size
    layout = mapped_ram.parse(stream)
    length = int(cut * (size - 1))
    path = tmp_path / "cut"
    path.write_bytes(stream.read_bytes()[:length])
    if length < layout.devices_offset:
        with pytest.raises(SnapshotDamaged):
            use(path)
    else:
        # Only the devices are cut: their digest tells.
        assert mapped_ram.device_bytes(path, mapped_ram.parse(path)) != DEVICES


@fuzzed
@given(data=st.data())
def test_a_file_with_other_bytes_is_damaged_or_read(
    stream: Path, tmp_path: Path, data: st.DataObject
) -> None:
    """Whatever stands in the headers: a plain error or a layout within the file, soon, and nothing else."""
    content = bytearray(stream.read_bytes())
    layout = mapped_ram.parse(stream)
    starts = [STREAM_OFFSET, *(b.id_offset - 1 for b in layout.blocks), layout.devices_offset - 13]
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.sampled_from(starts)) + data.draw(st.integers(0, 120))
        extreme = st.sampled_from([b"\xff" * 8, bytes(8), b"\x7f" + b"\xff" * 7])
        new = data.draw(st.binary(min_size=1, max_size=8) | extreme)
        content[at : at + len(new)] = new
    path = tmp_path / "other"
    path.write_bytes(content)
    try:
        use(path)
    except SnapshotDamaged as error:
        is_plain(error)
    else:
        for block in mapped_ram.parse(path).blocks:
            assert block.pages_offset + block.used <= len(content)


@fuzzed
@given(content=st.binary(max_size=300))
def test_a_file_of_anything_is_damaged(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any"
    path.write_bytes(bytes(STREAM_OFFSET) + b"QEVM\0\0\0\3\7" + content)
    with pytest.raises(SnapshotDamaged):
        use(path)


def test_what_is_no_file_is_damaged(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(SnapshotDamaged):
            mapped_ram.parse(path)
    (tmp_path / "empty").touch()
    with pytest.raises(SnapshotDamaged):
        mapped_ram.parse(tmp_path / "empty")


class Mapped:
    """A private mapping of a file in this process, from an offset on, as QEMU has a snapshot's RAM."""

    def __init__(self, path: Path, pages: int, offset: int) -> None:
        self.path, self.size, self.offset = path, pages * PAGE, offset
        path.write_bytes(os.urandom(offset + self.size))
        with path.open("rb") as file:
            self.memory = mmap.mmap(
                file.fileno(), self.size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE, offset=offset
            )

    def changed(self) -> list[int]:
        address = delta.mapped_at(os.getpid(), self.path, self.offset, self.size)
        return np.flatnonzero(delta.changed(os.getpid(), address, self.size // PAGE)).tolist()


def test_the_kernel_tells_which_pages_were_changed(tmp_path: Path) -> None:
    """Written to, also with what was there: changed. Read, or never looked at: not. And it stays so."""
    mapped = Mapped(tmp_path / "ram", 4096, 16 * PAGE)
    assert mapped.changed() == []
    for page in range(0, 4096, 3):
        _ = mapped.memory[page * PAGE]
    assert mapped.changed() == []
    # Now before, now after it was read.
    written = sorted({*range(0, 4096, 7), 1, 2, 4095})
    for page in written:
        mapped.memory[page * PAGE + 5] = mapped.memory[page * PAGE + 5] if page % 2 else 1
    assert mapped.changed() == written
    # Their memory is wanted for something else: pages that were changed are swapped out if there is swap.
    mapped.memory.madvise(21)  # MADV_PAGEOUT
    assert mapped.changed() == written
    # All zero, or as in the file again: changed all the same.
    mapped.memory[7 * PAGE : 8 * PAGE] = bytes(PAGE)
    mapped.memory[14 * PAGE : 15 * PAGE] = mapped.path.read_bytes()[30 * PAGE : 31 * PAGE]
    assert mapped.changed() == written


def test_only_the_whole_mapping_will_do(tmp_path: Path) -> None:
    mapped = Mapped(tmp_path / "ram", 64, 16 * PAGE)
    me, path, offset, size = os.getpid(), mapped.path, mapped.offset, mapped.size
    address = delta.mapped_at(me, path, offset, size)
    (tmp_path / "copy").write_bytes(path.read_bytes())
    for where in (
        (me, path, offset + PAGE, size - PAGE),
        (me, path, offset, size - PAGE),
        (me, path, 0, size),
        (me, tmp_path / "copy", offset, size),
        (me, tmp_path / "none", offset, size),
        (1 << 22, path, offset, size),
    ):
        with pytest.raises(delta.NotPossible):
            delta.mapped_at(*where)
    # In two pieces that lie side by side it is whole; with a piece that is somewhere else, or shared, it is not.
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(8 * PAGE), mmap.PROT_READ) == 0
    assert delta.mapped_at(me, path, offset, size) == address
    with (
        path.open("r+b") as file,
        mmap.mmap(file.fileno(), PAGE, mmap.MAP_SHARED),
        pytest.raises(delta.NotPossible),
    ):
        delta.mapped_at(me, path, offset, size)
    assert delta.mapped_at(me, path, offset, size) == address
