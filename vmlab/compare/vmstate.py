"""The state of every simulated device, read from QEMU's migration stream by the stream's own description of it.

Behind the RAM, a stream has one section for each device, and at its end a JSON text that names every field of every
section (docs/devel/migration/main.rst and migration/savevm.c of QEMU)::

    04  BE32 id, u8 length, name, BE32 instance, BE32 version, <the fields>  7e BE32 id        one for each device
    02/03  BE32 id, <...>  7e BE32 id                                       the rest of the RAM, here empty
    00
    06  BE32 length, JSON

Integers are big-endian; an array is one field with ``array_len``; subsections (``05``, u8 length, name, BE32 version)
are described where they were written. What a revert keeps of the present has no description (QEMU's
``xen-save-devices-state`` writes none): then that of another stream with the same devices is used.
"""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from vmlab.engine import mapped_ram
from vmlab.errors import SnapshotDamaged

_EOF = 0x00
_SECTION_PART, _SECTION_END, _SECTION_FULL = 0x02, 0x03, 0x04
_SUBSECTION = 0x05
_DESCRIPTION = 0x06
_COMMAND = 0x08
_FOOTER = 0x7E

#: The most that a stream may hold behind its RAM. Real ones have half a megabyte.
_MOST = 64 << 20
#: The most fields of one device, arrays unfolded, and the deepest nesting. Real ones have some thousands, and five.
_MOST_FIELDS = 200_000
_DEEPEST = 24

#: Subsections that devices of a PC write only when they are not in their initial state, so that another stream's
#: description may lack them: ``{name: ((field, type, bytes), ...)}`` (hw/input/ps2.c, pckbd.c, hw/char/serial.c,
#: hw/timer/hpet.c, hw/rtc/mc146818rtc.c, hw/ide/core.c of QEMU 10.0; as ``-dump-vmstate`` tells their sizes).
_OPTIONAL = {
    "ps2kbd/ledstate": (("ledstate", "int32", 4),),
    "ps2kbd/need_high_bit": (("need_high_bit", "bool", 1),),
    "ps2kbd/command_reply_queue": (("parent_obj.queue.cwptr", "int32", 4),),
    "pckbd_outport": (("outport", "uint8", 1),),
    "pckbd/extended_state": (
        ("migration_flags", "uint32", 4),
        ("obsrc", "uint32", 4),
        ("obdata", "uint8", 1),
        ("cbdata", "uint8", 1),
    ),
    "serial/thr_ipending": (("thr_ipending", "int32", 4),),
    "serial/tsr": (("tsr_retry", "uint32", 4), ("thr", "uint8", 1), ("tsr", "uint8", 1)),
    "serial/fifo_timeout_timer": (("fifo_timeout_timer", "timer", 8),),
    "serial/timeout_ipending": (("timeout_ipending", "int32", 4),),
    "serial/poll": (("poll_msl", "int32", 4), ("modem_status_poll", "timer", 8)),
    "hpet/offset": (("hpet_offset", "uint64", 8),),
    "hpet/rtc_irq_level": (("rtc_irq_level", "uint8", 1),),
    "mc146818rtc/irq_reinject_on_ack_count": (("irq_reinject_on_ack_count", "uint16", 2),),
    "ide_drive/tray_state": (("tray_open", "bool", 1), ("tray_locked", "bool", 1)),
}

_SIGNED = ("int8", "int16", "int32", "int64", "timer")
_UNSIGNED = ("uint8", "uint16", "uint32", "uint64")


@dataclass(frozen=True)
class Field:
    """One value of a device.

    Attributes
    ----------
    path
        Its place: ``channels[0].count``; in a subsection ``ps2kbd/ledstate.ledstate``.
    kind
        QEMU's name of the type: ``uint16``, ``int32 le``, ``bool``, ``timer``, ``buffer`` ...
    raw
        The bytes in the stream.
    """

    path: str
    kind: str
    raw: bytes

    @property
    def value(self) -> int | bool | bytes | str | None:
        """The value: a number or a truth value where the type says so, else the bytes."""
        base = self.kind.removesuffix(" equal")
        if base.endswith(" le") and base.removesuffix(" le") in (*_SIGNED, *_UNSIGNED):
            return int.from_bytes(self.raw, "little", signed=base.startswith("int"))
        if base in _SIGNED:
            return int.from_bytes(self.raw, "big", signed=True)
        if base in _UNSIGNED:
            return int.from_bytes(self.raw, "big")
        if base == "bool":
            return any(self.raw)
        if base == "nullptr":
            return None
        if base == "str":
            return self.raw.rstrip(b"\0").decode("utf-8", "replace")
        return self.raw


@dataclass(frozen=True)
class Device:
    """One section of the stream.

    Attributes
    ----------
    name, instance, version
        As QEMU says: ``0000:00:02.3:00.0/virtio-blk``, 0, 2. Several devices of one name differ by the instance.
    data
        The bytes of all its fields.
    description
        The part of the stream's description for it; None if there is none that fits.
    borrowed
        Whether that is the description of another stream.
    """

    name: str
    instance: int
    version: int
    data: bytes = field(repr=False)
    description: dict[str, Any] | None = field(default=None, repr=False, compare=False)
    borrowed: bool = False
    path: Path = field(default=Path(), repr=False, compare=False)

    @property
    def kind(self) -> str:
        """The name without the place on the bus: ``virtio-blk``."""
        return self.name.rpartition("/")[2]

    @cached_property
    def fields(self) -> dict[str, Field]:
        """All values by their path; one ``data`` where no description fits."""
        if self.description is None:
            return {"data": Field("data", "buffer", self.data)}
        decoder = _Decoder(self.data, self.path, borrowed=self.borrowed)
        decoder.fields(self.description, "", 0)
        return decoder.found

    @property
    def described(self) -> bool:
        """Whether its fields are known by name."""
        return self.description is not None


@dataclass(frozen=True)
class Devices:
    """All devices of a stream, in its order.

    Attributes
    ----------
    machine_type
        ``pc-q35-10.0``.
    own_description
        Whether the stream describes itself.
    """

    machine_type: str
    devices: tuple[Device, ...]
    own_description: bool

    @cached_property
    def by_name(self) -> dict[tuple[str, int], Device]:
        """The devices by ``(name, instance)``."""
        return {(device.name, device.instance): device for device in self.devices}


class _Damaged(Exception):
    """Why the stream cannot be read; becomes a SnapshotDamaged that names the file."""


def read(path: Path, describers: Sequence[Path] = ()) -> Devices:
    """Read the devices of the mapped-ram file at ``path``.

    Parameters
    ----------
    describers
        Streams whose description is used where ``path`` has none: those of guests with the same devices. The first
        that has one counts.

    Raises
    ------
    SnapshotDamaged
        The file is truncated or altered.
    """
    layout = mapped_ram.parse(path)
    if layout.size - layout.devices_offset > _MOST:
        raise mapped_ram.damaged(path, "has far more behind its RAM than devices can be")
    data = mapped_ram.device_bytes(path, layout)
    try:
        return _read(path, layout.machine_type, data, describers)
    except _Damaged as why:
        raise mapped_ram.damaged(path, str(why)) from None


def _read(path: Path, machine_type: str, data: bytes, describers: Sequence[Path]) -> Devices:
    own = _description(data)
    known = own
    for other in describers:
        if known is not None:
            break
        layout = mapped_ram.parse(other)
        if layout.machine_type == machine_type:
            known = _description(mapped_ram.device_bytes(other, layout))
    order = {(d["name"], d["instance_id"]): d for d in known} if known is not None else {}
    found = []
    for name, instance, version, start, end in _sections(data, order if own is not None else None):
        described = order.get((name, instance))
        content = data[start:end]
        device = Device(name, instance, version, content, described, path=path)
        if described is not None and own is None:
            device = replace(device, borrowed=True)
            device = replace(device, description=_fitting(device, described))
        found.append(device)
    return Devices(machine_type, tuple(found), own is not None)


def _fitting(device: Device, described: dict[str, Any]) -> dict[str, Any] | None:
    """Return a description from another stream if it gives all the bytes of a device a name."""
    fields = described.get("fields")
    if isinstance(fields, list) and len(fields) == 1 and "struct" not in fields[0]:
        # One lump, which may be of another length each time (virtio, slirp).
        return {**described, "fields": [{**fields[0], "size": len(device.data)}]}
    try:
        return described if device.fields else None
    except SnapshotDamaged:
        return None


def _description(data: bytes) -> list[dict[str, Any]] | None:
    """Return the description of the devices at the end of a stream, or None if there is none."""
    # JSON has no zero bytes, and the length before it has at least one: it stays below 16 MiB.
    brace = data.find(b"{", data.rfind(b"\0"))
    if brace < 6 or data[-1:] != b"}":
        return None
    if (
        data[brace - 5] != _DESCRIPTION
        or struct.unpack(">I", data[brace - 4 : brace])[0] != len(data) - brace
    ):
        raise _Damaged("has a damaged description of its devices")
    try:
        whole = json.loads(data[brace:])
    except (ValueError, RecursionError):
        raise _Damaged("has a damaged description of its devices") from None
    devices = whole.get("devices") if isinstance(whole, dict) else None
    if not isinstance(devices, list) or not all(
        isinstance(d, dict) and isinstance(d.get("name"), str) and isinstance(d.get("instance_id"), int)
        for d in devices
    ):
        raise _Damaged("has a damaged description of its devices")
    return devices


def _sections(
    data: bytes, described: dict[tuple[str, int], dict[str, Any]] | None
) -> Iterator[tuple[str, int, int, int, int]]:
    """Yield ``(name, instance, version, start, end)`` of each device's fields.

    With the stream's own description each section ends where its fields do. Without it, the end is found by the footer
    (the section's number once more) with the start of the next section behind it.
    """
    at = 0
    while True:
        kind = _byte(data, at)
        if kind == _EOF:
            return
        if kind in (_SECTION_PART, _SECTION_END):
            # The RAM, which is complete: an end of section and nothing else.
            footer = data.find(bytes([_FOOTER]) + data[at + 1 : at + 5], at + 5, at + 64)
            if footer < 0:
                raise _Damaged("has an unknown section behind its RAM")
            at = footer + 5
            continue
        if kind == _COMMAND:
            at += 5 + _number(data, at + 3, 2)
            continue
        if kind != _SECTION_FULL:
            raise _Damaged(f"has an unknown section behind its RAM, at byte {at}")
        section = data[at + 1 : at + 5]
        name, start = _text(data, at + 5)
        instance, version = _number(data, start, 4), _number(data, start + 4, 4)
        start += 8
        if described is not None:
            if (name, instance) not in described:
                raise _Damaged(f"does not describe its device '{name}'")
            end = start + _length(described[name, instance])
            if not start <= end < len(data) or data[end : end + 5] != bytes([_FOOTER]) + section:
                raise _Damaged(f"describes its device '{name}' wrongly")
        else:
            end = _end(data, start, section)
        yield name, instance, version, start, end
        at = end + 5


def _end(data: bytes, start: int, section: bytes) -> int:
    """Return where the fields end that started at ``start``: before the footer and a plausible next section."""
    footer = bytes([_FOOTER]) + section
    following = bytes([_SECTION_FULL]) + struct.pack(">I", struct.unpack(">I", section)[0] + 1)
    last = data.find(footer + b"\0", start)
    end = data.find(footer + following, start)
    if end < 0:
        # Numbers may skip those of sections that are not needed: any section whose name can be read will do.
        end = start - 1
        while (end := data.find(footer + bytes([_SECTION_FULL]), end + 1)) >= 0:
            name = data[end + 11 : end + 11 + (data[end + 10] if end + 10 < len(data) else 0)]
            if name and name.isascii() and name.decode().isprintable():
                break
    if end < 0:
        end = last
    if end < 0:
        raise _Damaged("ends in the middle of a device")
    return end


def _length(description: dict[str, Any]) -> int:
    """Return how many bytes a description covers."""
    size = 0
    try:
        for item in description.get("fields", ()):
            # The size of a structure covers what is in it.
            one, count = item["size"], item.get("array_len", 1)
            # A list times a number would be a list, as long as somebody likes.
            if not (isinstance(one, int) and isinstance(count, int)):
                raise TypeError
            size += one * count
        for item in description.get("subsections", ()):
            size += 6 + len(item["vmsd_name"]) + _length(item)
    except (AttributeError, KeyError, TypeError, RecursionError):
        raise _Damaged("has a damaged description of its devices") from None
    return size


def _byte(data: bytes, at: int) -> int:
    if at >= len(data):
        raise _Damaged("ends in the middle of its devices")
    return data[at]


def _number(data: bytes, at: int, size: int) -> int:
    if at + size > len(data):
        raise _Damaged("ends in the middle of its devices")
    return int.from_bytes(data[at : at + size], "big")


def _text(data: bytes, at: int) -> tuple[str, int]:
    end = at + 1 + _byte(data, at)
    if end > len(data):
        raise _Damaged("ends in the middle of its devices")
    return data[at + 1 : end].decode("latin-1"), end


@functools.cache
def _optional() -> dict[str, dict[str, Any]]:
    return {
        name: {"fields": [{"name": field, "type": kind, "size": size} for field, kind, size in fields]}
        for name, fields in _OPTIONAL.items()
    }


class _Decoder:
    """Walks the fields of one device."""

    def __init__(self, data: bytes, path: Path, *, borrowed: bool) -> None:
        self.data, self.path, self.borrowed = data, path, borrowed
        self.at = 0
        self.count = 0
        self.found: dict[str, Field] = {}

    def wrong(self) -> SnapshotDamaged:
        return mapped_ram.damaged(self.path, "holds devices that are not as they are described")

    def fields(self, description: dict[str, Any], prefix: str, depth: int) -> None:
        if depth > _DEEPEST:
            raise self.wrong()
        try:
            for item in description.get("fields", ()):
                self.field(item, prefix, depth)
            self.subsections(description.get("subsections", ()), prefix, depth)
        except (AttributeError, KeyError, TypeError, ValueError):
            # A description of other shapes than QEMU writes.
            raise self.wrong() from None
        if depth == 0 and self.at != len(self.data):
            raise self.wrong()

    def subsections(self, known: Sequence[dict[str, Any]], prefix: str, depth: int) -> None:
        by_name = {item["vmsd_name"]: item for item in known}
        if self.borrowed:
            by_name = _optional() | by_name
        # A device writes a subsection when it is not in its initial state: each may be there or not when the
        # description is another stream's.
        while self.at < len(self.data) and self.data[self.at] == _SUBSECTION:
            try:
                name, after = _text(self.data, self.at + 1)
            except _Damaged:
                raise self.wrong() from None
            if name not in by_name:
                if depth == 0 and self.borrowed:
                    # One that the other stream did not have: its bytes, and what is behind it.
                    self.keep_one(Field(name, "buffer", self.data[after + 4 :]))
                    self.at = len(self.data)
                break
            self.at = after + 4
            self.fields(by_name.pop(name), f"{prefix}{name}.", depth + 1)

    def field(self, item: dict[str, Any], prefix: str, depth: int) -> None:
        size, kind, name = item["size"], item["type"], prefix + item["name"]
        if not (isinstance(size, int) and size >= 0 and isinstance(kind, str)):
            raise self.wrong()
        length = item.get("array_len")
        first = item.get("index", 0)
        inner = item.get("struct")
        for number in range(length if length is not None else 1):
            self.count += 1
            if self.count > _MOST_FIELDS:
                raise self.wrong()
            numbered = length is not None or "index" in item
            path = f"{name}[{first + number}]" if numbered else name
            if inner is not None:
                self.fields(inner, f"{path}.", depth + 1)
                continue
            end = self.at + size
            if end > len(self.data):
                raise self.wrong()
            if kind != "unused_buffer":
                self.keep_one(Field(path, kind, self.data[self.at : end]))
            self.at = end

    def keep_one(self, one: Field) -> None:
        # The same name twice in one structure: once more the same value, or numbered from the second on.
        path, number = one.path, 2
        while path in self.found:
            if self.found[path].raw == one.raw:
                return
            path = f"{one.path}#{number}"
            number += 1
        self.found[path] = one if path == one.path else Field(path, one.kind, one.raw)
