"""What differs between two states: of one machine at two times, or of two machines. Made by :meth:`vmlab.Lab.diff`."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from vmlab import throwaway
from vmlab.compare import inside, noise
from vmlab.compare.state import Origin, State
from vmlab.errors import AgentError, NotFound, UsageError, VMLabError, WrongState
from vmlab.guest import agent
from vmlab.machine import Machine
from vmlab.render.shown import Shown
from vmlab.render.units import line
from vmlab.snapshot import Snapshot
from vmlab.store.records import SnapshotRecord, read_json, write_json

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-not-found,import-untyped,unused-ignore]

    from vmlab.compare.devices import DevicesDiff
    from vmlab.compare.disk import DiskDiff
    from vmlab.compare.files import FilesDiff
    from vmlab.compare.inside import InsideDiff
    from vmlab.compare.ram import RamDiff, StringsDiff
    from vmlab.compare.registers import RegistersDiff
    from vmlab.compare.screen import ScreenDiff
    from vmlab.lab import Lab
    from vmlab.store.store import Store

#: All layers, in the order in which they are shown, and those that are compared if nothing is said: the others take
#: seconds, not tenths of them.
LAYERS = ("files", "inside", "screen", "registers", "devices", "ram", "disk")
USUAL = ("files", "screen", "registers", "devices", "ram", "disk")
#: Seconds that the script inside gets; in an emulated guest at full load it takes a while.
INSIDE_TIMEOUT = 180
#: Seconds for which a baseline lets a fork run on.
IDLE_SECONDS = 5.0
#: How a baseline is written; one of another format is measured anew.
BASELINE_FORMAT = 2
#: How far back it is looked for a snapshot that the RAM of both states came from.
GENERATIONS = 100

Outcome = Literal["same", "different", "failed", "absent"]


@dataclass(frozen=True)
class Part:
    """How the comparison of one layer came out.

    Attributes
    ----------
    name
        One of :data:`LAYERS`.
    outcome
        ``same`` or ``different``; ``failed``: it could not be compared, ``why`` says why; ``absent``: neither
        state has such a thing.
    result
        The layer's own result, where there is one.
    summary
        One line.
    seconds
        How long it took.
    """

    name: str
    outcome: Outcome
    summary: str
    result: Any = None
    why: str = ""
    seconds: float = 0.0
    error: VMLabError | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the outcome, and the layer's result under ``result``."""
        return {
            "outcome": self.outcome,
            "summary": line(self.summary),
            "why": line(self.why),
            "seconds": round(self.seconds, 3),
            "result": self.result.to_json() if self.result is not None else None,
        }


class Side:
    """One of the two states of a comparison, and what has been found out about it.

    Attributes
    ----------
    title
        ``web@clean``; ``web (now)`` for a present.
    snapshot
        The snapshot that holds it; for a present one that nobody else sees, and that goes with this object.
    """

    def __init__(self, lab: Lab, what: Snapshot | Machine) -> None:
        self._lab = lab
        if isinstance(what, Machine):
            self.machine, self.title = what.name, f"{what.name} (now)"
            self.snapshot = throwaway.present(what)
        else:
            self.machine, self.title = what.machine_name, f"{what.machine_name}@{what.name}"
            self.snapshot = what
        self._forks = throwaway.Forks()
        # Not cached_property: before Python 3.12 that lets only one object of a class work at a time.
        self._disks: throwaway.Disks | None = None
        self._disks_guard = threading.Lock()
        self._inside: inside.Inside | None = None
        self._inside_guard = threading.Lock()

    def __repr__(self) -> str:
        return f"<Side {self.title}>"

    @property
    def record(self) -> SnapshotRecord:
        """The snapshot's record."""
        return self.snapshot._record

    @cached_property
    def state(self) -> State:
        """Its files, as they were at that instant."""
        return state_of(self._lab, self.snapshot, self.title)

    @property
    def disks(self) -> throwaway.Disks:
        """Its disks to read files from: with the guest's page cache, if that can be had."""
        try:
            return self.flush()
        finally:
            self.wait()

    def flush(self) -> throwaway.Disks:
        """Return its disks as soon as they can be read: what wrote them out may still be there (see `wait`)."""
        with self._disks_guard:
            if self._disks is None:
                self._disks = throwaway.flushed_disks(self._lab, self.record, forks=self._forks)
            return self._disks

    @property
    def inside(self) -> inside.Inside:
        """What its guest says of itself, asked in a throw-away fork.

        Raises
        ------
        AgentError
            It has no agent, or that does not answer.
        WrongState
            It is off.
        """
        record = self.record
        if record.ram is None:
            raise WrongState(f"{self.title} is off: there is no guest that could be asked.")
        if not record.spec.agent:
            raise AgentError(f"{self.title} has no guest agent that could be asked.")
        with self._inside_guard:
            if self._inside is None:
                try:
                    with throwaway.fork(self._lab, record, "ask what is inside", self._forks) as (_, domain):
                        self._inside = ask(self.title, domain)
                finally:
                    self.wait()
            return self._inside

    def stop(self) -> None:
        """End the forks of it that are being asked; after `wait` what they were asked can be asked again."""
        self._forks.stop()

    def wait(self) -> None:
        """Wait until nothing is left of the forks in which it was looked at."""
        self._forks.wait()
        if self._forks.stopped:
            self._forks = throwaway.Forks()

    def to_json(self) -> dict[str, Any]:
        """Return what it is."""
        return {
            **self.state.to_json(),
            "machine": self.machine,
            "snapshot": None if isinstance(self.snapshot, throwaway.Present) else self.snapshot.name,
            "created": self.record.created,
        }


def state_of(lab: Lab, snapshot: Snapshot, title: str = "") -> State:
    """Return the files of a snapshot, for the functions of ``vmlab.compare``."""
    record = snapshot._record
    folder, store = snapshot.folder, lab.store
    screen = folder / "screen.png"
    ram = record.ram
    return State(
        title=title or f"{snapshot.machine_name}@{snapshot.name}",
        ram=folder / "ram" if ram is not None else None,
        registers=folder / "registers.txt" if ram is not None else None,
        screen=screen if screen.exists() else None,
        disks=throwaway.disks(lab, record),
        memory=record.spec.memory,
        ram_base=store.snapshot_folder(ram.base) / "ram" if ram is not None and ram.base else None,
        disk_names=record.spec.disks,
        snapshot=record.id,
        origins=tuple(_origins(store, record)),
    )


def _origins(store: Store, record: SnapshotRecord) -> Iterator[Origin]:
    for _ in range(GENERATIONS):
        ram = record.ram
        if ram is None or ram.origin is None:
            return
        yield Origin(ram.origin, store.snapshot_folder(record.id) / "changed", ram.changed)
        try:
            record = store.snapshot(ram.origin)
        except VMLabError:
            # It was forgotten: what it came from is not known any more.
            return


def ask(title: str, domain: Any) -> inside.Inside:
    """Ask a running guest, through its agent, what is inside."""
    result = agent.script(domain, inside.SCRIPT, timeout=INSIDE_TIMEOUT)
    if result.truncated:
        raise AgentError(
            f"What is inside {title} is more than can be read: {result.truncated:,} bytes were lost."
        )
    return inside.parse(title, result.stdout)


class Diff(Shown):
    """What differs between two states, layer by layer; each layer is compared when it is first looked at, and once.

    True if anything differs, or could not be compared: a layer that failed is never taken for equal.

    Examples
    --------
    >>> diff = web.diff("clean")  # doctest: +SKIP
    >>> assert diff.files.added("/etc/motd")  # doctest: +SKIP
    >>> diff.inside.ports.added(4444)  # doctest: +SKIP
    """

    def __init__(self, lab: Lab, before: Side, after: Side) -> None:
        self._lab = lab
        self.before, self.after = before, after
        self._parts: dict[str, Part] = {}
        self._guard = threading.RLock()
        self._baseline: dict[str, Any] | None = None
        self._noise: dict[noise.Key, str] | None = None
        # What files were read from: asked once more, it might be come by in another way.
        self._disks: tuple[throwaway.Disks, ...] = ()

    def __repr__(self) -> str:
        return f"<Diff {self.before.title} -> {self.after.title}>"

    # -- layers --------------------------------------------------------------------------------------------------

    @property
    def files(self) -> FilesDiff:
        """Files that were added, removed, changed or renamed."""
        return self._result("files")  # type: ignore[no-any-return]

    @property
    def disk(self) -> DiskDiff:
        """Bytes of each disk that differ."""
        return self._result("disk")  # type: ignore[no-any-return]

    @property
    def ram(self) -> RamDiff:
        """Pages of RAM that differ."""
        return self._result("ram")  # type: ignore[no-any-return]

    @cached_property
    def strings(self) -> StringsDiff:
        """Printable strings that came to RAM, and that went, in the pages that differ; not among the layers."""
        from vmlab.compare.ram import compare_strings

        return compare_strings(self.before.state, self.after.state, self.ram)

    @property
    def registers(self) -> RegistersDiff:
        """Registers of each CPU that differ."""
        return self._result("registers")  # type: ignore[no-any-return]

    @property
    def devices(self) -> DevicesDiff:
        """Fields of each device that differ."""
        return self._result("devices")  # type: ignore[no-any-return]

    @property
    def screen(self) -> ScreenDiff:
        """What differs on the screen."""
        return self._result("screen")  # type: ignore[no-any-return]

    @property
    def inside(self) -> InsideDiff:
        """Processes, ports, users, packages, settings: asked in forks of both states."""
        return self._result("inside")  # type: ignore[no-any-return]

    def _result(self, name: str) -> Any:
        """Return a layer's result.

        Raises
        ------
        VMLabError
            It could not be compared.
        """
        part = self.part(name)
        if part.error is not None:
            raise part.error
        if part.result is None:
            raise WrongState(f"There is no {name} to compare: {part.why}.")
        return part.result

    def part(self, name: str) -> Part:
        """Compare a layer, if that is not done yet, and return how it came out; what goes wrong is told there.

        Raises
        ------
        UsageError
            There is no such layer.
        """
        if name not in LAYERS:
            raise UsageError(f"There is no layer '{name}'.", hint=f"there are {', '.join(LAYERS)}")
        with self._guard:
            if name not in self._parts:
                try:
                    self._parts[name] = self._compare(name)
                finally:
                    self._wait()
            return self._parts[name]

    def compare(self, *names: str, tell: Callable[[str], None] | None = None) -> Diff:
        """Compare several layers now; without names the usual ones. ``tell`` hears which is at work."""
        say = tell or (lambda _: None)
        wanted = [name for name in LAYERS if name in (names or USUAL)]
        for name in names:
            if name not in LAYERS:
                self.part(name)
        with contextlib.ExitStack() as stack:
            stack.callback(self._wait)
            if "files" in wanted and "files" not in self._parts:
                # What takes longest, and waits for guests most of the time.
                pool = stack.enter_context(ThreadPoolExecutor(2, thread_name_prefix="vmlab-flush"))
                for side in (self.before, self.after):
                    pool.submit(side.flush)
            try:
                for name in sorted(wanted, key=("files", "inside").__contains__):
                    say(name)
                    self.part(name)
            except BaseException:
                self._stop()
                raise
        return self

    def _stop(self) -> None:
        for side in (self.before, self.after):
            side.stop()

    def _wait(self) -> None:
        for side in (self.before, self.after):
            side.wait()

    @property
    def parts(self) -> dict[str, Part]:
        """The layers that have been compared so far, by name."""
        return {name: self._parts[name] for name in LAYERS if name in self._parts}

    def _compare(self, name: str) -> Part:
        lacks = self._lacks(name)
        if lacks is not None:
            return lacks
        started = time.monotonic()
        try:
            result = getattr(self, f"_compare_{name}")()
        except VMLabError as error:
            return _failed(name, error, started)
        except MemoryError:
            # Not chained: its traceback holds what took the memory.
            told = VMLabError(f"The {name} could not be compared: that takes more memory than there is.")
            return _failed(name, told, started)
        except (OSError, ValueError, ArithmeticError, LookupError, TypeError, RecursionError) as error:
            # A damaged disk may mislead a reader in ways that nobody has thought of; the other layers are still good.
            told = VMLabError(f"The {name} could not be compared ({type(error).__name__}: {error}).")
            told.__cause__ = error
            return _failed(name, told, started)
        said = result.summary
        part = Part(
            name,
            "different" if result else "same",
            (said() if callable(said) else said).rstrip("."),
            result,
            seconds=time.monotonic() - started,
        )
        unread = " ".join(getattr(result, "unread", ()))
        if unread and not list(result):
            # Nothing differs in what could be read; that is not the same as equal.
            return replace(part, outcome="failed", why=unread)
        return replace(part, why=unread)

    def _lacks(self, name: str) -> Part | None:
        """Return how a layer comes out that one of the states, or both, does not have."""
        if name in ("files", "disk"):
            has = [bool(side.record.spec.disks) for side in (self.before, self.after)]
            what = "disk"
        elif name == "screen":
            has = [side.state.screen is not None for side in (self.before, self.after)]
            what = "picture of a screen"
        else:
            has = [side.record.ram is not None for side in (self.before, self.after)]
            what = "running guest"
        if all(has):
            return None
        if not any(has):
            return Part(name, "absent", f"neither has a {what}", why=f"neither has a {what}")
        less, more = (self.after, self.before) if has[0] else (self.before, self.after)
        why = f"{less.title} has no {what}, {more.title} has one"
        return Part(name, "failed", why, why=why, error=WrongState(f"The {name} cannot be compared: {why}."))

    def _compare_files(self) -> FilesDiff:
        from vmlab.compare.files import compare_files

        before, after = self._disks = self._both(Side.flush)
        return compare_files(before.paths, after.paths, self.after.record.spec.disks)

    def _compare_disk(self) -> DiskDiff:
        from vmlab.compare.disk import compare_disks

        return compare_disks(self.before.state, self.after.state)

    def _compare_ram(self) -> RamDiff:
        from vmlab.compare.ram import compare_ram

        return compare_ram(self.before.state, self.after.state)

    def _compare_registers(self) -> RegistersDiff:
        from vmlab.compare.registers import compare_registers

        return compare_registers(self.before.state, self.after.state)

    def _compare_devices(self) -> DevicesDiff:
        from vmlab.compare.devices import compare_devices

        return compare_devices(self.before.state, self.after.state)

    def _compare_screen(self) -> ScreenDiff:
        from vmlab.compare.screen import compare_screens

        return compare_screens(self.before.state, self.after.state)

    def _compare_inside(self) -> InsideDiff:
        before, after = self._both(lambda side: side.inside)
        measured = (self._baseline or {}).get("inside", {})
        return inside.compare_inside(before, after, {name: set(keys) for name, keys in measured.items()})

    def _both(self, ask: Callable[[Side], Any]) -> tuple[Any, Any]:
        """Ask both sides the same at the same time."""
        with ThreadPoolExecutor(2, thread_name_prefix="vmlab-look") as pool:
            asked: list[Future[Any]] = [pool.submit(ask, side) for side in (self.before, self.after)]
            try:
                return asked[0].result(), asked[1].result()
            except BaseException:
                # Leaving the block waits for both.
                self._stop()
                raise

    # -- as a whole ----------------------------------------------------------------------------------------------

    def __bool__(self) -> bool:
        return not self.same

    @property
    def same(self) -> bool:
        """Whether nothing differs in the layers that were compared (the usual ones if none was yet).

        A layer that could not be compared is not the same.
        """
        if not self._parts:
            self.compare()
        outcomes = {part.outcome for part in self._parts.values()}
        return not outcomes & {"different", "failed"}

    @property
    def summary(self) -> str:
        """What differs, a line for each layer, and what was not compared."""
        if not self._parts:
            self.compare()
        lines = [f"{self.before.title} -> {self.after.title}"]
        for name, part in self.parts.items():
            said = f"not compared: {part.why}" if part.outcome == "failed" else self.line(name)
            lines.append(f"{name}: {said}")
        if left := self.left_out:
            lines.append(f"not asked for: {', '.join(left)}")
        return "\n".join(line(text) for text in [*lines, *self.notes])

    def line(self, name: str) -> str:
        """Return what differs in a layer, in one line, without what changes by itself."""
        part = self.part(name)
        noisy = self.noise if name == "files" and part.result is not None else {}
        return f"{part.summary} ({len(noisy)} that change by themselves)" if noisy else part.summary

    @property
    def left_out(self) -> list[str]:
        """Layers that have not been compared because nobody asked for them."""
        return [name for name in LAYERS if name not in self._parts]

    @property
    def notes(self) -> list[str]:
        """What should be known of how the states were read."""
        found = []
        if "files" in self._parts:
            for side, disks in zip((self.before, self.after), self._disks, strict=False):
                if not disks.flushed:
                    found.append(f"{side.title}: files were read {disks.how} ({disks.why})")
            found += getattr(self._parts["files"].result, "unread", ())
        if self._baseline is None and {"files", "inside"} & self._parts.keys():
            found.append(
                "noise: known names only; --baseline (.baseline()) measures what changes in an idle fork"
            )
        return found

    # -- what changes by itself ----------------------------------------------------------------------------------

    @property
    def noise(self) -> dict[noise.Key, str]:
        """Which files differ in a way that is known, or was measured, to come by itself, and why.

        By volume, path and kind.
        """
        if self._noise is None:
            self._noise = noise.noisy(self.files, (self._baseline or {}).get("files", ()))
        return self._noise

    def baseline(self, seconds: float = IDLE_SECONDS) -> Diff:
        """Measure what changes by itself: compare the first state with a fork of it that ran on, idle, for a while.

        It is kept as long as the snapshot.

        Raises
        ------
        WrongState, AgentError
            The state is offline, or has no agent.
        """
        with self._guard:
            self._baseline = measure(self._lab, self.before, seconds, wide="inside" in self._parts)
            self._noise = None
            self._parts.pop("inside", None)
        return self

    # -- for programs --------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Return what was compared and how it came out.

        ``before``, ``after``: the states. ``same``: whether nothing differs. ``layers``: by name ``outcome``
        (``same``, ``different``, ``failed``, ``absent``), ``summary``, ``why``, ``seconds`` and ``result``,
        which is the layer's own ``to_json()`` or null. ``noise``: files that change by themselves: ``volume``,
        ``path``, ``kind`` and ``why``.
        ``strings``: printable strings that came to RAM and went, or null if nobody has looked at :attr:`strings`.
        ``not_compared``: layers that nobody asked for. ``notes``: how the states were read.
        """
        same = self.same
        files = self._parts.get("files")
        known = self.noise if files is not None and files.result is not None else {}
        return {
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "same": same,
            "layers": {name: part.to_json() for name, part in self.parts.items()},
            "noise": [
                {"volume": volume, "path": line(path), "kind": kind, "why": why}
                for (volume, path, kind), why in known.items()
            ],
            "strings": self.strings.to_json() if "strings" in self.__dict__ else None,
            "not_compared": self.left_out,
            "notes": [line(note) for note in self.notes],
        }

    def to_pandas(self) -> dict[str, pd.DataFrame]:
        """Return a pandas DataFrame for each layer that has been compared, by name (all usual ones if none was yet)."""
        if not self._parts:
            self.compare()
        return {name: part.result.to_pandas() for name, part in self.parts.items() if part.result is not None}

    def to_html(self, path: str | Path) -> Path:
        """Write it as one HTML file that needs nothing else, and return its path."""
        from vmlab.render.diff import DiffView

        target = Path(path)
        target.write_text(DiffView(self).document(), encoding="utf-8")
        return target

    def close(self) -> None:
        """Let go of the presents that were caught for it; done by itself when nobody holds it any more."""
        for side in (self.before, self.after):
            if isinstance(side.snapshot, throwaway.Present):
                side.snapshot.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _failed(name: str, error: VMLabError, started: float) -> Part:
    why = error.message + (f" ({error.hint})" if error.hint else "")
    return Part(name, "failed", why, why=why, seconds=time.monotonic() - started, error=error)


def measure(lab: Lab, side: Side, seconds: float, *, wide: bool) -> dict[str, Any]:
    """Return what changes by itself in a state: ``{"files": noise.measured(), "inside": {table: [key]}}``.

    From the cache, if it has been measured before.

    Parameters
    ----------
    wide
        Also inside.
    """
    from vmlab.compare.files import compare_files

    record = side.record
    if record.ram is None:
        raise WrongState(
            f"{side.title} is off, so nothing changes in it by itself.", hint="leave --baseline out"
        )
    folder = lab.store.compared_folder(record.id)
    path = folder / "baseline.json"
    found: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError, VMLabError):
        found = read_json(path)
    if (found.get("format"), found.get("seconds")) != (BASELINE_FORMAT, seconds):
        found = {"format": BASELINE_FORMAT, "seconds": seconds}
    if "files" not in found:
        early = side.disks
        if not early.flushed:
            raise AgentError(f"No baseline can be measured: {early.why}.")
        late = throwaway.flushed_disks(lab, record, idle=seconds)
        if not late.flushed:
            raise AgentError(f"No baseline can be measured: {late.why}.")
        with _removed(late.paths[0].parent if late.paths else None):
            found["files"] = noise.measured(compare_files(early.paths, late.paths, record.spec.disks))
    if wide and "inside" not in found:
        with throwaway.fork(lab, record, "measure what changes by itself") as (_, domain):
            time.sleep(seconds)
            later = ask(side.title, domain)
        diff = inside.compare_inside(side.inside, later)
        found["inside"] = {
            name: sorted(inside.row_text(table.key(row)) for row in table.rows)
            for name, table in diff.tables.items()
            if table
        }
    lab.store.account.make_dir(folder)
    write_json(path, found)
    return found


@contextlib.contextmanager
def _removed(folder: Path | None) -> Any:
    import shutil

    try:
        yield
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


# -- which states ----------------------------------------------------------------------------------------------------


def find(lab: Lab, text: str, machine: Machine | None = None) -> Snapshot | Machine:
    """Return what ``text`` names: ``web`` a machine's present, ``web@clean`` a snapshot; ``clean`` one of ``machine``.

    Raises
    ------
    NotFound
        There is no such thing; names those that there are.
    """
    name, at, snapshot = text.partition("@")
    if at:
        found = lab.machine(name)
        return found.find(snapshot) if snapshot else found
    if machine is None:
        return lab.machine(text)
    try:
        return machine.find(text)
    except NotFound as error:
        if text in lab:
            return lab.machine(text)
        snapshots = [s.name for s in machine.snapshots]
        there = f"snapshots of {machine.name}: {', '.join(snapshots) or 'none'}"
        others = [m.name for m in lab.machines if m != machine]
        raise NotFound(
            f"'{text}' is neither a snapshot of {machine.name} nor a machine.",
            hint=f"{there}; other machines: {', '.join(others) or 'none'}",
        ) from error


def states(lab: Lab, words: Sequence[Snapshot | Machine | str]) -> list[Snapshot | Machine]:
    """Return the states that are to be compared, the older one first.

    One word alone is a machine against the snapshot that it stands on. A snapshot's name belongs to the first
    machine; a single snapshot is compared with that machine's present.
    """
    if not words:
        raise UsageError("There is nothing to compare.", hint="for example `%vm diff web clean`")
    first = find(lab, words[0]) if isinstance(words[0], str) else words[0]
    machine = first if isinstance(first, Machine) else first.machine
    rest = [find(lab, word, machine) if isinstance(word, str) else word for word in words[1:]]
    if isinstance(first, Machine):
        if not rest:
            here = first.here or first.root
            if here is None:
                raise NotFound(
                    f"{first.name} has no snapshot that its present could be compared with.",
                    hint=f"take one first: `%vm snapshot {first.name}`",
                )
            return [here, first]
        if isinstance(rest[0], Snapshot) and rest[0] in (*first.snapshots, first.root):
            # The machine only says whose snapshots these are; one alone is compared with its present.
            return [rest[0], first] if len(rest) == 1 else rest
    elif not rest:
        if machine is None:
            raise NotFound(
                "The machine of that snapshot is gone.",
                hint="name two snapshots, or a snapshot and a machine",
            )
        return [first, machine]
    return [first, *rest]


def in_a_row(lab: Lab, words: Sequence[Snapshot | Machine | str]) -> list[Snapshot | Machine]:
    """Return several states in the order given; a machine alone stands for all its snapshots and its present."""
    first = find(lab, words[0]) if words and isinstance(words[0], str) else None
    if len(words) == 1:
        only = first or words[0]
        if isinstance(only, Machine):
            return [*only.snapshots, only]
        return [only] if isinstance(only, Snapshot) else []
    if isinstance(first, Machine) and len(words) == 2:
        second = find(lab, words[1], first) if isinstance(words[1], str) else words[1]
        # One state of this machine, or two machines.
        return [second] if isinstance(second, Snapshot) or second == first else [first, second]
    return states(lab, words)


def make(lab: Lab, words: Sequence[Snapshot | Machine | str]) -> Diff:
    """Return the comparison of two states; nothing is compared yet, but presents are caught."""
    found = states(lab, words)
    if len(found) != 2:
        raise UsageError(
            f"{len(found)} states cannot be compared as two.",
            hint="`%vm timeline` shows how they follow each other",
        )
    before, after = found
    if before == after:
        raise UsageError("These two are the same state.", hint="name two different ones")
    return Diff(lab, Side(lab, before), Side(lab, after))
