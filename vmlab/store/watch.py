"""Watching the store: which machine, snapshot or image was changed, by whatever process.

The kernel's own notification (inotify) tells, so nothing is polled. Records are replaced by renames, and locks are
written to when they are taken and given back; only these are listened for, so that neither a guest that writes its
serial log nor a snapshot that writes gigabytes of RAM costs anything here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from asyncinotify import Event, Inotify, Mask, Watch

from vmlab.store import places

#: A folder's entries come and go by these. Records and finished folders are renamed into place.
_ENTRIES = Mask.CREATE | Mask.DELETE | Mask.MOVED_FROM | Mask.MOVED_TO | Mask.ONLYDIR
_RENAMED = Mask.MOVED_TO | Mask.ONLYDIR
#: The store, or a folder of it, is not where it was.
_LOST = Mask.MOVE_SELF | Mask.DELETE_SELF


@dataclass(frozen=True)
class Change:
    """Something in the store changed.

    Attributes
    ----------
    what
        ``machine``: its record, or it came or went. ``lock``: somebody began or ended work on it. ``snapshot``: it
        came, went, or was renamed. ``image``: it came or went. ``lost``: more than could be told; look at everything.
    name
        The machine's or image's name, or the snapshot's id; empty for ``lost``.
    """

    what: Literal["machine", "lock", "snapshot", "image", "lost"]
    name: str = ""


class StoreWatch:
    """The changes of a store, as an async iterator; use it as a context manager.

    Parameters
    ----------
    home
        The store's folder.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self._inotify = Inotify()
        # Folders with one folder each for what they hold: what it is, and the file in it whose replacement is a change.
        self._kinds: dict[Path, tuple[Literal["machine", "snapshot"], str]] = {
            home / "machines": ("machine", "machine.json"),
            places.snapshot_folder(home): ("snapshot", "label.json"),
        }
        #: The watches of what these folders hold.
        self._followed: dict[Path, Watch] = {}
        self._tops = {
            home: Mask.ONLYDIR,
            home / "locks": Mask.MODIFY | Mask.ONLYDIR,
            home / "images": _RENAMED | Mask.MOVED_FROM,
            **dict.fromkeys(self._kinds, _ENTRIES),
        }
        try:
            for folder, mask in self._tops.items():
                self._inotify.add_watch(folder, mask | _LOST)
            for folder in self._kinds:
                for child in folder.iterdir():
                    self._follow(child)
        except BaseException:
            self._inotify.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._inotify.close()

    def _follow(self, folder: Path) -> None:
        if not folder.name.startswith("."):
            # It may be gone again.
            with contextlib.suppress(OSError):
                self._followed[folder] = self._inotify.add_watch(folder, _RENAMED)

    def _unfollow(self, folder: Path) -> None:
        # A watch stays with its folder, so it would go on telling the old name of one that was renamed.
        watch = self._followed.pop(folder, None)
        if watch is not None:
            # Gone with the folder, if that was deleted.
            with contextlib.suppress(OSError):
                self._inotify.rm_watch(watch)

    async def changes(self) -> AsyncIterator[Change]:
        """Yield each change, as it happens; the same one may come twice.

        Raises
        ------
        FileNotFoundError
            The store or one of its folders was moved or removed; what happens there is not seen any more.
        """
        async for event in self._inotify:
            if event.mask & _LOST or (Mask.IGNORED in event.mask and event.path in self._tops):
                raise FileNotFoundError(errno.ENOENT, "moved or removed", str(event.path))
            change = self._change(event)
            if change is not None:
                yield change

    def _change(self, event: Event) -> Change | None:
        if Mask.Q_OVERFLOW in event.mask:
            return Change("lost")
        path = event.path
        if path is None or event.name is None:
            return None
        folder, name = path.parent, path.name
        if name.startswith("."):
            return None
        if folder == self.home / "locks":
            return Change("lock", path.stem)
        if folder == self.home / "images":
            return Change("image", name)
        if folder in self._kinds:
            if event.mask & (Mask.DELETE | Mask.MOVED_FROM):
                self._unfollow(path)
            if event.mask & (Mask.CREATE | Mask.MOVED_TO):
                # Before it is told: whatever is written to it later is told too.
                self._follow(path)
            return Change(self._kinds[folder][0], name)
        kind, file = self._kinds.get(folder.parent, ("machine", ""))
        return Change(kind, folder.name) if name == file else None


def doing(home: Path, name: str) -> str | None:
    """Return what the holder of a machine's lock is doing (``snapshot``, ``revert`` ...), or None if nobody holds it.

    It asks without waiting, and disturbs nobody who takes the lock.
    """
    try:
        fd = os.open(home / "locks" / f"{name}.lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        text = os.pread(fd, 4096, 0)
        if not text:
            return None
        # Written, and not by somebody who died with it: then a shared lock cannot be had.
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            what = json.loads(text).get("doing")
            return str(what) if what else None
        return None
    except (ValueError, AttributeError, OSError):
        return None
    finally:
        os.close(fd)
