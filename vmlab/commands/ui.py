"""How a verb talks to the person while it works: progress, and the guest's output as it comes.

A verb gets one of these as ``ui`` and knows no more about where it runs. The notebook's is in
``vmlab.notebook.ui``.
"""

from __future__ import annotations

import contextvars
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

#: Seconds of work before progress is shown at all: what is quick should leave no trace.
PATIENCE = 0.5
#: Seconds between two drawings.
INTERVAL = 0.2

#: What long work calls: what it is doing, and how much of it is done (0 to 1, or None if it cannot tell).
Step = Callable[[str, float | None], None]


class Progress(ABC):
    """A context manager that is called with ``(step, fraction)``.

    A thread draws, because the work may be silent for long: the time that passes must be seen all the same.
    It runs in a copy of the caller's context, by which ipykernel knows the cell that the display belongs
    to.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self.step = ""
        self.fraction: float | None = None
        self.drawn = False
        self._started = time.monotonic()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._started

    def __call__(self, step: str, fraction: float | None = None) -> None:
        """Say what is being done now."""
        self.step, self.fraction = step, fraction

    def __enter__(self) -> Self:
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._run,), name="vmlab-progress", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self.drawn:
            self.end(error)

    def _run(self) -> None:
        wait = PATIENCE
        while not self._stop.wait(wait):
            self.drawn = True
            self.draw()
            wait = INTERVAL

    @abstractmethod
    def draw(self) -> None:
        """Show ``label``, ``step``, ``fraction`` and ``elapsed``; called again and again from a thread."""

    @abstractmethod
    def end(self, error: BaseException | None) -> None:
        """Leave what should remain; called once, and only if something was drawn."""


class Areas(Protocol):
    """Places for the output of several machines at once; used from one thread only."""

    def write(self, machine: str, stream: str, text: str) -> None:
        """Add output of ``machine``; ``stream`` is ``stdout`` or ``stderr``."""

    def done(self, machine: str, status: int | None, elapsed: float, trouble: str = "") -> None:
        """Say how it ended; ``status`` None and a ``trouble`` if it did not."""

    def tick(self) -> None:
        """Show what has come; called a few times a second."""


class UI(ABC):
    """What a verb may ask of its surroundings."""

    #: Whether pictures can be shown in place; else a verb writes a file.
    pictures = False
    #: Whether a live console can be shown in place; else a verb opens one in a browser.
    consoles = False
    #: What stands before a verb in examples: ``%vm `` or ``vmlab ``.
    prefix = "vmlab "
    #: Whether the person sees output as it comes; not if the result is printed as JSON at the end.
    streams = True

    @abstractmethod
    def progress(self, label: str) -> Progress:
        """Return a context manager for long work."""

    @abstractmethod
    def output(self, stream: str, text: str) -> None:
        """Show output of a guest as it comes."""

    @abstractmethod
    def areas(self, machines: Sequence[str]) -> Areas:
        """Return places for the output of several machines."""

    def say(self, text: str) -> None:
        """Tell the person something that is neither a result nor an error, such as for whom one waits."""
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def input(self) -> bytes | None:
        """Return what was piped in, or None."""
        return None


class _Bar(Progress):
    """A bar on standard error of a terminal, gone when the work is done."""

    def __init__(self, label: str, stream: TextIO) -> None:
        super().__init__(label)
        self._stream = stream
        self._live: Any = None
        self._task: Any = None

    def draw(self) -> None:
        if self._live is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            self._live = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TimeElapsedColumn(),
                TextColumn("{task.fields[step]}", markup=False, style="dim"),
                console=Console(file=self._stream),
                transient=True,
            )
            self._task = self._live.add_task(self.label, total=None, step="")
            self._live.start()
        total = None if self.fraction is None else 1.0
        self._live.update(self._task, step=self.step, total=total, completed=self.fraction or 0)

    def end(self, error: BaseException | None) -> None:
        self._live.stop()


class _Lines(Progress):
    """Plain lines for a log: one for each new step, and one at the end."""

    def __init__(self, label: str, stream: TextIO) -> None:
        super().__init__(label)
        self._stream = stream
        self._said: str | None = None

    def draw(self) -> None:
        if self.step != self._said:
            self._said = self.step
            share = "" if self.fraction is None else f" ({self.fraction * 100:.0f} %)"
            self._say(f"{self.label}: {self.step}{share}" if self.step else f"{self.label} ...")

    def end(self, error: BaseException | None) -> None:
        self._say(f"{self.label}: {'failed' if error else 'done'} after {self.elapsed:.1f} s")

    def _say(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


class _Nothing(Progress):
    """No progress at all."""

    def draw(self) -> None:
        """Show nothing."""

    def end(self, error: BaseException | None) -> None:
        """Leave nothing."""


class TerminalUI(UI):
    """Output to standard output and error, progress on standard error.

    Parameters
    ----------
    prefix
        What stands before a verb in examples.
    json
        The result will be printed as JSON: show nothing else on standard output.
    """

    def __init__(self, *, prefix: str = "vmlab ", json: bool = False) -> None:
        self.prefix = prefix
        self.streams = not json

    def progress(self, label: str) -> Progress:
        """Return a bar, or lines where nobody watches."""
        return _Bar(label, sys.stderr) if sys.stderr.isatty() else _Lines(label, sys.stderr)

    def output(self, stream: str, text: str) -> None:
        """Pass it on to standard output or error."""
        if self.streams:
            target = sys.stderr if stream == "stderr" else sys.stdout
            target.write(text)
            target.flush()

    def areas(self, machines: Sequence[str]) -> Areas:
        """Return lines with the machine's name before them."""
        return PrefixedLines(machines, self.output)

    def input(self) -> bytes | None:
        """Return what was piped in, or None if somebody types."""
        if sys.stdin is None or sys.stdin.isatty():
            return None
        return sys.stdin.buffer.read()


class QuietUI(UI):
    """Shows nothing: for programs that call verbs."""

    streams = False

    def progress(self, label: str) -> Progress:
        """Return progress that shows nothing."""
        return _Nothing(label)

    def output(self, stream: str, text: str) -> None:
        """Drop it; it is in the result."""

    def say(self, text: str) -> None:
        """Drop it."""

    def areas(self, machines: Sequence[str]) -> Areas:
        """Return lines with the machine's name before them."""
        return PrefixedLines(machines, self.output)


class PrefixedLines:
    """Output of several machines as lines with the machine's name before them, whole lines only."""

    COLOURS = (36, 35, 33, 32, 34, 31)

    def __init__(self, machines: Sequence[str], output: Callable[[str, str], None]) -> None:
        self._output = output
        self._width = max((len(name) for name in machines), default=0)
        self._colours = {name: self.COLOURS[i % len(self.COLOURS)] for i, name in enumerate(machines)}
        self._rest: dict[tuple[str, str], str] = {}

    def _line(self, machine: str, stream: str, line: str) -> None:
        from vmlab.render.view import wants_colour

        name = machine.ljust(self._width)
        if wants_colour(sys.stderr if stream == "stderr" else sys.stdout):
            name = f"\x1b[{self._colours.get(machine, 36)}m{name}\x1b[0m"
        self._output(stream, f"{name} | {line}\n")

    def write(self, machine: str, stream: str, text: str) -> None:
        """Print the whole lines in ``text``; keep the rest until it is complete."""
        *lines, rest = (self._rest.pop((machine, stream), "") + text).split("\n")
        for line in lines:
            self._line(machine, stream, line.rstrip("\r"))
        if rest:
            self._rest[machine, stream] = rest

    def done(self, machine: str, status: int | None, elapsed: float, trouble: str = "") -> None:
        """Print what is left, and how it ended."""
        for stream in ("stdout", "stderr"):
            if rest := self._rest.pop((machine, stream), ""):
                self._line(machine, stream, rest)
        self._line(machine, "stdout", trouble if status is None else f"exit {status} after {elapsed:.2f} s")

    def tick(self) -> None:
        """Do nothing: lines are printed at once."""
