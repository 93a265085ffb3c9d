"""Which printable strings came to RAM and which went, between two states."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vmlab.compare.memory import LISTED, Memory, true_runs
from vmlab.compare.ram import RamDiff
from vmlab.compare.state import Files
from vmlab.engine.mapped_ram import PAGE

if TYPE_CHECKING:
    import pandas as pd

#: What the comparison of strings looks at unless it is told otherwise: changed pages (it takes about a second for
#: these), and different strings.
STRING_PAGES = 1 << 13
MOST_STRINGS = 200_000
#: The longest string that is kept whole.
LONGEST_STRING = 400


@dataclass(frozen=True)
class StringsDiff:
    """Printable strings in the changed pages that are there more, or fewer, times than before.

    Strings that only moved from one page to another are in neither list.

    Attributes
    ----------
    came, went
        ``(text, how many more or fewer)``, the longest first.
    pages
        Changed pages that were looked at.
    complete
        Whether these were all, and all strings were kept.
    """

    before: str
    after: str
    came: tuple[tuple[str, int], ...]
    went: tuple[tuple[str, int], ...]
    pages: int
    complete: bool

    def __bool__(self) -> bool:
        return bool(self.came or self.went)

    @property
    def summary(self) -> str:
        """One sentence."""
        more = "" if self.complete else " (not all changed pages were looked at)"
        return f"{len(self.came):,} strings came to RAM, {len(self.went):,} went{more}."

    def __str__(self) -> str:
        rows = [f"    + {text}" for text, _ in self.came[:20]] + [
            f"    - {text}" for text, _ in self.went[:20]
        ]
        return "\n".join([self.summary, *rows])

    def to_json(self) -> dict[str, Any]:
        """Return plain values; at most :data:`LISTED` of each list."""
        return {
            "before": self.before,
            "after": self.after,
            "summary": self.summary,
            "came": [{"text": text, "count": count} for text, count in self.came[:LISTED]],
            "came_total": len(self.came),
            "went": [{"text": text, "count": count} for text, count in self.went[:LISTED]],
            "went_total": len(self.went),
            "pages": self.pages,
            "complete": self.complete,
        }

    def to_pandas(self) -> pd.DataFrame:
        """Return one row for each string: text, and by how many there are more (or, below 0, fewer)."""
        import pandas as pd

        rows = [*self.came, *((text, -count) for text, count in self.went)]
        return pd.DataFrame(rows, columns=["text", "more"])


def compare_strings(
    before: Files, after: Files, diff: RamDiff, *, shortest: int = 6, pages: int | None = None
) -> StringsDiff:
    """Compare the printable strings (ASCII, and as UTF-16) in the pages that ``diff`` found to be changed.

    Parameters
    ----------
    shortest
        Characters that a string has at least.
    pages
        The most pages that are looked at; by default :data:`STRING_PAGES`.

    Raises
    ------
    WrongState, SnapshotDamaged
    """
    left = STRING_PAGES if pages is None else pages
    text = re.compile(rb"[\x20-\x7e\t]{%d,%d}" % (shortest, LONGEST_STRING))
    counts: Counter[bytes] = Counter()
    done = 0
    with Memory(before) as old, Memory(after) as new:
        for start, end in true_runs(diff.changed):
            # Pages next to each other are read as one, for the strings that cross from one into the next.
            for first in range(start, end, 1024):
                count = min(1024, end - first, left - done)
                for memory, sign in ((old, -1), (new, 1)):
                    buffer = bytearray(count * PAGE)
                    memory.read(first, count, memoryview(buffer))
                    for found in (*text.findall(buffer), *_wide(buffer, shortest)):
                        counts[bytes(found)] += sign
                done += count
                if done >= left or len(counts) > MOST_STRINGS:
                    break
            if done >= left or len(counts) > MOST_STRINGS:
                break
    order = sorted(counts, key=lambda key: (-len(key), key))
    came = tuple((key.decode("ascii"), counts[key]) for key in order if counts[key] > 0)
    went = tuple((key.decode("ascii"), -counts[key]) for key in order if counts[key] < 0)
    return StringsDiff(before.title, after.title, came, went, done, done == diff.pages)


def _wide(data: bytearray, shortest: int) -> Iterator[bytearray]:
    """Yield the strings of printable characters in UTF-16 (little-endian); four times as fast as by an expression."""
    x = np.frombuffer(data, np.uint8)
    pair = (x[:-1] >= 0x20) & (x[:-1] < 0x7F) & (x[1:] == 0)
    for phase in (0, 1):
        for start, end in true_runs(np.ascontiguousarray(pair[phase::2])):
            if end - start >= shortest:
                yield data[phase + 2 * start : phase + 2 * min(end, start + LONGEST_STRING) : 2]
