"""Images: what machines can be made from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

from vmlab.render import page, units
from vmlab.render.view import View

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vmlab.image import Image

MIB = 1024 * 1024


def status(image: Image) -> tuple[str, str, str]:
    """Return ``(word, class, meaning)`` for how far an image is."""
    if image.damaged:
        return ("damaged", "bad", image.damaged)
    if not image.built:
        return ("not built", "dim", "built when the first machine is made from it")
    if image.ready:
        return ("ready", "ok", "its booted state is kept: a new machine starts in well under a second")
    return ("built", "brand", "the next machine boots it")


class ImageTable(View, Sequence["Image"]):
    """Images as a list that shows as a table."""

    label = "images"

    def __init__(self, images: Iterable[Image]) -> None:
        self.images = list(images)

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> list[Image]: ...
    def __getitem__(self, index: int | slice) -> Image | list[Image]:
        return self.images[index]

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Image]:
        return iter(self.images)

    def to_json(self) -> list[dict[str, Any]]:
        """Return one dict for each image; sizes in bytes."""
        return [image_json(image) for image in self.images]

    def body(self) -> str:
        """Return the HTML of the table."""
        columns = [("Image", ""), ("State", ""), ("Memory", "n"), ("CPUs", "n"), ("On disk", "n"), ("", "")]
        rows = []
        for image in self.images:
            word, kind, meaning = status(image)
            hollow = "" if image.ready else " hollow"
            title = image.title or image.description or ""
            if image.damaged:
                title = f"{title} ⚠ {image.damaged}".strip()
            elif image.description and image.description != image.title:
                title = f"{image.title}. {image.description}" if image.title else image.description
            rows.append(
                page.row(
                    page.esc(image.name),
                    f'<span class="st {kind}{hollow}" title="{page.esc(meaning)}"><span>{word}</span></span>',
                    (units.size(image.memory * MIB) if image.memory else "–", "n"),
                    (str(image.vcpus or "–"), "n"),
                    (units.size(image.size) if image.built else "–", "n"),
                    (page.esc(title), "w dim"),
                )
            )
        return (
            page.table(columns, rows)
            + '<p class="note">A machine from one of them: <code>%vm create NAME IMAGE</code></p>'
        )

    def rich(self) -> RenderableType:
        """Return the table for a terminal."""
        from rich.console import Group
        from rich.text import Text

        from vmlab.render import terminal

        table = terminal.table("IMAGE", "STATE", ">MEMORY", ">CPUS", ">ON DISK", "")
        colours = {"ok": "green", "brand": "blue", "dim": "bright_black", "bad": "red"}
        for image in self.images:
            word, kind, _ = status(image)
            table.add_row(
                Text(units.clean(image.name), style="bold"),
                Text(word, style=colours[kind]),
                Text(units.size(image.memory * MIB) if image.memory else "–"),
                Text(str(image.vcpus or "–")),
                Text(units.size(image.size) if image.built else "–"),
                Text(units.clean(image.title or image.description or "")),
            )
        troubles = [
            Text(units.clean(f"{image.name}: {image.damaged}"), style="red")
            for image in self.images
            if image.damaged
        ]
        return Group(table, *troubles) if troubles else table


def image_json(image: Image) -> dict[str, Any]:
    """Return an image as plain values."""
    return {
        "name": image.name,
        "title": image.title,
        "description": image.description,
        "memory": image.memory * MIB if image.memory else None,
        "vcpus": image.vcpus,
        "built": image.built,
        "ready": image.ready,
        "builtin": image.builtin,
        "size": image.size if image.built else None,
        "damaged": image.damaged,
    }
