"""How a picture of a screen looks."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from vmlab.render import page, units
from vmlab.render.view import View

if TYPE_CHECKING:
    from rich.console import RenderableType


class Picture(View):
    """A screenshot with its caption."""

    label = "screenshot"

    def __init__(self, png: bytes, *, machine: str, taken: datetime | None = None) -> None:
        self.png = png
        self.machine = machine
        self.width, self.height = png_size(png)
        self.taken = taken

    def _words(self) -> str:
        when = f", {self.taken:%H:%M:%S}" if self.taken else ""
        return f"{self.machine}, {self.width}×{self.height}{when}"

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
