"""Scenarios are made of what a file says, copied, and deleted."""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import logging
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vmlab.engine import fold, interrupts, load
from vmlab.engine.domain import domain_of
from vmlab.errors import AlreadyExists, NotFound, RecordDamaged, UsageError, VMLabError, WaitTimeout
from vmlab.guest import identity as guest_identity
from vmlab.hypervisor.domain import Domain
from vmlab.machines import delete as machine_delete
from vmlab.machines import identity, move
from vmlab.machines import networks as machine_networks
from vmlab.machines.boot import new_record
from vmlab.machines.create import create
from vmlab.machines.fork import SPACE
from vmlab.machines.guest import Guest
from vmlab.machines.hardware import Wanted, plan
from vmlab.machines.members import scenario_of
from vmlab.machines.names import need_free
from vmlab.machines.room import need_memory
from vmlab.machines.several import several
from vmlab.machines.unmake import collect_quietly, unmake
from vmlab.records import (
    Hardware,
    Link,
    MachineRecord,
    NetworkRecord,
    Pending,
    ScenarioPending,
    ScenarioRecord,
    SnapshotRecord,
    StateRecord,
    check_name,
    mac_of,
)
from vmlab.render.progress import Progress
from vmlab.scenarios import states
from vmlab.scenarios.file import LONGEST, MachinePlan, Plan
from vmlab.scenarios.whole import START, Member, Whole, hold_all, lock_name
from vmlab.store import networks, scenarios
from vmlab.store.store import Store

log = logging.getLogger(__name__)

#: Seconds within which machines are ready after they were made, and within which a setup script ends.
READY, SETUP = 120.0, 600.0


def need_free_name(store: Store, name: str) -> None:
    """Refuse the name of a new scenario that cannot be, or that something has already."""
    check_name("scenario", name)
    if "." in name:
        raise UsageError(f"The name of a scenario has no dot in it: '{name}'.", hint="use another")
    if name in scenarios.names(store):
        raise AlreadyExists(
            f"There is a scenario named '{name}' already.",
            hint=f"choose another name, or delete it with `%vm delete {name}`",
        )
    if name in store.machine_names():
        raise AlreadyExists(f"There is a machine named '{name}' already.", hint="choose another name")


# -- making one -----------------------------------------------------------------------------------------------------


def up(store: Store, wanted: Plan, *, force: bool, tell: Progress) -> None:
    """Make a scenario and all that is in it, or start the one that is there; see :meth:`vmlab.Lab.up`."""
    if wanted.name in scenarios.names(store):
        known = scenarios.read(store, wanted.name)
        if known.digest != wanted.digest:
            store.tell(
                f"the scenario {wanted.name} was made from something else than this says now, and stays as it is; "
                f"delete it first to make it anew: `%vm delete {wanted.name}`"
            )
        states.start(store, wanted.name, boot=False, force=force)
        if known.start is None:
            # Whoever made it died in the moment before.
            states.snapshot_start(store, wanted.name)
        return
    for other in scenarios.names(store):
        # What a damaged one was made from nobody knows.
        with contextlib.suppress(VMLabError):
            known = scenarios.read(store, other)
            start = states.find(store, other, START)
            if known.digest == wanted.digest and known.start == start.id and known.pending is None:
                break
    else:
        _up(store, wanted, force=force, tell=tell)
        return
    fork(store, other, start.id, [wanted.name], force=force)


def _up(store: Store, wanted: Plan, *, force: bool, tell: Progress) -> None:
    """Make a scenario, and keep its start."""
    with store.lock(lock_name(wanted.name), "up"):
        need_free_name(store, wanted.name)
        record = ScenarioRecord(
            wanted.name,
            tuple(wanted.machines),
            tuple(wanted.networks),
            title=wanted.title,
            description=wanted.description,
            file=wanted.source,
            digest=wanted.digest,
            pending=ScenarioPending("make"),
        )
        for name in record.members:
            need_free(store, record.full(name))
        # Before anything is made: whether all of it can be had.
        specs = [
            plan(store, machine.image, _wanted(record, machine))[0]
            for machine in wanted.machines.values()
            if _is_there(store, machine.image)
        ]
        if specs:
            whole = replace(specs[0], memory=sum(spec.memory for spec in specs))
            need_memory(store, whole, mapped=True, force=force)
        scenarios.add(store, record)
        try:
            _make(store, record, wanted, force=force, tell=tell)
        except BaseException:
            with interrupts.held():
                _unmake(store, record)
            raise
    tell(f"keeping the start of {wanted.name}", None)
    try:
        states.snapshot_start(store, wanted.name)
    except BaseException:
        with interrupts.held():
            delete(store, wanted.name)
        raise


def _is_there(store: Store, image: str) -> bool:
    return Path(store.image_folder(image), "image.json").exists()


def _wanted(record: ScenarioRecord, machine: MachinePlan) -> Wanted:
    return Wanted(
        memory=machine.memory,
        vcpus=machine.vcpus,
        disk=machine.disk,
        way_out="none",
        nics=[
            f"{record.full(network)}={address}" if address else record.full(network)
            for network, address in machine.nics
        ],
    )


def _make(store: Store, record: ScenarioRecord, wanted: Plan, *, force: bool, tell: Progress) -> None:
    for network, how in wanted.networks.items():
        networks.make(store, record.full(network), how.subnet, floods=how.floods)
    # One of each kind first: its ready state is made once, and the others start from that.
    told = threading.Lock()

    def say(text: str, part: float | None = None) -> None:
        with told:
            tell(text, part)

    def one(name: str) -> None:
        machine = wanted.machines[name]
        create(
            store,
            record.full(name),
            machine.image,
            _wanted(record, machine),
            forwards=(),
            clock="now",
            start=True,
            bake=True,
            force=force,
            reuse=False,
            tell=say,
            scenario=record.name,
        )

    kinds: dict[Any, str] = {}
    for name, machine in wanted.machines.items():
        kinds.setdefault(
            (machine.image, machine.memory, machine.vcpus, machine.disk, len(machine.nics)), name
        )
    for name in kinds.values():
        one(name)
    several([name for name in wanted.machines if name not in kinds.values()], one)
    say("waiting until all machines have their addresses")
    several(list(wanted.machines), lambda name: _wait_ready(store, record.full(name)))
    for name, machine in wanted.machines.items():
        if machine.files or machine.setup is not None:
            say(f"setting up {name}")
            _set_up(Guest(store, record.full(name)), machine.files, machine.setup)
    # From here on, so that all machines are set up over links that are perfect.
    for (name, network), link in wanted.links.items():
        if link != Link():
            machine_networks.link(store, record.full(name), record.full(network), **_changes(link))
    record.pending = None
    scenarios.save(store, record)


def _changes(link: Link) -> dict[str, Any]:
    found: dict[str, Any] = {
        "delay": link.delay, "jitter": link.jitter, "loss": link.loss, "rate": link.rate, "down": link.down,
    }  # fmt: skip
    return found


def _wait_ready(store: Store, name: str) -> None:
    """Wait until a machine answers, and has the addresses that it is to have."""
    record = store.machine(name)
    if not record.spec.agent:
        return
    identity.settle(name)
    guest, end = Guest(store, name), time.monotonic() + READY
    guest.wait_for_agent(READY)
    missing = {mac_of(record.mac, n): card.address for n, card in enumerate(record.spec.nics) if card.address}
    while missing:
        domain = domain_of(store, name)
        with contextlib.suppress(VMLabError):
            missing = {
                mac: address
                for mac, address in missing.items()
                if address not in guest_identity.addresses(domain, mac)
            }
        if missing and time.monotonic() > end:
            raise WaitTimeout(
                f"{name} has not got its address in {READY:.0f} s.",
                hint="its system must ask for one (DHCP) on each of its cards",
                missing=", ".join(missing.values()),
            )
        time.sleep(0.05 if missing else 0)


def _set_up(guest: Guest, files: Mapping[str, bytes], setup: bytes | None) -> None:
    with tempfile.TemporaryDirectory(prefix="vmlab-setup-") as folder:
        for target, content in files.items():
            local = Path(folder, "file")
            local.write_bytes(content)
            if above := target.rpartition("/")[0]:
                guest.succeed(["mkdir", "-p", above])
            guest.put(local, target)
    if setup is not None:
        guest.script(setup.decode(errors="replace"), timeout=SETUP).check()


# -- copies ---------------------------------------------------------------------------------------------------------


def fork(store: Store, name: str, label: str | None, names: Sequence[str], *, force: bool) -> None:
    """Make scenarios that start from a state of one; see :meth:`vmlab.Scenario.fork`."""
    record = scenarios.read(store, name)
    longest = max(map(len, record.members))
    if len(set(names)) != len(names):
        raise UsageError("A name is given twice.", hint="each scenario needs a name of its own")
    for new in names:
        need_free_name(store, new)
        if len(new) + longest > LONGEST:
            raise UsageError(
                f"'{new}' and the names of its machines are longer than {LONGEST} signs together.",
                hint="choose a shorter name",
            )
        for member in record.members:
            need_free(store, f"{new}.{member}")
    with hold_all(store, name, "fork") as whole:
        state = states.find(store, name, label)
        snapshots = {member: store.snapshot(state.members[member]) for member in record.members}
        for found in snapshots.values():
            load.check(store, found)
        biggest = max(snapshots.values(), key=lambda found: found.spec.memory)
        count = len(names) * len(snapshots)
        need_memory(store, biggest.spec, mapped=biggest.ram is not None, count=count, force=force)
        store.need_space(count * SPACE, f"for {count} more machines")
        if len(names) > 1:
            for found in snapshots.values():
                if found.ram is not None:
                    fold.make(store, found)
        subnets = {n: networks.read(store, record.full(n)) for n in record.networks}
        wire = scenarios.wire(store, name, state.id)
        # While the origin is held: none of what they stand on is forgotten meanwhile.
        several(list(names), lambda new: _copy(store, whole, new, state, snapshots, subnets, wire))


def _copy(
    store: Store,
    origin: Whole,
    name: str,
    state: StateRecord,
    snapshots: Mapping[str, SnapshotRecord],
    subnets: Mapping[str, NetworkRecord],
    wire: Mapping[str, Any],
) -> None:
    record = replace(
        origin.record,
        name=name,
        description="",
        start=state.id,
        here=state.id,
        undo=None,
        continues=None,
        pending=ScenarioPending("make"),
    )
    with store.lock(lock_name(name), "fork"), contextlib.ExitStack() as locks:
        need_free_name(store, name)
        scenarios.add(store, record)
        try:
            scenarios.add_state(store, name, replace(state, parent=None), wire)
            for network, known in subnets.items():
                networks.make(
                    store, record.full(network), ipaddress.IPv4Network(known.subnet), floods=known.floods
                )
            members = {}
            for member in sorted(record.members):
                locks.enter_context(store.lock(record.full(member), "fork"))
                own = _member(store, record, member, snapshots[member])
                members[member] = Member(member, own, domain_of(store, own.name))
            whole = Whole(store, record, members)
            for one in members.values():
                store.add_machine(one.record)
                load.define(store, one.record, one.domain)
            live = [one for one in members.values() if snapshots[one.name].ram is not None]
            with whole.freeze() as freeze:
                whole.each(
                    lambda one: move.arrive(
                        store, one.record, one.domain, snapshots[one.name], paused=True, shared=True
                    ),
                    live,
                )
                running = [one for one in live if snapshots[one.name].state == "running"]
                whole.go(freeze, wire, running)
            record.pending = None
            whole.save()
        except BaseException:
            with interrupts.held():
                _unmake(store, record)
            raise
    for one in running:
        _seed(one.record, one.domain)


def _member(store: Store, scenario: ScenarioRecord, member: str, source: SnapshotRecord) -> MachineRecord:
    """Return the record of a machine's copy: all that its guest knows of itself stays as it is."""

    def leads(network: str) -> str:
        # A state that came with a copy names the networks of where it was taken.
        return scenario.full(network.rpartition(".")[2]) if network else network

    nics = tuple(replace(card, network=leads(card.network)) for card in source.spec.nics)
    spec: Hardware = replace(source.spec, nics=nics)
    record = new_record(scenario.full(member), source.image, spec, (), scenario.name)
    record.mac, record.address = source.mac, source.address
    record.root = record.here = source.id
    record.continues = source.id if source.ram is not None else None
    record.nvram = source.id if source.ram is None and source.nvram else None
    record.layers = store.add_layers(source.layers)
    record.pending = Pending("arrive") if source.ram is not None else None
    return record


def _seed(record: MachineRecord, domain: Domain) -> None:
    """Give the guest's random generator something of its own, or all copies would make the same keys.

    Its kernel may have done so already, when it saw another VM generation ID.
    """

    def seed() -> None:
        with contextlib.suppress(VMLabError):
            handle = domain.agent("guest-file-open", path="/dev/urandom", mode="w")
            own: dict[str, Any] = {"buf-b64": base64.b64encode(secrets.token_bytes(64)).decode()}
            domain.agent("guest-file-write", handle=handle, **own)
            domain.agent("guest-file-close", handle=handle)

    if record.spec.agent:
        threading.Thread(target=seed, name=f"vmlab-seed-{record.name}").start()


# -- the end --------------------------------------------------------------------------------------------------------


def delete(store: Store, name: str) -> None:
    """End all machines of a scenario, and delete it with its states and networks."""
    record = _record(store, name)
    for member in record.members:
        identity.settle(record.full(member))
    with store.lock(lock_name(name), "delete"):
        record = _record(store, name)
        record.pending = ScenarioPending("delete")
        scenarios.save(store, record)
        _remove(store, record, lambda full: machine_delete.delete(store, full, with_scenario=True))
    collect_quietly(store)


def _record(store: Store, name: str) -> ScenarioRecord:
    """Return the record of a scenario that is to go; what a damaged one does not tell is told by what is there."""
    try:
        return scenarios.read(store, name)
    except RecordDamaged:
        own = [full for full in networks.names(store) if full.startswith(f"{name}.")]
        return ScenarioRecord(name, (), tuple(full.removeprefix(f"{name}.") for full in own))


def _unmake(store: Store, record: ScenarioRecord) -> None:
    """Remove what there is of a scenario that could not be made."""

    def remove(full: str) -> None:
        identity.settle(full)
        with store.lock(full, "delete"):
            unmake(store, store.machine(full), domain_of(store, full))

    try:
        _remove(store, record, remove)
    except VMLabError as error:
        log.warning("what there is of %s goes at its deletion: %s", record.name, error)


def _remove(store: Store, record: ScenarioRecord, remove: Callable[[str], None]) -> None:
    def one(full: str) -> None:
        with contextlib.suppress(NotFound):
            remove(full)

    known = [record.full(member) for member in record.members]
    # Also one whose name says nothing of it.
    stray = [name for name in store.machine_names() if scenario_of(store, name) == record.name]
    for full in dict.fromkeys([*known, *stray]):
        one(full)
    for network in record.networks:
        with contextlib.suppress(NotFound):
            machine_networks.delete(store, record.full(network))
    scenarios.remove(store, record.name)
