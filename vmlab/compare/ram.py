"""What differs between the RAM of two states, page by page.

Pages that neither
file holds are zero and are not looked at; where both sides take a page from the same file, because one stands on the
other or both on a common base, it is not read either. Whole snapshots (the usual ones) share no file, but those of a
guest that came from a snapshot bring a list of the pages that it changed since. Where both states go back to the RAM of
one snapshot, only pages are read that are in one of the lists on the way; else all that is populated.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vmlab.compare import picture
from vmlab.compare.memory import LISTED, ZERO, Memory, Pages, physical, runs, true_runs
from vmlab.compare.state import Files
from vmlab.engine import mapped_ram
from vmlab.engine.mapped_ram import PAGE
from vmlab.render import units

if TYPE_CHECKING:
    import pandas as pd

#: Pages that are read and compared at once; both sides stay in the CPU's cache. 128 was the fastest of those measured.
SEGMENT = 128
#: Threads that compare. More than the memory can feed do not help.
THREADS = min(4, os.cpu_count() or 1)
_WORDS = PAGE // 8
_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


@dataclass(frozen=True)
class Range:
    """Consecutive pages that differ: physical address, and number of pages."""

    address: int
    pages: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.pages * PAGE


@dataclass(frozen=True)
class RamDiff:
    """What differs between the RAM of two states.

    Attributes
    ----------
    before, after
        The titles of the two.
    sizes
        Bytes of RAM of the two. Where they differ, only what both have is compared.
    populated
        Pages of the two that are not zero.
    changed
        For each page whether it differs.
    differing
        Bytes that differ.
    filled, emptied
        Pages that were zero, or became it.
    read
        Bytes that had to be read of each side for this, at most.
    """

    before: str
    after: str
    sizes: tuple[int, int]
    populated: tuple[int, int]
    changed: Pages = field(repr=False)
    differing: int
    filled: int
    emptied: int
    read: int
    machine_type: str = field(repr=False)
    occupied: Pages = field(repr=False)

    def __bool__(self) -> bool:
        return bool(self.pages) or self.sizes[0] != self.sizes[1]

    @cached_property
    def pages(self) -> int:
        """Number of pages that differ."""
        return int(self.changed.sum())

    @property
    def size(self) -> int:
        """Bytes of the pages that differ."""
        return self.pages * PAGE

    @cached_property
    def ranges(self) -> list[Range]:
        """The pages that differ, consecutive ones together, by physical address."""
        size = max(self.sizes)
        return [
            Range(physical(start * PAGE, size, self.machine_type), end - start)
            for start, end in true_runs(self.changed)
        ]

    @property
    def summary(self) -> str:
        """One sentence."""
        if self.sizes[0] != self.sizes[1]:
            grown = f"The RAM was {units.size(self.sizes[0])} and is {units.size(self.sizes[1])}; in what both have, "
        else:
            grown = ""
        if not self.pages:
            text = "no page of RAM differs."
        else:
            text = (
                f"{self.pages:,} of {len(self.changed):,} pages of RAM differ{'s' if self.pages == 1 else ''} "
                f"({units.size(self.size)}; {self.differing:,} byte{'' if self.differing == 1 else 's'} changed)."
            )
        return grown + text if grown else text[0].upper() + text[1:]

    def __str__(self) -> str:
        return self.summary

    def to_json(self) -> dict[str, Any]:
        """Return plain values; at most :data:`LISTED` of the ranges."""
        return {
            "before": self.before,
            "after": self.after,
            "summary": self.summary,
            "page_size": PAGE,
            "sizes": list(self.sizes),
            "populated_pages": list(self.populated),
            "pages": self.pages,
            "bytes_differing": self.differing,
            "pages_filled": self.filled,
            "pages_emptied": self.emptied,
            "ranges": [{"address": item.address, "pages": item.pages} for item in self.ranges[:LISTED]],
            "ranges_total": len(self.ranges),
        }

    def to_pandas(self) -> pd.DataFrame:
        """Return one row for each range: address, pages, size in bytes."""
        import pandas as pd

        rows = [(item.address, item.pages, item.size) for item in self.ranges]
        return pd.DataFrame(rows, columns=["address", "pages", "size"])

    @cached_property
    def cell_pages(self) -> int:
        """How many pages one square of the heat map stands for."""
        count = 1
        while -(-len(self.changed) // count) > picture.MOST_CELLS:
            count *= 2
        return count

    def heat_map(self) -> bytes:
        """Return a picture of the RAM as a PNG file: address 0 at the top left, row by row.

        Unused memory is transparent, unchanged memory grey; changed memory goes from yellow (few pages) to dark red
        (all pages of the square), on a logarithmic scale.
        """
        per = self.cell_pages
        cells = -(-len(self.changed) // per)
        return picture.grid(
            picture.per_cell(self.changed, per, cells), picture.per_cell(self.occupied, per, cells), per
        )


def compare_ram(before: Files, after: Files) -> RamDiff:
    """Compare the RAM of two live states, page by page.

    It takes some 100 MB/ms where the files are in the page cache, uses some megabytes, and looks only at pages that
    the two do not take from the same file, and that may have changed since the RAM of both was the same.

    Raises
    ------
    WrongState
        One of them is offline.
    SnapshotDamaged
    """
    with Memory(before) as old, Memory(after) as new:
        common = min(old.pages, new.pages)
        first, second = old.source[:common], new.source[:common]
        work = _to_compare(old, new, first, second, _may_differ(before, after, (old.pages, new.pages)))
        changed = np.zeros(common, bool)
        with ThreadPoolExecutor(THREADS) as pool:
            parts = list(pool.map(lambda job: _compare(old, new, job, changed), _shares(work)))
        differing, filled, emptied = (sum(part[n] for part in parts) for n in range(3))
        occupied = (first != ZERO) | (second != ZERO)
        return RamDiff(
            before.title,
            after.title,
            (old.pages * PAGE, new.pages * PAGE),
            (old.populated, new.populated),
            changed,
            differing,
            filled,
            emptied,
            sum(end - start for start, end in work) * PAGE,
            new.machine_type,
            occupied,
        )


def _may_differ(before: Files, after: Files, pages: tuple[int, int]) -> Pages | None:
    """Return the pages outside of which two states are equal, since both have those of one origin; None if unknown."""
    ways = [[state.snapshot, *(origin.snapshot for origin in state.origins)] for state in (before, after)]
    common = next((snapshot for snapshot in ways[0] if snapshot and snapshot in ways[1]), None)
    if common is None or pages[0] != pages[1]:
        return None
    found = np.zeros(pages[0], bool)
    for state, way in zip((before, after), ways, strict=True):
        for origin in state.origins[: way.index(common)]:
            changed = mapped_ram.read_list(origin.changed, origin.snapshot, origin.digest, pages[0])
            if changed is None:
                return None
            found |= changed
    return found


def _to_compare(
    old: Memory,
    new: Memory,
    first: npt.NDArray[np.int8],
    second: npt.NDArray[np.int8],
    may_differ: Pages | None,
) -> list[tuple[int, int]]:
    """Return runs of pages that may differ, and of which both sides have one source each, not the same."""
    same = (first == ZERO) & (second == ZERO)
    if may_differ is not None:
        same |= ~may_differ
    for number, file in enumerate(old.files):
        for other, beside in enumerate(new.files):
            if file.identity == beside.identity:
                same |= (first == number) & (second == other)
    pairs = first.astype(np.int16) * 8 + second
    pairs[same] = -99
    return [(start, end) for start, end in runs(pairs) if pairs[start] != -99]


def _segments(work: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Yield the work cut and put together to SEGMENT pages each: single pages would take ten times as long apiece."""
    segment: list[tuple[int, int]] = []
    room = SEGMENT
    for start, end in work:
        while start < end:
            taken = min(room, end - start)
            segment.append((start, start + taken))
            start, room = start + taken, room - taken
            if not room:
                yield segment
                segment, room = [], SEGMENT
    if segment:
        yield segment


def _shares(work: list[tuple[int, int]]) -> list[list[list[tuple[int, int]]]]:
    """Cut the work into one part of about the same number of segments for each thread."""
    segments = list(_segments(work))
    per = max(1, -(-len(segments) // THREADS))
    return [segments[at : at + per] for at in range(0, len(segments), per)]


def _compare(
    old: Memory, new: Memory, segments: list[list[tuple[int, int]]], changed: Pages
) -> tuple[int, int, int]:
    """Compare segments; return bytes that differ, and pages filled and emptied."""
    one, other = (np.empty((SEGMENT, _WORDS), np.uint64) for _ in range(2))
    at_one, at_other = one.ctypes.data, other.ctypes.data
    sides = [(old, one, one.data.cast("B")), (new, other, other.data.cast("B"))]
    differing = filled = emptied = 0
    for segment in segments:
        count = 0
        for start, end in segment:
            first, count = count, count + end - start
            for memory, target, view in sides:
                number = memory.source[start]
                if number == ZERO:
                    target[first:count] = 0
                else:
                    memory.files[number].read(view[first * PAGE : count * PAGE], start)
        # The C library compares three times as fast as numpy and tells the usual case: all of it is equal.
        if _memcmp(at_one, at_other, count * PAGE) == 0:
            continue
        where = np.flatnonzero((one[:count] != other[:count]).any(axis=1))
        numbers = np.concatenate([np.arange(start, end) for start, end in segment])
        changed[numbers[where]] = True
        left, right = one[where], other[where]
        differing += int(np.count_nonzero(left.view(np.uint8) != right.view(np.uint8)))
        filled += int((~left.any(axis=1)).sum())
        emptied += int((~right.any(axis=1)).sum())
    return differing, filled, emptied
