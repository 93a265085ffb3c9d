"""Copy files and folders into a guest and out of it, through its agent.

Whatever is copied appears in its place whole or not at all: it is written beside it under another name, compared (size,
and SHA-256 where the guest has ``sha256sum``) and then renamed. Folders travel as a tar archive. The guest is not
trusted: an archive from it can write nothing outside the folder that it is unpacked into.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
import shlex
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from vmlab.errors import AgentError, AlreadyExists, CommandFailed, NoSpace, NotFound, UsageError
from vmlab.guest import GuestDomain
from vmlab.guest.agent import CHUNK, INPUT_MAX, PIECE, CommandResult, execute, refused, script

__all__ = ["Progress", "get", "put", "read_bytes", "write_bytes"]

BinaryFile = io.BufferedReader | io.BufferedRandom

#: Called with the bytes done and the bytes in all, as a copy goes on.
Progress = Callable[[int, int], None]

#: Seconds for one step in the guest, such as unpacking an archive or a checksum of a big file in a slow guest.
STEP = 1800
#: Seconds for one read or write of a chunk.
ANSWER = 60

# Exit statuses of our own scripts, away from those of programs.
_MISSING, _FOLDER, _FULL, _DIFFERS, _DENIED = 93, 94, 95, 96, 97

# Says where a copy to $1 goes ($2 is its own name): prints kind (file, folder, new) and the path. A name that ends
# in / must be a folder.
_RESOLVE = r"""
t=$1
if [ -d "$t" ]; then t=${t%/}/$2; elif [ "${t%/}" != "$t" ]; then exit @MISSING@; fi
p=${t%/*}; [ "$p" != "$t" ] || p=.
[ -n "$p" ] || p=/
[ -d "$p" ] || exit @MISSING@
[ -w "$p" ] || exit @DENIED@
if [ -d "$t" ]; then k=folder; elif [ -e "$t" ]; then k=file; else k=new; fi
set -- $(df -Pk "$p" 2>/dev/null | tail -n 1)
[ "${2:-0}" != 0 ] || shift $# # /proc and the like
echo "$k ${4:-x} $t"
"""

# Finishes a file: $1 temporary, $2 target, $3 mode, $4 size, $5 SHA-256. With "in" as $6 the bytes come as input.
_PLACE = r"""
if [ "$6" = in ]; then
  umask 077
  cat >"$1" || { rm -f "$1"; exit @FULL@; }
fi
n=$(wc -c <"$1")
[ $((n)) = "$4" ] || { rm -f "$1"; exit @FULL@; }
if command -v sha256sum >/dev/null; then
  h=$(sha256sum <"$1")
  [ "${h%% *}" = "$5" ] || { rm -f "$1"; exit @DIFFERS@; }
fi
chmod "$3" "$1" && mv -f "$1" "$2" || { rm -f "$1"; exit @DENIED@; }
"""

# Unpacks archive $1 beside target $2 and moves it there; an existing folder gets the files added.
_UNPACK = r"""
t=$1.d
n=$(wc -c <"$1")
[ $((n)) = "$3" ] || { rm -f "$1"; exit @FULL@; }
if command -v sha256sum >/dev/null; then
  h=$(sha256sum <"$1")
  [ "${h%% *}" = "$4" ] || { rm -f "$1"; exit @DIFFERS@; }
fi
command -v tar >/dev/null || { rm -f "$1"; echo "there is no tar" >&2; exit 1; }
mkdir "$t" && tar -x -p -f "$1" -C "$t"
s=$?
rm -f "$1"
[ $s = 0 ] || { rm -rf "$t"; exit @FULL@; }
if [ -d "$2" ]; then
  cp -a "$t/data/." "$2/" || { rm -rf "$t"; exit @FULL@; }
  rm -rf "$t"
else
  mv "$t/data" "$2" || { rm -rf "$t"; exit @DENIED@; }
  rmdir "$t"
fi
"""

# Describes $1: kind, mode, size, SHA-256 or "-". A folder is packed into an archive, whose path comes last.
_DESCRIBE = r"""
[ -e "$1" ] || { [ -L "$1" ] || exit @MISSING@; }
[ -r "$1" ] || exit @DENIED@
if [ -d "$1" ]; then
  command -v tar >/dev/null || { echo "there is no tar" >&2; exit 1; }
  umask 077
  a=
  for b in /var/tmp /tmp /run /dev/shm; do
    if [ -w "$b" ]; then
      a=$b/$2
      if (cd "$1" && tar -c -f "$a" .); then break; fi
      rm -f "$a"; a=
    fi
  done
  [ -n "$a" ] || exit @FULL@
  k=folder f=$a
elif [ -f "$1" ]; then
  k=file f=$1
else
  echo "it is neither a file nor a folder" >&2; exit 1
fi
m=$(stat -L -c %a "$1" 2>/dev/null) || m=644
n=$(wc -c <"$f")
h=-
if command -v sha256sum >/dev/null; then
  # Of the first n bytes: a log may grow meanwhile. Files of /proc say 0 and have contents.
  if [ $((n)) = 0 ]; then h=$(sha256sum <"$f"); else h=$(head -c $((n)) "$f" | sha256sum); fi
fi
echo "$k $m $((n)) ${h%% *} $f"
"""


def _shell(domain: GuestDomain, text: str, *args: str, input: bytes | None = None) -> CommandResult:
    """Run one of the scripts above in the guest."""
    for name in ("MISSING", "FOLDER", "FULL", "DIFFERS", "DENIED"):
        text = text.replace(f"@{name}@", str(globals()[f"_{name}"]))
    head = "set -- " + " ".join(shlex.quote(arg) for arg in args) + "\n"
    return script(domain, "#!/bin/sh\n" + head + text, timeout=STEP, input=input)


def _explain(domain: GuestDomain, result: CommandResult, remote: str, *, putting: bool) -> None:
    """Raise the plain error for a failed step; return if it succeeded."""
    name, says = domain.name, result.stderr.strip()
    if result.status == 0:
        return
    if result.status == _MISSING:
        if putting:
            folder = remote.rstrip("/") if remote.endswith("/") else str(PurePosixPath(remote).parent)
            raise NotFound(
                f"There is no folder '{folder}' in {name}.",
                hint=f"make it first: mkdir -p {shlex.quote(folder)}",
            )
        raise NotFound(f"There is no file '{remote}' in {name}.")
    if result.status == _FULL or "No space left" in says:
        if says and "No space left" not in says:
            raise AgentError(f"'{remote}' could not be written in {name}.", guest_says=says)
        raise NoSpace(
            f"There is no room for '{remote}' in {name}.",
            hint="free some there, or give the machine a larger disk",
            guest_says=says,
        )
    if result.status == _DIFFERS:
        raise AgentError(
            f"'{remote}' arrived in {name} with other contents than were sent.", hint="try again"
        )
    if result.status == _DENIED:
        raise AgentError(
            f"'{remote}' cannot be {'written' if putting else 'read'} in {name}.",
            guest_says=says,
            hint="is it read-only?",
        )
    raise CommandFailed(
        f"'{remote}' could not be copied: {says.splitlines()[-1] if says else 'unknown'}.",
        machine=name,
        exit_status=result.status,
        stderr=says,
    )


def _check_remote(remote: str) -> str:
    if not remote or "\0" in remote or "\n" in remote:
        raise UsageError(f"{remote!r} cannot be a path in a guest.")
    if not remote.startswith("/"):
        raise UsageError(
            f"'{remote}' is not an absolute path in the guest.", hint=f"for example /root/{remote}"
        )
    return remote


def put(domain: GuestDomain, local: str | Path, remote: str, *, progress: Progress | None = None) -> str:
    """Copy a file or a folder of the host into the guest, and return its path there.

    As with ``cp -r``: if ``remote`` is a folder, it goes into that folder under its own name. Files keep their
    permissions (not their owner: they belong to root) and replace a file of that name; a folder is added to one of
    that name.

    Parameters
    ----------
    domain
        The guest.
    local
        A file or folder on the host.
    remote
        An absolute path in the guest. One that ends in ``/`` must be a folder.
    progress
        Called with bytes done and bytes in all.

    Raises
    ------
    NotFound
        ``local``, or the folder for it in the guest, is not there.
    NoSpace
        The guest has no room for it.
    AgentError
        The agent refused, the place cannot be written to, or what arrived is not what was sent.
    """
    _check_remote(remote)
    source = Path(local).expanduser()
    if not source.exists():
        raise NotFound(f"There is no file '{source}' on this host.")
    if source.is_dir():
        with tempfile.TemporaryFile(prefix="vmlab-") as archive:
            with tarfile.open(fileobj=archive, mode="w", format=tarfile.GNU_FORMAT) as tar:
                tar.add(source, "data", filter=_as_root)
            return _send(domain, archive, remote, source.resolve().name, "folder", 0, progress)
    if not source.is_file():
        raise UsageError(f"'{source}' is neither a file nor a folder.")
    try:
        with source.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            return _send(domain, file, remote, source.name, "file", mode, progress)
    except PermissionError as error:
        raise UsageError(f"'{source}' cannot be read: permission denied.") from error


def write_bytes(
    domain: GuestDomain, data: bytes, remote: str, *, mode: int = 0o644, progress: Progress | None = None
) -> str:
    """Write a file in the guest, whole or not at all, and return its path.

    Errors are those of `put`; ``remote`` cannot be a folder.
    """
    _check_remote(remote)
    with tempfile.TemporaryFile(prefix="vmlab-") as file:
        file.write(data)
        return _send(domain, file, remote, "", "file", mode, progress)


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member if member.isreg() or member.isdir() or member.issym() or member.islnk() else None


def _send(
    domain: GuestDomain,
    file: BinaryFile,
    remote: str,
    name: str,
    kind: str,
    mode: int,
    progress: Progress | None,
) -> str:
    """Send an open file (an archive for ``kind`` folder) to its place in the guest."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    found = _shell(domain, _RESOLVE, remote, name)
    _explain(domain, found, remote, putting=True)
    existing, free, target = found.stdout.rstrip("\n").split(" ", 2)
    if kind == "file" and existing == "folder":
        raise AlreadyExists(f"'{target}' in {domain.name} is a folder; a file cannot take its place.")
    if kind == "folder" and existing == "file":
        raise AlreadyExists(f"'{target}' in {domain.name} is a file; a folder cannot take its place.")
    # A folder is there twice for a moment: packed and unpacked.
    needed = size * (2 if kind == "folder" else 1)
    if free.isdigit() and int(free) * 1024 < needed:
        raise NoSpace(
            f"There is no room for '{target}' in {domain.name}.",
            hint="free some there, or give the machine a larger disk",
            needed_bytes=needed,
            free_bytes=int(free) * 1024,
        )
    target = target.rstrip("/") or "/"
    parent = str(PurePosixPath(target).parent).rstrip("/")
    temporary = f"{parent}/.vmlab.{os.urandom(8).hex()}"
    if kind == "file" and size <= INPUT_MAX:
        done = _shell(
            domain, _PLACE, temporary, target, f"{mode:o}", str(size), digest, "in", input=file.read()
        )
        if progress:
            progress(size, size)
    else:
        try:
            _upload(domain, file, temporary, size, progress)
        except BaseException:
            # Interrupted or out of space: leave nothing behind, as far as the guest still answers.
            with contextlib.suppress(Exception):
                execute(domain, ["rm", "-f", temporary], timeout=10)
            raise
        if kind == "file":
            done = _shell(domain, _PLACE, temporary, target, f"{mode:o}", str(size), digest, "")
        else:
            done = _shell(domain, _UNPACK, temporary, target, str(size), digest)
    _explain(domain, done, target, putting=True)
    return target


def _upload(domain: GuestDomain, file: BinaryFile, remote: str, size: int, progress: Progress | None) -> None:
    try:
        handle = domain.agent("guest-file-open", timeout=ANSWER, path=remote, mode="w")
    except AgentError as error:
        raise refused(domain, error, "write files") from error
    sent = 0
    try:
        while piece := file.read(PIECE):
            while piece:
                text = base64.b64encode(piece).decode()
                count = int(
                    domain.agent("guest-file-write", timeout=ANSWER, handle=handle, buf_b64=text)["count"]
                )
                if count <= 0:
                    raise NoSpace(f"There is no room for '{remote}' in {domain.name}.")
                piece = piece[count:]
                sent += count
            if progress:
                progress(sent, size)
        domain.agent("guest-file-flush", timeout=ANSWER, handle=handle)
    except AgentError as error:
        if "No space left" in str(error):
            raise NoSpace(
                f"{domain.name} ran out of room after {sent} of {size} bytes.",
                hint="free some there, or give the machine a larger disk",
            ) from error
        raise
    finally:
        with contextlib.suppress(AgentError):
            domain.agent("guest-file-close", timeout=ANSWER, handle=handle)


def get(
    domain: GuestDomain, remote: str, local: str | Path | None = None, *, progress: Progress | None = None
) -> Path:
    """Copy a file or a folder of the guest to the host, and return its path there.

    As with ``cp -r``: if ``local`` is a folder, it goes into that folder under its own name. Files keep their
    permissions and belong to the caller. Device files, sockets and the like in a folder are left out.

    Parameters
    ----------
    domain
        The guest.
    remote
        An absolute path in the guest.
    local
        A path on the host; by default the current folder.
    progress
        Called with bytes done and bytes in all.

    Raises
    ------
    NotFound
        ``remote``, or the folder for ``local``, is not there.
    AlreadyExists
        A file would have to take the place of a folder, or a folder that of a file.
    NoSpace
        The host, or (for the archive of a folder) the guest, has no room.
    AgentError
        The agent refused, or the file changed again and again while it was copied.
    """
    _check_remote(remote)
    name = PurePosixPath(remote).name or domain.name
    target = Path(local if local is not None else ".").expanduser()
    if target.is_dir():
        target = target / name
    elif str(local).endswith("/"):
        raise NotFound(f"There is no folder '{local}' on this host.")
    if not target.parent.is_dir():
        raise NotFound(f"There is no folder '{target.parent}' on this host.", hint="make it first")
    with _fetch(domain, remote, target.parent, progress) as (kind, mode, path):
        if kind == "folder":
            if target.exists() and not target.is_dir():
                raise AlreadyExists(f"'{target}' is a file; a folder cannot take its place.")
            room = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=target.parent))
            try:
                _unpack(path, room)
                room.chmod(mode)
                if target.is_dir():
                    shutil.copytree(room, target, symlinks=True, dirs_exist_ok=True)
                else:
                    room.replace(target)
            finally:
                shutil.rmtree(room, ignore_errors=True)
        else:
            if target.is_dir():
                raise AlreadyExists(f"'{target}' is a folder; a file cannot take its place.")
            path.chmod(mode)
            path.replace(target)
    return target


def read_bytes(domain: GuestDomain, remote: str, *, progress: Progress | None = None) -> bytes:
    """Return the contents of a file in the guest. Errors are those of `get`."""
    _check_remote(remote)
    with (
        tempfile.TemporaryDirectory(prefix="vmlab-") as folder,
        _fetch(domain, remote, Path(folder), progress, files_only=True) as (_, _, path),
    ):
        return path.read_bytes()


@contextlib.contextmanager
def _fetch(
    domain: GuestDomain, remote: str, folder: Path, progress: Progress | None, *, files_only: bool = False
) -> Iterator[tuple[str, int, Path]]:
    """Copy a file, or the archive of a folder, to a temporary file in ``folder``; yield kind, mode and path."""
    try:
        handle, path_text = tempfile.mkstemp(prefix=".vmlab-", dir=folder)
    except PermissionError as error:
        raise UsageError(f"Nothing can be written to '{folder}': permission denied.") from error
    os.close(handle)
    path = Path(path_text)
    try:
        for _ in range(3):
            archive = f".vmlab.{os.urandom(8).hex()}.tar"
            found = _shell(domain, _DESCRIBE, remote, archive)
            _explain(domain, found, remote, putting=False)
            kind, mode, size, digest, source = found.stdout.rstrip("\n").split(" ", 4)
            try:
                if kind == "folder" and files_only:
                    raise UsageError(f"'{remote}' in {domain.name} is a folder.", hint="get copies folders")
                got = _download(domain, source, path, int(size), progress)
            finally:
                if kind == "folder":
                    with contextlib.suppress(AgentError):
                        execute(domain, ["rm", "-f", source], timeout=30)
            # Without sha256sum in the guest the size must do. Files of /proc and /sys say 0 and have contents.
            if digest in ("-", got) and (path.stat().st_size == int(size) or int(size) == 0):
                yield kind, int(mode, 8) & 0o777, path
                return
        raise AgentError(
            f"'{remote}' in {domain.name} kept changing while it was copied.",
            hint="copy it to another name there first",
        )
    finally:
        path.unlink(missing_ok=True)


def _download(domain: GuestDomain, remote: str, path: Path, size: int, progress: Progress | None) -> str:
    """Copy bytes of a file in the guest, as many as it had when it was described; return their SHA-256."""
    try:
        handle = domain.agent("guest-file-open", timeout=ANSWER, path=remote, mode="r")
    except AgentError as error:
        raise refused(domain, error, "read files") from error
    digest = hashlib.sha256()
    done = 0
    try:
        with path.open("wb") as file:
            while size == 0 or done < size:
                count = CHUNK if size == 0 else min(CHUNK, size - done)
                answer = domain.agent("guest-file-read", timeout=ANSWER, handle=handle, count=count)
                data = base64.b64decode(answer.get("buf-b64", ""))
                if not data:
                    break
                file.write(data)
                digest.update(data)
                done += len(data)
                if progress:
                    progress(done, max(size, done))
    except OSError as error:
        raise NoSpace(
            f"'{path.parent}' has no room for {size} bytes: {error.strerror}.",
            hint="free some space on this host",
        ) from error
    finally:
        with contextlib.suppress(AgentError):
            domain.agent("guest-file-close", timeout=ANSWER, handle=handle)
    return digest.hexdigest()


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive that is not trusted: nothing is written outside ``folder``, nothing but files and links."""
    modes: list[tuple[Path, int]] = []
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = [part for part in PurePosixPath(member.name).parts if part not in (".", "/")]
            if not parts:
                continue
            path = folder.joinpath(*parts)
            # Resolved, so that a link inside the archive cannot lead a later member out of the folder.
            if ".." in parts or not path.parent.resolve().is_relative_to(folder.resolve()):
                raise AgentError(f"The guest's archive wants to write outside its folder: '{member.name}'.")
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_symlink() or path.is_file():
                path.unlink()
            if member.isdir():
                path.mkdir(exist_ok=True)
                modes.append((path, member.mode))
            elif member.issym():
                path.symlink_to(member.linkname)
            elif member.islnk():
                origin = folder.joinpath(
                    *[part for part in PurePosixPath(member.linkname).parts if part not in (".", "/")]
                )
                if (
                    ".." in origin.parts
                    or not origin.parent.resolve().is_relative_to(folder.resolve())
                    or origin.is_symlink()
                ):
                    raise AgentError(
                        f"The guest's archive wants to link outside its folder: '{member.linkname}'."
                    )
                os.link(origin, path)
            elif member.isreg():
                stream = tar.extractfile(member)
                assert stream is not None
                with stream, path.open("wb") as file:
                    shutil.copyfileobj(stream, file)
                path.chmod(member.mode & 0o777)
    # Last and from the inside out: a folder without w would not take its files.
    for path, mode in reversed(modes):
        path.chmod(mode & 0o777)
