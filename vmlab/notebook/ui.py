"""Progress and output in a notebook.

What is shown stays readable in a saved file: no widgets, only outputs that are replaced.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from IPython.display import publish_display_data

from vmlab.commands.ui import UI, Areas, TerminalUI
from vmlab.notebook.frontend import front_end
from vmlab.render import page, units
from vmlab.render.progress import DrawnProgress
from vmlab.views.commands import area_html, lines_of, strip_ansi

#: Seconds between two updates of one area; each one sends the area whole.
REFRESH = 0.25
#: Characters of output that an area keeps: enough to read, little enough to send again and again.
KEPT = 24_000

_counter = itertools.count(1)


def _display_id() -> str:
    return f"vmlab-{os.getpid()}-{next(_counter)}-{time.time_ns():x}"


class Output:
    """One output that can be replaced."""

    def __init__(self) -> None:
        self._id: str | None = None

    def show(self, html: str, text: str) -> None:
        """Show it, or replace what is shown."""
        bundle = {"text/html": html, "text/plain": text}
        update = self._id is not None
        self._id = self._id or _display_id()
        publish_display_data(bundle, transient={"display_id": self._id}, update=update)


class NotebookProgress(DrawnProgress):
    """A bar that is replaced by one line when the work is done."""

    def __init__(self, label: str, doing: str = "") -> None:
        super().__init__(label, doing)
        self._output = Output()

    def draw(self) -> None:
        """Show the bar."""
        share = "" if self.fraction is None else f" {self.fraction * 100:.0f} %"
        doing = f' <span class="dim">{page.esc(self.doing)}</span>' if self.doing else ""
        bar = ""
        if self.fraction is not None:
            bar = page.bar(self.fraction, label=f"{self.label}{share}", kind="brand")
        body = (
            f'<div role="status" style="padding-left:8px;max-width:40em"><span class="brand">●</span> '
            f'{page.esc(self.label)}{doing} <span class="dim small">{page.esc(share)} '
            f"{units.duration(self.elapsed)}</span>{bar}</div>"
        )
        plain = f"{self.label}: {self.doing}{share}" if self.doing else f"{self.label} ...{share}"
        self._output.show(page.page(body), plain)

    def end(self, error: BaseException | None) -> None:
        """Leave one line."""
        sign, kind, word = ("✗", "bad", "failed") if error else ("✓", "ok", "done")
        if isinstance(error, KeyboardInterrupt):
            word = "interrupted"
        words = f"{self.label}: {word} after {units.duration(self.elapsed)}"
        self._output.show(
            page.page(f'<p class="note"><span class="{kind}">{sign}</span> {page.esc(words)}</p>'), words
        )


class NotebookAreas:
    """One output for each machine, replaced as its output comes."""

    def __init__(self, machines: Sequence[str]) -> None:
        self._areas = {name: _Area(name) for name in machines}
        for area in self._areas.values():
            area.show()

    def write(self, machine: str, stream: str, text: str) -> None:
        """Add output of ``machine``; it is shown at the next tick."""
        self._areas[machine].add(stream, text)

    def done(self, machine: str, status: int | None, elapsed: float, trouble: str = "") -> None:
        """Show how it ended."""
        self._areas[machine].end(status, elapsed, trouble)

    def tick(self) -> None:
        """Show what has come, if the last time was long enough ago."""
        for area in self._areas.values():
            area.refresh()


class _Area:
    def __init__(self, machine: str) -> None:
        self.machine = machine
        self.pieces: list[tuple[str, str]] = []
        self.size = 0
        self.cut = 0
        self.status: int | None = None
        self.trouble = ""
        self.started = time.monotonic()
        self.elapsed: float | None = None
        self._shown = 0.0
        self._changed = False
        self._output = Output()

    def add(self, stream: str, text: str) -> None:
        if self.pieces and self.pieces[-1][0] == stream:
            text = self.pieces.pop()[1] + text
        self.pieces.append((stream, text))
        self.size = sum(len(piece) for _, piece in self.pieces)
        while self.size > KEPT:
            stream, first = self.pieces[0]
            excess = self.size - KEPT
            # Cut at a line's end, so that what is left begins with a whole line.
            place = first.find("\n", min(excess, len(first) - 1)) + 1 or len(first)
            self.cut += first.count("\n", 0, place)
            if place >= len(first):
                self.pieces.pop(0)
            else:
                self.pieces[0] = (stream, first[place:])
            self.size = sum(len(piece) for _, piece in self.pieces)
        self._changed = True

    def end(self, status: int | None, elapsed: float, trouble: str) -> None:
        self.status, self.elapsed, self.trouble = status, elapsed, trouble
        self.show()

    def refresh(self) -> None:
        if self._changed and time.monotonic() - self._shown >= REFRESH:
            self.show()

    def show(self) -> None:
        elapsed = time.monotonic() - self.started if self.elapsed is None else self.elapsed
        html = area_html(
            self.machine, self.pieces, status=self.status, elapsed=elapsed, trouble=self.trouble, cut=self.cut
        )
        output = strip_ansi("".join(text for _, text in self.pieces))
        lines = [f"{self.machine} | {line}" for line in lines_of(output)] if output else []
        if self.elapsed is not None:
            lines.append(
                f"{self.machine} | {self.trouble if self.status is None else f'exit {self.status}'} "
                f"after {units.duration(elapsed)}"
            )
        self._output.show(html, "\n".join(lines))
        self._shown, self._changed = time.monotonic(), False


class NotebookUI(UI):
    """Shows progress and output in the cell."""

    pictures = True
    consoles = True
    prefix = "%vm "

    def progress(self, label: str, doing: str = "") -> DrawnProgress:
        """Return a bar in the cell."""
        return NotebookProgress(label, doing)

    def output(self, stream: str, text: str) -> None:
        """Write to the cell's output."""
        target = sys.stderr if stream == "stderr" else sys.stdout
        target.write(text)
        target.flush()

    def say(self, text: str) -> None:
        """Show a line; not on standard error, which means trouble in a notebook (nbgrader scores it 0)."""
        Output().show(page.page(f'<p class="note">{page.esc(text)}</p>'), text)

    def areas(self, machines: Sequence[str]) -> Areas:
        """Return an output for each machine."""
        return NotebookAreas(machines)


def for_shell(shell: Any) -> UI:
    """Return what fits the shell: a notebook's kernel, one with a terminal before it, or IPython in a terminal."""
    if getattr(shell, "kernel", None) is None:
        return IPythonUI(prefix="%vm ")
    return TextUI(prefix="%vm ") if front_end() == "text" else NotebookUI()


class IPythonUI(TerminalUI):
    """A terminal in which somebody types: standard input is theirs."""

    prompts = True

    def input(self) -> bytes | None:
        """Return None: what is typed is meant for IPython."""
        return None


class TextUI(IPythonUI):
    """A kernel whose front end is text: it replaces no output, so what is said comes in lines."""

    pictures = True
