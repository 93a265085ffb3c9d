"""Which names that are gone and which that are new belong to one file: renames, hard links, files moved onto others."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Pair:
    """A name that only one state has, or two names of one file.

    Attributes
    ----------
    old, new
        Where it was and where it is; None where it has no such name.
    renamed
        Whether that is its own doing; False if only a directory above it was renamed.
    link_to
        For one name alone: another that the same file had before and still has.
    moved_to
        For a name that is gone: one that the file did not have before, where something else was, or that another of
        its names became.
    """

    old: bytes | None
    new: bytes | None
    renamed: bool = False
    link_to: bytes | None = None
    moved_to: bytes | None = None


def pairs(before: Mapping[bytes, Hashable], after: Mapping[bytes, Hashable]) -> Iterator[Pair]:
    """Yield a pair for each name that only one of two states has.

    Parameters
    ----------
    before, after
        For each path, what the file keeps as long as it lives, wherever it is moved; None where nothing is known.
    """
    gone: dict[Hashable, _Names] = {}
    stayed: dict[Hashable, bytes] = {}
    for path in sorted(before, reverse=True):
        identity = before[path]
        if identity is None:
            continue
        if after.get(path) == identity:
            stayed[identity] = path
        else:
            gone.setdefault(identity, _Names()).add(path)
    #: New path -> old path, of what was renamed itself.
    came: dict[bytes, bytes] = {}
    moved: set[bytes] = set()
    for path in sorted(after.keys() - before.keys()):
        identity = after[path]
        left = gone.get(identity) if identity is not None else None
        source, renamed = left.take(path, came) if left is not None else (None, False)
        if source is None:
            yield Pair(None, path, link_to=stayed.get(identity))
            continue
        moved.add(source)
        if renamed:
            came[path] = source
        yield Pair(source, path, renamed)
    became: dict[Hashable, bytes] = {}
    for path in sorted(after, reverse=True):
        if after[path] is not None and before.get(path) != after[path]:
            became[after[path]] = path
    for path in sorted(before.keys() - after.keys() - moved):
        link = stayed.get(before[path])
        yield Pair(path, None, link_to=link, moved_to=None if link is not None else became.get(before[path]))


class _Names:
    """The names of one file that it does not have any more."""

    def __init__(self) -> None:
        self._left: set[bytes] = set()
        #: All of them, and those with one last part: the first of the alphabet at the end.
        self._all: list[bytes] = []
        self._ending: dict[bytes, list[bytes]] = {}

    def add(self, path: bytes) -> None:
        """Add one; they come in reverse order."""
        self._left.add(path)
        self._all.append(path)
        self._ending.setdefault(_base(path), []).append(path)

    def take(self, path: bytes, came: Mapping[bytes, bytes]) -> tuple[bytes | None, bool]:
        """Take that which became ``path``: one that moved along, or else, renamed, the one most like it."""
        above, tail = path.rpartition(b"/")[0], b"/" + _base(path)
        while above:
            if above in came and (source := came[above] + tail) in self._left:
                self._left.remove(source)
                return source, False
            above, tail = above.rpartition(b"/")[0], b"/" + _base(above) + tail
        for names in (self._ending.get(_base(path), []), self._all):
            while names:
                if (source := names.pop()) in self._left:
                    self._left.remove(source)
                    return source, True
        return None, False


def _base(path: bytes) -> bytes:
    return path.rpartition(b"/")[2]
