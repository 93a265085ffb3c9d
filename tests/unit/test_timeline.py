"""Several states in a row: with which each is compared, and when a file counts as another."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from disk_images import make_image, scratch, tool

from vmlab import timeline
from vmlab.diff import Side
from vmlab.errors import DiskUnreadable
from vmlab.machine import Machine
from vmlab.snapshot import Snapshot


class Node(Snapshot):
    """A snapshot of which only its place in the tree matters."""

    def __init__(self, identity: str, parent: Node | None) -> None:
        self._id, self._above = identity, parent

    @property
    def id(self) -> str:
        return self._id

    @property
    def parent(self) -> Snapshot | None:
        return self._above


class Tree(Machine):
    """A machine of which only its tree matters."""

    def __init__(self, snapshots: list[Node], here: Node | None, root: Node | None) -> None:
        self._known, self._here, self._root = snapshots, here, root

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    @property
    def snapshots(self) -> list[Snapshot]:
        return list(self._known)

    @property
    def here(self) -> Snapshot | None:
        return self._here

    @property
    def root(self) -> Snapshot | None:
        return self._root


def test_each_state_is_compared_with_that_from_which_it_came() -> None:
    root = Node("ready", None)
    s1 = Node("s1", root)
    gone = Node("gone", s1)
    s2, s3, s4 = Node("s2", s1), Node("s3", s1), Node("s4", gone)
    machine = Tree([s1, s2, s3, s4], s2, root)
    states, before = timeline._in_tree([s1, s2, s3, s4, machine])
    assert states == [s1, s2, s3, s4, machine]
    assert before == [None, 0, 0, 0, 1]
    # What somebody puts in a row is compared in that row.
    assert timeline._in_tree([s2, s3, s4]) == ([s2, s3, s4], [None, 0, 1])
    assert timeline._in_tree([s1, s3, machine])[1] == [None, 0, 1]


def test_branches_of_the_root_are_compared_with_it() -> None:
    root = Node("ready", None)
    s1, s2 = Node("s1", root), Node("s2", root)
    machine = Tree([s1, s2], root, root)
    states, before = timeline._in_tree([s1, s2, machine])
    assert states == [root, s1, s2, machine]
    assert before == [None, 0, 0, 0]
    booted = Tree([s3 := Node("s3", None), s4 := Node("s4", None)], s4, None)
    assert timeline._in_tree([s3, s4, booted]) == ([s3, s4, booted], [None, None, 1])


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
