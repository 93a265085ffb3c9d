"""Which files differ between two disks: against what the Linux kernel and e2fsprogs say of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from help.disk_images import (
    FLAVOURS,
    Disorder,
    Truth,
    can_mount,
    check,
    make_image,
    mounted,
    overlay,
    scratch,
    tool,
    truth,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmlab.compare.files import compare_files

needs_mount = pytest.mark.skipif(not can_mount(), reason="mounting an image needs root and loop devices")


def flush(folder: Path) -> None:
    """Have the kernel write what it holds: contents to their place, the rest at least to the journal."""
    tool("sync", "-f", folder)


def on_disk(disk: Path) -> Truth:
    """Return what the kernel finds on a disk."""
    copy = disk.with_name("copy")
    shutil.copyfile(disk, copy)
    with mounted(copy, disk.with_name("mounted")) as top:
        return truth(top)


#: Rounds for each kind of file system; `VMLAB_ROUNDS=50` for a long run.
ROUNDS = int(os.environ.get("VMLAB_ROUNDS", "4"))


@needs_mount
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("flavour", FLAVOURS)
@settings(max_examples=ROUNDS, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), first=st.integers(0, 60), second=st.integers(0, 40), layered=st.booleans())
def test_random_changes_by_the_kernel(
    flavour: str, seed: int, first: int, second: int, layered: bool
) -> None:
    with scratch() as name:
        folder = Path(name)
        image = make_image(folder / "image", flavour)
        with mounted(image, folder / "mounted") as top:
            # Copies of a mounted disk: what the journal holds is not in its place yet.
            Disorder(top, seed).happen(first)
            flush(top)
            shutil.copyfile(image, folder / "before")
            Disorder(top, seed + 1).happen(second)
            flush(top)
            shutil.copyfile(image, folder / "after")
        # Not what the mounted one showed: seed 50 of `inline`, after 48 and 38 changes, ends a file in 80 bytes that
        # are zero in the page cache of Linux 6.18 and others on the disk, even after a sync.
        before, after = (on_disk(folder / name) for name in ("before", "after"))
        disk = folder / "after"
        if layered:
            disk = overlay(folder / "before", disk, folder / "layer")
        check(compare_files([folder / "before"], [disk]), before, after)
