"""Machines: guests that a person holds as Python objects."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from vmlab.engine import interrupts, load, save
from vmlab.errors import (
    AlreadyExists,
    NoSpace,
    NotFound,
    UsageError,
    VMLabError,
    WaitTimeout,
    WrongState,
)
from vmlab.guest.access import GuestAccess
from vmlab.hypervisor.domain import Domain
from vmlab.render.shown import Shown
from vmlab.snapshot import Snapshot
from vmlab.store.records import MachineRecord, MachineSpec, SnapshotRecord, check_name, read_json
from vmlab.store.store import SHORTEN_AT, allocated, is_full

if TYPE_CHECKING:
    from vmlab.diff import Diff
    from vmlab.hypervisor.domain import SerialStream
    from vmlab.lab import Lab

Tell = Callable[[str], None]
#: Seconds that somebody who types waits for what is being done to the machine.
OPEN_SERIAL = 10.0


@dataclass(frozen=True)
class Usage(Shown):
    """What a machine takes now.

    Attributes
    ----------
    cpu_percent
        Of one CPU, over the last moment; 200 is two CPUs at full load.
    cpu_seconds
        CPU time since it was started.
    memory_pss
        Bytes of RAM really taken: a page that N machines share counts 1/N.
    memory_private, memory_shared
        Bytes that only it has, and that it shares with others or with a snapshot's file.
    memory
        Bytes of RAM that the guest believes to have.
    disk
        Bytes on disk of its present (its own layers and files); snapshots are counted in the tree.
    snapshots
        Bytes on disk of its snapshots.
    """

    name: str
    state: str
    cpu_percent: float
    cpu_seconds: float
    memory_pss: int
    memory_private: int
    memory_shared: int
    memory: int
    disk: int
    snapshots: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the attributes by name."""
        return dict(vars(self))


class Machine(GuestAccess, Shown):
    """A guest. Made by :meth:`vmlab.Lab.create`, found by :meth:`vmlab.Lab.machine`.

    The object only names the machine: it can be held as long as one likes, and any number of processes may hold one. As
    a context manager it deletes the machine at the end.
    """

    def __init__(self, lab: Lab, name: str) -> None:
        self._lab = lab
        self._name = name

    # -- what it is ----------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        try:
            return f"<Machine {self._name}: {self.state}>"
        except VMLabError:
            return f"<Machine {self._name}: gone>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Machine) and (other._lab.home, other._name) == (self._lab.home, self._name)

    def __hash__(self) -> int:
        return hash((self._lab.home, self._name))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(NotFound):
            self.delete()

    @property
    def _record(self) -> MachineRecord:
        return self._lab.store.machine(self._name)

    @property
    def name(self) -> str:
        """Its name, the same in ``virsh list``."""
        return self._name

    @property
    def uuid(self) -> str:
        """Its UUID, unique to it also among forks."""
        return self._record.uuid

    @property
    def image(self) -> str:
        """The image it came from."""
        return self._record.image

    @property
    def spec(self) -> MachineSpec:
        """Its hardware."""
        return self._record.spec

    @property
    def memory(self) -> int:
        """RAM in MiB."""
        return self._record.spec.memory

    @property
    def vcpus(self) -> int:
        """Number of virtual CPUs."""
        return self._record.spec.vcpus

    @property
    def description(self) -> str:
        """What somebody said of it."""
        return self._record.description

    def describe(self, text: str) -> None:
        """Say what it is."""
        with self._open("describe") as (record, _):
            record.description = text
            self._lab.store.save_machine(record)

    @property
    def forwards(self) -> tuple[tuple[int, int], ...]:
        """Forwarded TCP ports: ``(port on the host's loopback, port in the guest)``."""
        return self._record.forwards

    @property
    def folder(self) -> Path:
        """The folder of its own files: serial log, recorded sound."""
        return self._lab.store.machine_folder(self._name)

    @property
    def sound_file(self) -> Path | None:
        """What its sound card has played since its last start, as a WAV file, if it was made with ``sound="wav"``."""
        record = self._record
        return self.folder / f"sound-{record.starts}.wav" if record.spec.sound == "wav" else None

    @property
    def domain(self) -> Domain:
        """The guest as libvirt and QEMU know it: monitor, agent, serial line."""
        self._settle_identity()
        return self._domain()

    def _domain(self) -> Domain:
        return Domain(self._lab.account, self._name, self.folder / "serial.log")

    @property
    def vnc_socket(self) -> Path | None:
        """The UNIX socket of its screen, while it runs."""
        return self._domain().vnc_socket if self.state != "off" else None

    @property
    def state(self) -> str:
        """``running``, ``paused``, ``off``, ``suspended`` (off, with RAM to continue from) or ``crashed``."""
        return self._state(self._record)

    def _state(self, record: MachineRecord) -> str:
        state = self._domain().state()
        return "suspended" if state == "off" and record.resume else state

    @property
    def here(self) -> Snapshot | None:
        """The snapshot that its present stands on ("you are here")."""
        return self._lab.find_snapshot(self._record.here)

    # -- one at a time -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _open(self, doing: str, tell: Tell | None = None) -> Iterator[tuple[MachineRecord, Domain]]:
        """Hold the machine's lock, put right what a process that died left, and give its record and domain."""
        store = self._lab.store
        store.machine(self._name)
        with store.lock(self._name, doing, tell=tell or self._lab.tell):
            record, domain = store.machine(self._name), self._domain()
            try:
                if record.pending:
                    self._recover(record, domain)
                yield record, domain
            except OSError as error:
                if not is_full(error):
                    raise
                raise NoSpace(
                    f"The disk became full while {self._name} was worked on ({doing}); nothing is lost.",
                    hint="forget snapshots or delete machines (`%vm list` shows what they take), then try again",
                    system=error,
                ) from error

    def _recover(self, record: MachineRecord, domain: Domain) -> None:
        """Put right what a process left that died at work: take it back, or bring it to its end."""
        store, pending = self._lab.store, record.pending or {}
        doing, active = pending.get("doing"), domain.is_active()
        if active and doing in ("snapshot", "leave"):
            save.cancel(domain)
            save.go_on(domain, pending.get("state", "running"))
        if doing == "snapshot":
            record.layers = save.present_layers(store, record, domain, pending.get("layers", {}))
        elif doing == "revert" and active:
            arrived = (
                record.resume is not None and domain.pid != pending.get("pid") and load.is_loaded(domain)
            )
            if arrived and record.resume is not None:
                # The new QEMU has all of it, and may have been used since.
                if domain.state() == "paused" and store.snapshot(record.resume).state != "paused":
                    load.forward(record, domain)
                    domain.resume()
                record.mapped, record.resume = record.resume, None
            else:
                # It stands on what was left; the record says already what it goes back to.
                domain.destroy()
        record.pending = None
        with contextlib.suppress(VMLabError):
            load.define(store, record, domain)
        store.save_machine(record)

    # -- life ----------------------------------------------------------------------------------------------------

    def start(self, *, boot: bool = False, force: bool = False) -> Machine:
        """Start it: from the state in which it was left if there is one, else by booting; no harm if it runs.

        Parameters
        ----------
        boot
            Boot from its disk even if there is RAM to continue from.
        force
            Start it even where RAM is short.
        """
        continued = None
        with self._open("start") as (record, domain):
            state = domain.state()
            if state == "running":
                return self
            if state == "paused":
                domain.resume()
                return self
            if state == "crashed":
                domain.destroy()
            if record.resume and not boot:
                snapshot = self._lab.store.snapshot(record.resume)
                load.check(self._lab.store, snapshot)
                self._lab.need_memory(record.spec, mapped=True, force=force)
                record.pending = {"doing": "revert", "pid": None}
                self._lab.store.save_machine(record)
                load.resume(self._lab.store, record, domain, snapshot, paused=snapshot.state == "paused")
                record.pending, continued = None, snapshot
            else:
                self._lab.need_memory(record.spec, mapped=False, force=force)
                # Once the disk has been written to, RAM from before must never meet it again.
                left, record.resume = record.resume, None
                if left:
                    self._lab.store.save_machine(record)
                try:
                    load.boot(self._lab.store, record, domain)
                except VMLabError:
                    record.resume = left
                    self._lab.store.save_machine(record)
                    raise
            self._lab.store.save_machine(record)
        if continued is not None:
            self._take_identity(continued, "then")
        return self

    def stop(self, timeout: float = 90) -> Machine:
        """Shut the guest down cleanly, through its agent or the power button, and wait until it is off.

        Raises
        ------
        WaitTimeout
            It did not power off in time; it still runs.
        """
        with self._open("stop") as (record, domain):
            state = domain.state()
            if state == "off":
                return self
            if state == "crashed":
                domain.destroy()
            else:
                if state == "paused":
                    domain.resume()
                domain.shutdown()
                end = time.monotonic() + timeout
                while domain.is_active():
                    if time.monotonic() > end:
                        raise WaitTimeout(
                            f"{self._name} did not power off within {timeout:.0f} s.",
                            hint="a guest without agent or ACPI cannot be asked: "
                            f"`%vm kill {self._name}` ends it at once",
                        )
                    time.sleep(0.05)
            record.mapped = record.resume = None
            self._lab.store.save_machine(record)
        return self

    def kill(self) -> Machine:
        """Pull the plug: end it at once; what the guest had not written to its disk is lost."""
        with self._open("kill") as (record, domain):
            domain.destroy()
            record.mapped = record.resume = None
            self._lab.store.save_machine(record)
        return self

    def pause(self) -> Machine:
        """Stop its CPUs; it keeps its memory and goes on with :meth:`resume`."""
        self._settle_identity()
        with self._open("pause") as (_, domain):
            if domain.state() == "off":
                raise WrongState(
                    f"{self._name} is not running.", hint=f"start it with `%vm start {self._name}`"
                )
            domain.pause()
        return self

    def resume(self) -> Machine:
        """Let a paused machine go on."""
        with self._open("resume") as (record, domain):
            state = domain.state()
            if state == "crashed":
                raise WrongState(
                    f"The guest {self._name} has crashed and cannot go on.", hint=f"`%vm revert {self._name}`"
                )
            if state == "off":
                raise WrongState(
                    f"{self._name} is not running.", hint=f"start it with `%vm start {self._name}`"
                )
            if state == "paused":
                domain.resume()
            del record
        return self

    def delete(self) -> None:
        """End it and delete it with its snapshots, but for what other machines are built on."""
        self._settle_identity()
        store = self._lab.store
        with self._open("delete") as (record, domain):
            if domain.uuid in (None, record.uuid):
                domain.destroy()
                domain.undefine()
            store.remove_machine(record.name)
        self._lab.collect_quietly()

    def rename(self, name: str) -> Machine:
        """Give it another name.

        A running machine stands still for a moment: libvirt cannot rename a running guest, so its state is saved and
        continued under the new name.
        """
        check_name("machine", name)
        self._settle_identity()
        store = self._lab.store
        if name in store.machine_names():
            raise AlreadyExists(f"There is a machine named '{name}' already.", hint="choose another name")
        with self._open("rename") as (record, domain), store.lock(name, "rename"):
            self._lab.need_free(name)
            kept, state = None, domain.state()
            if state in ("running", "paused"):
                before = replace(record)
                with self._leaving(record, before, domain, state):
                    kept = save.present(store, record, domain, state)
                    record.layers, record.resume, record.mapped = store.add_layers(record.layers), kept, None
                    record.pending = {"doing": "revert", "pid": domain.pid}
                    store.save_machine(record)
            domain.destroy()
            domain.undefine()
            store.rename_machine(record, name)
            self._name = name
            domain = self._domain()
            load.define(store, record, domain)
            if kept:
                snapshot = store.snapshot(kept)
                load.resume(store, record, domain, snapshot, paused=snapshot.state == "paused")
            record.pending = None
            store.save_machine(record)
        return self

    # -- snapshots -----------------------------------------------------------------------------------------------

    def snapshot(self, name: str | None = None, description: str = "") -> Snapshot:
        """Take a snapshot: live if it runs or is paused, of its disks if it is off.

        The guest goes on, and stands still only for its last dirty pages, the switch of its disks and the screen.

        Parameters
        ----------
        name
            Unique among its snapshots; by default ``s1``, ``s2`` ...

        Raises
        ------
        AlreadyExists, BadName, NoSpace, WrongState
        """
        # Taken in the middle of it, every fork would go on to give itself this machine's name.
        self._settle_identity()
        with self._open("snapshot") as (record, domain):
            name = self._free_name(record, name)
            state = self._state(record)
            if state == "crashed":
                raise WrongState(
                    f"The guest {self._name} has crashed.", hint=f"revert it first: `%vm revert {self._name}`"
                )
            if state == "suspended":
                raise WrongState(
                    f"{self._name} is suspended exactly at a snapshot; there is nothing new to take.",
                    hint=f"start it first: `%vm start {self._name}`",
                )
            if state == "off":
                identity = save.offline(self._lab.store, record, name, description)
            else:
                try:
                    identity = save.live(self._lab.store, record, domain, name, description)
                except VMLabError as error:
                    gone = save.ended(domain, error)
                    if gone is not None:
                        raise gone from error
                    raise
                if self._lab.store.depth(record.layers) >= SHORTEN_AT:
                    with contextlib.suppress(VMLabError):
                        self._shorten(record, domain)
        return Snapshot(self._lab, self._lab.store.snapshot(identity))

    def _shorten(self, record: MachineRecord, domain: Domain) -> None:
        """Let a guest go on over fewer disk layers; it stands still for about half a second.

        Every live snapshot adds a layer, and a QEMU that runs cannot leave the ones below.
        """
        store, state, pid, before = self._lab.store, domain.state(), domain.pid, replace(record)
        for layer in record.layers.values():
            if below := store.layer(layer).backing:
                # The long part, while it runs.
                store.shallow(below)
        with self._leaving(record, before, domain, state):
            kept = save.present(store, record, domain, state)
            record.layers, record.resume, record.mapped = store.add_layers(record.layers), kept, None
            record.pending = {"doing": "revert", "pid": pid}
            store.save_machine(record)
        try:
            domain.destroy()
            present = store.snapshot(kept)
            load.resume(store, record, domain, present, paused=present.state == "paused")
        except BaseException as error:
            with interrupts.held():
                self._come_back(before, domain, kept, state, pid, error)
            raise
        record.pending = None
        store.save_machine(record)

    def _free_name(self, record: MachineRecord, name: str | None) -> str:
        store = self._lab.store
        taken = {store.label(s.id).name for s in store.snapshots_of(record.uuid)}
        if name is None:
            return next(n for n in (f"s{i}" for i in range(1, len(taken) + 2)) if n not in taken)
        check_name("snapshot", name)
        if name in taken:
            raise AlreadyExists(
                f"{self._name} has a snapshot named '{name}' already.",
                hint=f"choose another name, or forget it first: `%vm forget {self._name} {name}`",
            )
        return name

    @property
    def snapshots(self) -> list[Snapshot]:
        """Its snapshots, the oldest first; not the state that its tree starts from."""
        return [Snapshot(self._lab, r) for r in self._lab.store.snapshots_of(self._record.uuid)]

    @property
    def root(self) -> Snapshot | None:
        """What its tree starts from: the image's ready state, or the snapshot it was forked from; None if it booted."""
        return self._lab.find_snapshot(self._record.root)

    def find(self, name: str) -> Snapshot:
        """Return the snapshot of that name or id; the root of the tree is found too, also as ``ready``."""
        root = self.root
        known = {s.name: s for s in ([root] if root else []) + self.snapshots}
        for snapshot in reversed(known.values()):
            if name in (snapshot.name, snapshot.id):
                return snapshot
        for broken in self._lab.store.broken_snapshots():
            if name in (broken, self._lab.store.label(broken).name):
                # Says how, and what to do.
                self._lab.store.snapshot(broken)
        raise NotFound.named(
            f"snapshot of {self._name}", name, known, hint=f"take one with `%vm snapshot {self._name} {name}`"
        )

    def tree(self) -> Any:
        """Return the snapshot tree, which shows itself in a notebook and in a terminal."""
        from vmlab.render.tree import SnapshotTree

        return SnapshotTree(self)

    @property
    def can_undo(self) -> bool:
        """Whether the last revert can be taken back."""
        return self._record.undo is not None

    def revert(
        self,
        snapshot: Snapshot | str | None = None,
        *,
        clock: Literal["then", "now"] = "then",
        keep: bool = True,
        force: bool = False,
    ) -> Machine:
        """Make the present equal to a snapshot: disks, and if it is live RAM, devices and CPUs.

        It then runs, is paused or is off, as it was when the snapshot was taken.

        Parameters
        ----------
        snapshot
            A snapshot or its name; by default the one that the present stands on.
        clock
            ``then``: the guest's clock goes on from the time of the snapshot. ``now``: its agent is told the time.
        keep
            Keep the abandoned present, so that :meth:`undo` brings it back.

        Raises
        ------
        NotFound, SnapshotDamaged, SnapshotIncompatible, NoSpace
            Nothing has changed then.
        """
        store = self._lab.store
        with self._open("revert") as (record, domain):
            target = self._target(record, snapshot)
            here = target.id if target.kind != "undo" else store.label(target.id).parent
            self._go_to(record, domain, target, here, keep=keep, force=force)
        if not self._take_identity(target, clock) and clock == "now" and target.ram is not None:
            self.set_clock()
        return self

    def _take_identity(self, target: SnapshotRecord, clock: str) -> bool:
        """Give it its own name, machine ID and MAC again where it continues a state of another machine."""
        record = self._record
        foreign = target.machine != record.uuid and target.ram is not None and target.state == "running"
        if foreign and target.spec.agent:
            self._lab.give_identity(self, record, target.mac, clock)
        return foreign and target.spec.agent

    def undo(self, *, clock: Literal["then", "now"] = "then") -> Machine:
        """Take the last revert back: the present that it left goes on, running if it ran. Undo again to go back again.

        Raises
        ------
        NotFound
            There is nothing to take back.
        """
        store = self._lab.store
        with self._open("undo") as (record, domain):
            if record.undo is None:
                raise NotFound(
                    f"There is no revert of {self._name} to take back.",
                    hint="a revert keeps the present until the next one replaces it",
                )
            target = store.snapshot(record.undo)
            here = target.id if target.kind != "undo" else store.label(target.id).parent
            self._go_to(record, domain, target, here, keep=True, force=False)
        if clock == "now" and target.ram is not None:
            self.set_clock()
        return self

    def _target(self, record: MachineRecord, snapshot: Snapshot | str | None) -> SnapshotRecord:
        store = self._lab.store
        if isinstance(snapshot, Snapshot):
            if snapshot.id not in {s.id for s in self.snapshots} | {record.root}:
                raise NotFound(
                    f"'{snapshot.name}' is a snapshot of {snapshot.machine_name}, not of {self._name}.",
                    hint=f"make a machine from it: `%vm fork {snapshot.machine_name} --snapshot {snapshot.name}`",
                )
            return store.snapshot(snapshot.id)
        if snapshot is not None:
            return store.snapshot(self.find(snapshot).id)
        if record.here is None:
            raise NotFound(
                f"{self._name} has no snapshot to go back to.",
                hint=f"take one with `%vm snapshot {self._name}`",
            )
        return store.snapshot(record.here)

    def _go_to(
        self,
        record: MachineRecord,
        domain: Domain,
        target: SnapshotRecord,
        here: str | None,
        *,
        keep: bool,
        force: bool,
    ) -> None:
        """Leave the present and continue ``target``; what fails on the way leaves the present as it was."""
        store = self._lab.store
        load.check(store, target)
        before, state, pid = replace(record), domain.state(), domain.pid
        if state == "off":
            self._lab.need_memory(target.spec, mapped=target.ram is not None, force=force)
        with self._leaving(record, before, domain, state):
            kept = self._keep_present(record, domain, state) if keep else None
            upper = store.add_layers(target.layers)
            record.layers, record.here, record.address = upper, here, target.address
            record.resume = target.id if target.ram is not None else None
            record.mapped, record.undo = None, kept
            record.spec = replace(target.spec, sound=target.spec.sound)
            # From here on the machine is at the target, whoever dies: a start continues it.
            record.pending = {"doing": "revert", "pid": pid}
            store.save_machine(record)
        try:
            domain.destroy()
            if target.ram is not None:
                load.resume(store, record, domain, target, paused=target.state == "paused")
        except BaseException as error:
            with interrupts.held():
                self._come_back(before, domain, kept, state, pid, error)
            raise
        record.pending = None
        store.save_machine(record)
        with contextlib.suppress(VMLabError, OSError):
            if before.undo is not None and store.snapshot(before.undo).kind == "undo":
                store.save_label(before.undo, replace(store.label(before.undo), forgotten=True))
        # What the last revert had kept is free now; deleting it need not be waited for.
        threading.Thread(target=self._lab.collect_quietly, name="vmlab-collect").start()

    @contextlib.contextmanager
    def _leaving(
        self, record: MachineRecord, before: MachineRecord, domain: Domain, state: str
    ) -> Iterator[None]:
        """Stop a guest while its present is kept and the record is turned to something else.

        If that fails, the guest goes on as if nothing had been; if we die, whoever comes next lets it go on.
        """
        store, alive = self._lab.store, state in ("running", "paused")
        if alive:
            record.pending = {"doing": "leave", "state": state}
            store.save_machine(record)
        try:
            if state == "running":
                domain.pause()
            yield
        except BaseException as error:
            with interrupts.held():
                if alive:
                    save.cancel(domain)
                    save.go_on(domain, state)
                before.pending = None
                store.save_machine(before)
            gone = save.ended(domain, error) if alive else None
            if gone is not None:
                raise gone from error
            raise

    def _keep_present(self, record: MachineRecord, domain: Domain, state: str) -> str | None:
        store = self._lab.store
        if state in ("running", "paused"):
            return save.present(store, record, domain, state)
        if record.resume is not None and state == "off":
            # Nothing has run since: the present is that state itself.
            return record.resume
        return save.offline(store, record, "before the revert", "", kind="undo")

    def _come_back(
        self,
        before: MachineRecord,
        domain: Domain,
        kept: str | None,
        state: str,
        pid: int | None,
        error: BaseException,
    ) -> None:
        """After a revert that failed on its way: bring the present back, and say in the error how far that went."""
        store, record = self._lab.store, before
        alive = state in ("running", "paused")
        record.pending, now_is = None, "the machine is as it was before"
        if alive and pid is not None and domain.pid == pid:
            # It could not even be ended.
            save.go_on(domain, state)
        elif alive and kept is None:
            record.mapped, now_is = None, "its present was not to be kept, so the machine is off now"
        elif alive and kept is not None:
            present = store.snapshot(kept)
            record.layers, record.resume, record.mapped = store.add_layers(present.layers), kept, None
            try:
                load.resume(store, record, domain, present, paused=present.state == "paused")
                now_is = "the machine is as it was before"
            except VMLabError:
                now_is = (
                    f"the machine is suspended as it was before, and goes on with `%vm start {self._name}`"
                )
        store.save_machine(record)
        if isinstance(error, VMLabError):
            error.hint = f"{now_is}; {error.hint or 'go back to another snapshot'}"

    @contextlib.contextmanager
    def temporarily(self) -> Iterator[Machine]:
        """Undo whatever the block does to the machine: a snapshot at its start, a revert to it at its end."""
        snapshot = self.snapshot(f"temporary-{uuid.uuid4().hex[:6]}", "start of a temporary change")
        try:
            yield self
        finally:
            self.revert(snapshot, keep=False)
            snapshot.forget()

    def fork(
        self,
        name: str | None = None,
        *,
        count: int | None = None,
        names: list[str] | None = None,
        snapshot: Snapshot | str | None = None,
        clock: Literal["then", "now"] = "then",
        force: bool = False,
    ) -> Any:
        """Make new machines that start from a snapshot, sharing its RAM and disk, and go their own way.

        Parameters
        ----------
        name
            Of the one new machine; by default this one's with a number.
        count, names
            For several at once.
        snapshot
            Where they start; by default the present, of which a snapshot is taken first.

        Returns
        -------
        Machine or list of Machine
            A list if ``count`` or ``names`` is given.
        """
        if count is not None and count < 1:
            raise UsageError("At least one fork can be made.")
        wanted = names or ([name] if name is not None else self._lab.free_names(self._name, count or 1))
        # Before a snapshot is taken for forks that cannot be.
        self._lab.need_names(wanted)
        if snapshot is None:
            origin = self._present_snapshot()
        else:
            with self._open("fork") as (record, _):
                origin = Snapshot(self._lab, self._target(record, snapshot))
        forks = self._lab.fork(origin, wanted, clock=clock, force=force)
        return forks if names is not None or count is not None else forks[0]

    def diff(self, *others: Snapshot | Machine | str) -> Diff:
        """Compare its present with the snapshot that it stands on; or as :meth:`vmlab.Lab.diff` says.

        Parameters
        ----------
        others
            One snapshot of it: from that to its present. Two: from the first to the second. Another machine: from this
            one's present to that one's.
        """
        from vmlab import diff

        return diff.make(self._lab, [self, *others])

    def _present_snapshot(self) -> Snapshot:
        """Return a snapshot of the present: a new one, unless nothing has run since the last."""
        record = self._record
        if self._state(record) == "suspended" and record.resume == record.here and record.resume:
            return Snapshot(self._lab, self._lab.store.snapshot(record.resume))
        taken = {s.name for s in self.snapshots}
        name = next(n for n in (f"fork-{i}" for i in range(1, len(taken) + 2)) if n not in taken)
        return self.snapshot(name, "taken to fork from")

    # -- identity of a fork --------------------------------------------------------------------------------------

    def _settle_identity(self) -> None:
        """Wait until a fork's new identity has been told to it, if this process is just doing that."""
        thread = self._lab.identity_threads.get(self._name)
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    @property
    def identity(self) -> dict[str, Any] | None:
        """What a fork got of its own (``done``), could not be given (``failed``), and still shares (``same``).

        None for a machine that booted, or has no agent.
        """
        self._settle_identity()
        with contextlib.suppress(FileNotFoundError):
            return read_json(self.folder / "identity.json")
        return None

    # -- looking at it -------------------------------------------------------------------------------------------

    def console(
        self,
        *,
        serial: bool = False,
        mode: Literal["fit", "actual"] = "fit",
        read_only: bool = False,
        minimised: bool = False,
    ) -> Any:
        """Return its live screen, or its serial line, as a widget that a notebook shows under the cell.

        It is the Jupyter server's, not the kernel's: it goes on while a cell runs, and after the kernel has died. Where
        the page reaches no Jupyter server that has vmlab, pictures that the kernel takes stand in for it.

        Parameters
        ----------
        serial
            The serial line instead of the screen.
        mode
            ``fit``: as wide as the page. ``actual``: pixel for pixel.
        read_only
            Look only: keys and pointer stay here.
        minimised
            Begin as a small picture.

        Raises
        ------
        UsageError
            This is no notebook; `vmlab console NAME` in a terminal shows it.
        """
        from vmlab.render import console

        self._record  # noqa: B018 - raises NotFound
        kind: console.Kind = "serial" if serial else "screen"
        return console.show([self], kind, mode=mode, read_only=read_only, minimised=minimised)

    def open_serial(self, timeout: float = OPEN_SERIAL) -> SerialStream:
        """Open its serial line to write on it; never while something else is done to the machine.

        libvirtd 11.3 was seen to spin for ever, answering nobody, after the line of a QEMU that was just being ended
        had been opened. So this waits for the lock that a revert holds, at most for ``timeout`` seconds.

        Raises
        ------
        Busy, WrongState
            Something takes long; it does not run.
        """
        with self._lab.store.lock(self._name, "open its serial line", timeout=timeout):
            return self._domain().open_serial()

    # -- what it takes -------------------------------------------------------------------------------------------

    def usage(self, over: float = 0.25) -> Usage:
        """Return what it takes now; CPU is measured over ``over`` seconds."""
        return self._lab.usage([self], over)[0]

    def _sample(self) -> tuple[float, float]:
        return time.monotonic(), self._domain().cpu_seconds()

    def _usage(self, percent: float) -> Usage:
        record, domain, store = self._record, self._domain(), self._lab.store
        pid = domain.pid
        memory = load.memory_taken(pid) if pid else {"pss": 0, "private": 0, "shared": 0}
        disk = sum(allocated(store.layer_path(layer)) for layer in record.layers.values()) + allocated(
            self.folder
        )
        taken = 0
        for snapshot in store.snapshots_of(record.uuid, ("snapshot",)):
            taken += sum(save.sizes(store, snapshot))
        if record.undo:
            with contextlib.suppress(VMLabError):
                taken += allocated(store.snapshot_folder(record.undo))
        return Usage(
            name=self._name,
            state=self._state(record),
            cpu_percent=percent,
            cpu_seconds=domain.cpu_seconds(),
            memory_pss=memory["pss"],
            memory_private=memory["private"],
            memory_shared=memory["shared"],
            memory=record.spec.memory << 20,
            disk=disk,
            snapshots=taken,
        )

    def to_json(self) -> dict[str, Any]:
        """Return what is known of it."""
        record, here = self._record, self.here
        return {
            "name": record.name,
            "uuid": record.uuid,
            "state": self._state(record),
            "image": record.image,
            "memory": record.spec.memory,
            "vcpus": record.spec.vcpus,
            "here": here.name if here else None,
            "can_undo": record.undo is not None,
            "forwards": [list(pair) for pair in record.forwards],
            "description": record.description,
            "created": record.created,
        }
