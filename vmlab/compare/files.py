"""Files: what differs between the disks of two states, file by file.

::

    found = compare_files(before.disks, after.disks)
    print(found)  # 2 added, 1 changed
    found.added("/etc/motd").text_diff()
    assert found.unchanged("/etc/shadow")

ext2, ext3 and ext4 are read here, on whole disks, in partitions and in linear LVM volumes; FAT, NTFS and XFS are
walked with the libraries of the extra ``filesystems``. Of other file systems the result says that they were not read,
unless no byte of theirs differs.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vmlab.compare.blocks import Disk, Mapped, Numbers, Readable, Segment, differing
from vmlab.compare.ext4 import Ext4
from vmlab.compare.ext4.differences import PAGE, Change, changes
from vmlab.compare.lvm import LogicalVolume, logical_volumes
from vmlab.compare.partitions import Partition, kind_of, partitions
from vmlab.compare.walk import LIBRARIES, Walk, readable
from vmlab.errors import DiskUnreadable, HostError

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-not-found,import-untyped,unused-ignore]

#: What an entry can say of a path, in the order of a summary.
KINDS = ("added", "removed", "changed", "renamed", "metadata", "touched")
#: Differences that are more than metadata, and those that say little.
_CONTENT = {"content", "type"}
_LITTLE = {"mtime", "replaced"}
_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}
#: Larger files have no text diff, and no hash in JSON.
TEXT_LIMIT = 256 << 10
HASH_LIMIT = 64 << 20
#: Bytes that are looked at to tell text from other content.
_PROBE = 8192


def printable(path: str) -> str:
    r"""Return a path as it can be printed anywhere; bytes that are no UTF-8 are shown as ``\xff``."""
    shown = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


class FileSystem(Protocol):
    """What reads a file system; what it calls a file is its own."""

    def target(self, inode: Any, /) -> bytes:
        """Return what a symbolic link leads to."""

    def attributes(self, inode: Any, /) -> dict[bytes, bytes]:
        """Return extended attributes."""

    def read(self, inode: Any, offset: int, length: int, /) -> bytes:
        """Return bytes of a file's content, fewer at its end."""

    def parts(self, inode: Any, /) -> Iterator[bytes]:
        """Yield a file's content in parts."""

    def lookup(self, path: bytes, /) -> Any:
        """Return what an absolute path leads to, or None."""


@dataclass(frozen=True)
class FileState:
    """A file as one of the two states has it.

    Attributes
    ----------
    type
        ``file``, ``directory``, ``symlink``, ``character device``, ``block device``, ``fifo`` or ``socket``.
    mode
        Permission bits, with set-user-ID and the like. FAT and NTFS have none: 0777, or 0555 for read-only files.
    uid, gid
        Owner and group; 0 on FAT and NTFS.
    size
        Bytes.
    mtime
        When the content was changed, in nanoseconds since 1970. FAT keeps local time, which is taken as UTC.
    target
        What a symbolic link leads to.
    device
        Major and minor number of a device.
    flags
        The letters of ``lsattr``: ``i`` immutable, ``a`` append-only ...; on FAT and NTFS ``R`` read-only,
        ``H`` hidden, ``S`` system, ``C`` compressed, ``E`` encrypted. Those of XFS are not read.
    inode
        Its number: of NTFS that of its record, of FAT the place of its entry.
    """

    type: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    target: str | None
    device: tuple[int, int] | None
    flags: str
    inode: int
    _fs: FileSystem = field(repr=False, compare=False)
    _inode: Any = field(repr=False, compare=False)

    @classmethod
    def of(cls, fs: FileSystem, inode: Any) -> FileState:
        """Read a file's state, not its content."""
        link = inode.format == stat.S_IFLNK
        return cls(
            type=_TYPES.get(inode.format, "unknown"),
            mode=stat.S_IMODE(inode.mode),
            uid=inode.uid,
            gid=inode.gid,
            size=inode.size,
            mtime=inode.mtime,
            target=_text(fs.target(inode)) if link else None,
            device=inode.device,
            flags=inode.shown_flags,
            inode=inode.number,
            _fs=fs,
            _inode=inode,
        )

    @cached_property
    def attributes(self) -> dict[str, bytes]:
        """Extended attributes, with their prefix: ``user.x``, ``security.capability``, ``system.posix_acl_access``.

        Of NTFS, as ntfs-3g names them: the first 64 KiB of other streams (``user.NAME``), and ``system.ntfs_acl``.
        """
        return {_text(k): v for k, v in sorted(self._fs.attributes(self._inode).items())}

    @cached_property
    def sha256(self) -> str | None:
        """SHA-256 of a file's content; None for what has none. The whole content is read."""
        if self.type != "file":
            return None
        digest = hashlib.sha256()
        for part in self._fs.parts(self._inode):
            digest.update(part)
        return digest.hexdigest()

    def read(self, limit: int | None = None) -> bytes:
        """Return a file's content, at most ``limit`` bytes of it."""
        if self.type != "file":
            return b""
        return self._fs.read(self._inode, 0, self.size if limit is None else limit)

    def to_json(self) -> dict[str, Any]:
        """Return what is known, with the hash of files up to 64 MiB."""
        found: dict[str, Any] = {
            item.name: getattr(self, item.name)
            for item in dataclasses.fields(self)
            if not item.name.startswith("_")
        }
        found["mode"] = f"{self.mode:04o}"
        found["target"] = None if self.target is None else printable(self.target)
        found["attributes"] = {printable(k): v.hex() for k, v in self.attributes.items()}
        found["sha256"] = self.sha256 if self.size <= HASH_LIMIT else None
        return found


@dataclass(frozen=True)
class FileChange:
    """A path that is not what it was.

    Attributes
    ----------
    kind
        ``added``, ``removed``, ``changed`` (content or type), ``renamed``, ``metadata`` (mode, owner, target of a link
        ...), ``touched`` (only the time, or a directory in the place of one of the same name).
    path
        Where it is, or was if it is gone. Bytes that are no UTF-8 are as :func:`os.fsdecode` has them.
    before, after
        The file then and now; None where there was none.
    what
        What differs, of: type, content, target, device, mode, owner, group, attributes, flags, mtime, replaced.
        For what was renamed: what differs besides its path.
    old_path
        Where it was before, if that is not ``path``. What lies in a directory that was renamed moves along without
        entries of its own.
    link_to
        For a name that was added or removed: another name of the same file, which had it before and has it still.
    volume
        The disk, partition or logical volume: ``vda``, ``vda1``, ``vda2/vg/lv``.
    """

    kind: str
    path: str
    before: FileState | None
    after: FileState | None
    what: tuple[str, ...] = ()
    old_path: str | None = None
    link_to: str | None = None
    volume: str = ""

    def __str__(self) -> str:
        text = f"{printable(self.path)} {self._said()}"
        return f"{text} ({', '.join(self.what)})" if self.what else text

    def _said(self) -> str:
        if self.old_path is not None:
            return f"was {self.kind}; it was {printable(self.old_path)}"
        if self.link_to is not None:
            return f"was {self.kind}: a hard link to {printable(self.link_to)}"
        return {"metadata": "has other metadata", "touched": "was touched"}.get(self.kind, f"was {self.kind}")

    @property
    def type(self) -> str:
        """``file``, ``directory`` ...: what it is, or was if it is gone."""
        state = self.after or self.before
        assert state is not None
        return state.type

    def text_diff(self, context: int = 3) -> str | None:
        """Return what differs as a unified diff.

        Parameters
        ----------
        context
            Lines shown around each difference.

        Returns
        -------
        str or None
            None unless both sides are text of at most 256 KiB; what was added or removed is compared with nothing.
        """
        old, new = _lines(self.before), _lines(self.after)
        if old is None or new is None:
            return None
        lines = difflib.unified_diff(
            old,
            new,
            "/dev/null" if self.before is None else f"a{printable(self.old_path or self.path)}",
            "/dev/null" if self.after is None else f"b{printable(self.path)}",
            n=context,
        )
        return "".join(x if x.endswith("\n") else f"{x}\n\\ No newline at end of file\n" for x in lines)

    def to_json(self) -> dict[str, Any]:
        """Return all of it; ``path_bytes`` (hexadecimal) is there for paths that are no UTF-8."""
        found: dict[str, Any] = {
            "kind": self.kind,
            "path": printable(self.path),
            "type": self.type,
            "what": list(self.what),
            "volume": self.volume,
            "before": None if self.before is None else self.before.to_json(),
            "after": None if self.after is None else self.after.to_json(),
        }
        if self.old_path is not None:
            found["old_path"] = printable(self.old_path)
        if self.link_to is not None:
            found["link_to"] = printable(self.link_to)
        if printable(self.path) != self.path:
            found["path_bytes"] = self.path.encode("utf-8", "surrogateescape").hex()
        return found


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def _lines(state: FileState | None) -> list[str] | None:
    """Return the lines of a text file, or None if it is none, or too large; nothing has no lines."""
    if state is None:
        return []
    if state.type != "file" or state.size > TEXT_LIMIT or b"\0" in state.read(_PROBE):
        return None
    try:
        text = state.read().decode("utf-8")
    except UnicodeDecodeError:
        return None
    # Not splitlines(): a form feed ends no line. What stands behind the last "\n" is a line only if there is something.
    *lines, rest = text.split("\n")
    return [f"{line}\n" for line in lines] + ([rest] if rest else [])


@dataclass(frozen=True)
class Volume:
    """A partition, a logical volume, or a whole disk without partitions, that both states have.

    Attributes
    ----------
    name
        ``vda1``, ``vda``, ``vda2/vg/lv``.
    kind
        ``ext``, ``xfs`` ...; ``empty`` or ``unknown``.
    label
        The label of the file system, if it was read and has one.
    changed_bytes
        How many bytes lie in blocks that differ.
    unread
        A sentence if files may differ which the result does not show; else None.
    """

    name: str
    kind: str
    label: str = ""
    changed_bytes: int = 0
    unread: str | None = None
    _sides: tuple[FileSystem, FileSystem] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class FilesDiff:
    """The files that differ between two states.

    Iterate over it for its entries, sorted by path. :meth:`added`, :meth:`removed`, :meth:`changed`, :meth:`renamed`
    and :meth:`unchanged` are for assertions: each returns something true, or raises an :class:`AssertionError` whose
    message says what was there instead. For a plain question there are :meth:`get` and ``path in diff``.

    Attributes
    ----------
    entries
        All differences.
    volumes
        The file systems that were compared.
    """

    entries: tuple[FileChange, ...]
    volumes: tuple[Volume, ...]

    def __iter__(self) -> Iterator[FileChange]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __bool__(self) -> bool:
        # An empty diff of disks that could not be read must not look like "equal".
        return bool(self.entries or self.unread)

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and self.get(path) is not None

    def __repr__(self) -> str:
        return f"<FilesDiff: {self.summary()}>"

    def __str__(self) -> str:
        return self.summary()

    @property
    def unread(self) -> list[str]:
        """Sentences about what could not be read and may differ; empty if the result is complete."""
        return [volume.unread for volume in self.volumes if volume.unread]

    @property
    def equal(self) -> bool:
        """Whether nothing at all differs, and all was read."""
        return not self

    def of(self, kind: str) -> list[FileChange]:
        """Return the entries of one kind, see :class:`FileChange`."""
        return [entry for entry in self.entries if entry.kind == kind]

    def get(self, path: str) -> FileChange | None:
        """Return the entry of a path, or None if nothing about it differs."""
        return next((entry for entry in self.entries if entry.path == path), None)

    def below(self, folder: str) -> list[FileChange]:
        """Return the entries of a directory and all that is in it."""
        inside = folder.rstrip("/") + "/"
        return [
            entry
            for entry in self.entries
            if any(
                p is not None and (p == folder or p.startswith(inside)) for p in (entry.path, entry.old_path)
            )
        ]

    def summary(self) -> str:
        """Return one line: ``3 added, 1 removed, 12 changed; 40 only touched``."""
        counts = Counter(entry.kind for entry in self.entries)
        shown = [
            f"{counts[kind]} {_WORDS.get(kind, kind)}" for kind in KINDS if counts[kind] and kind != "touched"
        ]
        text = ", ".join(shown) or "no file differs"
        if counts["touched"]:
            text += f"; {counts['touched']} only touched"
        return "; ".join([text, *(f"not read: {volume.name}" for volume in self.volumes if volume.unread)])

    # -- assertions ------------------------------------------------------------------------------------------------

    def added(self, path: str) -> FileChange:
        """Return the entry of a path that was added.

        Raises
        ------
        AssertionError
            It was not; says what it is instead.
        """
        return self._must(path, {"added"}, "added")

    def removed(self, path: str) -> FileChange:
        """Return the entry of a path that was removed, or raise an :class:`AssertionError` that says what it is."""
        return self._must(path, {"removed"}, "removed")

    def changed(self, path: str) -> FileChange:
        """Return the entry of a path whose content or metadata changed (not only its time), or raise."""
        entry = self.get(path)
        if entry is not None and entry.kind == "renamed" and set(entry.what) - _LITTLE:
            return entry
        return self._must(path, {"changed", "metadata"}, "changed")

    def renamed(self, old: str, new: str) -> FileChange:
        """Return the entry of a file that was renamed from ``old`` to ``new``, or raise."""
        entry = self._must(new, {"renamed"}, "renamed")
        if entry.old_path != old:
            raise AssertionError(f"{printable(new)} was not {printable(old)} before: {entry}.")
        return entry

    def unchanged(self, path: str) -> bool:
        """Return True if a path, and for a directory all that is in it, is as it was; times do not count.

        Raises
        ------
        AssertionError
            Something differs; says what.
        """
        found = [entry for entry in self.below(path) if entry.kind != "touched"]
        if found:
            more = f", and {len(found) - 1} more" if len(found) > 1 else ""
            raise AssertionError(f"{found[0]}{more}.")
        moved = self._moved_with(path)
        if moved is not None:
            raise AssertionError(f"{printable(path)} is not where it was: {moved}.")
        if self.unread:
            raise AssertionError(f"{printable(path)} cannot be said to be unchanged. {' '.join(self.unread)}")
        return True

    def _must(self, path: str, kinds: set[str], word: str) -> FileChange:
        entry = self.get(path)
        if entry is not None and entry.kind in kinds:
            return entry
        raise AssertionError(f"{printable(path)} was not {word}: {self._instead(path, entry)}")

    def _instead(self, path: str, entry: FileChange | None) -> str:
        if entry is not None:
            if entry.kind == "touched":
                return "only its time differs."
            return f"it{str(entry).removeprefix(printable(path))}."
        for other in self.entries:
            if other.old_path == path:
                return f"{other}."
        moved = self._moved_with(path)
        if moved is not None:
            return f"it moved along, {moved}."
        there = [self._exists(path, side) for side in (0, 1)]
        if any(there):
            return "it was there before, and nothing about it differs."
        return " ".join(["there is no such path, before or after.", *self.unread])

    def _moved_with(self, path: str) -> FileChange | None:
        """Return the entry of the renamed directory with which a path went or came."""
        for entry in self.entries:
            if entry.kind == "renamed" and entry.type == "directory":
                for place in (entry.path, entry.old_path):
                    if place is not None and path.startswith(place.rstrip("/") + "/"):
                        return entry
        return None

    def _exists(self, path: str, side: int) -> bool:
        wanted = path.encode("utf-8", "surrogateescape")
        return any(v._sides is not None and v._sides[side].lookup(wanted) is not None for v in self.volumes)

    # -- other forms -----------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Return counts, entries, and what could not be read."""
        return {
            "counts": {kind: len(self.of(kind)) for kind in KINDS},
            "entries": [entry.to_json() for entry in self.entries],
            "volumes": [
                {
                    "name": v.name,
                    "kind": v.kind,
                    "label": v.label,
                    "changed_bytes": v.changed_bytes,
                    "unread": v.unread,
                }
                for v in self.volumes
            ],
            "complete": not self.unread,
        }

    def to_pandas(self) -> pd.DataFrame:
        """Return a pandas DataFrame with a row for each entry.

        Raises
        ------
        HostError
            pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise HostError("pandas is not installed.", hint="`pip install pandas`") from None
        columns = ("kind", "path", "type", "what", "old_path", "link_to", "volume")
        rows = []
        for entry in self.entries:
            row = {name: getattr(entry, name) for name in columns}
            row["what"] = ", ".join(entry.what)
            for side, state in (("before", entry.before), ("after", entry.after)):
                for name in ("size", "mode", "uid", "gid", "mtime"):
                    row[f"{name}_{side}"] = None if state is None else getattr(state, name)
            rows.append(row)
        states = [
            f"{n}_{side}" for side in ("before", "after") for n in ("size", "mode", "uid", "gid", "mtime")
        ]
        table = pd.DataFrame(rows, columns=[*columns, *states])
        for name in states:
            # Whole numbers stay exact where some are missing.
            table[name] = pd.array([row[name] for row in rows], dtype="Int64")
            if name.startswith("mtime"):
                table[name] = pd.to_datetime(table[name], unit="ns", utc=True)
        return table


_WORDS = {"metadata": "with other metadata"}


def compare_files(before: Sequence[Path], after: Sequence[Path], names: Sequence[str] = ()) -> FilesDiff:
    """Return which files differ between two states of a machine's disks.

    Only blocks that differ are looked at, and what belongs to them, so that the time follows the change. The files are
    only read. What a guest had in memory only (its page cache) is not on the disks, and so not in the result; what its
    journal holds is.

    Parameters
    ----------
    before, after
        The top file of each disk, qcow2 or raw, in the same order; nobody may write to it meanwhile.
    names
        What the disks are called in the guest; by default ``vda``, ``vdb`` ...

    Raises
    ------
    DiskUnreadable
        A disk or a file system is damaged; it says which.
    """
    entries: list[FileChange] = []
    volumes: list[Volume] = []
    for number in range(max(len(before), len(after))):
        name = names[number] if number < len(names) else f"vd{chr(ord('a') + number % 26)}"
        if number >= len(before) or number >= len(after):
            side = "only after" if number >= len(before) else "only before"
            unread = f"The disk {name} is there {side}; its files are not listed."
            volumes.append(Volume(name, "unknown", unread=unread))
            continue
        try:
            found = _compare_disks(name, Disk(before[number]), Disk(after[number]))
        except DiskUnreadable as error:
            error.evidence.setdefault("disk", name)
            raise
        for volume, changed in found:
            volumes.append(volume)
            entries += changed
    return FilesDiff(tuple(sorted(entries, key=lambda e: (e.path, e.volume))), tuple(volumes))


def _compare_disks(name: str, a: Disk, b: Disk) -> Iterator[tuple[Volume, list[FileChange]]]:
    parts_a, parts_b = partitions(a), partitions(b)
    if [(p.number, p.start) for p in parts_a] != [(p.number, p.start) for p in parts_b]:
        unread = f"The disk {name} was partitioned anew; its files are not compared."
        yield Volume(name, "unknown", unread=unread), []
        return
    for x, y in zip(parts_a, parts_b, strict=True):
        volume = name if not x.number else _partition_name(name, x.number)
        pages = differing(a, b, PAGE, x.start, max(x.size, y.size))
        if x.kind == y.kind == "LVM" and len(pages):
            yield from _compare_groups(volume, _Place(a, x), _Place(b, y))
        else:
            yield _compare_volumes(volume, pages, _Place(a, x), _Place(b, y))


def _partition_name(disk: str, number: int) -> str:
    return f"{disk}p{number}" if disk[-1:].isdigit() else f"{disk}{number}"


@dataclass(frozen=True)
class _Place:
    """Where a file system may be."""

    disk: Disk
    partition: Partition
    #: The logical volume that it is, if it is one; ``partition`` then says what is in that.
    volume: Mapped | None = None

    @property
    def source(self) -> Readable:
        return self.volume or self.disk

    @property
    def mapped(self) -> Mapped:
        part = self.partition
        return self.volume or Mapped(self.disk, [Segment(0, part.start, part.size)])


def _compare_groups(name: str, a: _Place, b: _Place) -> Iterator[tuple[Volume, list[FileChange]]]:
    """Compare the logical volumes of a physical volume."""
    before, after = (
        {f"{name}/{found.group}/{found.name}": found for found in _logical_volumes(name, side)}
        for side in (a, b)
    )
    for volume in sorted(before.keys() | after.keys()):
        x, y = before.get(volume), after.get(volume)
        if x is None or y is None:
            side = "only after" if x is None else "only before"
            unread = f"The logical volume {volume} is there {side}; its files are not listed."
            yield Volume(volume, "unknown", unread=unread), []
        elif why := x.unread or y.unread:
            unread = f"The logical volume {volume} cannot be read: {why}; see the disk layer."
            yield Volume(volume, "unknown", unread=unread), []
        else:
            yield _compare_logical(volume, a.disk, x, b.disk, y)


def _logical_volumes(name: str, place: _Place) -> list[LogicalVolume]:
    try:
        return logical_volumes(place.disk, place.partition.start, place.partition.size)
    except DiskUnreadable as error:
        error.evidence.setdefault("volume", name)
        raise


def _compare_logical(
    name: str, a: Disk, x: LogicalVolume, b: Disk, y: LogicalVolume
) -> tuple[Volume, list[FileChange]]:
    sides = Mapped(a, x.segments), Mapped(b, y.segments)
    pages = sides[0].differing(sides[1], PAGE)
    if pages is None:
        unread = f"The logical volume {name} was moved on its disk; its files are not compared."
        return Volume(name, "unknown", unread=unread), []
    places = [_Place(side.disk, Partition(0, 0, side.size, kind_of(side, 0)), side) for side in sides]
    return _compare_volumes(name, pages, *places)


def _compare_volumes(name: str, pages: Numbers, a: _Place, b: _Place) -> tuple[Volume, list[FileChange]]:
    x, y = a.partition, b.partition
    changed = len(pages) * PAGE
    kind = x.kind if x.kind == y.kind else f"{x.kind}, then {y.kind}"
    # A disk that was cut short is damaged even where its end held nothing but zeros.
    if x.kind == y.kind == "ext" and (changed or x.size != y.size):
        return _compare_ext(name, pages, a, b)
    if not changed:
        return Volume(name, kind), []
    if x.kind == y.kind == "swap":
        return Volume(name, kind, changed_bytes=changed), []
    if readable(kind):
        return _compare_walked(name, pages, a, b)
    what = {"unknown": "of a kind that vmlab does not know", "empty": "empty"}.get(
        kind, f"{kind}, which vmlab cannot read"
    )
    if kind in LIBRARIES:
        what = f"{kind}, for which a library is missing (`pip install vmlab[filesystems]`)"
    unread = f"{name} is {what}; {changed:,} bytes of it differ, see the disk layer."
    return Volume(name, kind, changed_bytes=changed, unread=unread), []


def _compare_ext(name: str, pages: Numbers, a: _Place, b: _Place) -> tuple[Volume, list[FileChange]]:
    try:
        one, two = (Ext4(p.source, p.partition.start, p.partition.size) for p in (a, b))
        found = [_entry(change, (one, two), name) for change in changes(one, two, pages)]
    except DiskUnreadable as error:
        error.evidence.setdefault("volume", name)
        raise
    return Volume(name, "ext", two.sb.label, len(pages) * PAGE, _sides=(one, two)), found


def _compare_walked(name: str, pages: Numbers, a: _Place, b: _Place) -> tuple[Volume, list[FileChange]]:
    kind = a.partition.kind
    changed = len(pages) * PAGE
    try:
        walk = Walk(kind, a.mapped, b.mapped)
        found = [_entry(change, walk.sides, name) for change in walk.changes(pages)]
    except DiskUnreadable as error:
        # Damaged, or beyond what the library knows: it cannot say which, and the other volumes can be read.
        unread = f"{name}: {error.message} {changed:,} bytes of it differ, see the disk layer."
        return Volume(name, kind, changed_bytes=changed, unread=unread), []
    notes = f"{name} is {kind}; {'; '.join(walk.notes)}." if walk.notes else None
    return Volume(name, kind, walk.label, changed, notes, _sides=walk.sides), found


def _entry(change: Change[Any], sides: tuple[FileSystem, FileSystem], volume: str) -> FileChange:
    before = None if change.before is None else FileState.of(sides[0], change.before[1])
    after = None if change.after is None else FileState.of(sides[1], change.after[1])
    path = (change.after or change.before or (b"", None))[0]
    if change.before is None:
        kind = "added"
    elif change.after is None:
        kind = "removed"
    elif change.renamed:
        kind = "renamed"
    elif _CONTENT & set(change.what):
        kind = "changed"
    else:
        kind = "touched" if set(change.what) <= _LITTLE else "metadata"
    moved = change.before is not None and change.before[0] != path
    return FileChange(
        kind=kind,
        path=_text(path),
        before=before,
        after=after,
        what=change.what,
        old_path=_text(change.before[0]) if change.before is not None and moved else None,
        link_to=None if change.link_to is None else _text(change.link_to),
        volume=volume,
    )
