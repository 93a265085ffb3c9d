"""A machine's history: snapshots are taken, found, gone back to, forgotten."""

from __future__ import annotations

import contextlib
import shlex
import threading
from dataclasses import replace

from vmlab.engine import load, save
from vmlab.engine.domain import state_of
from vmlab.errors import AlreadyExists, NotFound, SnapshotDamaged, UsageError, VMLabError, WrongState
from vmlab.hypervisor.domain import Domain
from vmlab.machines import digests, identity
from vmlab.machines.hold import hold
from vmlab.machines.members import need_alone
from vmlab.machines.move import Move, move
from vmlab.machines.names import snapshot_name
from vmlab.machines.room import need_memory
from vmlab.machines.shorten import need_layer, shorten
from vmlab.machines.unmake import collect, collect_quietly
from vmlab.records import MachineRecord, SnapshotRecord, check_label
from vmlab.store import collect as garbage
from vmlab.store.store import Store


def replace_snapshot(store: Store, name: str, wanted: str, description: str) -> str:
    """Take a snapshot in the place of the one that has its name, if there is one, and return its id."""
    need_alone(store, name, "snapshot")
    uuid = store.machine(name).uuid
    wanted = check_label("snapshot", wanted)
    old = [found for found in store.snapshots_of(uuid) if store.label(found.id).name == wanted]
    if not old:
        return snapshot(store, name, wanted, description)
    # Under another name until the old one has gone: whatever happens on the way, one of them is there.
    made = snapshot(
        store, name, snapshot_name(store, store.machine(name), None, f"{wanted[:70]}-"), description
    )
    garbage.forget(store, old[0].id)
    rename(store, store.snapshot(made), wanted)
    collect(store)
    return made


def snapshot(store: Store, name: str, wanted: str | None, description: str) -> str:
    """Take a snapshot of a machine and return its id; see :meth:`vmlab.Machine.snapshot`."""
    need_alone(store, name, "snapshot")
    made = _take(store, name, wanted, description)
    digests.later(store)
    return made


def _take(store: Store, name: str, wanted: str | None, description: str) -> str:
    # Caught in the middle of being told who it is, the first comparison with it would show that as a change.
    identity.settle(name)
    with hold(store, name, "snapshot") as (record, domain):
        label = snapshot_name(store, record, wanted)
        state = state_of(store, record)
        if state == "suspended":
            raise WrongState(
                f"{name} is suspended exactly at a snapshot; there is nothing new to take.",
                hint=f"start it first: `%vm start {name}`",
            )
        if state == "off":
            return save.offline(store, record, label, description)
        if state == "crashed":
            return _snapshot_crashed(store, record, domain, label, description)
        need_layer(store, record, domain)
        made = save.live(store, record, domain, label, description)
        shorten(store, record, domain)
        return made


def _snapshot_crashed(
    store: Store, record: MachineRecord, domain: Domain, label: str, description: str
) -> str:
    """Keep a guest that has crashed as it is, and let it stand as it does in a new QEMU.

    After a migration QEMU knows no way back to "panicked"; a QEMU that takes up the saved state is in it.
    """

    def turn(way: Move) -> SnapshotRecord:
        if not way.alive:
            raise WrongState(f"{record.name} has ended, so nothing is left of it that could be kept.")
        made = way.keep_as(
            save.live(store, record, domain, label, description, keep_running=False, state="crashed")
        )
        found = store.snapshot(made)
        way.turn(found, here=made)
        return found

    way = move(store, record, domain, turn)
    assert way.kept is not None
    return way.kept


def present_snapshot(store: Store, name: str) -> SnapshotRecord:
    """Return a snapshot of the present to fork from: a new one, unless nothing has run since the last."""
    record = store.machine(name)
    if state_of(store, record) == "suspended" and record.continues == record.here and record.continues:
        return store.snapshot(record.continues)
    label = snapshot_name(store, record, None, "fork-")
    return store.snapshot(snapshot(store, name, label, "taken to fork from"))


def visible(store: Store, snapshot_id: str | None) -> SnapshotRecord | None:
    """Return the snapshot with that id, or None if there is none or it is forgotten.

    One that is damaged is of the kind ``damaged``: it can be shown and forgotten, and nothing else.
    """
    if snapshot_id is None or store.label(snapshot_id).forgotten:
        return None
    try:
        return store.snapshot(snapshot_id)
    except SnapshotDamaged:
        return store.damaged(snapshot_id) if store.snapshot_folder(snapshot_id).is_dir() else None


def find(store: Store, record: MachineRecord, name: str) -> SnapshotRecord:
    """Return a machine's snapshot of that name or id; the root of its tree is found too, also as ``ready``.

    One that is damaged is found, too (see :func:`visible`).

    Raises
    ------
    NotFound
        With the nearest names.
    """
    root = visible(store, record.root)
    every = [*([root] if root else []), *store.damaged_of(record), *store.snapshots_of(record.uuid)]
    known = {store.label(s.id).name: s for s in every}
    for label, found in reversed(known.items()):
        if name in (label, found.id):
            return found
    raise NotFound.named(
        f"snapshot of {record.name}",
        name,
        known,
        hint=f"take one with `%vm snapshot {record.name} {shlex.quote(name)}`",
    )


def target_of(store: Store, record: MachineRecord, name: str | None) -> SnapshotRecord:
    """Return the snapshot of that name, or without one that which the present stands on.

    Raises
    ------
    NotFound
        There is none.
    SnapshotDamaged
        It is there, and cannot be used.
    """
    if name is not None:
        return store.snapshot(find(store, record, name).id)
    if record.here is None:
        raise NotFound(
            f"{record.name} has no snapshot to go back to.",
            hint=f"take one with `%vm snapshot {record.name}`",
        )
    return store.snapshot(record.here)


def own(store: Store, record: MachineRecord, snapshot_id: str) -> SnapshotRecord:
    """Return a snapshot that must be in a machine's tree.

    Raises
    ------
    NotFound
        It is another machine's.
    """
    if snapshot_id != record.root and snapshot_id not in {s.id for s in store.snapshots_of(record.uuid)}:
        label, other = store.label(snapshot_id).name, store.snapshot(snapshot_id).machine_name
        raise NotFound(
            f"'{label}' is a snapshot of {other}, not of {record.name}.",
            hint=f"make a machine from it: `%vm fork {other} --snapshot {shlex.quote(label)}`",
        )
    return store.snapshot(snapshot_id)


def revert(
    store: Store,
    name: str,
    *,
    snapshot_id: str | None,
    label: str | None,
    clock: str,
    keep: bool,
    force: bool,
) -> tuple[SnapshotRecord, bool]:
    """Make a machine's present equal to a snapshot, by id or by name; see :meth:`vmlab.Machine.revert`.

    Returns
    -------
    tuple
        The snapshot, and whether the guest is being told who it is, and with that the time.
    """
    with hold(store, name, "revert") as (record, domain):
        target = (
            own(store, record, snapshot_id) if snapshot_id is not None else target_of(store, record, label)
        )
        if record.scenario is not None:
            store.tell(
                f"{name} alone goes back: the other machines of {record.scenario} see it forget what it has heard since"
            )
        _go_to(store, record, domain, target, keep=keep, force=force)
        tells = identity.begin(store, record, target)
    if tells:
        identity.give(store, record, target, clock)
    return target, tells


def undo(store: Store, name: str) -> SnapshotRecord:
    """Take a machine's last revert back, and return the state that it went to; see :meth:`vmlab.Machine.undo`."""
    with hold(store, name, "undo") as (record, domain):
        if record.undo is None:
            raise NotFound(
                f"There is no revert of {name} to take back.",
                hint="a revert keeps the present until the next one replaces it",
            )
        target = store.snapshot(record.undo)
        _go_to(store, record, domain, target, keep=True, force=False)
        tells = identity.begin(store, record, target)
    if tells:
        identity.give(store, record, target, "then")
    return target


def _go_to(
    store: Store, record: MachineRecord, domain: Domain, target: SnapshotRecord, *, keep: bool, force: bool
) -> None:
    """Leave the present and continue ``target``; what fails on the way leaves the present as it was."""
    load.check(store, target)
    state = domain.state()
    if state == "asleep":
        if keep:
            raise save.asleep(record.name, "keep its present for an undo")
        domain.destroy()
        state = "off"
    if state == "off":
        need_memory(store, target.spec, mapped=target.ram is not None, force=force)
    old = record.undo
    # An undo goes back to its tree where the present that it brings back stood.
    here = target.id if target.kind != "undo" else store.label(target.id).parent

    def turn(way: Move) -> SnapshotRecord:
        kept = way.keep() if keep else None
        way.turn(target, here=here, address=target.address, undo=kept, spec=target.spec.leading(record.spec))
        return target

    move(store, record, domain, turn)
    with contextlib.suppress(VMLabError, OSError):
        if old is not None and store.snapshot(old).kind == "undo":
            store.save_label(old, replace(store.label(old), forgotten=True))
    # What the last revert had kept is free now; deleting it need not be waited for.
    threading.Thread(target=collect_quietly, args=(store,), name="vmlab-collect").start()


def _need_own(record: SnapshotRecord) -> None:
    """Refuse to change a snapshot that is part of a scenario's state."""
    if record.scenario is not None:
        raise WrongState(
            f"The snapshot is part of a state of the scenario '{record.scenario}'.",
            hint=f"do it to the whole state; `%vm tree {record.scenario}` shows them",
        )


def rename(store: Store, record: SnapshotRecord, name: str) -> None:
    """Give a snapshot another name."""
    _need_own(record)
    name = check_label("snapshot", name)
    for other in store.snapshots_of(record.machine):
        if other.id != record.id and store.label(other.id).name == name:
            raise AlreadyExists(f"There is a snapshot named '{name}' already.", hint="choose another name")
    store.save_label(record.id, replace(store.label(record.id), name=name))


def forget(store: Store, record: SnapshotRecord) -> None:
    """Take a snapshot out of the tree; what nothing else is built on is deleted."""
    if record.kind == "ready":
        raise UsageError(
            f"The ready state of the image '{record.image}' is what new machines start from.",
            hint=f"it goes with its image: `%vm images --delete {record.image}`",
        )
    _need_own(record)
    label = store.label(record.id)
    if label.forgotten or not store.snapshot_folder(record.id).exists():
        raise NotFound(f"The snapshot '{label.name}' is forgotten already.")
    garbage.forget(store, record.id)
    collect(store)
