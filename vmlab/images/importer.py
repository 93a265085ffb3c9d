"""Imports what somebody else made: disks, CDs, kernels, cloud images."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from vmlab.errors import AlreadyExists, UsageError
from vmlab.hypervisor.account import Account
from vmlab.images.builder import builtin, commit, new_folder
from vmlab.images.cloudinit import CloudInit, write_seed
from vmlab.images.disks import qemu_img
from vmlab.images.probe import check_kernel, probe
from vmlab.images.sources import Source, fetch, parse_checksum, parse_source, size_of
from vmlab.images.spec import DISK_BUSES, NICS, VIDEOS, ImageSpec, check_name
from vmlab.images.work import Progress, silent

#: Bytes of the empty disk beside a CD.
EMPTY_DISK = 8 << 30
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
    firmware: str = "bios",
    memory: int = 1024,
    vcpus: int = 1,
    sha256: str | None = None,
    cloud_init: CloudInit | None = None,
    disk_size: int = EMPTY_DISK,
    disk_bus: str = "virtio",
    nic: str = "virtio",
    video: str = "vga",
    sound: bool = False,
    agent: bool = False,
    title: str | None = None,
    replace: bool = False,
    retire: Callable[[Path], None] | None = None,
    progress: Progress = silent,
) -> Path:
    """Copy something bootable into the store as an image, and return its folder.

    Parameters
    ----------
    source
        A disk (qcow2 or raw) or a CD (ISO): a path, or a ``file``, ``http`` or ``https`` address. May be missing if
        there is a ``kernel``.
    kernel, initrd, cmdline
        What QEMU loads by itself, instead of what the disk has.
    firmware
        ``bios`` or ``uefi``.
    memory, vcpus
        Defaults for machines; memory in MiB.
    sha256
        Checksum of ``source`` (or of ``kernel`` if there is no source); a SHA-512 is understood too.
    cloud_init
        For cloud images: their first user, key, password, name.
    disk_size
        Bytes of the empty disk that comes beside a CD; 0 for none.
    agent
        Whether the guest is known to run the QEMU guest agent.
    replace, retire
        Replace an image of that name; see `vmlab.images.build`.

    Raises
    ------
    AlreadyExists, BadName, BuildFailed, NoSpace, NotFound, UsageError
        Then nothing has changed.
    """
    check_name(name)
    _check_options(source, kernel, initrd, cmdline, firmware, memory, vcpus, disk_bus, nic, video, disk_size)
    if name in builtin():
        raise AlreadyExists(f"'{name}' is the name of a built-in image.", hint="choose another name")
    if (images_dir / name).exists() and not replace:
        raise AlreadyExists(
            f"There is an image '{name}' already.", hint="choose another name, or delete that image first"
        )
    wanted = {"source": source, "kernel": kernel, "initrd": initrd}
    sources = {key: parse_source(text) for key, text in wanted.items() if text is not None}
    checksum = parse_checksum(sha256)
    needed = sum(_UNKNOWN if (size := size_of(one)) is None else size for one in sources.values()) + (
        64 << 20
    )
    spec = ImageSpec(
        name=name,
        title=title or next(iter(sources.values())).name,
        source=next(iter(sources.values())).text,
        memory=memory,
        vcpus=vcpus,
        boot={"firmware": firmware},
        video=video,
        sound=sound,
        agent=agent,
        disk_bus=disk_bus,
        nic=nic,
        ready={"agent": True, "settle": 2.0, "timeout": 600} if agent else None,
    )
    with new_folder(images_dir, account, name, needed) as folder:
        if "kernel" in sources:
            given = checksum if source is None else None
            fetch(sources["kernel"], folder / "kernel", progress, given)
            check_kernel(folder / "kernel", sources["kernel"].text)
            spec.boot = {"kernel": "kernel"}
            if firmware == "uefi":
                spec.boot["firmware"] = firmware
            if "initrd" in sources:
                fetch(sources["initrd"], folder / "initrd", progress)
                spec.boot["initrd"] = "initrd"
            if cmdline:
                spec.boot["cmdline"] = cmdline
        if "source" in sources:
            _add_medium(account, folder, sources["source"], spec, checksum, disk_size, progress)
        if cloud_init is not None:
            progress("writing the cloud-init seed", None)
            write_seed(cloud_init, name, folder / "seed.iso")
            spec.cdroms.append("seed.iso")
        target = commit(folder, images_dir, account, spec, progress, retire=retire)
        if cloud_init is not None:
            # There may be a password in it.
            (target / "seed.iso").chmod(0o400)
        return target


def _add_medium(
    account: Account,
    folder: Path,
    source: Source,
    spec: ImageSpec,
    checksum: tuple[str, str] | None,
    disk_size: int,
    progress: Progress,
) -> None:
    copy = folder / "source"
    fetch(source, copy, progress, checksum)
    # From here on the file belongs to the account that QEMU runs as, and only that account's programs open it.
    account.own(copy)
    copy.chmod(0o600)
    progress("looking whether it is whole", None)
    found = probe(account, copy, source.text, bootable="kernel" not in spec.boot)
    if found.kind == "iso":
        copy.rename(folder / "cd.iso")
        spec.cdroms.append("cd.iso")
        if disk_size:
            disk = folder / "disk.qcow2"
            qemu_img(
                account,
                "create",
                "-q",
                "-f",
                "qcow2",
                disk,
                str(disk_size),
                what="The empty disk could not be made",
            )
            spec.disks.append({"file": disk.name, "format": "qcow2", "size": disk_size})
        return
    file = f"disk.{'qcow2' if found.format == 'qcow2' else 'img'}"
    copy.rename(folder / file)
    spec.disks.append({"file": file, "format": found.format, "size": found.size})


def _check_options(
    source: object, kernel: object, initrd: object, cmdline: str, firmware: str, memory: int, vcpus: int,
    disk_bus: str, nic: str, video: str, disk_size: int,
) -> None:  # fmt: skip
    if source is None and kernel is None:
        raise UsageError("There is nothing to import.", hint="give a disk, a CD or a kernel")
    if kernel is None and (initrd is not None or cmdline):
        raise UsageError("An initrd and kernel arguments need a kernel.", hint="give kernel=... too")
    for value, known, what in (
        (firmware, ("bios", "uefi"), "firmware"),
        (disk_bus, DISK_BUSES, "disk bus"),
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
