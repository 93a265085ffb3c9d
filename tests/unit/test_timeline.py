"""Several states in a row: with which each is compared, and when a file counts as another."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from help.disk_images import make_image, scratch, tool

from vmlab.errors import DiskUnreadable
from vmlab.store.store import Store
from vmlab.study import timeline
from vmlab.study.side import Side
from vmlab.study.which import Place


class Tree:
    """A store with the tree of one machine, ``m``: parents by snapshot, and one that is not among its own."""

    def __init__(self, parents: dict[str, str | None], here: str, root: str | None, other: str = "") -> None:
        self.parents, self.here, self.root, self.other = parents, here, root, other

    def machine(self, name: str) -> Any:
        return SimpleNamespace(name=name, uuid="u", here=self.here, root=self.root)

    def snapshots_of(self, _uuid: str) -> list[Any]:
        return [SimpleNamespace(id=s) for s in self.parents if s not in (self.root, self.other)]

    def label(self, snapshot: str) -> Any:
        return SimpleNamespace(parent=self.parents[snapshot], forgotten=False)

    def snapshot(self, snapshot: str) -> Any:
        return SimpleNamespace(id=snapshot)


def in_tree(store: Tree, *states: str) -> tuple[list[str], list[int | None]]:
    places = [Place(machine="m") if state == "m" else Place(state) for state in states]
    found, before = timeline._in_tree(cast(Store, store), places)
    return [place.snapshot or place.machine for place in found], before


def test_each_state_is_compared_with_that_from_which_it_came() -> None:
    store = Tree(
        {"root": None, "s1": "root", "gone": "s1", "s2": "s1", "s3": "s1", "s4": "gone"}, "s2", "root", "gone"
    )
    assert in_tree(store, "s1", "s2", "s3", "s4", "m") == (
        ["s1", "s2", "s3", "s4", "m"],
        [None, 0, 0, 0, 1],
    )
    # What somebody puts in a row is compared in that row.
    assert in_tree(store, "s2", "s3", "s4") == (["s2", "s3", "s4"], [None, 0, 1])
    assert in_tree(store, "s1", "s3", "m")[1] == [None, 0, 1]


def test_branches_of_the_root_are_compared_with_it() -> None:
    store = Tree({"root": None, "s1": "root", "s2": "root"}, "root", "root")
    assert in_tree(store, "s1", "s2", "m") == (["root", "s1", "s2", "m"], [None, 0, 0, 0])
    booted = Tree({"s3": None, "s4": None}, "s4", None)
    assert in_tree(booted, "s3", "s4", "m") == (["s3", "s4", "m"], [None, None, 1])


# -- a file ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder() -> Iterator[Path]:
    with scratch() as name:
        yield Path(name)


def side(title: str, *disks: Path) -> Side:
    """Return a state that has these disks."""
    names = tuple(f"vd{letter}" for letter in "abcd"[: len(disks)])
    record = SimpleNamespace(created="2026-01-01T00:00:00+00:00", spec=SimpleNamespace(disks=names))
    found: Any = SimpleNamespace(title=title, record=record, disks=SimpleNamespace(paths=list(disks)))
    return cast(Side, found)


def moments(
    sides: list[Side], path: str, before: list[int | None] | None = None
) -> tuple[timeline.Moment, ...]:
    def look(one: Side) -> tuple[dict[str, Any], Any]:
        return timeline._file(one, path)

    before = before or [None, *range(len(sides) - 1)]
    return timeline._walk(sides, before, look, lambda _: None, timeline._file_detail)


def test_when_a_file_is_another(folder: Path) -> None:
    (folder / "tree").mkdir()
    (folder / "tree" / "f").write_text("one\n")
    (folder / "tree" / "link").symlink_to("f")
    image = make_image(folder / "0", "ext4", "4M", folder / "tree")
    (folder / "two").write_text("two\n")
    sides = [side("s0", image)]
    for number, words in enumerate(
        ["sif f mtime 5", "ea_set f user.note x", "sif f flags 0x80010", "sif f mode 0100600", "rm f",
         f"write {folder}/two f", "rm link", "symlink link g"], 1,
    ):  # fmt: skip
        image = Path(shutil.copyfile(image, folder / f"{number}"))
        tool("debugfs", "-w", "-R", words, image)
        sides.append(side(f"s{number}", image))
    found = moments(sides, "/f")
    assert [m.changed for m in found] == [False, False, True, True, True, True, True, False, False]
    assert found[2].values["attributes"] == "user.note"
    assert "i" in found[3].values["flags"]
    assert found[5].values == {}
    assert found[6].detail == "--- s5\n+++ s6\n@@ -0,0 +1 @@\n+two"
    assert [m.changed for m in moments(sides, "/link")][-2:] == [True, True]
    # In a tree: the last came from the first.
    last = moments(sides, "/f", [None, *range(7), 0])[-1]
    assert (last.changed, last.since) == (True, "s0")
    assert last.detail == "--- s0\n+++ s8\n@@ -1 +1 @@\n-one\n+two"


def test_a_state_about_which_nothing_is_known_is_passed_over(folder: Path) -> None:
    (folder / "tree").mkdir()
    (folder / "tree" / "f").write_text("one\n")
    image = make_image(folder / "image", "ext4", "4M", folder / "tree")
    bad = folder / "bad"
    bad.write_bytes(bytes(4096) + image.read_bytes()[4096:])
    found = moments([side("s1", image), side("s2", bad), side("s3", image)], "/f")
    assert [(m.changed, bool(m.trouble), m.since) for m in found] == [
        (False, False, ""),
        (False, True, "s1"),
        (False, False, "s1"),
    ]
    with pytest.raises(DiskUnreadable):
        moments([side("s1", bad), side("s2", bad)], "/f")
