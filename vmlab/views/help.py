"""The help that a newcomer can start from, and that of one verb."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vmlab.render import page
from vmlab.render.view import View

if TYPE_CHECKING:
    from rich.console import RenderableType

#: What to try first: ``(words after the prefix, what it does)``.
FIRST = (
    ("create web", "make a machine and start it"),
    ("snapshot web clean", "keep it as it is now, while it runs"),
    ("revert web clean", "whatever happened since: go back"),
)
CELL = "%%vm web"


class HelpView(View):
    """All verbs in groups, and the first lines to try."""

    label = "help"

    def __init__(self, groups: Mapping[str, Sequence[tuple[str, str]]], *, prefix: str) -> None:
        self.groups = groups
        self.prefix = prefix
        self.notebook = prefix.startswith("%")

    def _more(self) -> list[str]:
        more = [f"{self.prefix}help VERB explains one verb, with examples."]
        if self.notebook:
            more.append(f"A cell that begins with {CELL} runs as a script in web, with output as it comes.")
            more.append("From Python: lab = vmlab.Lab(); web = lab['web']; web.succeed('uname -a')")
        return more

    def rich(self) -> RenderableType:
        """Return the help for a terminal."""
        from rich.console import Group
        from rich.text import Text

        from vmlab.render import terminal

        first = terminal.table("", "")
        first.show_header = False
        for words, what in FIRST:
            first.add_row(Text(f"  {self.prefix}{words}", style="cyan"), Text(what))
        parts: list[RenderableType] = [
            Text("Whole computers as notebook variables. Three lines to try:"),
            first,
        ]
        width = max(len(name) for verbs in self.groups.values() for name, _ in verbs)
        for title, verbs in self.groups.items():
            table = terminal.table("", "")
            table.show_header = False
            for name, summary in verbs:
                table.add_row(Text(f"  {name.ljust(width)}", style="cyan"), Text(summary))
            parts += [Text(f"\n{title}", style="bold"), table]
        parts.append(Text(""))
        parts += [Text(line, style="bright_black") for line in self._more()]
        return Group(*parts)

    def body(self) -> str:
        """Return the help for a notebook."""
        first = "".join(_row(self.prefix + words, what) for words, what in FIRST)
        blocks = []
        for title, verbs in self.groups.items():
            rows = "".join(_row(name, summary) for name, summary in verbs)
            blocks.append(
                f'<table class="plain"><caption class="head">{page.esc(title)}</caption><tbody>{rows}</tbody></table>'
            )
        more = "".join(f'<p class="note">{page.esc(line)}</p>' for line in self._more())
        return (
            '<p class="head">Whole computers as notebook variables. Three lines to try:</p>'
            f'<table class="plain"><tbody>{first}</tbody></table>'
            f'<div class="columns">{"".join(blocks)}</div>{more}'
        )

    def to_json(self) -> dict[str, Any]:
        """Return the verbs by group."""
        return {title: dict(verbs) for title, verbs in self.groups.items()}


def _row(words: str, what: str) -> str:
    return page.row(f"<code>{page.esc(words)}</code>", (page.esc(what), "dim"))


class VerbHelp(View):
    """What argparse says about one verb."""

    def __init__(self, words: str) -> None:
        self.words = words.rstrip()

    def text(self, *, colour: bool = False, width: int | None = None) -> str:
        """Return it as argparse has wrapped it."""
        return self.words

    def rich(self) -> RenderableType:
        """Return it as it is."""
        from rich.text import Text

        return Text(self.words)

    def body(self) -> str:
        """Return it as it is."""
        return f'<pre style="padding-left:8px">{page.esc(self.words)}</pre>'

    def to_json(self) -> str:
        """Return the text."""
        return self.words
