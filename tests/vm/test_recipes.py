"""The built-in guests, built from nothing: what that takes on the disk. Needs the network, so only with VMLAB_ALL=1."""

from __future__ import annotations

import os
import shutil
import threading
import uuid
from pathlib import Path
from typing import Self

import pytest

from vmlab.images.builder import builtin
from vmlab.images.disks import taken
from vmlab.lab import Lab


class Peak(threading.Thread):
    """Notes the most that a folder takes on the disk."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.most = folder, 0
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.1):
            try:
                self.most = max(self.most, taken(self.folder))
            except OSError:  # a file went while it was counted
                continue

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()


@pytest.mark.skipif(
    not os.environ.get("VMLAB_ALL"), reason="some minutes, from the network; scripts/test --all runs it"
)
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", [name for name, recipe in builtin().items() if recipe.needs])
def test_what_a_build_asks_for_is_what_it_takes(lab: Lab, name: str) -> None:
    home = lab.account.make_dir(lab.home.parent / f"test-{uuid.uuid4().hex[:8]}")
    try:
        with Peak(home) as peak:
            Lab(home).build(name)
        asked = builtin()[name].space
        print(f"{name}: {peak.most / 1e6:.0f} MB at the peak, {asked / 1e6:.0f} MB asked for")
        assert peak.most <= asked < 1.5 * peak.most
    finally:
        shutil.rmtree(home, ignore_errors=True)
