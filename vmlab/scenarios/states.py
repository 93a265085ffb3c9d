"""The states of a scenario: all its machines at one moment, and the frames that were under way between them.

How a state is one moment, whatever the clocks say: the networks are frozen before the first machine stops, so nothing
that is sent after that arrives anywhere, and they thaw after the last machine goes on. What waits for a machine is
given to it before it stops: a QEMU that stands still would read it and keep it where no snapshot holds it. What has
been sent and not delivered is part of the state. When machines go to a state, the networks hold what that state says
before the first one runs, and nothing of the present that is left.
"""

from __future__ import annotations

import contextlib
import shlex
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vmlab.engine import interrupts, load, save
from vmlab.engine.domain import state_of
from vmlab.errors import AlreadyExists, NotFound, UsageError, VMLabError, WrongState
from vmlab.machines import digests, life, move
from vmlab.machines.move import Move
from vmlab.machines.room import need_memory
from vmlab.machines.several import several
from vmlab.machines.shorten import need_layer, shorten
from vmlab.machines.unmake import collect_quietly
from vmlab.network.networks import Freeze
from vmlab.records import (
    Label,
    ScenarioPending,
    SnapshotRecord,
    StateRecord,
    check_label,
    new_id,
)
from vmlab.scenarios.whole import START, Member, Whole, hold_all, recover_keep
from vmlab.store import scenarios
from vmlab.store.store import Store


def visible(store: Store, name: str) -> list[StateRecord]:
    """Return the states that people see, the oldest first."""
    return [state for state in scenarios.states(store, name) if state.kind == "snapshot"]


def find(store: Store, name: str, label: str | None) -> StateRecord:
    """Return the state of that name or id; without one, that which the present stands on.

    Raises
    ------
    NotFound
        With the nearest names.
    """
    known = visible(store, name)
    if label is None:
        here = scenarios.read(store, name).here
        found = next((state for state in known if state.id == here), None)
    else:
        found = next((state for state in known if label in (state.name, state.id)), None)
    if found is None:
        raise NotFound.named(
            f"state of {name}",
            label or "",
            [state.name for state in known],
            hint=f"take one with `%vm snapshot {name} {shlex.quote(label or 'NAME')}`",
        )
    return found


def _free_name(store: Store, name: str, wanted: str | None) -> str:
    used = {state.name for state in visible(store, name)}
    if wanted is None:
        number = 1
        while f"s{number}" in used:
            number += 1
        return f"s{number}"
    wanted = check_label("snapshot", wanted)
    if wanted in used:
        raise AlreadyExists(
            f"{name} has a snapshot named '{wanted}' already.",
            hint=f"choose another name, or forget that one: `%vm forget {name} {shlex.quote(wanted)}`",
        )
    return wanted


# -- taking one -----------------------------------------------------------------------------------------------------


def snapshot(store: Store, name: str, wanted: str | None, description: str) -> str:
    """Take a snapshot of all machines at one moment, and return its id; see :meth:`vmlab.Scenario.snapshot`."""
    if wanted == START:
        raise UsageError(
            f"'{START}' is the name of the state that a scenario has after its setup.", hint="choose another"
        )
    return _snapshot(store, name, wanted, description)


def snapshot_start(store: Store, name: str) -> None:
    """Take the snapshot that the scenario's tree starts from."""
    _snapshot(store, name, START, "from setup")


def _snapshot(store: Store, name: str, wanted: str | None, description: str) -> str:
    with hold_all(store, name, "snapshot") as whole:
        made = _keep(whole, _free_name(store, name, wanted), description)
    digests.later(store)
    return made


def _keep(whole: Whole, label: str, description: str) -> str:
    store, record, started = whole.store, whole.record, time.monotonic()
    doing = {name: state_of(store, member.record) for name, member in whole.members.items()}
    for name, now_is in doing.items():
        if now_is in ("asleep", "crashed"):
            found = whole.members[name].domain.condition()
            raise WrongState(found.sentence(record.full(name)), hint=found.way_out(record.full(name)))
    if all(now_is == "suspended" for now_is in doing.values()):
        raise WrongState(
            f"{record.name} is suspended; there is nothing new to take.",
            hint=f"start it first: `%vm start {record.name}`",
        )
    ids = {
        name: str(whole.members[name].record.continues) if now_is == "suspended" else new_id()
        for name, now_is in doing.items()
    }
    made = {name: ids[name] for name, now_is in doing.items() if now_is != "suspended"}
    alive = [whole.members[name] for name, now_is in doing.items() if now_is in ("running", "paused")]
    for member in alive:
        need_layer(store, member.record, member.domain)
    pending = record.pending = ScenarioPending("keep", new_id(), made)
    whole.save()
    try:
        for name in (name for name, now_is in doing.items() if now_is == "off"):
            save.offline(store, whole.members[name].record, label, description, snapshot_id=ids[name])
        state = StateRecord(
            pending.state, "snapshot", label, ids, parent=record.here, description=description
        )
        lives, wire, left = _catch(whole, alive, ids, label, description)
        state = replace(
            state,
            **_figures(lives),
            total_ms=round((time.monotonic() - started) * 1000, 1),
            frames=_frames(wire),
            left=left,
        )
        scenarios.add_state(store, record.name, state, wire)
    except BaseException:
        with interrupts.held():
            recover_keep(whole, pending)
            record.pending = None
            whole.save()
        raise
    for live in lives.values():
        live.stand()
    record.here, record.pending = state.id, None
    if label == START:
        record.start = state.id
    whole.save()
    for member in alive:
        shorten(store, member.record, member.domain)
    if left:
        store.tell(f"{left} bytes that guests had not taken from their network cards are not in the snapshot")
    return state.id


def _catch(
    whole: Whole, alive: list[Member], ids: Mapping[str, str], label: str, description: str
) -> tuple[dict[str, save.Live], dict[str, Any], int]:
    """Take live snapshots at one moment; return them, what was under way, and the bytes that guests had not taken."""
    if not alive:
        return {}, {}, 0
    with contextlib.ExitStack() as stack:
        lives = {
            member.name: stack.enter_context(
                save.Live(whole.store, member.record, member.domain, snapshot_id=ids[member.name])
            )
            for member in alive
        }
        whole.each(lambda member: lives[member.name].copy(whole=False), alive)
        with whole.freeze() as freeze:
            left = freeze.drain(whole.pids())
            # Not before: whose RAM is written whole may stand still earlier than the others.
            whole.each(lambda member: lives[member.name].approach(), alive)
            whole.each(lambda member: lives[member.name].stop(at_once=True), alive)
            wire = whole.named(freeze.export())
            whole.each(lambda member: lives[member.name].keep(), alive)
            whole.each(lambda member: lives[member.name].release(), alive)
        whole.each(
            lambda member: lives[member.name].seal(Label(label, member.record.here, description)), alive
        )
    return lives, wire, left


def _figures(lives: Mapping[str, save.Live]) -> dict[str, Any]:
    stops = [live.pause.stopped for live in lives.values() if live.pause.stopped is not None]
    pauses = [ms for live in lives.values() if (ms := live.pause.milliseconds) is not None]
    return {
        "skew_ms": round((max(stops) - min(stops)) * 1000, 1) if stops else None,
        "pause_ms": max(pauses, default=None),
    }


def _frames(wire: Mapping[str, Any]) -> int:
    pipes = [
        pipe for network in wire.values() for port in network["ports"].values() for pipe in port["pipes"]
    ]
    return sum(len(network["held"]) for network in wire.values()) + sum(len(p["frames"]) for p in pipes)


# -- going to one ---------------------------------------------------------------------------------------------------


def revert(store: Store, name: str, label: str | None, *, keep: bool, force: bool) -> None:
    """Make the present of all machines equal to a state, by name; see :meth:`vmlab.Scenario.revert`."""
    with hold_all(store, name, "revert") as whole:
        _go_to(whole, find(store, name, label), keep=keep, force=force)


def reset(store: Store, name: str, *, force: bool) -> None:
    """Go back to *start*; see :meth:`vmlab.Scenario.reset`."""
    with hold_all(store, name, "reset") as whole:
        if whole.record.start is None:
            raise NotFound(f"{name} has no start to go back to.", hint=f"`%vm tree {name}` shows its states")
        _go_to(whole, whole.state(whole.record.start), keep=True, force=force)


def undo(store: Store, name: str) -> None:
    """Take the last revert of a scenario back; see :meth:`vmlab.Scenario.undo`."""
    with hold_all(store, name, "undo") as whole:
        if whole.record.undo is None:
            raise NotFound(
                f"There is no revert of {name} to take back.",
                hint="a revert keeps the present until the next one replaces it",
            )
        _go_to(whole, whole.state(whole.record.undo), keep=True, force=False)


def suspend(store: Store, name: str) -> None:
    """End all machines, and keep what they are in the middle of; see :meth:`vmlab.Scenario.suspend`."""
    with hold_all(store, name, "suspend") as whole:
        if whole.pids():
            _go_to(whole, None, keep=True, force=True)


def _go_to(whole: Whole, target: StateRecord | None, *, keep: bool, force: bool) -> None:
    """Leave the present for a state, or None for the present itself, suspended; what fails leaves it as it was."""
    store, record = whole.store, whole.record
    before = replace(record)
    snapshots = _snapshots(whole, target, keep=keep, force=force)
    wire = scenarios.wire(store, record.name, target.id) if target is not None else None
    ways = {name: Move(store, member.record, member.domain) for name, member in whole.members.items()}
    kept: StateRecord | None = None
    with whole.freeze() as freeze:
        try:
            with contextlib.ExitStack() as leaving:
                if keep:
                    freeze.drain(whole.pids())
                for way in ways.values():
                    leaving.enter_context(way.leave())
                if keep:
                    kept = _keep_present(whole, ways, freeze, "undo" if target is not None else "suspended")
                _turn(whole, ways, target or kept, kept)
            _arrive(whole, ways, snapshots, wire, freeze)
        except BaseException:
            with interrupts.held():
                whole.record.__dict__.update(vars(before))
                whole.record.pending = None
                whole.save()
                if kept is not None:
                    scenarios.remove_state(store, record.name, kept.id)
            raise
    record.pending = None
    whole.save()
    for state in (before.undo, before.continues):
        if state not in (record.undo, record.continues):
            _drop(store, record.name, state)
    threading.Thread(target=collect_quietly, args=(store,), name="vmlab-collect").start()


def _drop(store: Store, name: str, identity: str | None) -> None:
    """Remove a state that nobody needs any more, unless people see it.

    A scenario waits in one that they see where whoever went there died on the way.
    """
    if identity is not None and all(state.id != identity for state in visible(store, name)):
        scenarios.remove_state(store, name, identity)


def _snapshots(
    whole: Whole, target: StateRecord | None, *, keep: bool, force: bool
) -> dict[str, SnapshotRecord]:
    """Return the snapshots of a state, and refuse what cannot be gone to, or left, before anything is touched."""
    store = whole.store
    found: dict[str, SnapshotRecord] = {}
    for name, member in whole.members.items():
        if target is not None:
            found[name] = store.snapshot(target.members[name])
            load.check(store, found[name])
        if member.domain.state() == "asleep":
            if keep:
                raise save.asleep(member.record.name, "keep its present for an undo")
            member.domain.destroy()
    off = len(whole.members) - len(whole.pids())
    if off and found:
        biggest = max(found.values(), key=lambda snapshot: snapshot.spec.memory)
        need_memory(store, biggest.spec, mapped=biggest.ram is not None, count=off, force=force)
    return found


def _arrive(
    whole: Whole,
    ways: Mapping[str, Move],
    snapshots: Mapping[str, SnapshotRecord],
    wire: Mapping[str, Any] | None,
    freeze: Freeze,
) -> None:
    """Start all machines at the state, or end them; where that fails, all come back."""
    back: set[str] = set()

    def arrive(name: str) -> None:
        try:
            ways[name].arrive(snapshots.get(name), waits=True)
        except BaseException:
            # It has come back by itself.
            back.add(name)
            raise

    try:
        several(list(ways), arrive)
        if wire is not None:
            running = [
                member
                for name, member in whole.members.items()
                if snapshots[name].ram is not None and snapshots[name].state == "running"
            ]
            whole.go(freeze, wire, running)
    except BaseException:
        with interrupts.held():
            for name in ways.keys() - back:
                with contextlib.suppress(VMLabError):
                    ways[name].domain.destroy()
                    ways[name].come_back()
        raise


def _keep_present(whole: Whole, ways: Mapping[str, Move], freeze: Freeze, kind: str) -> StateRecord:
    store, record = whole.store, whole.record
    if record.continues is not None and _is_suspended(whole):
        wire = scenarios.wire(store, record.name, record.continues)
    else:
        wire = whole.named(freeze.export())
    ids = dict(zip(ways, several(list(ways), lambda name: ways[name].keep()), strict=True))
    label = "before the revert" if kind == "undo" else kind
    kept = StateRecord(new_id(), kind, label, ids, parent=record.here, frames=_frames(wire))
    scenarios.add_state(store, record.name, kept, wire)
    return kept


def _turn(
    whole: Whole,
    ways: Mapping[str, Move],
    target: StateRecord | None,
    kept: StateRecord | None,
) -> None:
    """Let the records stand at a state: from here on a process that comes next brings all machines there."""
    assert target is not None
    store, record = whole.store, whole.record
    if target is kept:
        record.continues = target.id
    else:
        record.undo, record.continues = (kept.id if kept else None), None
        record.here = target.id if target.kind == "snapshot" else target.parent
    record.pending = ScenarioPending("arrive", target.id)
    whole.save()
    for name, way in ways.items():
        found = store.snapshot(target.members[name])
        here = found.id if found.kind != "undo" else store.label(found.id).parent
        way.turn(
            found,
            here=here,
            address=found.address,
            undo=None,
            spec=whole.spec(found, whole.members[name]),
        )


# -- life -----------------------------------------------------------------------------------------------------------


def start(store: Store, name: str, *, boot: bool, force: bool) -> None:
    """Start all machines: where they were left, if that is one state; see :meth:`vmlab.Scenario.start`."""
    with hold_all(store, name, "start") as whole:
        if not boot and _is_suspended(whole):
            _resume(whole, force=force)
            return
        if whole.record.continues is not None:
            left, whole.record.continues = whole.record.continues, None
            whole.save()
            _drop(store, name, left)
        members = [member.record.name for member in whole.members.values()]
    several(members, lambda full: life.start(store, full, boot=boot, force=force))


def _is_suspended(whole: Whole) -> bool:
    """Whether all machines wait in the state in which the scenario was left."""
    record = whole.record
    if record.continues is None or not scenarios.has_state(whole.store, record.name, record.continues):
        return False
    state = whole.state(record.continues)
    return all(
        member.domain.state() == "off" and member.record.continues in (None, state.members[name])
        for name, member in whole.members.items()
    )


def _resume(whole: Whole, *, force: bool) -> None:
    store, record = whole.store, whole.record
    assert record.continues is not None
    state = whole.state(record.continues)
    snapshots = {name: store.snapshot(state.members[name]) for name in whole.members}
    for found in snapshots.values():
        load.check(store, found)
    live = [member for member in whole.members.values() if member.record.continues is not None]
    if live:
        biggest = max((snapshots[member.name] for member in live), key=lambda found: found.spec.memory)
        need_memory(store, biggest.spec, mapped=True, count=len(live), force=force)
    with whole.freeze() as freeze:
        record.pending = ScenarioPending("arrive", state.id)
        whole.save()
        try:
            whole.each(
                lambda member: move.arrive(
                    store, member.record, member.domain, snapshots[member.name], paused=True
                ),
                live,
            )
            running = [member for member in live if snapshots[member.name].state == "running"]
            whole.go(freeze, scenarios.wire(store, record.name, state.id), running)
        except BaseException:
            with interrupts.held():
                # All of it, or nothing: it is suspended again, and has not run.
                for member in live:
                    with contextlib.suppress(VMLabError):
                        member.domain.destroy()
                        member.record.continues, member.record.mapped = snapshots[member.name].id, None
                        member.record.pending = None
                        store.save_machine(member.record)
                record.pending = None
                whole.save()
            raise
    record.continues, record.pending = None, None
    whole.save()
    _drop(store, record.name, state.id)


# -- the tree -------------------------------------------------------------------------------------------------------


def change(
    store: Store, name: str, identity: str, *, label: str | None = None, description: str | None = None
) -> None:
    """Give a state another name or description."""
    with hold_all(store, name, "describe") as whole:
        found = whole.state(identity)
        changes: dict[str, Any] = {} if description is None else {"description": description}
        if label is not None:
            if START in (found.name, label):
                raise UsageError(
                    f"The name '{START}' is kept for the state that a scenario has after its setup.",
                    hint="choose another",
                )
            changes["name"] = _free_name(store, name, label)
        for snapshot_id in found.members.values():
            store.save_label(snapshot_id, replace(store.label(snapshot_id), **changes))
        scenarios.save_state(store, name, replace(found, **changes))


def forget(store: Store, name: str, state: str) -> None:
    """Take a state out of the tree: those that hang on it now hang on what it hung on."""
    with hold_all(store, name, "forget") as whole:
        found, record = whole.state(state), whole.record
        if state == record.start:
            raise UsageError(
                f"'{found.name}' is what {name} starts from, and goes back to at a reset.",
                hint=f"it goes with the scenario: `%vm delete {name}`",
            )
        for other in scenarios.states(store, name):
            if other.parent == state:
                scenarios.save_state(store, name, replace(other, parent=found.parent))
        if record.here == state:
            record.here = found.parent
            whole.save()
        scenarios.remove_state(store, name, state)
        for member, snapshot_id in found.members.items():
            label = store.label(snapshot_id)
            for other_id in store.snapshots_of(whole.members[member].record.uuid):
                if (below := store.label(other_id.id)).parent == snapshot_id:
                    store.save_label(other_id.id, replace(below, parent=label.parent))
            if whole.members[member].record.here == snapshot_id:
                whole.members[member].record.here = label.parent
                store.save_machine(whole.members[member].record)
            store.save_label(snapshot_id, replace(label, forgotten=True))
    collect_quietly(store)
