"""In which states' RAM a text, or bytes, stand, and where."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmlab.compare.memory import LISTED, ZERO, Memory, physical, true_runs
from vmlab.compare.state import Files
from vmlab.engine.mapped_ram import PAGE
from vmlab.errors import UsageError
from vmlab.render import units

if TYPE_CHECKING:
    import pandas as pd

#: Bytes that are searched at once, and the longest that can be searched for.
SEARCH_CHUNK = 4 << 20
LONGEST = 1 << 20


@dataclass(frozen=True)
class Match:
    """One place where something was found.

    Attributes
    ----------
    address
        Physical.
    encoding
        ``bytes``, ``utf-8`` or ``utf-16``.
    around
        The text around it, with dots for what cannot be printed.
    """

    address: int
    encoding: str
    around: str

    def to_json(self) -> dict[str, Any]:
        """Return all of it by name."""
        return vars(self).copy()


@dataclass(frozen=True)
class RamSearch:
    """Where something stands in the RAM of a state.

    Attributes
    ----------
    title
        Of the state.
    sought
        What was searched for, as text.
    matches
        By address; at most as many as were asked for.
    complete
        Whether these are all.
    """

    title: str
    sought: str
    matches: tuple[Match, ...]
    complete: bool

    def __bool__(self) -> bool:
        return bool(self.matches)

    def __len__(self) -> int:
        return len(self.matches)

    def __iter__(self) -> Iterator[Match]:
        return iter(self.matches)

    @property
    def addresses(self) -> list[int]:
        """The physical addresses."""
        return [match.address for match in self.matches]

    @property
    def summary(self) -> str:
        """One sentence."""
        if not self.matches:
            return f"The RAM of {self.title} does not contain '{self.sought}'."
        count = len(self.matches)
        times = "once" if count == 1 else f"{'' if self.complete else 'more than '}{count:,} times"
        return f"The RAM of {self.title} contains '{self.sought}' {times}."

    def __str__(self) -> str:
        rows = [
            f"    {match.address:#012x}  {match.encoding:6}  {match.around}" for match in self.matches[:20]
        ]
        return "\n".join([self.summary, *rows])

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "title": self.title,
            "sought": self.sought,
            "summary": self.summary,
            "complete": self.complete,
            "matches": [match.to_json() for match in self.matches],
        }

    def to_pandas(self) -> pd.DataFrame:
        """Return one row for each place: address, encoding, text around it."""
        import pandas as pd

        rows = [(match.address, match.encoding, match.around) for match in self.matches]
        return pd.DataFrame(rows, columns=["address", "encoding", "around"])


def find_in_ram(state: Files, what: bytes | str, *, limit: int = LISTED) -> RamSearch:
    """Search the RAM of a live state for bytes, or for text in UTF-8 and UTF-16 (little-endian).

    What crosses the border of two pages is found if they are next to each other in physical memory, as QEMU's own
    ``pmemsave`` would show it; programs see their pages in another order.

    Raises
    ------
    UsageError
        Nothing, nothing but zeros, or more than 1 MiB was asked for.
    WrongState
        The state is offline.
    SnapshotDamaged
    """
    needles = _needles(what)
    longest = max(len(needle) for needle in needles)
    found: list[Match] = []
    complete = True
    with Memory(state) as memory:
        size = memory.pages * PAGE
        for offset, data, end in _stretches(memory, longest):
            for needle, encoding in needles.items():
                at = data.find(needle, 0, end)
                while at >= 0 and len(found) <= limit:
                    # Zeros were put before and behind; what they bring beyond the ends of the RAM is none of it.
                    if 0 <= offset + at <= size - len(needle):
                        around = bytes(data[max(0, at - 24) : min(end, at + len(needle) + 40)])
                        address = physical(offset + at, size, memory.machine_type)
                        found.append(Match(address, encoding, printable(around, encoding)))
                    at = data.find(needle, at + 1, end)
            if len(found) > limit:
                complete = False
                break
    # Stretches overlap by less than a match, but one that lies wholly in the zeros between two is seen from both.
    unique = list({(match.address, match.encoding): match for match in found}.values())
    sought = what if isinstance(what, str) else printable(what, "bytes")
    return RamSearch(
        state.title, sought, tuple(sorted(unique[:limit], key=lambda match: match.address)), complete
    )


def search_ram(states: Sequence[Files], what: bytes | str, *, limit: int = LISTED) -> list[RamSearch]:
    """Search several live states, e.g. to see which snapshots contain a text; offline ones are left out."""
    return [find_in_ram(state, what, limit=limit) for state in states if state.live]


def _needles(what: bytes | str) -> dict[bytes, str]:
    if isinstance(what, str):
        needles = {what.encode("utf-8", "surrogateescape"): "utf-8"}
        with contextlib.suppress(UnicodeEncodeError):
            needles[what.encode("utf-16-le")] = "utf-16"
    else:
        needles = {bytes(what): "bytes"}
    if not all(needle.strip(b"\0") for needle in needles):
        raise UsageError(
            "There is nothing to search for.", hint="give some text, or bytes that are not all zero"
        )
    if max(len(needle) for needle in needles) > LONGEST:
        raise UsageError(f"What is searched for in RAM can have at most {units.size(LONGEST)}.")
    return needles


def _stretches(memory: Memory, longest: int) -> Iterator[tuple[int, bytearray, int]]:
    """Yield ``(offset, data, end)`` of all that is populated.

    ``data[:end]`` is the RAM from ``offset`` on, in one buffer that is used again. Pieces overlap by one byte less than
    the longest match, and have as many zeros around them where zero pages are.
    """
    more = longest - 1
    gap = -(-more // PAGE)
    step = SEARCH_CHUNK // PAGE
    buffer = bytearray(more + SEARCH_CHUNK + more)
    view = memoryview(buffer)
    runs = true_runs(memory.source != ZERO)
    at = 0
    while at < len(runs):
        start, end = runs[at]
        # Runs that a match could span are read as one, with the zeros between them.
        while at + 1 < len(runs) and runs[at + 1][0] - end <= gap:
            at += 1
            end = runs[at][1]
        at += 1
        buffer[:more] = bytes(more)
        for first in range(start, end, step):
            count = min(step, end - first)
            memory.read(first, count, view[more:])
            filled = more + count * PAGE
            last = filled + more if first + count == end else filled
            buffer[filled:last] = bytes(last - filled)
            yield first * PAGE - more, buffer, last
            buffer[:more] = buffer[filled - more : filled]


def printable(data: bytes, encoding: str) -> str:
    """Return bytes as text, with dots for what cannot be printed; every second zero of UTF-16 is left out."""
    if encoding == "utf-16":
        data = data.replace(b"\0", b"")
    return "".join(chr(byte) if 32 <= byte < 127 else "\N{MIDDLE DOT}" for byte in data)
