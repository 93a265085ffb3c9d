"""The digests of frozen disks: taken in the background when a snapshot has frozen them, and held against them again.

Taking them is a process of its own, one for a store, which ends when done. ::

    python -m vmlab.machines.digests FOLDER
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import sys
from dataclasses import dataclass, field

from vmlab import private
from vmlab.compare import digest
from vmlab.compare.blocks import Disk
from vmlab.compare.digest import BLOCK, Digest
from vmlab.errors import Busy, ImageMissing, VMLabError
from vmlab.records import SnapshotRecord
from vmlab.render import units
from vmlab.store import detached
from vmlab.store.store import Store

log = logging.getLogger(__name__)

#: What the process that takes them locks, and how long one that finds it locked waits for that one's end.
LOCK = "@digests"
_PATIENCE = 1.0


def later(store: Store) -> None:
    """Let the digests of frozen disks be taken that are not yet, also when this process is gone by then."""
    detached.start(store, __name__, LOCK)


def take(store: Store, layer: str) -> Digest:
    """Return the digest of a frozen layer's disk as it was when it was first taken, or take it now.

    Raises
    ------
    DiskUnreadable, RecordDamaged
        The disk cannot be read.
    """
    path = store.digest_path(layer)
    known = digest.read(path)
    if known is not None:
        return known
    record, below = store.layer(layer), None
    if record.backing is not None:
        below = Disk(store.layer_path(record.backing)), take(store, record.backing)
    elif record.base is not None:
        below = _take_base(store, record.base)
    made = digest.take(Disk(store.layer_path(layer)), below)
    made.write(path)
    return made


def _take_base(store: Store, name: str) -> tuple[Disk, Digest]:
    """Return a disk of a base, and its digest; that is kept only to be quick, so it may lie in the cache."""
    disk = Disk(store.base_file(name))
    path = store.home / "cache" / "digests" / name.replace("/", "_")
    known = digest.read(path)
    if known is None:
        known = digest.take(disk)
        private.folders(path.parent)
        known.write(path)
    return disk, known


def of(store: Store, record: SnapshotRecord) -> dict[str, str]:
    """Return the digest of each disk of a snapshot, in hexadecimal."""
    return {target: take(store, layer).hex for target, layer in record.layers.items()}


# -- verifying ---------------------------------------------------------------------------------------------------------


@dataclass
class Checked:
    """What was found out about the disks of a snapshot, and the image that they stand on.

    Attributes
    ----------
    same
        Whether all are what they were; None where there are none, or nothing to hold them against.
    covered
        What was read, in words.
    differences
        What is not what it was, in words.
    """

    same: bool | None = None
    covered: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


def check(store: Store, record: SnapshotRecord) -> Checked:
    """Read all disks of a snapshot down to the image, and hold them against the digests that were taken."""
    found = Checked()
    held = [_check_disk(store, target, layer, found) for target, layer in record.layers.items()]
    held.append(_check_base(store, record.spec.base, found))
    if found.differences:
        found.same = False
    elif any(held):
        found.same = True
    return found


def _check_disk(store: Store, target: str, layer: str, found: Checked) -> bool:
    """Read one disk; whether there was a digest to hold it against."""
    known = digest.read(store.digest_path(layer))
    try:
        disk = Disk(store.layer_path(layer))
        files = len(disk.layers)
        where = (
            f"{target}: {units.size(disk.size)} in {files} file{'s' if files > 1 else ''} down to the image"
        )
        if known is None:
            take(store, layer)
            found.covered.append(f"{where}, read for the first time: no digest had been taken yet")
            return False
        differ = digest.take(disk).differing(known)
    except (VMLabError, OSError, ValueError, ArithmeticError, LookupError) as error:
        # A damaged disk may mislead a reader in ways that nobody has thought of.
        found.differences.append(f"the disk {target} cannot be read: {error}")
        return True
    found.covered.append(f"{where}, every byte that the guest sees")
    if len(differ):
        first = int(differ[0])
        found.differences.append(
            f"the disk {target} is not what it was in {len(differ):,} of {len(known.rows):,} blocks of "
            f"{units.size(BLOCK)}, first at byte {first * BLOCK:,}, in {digest.file_with(disk, first)}"
        )
    return True


def _check_base(store: Store, base: str, found: Checked) -> bool:
    """Read the files of the image; whether there were digests to hold them against."""
    if not base:
        return False
    try:
        digests = store.base(base).get("sha256", {})
    except ImageMissing as error:
        found.differences.append(str(error))
        return True
    for name, wanted in digests.items():
        path = store.base_folder(base) / name
        try:
            with path.open("rb") as file:
                same = hashlib.file_digest(file, "sha256").hexdigest() == wanted
            why = "" if same else "is not what it was when the image was made"
        except OSError as error:
            why = f"cannot be read ({error.strerror})"
        if why:
            found.differences.append(f"the file of the image {path} {why}")
    if digests:
        found.covered.append(f"the image's files: {', '.join(digests)}")
    return bool(digests)


# -- the process -------------------------------------------------------------------------------------------------------


def _missing(store: Store) -> list[str]:
    """Return the frozen layers of snapshots of which no digest was taken yet."""
    layers: dict[str, None] = {}
    for identity in store.snapshot_ids():
        with contextlib.suppress(VMLabError):
            record = store.snapshot(identity)
            if record.kind in ("snapshot", "ready") and not store.label(identity).forgotten:
                layers.update(dict.fromkeys(record.layers.values()))
    return [layer for layer in layers if not store.digest_path(layer).exists()]


def run(store: Store) -> None:
    """Take the digests that are missing, until there are none."""
    failed: set[str] = set()
    while [layer for layer in _missing(store) if layer not in failed]:
        try:
            with store.lock(LOCK, "take digests of disks", timeout=_PATIENCE):
                for layer in _missing(store):
                    try:
                        take(store, layer)
                    except (VMLabError, OSError, ValueError, LookupError) as error:
                        # It may have gone meanwhile; verifying says what is wrong with it.
                        log.warning("no digest of the disk layer %s: %s", layer, error)
                        failed.add(layer)
        except Busy:
            return


if __name__ == "__main__":
    sys.exit(detached.main(run, "not all digests of disks could be taken"))
