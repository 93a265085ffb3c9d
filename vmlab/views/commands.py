"""What a command in a guest wrote, and how it ended."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

from vmlab.render import page, units
from vmlab.render.view import View, wants_colour

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vmlab.guest.agent import CommandResult


class Plain(View):
    """Text of the guest, such as its serial log, shown as it is."""

    def __init__(self, text: str, *, title: str = "") -> None:
        self.words = text
        self.title = title

    def text(self, *, colour: bool = False, width: int | None = None) -> str:
        """Return the text unwrapped: a log must be greppable."""
        return "\n".join(units.clean(strip_ansi(line)) for line in lines_of(self.words))

    def rich(self) -> RenderableType:
        """Return the text."""
        from rich.text import Text

        return Text(self.text())

    def body(self) -> str:
        """Return the text in a box."""
        return (
            box(self.title, "", output_html(self.words))
            if self.title
            else f"<pre>{output_html(self.words)}</pre>"
        )

    def to_json(self) -> str:
        """Return the text."""
        return self.words


class Ended(View):
    """A command whose output was already shown while it ran: only how it ended is shown.

    ``result`` is the :class:`CommandResult`; its fields are here too.
    """

    #: The command line prints nothing more, as with any command.
    silent = True

    def __init__(self, machine: str, result: CommandResult) -> None:
        self.machine = machine
        self.result = result

    @property
    def status(self) -> int:
        """The exit status."""
        return self.result.status

    exit_status = status

    @property
    def stdout(self) -> str:
        """What it wrote to standard output."""
        return self.result.stdout

    @property
    def stderr(self) -> str:
        """What it wrote to standard error."""
        return self.result.stderr

    @property
    def elapsed(self) -> float:
        """Seconds it took."""
        return self.result.elapsed

    def _words(self) -> str:
        return f"{self.machine}: exit {self.status} after {units.duration(self.elapsed)}"

    def rich(self) -> RenderableType:
        """Return one line."""
        from rich.text import Text

        return Text(units.clean(self._words()), style="bright_black" if self.status == 0 else "red")

    def body(self) -> str:
        """Return one line."""
        kind = "ok" if self.status == 0 else "bad"
        sign = "✓" if self.status == 0 else "✗"
        return f'<p class="note"><span class="{kind}">{sign}</span> {page.esc(self._words())}</p>'

    def to_json(self) -> dict[str, Any]:
        """Return status, output and time."""
        return {"machine": self.machine, **result_json(self.result)}


class EndedMany(View):
    """Commands of several machines, by name; their output was shown while they ran."""

    silent = True

    def __init__(self, results: dict[str, CommandResult]) -> None:
        self.results = results

    def __getitem__(self, name: str) -> CommandResult:
        return self.results[name]

    def __len__(self) -> int:
        return len(self.results)

    @property
    def exit_status(self) -> int:
        """The first status that is not 0, else 0."""
        return next((result.status for result in self.results.values() if result.status), 0)

    def rich(self) -> RenderableType:
        """Return a line for each machine."""
        from rich.console import Group

        return Group(*(Ended(name, result).rich() for name, result in self.results.items()))

    def body(self) -> str:
        """Return a sum: each machine's area already says how it ended."""
        kind, sign = ("ok", "✓") if self._good == len(self.results) else ("bad", "✗")
        return f'<p class="note"><span class="{kind}">{sign}</span> {page.esc(self._words())}</p>'

    @property
    def _good(self) -> int:
        return sum(result.status == 0 for result in self.results.values())

    def _words(self) -> str:
        return f"{self._good} of {len(self.results)} ended with status 0"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(self._words())

    def to_json(self) -> dict[str, Any]:
        """Return each result by the machine's name."""
        return {name: result_json(result) for name, result in self.results.items()}


class Results(dict[str, "CommandResult"]):
    """Commands of several machines by name: a dict, which shows their output and how each ended."""

    def __repr__(self) -> str:
        return self._text(colour=False)

    def _text(self, *, colour: bool) -> str:
        parts = [f"{name}:\n{CommandView(result).text(colour=colour)}" for name, result in self.items()]
        return "\n".join(parts)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(f"\n{self._text(colour=wants_colour(sys.stdout))}")

    def _repr_html_(self) -> str:
        parts = (
            area_html(
                name, [("stdout", result.stdout), ("stderr", result.stderr)],
                status=result.status, elapsed=result.elapsed, trouble="", cut=0,
            )
            for name, result in self.items()
        )  # fmt: skip
        return "".join(parts)


class CommandView(View):
    """A command's result with its output."""

    def __init__(self, result: CommandResult) -> None:
        self.result = result

    def rich(self) -> RenderableType:
        """Return output, errors and how it ended."""
        from rich.console import Group
        from rich.text import Text

        parts = [
            Text(units.clean("\n".join(lines_of(strip_ansi(text)))), style=style)
            for text, style in ((self.result.stdout, ""), (self.result.stderr, "red"))
            if text.strip()
        ]
        end = f"exit {self.result.status} after {units.duration(self.result.elapsed)}"
        return Group(*parts, Text(end, style="bright_black" if self.result.status == 0 else "red"))

    def body(self) -> str:
        """Return output, errors and how it ended."""
        output = output_html(self.result.stdout)
        if self.result.stderr:
            between = "\n" if output else ""
            output += f'{between}<span class="bad">{output_html(self.result.stderr)}</span>'
        return box(ended_html(self.result.status), units.duration(self.result.elapsed), output, ready=True)

    def to_json(self) -> dict[str, Any]:
        """Return status, output and time."""
        return result_json(self.result)


def result_json(result: CommandResult) -> dict[str, Any]:
    """Return a command's result as plain values."""
    return {
        "status": result.status,
        "stdout": result.stdout,
        "stderr": result.stderr,
        "elapsed": round(result.elapsed, 3),
    }


def ended_html(status: int | None) -> str:
    """Return how a command ended, as a coloured sign and words."""
    if status is None:
        return '<span class="brand">running …</span>'
    return (
        f'<span class="{"ok" if status == 0 else "bad"}">{"✓" if status == 0 else "✗"} exit {status}</span>'
    )


_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
#: Tones that can be read on white and on black: one saved page is looked at in both.
_ANSI_COLOURS = [
    (128, 128, 128),
    (214, 64, 64),
    (46, 150, 70),
    (176, 128, 20),
    (58, 124, 214),
    (170, 84, 190),
    (20, 150, 160),
    (140, 140, 140),
]


def strip_ansi(text: str) -> str:
    """Return ``text`` without terminal escape sequences."""
    return _ANSI.sub("", text)


def lines_of(text: str) -> list[str]:
    """Return the lines as a terminal would leave them: what a carriage return goes back over is gone."""
    lines = []
    for line in text.replace("\r\n", "\n").removesuffix("\n").split("\n"):
        parts = [part for part in line.split("\r") if part]
        lines.append(parts[-1] if parts else "")
    return lines


def output_html(text: str) -> str:
    """Return the guest's output as HTML, its colours kept."""
    text = "\n".join(lines_of(text))
    if "\x1b" not in text:
        return page.esc(text)
    # rich knows the colour sequences; loaded only for output that has some.
    from io import StringIO

    from rich.console import Console
    from rich.terminal_theme import TerminalTheme
    from rich.text import Text

    theme = TerminalTheme((0, 0, 0), (128, 128, 128), _ANSI_COLOURS)
    console = Console(
        file=StringIO(),
        force_jupyter=False,
        record=True,
        width=100_000,
        color_system="truecolor",
        legacy_windows=False,
    )
    parts = []
    for line in text.split("\n"):
        console.print(Text.from_ansi(line), soft_wrap=True, end="")
        parts.append(
            units.clean(
                console.export_html(theme=theme, inline_styles=True, code_format="{code}").removesuffix("\n")
            )
        )
    return "\n".join(parts)


def box(title: str, right: str, content: str, *, ready: bool = False) -> str:
    """Return a framed area: ``title`` and ``right`` in a header, then ``content`` (ready HTML).

    ``title`` is HTML already if ``ready``.
    """
    shown = title if ready else page.esc(title)
    # tabindex: a keyboard must be able to scroll what a mouse can.
    body = f'<pre tabindex="0">{content}</pre>' if content else ""
    aside = f'<span class="dim small">{page.esc(right)}</span>' if right else ""
    return f'<section class="box"><header>{shown}{aside}</header>{body}</section>'


def area_html(
    machine: str,
    output: list[tuple[str, str]],
    *,
    status: int | None,
    elapsed: float,
    trouble: str = "",
    cut: int = 0,
) -> str:
    """Return the area of one machine of several that run a script at once.

    Parameters
    ----------
    output
        ``(stream, text)`` in order.
    status
        The exit status; None while it runs.
    trouble
        Why it did not run, or did not end.
    cut
        Lines at the beginning that are not shown any more.
    """
    parts = [f'<span class="dim">… {cut} lines before\n</span>'] if cut else []
    for stream, text in output:
        # Not through lines_of: pieces may end in the middle of a line.
        shown = output_html(text) + ("\n" if text.endswith("\n") else "")
        parts.append(f'<span class="bad">{shown}</span>' if stream == "stderr" else shown)
    if trouble:
        parts.append(f'<span class="bad">{page.esc(trouble)}</span>')
    ended = '<span class="bad">✗ failed</span>' if trouble and status is None else ended_html(status)
    return page.page(
        box(
            f"<strong>{page.esc(machine)}</strong> {ended}",
            units.duration(elapsed),
            "".join(parts),
            ready=True,
        ),
        label=f"output of {machine}",
    )
