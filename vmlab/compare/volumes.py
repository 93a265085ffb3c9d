"""The volumes of one state's disks: partitions, logical volumes, their file systems, and where they are mounted."""

from __future__ import annotations

import re
import stat
import struct
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

from vmlab.compare.blocks import Disk, Mapped, Segment
from vmlab.compare.ext4 import Ext4
from vmlab.compare.lvm import logical_volumes
from vmlab.compare.partitions import Partition, kind_of, partitions
from vmlab.compare.walk import LIBRARIES, Walk, readable
from vmlab.errors import DiskUnreadable

#: Kinds of volumes without files.
NO_FILES = ("empty", "unknown", "swap", "boot parameters")
#: What the kernel follows on one way.
_MOST_LINKS = 40
_FSTAB = b"/etc/fstab"
_FSTAB_LIMIT = 256 << 10
#: How a line of `/etc/fstab` names what is on a disk; the rest is made by the system (proc, tmpfs) or bound.
_ON_DISK = (b"/dev/", b"UUID=", b"LABEL=", b"PARTUUID=", b"PARTLABEL=", b"ID=")


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

    def fingerprint(self, inode: Any, /) -> str:
        """Return what is equal for files of equal content; holes are not read."""

    def lookup(self, path: bytes, /) -> Any:
        """Return what an absolute path leads to, or None; symbolic links are not followed."""


@dataclass(eq=False)
class Place:
    """Where a file system may be.

    Attributes
    ----------
    name
        ``vda1``, ``vda``, ``vda2/vg/lv``.
    disk, partition
        What it is on.
    kind
        ``ext``, ``xfs`` ...; ``empty`` or ``unknown``.
    volume
        The logical volume that it is, if it is one.
    why
        Why its bytes cannot be told, if they cannot.
    """

    name: str
    disk: Disk
    partition: Partition
    kind: str
    volume: Mapped | None = None
    why: str | None = None
    #: One of the other state of which not one byte is another.
    same: Place | None = field(default=None, repr=False)
    _fs: FileSystem | None = field(default=None, repr=False)

    @property
    def mapped(self) -> Mapped:
        """Its bytes."""
        part = self.partition
        return self.volume or Mapped(self.disk, [Segment(0, part.start, part.size)])

    @property
    def size(self) -> int:
        """How many there are."""
        return self.partition.size if self.volume is None else self.volume.size

    @property
    def unreadable(self) -> str | None:
        """What is in the way of reading its files, in words behind "is"; None if nothing is known to be."""
        if self.why is not None:
            return self.why
        if self.kind == "ext" or readable(self.kind):
            return None
        if self.kind in LIBRARIES:
            return f"{self.kind}, for which a library is missing (`pip install vmlab[filesystems]`)"
        return {"unknown": "of a kind that vmlab does not know", "empty": "empty"}.get(
            self.kind, f"{self.kind}, which vmlab cannot read"
        )

    @property
    def fs(self) -> FileSystem:
        """Its file system, opened when it is first asked for.

        Raises
        ------
        DiskUnreadable
            It is damaged, or of a kind that cannot be read.
        """
        if self.same is not None:
            return self.same.fs
        if self._fs is None:
            if (why := self.unreadable) is not None:
                raise DiskUnreadable(f"{self.name} is {why}.")
            self._fs = self.ext() if self.kind == "ext" else Walk(self.kind, self.mapped).open()[0]
        return self._fs

    @fs.setter
    def fs(self, fs: FileSystem) -> None:
        self._fs = fs

    def ext(self) -> Ext4:
        """Open it as an ext file system."""
        if self.volume is not None:
            return Ext4(self.volume, 0, self.volume.size)
        return Ext4(self.disk, self.partition.start, self.partition.size)

    @cached_property
    def names(self) -> set[bytes]:
        """The ways in which ``/etc/fstab`` may name it."""
        found = {f"/dev/{self.name}".encode()}
        if self.volume is not None:
            _, group, name = self.name.split("/")
            mapper = "-".join(part.replace("-", "--") for part in (group, name))
            found = {f"/dev/{group}/{name}".encode(), f"/dev/mapper/{mapper}".encode()}
        elif self.partition.id:
            found |= _named("partuuid", self.partition.id.encode())
        head = self.mapped.read(0, 2048)
        if self.kind == "ext":
            known, label = _uuid(head[1128:1144]), head[1144:1160]
        elif self.kind == "xfs":
            known, label = _uuid(head[32:48]), head[108:120]
        elif self.kind == "fat":
            at = 67 if head[82:87] == b"FAT32" else 39
            low, high = struct.unpack_from("<HH", head, at)
            known, label = b"%04X-%04X" % (high, low), head[at + 4 : at + 15].rstrip(b" ")
        elif self.kind == "ntfs":
            known, label = b"%016X" % struct.unpack_from("<Q", head, 72)[0], b""
        else:
            return found
        found |= _named("uuid", known)
        label = label.split(b"\0")[0]
        return found | _named("label", label) if label else found


def _uuid(raw: bytes) -> bytes:
    return str(uuid.UUID(bytes=raw)).encode()


def _named(how: str, value: bytes) -> set[bytes]:
    return {how.upper().encode() + b"=" + value, f"/dev/disk/by-{how}/".encode() + value}


def places(name: str, disk: Disk) -> list[Place]:
    """Return the places of a disk that can hold file systems: partitions or all of it, and logical volumes in them."""
    found: list[Place] = []
    for part in partitions(disk):
        place = Place(_partition_name(name, part.number), disk, part, part.kind)
        found += _logical(place) if part.kind == "LVM" else [place]
    return found


def _partition_name(disk: str, number: int) -> str:
    if not number:
        return disk
    return f"{disk}p{number}" if disk[-1:].isdigit() else f"{disk}{number}"


def _logical(place: Place) -> Iterator[Place]:
    """Yield the logical volumes of a physical volume; itself, if they cannot be told or there are none."""
    disk, part = place.disk, place.partition
    try:
        found = logical_volumes(disk, part.start, part.size)
    except DiskUnreadable as error:
        place.why = f"LVM, which is damaged: {error.message}"
        found = []
    if not found:
        yield place
    for one in found:
        volume = Mapped(disk, one.segments)
        kind = "unknown" if one.unread else kind_of(volume, 0)
        yield Place(f"{place.name}/{one.group}/{one.name}", disk, part, kind, volume, one.unread)


class Found(NamedTuple):
    """Where a path leads to.

    Attributes
    ----------
    place, path
        The volume, and the path in it; no volume if the one that is mounted there is not known.
    node
        What the file system calls the file; None if there is none.
    why
        Why that cannot be told, if it cannot.
    """

    place: Place | None
    path: bytes
    node: Any
    why: str = ""


class Volumes:
    """The volumes of one state, as its guest mounts them.

    ``/etc/fstab`` says where; volumes that it does not name are looked into one by one, each as a tree of its own.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        self.places = places

    @cached_property
    def mounts(self) -> dict[bytes, Place | str]:
        """What is mounted where, the root as ``b""``; a text where that is not known. Empty without a root."""
        tables = {place.name: table for place in self.places if (table := _fstab(place)) is not None}
        tops = {name: [spec for spec, point in table if not point] for name, table in tables.items()}
        roots = [p for p in self.places if any(self._named(spec) is p for spec in tops.get(p.name, ()))]
        if not roots and len(tables) == 1:
            # It may be named as another kind of disk, or by nobody.
            roots = [p for p in self.places if p.name in tables and not any(map(self._named, tops[p.name]))]
        if len(roots) != 1:
            return {}
        found: dict[bytes, Place | str] = {}
        for spec, point in tables[roots[0].name]:
            there = self._named(spec)
            if there is not None:
                found[point] = there
            elif spec.startswith(_ON_DISK):
                where, what = (text.decode("utf-8", "backslashreplace") for text in (point, spec))
                found[point] = f"{where} is on {what}, which is none of the volumes that vmlab knows"
        return found | {b"": roots[0]}

    def _named(self, spec: bytes) -> Place | None:
        """Return the volume that a line of ``/etc/fstab`` names, if that is one."""
        found = [p for p in self.places if spec in p.names or spec.upper() in {n.upper() for n in p.names}]
        return found[0] if len(found) == 1 else None

    def mount_of(self, place: Place) -> bytes | None:
        """Return where a volume is mounted, ``b""`` for the root; None if that is not known."""
        return next((point for point, there in self.mounts.items() if there is place), None)

    def find(self, path: bytes, *, follow: bool = False) -> list[Found]:
        """Return where an absolute path leads to: in what is mounted, and in each other volume that can be read.

        Symbolic links on the way are followed, as the guest does; the last part of the path only if ``follow``.
        """
        mounted = list(self.mounts.values())
        trees = [self.mounts] if self.mounts else []
        trees += [
            {b"": place} for place in self.places if place not in mounted and place.kind not in NO_FILES
        ]
        return [_find(tree, path, follow) for tree in trees]


def _find(mounts: dict[bytes, Place | str], path: bytes, follow: bool) -> Found:
    waiting = [part for part in path.split(b"/") if part not in (b"", b".")][::-1]
    way: list[bytes] = []
    links = 0
    found = _look(mounts, way)
    while waiting:
        part = waiting.pop()
        if part == b"..":
            del way[-1:]
        elif part not in (b"", b"."):
            way.append(part)
        found = _look(mounts, way)
        if found.node is None:
            # Where it would be.
            more = b"".join(b"/" + part for part in reversed(waiting))
            return found._replace(path=found.path.rstrip(b"/") + more if more else found.path)
        if found.node.format == stat.S_IFLNK and (waiting or follow):
            assert found.place is not None
            links += 1
            if links > _MOST_LINKS:
                return found._replace(node=None)
            try:
                target = found.place.fs.target(found.node)
            except DiskUnreadable as error:
                return found._replace(node=None, why=error.message)
            way = [] if target.startswith(b"/") else way[:-1]
            waiting += target.split(b"/")[::-1]
    return found


def _look(mounts: dict[bytes, Place | str], way: list[bytes]) -> Found:
    """Return what a path without symbolic links leads to."""
    for length in range(len(way), -1, -1):
        there = mounts.get(b"".join(b"/" + part for part in way[:length]))
        if there is not None:
            break
    inner = b"/" + b"/".join(way[length:])
    if not isinstance(there, Place):
        return Found(None, inner, None, f"{there}.")
    try:
        return Found(there, inner, there.fs.lookup(inner))
    except DiskUnreadable as error:
        return Found(there, inner, None, error.message)


def _fstab(place: Place) -> list[tuple[bytes, bytes]] | None:
    """Return what ``/etc/fstab`` of a volume says: what is mounted, and where (``b""`` is the root)."""
    if place.kind not in ("ext", "xfs"):
        return None
    try:
        node = place.fs.lookup(_FSTAB)
        if node is None or node.format != stat.S_IFREG:
            return None
        text = place.fs.read(node, 0, _FSTAB_LIMIT)
    except DiskUnreadable:
        return None
    found = []
    for line in text.split(b"\n"):
        words = line.split()
        if len(words) >= 3 and not words[0].startswith(b"#") and words[1].startswith(b"/"):
            spec, point = (
                re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8) & 255]), w) for w in words[:2]
            )
            parts = [part for part in point.split(b"/") if part]
            found.append((spec.replace(b'"', b""), b"".join(b"/" + part for part in parts)))
    return found
