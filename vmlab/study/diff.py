"""What differs between two states: of one machine at two times, or of two machines. Made by :meth:`vmlab.Lab.diff`."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from vmlab.compare import inside, noise
from vmlab.errors import UsageError, VMLabError, WrongState
from vmlab.render.shown import Shown, view_of
from vmlab.render.units import line
from vmlab.store.store import Store
from vmlab.study.baseline import measure
from vmlab.study.disks import Disks
from vmlab.study.side import Side
from vmlab.study.which import Place, states

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-not-found,import-untyped,unused-ignore]

    from vmlab.compare.devices import DevicesDiff
    from vmlab.compare.disk import DiskDiff
    from vmlab.compare.files import FilesDiff
    from vmlab.compare.inside import InsideDiff
    from vmlab.compare.ram import RamDiff
    from vmlab.compare.ramstrings import StringsDiff
    from vmlab.compare.registers import RegistersDiff
    from vmlab.compare.screen import ScreenDiff

#: All parts, in the order in which they are shown, and those that are compared if nothing is said: the others take
#: seconds, not tenths of them.
PARTS = ("files", "inside", "screen", "registers", "devices", "ram", "disk")
USUAL = ("files", "screen", "registers", "devices", "ram", "disk")
#: Seconds for which a baseline lets a fork run on.
IDLE_SECONDS = 5.0

Outcome = Literal["same", "different", "failed", "absent"]


@dataclass(frozen=True)
class Part:
    """How the comparison of one part came out.

    Attributes
    ----------
    name
        One of :data:`PARTS`.
    outcome
        ``same`` or ``different``; ``failed``: it could not be compared, ``why`` says why; ``absent``: neither
        state has such a thing.
    result
        The part's own result, where there is one.
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
        """Return the outcome, and the part's result under ``result``."""
        return {
            "outcome": self.outcome,
            "summary": line(self.summary),
            "why": line(self.why),
            "seconds": round(self.seconds, 3),
            "result": self.result.to_json() if self.result is not None else None,
        }


def need_parts(names: Sequence[str]) -> None:
    """Insist that a comparison has these parts.

    Raises
    ------
    UsageError
        There is no such part.
    """
    for name in names:
        if name not in PARTS:
            raise UsageError(f"There is no part '{name}'.", hint=f"there are {', '.join(PARTS)}")


class Diff(Shown):
    """What differs between two states, part by part; each part is compared when it is first looked at, and once.

    True if anything differs, or could not be compared: a part that failed is never taken for equal.

    Examples
    --------
    >>> diff = web.diff("clean")
    >>> assert diff.files.added("/opt/tool")
    >>> assert diff.inside.ports.added(4444)
    """

    def __init__(self, store: Store, before: Side, after: Side) -> None:
        self._store = store
        self.before, self.after = before, after
        self._parts: dict[str, Part] = {}
        self._guard = threading.RLock()
        self._baseline: dict[str, Any] | None = None
        self._noise: dict[noise.Key, str] | None = None
        # What files were read from: asked once more, it might be come by in another way.
        self._disks: tuple[Disks, ...] = ()

    def __repr__(self) -> str:
        return f"<Diff {self.before.title} -> {self.after.title}>"

    # -- parts --------------------------------------------------------------------------------------------------

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
        """Printable strings that came to RAM, and that went, in the pages that differ; not among the parts."""
        from vmlab.compare.ramstrings import compare_strings

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
        """Return a part's result.

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
        """Compare a part, if that is not done yet, and return how it came out; what goes wrong is told there.

        Raises
        ------
        UsageError
            There is no such part.
        """
        need_parts([name])
        with self._guard:
            if name not in self._parts:
                try:
                    self._parts[name] = self._compare(name)
                finally:
                    self._wait()
            return self._parts[name]

    def compare(self, *names: str, tell: Callable[[str], None] | None = None) -> Diff:
        """Compare several parts now; without names the usual ones. ``tell`` hears which is at work."""
        say = tell or (lambda _: None)
        need_parts(names)
        wanted = [name for name in PARTS if name in (names or USUAL)]
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
        """The parts that have been compared so far, by name."""
        return {name: self._parts[name] for name in PARTS if name in self._parts}

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
            # A damaged disk may mislead a reader in ways that nobody has thought of; the other parts are still good.
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
        """Return how a part comes out that one of the states, or both, does not have."""
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

        self._need_file("registers.txt")
        return compare_registers(self.before.state, self.after.state)

    def _compare_devices(self) -> DevicesDiff:
        from vmlab.compare.devices import compare_devices

        return compare_devices(self.before.state, self.after.state)

    def _compare_screen(self) -> ScreenDiff:
        from vmlab.compare.screen import compare_screens

        self._need_file("screen.png")
        return compare_screens(self.before.state, self.after.state)

    def _need_file(self, name: str) -> None:
        for side in (self.before, self.after):
            side.need_file(name)

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
        """Whether nothing differs in the parts that were compared (the usual ones if none was yet).

        A part that could not be compared is not the same.
        """
        if not self._parts:
            self.compare()
        outcomes = {part.outcome for part in self._parts.values()}
        return not outcomes & {"different", "failed"}

    @property
    def summary(self) -> str:
        """What differs, a line for each part, and what was not compared."""
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
        """Return what differs in a part, in one line, without what changes by itself."""
        part = self.part(name)
        noisy = self.noise if name == "files" and part.result is not None else {}
        return f"{part.summary} ({len(noisy)} that change by themselves)" if noisy else part.summary

    @property
    def left_out(self) -> list[str]:
        """Parts that have not been compared because nobody asked for them."""
        return [name for name in PARTS if name not in self._parts]

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
            self._baseline = measure(self._store, self.before, seconds, wide="inside" in self._parts)
            self._noise = None
            self._parts.pop("inside", None)
        return self

    # -- for programs --------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Return what was compared and how it came out.

        ``before``, ``after``: the states. ``same``: whether nothing differs. ``layers``: by name ``outcome``
        (``same``, ``different``, ``failed``, ``absent``), ``summary``, ``why``, ``seconds`` and ``result``,
        which is the part's own ``to_json()`` or null. ``noise``: files that change by themselves: ``volume``,
        ``path``, ``kind`` and ``why``.
        ``strings``: printable strings that came to RAM and went, or null if nobody has looked at :attr:`strings`.
        ``not_compared``: parts that nobody asked for. ``notes``: how the states were read.
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
        """Return a pandas DataFrame for each part that has been compared, by name (all usual ones if none was yet)."""
        if not self._parts:
            self.compare()
        return {name: part.result.to_pandas() for name, part in self.parts.items() if part.result is not None}

    def to_html(self, path: str | Path) -> Path:
        """Write it as one HTML file that needs nothing else, and return its path."""
        target = Path(path)
        target.write_text(view_of(self).document(), encoding="utf-8")
        return target

    def close(self) -> None:
        """Let go of the presents that were caught for it; done by itself when nobody holds it any more."""
        for side in (self.before, self.after):
            if side.present is not None:
                side.present.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _failed(name: str, error: VMLabError, started: float) -> Part:
    why = error.message + (f" ({error.hint})" if error.hint else "")
    return Part(name, "failed", why, why=why, seconds=time.monotonic() - started, error=error)


def make(store: Store, words: Sequence[Place | str]) -> Diff:
    """Return the comparison of two states; nothing is compared yet, but presents are caught."""
    found = states(store, words)
    if len(found) != 2:
        raise UsageError(
            f"{len(found)} states cannot be compared as two.",
            hint="`%vm timeline` shows how they follow each other",
        )
    before, after = found
    if before == after:
        raise UsageError("These two are the same state.", hint="name two different ones")
    return Diff(store, Side(store, before), Side(store, after))
