"""The terminal side: rich tables in one style. Imported only when something is drawn in a terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

WIDTH = 12


def table(*columns: str) -> Table:
    """Return an empty table without lines; a title that begins with ``>`` is aligned right."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)
    for title in columns:
        right = title.startswith(">")
        made.add_column(
            title.removeprefix(">"), justify="right" if right else "left", overflow="fold", no_wrap=False
        )
    return made


def bar(fraction: float | None, *, width: int = WIDTH, kind: str | None = None) -> Text:
    """Return a bar of blocks: yellow from 75 %, red from 90 % unless a colour is given."""
    if fraction is None:
        return Text("")
    share = min(1.0, max(0.0, fraction))
    colour = kind or ("red" if share >= 0.9 else "yellow" if share >= 0.75 else "cyan")
    full = round(share * width)
    return Text.assemble(("█" * full, colour), ("░" * (width - full), "bright_black"))
