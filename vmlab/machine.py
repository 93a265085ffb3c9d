"""Machines and their snapshots: what people hold. They know each other, so they share a file."""

from __future__ import annotations

import contextlib
import datetime as dt
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

from vmlab.checked import checked
from vmlab.engine import save
from vmlab.engine.domain import condition_of, domain_of, state_of
from vmlab.errors import NotFound, RecordDamaged, UsageError, VMLabError
from vmlab.machines import history, identity, life, proof
from vmlab.machines.delete import delete
from vmlab.machines.fork import fork
from vmlab.machines.guest import Guest
from vmlab.machines.hold import hold
from vmlab.machines.mend import mend
from vmlab.machines.names import free_names, need_names
from vmlab.machines.networks import link
from vmlab.machines.rename import rename
from vmlab.machines.usage import Usage, usage
from vmlab.records import Hardware, MachineRecord, SnapshotRecord
from vmlab.render import surface
from vmlab.render.shown import Shown
from vmlab.store.store import Store
from vmlab.study.diff import Diff
from vmlab.study.diff import make as make_diff
from vmlab.study.side import machine_name
from vmlab.study.which import Place
from vmlab.tree import Node, Tree


@checked
class Machine(Guest, Shown):
    """A guest. Made by :meth:`vmlab.Lab.create`, found by :meth:`vmlab.Lab.machine`.

    The object only names the machine: it can be held as long as one likes, and any number of processes may hold one. As
    a context manager it deletes the machine at the end.
    """

    # -- what it is ----------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        try:
            return f"<Machine {self._name}: {self.state}>"
        except VMLabError:
            return f"<Machine {self._name}: gone>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Machine) and (other._store.home, other._name) == (
            self._store.home,
            self._name,
        )

    def __hash__(self) -> int:
        return hash((self._store.home, self._name))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(NotFound):
            self.delete()

    @property
    def _record(self) -> MachineRecord:
        return self._store.machine(self._name)

    @property
    def uuid(self) -> str:
        """Its UUID, unique to it also among forks."""
        return self._record.uuid

    @property
    def image(self) -> str:
        """The image it came from."""
        return self._record.image

    @property
    def spec(self) -> Hardware:
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
        with hold(self._store, self._name, "describe") as (record, _):
            record.description = text
            self._store.save_machine(record)

    @property
    def forwards(self) -> tuple[tuple[int, int], ...]:
        """Forwarded TCP ports: ``(port on the host's loopback, port in the guest)``.

        As they are since its last start: where a port of the host was taken then, another one. Before its first start
        those that were asked for, with 0 for any.
        """
        record = self._record
        return record.forwarded or record.forwards

    @property
    def sound_file(self) -> Path | None:
        """What its sound card has played since its last start, as a WAV file, if it was made with ``sound="wav"``."""
        record = self._record
        return self.folder / f"sound-{record.starts}.wav" if record.spec.sound == "wav" else None

    @property
    def vnc_socket(self) -> Path | None:
        """The UNIX socket of its screen, while it runs."""
        domain = domain_of(self._store, self._name)
        return domain.vnc_socket if domain.is_active() else None

    @property
    def state(self) -> str:
        """``running``, ``paused``, ``asleep``, ``off``, ``suspended`` (off, with RAM to continue from) or ``crashed``.

        ``gone`` once it is deleted, by whomever; ``damaged`` where its record cannot be read: then it can be deleted,
        and nothing else.
        """
        try:
            return state_of(self._store, self._record)
        except NotFound:
            return "gone"
        except RecordDamaged:
            return "damaged"

    @property
    def why(self) -> str | None:
        """Why it is paused, asleep, off, crashed or damaged, in words; None where somebody wanted it so.

        Of one that runs, which forwarded ports are not where they were asked for.
        """
        try:
            return _condition(self._store, self._record)[1]
        except RecordDamaged as error:
            return error.message

    @property
    def here(self) -> Snapshot | None:
        """The snapshot that its present stands on ("you are here")."""
        return self._snapshot(self._record.here)

    def _snapshot(self, snapshot_id: str | None) -> Snapshot | None:
        record = history.visible(self._store, snapshot_id)
        return Snapshot(self._store, record) if record is not None else None

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
        life.start(self._store, self._name, boot=boot, force=force)
        return self

    def stop(self, timeout: float = 90) -> Machine:
        """Shut the guest down cleanly, through its agent or the power button, and wait until it is off.

        Raises
        ------
        WaitTimeout
            It did not power off in time; it still runs.
        """
        life.stop(self._store, self._name, timeout)
        return self

    def reboot(self, *, hard: bool = False, timeout: float = 300) -> Machine:
        """Restart the guest, and return when its agent answers again (without an agent: when it begins anew).

        Parameters
        ----------
        hard
            By the reset button: at once, without asking the guest; what it had not written to its disk is lost.
        timeout
            Seconds that it may take.

        Raises
        ------
        WaitTimeout, AgentTimeout
            It did not restart in time; it did, and its agent does not answer.
        """
        life.reboot(self._store, self._name, hard=hard, timeout=timeout)
        return self

    def kill(self) -> Machine:
        """Pull the plug: end it at once; what the guest had not written to its disk is lost."""
        life.kill(self._store, self._name)
        return self

    def pause(self) -> Machine:
        """Stop its CPUs; it keeps its memory and goes on with :meth:`resume`."""
        life.pause(self._store, self._name)
        return self

    def resume(self) -> Machine:
        """Let a paused machine go on."""
        life.resume(self._store, self._name)
        return self

    def delete(self) -> None:
        """End it and delete it with its snapshots, but for what other machines are built on."""
        delete(self._store, self._name)

    def mend(self) -> Machine:
        """Write its record anew if that is gone or damaged, from what libvirt, its disk and its snapshots tell.

        Its present and its snapshots stay what they are; its description is lost.

        Raises
        ------
        RecordDamaged
            Not enough is told; says what is missing.
        """
        mend(self._store, self._name)
        return self

    def rename(self, name: str) -> Machine:
        """Give it another name.

        A running machine stands still for a moment: libvirt cannot rename a running guest, so its state is saved and
        continued under the new name.
        """
        rename(self._store, self._name, name)
        self._name = name
        return self

    def link(
        self,
        network: str,
        *,
        delay: float | None = None,
        jitter: float | None = None,
        loss: float | None = None,
        rate: int | None = None,
        up: bool | None = None,
        clear: bool = False,
    ) -> Machine:
        """Change how its cable to a network is, while it runs or is off; only what is named changes.

        All of it goes for both directions. It stays over restarts and reverts, and forks have it, too.

        Parameters
        ----------
        delay, jitter
            Seconds that a frame is under way, and by how much that varies; frames keep their order.
        loss
            The part of frames that is lost, from 0 to 1. What chance decides repeats itself after each change.
        rate
            Bits a second; 0 for any number.
        up
            False pulls the cable, which the guest sees; True puts it in again.
        clear
            Make it a perfect link first.

        Raises
        ------
        NotFound
            It has no card in that network.
        UsageError
            A number is out of range.
        """
        changes = {"delay": delay, "jitter": jitter, "loss": loss, "rate": rate}
        down = {} if up is None else {"down": not up}
        named = {what: value for what, value in changes.items() if value is not None}
        link(self._store, self._name, network, clear=clear, **named, **down)
        return self

    # -- snapshots -----------------------------------------------------------------------------------------------

    def snapshot(self, name: str | None = None, description: str = "", *, replace: bool = False) -> Snapshot:
        """Take a snapshot: live if it runs or is paused, of its disks if it is off.

        The guest goes on, and stands still only for its last dirty pages, the switch of its disks and the screen.

        Parameters
        ----------
        name
            Unique among its snapshots; by default ``s1``, ``s2`` ...
        replace
            Where there is one of that name, forget it once the new one is taken.

        Raises
        ------
        AlreadyExists, BadName, NoSpace, WrongState
        """
        if replace and name is not None:
            made = history.replace_snapshot(self._store, self._name, name, description)
        else:
            made = history.snapshot(self._store, self._name, name, description)
        return Snapshot(self._store, self._store.snapshot(made))

    @property
    def snapshots(self) -> list[Snapshot]:
        """Its snapshots, the oldest first; not the state that its tree starts from.

        One whose manifest cannot be read is among them, of the kind ``damaged``: it can be described, renamed and
        forgotten; all else raises :class:`SnapshotDamaged`.
        """
        record = self._record
        found = self._store.snapshots_of(record.uuid) + self._store.damaged_of(record)
        return [Snapshot(self._store, r) for r in sorted(found, key=lambda r: r.id)]

    @property
    def root(self) -> Snapshot | None:
        """What its tree starts from: the image's ready state, or the snapshot it was forked from; None if it booted."""
        return self._snapshot(self._record.root)

    def find(self, name: str) -> Snapshot:
        """Return the snapshot of that name or id; the root of the tree is found too, also as ``ready``."""
        return Snapshot(self._store, history.find(self._store, self._record, name))

    def tree(self) -> Tree:
        """Return the snapshot tree, which shows itself in a notebook and in a terminal."""
        return Tree(self)

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
        target, told = history.revert(
            self._store,
            self._name,
            snapshot_id=snapshot.id if isinstance(snapshot, Snapshot) else None,
            label=snapshot if isinstance(snapshot, str) else None,
            clock=clock,
            keep=keep,
            force=force,
        )
        if not told and clock == "now" and target.ram is not None:
            self.set_clock()
        return self

    def undo(self, *, clock: Literal["then", "now"] = "then") -> Machine:
        """Take the last revert back: the present that it left goes on, running if it ran. Undo again to go back again.

        Raises
        ------
        NotFound
            There is nothing to take back.
        """
        target = history.undo(self._store, self._name)
        if clock == "now" and target.ram is not None:
            self.set_clock()
        return self

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
        store = self._store
        wanted = names or ([name] if name is not None else free_names(store, self._name, count or 1))
        # Before a snapshot is taken for forks that cannot be.
        need_names(store, wanted)
        if snapshot is None:
            origin = history.present_snapshot(store, self._name)
        else:
            with hold(store, self._name, "fork") as (record, _):
                if isinstance(snapshot, Snapshot):
                    origin = history.own(store, record, snapshot.id)
                else:
                    origin = history.target_of(store, record, snapshot)
        forks = [Machine(store, made) for made in fork(store, origin, wanted, clock=clock, force=force)]
        return forks if names is not None or count is not None else forks[0]

    def diff(self, *others: Snapshot | Machine | str) -> Diff:
        """Compare its present with the snapshot that it stands on; or as :meth:`vmlab.Lab.diff` says.

        Parameters
        ----------
        others
            One snapshot of it: from that to its present. Two: from the first to the second. Another machine: from this
            one's present to that one's.
        """
        return make_diff(self._store, [place(state) for state in (self, *others)])

    # -- identity of a fork --------------------------------------------------------------------------------------

    @property
    def identity(self) -> dict[str, Any] | None:
        """What a fork got of its own (``done``), could not be given (``failed``), and still shares (``same``).

        None for a machine that booted, or has no agent.
        """
        return identity.told(self._store, self._name)

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
        self._record  # noqa: B018 - raises NotFound
        kind: surface.Kind = "serial" if serial else "screen"
        return surface.show([self], kind, mode=mode, read_only=read_only, minimised=minimised)

    # -- what it takes -------------------------------------------------------------------------------------------

    def usage(self, over: float = 0.25) -> Usage:
        """Return what it takes now; CPU is measured over ``over`` seconds."""
        for found in usage(self._store, [self._name], over):
            return found
        raise NotFound(f"The machine '{self._name}' is gone.", hint="`%vm list` shows those that are there")

    def to_json(self) -> dict[str, Any]:
        """Return what is known of it; of a machine whose record is damaged that is its name, and why."""
        try:
            record, here = self._record, self.here
        except RecordDamaged as error:
            return _damaged_json(self._name, error)
        state, why = _condition(self._store, record)
        return {
            "name": record.name,
            "uuid": record.uuid,
            "state": state,
            "why": why,
            "image": record.image,
            "memory": record.spec.memory,
            "vcpus": record.spec.vcpus,
            "here": here.name if here else None,
            "can_undo": record.undo is not None,
            "forwards": [list(pair) for pair in record.forwarded or record.forwards],
            "description": record.description,
            "created": record.created,
        }


def _condition(store: Store, record: MachineRecord) -> tuple[str, str | None]:
    state, why = condition_of(store, record)
    return state, "; ".join(record.displaced) or None if state == "running" else why


def _damaged_json(name: str, error: RecordDamaged) -> dict[str, Any]:
    return {
        "name": name,
        "uuid": "",
        "state": "damaged",
        "why": f"{error.message} Next: {error.hint}",
        "image": "",
        "memory": 0,
        "vcpus": 0,
        "here": None,
        "can_undo": False,
        "forwards": [],
        "description": "",
        "created": None,
    }


@checked
class Snapshot(Shown):
    """An immutable state of a machine: its disks, and if it was taken live, its RAM, devices and CPUs.

    Made by :meth:`vmlab.Machine.snapshot`, found by :attr:`vmlab.Machine.snapshots`.
    """

    def __init__(self, store: Store, record: SnapshotRecord) -> None:
        self._store = store
        self._record = record

    def __repr__(self) -> str:
        kind = "damaged" if self.kind == "damaged" else "live" if self.live else "offline"
        return f"<Snapshot {self.machine_name}@{self.name} ({kind})>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Snapshot) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def id(self) -> str:
        """Its identifier: unique in the store, sorts by time."""
        return self._record.id

    @property
    def name(self) -> str:
        """Its name, unique among the snapshots of its machine."""
        return self._store.label(self.id).name

    @property
    def description(self) -> str:
        """What somebody said of it."""
        return self._store.label(self.id).description

    @property
    def machine_name(self) -> str:
        """The name that its machine had when it was taken; for a ready state, that of the image."""
        return machine_name(self._record)

    @property
    def machine(self) -> Machine | None:
        """The machine it was taken of; None if that is gone, and for the ready state of an image."""
        name = self._store.machine_of(self._record.machine)
        return Machine(self._store, name) if name is not None else None

    @property
    def kind(self) -> str:
        """``snapshot``, ``ready`` (an image's booted state), ``undo`` (a present that was left) or ``damaged``."""
        return self._record.kind

    @property
    def created(self) -> dt.datetime:
        """When it was taken, in UTC."""
        return dt.datetime.fromisoformat(self._record.created)

    @property
    def live(self) -> bool:
        """Whether it holds RAM, devices and CPUs."""
        return self._record.ram is not None

    @property
    def parent(self) -> Snapshot | None:
        """The snapshot it hangs on in the tree."""
        record = history.visible(self._store, self._store.label(self.id).parent)
        return Snapshot(self._store, record) if record is not None else None

    @property
    def ram_bytes(self) -> int:
        """Bytes on disk of its RAM."""
        return save.sizes(self._store, self._record)[0]

    @property
    def disk_bytes(self) -> int:
        """Bytes on disk of what changed on its disks since the snapshot before."""
        return save.sizes(self._store, self._record)[1]

    @property
    def size(self) -> int:
        """Bytes on disk of all of it."""
        return sum(save.sizes(self._store, self._record))

    @property
    def memory(self) -> int:
        """RAM of the guest in MiB."""
        return self._record.spec.memory

    @property
    def pause_ms(self) -> float | None:
        """For how long the guest stood still for it, by QEMU's own clock: STOP to RESUME."""
        return self._record.pause_ms

    @property
    def total_ms(self) -> float | None:
        """How long taking it took."""
        return self._record.total_ms

    @property
    def here(self) -> bool:
        """Whether a machine's present stands on it."""
        return self._store.is_stood_on(self.id)

    @property
    def png(self) -> bytes | None:
        """Its screen as a PNG file; None if it is offline or has no screen."""
        path = self.folder / "screen.png"
        return path.read_bytes() if path.exists() else None

    @property
    def folder(self) -> Path:
        """The folder of its files."""
        return self._store.snapshot_folder(self.id)

    def describe(self, text: str) -> None:
        """Say what it is."""
        self._store.save_label(self.id, replace(self._store.label(self.id), description=text))

    def rename(self, name: str) -> None:
        """Give it another name.

        Raises
        ------
        BadName, AlreadyExists
        """
        history.rename(self._store, self._record, name)

    def forget(self) -> None:
        """Take it out of the tree, wherever it is; what nothing else is built on is deleted."""
        history.forget(self._store, self._record)

    def verify(self) -> proof.Verification:
        """Prove that it continues exactly where it was taken: registers, RAM, screen, and disks down to the image.

        Of one that is offline there are only disks, and they are held against the digests that were taken.
        """
        return proof.verify(self._store, self._record, self.name)

    def revert(self, *, clock: Literal["then", "now"] = "then") -> Machine:
        """Make the present of its machine equal to it, and return the machine."""
        machine = self.machine
        if machine is None:
            raise NotFound(
                f"The machine of snapshot '{self.name}' is gone.",
                hint="make a new one from it with .fork('name')",
            )
        machine.revert(self, clock=clock)
        return machine

    def diff(self, other: Snapshot | Machine | str | None = None) -> Diff:
        """Compare it with another state, by default with the present of its machine; see :meth:`vmlab.Lab.diff`."""
        states = [place(self)] if other is None else [place(self), place(other)]
        return make_diff(self._store, states)

    def fork(self, name: str, *, clock: Literal["then", "now"] = "then") -> Machine:
        """Make a new machine that starts from it."""
        return Machine(self._store, fork(self._store, self._record, [name], clock=clock, force=False)[0])

    def to_json(self) -> dict[str, Any]:
        """Return what is known of it: what the tree shows, and what it took; sizes in bytes, memory in MiB."""
        return {
            **Node.of(self).to_json(),
            "memory": self.memory,
            "pause_ms": self.pause_ms,
            "total_ms": self.total_ms,
            "qemu": self._record.qemu,
        }


def place(state: Machine | Snapshot | str) -> Place | str:
    """Return which state somebody means; words are read where it is known what they may name."""
    if isinstance(state, Machine):
        return Place(machine=state.name)
    return Place(state.id) if isinstance(state, Snapshot) else state
