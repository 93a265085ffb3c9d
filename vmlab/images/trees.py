"""Trees of files for guests, written without privileges: tar files, initramfs archives, kernel modules."""

from __future__ import annotations

import fnmatch
import io
import re
import stat
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vmlab.errors import BuildFailed

#: Times in images, so that two builds of the same packages are the same bytes: 2025-01-01.
EPOCH = 1735689600


@dataclass(frozen=True)
class Entry:
    """A file, folder, link or device of a guest, owned by root there whoever owns it here."""

    path: str
    mode: int  # type and permissions, as in `stat.S_IFREG | 0o644`
    data: bytes = b""  # a link's target
    device: tuple[int, int] = (0, 0)


class FileTree:
    """Collects the files of a guest by their path."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def __contains__(self, path: str) -> bool:
        return path.strip("/") in self._entries

    def __getitem__(self, path: str) -> Entry:
        return self._entries[path.strip("/")]

    def _put(self, path: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        path = path.strip("/")
        parent = path.rpartition("/")[0]
        if parent and parent not in self._entries:
            self.folder(parent)
        self._entries[path] = Entry(path, mode, data, device)

    def folder(self, *paths: str, mode: int = 0o755) -> None:
        """Add folders (and the missing ones above)."""
        for path in paths:
            self._put(path, stat.S_IFDIR | mode)

    def file(self, path: str, data: bytes | str, mode: int = 0o644) -> None:
        """Add a file."""
        self._put(path, stat.S_IFREG | mode, data.encode() if isinstance(data, str) else data)

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._put(path, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device."""
        self._put(path, stat.S_IFCHR | mode, device=(major, minor))

    def copy(self, source: Path, path: str, mode: int | None = None) -> None:
        """Add a file of this machine; links are followed."""
        self.file(path, source.read_bytes(), (source.stat().st_mode & 0o777) if mode is None else mode)

    def entries(self) -> Iterable[Entry]:
        """Return what was added, folders before their contents, always in the same order."""
        return (self._entries[path] for path in sorted(self._entries))

    def write_tar(self, path: Path) -> None:
        """Write everything as a tar file."""
        kinds = {stat.S_IFDIR: tarfile.DIRTYPE, stat.S_IFLNK: tarfile.SYMTYPE, stat.S_IFCHR: tarfile.CHRTYPE}
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
            for entry in self.entries():
                member = tarfile.TarInfo("./" + entry.path)
                member.mode = stat.S_IMODE(entry.mode)
                member.mtime = EPOCH
                member.uname = member.gname = "root"
                member.type = kinds.get(stat.S_IFMT(entry.mode), tarfile.REGTYPE)
                member.devmajor, member.devminor = entry.device
                if member.issym():
                    member.linkname = entry.data.decode()
                member.size = len(entry.data) if member.isreg() else 0
                archive.addfile(member, io.BytesIO(entry.data) if member.isreg() else None)

    def write_initramfs(self, path: Path) -> None:
        """Write everything as an initramfs (cpio, "newc").

        It is not compressed: unpacking costs more, in an emulated CPU, than QEMU needs to read it.
        """
        with path.open("wb") as out:
            for number, entry in enumerate(self.entries(), start=1):
                out.write(_cpio(entry, number))
            out.write(_cpio(Entry("TRAILER!!!", 0), 0))
            out.write(bytes(-out.tell() % 512))


def _cpio(entry: Entry, number: int) -> bytes:
    name = entry.path.encode() + b"\0"
    when = EPOCH if number else 0
    fields = (number, entry.mode, 0, 0, 1, when, len(entry.data), 0, 0, *entry.device, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    head += bytes(-len(head) % 4)
    return head + entry.data + bytes(-len(entry.data) % 4)


class Modules:
    """The modules of an unpacked Linux package: names, and what each needs."""

    def __init__(self, folder: Path) -> None:
        self._files = {p.name.removesuffix(".ko").replace("-", "_"): p for p in sorted(folder.rglob("*.ko"))}

    def closure(self, names: Iterable[str]) -> list[Path]:
        """Return the files of modules and all they depend on, in the order to load them.

        Names may be patterns. One that is no module is taken for something built into the kernel and skipped.
        """
        done: dict[str, Path] = {}

        def add(name: str, trail: tuple[str, ...] = ()) -> None:
            name = name.replace("-", "_")
            if name in done or name not in self._files:
                return
            if name in trail:
                raise BuildFailed(f"The kernel modules {' -> '.join((*trail, name))} need each other.")
            found = re.search(rb"\0depends=([^\0]*)\0", self._files[name].read_bytes())
            for dependency in (found[1].decode() if found else "").split(","):
                if dependency:
                    add(dependency, (*trail, name))
            done[name] = self._files[name]

        for name in names:
            for match in fnmatch.filter(self._files, name.replace("-", "_")):
                add(match)
        return list(done.values())


def initramfs(busybox: Path, modules: list[Path], init: str) -> FileTree:
    """Return a small initramfs: busybox, modules to load in order (``/modules``), and ``init``."""
    tree = FileTree()
    tree.folder("dev", "proc", "sys", "root", "lib")
    tree.character_device("dev/console", 5, 1)
    tree.copy(busybox, "bin/busybox", 0o755)
    tree.link("bin/sh", "busybox")
    for module in modules:
        tree.copy(module, f"lib/{module.name}", 0o644)
    tree.file("modules", "".join(f"/lib/{module.name}\n" for module in modules))
    tree.file("init", init, 0o755)
    return tree
