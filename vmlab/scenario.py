"""Scenarios and their states: several machines and the networks between them, as people hold them."""

from __future__ import annotations

import contextlib
import datetime as dt
import re
import time
from collections.abc import Iterator
from typing import Any, Self

from vmlab.checked import checked
from vmlab.engine import save
from vmlab.errors import NotFound, RecordDamaged, UsageError, VMLabError
from vmlab.machine import Machine
from vmlab.machines import life, networks
from vmlab.machines.networks import Network
from vmlab.machines.several import several
from vmlab.records import ScenarioRecord, StateRecord
from vmlab.render import surface
from vmlab.render.shown import Shown
from vmlab.scenarios import build, states
from vmlab.store import scenarios
from vmlab.store.store import Store
from vmlab.study.diff import Diff
from vmlab.study.diff import make as make_diff
from vmlab.tree import Tree


@checked
class Scenario(Shown):
    """Machines and the networks between them, with one name and one tree of states. Made by :meth:`vmlab.Lab.up`.

    What is done to it is done to all its machines at one moment, and to the frames that are under way between them:
    connections between its machines go on after going back. Its machines are machines: ``scenario["web"]``.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name

    def __repr__(self) -> str:
        try:
            return f"<Scenario {self._name}: {len(self)} machines, {self.state}>"
        except VMLabError:
            return f"<Scenario {self._name}: gone>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scenario) and (other._store.home, other._name) == (
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
    def _record(self) -> ScenarioRecord:
        return scenarios.read(self._store, self._name)

    # -- what it is ----------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Its name."""
        return self._name

    @property
    def title(self) -> str:
        """What its file calls it."""
        return self._record.title

    @property
    def description(self) -> str:
        """What it is for."""
        return self._record.description

    @property
    def machines(self) -> list[Machine]:
        """Its machines, in the order of its file."""
        record = self._record
        return [Machine(self._store, record.full(name)) for name in record.members]

    def machine(self, name: str) -> Machine:
        """Return a machine by its name in the scenario.

        Raises
        ------
        NotFound
            With the nearest names.
        """
        record = self._record
        if name not in record.members:
            raise NotFound.named(f"machine of {self._name}", name, record.members)
        return Machine(self._store, record.full(name))

    __getitem__ = machine

    def __iter__(self) -> Iterator[Machine]:
        return iter(self.machines)

    def __len__(self) -> int:
        return len(self._record.members)

    @property
    def networks(self) -> list[Network]:
        """Its networks, with the cards that are plugged into them."""
        record = self._record
        return [networks.one(self._store, record.full(name)) for name in record.networks]

    @property
    def state(self) -> str:
        """What its machines are doing, if that is the same: see :attr:`vmlab.Machine.state`; else ``mixed``."""
        try:
            record = self._record
        except RecordDamaged:
            return "damaged"
        if record.pending is not None and record.pending.phase in ("make", "delete"):
            return "damaged"
        found = {machine.state for machine in self.machines}
        return found.pop() if len(found) == 1 else "mixed"

    # -- life ----------------------------------------------------------------------------------------------------

    def start(self, *, boot: bool = False, force: bool = False) -> Scenario:
        """Start all machines: in the state in which they were left if they were, else each as it is.

        Parameters
        ----------
        boot
            Boot them from their disks.
        force
            Start them even where RAM is short.
        """
        states.start(self._store, self._name, boot=boot, force=force)
        return self

    def suspend(self) -> Scenario:
        """End all machines and keep what they are in the middle of; :meth:`start` goes on from there."""
        states.suspend(self._store, self._name)
        return self

    def stop(self, timeout: float = 90) -> Scenario:
        """Shut all guests down cleanly, at once; see :meth:`vmlab.Machine.stop`."""
        self._each(lambda machine: machine.stop(timeout))
        return self

    def pause(self) -> Scenario:
        """Stop the CPUs of all machines."""
        self._each(lambda machine: life.pause(self._store, machine.name))
        return self

    def resume(self) -> Scenario:
        """Let machines that are paused go on."""
        self._each(lambda machine: life.resume(self._store, machine.name))
        return self

    def delete(self) -> None:
        """End and delete all of it, with its states and networks."""
        build.delete(self._store, self._name)

    def _each(self, do: Any) -> None:
        several(self.machines, do, name=lambda machine: machine.name)

    # -- states --------------------------------------------------------------------------------------------------

    def snapshot(self, name: str | None = None, description: str = "") -> State:
        """Take a snapshot of all machines at one moment, with what is under way between them; all of it or nothing.

        Parameters
        ----------
        name
            Unique among its states; by default ``s1``, ``s2`` ...

        Raises
        ------
        AlreadyExists, BadName, NoSpace, WrongState
        """
        return self._state(states.snapshot(self._store, self._name, name, description))

    @property
    def snapshots(self) -> list[State]:
        """Its states, the oldest first; not the one that its tree starts from."""
        start = self._record.start
        return [State(self, found) for found in states.visible(self._store, self._name) if found.id != start]

    def find(self, name: str) -> State:
        """Return the state of that name or id.

        Raises
        ------
        NotFound
            With the nearest names.
        """
        return State(self, states.find(self._store, self._name, name))

    @property
    def root(self) -> State | None:
        """The state that its tree starts from: *start*, or what it was forked from."""
        start = self._record.start
        return self._state(start) if start is not None else None

    @property
    def here(self) -> State | None:
        """The state that its present stands on."""
        here = self._record.here
        return self._state(here) if here is not None else None

    def _state(self, identity: str) -> State:
        return State(self, scenarios.state(self._store, self._name, identity))

    @property
    def can_undo(self) -> bool:
        """Whether the last revert can be taken back."""
        return self._record.undo is not None

    def tree(self) -> Tree:
        """Return the tree of its states, which shows itself in a notebook and in a terminal."""
        return Tree(self)

    def revert(self, state: State | str | None = None, *, keep: bool = True, force: bool = False) -> Scenario:
        """Make the present of all machines equal to a state, with what was under way between them then.

        Parameters
        ----------
        state
            A state or its name; by default the one that the present stands on.
        keep
            Keep the abandoned present, so that :meth:`undo` brings it back.

        Raises
        ------
        NotFound, SnapshotDamaged, SnapshotIncompatible, NoSpace
            Nothing has changed then.
        """
        label = state.id if isinstance(state, State) else state
        states.revert(self._store, self._name, label, keep=keep, force=force)
        return self

    def reset(self, *, force: bool = False) -> Scenario:
        """Go back to *start*, right after its setup; a fork to what it was forked from. :meth:`undo` takes it back."""
        states.reset(self._store, self._name, force=force)
        return self

    def undo(self) -> Scenario:
        """Take the last revert or reset back. Undo again to go back again.

        Raises
        ------
        NotFound
            There is nothing to take back.
        """
        states.undo(self._store, self._name)
        return self

    def fork(
        self,
        name: str | None = None,
        *,
        count: int | None = None,
        names: list[str] | None = None,
        snapshot: State | str | None = None,
        force: bool = False,
    ) -> Any:
        """Make new scenarios that start from a state: universes of their own, in which all addresses are the same.

        What guests know of themselves stays as it is, keys that programs hold included; only the random generators of
        their kernels get something of their own.

        Parameters
        ----------
        name
            Of the one new scenario; by default this one's with a number.
        count, names
            For several at once.
        snapshot
            Where they start; by default the present, of which a snapshot is taken first.

        Returns
        -------
        Scenario or list of Scenario
            A list if ``count`` or ``names`` is given.
        """
        wanted = names or ([name] if name is not None else self._free_names(count or 1))
        for new in wanted:
            build.need_free_name(self._store, new)
        if snapshot is None:
            here = self.here
            suspended = here is not None and self._record.continues == here.id
            origin = here if suspended and here is not None else self.snapshot(None, "taken to fork from")
        else:
            origin = snapshot if isinstance(snapshot, State) else self.find(snapshot)
        build.fork(self._store, self._name, origin.id, wanted, force=force)
        made = [Scenario(self._store, new) for new in wanted]
        return made if names is not None or count is not None else made[0]

    def _free_names(self, count: int) -> list[str]:
        used = {*scenarios.names(self._store), *self._store.machine_names()}
        stem = re.sub(r"-\d+$", "", self._name)
        found: list[str] = []
        number = 2
        while len(found) < count:
            if f"{stem}-{number}" not in used:
                found.append(f"{stem}-{number}")
            number += 1
        return found

    def diff(self, *states: State | str) -> ScenarioDiff:
        """Compare it, machine by machine.

        Parameters
        ----------
        states
            None: from the state that its present stands on to its present. One: from that to its present. Two: from
            the first to the second.
        """
        names = [state.name if isinstance(state, State) else state for state in states]
        if len(names) > 2:
            raise UsageError("Two states are compared, not more.", hint="compare each with the next")
        for name in names:
            self.find(name)
        return ScenarioDiff(
            self._name,
            {
                machine.name: make_diff(
                    self._store,
                    [machine.name, *names]
                    if len(names) < 2
                    else [f"{machine.name}@{name}" for name in names],
                )
                for machine in self.machines
            },
        )

    def network(self, name: str) -> Network:
        """Return a network by its name in the scenario: ``shop.network("dmz").capture()`` is what was on it.

        Raises
        ------
        NotFound
            With the nearest names.
        """
        record = self._record
        if name not in record.networks:
            raise NotFound.named(f"network of {self._name}", name, record.networks)
        return networks.one(self._store, record.full(name))

    def reaches(self, source: str, target: str, port: int | None = None, *, timeout: float = 0.0) -> bool:
        """Whether a machine reaches another one: by a ping, or at a port of TCP. The guests are asked, nobody else.

        Parameters
        ----------
        source, target
            Names in the scenario.
        timeout
            Seconds for which it is tried again.

        Raises
        ------
        NotFound
            There is no such machine, or it has no address.
        """
        asker = self.machine(source)
        cards = [card for card in self.machine(target).spec.nics if card.address]
        own = {card.network for card in asker.spec.nics}
        nearest = next((card for card in cards if card.network in own), cards[0] if cards else None)
        if nearest is None:
            raise NotFound(
                f"{target} has no address.", hint="give it a card in a network of the scenario's file"
            )
        if port is None:
            command = f"ping -c 1 -W 2 {nearest.address}"
        else:
            command = f"nc -w 2 {nearest.address} {port} < /dev/null"
        end = time.monotonic() + timeout
        while not asker.execute(f"{command} > /dev/null 2>&1").ok:
            if time.monotonic() >= end:
                return False
            time.sleep(0.2)
        return True

    # -- looking at it -------------------------------------------------------------------------------------------

    def console(self, **options: Any) -> Any:
        """Return the live screens of all its machines; see :meth:`vmlab.Machine.console`."""
        kind: surface.Kind = "serial" if options.pop("serial", False) else "screen"
        return surface.show(self.machines, kind, **options)

    def to_json(self) -> dict[str, Any]:
        """Return what is known of it."""
        record, here = self._record, self.here
        return {
            "name": record.name,
            "title": record.title,
            "state": self.state,
            "here": here.name if here else None,
            "can_undo": record.undo is not None,
            "file": record.file,
            "description": record.description,
            "created": record.created,
            "machines": [machine.to_json() for machine in self.machines],
            "networks": [network.to_json() for network in self.networks],
        }


@checked
class ScenarioDiff(Shown):
    """What differs between two states of a scenario, machine by machine. Made by :meth:`Scenario.diff`.

    Attributes
    ----------
    scenario
        Its name.
    machines
        The comparison of each machine, by its name.
    """

    def __init__(self, scenario: str, machines: dict[str, Diff]) -> None:
        self.scenario, self.machines = scenario, machines

    def __repr__(self) -> str:
        return f"<ScenarioDiff of {self.scenario}: {len(self.machines)} machines>"

    def __getitem__(self, name: str) -> Diff:
        """Return the comparison of a machine, by its name in the scenario or its whole one."""
        found = self.machines.get(name) or self.machines.get(f"{self.scenario}.{name}")
        if found is None:
            raise NotFound.named(f"machine of {self.scenario}", name, self.machines)
        return found

    @property
    def same(self) -> bool:
        """Whether nothing differs in what was compared."""
        return all(diff.same for diff in self.machines.values())

    def to_json(self) -> dict[str, Any]:
        """Return the comparison of each machine."""
        return {
            "scenario": self.scenario,
            "machines": {name: diff.to_json() for name, diff in self.machines.items()},
        }


@checked
class State(Shown):
    """An immutable state of a scenario: snapshots of all its machines at one moment, and the frames under way."""

    def __init__(self, scenario: Scenario, record: StateRecord) -> None:
        self._scenario, self._record = scenario, record

    def __repr__(self) -> str:
        return f"<State {self._scenario.name}@{self.name}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, State) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def _store(self) -> Store:
        return self._scenario._store

    @property
    def id(self) -> str:
        """Its identifier: unique in the store, sorts by time."""
        return self._record.id

    @property
    def name(self) -> str:
        """Its name, unique among the states of its scenario."""
        return self._record.name

    @property
    def description(self) -> str:
        """What somebody said of it."""
        return self._record.description

    @property
    def machine_name(self) -> str:
        """The scenario's name."""
        return self._scenario.name

    @property
    def kind(self) -> str:
        """``snapshot``."""
        return self._record.kind

    @property
    def created(self) -> dt.datetime:
        """When it was taken, in UTC."""
        return dt.datetime.fromisoformat(self._record.created)

    @property
    def members(self) -> dict[str, str]:
        """The ids of its machines' snapshots, by the machines' names in the scenario."""
        return dict(self._record.members)

    @property
    def live(self) -> bool:
        """Whether it holds the RAM of a machine."""
        return any(self._store.snapshot(one).ram is not None for one in self._record.members.values())

    @property
    def parent(self) -> State | None:
        """The state it hangs on in the tree."""
        name, parent = self._scenario.name, self._record.parent
        if parent is None or not scenarios.has_state(self._store, name, parent):
            return None
        return State(self._scenario, scenarios.state(self._store, name, parent))

    @property
    def ram_bytes(self) -> int:
        """Bytes on disk of its machines' RAM."""
        return self._sizes()[0]

    @property
    def disk_bytes(self) -> int:
        """Bytes on disk of what changed on its machines' disks since the state before."""
        return self._sizes()[1]

    def _sizes(self) -> tuple[int, int]:
        found = [save.sizes(self._store, self._store.snapshot(one)) for one in self._record.members.values()]
        return sum(ram for ram, _ in found), sum(disk for _, disk in found)

    @property
    def here(self) -> bool:
        """Whether the scenario's present stands on it."""
        return scenarios.read(self._store, self._scenario.name).here == self.id

    @property
    def png(self) -> bytes | None:
        """The screen of its first machine that has one, as a PNG file."""
        for one in self._record.members.values():
            path = self._store.snapshot_folder(one) / "screen.png"
            if path.exists():
                return path.read_bytes()
        return None

    @property
    def skew_ms(self) -> float | None:
        """The time between the stop of the first machine and that of the last, by QEMU's own clock."""
        return self._record.skew_ms

    @property
    def pause_ms(self) -> float | None:
        """For how long the machine that stood still longest did so."""
        return self._record.pause_ms

    @property
    def total_ms(self) -> float | None:
        """How long taking it took."""
        return self._record.total_ms

    @property
    def frames(self) -> int:
        """How many frames were under way."""
        return self._record.frames

    def describe(self, text: str) -> None:
        """Say what it is."""
        states.change(self._store, self._scenario.name, self.id, description=text)
        self._read()

    def rename(self, name: str) -> None:
        """Give it another name.

        Raises
        ------
        BadName, AlreadyExists
        """
        states.change(self._store, self._scenario.name, self.id, label=name)
        self._read()

    def _read(self) -> None:
        self._record = scenarios.state(self._store, self._scenario.name, self.id)

    def forget(self) -> None:
        """Take it out of the tree; what nothing else is built on is deleted."""
        states.forget(self._store, self._scenario.name, self.id)

    def to_json(self) -> dict[str, Any]:
        """Return what is known of it."""
        return {
            **self._record.to_json(),
            "scenario": self._scenario.name,
            "live": self.live,
            "here": self.here,
        }
