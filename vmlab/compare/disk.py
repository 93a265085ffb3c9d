"""What differs between the disks of two states: which bytes, and where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vmlab.compare import blocks, picture
from vmlab.compare.state import Files
from vmlab.render import units

if TYPE_CHECKING:
    import pandas as pd

#: The unit that is compared, in bytes: that of most file systems.
BLOCK = 4096
#: Extents that a result lists in JSON; it says how many there are.
LISTED = 1000

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Extent:
    """Bytes of a disk that differ, in whole blocks: where they start, and how many."""

    offset: int
    size: int


@dataclass(frozen=True)
class OneDisk:
    """What differs on one disk.

    Attributes
    ----------
    name
        ``vda``.
    sizes
        Bytes that the guest sees, before and after; None where there is no such disk.
    blocks
        The numbers of the blocks (of :data:`BLOCK` bytes) that differ, ascending.
    written
        Bytes of the places that the two do not take from one file: what was written to, in whole clusters, whether it
        changed or not.
    used
        ``(start, end)`` of the places that hold data in one of the two.
    """

    name: str
    sizes: tuple[int | None, int | None]
    blocks: Numbers = field(repr=False)
    written: int
    used: tuple[tuple[int, int], ...] = field(repr=False)

    def __bool__(self) -> bool:
        return bool(len(self.blocks)) or self.sizes[0] != self.sizes[1]

    @property
    def size(self) -> int:
        """Bytes that differ, in whole blocks."""
        return len(self.blocks) * BLOCK

    @cached_property
    def extents(self) -> list[Extent]:
        """The blocks that differ, consecutive ones together."""
        if not len(self.blocks):
            return []
        edges = np.flatnonzero(np.diff(self.blocks) != 1) + 1
        starts = self.blocks[np.concatenate(([0], edges))].tolist()
        ends = self.blocks[np.concatenate((edges - 1, [len(self.blocks) - 1]))].tolist()
        return [Extent(a * BLOCK, (b + 1 - a) * BLOCK) for a, b in zip(starts, ends, strict=True)]

    @property
    def summary(self) -> str:
        """One sentence."""
        if None in self.sizes:
            return f"{self.name} is there only {'after' if self.sizes[0] is None else 'before'}."
        if not len(self.blocks):
            text = f"{self.name} does not differ"
        else:
            count = len(self.extents)
            text = f"{self.name} differs in {units.size(self.size)}, at {count:,} place{'' if count == 1 else 's'}"
        if self.written > self.size:
            text += f" ({units.size(self.written)} were written to)"
        if self.sizes[0] != self.sizes[1]:
            text += f"; its size was {units.size(self.sizes[0])} and is {units.size(self.sizes[1])}"
        return text + "."

    def map(self) -> bytes:
        """Return a picture of the disk as a PNG file: its start on the left, its end on the right.

        Unused places are transparent, used ones grey, changed ones yellow (a little) to dark red (all).
        """
        total = max(self.sizes[0] or 0, self.sizes[1] or 0, 1)
        width = picture.STRIP_WIDTH
        per = total / width
        changed = np.bincount(
            (self.blocks * BLOCK / per).astype(np.int64).clip(0, width - 1), minlength=width
        )
        used = np.zeros(width, bool)
        for start, end in self.used:
            used[int(start / per) : max(int(start / per) + 1, int(end / per))] = True
        return picture.strip(changed, used, max(1.0, per / BLOCK))

    def to_json(self) -> dict[str, Any]:
        """Return plain values; at most :data:`LISTED` of the extents."""
        return {
            "name": self.name,
            "summary": self.summary,
            "sizes": list(self.sizes),
            "bytes": self.size,
            "written": self.written,
            "extents": [vars(extent) for extent in self.extents[:LISTED]],
            "extents_total": len(self.extents),
        }


@dataclass(frozen=True)
class DiskDiff:
    """What differs between the disks of two states.

    Attributes
    ----------
    before, after
        The titles of the two.
    disks
        One for each disk, in the guest's order.
    """

    before: str
    after: str
    disks: tuple[OneDisk, ...]

    def __bool__(self) -> bool:
        return any(self.disks)

    def __iter__(self) -> Iterator[OneDisk]:
        return iter(self.disks)

    def __getitem__(self, name: str) -> OneDisk:
        """Return the disk of that name."""
        for disk in self.disks:
            if disk.name == name:
                return disk
        raise KeyError(name)

    @property
    def size(self) -> int:
        """Bytes that differ on all disks, in whole blocks."""
        return sum(disk.size for disk in self.disks)

    @property
    def summary(self) -> str:
        """One sentence for each disk."""
        return " ".join(disk.summary for disk in self.disks) or "There are no disks."

    def __str__(self) -> str:
        return self.summary

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "before": self.before,
            "after": self.after,
            "summary": self.summary,
            "bytes": self.size,
            "disks": [disk.to_json() for disk in self.disks],
        }

    def to_pandas(self) -> pd.DataFrame:
        """Return one row for each extent: disk, offset, size in bytes."""
        import pandas as pd

        rows = [(disk.name, extent.offset, extent.size) for disk in self.disks for extent in disk.extents]
        return pd.DataFrame(rows, columns=["disk", "offset", "size"])


def compare_disks(before: Files, after: Files) -> DiskDiff:
    """Compare the disks of two states, the first with the first and so on.

    Only what the two do not take from the same files is read: the cost follows what was written, not the size.

    Raises
    ------
    DiskUnreadable
        A file of a disk is gone, damaged, or of a kind that cannot be read.
    """
    found = []
    for number in range(max(len(before.disks), len(after.disks))):
        state = after if number < len(after.disks) else before
        first, second = (s.disks[number] if number < len(s.disks) else None for s in (before, after))
        found.append(_compare(state.disk_name(number), first, second))
    return DiskDiff(before.title, after.title, tuple(found))


def _compare(name: str, before: Path | None, after: Path | None) -> OneDisk:
    old = blocks.Disk(before) if before is not None else None
    new = blocks.Disk(after) if after is not None else None
    sizes = (old.size if old else None, new.size if new else None)
    changed, written = np.zeros(0, np.int64), 0
    if old is not None and new is not None:
        changed = blocks.differing(old, new, BLOCK)
        written = sum(end - start for start, end in blocks.candidates(old, new))
    used = {run for disk in (old, new) if disk is not None for run in _used(disk)}
    return OneDisk(name, sizes, changed, written, tuple(sorted(used)))


def _used(disk: blocks.Disk) -> Iterator[tuple[int, int]]:
    """Yield ``(start, end)`` of the places that hold data."""
    for index in range(-(-disk.size // blocks.REGION)):
        held = disk.region(index).kind != blocks.ZERO
        edges = np.flatnonzero(np.diff(held.view(np.int8), prepend=0, append=0))
        for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            base = index * blocks.REGION
            yield base + start * disk.grain, min(base + end * disk.grain, disk.size)
