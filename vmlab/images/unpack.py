"""Compressed files: what is around a disk is taken off in a stream, with bounds on memory and room."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import stat
import subprocess
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, Protocol

from vmlab import private
from vmlab.errors import BuildFailed, NoSpace
from vmlab.hypervisor.account import Account
from vmlab.images.work import need
from vmlab.render import units
from vmlab.render.progress import Progress

#: How compressed files begin.
_MAGIC = {
    b"\x1f\x8b": "gz",
    b"BZh": "bz2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zst",
    b"PK\x03\x04": "zip",
}
_BLOCK = 1 << 20
#: Written as a hole where all of it is zero.
_PAGE = 64 << 10
#: RAM that unpacking may take: the strongest settings of xz and zstd that people use need 64 and 128 MiB.
_MEMORY = 256 << 20
#: Bytes that a packed disk may have: 40 KB of zstd make a TiB of zeros.
LARGEST = 8 << 40
#: Bytes of the disk that are left free.
_RESERVE = 256 << 20


def packing(head: bytes) -> str | None:
    """Return how a file that begins with ``head`` is compressed, by the usual end of its name; None if it is not."""
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)


def unpack(account: Account, path: Path, target: Path, shown: str, progress: Progress) -> None:
    """Write to the new file ``target`` what is in the compressed file ``path``; zeros become holes.

    Raises
    ------
    BuildFailed
        It is damaged, cut short, or not one file; with what came out so far deleted.
    NoSpace
        More comes out than there is room for.
    """
    size = max(1, path.stat().st_size)
    # Without a buffer, so that a program that is given the descriptor begins where we are.
    with path.open("rb", buffering=0) as packed, private.create(target) as out:
        kind = packing(packed.read(8))
        packed.seek(0)
        sink = _Sink(out, target, shown)
        try:
            with _reader(account, packed, kind, shown) as read:
                while block := read.read(_BLOCK):
                    sink.write(block)
                    progress(f"unpacking, {units.size(sink.at)}", min(1.0, packed.tell() / size))
            sink.close()
        except (
            EOFError,
            zlib.error,
            gzip.BadGzipFile,
            lzma.LZMAError,
            zipfile.BadZipFile,
            ValueError,
        ) as error:
            raise _damaged(shown, error) from error
        except OSError as error:
            # bz2 has no exception of its own for damage.
            if error.errno is None:
                raise _damaged(shown, error) from error
            raise


def _damaged(shown: str, cause: object) -> BuildFailed:
    return BuildFailed(
        f"'{shown}' is damaged or cut short: it cannot be unpacked.",
        hint="it was not copied or downloaded to its end: fetch it again",
        cause=cause,
    )


class _Sink:
    """Writes a stream as a file with holes, within bounds."""

    def __init__(self, out: BinaryIO, path: Path, shown: str) -> None:
        self.out, self.path, self.shown = out, path, shown
        self.at = 0

    def write(self, block: bytes) -> None:
        self.at += len(block)
        if self.at > LARGEST:
            raise NoSpace(
                f"More than {units.size(LARGEST)} come out of '{self.shown}'.",
                hint="is it what it should be?",
            )
        found = os.statvfs(self.path.parent)
        if found.f_bavail * found.f_frsize < len(block) + _RESERVE:
            raise NoSpace(
                f"'{self.shown}' is larger than the disk has room for when it is unpacked.",
                hint="delete machines, snapshots or images that are not needed, or set VMLAB_HOME to a larger disk",
                unpacked_so_far=units.size(self.at),
            )
        for start in range(0, len(block), _PAGE):
            part = block[start : start + _PAGE]
            if part.count(0) == len(part):
                self.out.seek(len(part), os.SEEK_CUR)
            else:
                self.out.write(part)

    def close(self) -> None:
        self.out.truncate(self.at)


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


@contextmanager
def _reader(account: Account, packed: IO[bytes], kind: str | None, shown: str) -> Iterator[_Readable]:
    if kind == "gz":
        yield gzip.GzipFile(fileobj=packed)
    elif kind == "bz2":
        yield bz2.BZ2File(packed)
    elif kind == "xz":
        yield _Xz(packed)
    elif kind == "zst":
        with _zstd(account, packed, shown) as read:
            yield read
    else:
        with _zip(packed, shown) as read:
            yield read


class _Xz:
    """What is in an xz file; unlike `lzma.LZMAFile`, with a bound on the memory that it may ask for."""

    def __init__(self, packed: IO[bytes]) -> None:
        self.packed = packed
        self.stream: lzma.LZMADecompressor | None = None
        self.rest = b""

    def read(self, size: int, /) -> bytes:
        while True:
            if self.stream is None or self.stream.eof:
                # A file may be several streams, with zeros between them.
                begun = self.stream is not None
                self.rest = (self.rest or self.packed.read(_BLOCK)).lstrip(b"\0" if begun else b"")
                if not self.rest and begun:
                    if not (more := self.packed.read(_BLOCK)):
                        return b""
                    self.rest = more
                    continue
                self.stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY)
            if self.stream.needs_input and not self.rest:
                self.rest = self.packed.read(_BLOCK)
                if not self.rest:
                    raise EOFError("it ends early")
            block = self.stream.decompress(self.rest, size)
            self.rest = self.stream.unused_data if self.stream.eof else b""
            if block:
                return block


@contextmanager
def _zstd(account: Account, packed: IO[bytes], shown: str) -> Iterator[_Readable]:
    argv = [need("zstd", "zstd"), "-dcq", f"--memory={_MEMORY >> 20}MB"]
    process = account.popen(
        argv, stdin=packed, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    out, said = process.stdout, process.stderr
    assert out is not None
    assert said is not None
    with out, said:
        try:
            yield out
            # It says little, so it never waits for us to read that.
            words = said.read().decode(errors="replace").strip()
            if process.wait():
                raise _damaged(shown, words)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


@contextmanager
def _zip(packed: IO[bytes], shown: str) -> Iterator[_Readable]:
    with zipfile.ZipFile(packed) as archive:
        members = [m for m in archive.infolist() if not m.is_dir() and not m.filename.startswith("__MACOSX/")]
        if len(members) != 1:
            raise BuildFailed(
                f"'{shown}' holds {len(members)} files, not one disk.",
                hint="unpack it, and import what is in it",
                files=", ".join(m.filename for m in members[:20]),
            )
        member = members[0]
        if member.flag_bits & 1:
            raise BuildFailed(f"'{shown}' is locked with a password.", hint="unpack it first")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # The others may ask for any amount of memory.
            raise BuildFailed(
                f"'{shown}' is compressed in a way that is not known here.", hint="unpack it first"
            )
        if stat.S_ISLNK(member.external_attr >> 16):
            raise BuildFailed(f"'{shown}' holds only a link.", hint="unpack it, and import what it leads to")
        with archive.open(member) as read:
            yield read
