"""An ext2, ext3 or ext4 file system on a disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property

import numpy as np

from vmlab.compare.blocks import Bytes, Numbers, Readable
from vmlab.compare.ext4 import directory
from vmlab.compare.ext4.attributes import INLINE_DATA, attributes
from vmlab.compare.ext4.extents import Extents, map_inodes
from vmlab.compare.ext4.inode import Inode
from vmlab.compare.ext4.journal import MAGIC_BYTES, Journal, Replay
from vmlab.compare.ext4.superblock import SIZE, Groups, Superblock, damaged
from vmlab.compare.fingerprint import Fingerprint
from vmlab.errors import DiskUnreadable

ROOT = 2
#: Bytes that are read at once.
PART = 8 << 20
_LONGEST_TARGET = 4096
#: Blocks; as e2fsprogs has it.
_LONGEST_JOURNAL = 10_240_000


class Ext4:
    """An ext file system, as it would be after its journal has been replayed.

    Parameters
    ----------
    disk
        Where it is.
    start, size
        The partition, in bytes.

    Raises
    ------
    DiskUnreadable
        It is damaged, or has features that this reader does not know.
    """

    def __init__(self, disk: Readable, start: int, size: int) -> None:
        self.disk, self.start, self.size = disk, start, size
        self.replay = Replay()
        self.sb = Superblock.parse(disk.read(start + SIZE, SIZE), size)
        self.groups = self._groups()
        if self.sb.needs_recovery:
            self.replay = self._replay()
            self.sb = Superblock.parse(self._first_bytes()[SIZE : 2 * SIZE], size)
            self.groups = self._groups()

    def _first_bytes(self) -> bytes:
        count = -(-2 * SIZE // self.sb.block_size)
        return self.read_blocks(np.arange(count, dtype=np.int64)).tobytes()

    def _groups(self) -> Groups:
        return Groups.parse(self.sb, self.read_blocks(self.sb.descriptor_blocks()).tobytes())

    def _replay(self) -> Replay:
        if not self.sb.journal_inode:
            raise DiskUnreadable("The journal of this ext4 is on another disk, which vmlab cannot read.")
        inode = self.inode(self.sb.journal_inode)
        extents = self.extents(inode)
        count = inode.size // self.sb.block_size
        if count > min(_LONGEST_JOURNAL, int(extents.count.sum())):
            raise damaged("its journal makes no sense")
        places = extents.place(np.arange(count, dtype=np.int64))
        if (places < 0).any():
            raise damaged("its journal has holes")
        return Journal(places, self.read_blocks, self.sb.block_size, self.sb.blocks).replay()

    # -- blocks ----------------------------------------------------------------------------------------------------

    def read_blocks(self, numbers: Numbers) -> Bytes:
        """Return blocks, one in each row, as they are after the journal has been replayed."""
        if len(numbers) and (int(numbers.min()) < 0 or int(numbers.max()) >= self.sb.blocks):
            raise damaged("something leads to a block outside of it")
        replay = self.replay
        if not len(replay.blocks):
            return self.disk.read_blocks(numbers, self.sb.block_size, self.start)
        at = np.minimum(np.searchsorted(replay.blocks, numbers), len(replay.blocks) - 1)
        moved = replay.blocks[at] == numbers
        rows = self.disk.read_blocks(
            np.where(moved, replay.source[at], numbers), self.sb.block_size, self.start
        )
        rows[moved & replay.escaped[at], :4] = np.frombuffer(MAGIC_BYTES, np.uint8)
        return rows

    def read_block(self, number: int) -> bytes:
        """Return one block."""
        return self.read_blocks(np.array([number], np.int64)).tobytes()

    # -- inodes ----------------------------------------------------------------------------------------------------

    def records(self, numbers: Numbers) -> Bytes:
        """Return the bytes of inodes, one in each row.

        Raises
        ------
        DiskUnreadable
            There is no such inode.
        """
        sb = self.sb
        group, inside = np.divmod(numbers - 1, sb.inodes_per_group)
        if len(numbers) and (numbers.min() < 1 or numbers.max() > sb.inodes):
            raise damaged("a directory leads to an inode that does not exist")
        wrong = inside >= self.groups.used[group]
        if wrong.any():
            raise damaged(f"a directory leads to the inode {int(numbers[wrong][0])}, which was never used")
        each = sb.block_size // sb.inode_size
        block = self.groups.table[group] + inside // each
        needed, which = np.unique(block, return_inverse=True)
        table = self.read_blocks(needed).reshape(len(needed) * each, sb.inode_size)
        found: Bytes = table[which.reshape(-1) * each + inside % each]
        return found

    def inodes(self, numbers: Iterable[int]) -> dict[int, Inode]:
        """Return several inodes by their number."""
        wanted = np.array(sorted(set(numbers)), np.int64)
        rows = self.records(wanted)
        return {
            n: Inode.parse(self.sb, n, row.tobytes()) for n, row in zip(wanted.tolist(), rows, strict=True)
        }

    def inode(self, number: int) -> Inode:
        """Return one inode."""
        return self.inodes([number])[number]

    # -- content ---------------------------------------------------------------------------------------------------

    def extents(self, inode: Inode) -> Extents:
        """Return where the content of an inode is."""
        if not inode.mapped:
            return Extents.of([])
        place = np.frombuffer(inode.place, np.uint8)[None, :]
        number, flags = np.array([inode.number], np.int64), np.array([inode.flags], np.int64)
        return map_inodes(number, flags, place, self.read_blocks, self.sb.blocks, self.sb.block_size).extents

    def attributes(self, inode: Inode) -> dict[bytes, bytes]:
        """Return the extended attributes that people see."""
        found = self._attributes(inode)
        found.pop(INLINE_DATA, None)
        return found

    def _attributes(self, inode: Inode) -> dict[bytes, bytes]:
        return attributes(inode, self.read_block, lambda n, size: self.read(self.inode(n), 0, size))

    def _inline(self, inode: Inode) -> bytes:
        """Return the content of an inode that holds it itself."""
        data = inode.place + self._attributes(inode).get(INLINE_DATA, b"")
        if inode.size > len(data):
            raise damaged(f"inode {inode.number} is larger than it can be")
        return data[: inode.size]

    def target(self, inode: Inode) -> bytes:
        """Return what a symbolic link leads to."""
        if inode.size > _LONGEST_TARGET:
            raise damaged(f"inode {inode.number} is larger than a symbolic link can be")
        if inode.fast_symlink:
            return inode.place[: inode.size]
        return self.read(inode, 0, inode.size)

    def read(self, inode: Inode, offset: int, length: int) -> bytes:
        """Return bytes of a file's content, fewer at its end."""
        length = min(length, inode.size - offset)
        if length <= 0:
            return b""
        if inode.inline:
            return self._inline(inode)[offset : offset + length]
        size = self.sb.block_size
        logical = np.arange(offset // size, -(-(offset + length) // size), dtype=np.int64)
        return self.read_logical(self.extents(inode), logical).tobytes()[offset % size :][:length]

    def read_logical(self, extents: Extents, logical: Numbers) -> Bytes:
        """Return blocks of a file, one in each row."""
        place = extents.place(logical)
        out = np.zeros((len(logical), self.sb.block_size), np.uint8)
        out[place >= 0] = self.read_blocks(place[place >= 0])
        return out

    def parts(self, inode: Inode) -> Iterator[bytes]:
        """Yield a file's content in parts."""
        if inode.inline:
            yield self._inline(inode)
            return
        extents, size = self.extents(inode), self.sb.block_size
        for offset in range(0, inode.size, PART):
            length = min(PART, inode.size - offset)
            logical = np.arange(offset // size, -(-(offset + length) // size), dtype=np.int64)
            yield self.read_logical(extents, logical).tobytes()[:length]

    def fingerprint(self, inode: Inode) -> str:
        """Return what is equal for files of equal content; holes are not read."""
        found = Fingerprint(inode.size)
        if inode.inline:
            found.add(0, self._inline(inode))
            return str(found)
        size = self.sb.block_size
        runs = self.extents(inode)
        runs = runs.where(runs.written & (runs.logical * size < inode.size))
        for first, count in zip(runs.logical.tolist(), runs.count.tolist(), strict=True):
            for at in range(first, first + count, PART // size):
                logical = np.arange(at, min(first + count, at + PART // size), dtype=np.int64)
                found.add(
                    at * size, self.read_logical(runs, logical).tobytes()[: max(0, inode.size - at * size)]
                )
        return str(found)

    # -- directories -----------------------------------------------------------------------------------------------

    @cached_property
    def _types(self) -> bool:
        return bool(self.sb.incompatible & 0x2)

    def block_entries(self, data: bytes) -> Iterator[tuple[bytes, int]]:
        """Yield the names in a block of a directory, and their inodes; not ``.`` and ``..``."""
        for name, number in directory.entries(data, types=self._types):
            if name not in (b".", b".."):
                yield name, number

    def inline_entries(self, inode: Inode) -> Iterator[tuple[bytes, int]]:
        """Yield the names in a directory that is in its inode, and their inodes."""
        more = self._attributes(inode).get(INLINE_DATA, b"")
        for name, number in directory.inline_entries(inode.place, more, types=self._types):
            if name != b"..":
                yield name, number

    def entries(self, inode: Inode) -> Iterator[tuple[bytes, int]]:
        """Yield the names in a directory, and their inodes."""
        if inode.inline:
            yield from self.inline_entries(inode)
            return
        extents = self.extents(inode)
        _, logical, place = extents.all_blocks()
        place = place[logical * self.sb.block_size < inode.size]
        step = PART // self.sb.block_size
        for at in range(0, len(place), step):
            for row in self.read_blocks(place[at : at + step]):
                yield from self.block_entries(row.tobytes())

    def lookup(self, path: bytes) -> Inode | None:
        """Return the inode of an absolute path, or None if there is none; symbolic links are not followed."""
        inode = self.inode(ROOT)
        for name in path.split(b"/"):
            if name in (b"", b"."):
                continue
            number = dict(self.entries(inode)).get(name) if inode.is_directory else None
            if number is None:
                return None
            inode = self.inode(number)
        return inode

    def walk(self) -> Iterator[tuple[bytes, Inode]]:
        """Yield the path and inode of everything that has a name, directories before what is in them.

        Raises
        ------
        DiskUnreadable
            It is damaged: a directory is inside itself, for example.
        """
        root = self.inode(ROOT)
        if not root.is_directory or not root.links:
            raise damaged("it has no root directory")
        seen = {ROOT}
        waiting = [(b"/", root)]
        yield b"/", root
        while waiting:
            path, inode = waiting.pop()
            names = sorted(self.entries(inode))
            found = self.inodes(number for _, number in names)
            for name, number in names:
                child = found[number]
                if not child.links:
                    # The name of a deleted file, which only damage leaves: a kernel does not open it either.
                    continue
                below = path.rstrip(b"/") + b"/" + name
                yield below, child
                if child.is_directory:
                    if number in seen:
                        raise damaged("a directory has two names")
                    seen.add(number)
                    waiting.append((below, child))
