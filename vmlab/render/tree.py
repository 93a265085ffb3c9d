"""The snapshot tree of a machine: branches, times, sizes, pictures, and where one is.

The tree is drawn like a revision graph: a line of snapshots without branches goes straight down in one
lane, so twenty snapshots in a row do not move twenty steps to the right. The branch that leads to the
present keeps the left lane; the others are drawn first, each one lane to the right of where it leaves.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from vmlab.errors import VMLabError
from vmlab.render import page, units
from vmlab.render.machines import STATES, state_html
from vmlab.render.view import View

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vmlab.machine import Machine
    from vmlab.snapshot import Snapshot

#: Pixels from one lane to the next.
LANE = 20
#: Pixels of the longer side of a thumbnail: twice what is shown, for sharp screens.
THUMBNAIL = 176
#: The id of the row that stands for the present.
PRESENT = "\0present"


@dataclass(frozen=True)
class Node:
    """One snapshot, as the tree shows it."""

    id: str
    name: str
    parent: str | None
    created: datetime | None = None
    live: bool = False
    ram_bytes: int | None = None
    disk_bytes: int | None = None
    description: str = ""
    here: bool = False
    thumbnail: bytes | None = None
    machine: str = ""
    kind: str = "snapshot"
    """``snapshot``, ``ready`` (the booted state of an image) or ``undo``."""

    @classmethod
    def of(cls, snapshot: Snapshot, *, here: bool | None = None, machine: str | None = None) -> Node:
        """Read ``snapshot``; ``here`` and ``machine`` save looking for what the caller knows."""
        parent: Any = snapshot.parent
        return cls(
            id=snapshot.id,
            name=snapshot.name,
            parent=parent if parent is None or isinstance(parent, str) else parent.id,
            created=snapshot.created,
            live=snapshot.live,
            ram_bytes=snapshot.ram_bytes,
            disk_bytes=snapshot.disk_bytes,
            description=snapshot.description or "",
            here=snapshot.here if here is None else here,
            thumbnail=_thumbnail(snapshot),
            machine=snapshot.machine_name if machine is None else machine,
            kind=snapshot.kind,
        )

    @property
    def size(self) -> int:
        """Bytes of RAM and disk together."""
        return (self.ram_bytes or 0) + (self.disk_bytes or 0)

    def to_json(self) -> dict[str, Any]:
        """Return the node without its picture; sizes in bytes."""
        return {
            "id": self.id,
            "name": self.name,
            "kind": self.kind,
            "machine": self.machine,
            "parent": self.parent,
            "created": self.created.isoformat() if self.created else None,
            "live": self.live,
            "ram_bytes": self.ram_bytes,
            "disk_bytes": self.disk_bytes,
            "size": self.size,
            "description": self.description,
            "here": self.here,
        }


def _thumbnail(snapshot: Snapshot) -> bytes | None:
    try:
        png = snapshot.png
    except (VMLabError, OSError):
        return None  # a lost picture must not hide the tree
    return smaller(png) if png else None


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


@dataclass(frozen=True)
class Line:
    """One row of the drawing.

    Attributes
    ----------
    lane
        Where its dot is, from 0.
    passing
        Lanes whose line goes through the whole row.
    up, down
        Whether a line comes from above, and whether one goes on below, in its own lane.
    joins
        The lane of the parent from which a curve comes, for the first row of a side branch.
    """

    node: Node
    lane: int
    passing: tuple[int, ...]
    up: bool
    down: bool
    joins: int | None = None


def layout(nodes: list[Node]) -> list[Line]:
    """Put the nodes into rows and lanes; parents that are not among them make their children roots."""
    known = {node.id for node in nodes}
    children: dict[str | None, list[Node]] = {}
    for node in nodes:
        children.setdefault(node.parent if node.parent in known else None, []).append(node)
    leads_here: set[str] = set()
    by_id = {node.id: node for node in nodes}
    marker = PRESENT if PRESENT in by_id else next((n.id for n in nodes if n.here), None)
    while marker in by_id and marker not in leads_here:  # the second test ends a damaged store's circle
        leads_here.add(marker)
        marker = by_id[marker].parent  # None ends the loop

    lines: list[Line] = []
    # Iterative: a tree may be deeper than Python's recursion limit.
    stack: list[tuple[Node, int, tuple[int, ...], bool, int | None]] = []
    stack += [(root, 0, (), False, None) for root in reversed(_ordered(children.get(None, []), leads_here))]
    seen: set[str] = set()
    while stack:
        node, lane, passing, up, joins = stack.pop()
        if node.id in seen:
            continue
        seen.add(node.id)
        below = _ordered(children.get(node.id, []), leads_here)
        lines.append(Line(node, lane, passing, up, bool(below), joins))
        if not below:
            continue
        *sides, main = below
        # Pushed in reverse: the side branches come first, while the main line passes beside them.
        stack.append((main, lane, passing, True, None))
        stack += [(side, lane + 1, (*passing, lane), False, lane) for side in reversed(sides)]
    return lines


def _ordered(nodes: list[Node], leads_here: set[str]) -> list[Node]:
    """Return siblings by time, the one that leads to the present (or else the newest) last."""

    def key(node: Node) -> tuple[bool, float, str]:
        stamp = node.created.timestamp() if node.created else float("inf")
        return (node.id in leads_here, stamp, node.id)

    return sorted(nodes, key=key)


class SnapshotTree(View):
    """The snapshots of a machine and its present, drawn as a tree."""

    label = "snapshot tree"

    def __init__(self, machine: Machine) -> None:
        self.machine = machine.name
        self.state = str(machine.state)
        self.can_undo = bool(machine.can_undo)
        here, root = machine.here, machine.root
        self.here = here.id if here is not None else None
        snapshots = machine.snapshots
        if root is not None and all(root.id != s.id for s in snapshots):
            snapshots = [root, *snapshots]
        # The root may be another machine's, or an image's: it keeps its own name.
        self.nodes = [
            Node.of(
                s,
                here=s.id == self.here,
                machine=None if root is not None and s.id == root.id else self.machine,
            )
            for s in snapshots
        ]
        self.taken = datetime.now().astimezone()
        present = Node(id=PRESENT, name=self.machine, parent=self.here)
        self.lines = layout([*self.nodes, present])

    def __len__(self) -> int:
        return len(self.nodes)

    def _origin(self, node: Node) -> str:
        """Return where a root comes from, if it is not a snapshot of this machine."""
        if node.kind == "ready":
            return f"image {node.machine}"
        return f"of {node.machine}" if node.machine != self.machine else ""

    def to_json(self) -> dict[str, Any]:
        """Return the machine, where it is, and its snapshots."""
        return {
            "machine": self.machine,
            "state": self.state,
            "here": self.here,
            "can_undo": self.can_undo,
            "snapshots": [node.to_json() for node in self.nodes],
        }

    def _notes(self, prefix: str) -> list[str]:
        notes = []
        if all(node.kind == "ready" for node in self.nodes):
            notes.append(f"No snapshots yet. Take one: {prefix}snapshot {self.machine} NAME")
        if self.can_undo:
            notes.append(f"The present before the last revert is kept: {prefix}undo {self.machine}")
        return notes

    def body(self) -> str:
        """Return the HTML of the tree."""
        lanes = max((line.lane for line in self.lines), default=0) + 1
        columns = [
            ("", "g"),
            ("", ""),
            ("Snapshot", ""),
            ("Taken", ""),
            ("RAM", "n"),
            ("Disk", "n"),
            ("", ""),
        ]
        rows = [self._row(line, lanes) for line in self.lines]
        # The first cell is the drawing; the row's header is the name, for screen readers.
        head = "".join(
            f'<th scope="col" class="{kind}">{page.esc(title)}</th>' if title else "<td></td>"
            for title, kind in columns
        )
        notes = "".join(f'<p class="note">{page.esc(note)}</p>' for note in self._notes("%vm "))
        return (
            f'<table><caption class="head">{page.esc(self.machine)}</caption>'
            f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
            f'{notes}<p class="note">as of {self.taken:%H:%M:%S}</p>'
        )

    def _row(self, line: Line, lanes: int) -> str:
        graph = f'<td class="g" aria-hidden="true" style="--w:{lanes * LANE + 8}px">{_graph(line)}</td>'
        node = line.node
        if node.id == PRESENT:
            return (
                f'<tr class="bare" aria-current="true">{graph}<td></td>'
                f'<th scope="row" colspan="5">{state_html(self.state)}'
                f'<span class="pill ok">you are here</span></th></tr>'
            )
        picture = ""
        if node.thumbnail:
            picture = page.picture(node.thumbnail, alt=f"screen at {node.name}", kind="thumb")
        ram = units.size(node.ram_bytes) if node.live else "–"
        kind = (
            '<span class="pill brand" title="with RAM, devices and CPU: goes on where it was">live</span>'
            if node.live
            else '<span class="pill dim" title="disk only: boots">disk</span>'
        )
        when = page.moment(node.created) if node.created else ""
        where = self._origin(node)
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
        for line in self.lines:
            node = line.node
            graph = text_graph(line)
            if node.id == PRESENT:
                _, _, colour, _, _ = STATES.get(self.state, STATES["off"])
                table.add_row(
                    Text.assemble(
                        (graph, "bright_black"),
                        (units.clean(f"{self.state}, you are here"), f"bold {colour}"),
                    )
                )
                continue
            table.add_row(
                Text.assemble(
                    (graph, "bright_black"),
                    (units.clean(node.name), "bold"),
                    f" {units.clean(self._origin(node))}".rstrip(),
                ),
                Text(units.ago(node.created) if node.created else ""),
                Text(units.absolute(node.created) if node.created else "", style="bright_black"),
                Text(units.size(node.ram_bytes) if node.live else "–"),
                Text(units.size(node.disk_bytes)),
                Text(units.clean(node.description)),
            )
        notes = [Text(units.clean(note), style="bright_black") for note in self._notes("")]
        return Group(Text(units.clean(self.machine), style="bold"), table, *notes)


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
