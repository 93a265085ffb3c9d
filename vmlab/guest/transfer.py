"""Copy files and folders into a guest and out of it, through its agent.

Whatever is copied appears in its place whole or not at all: it is written beside it under another name, compared (size,
and SHA-256 where the guest has ``sha256sum``) and then renamed. Folders travel as a tar archive. The guest is not
trusted: an archive from it can write nothing outside the folder that it is unpacked into.

Holes of sparse files stay holes, both ways. Into the guest only what lies between them is sent; the guest's own tools
(busybox) know no sparse archives, so an archive holds such a file empty, its pieces of data beside it, and a list.
Out of it, whole blocks of zeros become holes. FIFOs, sockets and devices are left out, and that is said.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import io
import os
import shlex
import shutil
import stat
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path, PurePosixPath

from vmlab.errors import (
    AgentError,
    AlreadyExists,
    CommandFailed,
    NoSpace,
    NotFound,
    Overtaken,
    UsageError,
    WrongState,
)
from vmlab.guest import GuestDomain
from vmlab.guest.agent import CHUNK, INPUT_MAX, PIECE, CommandResult, execute, refused, script

__all__ = ["Moved", "get", "put", "read_bytes", "write_bytes"]

BinaryFile = io.BufferedReader | io.BufferedRandom

#: Called with the bytes done and the bytes in all, as a copy goes on.
Moved = Callable[[int, int], None]

#: Seconds for one step in the guest, such as unpacking an archive or a checksum of a big file in a slow guest.
STEP = 1800
#: Seconds for one read or write of a chunk.
ANSWER = 60
#: Seconds that a guest whose agent has ended may take to restart or power off.
GOING_DOWN = 30.0
#: Holes are made of whole blocks of so many bytes, and looked for in files that have more than so many bytes.
BLOCK, MAY_HAVE_HOLES = 4096, 64 << 10
#: Names that are looked at of a folder in the guest, and shown of what was left out.
NAMES, SHOWN_NAMES = 500, 5

# Exit statuses of our own scripts, away from those of programs.
_MISSING, _FOLDER, _FULL, _DIFFERS, _DENIED = 93, 94, 95, 96, 97

# Says where a copy to $1 goes ($2 is its own name, $3 its kind): prints kind (file, folder, new), free KiB and the
# path, and below that what lies in $1. A name that ends in / must be a folder. A folder is copied again to one of its
# name.
_RESOLVE = r"""
t=$1 n=
if [ -d "$t" ]; then
  b=${t%/}
  if [ "$3" != folder ] || [ "$b" != "$t" ] || [ "${b##*/}" != "$2" ]; then
    t=$b/$2
    [ "$3" != folder ] || [ "$b" != "$1" ] || n=$b
  fi
elif [ "${t%/}" != "$t" ]; then exit @MISSING@; fi
p=${t%/*}; [ "$p" != "$t" ] || p=.
[ -n "$p" ] || p=/
[ -d "$p" ] || exit @MISSING@
[ -w "$p" ] || exit @DENIED@
if [ -d "$t" ]; then k=folder; elif [ -e "$t" ]; then k=file; else k=new; fi
set -- $(df -Pk "$p" 2>/dev/null | tail -n 1)
[ "${2:-0}" != 0 ] || shift $# # /proc and the like
echo "$k ${4:-x} $t"
[ -z "$n" ] || for e in "$n"/* "$n"/.[!.]* "$n"/..?*; do
  [ ! -e "$e" ] && [ ! -L "$e" ] || echo "${e##*/}"
done | head -n @NAMES@
"""

# Gives file $1 a hole at its end, up to $2 bytes.
_EXTEND = 'extend() { dd if=/dev/null of="$1" bs=1 seek="$2" count=0 2>/dev/null; }\n'

# Finishes a file: $1 temporary, $2 target, $3 mode, $4 size, $5 SHA-256. With "in" as $6 the bytes come as input, with
# "hole" there is a hole at its end.
_PLACE = r"""
@EXTEND@
[ "$6" != hole ] || extend "$1" "$4"
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

# Unpacks archive $1 beside target $2 and moves it there; an existing folder gets the files added. Sparse files lie in
# it empty: their pieces are holes/NUMBER.BLOCK, their date that of holes/NUMBER, and holes/list says which they are.
_UNPACK = r"""
@EXTEND@
t=$1.d
fill() {
  [ -f "$t/holes/list" ] || return 0
  while IFS=' ' read -r n size path; do
    f=$1/${path%/.}
    extend "$f" "$size" || return 1
    for piece in "$t/holes/$n".*; do
      [ ! -f "$piece" ] || dd if="$piece" of="$f" bs=@BLOCK@ seek="${piece##*.}" conv=notrunc 2>/dev/null || return 1
    done
    touch -r "$t/holes/$n" "$f"
  done <"$t/holes/list"
}
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
  cp -af "$t/data/." "$2/" && fill "$2" || { rm -rf "$t"; exit @FULL@; }
else
  fill "$t/data" || { rm -rf "$t"; exit @FULL@; }
  mv "$t/data" "$2" || { rm -rf "$t"; exit @DENIED@; }
fi
rm -rf "$t"
"""

# Describes $1: kind, mode, size, SHA-256 or "-". A folder is packed into an archive, whose path comes last; below that
# stand the names of what is no file, folder or link (sockets are in no archive).
_DESCRIBE = r"""
[ -e "$1" ] || { [ -L "$1" ] || exit @MISSING@; }
[ -r "$1" ] || exit @DENIED@
if [ -d "$1" ]; then
  command -v tar >/dev/null || { echo "there is no tar" >&2; exit 1; }
  umask 077
  a= s=
  case $(tar --version 2>/dev/null) in *GNU*) s=-S ;; esac # holes stay holes in the archive
  for b in /var/tmp /tmp /run /dev/shm; do
    if [ -w "$b" ]; then
      a=$b/$2
      if (cd "$1" && tar -c $s -f "$a" .); then break; fi
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
[ $k = file ] || (cd "$1" && find . ! -type f ! -type d ! -type l 2>/dev/null | head -n @NAMES@)
"""


def _shell(domain: GuestDomain, text: str, *args: str, input: bytes | None = None) -> CommandResult:
    """Run one of the scripts above in the guest."""
    for name in ("EXTEND", "MISSING", "FOLDER", "FULL", "DIFFERS", "DENIED"):
        text = text.replace(f"@{name}@", str(globals()[f"_{name}"]))
    text = text.replace("@BLOCK@", str(BLOCK)).replace("@NAMES@", str(NAMES))
    head = "set -- " + " ".join(shlex.quote(arg) for arg in args) + "\n"
    return script(domain, "#!/bin/sh\n" + head + text, timeout=STEP, input=input)


@contextlib.contextmanager
def _copying(domain: GuestDomain, what: str) -> Iterator[None]:
    """Say it plainly when the guest restarts or powers off while something is copied."""
    with domain.events() as events:
        try:
            yield
        except (AgentError, WrongState) as error:
            if isinstance(error, Overtaken):
                raise
            end, gone = time.monotonic() + GOING_DOWN, False
            # The agent goes first, and then the guest.
            while (event := events.next(end - time.monotonic() if gone else 0)) is not None:
                how = {"RESET": "rebooted", "SHUTDOWN": "powered off"}.get(event.name)
                if how is not None:
                    raise Overtaken(
                        f"{domain.name} {how} while '{what}' was copied.",
                        hint="copy it again when it is up",
                    ) from error
                if event.name == "VSERPORT_CHANGE":
                    gone = not event.data.get("open")
            raise


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


def _warn(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=4)


def _left_out(where: str, names: Collection[str], tell: Callable[[str], None]) -> None:
    """Say what was left out of a folder."""
    if names:
        shown = sorted(repr(name)[1:-1] for name in names)
        more = f" and {len(shown) - SHOWN_NAMES} more" if len(shown) > SHOWN_NAMES else ""
        tell(
            f"left out of '{where}', since it is no file, folder or link: "
            + ", ".join(shown[:SHOWN_NAMES])
            + more
        )


def put(
    domain: GuestDomain,
    local: str | Path,
    remote: str,
    *,
    progress: Moved | None = None,
    tell: Callable[[str], None] = _warn,
) -> str:
    """Copy a file or a folder of the host into the guest, and return its path there.

    If ``remote`` is a folder, it goes into that folder under its own name, as with ``cp -r``. A folder may be copied
    again by the same call: where ``remote`` is a folder of its own name, or holds nothing that it does not have itself,
    that one is brought up to date. Files keep their permissions (not their owner: they belong to root) and replace a
    file of that name; a folder is added to one of that name. Holes of sparse files stay holes.

    Parameters
    ----------
    domain
        The guest.
    local
        A file or folder on the host, or a link to one.
    remote
        An absolute path in the guest. One that ends in ``/`` must be a folder, into which it goes.
    progress
        Called with bytes done and bytes in all.
    tell
        Called with a sentence if FIFOs, sockets or devices in a folder were left out; by default it is a warning.

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
    # By its own name, also for "." and for a link.
    source = Path(os.path.abspath(Path(local).expanduser()))  # noqa: PTH100 - resolve() would follow the link
    if not source.exists():
        raise NotFound(f"There is no file '{local}' on this host.")
    if source.is_dir():
        with tempfile.TemporaryFile(prefix="vmlab-") as archive:
            left_out = _pack(source, archive)
            names = {entry.name for entry in source.iterdir()}
            target = _send(domain, archive, remote, source.name, "folder", 0, progress, names=names)
            _left_out(str(local), left_out, tell)
            return target
    if not source.is_file():
        raise UsageError(f"'{local}' is neither a file nor a folder.")
    try:
        with source.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            return _send(domain, file, remote, source.name, "file", mode, progress)
    except PermissionError as error:
        raise UsageError(f"'{local}' cannot be read: permission denied.") from error


def write_bytes(
    domain: GuestDomain, data: bytes, remote: str, *, mode: int = 0o644, progress: Moved | None = None
) -> str:
    """Write a file in the guest, whole or not at all, and return its path.

    Errors are those of `put`; ``remote`` cannot be a folder.
    """
    _check_remote(remote)
    with tempfile.TemporaryFile(prefix="vmlab-") as file:
        file.write(data)
        return _send(domain, file, remote, "", "file", mode, progress)


def _pack(source: Path, archive: io.BufferedRandom) -> list[str]:
    """Write a folder's archive, and return the names of what is left out of it."""
    folder = source.resolve()
    sparse: list[tuple[Path, tarfile.TarInfo, int, list[tuple[int, int]]]] = []

    def taken(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        name = member.name.removeprefix("data/")
        if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
            return None
        if member.isreg() and member.size > MAY_HAVE_HOLES and "\n" not in name:
            with (folder / name).open("rb") as file:
                pieces = _pieces(file, member.size)
            if pieces != [(0, member.size)]:
                sparse.append((folder / name, member, member.size, pieces))
                member.size = 0
        return member

    try:
        with tarfile.open(fileobj=archive, mode="w", format=tarfile.GNU_FORMAT) as tar:
            tar.add(folder, "data", filter=taken)
            names = []
            for number, (path, member, size, pieces) in enumerate(sparse):
                names.append(f"{number} {size} ./{member.name.removeprefix('data/')}/.\n")
                tar.addfile(_member(f"holes/{number}", member.mtime, 0))
                with path.open("rb") as file:
                    for start, end in pieces:
                        file.seek(start)
                        piece = _member(f"holes/{number}.{start // BLOCK}", member.mtime, end - start)
                        tar.addfile(piece, file)
            if names:
                text = os.fsencode("".join(names))
                tar.addfile(_member("holes/list", 0, len(text)), io.BytesIO(text))
    except PermissionError as error:
        raise UsageError(f"'{error.filename}' cannot be read: permission denied.") from error
    # tarfile leaves out sockets by itself.
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if not (path.is_symlink() or path.is_file() or path.is_dir())
    ]


def _member(name: str, mtime: float, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.mtime, member.size, member.mode = mtime, size, 0o600
    return member


def _pieces(file: io.BufferedReader | io.BufferedRandom, size: int) -> list[tuple[int, int]]:
    """Return where a file has data, as ``(start, end)`` in whole blocks; between them are holes."""
    found: list[tuple[int, int]] = []
    at = 0
    while at < size:
        try:
            start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            at = min(os.lseek(file.fileno(), start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break  # a hole up to the end
            return [(0, size)]
        start -= start % BLOCK
        if found and start <= found[-1][1]:
            start = found.pop()[0]
        found.append((start, at))
    return found


def _send(
    domain: GuestDomain,
    file: BinaryFile,
    remote: str,
    name: str,
    kind: str,
    mode: int,
    progress: Moved | None,
    *,
    names: Collection[str] = (),
) -> str:
    """Send an open file (an archive for ``kind`` folder, which holds ``names``) to its place in the guest."""
    with _copying(domain, remote):
        return _sent(domain, file, remote, name, kind, mode, progress, names)


def _sent(
    domain: GuestDomain,
    file: BinaryFile,
    remote: str,
    name: str,
    kind: str,
    mode: int,
    progress: Moved | None,
    names: Collection[str],
) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    found = _shell(domain, _RESOLVE, remote, name, kind)
    _explain(domain, found, remote, putting=True)
    first, *there = found.stdout.splitlines()
    existing, free, target = first.split(" ", 2)
    if there and len(there) < NAMES and set(there) <= set(names):
        # A copy that was made of it before, under another name.
        existing, target = "folder", remote
    if kind == "file" and existing == "folder":
        raise AlreadyExists(f"'{target}' in {domain.name} is a folder; a file cannot take its place.")
    if kind == "folder" and existing == "file":
        raise AlreadyExists(f"'{target}' in {domain.name} is a file; a folder cannot take its place.")
    pieces = _pieces(file, size) if size > MAY_HAVE_HOLES else [(0, size)]
    # A folder is there twice for a moment: packed and unpacked.
    needed = sum(end - start for start, end in pieces) * (2 if kind == "folder" else 1)
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
        file.seek(0)
        done = _shell(
            domain, _PLACE, temporary, target, f"{mode:o}", str(size), digest, "in", input=file.read()
        )
        if progress:
            progress(size, size)
    else:
        try:
            _upload(domain, file, temporary, pieces, progress)
        except BaseException:
            # Interrupted or out of space: leave nothing behind, as far as the guest still answers.
            with contextlib.suppress(Exception):
                execute(domain, ["rm", "-f", temporary], timeout=10)
            raise
        if kind == "file":
            hole = "hole" if not pieces or pieces[-1][1] < size else ""
            done = _shell(domain, _PLACE, temporary, target, f"{mode:o}", str(size), digest, hole)
        else:
            done = _shell(domain, _UNPACK, temporary, target, str(size), digest)
    _explain(domain, done, target, putting=True)
    return target


def _upload(
    domain: GuestDomain,
    file: BinaryFile,
    remote: str,
    pieces: list[tuple[int, int]],
    progress: Moved | None,
) -> None:
    """Write pieces of a file to their places in one of the guest."""
    try:
        handle = domain.agent("guest-file-open", timeout=ANSWER, path=remote, mode="w")
    except AgentError as error:
        raise refused(domain, error, "write files") from error
    sent, size = 0, sum(end - start for start, end in pieces)
    try:
        at = 0
        for start, end in pieces:
            if start != at:
                domain.agent("guest-file-seek", timeout=ANSWER, handle=handle, offset=start, whence="set")
            file.seek(start)
            at = start
            while piece := file.read(min(PIECE, end - at)):
                at += len(piece)
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
    domain: GuestDomain,
    remote: str,
    local: str | Path | None = None,
    *,
    progress: Moved | None = None,
    tell: Callable[[str], None] = _warn,
) -> Path:
    """Copy a file or a folder of the guest to the host, and return its path there.

    As with ``cp -r``: if ``local`` is a folder, it goes into that folder under its own name; a folder is copied again
    to one of its own name. Files keep their permissions and belong to the caller. Blocks of zeros become holes.

    Parameters
    ----------
    domain
        The guest.
    remote
        An absolute path in the guest.
    local
        A path on the host; by default the current folder. One that ends in ``/`` must be a folder.
    progress
        Called with bytes done and bytes in all.
    tell
        Called with a sentence if FIFOs, sockets or devices in a folder were left out; by default it is a warning.

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
    again = target.is_dir() and target.name == name and not str(local).endswith("/")
    if target.is_dir():
        target = target / name
    elif str(local).endswith("/"):
        raise NotFound(f"There is no folder '{local}' on this host.", hint="make it first")
    if not target.parent.is_dir():
        raise NotFound(f"There is no folder '{target.parent}' on this host.", hint="make it first")
    with _fetch(domain, remote, target.parent, progress) as (kind, mode, path, left_out):
        if kind == "folder":
            if again:
                target = target.parent
            if target.exists() and not target.is_dir():
                raise AlreadyExists(f"'{target}' is a file; a folder cannot take its place.")
            room = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=target.parent))
            try:
                _unpack(path, room)
                room.chmod(mode)
                if target.is_dir():
                    _merge(room, target)
                else:
                    room.replace(target)
            finally:
                shutil.rmtree(room, ignore_errors=True)
            _left_out(remote, left_out, tell)
        else:
            if target.is_dir():
                raise AlreadyExists(f"'{target}' is a folder; a file cannot take its place.")
            path.chmod(mode)
            path.replace(target)
    return target


def _merge(room: Path, target: Path) -> None:
    """Move what is in a folder into another one, file by file; files that are there are replaced."""
    for entry in list(room.iterdir()):
        place = target / entry.name
        if entry.is_dir() and not entry.is_symlink():
            if place.is_symlink() or (place.exists() and not place.is_dir()):
                # A link of an earlier copy must not lead this one elsewhere.
                raise AlreadyExists(f"'{place}' is no folder; a folder cannot take its place.")
            mode = stat.S_IMODE(entry.stat().st_mode)
            entry.chmod(mode | 0o700)
            place.mkdir(exist_ok=True)
            place.chmod(mode | 0o700)
            _merge(entry, place)
            place.chmod(mode)
        elif place.is_dir() and not place.is_symlink():
            raise AlreadyExists(f"'{place}' is a folder; a file cannot take its place.")
        else:
            entry.replace(place)


def read_bytes(domain: GuestDomain, remote: str, *, progress: Moved | None = None) -> bytes:
    """Return the contents of a file in the guest. Errors are those of `get`."""
    _check_remote(remote)
    with (
        tempfile.TemporaryDirectory(prefix="vmlab-") as folder,
        _fetch(domain, remote, Path(folder), progress, files_only=True) as (_, _, path, _),
    ):
        return path.read_bytes()


@contextlib.contextmanager
def _fetch(
    domain: GuestDomain, remote: str, folder: Path, progress: Moved | None, *, files_only: bool = False
) -> Iterator[tuple[str, int, Path, list[str]]]:
    """Copy a file, or the archive of a folder, to a temporary file in ``folder``.

    Yields kind, mode and path, and what a folder has that is no file, folder or link.
    """
    try:
        handle, path_text = tempfile.mkstemp(prefix=".vmlab-", dir=folder)
    except PermissionError as error:
        raise UsageError(f"Nothing can be written to '{folder}': permission denied.") from error
    os.close(handle)
    path = Path(path_text)
    try:
        with _copying(domain, remote):
            kind, mode, others = _fetched(domain, remote, path, progress, files_only=files_only)
        yield kind, mode, path, others
    finally:
        path.unlink(missing_ok=True)


def _fetched(
    domain: GuestDomain, remote: str, path: Path, progress: Moved | None, *, files_only: bool
) -> tuple[str, int, list[str]]:
    for _ in range(3):
        archive = f".vmlab.{os.urandom(8).hex()}.tar"
        found = _shell(domain, _DESCRIBE, remote, archive)
        _explain(domain, found, remote, putting=False)
        first, *others = found.stdout.splitlines()
        kind, mode, size, digest, source = first.split(" ", 4)
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
            return kind, int(mode, 8) & 0o777, [name.removeprefix("./") for name in others]
    raise AgentError(
        f"'{remote}' in {domain.name} kept changing while it was copied.",
        hint="copy it to another name there first",
    )


def _download(domain: GuestDomain, remote: str, path: Path, size: int, progress: Moved | None) -> str:
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
                _write(file, data)
                digest.update(data)
                done += len(data)
                if progress:
                    progress(done, max(size, done))
            file.truncate(done)
    except OSError as error:
        raise NoSpace(
            f"'{path.parent}' has no room for {size} bytes: {error.strerror}.",
            hint="free some space on this host",
        ) from error
    finally:
        with contextlib.suppress(AgentError):
            domain.agent("guest-file-close", timeout=ANSWER, handle=handle)
    return digest.hexdigest()


def _write(file: io.BufferedWriter, data: bytes) -> None:
    """Write data at a file's place; whole blocks of zeros become holes (the last one by a truncate at the end)."""
    at = 0
    while at < len(data):
        end, zero = at, False
        while end < len(data):
            block = data[end : end + BLOCK]
            now = block.count(0) == len(block)
            if end > at and now != zero:
                break
            zero = now
            end += len(block)
        if zero:
            file.seek(end - at, os.SEEK_CUR)
        else:
            file.write(data[at:end])
        at = end


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
                    while data := stream.read(CHUNK):
                        _write(file, data)
                    file.truncate(member.size)
                path.chmod(member.mode & 0o777)
    # Last and from the inside out: a folder without w would not take its files.
    for path, mode in reversed(modes):
        path.chmod(mode & 0o777)
