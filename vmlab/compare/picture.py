"""Pictures of where something changed: RAM as a grid of squares, a disk as a strip.

Unused places are transparent, used ones grey; changed ones go from yellow (a little) to dark red (all of it) on a
logarithmic scale. The colours are seen on white and on black.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]

#: The most squares of a grid, how many in a row, and the pixels of their sides: at least, and at most.
MOST_CELLS = 8192
_ROW = 128
_PIXELS, _MOST_PIXELS = 6, 24
#: Pixels of a strip.
STRIP_WIDTH, STRIP_HEIGHT = 768, 24

#: A little to all, from matplotlib's YlOrRd.
_SCALE = ((254, 217, 118), (254, 178, 76), (253, 141, 60), (252, 78, 42), (227, 26, 28), (177, 0, 38))
_USED = (128, 136, 146, 90)
_UNUSED = (128, 136, 146, 24)


def per_cell(flags: npt.NDArray[np.bool_], per: int, cells: int) -> Counts:
    """Count the true ones in each of ``cells`` groups of ``per``."""
    padded = np.zeros(cells * per, bool)
    padded[: len(flags)] = flags
    counts: Counts = padded.reshape(cells, per).sum(axis=1)
    return counts


def colours(changed: npt.NDArray[Any], used: npt.NDArray[Any], full: float) -> npt.NDArray[np.uint8]:
    """Return one RGBA colour for each place; ``full`` is the count where all of it has changed."""
    out = np.zeros((len(changed), 4), np.uint8)
    out[:] = _UNUSED
    out[used > 0] = _USED
    hot = changed > 0
    # Logarithmic, so that one of many is told from none, and half of them from all.
    level = np.log2(1 + changed[hot]) / np.log2(1 + full)
    table = np.array([(*colour, 255) for colour in _SCALE], np.uint8)
    out[hot] = table[np.minimum((level * len(table)).astype(int), len(table) - 1)]
    return out


def grid(changed: Counts, used: Counts, full: int) -> bytes:
    """Return a PNG file with one square for each place, row by row from the top left."""
    cells = len(changed)
    # Few squares are drawn larger, in a picture about twice as wide as high.
    width = min(_ROW, 1 << max(3, (cells.bit_length() + 2) // 2))
    rows = -(-cells // width)
    side = max(_PIXELS, min(_MOST_PIXELS, _ROW * _PIXELS // width))
    painted = np.zeros((rows * width, 4), np.uint8)
    painted[:cells] = colours(changed, used, full)
    pixels = painted.reshape(rows, width, 4).repeat(side, axis=0).repeat(side, axis=1)
    # A line between the squares makes single ones seen.
    pixels[side - 1 :: side] = 0
    pixels[:, side - 1 :: side] = 0
    return png(pixels)


def strip(changed: npt.NDArray[Any], used: npt.NDArray[Any], full: float) -> bytes:
    """Return a PNG file with one column of pixels for each place, from left to right."""
    row = colours(changed, used, full)
    return png(np.repeat(row[None, :, :], STRIP_HEIGHT, axis=0))


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Return an array of shape (height, width, 3 or 4) as a PNG file."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()
