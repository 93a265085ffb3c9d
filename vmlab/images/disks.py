"""Disk files: ext4 from a tar file, and what qemu-img knows. Nothing here needs privileges."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vmlab.errors import BuildFailed, HostError
from vmlab.hypervisor.account import Account
from vmlab.images.trees import EPOCH
from vmlab.images.work import need, run

#: All names derived from this are the same in every build, e.g. file-system UUIDs.
_NAMESPACE = uuid.UUID("5f3e9a52-6f0b-4d57-9d86-0b8c3c5b7f10")


def fixed_uuid(name: str) -> str:
    """Return a UUID that is the same in every build."""
    return str(uuid.uuid5(_NAMESPACE, name))


def ext4_disk(account: Account, tar: Path, disk: Path, size: int, name: str) -> None:
    """Write a tar file's contents as an ext4 file system labelled ``vmlab`` into a new qcow2 file.

    Parameters
    ----------
    size
        Bytes that the guest sees. The file itself only takes what is used.
    name
        What the file system's UUID is derived from.
    """
    mke2fs = need("mke2fs", "e2fsprogs")
    _check_mke2fs(account, mke2fs)
    raw = disk.with_suffix(".raw")
    # The tables are written now, not by the guest's first mounts: a snapshot should hold the guest's doings only.
    extended = f"hash_seed={fixed_uuid(name + ' hash')},lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0"
    argv = [mke2fs, "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "1", "-L", "vmlab", "-U", fixed_uuid(name)]
    argv += ["-E", extended, "-d", str(tar), str(raw), f"{size // 1024}k"]
    # mke2fs prefers libarchive; without it tar files are not understood at all.
    hint = "sudo apt-get install libarchive13 (Debian 12) or libarchive13t64 (Debian 13)"
    run(
        account, argv, what="mke2fs could not make the disk", env={"SOURCE_DATE_EPOCH": str(EPOCH)}, hint=hint
    )
    qemu_img(
        account, "convert", "-f", "raw", "-O", "qcow2", raw, disk, what="qemu-img could not write the disk"
    )
    raw.unlink()


def _check_mke2fs(account: Account, mke2fs: str) -> None:
    text = run(account, [mke2fs, "-V"], what="mke2fs does not run")
    found = re.search(r"mke2fs (\d+)\.(\d+)\.?(\d*)", text)
    version = tuple(int(part or 0) for part in found.groups()) if found else (0,)
    if version < (1, 47, 1):
        raise HostError(
            "This mke2fs cannot make a file system from a tar file; version 1.47.1 or newer can.",
            hint="on Debian 12: sudo apt-get install e2fsprogs/bookworm-backports",
            version=".".join(map(str, version)),
        )


def qemu_img(
    account: Account,
    command: str,
    *words: str | Path,
    what: str,
    hint: str | None = None,
    on_line: Callable[[str], None] | None = None,
) -> str:
    """Run ``qemu-img`` as the account and return what it printed."""
    argv = [need("qemu-img", "qemu-utils"), command, *words]
    return run(account, argv, what=what, hint=hint, on_line=on_line)


def disk_info(account: Account, path: Path, form: str | None = None) -> dict[str, Any]:
    """Return what ``qemu-img info`` says of a file (never of the files it may point to).

    Raises
    ------
    BuildFailed
        If it is no disk of the format it claims to be.
    """
    words: list[str | Path] = ["--output=json", "-U", *(["-f", form] if form else []), path]
    text = qemu_img(account, "info", *words, what=f"'{path.name}' cannot be read as a disk")
    try:
        answer: dict[str, Any] = json.loads(text[text.index("{") :])
    except ValueError as error:
        raise BuildFailed(f"'{path.name}' cannot be read as a disk.", output=text) from error
    return answer


def sha256(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """Return the SHA-256 of a file as hexadecimal digits; holes are read as the zeros they stand for."""
    digest = hashlib.sha256()
    done = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            done += len(block)
            if on_bytes is not None:
                on_bytes(done)
    return digest.hexdigest()


def taken(path: Path) -> int:
    """Return the bytes that a folder's files really take on the disk."""
    return sum(file.lstat().st_blocks * 512 for file in path.rglob("*"))
