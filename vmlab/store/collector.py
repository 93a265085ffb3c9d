"""A process that frees what was deleted, whoever deleted it: one for a store; it outlives them, and ends when done.

What nothing refers to is left for a minute; so whoever deletes would have to wait for that, or to leave the space to
somebody who collects later. This process waits instead; ``collect.collect_later`` starts it. ::

    python -m vmlab.store.collector FOLDER
"""

from __future__ import annotations

import contextlib
import os
import sys
import time

from vmlab.errors import Busy
from vmlab.store import collect, detached
from vmlab.store.store import Store

#: Seconds between two looks.
EVERY = 5.0


def run(store: Store) -> None:
    """Collect until nothing is left that only has to grow old."""
    here = store.home.stat()

    def is_there() -> bool:
        # A store that was removed must not be made again by a lock.
        with contextlib.suppress(OSError):
            return (
                os.path.samestat(store.home.stat(), here)
                and store.lock_path(collect.COLLECTOR).parent.is_dir()
            )
        return False

    while is_there():
        try:
            with store.lock(collect.COLLECTOR, "free what nothing refers to", timeout=EVERY):
                while is_there() and collect.collect(store).later:
                    time.sleep(EVERY)
        except Busy:
            return
        # Somebody may have deleted something, and seen that the lock was held.
        if not is_there() or not collect.waiting(store):
            return


if __name__ == "__main__":
    sys.exit(detached.main(run, "not all that nothing refers to could be deleted"))
