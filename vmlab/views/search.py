"""How what was found in RAM looks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmlab.render import page
from vmlab.render.units import line
from vmlab.render.view import View
from vmlab.views.diff import ROWS

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vmlab.compare.ramsearch import RamSearch


#: Places that a terminal shows of one state.
FIRST = 20


class SearchView(View):
    """In which states' RAM something stands, and where."""

    label = "search"

    def __init__(self, found: list[RamSearch]) -> None:
        self.found = found

    def __iter__(self) -> Any:
        return iter(self.found)

    def rich(self) -> RenderableType:
        """Return a sentence for each state, and the first places."""
        from rich.console import Group
        from rich.padding import Padding
        from rich.text import Text

        from vmlab.render import terminal

        parts: list[RenderableType] = []
        for one in self.found:
            parts.append(Text(line(one.summary, keep=" ")))
            if not one:
                continue
            table = terminal.table("", "", "")
            table.show_header = False
            for m in one.matches[:FIRST]:
                table.add_row(f"{m.address:#012x}", m.encoding, Text(line(m.around, keep=" ")))
            parts.append(Padding(table, (0, 0, 0, 4)))
            if len(one) > FIRST:
                parts.append(Text(f"    … {len(one) - FIRST:,} more", style="bright_black"))
        return Group(*parts) if parts else Text("There is no live state to search.")

    def body(self) -> str:
        """Return a sentence for each state; its places can be opened."""
        out = ""
        for one in self.found:
            said = page.esc(line(one.summary, keep=" "))
            if not one:
                out += f'<p class="note">{said}</p>'
                continue
            rows = [
                page.row(f"<code>{m.address:#012x}</code>", page.esc(m.encoding), _around(m.around))
                for m in one.matches[:ROWS]
            ]
            table = page.table([("address", ""), ("as", ""), ("around it", "")], rows)
            out += f"<details><summary>{said}</summary>{table}</details>"
        return out or '<p class="note">There is no live state to search.</p>'

    def to_json(self) -> Any:
        """Return what was found in each state."""
        return [one.to_json() for one in self.found]


def _around(text: str) -> str:
    # Blanks are part of what stands there.
    return f'<code style="white-space:pre">{page.esc(line(text, keep=" "))}</code>'
