"""Empty disks, written by ourselves: QEMU reads them as it reads its own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from vmlab.store.qcow2 import write_empty


def described(path: Path) -> Any:
    argv = ["qemu-img", "info", "--output=json", str(path)]
    return json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)


@pytest.mark.parametrize("size", [512, (513 << 20) + 1, 5 << 40])
@pytest.mark.parametrize("backing", [None, "base.raw"])
def test_an_empty_disk_is_what_qemu_would_make(tmp_path: Path, size: int, backing: str | None) -> None:
    (tmp_path / "base.raw").write_bytes(b"\1" * 4096)
    ours, theirs = tmp_path / "ours.qcow2", tmp_path / "theirs.qcow2"
    write_empty(ours, size, backing, "raw")
    on = ["-F", "raw", "-b", backing] if backing else []
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *on, theirs, str(size)], check=True)
    found, wanted = described(ours), described(theirs)
    for what in ("virtual-size", "format", "cluster-size", "dirty-flag", "format-specific"):
        assert found[what] == wanted[what]
    assert found.get("full-backing-filename") == wanted.get("full-backing-filename")
    assert found.get("backing-filename-format") == wanted.get("backing-filename-format")
    subprocess.run(["qemu-img", "check", "-q", ours], check=True)
    # It can be written to, and the table is where QEMU looks for it.
    subprocess.run(
        ["qemu-io", "-c", f"write -P 7 {(size - 1) // 512 * 512} 512", ours], check=True, capture_output=True
    )
    subprocess.run(["qemu-img", "check", "-q", ours], check=True)
