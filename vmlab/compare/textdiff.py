"""What differs between two texts, as a unified diff, in bounded time."""

from __future__ import annotations

import difflib
import itertools

#: Pairs of equal lines that are looked at for one text diff, which takes some tenths of a second.
_MOST_PAIRS = 1_000_000


class _TooMuchError(Exception):
    """A text diff that takes too long."""


class _Matcher(difflib.SequenceMatcher[str]):
    """Compares lines, and gives up where there are so many equal ones that it would take seconds, or hours."""

    def __init__(self, old: list[str], new: list[str]) -> None:
        super().__init__(None, old, new)
        places = self.b2j  # type: ignore[attr-defined]
        self._until = [0, *itertools.accumulate(len(places.get(line, ())) + 1 for line in old)]
        self._left = _MOST_PAIRS

    def find_longest_match(
        self, alo: int = 0, ahi: int | None = None, blo: int = 0, bhi: int | None = None
    ) -> difflib.Match:
        """Return the longest block that both have."""
        self._left -= self._until[-1 if ahi is None else ahi] - self._until[alo]
        if self._left < 0:
            raise _TooMuchError
        return super().find_longest_match(alo, ahi, blo, bhi)


def unified(old: list[str], new: list[str], first: str, second: str, context: int = 3) -> str | None:
    """Return what differs between lines (with their ends) as a unified diff; None if that would take too long."""
    start = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(old, new, strict=False)))
    # What both begin and end with needs no matching, but for the lines that are shown around.
    start = max(0, start - context)
    rest = zip(reversed(old[start:]), reversed(new[start:]), strict=False)
    end = max(0, sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], rest)) - context)
    old, new = old[start : len(old) - end], new[start : len(new) - end]
    try:
        groups = list(_Matcher(old, new).get_grouped_opcodes(context))
    except _TooMuchError:
        return None
    found = [f"--- {first}\n", f"+++ {second}\n"] if groups else []
    for group in groups:
        ranges = [
            _range(start + low, start + high)
            for low, high in ((group[0][1], group[-1][2]), (group[0][3], group[-1][4]))
        ]
        found.append(f"@@ -{ranges[0]} +{ranges[1]} @@\n")
        for tag, i1, i2, j1, j2 in group:
            if tag == "equal":
                found += [f" {line}" for line in old[i1:i2]]
                continue
            found += [f"-{line}" for line in old[i1:i2]]
            found += [f"+{line}" for line in new[j1:j2]]
    return "".join(x if x.endswith("\n") else f"{x}\n\\ No newline at end of file\n" for x in found)


def _range(start: int, stop: int) -> str:
    """Return lines as the head of a hunk names them."""
    length = stop - start
    if length == 1:
        return f"{start + 1}"
    return f"{start + bool(length)},{length}"
