"""Names that are free, for machines and for their snapshots."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Sequence

from vmlab.errors import AlreadyExists, BadName, RecordDamaged, UsageError
from vmlab.hypervisor import domain as domains
from vmlab.records import MachineRecord, check_label, check_name
from vmlab.store import scenarios
from vmlab.store.store import Store


def taken(name: str, *, reuse: bool = False) -> AlreadyExists:
    """Return the error for a name that a machine has already: the store's sentence, before any slow work."""
    use = f"use it with `%vm create {name} --reuse`, " if reuse else ""
    return AlreadyExists(
        f"There is a machine named '{name}' already.",
        hint=f"{use}choose another name, or delete it with `%vm delete {name}`",
    )


def need_names(store: Store, names: Sequence[str]) -> None:
    """Refuse names for new machines that cannot be, are taken, or are given twice."""
    if len(set(names)) != len(names):
        raise UsageError("A name is given twice.", hint="each machine needs a name of its own")
    for name in names:
        check_name("machine", name)
        need_free(store, name)


def need_free(store: Store, name: str) -> None:
    """Refuse a name that a machine has, ours or one that only libvirt knows: of another store, or of virsh."""
    if name in store.machine_names():
        raise taken(name)
    if name in scenarios.names(store):
        raise AlreadyExists(f"There is a scenario named '{name}' already.", hint="choose another name")
    if domains.is_known(store.account, store.domain_name(name)):
        raise AlreadyExists(
            f"libvirt has a machine named '{name}' already, which is not of this lab.",
            hint="choose another name (`virsh list --all` shows it)",
            libvirt=store.account.uri,
        )


def free_names(store: Store, stem: str, count: int, reserved: Iterable[str] = ()) -> list[str]:
    """Return ``count`` names that no machine has, nor is ``reserved``: ``web-2``, ``web-3`` ..."""
    stem = re.sub(r"-\d+$", "", stem)[:36]
    used = {*store.machine_names(), *_known_to_libvirt(store), *reserved}
    return [f"{stem}-{number}" for number in _numbers(stem, "-", used, 2, count)]


def name_like(store: Store, stem: str, reserved: Iterable[str] = ()) -> str:
    """Return ``stem`` if a new machine can have it, else the first free of ``stem-2``, ``stem-3`` ..."""
    stem = stem[:36]
    free = stem not in {*store.machine_names(), *_known_to_libvirt(store), *reserved}
    return stem if free else free_names(store, stem, 1, reserved)[0]


def _known_to_libvirt(store: Store) -> set[str]:
    """Return the names of machines of this store that libvirt could not take another guest for."""
    suffix = f"{store.mark and '~'}{store.mark}"
    return {name.removesuffix(suffix) for name in domains.known(store.account) if name.endswith(suffix)}


def _numbers(stem: str, dash: str, used: Collection[str], first: int, count: int) -> list[int]:
    found: list[int] = []
    number = first
    while len(found) < count:
        if f"{stem}{dash}{number}" not in used:
            found.append(number)
        number += 1
    return found


def snapshot_names(store: Store, record: MachineRecord) -> set[str]:
    """Return the names that a machine's snapshots have."""
    return {store.label(s.id).name for s in store.snapshots_of(record.uuid) + store.damaged_of(record)}


def snapshot_name(store: Store, record: MachineRecord, name: str | None, stem: str = "s") -> str:
    """Return ``name`` if a new snapshot of the machine can have it, or without one the next of ``s1``, ``s2`` ...

    Raises
    ------
    AlreadyExists, BadName
    """
    used = snapshot_names(store, record)
    if name is None:
        return f"{stem}{_numbers(stem, '', used, 1, 1)[0]}"
    name = check_label("snapshot", name)
    if name in used:
        raise AlreadyExists(
            f"{record.name} has a snapshot named '{name}' already.",
            hint=f"put the new one in its place with `%vm snapshot {record.name} {shlex.quote(name)} --replace`, "
            "or choose another name",
        )
    return name


def need_machine(store: Store, name: str) -> None:
    """Make sure that there is a machine of that name; one whose record is damaged can be deleted at least.

    Raises
    ------
    NotFound
        With the nearest names.
    BadName
        It can be the name of none.
    """
    try:
        store.machine(name)
    except RecordDamaged:
        return
    except BadName:
        # As scp writes a file of another computer, and we a state where states are compared.
        found = re.fullmatch(r"([^:@/]+)[:@/](.*)", str(name), re.DOTALL)
        if found is None or found[1] not in store.machine_names():
            raise
        known, rest = found.groups()
        raise BadName(
            f"{name!r} is not the name of a machine; '{known}' is one.",
            hint=f"what is meant of it is a word of its own here: '{known} {rest}'" if rest else None,
        ) from None
