"""Watching a store: what is told of its folders when they change, get another name, or go."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from vmlab.store.watch import Change, StoreWatch


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A store with one machine."""
    for folder in ("locks", "images", "snapshots", "machines/old"):
        (tmp_path / "home" / folder).mkdir(parents=True)
    return tmp_path / "home"


def save(machine: Path) -> None:
    """Replace a machine's record, as the store does it."""
    (machine / ".new").write_text("{}")
    (machine / ".new").replace(machine / "machine.json")


def told(home: Path, *steps: Callable[[], object]) -> list[set[Change]]:
    """Return what is told after each step, until the lock of the step's number is told to be taken."""

    async def watch() -> list[set[Change]]:
        found: list[set[Change]] = []
        with StoreWatch(home) as watch:
            changes = watch.changes()
            for number, step in enumerate(steps):
                step()
                (home / "locks" / f"step{number}.lock").write_text("x")
                found.append(set())
                async with asyncio.timeout(20):
                    async for change in changes:
                        if change == Change("lock", f"step{number}"):
                            break
                        if change.what != "lock":
                            found[-1].add(change)
        return found

    return asyncio.run(watch())


def test_a_renamed_machine_is_told_by_its_new_name(home: Path) -> None:
    old, new = home / "machines" / "old", home / "machines" / "new"
    found = told(
        home,
        lambda: save(old),
        lambda: old.rename(new),
        lambda: save(new),
        lambda: new.rename(old),
        lambda: save(old),
    )
    both = {Change("machine", "old"), Change("machine", "new")}
    assert found == [
        {Change("machine", "old")},
        both,
        {Change("machine", "new")},
        both,
        {Change("machine", "old")},
    ]


def test_a_machine_that_went_and_came_again(home: Path) -> None:
    machine = home / "machines" / "old"

    def renewed() -> None:
        shutil.rmtree(machine)
        machine.mkdir()

    found = told(home, renewed, lambda: save(machine))
    assert found == [{Change("machine", "old")}] * 2


@pytest.mark.parametrize("how", ["moved", "removed"])
@pytest.mark.parametrize("what", ["", "machines", "snapshots", "locks", "images"])
def test_a_store_that_goes_is_noticed(home: Path, what: str, how: str) -> None:
    def go() -> None:
        if how == "moved":
            (home / what).rename(home.parent / "elsewhere")
        else:
            shutil.rmtree(home / what)

    async def watch() -> None:
        with StoreWatch(home) as watch:
            go()
            async with asyncio.timeout(20):
                async for _ in watch.changes():
                    pass

    with pytest.raises(FileNotFoundError):
        asyncio.run(watch())


def open_files() -> int:
    """Return how many files this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def test_what_cannot_be_watched_leaves_nothing_open(home: Path) -> None:
    shutil.rmtree(home / "machines")
    before = open_files()
    for _ in range(3):
        with pytest.raises(FileNotFoundError) as kept:
            StoreWatch(home)
        # As long as somebody looks at the error.
        assert open_files() == before
        del kept
