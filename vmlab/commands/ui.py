"""How a verb talks to the person while it works: progress, and the guest's output as it comes.

A verb gets one of these as ``ui`` and knows no more about where it runs. The notebook's is in
``vmlab.notebook.ui``.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

from vmlab.render.progress import DrawnProgress, ProgressBar, ProgressLines


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
    #: Whether somebody waits at a prompt to type the next line: a verb must come back to it.
    prompts = False
    #: What stands before a verb in examples: ``%vm `` or ``vmlab ``.
    prefix = "vmlab "
    #: Whether the person sees output as it comes; not if the result is printed as JSON at the end.
    streams = True

    @abstractmethod
    def progress(self, label: str, doing: str = "") -> DrawnProgress:
        """Return a context manager for long work; ``doing`` is what takes its time, if nothing else tells."""

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

    def progress(self, label: str, doing: str = "") -> DrawnProgress:
        """Return a bar, or lines where nobody watches."""
        kind = ProgressBar if sys.stderr.isatty() else ProgressLines
        return kind(label, sys.stderr, doing)

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
