"""How long work tells how far it is, and how that is shown."""

from __future__ import annotations

import contextvars
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TextIO

#: Called with what is being done and, where it can be told, how much of it (0 to 1).
Progress = Callable[[str, float | None], None]

#: Seconds of work before progress is shown at all: what is quick should leave no trace.
PATIENCE = 0.5
#: Seconds between two drawings.
INTERVAL = 0.2


def quiet(_text: str, _fraction: float | None = None) -> None:
    """Report progress to nobody."""


class DrawnProgress(ABC):
    """A context manager that is called as :data:`Progress` says, and shows it.

    A thread draws, because the work may be silent for long: the time that passes must be seen all the same.
    It runs in a copy of the caller's context, by which ipykernel knows the cell that the display belongs
    to.
    """

    def __init__(self, label: str, doing: str = "") -> None:
        self.label = label
        self.doing = doing
        self.fraction: float | None = None
        self.drawn = False
        self._started = time.monotonic()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._started

    def __call__(self, doing: str, fraction: float | None = None) -> None:
        """Say what is being done now."""
        self.doing, self.fraction = doing, fraction

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
        """Show ``label``, ``doing``, ``fraction`` and ``elapsed``; called again and again from a thread."""

    @abstractmethod
    def end(self, error: BaseException | None) -> None:
        """Leave what should remain; called once, and only if something was drawn."""


class ProgressBar(DrawnProgress):
    """A bar on standard error of a terminal, gone when the work is done."""

    def __init__(self, label: str, stream: TextIO, doing: str = "") -> None:
        super().__init__(label, doing)
        self._stream = stream
        self._live: Any = None
        self._task: Any = None

    def draw(self) -> None:
        """Draw the bar, or draw it anew."""
        if self._live is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            self._live = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TimeElapsedColumn(),
                TextColumn("{task.fields[doing]}", markup=False, style="dim"),
                console=Console(file=self._stream),
                transient=True,
            )
            self._task = self._live.add_task(self.label, total=None, doing="")
            self._live.start()
        total = None if self.fraction is None else 1.0
        self._live.update(self._task, doing=self.doing, total=total, completed=self.fraction or 0)

    def end(self, error: BaseException | None) -> None:
        """Take the bar away."""
        self._live.stop()


class ProgressLines(DrawnProgress):
    """Plain lines for a log: one for each new thing that is done, and one at the end."""

    def __init__(self, label: str, stream: TextIO, doing: str = "") -> None:
        super().__init__(label, doing)
        self._stream = stream
        self._said: str | None = None

    def draw(self) -> None:
        """Write a line if something else is being done."""
        if self.doing != self._said:
            self._said = self.doing
            share = "" if self.fraction is None else f" ({self.fraction * 100:.0f} %)"
            self._say(f"{self.label}: {self.doing}{share}" if self.doing else f"{self.label} ...")

    def end(self, error: BaseException | None) -> None:
        """Write how it ended."""
        self._say(f"{self.label}: {'failed' if error else 'done'} after {self.elapsed:.1f} s")

    def _say(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()
