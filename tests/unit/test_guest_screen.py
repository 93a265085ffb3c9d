from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vmlab.errors import UsageError
from vmlab.guest.screen import Screenshot


def picture(size: tuple[int, int] = (40, 30), colour: tuple[int, int, int] = (0, 0, 0)) -> Image.Image:
    return Image.new("RGB", size, colour)


def test_equal_pictures() -> None:
    one, two = Screenshot(picture()), Screenshot(picture())
    difference = one.diff(two)
    assert not difference
    assert difference.box is None
    assert str(difference) == "no pixel differs"
    assert one == two
    assert hash(one) == hash(two)
    assert one.sha256 == two.sha256


def test_difference_counts_pixels_and_finds_the_box() -> None:
    changed = picture()
    changed.putpixel((3, 5), (1, 0, 0))
    changed.putpixel((10, 20), (0, 0, 200))
    one, two = Screenshot(picture()), Screenshot(changed)
    difference = one.diff(two)
    assert (difference.pixels, difference.total, difference.box) == (2, 1200, (3, 5, 11, 21))
    assert one != two
    assert one.diff(two, tolerance=1).pixels == 1
    assert one.diff(two, tolerance=1).box == (10, 20, 11, 21)
    assert two.diff(one, tolerance=200).box is None


def test_other_size_differs_everywhere() -> None:
    difference = Screenshot(picture((40, 30))).diff(Screenshot(picture((80, 20))))
    assert difference.pixels == 2400
    assert difference.fraction == 1


def test_array() -> None:
    shot = Screenshot(picture((40, 30), (1, 2, 3)))
    assert shot.array.shape == (30, 40, 3)
    assert shot.array.dtype == np.uint8
    assert shot.array[0, 0].tolist() == [1, 2, 3]
    assert not shot.array.flags.writeable
    assert shot.blank


def test_png_round_trip_and_formats(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(30 * 40 * 3, dtype=np.uint8).reshape(30, 40, 3))
    shot = Screenshot(image, "web")
    assert Screenshot.open(shot._repr_png_()) == shot
    assert Screenshot.open(shot.save(tmp_path / "a.png")) == shot
    assert Screenshot.open(shot.save(tmp_path / "a.ppm")) == shot
    assert shot.size == (40, 30)
    assert shot.crop((0, 0, 4, 3)).size == (4, 3)
    assert shot.thumbnail(20).width == 20
    assert "web 40 x 30" in repr(shot)
    assert not shot.blank


def test_other_modes_become_rgb() -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (4, 4), (9, 8, 7, 255)).save(buffer, "PNG")
    shot = Screenshot.open(buffer.getvalue())
    assert shot.array[0, 0].tolist() == [9, 8, 7]
    assert Screenshot.open(shot.png) == shot


def test_bad_pictures_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no picture"):
        Screenshot.open(b"nonsense")
    with pytest.raises(UsageError, match="No such file"):
        Screenshot.open(tmp_path / "missing.png")
    with pytest.raises(UsageError, match="cannot be written"):
        Screenshot(picture()).save(tmp_path / "a.nonsense")
