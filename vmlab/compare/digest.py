"""The digest of a disk: SHA-256 of what the guest sees, in blocks of 64 KiB.

It is the SHA-256 of the SHA-256 of each block, in order; the last block may be shorter. How the disk lies in layers,
and on what they stand, makes no difference. Of a disk that stands on another one whose blocks are known, only what its
own file holds is read.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vmlab import private
from vmlab.compare import blocks
from vmlab.compare.blocks import Disk, Numbers

BLOCK = 64 << 10
_SIZE = hashlib.sha256().digest_size
_ZERO = np.frombuffer(hashlib.sha256(bytes(BLOCK)).digest(), np.uint8)
#: Blocks that are read at once.
_BATCH = blocks.BATCH // BLOCK


@dataclass(frozen=True)
class Digest:
    """The SHA-256 of each block of a disk; in the row of a whole block of zeros there are zeros."""

    rows: npt.NDArray[np.uint8]

    @property
    def hex(self) -> str:
        """The digest of the disk."""
        whole = self.rows.copy()
        whole[~whole.any(axis=1)] = _ZERO
        return hashlib.sha256(whole.tobytes()).hexdigest()

    def differing(self, other: Digest) -> Numbers:
        """Return the numbers of the blocks that differ."""
        if len(self.rows) != len(other.rows):
            return np.arange(max(len(self.rows), len(other.rows)), dtype=np.int64)
        return np.flatnonzero((self.rows != other.rows).any(axis=1))

    def write(self, path: Path) -> None:
        """Write it to a file, packed, with its own digest at the end."""
        private.replace(path, zlib.compress(self.rows.tobytes() + bytes.fromhex(self.hex), 1))


def read(path: Path) -> Digest | None:
    """Read what :meth:`Digest.write` wrote; None where that is gone, or not what was written."""
    try:
        data = np.frombuffer(zlib.decompress(path.read_bytes()), np.uint8)
    except (OSError, zlib.error):
        return None
    if not len(data) or len(data) % _SIZE:
        return None
    found = Digest(data[:-_SIZE].reshape(-1, _SIZE))
    return found if bytes.fromhex(found.hex) == data[-_SIZE:].tobytes() else None


def take(disk: Disk, below: tuple[Disk, Digest] | None = None) -> Digest:
    """Read a disk, or where it is known on what it stands only what differs from that, and return its digest.

    Raises
    ------
    DiskUnreadable
        A file of it is gone or damaged.
    """
    count = -(-disk.size // BLOCK)
    if below is not None and below[0].size == disk.size and len(below[1].rows) == count:
        rows, ranges = below[1].rows.copy(), blocks.candidates(disk, below[0])
    else:
        rows, ranges = np.zeros((count, _SIZE), np.uint8), _held(disk)
    wanted = np.zeros(count, np.bool_)
    for start, end in ranges:
        wanted[start // BLOCK : -(-end // BLOCK)] = True
    if disk.size % BLOCK:
        wanted[-1:] = True
    numbers = np.flatnonzero(wanted)
    for at in range(0, len(numbers), _BATCH):
        some = numbers[at : at + _BATCH]
        for number, block in zip(some.tolist(), disk.read_blocks(some, BLOCK), strict=True):
            length = min(BLOCK, disk.size - number * BLOCK)
            if length == BLOCK and not block.any():
                rows[number] = 0
            else:
                found = hashlib.sha256(block[:length].tobytes()).digest()
                rows[number] = np.frombuffer(found, np.uint8)
    return Digest(rows)


def _held(disk: Disk) -> Iterator[tuple[int, int]]:
    """Yield the ranges in which a disk may hold anything but zeros."""
    for index in range(-(-disk.size // blocks.REGION)):
        held = disk.region(index).kind != blocks.ZERO
        edges = np.flatnonzero(np.diff(np.concatenate(([False], held, [False])).astype(np.int8)))
        for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            start = index * blocks.REGION
            yield start + first * disk.grain, min(start + last * disk.grain, disk.size)


def file_with(disk: Disk, number: int) -> Path:
    """Return the file of a disk's chain that holds a block, or the first of them."""
    start = number * BLOCK
    region = disk.region(start // blocks.REGION)
    first = (start % blocks.REGION) // disk.grain
    pieces = slice(first, first + max(1, BLOCK // disk.grain))
    held = region.layer[pieces][region.kind[pieces] != blocks.ZERO]
    found = disk.layers[int(held[0])].path if len(held) else disk.path
    # Without the way back from the layers to the image.
    return Path(os.path.normpath(found))
