"""Inodes: what a file is, without its name and its content."""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass, field
from functools import cached_property

from vmlab.compare.ext4.superblock import Superblock, crc32c, damaged

EXTENTS_FLAG, INLINE_FLAG = 0x80000, 0x10000000
#: What `lsattr` shows and people set: undeletable, synchronous, immutable, append-only, no dump, no access times,
#: journalled data, no tail merging, synchronous directory, top directory, verity, casefold, DAX, inherited project.
_SHOWN_FLAGS = {
    0x1: "s", 0x2: "u", 0x4: "c", 0x8: "S", 0x10: "i", 0x20: "a", 0x40: "d", 0x80: "A", 0x4000: "j", 0x8000: "t",
    0x10000: "D", 0x20000: "T", 0x100000: "V", 0x2000000: "x", 0x20000000: "P", 0x40000000: "F",
}  # fmt: skip
#: Types that have content in blocks.
CONTENT_TYPES = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
FAST_SYMLINK = 60


@dataclass(frozen=True)
class Inode:
    """One inode.

    Attributes
    ----------
    number, generation
        Together they tell it from all others, also from later ones of the same number.
    mode
        Type and permission bits, as in ``stat``.
    size
        Bytes of the content.
    mtime
        Nanoseconds since 1970.
    place
        The 60 bytes that say where the content is, or are it.
    attributes_block
        The block with further extended attributes, or 0.
    body
        What lies behind the fixed fields: extended attributes.
    """

    number: int
    generation: int
    mode: int
    uid: int
    gid: int
    size: int
    links: int
    flags: int
    mtime: int
    place: bytes = field(repr=False)
    attributes_block: int
    body: bytes = field(repr=False)

    @classmethod
    def parse(cls, sb: Superblock, number: int, raw: bytes) -> Inode:
        """Read an inode from its record.

        Raises
        ------
        DiskUnreadable
            Its checksum is wrong.
        """
        (mode, uid, size, _, _, mtime, _, gid, links, _, flags, _) = struct.unpack_from("<HHIIIIIHHIII", raw)
        generation, acl, size_high = struct.unpack_from("<III", raw, 100)
        acl_high, uid_high, gid_high = struct.unpack_from("<HHH", raw, 118)
        extra = struct.unpack_from("<H", raw, 128)[0] if sb.inode_size > 128 else 0
        if extra > sb.inode_size - 128 or extra % 4:
            raise damaged(f"inode {number} makes no sense")
        if sb.has_checksums and links:
            _check(sb, number, generation, raw, extra)
        seconds = mtime - (1 << 32) if mtime >> 31 else mtime
        nanoseconds = 0
        if extra >= 12:
            more = struct.unpack_from("<I", raw, 136)[0]
            seconds += (more & 3) << 32
            nanoseconds = more >> 2
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            size |= size_high << 32
        return cls(
            number=number,
            generation=generation,
            mode=mode,
            uid=uid | uid_high << 16,
            gid=gid | gid_high << 16,
            size=size,
            links=links,
            flags=flags,
            mtime=seconds * 10**9 + nanoseconds,
            place=raw[40:100],
            attributes_block=acl | acl_high << 32,
            body=raw[128 + extra : sb.inode_size] if sb.inode_size > 128 else b"",
        )

    @property
    def format(self) -> int:
        """The type bits of the mode."""
        return stat.S_IFMT(self.mode)

    @property
    def identity(self) -> tuple[int, int, int]:
        """What the same file keeps as long as it lives, wherever it is moved."""
        return (self.number, self.generation, self.format)

    @property
    def is_directory(self) -> bool:
        """Whether it holds names."""
        return self.format == stat.S_IFDIR

    @property
    def inline(self) -> bool:
        """Whether the content is in the inode itself."""
        return bool(self.flags & INLINE_FLAG)

    @property
    def fast_symlink(self) -> bool:
        """Whether it is a symbolic link whose target is in the inode."""
        return (
            self.format == stat.S_IFLNK
            and self.size < FAST_SYMLINK
            and not self.flags & (INLINE_FLAG | EXTENTS_FLAG)
        )

    @property
    def mapped(self) -> bool:
        """Whether the content is in blocks."""
        return self.format in CONTENT_TYPES and not self.inline and not self.fast_symlink

    @cached_property
    def shown_flags(self) -> str:
        """The attributes that people set with ``chattr``, as its letters."""
        return "".join(letter for bit, letter in _SHOWN_FLAGS.items() if self.flags & bit)

    @property
    def device(self) -> tuple[int, int] | None:
        """Major and minor number of a device node."""
        if self.format not in (stat.S_IFCHR, stat.S_IFBLK):
            return None
        old, new = struct.unpack_from("<II", self.place)
        if old:
            return old >> 8 & 0xFF, old & 0xFF
        return (new & 0xFFF00) >> 8, (new & 0xFF) | (new >> 12 & 0xFFF00)


def _check(sb: Superblock, number: int, generation: int, raw: bytes, extra: int) -> None:
    seed = crc32c(crc32c(sb.seed, struct.pack("<I", number)), struct.pack("<I", generation))
    text = bytearray(raw[: sb.inode_size])
    stored = struct.unpack_from("<H", raw, 124)[0]
    text[124:126] = bytes(2)
    mask = 0xFFFF
    if sb.inode_size > 128 and extra >= 4:
        stored |= struct.unpack_from("<H", raw, 130)[0] << 16
        text[130:132] = bytes(2)
        mask = 0xFFFFFFFF
    if crc32c(seed, bytes(text)) & mask != stored:
        raise damaged(f"the checksum of inode {number} is wrong")
