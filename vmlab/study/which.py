"""Which states words name: ``web`` a present, ``web@clean`` a snapshot, ``clean`` one of the machine before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vmlab.errors import NotFound, UsageError
from vmlab.machines import history
from vmlab.records import MachineRecord, SnapshotRecord
from vmlab.store.store import Store


@dataclass(frozen=True)
class Place:
    """A state: a snapshot, or a machine's present.

    Attributes
    ----------
    snapshot
        The snapshot's id, or None for a present.
    machine
        The machine's name, for a present.
    """

    snapshot: str | None = None
    machine: str = ""


def owner(store: Store, place: Place) -> str | None:
    """Return the machine that a state is of; None if it is gone, and for the ready state of an image."""
    if place.snapshot is None:
        return place.machine
    return store.machine_of(store.snapshot(place.snapshot).machine)


def _found(record: SnapshotRecord) -> Place:
    return Place(record.id)


def find(store: Store, text: str, machine: str | None = None) -> Place:
    """Return what ``text`` names; with ``machine`` first a snapshot of that.

    Raises
    ------
    NotFound
        There is no such thing; names those that there are.
    """
    name, at, label = text.partition("@")
    if at:
        record = store.machine(name)
        return _found(history.find(store, record, label)) if label else Place(machine=name)
    if machine is None:
        return Place(machine=store.machine(text).name)
    record = store.machine(machine)
    try:
        return _found(history.find(store, record, text))
    except NotFound as error:
        names = store.machine_names(throwaway=False)
        if text in names:
            return Place(machine=text)
        snapshots = [store.label(s.id).name for s in store.snapshots_of(record.uuid)]
        others = [other for other in names if other != machine]
        raise NotFound(
            f"'{text}' is neither a snapshot of {machine} nor a machine.",
            hint=f"snapshots of {machine}: {', '.join(snapshots) or 'none'}; "
            f"other machines: {', '.join(others) or 'none'}",
        ) from error


def stands_on(store: Store, record: MachineRecord) -> str | None:
    """Return the id of the snapshot that a machine's present stands on or, if it is forgotten, its tree starts from."""
    for snapshot_id in (record.here, record.root):
        if history.visible(store, snapshot_id) is not None:
            return snapshot_id
    return None


def states(store: Store, words: Sequence[Place | str]) -> list[Place]:
    """Return the states that are to be compared, the older one first.

    One word alone is a machine against the snapshot that it stands on. A snapshot's name belongs to the first
    machine; a single snapshot is compared with that machine's present.
    """
    if not words:
        raise UsageError("There is nothing to compare.", hint="for example `%vm diff web clean`")
    first = find(store, words[0]) if isinstance(words[0], str) else words[0]
    machine = owner(store, first)
    rest = [find(store, word, machine) if isinstance(word, str) else word for word in words[1:]]
    if first.snapshot is None:
        record = store.machine(first.machine)
        if not rest:
            here = stands_on(store, record)
            if here is None:
                raise NotFound(
                    f"{first.machine} has no snapshot that its present could be compared with.",
                    hint=f"take one first: `%vm snapshot {first.machine}`",
                )
            return [Place(here), first]
        own = {*(s.id for s in store.snapshots_of(record.uuid)), record.root}
        if rest[0].snapshot is not None and rest[0].snapshot in own:
            # The machine only says whose snapshots these are; one alone is compared with its present.
            return [rest[0], first] if len(rest) == 1 else rest
    elif not rest:
        if machine is None:
            raise NotFound(
                "The machine of that snapshot is gone.",
                hint="name two snapshots, or a snapshot and a machine",
            )
        return [first, Place(machine=machine)]
    return [first, *rest]


def in_a_row(store: Store, words: Sequence[Place | str]) -> list[Place]:
    """Return several states in the order given; a machine alone stands for all its snapshots and its present."""
    first = find(store, words[0]) if words and isinstance(words[0], str) else None
    if len(words) == 1:
        only = first or words[0]
        assert isinstance(only, Place)
        if only.snapshot is not None:
            return [only]
        record = store.machine(only.machine)
        return [*(_found(s) for s in store.snapshots_of(record.uuid)), only]
    if first is not None and first.snapshot is None and len(words) == 2:
        second = find(store, words[1], first.machine) if isinstance(words[1], str) else words[1]
        # One state of this machine, or two machines.
        return [second] if second.snapshot is not None or second == first else [first, second]
    return states(store, words)
