"""What a machine's guest is told of itself after a fork, as its folder keeps it: ``identity.json``.

From before the guest runs until it has been told it says so: a snapshot that is taken meanwhile may have caught the
guest anywhere in it, and whoever forks that snapshot has to know.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vmlab.errors import RecordDamaged
from vmlab.records import read_json, when, write_json
from vmlab.store.store import Store


def begin(store: Store, name: str, macs: Sequence[str]) -> None:
    """Note that a guest is about to be told; ``macs``: one of which its card has now."""
    write_json(_path(store, name), {"format": 1, "macs": list(macs)})


def end(store: Store, name: str, report: dict[str, Any]) -> None:
    """Note what a guest has got of its own."""
    macs = _read(store, name).get("macs", [])
    write_json(_path(store, name), {"format": 1, "macs": macs, "at": time.time(), **report})


def macs(store: Store, name: str, snapshot: str) -> tuple[str, ...]:
    """Return what else a card may have had for a MAC when a snapshot caught its guest: none unless it was being told.

    Parameters
    ----------
    snapshot
        The snapshot's id, which tells when it was begun.
    """
    found = _read(store, name)
    if "machine" in found and found.get("at", 0.0) < when(snapshot).timestamp():
        return ()
    return tuple(found.get("macs", ()))


def told(store: Store, name: str) -> dict[str, Any] | None:
    """Return what a guest has got of its own; None if it was never told, or not to the end."""
    found = _read(store, name)
    return (
        {key: value for key, value in found.items() if key not in ("macs", "at")}
        if "machine" in found
        else None
    )


def _read(store: Store, name: str) -> dict[str, Any]:
    with contextlib.suppress(FileNotFoundError, RecordDamaged):
        return read_json(_path(store, name))
    return {}


def _path(store: Store, name: str) -> Path:
    return store.machine_folder(name) / "identity.json"
