"""Files and folders for one account alone: the only place that makes what vmlab keeps on the host's disk.

A guest's RAM holds passwords and keys, and so do its disks, its screen and what it says on its serial line. So folders
are 0700, files 0600, and what is frozen 0400, whatever the umask. What is made belongs to whoever owns the folder that
it is made in: where we are root, to the account that QEMU runs as. That account is not trusted with more than its own
files, so nothing here follows a link or writes into a file that was there before.

What a person asks for by a path of their own (a saved picture, a copied file) is not made here: it is theirs, and as
their umask says.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

FOLDER, FILE, FROZEN, PROGRAM = 0o700, 0o600, 0o400, 0o500


def folder(path: Path, owner: tuple[int, int] | None = None) -> Path:
    """Make a new folder and return its path; ``owner`` (user and group id) if not that of the folder above.

    Raises
    ------
    FileExistsError
        Something is there.
    """
    path.mkdir(FOLDER)
    with _held(path) as fd:
        _give(fd, path.parent, FOLDER, owner)
    return path


def folders(path: Path, owner: tuple[int, int] | None = None) -> Path:
    """Make a folder with the missing ones above it, unless it is there, and return its path."""
    missing_ones = [] if path.is_dir() else [p for p in (path, *path.parents) if not p.exists()]
    for missing in reversed(missing_ones):
        # Another process may be making the same one.
        with contextlib.suppress(FileExistsError):
            folder(missing, owner)
    return path


def create(path: Path) -> BinaryIO:
    """Make a new file and open it for writing.

    Raises
    ------
    FileExistsError
        Something is there.
    """
    return os.fdopen(_open(path, os.O_WRONLY | os.O_EXCL), "wb")


def lock_file(path: Path) -> int:
    """Open a file that carries a lock, made if it is not there, and return its descriptor; its content stays."""
    return _open(path, os.O_RDWR)


def write(path: Path, data: str | bytes) -> None:
    """Make a file with this content; what was there goes."""
    path.unlink(missing_ok=True)
    with create(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def replace(path: Path, data: str | bytes, *, mode: int = FILE, flush: bool = False) -> None:
    """Give a file this content at one instant: whoever reads it has the old or the new one, whole.

    Parameters
    ----------
    flush
        It survives a power cut, too.
    """
    new = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:6]}")
    try:
        with create(new) as file:
            file.write(data.encode() if isinstance(data, str) else data)
            os.fchmod(file.fileno(), mode)
            if flush:
                file.flush()
                os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        # A disk that is full must not be filled with halves.
        new.unlink(missing_ok=True)
        raise


def copy(source: Path, target: Path) -> None:
    """Copy a file's content to a new file."""
    with source.open("rb") as read, create(target) as file:
        shutil.copyfileobj(read, file, 1 << 20)


def freeze(path: Path) -> None:
    """Let nobody write to a file any more, as long as nobody thaws it."""
    set_mode(path, FROZEN)


def thaw(path: Path) -> None:
    """Let its owner write to a file again."""
    set_mode(path, FILE)


def set_mode(path: Path, mode: int) -> None:
    """Change who may do what with a file or folder; never with what a link leads to."""
    with _held(path) as fd:
        if stat.S_IMODE(os.fstat(fd).st_mode) != mode:
            _chmod(fd, mode)


def put_right(top: Path, mode: Callable[[Path], int], owner: tuple[int, int]) -> int:
    """Close a folder, and all in it, to other accounts; return how many files and folders were not closed before.

    Parameters
    ----------
    mode
        What a file in it should have, by its path.
    owner
        User and group id that all should have; only root can give it.
    """
    changed = _close(top, mode, owner)
    for path, folder_names, files in os.walk(top):
        for name in (*folder_names, *files):
            changed += _close(Path(path, name), mode, owner)
    return changed


def _close(path: Path, mode: Callable[[Path], int], owner: tuple[int, int]) -> int:
    # What disappears meanwhile need not be closed.
    with contextlib.suppress(FileNotFoundError), _held(path) as fd:
        info = os.fstat(fd)
        if stat.S_ISLNK(info.st_mode):
            return 0
        if os.geteuid() == 0 and (info.st_uid, info.st_gid) != owner:
            # With another name elsewhere it may be root's, put here by a link. It is not ours to give away.
            if info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode) and info.st_uid != owner[0]:
                return 0
            os.chown(f"/proc/self/fd/{fd}", *owner)
        wanted = FOLDER if stat.S_ISDIR(info.st_mode) else mode(path)
        if stat.S_IMODE(info.st_mode) != wanted:
            _chmod(fd, wanted)
        return int(info.st_mode & 0o077 != 0)
    return 0


@contextlib.contextmanager
def _held(path: Path) -> Iterator[int]:
    """Hold what is at ``path`` itself, link or not, whatever its mode, so that it cannot be exchanged meanwhile."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _chmod(fd: int, mode: int) -> None:
    # fchmod wants a descriptor that is more than a path.
    Path(f"/proc/self/fd/{fd}").chmod(mode)


def _open(path: Path, flags: int) -> int:
    fd = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, FILE)
    try:
        _give(fd, path.parent, FILE, None)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _give(fd: int, above: Path, mode: int, owner: tuple[int, int] | None) -> None:
    info = os.fstat(fd)
    if os.geteuid() == 0:
        if owner is None:
            there = above.stat()
            owner = there.st_uid, there.st_gid
        if owner != (info.st_uid, info.st_gid):
            os.chown(f"/proc/self/fd/{fd}", *owner)
    # The umask has taken away from it what it liked.
    if stat.S_IMODE(info.st_mode) != mode:
        _chmod(fd, mode)
