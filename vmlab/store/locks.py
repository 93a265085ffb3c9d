"""Locks between processes: two notebooks, or a notebook and a shell, that work on one machine.

A lock is the kernel's own (``flock``), so it goes when its holder dies, however it dies. What its holder is doing
stands in the file, so that whoever waits can be told.
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
        The lock's file; it stays afterwards, empty.
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
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        started, told = time.monotonic(), False
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waited = time.monotonic() - started
                holder = _holder(fd)
                if waited > timeout:
                    raise Busy(
                        f"{path.stem} is busy: process {holder.get('pid', '?')} has been asked to "
                        f"{holder.get('doing', 'work on it')} and is not done.",
                        hint="wait for it and try again",
                        waited=f"{waited:.0f} s",
                    ) from None
                if tell and not told and waited > TELL_AFTER:
                    tell(
                        f"waiting: process {holder.get('pid', '?')} is to {holder.get('doing', 'work')} {path.stem}"
                    )
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
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)


class Hold:
    """Says, for as long as it lives, that this process needs something; goes with the process, however it dies.

    Unlike a lock it keeps nobody from working on it, and any number may hold the same.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._fd: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_SH)

    def release(self) -> None:
        """Need it no more."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def is_held(path: Path) -> bool:
    """Whether anybody holds it."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
