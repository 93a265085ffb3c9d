"""Work on a store that nobody waits for: a process that outlives whoever starts it, one of a kind for a store."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from vmlab.errors import VMLabError
from vmlab.hypervisor import account
from vmlab.store import locks
from vmlab.store.store import Store

log = logging.getLogger(__name__)


def start(store: Store, module: str, lock: str) -> None:
    """Start a module of ours with a store's folder as its argument, unless it is at work already.

    Parameters
    ----------
    lock
        The name of the lock that it holds while it works. It looks once more after it has let go of that, so that
        nothing is missed that somebody leaves to it meanwhile.
    """
    if locks.is_held(store.lock_path(lock)):
        return
    # Through a shell that ends at once, so that it is nobody's child. Where this package lies it is found by -m.
    argv = ["/bin/sh", "-c", '"$@" &', "sh", sys.executable, "-m", module, str(store.home)]
    quiet = subprocess.DEVNULL
    try:
        subprocess.run(
            argv,
            stdin=quiet,
            stdout=quiet,
            stderr=quiet,
            cwd=Path(__file__).parents[2],
            start_new_session=True,
        )
    except OSError as error:
        log.warning("%s could not be started: %s", module, error)


def main(run: Callable[[Store], None], undone: str) -> int:
    """Do the work of such a module: ``run`` for the store in its argument, with what the host has to spare.

    Parameters
    ----------
    undone
        What is logged if it fails.
    """
    os.nice(19)
    home = Path(sys.argv[1])
    try:
        if home.is_dir():
            run(Store(home, account.account()))
    except (VMLabError, OSError) as error:
        log.warning("%s: %s", undone, error)
        return 1
    return 0
