"""What a file is that somebody wants to boot. The file is not trusted: it may be damaged, or made to deceive."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

from vmlab.errors import BuildFailed
from vmlab.hypervisor.account import Account
from vmlab.images.disks import disk_info
from vmlab.images.work import need

_PACKED = {
    b"\xfd7zXZ\0": "xz -d",
    b"\x1f\x8b": "gunzip",
    b"\x28\xb5\x2f\xfd": "unzstd",
    b"BZh": "bunzip2",
    b"PK\x03\x04": "unzip",
}
_OTHERS = {
    b"KDMV": "vmdk",
    b"# Disk Des": "vmdk",
    b"vhdxfile": "vhdx",
    b"conectix": "vpc",
    b"<<< ": "vdi",
    b"QED\0": "qed",
}
_TRUNCATED = "it was not copied or downloaded to its end: fetch it again"


@dataclass(frozen=True)
class Probe:
    """What a file turned out to be.

    Attributes
    ----------
    kind
        ``disk`` or ``iso``.
    format
        ``qcow2`` or ``raw``.
    size
        Bytes that a guest sees.
    """

    kind: str
    format: str
    size: int


def probe(account: Account, path: Path, shown: str, *, bootable: bool = True) -> Probe:
    """Find out what the file ``path`` is, and that it is whole.

    Parameters
    ----------
    shown
        What to call it in errors.
    bootable
        Whether it must be able to start a machine by itself.

    Raises
    ------
    BuildFailed
        If it is no disk or CD, is damaged, or depends on other files.
    """
    with path.open("rb") as file:
        head = file.read(36864)
    size = path.stat().st_size
    if size == 0:
        raise BuildFailed(f"'{shown}' is empty.")
    for magic, tool in _PACKED.items():
        if head.startswith(magic):
            raise BuildFailed(f"'{shown}' is compressed.", hint=f"unpack it first: {tool}")
    for magic, form in _OTHERS.items():
        if head.startswith(magic):
            raise BuildFailed(
                f"'{shown}' is a disk of the format {form}.",
                hint=f"convert it first: qemu-img convert -f {form} -O qcow2 FILE disk.qcow2",
            )
    if head.startswith(b"QFI\xfb"):
        return _qcow2(account, path, shown)
    if head[32769:32774] == b"CD001":
        blocks, block = struct.unpack_from("<I", head, 32848)[0], struct.unpack_from("<H", head, 32896)[0]
        if blocks * block > size:
            raise BuildFailed(
                f"'{shown}' is cut short.", hint=_TRUNCATED, size=size, should_be=blocks * block
            )
        return Probe("iso", "raw", size)
    return _raw(head, size, shown, bootable)


def _qcow2(account: Account, path: Path, shown: str) -> Probe:
    info = disk_info(account, path, "qcow2")
    special = info.get("format-specific", {}).get("data", {})
    # QEMU would open these files by name, whichever they are: a guest could be handed any file of this account.
    if info.get("backing-filename"):
        raise BuildFailed(
            f"'{shown}' is only the changes to another disk.",
            hint="make it whole first: qemu-img convert -O qcow2 FILE whole.qcow2",
            other_disk=info["backing-filename"],
        )
    if special.get("data-file"):
        raise BuildFailed(
            f"'{shown}' keeps its data in another file.",
            hint="make it whole first: qemu-img convert -O qcow2 FILE whole.qcow2",
            other_file=special["data-file"],
        )
    if info.get("encrypted") or special.get("encrypt"):
        raise BuildFailed(
            f"'{shown}' is encrypted.", hint="decrypt it first: qemu-img convert --image-opts ..."
        )
    argv = [need("qemu-img", "qemu-utils"), "check", "-f", "qcow2", "--output=json", "-U", str(path)]
    answer = account.run(argv, capture_output=True, text=True, check=False)
    try:
        result = json.loads(answer.stdout[answer.stdout.index("{") :])
    except ValueError:
        raise BuildFailed(
            f"'{shown}' is damaged.", hint=_TRUNCATED, output=answer.stdout + answer.stderr
        ) from None
    # Leaked clusters (status 3) only waste space.
    if (
        answer.returncode not in (0, 3)
        or result.get("corruptions")
        or result.get("check-errors")
        or special.get("corrupt")
    ):
        raise BuildFailed(f"'{shown}' is damaged.", hint=_TRUNCATED, output=answer.stderr or answer.stdout)
    size, end = path.stat().st_size, result.get("image-end-offset", 0)
    if size + info.get("cluster-size", 65536) <= end:
        raise BuildFailed(f"'{shown}' is cut short.", hint=_TRUNCATED, size=size, should_be=end)
    return Probe("disk", "qcow2", int(info["virtual-size"]))


def _raw(head: bytes, size: int, shown: str, bootable: bool) -> Probe:
    ends = []
    if head[510:512] == b"\x55\xaa":
        for entry in range(446, 510, 16):
            kind, start, count = head[entry + 4], *struct.unpack_from("<II", head, entry + 8)
            # 0xee covers the whole disk of a GPT, and is often larger than the disk.
            if kind not in (0, 0xEE):
                ends.append((start + count) * 512)
    elif bootable:
        raise BuildFailed(
            f"'{shown}' is neither a disk nor a CD that a machine can start from: it has no boot sector.",
            hint="give a kernel too, if it is only a file system",
        )
    if head[512:520] == b"EFI PART":
        ends.append((struct.unpack_from("<Q", head, 512 + 32)[0] + 1) * 512)
    if ends and max(ends) > size:
        raise BuildFailed(f"'{shown}' is cut short.", hint=_TRUNCATED, size=size, should_be=max(ends))
    return Probe("disk", "raw", -(-size // 512) * 512)


def check_kernel(path: Path, shown: str) -> None:
    """Make sure that a file is a kernel that QEMU can load: Linux, multiboot, or ELF.

    Raises
    ------
    BuildFailed
        If it is not.
    """
    with path.open("rb") as file:
        head = file.read(8192)
    linux = head[0x202:0x206] == b"HdrS"
    multiboot = struct.pack("<I", 0x1BADB002) in head
    if not (linux or multiboot or head.startswith(b"\x7fELF")):
        raise BuildFailed(
            f"'{shown}' is no kernel that QEMU can load.",
            hint="Linux (bzImage), multiboot and ELF kernels can be",
        )
