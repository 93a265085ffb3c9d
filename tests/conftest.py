"""Shared by all tests. A test's folder says its level: tests/unit, tests/vm (real guests), tests/browser."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LEVELS = ("unit", "vm", "browser")


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
    items.sort(key=lambda item: next(i for i, level in enumerate(LEVELS) if item.get_closest_marker(level)))
