"""How a capture looks: who talked to whom, and the last frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmlab.render import page, units
from vmlab.render.view import View

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vmlab.network.capture import Capture, Frame

#: Frames and conversations that are shown at most.
LAST, MOST = 50, 20


class CaptureView(View):
    """The last frames of a capture, and its conversations.

    Parameters
    ----------
    last
        How many frames are shown.
    """

    label = "capture"

    def __init__(self, capture: Capture, last: int = LAST) -> None:
        self.capture, self.last = capture, last

    def to_json(self) -> dict[str, Any]:
        """Return all frames."""
        return self.capture.to_json()

    def _head(self) -> str:
        found = self.capture
        total = sum(len(data) for _, data in found.raw)
        frames = f"{len(found)} frame{'s' * (len(found) != 1)}"
        shown = f", the last {self.last} below" if len(found) > self.last else ""
        return f"{found.network}: {frames}, {units.size(total)}{shown}"

    def _frames(self) -> list[Frame]:
        return self.capture[-self.last :] if self.last else []

    def body(self) -> str:
        """Return the HTML of both tables."""
        if not len(self.capture):
            return f'<p class="note">{page.esc(self.capture.network)}: nothing was on it</p>'
        talks = [
            page.row(
                page.esc(f"{talk.one} ↔ {talk.other}"),
                page.esc(talk.kind),
                (str(talk.frames), "n"),
                (page.esc(units.size(talk.bytes)), "n"),
            )
            for talk in self.capture.conversations[:MOST]
        ]
        start = self.capture.raw[0][0]
        frames = [
            page.row(
                f"{frame.time - start:.3f}",
                page.esc(frame.source),
                page.esc(frame.target),
                page.esc(frame.kind),
                page.esc(frame.what),
                (str(len(frame.data)), "n"),
            )
            for frame in self._frames()
        ]
        return (
            f'<p class="head">{page.esc(self._head())}</p>'
            + page.table([("Between", ""), ("", ""), ("Frames", "n"), ("Bytes", "n")], talks)
            + page.table(
                [("Seconds", ""), ("From", ""), ("To", ""), ("", ""), ("What", ""), ("Bytes", "n")], frames
            )
        )

    def rich(self) -> RenderableType:
        """Return the same for a terminal."""
        from rich.console import Group
        from rich.text import Text

        from vmlab.render import terminal

        if not len(self.capture):
            return Text(f"{units.clean(self.capture.network)}: nothing was on it")
        talks = terminal.table("BETWEEN", "", "FRAMES", "BYTES")
        for talk in self.capture.conversations[:MOST]:
            talks.add_row(
                Text(units.clean(f"{talk.one} ↔ {talk.other}")),
                Text(units.clean(talk.kind)),
                Text(str(talk.frames)),
                Text(units.size(talk.bytes)),
            )
        frames = terminal.table("SECONDS", "FROM", "TO", "", "WHAT", "BYTES")
        start = self.capture.raw[0][0]
        for frame in self._frames():
            frames.add_row(
                Text(f"{frame.time - start:.3f}", style="bright_black"),
                *(Text(units.clean(text)) for text in (frame.source, frame.target, frame.kind, frame.what)),
                Text(str(len(frame.data))),
            )
        return Group(Text(units.clean(self._head()), style="bold"), talks, Text(""), frames)
