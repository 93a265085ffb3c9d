"""Shared by all tests. A test's folder says its level: tests/unit, tests/vm (real guests), tests/browser."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
LEVELS = ("unit", "vm", "browser")
#: With several workers the longest goes first: one of them drives the browser, the other has the rest.
ORDER = ("browser", "unit", "vm") if "PYTEST_XDIST_WORKER" in os.environ else LEVELS


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop() -> Iterator[None]:
    """Run the tests on a store that no other worker uses."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    from help.workers import own_store

    with own_store():
        return (yield)


@pytest.hookimpl(optionalhook=True)  # without pytest-xdist all run in one process
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Say which tests may run side by side."""
    from help.workers import Scheduling

    return Scheduling(config, log)


def pytest_configure() -> None:
    """Hear Ctrl-C, also in a shell's background, which ignores it for all that is started there."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test by its folder, then run the fast ones first: a plain mistake should not wait for guests."""
    for item in items:
        if not any(item.get_closest_marker(level) for level in LEVELS):
            folder = item.path.relative_to(HERE).parts[0] if item.path.is_relative_to(HERE) else ""
            item.add_marker(folder if folder in LEVELS else "unit")
    items.sort(key=lambda item: ORDER.index(_level(item)))


def _level(item: pytest.Item) -> str:
    return next(level for level in LEVELS if item.get_closest_marker(level))
