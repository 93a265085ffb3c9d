"""How several states in a row look: a row for each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from vmlab.render import page, units
from vmlab.render.units import line
from vmlab.render.view import View
from vmlab.views.diff import TABS, udiff

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vmlab.study.timeline import Moment, Timeline


class TimelineView(View):
    """What something was in several states: a row for each."""

    label = "timeline"

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline

    def rich(self) -> RenderableType:
        """Return a table."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        columns = self.timeline.columns
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bright_black")
        for title in ("", "STATE", *(column.upper() for column in columns)):
            table.add_column(title)
        for moment, since in self._moments():
            sign = Text("~", "yellow") if moment.changed else Text(" ")
            cells = [Text(_value(moment, column, "")) for column in columns]
            if moment.trouble or not moment.values:
                cells = [Text(line(moment.trouble or "–"), "red" if moment.trouble else "bright_black")]
            state = Text.assemble(line(moment.title), (since, "bright_black"))
            table.add_row(sign, state, *cells[: max(1, len(columns))])
        return Group(Text(line(self.timeline.summary), "bold"), table)

    def _moments(self) -> Iterable[tuple[Moment, str]]:
        """Yield each state, and with which it was compared, where that is not the one above it."""
        last = ""
        for moment in self.timeline:
            yield moment, f" since {line(moment.since)}" if moment.since not in ("", last) else ""
            last = moment.title

    def body(self) -> str:
        """Return a table; what differs in a file can be opened."""
        columns = self.timeline.columns
        rows = []
        for moment, since in self._moments():
            cells = [(page.esc(_value(moment, column, "–")), "w") for column in columns]
            if moment.trouble:
                cells = [(f'<span class="bad">{page.line(moment.trouble)}</span>', "w")]
            elif not moment.values:
                cells = [('<span class="dim">–</span>', "") for _ in columns or ("",)]
            title = page.line(moment.title) + (
                f'<span class="dim">{page.line(since)}</span>' if since else ""
            )
            if moment.detail:
                title = f"<details><summary>{title}</summary>{udiff(moment.detail)}</details>"
            sign = '<span class="warn">~</span>' if moment.changed else ""
            rows.append(page.row(sign, title, *cells))
        head = [("", ""), ("state", ""), *((column, "") for column in columns)]
        # The tabs' rules are also those of a text diff.
        table = f'<div class="tabs">{page.table(head, rows)}</div>'
        title = f'<p class="head">{page.line(self.timeline.summary)}</p>'
        return f"<style>{page.style(TABS, table)}</style>{title}{table}"

    @property
    def heading(self) -> str:
        """What it is a timeline of."""
        return line(self.timeline.summary)

    def to_json(self) -> Any:
        """Return what ``Timeline.to_json`` says."""
        return self.timeline.to_json()


def _value(moment: Moment, column: str, missing: str) -> str:
    """Return what a column of a state says, as one line; times as everywhere else, in the host's zone."""
    value = moment.values.get(column, missing)
    if column == "modified":
        with contextlib.suppress(ValueError):
            return units.absolute(datetime.fromisoformat(value))
    return line(value)
