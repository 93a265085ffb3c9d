"""A machine of the store as libvirt and QEMU know it."""

from __future__ import annotations

from vmlab.hypervisor.domain import Domain
from vmlab.records import MachineRecord
from vmlab.store.store import Store


def domain_of(store: Store, name: str) -> Domain:
    """Return the guest of the machine of that name."""
    return Domain(store.account, name, store.machine_folder(name) / "serial.log", store.domain_name(name))


def state_of(store: Store, record: MachineRecord) -> str:
    """Return what a machine is doing: as its guest, or ``suspended`` where it is off with RAM to continue from."""
    return condition_of(store, record)[0]


def condition_of(store: Store, record: MachineRecord) -> tuple[str, str | None]:
    """Return what a machine is doing (as :func:`state_of`), and why, where that is known."""
    found = domain_of(store, record.name).condition()
    return ("suspended", None) if found.state == "off" and record.continues else (found.state, found.why)
