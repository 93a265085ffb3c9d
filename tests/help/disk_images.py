"""Small ext images without root, disorder in them, and what is truly on them: for the tests of comparing files.

Runs inside guests as well, so it needs nothing but Python.
"""

# Names that are no UTF-8 need bytes, which pathlib does not take.
# ruff: noqa: PTH101, PTH102, PTH103, PTH104, PTH108, PTH115, PTH116, PTH118, PTH202, PTH208, PTH211

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import shutil
import stat
import struct
import subprocess
import tempfile
import uuid
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

#: What a mounted tree says of a path.
Truth = dict[bytes, dict[str, Any]]

FLAVOURS = {
    "ext4": ["-b", "4096"],
    "1k": ["-b", "1024"],
    "ext2": ["-t", "ext2", "-b", "1024", "-I", "128"],
    "ext3": ["-t", "ext3", "-b", "4096"],
    "inline": ["-O", "inline_data", "-I", "512", "-b", "4096"],
    "old": ["-O", "^metadata_csum,^64bit,^flex_bg,uninit_bg", "-I", "128", "-b", "2048"],
    "plain": ["-O", "^metadata_csum,^uninit_bg,^has_journal,meta_bg,^resize_inode", "-b", "4096"],
    "bigalloc": ["-O", "bigalloc", "-C", "16384", "-b", "1024"],
    "large": ["-O", "ea_inode,large_dir", "-b", "4096"],
}


def tool(*argv: object, **options: Any) -> str:
    found = shutil.which(str(argv[0]), path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    assert found, f"{argv[0]} is not installed"
    done = subprocess.run([found, *map(str, argv[1:])], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def make_image(path: Path, flavour: str = "ext4", size: str = "24M", tree: Path | None = None) -> Path:
    """Make a raw image with an ext file system."""
    path.unlink(missing_ok=True)
    options = FLAVOURS[flavour]
    kind = [] if "-t" in options else ["-t", "ext4"]
    tool("mke2fs", "-q", "-F", *kind, *options, *(["-d", tree] if tree else []), path, size)
    return path


def gpt_disk(
    path: Path, images: dict[int, Path], ids: dict[int, str] | None = None, *, backup_only: bool = False
) -> Path:
    """Put images into partitions of these numbers, the first at 1 MiB; ``ids`` are their UUIDs."""
    table = bytearray(128 * 128)
    contents: list[tuple[int, bytes]] = []
    at = 1 << 20
    for number, image in images.items():
        data = image.read_bytes()
        own = uuid.UUID((ids or {}).get(number) or str(uuid.uuid4()))
        place = at // 512, (at + len(data)) // 512 - 1
        struct.pack_into("<16s16sQQ", table, (number - 1) * 128, uuid.uuid4().bytes_le, own.bytes_le, *place)
        contents.append((at, data))
        at += -(-len(data) // (1 << 20)) << 20
    disk = bytearray(at + (1 << 20))
    for at, data in contents:
        disk[at : at + len(data)] = data
    size = len(disk) // 512

    def head(at: int, place: int) -> None:
        text = bytearray(92)
        struct.pack_into("<8sIIIIQQ", text, 0, b"EFI PART", 0x10000, 92, 0, 0, at, 0)
        struct.pack_into("<QIII", text, 72, place, 128, 128, zlib.crc32(table))
        struct.pack_into("<I", text, 16, zlib.crc32(text))
        disk[at * 512 : at * 512 + 92] = text
        disk[place * 512 : place * 512 + len(table)] = table

    disk[446:462] = struct.pack("<B3xB3xII", 0, 0xEE, 1, size - 1)
    disk[510:512] = b"\x55\xaa"
    if not backup_only:
        head(1, 2)
    head(size - 1, size - 33)
    path.write_bytes(disk)
    return path


def overlay(before: Path, after: Path, path: Path) -> Path:
    """Make a qcow2 file over ``before`` that reads like ``after`` and holds only what differs."""
    path.unlink(missing_ok=True)
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", after, path)
    tool("qemu-img", "rebase", "-q", "-F", "raw", "-b", before, path)
    return path


def can_mount() -> bool:
    """Whether this host lets us mount an image."""
    return os.geteuid() == 0 and Path("/dev/loop-control").exists()


@contextlib.contextmanager
def mounted(image: Path, folder: Path, options: str = "loop,noatime") -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    tool("mount", "-o", options, image, folder)
    try:
        yield folder
    finally:
        tool("umount", folder)


def truth(top: Path) -> Truth:
    """Return what the kernel says of everything below ``top``."""
    root = os.fsencode(top)
    found: Truth = {}
    waiting = [root]
    while waiting:
        path = waiting.pop()
        state = os.lstat(path)
        kind = stat.S_IFMT(state.st_mode)
        found[path[len(root) :] or b"/"] = {
            "type": kind,
            "mode": stat.S_IMODE(state.st_mode),
            "owner": state.st_uid,
            "group": state.st_gid,
            "mtime": state.st_mtime_ns,
            "content": _content(path) if kind == stat.S_IFREG else None,
            "target": os.readlink(path) if kind == stat.S_IFLNK else None,
            "device": state.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else None,
            "attributes": {
                n: os.getxattr(path, n, follow_symlinks=False)
                for n in os.listxattr(path, follow_symlinks=False)
            },
        }
        if kind == stat.S_IFDIR:
            waiting += [os.path.join(path, name) for name in os.listdir(path)]
    return found


def _content(path: bytes) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
            size += len(part)
    return size, digest.hexdigest()


def check(found: Any, before: Truth, after: Truth) -> None:
    """Check a FilesDiff against the truth, path by path; raise an AssertionError that says what is wrong."""
    said = {os.fsencode(e.path): e for e in found}
    assert len(said) == len(found)
    gone_to = {os.fsencode(e.old_path): e for e in found if e.old_path is not None}
    moves = sorted(
        (
            (os.fsencode(e.old_path), os.fsencode(e.path))
            for e in found
            if e.kind == "renamed" and e.type == "directory"
        ),
        key=lambda move: -len(move[1]),
    )
    for path in after.keys() - before.keys():
        entry = said.pop(path, None)
        if entry is None:
            # It came with a directory that was renamed; nothing else about it may differ.
            old, new = next((m for m in moves if path.startswith(m[1] + b"/")), (None, None))
            assert old is not None, f"{path!r} is new and not reported"
            assert before[old + path[len(new) :]] == after[path], path
        elif entry.old_path is None:
            assert entry.kind == "added", (path, entry)
        else:
            assert entry.kind in ("renamed", "changed", "metadata", "touched"), (path, entry)
            assert differences(before[os.fsencode(entry.old_path)], after[path]) == set(entry.what) - {
                "replaced"
            }, entry
    for path in before.keys() - after.keys():
        entry = said.pop(path, None)
        if entry is not None:
            assert entry.kind == "removed", (path, entry)
        elif path not in gone_to:
            assert any(path.startswith(old + b"/") for old, _ in moves), f"{path!r} is gone and not reported"
    for path in before.keys() & after.keys():
        entry = said.pop(path, None)
        expected = differences(before[path], after[path])
        what = set() if entry is None else set(entry.what) - {"replaced"}
        assert what == expected, f"{path!r}: {what} instead of {expected}"
        if entry is not None:
            assert entry.kind not in ("added", "removed", "renamed"), entry
    assert not said, f"reported without a reason: {said}"
    for entry in found:
        for state, side in ((entry.before, before), (entry.after, after)):
            path = entry.old_path if side is before and entry.old_path is not None else entry.path
            if state is not None and state.type == "file":
                assert (state.size, state.sha256) == side[os.fsencode(path)]["content"], entry


def differences(x: dict[str, Any], y: dict[str, Any]) -> set[str]:
    if x["type"] != y["type"]:
        return {"type"}
    return {name for name in x if x[name] != y[name]}


NAMES = [
    "a",
    "b",
    "c",
    "long-" + "n" * 200,
    "ünïcode",
    "new\nline",
    " space ",
    b"\xff\xfe",
    "-rf",
    "$(x)",
    "'\"\\",
]


class Disorder:
    """Changes a tree at random, as programs and people do."""

    def __init__(self, top: Path, seed: int) -> None:
        self.top, self.random = os.fsencode(top), random.Random(seed)

    def path(self, kinds: tuple[int, ...] = ()) -> bytes | None:
        """Choose something that is there."""
        found = []
        waiting = [self.top]
        while waiting:
            folder = waiting.pop()
            for entry in os.scandir(folder):
                kind = stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode)
                if not kinds or kind in kinds:
                    found.append(entry.path)
                if kind == stat.S_IFDIR:
                    waiting.append(entry.path)
        if stat.S_IFDIR in kinds:
            found.append(self.top)
        return self.random.choice(sorted(found)) if found else None

    def new(self) -> bytes:
        folder = self.path((stat.S_IFDIR,))
        assert folder is not None
        name = self.random.choice(NAMES)
        return os.path.join(folder, name if isinstance(name, bytes) else name.encode())

    def data(self, most: int = 30000) -> bytes:
        size = self.random.choice([0, 1, 40, 100, 1024, 4096, self.random.randrange(most)])
        return self.random.randbytes(size)

    # -- what can happen -------------------------------------------------------------------------------------------

    def create(self) -> None:
        with open(self.new(), "xb") as file:
            file.write(self.data())

    def append(self) -> None:
        if path := self.path((stat.S_IFREG,)):
            with open(path, "ab") as file:
                file.write(self.data())

    def overwrite(self) -> None:
        if path := self.path((stat.S_IFREG,)):
            size = os.path.getsize(path)
            with open(path, "r+b") as file:
                file.seek(self.random.randrange(size + 1))
                file.write(self.data(6000))

    def quietly(self) -> None:
        """Change content and give the file its old times again."""
        if path := self.path((stat.S_IFREG,)):
            state = os.stat(path)
            if state.st_size:
                with open(path, "r+b") as file:
                    file.seek(self.random.randrange(state.st_size))
                    file.write(self.random.randbytes(1))
                os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))

    def truncate(self) -> None:
        if path := self.path((stat.S_IFREG,)):
            os.truncate(path, self.random.randrange(os.path.getsize(path) * 2 + 2))

    def sparse(self) -> None:
        with open(self.new(), "xb") as file:
            for _ in range(self.random.randrange(1, 12)):
                file.seek(self.random.randrange(self.random.choice([1 << 16, 1 << 24, 1 << 26])))
                file.write(self.data(3000))

    def preallocate(self) -> None:
        if path := self.path((stat.S_IFREG,)):
            with open(path, "r+b") as file:
                os.posix_fallocate(
                    file.fileno(), self.random.randrange(20000), self.random.randrange(1, 60000)
                )

    def delete(self) -> None:
        if path := self.path((stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR)):
            os.unlink(path)

    def delete_tree(self) -> None:
        path = self.path((stat.S_IFDIR,))
        if path and path != self.top:
            shutil.rmtree(path)

    def rename(self) -> None:
        path = self.path()
        if path:
            os.rename(path, self.random.choice([self.new(), self.path() or path]))

    def swap(self) -> None:
        x, y = self.path(), self.path()
        if x and y:
            spare = os.path.join(self.top, b"spare")
            os.rename(x, spare)
            try:
                os.rename(y, x)
            except OSError:
                os.rename(spare, x)
                raise
            os.rename(spare, y)

    def replace(self) -> None:
        """Save as editors do."""
        if path := self.path((stat.S_IFREG,)):
            with open(path + b"~", "xb") as file:
                file.write(self.data())
            os.rename(path + b"~", path)

    def hard_link(self) -> None:
        if path := self.path((stat.S_IFREG,)):
            os.link(path, self.new())

    def symlink(self) -> None:
        os.symlink(b"t" * self.random.choice([1, 59, 60, 61, 300, 1000]), self.new())

    def directory(self) -> None:
        os.mkdir(self.new())

    def deep(self) -> None:
        os.makedirs(os.path.join(self.new(), *[b"d%d" % n for n in range(12)]))

    def crowd(self) -> None:
        folder = self.new()
        os.mkdir(folder)
        for n in range(self.random.choice([20, 200])):
            with open(os.path.join(folder, b"%d" % n + b"-" * 60), "wb"):
                pass

    def special(self) -> None:
        os.mknod(
            self.new(),
            self.random.choice([stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK]) | 0o600,
            os.makedev(8, 300),
        )

    def chmod(self) -> None:
        if path := self.path((stat.S_IFREG, stat.S_IFDIR)):
            os.chmod(path, self.random.choice([0o600, 0o755, 0o4755]))

    def chown(self) -> None:
        if path := self.path():
            os.lchown(path, self.random.choice([0, 1000, 100000]), self.random.choice([0, 1000, 100000]))

    def touch(self) -> None:
        if path := self.path():
            times = self.random.choice([0, 10**18 + 7, 2**31 * 10**9])
            os.utime(path, ns=(times, times), follow_symlinks=False)

    def attribute(self) -> None:
        if path := self.path((stat.S_IFREG, stat.S_IFDIR)):
            name = self.random.choice(["user.x", "user." + "long" * 20, "trusted.t"])
            os.setxattr(path, name, self.random.randbytes(self.random.choice([0, 4, 500, 900])))

    def attribute_away(self) -> None:
        if path := self.path((stat.S_IFREG, stat.S_IFDIR)):
            for name in os.listxattr(path):
                os.removexattr(path, name)

    def happen(self, count: int) -> None:
        actions: list[Callable[[], None]] = [
            getattr(self, name)
            for name in vars(Disorder)
            if not name.startswith("_") and name not in ("happen", "path", "new", "data")
        ]
        # Making things more often than not, or there is soon nothing left.
        actions += [self.create] * 5 + [self.directory] * 2
        for _ in range(count):
            try:
                self.random.choice(actions)()
            except (FileExistsError, IsADirectoryError, NotADirectoryError, FileNotFoundError):
                pass
            except OSError as error:
                # A directory into itself, over one with something in it; names and disks that are full.
                known = (
                    errno.EINVAL,
                    errno.ENOTEMPTY,
                    errno.ENAMETOOLONG,
                    errno.ENOSPC,
                    errno.EBUSY,
                    errno.EFBIG,
                )
                if error.errno not in known:
                    raise


def scratch() -> tempfile.TemporaryDirectory[str]:
    """Return a new folder, in memory where there is enough: mounted images are flushed all the time."""
    memory = Path("/dev/shm")
    enough = memory.is_dir() and shutil.disk_usage(memory).free > 1 << 30
    return tempfile.TemporaryDirectory(prefix="vmlab-", dir=memory if enough else None)
