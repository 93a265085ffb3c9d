"""What differs between the devices and CPUs of two states, field by field, by names that people use."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmlab.compare import device_names, vmstate
from vmlab.compare.state import Files
from vmlab.compare.vmstate import Device, Devices
from vmlab.errors import WrongState

if TYPE_CHECKING:
    import pandas as pd

#: Bytes of a buffer that are shown, and the most changed places of one buffer that are listed.
SHOWN_BYTES = 16
SHOWN_RUNS = 24
#: Equal bytes between two changes in a buffer that are shown with them, rather than as two changes.
_JOIN = 3

Value = int | bool | str | None


@dataclass(frozen=True)
class FieldChange:
    """One field that differs.

    Attributes
    ----------
    name
        As people say: ``divisor``, ``channel 0, count``.
    path
        As QEMU says: ``state.divider``.
    before, after
        Numbers, truth values, or text (bytes as hexadecimal); None where the field was not written because it was in
        its initial state.
    """

    name: str
    path: str
    before: Value
    after: Value

    def to_json(self) -> dict[str, Any]:
        """Return all of it by name."""
        return vars(self).copy()

    def __str__(self) -> str:
        return f"{self.name}: {show(self.before)} -> {show(self.after)}"


@dataclass(frozen=True)
class DeviceDiff:
    """One device that differs.

    Attributes
    ----------
    name
        As people say: ``timer (PIT)``, ``disk queue``.
    id, instance
        As QEMU says: ``0000:00:02.3:00.0/virtio-blk``, 0.
    only
        ``before`` or ``after`` if only one of the two has it, else None.
    changes
        The fields that differ.
    """

    name: str
    id: str
    instance: int
    only: str | None
    changes: tuple[FieldChange, ...]

    def to_json(self) -> dict[str, Any]:
        """Return all of it by name."""
        return {**vars(self), "changes": [change.to_json() for change in self.changes]}


@dataclass(frozen=True)
class DevicesDiff:
    """What differs between the devices of two states.

    Attributes
    ----------
    before, after
        The titles of the two.
    changed
        The devices that differ, in the order of the machine.
    unchanged
        The names of those that do not.
    undescribed
        Names of devices whose fields could not be told apart, because a state has no description that fits; what
        differs in them is given as bytes.
    """

    before: str
    after: str
    changed: tuple[DeviceDiff, ...]
    unchanged: tuple[str, ...]
    undescribed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.changed)

    def __iter__(self) -> Iterator[DeviceDiff]:
        return iter(self.changed)

    def __getitem__(self, name: str) -> DeviceDiff:
        """Return the change of the device that people, or QEMU, call ``name``; KeyError if it did not change."""
        for device in self.changed:
            if name in (device.name, device.id, device.id.rpartition("/")[2]):
                return device
        raise KeyError(name)

    def __contains__(self, name: str) -> bool:
        try:
            self[name]
        except KeyError:
            return False
        return True

    @property
    def summary(self) -> str:
        """One sentence."""
        total = len(self.changed) + len(self.unchanged)
        if not self.changed:
            return f"None of the {total} devices differs."
        fields = sum(len(device.changes) for device in self.changed)
        return (
            f"{len(self.changed)} of {total} devices differ{'s' if len(self.changed) == 1 else ''}, "
            f"in {fields} field{'' if fields == 1 else 's'}."
        )

    def __str__(self) -> str:
        lines = [self.summary]
        for device in self.changed:
            lines.append(f"{device.name}{f' (only {device.only})' if device.only else ''}")
            lines += [f"    {change}" for change in device.changes]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "before": self.before,
            "after": self.after,
            "summary": self.summary,
            "changed": [device.to_json() for device in self.changed],
            "unchanged": list(self.unchanged),
            "undescribed": list(self.undescribed),
        }

    def to_pandas(self) -> pd.DataFrame:
        """Return one row for each field: device, field, before, after, and QEMU's names."""
        import pandas as pd

        rows = [
            (device.name, change.name, change.before, change.after, device.id, change.path)
            for device in self.changed
            for change in device.changes
        ]
        return pd.DataFrame(rows, columns=["device", "field", "before", "after", "id", "path"], dtype=object)


def read_devices(state: Files, *others: Files) -> Devices:
    """Read the devices of a live state; ``others`` lend their description where it has none.

    Raises
    ------
    WrongState
        It is offline.
    SnapshotDamaged
    """
    if state.ram is None:
        raise WrongState(
            f"{state.title} is offline: it holds no devices.",
            hint="a snapshot of a running machine holds them",
        )
    describers: list[Path] = [path for path in (state.ram_base,) if path is not None]
    for other in others:
        describers += [path for path in (other.ram, other.ram_base) if path is not None and path != state.ram]
    return vmstate.read(state.ram, describers)


def compare_devices(before: Files, after: Files) -> DevicesDiff:
    """Compare all devices and CPUs of two live states.

    Raises
    ------
    WrongState
        One of them is offline.
    SnapshotDamaged
    """
    old, new = read_devices(before, after), read_devices(after, before)
    changed, unchanged, undescribed = [], [], []
    for key in dict.fromkeys([*old.by_name, *new.by_name]):
        first, second = old.by_name.get(key), new.by_name.get(key)
        name = _unique_name(key, old, new)
        if first is not None and second is not None:
            if first.data == second.data:
                unchanged.append(name)
                continue
            if first.described != second.described:
                # One side cannot be told apart: both as bytes, else every field would seem to be new.
                first, second = _plain(first), _plain(second)
        if not all(device.described for device in (first, second) if device is not None):
            undescribed.append(name)
        changes = tuple(_changes(first, second))
        if not changes:
            # Only what QEMU itself calls unused.
            unchanged.append(name)
            continue
        only = None if first is not None and second is not None else "after" if first is None else "before"
        changed.append(DeviceDiff(name, key[0], key[1], only, changes))
    return DevicesDiff(before.title, after.title, tuple(changed), tuple(unchanged), tuple(undescribed))


def show(value: Value) -> str:
    """Return a value as people read it; large numbers in hexadecimal, too."""
    if value is None:
        return "initial"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and abs(value) > 0xFFFF:
        return f"{value} ({value:#x})"
    return str(value)


def _plain(device: Device) -> Device:
    return Device(device.name, device.instance, device.version, device.data)


def _unique_name(key: tuple[str, int], *sides: Devices) -> str:
    """Return what people call a device, with its place where the machine has several of that name."""
    name = device_names.device(*key)
    for side in sides:
        same = {other for other in side.by_name if device_names.device(*other) == name}
        if len(same) > 1:
            place = key[0].rpartition("/")[0]
            return f"{name} at {place}" if place else f"{name} {key[1]}"
    return name


def _changes(first: Device | None, second: Device | None) -> Iterator[FieldChange]:
    old = _fields(first) if first is not None else {}
    new = _fields(second) if second is not None else {}
    kind = (first or second).kind  # type: ignore[union-attr]
    for path in dict.fromkeys([*old, *new]):
        one, other = old.get(path), new.get(path)
        if one == other:
            continue
        if isinstance(one, bytes) or isinstance(other, bytes):
            name, pci = (
                device_names.field(kind, path),
                path.endswith(("config[0]", "config[1]", "PCI configuration")),
            )
            yield from _buffer(kind, name, path, _bytes(one), _bytes(other), pci=pci)
        else:
            yield FieldChange(
                device_names.field(kind, path), path, *(_shown(kind, path, v) for v in (one, other))
            )


def _bytes(value: object) -> bytes | None:
    return value if isinstance(value, bytes) else None


def _fields(device: Device) -> dict[str, Any]:
    """Return the values by path, with virtio's lump taken apart."""
    if device.kind.startswith("virtio-") and set(device.fields) <= {"virtio", "data"}:
        lump = next(iter(device.fields.values()), None)
        parts = virtio(device.kind, lump.raw) if lump is not None else None
        if parts is not None:
            return parts
    return {path: field.value for path, field in device.fields.items()}


def _shown(kind: str, path: str, value: Value) -> Value:
    """Add the meaning to some numbers."""
    if value is not None and not isinstance(value, str | bool):
        if kind == "ps2kbd" and path.endswith("ledstate"):
            return f"{value} ({device_names.leds(value)})"
        if kind == "serial" and path.endswith("divider"):
            return f"{value} ({115200 // value} baud)" if value > 0 else "0"
        if kind == "cpu" and path == "env.eflags":
            return f"{value:#x} ({device_names.flags(value)})"
    elif value is None and kind == "ps2kbd" and path.endswith("ledstate"):
        # Written only when a LED is on.
        return "0 (off)"
    return value


def _buffer(
    kind: str, name: str, path: str, old: bytes | None, new: bytes | None, *, pci: bool
) -> Iterator[FieldChange]:
    """Yield the changed places of a buffer."""
    if old is None or new is None or len(old) != len(new):
        yield FieldChange(name, path, _hex(old), _hex(new))
        return
    if kind == "globalstate":
        yield FieldChange(name, path, *(v.rstrip(b"\0").decode("ascii", "replace") for v in (old, new)))
        return
    cmos = kind == "mc146818rtc" and path == "cmos_data"
    places = list(_named_places(old, new, pci=pci) if pci else _places(old, new, single=cmos))
    for start, end, label in places[:SHOWN_RUNS]:
        if cmos:
            label = device_names.CMOS.get(start, f"memory at {start:#04x}")
        elif not label:
            label = f"{name}, byte {start}" if end - start == 1 else f"{name}, bytes {start}-{end - 1}"
        where = f"{path}[{start}]" if end - start == 1 else f"{path}[{start}:{end}]"
        yield FieldChange(label, where, _hex(old[start:end]), _hex(new[start:end]))
    if len(places) > SHOWN_RUNS:
        rest = sum(end - start for start, end, _ in places[SHOWN_RUNS:])
        yield FieldChange(
            f"{name}, {len(places) - SHOWN_RUNS} more places", path, f"{rest} bytes", f"{rest} bytes"
        )


def _places(old: bytes, new: bytes, *, single: bool = False) -> Iterator[tuple[int, int, str]]:
    """Yield ``(start, end, "")`` of the runs of bytes that differ; each byte alone if ``single``."""
    differing = [at for at, (one, other) in enumerate(zip(old, new, strict=True)) if one != other]
    if single:
        yield from ((at, at + 1, "") for at in differing)
        return
    start = differing[0]
    for at, following in pairwise([*differing, len(old) + _JOIN + 2]):
        if following - at > _JOIN + 1:
            yield start, at + 1, ""
            start = following


def _named_places(old: bytes, new: bytes, *, pci: bool) -> Iterator[tuple[int, int, str]]:
    """Yield the registers of PCI configuration space that differ, then the other runs."""
    rest_old, rest_new = bytearray(old), bytearray(new)
    for start, (size, name) in device_names.PCI.items():
        if old[start : start + size] != new[start : start + size]:
            yield start, start + size, f"PCI {name}"
        rest_old[start : start + size] = rest_new[start : start + size] = bytes(size)
    if rest_old != rest_new:
        for start, end, _ in _places(bytes(rest_old), bytes(rest_new)):
            yield start, end, f"PCI configuration at {start:#x}"


def _hex(data: bytes | None) -> str | None:
    if data is None:
        return None
    text = data[:SHOWN_BYTES].hex(" ")
    return f"{text} ... ({len(data)} bytes)" if len(data) > SHOWN_BYTES else text


def virtio(kind: str, data: bytes) -> dict[str, Any] | None:
    """Take the lump apart that QEMU writes for a virtio device on PCI (hw/virtio/virtio.c: virtio_save).

    Returns
    -------
    dict or None
        The fields by name: PCI configuration, status, features, and for each queue its size, address and position
        (how many buffers the device has taken from it, modulo 65536). None if it is not as expected.
    """
    try:
        return _virtio(kind, data)
    except (struct.error, IndexError):
        return None


def _virtio(kind: str, data: bytes) -> dict[str, Any] | None:
    # PCI Express devices have more configuration space.
    config_size = 4096 if _capability(data[4:260], 0x10) else 256
    if struct.unpack_from(">I", data)[0] not in (1, 2):
        return None
    found: dict[str, Any] = {"PCI configuration": data[4 : 4 + config_size]}
    config = data[4 : 4 + config_size]
    at = 4 + config_size
    irq = data[at : at + 16]
    if any(byte > 1 for byte in irq):
        return None
    found["interrupt lines"] = irq
    at += 16
    vectors = _msix_vectors(config)
    if vectors:
        size = vectors * 16 + (vectors + 7) // 8
        found["interrupt vectors (MSI-X)"] = data[at : at + size]
        at += size
        found["interrupt vector of the configuration"] = struct.unpack_from(">H", data, at)[0]
        at += 2
    status, isr, selected, features, config_length = struct.unpack_from(">BBHII", data, at)
    at += 12
    if config_length > 4096:
        return None
    found |= {"status": status, "interrupt status": isr, "selected queue": selected, "features": features}
    found["device configuration"] = data[at : at + config_length]
    at += config_length
    queues = struct.unpack_from(">I", data, at)[0]
    at += 4
    if queues > 1024:
        return None
    names = device_names.QUEUES.get(kind, ())
    for number in range(queues):
        size, address, position = struct.unpack_from(">IQH", data, at)
        at += 14
        name = f"queue '{names[number]}'" if number < len(names) else f"queue {number}"
        found |= {f"{name}, size": size, f"{name}, address": address, f"{name}, position": position}
        if vectors:
            found[f"{name}, interrupt vector"] = struct.unpack_from(">H", data, at)[0]
            at += 2
    if at > len(data):
        return None
    found["the rest"] = data[at:]
    return found


def _msix_vectors(config: bytes) -> int:
    """Return the size of the MSI-X table; 0 without one."""
    at = _capability(config, 0x11)
    return (int.from_bytes(config[at + 2 : at + 4], "little") & 0x7FF) + 1 if at else 0


def _capability(config: bytes, which: int) -> int:
    """Return where a capability is in PCI configuration space; 0 if it is not in the list."""
    at = config[0x34]
    for _ in range(48):
        if at < 0x40 or config[at] == which:
            break
        at = config[at + 1]
    else:
        at = 0
    return at if at >= 0x40 else 0
