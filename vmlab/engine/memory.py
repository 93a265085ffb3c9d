"""The memory of a QEMU, read in bulk: which pages are its own, and what is in them.

Nothing here knows guests or files. Pages that lie apart are read in one call of the kernel (``process_vm_readv``), and
the kernel tells which are there without a look at those that are not (``PAGEMAP_SCAN``, Linux 6.7; before, the whole
page map is read).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Pages = npt.NDArray[np.bool_]
    Numbers = npt.NDArray[np.intp]
    Data = npt.NDArray[np.uint64]

PAGE = 4096
WORDS = PAGE // 8

_PRESENT = 1 << 63
_SWAPPED = 1 << 62
_FILE = 1 << 61

#: ``_IOWR('f', 16, struct pm_scan_arg)`` and its categories, as in <linux/fs.h>.
_PAGEMAP_SCAN = 0xC0606610
_IS_FILE, _IS_PRESENT, _IS_SWAPPED = 1 << 2, 1 << 3, 1 << 4
_SCAN_ARG = struct.Struct("<12Q")
#: Runs of pages that the kernel tells at a time.
_REGIONS = 4096
#: The most pieces that it reads in one call (UIO_MAXIOV), and the most pages, far below what it refuses.
_PIECES = 1024
_AT_ONCE = 16384
#: Every so many words are compared first.
_STRIDE = 16

_libc = ctypes.CDLL(None, use_errno=True)
_readv = _libc.process_vm_readv
_readv.argtypes = [ctypes.c_int, *(ctypes.c_void_p, ctypes.c_ulong) * 2, ctypes.c_ulong]
_readv.restype = ctypes.c_ssize_t
_memcmp = _libc.memcmp
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


def own(pid: int, address: int, pages: int) -> Pages:
    """Return which of ``pages`` from ``address`` on a process has of its own: neither a file's, nor never touched.

    Raises
    ------
    OSError
        We may not look, or it is gone.
    """
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as file:
        try:
            return _scan(file.fileno(), address, pages)
        except OSError:
            # An older kernel.
            return _read_map(file.fileno(), address, pages)


def _scan(fd: int, address: int, pages: int) -> Pages:
    import numpy as np

    edges = np.zeros(pages + 1, np.int8)
    regions = np.empty((_REGIONS, 3), np.uint64)
    at, end = address, address + pages * PAGE
    while at < end:
        arg = bytearray(
            _SCAN_ARG.pack(
                _SCAN_ARG.size, 0, at, end, 0, regions.ctypes.data, _REGIONS, 0,
                _IS_FILE, _IS_FILE, _IS_PRESENT | _IS_SWAPPED, _IS_FILE,
            )
        )  # fmt: skip
        count = fcntl.ioctl(fd, _PAGEMAP_SCAN, arg)
        found = (regions[:count, :2] - np.uint64(address)) // np.uint64(PAGE)
        edges[found[:, 0]] += 1
        edges[found[:, 1]] -= 1
        at = _SCAN_ARG.unpack(arg)[4]
    mine: Pages = np.cumsum(edges[:-1], dtype=np.int8).view(bool)
    return mine


def _read_map(fd: int, address: int, pages: int) -> Pages:
    import numpy as np

    entries = np.frombuffer(os.pread(fd, pages * 8, address // PAGE * 8), np.uint64)
    if len(entries) != pages:
        raise OSError("the page map is shorter than the memory")
    there = (entries & np.uint64(_PRESENT | _SWAPPED)) != 0
    mine: Pages = there & ((entries & np.uint64(_FILE)) == 0)
    return mine


def runs(numbers: Numbers) -> tuple[Numbers, Numbers]:
    """Return where in ascending ``numbers`` each run of consecutive ones begins, and where it ends."""
    import numpy as np

    if not len(numbers):
        return numbers, numbers
    edges = np.flatnonzero(np.diff(numbers) != 1) + 1
    return np.concatenate(([0], edges)), np.concatenate((edges, [len(numbers)]))


def read(pid: int, address: int, numbers: Numbers, into: Data) -> None:
    """Read the pages with these ascending ``numbers`` of what a process has at ``address`` into rows of ``into``.

    Raises
    ------
    OSError
        We may not, or it is gone.
    """
    for first in range(0, len(numbers), _AT_ONCE):
        part = numbers[first : first + _AT_ONCE]
        _read(pid, address, part, into[first : first + len(part)])


def _read(pid: int, address: int, numbers: Numbers, into: Data) -> None:
    import numpy as np

    assert into.flags.c_contiguous
    starts, ends = runs(numbers)
    pieces = np.empty((len(starts), 2), np.uint64)
    pieces[:, 0] = numbers[starts] * PAGE + address
    pieces[:, 1] = (ends - starts) * PAGE
    target = into.ctypes.data
    for first in range(0, len(pieces), _PIECES):
        part = pieces[first : first + _PIECES]
        wanted = int(part[:, 1].sum())
        local = np.array([target, wanted], np.uint64)
        got = _readv(pid, local.ctypes.data, 1, part.ctypes.data, len(part), 0)
        if got != wanted:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error)) if got < 0 else OSError("the memory ended early")
        target += wanted


def differing(one: Data, other: Data) -> Pages:
    """Return which pages of two pieces of memory differ."""
    import numpy as np

    if _memcmp(one.ctypes.data, other.ctypes.data, one.nbytes) == 0:
        return np.zeros(len(one), bool)
    # Most pages that differ do so in many places; only those that seem equal are read whole.
    found: Pages = np.any(one[:, ::_STRIDE] != other[:, ::_STRIDE], axis=1)
    rest = np.flatnonzero(~found)
    found[rest] = (one[rest] != other[rest]).any(axis=1)
    return found


def filled(pages: Data) -> Pages:
    """Return which pages are not all zero."""
    import numpy as np

    found: Pages = np.any(pages[:, ::_STRIDE], axis=1)
    rest = np.flatnonzero(~found)
    found[rest] = pages[rest].any(axis=1)
    return found
