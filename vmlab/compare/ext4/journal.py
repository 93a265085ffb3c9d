"""The journal (jbd2): which blocks it holds in a newer version than their places do.

Nothing is copied: replaying gives a table that says "read block X from block Y of the journal". The rules are those of
the Linux kernel (fs/jbd2/recovery.c): transactions count up to the first that has no commit block, later ones win, and
revoked blocks stay as they are.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from vmlab.compare.ext4.superblock import crc32c, damaged
from vmlab.errors import DiskUnreadable

MAGIC = 0xC03B3998
MAGIC_BYTES = MAGIC.to_bytes(4, "big")
_DESCRIPTOR, _COMMIT, _SUPER_V1, _SUPER_V2, _REVOKE = 1, 2, 3, 4, 5
_ESCAPED, _SAME_UUID, _LAST = 1, 2, 8
_64BIT, _CSUM_V2, _CSUM_V3, _FAST_COMMIT = 0x2, 0x8, 0x10, 0x20
#: Revoke, 64bit, asynchronous commits, checksums of both kinds, fast commits.
_KNOWN = 0x1 | _64BIT | 0x4 | _CSUM_V2 | _CSUM_V3 | _FAST_COMMIT
_FAST_HEAD = 9


@dataclass(frozen=True)
class Replay:
    """Where to read blocks instead of in their places.

    Attributes
    ----------
    blocks
        Numbers of the blocks that the journal holds, ascending.
    source
        For each, the block of the file system (within the journal) that has its content.
    escaped
        Whether its first four bytes are to be the journal's magic number.
    transactions
        How many transactions were replayed.
    """

    blocks: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    source: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    escaped: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    transactions: int = 0


@dataclass
class _Transaction:
    sequence: int
    #: Block of the file system, block of the log, flags, checksum.
    tags: list[tuple[int, int, int, int]] = field(default_factory=list)
    revoked: list[int] = field(default_factory=list)


class Journal:
    """A journal of ``places`` blocks, as an inode maps them.

    Parameters
    ----------
    places
        The block of the file system for each block of the journal.
    read
        Returns the bytes of some blocks of the file system, in order.
    block_size, blocks
        Of the file system.
    """

    def __init__(
        self,
        places: npt.NDArray[np.int64],
        read: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.uint8]],
        block_size: int,
        blocks: int,
    ) -> None:
        self.places, self._read, self.block_size, self.blocks = places, read, block_size, blocks
        if not len(places):
            raise damaged("its journal is empty")
        head = self.block(0)
        magic, kind, _ = struct.unpack_from(">III", head)
        size, length, self.first, self.sequence, self.start = struct.unpack_from(">IIIII", head, 12)
        if magic != MAGIC or kind not in (_SUPER_V1, _SUPER_V2) or size != block_size:
            raise damaged("its journal has no superblock")
        self.features, self.seed, fast = 0, 0, 0
        if kind == _SUPER_V2:
            self.features = struct.unpack_from(">I", head, 40)[0]
            self.seed = crc32c(0xFFFFFFFF, head[48:64])
            fast = struct.unpack_from(">I", head, 84)[0]
        if self.features & ~_KNOWN:
            raise DiskUnreadable(
                f"This ext4 has a journal with features that vmlab cannot read ({self.features:#x})."
            )
        if self.checked and crc32c(0xFFFFFFFF, head[:252] + bytes(4) + head[256:1024]) != _u32(head, 252):
            raise damaged("the checksum of its journal is wrong")
        self.last = length
        if self.features & _FAST_COMMIT:
            self.last -= fast or 256
        if not 0 < self.first < self.last <= length <= len(places) or self.start >= self.last:
            raise damaged("the superblock of its journal makes no sense")

    @property
    def checked(self) -> bool:
        """Whether the blocks of the journal have checksums."""
        return bool(self.features & (_CSUM_V2 | _CSUM_V3))

    def block(self, number: int) -> bytes:
        """Return a block of the journal."""
        return self._read(self.places[number : number + 1]).tobytes()

    def replay(self) -> Replay:
        """Return what the journal holds, see :class:`Replay`."""
        if not self.start:
            self._refuse_fast_commits(self.sequence)
            return Replay()
        transactions = list(self._transactions())
        self._refuse_fast_commits(self.sequence + len(transactions))
        revoked: dict[int, int] = {}
        for transaction in transactions:
            revoked.update(dict.fromkeys(transaction.revoked, transaction.sequence))
        newest: dict[int, tuple[int, int]] = {}
        for transaction in transactions:
            self._check_data(transaction)
            for block, place, flags, _ in transaction.tags:
                # Sequence numbers are compared as distances: they wrap around at 2**32.
                if block in revoked and _distance(transaction.sequence, revoked[block]) <= 0:
                    continue
                if block >= self.blocks:
                    raise damaged("its journal writes outside of it")
                newest[block] = (place, flags)
        blocks = np.array(sorted(newest), np.int64)
        found = [newest[block] for block in blocks.tolist()]
        return Replay(
            blocks,
            self.places[np.array([place for place, _ in found], np.int64)],
            np.array([bool(flags & _ESCAPED) for _, flags in found], np.bool_),
            len(transactions),
        )

    def _transactions(self) -> Iterator[_Transaction]:
        """Yield the transactions that have a commit block."""
        place, sequence, walked = self.start, self.sequence, 0
        current = _Transaction(sequence)
        while walked <= self.last:
            data = self.block(place)
            magic, kind, number = struct.unpack_from(">III", data)
            if magic != MAGIC or number != sequence:
                return
            place, walked = self._next(place), walked + 1
            if kind == _DESCRIPTOR:
                self._check_tail(data)
                for block, flags, checksum in self._tags(data):
                    current.tags.append((block, place, flags, checksum))
                    place, walked = self._next(place), walked + 1
            elif kind == _REVOKE:
                self._check_tail(data)
                current.revoked += self._revoked(data)
            elif kind == _COMMIT:
                if self.checked and crc32c(self.seed, data[:16] + bytes(4) + data[20:]) != _u32(data, 16):
                    raise damaged("the checksum of a block of its journal is wrong")
                yield current
                sequence = (sequence + 1) & 0xFFFFFFFF
                current = _Transaction(sequence)
            else:
                return

    def _next(self, place: int) -> int:
        return place + 1 if place + 1 < self.last else self.first

    def _check_tail(self, data: bytes) -> None:
        if self.checked and crc32c(self.seed, data[:-4] + bytes(4)) != _u32(data, len(data) - 4):
            raise damaged("the checksum of a block of its journal is wrong")

    def _tags(self, data: bytes) -> Iterator[tuple[int, int, int]]:
        """Yield block, flags and checksum of each tag of a descriptor block."""
        wide = bool(self.features & _64BIT)
        size = 16 if self.features & _CSUM_V3 else 8 + 4 * wide + 2 * bool(self.features & _CSUM_V2)
        at, end = 12, len(data) - 4 * self.checked
        while at + size <= end:
            if self.features & _CSUM_V3:
                block, flags, high, checksum = struct.unpack_from(">IIII", data, at)
            else:
                block, checksum, flags = struct.unpack_from(">IHH", data, at)
                high = _u32(data, at + 8) if wide else 0
            at += size
            yield block | (high << 32 if wide else 0), flags, checksum
            if not flags & _SAME_UUID:
                at += 16
            if flags & _LAST:
                return

    def _revoked(self, data: bytes) -> list[int]:
        count = _u32(data, 12)
        if not 16 <= count <= len(data) - 4 * self.checked:
            raise damaged("its journal makes no sense")
        kind = ">u8" if self.features & _64BIT else ">u4"
        width = np.dtype(kind).itemsize
        return [int(n) for n in np.frombuffer(data[16 : 16 + (count - 16) // width * width], kind)]

    def _check_data(self, transaction: _Transaction) -> None:
        """Check the copies of a transaction, which are written by themselves and could be missing."""
        if not self.checked:
            return
        seed = crc32c(self.seed, struct.pack(">I", transaction.sequence))
        mask = 0xFFFFFFFF if self.features & _CSUM_V3 else 0xFFFF
        for at in range(0, len(transaction.tags), 1024):
            some = transaction.tags[at : at + 1024]
            rows = self._read(self.places[np.array([place for _, place, _, _ in some], np.int64)])
            for row, (_, _, _, checksum) in zip(rows, some, strict=True):
                if crc32c(seed, row.tobytes()) & mask != checksum:
                    raise damaged("the checksum of a block of its journal is wrong")

    def _refuse_fast_commits(self, following: int) -> None:
        if not self.features & _FAST_COMMIT:
            return
        tag, _, _, sequence = struct.unpack_from("<HHII", self.block(self.last))
        if tag == _FAST_HEAD and sequence == following & 0xFFFFFFFF:
            raise DiskUnreadable(
                "The newest changes of this ext4 are fast commits in its journal, which vmlab cannot read.",
                hint="compare a snapshot that was taken after `sync` in the guest, or of a guest that is off",
            )


def _u32(data: bytes, at: int) -> int:
    value: int = struct.unpack_from(">I", data, at)[0]
    return value


def _distance(a: int, b: int) -> int:
    """Return ``a - b`` for sequence numbers, which wrap around."""
    return (a - b + 0x80000000) % 0x100000000 - 0x80000000
