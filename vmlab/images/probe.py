"""Whether a disk, a CD or a kernel that is taken as it is, is whole. It is not trusted: it may be damaged, or cut."""

from __future__ import annotations

import struct
from pathlib import Path

from vmlab.errors import BuildFailed

_TRUNCATED = "it was not copied or downloaded to its end: fetch it again"


def check_cd(path: Path, shown: str) -> None:
    """Make sure that an ISO file is as long as it says.

    Raises
    ------
    BuildFailed
        It is not.
    """
    with path.open("rb") as file:
        head = file.read(36864)
    size = path.stat().st_size
    blocks, block = struct.unpack_from("<I", head, 32848)[0], struct.unpack_from("<H", head, 32896)[0]
    if blocks * block > size:
        raise BuildFailed(f"'{shown}' is cut short.", hint=_TRUNCATED, size=size, should_be=blocks * block)


def check_raw(path: Path, shown: str, *, bootable: bool) -> int:
    """Make sure that a raw disk is as long as its partitions say, and return its size as a guest sees it.

    Parameters
    ----------
    bootable
        Whether it must be able to start a machine by itself.

    Raises
    ------
    BuildFailed
        It is not, or does not look like a disk.
    """
    with path.open("rb") as file:
        head = file.read(1024)
    size = path.stat().st_size
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
    return -(-size // 512) * 512


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
