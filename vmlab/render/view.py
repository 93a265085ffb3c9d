"""What every result shares: a terminal form through rich, an HTML form for notebooks, and a JSON form."""

from __future__ import annotations

import io
import os
import shutil
import sys
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from vmlab.render import page

if TYPE_CHECKING:
    from rich.console import RenderableType


class View(ABC):
    """A result that shows itself in a terminal and in a notebook, and can be had as JSON."""

    #: Said to screen readers, and the title of the HTML group.
    label = ""

    @abstractmethod
    def rich(self) -> RenderableType:
        """Return what rich draws in a terminal."""

    @abstractmethod
    def body(self) -> str:
        """Return the HTML without the style sheet."""

    @abstractmethod
    def to_json(self) -> Any:
        """Return plain lists, dicts, numbers and strings."""

    @property
    def heading(self) -> str:
        """What a page of its own is called."""
        return self.label

    def html(self) -> str:
        """Return self-contained HTML."""
        return page.page(self.body(), label=self.label)

    def document(self) -> str:
        """Return a whole HTML page that needs nothing else."""
        return page.document(self.heading, self.html())

    def text(self, *, colour: bool = False, width: int | None = None) -> str:
        """Return what a terminal shows, with escape sequences only if ``colour``."""
        return draw(self.rich(), colour=colour, width=width)

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        return self.html()

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        text = self.text(colour=wants_colour(sys.stdout))
        # A table starts on its own line below "Out[1]:"; one short line stays beside it.
        printer.text(f"\n{text}" if "\n" in text else text)


def wants_colour(stream: Any) -> bool:
    """Tell whether ``stream`` is a terminal that may be coloured (see https://no-color.org)."""
    return bool(getattr(stream, "isatty", lambda: False)()) and "NO_COLOR" not in os.environ


def draw(renderable: RenderableType, *, colour: bool = False, width: int | None = None) -> str:
    """Draw ``renderable`` into a string, without spaces at line ends."""
    from rich.console import Console  # not needed for HTML or JSON, and 60 ms to import

    if width is None:
        width = shutil.get_terminal_size((120, 40)).columns if sys.stdout.isatty() else 160
    console = Console(
        file=io.StringIO(),
        force_jupyter=False,  # else rich displays what it prints, instead of returning it
        width=width,
        force_terminal=colour,
        no_color=not colour,
        color_system="standard" if colour else None,
        legacy_windows=False,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=False,
    )
    with console.capture() as captured:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
