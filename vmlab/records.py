"""The records that the store keeps as JSON files: machines, snapshots, disk layers, limits.

A record is written to a new file that then takes the old one's place, so a reader sees the old or the new one whole.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import json
import re
import types
import typing
import unicodedata
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from vmlab import private
from vmlab.errors import BadName, RecordDamaged

FORMAT = 1
#: The address that QEMU's user-mode network gives to its first guest.
FIRST_ADDRESS = "10.0.2.15"
#: Where a card of QEMU's user-mode network can lead.
WAYS = ("user", "site", "host")
#: The longest name of what is only shown, and the signs that it cannot have.
LABEL_MAX, LABEL_WITHOUT = 80, "@$`'\"\\{}*?[];"
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


def mac_of(first: str, number: int) -> str:
    """Return the MAC of a machine's network card of that number: those that follow the first one's."""
    vendor, own = first[:9], int(first[9:].replace(":", ""), 16)
    digits = f"{(own + number) % (1 << 24):06x}"
    return f"{vendor}{digits[:2]}:{digits[2:4]}:{digits[4:]}"


def check_label(kind: str, name: str) -> str:
    """Return the name of something that is only shown, in its normal form (Unicode's NFC).

    Letters, digits and signs of any script and blanks between them; not what ``%vm`` and a shell read in a line:
    quotes, variables, ``@`` before a snapshot, ``-`` before an option.

    Raises
    ------
    BadName
        Otherwise.
    """
    name = label_form(name) if isinstance(name, str) else name
    if (
        isinstance(name, str)
        and 1 <= len(name) <= LABEL_MAX
        and name == name.strip()
        and not name.startswith(("-", "."))
        and all(c.isprintable() and c not in LABEL_WITHOUT for c in name)
    ):
        return name
    raise BadName(
        f"{name!r} cannot be the name of a {kind}.",
        hint=f"use 1 to {LABEL_MAX} letters, digits, signs and blanks, but none of {' '.join(LABEL_WITHOUT)} "
        "and no '-' or '.' at its start",
    )


def label_form(name: str) -> str:
    """Return a name in the form in which it is kept: an accent that was typed apart is one with its letter."""
    return unicodedata.normalize("NFC", name)


def new_id() -> str:
    """Return a new identifier for a snapshot or a layer: sorts by time, 22 characters."""
    now = dt.datetime.now(dt.UTC)
    return now.strftime("%y%m%d%H%M%S%f")[:16] + uuid.uuid4().hex[:6]


def when(identity: str) -> dt.datetime:
    """Return when an id was made.

    Raises
    ------
    ValueError
        It is not one of ours.
    """
    return dt.datetime.strptime(identity[:16], "%y%m%d%H%M%S%f").replace(tzinfo=dt.UTC)


def now() -> str:
    """Return the time as ISO 8601 in UTC, to the millisecond."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write ``data`` to ``path`` so that it appears whole or not at all, and survives a power cut."""
    private.replace(path, json.dumps(data, indent=1), flush=True)


def read_json(path: Path) -> dict[str, Any]:
    """Read a record.

    Raises
    ------
    FileNotFoundError
        There is none.
    RecordDamaged
        It cannot be read, is no JSON of ours, or of a newer vmlab.
    """
    short = f"{path.parent.name}/{path.name}"
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        raise
    # A folder in its place, a disk that fails; a text that nests too deep.
    except (ValueError, OSError, RecursionError) as error:
        raise RecordDamaged(
            f"The record {short} cannot be read.",
            hint="bring the file back from a backup",
            file=path,
            cause=error,
        ) from error
    if not isinstance(data, dict) or data.get("format") not in range(1, FORMAT + 1):
        raise RecordDamaged(
            f"The record {short} was not written by this version of vmlab.",
            hint="use the vmlab that wrote it, or a newer one; or bring the file back from a backup",
            file=path,
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
        RecordDamaged
            Something is missing, or of another kind than it must be.
        """
        hints = _hints(cls)  # type: ignore[arg-type]  # mypy doubts that a class is hashable
        values = {}
        for item in dataclasses.fields(cls):  # type: ignore[arg-type]
            if item.name in data:
                values[item.name] = _revive(hints[item.name], data[item.name], item.name)
            elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
                raise RecordDamaged(f"A record ({cls.__name__}) cannot be used: it has no {item.name}.")
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
    if kind is tuple and isinstance(value, list | tuple):
        item = typing.get_args(hint)[0]
        if isinstance(item, type) and issubclass(item, _Record):
            return tuple(_revive(item, v, name) for v in value)
        return tuple(tuple(v) if isinstance(v, list) else v for v in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is not Any and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
        raise RecordDamaged(f"A record cannot be used: its {name} is {value!r}.")
    return value


@dataclass(frozen=True)
class Link(_Record):
    """What a card's cable does to frames, in each direction.

    Attributes
    ----------
    delay, jitter
        Seconds that a frame is under way, and by how much that varies.
    loss
        The part of frames that is lost, from 0 to 1.
    rate
        Bits a second; 0 for any number.
    down
        Whether the cable is pulled, which the guest sees.
    """

    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    rate: int = 0
    down: bool = False


@dataclass(frozen=True)
class Nic(_Record):
    """A network card.

    Attributes
    ----------
    model
        QEMU's name of it: ``virtio``, ``e1000e``.
    network
        Where it leads. By QEMU's user-mode network with NAT: ``user``, to the internet alone; ``site``, also to the
        private nets that this host reaches; ``host``, also to this host and what listens on its loopback. Any other
        word is the name of a network of the lab; empty, its cable is pulled.
    address
        The one that it is given there, where it asks for one; empty on other ways.
    link
        How its cable to there is.
    """

    model: str = "virtio"
    network: str = "user"
    address: str = ""
    link: Link = Link()

    @property
    def plugged(self) -> str | None:
        """The network of the lab that it is plugged into."""
        return None if self.network in (*WAYS, "") else self.network


@dataclass(frozen=True)
class Hardware(_Record):
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
    nics
        Its network cards, in order.
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
    nics: tuple[Nic, ...] = (Nic(),)
    video: str = "vga"
    sound: str = "none"
    tablet: bool = False
    agent: bool = False

    @property
    def network(self) -> str:
        """Where its first card leads, if that is a way out; else ``none``."""
        return self.nics[0].network if self.nics and self.nics[0].network in WAYS else "none"

    def leading(self, to: Hardware) -> Hardware:
        """Return this hardware with cards that lead where those of another one do, which has as many.

        No guest sees a difference.
        """
        pairs = zip(self.nics, to.nics, strict=True)
        return replace(
            self,
            nics=tuple(
                replace(card, network=like.network, address=like.address, link=like.link)
                for card, like in pairs
            ),
        )

    @property
    def unaddressed(self) -> Hardware:
        """The same hardware with cards that have no addresses yet."""
        return replace(self, nics=tuple(replace(card, address="") for card in self.nics))

    @property
    def unplugged(self) -> Hardware:
        """The same hardware as states are made of it that serve all: its first card leads out, others nowhere."""
        return replace(
            self,
            nics=tuple(Nic(card.model, "" if number else "user") for number, card in enumerate(self.nics)),
        )

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Read it, also as it was written until vmlab 0.1: with one network card, as ``network`` and ``nic``."""
        if "nics" not in data and "network" in data:
            card = {"model": data.get("nic", "virtio"), "network": data["network"]}
            data = {**data, "nics": [card] if data["network"] != "none" else []}
        return super().from_json(data)


@dataclass(frozen=True)
class NetworkRecord(_Record):
    """A network between machines of a lab: one Ethernet segment.

    Attributes
    ----------
    id
        What the switch knows it by, in names of sockets.
    subnet
        The addresses that its cards are given, such as ``10.1.0.0/24``.
    floods
        Whether every frame goes to all cards, as with a hub.
    """

    name: str
    id: str
    subnet: str
    floods: bool = False
    created: str = field(default_factory=now)


@dataclass(frozen=True)
class ScenarioPending(_Record):
    """What was being done to a scenario when a process died.

    Attributes
    ----------
    phase
        ``make``: it was being made; it goes. ``keep``: a state was being kept; it is there whole, or goes. ``arrive``:
        all machines were going to a state; they are suspended there. ``delete``: it goes.
    state
        That state.
    snapshots
        The ids that the machines' snapshots were to have in it, by the machines' names in the scenario.
    """

    phase: str
    state: str = ""
    snapshots: dict[str, str] = field(default_factory=dict)


@dataclass
class ScenarioRecord(_Record):
    """A scenario as the store knows it: machines and networks with one name and one tree of states.

    Attributes
    ----------
    members, networks
        Their names in it, in the order of its file. Outside they have its own name before them: ``shop.web``.
    file, digest
        What it was made from, and the SHA-256 of that and of all that it names.
    start
        The state that its tree starts from, and that a reset goes back to.
    here
        The state that the present stands on.
    undo
        The abandoned present of the last revert.
    continues
        The state in which it was left, and goes on when it is started; None if it runs, or its machines are off.
    """

    name: str
    members: tuple[str, ...]
    networks: tuple[str, ...]
    title: str = ""
    description: str = ""
    file: str = ""
    digest: str = ""
    created: str = field(default_factory=now)
    start: str | None = None
    here: str | None = None
    undo: str | None = None
    continues: str | None = None
    pending: ScenarioPending | None = None

    def full(self, name: str) -> str:
        """Return the name of a machine or network of it outside."""
        return f"{self.name}.{name}"


@dataclass(frozen=True)
class StateRecord(_Record):
    """A state of a scenario: snapshots of all its machines at one moment, and what was under way between them.

    Attributes
    ----------
    kind
        ``snapshot``; ``undo``: the present that a revert left behind; ``suspended``: a present that waits.
    members
        The snapshot of each machine.
    parent
        The state that it hangs on in the tree.
    skew_ms
        The time between the stop of the first machine and that of the last; None where none had to be stopped.
    pause_ms
        For how long the machine that stood still longest did so.
    total_ms
        How long taking it took.
    frames
        How many frames were under way.
    left
        Bytes that a guest had not taken from its card: they are not in the state.
    """

    id: str
    kind: str
    name: str
    members: dict[str, str]
    created: str = field(default_factory=now)
    parent: str | None = None
    description: str = ""
    skew_ms: float | None = None
    pause_ms: float | None = None
    total_ms: float | None = None
    frames: int = 0
    left: int = 0


@dataclass(frozen=True)
class Pending(_Record):
    """What was being done to a machine when a process died.

    Attributes
    ----------
    phase
        ``copy``: a live snapshot was written, the guest goes on (recovered by ``engine.save.recover``). ``leave``: the
        present was being left; ``arrive``: the record was turned already (both by ``machines.move.recover``).
        ``shorten``: its disks were being made to stand on fewer layers (by ``machines.shorten.recover``).
    state
        What the guest was doing before: ``running``, ``paused`` or ``crashed``.
    layers
        The new disk layer of each target that a snapshot made, whether QEMU had come to them or not.
    pid
        The process number of the QEMU that was being left.
    """

    phase: str
    state: str = "running"
    layers: dict[str, str] = field(default_factory=dict)
    pid: int | None = None

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Read it, also as it was written until vmlab 0.1 (``{"doing": "revert", ...}``)."""
        old = {"snapshot": "copy", "leave": "leave", "revert": "arrive"}.get(str(data.get("doing")))
        return super().from_json({"phase": old, **data} if old is not None else data)


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
    continues
        The snapshot whose RAM the machine continues with when it is started; None to boot.
    mapped
        The snapshot from which the running guest's RAM is mapped.
    whole, whole_run
        The last snapshot of all of its RAM that was taken in the QEMU ``whole_run`` (``hypervisor.host.run_of``): its
        next ones hold what differs from that.
    nvram
        The snapshot whose firmware variables it boots with; None: those in its own folder.
    undo
        The abandoned present of the last revert.
    forwards
        The forwarded ports that were asked for: ``(port on the host's loopback or 0 for any, port in the guest)``.
    forwarded
        Those that it has, since its last start: another port of the host where the one asked for was taken.
    address
        The guest's own in its user-mode network, which the ports are forwarded to.
    pending
        What was being done when a process died: looked at, and put right, by whoever comes next.
    throwaway
        Whether it was made for a moment only; removed when nobody holds it any more.
    domain
        What libvirt knows it as, where that is not its name: in a store that is not the account's first.
    scenario
        The scenario that it is a member of: then its name begins with that one's.
    """

    name: str
    uuid: str
    genid: str
    mac: str
    image: str
    spec: Hardware
    created: str = field(default_factory=now)
    description: str = ""
    layers: dict[str, str] = field(default_factory=dict)
    here: str | None = None
    root: str | None = None
    continues: str | None = None
    mapped: str | None = None
    whole: str | None = None
    whole_run: str = ""
    nvram: str | None = None
    undo: str | None = None
    forwards: tuple[tuple[int, int], ...] = ()
    forwarded: tuple[tuple[int, int], ...] = ()
    address: str = FIRST_ADDRESS
    starts: int = 0
    pending: Pending | None = None
    throwaway: bool = False
    domain: str | None = None
    scenario: str | None = None

    @property
    def hostname(self) -> str:
        """What its guest is called: in a scenario, the same in each copy of it."""
        return self.name.removeprefix(f"{self.scenario}.") if self.scenario else self.name

    @property
    def known_as(self) -> str:
        """What libvirt knows it as."""
        return self.domain or self.name

    @property
    def displaced(self) -> tuple[str, ...]:
        """Sentences about forwarded ports that are not where they were asked for."""
        return tuple(
            f"port {wanted} of this host was taken: port {guest} of {self.name} is at {host} until its next start"
            for (wanted, _), (host, guest) in zip(self.forwards, self.forwarded, strict=False)
            if wanted not in (0, host)
        )

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Read it, also as it was written until vmlab 0.1 (``continues`` was ``resume``)."""
        return super().from_json({"continues": data["resume"], **data} if "resume" in data else data)


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
        Fingerprint of the RAM (``engine.mapped_ram.digest``); with a base, of the pages that this one holds
        (``held_digest``). Empty where none was taken.
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
        a present that somebody looks at, gone when they have. ``damaged`` is in no manifest: it stands for one that
        cannot be read (:meth:`vmlab.store.store.Store.damaged_of`).
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
    macs
        What else its card may have for a MAC, where the guest was caught while it was being told who it is.
    state
        ``running`` or ``paused``, as the guest was; ``off`` for an offline snapshot. A revert restores it. (Of a
        ``present``, also ``crashed``.)
    pause_ms, total_ms
        For how long the guest stood still, and how long the snapshot took.
    screen
        Fingerprint of the screen's pixels, or None without a screen.
    files
        SHA-256 of its small files by name (those that :data:`vmlab.engine.save.SMALL` names); empty where vmlab 0.1
        wrote it.
    scenario
        The scenario that the machine was a member of: then it is part of a state of that.
    """

    id: str
    kind: str
    machine: str
    machine_name: str
    image: str
    created: str
    spec: Hardware
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
    macs: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    scenario: str | None = None


@dataclass(frozen=True)
class Label(_Record):
    """What people and the tree may change about a snapshot; and, should its manifest be damaged, whose it is.

    Attributes
    ----------
    machine, kind
        As in the manifest; empty where vmlab 0.1 wrote the label, or it was lost.
    """

    name: str
    parent: str | None = None
    description: str = ""
    forgotten: bool = False
    machine: str = ""
    kind: str = ""


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
    file_size
        Bytes of its file since it was frozen; None as long as a machine writes to it, and where vmlab 0.1 froze it.
    """

    id: str
    backing: str | None
    base: str | None
    size: int
    flat: str | None = None
    file_size: int | None = None


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
