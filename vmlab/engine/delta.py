"""What a guest has that a snapshot has not: the pages that it changed since, with the state of its devices.

Where its RAM is mapped from the snapshot's file, the kernel knows them: a page that a private mapping has written to is
no longer the file's. So they are found in QEMU's page map, and read from its memory, without asking the guest or QEMU
(:mod:`vmlab.engine.memory`); one that holds what the snapshot holds is left out. The state of the devices comes from
QEMU (``xen-save-devices-state``, which every build has). Together they make a mapped-ram file with bits set for the
changed pages only, which loads over the same base.

Most of it is copied while the guest runs. Then it stands still for as long as it takes to read those pages once more,
at the speed of memory: of each few a fingerprint is kept, so only those are looked at again that changed meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from vmlab import private
from vmlab.engine import mapped_ram, memory
from vmlab.engine.mapped_ram import PAGE, Block, Layout
from vmlab.errors import HypervisorError
from vmlab.hypervisor.domain import Domain

if TYPE_CHECKING:
    from vmlab.engine.memory import Data, Numbers, Pages

#: Pages that are read at once, so that they stay in the CPU's cache, and those of them that share a fingerprint.
_CHUNK = 256
_GROUP = 8
#: While the guest runs, what it has changed meanwhile is copied until it is no more than this many pages, so often.
_FEW = 64
_ROUNDS = 4


class NotPossible(Exception):
    """The host does not let us look into QEMU's memory (ptrace restrictions): save the whole RAM instead."""


def pays(changed: int, base: int) -> bool:
    """Whether ``changed`` bytes are kept as a delta over a snapshot of ``base`` bytes: up to half of them.

    Beyond, a whole snapshot takes little longer, and those after it are small again, over that.
    """
    return changed * 2 <= base


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


def changed(pid: int, address: int, pages: int) -> Pages:
    """Return which of ``pages`` from ``address`` on a process has of its own: written to since they were mapped.

    Raises
    ------
    NotPossible
        We may not look.
    """
    try:
        return memory.own(pid, address, pages)
    except OSError as error:
        raise NotPossible(str(error)) from error


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


def maps(pid: int, folder: Path) -> bool:
    """Whether a process maps the file ``ram`` of a folder of that name, there or gone."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return False
    end = f"/{folder.parent.name}/{folder.name}/ram"
    return any(line.removesuffix(" (deleted)").endswith(end) for line in lines)


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


@dataclass
class _Part:
    """One RAM block while it is copied.

    Attributes
    ----------
    address
        Where QEMU has it.
    base
        Which of its pages the base's file holds; the others are zero there, or, in small blocks, at QEMU's start.
    seen, numbers, digests
        Which pages have been copied, in which order, and the fingerprint of each few of them.
    stored, written
        Which pages differ from the base's, and which of the new file's hold something.
    """

    block: Block
    address: int
    base: Pages
    seen: Pages = field(init=False)
    stored: Pages = field(init=False)
    written: Pages = field(init=False)
    numbers: list[Numbers] = field(default_factory=list)
    digests: list[list[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        import numpy as np

        self.seen, self.stored, self.written = (np.zeros(self.block.pages, bool) for _ in range(3))


class Delta:
    """The pages that a guest has changed over a snapshot, while they are copied to ``folder/ram``; closed by `close`.

    Parameters
    ----------
    base
        The folder of the snapshot: a whole one, from whose file the guest's RAM is mapped, or which was taken of it
        since then.
    others
        Pages that may differ although the guest has not changed them: it is mapped from another file than the base's.

    Raises
    ------
    NotPossible
        QEMU's memory cannot be read, or is not laid out like the base's.
    """

    def __init__(self, domain: Domain, base: Path, folder: Path, others: Pages | None = None) -> None:
        import numpy as np

        self.domain, self.path = domain, folder / "ram"
        pid, where = domain.pid, addresses(domain)
        self.layout = layout = mapped_ram.parse(base / "thin")
        if pid is None or {name: used for name, (_, used) in where.items()} != {
            block.id: block.used for block in layout.blocks
        }:
            raise NotPossible("the guest's memory is not laid out like the base's")
        self.pid, self._others = pid, others
        self._scratch, self._beside = (np.empty((_CHUNK, memory.WORDS), np.uint64) for _ in range(2))
        self._open = contextlib.ExitStack()
        try:
            thin = self._open.enter_context((base / "thin").open("rb"))
            self._base = self._open.enter_context((base / "ram").open("rb")).fileno()
            self._target = self._open.enter_context(private.create(self.path)).fileno()
            os.ftruncate(self._target, layout.devices_offset)
            _copy_headers(thin.fileno(), self._target, layout)
        except BaseException:
            self.close()
            raise
        held = mapped_ram.read_bitmap(self._base, layout.main)
        self._parts = [
            _Part(
                block,
                where[block.id][0],
                held if block is layout.main else np.zeros(block.pages, bool),
            )
            for block in layout.blocks
        ]
        self._main = next(part for part in self._parts if part.block is layout.main)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files."""
        self._open.close()

    def drop(self) -> None:
        """Delete what was written: something else comes in its place."""
        self.close()
        self.path.unlink()

    @property
    def size(self) -> int:
        """Bytes of main memory that differ from the base's, as far as it has been copied."""
        return int(self._main.stored.sum()) * PAGE

    @property
    def pages(self) -> Pages:
        """Which pages of main memory differ from the base's; all others are the base's."""
        return self._main.stored

    def waiting(self) -> int:
        """Return the bytes that are to be copied now.

        Raises
        ------
        NotPossible
            QEMU's memory cannot be read.
        """
        return sum(len(self._new(part)) for part in self._parts) * PAGE

    def copy(self) -> None:
        """Copy what the guest has changed; while it runs, until little is left.

        Raises
        ------
        NotPossible
            QEMU's memory cannot be read.
        OSError
            It could not be written.
        """
        for _ in range(_ROUNDS):
            if sum(self._copy(part) for part in self._parts) <= _FEW:
                break

    def catch(self) -> None:
        """Copy what has changed since `copy`; the guest stands still.

        Raises
        ------
        HypervisorError
            QEMU has ended.
        OSError
            It could not be written.
        """
        try:
            for part in self._parts:
                copied = len(part.numbers)
                self._copy(part)
                for numbers, digests in zip(part.numbers[:copied], part.digests[:copied], strict=True):
                    self._look_again(part, numbers, digests)
        except NotPossible as error:
            raise HypervisorError(
                f"The memory of {self.domain.name} could not be read.", cause=str(error)
            ) from error

    def seal(self, devices: bytes) -> None:
        """Write which pages there are, and the state of the devices."""
        for part in self._parts:
            mapped_ram.write_bitmap(self._target, part.block, part.stored)
        os.pwrite(self._target, devices, self.layout.devices_offset)

    def _new(self, part: _Part) -> Numbers:
        import numpy as np

        found = changed(self.pid, part.address, part.block.pages)
        if part is self._main and self._others is not None:
            found = found | self._others
        return np.flatnonzero(found & ~part.seen)

    def _copy(self, part: _Part) -> int:
        """Copy the pages that have not been copied yet, and return how many those were."""
        numbers = self._new(part)
        for first in range(0, len(numbers), _CHUNK):
            chunk = numbers[first : first + _CHUNK]
            data = self._read(part, chunk)
            part.digests.append([_digest(data, at) for at in range(0, len(chunk), _GROUP)])
            part.numbers.append(chunk)
            self._keep(part, chunk, data)
        part.seen[numbers] = True
        return len(numbers)

    def _look_again(self, part: _Part, numbers: Numbers, digests: list[bytes]) -> None:
        """Copy those pages again that do not hold any more what they held."""
        data = self._read(part, numbers)
        for group, digest in enumerate(digests):
            first = group * _GROUP
            if _digest(data, first) != digest:
                self._keep(part, numbers[first : first + _GROUP], data[first : first + _GROUP])

    def _read(self, part: _Part, numbers: Numbers) -> Data:
        data = self._scratch[: len(numbers)]
        try:
            memory.read(self.pid, part.address, numbers, data)
        except OSError as error:
            raise NotPossible(str(error)) from error
        return data

    def _keep(self, part: _Part, numbers: Numbers, data: Data) -> None:
        """Write those pages that differ from the base's; what is zero stays a hole if it can."""
        filled = memory.filled(data)
        differs = filled.copy()
        held = part.base[numbers]
        if held.any():
            differs[held] = memory.differing(data, self._read_base(part, numbers, held))[held]
        part.stored[numbers] = differs
        write = differs & (filled | part.written[numbers])
        part.written[numbers] |= write
        where = write.nonzero()[0]
        block = part.block
        for start, end in _runs(numbers[where]):
            rows = data[where[start] : where[end - 1] + 1]
            at = int(numbers[where[start]]) * PAGE
            os.pwrite(self._target, rows.data.cast("B")[: block.used - at], block.pages_offset + at)

    def _read_base(self, part: _Part, numbers: Numbers, held: Pages) -> Data:
        """Return what the base has of these pages, where it holds them."""
        data = self._beside[: len(numbers)]
        view = data.data.cast("B")
        where = held.nonzero()[0]
        for start, end in _runs(numbers[where]):
            at = part.block.pages_offset + int(numbers[where[start]]) * PAGE
            rows = view[int(where[start]) * PAGE : (int(where[end - 1]) + 1) * PAGE]
            if os.preadv(self._base, [rows], at) != len(rows):
                raise NotPossible("the base is shorter than its memory")
        return data


def _runs(numbers: Numbers) -> list[tuple[int, int]]:
    starts, ends = memory.runs(numbers)
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def _digest(data: Data, first: int) -> bytes:
    import xxhash

    found: bytes = xxhash.xxh3_128_digest(data[first : first + _GROUP].data)
    return found


def devices(domain: Domain, folder: Path, *, goes_on: bool) -> bytes:
    """Return the state of a stopped guest's devices as it stands in a stream, behind its RAM.

    Parameters
    ----------
    goes_on
        The guest is not ended next. QEMU would else close its disks, to open them again only when it runs.
    """
    path = folder / "devices"
    domain.qmp("xen-save-devices-state", filename=str(path), live=not goes_on)
    try:
        # Past QEMU's signature and version; the stream that it goes into has its own.
        return path.read_bytes()[8:]
    finally:
        path.unlink(missing_ok=True)


def write(delta: Delta, need_space: Callable[[int, str], None], *, goes_on: bool = False) -> Pages:
    """Write what a stopped guest has changed, with its devices, and return which pages of main memory that is.

    Parameters
    ----------
    goes_on
        As in :func:`devices`.

    Raises
    ------
    NotPossible
        The host does not let us read QEMU's memory.
    NoSpace
        It would not fit.
    """
    with delta:
        need_space(delta.waiting() + (32 << 20), "to keep the present")
        state = devices(delta.domain, delta.path.parent, goes_on=goes_on)
        delta.copy()
        delta.seal(state)
        return delta.pages


def _copy_headers(source: int, target: int, layout: Layout) -> None:
    """Copy all of the RAM section but its bitmaps and pages."""
    at = 0
    for block in layout.blocks:
        mapped_ram.copy_range(source, target, at, block.bitmap_offset)
        at = block.pages_offset + block.used
    mapped_ram.copy_range(source, target, at, layout.devices_offset)
