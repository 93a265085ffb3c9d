"""Screens compared: areas, sizes, pictures, and the view of CSS alone."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from vmlab.compare.screen import MOST_BOXES, TILE, compare_screens
from vmlab.compare.state import Files
from vmlab.errors import SnapshotDamaged, WrongState
from vmlab.views import compare_screen


def screen(path: Path, *rectangles: tuple[int, int, int, int], size: tuple[int, int] = (320, 200)) -> Files:
    image = Image.new("RGB", size, (20, 40, 80))
    for x, y, width, height in rectangles:
        ImageDraw.Draw(image).rectangle((x, y, x + width - 1, y + height - 1), fill=(250, 200, 0))
    image.save(path, "PNG")
    return Files(path.stem, screen=path)


def test_changed_areas(tmp_path: Path) -> None:
    before = screen(tmp_path / "a.png")
    after = screen(tmp_path / "b.png", (10, 10, 30, 20), (36, 28, 10, 10), (200, 150, 3, 1))
    diff = compare_screens(before, after)
    assert [(box.x, box.y, box.width, box.height) for box in diff.boxes] == [
        (10, 10, 36, 28),
        (200, 150, 3, 1),
    ]
    assert diff.pixels == 30 * 20 + 10 * 10 - 4 * 2 + 3
    assert diff.boxes[1].pixels == 3
    assert diff.summary == "1.1 % of the screen differs, in 2 areas."
    assert diff.sizes == ((320, 200), (320, 200))
    json.dumps(diff.to_json())


def test_no_change(tmp_path: Path) -> None:
    diff = compare_screens(screen(tmp_path / "a.png"), screen(tmp_path / "b.png"))
    assert not diff
    assert diff.summary == "The screen does not differ."
    assert "<input" not in diff._repr_html_()


def test_other_sizes(tmp_path: Path) -> None:
    diff = compare_screens(screen(tmp_path / "a.png"), screen(tmp_path / "b.png", size=(400, 100)))
    assert diff.mask.shape == (200, 400)
    assert diff.pixels == 400 * 200 - 320 * 100
    assert diff.summary.startswith("The screen was 320 x 200 and is 400 x 100 pixels; 60.0 %")
    assert Image.open(io.BytesIO(diff.diff_png)).size == (400, 200)
    assert 'style="width:80.00%"' in diff._repr_html_()


def test_the_picture_fades_what_stayed(tmp_path: Path) -> None:
    diff = compare_screens(screen(tmp_path / "a.png"), screen(tmp_path / "b.png", (100, 100, 40, 40)))
    with Image.open(io.BytesIO(diff.diff_png)) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels[120, 120].tolist() == [250, 200, 0]
    assert len(set(pixels[10, 10].tolist())) == 1
    assert pixels[97, 120].tolist() == [214, 40, 60]


masks = st.lists(
    st.tuples(st.integers(0, 310), st.integers(0, 190), st.integers(1, 60), st.integers(1, 60)), max_size=12
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rectangles=masks)
def test_boxes_hold_all_changed_pixels(tmp_path: Path, rectangles: list[tuple[int, int, int, int]]) -> None:
    diff = compare_screens(screen(tmp_path / "a.png"), screen(tmp_path / "b.png", *rectangles))
    covered = np.zeros_like(diff.mask)
    for box in diff.boxes:
        covered[box.y : box.y + box.height, box.x : box.x + box.width] = True
    assert not (diff.mask & ~covered).any()
    assert sum(box.pixels for box in diff.boxes) == diff.pixels


def test_many_boxes_are_put_together(tmp_path: Path) -> None:
    spots = [(x, y, 1, 1) for x in range(0, 320, 3 * TILE) for y in range(0, 200, 2 * TILE)]
    assert len(spots) > MOST_BOXES
    diff = compare_screens(screen(tmp_path / "a.png"), screen(tmp_path / "b.png", *spots))
    assert len(diff.boxes) == MOST_BOXES
    assert sum(box.pixels for box in diff.boxes) == len(spots)


def test_the_view_needs_no_scripts(tmp_path: Path) -> None:
    before, after = screen(tmp_path / "a.png"), screen(tmp_path / "b.png", (5, 5, 9, 9))
    diff = compare_screens(Files("<b>one</b>", screen=before.screen), after)
    html = diff._repr_html_()
    assert "<script" not in html
    assert not re.search(r"\son\w+=", html)
    assert "<b>one" not in html
    assert html.count("data:image/png;base64,") == 3
    assert html.count('type="radio"') == 4
    assert "http" not in html
    # Two results on one page do not share their buttons.
    name = re.search(r'name="(\w+)"', html)
    other = re.search(r'name="(\w+)"', compare_screens(after, before)._repr_html_())
    assert name is not None
    assert other is not None
    assert name[1] != other[1]
    assert html.count(":hover)") >= compare_screen.STRIPS


def test_what_cannot_be_read(tmp_path: Path) -> None:
    good = screen(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    for name, content in (("cut", data[: len(data) // 2]), ("none", b""), ("text", b"hello")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SnapshotDamaged, match="screen of bad"):
            compare_screens(good, Files("bad", screen=tmp_path / name))
    with pytest.raises(SnapshotDamaged):
        compare_screens(good, Files("bad", screen=tmp_path / "gone"))
    with pytest.raises(WrongState, match="no screen"):
        compare_screens(good, Files("off"))
