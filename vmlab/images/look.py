"""The first look at a file that somebody wants to import: what it is, and which other files it names.

Everything here is read by ourselves, a few bytes at a time, before any program opens the file. Programs are told what
it is, and never follow a name in it (`vmlab.images.flatten`).
"""

from __future__ import annotations

import re
import struct
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from vmlab.errors import BuildFailed

#: Kinds of disks besides raw, as qemu-img calls them, by how they begin.
_MAGIC = {
    b"KDMV": "vmdk",
    b"COWD": "vmdk",
    b"# Disk Descriptor": "vmdk",
    b"vhdxfile": "vhdx",
    b"conectix": "vpc",
    b"QED\0": "qed",
}
#: VMDK's kinds that lie in several files, as far as they can be read.
_CREATE_TYPES = (
    "monolithicFlat", "twoGbMaxExtentFlat", "twoGbMaxExtentSparse", "vmfs", "vmfsSparse", "seSparse",
)  # fmt: skip
_EXTENT = re.compile(r'^(\w+)\s+(\d{1,18})\s+(\w+)(?:\s+"([^"\n]*)"(?:\s+(\d{1,18}))?)?\s*$', re.MULTILINE)
_KEY = re.compile(r'^\s*(\w+)\s*=\s*"?([^"\n]*?)"?\s*$', re.MULTILINE)
_MOST_EXTENTS = 4096
_FLAT = ("FLAT", "VMFS")
_SPARSE = ("SPARSE", "VMFSSPARSE", "SESPARSE")
_DESCRIPTOR = 1 << 20  # bytes of a VMDK's text that are read at most
_MERGE = "merge them first: Hyper-V's manager does, or Merge-VHD"

#: What a VHDX calls its tables: the regions of the file, and the items of its metadata.
_BAT = uuid.UUID("2dc27766-f623-4200-9d64-115e9bfd4a08").bytes_le
_METADATA = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
_PARAMETERS = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le
_SIZE = uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8").bytes_le
_SECTOR = uuid.UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f").bytes_le
_MOST_BAT = 64 << 20  # bytes, for 8 TiB in the smallest blocks


@dataclass(frozen=True)
class Extent:
    """A file with a part of a disk.

    Attributes
    ----------
    name
        As the disk calls it.
    sectors, offset
        Its part in the disk, and, where it is flat, where that begins in the file; in sectors of 512 bytes.
    kind
        VMDK's word: ``FLAT``, ``SPARSE`` ...
    """

    name: str
    sectors: int
    kind: str
    offset: int


@dataclass(frozen=True)
class Look:
    """What a file is.

    Attributes
    ----------
    format
        As qemu-img calls it: ``raw``, ``qcow2``, ``qcow``, ``qed``, ``vmdk``, ``vdi``, ``vhdx``, ``vpc``; or ``iso``,
        ``tar``, ``ovf``.
    backing, backing_format
        The file that it holds only the changes to, as it names it, and what that is, if it says so.
    data_file
        The file that a qcow2's data lies in.
    extents
        The files that a VMDK consists of.
    head
        How a VMDK's description begins, as far as the extents.
    size
        Bytes that a guest sees, of a qcow2.
    end
        Bytes that the file must have at least, where nobody else can tell.
    """

    format: str
    backing: str | None = None
    backing_format: str | None = None
    data_file: str | None = None
    extents: tuple[Extent, ...] = ()
    head: dict[str, str] = field(default_factory=dict)
    size: int = 0
    end: int = 0

    @property
    def alone(self) -> bool:
        """Whether it names no other file."""
        return self.backing is None and self.data_file is None and not self.extents


def look(path: Path, shown: str, form: str | None = None) -> Look:
    """Look at a file that is ours alone.

    Parameters
    ----------
    shown
        What to call it in errors.
    form
        What it is; then only what it names is read. Without it, it is recognized by how it begins and ends.

    Raises
    ------
    BuildFailed
        It is of a kind that cannot be read, or damaged where it says what it is.
    """
    with path.open("rb") as file:
        form = form or _recognize(file)
        reader = _READERS.get(form)
        if reader is None:
            return Look(form)
        try:
            return reader(file, shown)
        except (struct.error, ValueError, IndexError) as error:
            raise BuildFailed(f"'{shown}' is damaged or cut short.", format=form, cause=error) from error


def _recognize(file: BinaryIO) -> str:
    head = file.read(36864)
    for magic, form in _MAGIC.items():
        if head.startswith(magic):
            return form
    if head.startswith(b"QFI\xfb"):
        return "qcow" if head[4:8] == b"\0\0\0\1" else "qcow2"
    if head.startswith(b"<<< ") and head[64:68] == b"\x7f\x10\xda\xbe":
        return "vdi"
    if head[32769:32774] == b"CD001":
        return "iso"
    if head[257:262] == b"ustar":
        return "tar"
    if re.match(rb"(\xef\xbb\xbf)?\s*<", head) and b"<Envelope" in re.sub(
        rb"<\w+:Envelope", b"<Envelope", head
    ):
        return "ovf"
    # A VHD of fixed size is a raw disk with a footer.
    return "vpc" if _footer(file) is not None else "raw"


def _footer(file: BinaryIO) -> bytes | None:
    size = file.seek(0, 2)
    if size < 512:
        return None
    # Virtual PC of old wrote one byte less.
    for length in (512, 511):
        file.seek(-length, 2)
        footer = file.read(length).ljust(512, b"\0")
        if footer.startswith(b"conectix"):
            plain = footer[:64] + bytes(4) + footer[68:]
            if struct.unpack_from(">I", footer, 64)[0] == ~sum(plain) & 0xFFFFFFFF:
                return footer
    return None


def _at(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    found = file.read(length)
    if len(found) < length:
        raise ValueError("it ends early")
    return found


def _name(file: BinaryIO, offset: int, length: int) -> str | None:
    if not offset or not length:
        return None
    if length > 1023:
        raise ValueError("the name of another file is too long")
    return _at(file, offset, length).rstrip(b"\0").decode("utf-8", errors="surrogateescape") or None


def _encrypted(shown: str) -> BuildFailed:
    return BuildFailed(f"'{shown}' is encrypted.", hint="decrypt it first: qemu-img convert --image-opts ...")


def _qcow2(file: BinaryIO, shown: str) -> Look:
    head = _at(file, 0, 72)
    version, offset, length = struct.unpack_from(">IQI", head, 4)
    features, at = 0, 72
    if version >= 3:
        features, at = struct.unpack(">Q", _at(file, 72, 8))[0], struct.unpack(">I", _at(file, 100, 4))[0]
    if struct.unpack_from(">I", head, 32)[0]:
        raise _encrypted(shown)
    if features & 2:
        raise ValueError("it says so itself")
    backing_format, data_file = None, None
    cluster = 1 << struct.unpack_from(">I", head, 20)[0] % 32
    while at + 8 <= cluster:
        kind, size = struct.unpack(">II", _at(file, at, 8))
        if kind == 0 or size > cluster:
            break
        if kind == 0xE2792ACA:
            backing_format = _name(file, at + 8, size)
        elif kind == 0x44415441:
            data_file = _name(file, at + 8, size)
        at += 8 + (size + 7 & ~7)
    # Bit 2: what is in the clusters lies elsewhere; the name is only a hint where it is to be found.
    return Look(
        "qcow2",
        _name(file, offset, length),
        backing_format,
        (data_file or "?") if features & 4 else None,
        size=struct.unpack_from(">Q", head, 24)[0],
    )


def _qcow(file: BinaryIO, shown: str) -> Look:
    head = _at(file, 0, 48)
    if struct.unpack_from(">I", head, 36)[0]:
        raise _encrypted(shown)
    return Look("qcow", _name(file, *struct.unpack_from(">QI", head, 8)))


def _qed(file: BinaryIO, shown: str) -> Look:
    head = _at(file, 0, 64)
    features = struct.unpack_from("<Q", head, 16)[0]
    if not features & 1:
        return Look("qed")
    # Bit 2: what is below must be taken as raw.
    return Look("qed", _name(file, *struct.unpack_from("<II", head, 56)), "raw" if features & 4 else None)


def _vpc(file: BinaryIO, shown: str) -> Look:
    footer = _footer(file)
    if footer is None:
        raise ValueError("its end is missing")
    if struct.unpack_from(">I", footer, 60)[0] not in (2, 3):
        raise BuildFailed(
            f"'{shown}' is only the changes to another disk.",
            hint=_MERGE,
        )
    return Look("vpc")


def _vhdx(file: BinaryIO, shown: str) -> Look:
    """Find where the last block of data ends: QEMU reads zeros behind the end of the file."""
    regions = _table(file, 192 << 10, b"regi", 8, 16, "<QI")
    (table, length), (metadata, _) = regions[_BAT], regions[_METADATA]
    items = _table(file, metadata, b"metadata", 10, 32, "<II")
    block, flags = struct.unpack("<II", _at(file, metadata + items[_PARAMETERS][0], 8))
    size = struct.unpack("<Q", _at(file, metadata + items[_SIZE][0], 8))[0]
    sector = struct.unpack("<I", _at(file, metadata + items[_SECTOR][0], 4))[0]
    if flags & 2:
        raise BuildFailed(f"'{shown}' is only the changes to another disk.", hint=_MERGE)
    if not block or not sector or length > _MOST_BAT:
        raise ValueError("its tables make no sense")
    # After each of so many blocks stands an entry of another kind.
    ratio = (sector << 23) // block
    end = 0
    for number, (entry,) in enumerate(struct.iter_unpack("<Q", _at(file, table, length))):
        index, place = divmod(number, ratio + 1)
        start = (index * ratio + place) * block
        if place < ratio and start < size and entry & 7 in (6, 7):
            end = max(end, (entry >> 20 << 20) + min(block, size - start))
    return Look("vhdx", end=end)


def _table(
    file: BinaryIO, at: int, magic: bytes, count_at: int, first: int, entry: str
) -> dict[bytes, tuple[int, int]]:
    head = _at(file, at, 64 << 10)
    if not head.startswith(magic):
        raise ValueError("a table is missing")
    found = {}
    for number in range(struct.unpack_from("<H", head, count_at)[0]):
        place = first + 32 * number
        found[head[place : place + 16]] = struct.unpack_from(entry, head, place + 16)
    for needed in (_BAT, _METADATA) if magic == b"regi" else (_PARAMETERS, _SIZE, _SECTOR):
        if needed not in found:
            raise ValueError("a table is incomplete")
    return found


def _vmdk(file: BinaryIO, shown: str) -> Look:
    magic = _at(file, 0, 4)
    if magic == b"COWD":
        return Look("vmdk")
    if magic == b"KDMV":
        capacity, _grain, at, length = struct.unpack("<QQQQ", _at(file, 12, 32))
        if not capacity:
            raise BuildFailed(
                f"'{shown}' is a VMDK whose description lies inside it, and its data elsewhere."
            )
        text = _text(_at(file, at * 512, min(length * 512, _DESCRIPTOR)) if at else b"")
        return Look("vmdk", *_parent(text))
    file.seek(0)
    text = _text(file.read(_DESCRIPTOR))
    keys = dict(_KEY.findall(text))
    kind = keys.get("createType", "")
    if kind not in _CREATE_TYPES:
        raise BuildFailed(
            f"'{shown}' is a VMDK of a kind that cannot be read: '{kind[:40]}'.",
            hint="export it anew, as a growing disk in one file",
        )
    found = []
    for access, sectors, extent, name, offset in _EXTENT.findall(text):
        if access not in ("RW", "RDONLY") or extent not in (*_FLAT, *_SPARSE) or not name:
            raise BuildFailed(f"'{shown}' has a part of a kind that cannot be read: {access} {extent}.")
        found.append(Extent(name, int(sectors), extent, int(offset or 0)))
    if not 0 < len(found) <= _MOST_EXTENTS:
        raise ValueError(f"it consists of {len(found)} files")
    head = {"CID": _cid(keys.get("CID")), "parentCID": _cid(keys.get("parentCID")), "createType": kind}
    return Look("vmdk", *_parent(text), extents=tuple(found), head=head)


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("utf-8", errors="surrogateescape").replace("\r", "")


def _cid(text: str | None) -> str:
    return f"{int(text, 16) & 0xFFFFFFFF:08x}" if text else "ffffffff"


def _parent(text: str) -> tuple[str | None, str | None]:
    keys = dict(_KEY.findall(text))
    if _cid(keys.get("parentCID")) == "ffffffff":
        return None, None
    return keys.get("parentFileNameHint") or "?", "vmdk"


_READERS = {"qcow2": _qcow2, "qcow": _qcow, "qed": _qed, "vpc": _vpc, "vhdx": _vhdx, "vmdk": _vmdk}
