"""What libyal's readers of FAT, NTFS and XFS tell, in one form. Runs in the process of its own only."""

from __future__ import annotations

import calendar
import hashlib
import stat
import struct
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np

from vmlab.compare.blocks import Mapped
from vmlab.compare.walk import xfs_log
from vmlab.compare.walk.node import Node

#: Reads are widened to this, and so many pieces are remembered.
_PIECE, _PIECES = 64 << 10, 256
#: Flags of an extent, as all of the libraries have them.
SPARSE, COMPRESSED = 1, 2
#: Of the times that Windows counts, those until 1970, in units of 100 ns.
_EPOCH = 116_444_736_000_000_000
_SHOWN = {0x1: "R", 0x2: "H", 0x4: "S"}
#: Streams of NTFS that are shown as attributes are cut there.
_LONGEST = 64 << 10
#: All attributes of a file of XFS together may be large; that they are that large was never seen.
_LONGEST_FORK = 16 << 20


#: Offset on the disk, bytes, flags.
Extent = tuple[int, int, int]


class DamagedError(Exception):
    """Something that cannot be."""


class Volume:
    """A file system's bytes, as the file-like object that the libraries read from."""

    def __init__(self, source: Mapped) -> None:
        self.source, self.size, self.at = source, source.size, 0
        self._known: OrderedDict[int, bytes] = OrderedDict()

    def read(self, count: int = -1) -> bytes:
        """Read on."""
        count = self.size - self.at if count < 0 else min(count, self.size - self.at)
        data = self.get(self.at, count) if count > 0 else b""
        self.at += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> None:
        """Go to another place."""
        self.at = offset + (0, self.at, self.size)[whence]

    def get_offset(self) -> int:
        """Return where it is."""
        return self.at

    tell = get_offset

    def get_size(self) -> int:
        """Return how large it is."""
        return self.size

    def get(self, offset: int, count: int) -> bytes:
        """Return bytes of it."""
        if count >= _PIECE:
            return self.source.read(offset, count)
        first, last = offset // _PIECE, (offset + count - 1) // _PIECE
        data = b"".join(self._piece(n) for n in range(first, last + 1))
        return data[offset - first * _PIECE :][:count]

    def _piece(self, number: int) -> bytes:
        if (known := self._known.get(number)) is None:
            known = self._known[number] = self.source.read_blocks(
                np.array([number], np.int64), _PIECE
            ).tobytes()
            if len(self._known) > _PIECES:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(number)
        return known


def _extents(handle: Any) -> list[Extent]:
    # Of attributes it is no property.
    return [handle.get_extent(n) for n in range(handle.get_number_of_extents())]


class Content:
    """Bytes of a file, or of an attribute."""

    def __init__(
        self, handle: Any, extents: list[Extent], *, inline: bool, written: int | None = None
    ) -> None:
        self.handle, self.size, self.extents = handle, int(handle.size or 0), extents
        #: Whether content without extents is somewhere else; otherwise it is all zeros.
        self.inline = inline and not self.extents
        #: How many of the bytes were ever written, where that is told.
        self.written = written

    def read(self, offset: int, count: int) -> bytes:
        """Return bytes of it."""
        count = min(count, self.size - offset)
        data: bytes = self.handle.read_buffer_at_offset(count, offset) if count > 0 else b""
        return data


class Reader:
    """A file system."""

    label = ""
    #: What the result may lack.
    note: str | None = None

    def __init__(self, volume: Volume) -> None:
        self.volume = volume

    def root(self) -> Any:
        """Return the library's object for the root directory."""

    def entry(self, key: int) -> Any:
        """Return the library's object for what has a key."""

    def children(self, entry: Any) -> Iterator[Any]:
        """Yield the library's objects for what is in a directory."""
        for number in range(entry.number_of_sub_file_entries):
            yield entry.get_sub_file_entry(number)

    def node(self, entry: Any) -> Node:
        """Return what the library's object says."""
        raise NotImplementedError

    def content(self, entry: Any) -> Content:
        """Return a file's content."""
        return Content(entry, _extents(entry), inline=False)

    def placed(self, content: Content) -> bool:
        """Return whether the extents lead to the content.

        The libraries' own reading does not use what they say of extents, and one of them said it wrong; so that is
        looked at before a content is taken as equal because its extents are.
        """
        at = 0
        for offset, size, flags in content.extents:
            if not flags:
                count = min(512, size, content.size - at)
                return count <= 0 or content.read(at, count) == self.volume.get(offset, count)
            at += size
        return all(flags & SPARSE for _, _, flags in content.extents)

    def attributes(self, entry: Any) -> dict[str, Content | bytes]:
        """Return the extended attributes."""
        return {}


class Xfs(Reader):
    """XFS, versions 4 and 5."""

    def __init__(self, volume: Volume) -> None:
        import pyfsxfs  # type: ignore[import-not-found,unused-ignore]

        super().__init__(volume)
        self._block = struct.unpack(">I", volume.get(4, 4))[0]
        self._per_group, self._shift = struct.unpack(">I", volume.get(84, 4))[0], volume.get(124, 1)[0]
        if not 512 <= self._block <= 65536 or self._shift > 32:
            raise DamagedError("the superblock makes no sense")
        self._volume = pyfsxfs.volume()
        self._volume.open_file_object(volume)
        self.label = self._volume.label or ""
        if not xfs_log.clean(volume.get, volume.size):
            self.note = "its log was not replayed, so that the latest changes may be missing"

    def root(self) -> Any:
        """Return the library's object for the root directory."""
        return self._volume.root_directory

    def entry(self, key: int) -> Any:
        """Return the library's object for what has a key."""
        return self._volume.get_file_entry_by_inode(key)

    def node(self, entry: Any) -> Node:
        """Return what the library's object says."""
        mode, number = entry.file_mode, entry.inode_number
        born = entry.get_creation_time_as_integer()
        kind = stat.S_IFMT(mode)
        return Node(
            key=number,
            number=number,
            mode=mode,
            uid=entry.owner_identifier,
            gid=entry.group_identifier,
            size=0 if stat.S_ISDIR(mode) else entry.size,
            mtime=entry.get_modification_time_as_integer(),
            target=self._target(entry) if stat.S_ISLNK(mode) else None,
            device=entry.device_number if kind in (stat.S_IFCHR, stat.S_IFBLK) else None,
            # The number alone is given to a new file as soon as an old one is gone.
            identity=(number, kind, born) if born else None,
            attributes=_digest(self.attributes(entry)),
        )

    def content(self, entry: Any) -> Content:
        """Return a file's content."""
        return Content(entry, self._extents(entry), inline=False)

    def _extents(self, handle: Any) -> list[Extent]:
        # The library (20260901) takes the numbers of blocks, in which the group is the upper bits, for places.
        found = []
        for offset, size, flags in _extents(handle):
            number = offset // self._block
            group, inside = number >> self._shift, number & ((1 << self._shift) - 1)
            place = 0 if flags & SPARSE else (group * self._per_group + inside) * self._block
            found.append((place, size, flags))
        return found

    def _target(self, entry: Any) -> str:
        # Longer targets are in blocks, whose headers the library does not take off.
        try:
            extents = self._extents(entry)
        except OSError:
            found: str = entry.symbolic_link_target
            return found
        # One header for each extent.
        parts = [b"".join(self._blocks([extent])) for extent in extents[:64]]
        data = b"".join(part[56:] if part[:4] == b"XSLM" else part for part in parts)
        if len(data) < entry.size:
            raise DamagedError("a symbolic link ends too early")
        return data[: entry.size].decode("utf-8", "surrogateescape")

    def _blocks(self, extents: list[Extent]) -> Iterator[bytes]:
        # Links and attributes are small; what a damaged file system says may not be.
        if len(extents) > 64 or sum(size for _, size, _ in extents) > _LONGEST_FORK:
            raise DamagedError("the attributes of a file are larger than they can be")
        for offset, size, _ in extents:
            for at in range(offset, offset + size, self._block):
                yield self.volume.get(at, self._block)

    def _values(self, extents: list[Extent]) -> list[bytes]:
        """Return the values of attributes that are in blocks of their own, without the header of each block."""
        found: list[bytes] = []
        for data in self._blocks(extents):
            if data[:4] == b"XARM":
                at, size = struct.unpack_from(">II", data, 4)
                if not at or not found:
                    found.append(b"")
                found[-1] += data[56:][:size]
        return found

    def attributes(self, entry: Any) -> dict[str, Content | bytes]:
        """Return the extended attributes."""
        found: dict[str, Content | bytes] = {}
        values: list[bytes] | None = None
        for number in range(entry.number_of_extended_attributes):
            attribute = entry.get_extended_attribute(number)
            size = attribute.size
            if values is None:
                # Of long values the library gives the blocks' headers as well. It names only the blocks of all values
                # together, so the size tells which is whose.
                try:
                    values = self._values(self._extents(attribute))
                except OSError:
                    values = []
            long = next((value for value in values if len(value) == size), None)
            if long is not None:
                values.remove(long)
                found[attribute.name] = long
            else:
                found[attribute.name] = attribute.read_buffer_at_offset(size, 0) if size else b""
        return found


class Ntfs(Reader):
    """NTFS."""

    _ROOT = 5
    #: The file system's own files have lower numbers.
    _FIRST = 24

    def __init__(self, volume: Volume) -> None:
        import pyfsntfs  # type: ignore[import-not-found,unused-ignore]

        super().__init__(volume)
        self._volume = pyfsntfs.volume()
        self._volume.open_file_object(volume)
        self.label = self._volume.name or ""
        if not self._clean():
            self.note = "its journal was not replayed, so that the latest changes may be missing"

    def _clean(self) -> bool:
        """Return whether the journal ($LogFile) holds nothing that was not done."""
        log = self._volume.get_file_entry(2)
        pages = [log.read_buffer_at_offset(4096, at) for at in (0, 4096)]
        if all(not page.strip(b"\xff") for page in pages):
            return True
        found = []
        for page in pages:
            if page[:4] == b"RSTR":
                at = struct.unpack_from("<H", page, 24)[0]
                if at <= 4096 - 16:
                    lsn, _, _, in_use, flags = struct.unpack_from("<QHHHH", page, at)
                    found.append((lsn, in_use == 0xFFFF or bool(flags & 2)))
        return bool(found) and max(found)[1]

    def root(self) -> Any:
        """Return the library's object for the root directory."""
        return self._volume.get_file_entry(self._ROOT)

    def entry(self, key: int) -> Any:
        """Return the library's object for what has a key."""
        return self._volume.get_file_entry(key)

    def children(self, entry: Any) -> Iterator[Any]:
        """Yield the library's objects for what is in a directory."""
        for child in super().children(entry):
            if child.file_reference & 0xFFFF_FFFF_FFFF >= self._FIRST:
                yield child

    def node(self, entry: Any) -> Node:
        """Return what the library's object says."""
        reference, flags = entry.file_reference, entry.file_attribute_flags or 0
        target = entry.symbolic_link_target
        directory = entry.has_directory_entries_index()
        kind = stat.S_IFLNK if target is not None else stat.S_IFDIR if directory else stat.S_IFREG
        return Node(
            key=reference & 0xFFFF_FFFF_FFFF,
            number=reference & 0xFFFF_FFFF_FFFF,
            mode=kind | (0o555 if flags & 1 and not directory else 0o777),
            uid=0,
            gid=0,
            size=entry.size if kind == stat.S_IFREG and entry.has_default_data_stream() else 0,
            mtime=((entry.get_modification_time_as_integer() or _EPOCH) - _EPOCH) * 100,
            target=target,
            shown_flags=_letters(flags) + ("C" if flags & 0x800 else "") + ("E" if flags & 0x4000 else ""),
            identity=(reference, kind),
            attributes=_digest({"": entry.security_descriptor_data or b""}),
        )

    def content(self, entry: Any) -> Content:
        """Return a file's content."""
        return Content(entry, _extents(entry), inline=True, written=_written(entry))

    def attributes(self, entry: Any) -> dict[str, Content | bytes]:
        """Return the other streams, and the security descriptor, named as ntfs-3g names them."""
        found: dict[str, Content | bytes] = {"system.ntfs_acl": entry.security_descriptor_data or b""}
        for number in range(entry.number_of_alternate_data_streams):
            stream = entry.get_alternate_data_stream(number)
            found[f"user.{stream.name}"] = Content(stream, _extents(stream), inline=True)
        return found


def _written(entry: Any) -> int | None:
    for number in range(entry.number_of_attributes):
        attribute = entry.get_attribute(number)
        if attribute.attribute_type == 0x80 and not attribute.attribute_name:
            return int(attribute.valid_data_size)
    return None


class Fat(Reader):
    """FAT12, FAT16 and FAT32."""

    def __init__(self, volume: Volume) -> None:
        import pyfsfat  # type: ignore[import-not-found,unused-ignore]

        super().__init__(volume)
        self._volume = pyfsfat.volume()
        self._volume.open_file_object(volume)
        self.label = (self._volume.label or "").strip()

    def root(self) -> Any:
        """Return None: the root directory has no entry."""
        return None

    def entry(self, key: int) -> Any:
        """Return the library's object for what has a key."""
        return self._volume.get_file_entry_by_identifier(key) if key else None

    def children(self, entry: Any) -> Iterator[Any]:
        """Yield the library's objects for what is in a directory."""
        yield from super().children(self._volume.root_directory if entry is None else entry)

    def node(self, entry: Any) -> Node:
        """Return what the library's object says."""
        if entry is None:
            return Node(0, 0, stat.S_IFDIR | 0o777, 0, 0, 0, 0)
        # The identifier is the place of the record. The library's times are a month late (20260826).
        place = entry.identifier
        record = self.volume.get(place, 32)
        flags = record[11]
        high, time, date, low, size = struct.unpack_from("<HHHHI", record, 20)
        kind = stat.S_IFDIR if flags & 0x10 else stat.S_IFREG
        cluster = high << 16 | low
        return Node(
            key=place,
            number=place,
            mode=kind | (0o555 if flags & 1 and kind == stat.S_IFREG else 0o777),
            uid=0,
            gid=0,
            size=size if kind == stat.S_IFREG else 0,
            mtime=_dos_time(date, time),
            shown_flags=_letters(flags),
            # There are no numbers of files, and clusters are used again soon.
            identity=(cluster, kind, record[13:18].hex(), date, time, size) if cluster else None,
        )


def _dos_time(date: int, time: int) -> int:
    """Return nanoseconds since 1970; FAT knows no time zone, so as if it were UTC."""
    if not date:
        return 0
    day = (1980 + (date >> 9), max(1, date >> 5 & 15), max(1, date & 31))
    return calendar.timegm((*day, time >> 11, time >> 5 & 63, (time & 31) * 2)) * 10**9


def _letters(flags: int) -> str:
    return "".join(letter for bit, letter in _SHOWN.items() if flags & bit)


def _digest(attributes: dict[str, Content | bytes]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(attributes.items()):
        assert isinstance(value, bytes)
        digest.update(repr((name, len(value))).encode("utf-8", "surrogateescape") + value)
    return digest.hexdigest()


READERS = {"fat": Fat, "ntfs": Ntfs, "xfs": Xfs}
