"""A file as one state has it."""

from __future__ import annotations

import dataclasses
import hashlib
import stat
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from vmlab.compare.volumes import FileSystem

_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


#: Larger files have no text diff, and no hash in JSON; and the bytes that are hashed for one JSON.
TEXT_LIMIT = 256 << 10
HASH_LIMIT = 64 << 20
#: Bytes that are looked at to tell text from other content.
_PROBE = 8192


def printable(path: str) -> str:
    r"""Return a path as it can be printed anywhere; bytes that are no UTF-8 are shown as ``\xff``."""
    shown = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


@dataclass(frozen=True)
class FileState:
    """A file as one of the two states has it.

    Attributes
    ----------
    type
        ``file``, ``directory``, ``symlink``, ``character device``, ``block device``, ``fifo`` or ``socket``.
    mode
        Permission bits, with set-user-ID and the like. FAT and NTFS have none: 0777, or 0555 for read-only files.
    uid, gid
        Owner and group; 0 on FAT and NTFS.
    size
        Bytes.
    mtime
        When the content was changed, in nanoseconds since 1970. FAT keeps local time, which is taken as UTC.
    target
        What a symbolic link leads to.
    device
        Major and minor number of a device.
    flags
        The letters of ``lsattr``: ``i`` immutable, ``a`` append-only ...; on FAT and NTFS ``R`` read-only,
        ``H`` hidden, ``S`` system, ``C`` compressed, ``E`` encrypted. Those of XFS are not read.
    inode
        Its number: of NTFS that of its record, of FAT the place of its entry.
    """

    type: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    target: str | None
    device: tuple[int, int] | None
    flags: str
    inode: int
    _fs: FileSystem = field(repr=False, compare=False)
    _inode: Any = field(repr=False, compare=False)

    @classmethod
    def of(cls, fs: FileSystem, inode: Any) -> FileState:
        """Read a file's state, not its content."""
        link = inode.format == stat.S_IFLNK
        return cls(
            type=_TYPES.get(inode.format, "unknown"),
            mode=stat.S_IMODE(inode.mode),
            uid=inode.uid,
            gid=inode.gid,
            size=inode.size,
            mtime=inode.mtime,
            target=text_of(fs.target(inode)) if link else None,
            device=inode.device,
            flags=inode.shown_flags,
            inode=inode.number,
            _fs=fs,
            _inode=inode,
        )

    @cached_property
    def attributes(self) -> dict[str, bytes]:
        """Extended attributes, with their prefix: ``user.x``, ``security.capability``, ``system.posix_acl_access``.

        Of NTFS, as ntfs-3g names them: the first 64 KiB of other streams (``user.NAME``), and ``system.ntfs_acl``.
        """
        return {text_of(k): v for k, v in sorted(self._fs.attributes(self._inode).items())}

    @cached_property
    def sha256(self) -> str | None:
        """SHA-256 of a file's content; None for what has none. The whole content is read."""
        if self.type != "file":
            return None
        digest = hashlib.sha256()
        for part in self._fs.parts(self._inode):
            digest.update(part)
        return digest.hexdigest()

    @cached_property
    def fingerprint(self) -> str | None:
        """What is equal for files of equal content, whatever their size; holes are not read. None as of `sha256`."""
        return self._fs.fingerprint(self._inode) if self.type == "file" else None

    def read(self, limit: int | None = None) -> bytes:
        """Return a file's content, at most ``limit`` bytes of it."""
        if self.type != "file":
            return b""
        return self._fs.read(self._inode, 0, self.size if limit is None else limit)

    def to_json(self, limit: int = HASH_LIMIT) -> dict[str, Any]:
        """Return what is known, with the hash of files up to 64 MiB, or another limit."""
        found: dict[str, Any] = {
            item.name: getattr(self, item.name)
            for item in dataclasses.fields(self)
            if not item.name.startswith("_")
        }
        found["mode"] = f"{self.mode:04o}"
        found["target"] = None if self.target is None else printable(self.target)
        found["attributes"] = {printable(k): v.hex() for k, v in self.attributes.items()}
        found["sha256"] = self.sha256 if self.size <= limit else None
        return found


def text_of(path: bytes) -> str:
    """Return a path of the guest as Python writes it: see :func:`os.fsdecode`."""
    return path.decode("utf-8", "surrogateescape")


def lines(state: FileState | None) -> list[str] | None:
    """Return the lines, with their ends, of a text file, or None if it is none, or too large; nothing has no lines."""
    if state is None:
        return []
    if state.type != "file" or state.size > TEXT_LIMIT or b"\0" in state.read(_PROBE):
        return None
    try:
        text = state.read().decode("utf-8")
    except UnicodeDecodeError:
        return None
    # Not splitlines(): a form feed ends no line. What stands behind the last "\n" is a line only if there is something.
    *lines, rest = text.split("\n")
    return [f"{line}\n" for line in lines] + ([rest] if rest else [])
