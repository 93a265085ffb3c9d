"""How a snapshot tree looks: branches, times, sizes, pictures, and where one is."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from vmlab.language import verb
from vmlab.render import page, units
from vmlab.render.view import View
from vmlab.tree import PRESENT, Line, Tree
from vmlab.views.machines import STATES, state_html

if TYPE_CHECKING:
    from rich.console import RenderableType

#: Pixels from one lane to the next.
LANE = 20
#: Pixels of the longer side of a thumbnail: twice what is shown, for sharp screens.
THUMBNAIL = 176


@lru_cache(maxsize=256)
def smaller(png: bytes) -> bytes | None:
    """Return a picture at the size of a thumbnail, as PNG; None if it is no picture."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(png)) as image:
            small = image.convert("RGB")
            small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX, reducing_gap=2.0)
            # 64 colours halve the size, and nobody sees it at this scale.
            out = io.BytesIO()
            small.quantize(64).save(out, "PNG", optimize=True)
            return out.getvalue()
    except (UnidentifiedImageError, OSError, ValueError):
        return None


class SnapshotTree(View):
    """The snapshots of a machine and its present, drawn as a tree."""

    label = "snapshot tree"

    def __init__(self, tree: Tree) -> None:
        self.tree = tree

    def to_json(self) -> dict[str, Any]:
        """Return what ``Tree.to_json`` says."""
        return self.tree.to_json()

    def _notes(self) -> list[str]:
        notes = []
        if all(node.kind == "ready" for node in self.tree.nodes):
            notes.append(f"No snapshots yet. Take one: {verb(f'snapshot {self.tree.machine} NAME')}")
        if self.tree.can_undo:
            notes.append(f"The present before the last revert is kept: {verb(f'undo {self.tree.machine}')}")
        notes += [
            f"{node.name} is damaged: bring its manifest back from a backup, or "
            f"{verb(f'forget {self.tree.machine} {node.name}')}"
            for node in self.tree.nodes
            if node.kind == "damaged"
        ]
        return notes

    def body(self) -> str:
        """Return the HTML of the tree."""
        lanes = max((line.lane for line in self.tree.lines), default=0) + 1
        columns = [
            ("", ""),
            ("", ""),
            ("Snapshot", ""),
            ("Taken", ""),
            ("RAM", "n"),
            ("Disk", "n"),
            ("", ""),
        ]
        rows = [self._row(line, lanes) for line in self.tree.lines]
        notes = "".join(f'<p class="note">{page.esc(note)}</p>' for note in self._notes())
        return (
            f"{page.table(columns, rows, caption=self.tree.machine)}"
            f'{notes}<p class="note">as of {self.tree.taken:%H:%M:%S}</p>'
        )

    def _row(self, line: Line, lanes: int) -> str:
        graph = f'<td class="g" aria-hidden="true" style="--w:{lanes * LANE + 8}px">{_graph(line)}</td>'
        node = line.node
        if node.id == PRESENT:
            return (
                f'<tr class="bare" aria-current="true">{graph}<td></td>'
                f'<th scope="row" colspan="5">{state_html(self.tree.state)}'
                f'<span class="pill ok">you are here</span></th></tr>'
            )
        picture = ""
        small = smaller(node.png) if node.png else None
        if small:
            picture = page.picture(small, alt=f"screen at {node.name}", kind="thumb")
        ram = units.size(node.ram_bytes) if node.live else "–"
        kind = (
            '<span class="pill brand" title="with RAM, devices and CPU: goes on where it was">live</span>'
            if node.live
            else '<span class="pill bad" title="its manifest cannot be read">damaged</span>'
            if node.kind == "damaged"
            else '<span class="pill dim" title="disk only: boots">disk</span>'
        )
        when = page.moment(node.created) if node.created else ""
        where = self.tree.origin(node)
        origin = f' <span class="dim small">{page.esc(where)}</span>' if where else ""
        return (
            f'<tr class="bare">{graph}<td>{picture}</td>'
            f'<th scope="row"><span title="{page.esc(node.id)}">{page.esc(node.name)}</span>'
            f"{origin}{kind}</th>"
            f'<td class="dim">{when}</td><td class="n">{ram}</td>'
            f'<td class="n">{units.size(node.disk_bytes)}</td>'
            f'<td class="w dim">{page.esc(node.description)}</td></tr>'
        )

    def rich(self) -> RenderableType:
        """Return the tree for a terminal."""
        from rich.console import Group
        from rich.text import Text

        from vmlab.render import terminal

        table = terminal.table("SNAPSHOT", "TAKEN", "", ">RAM", ">DISK", "DESCRIPTION")
        for line in self.tree.lines:
            node = line.node
            graph = text_graph(line)
            if node.id == PRESENT:
                _, _, colour, _, _ = STATES.get(self.tree.state, STATES["off"])
                table.add_row(
                    Text.assemble(
                        (graph, "bright_black"),
                        (units.clean(f"{self.tree.state}, you are here"), f"bold {colour}"),
                    )
                )
                continue
            table.add_row(
                Text.assemble(
                    (graph, "bright_black"),
                    (units.clean(node.name), "bold"),
                    (" damaged" if node.kind == "damaged" else "", "red"),
                    f" {units.clean(self.tree.origin(node))}".rstrip(),
                ),
                Text(units.ago(node.created) if node.created else ""),
                Text(units.absolute(node.created) if node.created else "", style="bright_black"),
                Text(units.size(node.ram_bytes) if node.live else "–"),
                Text(units.size(node.disk_bytes)),
                Text(units.clean(node.description)),
            )
        notes = [Text(units.clean(note), style="bright_black") for note in self._notes()]
        return Group(Text(units.clean(self.tree.machine), style="bold"), table, *notes)


def _x(lane: int) -> int:
    return 14 + lane * LANE


def _graph(line: Line) -> str:
    """Return the absolutely placed lines and the dot of one row."""
    parts = [f'<i class="v" style="left:{_x(lane)}px;top:0;bottom:0"></i>' for lane in line.passing]
    x = _x(line.lane)
    if line.up:
        parts.append(f'<i class="v" style="left:{x}px;top:0;bottom:50%"></i>')
    if line.down:
        parts.append(f'<i class="v" style="left:{x}px;top:50%;bottom:0"></i>')
    if line.joins is not None:
        left = _x(line.joins)
        parts.append(
            f'<i class="e" style="left:{left}px;top:0;bottom:calc(50% - 1px);width:{x - left}px"></i>'
        )
    kind = "now" if line.node.id == PRESENT else "live" if line.node.live else ""
    parts.append(f'<b class="{kind}" style="left:{x}px"></b>')
    return "".join(parts)


def text_graph(line: Line) -> str:
    """Return the drawing of one row in characters, two for each lane."""
    cells = ["  "] * (line.lane + 1)
    for lane in line.passing:
        cells[lane] = "│ "
    if line.joins is not None:
        cells[line.joins] = "├─"
    cells[line.lane] = ("◆" if line.node.id == PRESENT else "●" if line.node.live else "○") + " "
    return "".join(cells)
