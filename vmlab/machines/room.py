"""Whether there is room in the host's RAM for more guests."""

from __future__ import annotations

from vmlab.errors import NoMemory
from vmlab.hypervisor import domain as domains
from vmlab.hypervisor import host
from vmlab.records import Hardware
from vmlab.render import units
from vmlab.store.store import Store

#: Bytes that QEMU itself takes beside the guest's RAM, and the part of mapped RAM that a fork is expected to change.
OVERHEAD = 80 << 20
CHANGED_PART = 0.25


def need_memory(store: Store, spec: Hardware, *, mapped: bool, count: int = 1, force: bool = False) -> None:
    """Refuse ``count`` more guests where RAM is short.

    A guest that boots may touch all its RAM; one whose RAM is mapped from a snapshot is expected to change a
    quarter.

    Raises
    ------
    NoMemory
        With the numbers.
    """
    if force:
        return
    limits = store.limits
    if limits.max_running is not None:
        running = sum(state != "off" for state in domains.names(store.account).values())
        if running + count > limits.max_running:
            raise NoMemory(
                f"{running} machines run, and this lab is limited to {limits.max_running}.",
                hint="stop one, raise it with `%vm limits --max-running`, or insist with `force=`",
            )
    one = int((spec.memory << 20) * (CHANGED_PART if mapped else 1)) + OVERHEAD
    available = host.available_memory()
    reserve = limits.reserve_memory << 20
    if available - reserve < one * count:
        raise NoMemory(
            f"There is too little RAM for {'one more guest' if count == 1 else f'{count} more guests'}: "
            f"it may need {units.size(one * count)}, {units.size(available)} are available, "
            f"and {units.size(reserve)} stay reserved for the host.",
            hint="stop a machine (`%vm list` shows what each takes), ask for less memory, or insist with `force=`",
        )
