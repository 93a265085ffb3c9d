"""Empty qcow2 files, written by ourselves: to start ``qemu-img`` takes longer than all else that a new layer takes.

The format: https://www.qemu.org/docs/master/interop/qcow2.html (version 3).
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from vmlab import private

_CLUSTER_BITS = 16
_CLUSTER = 1 << _CLUSTER_BITS
#: Bytes of the guest's disk that one entry of the first table stands for.
_PER_L1 = _CLUSTER * (_CLUSTER // 8)
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_BACKING_FORMAT = 0xE2792ACA
#: Where the tables of reference counts are, and that of the guest's clusters.
_REFCOUNTS, _REFCOUNT_BLOCK, _L1 = _CLUSTER, 2 * _CLUSTER, 3 * _CLUSTER


def write_empty(path: Path, size: int, backing: str | None = None, backing_format: str = "qcow2") -> None:
    """Write a disk that holds nothing of its own.

    Parameters
    ----------
    path
        The file; what was there goes.
    size
        Bytes that the guest sees; rounded up to whole sectors.
    backing, backing_format
        What it stands on, as seen from its folder, and in which format that is.
    """
    size = -(-size // 512) * 512
    entries = -(-size // _PER_L1)
    name = os.fsencode(backing) if backing is not None else b""
    extension = b""
    if name:
        word = backing_format.encode()
        extension = struct.pack(">II", _BACKING_FORMAT, len(word)) + word.ljust(-(-len(word) // 8) * 8, b"\0")
    extension += struct.pack(">II", 0, 0)
    at = _HEADER.size + len(extension) if name else 0
    if at + len(name) > 1023:
        raise ValueError("The name of what a disk stands on is too long for a qcow2 file.")
    header = _HEADER.pack(
        b"QFI\xfb", 3, at, len(name), _CLUSTER_BITS, size, 0, entries, _L1, _REFCOUNTS, 1, 0, 0,
        0, 0, 0, 4, _HEADER.size,
    )  # fmt: skip
    clusters = 3 + -(-entries * 8 // _CLUSTER)
    path.unlink(missing_ok=True)
    with private.create(path) as file:
        file.write(header + extension + name)
        file.seek(_REFCOUNTS)
        file.write(struct.pack(">Q", _REFCOUNT_BLOCK))
        file.seek(_REFCOUNT_BLOCK)
        file.write(struct.pack(">H", 1) * clusters)
        file.truncate(clusters * _CLUSTER)
