"""The notebook side: magics, completion, progress and output in cells. ``%load_ext vmlab`` loads it."""

from __future__ import annotations

from typing import Any

__all__ = ["load_ipython_extension", "unload_ipython_extension"]


def load_ipython_extension(ip: Any) -> None:
    """Add ``%vm``, ``%%vm`` and their completion to IPython."""
    from vmlab.notebook.magics import load

    load(ip)


def unload_ipython_extension(ip: Any) -> None:
    """Take them out again."""
    from vmlab.notebook.magics import unload

    unload(ip)
