"""What tells a file's content from all others without reading its holes."""

from __future__ import annotations

import hashlib

import numpy as np

from vmlab.compare.blocks import SECTOR


class Fingerprint:
    """A digest of which sectors of a content are not zero, and of what is in them.

    Two are equal if the contents are, wherever they have holes and in whatever parts they are given. So a file of some
    terabytes that is nearly empty takes no longer than what is in it.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._places, self._sectors = hashlib.sha256(), hashlib.sha256()

    def add(self, offset: int, data: bytes) -> None:
        """Add bytes at a multiple of :data:`SECTOR`; ascending, and each sector once. Zeros may be left out."""
        rows = np.frombuffer(data.ljust(-(-len(data) // SECTOR) * SECTOR, b"\0"), np.uint8).reshape(
            -1, SECTOR
        )
        used = rows.any(axis=1)
        self._places.update((np.flatnonzero(used) + offset // SECTOR).astype("<i8").tobytes())
        self._sectors.update(rows[used].tobytes())

    def __str__(self) -> str:
        return f"{self._size}-{self._places.hexdigest()}-{self._sectors.hexdigest()}"
