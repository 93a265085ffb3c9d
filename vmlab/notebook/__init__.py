"""The notebook side: magics, completion, progress and output in cells. ``%load_ext vmlab`` loads it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmlab.machine import Machine
    from vmlab.render.surface import Kind

__all__ = ["consoles", "load_ipython_extension", "unload_ipython_extension"]


def load_ipython_extension(ip: Any) -> None:
    """Add ``%vm``, ``%%vm`` and their completion to IPython."""
    from vmlab.notebook.magics import load

    load(ip)


def unload_ipython_extension(ip: Any) -> None:
    """Take them out again."""
    from vmlab.notebook.magics import unload

    unload(ip)


def consoles(machines: Sequence[Machine], kind: Kind, options: dict[str, Any]) -> Any | None:
    """Return live consoles of these machines; None if this process is no notebook's kernel."""
    ipython = sys.modules.get("IPython")
    if ipython is None or getattr(ipython.get_ipython(), "kernel", None) is None:
        return None
    from vmlab.notebook.frontend import front_end

    if front_end() == "text":
        return None
    from vmlab.notebook.console import consoles as made

    return made(machines, kind, options)
