"""Directories: names and the inodes that they lead to.

A directory with an index (htree) reads like one without: its index blocks look like blocks with one empty entry.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from vmlab.compare.ext4.superblock import damaged

_HEAD = struct.Struct("<IHBB")


def entries(data: bytes, *, types: bool = True) -> Iterator[tuple[bytes, int]]:
    """Yield name and inode of each entry of one block, ``.`` and ``..`` too.

    Parameters
    ----------
    types
        Whether entries say the type of the inode (feature ``filetype``); the name's length is one byte then.
    """
    at, end = 0, len(data)
    while at < end:
        if at + 8 > end:
            raise damaged("a directory makes no sense")
        inode, length, name, kind = _HEAD.unpack_from(data, at)
        if end > 0xFFFF and length in (0, 0xFFFF):
            length = end - at
        elif end > 0xFFFF:
            length = (length & 0xFFFC) | (length & 3) << 16
        if not types:
            name |= kind << 8
        if length < 8 or length % 4 or at + length > end or (inode and name + 8 > length):
            raise damaged("a directory makes no sense")
        if inode:
            yield data[at + 8 : at + 8 + name], inode
        at += length


def inline_entries(place: bytes, more: bytes, *, types: bool = True) -> Iterator[tuple[bytes, int]]:
    """Yield the entries of a directory that is in its inode: ``..`` first, then those of both parts."""
    yield b"..", struct.unpack_from("<I", place)[0]
    yield from entries(place[4:60], types=types)
    if more:
        yield from entries(more, types=types)
