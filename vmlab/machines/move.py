"""A machine leaves its present and goes on in another state: a revert, an undo, a rename.

*Leave*: the guest is stopped, its present kept if wanted. *Turn*: the record says from here on where the machine goes.
*Arrive*: the old QEMU is ended, a new one takes up the state. Whatever fails on the way, the machine comes back. These
are phases, so that several machines can go side by side: all leave, then all arrive, or all come back. A start and a
fork are a move's second half (:func:`arrive`).

Who dies in the middle is put right by :func:`recover`, at the next verb:

=========  ==================  =======================================================================================
phase      QEMU                what is done
=========  ==================  =======================================================================================
leave      the old one lives   it goes on as before: nothing has been turned yet
leave      gone                nothing: the machine is off, on its own layers
arrive     a new one, loaded   it has the state, and may have been used since: it goes on
arrive     the old one, or a   it is ended; the machine is suspended at the state that its record names, and a start
           half-loaded one     continues it
arrive     gone                nothing: likewise
=========  ==================  =======================================================================================
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

from vmlab.engine import interrupts, load, save, stream
from vmlab.engine.domain import domain_of
from vmlab.errors import VMLabError
from vmlab.hypervisor.domain import Domain
from vmlab.records import MachineRecord, Pending, SnapshotRecord
from vmlab.store import collect
from vmlab.store.store import Store

log = logging.getLogger(__name__)


class Move:
    """One machine on its way; its lock is held.

    Attributes
    ----------
    before
        Its record as it was.
    state, pid
        What its guest was doing, and in which QEMU.
    kept
        The snapshot that holds its present, once it is kept.
    domain
        It as libvirt knows it: under its new name, once it has one.
    """

    def __init__(self, store: Store, record: MachineRecord, domain: Domain) -> None:
        self.store, self.record, self.domain = store, record, domain
        self.before = replace(record)
        self.state, self.pid = domain.state(), domain.pid
        self.kept: str | None = None
        self._made: str | None = None

    @property
    def alive(self) -> bool:
        """Whether there is a guest to leave."""
        return self.state in save.ALIVE

    @contextlib.contextmanager
    def leave(self) -> Iterator[None]:
        """Stop the guest while its present is kept and the record is turned to something else.

        If that fails, the guest goes on as if nothing had been; if we die, whoever comes next lets it go on.
        """
        if self.alive:
            self.record.pending = Pending("leave", state=self.state)
            self.store.save_machine(self.record)
        try:
            if self.state == "running":
                self.domain.pause()
            yield
        except BaseException:
            with interrupts.held():
                if self.alive:
                    stream.cancel(self.domain)
                    stream.go_on(self.domain, self.state)
                self._drop_kept()
                self._take_back()
                self.store.save_machine(self.record)
            raise

    def keep(self) -> str:
        """Keep the present as a hidden snapshot, and return its id."""
        if self.alive:
            return self.keep_as(save.keep_present(self.store, self.record, self.domain, self.state))
        if self.record.continues is not None and self.state == "off":
            # Nothing has run since: the present is that state itself.
            self.kept = self.record.continues
            return self.kept
        return self.keep_as(save.offline(self.store, self.record, "before the revert", "", kind="undo"))

    def keep_as(self, snapshot_id: str) -> str:
        """Take a snapshot that was just made for the present that is kept; it goes if the machine is not left."""
        self.kept = self._made = snapshot_id
        return snapshot_id

    def turn(self, target: SnapshotRecord, **changes: Any) -> None:
        """Let the record stand at a state, with other ``changes`` to it.

        From here on the machine is there, whoever dies: a start continues it.
        """
        record = self.record
        record.layers = self.store.add_layers(target.layers)
        record.continues = target.id if target.ram is not None else None
        record.nvram = target.id if target.ram is None and target.nvram else None
        record.mapped = None
        for name, value in changes.items():
            setattr(record, name, value)
        record.pending = Pending("arrive", pid=self.pid)
        self.store.save_machine(record)

    def arrive(self, target: SnapshotRecord | None, name: str | None = None, *, waits: bool = False) -> None:
        """End the old QEMU and start a new one at the state that the record stands at, if that is live.

        What fails brings the present back, and says in the error how far that went.

        Parameters
        ----------
        target
            The state; None: nothing is started.
        name
            The machine's new name.
        waits
            Leave it stopped, until somebody lets it go.
        """
        try:
            self.domain.destroy()
            if name is not None:
                self._rename(name)
            if target is not None and target.ram is not None:
                paused = waits or target.state != "running"
                load.start_from(self.store, self.record, self.domain, target, paused=paused)
        except BaseException as error:
            with interrupts.held():
                self.come_back(error)
            raise
        self.record.pending = None
        self.store.save_machine(self.record)

    def come_back(self, error: BaseException | None = None) -> None:
        """Bring the present back after something failed on the way; ``error`` then says how far that went."""
        store, record, now_is = self.store, self.record, "the machine is as it was before"
        if record.name != self.before.name:
            self._rename(self.before.name)
        if not self.alive or (self.pid is not None and self.domain.pid == self.pid):
            # Where there was a guest, it could not even be ended.
            self._drop_kept()
            self._take_back()
            if self.alive:
                stream.go_on(self.domain, self.state)
        elif self.kept is None:
            self._take_back(mapped=None)
            now_is = "its present was not to be kept, so the machine is off now"
        else:
            now_is = self._continue_present(store.snapshot(self.kept))
        # What libvirt has may have gone on the way.
        self._define()
        store.save_machine(record)
        if isinstance(error, VMLabError):
            error.hint = f"{now_is}; {error.hint or 'go back to another snapshot'}"

    def _continue_present(self, kept: SnapshotRecord) -> str:
        """Let the present go on in a new QEMU, and return what the machine is then."""
        try:
            # What it wrote to is frozen now.
            layers = self.store.add_layers(kept.layers)
        except (VMLabError, OSError) as error:
            log.warning("%s cannot come back: %s", self.record.name, error)
            self.record.pending = None
            return "there is no room for its present to come back; the machine is off, where it was to go"
        # A snapshot that was taken of it on the way is there to stay.
        here = kept.id if kept.kind == "snapshot" else self.before.here
        self._take_back(layers=layers, continues=kept.id, mapped=None, here=here)
        try:
            load.start_from(self.store, self.record, self.domain, kept, paused=kept.state != "running")
        except VMLabError as error:
            name = self.record.name
            log.warning("%s cannot go on as it was: %s", name, error)
            return f"the machine is suspended as it was before, and goes on with `%vm start {name}`"
        return "the machine is as it was before"

    def _drop_kept(self) -> None:
        """Delete what was kept for nothing: the machine goes on writing to the disks that it froze."""
        if self._made is not None:
            collect.discard(self.store, self._made)
            self.kept = self._made = None

    def _take_back(self, **changes: Any) -> None:
        """Make the record what it was, but for these ``changes``."""
        was = replace(self.before, pending=None, **changes)
        for item in fields(was):
            setattr(self.record, item.name, getattr(was, item.name))

    def _rename(self, name: str) -> None:
        self.domain.undefine()
        self.store.rename_machine(self.record, name)
        self.domain = domain_of(self.store, name)
        self._define()

    def _define(self) -> None:
        """Let libvirt list the machine also when it does not run; it is none the worse where that fails."""
        try:
            load.define(self.store, self.record, self.domain)
        except VMLabError as error:
            log.warning("%s could not be defined: %s", self.record.name, error)


def move(
    store: Store,
    record: MachineRecord,
    domain: Domain,
    turn: Callable[[Move], SnapshotRecord | None],
    *,
    name: str | None = None,
) -> Move:
    """Move a machine, whose lock is held; what fails on the way leaves it as it was.

    Should its QEMU die while it is left, it moves as a machine that is off.

    Parameters
    ----------
    turn
        Keeps the present, if that is wanted, turns the record, and returns the state at which it now stands. Called
        while the guest stands still; and once more if its QEMU has died meanwhile.
    name
        The machine's new name.
    """
    way = Move(store, record, domain)
    try:
        with way.leave():
            target = turn(way)
    except VMLabError as error:
        if way.pid is None or domain.pid is not None:
            raise
        log.info("the QEMU of %s died while it was left: %s", record.name, error)
        # libvirt hears of it some moments later.
        domain.destroy()
        way = Move(store, record, domain)
        with way.leave():
            target = turn(way)
    way.arrive(target, name)
    return way


def through_a_new_qemu(way: Move) -> SnapshotRecord | None:
    """Turn a move so that the present goes on as it is, in another QEMU; without a guest nothing is started."""
    if not way.alive:
        return None
    present = way.store.snapshot(way.keep())
    way.turn(present)
    return present


def arrive(
    store: Store,
    record: MachineRecord,
    domain: Domain,
    target: SnapshotRecord,
    *,
    paused: bool,
    shared: bool = False,
) -> None:
    """Start a machine that is off at a state that its record stands at already; ``shared``: as others are."""
    if record.pending is None:
        record.pending = Pending("arrive")
        store.save_machine(record)
    load.start_from(store, record, domain, target, paused=paused, shared=shared)
    record.pending = None
    store.save_machine(record)


def recover(store: Store, record: MachineRecord, domain: Domain, pending: Pending) -> None:
    """Put right what a process left that died while a machine was moved; the table above says how."""
    if not domain.is_active():
        return
    if pending.phase == "leave":
        stream.cancel(domain)
        stream.go_on(domain, pending.state)
        return
    target = store.snapshot(record.continues) if record.continues is not None else None
    if target is None or domain.pid == pending.pid or not load.is_loaded(domain):
        # The old QEMU, which stands on what was left, or one that has not all of the state.
        domain.destroy()
        return
    if domain.state() == "paused" and target.state == "running":
        load.forward(store, record, domain)
        domain.resume()
    record.mapped, record.continues = target.id, None
