"""Partitions of a disk (MBR, GPT), and what kind of file system is where."""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from vmlab.compare.blocks import SECTOR, Disk, Readable

_EXTENDED = (0x05, 0x0F, 0x85)
_PROTECTIVE = 0xEE
#: More partitions than any tool makes; a damaged table must not keep us busy.
_MOST = 256

#: Where file systems and the like have their names: offset, bytes, what it is called.
_SIGNATURES = (
    (1080, b"\x53\xef", "ext"),
    (0, b"XFSB", "xfs"),
    (0x10040, b"_BHRfS_M", "btrfs"),
    (3, b"NTFS    ", "ntfs"),
    (3, b"EXFAT   ", "exfat"),
    (54, b"FAT1", "fat"),
    (82, b"FAT32   ", "fat"),
    (0, b"LUKS\xba\xbe", "LUKS"),
    (536, b"LVM2 001", "LVM"),
    (1024, b"\x10\x20\xf5\xf2", "f2fs"),
    (0, b"hsqs", "squashfs"),
    (0x8001, b"CD001", "iso9660"),
    (0, b"BOOT_PARAMS", "boot parameters"),
    # Changes in swap are nobody's file: it must be nothing else.
    (4086, b"SWAPSPACE2", "swap"),
)


@dataclass(frozen=True)
class Partition:
    """A part of a disk that can hold a file system.

    Attributes
    ----------
    number
        As the guest counts: 1 is ``vda1``; 0 is a whole disk without partitions.
    start, size
        Bytes.
    kind
        ``ext``, ``xfs``, ``fat`` ...; ``empty`` where its first bytes are all zero, ``unknown`` otherwise.
    id
        Its UUID, as ``PARTUUID=`` in ``/etc/fstab`` names it.
    """

    number: int
    start: int
    size: int
    kind: str
    id: str = ""


#: Number, start, size, UUID.
_Entry = tuple[int, int, int, str]


def partitions(disk: Disk) -> list[Partition]:
    """Return the partitions of a disk, or one with the number 0 that is all of it.

    As Linux does: wherever there is a table, it counts, whatever else was left at the start of the disk.
    """
    table = _mbr_entries(disk, 0)
    protective = any(kind == _PROTECTIVE for kind, _, _ in table)
    found = (_gpt(disk) if protective else []) or _mbr(disk, table)
    if found:
        return [
            Partition(n, start, size, kind_of(disk, start), known) for n, start, size, known in sorted(found)
        ]
    # What a table says that cannot be read is not known; a signature that is older must not speak for it.
    return [Partition(0, 0, disk.size, "unknown" if protective else kind_of(disk, 0))]


def outside(parts: list[Partition], size: int) -> list[tuple[int, int]]:
    """Return start and size of what is in no partition: tables, boot code, gaps."""
    found, at = [], 0
    for part in [*sorted(parts, key=lambda part: part.start), Partition(0, size, 0, "")]:
        if part.start > at:
            found.append((at, part.start - at))
        at = max(at, part.start + part.size)
    return found


def kind_of(disk: Readable, start: int) -> str:
    """Return the kind of file system that starts there."""
    head = disk.read(start, 0x11000)
    for offset, name, kind in _SIGNATURES:
        if head[offset : offset + len(name)] == name:
            return kind
    return "unknown" if any(head) else "empty"


def _entry(disk: Disk, number: int, start: int, size: int, known: str) -> Iterator[_Entry]:
    """Yield a partition if it makes sense; one that is longer than the disk ends with it, as in Linux."""
    if 0 < start < disk.size and size > 0:
        yield number, start, min(size, disk.size - start), known


def _gpt(disk: Disk) -> list[_Entry]:
    for sector in (512, 4096):
        # The second header is at the end of the disk.
        for place in (sector, disk.size - sector):
            head = disk.read(max(0, place), sector)
            if head[:8] != b"EFI PART":
                continue
            size, crc = struct.unpack_from("<II", head, 12)
            if not 92 <= size <= sector or zlib.crc32(head[:16] + bytes(4) + head[20:size]) != crc:
                continue
            at, count, length, table_crc = struct.unpack_from("<QIII", head, 72)
            if length < 128 or length > 4096 or count > 1024:
                continue
            table = disk.read(at * sector, count * length)
            if zlib.crc32(table) == table_crc:
                return list(_gpt_entries(disk, table, length, sector))
    return []


def _gpt_entries(disk: Disk, table: bytes, length: int, sector: int) -> Iterator[_Entry]:
    for number in range(min(len(table) // length, _MOST)):
        kind, known = (uuid.UUID(bytes_le=table[number * length + at :][:16]) for at in (0, 16))
        first, last = struct.unpack_from("<QQ", table, number * length + 32)
        if kind.int:
            yield from _entry(disk, number + 1, first * sector, (last + 1 - first) * sector, str(known))


def _mbr(disk: Disk, table: list[tuple[int, int, int]]) -> list[_Entry]:
    found: list[_Entry] = []
    name = f"{struct.unpack('<I', disk.read(440, 4))[0]:08x}"
    for number, (kind, first, count) in enumerate(table, 1):
        if kind in _EXTENDED:
            found += _logical(disk, first, name)
        elif kind not in (0, _PROTECTIVE):
            found += _entry(disk, number, first * SECTOR, count * SECTOR, f"{name}-{number:02x}")
    return found


def _logical(disk: Disk, extended: int, name: str) -> list[_Entry]:
    """Return the logical partitions: each record has one and the place of the next record."""
    found: list[_Entry] = []
    seen: set[int] = set()
    place = extended
    while place not in seen and len(seen) < _MOST:
        seen.add(place)
        table = _mbr_entries(disk, place * SECTOR)
        following = 0
        for kind, first, count in table[:2]:
            number = 5 + len(found)
            if kind in _EXTENDED:
                following = first
            elif kind:
                found += _entry(
                    disk, number, (place + first) * SECTOR, count * SECTOR, f"{name}-{number:02x}"
                )
        if not following:
            break
        place = extended + following
    return found


def _mbr_entries(disk: Disk, at: int) -> list[tuple[int, int, int]]:
    """Return kind, first sector and sectors of the four entries of a boot record."""
    record = disk.read(at, SECTOR) if at < disk.size else b""
    if record[510:] != b"\x55\xaa":
        return []
    entries = [struct.unpack_from("<B3xB3xII", record, 446 + 16 * n) for n in range(4)]
    if any(active & 0x7F for active, *_ in entries):
        return []
    return [(kind, first, count) for _, kind, first, count in entries]
