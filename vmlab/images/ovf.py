"""OVA and OVF: what a machine that was exported by another program is made of, and the files of its disks.

An OVA is a tar file of an OVF, a description in XML, and disks. Both are a stranger's: the description is bounded and
may define no entities, and members are read by their place, never unpacked under a name.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, BinaryIO, Protocol
from xml.etree import ElementTree as ET

from vmlab.errors import BuildFailed
from vmlab.images.flatten import Neighbours
from vmlab.images.unpack import LARGEST

_LONGEST = 4 << 20  # bytes of a description
_MOST_MEMBERS = 1000
_MOST_DISKS = 16
#: CIM's numbers of what a machine has.
_CPU, _MEMORY, _NIC, _DISK = 3, 4, 10, 17
_CONTROLLERS = {5: "IDE", 6: "SCSI", 20: "SATA"}
_LEFT = {
    1: "device", 7: "Fibre Channel", 14: "floppy drive", 15: "CD drive", 16: "DVD drive", 21: "serial port",
    22: "parallel port", 23: "USB controller", 24: "graphics card", 35: "sound card",
}  # fmt: skip
_UNITS = {
    "megabytes": 20,
    "mb": 20,
    "gigabytes": 30,
    "gb": 30,
    "kilobytes": 10,
    "kb": 10,
    "byte": 0,
    "bytes": 0,
    "": 0,
}
#: What we give instead of a network card, by how its name begins.
_NICS = {"e1000e": "e1000e", "e1000": "e1000", "virtio": "virtio", "rtl8139": "rtl8139", "vmxnet": "e1000e"}
_MANIFEST = re.compile(r"^(SHA1|SHA256|SHA512)\s*\((.+)\)\s*=\s*([0-9a-fA-F]+)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class PackedDisk:
    """A disk of an appliance.

    Attributes
    ----------
    file
        The file with its contents; None for an empty disk.
    size
        Bytes, of an empty one.
    """

    file: str | None
    size: int = 0


@dataclass
class Appliance:
    """What an OVF describes.

    Attributes
    ----------
    hardware
        As `vmlab.images.import_image` knows it: ``memory``, ``vcpus``, ``firmware``, ``disk_bus``, ``nic``.
    left
        What is not taken over, or something else is taken for, in words.
    """

    title: str
    hardware: dict[str, str | int]
    disks: list[PackedDisk]
    network: bool
    left: list[str] = field(default_factory=list)


class Package(Protocol):
    """The files that belong to a description."""

    description: str

    def open(self, name: str) -> BinaryIO | IO[bytes] | None:
        """Open a file of the package; None if it has none of that name."""


class Archive:
    """The files in an OVA."""

    def __init__(self, tar: tarfile.TarFile, shown: str) -> None:
        self.tar, self.shown = tar, shown
        self.members: dict[str, tarfile.TarInfo] = {}
        for number, member in enumerate(tar):
            if number >= _MOST_MEMBERS:
                raise BuildFailed(f"'{shown}' holds more than {_MOST_MEMBERS} files.")
            if member.name in self.members:
                raise BuildFailed(f"'{shown}' holds '{member.name[:200]}' twice.")
            self.members[member.name] = member
        found = [name for name in self.members if name.lower().endswith(".ovf")]
        if len(found) != 1:
            raise BuildFailed(
                f"'{shown}' is an archive with {len(found)} descriptions of machines (.ovf), not with one.",
                hint="unpack it, and import what is in it",
                files=", ".join(list(self.members)[:20]),
            )
        self.description = found[0]

    def open(self, name: str) -> IO[bytes] | None:
        """Open a member; it is read where it is."""
        member = self.members.get(name)
        # Links lead to other members, by name, and nowhere else; but nobody packs disks so.
        return self.tar.extractfile(member) if member is not None and member.isreg() else None


@contextmanager
def archive(path: Path, shown: str) -> Iterator[Archive]:
    """Open an OVA."""
    try:
        with tarfile.open(path, "r:") as tar:
            yield Archive(tar, shown)
    except tarfile.TarError as error:
        raise BuildFailed(f"'{shown}' is a damaged archive.", hint="fetch it again", cause=error) from error


class Beside:
    """The files in the folder of an OVF."""

    def __init__(self, description: str, neighbours: Neighbours, shown: str) -> None:
        self.description, self.neighbours, self.shown = description, neighbours, shown

    def open(self, name: str) -> BinaryIO | None:
        """Open a file in the folder of the description."""
        if name.endswith(".mf"):
            # Not everybody makes one.
            try:
                return open(self.neighbours.open(name, self.shown, "part"), "rb")
            except BuildFailed:
                return None
        return open(self.neighbours.open(name, self.shown, "part"), "rb")


def manifest(package: Package) -> dict[str, tuple[str, str]]:
    """Return the digests that a package lists: ``{file: (algorithm, digits)}``."""
    file = package.open(package.description.rpartition(".")[0] + ".mf")
    if file is None:
        return {}
    with file:
        text = file.read(_LONGEST).decode("utf-8", errors="replace")
    return {name: (kind.lower(), digits.lower()) for kind, name, digits in _MANIFEST.findall(text)}


def describe(package: Package, text: bytes | None, shown: str) -> Appliance:
    """Read a package's description, after comparing it with the digest that the package lists.

    Parameters
    ----------
    text
        The description, if it is not in the package.

    Raises
    ------
    BuildFailed
        It is not what it should be, or describes what is not one machine.
    """
    if text is None:
        file = package.open(package.description)
        if file is None:
            raise BuildFailed(f"The description in '{shown}' cannot be read.")
        with file:
            text = file.read(_LONGEST + 1)
    if len(text) > _LONGEST:
        raise BuildFailed(f"The description of the machine in '{shown}' is too long.")
    if (listed := manifest(package).get(package.description)) is not None:
        compare(hashlib.new(listed[0], text).hexdigest(), listed[1], package.description)
    # Entities can grow without end, and name files.
    if re.search(rb"<!(DOCTYPE|ENTITY)", text, re.IGNORECASE):
        raise BuildFailed(f"The description of the machine in '{shown}' defines entities, which none needs.")
    try:
        root = ET.fromstring(text)
        return _Reader(root, shown).appliance()
    except (ET.ParseError, ValueError, LookupError, OverflowError) as error:
        raise BuildFailed(f"The description of the machine in '{shown}' is damaged.", cause=error) from error


def compare(found: str, expected: str, name: str) -> None:
    """Refuse a file that is not the one its package lists."""
    if found != expected:
        raise BuildFailed(
            f"'{name}' is not the file that the package's list of checksums names.",
            hint="fetch it again",
            expected=expected,
            found=found,
        )


def _plain(tag: str) -> str:
    return tag.rpartition("}")[2]


class _Reader:
    """Reads a description whose names are in one of several name spaces; they differ in nothing that we look for."""

    def __init__(self, root: ET.Element, shown: str) -> None:
        self.root, self.shown = root, shown

    def all(self, tag: str, above: ET.Element | None = None) -> list[ET.Element]:
        return [e for e in (above if above is not None else self.root).iter() if _plain(str(e.tag)) == tag]

    def attribute(self, element: ET.Element, name: str) -> str | None:
        return next((value for key, value in element.attrib.items() if _plain(key) == name), None)

    def items(self, system: ET.Element) -> list[dict[str, str]]:
        """Return what the machine has, as fields of text; of variants, the usual one's."""
        variants = self.all("Configuration")
        usual = next(
            (v for v in variants if self.attribute(v, "default") == "true"), variants[0] if variants else None
        )
        chosen = self.attribute(usual, "id") if usual is not None else None
        found = []
        for tag in ("Item", "StorageItem", "EthernetPortItem"):
            for item in self.all(tag, system):
                only = self.attribute(item, "configuration")
                if only is None or chosen in only.split():
                    fields: dict[str, str] = {}
                    for part in item:
                        fields.setdefault(_plain(str(part.tag)), (part.text or "").strip())
                    found.append(fields)
        return found

    def appliance(self) -> Appliance:
        systems = self.all("VirtualSystem")
        if len(systems) != 1:
            raise BuildFailed(f"'{self.shown}' describes {len(systems)} machines, not one.")
        items = self.items(systems[0])
        by_kind: dict[int, list[dict[str, str]]] = {}
        for item in items:
            by_kind.setdefault(int(item.get("ResourceType") or 1), []).append(item)
        hardware: dict[str, str | int] = {}
        left: list[str] = []
        if by_kind.get(_CPU):
            hardware["vcpus"] = int(by_kind[_CPU][0]["VirtualQuantity"])
        if by_kind.get(_MEMORY):
            memory = by_kind[_MEMORY][0]
            size = int(memory["VirtualQuantity"]) << _power(memory.get("AllocationUnits") or "MegaBytes")
            hardware["memory"] = max(1, size >> 20)
        hardware["firmware"] = self._firmware(systems[0], left)
        if cards := by_kind.get(_NIC):
            hardware["nic"] = _card(cards, left)
        disks = self._disks(
            by_kind.get(_DISK, []), {item.get("InstanceID"): item for item in items}, hardware, left
        )
        left += [
            f"{_LEFT[kind]} ({item['ElementName'][:60]})" if item.get("ElementName") else _LEFT[kind]
            for kind in sorted(_LEFT)
            for item in by_kind.get(kind, ())
        ]
        if self.all("Property"):
            left.append("its settings (properties) for the first start")
        names = [*self.all("Product", systems[0]), *self.all("Name", systems[0])]
        title = next((e.text.strip() for e in names if e.text and e.text.strip()), "")
        return Appliance(title[:80], hardware, disks, bool(cards), left)

    def _firmware(self, system: ET.Element, left: list[str]) -> str:
        wishes = {self.attribute(e, "key"): self.attribute(e, "value") for e in self.all("Config", system)}
        kinds = [
            wishes.get("firmware") or "",
            *(self.attribute(e, "type") or "" for e in self.all("Firmware", system)),
        ]
        if (wishes.get("uefi.secureBoot.enabled") or "").lower() == "true":
            left.append("Secure Boot")
        return "uefi" if any(kind.lower().startswith("efi") for kind in kinds) else "bios"

    def _disks(
        self,
        items: list[dict[str, str]],
        by_id: dict[str | None, dict[str, str]],
        hardware: dict[str, str | int],
        left: list[str],
    ) -> list[PackedDisk]:
        files = {self.attribute(e, "id"): e for e in self.all("File")}
        known = {self.attribute(e, "diskId"): e for e in self.all("Disk")}
        found = []
        buses = []
        for item in items:
            disk = known[item.get("HostResource", "").rpartition("/")[2]]
            if self.attribute(disk, "parentRef"):
                raise BuildFailed(f"A disk in '{self.shown}' is only the changes to another disk.")
            reference = self.attribute(disk, "fileRef")
            if reference is None:
                unit = self.attribute(disk, "capacityAllocationUnits") or "byte"
                size = int(self.attribute(disk, "capacity") or 0) << _power(unit)
                if not 0 < size <= LARGEST or size % 512:
                    raise ValueError("an empty disk has no size that can be")
                found.append(PackedDisk(None, size))
            else:
                file = files[reference]
                if self.attribute(file, "chunkSize"):
                    raise BuildFailed(
                        f"A disk in '{self.shown}' is cut into several files.", hint="export it anew"
                    )
                found.append(PackedDisk(self.attribute(file, "href") or ""))
            buses.append(by_id.get(item.get("Parent"), {}))
        if len(found) > _MOST_DISKS:
            raise BuildFailed(
                f"'{self.shown}' has {len(found)} disks; more than {_MOST_DISKS} cannot be read."
            )
        if buses:
            hardware["disk_bus"] = _bus(buses[0], left)
        return found


def _power(unit: str) -> int:
    """Return the power of two that a unit of size stands for."""
    plain = unit.lower().replace(" ", "")
    if found := re.fullmatch(r"bytes?\*2\^(\d{1,2})", plain):
        return min(int(found[1]), 60)
    return _UNITS[plain]


def _bus(controller: dict[str, str], left: list[str]) -> str:
    kind, name = int(controller.get("ResourceType") or 20), controller.get("ResourceSubType", "")
    if "virtio" in name.lower() and kind != 6:
        return "virtio"
    if kind == 20 and "nvme" not in name.lower():
        return "sata"
    # Every system that could start from the others knows this one.
    left.append(f"{name or _CONTROLLERS.get(kind, 'disk')} controller: its disks are on SATA")
    return "sata"


def _card(cards: list[dict[str, str]], left: list[str]) -> str:
    name = cards[0].get("ResourceSubType", "")
    found = next((ours for theirs, ours in _NICS.items() if name.lower().startswith(theirs)), "e1000")
    if name and not name.lower().startswith(found):
        left.append(f"network card {name}: it is an {found}")
    if len(cards) > 1:
        left.append(f"{len(cards) - 1} further network card{'s' if len(cards) > 2 else ''}")
    return found
