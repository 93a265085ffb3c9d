"""The superblock and the group descriptors: how a file system is laid out."""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass, field

import google_crc32c
import numpy as np
import numpy.typing as npt

from vmlab.errors import DiskUnreadable

SIZE = 1024
MAGIC = 0xEF53

# Incompatible features: whoever does not know one must not read.
FILETYPE, RECOVER, JOURNAL_DEV, META_BG, EXTENTS = 0x2, 0x4, 0x8, 0x10, 0x40
BIT64, FLEX_BG, EA_INODE, CSUM_SEED, LARGEDIR, INLINE_DATA = 0x80, 0x200, 0x400, 0x2000, 0x4000, 0x8000
_MMP, _CASEFOLD = 0x100, 0x20000
_KNOWN = (
    FILETYPE
    | RECOVER
    | META_BG
    | EXTENTS
    | BIT64
    | _MMP
    | FLEX_BG
    | EA_INODE
    | CSUM_SEED
    | LARGEDIR
    | INLINE_DATA
) | _CASEFOLD
_NAMES = {0x1: "compression", JOURNAL_DEV: "journal_dev", 0x1000: "dirdata", 0x10000: "encrypt"}

HAS_JOURNAL, SPARSE_SUPER2 = 0x4, 0x200  # compatible
SPARSE_SUPER, GDT_CSUM, METADATA_CSUM = 0x1, 0x10, 0x400  # read-only compatible

_INODE_UNINIT = 0x1
#: Bytes of group descriptors; those of 100 TiB are less.
_MOST_DESCRIPTORS = 64 << 20


def crc32c(seed: int, data: bytes) -> int:
    """Return the CRC-32C as Linux keeps it: not inverted at the end."""
    value: int = google_crc32c.extend(seed ^ 0xFFFFFFFF, data)
    return value ^ 0xFFFFFFFF


def damaged(what: str) -> DiskUnreadable:
    """Return the error for a file system that contradicts itself."""
    return DiskUnreadable(
        f"The file system is damaged: {what}.", hint="`e2fsck -n` on a copy of the disk says more"
    )


@dataclass(frozen=True)
class Superblock:
    """What the superblock says. Sizes are bytes unless they say blocks."""

    raw: bytes = field(repr=False)
    inodes: int
    blocks: int
    first_block: int
    block_size: int
    blocks_per_group: int
    inodes_per_group: int
    inode_size: int
    first_inode: int
    compatible: int
    incompatible: int
    read_only: int
    uuid: bytes
    label: str
    journal_inode: int
    descriptor_size: int
    first_meta_group: int
    seed: int
    backup_groups: tuple[int, int]

    @classmethod
    def parse(cls, raw: bytes, size: int) -> Superblock:
        """Read the superblock of a file system on a volume of ``size`` bytes.

        Raises
        ------
        DiskUnreadable
            It makes no sense, or the file system has features that this reader does not know.
        """
        if len(raw) < SIZE or struct.unpack_from("<H", raw, 56)[0] != MAGIC:
            raise damaged("it has no superblock")
        inodes, blocks, first_block, log_size = struct.unpack_from("<II12xII", raw, 0)
        blocks_per_group, inodes_per_group = struct.unpack_from("<I4xI", raw, 32)
        revision = struct.unpack_from("<I", raw, 76)[0]
        first_inode, inode_size, compatible, incompatible, read_only = 11, 128, 0, 0, 0
        if revision:
            first_inode, inode_size, compatible, incompatible, read_only = struct.unpack_from(
                "<IH2xIII", raw, 84
            )
        if unknown := incompatible & ~_KNOWN:
            names = [_NAMES.get(1 << n, f"{1 << n:#x}") for n in range(32) if unknown >> n & 1]
            raise DiskUnreadable(f"This ext4 has features that vmlab cannot read: {', '.join(names)}.")
        descriptor_size = 32
        if incompatible & BIT64:
            descriptor_size = struct.unpack_from("<H", raw, 254)[0]
            blocks |= struct.unpack_from("<I", raw, 336)[0] << 32
        identity = raw[104:120]
        seed = crc32c(0xFFFFFFFF, identity)
        if incompatible & CSUM_SEED:
            seed = struct.unpack_from("<I", raw, 624)[0]
        found = cls(
            raw=raw[:SIZE],
            inodes=inodes,
            blocks=blocks,
            first_block=first_block,
            block_size=1024 << min(log_size, 10),
            blocks_per_group=blocks_per_group,
            inodes_per_group=inodes_per_group,
            inode_size=inode_size,
            first_inode=first_inode,
            compatible=compatible,
            incompatible=incompatible,
            read_only=read_only,
            uuid=identity,
            label=raw[120:136].split(b"\0")[0].decode("utf-8", "replace"),
            journal_inode=struct.unpack_from("<I", raw, 224)[0],
            descriptor_size=descriptor_size,
            first_meta_group=struct.unpack_from("<I", raw, 260)[0],
            seed=seed,
            backup_groups=struct.unpack_from("<II", raw, 588),
        )
        found._check(size, log_size)
        return found

    def _check(self, size: int, log_size: int) -> None:
        if (
            self.has_checksums
            and crc32c(0xFFFFFFFF, self.raw[:1020]) != struct.unpack_from("<I", self.raw, 1020)[0]
        ):
            raise damaged("the checksum of its superblock is wrong")
        bits = self.block_size * 8
        sensible = (
            log_size <= 6
            and 128 <= self.inode_size <= self.block_size
            and self.inode_size & (self.inode_size - 1) == 0
            and self.descriptor_size & (self.descriptor_size - 1) == 0
            and 32 <= self.descriptor_size <= self.block_size
            and 0 < self.inodes_per_group <= bits
            # With bigalloc a bit stands for several blocks.
            and 8 <= self.blocks_per_group <= bits << 10
            and self.blocks_per_group % 8 == 0
            and self.first_block <= (self.block_size == 1024)
            and self.first_block < self.blocks
            and self.inodes == self.groups * self.inodes_per_group
            and self.first_inode >= 11
            and self.groups * self.descriptor_size <= _MOST_DESCRIPTORS
        )
        if not sensible:
            raise damaged("its superblock makes no sense")
        if self.blocks * self.block_size > size:
            raise damaged(
                f"it says that it is {self.blocks * self.block_size:,} bytes, its disk has {size:,}"
            )

    @property
    def groups(self) -> int:
        """How many block groups there are."""
        return -(-(self.blocks - self.first_block) // self.blocks_per_group)

    @property
    def table_blocks(self) -> int:
        """Blocks of the inode table of one group."""
        return -(-self.inodes_per_group * self.inode_size // self.block_size)

    @property
    def has_checksums(self) -> bool:
        """Whether metadata has checksums."""
        return bool(self.read_only & METADATA_CSUM)

    @property
    def needs_recovery(self) -> bool:
        """Whether the journal holds what is not in its place yet."""
        return bool(self.incompatible & RECOVER and self.compatible & HAS_JOURNAL)

    @property
    def id(self) -> str:
        """The UUID as text."""
        return str(uuid.UUID(bytes=self.uuid))

    def descriptor_blocks(self) -> npt.NDArray[np.int64]:
        """Return the blocks that hold the group descriptors, in order."""
        each = self.block_size // self.descriptor_size
        count = -(-self.groups // each)
        # They follow the superblock, which is in block 1 if blocks are small, even where (bigalloc) groups start at 0.
        plain = 1 + (self.block_size == SIZE) + np.arange(count, dtype=np.int64)
        if self.incompatible & META_BG:
            for index in range(self.first_meta_group, count):
                group = index * each
                shifted = group == 0 and self.block_size == SIZE and self.first_block == 0
                plain[index] = (
                    self.first_block + group * self.blocks_per_group + self._has_backup(group) + shifted
                )
        return plain

    def _has_backup(self, group: int) -> bool:
        """Return whether a group starts with a copy of the superblock."""
        if group == 0:
            return True
        if self.compatible & SPARSE_SUPER2:
            return group in self.backup_groups
        if group == 1 or not self.read_only & SPARSE_SUPER:
            return True
        for base in (3, 5, 7):
            power = base
            while power < group:
                power *= base
            if power == group:
                return True
        return False


@dataclass(frozen=True)
class Groups:
    """The inode tables of all groups.

    Attributes
    ----------
    table
        Block at which each group's table starts.
    used
        How many inodes of each table may be in use; what lies behind was never written.
    """

    table: npt.NDArray[np.int64]
    used: npt.NDArray[np.int64]

    @classmethod
    def parse(cls, sb: Superblock, data: bytes) -> Groups:
        """Read the group descriptors from the bytes of their blocks."""
        rows = np.frombuffer(data, np.uint8)[: sb.groups * sb.descriptor_size].reshape(-1, sb.descriptor_size)

        def value(at: int, kind: str) -> npt.NDArray[np.int64]:
            width = np.dtype(kind).itemsize
            return np.ascontiguousarray(rows[:, at : at + width]).view(kind).ravel().astype(np.int64)

        if sb.has_checksums:
            cls._check(sb, rows, value(30, "<u2"))
        table, flags, unused = value(8, "<u4"), value(18, "<u2"), value(28, "<u2")
        if sb.descriptor_size >= 64:
            table |= value(40, "<u4") << 32
            unused |= value(50, "<u2") << 16
        used = np.full(sb.groups, sb.inodes_per_group, np.int64)
        if sb.read_only & (GDT_CSUM | METADATA_CSUM):
            used = np.where(flags & _INODE_UNINIT, 0, np.maximum(used - unused, 0))
        if (table <= sb.first_block).any() or (table + sb.table_blocks > sb.blocks).any():
            raise damaged("an inode table lies outside of it")
        if (np.diff(np.sort(table)) < sb.table_blocks).any():
            raise damaged("its inode tables lie over each other")
        return cls(table, used)

    @staticmethod
    def _check(sb: Superblock, rows: npt.NDArray[np.uint8], sums: npt.NDArray[np.int64]) -> None:
        for number, row in enumerate(rows):
            text = row.tobytes()
            found = crc32c(crc32c(sb.seed, struct.pack("<I", number)), text[:30] + bytes(2) + text[32:])
            if found & 0xFFFF != sums[number]:
                raise damaged(f"the checksum of its group {number} is wrong")
