"""Pages that QEMU's emulated CPUs write to without its migration hearing of it.

Seen on a busy host: of a guest that kept writing, two pages were saved as they had been some passes before. The likely
cause (QEMU 10.0, ``accel/tcg/cputlb.c``): a CPU's thread marks a page as written to, lets itself write there freely
from now on, and writes; where it has to wait in between, the migration takes back a mark that is still needed. So what
was saved is held against what the guest has, once it stands still, and put right.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from vmlab.engine import delta, mapped_ram, memory
from vmlab.engine.mapped_ram import PAGE, Block
from vmlab.hypervisor.domain import Domain

if TYPE_CHECKING:
    from vmlab.engine.memory import Data, Numbers

log = logging.getLogger(__name__)

#: Pages that are compared at once, so that they stay in the CPU's cache.
_CHUNK = 256


def put_right(domain: Domain, folder: Path) -> int:
    """Make ``folder/ram`` hold what a stopped guest has in memory, and return how many pages it did not.

    Under KVM, whose marks are the CPU's own, nothing is looked at. Nor is it where the host does not let us look into
    QEMU.
    """
    pid = domain.pid
    if pid is None or domain.qmp("query-kvm").get("enabled"):
        return 0
    path = folder / "ram"
    layout, where, count = mapped_ram.parse(path), delta.addresses(domain), 0
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        for block in layout.blocks:
            if block.id in where:
                count += _put_right(fd, block, pid, where[block.id][0])
    except OSError as error:
        log.warning("what was saved of %s is not held against its memory: %s", domain.name, error)
    finally:
        os.close(fd)
    if count:
        log.info("%d pages of %s were written to without a trace, and are saved now", count, domain.name)
    return count


def _put_right(fd: int, block: Block, pid: int, address: int) -> int:
    import numpy as np

    count, held = 0, mapped_ram.read_bitmap(fd, block)
    has, saved = (np.zeros((_CHUNK, memory.WORDS), np.uint64) for _ in range(2))
    # What the guest has written to is QEMU's own; all else is what it was before.
    numbers = np.flatnonzero(memory.own(pid, address, block.used // PAGE))
    for first in range(0, len(numbers), _CHUNK):
        part = numbers[first : first + _CHUNK]
        mine, file = has[: len(part)], saved[: len(part)]
        memory.read(pid, address, part, mine)
        _read(fd, block, part, file)
        # Of a page whose bit is clear the file may hold what was there before: it counts as zero.
        file[~held[part]] = 0
        for row in np.flatnonzero(memory.differing(mine, file)):
            page = int(part[row])
            os.pwrite(fd, mine[row].tobytes(), block.pages_offset + page * PAGE)
            held[page] = True
            count += 1
    if count:
        mapped_ram.write_bitmap(fd, block, held)
    return count


def _read(fd: int, block: Block, numbers: Numbers, into: Data) -> None:
    view = into.data.cast("B")
    for start, end in zip(*memory.runs(numbers), strict=True):
        os.preadv(
            fd, [view[int(start) * PAGE : int(end) * PAGE]], block.pages_offset + int(numbers[start]) * PAGE
        )
