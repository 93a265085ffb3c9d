"""A scenario while something is done to all of it: its machines are held, and what others left half done is put right.

=========  ============================================================================================================
phase      what is done when a process died in it
=========  ============================================================================================================
keep       the state is there whole, and the machines stand on it; or the snapshots that were taken for it go
arrive     all machines are ended, and suspended at the state that they were going to; the present was kept before
make       the scenario is not whole: only `delete` is done to it
delete     likewise
=========  ============================================================================================================
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from vmlab.engine import load
from vmlab.errors import VMLabError, WrongState
from vmlab.hypervisor.domain import Domain
from vmlab.machines import identity
from vmlab.machines.hold import hold
from vmlab.machines.move import Move
from vmlab.machines.several import several
from vmlab.network.networks import Freeze
from vmlab.records import (
    Hardware,
    MachineRecord,
    ScenarioPending,
    ScenarioRecord,
    SnapshotRecord,
    StateRecord,
)
from vmlab.store import networks, scenarios
from vmlab.store.store import Store

log = logging.getLogger(__name__)

R = TypeVar("R")

#: The name of the state that a scenario has right after its setup.
START = "start"


def lock_name(name: str) -> str:
    """Return what is locked while something is done to a scenario."""
    return f"@scenario-{name}"


@dataclass
class Member:
    """A machine of a scenario, by its name in that; its lock is held."""

    name: str
    record: MachineRecord
    domain: Domain


class Whole:
    """A scenario whose machines are held."""

    def __init__(self, store: Store, record: ScenarioRecord, members: Mapping[str, Member]) -> None:
        self.store, self.record, self.members = store, record, dict(members)

    def save(self) -> None:
        """Write the scenario's record."""
        scenarios.save(self.store, self.record)

    def each(self, do: Callable[[Member], R], members: list[Member] | None = None) -> dict[str, R]:
        """Do something to all members at once; return the results by name."""
        which = list(self.members.values()) if members is None else members
        if not which:
            return {}
        found = several(which, do, name=lambda member: member.name)
        return {member.name: result for member, result in zip(which, found, strict=True)}

    def state(self, identity: str) -> StateRecord:
        """Return a state of it."""
        return scenarios.state(self.store, self.record.name, identity)

    def spec(self, snapshot: SnapshotRecord, member: Member) -> Hardware:
        """Return the hardware of a snapshot of a member, plugged into this scenario's networks."""
        cards = zip(snapshot.spec.nics, member.record.spec.nics, strict=True)
        return replace(snapshot.spec, nics=tuple(replace(card, network=own.network) for card, own in cards))

    # -- networks ------------------------------------------------------------------------------------------------

    def open_networks(self) -> None:
        """Make sure that the switch is there and knows the scenario's networks."""
        for member in self.members.values():
            load.open_ways(self.store, member.record)

    def network_ids(self) -> dict[str, str]:
        """Return what the switch knows its networks as, by their names."""
        return {name: networks.read(self.store, self.record.full(name)).id for name in self.record.networks}

    def freeze(self) -> Freeze:
        """Freeze its networks."""
        # The switch may have died a moment ago, and its cards come back to it.
        self.open_networks()
        return Freeze(self.store.account, list(self.network_ids().values()))

    def pids(self) -> dict[int, str]:
        """Return the members whose QEMUs run, by process number."""
        found = {member.domain.pid: name for name, member in self.members.items()}
        return {pid: name for pid, name in found.items() if pid is not None}

    def cards(self) -> list[str]:
        """Return the cards of the QEMUs that run, as the switch knows them."""
        return [
            f"{pid}.{number}"
            for pid, name in self.pids().items()
            for number, card in enumerate(self.members[name].record.spec.nics)
            if card.plugged
        ]

    def named(self, wire: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the switch exported with names in it that hold in every copy of the scenario."""
        pids = {str(pid): name for pid, name in self.pids().items()}
        return _renamed(wire, {identity: name for name, identity in self.network_ids().items()}, pids)

    def numbered(self, wire: Mapping[str, Any]) -> dict[str, Any]:
        """Return it for the switch, with the QEMUs that run now."""
        return _renamed(wire, self.network_ids(), {name: str(pid) for pid, name in self.pids().items()})

    # -- going on ------------------------------------------------------------------------------------------------

    def go(self, freeze: Freeze, wire: Mapping[str, Any], running: list[Member]) -> None:
        """Let members that were loaded go on, at once, with what was under way between them."""
        freeze.take_up(self.numbered(wire), self.cards())
        self.each(lambda member: member.domain.go(), running)
        freeze.thaw()


def _renamed(
    wire: Mapping[str, Any], networks: Mapping[str, str], machines: Mapping[str, str]
) -> dict[str, Any]:
    def key(text: str) -> str | None:
        machine, _, card = text.rpartition(".")
        return f"{machines[machine]}.{card}" if machine in machines else None

    return {
        networks[network]: {
            "held": [[new, frame] for old, frame in found["held"] if (new := key(old))],
            "ports": {new: told for old, told in found["ports"].items() if (new := key(old))},
        }
        for network, found in wire.items()
        if network in networks
    }


@contextlib.contextmanager
def hold_all(store: Store, name: str, doing: str) -> Iterator[Whole]:
    """Hold a scenario and all its machines, and put right what a process that died left.

    Raises
    ------
    NotFound, Busy
    WrongState
        It is not whole.
    """
    for member in scenarios.read(store, name).members:
        identity.settle(f"{name}.{member}")
    with store.lock(lock_name(name), doing), contextlib.ExitStack() as stack:
        record = scenarios.read(store, name)
        if record.pending is not None and record.pending.phase in ("make", "delete"):
            raise WrongState(
                f"The scenario '{name}' is not whole: it was still being made, or deleted, when that was ended.",
                hint=f"delete what is there of it: `%vm delete {name}`; then make it again",
            )
        members = {}
        # Always in the same order, so that two who hold all never wait for each other.
        for member in sorted(record.members):
            machine, domain = stack.enter_context(hold(store, record.full(member), doing))
            members[member] = Member(member, machine, domain)
        whole = Whole(store, record, members)
        if record.pending is not None:
            _recover(whole, record.pending)
        yield whole


def _recover(whole: Whole, pending: ScenarioPending) -> None:
    log.info("%s: a process died at work (%s); put right", whole.record.name, pending.phase)
    if pending.phase == "keep":
        recover_keep(whole, pending)
    else:
        _recover_arrive(whole, pending)
    whole.record.pending = None
    whole.save()


def recover_keep(whole: Whole, pending: ScenarioPending) -> None:
    """Bring a state that was being kept to its end if it is there whole, else take it back."""
    store, record = whole.store, whole.record
    if scenarios.has_state(store, record.name, pending.state):
        for name, snapshot in pending.snapshots.items():
            whole.members[name].record.here = snapshot
            store.save_machine(whole.members[name].record)
        record.here = pending.state
        if whole.state(pending.state).name == START:
            record.start = pending.state
        return
    for name, snapshot in pending.snapshots.items():
        if store.snapshot_folder(snapshot).is_dir():
            label = store.label(snapshot)
            store.save_label(snapshot, replace(label, forgotten=True))
            member = whole.members[name]
            if member.record.here == snapshot:
                member.record.here = label.parent
                store.save_machine(member.record)


def _recover_arrive(whole: Whole, pending: ScenarioPending) -> None:
    state = whole.state(pending.state)
    for name, member in whole.members.items():
        snapshot = whole.store.snapshot(state.members[name])
        member.domain.destroy()
        way = Move(whole.store, member.record, member.domain)
        here = snapshot.id if snapshot.kind != "undo" else whole.store.label(snapshot.id).parent
        way.turn(snapshot, here=here, undo=None, spec=whole.spec(snapshot, member))
        member.record.pending = None
        whole.store.save_machine(member.record)
        try:
            load.define(whole.store, member.record, member.domain)
        except VMLabError as error:
            log.warning("%s could not be defined: %s", member.record.name, error)
    whole.record.continues = state.id
