"""Makes one qcow2 of a disk in another format, or of several files, without following a name that is in one of them.

A stranger's disk may name any file of its reader's as the one below it, a private key for example, and a guest could
then read that. So we look ourselves which files it names, take those that lie beside it or were named by the person who
imports, copy them under names of our own, and tell qemu-img the format and the place of each. Nothing of what the disk
names is left to be followed.
"""

from __future__ import annotations

import functools
import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vmlab import private
from vmlab.errors import BuildFailed, NoSpace, UsageError
from vmlab.hypervisor.account import Account, find_program
from vmlab.images.look import Extent, Look, look
from vmlab.images.sources import Source, copy_open
from vmlab.images.unpack import LARGEST
from vmlab.images.work import need, run
from vmlab.render import units
from vmlab.render.progress import Progress

#: Bounds of one run of qemu-img over a stranger's file: bytes of address space, and seconds of CPU.
_MEMORY = 4 << 30
_SECONDS_A_GIB, _SECONDS = 300, 60
#: The formats that a disk can have, as qemu-img calls them.
DISKS = ("raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vhdx", "vpc")
#: Disks that may lie upon each other.
_DEEPEST = 64
_CLUSTER = 64 << 10  # bytes; qemu-img's default
_TRUNCATED = "it was not copied or downloaded to its end: fetch it again"


class Neighbours:
    """The files that a disk may be made of besides itself: those in its folder, and those that a person has named.

    Parameters
    ----------
    folder
        The folder that the disk lies in; None where it lies in none (an archive, the web).
    named
        Files that the person has named for it.
    """

    def __init__(self, folder: Path | None = None, named: Sequence[Source] = ()) -> None:
        self.folder = folder
        self.named = {source.name: source for source in named}
        self.used: set[str] = set()

    def open(self, name: str, shown: str, role: str) -> int:
        """Open the file that the disk ``shown`` calls ``name`` and return its descriptor.

        Raises
        ------
        BuildFailed
            It may not be followed, or is not there.
        """
        last = name.rpartition("/")[2]
        source = self.named.get(last)
        if source is not None and source.path is not None:
            self.used.add(last)
            return os.open(source.path, os.O_RDONLY | os.O_CLOEXEC)
        hint = "name that file with --backing FILE if it is yours to give, or make the disk whole first: "
        hint += "qemu-img convert -O qcow2 FILE whole.qcow2"
        evidence = {"other_disk" if role == "backing" else "other_file": name}
        what = {
            "backing": f"'{shown}' is only the changes to another disk",
            "data": f"'{shown}' keeps its data in another file",
            "part": f"'{shown}' consists of several files",
        }[role]
        if self.folder is None or last != name or name in ("", ".", "..", "?"):
            raise BuildFailed(f"{what}, which does not lie in its folder.", hint=hint, **evidence)
        above = os.open(self.folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # No link is followed, and nothing waits for a pipe's other end.
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=above)
        except OSError as error:
            raise BuildFailed(
                f"{what}, which cannot be opened in its folder.", hint=hint, **evidence, cause=error.strerror
            ) from error
        finally:
            os.close(above)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise BuildFailed(f"{what}, which is no ordinary file.", hint=hint, **evidence)
        return fd

    def check_used(self) -> None:
        """Refuse files that were named and that nothing needs: somebody means another one.

        Raises
        ------
        UsageError
            With their names.
        """
        if unused := sorted(set(self.named) - self.used):
            raise UsageError(
                f"No disk here is built on a file named {' or '.join(map(repr, unused))}.",
                hint="leave --backing out, or give the file under the name by which the disk calls it",
            )


@functools.cache
def _alone(account: Account) -> tuple[str, ...]:
    """Return the words that run a program without any network, where this host allows it."""
    words = (find_program("unshare") or "", "--user", "--net")
    if words[0] and account.run([*words, "true"], capture_output=True, check=False).returncode == 0:
        return words
    return ()


def confined(account: Account, argv: Sequence[str | Path], size: int, output: int = 0) -> list[str | Path]:
    """Return the words that run a program over a stranger's file of ``size`` bytes with bounds on what it can take."""
    seconds = _SECONDS + _SECONDS_A_GIB * -(-size >> 30)
    bounds = [f"--as={_MEMORY}", f"--cpu={seconds}", f"--fsize={output}", "--core=0"]
    return [need("prlimit", "util-linux"), *bounds, "--", *_alone(account), *argv]


class Flattener:
    """Gathers the files of one disk in ``folder`` and makes one of them.

    Parameters
    ----------
    shown
        What the disk is called in errors.
    """

    def __init__(
        self, account: Account, folder: Path, shown: str, neighbours: Neighbours, progress: Progress
    ) -> None:
        self.account, self.folder, self.shown = account, folder, shown
        self.neighbours, self.progress = neighbours, progress
        self.files: list[Path] = []
        self._seen: set[tuple[int, int]] = set()

    def gather(self, path: Path, shown: str, found: Look, depth: int = 0) -> dict[str, Any]:
        """Return QEMU's description of a disk with all below it; each file in it is a copy of ours."""
        if depth > _DEEPEST:
            raise BuildFailed(f"'{self.shown}' stands on more than {_DEEPEST} other disks.")
        if found.extents:
            path = self._describe(path, shown, found)
        node: dict[str, Any] = {"driver": found.format, "file": self._file(path)}
        if found.data_file is not None:
            node["data-file"] = self._file(self._take(found.data_file, shown, "data")[0])
        if found.format != "raw":
            node["backing"] = None
        self._check_whole(node, path, shown, found)
        if found.backing is not None:
            below, name = self._take(found.backing, shown, "backing")
            beneath = look(below, name, found.backing_format)
            if beneath.format not in DISKS:
                raise BuildFailed(f"'{shown}' says that '{name}' is a disk of a kind that cannot be read.")
            node["backing"] = self.gather(below, name, beneath, depth + 1)
        return node

    def _file(self, path: Path) -> dict[str, str]:
        return {"driver": "file", "filename": str(path)}

    def _take(self, name: str, shown: str, role: str) -> tuple[Path, str]:
        """Copy a file that the disk ``shown`` names, and return where it is and what to call it."""
        fd = self.neighbours.open(name, shown, role)
        with os.fdopen(fd, "rb") as source:
            info = os.fstat(fd)
            if role == "backing" and (info.st_dev, info.st_ino) in self._seen:
                raise BuildFailed(f"'{self.shown}' stands on itself.", other_disk=name)
            self._seen.add((info.st_dev, info.st_ino))
            room(self.folder, min(info.st_size, info.st_blocks * 512), self.shown)
            path = self.folder / f"part-{len(self.files)}"
            self.files.append(path)
            last = name.rpartition("/")[2]
            with private.create(path) as out:
                copy_open(source, out, last, self.progress)
        return path, last

    def _describe(self, path: Path, shown: str, found: Look) -> Path:
        """Write a VMDK's description anew, with its parts under our names."""
        lines = []
        for extent in found.extents:
            part, name = self._take(extent.name, shown, "part")
            flat = f" {extent.offset}" if extent.kind == "FLAT" else ""
            lines.append(f'RW {extent.sectors} {extent.kind} "{part.name}"{flat}')
            if extent.kind in ("FLAT", "VMFS"):
                size, needed = part.stat().st_size, (int(flat or 0) + extent.sectors) * 512
                if size < needed:
                    raise BuildFailed(f"'{name}' is cut short.", hint=_TRUNCATED, size=size, should_be=needed)
            else:
                self._check_part(part, name, extent, self._description(found, lines[-1:]))
        return self._description(found, lines)

    def _description(self, found: Look, lines: list[str]) -> Path:
        path = self.folder / f"part-{len(self.files)}"
        self.files.append(path)
        head = [
            f'{key}="{word}"' if key == "createType" else f"{key}={word}" for key, word in found.head.items()
        ]
        private.write(path, "\n".join(["# Disk DescriptorFile", "version=1", *head, *lines]) + "\n")
        return path

    def _check_part(self, path: Path, name: str, extent: Extent, alone: Path) -> None:
        """Make sure that a part of a VMDK is whole, and no description of others; ``alone`` describes it only."""
        if extent.kind != "SESPARSE" and look(path, name, "vmdk").extents:
            raise BuildFailed(f"'{name}' is no part of a disk, but a description of one.")
        node = {"driver": "vmdk", "file": self._file(alone), "backing": None}
        self._check_end(node, path, name)

    def _check_whole(self, node: dict[str, Any], path: Path, shown: str, found: Look) -> None:
        """Refuse a file that ends before its data does: QEMU would read zeros there."""
        if found.format == "qcow2":
            check_qcow2(self.account, node, path, shown)
        elif found.format != "raw" and not found.extents:
            self._check_end(node, path, shown, found.end)

    def _check_end(self, node: dict[str, Any], path: Path, shown: str, end: int = 0) -> None:
        ends = [part["offset"] + part["length"] for part in self._map(node, path, shown) if "offset" in part]
        size, end = path.stat().st_size, max(end, *ends, 0)
        if end > size:
            raise BuildFailed(f"'{shown}' is cut short.", hint=_TRUNCATED, size=size, should_be=end)

    def _map(self, node: dict[str, Any], path: Path, shown: str) -> list[dict[str, Any]]:
        parts = []

        def one(line: str) -> None:
            if (text := line.strip("[], \r")).startswith("{"):
                parts.append(json.loads(text))

        self._qemu_img(
            "map",
            "--output=json",
            "json:" + json.dumps(node),
            size=path.stat().st_size,
            shown=shown,
            on_line=one,
        )
        return parts

    def _qemu_img(self, *words: str, size: int, shown: str, output: int = 0, on_line: Any = None) -> str:
        argv = confined(self.account, [need("qemu-img", "qemu-utils"), *words], size, output)
        return run(
            self.account, argv, what=f"'{shown}' is damaged, or of a kind that cannot be read", hint=_TRUNCATED,
            on_line=on_line, cwd=self.folder,
        )  # fmt: skip

    def write(self, node: dict[str, Any], path: Path, target: Path) -> int:
        """Write a disk as one qcow2 and return its size as a guest sees it.

        Raises
        ------
        BuildFailed, NoSpace
            It cannot be read, or there is no room for what is in it.
        """
        whole = self._map(node, path, self.shown)
        size: int = max((part["start"] + part["length"] for part in whole), default=0)
        data: int = min(
            size, sum(_clusters(p["start"], p["length"]) for p in whole if p["data"] and not p["zero"])
        )
        if size > LARGEST:
            raise BuildFailed(
                f"'{self.shown}' claims to be larger than {units.size(LARGEST)}.",
                hint="is it what it should be?",
            )
        # qcow2's own tables: 8 bytes a cluster of 64 KiB, 2 for its count, and some of each at least.
        most = data + (size >> 12) + (4 << 20)
        room(self.folder, most, self.shown)
        private.write(target, b"")

        def one(line: str) -> None:
            done = line.strip().strip("()").partition("/")[0]
            if done.replace(".", "").isdigit():
                self.progress("making it one disk", float(done) / 100)

        self._qemu_img(
            "convert", "-p", "-O", "qcow2", "json:" + json.dumps(node), str(target), size=size, shown=self.shown,
            output=most, on_line=one,
        )  # fmt: skip
        for part in self.files:
            part.unlink()
        return size


def _clusters(start: int, length: int) -> int:
    """Return the bytes of all clusters of a qcow2 that a part of a disk touches."""
    return (-(-(start + length) // _CLUSTER) - start // _CLUSTER) * _CLUSTER


def room(folder: Path, needed: int, shown: str) -> None:
    """Refuse to write what the disk cannot hold.

    Raises
    ------
    NoSpace
        With the numbers.
    """
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    if needed > free:
        raise NoSpace(
            f"There is not enough disk space for what is in '{shown}'.",
            hint="delete machines, snapshots or images that are not needed, or set VMLAB_HOME to a larger disk",
            needed=units.size(needed),
            free=units.size(free),
        )


def alone(path: Path, form: str) -> dict[str, Any]:
    """Return QEMU's description of a disk in one file, whatever else that names."""
    return {"driver": form, "file": {"driver": "file", "filename": str(path)}, "backing": None}


def check_qcow2(account: Account, node: dict[str, Any], path: Path, shown: str) -> None:
    """Make sure that a qcow2 is undamaged and whole.

    Raises
    ------
    BuildFailed
        It is not.
    """
    size = path.stat().st_size
    words = [need("qemu-img", "qemu-utils"), "check", "--output=json", "-U", "json:" + json.dumps(node)]
    answer = account.run(confined(account, words, size), capture_output=True, text=True, check=False)
    try:
        result = json.loads(answer.stdout[answer.stdout.index("{") :])
    except ValueError:
        raise BuildFailed(
            f"'{shown}' is damaged.", hint=_TRUNCATED, output=answer.stdout + answer.stderr
        ) from None
    # Leaked clusters (status 3) only waste space.
    if answer.returncode not in (0, 3) or result.get("corruptions") or result.get("check-errors"):
        raise BuildFailed(f"'{shown}' is damaged.", hint=_TRUNCATED, output=answer.stderr or answer.stdout)
    end = result.get("image-end-offset", 0)
    with path.open("rb") as file:
        cluster = 1 << file.read(24)[23] % 32
    # The last cluster need not be whole.
    if size + cluster <= end:
        raise BuildFailed(f"'{shown}' is cut short.", hint=_TRUNCATED, size=size, should_be=end)
