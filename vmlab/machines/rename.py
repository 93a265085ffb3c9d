"""A machine gets another name.

libvirt cannot rename a guest that runs, so its state is kept and goes on under the new name.
"""

from __future__ import annotations

from vmlab.engine import save
from vmlab.machines import identity
from vmlab.machines.hold import hold
from vmlab.machines.members import need_alone
from vmlab.machines.move import move, through_a_new_qemu
from vmlab.machines.names import need_free, taken
from vmlab.records import check_name
from vmlab.store.store import Store


def rename(store: Store, name: str, new: str) -> None:
    """Give a machine another name; see :meth:`vmlab.Machine.rename`."""
    check_name("machine", new)
    need_alone(store, name, "rename")
    identity.settle(name)
    if new in store.machine_names():
        raise taken(new)
    with hold(store, name, "rename") as (record, domain), store.lock(new, "rename"):
        need_free(store, new)
        if domain.state() == "asleep":
            raise save.asleep(name, "rename")
        move(store, record, domain, through_a_new_qemu, name=new)
