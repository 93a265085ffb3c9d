"""A machine's present, caught for a moment to be looked at."""

from __future__ import annotations

import logging
import weakref

from vmlab.engine import save
from vmlab.engine.domain import state_of
from vmlab.errors import VMLabError
from vmlab.machines import identity
from vmlab.machines.hold import hold
from vmlab.machines.shorten import need_layer, shorten
from vmlab.records import SnapshotRecord, new_id
from vmlab.store import collect, locks
from vmlab.store.store import Store

log = logging.getLogger(__name__)

#: Bytes in the top layers of a machine's disks up to which they are copied while it stands still (a tenth of a
#: second at most); above, it gets new layers instead, which stay.
COPIED = 48 << 20


class Present:
    """What a machine's present was when it was looked at: a snapshot that is in no tree, and goes with this object."""

    def __init__(self, store: Store, record: SnapshotRecord, held: locks.Hold) -> None:
        self.record = record
        # Also at the end of the process; if that is killed, the hold goes with it, and a collection finds the rest.
        self.close = weakref.finalize(self, _let_go, store, record.id, held)

    def __repr__(self) -> str:
        return f"<{self.record.machine_name}'s present at {self.record.created}>"


def _let_go(store: Store, snapshot_id: str, held: locks.Hold) -> None:
    held.release()
    try:
        collect.discard(store, snapshot_id)
    except (VMLabError, OSError) as error:
        log.warning("a present that was looked at goes with the next collection: %s", error)


def catch(store: Store, name: str) -> tuple[SnapshotRecord, Present | None]:
    """Catch a machine's present: RAM, devices and disks if it runs or is paused, its disks if it is off.

    The machine's tree, its "you are here" and its undo stay as they are.

    Returns
    -------
    tuple
        The state, and what holds it; None where it is a snapshot that is there anyway.

    Raises
    ------
    NoSpace, HypervisorError
        The machine goes on as it was.
    """
    # A fork that is just being told its name and MAC would be two things at once.
    identity.settle(name)
    with hold(store, name, "look at it") as (record, domain):
        state = state_of(store, record)
        if state == "suspended" and record.continues:
            # Nothing has run since: the present is that state itself.
            return store.snapshot(record.continues), None
        if state in ("running", "paused"):
            need_layer(store, record, domain)
        snapshot_id = new_id()
        held = locks.Hold(store.hold_path(snapshot_id))
        try:
            found = save.glimpse(store, record, domain, state, snapshot_id, COPIED)
        except BaseException:
            held.release()
            raise
        present = Present(store, found, held)
        if state == "running":
            shorten(store, record, domain)
    return found, present
