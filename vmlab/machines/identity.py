"""A fork is told who it is: its name, machine ID and MAC, through its agent, beside whatever comes next."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import Any

from vmlab.engine import load
from vmlab.engine.domain import domain_of
from vmlab.errors import VMLabError
from vmlab.guest import identity
from vmlab.machines.hold import hold
from vmlab.records import MachineRecord, SnapshotRecord
from vmlab.store import telling
from vmlab.store.store import Store

log = logging.getLogger(__name__)

#: Seconds within which a fork gets an address for its new MAC.
ADDRESS_TIMEOUT = 20

#: Forks that are just being told by a thread of this process: by name, which is unique for one libvirt daemon.
_telling: dict[str, threading.Thread] = {}


def begin(store: Store, record: MachineRecord, source: SnapshotRecord) -> bool:
    """Note that the guest of a machine which continues ``source`` is to be told who it is; False: it need not be.

    The machine's lock is held: no snapshot of it is taken before it is noted.
    """
    running = source.ram is not None and source.state == "running"
    # Caught while it was being told, it has to be told once more, its address above all.
    new = source.machine != record.uuid or bool(source.macs)
    if not (running and source.spec.agent and new):
        return False
    telling.begin(store, record.name, list(dict.fromkeys((source.mac, *source.macs))))
    return True


def give(store: Store, record: MachineRecord, source: SnapshotRecord, clock: str) -> None:
    """Tell a fork its new name, machine ID and MAC through its agent; a first command waits for this (:func:`settle`).

    The fork runs already, from ``source``, and :func:`begin` was called.
    """

    def tell() -> None:
        domain = domain_of(store, record.name)
        try:
            found = identity.renew(
                domain,
                hostname=record.hostname,
                mac=record.mac,
                old_macs=(source.mac, *source.macs),
                cards=len(record.spec.nics),
                after_another=bool(source.macs),
            )
            # One that has kept its origin's MAC would take that one's place in a network.
            if not any(what.startswith("mac") for what in found.failed):
                load.plug(store, record, domain, up=True)
            if clock == "now":
                with contextlib.suppress(VMLabError):
                    identity.set_clock(domain)
            if record.forwards and "dhcp" in found.done and not _follow_address(store, record.name):
                found.failed["forwards"] = "the guest got no address by DHCP"
            telling.end(store, record.name, found.to_json())
        except (VMLabError, OSError) as error:
            log.warning("%s could not be told who it is: %s", record.name, error)
        finally:
            _telling.pop(record.name, None)

    # Not a daemon: a command line that ends at once must not leave a fork with half an identity.
    thread = threading.Thread(target=tell, name=f"vmlab-identity-{record.name}")
    _telling[record.name] = thread
    thread.start()


def _follow_address(store: Store, name: str) -> bool:
    """Forward a fork's ports to the address that its new MAC gets by DHCP; False if it gets none in time."""
    end = time.monotonic() + ADDRESS_TIMEOUT
    while time.monotonic() < end:
        with contextlib.suppress(VMLabError):
            found = identity.addresses(domain_of(store, name), store.machine(name).mac)
            if found and store.machine(name).address not in found:
                with hold(store, name, "forward its ports") as (now, domain):
                    now.address = found[0]
                    load.forward(store, now, domain, again=True)
                    store.save_machine(now)
                return True
        time.sleep(0.2)
    return False


def settle(name: str) -> None:
    """Wait until a fork's new identity has been told to it, if this process is just doing that."""
    thread = _telling.get(name)
    if thread is not None and thread is not threading.current_thread():
        thread.join()


def told(store: Store, name: str) -> dict[str, Any] | None:
    """Return what a fork got of its own; None for a machine that booted, or has no agent."""
    settle(name)
    return telling.told(store, name)
