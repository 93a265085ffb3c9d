"""A file as a walk finds it."""

from __future__ import annotations

import dataclasses
import stat
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Node:
    """A file, directory or the like; see :class:`~vmlab.compare.filestate.FileState`.

    Attributes
    ----------
    key
        With which the reader finds it again.
    number
        The number by which people know it.
    mode
        Type and permission bits.
    identity
        What the same file keeps as long as it lives, wherever it is moved; None if there is nothing of that kind.
    attributes
        A digest of its extended attributes.
    """

    key: int
    number: int
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    target: str | None = None
    device: tuple[int, int] | None = None
    shown_flags: str = ""
    identity: tuple[Any, ...] | None = None
    attributes: str = ""

    @property
    def format(self) -> int:
        """The type bits of the mode."""
        return stat.S_IFMT(self.mode)

    def to_json(self) -> dict[str, Any]:
        """Return all of it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, words: dict[str, Any]) -> Node:
        """Return what :meth:`to_json` gave."""
        for name in ("device", "identity"):
            if words[name] is not None:
                words[name] = tuple(words[name])
        return cls(**words)
