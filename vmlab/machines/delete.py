"""A machine is deleted, also where its record or what was being done to it cannot be made out any more."""

from __future__ import annotations

from vmlab.engine.domain import domain_of
from vmlab.errors import RecordDamaged
from vmlab.hypervisor.domain import Domain
from vmlab.machines import identity
from vmlab.machines.members import need_alone
from vmlab.machines.unmake import collect_quietly
from vmlab.store.store import Store


def delete(store: Store, name: str, *, with_scenario: bool = False) -> None:
    """End a machine and delete it with its snapshots, but for what other machines are built on.

    Parameters
    ----------
    with_scenario
        The scenario that it is a member of is being deleted.
    """
    if not with_scenario:
        need_alone(store, name, "delete")
    identity.settle(name)
    _uuid(store, name)
    # Nothing that a process left at work is put right: it goes with the machine.
    with store.lock(name, "delete"):
        domain = domain_of(store, name)
        if _is_ours(store, domain, _uuid(store, name)):
            domain.destroy()
            domain.undefine()
        store.remove_machine(name)
    collect_quietly(store)


def _uuid(store: Store, name: str) -> str | None:
    try:
        return store.machine(name).uuid
    except RecordDamaged:
        return None


def _is_ours(store: Store, domain: Domain, uuid: str | None) -> bool:
    """Whether libvirt's guest of that name, if there is one, is this machine and no other store's."""
    if domain.uuid is None or uuid is not None:
        return domain.uuid in (None, uuid)
    # The record is damaged. A guest of this machine writes its serial line to the machine's folder.
    return f"{store.machine_folder(domain.name)}/" in domain.xml()
