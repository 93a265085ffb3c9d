"""The disks of a state, to read files from: with what the guest had only in memory, where that can be had."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from vmlab.errors import VMLabError
from vmlab.machines.throwaway import Forks, fork, write_out
from vmlab.records import SnapshotRecord
from vmlab.store.store import Store, allocated, run_qemu_img

#: How many snapshots' flushed disks are kept, and how many bytes of them.
KEPT = 32
KEPT_BYTES = 1 << 30
#: Seconds after their last use for which they are kept whatever comes: somebody may be about to open them.
IN_USE = 600.0


@dataclass(frozen=True)
class Disks:
    """Disks of a state, to read files from.

    Attributes
    ----------
    paths
        The top layer of each disk.
    flushed
        Whether they hold also what the guest had only in memory.
    how
        In words, how they were come by.
    why
        Why they could not be flushed, where they should have been.
    """

    paths: list[Path]
    flushed: bool
    how: str
    why: str = ""


def disks(store: Store, record: SnapshotRecord) -> list[Path]:
    """Return the disks of a snapshot as they were at its instant."""
    return [store.layer_path(record.layers[target]) for target in record.spec.disks]


def flushed_disks(store: Store, record: SnapshotRecord, idle: float = 0, forks: Forks | None = None) -> Disks:
    """Return the disks of a snapshot with all that the guest had only in its page cache.

    A fork writes it out, through its agent, some tenths of a second after the snapshot; the result is kept as
    long as the snapshot. Without an agent the disks are returned as they are.

    Parameters
    ----------
    idle
        Let the fork run for this many seconds before; what it then has is not kept.
    forks
        As in :func:`fork`.
    """
    plain = disks(store, record)
    raw = "as they were at that instant: what the guest had only in its page cache is missing"
    if record.state == "crashed":
        return Disks(plain, False, raw, "the guest has crashed")
    if record.ram is None:
        return Disks(plain, True, "as the machine left them when it was off")
    if not plain:
        return Disks(plain, True, "there are none")
    folder = store.compared_folder(record.id)
    kept = [folder / f"{target}.qcow2" for target in record.spec.disks]
    how = "with the guest's page cache, written out in a throw-away fork"
    if not idle and _in_use(folder, kept):
        return Disks(kept, True, how)
    if not record.spec.agent:
        return Disks(plain, False, raw, "it has no guest agent that could write it out")
    try:
        made = _flush(store, record, idle, forks)
    except VMLabError as error:
        if forks is not None and forks.stopped:
            raise
        return Disks(plain, False, raw, error.message)
    if idle:
        return Disks([made / path.name for path in kept], True, how)
    _keep(made, folder, kept)
    _prune(store)
    return Disks(kept, True, how)


def _in_use(folder: Path, kept: list[Path]) -> bool:
    """Say that these disks are needed now, so that nobody deletes them; False if they are not all there."""
    with contextlib.suppress(OSError):
        # First, so that what is there afterwards also stays.
        os.utime(folder)
        return all(path.exists() for path in kept)
    return False


def _keep(made: Path, folder: Path, kept: list[Path]) -> None:
    """Put disks that were flushed where they are kept; those that are there already serve as well."""
    try:
        made.rename(folder)
        return
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            shutil.rmtree(made, ignore_errors=True)
            raise
    # Another process was as quick, or something else is kept there (a baseline).
    try:
        if not _in_use(folder, kept):
            for path in kept:
                (made / path.name).replace(path)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _flush(store: Store, record: SnapshotRecord, idle: float, forks: Forks | None) -> Path:
    new = store.account.make_dir(store.home / "cache" / "compared" / f".new-{uuid.uuid4().hex[:8]}")
    below: dict[str, str] = {}
    try:
        with fork(store, record, "write out its page cache", forks) as (machine, domain):
            if idle:
                time.sleep(idle)
            write_out(domain)
            # Stopped, QEMU writes what it holds itself.
            domain.pause()
            for target, layer in machine.layers.items():
                below[target] = store.layer(layer).backing or ""
                (new / f"{target}.qcow2").hardlink_to(store.layer_path(layer))
            # It has nothing more to write; and as long as it is there, it keeps the files locked.
            domain.kill()
        for target, backing in below.items():
            path = new / f"{target}.qcow2"
            words = ["-F", "qcow2", "-b", f"../../../layers/{backing}.qcow2"]
            run_qemu_img(["qemu-img", "rebase", "-q", "-u", "-f", "qcow2", *words, str(path)])
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    return new


def _prune(store: Store) -> None:
    """Delete the flushed disks that were not used for longest, where there are many."""
    folders = sorted((store.home / "cache" / "compared").glob("[!.]*"), key=_used, reverse=True)
    total = 0
    for number, folder in enumerate(folders):
        total += allocated(folder)
        if (number >= KEPT or total > KEPT_BYTES) and time.time() - _used(folder) > IN_USE:
            shutil.rmtree(folder, ignore_errors=True)


def _used(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0
