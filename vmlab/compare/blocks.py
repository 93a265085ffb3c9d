"""Disks as the guest sees them, read straight from qcow2 and raw files, and the blocks that differ between two of them.

A disk is a chain of files: what a file does not hold is read from the one below. Two disks of one lab mostly stand on
common files, so what may differ is what the others hold, and only that is read and compared. Nothing is ever written;
the files may be in use by guests as long as nobody writes to them (frozen layers, bases).
"""

from __future__ import annotations

import errno
import os
import struct
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vmlab.errors import DiskUnreadable

Numbers = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]

SECTOR = 512
#: How much of a disk is looked up at once, and how many such parts are remembered. A power of two, so that tables of
#: every cluster size fall on its edges.
REGION = 512 << 20
KNOWN_REGIONS = 256
#: Bytes that are read at once to be compared.
BATCH = 8 << 20
MAX_CHAIN = 256
#: Where the bytes of a piece of a disk are.
ZERO, PLAIN, COMPRESSED = 0, 1, 2

_MAGIC = 0x514649FB
_OFFSET = np.uint64(0x00FFFFFFFFFFFE00)
_IS_ZERO = np.uint64(1)
_IS_COMPRESSED = np.uint64(1 << 62)
_INCOMPATIBLE = {
    1 << 1: "it is marked as corrupt",
    1 << 2: "its data is in another file",
    1 << 4: "it has extended L2 entries",
}
#: Incompatible features that change nothing for a reader, or are looked at elsewhere: dirty, compression type.
_HARMLESS = 1 << 0 | 1 << 3


class Readable(Protocol):
    """What can hold a file system: a disk, or what is put together from parts of one."""

    size: int

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes; what lies behind the end is zero."""

    def read_blocks(self, numbers: Numbers, size: int, start: int = 0) -> Bytes:
        """Return blocks, one in each row."""


class _File:
    """One file of a chain."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DiskUnreadable(
                f"The disk file {path.name} cannot be read.",
                hint="bring it back from a backup" if error.errno == errno.ENOENT else None,
                file=path,
                system=error.strerror,
            ) from error
        # Diffs are kept as long as somebody looks at them; the files are closed with the last one.
        weakref.finalize(self, os.close, self.fd)
        found = os.fstat(self.fd)
        self.identity = (found.st_dev, found.st_ino)
        self.length = found.st_size

    def bad(self, what: str) -> DiskUnreadable:
        return DiskUnreadable(
            f"The disk file {self.path.name} cannot be read: {what}.",
            hint="`qemu-img check` says more",
            file=self.path,
        )

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the file that must be there."""
        if offset + length > self.length:
            raise self.bad("it ends too early")
        data = os.pread(self.fd, length, offset)
        if len(data) != length:
            raise self.bad("it ends too early")
        return data

    def read_into(self, offset: int, into: Bytes) -> None:
        """Fill ``into``, which is contiguous; what lies behind the end of the file stays as it is."""
        view = memoryview(into.data).cast("B")
        while view:
            try:
                count = os.preadv(self.fd, [view], offset)
            except OSError as error:
                raise self.bad(str(error.strerror)) from error
            if not count:
                return
            view, offset = view[count:], offset + count


class _Raw(_File):
    """A raw disk: what is at an offset of the file is at that offset of the disk."""

    cluster = REGION
    backing = None

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.size = self.length

    def holds(self, start: int) -> bool:
        return start < self.size


class _Qcow2(_File):
    """A qcow2 file, version 2 or 3."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        head = self.read(0, 104) if self.length >= 104 else self.read(0, 72) + bytes(32)
        (magic, version, name_at, name_size, bits, self.size, crypt, l1_size, l1_at) = struct.unpack_from(
            ">IIQIIQIIQ", head
        )
        if magic != _MAGIC or version not in (2, 3):
            raise self.bad("it is no qcow2 file of version 2 or 3")
        incompatible, header_size = 0, 72
        if version == 3:
            incompatible, header_size = (
                struct.unpack_from(">Q", head, 72)[0],
                struct.unpack_from(">I", head, 100)[0],
            )
        for bit, what in _INCOMPATIBLE.items():
            if incompatible & bit:
                raise self.bad(what)
        if incompatible & ~(_HARMLESS | sum(_INCOMPATIBLE)):
            raise self.bad(f"it has features that vmlab does not know ({incompatible:#x})")
        if crypt:
            raise self.bad("it is encrypted")
        if not 9 <= bits <= 21 or header_size > (1 << bits):
            raise self.bad("its header makes no sense")
        self.zstd = bool(incompatible & 1 << 3) and self.read(104, 1) == b"\1"
        self.bits, self.cluster = bits, 1 << bits
        self.per_table = self.cluster // 8
        needed = -(-self.size // (self.cluster * self.per_table))
        if l1_size < needed or l1_size > 32 << 20 or l1_at % 512:
            raise self.bad("its header makes no sense")
        self.l1 = np.frombuffer(self.read(l1_at, needed * 8), ">u8").astype(np.uint64) & _OFFSET
        self.backing = self._backing(name_at, name_size, header_size)
        self._unpacked: OrderedDict[int, bytes] = OrderedDict()

    def _backing(self, name_at: int, name_size: int, header_size: int) -> tuple[Path, str | None] | None:
        if not name_at:
            return None
        if name_size > 1023 or name_at + name_size > self.cluster:
            raise self.bad("its header makes no sense")
        name = os.fsdecode(self.read(name_at, name_size)).removeprefix("file:")
        if name.startswith(("json:", "nbd:", "http")):
            raise self.bad(f"it stands on {name!r}, which is no plain file")
        kind, at = None, header_size
        extensions = self.read(0, min(name_at, self.length))
        while at + 8 <= len(extensions):
            what, size = struct.unpack_from(">II", extensions, at)
            if what == 0xE2792ACA:
                kind = extensions[at + 8 : at + 8 + size].decode("ascii", "replace")
            if not what:
                break
            at += 8 + (size + 7) // 8 * 8
        return self.path.parent / name, kind

    def holds(self, start: int) -> bool:
        """Return whether this file may hold anything of the region at ``start``."""
        span = self.cluster * self.per_table
        return bool(self.l1[start // span : -(-(start + REGION) // span)].any())

    def entries(self, start: int) -> npt.NDArray[np.uint64]:
        """Return the table entries of the clusters of the region at ``start``; 0 where there is none."""
        count = REGION // self.cluster
        found = np.zeros(count, np.uint64)
        first = start // self.cluster
        step = min(count, self.per_table)
        for at in range(0, count, step):
            table, inside = divmod(first + at, self.per_table)
            if table < len(self.l1) and self.l1[table]:
                data = self.read(int(self.l1[table]) + inside * 8, step * 8)
                found[at : at + step] = np.frombuffer(data, ">u8")
        return found

    def unpacked(self, entry: int) -> bytes:
        """Return a compressed cluster."""
        if (known := self._unpacked.get(entry)) is not None:
            return known
        offset_bits = 62 - (self.bits - 8)
        offset = entry & ((1 << offset_bits) - 1)
        sectors = (entry >> offset_bits & ((1 << (62 - offset_bits)) - 1)) + 1
        packed = os.pread(self.fd, sectors * SECTOR - offset % SECTOR, offset)
        try:
            data = (
                _zstd(packed, self.cluster)
                if self.zstd
                else zlib.decompressobj(-12).decompress(packed, self.cluster)
            )
        except (zlib.error, ValueError) as error:
            raise self.bad("a compressed cluster is damaged") from error
        except ImportError as error:
            raise self.bad(
                "it is compressed with zstd, for which Python 3.14 or `zstandard` is needed"
            ) from error
        if len(data) != self.cluster:
            raise self.bad("a compressed cluster is damaged")
        self._unpacked[entry] = data
        if len(self._unpacked) > 64:
            self._unpacked.popitem(last=False)
        return data


def _zstd(packed: bytes, size: int) -> bytes:
    import zstandard  # type: ignore[import-not-found,unused-ignore]

    data: bytes = zstandard.ZstdDecompressor().decompressobj().decompress(packed)
    return data[:size]


@dataclass(frozen=True)
class _Region:
    """Where each piece of a part of a disk is: kind, layer, offset in its file (or the entry, if compressed)."""

    kind: npt.NDArray[np.uint8]
    layer: npt.NDArray[np.int16]
    where: Numbers


class Disk:
    """A disk as a guest sees it.

    Parameters
    ----------
    path
        The top file of its chain: qcow2 or raw.

    Raises
    ------
    DiskUnreadable
        A file of the chain is gone, damaged, or of a kind that vmlab cannot read.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.layers: list[_Qcow2 | _Raw] = []
        below: tuple[Path, str | None] | None = (self.path, None)
        while below is not None:
            layer = _open(*below)
            if (
                any(layer.identity == other.identity for other in self.layers)
                or len(self.layers) >= MAX_CHAIN
            ):
                raise layer.bad("its chain of files goes round in a circle")
            self.layers.append(layer)
            below = layer.backing
        self.size = self.layers[0].size
        #: The smallest unit in which any of the files holds data.
        self.grain = min(layer.cluster for layer in self.layers)
        self._regions: OrderedDict[int, _Region] = OrderedDict()

    def __repr__(self) -> str:
        return f"Disk({str(self.path)!r})"

    @cached_property
    def identities(self) -> list[tuple[int, int]]:
        """What tells the files of the chain from others, the top one first."""
        return [layer.identity for layer in self.layers]

    def region(self, index: int) -> _Region:
        """Return where the pieces of a region are."""
        if (known := self._regions.get(index)) is not None:
            self._regions.move_to_end(index)
            return known
        start, count = index * REGION, REGION // self.grain
        found = _Region(np.zeros(count, np.uint8), np.zeros(count, np.int16), np.zeros(count, np.int64))
        positions = start + np.arange(count, dtype=np.int64) * self.grain
        missing = np.ones(count, np.bool_)
        for number, layer in enumerate(self.layers):
            # A file that is smaller than those above it reads as zeros behind its end, and so does all below it.
            missing &= positions < layer.size
            if not layer.holds(start):
                continue
            if isinstance(layer, _Raw):
                kind, where = np.full(count, PLAIN, np.uint8), positions
                here = missing.copy()
            else:
                here, kind, where = self._of_qcow2(layer, start)
                here &= missing
            found.kind[here], found.where[here], found.layer[here] = kind[here], where[here], number
            missing &= ~here
        self._regions[index] = found
        if len(self._regions) > KNOWN_REGIONS:
            self._regions.popitem(last=False)
        return found

    def _of_qcow2(self, layer: _Qcow2, start: int) -> tuple[Flags, npt.NDArray[np.uint8], Numbers]:
        entries = layer.entries(start)
        packed = (entries & _IS_COMPRESSED) != 0
        zero = ~packed & ((entries & _IS_ZERO) != 0)
        offset = entries & _OFFSET
        kind = np.where(packed, COMPRESSED, np.where(zero, ZERO, PLAIN)).astype(np.uint8)
        here = packed | zero | (offset != 0)
        where = np.where(packed, entries & np.uint64((1 << 62) - 1), offset).astype(np.int64)
        if (times := layer.cluster // self.grain) > 1:
            here, kind, where = here.repeat(times), kind.repeat(times), where.repeat(times)
            inside = np.tile(np.arange(times, dtype=np.int64) * self.grain, len(entries))
            where = np.where(kind == PLAIN, where + inside, where)
        return here, kind, where

    def read_blocks(self, numbers: Numbers, size: int, start: int = 0) -> Bytes:
        """Return blocks of the disk, one in each row; what lies behind the end of the disk is zero.

        Parameters
        ----------
        numbers
            Which blocks, in any order; runs of neighbours are read at once.
        size
            Bytes of a block.
        start
            Where on the disk block 0 is.
        """
        if size > self.grain or start % size:
            # Blocks that lie across the edges of clusters.
            part = np.gcd(np.gcd(size, self.grain), start or size)
            pieces = (numbers[:, None] * (size // part) + np.arange(size // part)).ravel()
            return self.read_blocks(pieces, int(part), start).reshape(len(numbers), size)
        out = np.zeros((len(numbers), size), np.uint8)
        position = numbers * size + start
        regions = position // REGION
        for index in np.unique(regions):
            rows = np.flatnonzero((regions == index) & (position < self.size))
            region = self.region(int(index))
            grain = (position[rows] - index * REGION) // self.grain
            kind = region.kind[grain]
            self._read_plain(region, grain, position, rows, kind == PLAIN, out)
            for at in np.flatnonzero(kind == COMPRESSED):
                layer = self.layers[region.layer[grain[at]]]
                assert isinstance(layer, _Qcow2)
                inside = int(position[rows[at]]) % layer.cluster
                data = layer.unpacked(int(region.where[grain[at]]))
                out[rows[at]] = np.frombuffer(data, np.uint8, size, inside)
        return out

    def _read_plain(
        self, region: _Region, grain: Numbers, position: Numbers, rows: Numbers, plain: Flags, out: Bytes
    ) -> None:
        rows, grain = rows[plain], grain[plain]
        if not len(rows):
            return
        size = out.shape[1]
        layer = region.layer[grain]
        offset = region.where[grain] + position[rows] % self.grain
        # Runs that are neighbours both in a file and in `out` are one read.
        breaks = (np.diff(layer) != 0) | (np.diff(offset) != size) | (np.diff(rows) != 1)
        edges = np.concatenate(([0], np.flatnonzero(breaks) + 1, [len(rows)]))
        for first, last in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            row = int(rows[first])
            file = self.layers[layer[first]]
            at = int(offset[first])
            if isinstance(file, _Qcow2) and at >= file.length:
                raise file.bad("it ends too early")
            file.read_into(at, out[row : row + last - first].reshape(-1))

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the disk; what lies behind its end is zero."""
        first, last = offset // SECTOR, -(-(offset + length) // SECTOR)
        data = self.read_blocks(np.arange(first, last, dtype=np.int64), SECTOR).tobytes()
        return data[offset - first * SECTOR :][:length]


@dataclass(frozen=True)
class Segment:
    """Bytes of a disk that are next to each other, and where they are in what is put together from them."""

    logical: int
    physical: int
    length: int


class Mapped:
    """Parts of a disk, put together: a partition (one part), or a logical volume (one part or several).

    Parameters
    ----------
    disk
        Where they are.
    segments
        The parts, ascending, without holes between them.
    """

    def __init__(self, disk: Disk, segments: list[Segment]) -> None:
        self.disk, self.segments = disk, segments
        self.size = segments[-1].logical + segments[-1].length if segments else 0
        #: What every part's place and length is a multiple of: no block of that size lies across an edge.
        self._unit = int(np.gcd.reduce([x for s in segments for x in (s.logical, s.length)] or [SECTOR]))

    def read_blocks(self, numbers: Numbers, size: int, start: int = 0) -> Bytes:
        """Return blocks, one in each row; what lies behind the end is zero."""
        unit = int(np.gcd(np.gcd(size, self._unit), start or size))
        if unit < size:
            pieces = (numbers[:, None] * (size // unit) + np.arange(size // unit)).ravel()
            return self.read_blocks(pieces, unit, start).reshape(len(numbers), size)
        out = np.zeros((len(numbers), size), np.uint8)
        position = numbers * size + start
        for part in self.segments:
            here = (position >= part.logical) & (position < part.logical + part.length)
            if here.any():
                inside = (position[here] - part.logical) // size
                out[here] = self.disk.read_blocks(inside, size, part.physical)
        return out

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes; what lies behind the end is zero."""
        found = bytearray(length)
        for part in self.segments:
            low = max(offset, part.logical)
            high = min(offset + length, part.logical + part.length)
            if low < high:
                data = self.disk.read(part.physical + low - part.logical, high - low)
                found[low - offset : high - offset] = data
        return bytes(found)

    def differing(self, other: Mapped, block: int) -> Numbers | None:
        """Return the numbers of the blocks whose content differs, ascending.

        None if the same bytes are in different places of the two disks; one of them may be longer.
        """
        longer = max(self, other, key=lambda side: side.size)
        both = min(self.size, other.size)
        if self._places(both) != other._places(both) or any(s.logical % block for s in longer.segments):
            return None
        parts = [
            differing(self.disk, other.disk, block, s.physical, s.length) + s.logical // block
            for s in longer.segments
        ]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def _places(self, end: int) -> list[tuple[int, int]]:
        """Return where what is before ``end`` is, neighbours as one."""
        found: list[tuple[int, int]] = []
        for part in self.segments:
            if part.logical < end and (not found or part.physical - part.logical != found[-1][1]):
                found.append((part.logical, part.physical - part.logical))
        return found


def _open(path: Path, kind: str | None) -> _Qcow2 | _Raw:
    if kind == "raw":
        return _Raw(path)
    if kind not in (None, "qcow2"):
        raise DiskUnreadable(
            f"The disk file {path.name} cannot be read: it is of the kind {kind}.", file=path
        )
    probe = _File(path)
    magic = os.pread(probe.fd, 4, 0)
    if kind == "qcow2" or magic == _MAGIC.to_bytes(4, "big"):
        return _Qcow2(path)
    return _Raw(path)


def candidates(a: Disk, b: Disk) -> Iterator[tuple[int, int]]:
    """Yield the ranges ``(start, end)`` in bytes where two disks may differ: not the same place of the same file.

    The rest is equal without being read.
    """
    grain = min(a.grain, b.grain)
    size = max(a.size, b.size)
    names = {identity: n for n, identity in enumerate(dict.fromkeys(a.identities + b.identities))}
    name_a = np.array([names[i] for i in a.identities])
    name_b = np.array([names[i] for i in b.identities])
    common = set(a.identities) & set(b.identities)
    # The same file stands on the same files: from the first common one on, both chains are one.
    own = [x for disk in (a, b) for x in disk.layers if x.identity not in common]
    for index in range(-(-size // REGION)):
        start = index * REGION
        if a.size == b.size and not any(layer.holds(start) for layer in own):
            continue
        x, y = a.region(index), b.region(index)
        kind_x, kind_y = x.kind.repeat(a.grain // grain), y.kind.repeat(b.grain // grain)
        where_x, where_y = _fine(x, a.grain, grain), _fine(y, b.grain, grain)
        same_place = (
            (kind_x == kind_y)
            & (name_a[x.layer].repeat(a.grain // grain) == name_b[y.layer].repeat(b.grain // grain))
            & (where_x == where_y)
        )
        differ = ~(same_place | ((kind_x == ZERO) & (kind_y == ZERO)))
        edges = np.flatnonzero(np.diff(np.concatenate(([False], differ, [False])).astype(np.int8)))
        for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            yield start + first * grain, min(start + last * grain, size)


def _fine(region: _Region, coarse: int, grain: int) -> Numbers:
    """Return ``region.where`` in pieces of ``grain`` bytes."""
    times = coarse // grain
    if times == 1:
        return region.where
    where = region.where.repeat(times)
    inside = np.tile(np.arange(times, dtype=np.int64) * grain, len(region.where))
    return np.where(region.kind.repeat(times) == PLAIN, where + inside, where)


def differing(a: Disk, b: Disk, block: int, start: int = 0, size: int | None = None) -> Numbers:
    """Return the numbers of the blocks whose content differs, ascending.

    Parameters
    ----------
    block
        Bytes of a block.
    start, size
        The part of the disks that is compared; block 0 is at ``start``. By default all of them.
    """
    end = max(a.size, b.size) if size is None else start + size
    found = [np.zeros(0, np.int64)]
    waiting: list[Numbers] = []

    def compare() -> None:
        numbers = np.unique(np.concatenate([np.zeros(0, np.int64), *waiting]))
        waiting.clear()
        for at in range(0, len(numbers), BATCH // block):
            some = numbers[at : at + BATCH // block]
            x, y = a.read_blocks(some, block, start), b.read_blocks(some, block, start)
            found.append(some[(x.view(np.uint64) != y.view(np.uint64)).any(axis=1)])

    for low, high in candidates(a, b):
        low, high = max(low, start) - start, min(high, end) - start
        if low < high:
            waiting.append(np.arange(low // block, -(-high // block), dtype=np.int64))
        if sum(map(len, waiting)) * block > BATCH:
            compare()
    compare()
    # A block may lie in two ranges.
    return np.unique(np.concatenate(found))
