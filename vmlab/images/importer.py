"""Imports what somebody else made: disks, CDs, appliances, kernels, cloud images."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vmlab import private
from vmlab.errors import AlreadyExists, BuildFailed, UsageError
from vmlab.hypervisor.account import Account
from vmlab.images.builder import builtin, commit, new_folder
from vmlab.images.cloudinit import CloudInit, write_seed
from vmlab.images.disks import qemu_img
from vmlab.images.flatten import DISKS, Flattener, Neighbours, alone, check_qcow2, room
from vmlab.images.look import Look, look
from vmlab.images.ovf import Appliance, Beside, Package, archive, describe, manifest
from vmlab.images.probe import check_cd, check_kernel, check_raw
from vmlab.images.sources import Source, fetch, parse_checksum, parse_source, size_of, verify
from vmlab.images.spec import DISK_BUSES, NICS, VIDEOS, ImageSpec, check_name
from vmlab.images.unpack import packing, unpack
from vmlab.render.progress import Progress, quiet

#: Bytes of the empty disk beside a CD.
EMPTY_DISK = 8 << 30
#: What machines are made of where nobody says otherwise.
_USUAL: dict[str, Any] = {
    "firmware": "bios",
    "memory": 1024,
    "vcpus": 1,
    "disk_bus": "virtio",
    "nic": "virtio",
}
#: Bytes assumed for a download whose server does not say.
_UNKNOWN = 2 << 30


def import_image(
    images_dir: Path,
    account: Account,
    name: str,
    source: str | os.PathLike[str] | None = None,
    *,
    kernel: str | os.PathLike[str] | None = None,
    initrd: str | os.PathLike[str] | None = None,
    cmdline: str = "",
    firmware: str | None = None,
    memory: int | None = None,
    vcpus: int | None = None,
    sha256: str | None = None,
    backing: Sequence[str | os.PathLike[str]] = (),
    cloud_init: CloudInit | None = None,
    disk_size: int = EMPTY_DISK,
    disk_bus: str | None = None,
    nic: str | None = None,
    video: str = "vga",
    sound: bool = False,
    agent: bool = False,
    title: str | None = None,
    replace: bool = False,
    retire: Callable[[Path], None] | None = None,
    progress: Progress = quiet,
    tell: Callable[[str], None] = lambda _text: None,
) -> Path:
    """Copy something bootable into the store as an image, and return its folder.

    Parameters
    ----------
    source
        A disk (raw, qcow2, VMDK, VDI, VHD, VHDX, QED, qcow), a CD (ISO), or an appliance (OVA, OVF), compressed (gz,
        bz2, xz, zst, zip) or not: a path, or a ``file``, ``http`` or ``https`` address. May be missing if there is a
        ``kernel``.
    kernel, initrd, cmdline
        What QEMU loads by itself, instead of what the disk has.
    firmware
        ``bios`` (default) or ``uefi``.
    memory, vcpus
        Defaults for machines; memory in MiB. By default 1024 and 1. As firmware, disk bus and network card, they are
        what an appliance says, unless they are given.
    sha256
        Checksum of ``source`` (or of ``kernel`` if there is no source); a SHA-512 is understood too.
    backing
        Files that the disk is built on, or consists of, and that do not lie in its folder: it is made whole from them.
    cloud_init
        For cloud images: their first user, key, password, name.
    disk_size
        Bytes of the empty disk that comes beside a CD; 0 for none.
    agent
        Whether the guest is known to run the QEMU guest agent.
    replace, retire
        Replace an image of that name; see `vmlab.images.build`.
    tell
        Called with what of an appliance is not taken over.

    Raises
    ------
    AlreadyExists, BadName, BuildFailed, NoSpace, NotFound, UsageError
        Then nothing has changed.
    """
    check_name(name)
    wishes: dict[str, Any] = {
        "firmware": firmware, "memory": memory, "vcpus": vcpus, "disk_bus": disk_bus, "nic": nic
    }  # fmt: skip
    hardware = {key: value for key, value in wishes.items() if value is not None}
    _check_options(source, kernel, initrd, cmdline, video, disk_size, **(_USUAL | hardware))
    if name in builtin():
        raise AlreadyExists(f"'{name}' is the name of a built-in image.", hint="choose another name")
    if (images_dir / name).exists() and not replace:
        raise AlreadyExists(
            f"There is an image '{name}' already.", hint="choose another name, or delete that image first"
        )
    wanted = {"source": source, "kernel": kernel, "initrd": initrd}
    sources = {key: parse_source(text) for key, text in wanted.items() if text is not None}
    checksum = parse_checksum(sha256)
    below = [parse_source(text) for text in backing]
    if any(one.path is None for one in below) or (below and source is None):
        raise UsageError("What a disk is built on must be a file here.", hint="download it first")
    needed = sum(_UNKNOWN if (size := size_of(one)) is None else size for one in sources.values()) + (
        64 << 20
    )
    spec = ImageSpec(
        name=name,
        title=title or next(iter(sources.values())).name,
        source=next(iter(sources.values())).text,
        video=video,
        sound=sound,
        agent=agent,
        ready={"agent": True, "settle": 2.0, "timeout": 600} if agent else None,
    )
    with new_folder(images_dir, account, name, needed) as folder:
        if "kernel" in sources:
            given = checksum if source is None else None
            fetch(sources["kernel"], folder / "kernel", progress, given)
            check_kernel(folder / "kernel", sources["kernel"].text)
            spec.boot = {"kernel": "kernel"}
            if "initrd" in sources:
                fetch(sources["initrd"], folder / "initrd", progress)
                spec.boot["initrd"] = "initrd"
            if cmdline:
                spec.boot["cmdline"] = cmdline
        if "source" in sources:
            medium = _Medium(account, folder, spec, sources["source"], below, disk_size, progress)
            found = medium.add(checksum)
            if found is not None:
                hardware = found.hardware | hardware
                spec.title, spec.network = title or found.title or spec.title, found.network
                if found.left:
                    tell(f"Not taken over into '{name}': {'; '.join(found.left)}.")
        _set_hardware(spec, _USUAL | hardware)
        if cloud_init is not None:
            progress("writing the cloud-init seed", None)
            write_seed(cloud_init, name, folder / "seed.iso")
            spec.cdroms.append("seed.iso")
        return commit(folder, images_dir, account, spec, progress, retire=retire)


def _set_hardware(spec: ImageSpec, hardware: dict[str, Any]) -> None:
    spec.memory, spec.vcpus = hardware["memory"], hardware["vcpus"]
    spec.disk_bus, spec.nic = hardware["disk_bus"], hardware["nic"]
    # A kernel of its own needs no firmware, but may want UEFI's.
    if "kernel" not in spec.boot or hardware["firmware"] == "uefi":
        spec.boot["firmware"] = hardware["firmware"]


class _Medium:
    """Makes what is imported the disks or the CD of an image."""

    def __init__(
        self,
        account: Account,
        folder: Path,
        spec: ImageSpec,
        source: Source,
        backing: Sequence[Source],
        disk_size: int,
        progress: Progress,
    ) -> None:
        self.account, self.folder, self.spec, self.progress = account, folder, spec, progress
        self.source, self.disk_size = source, disk_size
        self.neighbours = Neighbours(source.path.parent if source.path else None, backing)

    def add(self, checksum: tuple[str, str] | None) -> Appliance | None:
        """Fetch it, and add it to the image; of an appliance, return what else it says."""
        shown, appliance = self.source.text, None
        copy = self.folder / "source"
        fetch(self.source, copy, self.progress, checksum)
        copy = self.unpacked(copy, shown)
        found = look(copy, shown)
        if found.format == "iso":
            check_cd(copy, shown)
            copy.rename(self.folder / "cd.iso")
            self.spec.cdroms.append("cd.iso")
            if self.disk_size:
                self.add_empty(self.disk_size)
        elif found.format == "tar":
            with archive(copy, shown) as package:
                appliance = describe(package, None, shown)
                # Its disks lie in no folder.
                self.neighbours.folder = None
                self.add_disks(package, appliance)
            copy.unlink()
        elif found.format == "ovf":
            beside = Beside(self.source.name, self.neighbours, shown)
            appliance = describe(beside, copy.read_bytes(), shown)
            copy.unlink()
            self.add_disks(beside, appliance)
        else:
            self.add_disk(copy, shown, found)
        self.neighbours.check_used()
        return appliance

    def unpacked(self, copy: Path, shown: str) -> Path:
        """Take off what is compressed around a file, and return where the rest is."""
        if copy.stat().st_size == 0:
            raise BuildFailed(f"'{shown}' is empty.")
        if _packing(copy) is None:
            return copy
        plain = copy.with_name(f"{copy.name}-unpacked")
        unpack(self.account, copy, plain, shown, self.progress)
        copy.unlink()
        if plain.stat().st_size == 0:
            raise BuildFailed(f"There is nothing in '{shown}'.")
        if _packing(plain) is not None:
            raise BuildFailed(f"'{shown}' is compressed more than once.", hint="unpack it first")
        return plain

    def add_disks(self, package: Package, appliance: Appliance) -> None:
        """Add the disks of an appliance."""
        if not appliance.disks:
            raise BuildFailed(f"The machine in '{self.source.text}' has no disk.")
        listed = manifest(package)
        for disk in appliance.disks:
            if disk.file is None:
                self.add_empty(disk.size)
                continue
            file = package.open(disk.file)
            if file is None:
                raise BuildFailed(f"A disk is missing in '{self.source.text}'.", file=disk.file)
            copy = self.folder / "member"
            with file, private.create(copy) as out:
                size = file.seek(0, os.SEEK_END)
                file.seek(0)
                room(self.folder, size, disk.file)
                while block := file.read(1 << 20):
                    out.write(block)
                    self.progress(f"copying {disk.file}", out.tell() / max(1, size))
            if disk.file in listed:
                verify(copy, listed[disk.file], disk.file, self.progress)
            copy = self.unpacked(copy, disk.file)
            self.add_disk(copy, disk.file, look(copy, disk.file))

    def add_empty(self, size: int) -> None:
        """Add an empty disk."""
        disk = self._new("qcow2")
        what = "The empty disk could not be made"
        qemu_img(self.account, "create", "-q", "-f", "qcow2", disk, str(size), what=what)
        self.spec.disks.append({"file": disk.name, "format": "qcow2", "size": size})

    def add_disk(self, copy: Path, shown: str, found: Look) -> None:
        """Add a disk: as it is, or as one qcow2 if it is of another kind or in several files."""
        if found.format not in DISKS:
            raise BuildFailed(f"'{shown}' is neither a disk nor a CD: it is of the kind {found.format}.")
        target = self._new("img" if found.format == "raw" else "qcow2")
        self.progress("looking whether it is whole", None)
        if found.format == "raw":
            # Only the first disk has to be one that a machine can start from.
            size = check_raw(copy, shown, bootable="kernel" not in self.spec.boot and not self.spec.disks)
            copy.rename(target)
        elif found.format == "qcow2" and found.alone:
            check_qcow2(self.account, alone(copy, "qcow2"), copy, shown)
            size = found.size
            copy.rename(target)
        else:
            flattener = Flattener(self.account, self.folder, shown, self.neighbours, self.progress)
            size = flattener.write(flattener.gather(copy, shown, found), copy, target)
            copy.unlink()
        form = "raw" if found.format == "raw" else "qcow2"
        self.spec.disks.append({"file": target.name, "format": form, "size": size})

    def _new(self, suffix: str) -> Path:
        number = len(self.spec.disks)
        return self.folder / f"disk{number or ''}.{suffix}"


def _packing(path: Path) -> str | None:
    with path.open("rb") as file:
        return packing(file.read(8))


def _check_options(
    source: object, kernel: object, initrd: object, cmdline: str, video: str, disk_size: int, *,
    firmware: str, memory: int, vcpus: int, disk_bus: str, nic: str,
) -> None:  # fmt: skip
    if source is None and kernel is None:
        raise UsageError("There is nothing to import.", hint="give a disk, a CD or a kernel")
    if kernel is None and (initrd is not None or cmdline):
        raise UsageError("An initrd and kernel arguments need a kernel.", hint="give `kernel=` too")
    for value, known, what in (
        (firmware, ("bios", "uefi"), "firmware"),
        # Older versions took IDE, which a machine of type q35 does not have.
        (disk_bus, tuple(bus for bus in DISK_BUSES if bus != "ide"), "disk bus"),
        (nic, NICS, "network card"),
        (video, VIDEOS, "video card"),
    ):
        if value not in known:
            raise UsageError(f"There is no {what} '{value}'.", hint="there is: " + ", ".join(known))
    for number, what in ((memory, "memory, in MiB"), (vcpus, "number of CPUs")):
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise UsageError(f"{number!r} is no {what}.")
    if disk_size < 0 or disk_size % 512:
        raise UsageError(f"{disk_size!r} is no size of a disk.", hint="bytes, a multiple of 512")
