"""Guests for a moment: forks to look into, which reach no network, and one that boots. In no list, gone afterwards.

Also when the process that made them dies: a collection (:mod:`vmlab.machines.unmake`) removes them then.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace

from vmlab.engine import interrupts, load
from vmlab.engine.domain import domain_of
from vmlab.errors import AgentError, AgentTimeout, NotFound, VMLabError, WrongState
from vmlab.guest import agent
from vmlab.hypervisor.domain import Domain
from vmlab.machines.boot import boot_new
from vmlab.machines.room import need_memory
from vmlab.machines.unmake import unmake
from vmlab.records import Hardware, MachineRecord, SnapshotRecord
from vmlab.store.store import Store

log = logging.getLogger(__name__)

#: Bytes of disk without which a fork is not even begun.
SPACE = 64 << 20
#: Seconds that a guest's agent is given to write out what the guest holds in memory.
FLUSH_TIMEOUT = 40


class Forks:
    """The forks in which a state is looked at: somebody else can end them, and wait until nothing of them is left."""

    def __init__(self) -> None:
        self.domains: set[Domain] = set()
        self.stopped = False
        self._endings: list[threading.Thread] = []

    def stop(self) -> None:
        """End them, so that nobody who is interrupted has to wait for guests; who asks them something gets an error."""
        self.stopped = True
        for domain in list(self.domains):
            with contextlib.suppress(VMLabError):
                domain.destroy()

    def end(self, store: Store, machine: MachineRecord, domain: Domain) -> None:
        """Clear one away while its caller goes on: libvirt takes its time to notice that a QEMU has ended."""

        def end() -> None:
            try:
                unmake(store, machine, domain)
            except (VMLabError, OSError) as error:
                log.warning("%s goes with the next collection: %s", machine.name, error)

        # Not a daemon: a command line that ends at once must not leave half a fork.
        ending = threading.Thread(target=end, name=f"vmlab-end-{machine.name}")
        self._endings.append(ending)
        ending.start()

    def wait(self) -> None:
        """Wait until those that have done their work are gone."""
        for ending in list(self._endings):
            ending.join()


@contextlib.contextmanager
def booted(store: Store, name: str, image: str, spec: Hardware, sizes: list[int]) -> Iterator[None]:
    """Boot a machine of that hardware for a moment, with a network as any new machine has."""
    with store.lock(name, "boot for a moment"):
        boot_new(store, name, image, spec, sizes, throwaway=True)
        try:
            yield
        finally:
            with interrupts.held(), contextlib.suppress(NotFound):
                unmake(store, store.machine(name), domain_of(store, name))


@contextlib.contextmanager
def fork(
    store: Store,
    record: SnapshotRecord,
    doing: str,
    forks: Forks | None = None,
    *,
    stem: str = "look",
    paused: bool = False,
) -> Iterator[tuple[MachineRecord, Domain]]:
    """Run a fork of a live snapshot for a moment, without a network, and give its record and domain.

    Its identity is that of the guest which was caught, VM generation ID included, so that nothing in it is told to
    change.

    Parameters
    ----------
    forks
        Where somebody else can end it. It may then still be there for some tenths of a second after the block;
        :meth:`Forks.wait` waits for that.
    stem
        What its name begins with.
    paused
        It stays stopped before its first instruction.

    Raises
    ------
    WrongState
        The snapshot is offline.
    NoMemory, NoSpace, SnapshotDamaged, SnapshotIncompatible, HypervisorError
        No fork can be made; nothing is left.
    """
    if record.ram is None:
        raise WrongState("An offline snapshot has no running guest that could be asked.")
    if record.state == "crashed" and not paused:
        raise WrongState("The guest had crashed, so nothing can be asked of a fork of it.")
    load.check(store, record)
    need_memory(store, record.spec, mapped=True)
    store.need_space(SPACE, "for a fork to look into")
    name = f"{stem}-{uuid.uuid4().hex[:8]}"
    machine = MachineRecord(
        name=name,
        uuid=str(uuid.uuid4()),
        genid=record.genid,
        mac=record.mac,
        image=record.image,
        spec=replace(record.spec, sound="silent" if record.spec.sound == "wav" else record.spec.sound),
        root=record.id,
        throwaway=True,
    )
    with store.lock(name, doing):
        domain = domain_of(store, name)
        if forks is not None:
            forks.domains.add(domain)
        try:
            store.add_machine(machine)
            machine.layers = store.add_layers(record.layers)
            store.save_machine(machine)
            load.start_from(store, machine, domain, record, paused=paused, isolated=True)
            if forks is not None and forks.stopped:
                raise WrongState("Looking into a fork was stopped.")
            yield machine, domain
        finally:
            with interrupts.held():
                if forks is None:
                    unmake(store, machine, domain)
                else:
                    forks.domains.discard(domain)
                    # Should a collection come before it, now that nobody holds the lock, that does the same.
                    forks.end(store, machine, domain)


def write_out(domain: Domain) -> None:
    """Let a guest write out all that it holds of its file systems, and stop writing.

    Freezing leaves nothing in a journal, and is quicker than a command (0.2 s against 0.5 s on an emulated
    desktop). The agent may not be allowed to, or be built without it; then ``sync``.
    """
    try:
        if domain.agent("guest-fsfreeze-freeze", timeout=FLUSH_TIMEOUT):
            return
    except AgentTimeout:
        raise
    except AgentError:
        pass
    agent.execute(domain, "sync", timeout=FLUSH_TIMEOUT).check()
