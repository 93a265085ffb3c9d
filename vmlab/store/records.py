"""The records that the store keeps as JSON files: machines, snapshots, disk layers, limits.

A record is written to a new file that then takes the old one's place, so a reader sees the old or the new one whole.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import json
import os
import re
import types
import typing
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from vmlab.errors import BadName, VMLabError

FORMAT = 1
#: The address that QEMU's user-mode network gives to its first guest.
FIRST_ADDRESS = "10.0.2.15"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")


def check_name(kind: str, name: str) -> str:
    """Return ``name`` if files, libvirt and a command line can all carry it.

    Raises
    ------
    BadName
        Otherwise, with a name that would do.
    """
    if isinstance(name, str) and _NAME.fullmatch(name):
        return name
    better = re.sub(r"[^A-Za-z0-9._-]+", "-", str(name)).strip("-._")[:40] or "web"
    raise BadName(
        f"{name!r} cannot be the name of a {kind}.",
        hint=f"use 1 to 40 letters, digits, '.', '_' or '-', starting with a letter or digit: '{better}' would do",
    )


def new_id() -> str:
    """Return a new identifier for a snapshot or a layer: sorts by time, 22 characters."""
    now = dt.datetime.now(dt.UTC)
    return now.strftime("%y%m%d%H%M%S%f")[:16] + uuid.uuid4().hex[:6]


def now() -> str:
    """Return the time as ISO 8601 in UTC, to the millisecond."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write ``data`` to ``path`` so that it appears whole or not at all, and survives a power cut."""
    new = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:6]}")
    try:
        with new.open("w") as file:
            json.dump(data, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        # A disk that is full must not be filled with halves.
        new.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any]:
    """Read a record.

    Raises
    ------
    FileNotFoundError
        There is none.
    VMLabError
        It is no JSON of ours, or of a newer vmlab.
    """
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise VMLabError(f"The record {path.parent.name}/{path.name} cannot be read.", json=error) from error
    if not isinstance(data, dict) or data.get("format") not in range(1, FORMAT + 1):
        raise VMLabError(
            f"The record {path.parent.name}/{path.name} was not written by this version of vmlab.",
            hint="use the vmlab that wrote it, or a newer one",
        )
    return data


class _Record:
    """Conversion of a flat dataclass to and from JSON; unknown keys are dropped, tuples come back as tuples."""

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **dataclasses.asdict(self)}  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Build the record from what :meth:`to_json` gave.

        Raises
        ------
        VMLabError
            Something is missing, or of another kind than it must be.
        """
        hints = _hints(cls)  # type: ignore[arg-type]  # mypy doubts that a class is hashable
        values = {}
        for item in dataclasses.fields(cls):  # type: ignore[arg-type]
            if item.name in data:
                values[item.name] = _revive(hints[item.name], data[item.name], item.name)
            elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
                raise VMLabError(f"A record ({cls.__name__}) cannot be used: it has no {item.name}.")
        return cls(**values)


@functools.cache
def _hints(cls: type[_Record]) -> dict[str, Any]:
    # Evaluating the annotations again for every record took most of the time of listing a lab.
    return typing.get_type_hints(cls)


def _revive(hint: Any, value: Any, name: str) -> Any:
    if isinstance(hint, types.UnionType):
        kinds = [k for k in typing.get_args(hint) if k is not type(None)]
        return value if value is None else _revive(kinds[0], value, name)
    kind = typing.get_origin(hint) or hint
    if isinstance(kind, type) and issubclass(kind, _Record) and isinstance(value, dict):
        return kind.from_json(value)
    if kind is tuple and isinstance(value, list):
        return tuple(tuple(v) if isinstance(v, list) else v for v in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is not Any and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
        raise VMLabError(f"A record cannot be used: its {name} is {value!r}.")
    return value


@dataclass(frozen=True)
class MachineSpec(_Record):
    """The hardware of a machine: what it is made with, and what it keeps across revert and fork.

    Attributes
    ----------
    memory
        RAM in MiB.
    vcpus
        Number of virtual CPUs.
    accelerator
        ``kvm`` or ``tcg``.
    machine_type, cpu
        QEMU's names, with the version pinned, so that a snapshot meets the same hardware later.
    firmware
        ``bios``, ``uefi``, or None where a kernel is loaded directly.
    base
        The folder under ``bases/`` with the image's files, as they were when the machine was made.
    kernel, initrd, kernel_args
        Files in the base, and the command line.
    boot
        Boot order for firmware: ``disk``, ``cdrom``, ``network``.
    disks
        Targets in order: ``vda``, ``vdb`` ... (``sda`` on SATA).
    cdroms
        Files in the base.
    network
        ``user`` (QEMU's user-mode network with NAT) or ``none``.
    sound
        ``none``; ``silent``: a sound card whose output goes nowhere; ``wav``: its output is recorded to a file.
    """

    memory: int
    vcpus: int = 1
    accelerator: str = "tcg"
    machine_type: str = "q35"
    cpu: str = "qemu64"
    firmware: str | None = None
    base: str = ""
    kernel: str | None = None
    initrd: str | None = None
    kernel_args: str = ""
    boot: tuple[str, ...] = ("disk", "cdrom")
    disks: tuple[str, ...] = ()
    cdroms: tuple[str, ...] = ()
    disk_bus: str = "virtio"
    network: str = "user"
    nic: str = "virtio"
    video: str = "vga"
    sound: str = "none"
    tablet: bool = False
    agent: bool = False


@dataclass
class MachineRecord(_Record):
    """A machine as the store knows it.

    Attributes
    ----------
    name, uuid, genid, mac
        What is unique to it. ``genid`` is the VM generation ID that the guest sees.
    image
        The image it came from.
    layers
        The writable disk layer of each target: the disk part of the present.
    here
        The snapshot that the present stands on, or None.
    root
        The snapshot that its tree starts from: the image's ready state, or what it was forked from.
    resume
        The snapshot whose RAM the machine continues with when it is started; None to boot.
    mapped
        The snapshot from which the running guest's RAM is mapped.
    undo
        The abandoned present of the last revert.
    forwards
        ``(host port, guest port)`` pairs on loopback.
    address
        The guest's own in its user-mode network, which the ports are forwarded to.
    pending
        What was being done when a process died: looked at, and put right, by whoever comes next.
    throwaway
        Whether it was made for a moment only; removed when nobody holds it any more.
    """

    name: str
    uuid: str
    genid: str
    mac: str
    image: str
    spec: MachineSpec
    created: str = field(default_factory=now)
    description: str = ""
    layers: dict[str, str] = field(default_factory=dict)
    here: str | None = None
    root: str | None = None
    resume: str | None = None
    mapped: str | None = None
    undo: str | None = None
    forwards: tuple[tuple[int, int], ...] = ()
    address: str = FIRST_ADDRESS
    starts: int = 0
    pending: dict[str, Any] | None = None
    throwaway: bool = False


@dataclass(frozen=True)
class RamRecord(_Record):
    """The RAM part of a live snapshot.

    Attributes
    ----------
    size
        Bytes of the guest's RAM.
    file_size
        Bytes of the file; another size means that it was truncated.
    pages_offset
        Where the guest's first page is in the file.
    base
        The snapshot that holds the pages which this one does not; None if it holds them all.
    digest
        Fingerprint of the RAM (``engine.mapped_ram.digest``).
    devices_digest
        Fingerprint of the devices' state.
    origin
        The snapshot whose RAM the machine ran on, mapped, when this one was taken; None if it booted, or if what it
        changed could not be told. It may be gone by now.
    changed
        Fingerprint of the list of pages that differ from the origin's at most (``engine.mapped_ram.write_list``).
    """

    size: int
    file_size: int
    pages_offset: int
    base: str | None
    digest: str
    devices_digest: str
    origin: str | None = None
    changed: str = ""


@dataclass(frozen=True)
class SnapshotRecord(_Record):
    """What never changes about a snapshot.

    Attributes
    ----------
    kind
        ``snapshot``; ``undo``: the present that a revert left behind; ``ready``: an image's booted state; ``present``:
        a present that somebody looks at, gone when they have.
    layers
        The frozen disk layer of each target.
    ram
        The RAM, or None for an offline snapshot.
    mac, genid, forwards, address
        The identity that the guest had.
    qemu, host_cpu
        What wrote it: QEMU's version, and the host's CPU model where the guest uses it.
    boot
        The host's boot ID: after a host reboot the RAM is checked against its digest before its first use, because it
        may not have reached the disk.
    state
        ``running`` or ``paused``, as the guest was; ``off`` for an offline snapshot. A revert restores it. (Of a
        ``present``, also ``crashed``.)
    pause_ms, total_ms
        For how long the guest stood still, and how long the snapshot took.
    screen
        Fingerprint of the screen's pixels, or None without a screen.
    """

    id: str
    kind: str
    machine: str
    machine_name: str
    image: str
    created: str
    spec: MachineSpec
    layers: dict[str, str]
    ram: RamRecord | None
    mac: str
    genid: str
    forwards: tuple[tuple[int, int], ...] = ()
    address: str = FIRST_ADDRESS
    nvram: bool = False
    qemu: str = ""
    host_cpu: str = ""
    boot: str = ""
    state: str = "off"
    pause_ms: float | None = None
    total_ms: float | None = None
    screen: str | None = None
    ready_key: str | None = None


@dataclass(frozen=True)
class Label(_Record):
    """What people and the tree may change about a snapshot."""

    name: str
    parent: str | None = None
    description: str = ""
    forgotten: bool = False


@dataclass(frozen=True)
class LayerRecord(_Record):
    """A disk layer: a qcow2 file with what changed over its backing.

    Attributes
    ----------
    backing
        The layer below, or None.
    base
        ``folder/file`` under ``bases/`` when it stands on a disk of an image, else None.
    size
        What the guest sees, in bytes.
    flat
        Another layer with the same content that stands on fewer, or None as long as none was needed.
    """

    id: str
    backing: str | None
    base: str | None
    size: int
    flat: str | None = None


@dataclass(frozen=True)
class LimitsRecord(_Record):
    """What vmlab leaves to the host.

    Attributes
    ----------
    reserve_memory
        MiB of RAM that new guests must leave free.
    reserve_disk
        Bytes of disk that snapshots and new guests must leave free.
    max_running
        The most guests that may run at once, or None.
    """

    reserve_memory: int = 512
    reserve_disk: int = 1 << 30
    max_running: int | None = None
