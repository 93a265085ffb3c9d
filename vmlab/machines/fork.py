"""New machines that start from a snapshot, sharing its RAM and disk."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from vmlab.engine import fold, load
from vmlab.engine.domain import domain_of
from vmlab.errors import VMLabError
from vmlab.machines import identity, move, networks
from vmlab.machines.boot import Forwards, new_record
from vmlab.machines.names import need_free, need_names
from vmlab.machines.room import need_memory
from vmlab.machines.several import several
from vmlab.machines.unmake import unmake
from vmlab.records import Hardware, Pending, SnapshotRecord
from vmlab.store.store import Store

#: Bytes of disk without which a machine that continues a state is not even begun.
SPACE = 16 << 20


def fork(store: Store, source: SnapshotRecord, names: Sequence[str], *, clock: str, force: bool) -> list[str]:
    """Make machines that start from a snapshot, all at once, and return their names; see :meth:`vmlab.Lab.fork`."""
    need_names(store, names)
    load.check(store, source)
    need_memory(store, source.spec, mapped=source.ram is not None, count=len(names), force=force)
    store.need_space(len(names) * SPACE, f"for {len(names)} more machine{'s' * (len(names) > 1)}")

    # One alone shares with nobody, and need not wait for it.
    if len(names) > 1 or _has_forks(store, source):
        fold.make(store, source)
    begun: list[Callable[[], None]] = []

    def one(name: str) -> str:
        # Its ports are its own: those of the host are the other machine's.
        forwards = [(0, guest) for _, guest in source.forwards]
        fork_one(store, source, name, forwards=forwards, clock=clock, then=begun.append)
        return name

    try:
        return several(names, one)
    finally:
        # When all run: what guests do takes CPU time from those that are still being started.
        for tell in begun:
            tell()


def _has_forks(store: Store, source: SnapshotRecord) -> bool:
    for name in store.machine_names():
        # One may be deleted at this moment; what a damaged record says nobody knows.
        with contextlib.suppress(VMLabError):
            if store.machine(name).root == source.id:
                return True
    return False


def fork_one(
    store: Store,
    source: SnapshotRecord,
    name: str,
    *,
    forwards: Forwards,
    clock: str = "then",
    start: bool = True,
    leading: Hardware | None = None,
    scenario: str | None = None,
    then: Callable[[Callable[[], None]], None] = lambda tell: tell(),
) -> None:
    """Make one machine that starts from a snapshot; what fails leaves nothing behind.

    Parameters
    ----------
    leading
        Hardware whose network cards lead where those of the new machine are to lead.
    scenario
        The scenario that it is a member of.
    then
        Is given, once the machine runs, what begins to tell it who it is.
    """
    # On the same wire it is another machine, with addresses of its own.
    spec = source.spec.leading(leading) if leading is not None else source.spec.unaddressed
    if source.scenario is not None:
        # There all addresses are taken, and what its programs are connected to is the other machine's.
        spec = replace(spec, nics=tuple(replace(card, network="") for card in spec.nics))
        store.tell(f"{name} is no machine of {source.scenario}: the cables of its network cards are pulled")
    record = new_record(name, source.image, spec, forwards, scenario)
    record.root = record.here = source.id
    record.address = source.address
    record.continues = source.id if source.ram is not None else None
    record.nvram = source.id if source.ram is None and source.nvram else None
    domain = domain_of(store, name)
    store.need_space(SPACE, "for one more machine")
    with store.lock(name, "fork"):
        need_free(store, name)
        try:
            record.layers = store.add_layers(source.layers)
            # Should we die from here on, it is a whole machine, and a start continues it.
            starts = start and source.ram is not None
            record.pending = Pending("arrive") if starts else None
            with networks.addressed(store, record):
                store.add_machine(record)
            load.define(store, record, domain)
            tells = starts and identity.begin(store, record, source)
            if starts and not tells and any(card.plugged for card in record.spec.nics):
                store.tell(
                    f"{name} cannot be told an address of its own (it has no agent, or does not run): its cards are "
                    "unplugged until it is started from its disk"
                )
            if starts:
                move.arrive(store, record, domain, source, paused=source.state == "crashed", shared=True)
        except BaseException:
            unmake(store, record, domain)
            raise
    if tells:
        then(lambda: identity.give(store, record, source, clock))
