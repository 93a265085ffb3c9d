"""Extended attributes: in the inode behind its fields, in a block of their own, large values in inodes of their own."""

from __future__ import annotations

import struct
from collections.abc import Callable

from vmlab.compare.ext4.inode import Inode
from vmlab.compare.ext4.superblock import damaged

_MAGIC = 0xEA020000
_PREFIXES = {
    0: b"", 1: b"user.", 2: b"system.posix_acl_access", 3: b"system.posix_acl_default", 4: b"trusted.",
    6: b"security.", 7: b"system.", 8: b"system.richacl", 9: b"encryption.", 10: b"hurd.",
}  # fmt: skip
INLINE_DATA = b"system.data"


def attributes(
    inode: Inode, read_block: Callable[[int], bytes], read_value: Callable[[int, int], bytes]
) -> dict[bytes, bytes]:
    """Return all extended attributes of an inode, with ``system.data``, the rest of inline content.

    Parameters
    ----------
    read_block
        Returns a block by its number.
    read_value
        Returns the content of the inode that holds a large value: number and bytes are given.
    """
    found: dict[bytes, bytes] = {}
    if inode.body[:4] == _MAGIC.to_bytes(4, "little"):
        _entries(found, inode, inode.body[4:], 0, read_value)
    if inode.attributes_block:
        block = read_block(inode.attributes_block)
        if block[:4] != _MAGIC.to_bytes(4, "little"):
            raise damaged(f"the extended attributes of inode {inode.number} make no sense")
        _entries(found, inode, block, 32, read_value)
    return found


def _entries(
    found: dict[bytes, bytes], inode: Inode, data: bytes, at: int, read_value: Callable[[int, int], bytes]
) -> None:
    while at + 4 <= len(data) and data[at : at + 4] != bytes(4):
        if at + 16 > len(data):
            raise damaged(f"the extended attributes of inode {inode.number} make no sense")
        length, prefix, offset, other, size = struct.unpack_from("<BBHII", data, at)
        name = _PREFIXES.get(prefix, b"%d." % prefix) + data[at + 16 : at + 16 + length]
        if other:
            if size > 1 << 20:
                raise damaged(f"the extended attributes of inode {inode.number} make no sense")
            found[name] = read_value(other, size)
        elif offset + size > len(data):
            raise damaged(f"the extended attributes of inode {inode.number} make no sense")
        else:
            found[name] = data[offset : offset + size]
        at += 16 + (length + 3) // 4 * 4
