from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from help.markup import parse
from PIL import Image

from vmlab.errors import HypervisorError, UsageError, VMLabError, WrongState
from vmlab.guest.screen import Screenshot, screenshot


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
    data, metadata = shot._repr_png_()
    assert Screenshot.open(data) == shot
    assert metadata == {"alt": "screen of web"}  # nbconvert reads it; JupyterLab takes the HTML
    assert parse(shot._repr_html_()).tags[-3:] == ["figure", "img", "figcaption"]
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


class Guest:
    """A guest whose QEMU fails to take a picture, in one of the ways seen while machines were reverted."""

    name = "web"

    def __init__(self, pid: int | None, fails: Callable[[Guest], object], state: str = "running") -> None:
        self.pid, self._fails, self._state = pid, fails, state

    def state(self) -> str:
        return self._state

    def qmp(self, _command: str, **_: str) -> None:
        self._fails(self)


def fails(error: VMLabError | None, pid: int | None) -> Callable[[Guest], object]:
    def fail(guest: Guest) -> None:
        guest.pid = pid
        if error is not None:
            raise error  # else QEMU was ended before it wrote the file

    return fail


REFUSED = HypervisorError("libvirt could not run screendump on web.")
PAUSED = WrongState("web is paused.", hint="let it go on with `%vm resume web`")


@pytest.mark.parametrize("error", [REFUSED, PAUSED, None])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (1, None), (None, 2), (None, None)])
def test_a_screen_in_the_middle_of_a_revert(
    tmp_path: Path, error: VMLabError | None, before: int | None, after: int | None
) -> None:
    with pytest.raises(WrongState, match="web is just being stopped, reverted or started") as caught:
        screenshot(Guest(before, fails(error, after)), tmp_path)  # type: ignore[arg-type]
    assert caught.value.hint == "try again"


def test_a_qemu_that_starts_has_no_screen_yet(tmp_path: Path) -> None:
    with pytest.raises(WrongState, match="just being"):
        screenshot(Guest(1, fails(None, 1), "off"), tmp_path)  # type: ignore[arg-type]
    with pytest.raises(WrongState, match="web is off"):
        screenshot(Guest(None, fails(None, None), "off"), tmp_path)  # type: ignore[arg-type]


def test_what_a_qemu_that_is_still_there_says_is_told(tmp_path: Path) -> None:
    with pytest.raises(HypervisorError, match="could not take a picture") as caught:
        screenshot(Guest(1, fails(REFUSED, 1)), tmp_path)  # type: ignore[arg-type]
    assert caught.value.evidence["qemu_says"] == REFUSED.message
    with pytest.raises(HypervisorError, match="cannot be read"):
        screenshot(Guest(1, fails(None, 1)), tmp_path)  # type: ignore[arg-type]
    with pytest.raises(WrongState, match="has no screen"):
        screenshot(Guest(1, fails(HypervisorError("no QemuConsole"), 1)), tmp_path)  # type: ignore[arg-type]
