"""The XML that libvirt makes guests from (https://libvirt.org/formatdomain.html).

``build`` writes it for a new machine. ``adapt`` turns the XML that a snapshot kept, with all the addresses that libvirt
gave its devices, into that of the machine that continues it: the guest must find each device where it was.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vmlab.errors import HostError
from vmlab.records import Hardware, mac_of

_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
ET.register_namespace("qemu", _QEMU)

#: Reading every CPU property of a new guest, one at a time, is 467 round trips and a quarter of a second of every start
#: (QEMU 10.0, libvirt 11.3). libvirt does that when QEMU has this capability; masked, it asks for the CPUID words
#: at once. What it finds out serves only ``virsh dumpxml``'s list of CPU features.
_SLOW_CAPABILITY = "cpu-unavailable-features"

#: Firmware of Debian's package ovmf: code and a template of its variables.
UEFI_CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
UEFI_VARS = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")

_BOOT = {"disk": "hd", "cdrom": "cdrom", "network": "network"}
#: The sound card, by libvirt's name. QEMU's Intel HDA (ich6, ich9) begins its ring buffer anew when a state is loaded
#: (``intel_hda_post_load``), so music would jump; AC'97 keeps its place in it.
_SOUND_MODEL = "ac97"


@dataclass(frozen=True)
class MappedRam:
    """RAM that is mapped copy-on-write from a snapshot's file.

    Attributes
    ----------
    path, offset, size
        The file, where the guest's first page is in it, and the bytes of RAM.
    object_id
        The name of the RAM block in the stream that will be loaded.
    """

    path: Path
    offset: int
    size: int
    object_id: str


@dataclass(frozen=True)
class Cable:
    """What is between a network card and the user-mode network that libvirt gives it.

    libvirt cannot put anything there; QEMU's arguments can: the card gets another back end, a socket, and a second
    socket becomes the neighbour of the user-mode network, whose own part of a saved state stays what it is; without a
    second one that has no neighbour.

    Attributes
    ----------
    index
        The card's number.
    card, out
        The sockets that both ends connect to, again and again until somebody listens. Without ``card`` the cable is
        cut, which the card does not notice; without ``out`` it leads to where that one leads alone.
    reconnect
        How QEMU is told to connect again.
    """

    index: int
    card: Path | None = None
    out: Path | None = None
    reconnect: str = "reconnect-ms=100"


@dataclass(frozen=True)
class Wiring:
    """What ties a domain to its machine and to files of the host, and changes from start to start.

    Attributes
    ----------
    disks
        The qcow2 file of each target.
    base
        The folder with the image's kernel, initrd and CD images.
    serial_log, sound_file, nvram
        Files that the machine writes: its serial line, its recorded sound, its UEFI variables.
    ram
        RAM to map instead of booting.
    emulator
        The program that starts QEMU, with what ``VMLAB_RAM`` in its environment says as its first object; by default
        libvirt's own choice.
    cables
        Of those network cards that are not left on the network that libvirt gives them.
    """

    name: str
    uuid: str
    genid: str
    mac: str
    base: Path
    serial_log: Path
    disks: Mapping[str, Path] = field(default_factory=dict)
    sound_file: Path | None = None
    nvram: Path | None = None
    ram: MappedRam | None = None
    emulator: Path | None = None
    cables: tuple[Cable, ...] = ()


def _add(parent: ET.Element, tag: str, text: str | None = None, **attributes: str) -> ET.Element:
    child = ET.SubElement(parent, tag, attributes)
    child.text = text
    return child


def build(spec: Hardware, wiring: Wiring) -> str:
    """Return the XML of a machine that boots.

    Raises
    ------
    HostError
        UEFI is asked for and Debian's firmware is not installed.
    """
    domain = ET.Element("domain", type="kvm" if spec.accelerator == "kvm" else "qemu")
    _add(domain, "name", wiring.name)
    _add(domain, "uuid", wiring.uuid)
    _add(domain, "genid", wiring.genid)
    _add(domain, "memory", str(spec.memory), unit="MiB")
    _add(domain, "vcpu", str(spec.vcpus))
    _add_os(domain, spec, wiring)
    features = _add(domain, "features")
    _add(features, "acpi")
    _add(features, "apic")
    if spec.cpu == "host-passthrough":
        _add(domain, "cpu", mode="host-passthrough", check="none", migratable="on")
    else:
        cpu = _add(domain, "cpu", mode="custom", match="exact", check="none")
        model, *flags = spec.cpu.split(",")
        _add(cpu, "model", model, fallback="forbid")
        for flag in flags:
            _add(
                cpu, "feature", policy="disable" if flag.startswith("-") else "force", name=flag.lstrip("+-")
            )
    clock = _add(domain, "clock", offset="utc")
    # A guest without HPET keeps better time under emulation, and its timers that fire late are delivered, not dropped.
    _add(clock, "timer", name="rtc", tickpolicy="catchup")
    _add(clock, "timer", name="pit", tickpolicy="delay")
    _add(clock, "timer", name="hpet", present="no")
    _add(domain, "on_poweroff", "destroy")
    _add(domain, "on_reboot", "restart")
    # A guest that panicked is kept as it is, to be looked at.
    _add(domain, "on_crash", "preserve")
    _add_devices(domain, spec, wiring)
    capabilities = ET.SubElement(domain, f"{{{_QEMU}}}capabilities")
    ET.SubElement(capabilities, f"{{{_QEMU}}}del", capability=_SLOW_CAPABILITY)
    _lay_cables(domain, wiring.cables)
    return ET.tostring(domain, encoding="unicode")


def need_uefi() -> None:
    """Refuse where Debian's UEFI firmware is not installed."""
    if not (UEFI_CODE.exists() and UEFI_VARS.exists()):
        raise HostError(
            "There is no UEFI firmware on this host.", hint="apt install ovmf, or use firmware bios"
        )


def _add_os(domain: ET.Element, spec: Hardware, wiring: Wiring) -> None:
    os_ = _add(domain, "os")
    _add(os_, "type", "hvm", arch="x86_64", machine=spec.machine_type)
    if spec.firmware == "uefi":
        need_uefi()
        _add(os_, "loader", str(UEFI_CODE), readonly="yes", type="pflash")
        _add(os_, "nvram", str(wiring.nvram), template=str(UEFI_VARS))
    if spec.kernel:
        _add(os_, "kernel", str(wiring.base / spec.kernel))
        if spec.initrd:
            _add(os_, "initrd", str(wiring.base / spec.initrd))
        if spec.kernel_args:
            _add(os_, "cmdline", spec.kernel_args)
    for device in spec.boot:
        _add(os_, "boot", dev=_BOOT[device])


def _add_devices(domain: ET.Element, spec: Hardware, wiring: Wiring) -> None:
    devices = _add(domain, "devices")
    _set_emulator(devices, wiring)
    for target, path in wiring.disks.items():
        disk = _add(devices, "disk", type="file", device="disk")
        _add(disk, "driver", name="qemu", type="qcow2", discard="unmap")
        _add(disk, "source", file=str(path))
        _add(disk, "target", dev=target, bus=spec.disk_bus)
    for index, file in enumerate(spec.cdroms):
        disk = _add(devices, "disk", type="file", device="cdrom")
        _add(disk, "driver", name="qemu", type="raw")
        _add(disk, "source", file=str(wiring.base / file))
        _add(disk, "target", dev=f"sd{'xyzuvw'[index]}", bus="sata")
        _add(disk, "readonly")
    # A USB controller costs CPU time even when nothing is plugged in; only a USB tablet needs it. Systems that are not
    # ours get that one: each of them knows it, and few have virtio's.
    usb_tablet = spec.tablet and spec.firmware is not None
    _add(devices, "controller", type="usb", **({"model": "qemu-xhci"} if usb_tablet else {"model": "none"}))
    for index, card in enumerate(spec.nics):
        nic = _add(devices, "interface", type="user")
        _add(nic, "mac", address=mac_of(wiring.mac, index))
        _add(nic, "model", type=card.model)
        if "network" not in spec.boot:
            # The card's boot ROM would only cost memory and time.
            _add(nic, "rom", enabled="no")
    serial = _add(devices, "serial", type="pty")
    _add(serial, "log", file=str(wiring.serial_log), append="on")
    if spec.agent:
        channel = _add(devices, "channel", type="unix")
        _add(channel, "target", type="virtio", name="org.qemu.guest_agent.0")
    if spec.tablet:
        _add(devices, "input", type="tablet", bus="usb" if usb_tablet else "virtio")
    graphics = _add(devices, "graphics", type="vnc")
    _add(graphics, "listen", type="socket")
    if spec.sound != "none":
        sound = _add(devices, "sound", model=_SOUND_MODEL)
        _add(sound, "audio", id="1")
    _add_audio(devices, wiring.sound_file)
    video = _add(devices, "video")
    model = _add(video, "model", type=spec.video)
    if spec.video == "vga" and spec.memory < 16:
        # QEMU's CPU emulation ends with an assertion (tlb_reset_dirty_range_all) when it saves a block of memory that
        # is larger than the machine's RAM; video memory has 16 MiB if nothing is said.
        model.set("vram", str(1024 << (spec.memory.bit_length() - 1)))
    # Pages that a balloon gives back would be read again from the snapshot's file: not with mapped RAM.
    _add(devices, "memballoon", model="none")
    rng = _add(devices, "rng", model="virtio")
    _add(rng, "backend", "/dev/urandom", model="random")
    _add(devices, "panic", model="pvpanic")


def _add_audio(devices: ET.Element, sound_file: Path | None) -> None:
    if sound_file is None:
        _add(devices, "audio", id="1", type="none")
    else:
        _add(devices, "audio", id="1", type="file", path=str(sound_file))


def adapt(xml: str, wiring: Wiring) -> str:
    """Return the XML of a snapshot for the machine that continues it.

    Devices stay as and where they are; names, files and sockets become those of ``wiring``.
    """
    domain = ET.fromstring(xml)
    for tag in ("name", "uuid", "genid"):
        found = domain.find(tag)
        if found is not None:
            found.text = getattr(wiring, tag)
    nvram = domain.find("os/nvram")
    if nvram is not None:
        nvram.text = str(wiring.nvram)
    metadata = domain.find("metadata")
    if metadata is not None:
        domain.remove(metadata)
    for tag in ("kernel", "initrd"):
        found = domain.find(f"os/{tag}")
        if found is not None and found.text:
            found.text = str(wiring.base / Path(found.text).name)
    devices = domain.find("devices")
    assert devices is not None
    _adapt_devices(devices, wiring)
    _set_emulator(devices, wiring)
    for tag in ("commandline", "override"):
        for old in domain.findall(f"{{{_QEMU}}}{tag}"):
            domain.remove(old)
    if wiring.ram is not None:
        _map_ram(domain, wiring.ram)
    _lay_cables(domain, wiring.cables)
    return ET.tostring(domain, encoding="unicode")


def _set_emulator(devices: ET.Element, wiring: Wiring) -> None:
    emulator = devices.find("emulator")
    if emulator is not None:
        # Of another host, or of another store.
        devices.remove(emulator)
    if wiring.emulator is not None:
        emulator = ET.Element("emulator")
        emulator.text = str(wiring.emulator)
        devices.insert(0, emulator)


def _adapt_devices(devices: ET.Element, wiring: Wiring) -> None:
    for disk in devices.findall("disk"):
        source, target = disk.find("source"), disk.find("target")
        assert source is not None
        assert target is not None
        if disk.get("device") == "disk":
            source.set("file", str(wiring.disks[target.get("dev", "")]))
        else:
            source.set("file", str(wiring.base / Path(source.get("file", "")).name))
        for tag in ("backingStore", "mirror"):
            for found in disk.findall(tag):
                disk.remove(found)
    for log in (*devices.findall("serial/log"), *devices.findall("console/log")):
        log.set("file", str(wiring.serial_log))
    for index, nic in enumerate(devices.findall("interface/mac")):
        nic.set("address", mac_of(wiring.mac, index))
    for audio in devices.findall("audio"):
        devices.remove(audio)
    _add_audio(devices, wiring.sound_file)


def _map_ram(domain: ET.Element, ram: MappedRam) -> None:
    """Add QEMU's arguments that map the RAM and make it wait for the rest of the state.

    libvirt's own RAM object stays on the command line, unused and empty.
    """
    # readonly + rom=off: copy-on-write over a file that nobody may write.
    backend = (
        f"memory-backend-file,id={ram.object_id},size={ram.size},mem-path={str(ram.path).replace(',', ',,')},"
        f"offset={ram.offset},share=off,readonly=on,rom=off,prealloc=off"
    )
    line = _add_arguments(domain, "-machine", f"memory-backend={ram.object_id}", "-incoming", "defer")
    ET.SubElement(line, f"{{{_QEMU}}}env", name="VMLAB_RAM", value=backend)


def _lay_cables(domain: ET.Element, cables: Sequence[Cable]) -> None:
    """Put what is said between network cards and their user-mode networks."""
    if not cables:
        return
    override = ET.SubElement(domain, f"{{{_QEMU}}}override")
    for cable in cables:
        own, hub = f"vmlabcard{cable.index}", cable.index
        if cable.card is None:
            _add_arguments(domain, "-netdev", f"hubport,id={own},hubid={100 + hub}")
        for name, path in ((own, cable.card), (f"vmlabout{cable.index}", cable.out)):
            if cable.card is not None and path is not None:
                where = str(path).replace(",", ",,")
                _add_arguments(
                    domain,
                    "-netdev",
                    f"stream,id={name},server=off,addr.type=unix,addr.path={where},{cable.reconnect}",
                )
        if cable.card is not None and cable.out is not None:
            for name in (f"vmlabout{cable.index}", f"hostnet{cable.index}"):
                _add_arguments(domain, "-netdev", f"hubport,id={name}hub,hubid={hub},netdev={name}")
        device = ET.SubElement(override, f"{{{_QEMU}}}device", alias=f"net{cable.index}")
        frontend = ET.SubElement(device, f"{{{_QEMU}}}frontend")
        ET.SubElement(frontend, f"{{{_QEMU}}}property", name="netdev", type="string", value=own)


def _add_arguments(domain: ET.Element, *arguments: str) -> ET.Element:
    """Add arguments for QEMU, behind libvirt's own, and return the element that has them."""
    line = domain.find(f"{{{_QEMU}}}commandline")
    if line is None:
        line = ET.SubElement(domain, f"{{{_QEMU}}}commandline")
    at = len(line.findall(f"{{{_QEMU}}}arg"))
    for number, argument in enumerate(arguments):
        line.insert(at + number, ET.Element(f"{{{_QEMU}}}arg", value=argument))
    return line


def disk_snapshot(layers: Mapping[str, Path]) -> str:
    """Return the XML of a disk-only snapshot that puts existing, empty files over each target."""
    snapshot = ET.Element("domainsnapshot")
    disks = _add(snapshot, "disks")
    for target, path in layers.items():
        disk = _add(disks, "disk", name=target, snapshot="external", type="file")
        _add(disk, "driver", type="qcow2")
        _add(disk, "source", file=str(path))
    return ET.tostring(snapshot, encoding="unicode")


def console_paths(xml: str) -> dict[str, str]:
    """Return what the XML of a running domain says of its VNC socket and serial line: ``{"vnc", "serial"}``."""
    domain = ET.fromstring(xml)
    found = {}
    listen = domain.find("devices/graphics/listen")
    if listen is not None and listen.get("socket"):
        found["vnc"] = listen.get("socket", "")
    source = domain.find("devices/serial/source")
    if source is not None and source.get("path"):
        found["serial"] = source.get("path", "")
    return found


def disk_chains(xml: str) -> dict[str, list[Path]]:
    """Return the files of each target of a running domain: the one that it writes to, and all that this stands on."""
    found = {}
    for disk in ET.fromstring(xml).findall("devices/disk[@device='disk']"):
        target, level = disk.find("target"), disk
        files: list[Path] = []
        while (source := level.find("source")) is not None:
            files.append(Path(os.path.normpath(source.get("file", ""))))
            below = level.find("backingStore")
            if below is None:
                break
            level = below
        if target is not None and files:
            found[target.get("dev", "")] = files
    return found
