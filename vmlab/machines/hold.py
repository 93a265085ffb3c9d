"""A machine is held while something is done to it: one at a time, and put right first."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

from vmlab.engine import load, save
from vmlab.engine.domain import domain_of
from vmlab.errors import HypervisorError, NoSpace, VMLabError, WrongState
from vmlab.hypervisor.domain import Domain
from vmlab.machines import move, shorten
from vmlab.records import MachineRecord
from vmlab.store.store import Store, is_full

log = logging.getLogger(__name__)


@contextlib.contextmanager
def hold(
    store: Store, name: str, doing: str, tell: Callable[[str], None] | None = None
) -> Iterator[tuple[MachineRecord, Domain]]:
    """Hold the machine's lock, put right what a process that died left, and give its record and domain.

    Raises
    ------
    Busy
        Somebody else held it all the time; says who and what for.
    NoSpace
        The disk became full meanwhile.
    HypervisorError
        Its QEMU ended meanwhile, and it was not us who ended it.
    """
    store.machine(name)
    with store.lock(name, doing, tell=tell):
        record, domain = store.machine(name), domain_of(store, name)
        pid = None
        try:
            if domain.has_died():
                # libvirt hears of it some moments later, and until then it would say "running".
                log.info("the QEMU of %s has died; libvirt is waited for", name)
                domain.destroy()
            if record.pending:
                recover(store, record, domain)
            pid = domain.pid
            yield record, domain
        except (HypervisorError, WrongState) as error:
            # By our own look at the process: libvirt hears of its end some moments later.
            if pid is None or domain.ended or domain.pid is not None:
                raise
            raise HypervisorError(
                f"{name} ended while this was done: its QEMU process is gone. Its snapshots are as they were.",
                hint=f"boot it with `%vm start {name}`, or go back with `%vm revert {name}`",
            ) from error
        except OSError as error:
            if not is_full(error):
                raise
            raise NoSpace(
                f"The disk became full while {name} was worked on ({doing}); nothing is lost.",
                hint="forget snapshots or delete machines (`%vm list` shows what they take), then try again",
                system=error,
            ) from error


def recover(store: Store, record: MachineRecord, domain: Domain) -> None:
    """Put right what a process left that died at work: take it back, or bring it to its end."""
    pending = record.pending
    if pending is None:
        return
    log.info("%s: a process died at work (%s); put right", record.name, pending.phase)
    if pending.phase == "shorten":
        shorten.recover(store, record, domain)
    else:
        (save.recover if pending.phase == "copy" else move.recover)(store, record, domain, pending)
    record.pending = None
    try:
        load.define(store, record, domain)
    except VMLabError as error:
        log.warning("%s could not be defined: %s", record.name, error)
    store.save_machine(record)
