"""What differs between two states of an ext file system.

Where both are states of one file system, it starts from the blocks that differ: those of inode tables give the inodes
that were touched, those of directories and contents their owners. Only these inodes are looked at, and only their
blocks that differ are read. The result is that of walking both trees and comparing everything.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from vmlab.compare.blocks import Numbers
from vmlab.compare.ext4.extents import Extents
from vmlab.compare.ext4.filesystem import PART, Ext4
from vmlab.compare.ext4.index import Index, Links, within
from vmlab.compare.ext4.inode import Inode
from vmlab.compare.renames import pairs

#: What a file system calls a file.
N = TypeVar("N")

#: The unit in which callers know what differs.
PAGE = 4096
#: Blocks of a file that are looked at in one go.
_WINDOW = 1 << 20


@dataclass(frozen=True)
class Change(Generic[N]):
    """One path that is not what it was.

    Attributes
    ----------
    before, after
        Path and inode; None where there was, or is, nothing of that name.
    what
        What differs, of: type, content, target, device, mode, owner, group, attributes, flags, mtime, replaced.
    renamed
        Whether ``after`` is the same file under another name.
    link_to
        For a name that was added or removed: another name that the same file had before and still has.
    moved_to
        For a name that was removed: a name that the same file has only now.
    """

    before: tuple[bytes, N] | None
    after: tuple[bytes, N] | None
    what: tuple[str, ...] = ()
    renamed: bool = False
    link_to: bytes | None = None
    moved_to: bytes | None = None


def changes(a: Ext4, b: Ext4, pages: Numbers, *, related: bool = True) -> list[Change[Inode]]:
    """Return what differs, sorted by path.

    Parameters
    ----------
    pages
        The pages of 4096 bytes, counted from the start of the file system, whose bytes on the disks differ, ascending.
    related
        Whether the two grew out of one state; else an inode's number does not tell that it is the same file.
    """
    found = _Comparison(a, b, pages, related) if _one_file_system(a, b) else _TreeWalk(a, b)
    return sorted(found.changes(), key=lambda c: (c.after or c.before or (b"",))[0])


def _one_file_system(a: Ext4, b: Ext4) -> bool:
    """Return whether both are states of one file system; it may have grown."""
    return a.start == b.start and all(
        getattr(a.sb, name) == getattr(b.sb, name)
        for name in (
            "uuid",
            "block_size",
            "inode_size",
            "inodes_per_group",
            "blocks_per_group",
            "first_block",
        )
    )


class _TreeWalk:
    """Compares two trees by walking both: file systems that have nothing in common."""

    def __init__(self, a: Ext4, b: Ext4) -> None:
        self.a, self.b = a, b
        #: Blocks that differ; None where blocks of the same number have nothing to do with each other.
        self.changed: Numbers | None = None

    def changes(self) -> Iterator[Change[Inode]]:
        """Yield what differs."""
        before, after = dict(self.a.walk()), dict(self.b.walk())
        for path in before.keys() | after.keys():
            x, y = before.get(path), after.get(path)
            if x is not None and y is not None:
                if what := self.what(x, y):
                    yield Change((path, x), (path, y), what)
            else:
                yield Change((path, x) if x else None, (path, y) if y else None)

    def extents(self, fs: Ext4, inode: Inode) -> Extents:
        return fs.extents(inode)

    def what(self, x: Inode, y: Inode) -> tuple[str, ...]:
        """Return what differs between two files."""
        if x.format != y.format:
            return ("type",)
        found = []
        if x.format == stat.S_IFREG and self._content_differs(x, y):
            found.append("content")
        if x.format == stat.S_IFLNK and self.a.target(x) != self.b.target(y):
            found.append("target")
        if x.device != y.device:
            found.append("device")
        if x.mode != y.mode:
            found.append("mode")
        if x.uid != y.uid:
            found.append("owner")
        if x.gid != y.gid:
            found.append("group")
        if self._attributes_differ(x, y):
            found.append("attributes")
        if x.shown_flags != y.shown_flags:
            found.append("flags")
        if x.mtime != y.mtime:
            found.append("mtime")
        return tuple(found)

    def _attributes_differ(self, x: Inode, y: Inode) -> bool:
        if not (x.attributes_block or y.attributes_block or x.inline or y.inline) and x.body == y.body:
            return False
        return self.a.attributes(x) != self.b.attributes(y)

    def _content_differs(self, x: Inode, y: Inode) -> bool:
        if x.size != y.size:
            return True
        if x.inline or y.inline:
            return self.a.read(x, 0, x.size) != self.b.read(y, 0, y.size)
        e, f, size = self.extents(self.a, x), self.extents(self.b, y), self.a.sb.block_size
        if size != self.b.sb.block_size:
            return any(p != q for p, q in zip(self.a.parts(x), self.b.parts(y), strict=True))
        whole, rest = divmod(x.size, size)
        for logical in self.differing(e, f, -(-x.size // size)):
            if (logical < whole).any():
                return True
            # What lies behind the end of the file does not count.
            last = np.array([whole], np.int64)
            p, q = self.a.read_logical(e, last), self.b.read_logical(f, last)
            if (p[0, :rest] != q[0, :rest]).any():
                return True
        return False

    def differing(self, e: Extents, f: Extents, end: int) -> Iterator[Numbers]:
        """Yield the blocks of a file, before ``end``, whose content differs, some at once."""
        if self.changed is not None and e.same(f):
            runs = e.where(e.written)
            first = np.searchsorted(self.changed, runs.physical)
            last = np.searchsorted(self.changed, runs.physical + runs.count)
            for n in np.flatnonzero(last > first).tolist():
                logical = self.changed[first[n] : last[n]] - runs.physical[n] + runs.logical[n]
                if len(logical := logical[logical < end]):
                    yield logical
            return
        step = PART // self.a.sb.block_size
        for logical in _windows(e, f, end):
            p, q = e.place(logical), f.place(logical)
            maybe = p != q if self.changed is not None else (p >= 0) | (q >= 0)
            if self.changed is not None:
                maybe |= (p >= 0) & within(p, self.changed)
            logical = logical[maybe]
            for at in range(0, len(logical), step):
                some = logical[at : at + step]
                different = (self.a.read_logical(e, some) != self.b.read_logical(f, some)).any(axis=1)
                if different.any():
                    yield some[different]


def _windows(e: Extents, f: Extents, end: int) -> Iterator[Numbers]:
    """Yield the blocks of a file that either side has, some at once, ascending."""
    first = np.concatenate([e.logical, f.logical])
    last = np.minimum(np.concatenate([e.logical + e.count, f.logical + f.count]), end)
    at = 0
    while (left := last > np.maximum(first, at)).any():
        at = max(at, int(first[left].min()))
        low, high = np.maximum(first, at), np.minimum(last, at + _WINDOW)
        parts = [np.arange(x, y, dtype=np.int64) for x, y in zip(low, high, strict=True) if x < y]
        yield np.unique(np.concatenate(parts))
        at += _WINDOW


class _Comparison(_TreeWalk):
    """Compares two states of one file system by the blocks that differ."""

    changed: Numbers

    def __init__(self, a: Ext4, b: Ext4, pages: Numbers, related: bool) -> None:
        super().__init__(a, b)
        self.related = related
        self.changed = changed_blocks(a, b, pages)
        if len(self.changed):
            self.index = (Index(a), Index(b))

    def extents(self, fs: Ext4, inode: Inode) -> Extents:
        if not inode.mapped:
            return Extents.of([])
        return self.index[fs is self.b].extents.of_inode(inode.number)

    def changes(self) -> Iterator[Change[Inode]]:
        """Yield what differs."""
        if not len(self.changed):
            return
        touched = touched_inodes(self.a, self.b, self.changed)
        owners = [index.owners(self.changed) for index in self.index]
        candidates = np.unique(np.concatenate([touched, *owners]))
        live = (live_inodes(self.a, candidates), live_inodes(self.b, candidates))
        wanted = live[0].keys() | live[1].keys()
        wanted |= self._renamed_entries(*live)
        while True:
            for index in self.index:
                index.find(wanted)
            numbers = np.array(sorted(wanted), np.int64)
            before, after = live_inodes(self.a, numbers), live_inodes(self.b, numbers)
            links = self.index[0].links(before), self.index[1].links(after)
            more = self._below_replaced(before, after, *links) - wanted
            if not more:
                break
            wanted |= more
        yield from self._by_path(before, after, *links)

    def _below_replaced(
        self, before: dict[int, Inode], after: dict[int, Inode], links_a: Links, links_b: Links
    ) -> set[int]:
        """Return what lies in directories whose path leads to something else now, as far as that matters.

        What is in a directory that was moved keeps its inode and its entry. Where the directory has a name that was
        there before, too, its contents must be compared with what was there; and where nobody can tell that it was
        moved, they are gone from the one path and new at the other.
        """
        found: set[int] = set()
        for path in links_a.keys() & links_b.keys():
            x, y = before[links_a[path][0]], after[links_b[path][0]]
            if x.identity != y.identity:
                found |= _below(self.a, x) | _below(self.b, y)
        if not self.related:
            for path in links_a.keys() ^ links_b.keys():
                if path in links_a:
                    found |= _below(self.a, before[links_a[path][0]])
                else:
                    found |= _below(self.b, after[links_b[path][0]])
        return found

    def _renamed_entries(self, before: dict[int, Inode], after: dict[int, Inode]) -> set[int]:
        """Return the inodes whose names differ, as the directories among the candidates say."""
        found: set[int] = set()
        for number in before.keys() | after.keys():
            x, y = before.get(number), after.get(number)
            x = x if x is not None and x.is_directory else None
            y = y if y is not None and y.is_directory else None
            if x is not None and y is not None and x.identity == y.identity and x.mapped and y.mapped:
                names = self._differing_names(x, y)
            else:
                names = set(self.a.entries(x) if x else ()) ^ set(self.b.entries(y) if y else ())
            found |= {inode for _, inode in names}
        return found

    def _differing_names(self, x: Inode, y: Inode) -> set[tuple[bytes, int]]:
        """Return the entries that only one of two states of a directory has; only blocks that differ are read."""
        e, f, size = self.extents(self.a, x), self.extents(self.b, y), self.a.sb.block_size
        before: set[tuple[bytes, int]] = set()
        after: set[tuple[bytes, int]] = set()
        for logical in self.differing(e, f, -(-max(x.size, y.size) // size)):
            for fs, inode, extents, names in ((self.a, x, e, before), (self.b, y, f, after)):
                place = extents.place(logical[logical * size < inode.size])
                for row in fs.read_blocks(place[place >= 0]):
                    names.update(fs.block_entries(row.tobytes()))
        return before ^ after

    def _by_path(
        self, before: dict[int, Inode], after: dict[int, Inode], links_a: Links, links_b: Links
    ) -> Iterator[Change[Inode]]:
        for path in links_a.keys() & links_b.keys():
            x, y = before[links_a[path][0]], after[links_b[path][0]]
            what = self.what(x, y)
            if x.is_directory and y.is_directory and x.identity != y.identity:
                what = (*what, "replaced")
            if what:
                yield Change((path, x), (path, y), what)
        # Inode numbers of file systems that were made apart have nothing to do with each other.
        identities = [
            {path: nodes[number].identity if self.related else None for path, (number, _, _) in links.items()}
            for nodes, links in ((before, links_a), (after, links_b))
        ]
        for pair in pairs(*identities):
            old = None if pair.old is None else (pair.old, before[links_a[pair.old][0]])
            new = None if pair.new is None else (pair.new, after[links_b[pair.new][0]])
            what = self.what(old[1], new[1]) if old is not None and new is not None else ()
            # What lies in a directory that was renamed has another path, too; that alone says nothing new.
            if what or pair.renamed or old is None or new is None:
                yield Change(old, new, what, pair.renamed, pair.link_to, pair.moved_to)


def _below(fs: Ext4, inode: Inode) -> set[int]:
    """Return all inodes that are in a directory, at any depth."""
    found: set[int] = set()
    waiting = [inode]
    while waiting:
        directory = waiting.pop()
        if directory.is_directory:
            numbers = {number for _, number in fs.entries(directory)} - found
            found |= numbers
            waiting += fs.inodes(numbers).values()
    return found


def changed_blocks(a: Ext4, b: Ext4, pages: Numbers) -> Numbers:
    """Return the blocks that differ once both journals have been replayed, ascending."""
    size = a.sb.block_size
    if size < PAGE:
        found = (pages[:, None] * (PAGE // size) + np.arange(PAGE // size)).ravel()
    else:
        found = np.unique(pages // (size // PAGE))
    journalled = np.unique(np.concatenate([a.replay.blocks, b.replay.blocks]))
    # Blocks of that size were compared already; what a journal holds was not.
    known = found[~within(found, journalled)] if size >= PAGE else found[:0]
    open_ = np.unique(np.concatenate([found[~within(found, known)], journalled]))
    both = min(a.sb.blocks, b.sb.blocks)
    # Behind the end of the file system may be anything.
    parts = [known, open_[(open_ >= both) & (open_ < max(a.sb.blocks, b.sb.blocks))]]
    open_ = open_[open_ < both]
    step = PART // size
    for at in range(0, len(open_), step):
        some = open_[at : at + step]
        parts.append(some[(a.read_blocks(some) != b.read_blocks(some)).any(axis=1)])
    return np.unique(np.concatenate(parts))


def touched_inodes(a: Ext4, b: Ext4, changed: Numbers) -> Numbers:
    """Return the inodes whose records differ, ascending."""
    sb = a.sb
    each = sb.block_size // sb.inode_size
    found = [np.zeros(0, np.int64)]
    both = min(sb.groups, b.sb.groups)
    used = [np.zeros(max(sb.groups, b.sb.groups), np.int64) for _ in range(2)]
    used[0][: sb.groups], used[1][: b.sb.groups] = a.groups.used, b.groups.used
    most, least = np.maximum(*used), np.minimum(*used)
    in_place = np.zeros(len(most), np.bool_)
    in_place[:both] = a.groups.table[:both] == b.groups.table[:both]
    # Tables that were moved, or that one side does not have: all inodes are looked at.
    for group in np.flatnonzero((~in_place & (most > 0)) | (most != least)).tolist():
        low = int(least[group]) if in_place[group] else 0
        found.append(group * sb.inodes_per_group + 1 + np.arange(low, most[group]))
    first = np.searchsorted(changed, a.groups.table[:both])
    last = np.searchsorted(changed, a.groups.table[:both] + sb.table_blocks)
    for group in np.flatnonzero((last > first) & in_place[:both]).tolist():
        blocks = changed[first[group] : last[group]]
        inside = (blocks - a.groups.table[group])[:, None] * each + np.arange(each)
        p, q = a.read_blocks(blocks), b.read_blocks(blocks)
        different = (p != q).reshape(-1, sb.inode_size).any(axis=1)
        numbers = inside.ravel()[different]
        found.append(group * sb.inodes_per_group + 1 + numbers[numbers < most[group]])
    return np.unique(np.concatenate(found))


def live_inodes(fs: Ext4, numbers: Numbers) -> dict[int, Inode]:
    """Return those of some inodes that are in use."""
    numbers = numbers[(numbers >= 1) & (numbers <= fs.sb.inodes)]
    group, inside = np.divmod(numbers - 1, fs.sb.inodes_per_group)
    numbers = numbers[inside < fs.groups.used[group]]
    links = np.ascontiguousarray(fs.records(numbers)[:, 26:28]).view("<u2").ravel()
    return fs.inodes(numbers[links > 0].tolist())
