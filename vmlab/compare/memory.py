"""The RAM of a state, read page by page: what all that compares or searches RAM stands on.

Every page of a guest has a fixed place in a mapped-ram file. Pages are read, not mapped: a file on a bad disk gives an
error instead of a signal that would end the process, and the memory that is used does not grow with the guest.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from vmlab.compare.state import Files
from vmlab.engine import mapped_ram
from vmlab.engine.mapped_ram import PAGE, Layout
from vmlab.errors import WrongState

#: Ranges, matches and strings that a result lists in JSON; it says how many there are.
LISTED = 1000

Pages = npt.NDArray[np.bool_]
#: A page that no file holds.
ZERO = -1


@dataclass(frozen=True)
class _RamFile:
    """One of the files that a RAM is in: a whole one, or what changed since the one below it."""

    path: Path
    fd: int
    layout: Layout
    identity: tuple[int, int]
    held: Pages

    def read(self, view: memoryview, first: int) -> None:
        """Fill ``view``, of bytes, with whole pages from page ``first`` on."""
        at = self.layout.main.pages_offset + first * PAGE
        done = 0
        while done < len(view):
            try:
                got = os.preadv(self.fd, [view[done:]], at + done)
            except OSError as error:
                raise mapped_ram.damaged(self.path, f"cannot be read ({error.strerror})") from error
            if got == 0:
                raise mapped_ram.damaged(self.path, "is shorter than its memory")
            done += got


class Memory:
    """The RAM of a live state, opened for reading; a context manager.

    Attributes
    ----------
    pages
        Number of pages.
    source
        Where each page is: the number of a file in ``files``, or -1 where it is zero.
    """

    def __init__(self, state: Files) -> None:
        if state.ram is None:
            raise WrongState(
                f"{state.title} is offline: it holds no RAM.", hint="a snapshot of a running machine holds it"
            )
        self._stack = contextlib.ExitStack()
        self.files: list[_RamFile] = []
        try:
            for path in (state.ram_base, state.ram):
                if path is None:
                    continue
                layout = mapped_ram.parse(path)
                fd = self._stack.enter_context(path.open("rb", buffering=0)).fileno()
                found = os.fstat(fd)
                held = mapped_ram.read_bitmap(fd, layout.main)
                if len(held) != layout.main.pages or layout.main.used % PAGE:
                    raise mapped_ram.damaged(path, "has a damaged list of its pages")
                self.files.append(_RamFile(path, fd, layout, (found.st_dev, found.st_ino), held))
            self.machine_type = self.files[-1].layout.machine_type
            self.pages = self.files[-1].layout.main.pages
            if any(file.layout.main.pages != self.pages for file in self.files):
                raise mapped_ram.damaged(state.ram, "has another size than the snapshot that it stands on")
            self.source = np.full(self.pages, ZERO, np.int8)
            for number, file in enumerate(self.files):
                self.source[file.held] = number
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def populated(self) -> int:
        """Number of pages that are held by a file: all that are not zero."""
        return int((self.source != ZERO).sum())

    def read(self, first: int, count: int, into: memoryview) -> None:
        """Fill ``into``, of bytes, with ``count`` pages."""
        part = self.source[first : first + count]
        for start, end in runs(part):
            piece = into[start * PAGE : end * PAGE]
            if part[start] != ZERO:
                self.files[part[start]].read(piece, first + start)
            else:
                piece[:] = bytes(len(piece))

    def address(self, page: int) -> int:
        """Return the physical address of a page."""
        return physical(page * PAGE, self.pages * PAGE, self.machine_type)


def physical(offset: int, size: int, machine_type: str) -> int:
    """Return where the guest sees byte ``offset`` of a RAM of ``size`` bytes.

    Below 4 GiB a PC keeps room for its devices; the RAM that would be there comes above (QEMU: hw/i386/pc_q35.c,
    pc_piix.c).
    """
    if "i440fx" in machine_type or machine_type == "pc":
        low = 0xC0000000 if size >= 0xE0000000 else 0xE0000000
    else:
        low = 0x80000000 if size >= 0xB0000000 else 0xB0000000
    return offset if offset < low or size <= low else offset - low + (4 << 30)


def runs(values: npt.NDArray[Any]) -> list[tuple[int, int]]:
    """Return ``(start, end)`` of the runs of equal values."""
    if not len(values):
        return []
    edges = np.flatnonzero(values[1:] != values[:-1]) + 1
    return list(zip([0, *edges.tolist()], [*edges.tolist(), len(values)], strict=True))


def true_runs(mask: Pages) -> list[tuple[int, int]]:
    """Return ``(start, end)`` of the runs of True."""
    edges = np.flatnonzero(np.diff(mask.view(np.int8), prepend=0, append=0))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
