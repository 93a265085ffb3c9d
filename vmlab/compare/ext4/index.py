"""All inodes of a file system at a glance: whose a block is, and which names an inode has.

The inode tables and the directories are read whole, but as arrays: the fifteen thousand files of a desktop take some
hundredths of a second.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from functools import cached_property

import numpy as np
import numpy.typing as npt

from vmlab.compare.blocks import Bytes, Numbers
from vmlab.compare.ext4.extents import Extents, Mapped, map_inodes
from vmlab.compare.ext4.filesystem import PART, ROOT, Ext4
from vmlab.compare.ext4.inode import EXTENTS_FLAG, FAST_SYMLINK, INLINE_FLAG
from vmlab.compare.ext4.superblock import damaged

#: An entry of a directory: where it leads to, the directory, the name.
Link = tuple[int, int, bytes]
#: Entries by their path.
Links = dict[bytes, Link]


def within(values: Numbers, ordered: Numbers) -> npt.NDArray[np.bool_]:
    """Return which of ``values`` are in ``ordered``, which is ascending."""
    if not len(ordered):
        return np.zeros(len(values), np.bool_)
    at = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    found: npt.NDArray[np.bool_] = ordered[at] == values
    return found


class Index:
    """What the inodes of ``fs`` own, and what they are called."""

    def __init__(self, fs: Ext4) -> None:
        self.fs = fs
        parts = [self._scan(numbers, rows) for numbers, rows in self._tables()]
        empty = [np.zeros(0, np.int64)]
        mapped = [part[0] for part in parts]
        self.extents = Extents.of([part.extents for part in mapped])
        #: Blocks of trees and of extended attributes, and whose they are.
        self.meta_inode = np.concatenate([p.tree_inode for p in mapped] + [p[1] for p in parts] or empty)
        self.meta_block = np.concatenate([p.tree_block for p in mapped] + [p[2] for p in parts] or empty)
        self._refuse_shared(np.concatenate([p.tree_block for p in mapped] or empty))
        #: The inodes of directories, and their sizes in bytes.
        self.directories = np.concatenate([p[3] for p in parts] or empty)
        self.directory_sizes = np.concatenate([p[4] for p in parts] or empty)
        self.inline_directories = np.concatenate([p[5] for p in parts] or empty)
        self._names: dict[int, list[tuple[int, bytes]]] = {}
        self._directory_paths = {ROOT: b"/"}

    def _refuse_shared(self, trees: Numbers) -> None:
        """Raise if a block holds the content, or a part of the tree, of several inodes.

        Then what belongs to whom cannot be told, and contents together could be far larger than the disk.
        """
        first = np.concatenate([self.extents.physical, trees])
        last = np.concatenate([self.extents.physical + self.extents.count, trees + 1])
        order = np.argsort(first)
        if (first[order][1:] < last[order][:-1]).any():
            raise damaged("a block belongs to several inodes")

    # -- the inode tables ------------------------------------------------------------------------------------------

    def _tables(self) -> Iterator[tuple[Numbers, Bytes]]:
        """Yield numbers and records of the inodes that may be in use, part by part."""
        sb, groups = self.fs.sb, self.fs.groups
        each = sb.block_size // sb.inode_size
        waiting: list[tuple[Numbers, Numbers]] = []
        count = 0
        for group in np.flatnonzero(groups.used).tolist():
            length = -(-int(groups.used[group]) // each)
            blocks = groups.table[group] + np.arange(length, dtype=np.int64)
            numbers = group * sb.inodes_per_group + 1 + np.arange(length * each, dtype=np.int64)
            numbers[groups.used[group] :] = 0
            waiting.append((blocks, numbers))
            count += length * sb.block_size
            if count > PART:
                yield self._read_tables(waiting)
                waiting, count = [], 0
        if waiting:
            yield self._read_tables(waiting)

    def _read_tables(self, parts: list[tuple[Numbers, Numbers]]) -> tuple[Numbers, Bytes]:
        rows = self.fs.read_blocks(np.concatenate([blocks for blocks, _ in parts]))
        return np.concatenate([numbers for _, numbers in parts]), rows.reshape(-1, self.fs.sb.inode_size)

    def _scan(
        self, numbers: Numbers, rows: Bytes
    ) -> tuple[Mapped, Numbers, Numbers, Numbers, Numbers, Numbers]:
        sb = self.fs.sb

        def value(at: int, kind: str) -> Numbers:
            width = np.dtype(kind).itemsize
            return np.ascontiguousarray(rows[:, at : at + width]).view(kind).ravel().astype(np.int64)

        named = (numbers >= sb.first_inode) | (numbers == ROOT)
        live = named & (value(26, "<u2") > 0)
        numbers, rows = numbers[live], rows[live]
        form, flags, size = value(0, "<u2") & 0xF000, value(32, "<u4"), value(4, "<u4")
        directory, link = form == stat.S_IFDIR, form == stat.S_IFLNK
        inline = (flags & INLINE_FLAG) != 0
        fast = link & (size < FAST_SYMLINK) & ((flags & EXTENTS_FLAG) == 0)
        content = ((form == stat.S_IFREG) | directory | link) & ~inline & ~fast
        mapped = map_inodes(
            numbers[content],
            flags[content],
            rows[content, 40:100],
            self.fs.read_blocks,
            sb.blocks,
            sb.block_size,
        )
        attributes = value(104, "<u4") | value(118, "<u2") << 32
        has = attributes != 0
        size |= np.where(directory, value(108, "<u4") << 32, 0)
        plain = directory & ~inline
        return (
            mapped, numbers[has], attributes[has], numbers[plain], size[plain], numbers[directory & inline],
        )  # fmt: skip

    def owners(self, changed: Numbers) -> Numbers:
        """Return the inodes to which some of these blocks belong; ``changed`` is ascending."""
        first = np.searchsorted(changed, self.extents.physical)
        last = np.searchsorted(changed, self.extents.physical + self.extents.count)
        content = self.extents.inode[(last > first) & self.extents.written]
        return np.unique(np.concatenate([content, self.meta_inode[within(self.meta_block, changed)]]))

    # -- names -----------------------------------------------------------------------------------------------------

    def find(self, wanted: Iterable[int]) -> None:
        """Find the names of inodes and of the directories above them, for :meth:`links`."""
        missing = set(wanted) - self._names.keys()
        places: set[int] | None = None
        while missing:
            found = self._search(missing, places)
            if places is not None and (lost := missing - found.keys() - {ROOT}):
                # Their `..` leads elsewhere, or they cannot be reached.
                found |= self._search(lost, None)
            self._names.update({number: found.get(number, []) for number in missing})
            missing = {parent for names in found.values() for parent, _ in names} - self._names.keys()
            # `..` says which directories above these will be needed, and where their names are.
            places = set()
            for number in list(missing):
                while (parent := self._parents.get(number, ROOT)) not in places:
                    places.add(parent)
                    if parent in self._names or parent == number:
                        break
                    missing.add(parent)
                    number = parent

    def links(self, numbers: Iterable[int]) -> Links:
        """Return the entries that lead to some inodes by their path; what cannot be reached has none."""
        found: Links = {}
        for number in numbers:
            if number == ROOT:
                found[b"/"] = (ROOT, ROOT, b"")
            for parent, name in self._names.get(number, []):
                above = self._directory(parent)
                if above is not None:
                    found[above.rstrip(b"/") + b"/" + name] = (number, parent, name)
        return found

    def _directory(self, number: int) -> bytes | None:
        """Return the path of a directory, None if it cannot be reached."""
        way: list[tuple[int, bytes]] = []
        seen: set[int] = set()
        at = number
        while at not in self._directory_paths:
            names = self._names.get(at, [])
            if len(names) > 1:
                raise damaged("a directory has two names")
            if not names or at in seen:
                return None
            seen.add(at)
            way.append((at, names[0][1]))
            at = names[0][0]
        path = self._directory_paths[at]
        for at, name in reversed(way):
            path = path.rstrip(b"/") + b"/" + name
            self._directory_paths[at] = path
        return path

    @cached_property
    def _blocks(self) -> tuple[Numbers, Numbers, Numbers]:
        """Return directory, block in it and block of the file system of all blocks of directories, as they lie."""
        order = np.argsort(self.directories)
        known, sizes = self.directories[order], self.directory_sizes[order]
        runs = self.extents.where(within(self.extents.inode, known))
        if runs.count.sum() > self.fs.sb.blocks:
            raise damaged("its directories have more blocks than there are")
        inode, logical, place = runs.all_blocks()
        if len(inode):
            inside = logical * self.fs.sb.block_size < sizes[np.searchsorted(known, inode)]
            inode, logical, place = inode[inside], logical[inside], place[inside]
        order = np.argsort(place)
        return inode[order], logical[order], place[order]

    @cached_property
    def _parents(self) -> dict[int, int]:
        """Return the directory above each directory, as its entry ``..`` says."""
        inode, logical, place = self._blocks
        first = logical == 0
        found: dict[int, int] = {}
        step = PART // self.fs.sb.block_size
        owner, place = inode[first], place[first]
        for at in range(0, len(place), step):
            # `.` is 12 bytes long and `..` behind it.
            rows = self.fs.read_blocks(place[at : at + step])
            dots = np.ascontiguousarray(rows[:, 12:16]).view("<u4").ravel()
            found.update(zip(owner[at : at + step].tolist(), dots.tolist(), strict=True))
        return found

    def _search(self, wanted: set[int], places: set[int] | None) -> dict[int, list[tuple[int, bytes]]]:
        """Look for entries that lead to ``wanted``, in some directories or in all."""
        found: dict[int, list[tuple[int, bytes]]] = {}
        most = self.fs.sb.inodes
        table = np.zeros(most + 2, np.bool_)
        table[[n for n in wanted if n <= most]] = True
        inode, _, place = self._blocks
        if places is not None:
            chosen = within(inode, np.array(sorted(places), np.int64))
            inode, place = inode[chosen], place[chosen]
        step = PART // self.fs.sb.block_size
        for at in range(0, len(place), step):
            rows = self.fs.read_blocks(place[at : at + step])
            # Entries start at multiples of four bytes with the inode: only blocks that have the number there are read.
            hits = table[np.minimum(rows.view("<u4"), most + 1)].any(axis=1)
            for row in np.flatnonzero(hits).tolist():
                parent = int(inode[at + row])
                for name, number in self.fs.block_entries(rows[row].tobytes()):
                    if number in wanted:
                        found.setdefault(number, []).append((parent, name))
        for parent, directory in self.fs.inodes(self.inline_directories.tolist()).items():
            for name, number in self.fs.inline_entries(directory):
                if number in wanted:
                    found.setdefault(number, []).append((parent, name))
        return found
