"""What differs between the screens of two states."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vmlab.compare import picture
from vmlab.compare.state import Files
from vmlab.errors import SnapshotDamaged, WrongState
from vmlab.render.shown import Shown

if TYPE_CHECKING:
    import pandas as pd

#: Pixels of the sides of the tiles by which changed pixels are put into boxes: those nearer than that belong together.
TILE = 16
#: The most pixels of a screen; larger files are no screens of guests.
_MOST_PIXELS = 64 << 20
#: Boxes that are listed; the rest is one more box around all of them.
MOST_BOXES = 40

_MARK = np.array((214, 40, 60), np.uint8)

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Box:
    """A rectangle with changed pixels: its left and top edge, width, height, and how many pixels changed in it."""

    x: int
    y: int
    width: int
    height: int
    pixels: int

    def to_json(self) -> dict[str, int]:
        """Return all of it by name."""
        return vars(self).copy()


@dataclass(frozen=True)
class ScreenDiff(Shown):
    """What differs between two screens.

    Attributes
    ----------
    before, after
        The titles of the two.
    before_png, after_png
        The screens as PNG files.
    sizes
        ``(width, height)`` of the two.
    boxes
        The changed areas, largest first. Where one screen is larger, what only it has counts as changed.
    pixels
        Number of pixels that differ.
    """

    before: str
    after: str
    before_png: bytes = field(repr=False)
    after_png: bytes = field(repr=False)
    sizes: tuple[tuple[int, int], tuple[int, int]]
    boxes: tuple[Box, ...]
    pixels: int
    mask: npt.NDArray[np.bool_] = field(repr=False)

    def __bool__(self) -> bool:
        return bool(self.pixels)

    @property
    def share(self) -> float:
        """Which part of the pixels differs, from 0 to 1."""
        return self.pixels / max(1, self.mask.size)

    @property
    def summary(self) -> str:
        """One sentence."""
        if self.sizes[0] != self.sizes[1]:
            (w, h), (x, y) = self.sizes
            return f"The screen was {w} x {h} and is {x} x {y} pixels; {self._percent} of it differs."
        if not self.pixels:
            return "The screen does not differ."
        count = len(self.boxes)
        return f"{self._percent} of the screen differs, in {count} area{'' if count == 1 else 's'}."

    @property
    def _percent(self) -> str:
        value = self.share * 100
        return "less than 0.1 %" if 0 < value < 0.1 else f"{value:.1f} %"

    def __str__(self) -> str:
        return self.summary

    @cached_property
    def diff_png(self) -> bytes:
        """The screen after, faded, with what changed in full colour in red frames, as a PNG file."""
        height, width = self.mask.shape
        shown = _padded(_pixels(self.after_png), width, height)
        faded = shown.mean(axis=2, dtype=np.float32) * 0.35 + 83
        out = np.where(self.mask[:, :, None], shown, faded.astype(np.uint8)[:, :, None])
        for box in self.boxes:
            left, top = max(0, box.x - 3), max(0, box.y - 3)
            right, bottom = min(width, box.x + box.width + 3), min(height, box.y + box.height + 3)
            for edge in (
                np.s_[top : top + 2, left:right],
                np.s_[bottom - 2 : bottom, left:right],
                np.s_[top:bottom, left : left + 2],
                np.s_[top:bottom, right - 2 : right],
            ):
                out[edge] = _MARK
        return picture.png(out)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, without the pictures."""
        return {
            "before": self.before,
            "after": self.after,
            "summary": self.summary,
            "sizes": [list(size) for size in self.sizes],
            "pixels": self.pixels,
            "share": round(self.share, 6),
            "boxes": [box.to_json() for box in self.boxes],
        }

    def to_pandas(self) -> pd.DataFrame:
        """Return one row for each changed area: x, y, width, height, pixels."""
        import pandas as pd

        columns = ["x", "y", "width", "height", "pixels"]
        return pd.DataFrame([[vars(box)[name] for name in columns] for box in self.boxes], columns=columns)


def compare_screens(before: Files, after: Files) -> ScreenDiff:
    """Compare the screens of two states, pixel by pixel.

    Raises
    ------
    WrongState
        One of them has no screen: it is offline, or the guest has no display.
    SnapshotDamaged
        A picture is missing or unreadable.
    """
    data, screens = [], []
    for state in (before, after):
        path = _path(state)
        try:
            data.append(path.read_bytes())
            screens.append(_pixels(data[-1]))
        except (OSError, ValueError, SyntaxError) as error:
            # Pillow's errors for damaged pictures are OSError, ValueError and SyntaxError.
            raise SnapshotDamaged(
                f"The screen of {state.title} cannot be read.",
                hint="go back to another snapshot (`%vm tree` shows them)",
                reason=error,
            ) from error
    old, new = screens
    height, width = (max(old.shape[n], new.shape[n]) for n in (0, 1))
    mask = np.ones((height, width), bool)
    both = np.s_[: min(old.shape[0], new.shape[0]), : min(old.shape[1], new.shape[1])]
    other = old[both] != new[both]
    # Much faster than any(axis=2) over three values.
    mask[both] = other[..., 0] | other[..., 1] | other[..., 2]
    return ScreenDiff(
        before.title,
        after.title,
        data[0],
        data[1],
        ((old.shape[1], old.shape[0]), (new.shape[1], new.shape[0])),
        tuple(_boxes(mask)),
        int(mask.sum()),
        mask,
    )


def _path(state: Files) -> Path:
    if state.screen is None:
        raise WrongState(
            f"{state.title} has no screen to compare.",
            hint="a live snapshot of a machine with a display has one",
        )
    return state.screen


def _pixels(png: bytes) -> Pixels:
    """Return a PNG file as an array of shape (height, width, 3), RGB."""
    from PIL import Image

    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        if image.width * image.height > _MOST_PIXELS:
            raise ValueError("the picture is too large")
        return np.asarray(image.convert("RGB"))


def _padded(pixels: Pixels, width: int, height: int) -> Pixels:
    return np.pad(pixels, ((0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0)))


def _boxes(mask: npt.NDArray[np.bool_]) -> Iterator[Box]:
    """Yield boxes around the groups of changed tiles that touch each other, also by a corner."""
    height, width = mask.shape
    rows, columns = -(-height // TILE), -(-width // TILE)
    whole = np.pad(mask, ((0, rows * TILE - height), (0, columns * TILE - width)))
    tiles = np.asarray(whole.reshape(rows, TILE, columns, TILE).any(axis=(1, 3)))
    left = {(int(r), int(c)) for r, c in np.argwhere(tiles)}
    found = []
    while left:
        group, edge = [], [left.pop()]
        while edge:
            row, column = edge.pop()
            group.append((row, column))
            for beside in ((row + r, column + c) for r in (-1, 0, 1) for c in (-1, 0, 1)):
                if beside in left:
                    left.remove(beside)
                    edge.append(beside)
        found.append(_box(mask, group))
    found.sort(key=lambda box: (-box.pixels, box.y, box.x))
    yield from found[: MOST_BOXES - 1] if len(found) > MOST_BOXES else found
    if len(found) > MOST_BOXES:
        rest = found[MOST_BOXES - 1 :]
        x, y = min(box.x for box in rest), min(box.y for box in rest)
        right, bottom = max(box.x + box.width for box in rest), max(box.y + box.height for box in rest)
        yield Box(x, y, right - x, bottom - y, sum(box.pixels for box in rest))


def _box(mask: npt.NDArray[np.bool_], group: list[tuple[int, int]]) -> Box:
    """Return the smallest rectangle around the changed pixels of a group of tiles."""
    top, bottom = (min(r for r, _ in group) * TILE, (max(r for r, _ in group) + 1) * TILE)
    start, end = (min(c for _, c in group) * TILE, (max(c for _, c in group) + 1) * TILE)
    inside = np.zeros((bottom - top, end - start), bool)
    part = mask[top:bottom, start:end]
    for row, column in group:
        tile = np.s_[
            row * TILE - top : (row + 1) * TILE - top, column * TILE - start : (column + 1) * TILE - start
        ]
        inside[tile][: part[tile].shape[0], : part[tile].shape[1]] = part[tile]
    ys, xs = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    return Box(
        start + int(xs[0]),
        top + int(ys[0]),
        int(xs[-1] - xs[0]) + 1,
        int(ys[-1] - ys[0]) + 1,
        int(inside.sum()),
    )
