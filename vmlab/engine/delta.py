"""The present of a guest whose RAM is mapped from a snapshot, as the pages that it changed since.

The kernel knows them: a page that a private mapping has written to is no longer the file's. So they are found in
``/proc/PID/pagemap`` at some nanoseconds a page, and read through ``/proc/PID/mem``, without asking the guest or QEMU.
The state of the devices comes from QEMU (``xen-save-devices-state``, which every build has). Together they make a
mapped-ram file with bits set for the changed pages only, which loads over the same base.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vmlab.engine import mapped_ram
from vmlab.engine.mapped_ram import PAGE, Block, Layout
from vmlab.hypervisor.domain import Domain

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_PRESENT = 1 << 63
_SWAPPED = 1 << 62
_FILE = 1 << 61
#: The longest run of pages that is copied at once.
_RUN = 1024


class NotPossible(Exception):
    """The host does not let us look into QEMU's memory (ptrace restrictions): save the whole RAM instead."""


def addresses(domain: Domain) -> dict[str, tuple[int, int]]:
    """Return where QEMU has each RAM block: ``{id: (address in QEMU, bytes used)}``."""
    found = {}
    # Block Name, page size "4 KiB", offset, used, total, address in QEMU
    row = re.compile(r"^\s*(\S.*?)\s+\d+ \w+\s+0x\w+\s+(0x\w+)\s+0x\w+\s+(0x\w+)")
    for line in domain.hmp("info ramblock").splitlines():
        match = row.match(line)
        if match:
            found[match[1]] = (int(match[3], 16), int(match[2], 16))
    return found


def changed(pid: int, address: int, pages: int) -> npt.NDArray[np.bool_]:
    """Return which of ``pages`` from ``address`` on a process has of its own: written to since they were mapped.

    Raises
    ------
    NotPossible
        We may not look.
    """
    import numpy as np

    try:
        with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as file:
            raw = os.pread(file.fileno(), pages * 8, address // PAGE * 8)
    except OSError as error:
        raise NotPossible(str(error)) from error
    entries = np.frombuffer(raw, np.uint64)
    if len(entries) != pages:
        raise NotPossible("the page map is shorter than the memory")
    own: npt.NDArray[np.bool_] = ((entries & np.uint64(_PRESENT | _SWAPPED)) != 0) & (
        (entries & np.uint64(_FILE)) == 0
    )
    return own


def mapped_at(pid: int, path: Path, offset: int, size: int) -> int:
    """Return where a process has ``size`` bytes of a file, from ``offset`` on: in one piece, private, and nowhere else.

    Raises
    ------
    NotPossible
        It has not, or we may not look.
    """
    address, end = None, offset
    try:
        inode = path.stat().st_ino
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError as error:
        raise NotPossible(str(error)) from error
    for line in lines:
        # The device is not looked at: on some file systems it is another one than stat tells.
        where, access, at, _, number = line.split(maxsplit=5)[:5]
        if int(number) != inode:
            continue
        first, last = (int(part, 16) for part in where.split("-"))
        address = first if address is None else address
        if access[3] != "p" or int(at, 16) != end or first != address + end - offset:
            raise NotPossible("the file is not mapped in one piece")
        end += last - first
    if address is None or end != offset + size:
        raise NotPossible("the file is not mapped as a whole")
    return address


def count(domain: Domain) -> int | None:
    """Return the bytes of RAM that a guest has changed since its RAM was mapped, or None if that cannot be told."""
    pid = domain.pid
    where = addresses(domain).get(mapped_ram.MAPPED_RAM)
    if pid is None or where is None:
        return None
    try:
        return int(changed(pid, where[0], where[1] // PAGE).sum()) * PAGE
    except NotPossible:
        return None


def write(
    domain: Domain,
    thin: Path,
    folder: Path,
    need_space: Callable[[int, str], None],
    *,
    goes_on: bool = False,
) -> None:
    """Write ``folder/ram``: what a stopped guest has changed over the base that ``thin`` belongs to.

    Parameters
    ----------
    goes_on
        The guest is not ended next. QEMU would else close its disks, to open them again only when it runs.

    Raises
    ------
    NotPossible
        The host does not let us read QEMU's memory.
    NoSpace
        It would not fit.
    """
    import numpy as np

    pid, where = domain.pid, addresses(domain)
    layout = mapped_ram.parse(thin)
    main = layout.main
    if pid is None or set(where) != {block.id for block in layout.blocks}:
        raise NotPossible("the guest's memory is not laid out like the base's")
    if any(where[block.id][1] != block.used for block in layout.blocks):
        raise NotPossible("the guest's memory is not laid out like the base's")
    own = changed(pid, where[main.id][0], main.pages)
    need_space(int(own.sum()) * PAGE + (32 << 20), "to keep the present")
    devices = folder / "devices"
    domain.qmp("xen-save-devices-state", filename=str(devices), live=not goes_on)
    try:
        # Past QEMU's signature and version; the stream that it goes into has its own.
        state = devices.read_bytes()[8:]
    finally:
        devices.unlink(missing_ok=True)
    target = folder / "ram"
    try:
        memory = open(f"/proc/{pid}/mem", "rb", buffering=0)  # noqa: SIM115 - closed below
    except OSError as error:
        raise NotPossible(str(error)) from error
    with memory, thin.open("rb") as base, target.open("xb") as file:
        src, dst = memory.fileno(), file.fileno()
        os.ftruncate(dst, layout.devices_offset)
        _copy_headers(base.fileno(), dst, layout)
        for block in layout.blocks:
            pages = own if block is main else np.ones(block.pages, bool)
            try:
                _copy_pages(src, dst, where[block.id][0], block, pages)
            except OSError as error:
                target.unlink()
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise NotPossible(str(error)) from error
        os.pwrite(dst, state, layout.devices_offset)


def _copy_headers(source: int, target: int, layout: Layout) -> None:
    """Copy all of the RAM section but its bitmaps and pages."""
    at = 0
    for block in layout.blocks:
        mapped_ram.copy_range(source, target, at, block.bitmap_offset)
        at = block.pages_offset + block.used
    mapped_ram.copy_range(source, target, at, layout.devices_offset)


def _copy_pages(source: int, target: int, address: int, block: Block, pages: npt.NDArray[np.bool_]) -> None:
    """Copy ``pages`` of a block from QEMU's memory to their places, run by run, and set their bits."""
    import numpy as np

    numbers = np.flatnonzero(pages)
    kept = pages.copy()
    # Where the distance to the next number is not 1, a run ends.
    for run in np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1) if len(numbers) else ():
        for start in range(int(run[0]), int(run[-1]) + 1, _RUN):
            end = min(start + _RUN, int(run[-1]) + 1)
            length = min(end * PAGE, block.used) - start * PAGE
            data = os.pread(source, length, address + start * PAGE)
            if len(data) != length:
                raise OSError("QEMU's memory ended early")
            if block.id != mapped_ram.MAPPED_RAM and data.count(0) == len(data):
                # An empty part of a small block: QEMU starts with zeros there anyway.
                kept[start:end] = False
                continue
            os.pwrite(target, data, block.pages_offset + start * PAGE)
    mapped_ram.write_bitmap(target, block, kept)
