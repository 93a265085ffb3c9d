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
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vmlab.compare.blocks import SECTOR, Disk, Numbers, differing
from vmlab.compare.ext4.differences import PAGE, Change, changes
from vmlab.compare.filestate import HASH_LIMIT, FileState, lines, printable, text_of
from vmlab.compare.partitions import outside
from vmlab.compare.textdiff import unified
from vmlab.compare.volumes import NO_FILES, FileSystem, Found, Place, Volumes, places
from vmlab.compare.walk import Walk
from vmlab.errors import DiskUnreadable, HostError

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-not-found,import-untyped,unused-ignore]

#: What an entry can say of a path, in the order of a summary.
KINDS = ("added", "removed", "changed", "renamed", "metadata", "touched")
#: Differences that are more than metadata, and those that say little.
_CONTENT = {"content", "type"}
_LITTLE = {"mtime", "replaced"}
HASH_TOTAL = 512 << 20


@dataclass(frozen=True)
class FileChange:
    """A path that is not what it was.

    Attributes
    ----------
    kind
        ``added``, ``removed``, ``changed`` (content or type), ``renamed``, ``metadata`` (mode, owner, target of a link
        ...), ``touched`` (only the time, or a directory in the place of one of the same name).
    path
        Where it is, or was if it is gone: in the guest, where ``/etc/fstab`` on its disks says where the volume is
        mounted, else in the volume. Bytes that are no UTF-8 are as :func:`os.fsdecode` has them.
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
    moved_to
        For a name that was removed: a name that the file has only now, in the place of what was there before.
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
    moved_to: str | None = None
    volume: str = ""
    #: What tells the volume from others, where nobody knows where it is mounted.
    _prefix: str = field(default="", repr=False, compare=False)

    @property
    def shown(self) -> str:
        """The path, with the volume in front (``vdb1:/x``) if it is not known where that is mounted."""
        return self._prefix + self.path

    def __str__(self) -> str:
        text = f"{printable(self.shown)} {self._said()}"
        return f"{text} ({', '.join(self.what)})" if self.what else text

    def _said(self) -> str:
        if self.old_path is not None:
            return f"was {self.kind}; it was {printable(self.old_path)}"
        if self.link_to is not None:
            return f"was {self.kind}: a hard link to {printable(self.link_to)}"
        if self.moved_to is not None:
            return f"was {self.kind}: it is {printable(self.moved_to)} now"
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
            None unless both sides are text of at most 256 KiB that does not take too long to compare; what was added or
            removed is compared with nothing.
        """
        old, new = lines(self.before), lines(self.after)
        if old is None or new is None:
            return None
        first = "/dev/null" if self.before is None else f"a{printable(self.old_path or self.path)}"
        second = "/dev/null" if self.after is None else f"b{printable(self.path)}"
        return unified(old, new, first, second, context)

    def to_json(self, limit: int = HASH_LIMIT) -> dict[str, Any]:
        """Return all of it; ``path_bytes`` (hexadecimal) is there for paths that are no UTF-8.

        Parameters
        ----------
        limit
            Bytes of a file up to which its hash is there.
        """
        found: dict[str, Any] = {
            "kind": self.kind,
            "path": printable(self.path),
            "shown": printable(self.shown),
            "type": self.type,
            "what": list(self.what),
            "volume": self.volume,
            "before": None if self.before is None else self.before.to_json(limit),
            "after": None if self.after is None else self.after.to_json(limit),
        }
        for name in ("old_path", "link_to", "moved_to"):
            if (path := getattr(self, name)) is not None:
                found[name] = printable(path)
        if printable(self.path) != self.path:
            found["path_bytes"] = self.path.encode("utf-8", "surrogateescape").hex()
        return found


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
    mount
        Where the guest mounts it, as ``/etc/fstab`` on its disks says; None if that is not known.
    """

    name: str
    kind: str
    label: str = ""
    changed_bytes: int = 0
    unread: str | None = None
    mount: str | None = None


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
    _sides: tuple[Volumes, ...] = field(default=(), repr=False, compare=False)

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
        """Return the entry of a path, or None if nothing about it differs.

        Symbolic links on the way to it are followed, as the guest does: ``/bin/ls`` may be ``/usr/bin/ls``.
        """
        return next(iter(self._entries(path)), None)

    def below(self, folder: str) -> list[FileChange]:
        """Return the entries of a directory and all that is in it."""
        return self._below(self._spots(folder) | self._spots(folder, follow=True))

    def _below(self, spots: Collection[_Spot]) -> list[FileChange]:
        return [
            entry
            for entry in self.entries
            if any(
                (not spot.volume or spot.volume == entry.volume)
                and p is not None
                and (p == spot.path or p.startswith(spot.path.rstrip("/") + "/"))
                for p in (entry.path, entry.old_path)
                for spot in spots
            )
        ]

    def _entries(self, path: str) -> list[FileChange]:
        """Return the entries of a path, in whatever volumes."""
        spots = self._spots(path)
        return [
            e for e in self.entries if any(s.path == e.path and s.volume in ("", e.volume) for s in spots)
        ]

    def _find(self, path: str, side: int, *, follow: bool = False) -> list[Found]:
        raw = path.encode("utf-8", "surrogateescape")
        return self._sides[side].find(raw, follow=follow) if self._sides else []

    def _spots(self, path: str, *, follow: bool = False) -> set[_Spot]:
        """Return where a path may be found among the entries: as it is, and where it leads to on either side."""
        found = {_Spot("", _normal(path))}
        for side in (0, 1):
            found |= {spot for one in self._find(path, side, follow=follow) if (spot := self._spot(one))}
        return found

    def _spot(self, found: Found) -> _Spot | None:
        if found.place is None:
            return None
        mount = next((v.mount for v in self.volumes if v.name == found.place.name), None)
        return _Spot(found.place.name, _joined(mount, text_of(found.path)))

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
        for entry in self._entries(path):
            if entry.kind == "renamed" and set(entry.what) - _LITTLE:
                return entry
        return self._must(path, {"changed", "metadata"}, "changed")

    def renamed(self, old: str, new: str) -> FileChange:
        """Return the entry of a file that was renamed from ``old`` to ``new``, or raise."""
        entry = self._must(new, {"renamed"}, "renamed")
        if entry.old_path is None or entry.old_path not in {spot.path for spot in self._spots(old)}:
            raise AssertionError(f"{printable(new)} was not {printable(old)} before: {entry}.")
        return entry

    def unchanged(self, path: str) -> bool:
        """Return True if a path, and for a directory all that is in it, is as it was; times do not count.

        Symbolic links are followed: what the path leads to is as it was, and so is the way.

        Raises
        ------
        AssertionError
            Something differs, says what; or there is no such path in either state.
        """
        spots = self._spots(path) | self._spots(path, follow=True)
        found = [entry for entry in self._below(spots) if entry.kind != "touched"]
        if found:
            more = f", and {len(found) - 1} more" if len(found) > 1 else ""
            raise AssertionError(f"{found[0]}{more}.")
        moved = self._moved_with(path)
        if moved is not None:
            raise AssertionError(f"{printable(path)} is not where it was: {moved}.")
        if self.unread:
            raise AssertionError(f"{printable(path)} cannot be said to be unchanged. {' '.join(self.unread)}")
        if not self._sides:
            return True
        sides = [self._find(path, side) + self._find(path, side, follow=True) for side in (0, 1)]
        there = [{self._spot(one) for one in side if one.node is not None} for side in sides]
        if there[0] != there[1]:
            raise AssertionError(f"{printable(path)} does not lead to what it led to before.")
        # Of what cannot be looked into, all is as it was if not one byte differs.
        hidden = any(one.why for side in sides for one in side)
        if there[0] or (hidden and self.equal):
            return True
        raise AssertionError(f"{printable(path)} cannot be said to be unchanged: {self._instead(path, [])}")

    def _must(self, path: str, kinds: set[str], word: str) -> FileChange:
        entries = self._entries(path)
        for entry in entries:
            if entry.kind in kinds:
                return entry
        raise AssertionError(f"{printable(path)} was not {word}: {self._instead(path, entries)}")

    def _instead(self, path: str, entries: list[FileChange]) -> str:
        for entry in entries:
            if entry.kind == "touched":
                return "only its time differs."
            same = entry.shown == path
            return f"it{str(entry).removeprefix(printable(path))}." if same else f"{entry}."
        for other in self.entries:
            if other.old_path == _normal(path):
                return f"{other}."
        moved = self._moved_with(path)
        if moved is not None:
            return f"it moved along, {moved}."
        sides = [one for side in (0, 1) for one in self._find(path, side)]
        if any(one.node is not None for one in sides):
            return "it was there before, and nothing about it differs."
        hidden = dict.fromkeys(one.why for one in sides if one.why)
        return " ".join(["there is no such path, before or after.", *self.unread, *hidden])

    def _moved_with(self, path: str) -> FileChange | None:
        """Return the entry of the renamed directory with which a path went or came."""
        paths = {spot.path for spot in self._spots(path)}
        for entry in self.entries:
            if entry.kind == "renamed" and entry.type == "directory":
                for place in (entry.path, entry.old_path):
                    if place is not None and any(p.startswith(place.rstrip("/") + "/") for p in paths):
                        return entry
        return None

    # -- other forms -----------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Return counts, entries, and what could not be read; hashes for the first 512 MiB of content."""
        entries, left = [], HASH_TOTAL
        for entry in self.entries:
            sizes = [s.size for s in (entry.before, entry.after) if s is not None and s.type == "file"]
            cost = sum(size for size in sizes if size <= HASH_LIMIT)
            entries.append(entry.to_json(HASH_LIMIT if cost <= left else -1))
            left -= min(cost, left)
        return {
            "counts": {kind: len(self.of(kind)) for kind in KINDS},
            "entries": entries,
            "volumes": [
                {
                    "name": v.name,
                    "kind": v.kind,
                    "label": v.label,
                    "mount": None if v.mount is None else printable(v.mount),
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
        columns = ("kind", "path", "type", "what", "old_path", "link_to", "moved_to", "volume")
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


class _Spot(NamedTuple):
    """A path as entries have it, in one volume, or in any (``""``)."""

    volume: str
    path: str


def _normal(path: str) -> str:
    """Return a path without what says nothing: ``//``, ``/./``, a slash at its end."""
    return "/" + "/".join(part for part in path.split("/") if part not in ("", "."))


def _joined(mount: str | None, path: str) -> str:
    """Return where the path of a volume is in the guest."""
    above = (mount or "").rstrip("/")
    return path if not above else above + path.rstrip("/")


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
    found: list[tuple[Volume, list[Change[Any]]]] = []
    sides: tuple[list[Place], list[Place]] = ([], [])
    for number in range(max(len(before), len(after))):
        name = names[number] if number < len(names) else f"vd{chr(ord('a') + number % 26)}"
        if number >= len(before) or number >= len(after):
            side = "only after" if number >= len(before) else "only before"
            unread = f"The disk {name} is there {side}; its files are not listed."
            found.append((Volume(name, "unknown", unread=unread), []))
            continue
        try:
            disks = Disk(before[number]), Disk(after[number])
            of_disk = places(name, disks[0]), places(name, disks[1])
            found += _compare_disks(name, *of_disk)
        except DiskUnreadable as error:
            error.evidence.setdefault("disk", name)
            raise
        for all_, some in zip(sides, of_disk, strict=True):
            all_ += some
    mounted = Volumes(sides[0]), Volumes(sides[1])
    # With one volume alone there is no question whose path a path is.
    several = len({place.name for side in sides for place in side if place.kind not in NO_FILES}) > 1
    entries: list[FileChange] = []
    volumes: list[Volume] = []
    for volume, changed in found:
        mount = _mount(mounted, volume.name) if several else None
        volumes.append(dataclasses.replace(volume, mount=mount))
        if changed:
            places_ = [next(place for place in side if place.name == volume.name) for side in sides]
            prefix = f"{volume.name}:" if several and mount is None else ""
            try:
                entries += [_entry(x, (places_[0].fs, places_[1].fs), volumes[-1], prefix) for x in changed]
            except DiskUnreadable as error:
                volumes[-1] = _damaged(volumes[-1], error)
    return FilesDiff(tuple(sorted(entries, key=lambda e: (e.path, e.volume))), tuple(volumes), mounted)


def _mount(sides: tuple[Volumes, Volumes], volume: str) -> str | None:
    """Return where a volume is mounted: after, or else before."""
    for side in reversed(sides):
        for place in side.places:
            if place.name == volume and (mount := side.mount_of(place)) is not None:
                return text_of(mount) or "/"
    return None


def _compare_disks(
    name: str, before: list[Place], after: list[Place]
) -> Iterator[tuple[Volume, list[Change[Any]]]]:
    disks = before[0].disk, after[0].disk
    parts = [list(dict.fromkeys(place.partition for place in side)) for side in (before, after)]
    if [(p.number, p.start) for p in parts[0]] != [(p.number, p.start) for p in parts[1]]:
        unread = f"The disk {name} was partitioned anew; its files are not compared."
        yield Volume(name, "unknown", unread=unread), []
        return
    related = bool({*disks[0].identities} & {*disks[1].identities})
    first, second = ({place.name: place for place in side} for side in (before, after))
    for volume in dict.fromkeys([*first, *second]):
        a, b = first.get(volume), second.get(volume)
        if a is None or b is None:
            side = "only after" if a is None else "only before"
            unread = f"The volume {volume} is there {side}; its files are not listed."
            yield Volume(volume, "unknown", unread=unread), []
        else:
            yield _compare_volumes(a, b, related=related)
    size = max(disk.size for disk in disks)
    changed = SECTOR * sum(
        len(differing(*disks, SECTOR, start, length)) for start, length in outside(parts[0] + parts[1], size)
    )
    if changed:
        unread = f"{changed:,} bytes of {name} outside of its partitions differ, see the part 'disk'."
        yield Volume(name, "unknown", changed_bytes=changed, unread=unread), []


def _pages(a: Place, b: Place) -> Numbers | None:
    """Return the pages that differ; None if the two are in different places of the disk."""
    if a.volume is not None and b.volume is not None and not (a.why or b.why):
        return a.volume.differing(b.volume, PAGE)
    # Where the parts of a logical volume are is not known, but that they are in this partition.
    x, y = a.partition, b.partition
    return differing(a.disk, b.disk, PAGE, x.start, max(x.size, y.size))


def _compare_volumes(a: Place, b: Place, *, related: bool) -> tuple[Volume, list[Change[Any]]]:
    name, pages = a.name, _pages(a, b)
    if pages is None:
        unread = f"The logical volume {name} was moved on its disk; its files are not compared."
        return Volume(name, "unknown", unread=unread), []
    kind = a.kind if a.kind == b.kind else f"{a.kind}, then {b.kind}"
    found = Volume(name, kind, changed_bytes=len(pages) * PAGE)
    # A disk that was cut short is damaged even where its end held nothing but zeros.
    if not len(pages) and a.size == b.size:
        b.same = a
        return found, []
    if kind == "swap" or (not len(pages) and kind != "ext"):
        return found, []
    why = kind if a.kind != b.kind else a.unreadable or b.unreadable
    if why is not None:
        unread = f"{name} is {why}; {found.changed_bytes:,} bytes of it differ, see the part 'disk'."
        return dataclasses.replace(found, unread=unread), []
    notes: list[str] = []
    try:
        if kind == "ext":
            one, two = a.ext(), b.ext()
            a.fs, b.fs, label = one, two, two.sb.label
            changed: list[Change[Any]] = list(changes(one, two, pages, related=related))
        else:
            walk = Walk(kind, a.mapped, b.mapped)
            a.fs, b.fs = walk.open()
            changed = list(walk.changes(pages, related=related))
            label, notes = walk.label, walk.notes
    except DiskUnreadable as error:
        return _damaged(found, error), []
    note = f"{name} is {kind}; {'; '.join(notes)}." if notes else None
    return dataclasses.replace(found, label=label, unread=note), changed


def _damaged(volume: Volume, error: DiskUnreadable) -> Volume:
    """Say that a volume cannot be read; the others can."""
    differ = f"{volume.changed_bytes:,} bytes of it differ, see the part 'disk'."
    return dataclasses.replace(volume, unread=f"{volume.name}: {error.message} {differ}")


def _entry(
    change: Change[Any], sides: tuple[FileSystem, FileSystem], volume: Volume, prefix: str
) -> FileChange:
    def place(path: bytes | None) -> str | None:
        return None if path is None else _joined(volume.mount, text_of(path))

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
        path=_joined(volume.mount, text_of(path)),
        before=before,
        after=after,
        what=change.what,
        old_path=place(change.before[0]) if change.before is not None and moved else None,
        link_to=place(change.link_to),
        moved_to=place(change.moved_to),
        volume=volume.name,
        _prefix=prefix,
    )
