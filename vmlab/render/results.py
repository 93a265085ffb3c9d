"""Small results: a sentence, an ended command, a picture, what was verified, text from the guest."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar

from vmlab.render import page, units
from vmlab.render.view import View

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vmlab.engine.proof import Verification
    from vmlab.guest.agent import CommandResult
    from vmlab.machine import Machine
    from vmlab.snapshot import Snapshot
    from vmlab.store.collect import Collected


class Note(View):
    """One sentence that says what was done, with its facts for programs."""

    def __init__(self, text: str, **facts: Any) -> None:
        self.words = text
        self.facts = facts

    def rich(self) -> RenderableType:
        """Return the sentence."""
        from rich.text import Text

        return Text(units.clean(self.words))

    def body(self) -> str:
        """Return the sentence."""
        return f'<p style="margin:0;padding-left:8px">{page.esc(self.words)}</p>'

    def to_json(self) -> dict[str, Any]:
        """Return the facts."""
        return dict(self.facts)


class CollectedNote(Note):
    """What a collection freed, in a sentence."""

    def __init__(self, collected: Collected) -> None:
        facts = collected.to_json()
        pieces = [
            f"{count} {name if count != 1 else name.removesuffix('s')}"
            for name, count in facts.items()
            if name != "bytes" and count
        ]
        text = (
            f"Freed {units.size(collected.bytes)}: {words(pieces)}."
            if pieces
            else "There was nothing to free."
        )
        super().__init__(text, **facts)


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


class Picture(View):
    """A screenshot with its caption."""

    label = "screenshot"

    def __init__(
        self, png: bytes, *, machine: str, width: int | None = None, height: int | None = None
    ) -> None:
        self.png = png
        self.machine = machine
        self.width, self.height = (width, height) if width and height else png_size(png)
        self.taken = datetime.now().astimezone()

    def _words(self) -> str:
        return f"{self.machine}, {self.width}×{self.height}, {self.taken:%H:%M:%S}"

    def rich(self) -> RenderableType:
        """Return the caption: terminals show no pictures."""
        from rich.text import Text

        return Text(f"screen of {units.clean(self._words())}")

    def body(self) -> str:
        """Return the picture at its own size, smaller only where the page is narrower."""
        shot = page.picture(self.png, alt=f"screen of {self.machine}")
        return f"<figure>{shot}<figcaption>{page.esc(self._words())}</figcaption></figure>"

    def to_json(self) -> dict[str, Any]:
        """Return the size; the picture itself is not JSON."""
        return {"machine": self.machine, "width": self.width, "height": self.height}


def png_size(png: bytes) -> tuple[int, int]:
    """Return width and height from a PNG's header."""
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


class VerificationView(View):
    """What a restored machine was compared in, and whether all was equal."""

    label = "verification"

    #: attribute -> (title, what is compared)
    PARTS: ClassVar = {
        "registers": ("CPU registers", "every register of every CPU"),
        "ram": ("RAM", "digest of every page"),
        "screen": ("Screen", "every pixel"),
        "files": ("Files", "the snapshot's own files, as they were written"),
    }
    SIGNS: ClassVar = {
        True: ("✓", "identical", "ok", "green"),
        False: ("✗", "different", "bad", "red"),
        None: ("–", "nothing to compare", "dim", "bright_black"),
    }

    def __init__(self, verification: Verification) -> None:
        self.verification = verification
        self.ok = verification.ok
        self.parts: dict[str, bool | None] = {name: getattr(verification, name) for name in self.PARTS}

    def words(self) -> str:
        """Return the verdict."""
        if not self.ok:
            wrong = [self.PARTS[name][0] for name, equal in self.parts.items() if equal is False]
            return f"not identical: {', '.join(wrong)}"
        rips = ", ".join(f"RIP={rip.removeprefix('0x')}" for rip in self.verification.rip)
        return f"resumed at {rips}, identical" if rips else "identical"

    def _what(self, name: str) -> str:
        title = self.PARTS[name][1]
        return (
            f"{title} ({units.size(self.verification.ram_bytes)})"
            if name == "ram" and self.parts[name]
            else title
        )

    def rich(self) -> RenderableType:
        """Return the verdict and a line for each part."""
        from rich.console import Group
        from rich.text import Text

        from vmlab.render import terminal

        table = terminal.table("", "", "", "")
        table.show_header = False
        for name, equal in self.parts.items():
            sign, words, _, colour = self.SIGNS[equal]
            table.add_row(
                Text(sign, style=colour),
                Text(self.PARTS[name][0]),
                Text(words, style=colour),
                Text(self._what(name)),
            )
        subject = f"{self.verification.machine}/{self.verification.snapshot}: "
        verdict = Text(units.clean(subject + self.words()), style="bold green" if self.ok else "bold red")
        return Group(
            verdict, table, *(Text(units.clean(d), style="red") for d in self.verification.differences)
        )

    def body(self) -> str:
        """Return the verdict and a table of the parts."""
        rows = []
        for name, equal in self.parts.items():
            sign, words, kind, _ = self.SIGNS[equal]
            state = f'<span class="{kind}">{sign} {words}</span>'
            rows.append(page.row(page.esc(self.PARTS[name][0]), state, (page.esc(self._what(name)), "dim")))
        subject = f"{self.verification.machine}/{self.verification.snapshot}: "
        verdict = (
            f'<p class="head"><span class="{"ok" if self.ok else "bad"}">{"✓" if self.ok else "✗"}</span> '
            f'<span class="dim">{page.esc(subject)}</span>{page.esc(self.words())}</p>'
        )
        wrong = "".join(f'<p class="note bad">{page.esc(d)}</p>' for d in self.verification.differences)
        return verdict + page.table([("Layer", ""), ("", ""), ("Compared", "")], rows) + wrong

    def to_json(self) -> dict[str, Any]:
        """Return the verdict for each part."""
        return dict(self.verification.to_json())


class SnapshotCard(View):
    """One snapshot: what it holds, and for how long the guest stood still for it."""

    label = "snapshot"

    def __init__(self, snapshot: Snapshot) -> None:
        from vmlab.render.tree import Node

        self.snapshot = snapshot
        self.node = Node.of(snapshot)
        self.pause_ms: float | None = getattr(snapshot, "pause_ms", None)

    def _facts(self) -> list[tuple[str, str]]:
        node = self.node
        ram = f"{units.size(node.ram_bytes)} of RAM" if node.live else "no RAM (offline)"
        facts = [("holds", f"{ram}, {units.size(node.disk_bytes)} of disk")]
        if node.created:
            facts.append(("taken", units.absolute(node.created)))
        if self.pause_ms is not None:
            # Always in the same unit, since these are compared.
            facts.append(("guest stood still", f"{self.pause_ms:.0f} ms"))
        if node.description:
            facts.append(("description", node.description))
        return facts

    def rich(self) -> RenderableType:
        """Return the name and the facts on a line."""
        from rich.text import Text

        facts = ", ".join(
            words if key in ("holds", "description") else f"{key} {words}" for key, words in self._facts()
        )
        return Text.assemble(
            (units.clean(f"{self.node.machine}:{self.node.name}"), "bold"), f"  {units.clean(facts)}"
        )

    def body(self) -> str:
        """Return picture and facts."""
        node = self.node
        facts = "".join(f"<dt>{page.esc(k)}</dt><dd>{page.esc(v)}</dd>" for k, v in self._facts())
        shot = (
            page.picture(node.thumbnail, alt=f"screen at {node.name}", kind="thumb") if node.thumbnail else ""
        )
        kind = "live" if node.live else "disk"
        name = f'<span class="dim">{page.esc(node.machine)}:</span>{page.esc(node.name)}'
        return (
            f'<div style="display:flex;gap:12px;align-items:flex-start;padding-left:8px">{shot}<div>'
            f'<p class="head">{name}<span class="pill {"brand" if node.live else "dim"}">{kind}</span></p>'
            f"<dl>{facts}</dl></div></div>"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the snapshot's facts."""
        more = {} if self.pause_ms is None else {"pause_ms": self.pause_ms}
        return {**self.node.to_json(), **more}


# Output of guests
# -----------------------------------------------------------------------------------------------------

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


def machine_names(machines: list[Machine]) -> str:
    """Return names for a sentence: ``web``, ``web and db``, ``a, b and c``."""
    return words([m.name for m in machines])


def words(names: list[str]) -> str:
    """Return names for a sentence."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "nothing"
