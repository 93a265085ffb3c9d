"""QEMU's *mapped-ram* migration file: where every page is, and files made from it.

The format is QEMU's own (docs/devel/migration/mapped-ram.rst and migration/ram.c of QEMU 9.0 and later)::

    start     'QEVM' BE32, version 3 BE32
              07  BE32 length, machine type                        the configuration section
                  05  u8 length, name, BE32 version, data          ... and its subsections (the capabilities)
              01  BE32 id, u8 length "ram", BE32 instance, BE32 version
                  BE64 total size | 4
                  for each RAM block:
                    u8 length, id, BE64 used size
                    BE32 version=1, BE64 page size, BE64 bitmap offset, BE64 pages offset
                    the bitmap (one bit a page, little-endian), a hole, then the pages at the pages offset
                  BE64 0x10, 7e BE32 id
              02/03/04 ...  the devices, then 00
              06  BE32 length, JSON                                how the devices' fields are laid out

All offsets are absolute in the file. A clear bit means "not in this file": when it is loaded, such a page is neither
read nor zeroed. Clones stand on that: their RAM is mapped from the file, and the stream they load has no bit set for
the main block.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from vmlab import private
from vmlab.errors import SnapshotDamaged

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

PAGE = 4096
#: Where our streams start. Any offset above 0 makes QEMU extend the file instead of truncating it; a truncated file is
#: written back when it is closed (ext4's auto_da_alloc), and the guest would stand still for that time.
STREAM_OFFSET = 4096
#: The id of the RAM of a machine as libvirt names it, and as we name it when it is mapped from a snapshot. Both are of
#: one length, so that one can replace the other in a stream without moving anything.
LIBVIRT_RAM = "pc.ram"
MAPPED_RAM = "vmlab0"

_SECTION_START = 0x01
_SUBSECTION = 0x05
_CONFIGURATION = 0x07
_FOOTER = 0x7E
_EOS = struct.pack(">Q", 0x10)
_CHUNK = 4 << 20


@dataclass(frozen=True)
class Block:
    """One RAM block of a stream.

    Attributes
    ----------
    id
        QEMU's name for it: ``pc.ram``, ``0000:00:01.0/vga.vram`` ...
    id_offset
        Where the id stands in the file.
    used
        Size in bytes.
    bitmap_offset, pages_offset
        Absolute places of the bitmap and of the first page.
    """

    id: str
    id_offset: int
    used: int
    bitmap_offset: int
    pages_offset: int

    @property
    def pages(self) -> int:
        """Number of pages."""
        return -(-self.used // PAGE)

    @property
    def bitmap_bytes(self) -> int:
        """Size of the bitmap in bytes: whole 64-bit words."""
        return -(-self.pages // 64) * 8


@dataclass(frozen=True)
class Layout:
    """Where everything is in a mapped-ram file.

    Attributes
    ----------
    machine_type
        As the stream says: ``pc-q35-10.0``.
    blocks
        The RAM blocks in the order of the stream.
    devices_offset
        Where the sections of the devices start.
    size
        Size of the file in bytes.
    """

    machine_type: str
    blocks: tuple[Block, ...]
    devices_offset: int
    size: int

    @property
    def main(self) -> Block:
        """The machine's RAM."""
        for block in self.blocks:
            if block.id in (LIBVIRT_RAM, MAPPED_RAM):
                return block
        raise SnapshotDamaged(
            "A snapshot file is damaged: it holds no main memory.",
            hint="go back to another snapshot (`%vm tree` shows them)",
        )

    @property
    def small(self) -> tuple[Block, ...]:
        """All blocks but the main one: video memory, firmware, ACPI tables."""
        return tuple(block for block in self.blocks if block is not self.main)


class _Reader:
    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path = file, path

    def take(self, count: int) -> bytes:
        data = self.file.read(count)
        if len(data) != count:
            raise damaged(self.path, f"ends at byte {self.file.tell()}, in the middle of a header")
        return data

    def number(self, form: str) -> int:
        value: int = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return value

    def text(self, form: str = ">B") -> str:
        return self.take(self.number(form)).decode("latin-1")


def damaged(path: Path, why: str) -> SnapshotDamaged:
    """Return the error for a snapshot file that cannot be used."""
    return SnapshotDamaged(
        f"The snapshot file {path.parent.name}/{path.name} is damaged: it {why}.",
        hint="bring the file back from a backup, go back to another snapshot (`%vm tree` shows them), "
        "or `%vm forget` this one",
        file=path,
    )


def parse(path: Path, offset: int = STREAM_OFFSET) -> Layout:
    """Read where everything is in the mapped-ram file at ``path``; no pages are read.

    Raises
    ------
    SnapshotDamaged
        The file is missing, truncated, or no mapped-ram stream.
    """
    try:
        size = path.stat().st_size
        file = path.open("rb")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise damaged(path, "is missing") from None
    with file:
        file.seek(offset)
        reader = _Reader(file, path)
        if reader.take(8) != b"QEVM\0\0\0\3":
            raise damaged(path, "does not start with QEMU's signature")
        if reader.number(">B") != _CONFIGURATION:
            raise damaged(path, "has no configuration section")
        machine_type = reader.text(">I")
        kind = reader.number(">B")
        while kind == _SUBSECTION:
            name = reader.text()
            reader.take(4)
            if name != "configuration/capabilities":
                raise damaged(path, f"has an unknown configuration '{name}'")
            for _ in range(reader.number(">I")):
                reader.text()
            kind = reader.number(">B")
        if kind != _SECTION_START:
            raise damaged(path, "does not start with the RAM")
        section = reader.take(4)
        if reader.text() != "ram":
            raise damaged(path, "does not start with the RAM")
        reader.take(8)
        total = reader.number(">Q") & ~(PAGE - 1)
        blocks: list[Block] = []
        while total > 0:
            at = file.tell() + 1
            name = reader.text()
            used = reader.number(">Q")
            version, page, bitmap_offset, pages_offset = struct.unpack(">IQQQ", reader.take(28))
            if version != 1 or page != PAGE or not at < bitmap_offset < pages_offset:
                raise damaged(path, f"has an impossible header for '{name}'")
            blocks.append(Block(name, at, used, bitmap_offset, pages_offset))
            total -= -(-used // PAGE) * PAGE
            if pages_offset + used > size:
                raise damaged(path, f"ends before the pages of '{name}' do")
            file.seek(pages_offset + used)
        if reader.take(8) != _EOS or reader.take(5) != bytes([_FOOTER]) + section:
            raise damaged(path, "has no end of the RAM section")
        layout = Layout(machine_type, tuple(blocks), file.tell(), size)
    layout.main  # noqa: B018  (raises when there is none)
    return layout


def extents(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield ``(offset, length)`` of the ranges of a sparse file between ``start`` and ``end`` that hold data."""
    at = start
    while at < end:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            # ENXIO: only a hole up to the end of the file.
            return
        if at >= end:
            return
        hole = min(os.lseek(fd, at, os.SEEK_HOLE), end)
        yield at, hole - at
        at = hole


def copy_range(source: int, target: int, start: int, end: int) -> None:
    """Copy the data of ``[start, end)`` from one file descriptor to another at the same place, keeping holes."""
    for offset, length in extents(source, start, end):
        done = 0
        while done < length:
            data = os.pread(source, min(_CHUNK, length - done), offset + done)
            if not data:
                return
            os.pwrite(target, data, offset + done)
            done += len(data)


def make_thin(source: Path, target: Path, layout: Layout | None = None) -> None:
    """Write ``target``: the stream of ``source`` without the pages of the main block, which takes our name.

    It has the size and the offsets of ``source``, but holds less than a megabyte or two of data.
    """
    layout = layout or parse(source)
    main = layout.main
    with source.open("rb") as infile, private.create(target) as outfile:
        src, dst = infile.fileno(), outfile.fileno()
        os.ftruncate(dst, layout.size)
        copy_range(src, dst, 0, main.bitmap_offset)
        copy_range(src, dst, main.pages_offset + main.used, layout.size)
        os.pwrite(dst, MAPPED_RAM.encode(), main.id_offset)


def read_bitmap(fd: int, block: Block) -> npt.NDArray[np.bool_]:
    """Return which pages of ``block`` are in the file: an array of ``block.pages`` truth values."""
    import numpy as np

    raw = os.pread(fd, block.bitmap_bytes, block.bitmap_offset)
    return np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")[: block.pages].astype(bool)


def write_bitmap(fd: int, block: Block, pages: npt.NDArray[np.bool_]) -> None:
    """Write which pages of ``block`` are in the file."""
    import numpy as np

    raw = np.packbits(pages, bitorder="little").tobytes()
    os.pwrite(fd, raw.ljust(block.bitmap_bytes, b"\0"), block.bitmap_offset)


def write_list(path: Path, origin: str, pages: npt.NDArray[np.bool_]) -> str:
    """Write which pages of a RAM may differ from those of the snapshot ``origin``; return the list's fingerprint.

    The file holds one bit a page and nothing else: the fingerprint, which is kept elsewhere, covers origin and bits.
    """
    import numpy as np

    raw = np.packbits(pages, bitorder="little").tobytes()
    private.write(path, raw)
    return _list_digest(origin, raw)


def read_list(path: Path, origin: str, digest: str, pages: int) -> npt.NDArray[np.bool_] | None:
    """Return what :func:`write_list` wrote, or None if that is gone or not what was written."""
    import numpy as np

    try:
        raw = path.read_bytes()
    except OSError:
        return None
    if len(raw) != -(-pages // 8) or _list_digest(origin, raw) != digest:
        return None
    return np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")[:pages].astype(bool)


def _list_digest(origin: str, raw: bytes) -> str:
    import xxhash

    return xxhash.xxh3_128(origin.encode() + b"\0" + raw).hexdigest()


def scrub(path: Path, layout: Layout) -> int:
    """Zero what ``path`` holds of main memory although its bit is clear; return the number of pages.

    A page that was written in an early pass of a live migration and is zero in a later one only loses its bit: QEMU
    leaves the old data in the file. Loading the file ignores them, but mapping it would bring them back.
    """
    import numpy as np

    main, count = layout.main, 0
    with path.open("r+b") as file:
        fd = file.fileno()
        absent = ~read_bitmap(fd, main)
        for offset, length in extents(fd, main.pages_offset, main.pages_offset + main.used):
            first = (offset - main.pages_offset) // PAGE
            last = -(-(offset - main.pages_offset + length) // PAGE)
            for page in np.flatnonzero(absent[first:last]) + first:
                os.pwrite(fd, bytes(PAGE), main.pages_offset + int(page) * PAGE)
                count += 1
    return count


def digest(layers: Sequence[tuple[Path, Layout]]) -> str:
    """Return a fingerprint of the main memory that ``layers`` (the lowest first) make together.

    It covers all pages that are not zero, with their numbers: 128 bits of XXH3, as 32 hexadecimal digits. That tells
    damage at the speed of memory; it is no proof against somebody who alters a snapshot on purpose.

    Raises
    ------
    SnapshotDamaged
        A file is shorter than its memory.
    """
    import numpy as np
    import xxhash

    hasher = xxhash.xxh3_128()
    step = _CHUNK // PAGE
    pages = np.zeros((step, PAGE // 8), np.uint64)
    buffer = np.zeros_like(pages)
    with contextlib.ExitStack() as stack:
        opened = []
        for path, layout in layers:
            fd = stack.enter_context(path.open("rb")).fileno()
            opened.append((path, fd, layout.main, read_bitmap(fd, layout.main)))
        total = layers[-1][1].main.pages
        for first in range(0, total, step):
            masks = [bitmap[first : first + step] for *_, bitmap in opened]
            if not any(mask.any() for mask in masks):
                continue
            count = len(masks[-1])
            dirty = False
            for (path, fd, main, _), mask in zip(opened, masks, strict=True):
                if not mask.any():
                    continue
                target = pages if mask.all() else buffer
                _pread_into(path, fd, target[:count], main.pages_offset + first * PAGE)
                if target is buffer:
                    if not dirty:
                        pages[:count] = 0
                    pages[:count][mask] = buffer[:count][mask]
                dirty = True
            kept = pages[:count].any(axis=1)
            hasher.update((np.flatnonzero(kept) + first).astype("<u8").tobytes())
            hasher.update((pages[:count] if kept.all() else pages[:count][kept]).data)
    return hasher.hexdigest()


def held_digest(path: Path, layout: Layout) -> str:
    """Return a fingerprint of what a file holds of main memory over another: which pages, and their content.

    Raises
    ------
    SnapshotDamaged
        It is shorter than its memory.
    """
    import numpy as np
    import xxhash

    hasher = xxhash.xxh3_128()
    main, step = layout.main, _CHUNK // PAGE
    buffer = np.empty((step, PAGE // 8), np.uint64)
    with path.open("rb") as file:
        fd = file.fileno()
        numbers = np.flatnonzero(read_bitmap(fd, main))
        hasher.update(numbers.astype("<u8").tobytes())
        # Where the distance to the next number is not 1, a run ends.
        for run in np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1) if len(numbers) else ():
            for first in range(int(run[0]), int(run[-1]) + 1, step):
                rows = buffer[: min(step, int(run[-1]) + 1 - first)]
                _pread_into(path, fd, rows, main.pages_offset + first * PAGE)
                hasher.update(rows.data)
    return hasher.hexdigest()


def _pread_into(path: Path, fd: int, target: npt.NDArray[np.uint64], offset: int) -> None:
    view = target.data.cast("B")
    done = 0
    while done < len(view):
        got = os.preadv(fd, [view[done:]], offset + done)
        if got == 0:
            raise damaged(path, "is shorter than its memory")
        done += got


def device_bytes(path: Path, layout: Layout) -> bytes:
    """Return the sections of the devices: everything behind the RAM."""
    with path.open("rb") as file:
        return os.pread(file.fileno(), layout.size - layout.devices_offset, layout.devices_offset)
