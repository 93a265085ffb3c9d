"""Looking at guests without touching them: a present that is caught for a moment, and forks that are thrown away.

Nothing is asked of a machine under study, and nothing in it runs for it. It stands still for some
milliseconds, while its RAM, devices and disks are caught as in any snapshot; all else happens in forks of
that, which reach no network, are in no list, and are gone afterwards, also when the process that made them
dies (:meth:`vmlab.Lab.collect` removes them then).
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
import time
import uuid
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vmlab.engine import interrupts, load, save
from vmlab.errors import AgentError, AgentTimeout, VMLabError, WrongState
from vmlab.guest import agent
from vmlab.hypervisor.domain import Domain
from vmlab.snapshot import Snapshot
from vmlab.store import collect, locks
from vmlab.store.records import MachineRecord, SnapshotRecord, new_id
from vmlab.store.store import SHORTEN_AT, Store, allocated, run_qemu_img

if TYPE_CHECKING:
    from vmlab.lab import Lab
    from vmlab.machine import Machine

#: Bytes in the top layers of a machine's disks up to which they are copied while it stands still (a tenth of a
#: second at most); above, it gets new layers instead, which stay.
COPIED = 48 << 20
#: Bytes of disk without which a fork is not even begun.
SPACE = 64 << 20
#: Seconds that a guest's agent is given to write out what the guest holds in memory.
FLUSH_TIMEOUT = 40
#: How many snapshots' flushed disks are kept, and how many bytes of them.
KEPT = 32
KEPT_BYTES = 1 << 30
#: Seconds after their last use for which they are kept whatever comes: somebody may be about to open them.
IN_USE = 600.0


class Present(Snapshot):
    """What a machine's present was when it was looked at: a snapshot that is in no tree, and goes with this object."""

    def __init__(self, lab: Lab, record: SnapshotRecord, hold: locks.Hold) -> None:
        super().__init__(lab, record)
        # Also at the end of the process; if that is killed, the hold goes with it, and a collection finds the rest.
        self.close = weakref.finalize(self, _let_go, lab.store, record.id, hold)

    def __repr__(self) -> str:
        return f"<{self.machine_name}'s present at {self._record.created}>"


def _let_go(store: Store, snapshot: str, hold: locks.Hold) -> None:
    hold.release()
    with contextlib.suppress(VMLabError, OSError):
        collect.discard(store, snapshot)


def present(machine: Machine) -> Snapshot:
    """Catch a machine's present: RAM, devices and disks if it runs or is paused, its disks if it is off.

    The machine's tree, its "you are here" and its undo stay as they are.

    Raises
    ------
    NoSpace, HypervisorError
        The machine goes on as it was.
    """
    lab = machine._lab
    store = lab.store
    # A fork that is just being told its name and MAC would be two things at once.
    machine._settle_identity()
    with machine._open("look at it") as (record, domain):
        state = machine._state(record)
        if state == "suspended" and record.resume:
            # Nothing has run since: the present is that state itself.
            return Snapshot(lab, store.snapshot(record.resume))
        identity = new_id()
        hold = locks.Hold(store.hold_path(identity))
        try:
            found = save.glimpse(store, record, domain, state, identity, COPIED)
        except BaseException as error:
            hold.release()
            store.hold_path(identity).unlink(missing_ok=True)
            gone = save.ended(domain, error) if state in ("running", "paused") else None
            if gone is not None:
                raise gone from error
            raise
        kept = Present(lab, found, hold)
        if state == "running" and store.depth(record.layers) >= SHORTEN_AT:
            with contextlib.suppress(VMLabError):
                machine._shorten(record, domain)
    return kept


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

    def end(self, lab: Lab, machine: MachineRecord, domain: Domain) -> None:
        """Clear one away while its caller goes on: libvirt takes its time to notice that a QEMU has ended."""

        def end() -> None:
            # What does not go now goes with the next collection.
            with contextlib.suppress(VMLabError, OSError):
                _end(lab, machine, domain)

        # Not a daemon: a command line that ends at once must not leave half a fork.
        ending = threading.Thread(target=end, name=f"vmlab-end-{machine.name}")
        self._endings.append(ending)
        ending.start()

    def wait(self) -> None:
        """Wait until those that have done their work are gone."""
        for ending in list(self._endings):
            ending.join()


def _end(lab: Lab, machine: MachineRecord, domain: Domain) -> None:
    lab._unmake(machine, domain)
    (lab.store.home / "locks" / f"{machine.name}.lock").unlink(missing_ok=True)


@contextlib.contextmanager
def fork(
    lab: Lab, record: SnapshotRecord, doing: str, forks: Forks | None = None
) -> Iterator[tuple[MachineRecord, Domain]]:
    """Run a fork of a live snapshot for a moment, without a network, and give its record and domain.

    Its identity is that of the guest which was caught, VM generation ID included, so that nothing in it is told to
    change.

    Parameters
    ----------
    forks
        Where somebody else can end it. It may then still be there for some tenths of a second after the block;
        :meth:`Forks.wait` waits for that.

    Raises
    ------
    WrongState
        The snapshot is offline.
    NoMemory, NoSpace, SnapshotDamaged, SnapshotIncompatible, HypervisorError
        No fork can be made; nothing is left.
    """
    store = lab.store
    if record.ram is None:
        raise WrongState("An offline snapshot has no running guest that could be asked.")
    load.check(store, record)
    lab.need_memory(record.spec, mapped=True)
    store.need_space(SPACE, "for a fork to look into")
    name = f"look-{uuid.uuid4().hex[:8]}"
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
        domain = Domain(store.account, name, store.machine_folder(name) / "serial.log")
        if forks is not None:
            forks.domains.add(domain)
        try:
            store.add_machine(machine)
            machine.layers = store.add_layers(record.layers)
            store.save_machine(machine)
            load.resume(store, machine, domain, record, isolated=True)
            if forks is not None and forks.stopped:
                raise WrongState("Looking into a fork was stopped.")
            yield machine, domain
        finally:
            with interrupts.held():
                if forks is None:
                    _end(lab, machine, domain)
                else:
                    forks.domains.discard(domain)
                    # Should a collection come before it, now that nobody holds the lock, that does the same.
                    forks.end(lab, machine, domain)


@dataclass(frozen=True)
class Disks:
    """Disks of a state, to read files from.

    Attributes
    ----------
    paths
        The top layer of each disk.
    flushed
        Whether they hold also what the guest had only in memory.
    how
        In words, how they were come by.
    why
        Why they could not be flushed, where they should have been.
    """

    paths: list[Path]
    flushed: bool
    how: str
    why: str = ""


def disks(lab: Lab, record: SnapshotRecord) -> list[Path]:
    """Return the disks of a snapshot as they were at its instant."""
    return [lab.store.layer_path(record.layers[target]) for target in record.spec.disks]


def flushed_disks(lab: Lab, record: SnapshotRecord, idle: float = 0, forks: Forks | None = None) -> Disks:
    """Return the disks of a snapshot with all that the guest had only in its page cache.

    A fork writes it out, through its agent, some tenths of a second after the snapshot; the result is kept as
    long as the snapshot. Without an agent the disks are returned as they are.

    Parameters
    ----------
    idle
        Let the fork run for this many seconds before; what it then has is not kept.
    forks
        As in :func:`fork`.
    """
    store = lab.store
    plain = disks(lab, record)
    raw = "as they were at that instant: what the guest had only in its page cache is missing"
    if record.state == "crashed":
        return Disks(plain, False, raw, "the guest has crashed")
    if record.ram is None:
        return Disks(plain, True, "as the machine left them when it was off")
    if not plain:
        return Disks(plain, True, "there are none")
    folder = store.compared_folder(record.id)
    kept = [folder / f"{target}.qcow2" for target in record.spec.disks]
    how = "with the guest's page cache, written out in a throw-away fork"
    if not idle and _in_use(folder, kept):
        return Disks(kept, True, how)
    if not record.spec.agent:
        return Disks(plain, False, raw, "it has no guest agent that could write it out")
    try:
        made = _flush(lab, record, idle, forks)
    except VMLabError as error:
        if forks is not None and forks.stopped:
            raise
        return Disks(plain, False, raw, error.message)
    if idle:
        return Disks([made / path.name for path in kept], True, how)
    _keep(made, folder, kept)
    _prune(store)
    return Disks(kept, True, how)


def _in_use(folder: Path, kept: list[Path]) -> bool:
    """Say that these disks are needed now, so that nobody deletes them; False if they are not all there."""
    with contextlib.suppress(OSError):
        # First, so that what is there afterwards also stays.
        os.utime(folder)
        return all(path.exists() for path in kept)
    return False


def _keep(made: Path, folder: Path, kept: list[Path]) -> None:
    """Put disks that were flushed where they are kept; those that are there already serve as well."""
    try:
        made.rename(folder)
        return
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            shutil.rmtree(made, ignore_errors=True)
            raise
    # Another process was as quick, or something else is kept there (a baseline).
    try:
        if not _in_use(folder, kept):
            for path in kept:
                (made / path.name).replace(path)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _flush(lab: Lab, record: SnapshotRecord, idle: float, forks: Forks | None) -> Path:
    store = lab.store
    new = store.account.make_dir(store.home / "cache" / "compared" / f".new-{uuid.uuid4().hex[:8]}")
    below: dict[str, str] = {}
    try:
        with fork(lab, record, "write out its page cache", forks) as (machine, domain):
            if idle:
                time.sleep(idle)
            _freeze(domain)
            # Stopped, QEMU writes what it holds itself.
            domain.pause()
            for target, layer in machine.layers.items():
                below[target] = store.layer(layer).backing or ""
                (new / f"{target}.qcow2").hardlink_to(store.layer_path(layer))
            # It has nothing more to write; and as long as it is there, it keeps the files locked.
            domain.kill()
        for target, backing in below.items():
            path = new / f"{target}.qcow2"
            words = ["-F", "qcow2", "-b", f"../../../layers/{backing}.qcow2"]
            run_qemu_img(["qemu-img", "rebase", "-q", "-u", "-f", "qcow2", *words, str(path)])
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    return new


def _freeze(domain: Domain) -> None:
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


def _prune(store: Store) -> None:
    """Delete the flushed disks that were not used for longest, where there are many."""
    folders = sorted((store.home / "cache" / "compared").glob("[!.]*"), key=_used, reverse=True)
    total = 0
    for number, folder in enumerate(folders):
        total += allocated(folder)
        if (number >= KEPT or total > KEPT_BYTES) and time.time() - _used(folder) > IN_USE:
            shutil.rmtree(folder, ignore_errors=True)


def _used(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0
