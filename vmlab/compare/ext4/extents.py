"""Which blocks hold the content of inodes: extent trees of ext4, and the indirect blocks of ext2 and ext3.

All inodes that are asked for are mapped at once, level by level of their trees, so that tens of thousands take
milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vmlab.compare.ext4.inode import EXTENTS_FLAG
from vmlab.compare.ext4.superblock import damaged

Numbers = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

_MAGIC = 0xF30A
_DEEPEST = 5
#: Longer extents are shorter ones that were never written to, and read as zeros.
_UNWRITTEN = 32768
_DIRECT = 12
#: Blocks of trees that are read at once.
_NODES = 1024


@dataclass(frozen=True)
class Extents:
    """Runs of blocks, ordered by inode and place in the file.

    Attributes
    ----------
    inode
        Whose content it is.
    logical, count, physical
        First block in the file, number of blocks, first block of the file system.
    written
        Whether the run holds content; else it reads as zeros.
    """

    inode: Numbers
    logical: Numbers
    count: Numbers
    physical: Numbers
    written: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, parts: list[Extents]) -> Extents:
        """Join several and bring them in order, or raise if runs of one inode lie over each other."""
        if not parts:
            parts = [cls(*(np.zeros(0, np.int64),) * 4, np.zeros(0, np.bool_))]
        inode, logical, count, physical, written = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("inode", "logical", "count", "physical", "written")
        )
        order = np.lexsort((logical, inode))
        found = cls(inode[order], logical[order], count[order], physical[order], written[order])
        overlap = (found.inode[1:] == found.inode[:-1]) & (
            found.logical[1:] < (found.logical + found.count)[:-1]
        )
        if overlap.any():
            raise damaged(f"the blocks of inode {int(found.inode[1:][overlap][0])} make no sense")
        return found

    def where(self, chosen: npt.NDArray[np.bool_] | slice) -> Extents:
        """Return some of the runs."""
        return Extents(
            self.inode[chosen],
            self.logical[chosen],
            self.count[chosen],
            self.physical[chosen],
            self.written[chosen],
        )

    def of_inode(self, number: int) -> Extents:
        """Return the runs of one inode."""
        return self.where(slice(*np.searchsorted(self.inode, [number, number + 1])))

    def same(self, other: Extents) -> bool:
        """Whether the same blocks hold the content."""
        return (
            len(self.logical) == len(other.logical)
            and bool((self.logical == other.logical).all())
            and bool((self.count == other.count).all())
            and bool((self.physical == other.physical).all())
            and bool((self.written == other.written).all())
        )

    def place(self, logical: Numbers) -> Numbers:
        """Return the block of the file system for each block of a file, -1 where it reads as zeros."""
        if not len(self.logical):
            return np.full(len(logical), -1, np.int64)
        run = np.searchsorted(self.logical, logical, "right") - 1
        inside = (run >= 0) & (logical < self.logical[run] + self.count[run]) & self.written[run]
        return np.where(inside, self.physical[run] + logical - self.logical[run], -1)

    def all_blocks(self) -> tuple[Numbers, Numbers, Numbers]:
        """Return inode, block in the file and block of the file system of every written block."""
        runs = self.where(self.written)
        inside = np.arange(runs.count.sum()) - np.repeat(np.cumsum(runs.count) - runs.count, runs.count)
        return (
            runs.inode.repeat(runs.count),
            runs.logical.repeat(runs.count) + inside,
            runs.physical.repeat(runs.count) + inside,
        )


@dataclass(frozen=True)
class Mapped:
    """What :func:`map_inodes` returns: the content's blocks, and the blocks of the trees themselves."""

    extents: Extents
    tree_inode: Numbers
    tree_block: Numbers


def map_inodes(
    numbers: Numbers,
    flags: Numbers,
    places: Bytes,
    read: Callable[[Numbers], Bytes],
    blocks: int,
    block_size: int,
) -> Mapped:
    """Return which blocks hold the content of inodes.

    Parameters
    ----------
    numbers, flags, places
        Of each inode; ``places`` has a row of 60 bytes for each.
    read
        Returns blocks of the file system, one in each row.
    blocks, block_size
        Of the file system.

    Raises
    ------
    DiskUnreadable
        A tree makes no sense.
    """
    mapper = _Mapper(read, blocks, block_size)
    tree = (flags & EXTENTS_FLAG) != 0
    mapper.trees(numbers[tree], places[tree])
    mapper.pointers(numbers[~tree], places[~tree])
    empty = [np.zeros(0, np.int64)]
    found = Extents.of(mapper.found)
    # Blocks that are there once only: a damaged tree that repeats them must not keep us busy.
    owners, first = np.unique(found.inode, return_index=True)
    if len(owners) and (wrong := np.add.reduceat(found.count, first) > blocks).any():
        raise damaged(f"inode {int(owners[wrong][0])} has more blocks than there are")
    tree_inode, tree_block = (np.concatenate(x or empty) for x in (mapper.tree_inode, mapper.tree_block))
    if len(np.unique(tree_block)) != len(tree_block):
        raise damaged("a block belongs to the trees of several inodes")
    return Mapped(found, tree_inode, tree_block)


class _Mapper:
    def __init__(self, read: Callable[[Numbers], Bytes], blocks: int, block_size: int) -> None:
        self.read, self.blocks, self.block_size = read, blocks, block_size
        self.found: list[Extents] = []
        self.tree_inode: list[Numbers] = []
        self.tree_block: list[Numbers] = []
        #: How many blocks of trees were read.
        self.count = 0

    def nodes(self, owner: Numbers, block: Numbers) -> Iterator[tuple[slice, Bytes]]:
        """Yield blocks of trees, some at once, and which they are."""
        self.check(owner, block, np.ones(len(block), np.int64))
        for at in range(0, len(block), _NODES):
            some = slice(at, at + _NODES)
            self.tree_inode.append(owner[some])
            self.tree_block.append(block[some])
            # In a damaged file system nodes could lead to the same nodes again and again, more in each level.
            self.count += len(block[some])
            if self.count > self.blocks:
                raise damaged("the trees of its inodes have more blocks than there are")
            yield some, self.read(block[some])

    def check(self, owner: Numbers, block: Numbers, count: Numbers) -> None:
        wrong = (block <= 0) | (block + count > self.blocks)
        if wrong.any():
            raise damaged(f"inode {int(owner[wrong][0])} has blocks outside of it")

    def keep(
        self, owner: Numbers, logical: Numbers, count: Numbers, block: Numbers, written: npt.NDArray[np.bool_]
    ) -> None:
        self.check(owner, block, count)
        self.found.append(Extents(owner, logical, count, block, written))

    # -- extent trees ----------------------------------------------------------------------------------------------

    def trees(self, owner: Numbers, rows: Bytes, depth: Numbers | None = None) -> None:
        if not len(owner):
            return
        head = np.ascontiguousarray(rows[:, :12]).view("<u2")
        used, own_depth = head[:, 1].astype(np.int64), head[:, 3].astype(np.int64)
        room = (rows.shape[1] - 12) // 12
        wrong = (head[:, 0] != _MAGIC) | (used > room) | (own_depth > _DEEPEST)
        if depth is not None:
            wrong |= own_depth != depth
        if wrong.any():
            raise damaged(f"the blocks of inode {int(owner[wrong][0])} make no sense")
        cells = np.ascontiguousarray(rows[:, 12 : 12 + room * 12]).view("<u4").reshape(-1, room, 3)
        filled = np.arange(room) < used[:, None]
        self._leaves(owner, cells, filled & (own_depth == 0)[:, None])
        inner = filled & (own_depth > 0)[:, None]
        row = np.nonzero(inner)[0]
        some = cells[inner].astype(np.int64)
        owner, depth = owner[row], own_depth[row] - 1
        for part, nodes in self.nodes(owner, some[:, 1] | (some[:, 2] & 0xFFFF) << 32):
            self.trees(owner[part], nodes, depth[part])

    def _leaves(self, owner: Numbers, cells: npt.NDArray[np.uint32], chosen: npt.NDArray[np.bool_]) -> None:
        row = np.nonzero(chosen)[0]
        some = cells[chosen].astype(np.int64)
        count = some[:, 1] & 0xFFFF
        block = some[:, 2] | some[:, 1] >> 16 << 32
        written = count <= _UNWRITTEN
        count = np.where(written, count, count - _UNWRITTEN)
        if (count == 0).any():
            raise damaged(f"the blocks of inode {int(owner[row][count == 0][0])} make no sense")
        self.keep(owner[row], some[:, 0], count, block, written)

    # -- indirect blocks -------------------------------------------------------------------------------------------

    def pointers(self, owner: Numbers, places: Bytes) -> None:
        if not len(owner):
            return
        table = np.ascontiguousarray(places).view("<u4").astype(np.int64)
        row, column = np.nonzero(table[:, :_DIRECT])
        self._singles(owner[row], column.astype(np.int64), table[row, column])
        each = self.block_size // 4
        base = _DIRECT
        for level in (1, 2, 3):
            block = table[:, _DIRECT + level - 1]
            used = block != 0
            self._indirect(owner[used], np.full(int(used.sum()), base, np.int64), block[used], level)
            base += each**level

    def _indirect(self, owner: Numbers, base: Numbers, block: Numbers, level: int) -> None:
        if not level:
            self._singles(owner, base, block)
            return
        for part, nodes in self.nodes(owner, block):
            cells = nodes.view("<u4")
            row, column = np.nonzero(cells)
            below = base[part][row] + column * (self.block_size // 4) ** (level - 1)
            self._indirect(owner[part][row], below, cells[row, column].astype(np.int64), level - 1)

    def _singles(self, owner: Numbers, logical: Numbers, block: Numbers) -> None:
        """Keep single blocks, neighbours as one run."""
        if not len(owner):
            return
        apart = (np.diff(owner) != 0) | (np.diff(logical) != 1) | (np.diff(block) != 1)
        first = np.concatenate(([0], np.flatnonzero(apart) + 1))
        count = np.diff(np.concatenate((first, [len(owner)])))
        self.keep(owner[first], logical[first], count, block[first], np.ones(len(first), np.bool_))
