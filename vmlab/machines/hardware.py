"""The hardware of a new machine: what its image says, and what was asked for instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vmlab.errors import UsageError
from vmlab.hypervisor import domain as domains
from vmlab.hypervisor.accelerator import best_accelerator, verdict
from vmlab.hypervisor.domain_xml import need_uefi
from vmlab.images.spec import described
from vmlab.machines import networks
from vmlab.network.networks import CARDS
from vmlab.records import Hardware, Nic
from vmlab.render import units
from vmlab.store.store import Store

#: The CPU that software emulation shows: the x86-64-v2 level, which current distributions require.
EMULATED_CPU = "qemu64,+cx16,+lahf_lm,+popcnt,+sse4.1,+sse4.2,+ssse3"
#: Video cards that both libvirt and QEMU's build for virtual machines know.
VIDEO = ("vga", "virtio", "qxl", "cirrus", "bochs", "ramfb", "vmvga", "none")
BOOT = ("disk", "cdrom", "network")
#: What a guest may open connections to: the outside; also private nets; also this host itself; nothing.
WAYS_OUT = ("internet", "site", "host", "none")
_OLD_NAMES = {"user": "internet"}
MAX_CPUS = 64
_PREFIXES = {"virtio": "vd", "sata": "sd", "scsi": "sd", "usb": "sd", "ide": "hd"}
_LETTERS = "abcdefghijklmnopqrstuvw"


@dataclass(frozen=True)
class Wanted:
    """What somebody wants of a machine's hardware (:meth:`vmlab.Lab.create`); None stands for what its image says."""

    memory: int | None = None
    vcpus: int | None = None
    disk: int | None = None
    disks: Sequence[int] = ()
    firmware: str | None = None
    boot: Sequence[str] | None = None
    way_out: str | None = None
    network: str | None = None
    nics: Sequence[str] = ()
    sound: str | bool | None = None
    video: str | None = None
    accelerator: str | None = None
    kernel_args: str | None = None


def plan(store: Store, image: str, wanted: Wanted | None = None) -> tuple[Hardware, list[int]]:
    """Return the hardware of a machine, and the sizes of its disks in bytes.

    Parameters
    ----------
    image
        The image it is made from; its files are made ready for machines.
    wanted
        What is wanted instead of what the image says.

    Raises
    ------
    UsageError
        Something that was asked for makes no sense.
    """
    data = described(store, image)
    base = store.adopt(image)
    boot, wanted = data.get("boot", {}), wanted or Wanted()
    accelerator = _accelerator(store, wanted.accelerator)
    offer = _offer(store, accelerator)
    bus = str(data.get("disk_bus", "virtio"))
    sizes = _sizes(image, data, wanted.disk, wanted.disks or ())
    sound = _or(wanted.sound, data.get("sound", False))
    memory, vcpus = int(_or(wanted.memory, data["memory"])), int(_or(wanted.vcpus, data["vcpus"]))
    most = min(MAX_CPUS, offer.most_cpus)
    if memory < 1 or not 1 <= vcpus <= most:
        raise UsageError(f"A machine needs at least 1 MiB of RAM and 1 to {most} CPUs.")
    firmware = _or(wanted.firmware, boot.get("firmware"))
    if firmware == "uefi":
        need_uefi()
    order = tuple(_or(wanted.boot, ("disk", "cdrom") if data.get("disks") else ("cdrom", "disk")))
    for device in order:
        _one_of("boot device", device, BOOT)
    model = str(data.get("nic", "virtio"))
    way_out, plugged = _way_out(wanted, data), networks.wanted(wanted.nics or ())
    nics = ([] if way_out == "none" else [Nic(model, way_out)]) + [
        replace(card, model=model) for card in plugged
    ]
    if len(nics) > CARDS:
        raise UsageError(f"A machine can have {CARDS} network cards at most.")
    spec = Hardware(
        memory=memory,
        vcpus=vcpus,
        accelerator=accelerator,
        machine_type=offer.machine_type,
        cpu="host-passthrough" if accelerator == "kvm" else EMULATED_CPU,
        firmware=None if firmware is None else _one_of("firmware", firmware, ("bios", "uefi")),
        base=base,
        kernel=boot.get("kernel"),
        initrd=boot.get("initrd"),
        kernel_args=" ".join(t for t in (boot.get("cmdline", ""), wanted.kernel_args or "") if t),
        boot=order,
        disks=tuple(f"{_PREFIXES.get(bus, 'sd')}{_LETTERS[i]}" for i in range(len(sizes))),
        cdroms=tuple(data.get("cdroms", ())),
        disk_bus=bus,
        nics=tuple(nics),
        video=_one_of(
            "video card that QEMU has here",
            _one_of("video card", _or(wanted.video, data.get("video", "vga")), VIDEO),
            [card for card in VIDEO if card in offer.video or card == "none"],
        ),
        sound=_one_of(
            "kind of sound", {True: "silent", False: "none"}.get(sound, sound), ("none", "silent", "wav")
        ),
        tablet=bool(data.get("tablet", False)),
        agent=bool(data.get("agent", False)),
    )
    return spec, sizes


def _way_out(wanted: Wanted, data: Mapping[str, Any]) -> str:
    """Return where its card leads, as records have it."""
    asked = [_OLD_NAMES.get(word, word) for word in (wanted.way_out, wanted.network) if word is not None]
    if len(set(asked)) > 1:
        raise UsageError("`network` is the old name of `way_out`; they say two things.", hint="leave it out")
    asked = asked or ["internet" if data.get("network", True) else "none"]
    found = _one_of("way out", asked[0], WAYS_OUT)
    return "user" if found == "internet" else found


def _or(wanted: Any, default: Any) -> Any:
    return default if wanted is None else wanted


def _one_of(what: str, value: Any, known: Sequence[str]) -> str:
    if value not in known:
        raise UsageError(f"'{value}' is no {what}.", hint="use " + ", ".join(known))
    return str(value)


def _sizes(image: str, data: Mapping[str, Any], system: int | None, extra: Sequence[int]) -> list[int]:
    """Return the sizes of the image's disks, the first as asked for, and of further ones."""
    sizes = [int(d["size"]) for d in data.get("disks", ())]
    if system is not None:
        if not sizes:
            raise UsageError(
                f"The image '{image}' has no system disk to resize.", hint="add one with `disks=`"
            )
        if system < sizes[0]:
            raise UsageError(
                f"The system disk of '{image}' has {units.size(sizes[0])}; it cannot be made smaller.",
                hint="leave the size out, or ask for more",
            )
        sizes[0] = int(system)
    if any(size < 1 << 20 for size in extra):
        raise UsageError("A disk needs at least 1 MiB.", hint="10 GiB are `10 << 30¦10G`")
    sizes += [int(size) for size in extra]
    if len(sizes) > len(_LETTERS):
        raise UsageError(f"A machine can have {len(_LETTERS)} disks at most.")
    return sizes


def _accelerator(store: Store, wanted: str | None) -> str:
    """Return what the machine is run with; what this host cannot do is refused before anything is made."""
    if wanted is None:
        return best_accelerator(store.account)
    if _one_of("accelerator", wanted, ("kvm", "tcg")) == "kvm":
        found = verdict(store.account)
        if found.accelerator != "kvm":
            raise UsageError(
                f"KVM cannot be used on this host: {found.reason}.",
                hint="leave `accelerator=` out, or say tcg"
                + (f"; to get KVM: {found.fix}" if found.fix else ""),
            )
    return wanted


_offers: dict[tuple[str, str], domains.Offer] = {}


def _offer(store: Store, accelerator: str) -> domains.Offer:
    """Return what QEMU offers, asked once: a snapshot must later meet the same versioned machine."""
    key = (store.account.uri, accelerator)
    if key not in _offers:
        _offers[key] = domains.offer(store.account, accelerator)
    return _offers[key]
