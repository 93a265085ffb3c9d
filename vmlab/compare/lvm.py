"""LVM2 logical volumes of one physical volume: where their parts are on the disk.

The volume group's description is text in the physical volume's metadata area, so no library is needed, and other than
through one (libvslvm only reads bytes) it is known which bytes of the disk a file system is made of.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vmlab.compare.blocks import SECTOR, Disk, Segment
from vmlab.errors import DiskUnreadable

_LABEL_SECTORS = 4
_CRC_START = 0xF597A6CF
#: Far more than descriptions of groups have.
_MOST_TEXT = 32 << 20
_TOKEN = re.compile(r'\s*(?:#[^\n]*|("(?:[^"\\]|\\.)*")|([\w.+-]+)|([{}\[\]=,]))')
#: Volumes that people do not see: snapshots' stores, mirrors' legs, pools.
_VISIBLE = "VISIBLE"


@dataclass(frozen=True)
class LogicalVolume:
    """A logical volume.

    Attributes
    ----------
    group, name
        As ``vg/lv``.
    segments
        Where its bytes are on the disk; empty if that cannot be told.
    unread
        Why not, else None.
    """

    group: str
    name: str
    segments: list[Segment]
    unread: str | None = None


def logical_volumes(disk: Disk, start: int, size: int) -> list[LogicalVolume]:
    """Return the logical volumes of the physical volume at ``start``, sorted by name.

    Raises
    ------
    DiskUnreadable
        It is damaged.
    """
    identity, areas = _label(disk, start, size)
    texts = [text for at, length in areas for text in _metadata(disk, start, size, at, length)]
    if not texts:
        # A physical volume of no group; or of one that keeps its description elsewhere.
        if any(length for _, length in areas):
            return []
        raise _damaged("it has no metadata area")
    # Copies differ only if the last write of one failed.
    groups = [group for text in texts for group in _groups(text)]
    name, group = max(groups, key=lambda found: _number(found[1], "seqno"))
    return sorted(_volumes(name, group, identity, start, size), key=lambda found: found.name)


def _damaged(what: str) -> DiskUnreadable:
    return DiskUnreadable(
        f"The LVM physical volume is damaged: {what}.", hint="`pvck` in the guest says more"
    )


def _label(disk: Disk, start: int, size: int) -> tuple[str, list[tuple[int, int]]]:
    """Return the identity of the physical volume, and its metadata areas."""
    for number in range(_LABEL_SECTORS):
        label = disk.read(start + number * SECTOR, SECTOR)
        if label[:8] != b"LABELONE" or label[24:32] != b"LVM2 001":
            continue
        if _crc(label[20:]) != struct.unpack_from("<I", label, 16)[0]:
            raise _damaged("the checksum of its label is wrong")
        at = struct.unpack_from("<I", label, 20)[0]
        words = struct.unpack_from(f"<{(SECTOR - at - 40) // 16 * 2}Q", label, at + 40) if at < 400 else ()
        pairs = list(zip(words[::2], words[1::2], strict=True))
        # Two lists, each ended by a pair of zeros: data areas, metadata areas.
        ends = [n for n, (offset, _) in enumerate(pairs) if not offset]
        if len(ends) < 2:
            raise _damaged("its label makes no sense")
        areas = pairs[ends[0] + 1 : ends[1]]
        return label[at : at + 32].decode("ascii", "replace"), [a for a in areas if sum(a) <= size]
    raise _damaged("it has no label")


def _metadata(disk: Disk, start: int, size: int, at: int, length: int) -> Iterator[str]:
    """Yield the description of the group that a metadata area holds, if it holds one."""
    head = disk.read(start + at, SECTOR)
    if head[4:20] != b" LVM2 x[5A%r0N*>" or _crc(head[4:]) != struct.unpack_from("<I", head)[0]:
        raise _damaged("the header of its metadata is wrong")
    offset, count, crc, _ = struct.unpack_from("<QQII", head, 40)
    if not offset or not count:
        return
    if offset < SECTOR or offset >= length or count > min(length - SECTOR, _MOST_TEXT):
        raise _damaged("the header of its metadata makes no sense")
    # The area is a ring behind its header.
    first = min(count, length - offset)
    data = disk.read(start + at + offset, first) + disk.read(start + at + SECTOR, count - first)
    if _crc(data) != crc:
        raise _damaged("the checksum of its metadata is wrong")
    yield data.rstrip(b"\0").decode("utf-8", "replace")


def _crc(data: bytes) -> int:
    return zlib.crc32(data, _CRC_START ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


# -- text --------------------------------------------------------------------------------------------------------------


def _groups(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    tokens: list[str] = []
    at = 0
    while found := _TOKEN.match(text, at):
        at = found.end()
        if token := found.group(1) or found.group(2) or found.group(3):
            tokens.append(token)
    if text[at:].strip():
        raise _damaged("its metadata makes no sense")
    for name, value in _section(iter(tokens), top=True).items():
        if isinstance(value, dict):
            yield name, value


def _section(tokens: Iterator[str], *, top: bool = False, depth: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in tokens:
        if name == "}":
            return found
        mark = next(tokens, "")
        if mark == "{" and depth < 16:
            found[name] = _section(tokens, depth=depth + 1)
        elif mark == "=":
            value = next(tokens, "")
            found[name] = list(_list(tokens)) if value == "[" else _plain(value)
        else:
            raise _damaged("its metadata makes no sense")
    if not top:
        raise _damaged("its metadata ends too early")
    return found


def _list(tokens: Iterator[str]) -> Iterator[str | int]:
    for word in tokens:
        if word == "]":
            return
        if word != ",":
            yield _plain(word)


def _plain(token: str) -> str | int:
    if token.startswith('"'):
        return token[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    return int(token) if token.isascii() and token.isdigit() else token


def _number(section: dict[str, Any], name: str) -> int:
    value = section.get(name)
    if not isinstance(value, int):
        raise _damaged(f"its metadata has no {name}")
    return value


def _sections(section: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
    inside = section.get(name, {})
    return {n: v for n, v in inside.items() if isinstance(v, dict)} if isinstance(inside, dict) else {}


# -- volumes -----------------------------------------------------------------------------------------------------------


def _volumes(
    group: str, section: dict[str, Any], identity: str, start: int, size: int
) -> Iterator[LogicalVolume]:
    extent = _number(section, "extent_size") * SECTOR
    here = {
        name: start + _number(volume, "pe_start") * SECTOR
        for name, volume in _sections(section, "physical_volumes").items()
        if str(volume.get("id", "")).replace("-", "") == identity
    }
    for name, volume in _sections(section, "logical_volumes").items():
        if _VISIBLE not in volume.get("status", ()):
            continue
        parts = [_segment(part, extent, here) for part in _sections_of(volume)]
        segments = sorted((p for p in parts if isinstance(p, Segment)), key=lambda p: p.logical)
        why = next((p for p in parts if isinstance(p, str)), None)
        if why is not None:
            yield LogicalVolume(group, name, [], why)
            continue
        end = 0
        for part in segments:
            if part.logical != end or part.physical + part.length > start + size or not part.length:
                raise _damaged(f"the segments of {group}/{name} make no sense")
            end += part.length
        yield LogicalVolume(group, name, segments)


def _sections_of(volume: dict[str, Any]) -> list[dict[str, Any]]:
    count = _number(volume, "segment_count")
    parts = [v for k, v in volume.items() if re.fullmatch(r"segment\d+", k) and isinstance(v, dict)]
    if len(parts) != count or not count:
        raise _damaged("its metadata lacks segments")
    return parts


def _segment(part: dict[str, Any], extent: int, here: dict[str, int]) -> Segment | str:
    """Return where a segment is, or why that cannot be told."""
    kind, stripes = part.get("type"), part.get("stripes", [])
    if kind not in ("striped", "linear") or _number(part, "stripe_count") != 1:
        return f"it is {kind if kind != 'striped' else 'striped over several physical volumes'}, not linear"
    if len(stripes) != 2 or not isinstance(stripes[1], int):
        raise _damaged("its metadata makes no sense")
    if stripes[0] not in here:
        return "a part of it is on another physical volume"
    length = _number(part, "extent_count") * extent
    return Segment(_number(part, "start_extent") * extent, here[stripes[0]] + stripes[1] * extent, length)
