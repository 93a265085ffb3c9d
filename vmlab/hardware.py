"""The hardware of a new machine: what its image says, and what was asked for instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vmlab.errors import UsageError
from vmlab.hypervisor import domain as domains
from vmlab.hypervisor.accelerator import best_accelerator
from vmlab.store.records import MachineSpec
from vmlab.store.store import Store, size_text

#: The CPU that software emulation shows: the x86-64-v2 level, which current distributions require.
EMULATED_CPU = "qemu64,+cx16,+lahf_lm,+popcnt,+sse4.1,+sse4.2,+ssse3"
#: Video cards that both libvirt and QEMU's build for virtual machines know.
VIDEO = ("vga", "virtio", "qxl", "cirrus", "bochs", "ramfb", "vmvga", "none")
BOOT = ("disk", "cdrom", "network")
MAX_CPUS = 64
_PREFIXES = {"virtio": "vd", "sata": "sd", "scsi": "sd", "usb": "sd", "ide": "hd"}
_LETTERS = "abcdefghijklmnopqrstuvw"


def plan(store: Store, image: str, **options: Any) -> tuple[MachineSpec, list[int]]:
    """Return the hardware of a machine, and the sizes of its disks in bytes.

    Parameters
    ----------
    image
        The image it is made from; its files are made ready for machines.
    options
        The options of :meth:`vmlab.Lab.create` that are about hardware; None stands for what the image says.

    Raises
    ------
    UsageError
        Something that was asked for makes no sense.
    """
    data = store.image(image)
    base = store.adopt(image)
    boot = data.get("boot", {})

    def pick(key: str, default: Any) -> Any:
        value = options.get(key)
        return default if value is None else value

    accelerator = _one_of("accelerator", pick("accelerator", None) or best_accelerator(), ("kvm", "tcg"))
    bus = str(data.get("disk_bus", "virtio"))
    sizes = _sizes(image, data, options.get("disk"), options.get("disks") or ())
    sound = pick("sound", data.get("sound", False))
    memory, vcpus = int(pick("memory", data["memory"])), int(pick("vcpus", data["vcpus"]))
    if memory < 1 or not 1 <= vcpus <= MAX_CPUS:
        raise UsageError(f"A machine needs at least 1 MiB of RAM and 1 to {MAX_CPUS} CPUs.")
    firmware = pick("firmware", boot.get("firmware"))
    order = tuple(pick("boot", ("disk", "cdrom") if data.get("disks") else ("cdrom", "disk")))
    for device in order:
        _one_of("boot device", device, BOOT)
    spec = MachineSpec(
        memory=memory,
        vcpus=vcpus,
        accelerator=accelerator,
        machine_type=_machine_type(store, accelerator),
        cpu="host-passthrough" if accelerator == "kvm" else EMULATED_CPU,
        firmware=None if firmware is None else _one_of("firmware", firmware, ("bios", "uefi")),
        base=base,
        kernel=boot.get("kernel"),
        initrd=boot.get("initrd"),
        kernel_args=" ".join(t for t in (boot.get("cmdline", ""), options.get("kernel_args") or "") if t),
        boot=order,
        disks=tuple(f"{_PREFIXES.get(bus, 'sd')}{_LETTERS[i]}" for i in range(len(sizes))),
        cdroms=tuple(data.get("cdroms", ())),
        disk_bus=bus,
        network=_one_of(
            "network", pick("network", "user" if data.get("network", True) else "none"), ("user", "none")
        ),
        nic=str(data.get("nic", "virtio")),
        video=_one_of("video card", pick("video", data.get("video", "vga")), VIDEO),
        sound=_one_of(
            "kind of sound", {True: "silent", False: "none"}.get(sound, sound), ("none", "silent", "wav")
        ),
        tablet=bool(data.get("tablet", False)),
        agent=bool(data.get("agent", False)),
    )
    return spec, sizes


def _one_of(what: str, value: Any, known: Sequence[str]) -> str:
    if value not in known:
        raise UsageError(f"'{value}' is no {what}.", hint="use " + ", ".join(known))
    return str(value)


def _sizes(image: str, data: Mapping[str, Any], system: int | None, extra: Sequence[int]) -> list[int]:
    """Return the sizes of the image's disks, the first as asked for, and of further ones."""
    sizes = [int(d["size"]) for d in data.get("disks", ())]
    if system is not None:
        if not sizes:
            raise UsageError(f"The image '{image}' has no system disk to resize.", hint="add one with disks=")
        if system < sizes[0]:
            raise UsageError(
                f"The system disk of '{image}' has {size_text(sizes[0])}; it cannot be made smaller.",
                hint="leave the size out, or ask for more",
            )
        sizes[0] = int(system)
    if any(size < 1 << 20 for size in extra):
        raise UsageError("A disk needs at least 1 MiB.", hint="sizes are in bytes: 10 << 30 is 10 GiB")
    sizes += [int(size) for size in extra]
    if len(sizes) > len(_LETTERS):
        raise UsageError(f"A machine can have {len(_LETTERS)} disks at most.")
    return sizes


_machine_types: dict[str, str] = {}


def _machine_type(store: Store, accelerator: str) -> str:
    """Return the versioned name of QEMU's current q35 machine: a snapshot must meet the same one later."""
    if accelerator not in _machine_types:
        _machine_types[accelerator] = domains.machine_type(store.account, accelerator)
    return _machine_types[accelerator]
