"""Whether the log of an XFS holds changes that are not in their places yet."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import numpy as np

_BLOCK = 512
_RECORD = 0xFEEDBABE
_TRANSACTION = 0x5452414E
_BUFFER = 0x123C
_UNMOUNT = 0x20
#: Bytes that are looked through at once; records that are read; the longest of them.
_PART, _MOST, _LONGEST = 4 << 20, 8, 64 * _BLOCK


def clean(read: Callable[[int, int], bytes], size: int) -> bool:
    """Return whether nothing needs to be replayed.

    That is so after an unmount, and after a freeze: then the log holds the superblock, which was written as well, and
    nothing else.

    Parameters
    ----------
    read
        Returns bytes of the file system: offset, length.
    size
        Bytes of the file system.
    """
    sb = read(0, _BLOCK)
    block, log_start = struct.unpack_from(">I", sb, 4)[0], struct.unpack_from(">Q", sb, 48)[0]
    per_group, blocks, shift = struct.unpack_from(">I", sb, 84)[0], *struct.unpack_from(">I", sb, 96), sb[124]
    if not log_start or shift > 32:
        return False
    start = ((log_start >> shift) * per_group + (log_start & ((1 << shift) - 1))) * block
    length = blocks * block
    if start + length > size:
        return False
    records = _records(read, start, length)
    if not records:
        return False
    _, tail, last = records[-1]
    head = read(start + last, _BLOCK)
    operations = list(_operations(read, start + last, head))
    if operations and operations[0][0] & _UNMOUNT:
        return True
    active = [place for number, _, place in records if number >= tail]
    if len(active) > _MOST:
        return False
    return all(_only_superblock(_operations(read, start + at, read(start + at, _BLOCK))) for at in active)


def _records(read: Callable[[int, int], bytes], start: int, length: int) -> list[tuple[int, int, int]]:
    """Return number, number of the oldest one needed, and place of each record, in the order of writing."""
    found = []
    for at in range(0, length, _PART):
        data = read(start + at, min(_PART, length - at))
        words = np.frombuffer(data, ">u4").reshape(-1, _BLOCK // 4)
        for n in np.flatnonzero(words[:, 0] == _RECORD).tolist():
            number, tail = struct.unpack_from(">QQ", data, n * _BLOCK + 16)
            found.append((number, tail, at + n * _BLOCK))
    return sorted(found)


def _operations(read: Callable[[int, int], bytes], place: int, head: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield flags and bytes of the operations of a record; nothing if it is longer than those that are told apart."""
    length, size = struct.unpack_from(">I", head, 12)[0], struct.unpack_from(">I", head, 320)[0]
    if length > _LONGEST:
        return
    data = bytearray(read(place + _BLOCK * max(1, -(-size // _LONGEST)), length))
    for n in range(-(-length // _BLOCK)):
        # The first word of each block gave way to the number of the round.
        data[n * _BLOCK : n * _BLOCK + 4] = head[44 + 4 * n : 48 + 4 * n]
    at = 0
    for _ in range(struct.unpack_from(">I", head, 40)[0]):
        if at + 12 > length:
            return
        count, flags = struct.unpack_from(">I", data, at + 4)[0], data[at + 9]
        yield flags, bytes(data[at + 12 : at + 12 + count])
        at += 12 + count


def _only_superblock(operations: Iterator[tuple[int, bytes]]) -> bool:
    """Return whether a record changes the superblock, which is block 0, and nothing else."""
    skip, some = 0, False
    for flags, data in operations:
        some = True
        if not data or struct.unpack_from("<I", data.ljust(4))[0] == _TRANSACTION:
            continue
        if skip:
            skip -= 1
            continue
        if flags & ~0x3 or len(data) < 16:
            return False
        kind, regions, _, _, place = struct.unpack_from("<HHHHq", data)
        if kind != _BUFFER or place != 0:
            return False
        skip = regions - 1
    return some and not skip
