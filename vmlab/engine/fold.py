"""A delta and its base in one file, which many guests can map: forks of the delta then share its pages.

A delta is loaded, so a guest that continues it has those pages to itself. Folded into its base it costs the whole RAM
on the disk once more, where the file system cannot share blocks (``FICLONE``: XFS, Btrfs); so it is made only for
forks, at ``cache/folded/<snapshot>/``, and is the first to go when space is short: only their memory depends on it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from pathlib import Path

from vmlab import private
from vmlab.engine import mapped_ram, memory
from vmlab.engine.mapped_ram import PAGE
from vmlab.errors import NoSpace
from vmlab.hypervisor.host import boot_id
from vmlab.records import SnapshotRecord, new_id
from vmlab.store.store import Store, allocated

#: ``_IOW(0x94, 9, int)``: the file shares the blocks of another one (<linux/fs.h>).
_FICLONE = 0x40049409
#: Pages that are copied at once (16 MiB): no call of Linux takes more than 2 GiB.
_AT_ONCE = 4096


def find(store: Store, snapshot: str) -> Path | None:
    """Return the folder with a snapshot's folded ``ram`` and ``thin``, or None if it is not folded."""
    folder = store.folded_folder(snapshot)
    with contextlib.suppress(OSError):
        # What was in memory only when the host went down may not have reached the disk.
        if (folder / "boot").read_text() == boot_id() and (folder / "ram").exists():
            return folder
    return None


def make(store: Store, record: SnapshotRecord) -> None:
    """Fold a snapshot, if it is a delta; where there is no room it stays one, and its forks share less."""
    ram = record.ram
    if ram is None or ram.base is None or find(store, record.id) is not None:
        return
    base, own = (store.snapshot_folder(part) / "ram" for part in (ram.base, record.id))
    folder = store.folded_folder(record.id)
    with contextlib.suppress(NoSpace):
        store.need_space(allocated(base) + allocated(own), "for what forks are to share")
        private.folders(folder.parent)
        new = private.folder(folder.with_name(f".new-{new_id()}"))
        try:
            _fold(base, own, new / "ram")
            mapped_ram.make_thin(own, new / "thin")
            private.write(new / "boot", boot_id())
            for file in new.iterdir():
                private.freeze(file)
            # Of a boot before.
            shutil.rmtree(folder, ignore_errors=True)
            # Somebody else may have made it meanwhile.
            with contextlib.suppress(OSError):
                new.rename(folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)


def _fold(base: Path, own: Path, target: Path) -> None:
    """Write the main memory of ``base`` with the pages that ``own`` holds in their place."""
    layout, lower = mapped_ram.parse(own), mapped_ram.parse(base)
    main = layout.main
    with base.open("rb") as below, own.open("rb") as above, private.create(target) as file:
        src, dst = above.fileno(), file.fileno()
        try:
            fcntl.ioctl(dst, _FICLONE, below.fileno())
        except OSError:
            os.ftruncate(dst, lower.size)
            start = lower.main.pages_offset
            mapped_ram.copy_range(below.fileno(), dst, start, start + lower.main.used)
        numbers = mapped_ram.read_bitmap(src, main).nonzero()[0]
        for first, last in zip(*memory.runs(numbers), strict=True):
            for start in range(int(first), int(last), _AT_ONCE):
                at = int(numbers[start]) * PAGE
                size = (min(start + _AT_ONCE, int(last)) - start) * PAGE
                os.pwrite(dst, os.pread(src, size, main.pages_offset + at), lower.main.pages_offset + at)
