"""Tests in several processes at once (pytest-xdist): which run together, and a store for each."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

from xdist.scheduler import LoadScopeScheduling

from help.bad_lab import copy_image
from vmlab.errors import VMLabError
from vmlab.lab import Lab

#: Test files that look at all processes of an account, or start what others must not see: never side by side.
TOGETHER = {"tests/vm/test_accounts.py": "accounts", "tests/vm/test_webconsole.py": "accounts"}


class Scheduling(LoadScopeScheduling):
    """One process, one after the other, for the tests of a file, and for all that drive a browser."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "browser" if file.startswith("tests/browser/") else TOGETHER.get(file, file)


@contextlib.contextmanager
def own_store() -> Iterator[None]:
    """Give all workers but the first a store of their own, so that a test that counts machines sees only its own.

    It has the built-in images, with their ready states, as far as they are made, by hard links.
    """
    if os.environ.get("PYTEST_XDIST_WORKER", "gw0") == "gw0":
        yield
        return
    usual = Lab()
    home = usual.account.make_dir(usual.home.parent / f"worker-{os.getpid()}")
    own = Lab(home)
    for image in usual.images:
        if image.built and image.builtin:
            copy_image(usual, own, image.name)
    os.environ["VMLAB_HOME"] = str(home)
    try:
        yield
    finally:
        for machine in own.machines:
            with contextlib.suppress(VMLabError):
                machine.delete()
        shutil.rmtree(home, ignore_errors=True)
