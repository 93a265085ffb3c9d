"""Where an image to import comes from: a file here, or one on the web. It is always copied, and checked."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import stat
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import BinaryIO

from vmlab import private
from vmlab.errors import BuildFailed, NotFound, UsageError
from vmlab.render.progress import Progress

_BLOCK = 1 << 22
_FICLONE = 0x40049409  # linux/fs.h: share the extents of another file (btrfs, xfs)
_TIMEOUT = 60  # seconds without a byte
_DIGESTS = {64: "sha256", 128: "sha512"}


@dataclass(frozen=True)
class Source:
    """A file to import.

    Attributes
    ----------
    text
        As it was given, without a password in it.
    path
        The file here, or None for one on the web.
    url
        The address, or None.
    """

    text: str
    path: Path | None = None
    url: str | None = None

    @property
    def name(self) -> str:
        """The file's own name."""
        return (
            self.path.name
            if self.path
            else Path(urllib.parse.urlsplit(self.url or "").path).name or "download"
        )


def parse_source(text: str | os.PathLike[str]) -> Source:
    """Understand a path, a ``file:`` URL or an ``http:`` or ``https:`` URL.

    Raises
    ------
    NotFound
        If there is no such file.
    UsageError
        If it is something else, or no ordinary file.
    """
    whole = os.fspath(text)
    parts = urllib.parse.urlsplit(whole)
    if parts.scheme in ("http", "https") and parts.hostname:
        shown = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="")
        return Source(urllib.parse.urlunsplit(shown), url=whole)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise UsageError(
                f"'{whole}' is on another machine.", hint="copy it here, or give an http address"
            )
        path = Path(urllib.parse.unquote(parts.path))
    elif "://" in whole:
        raise UsageError(
            f"'{parts.scheme}' addresses are not understood.",
            hint="give a path, or a file, http or https address",
        )
    else:
        path = Path(whole).expanduser()
    path = path.absolute()
    try:
        mode = path.stat().st_mode
    except PermissionError:
        raise UsageError(f"'{path}' may not be read.", hint=f"ls -l '{path}'") from None
    except OSError:
        near = (
            [p.name for p in path.parent.iterdir()]
            if path.parent.is_dir() and os.access(path.parent, os.R_OK)
            else []
        )
        raise NotFound.named("file", str(path), [str(path.parent / n) for n in near]) from None
    if not stat.S_ISREG(mode):
        raise UsageError(f"'{path}' is not an ordinary file.")
    return Source(str(path), path=path)


def parse_checksum(text: str | None) -> tuple[str, str] | None:
    """Return ``(algorithm, digits)`` of a SHA-256 or SHA-512 in hexadecimal digits.

    Raises
    ------
    UsageError
        If it is neither.
    """
    if text is None:
        return None
    digits = text.strip().lower()
    if re.fullmatch(r"[0-9a-f]+", digits) is None or len(digits) not in _DIGESTS:
        raise UsageError(
            "That is no SHA-256 or SHA-512 checksum.",
            hint="64 or 128 hexadecimal digits",
            checksum=text[:140],
        )
    return _DIGESTS[len(digits)], digits


def size_of(source: Source) -> int | None:
    """Return the bytes that a copy will take, or None if the server does not say."""
    if source.path is not None:
        info = source.path.stat()
        return min(info.st_size, info.st_blocks * 512)
    with _open(source, method="HEAD") as answer:
        return _length(answer.headers.get("Content-Length"))


def fetch(source: Source, target: Path, progress: Progress, checksum: tuple[str, str] | None = None) -> None:
    """Copy ``source`` to the new file ``target`` and compare its checksum.

    Raises
    ------
    BuildFailed
        If it cannot be read to its end, or is not what the checksum says.
    """
    progress(f"copying {source.name}", 0.0)
    with private.create(target) as out:
        if source.path is not None:
            _copy(source.path, out, progress)
        else:
            _download(source, out, progress)
    if checksum is not None:
        verify(target, checksum, source.text, progress)


def verify(path: Path, checksum: tuple[str, str], shown: str, progress: Progress) -> None:
    """Compare a file's checksum with what it should be.

    Raises
    ------
    BuildFailed
        If it differs, with both.
    """
    algorithm, expected = checksum
    digest = hashlib.new(algorithm)
    size = max(1, path.stat().st_size)
    done = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            done += len(block)
            progress("comparing the checksum", done / size)
    if digest.hexdigest() != expected:
        raise BuildFailed(
            f"'{shown}' is not the file that its checksum belongs to.",
            hint="fetch it again, and compare with the checksum that its makers publish",
            expected=expected,
            found=digest.hexdigest(),
        )


def _copy(path: Path, out: BinaryIO, progress: Progress) -> None:
    try:
        with path.open("rb") as source:
            copy_open(source, out, path.name, progress)
    except PermissionError:
        raise BuildFailed(f"'{path}' may not be read.", hint=f"ls -l '{path}'") from None


def copy_open(source: BinaryIO, out: BinaryIO, name: str, progress: Progress) -> None:
    """Copy an open file with its holes to another, sharing its blocks where the file system can."""
    try:
        fcntl.ioctl(out.fileno(), _FICLONE, source.fileno())
        return
    except OSError:
        pass  # this file system cannot share extents, or it is another one
    size = os.fstat(source.fileno()).st_size
    out.truncate(size)
    for start, end in _extents(source.fileno(), size):
        source.seek(start)
        out.seek(start)
        while start < end and (block := source.read(min(_BLOCK, end - start))):
            out.write(block)
            start += len(block)
            progress(f"copying {name}", start / size)


def _extents(fd: int, size: int) -> list[tuple[int, int]]:
    """Return where a file has data: a disk image is mostly holes."""
    found = []
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            return [(0, size)]  # a file system that does not tell
        at = os.lseek(fd, start, os.SEEK_HOLE)
        found.append((start, at))
    return found


def _open(source: Source, method: str = "GET") -> HTTPResponse:
    # Only http and https come here: parse_source() sees to it.
    request = urllib.request.Request(  # noqa: S310
        source.url or "", method=method, headers={"User-Agent": "vmlab", "Accept-Encoding": "identity"}
    )
    try:
        answer: HTTPResponse = urllib.request.urlopen(request, timeout=_TIMEOUT)  # noqa: S310
        return answer
    except urllib.error.HTTPError as error:
        raise BuildFailed(
            f"'{source.text}' cannot be fetched: the server answers {error.code} {error.reason}."
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise BuildFailed(
            f"'{source.text}' cannot be fetched.",
            hint="is the network up, and the address right?",
            cause=reason,
        ) from error


def _length(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def _download(source: Source, out: BinaryIO, progress: Progress) -> None:
    with _open(source) as answer:
        size = _length(answer.headers.get("Content-Length"))
        done = 0
        read: Callable[[int], bytes] = answer.read
        try:
            while block := read(_BLOCK):
                out.write(block)
                done += len(block)
                progress(f"fetching {source.name}, {done / 1e6:.0f} MB", done / size if size else None)
        except (TimeoutError, ConnectionError, ValueError) as error:
            raise BuildFailed(
                f"The connection broke while fetching '{source.text}'.", hint="try again", got=done, of=size
            ) from error
    if size is not None and done != size:
        raise BuildFailed(f"'{source.text}' ended early.", hint="try again", got=done, of=size)
