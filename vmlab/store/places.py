"""Where the folders of snapshots and bases lie in a store: two functions say it, and nothing else joins those paths.

So there can be a second place for them, which nobody writes to.
"""

from __future__ import annotations

from pathlib import Path


def snapshot_folder(home: Path, snapshot: str = "") -> Path:
    """Return the folder of a snapshot; without one that in which new ones are made."""
    return home / "snapshots" / snapshot


def base_folder(home: Path, base: str = "") -> Path:
    """Return the folder of a base; without one that in which new ones are made."""
    return home / "bases" / base
