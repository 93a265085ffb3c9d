"""What tests with real guests stand on: a lab, and machines that are gone afterwards."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from help.bad_lab import box, ours, saboteur  # noqa: F401 - fixtures

from vmlab.errors import VMLabError
from vmlab.lab import Lab
from vmlab.machine import Machine

BUILT_IN = ("invaders", "tiny", "desktop")


@pytest.fixture(scope="session")
def lab() -> Lab:
    """The lab of whoever runs the tests: its images and their ready states are made once and kept."""
    lab = Lab()
    for name in BUILT_IN:
        if not lab.image(name).built:
            lab.build(name)
    return lab


def _remove(lab: Lab, names: list[str]) -> None:
    for name in names:
        with contextlib.suppress(VMLabError):
            lab.machine(name).delete()


@pytest.fixture
def names(lab: Lab) -> Iterator[Callable[..., str]]:
    """Make machine names that nobody else has; machines of these names are deleted after the test."""
    made: list[str] = []

    def new(stem: str = "test") -> str:
        # With a letter: forks of web-2 are web-3 and so on.
        made.append(f"{stem}-x{uuid.uuid4().hex[:5]}")
        return made[-1]

    yield new
    _remove(lab, made)


@pytest.fixture
def tiny(lab: Lab, names: Callable[..., str]) -> Machine:
    """A running machine with a shell, an agent and a disk."""
    return lab.create(names("tiny"), "tiny")


@pytest.fixture
def invaders(lab: Lab, names: Callable[..., str]) -> Machine:
    """A running machine without an agent or a disk."""
    return lab.create(names("invaders"), "invaders")


@pytest.fixture
def desktop(lab: Lab, names: Callable[..., str]) -> Machine:
    """A running machine with a desktop."""
    return lab.create(names("desktop"), "desktop")


@pytest.fixture
def fresh_lab(lab: Lab) -> Iterator[Lab]:
    """A lab with a store of its own, which has the small images: for tests that damage or fill a store."""
    home = lab.account.make_dir(lab.home.parent / f"test-{uuid.uuid4().hex[:8]}")
    fresh = Lab(home)
    for name in ("invaders", "tiny"):
        link_image(lab, fresh, name)
    yield fresh
    for machine in fresh.machines:
        with contextlib.suppress(VMLabError):
            machine.delete()
    shutil.rmtree(home, ignore_errors=True)


def link_image(source: Lab, target: Lab, name: str) -> Path:
    """Put an image of one lab into another, by hard links."""
    folder = target.account.make_dir(target.store.image_folder(name))
    for file in source.store.image_folder(name).iterdir():
        (folder / file.name).hardlink_to(file)
    return folder
