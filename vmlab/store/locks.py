"""Locks between processes: two notebooks, or a notebook and a shell, that work on one machine.

A lock is the kernel's own (``flock``), so it goes when its holder dies, however it dies. What its holder is doing
stands in the file, so that whoever waits can be told.

A file is removed only by who holds its lock, and whoever gets a lock looks whether the path still is that file: so no
file stays, and never do two hold one lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from vmlab import private
from vmlab.errors import Busy

#: Seconds after which whoever waits is told for whom.
TELL_AFTER = 1.0
DEFAULT_TIMEOUT = 120.0

_local = threading.local()


def _holder(fd: int) -> dict[str, object]:
    with contextlib.suppress(ValueError, OSError):
        data = json.loads(os.pread(fd, 4096, 0) or b"{}")
        if isinstance(data, dict):
            return data
    return {}


def _is_at(fd: int, path: Path) -> bool:
    """Whether an open file is the one at ``path``: its last holder may have removed it."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), there)


def remove(path: Path) -> bool:
    """Remove the file of a lock that nobody holds; whether nobody did."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(fd, path):
            os.unlink(path)  # noqa: PTH108 - no step of a deed: nothing is lost where it is not done
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(fd)


def holder(path: Path) -> dict[str, object] | None:
    """Return who holds a lock (``pid``) and what for (``doing``); None if nobody does, or this thread."""
    if path in _local.__dict__.get("held", {}):
        return None
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(fd)
    finally:
        os.close(fd)
    return None


def busy(path: Path, holder: dict[str, object], waited: float) -> Busy:
    """Return the error for a lock that somebody else held all the time."""
    return Busy(
        f"{_subject(path) or 'The store'} is busy: process {holder.get('pid', '?')} has been asked to "
        f"{holder.get('doing', 'work on it')} and is not done.",
        hint="wait for it and try again",
        waited=f"{waited:.0f} s",
    )


def waiting(path: Path, holder: dict[str, object]) -> str:
    """Return for whom somebody waits, as a sentence."""
    words = f"waiting: process {holder.get('pid', '?')} is to {holder.get('doing', 'work')} {_subject(path)}"
    return words.rstrip()


def _subject(path: Path) -> str:
    """Return the machine whose lock it is; of other locks (``@store``, ``image@tiny``) what is being done says all."""
    return "" if "@" in path.stem else path.stem


@contextlib.contextmanager
def locked(
    path: Path,
    doing: str,
    *,
    timeout: float = DEFAULT_TIMEOUT,
    tell: Callable[[str], None] | None = None,
) -> Iterator[None]:
    """Hold the lock at ``path`` while ``doing`` something; a thread may take a lock that it already holds.

    Parameters
    ----------
    path
        The lock's file; it is gone afterwards.
    doing
        What for: shown to others who wait.
    timeout
        Seconds to wait for another holder.
    tell
        Called once with a sentence when the wait has lasted a second.

    Raises
    ------
    Busy
        Somebody else held it all the time; says who and what for.
    """
    held: dict[Path, int] = _local.__dict__.setdefault("held", {})
    if path in held:
        yield
        return
    private.folders(path.parent)
    fd = private.lock_file(path)
    try:
        started, told = time.monotonic(), False
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(fd, path):
                    break
                # Its last holder has removed it.
                os.close(fd)
                fd = private.lock_file(path)
            except BlockingIOError:
                waited = time.monotonic() - started
                found = _holder(fd)
                if waited > timeout:
                    raise busy(path, found, waited) from None
                if tell and not told and waited > TELL_AFTER:
                    tell(waiting(path, found))
                    told = True
                time.sleep(0.01 if waited < 1 else 0.1)
        os.ftruncate(fd, 0)
        # Where even this does not fit on the disk, the lock holds all the same.
        with contextlib.suppress(OSError):
            os.pwrite(fd, json.dumps({"pid": os.getpid(), "doing": doing}).encode(), 0)
        held[path] = fd
        try:
            yield
        finally:
            held.pop(path, None)
            # Whoever watches the folder hears of this.
            os.ftruncate(fd, 0)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # noqa: PTH108 - as above
    finally:
        os.close(fd)


class Hold:
    """Says, for as long as it lives, that this process needs something; goes with the process, however it dies.

    Unlike a lock it keeps nobody from working on it, and any number may hold the same.
    """

    def __init__(self, path: Path) -> None:
        private.folders(path.parent)
        self.path = path
        while True:
            fd = private.lock_file(path)
            fcntl.flock(fd, fcntl.LOCK_SH)
            if _is_at(fd, path):
                break
            os.close(fd)
        self._fd: int | None = fd

    def release(self) -> None:
        """Need it no more."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
            remove(self.path)


def is_held(path: Path) -> bool:
    """Whether anybody holds the lock of a file, or of a folder."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
