"""The snapshot tree: who has one, who is in one, and what it says. How it is drawn is in :mod:`vmlab.views.tree`.

The tree is laid out like a revision graph: a line of snapshots without branches goes straight down in one
lane, so twenty snapshots in a row do not move twenty steps to the right. The branch that leads to the
present keeps the left lane; the others come first, each one lane to the right of where it leaves.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vmlab.errors import VMLabError
from vmlab.render.shown import Shown, view_of

#: The id of the row that stands for the present.
PRESENT = "\0present"


class InTree(Protocol):
    """A node of a tree: a snapshot."""

    @property
    def id(self) -> str: ...  # noqa: D102 - as in Snapshot
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def machine_name(self) -> str: ...  # noqa: D102
    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def parent(self) -> InTree | None: ...  # noqa: D102
    @property
    def created(self) -> dt.datetime: ...  # noqa: D102
    @property
    def live(self) -> bool: ...  # noqa: D102
    @property
    def ram_bytes(self) -> int: ...  # noqa: D102
    @property
    def disk_bytes(self) -> int: ...  # noqa: D102
    @property
    def description(self) -> str: ...  # noqa: D102
    @property
    def here(self) -> bool: ...  # noqa: D102
    @property
    def png(self) -> bytes | None: ...  # noqa: D102


class HasTree(Protocol):
    """What has snapshots in a tree, and a present that stands on one of them: a machine."""

    @property
    def name(self) -> str: ...  # noqa: D102 - as in Machine
    @property
    def state(self) -> str: ...  # noqa: D102
    @property
    def can_undo(self) -> bool: ...  # noqa: D102
    @property
    def here(self) -> InTree | None: ...  # noqa: D102
    @property
    def root(self) -> InTree | None: ...  # noqa: D102
    @property
    def snapshots(self) -> Sequence[InTree]: ...  # noqa: D102


@dataclass(frozen=True)
class Node:
    """One snapshot, as the tree shows it; ``png`` is its screen."""

    id: str
    name: str
    parent: str | None
    created: dt.datetime | None = None
    live: bool = False
    ram_bytes: int | None = None
    disk_bytes: int | None = None
    description: str = ""
    here: bool = False
    png: bytes | None = None
    machine: str = ""
    kind: str = "snapshot"
    """``snapshot``, ``ready`` (the booted state of an image), ``undo``, or ``damaged``: it can only be forgotten."""

    @classmethod
    def of(cls, snapshot: InTree, *, here: bool | None = None, machine: str | None = None) -> Node:
        """Read ``snapshot``; ``here`` and ``machine`` save looking for what the caller knows."""
        parent = snapshot.parent
        return cls(
            id=snapshot.id,
            name=snapshot.name,
            parent=parent.id if parent is not None else None,
            created=snapshot.created,
            live=snapshot.live,
            ram_bytes=snapshot.ram_bytes,
            disk_bytes=snapshot.disk_bytes,
            description=snapshot.description or "",
            here=snapshot.here if here is None else here,
            png=_png(snapshot),
            machine=snapshot.machine_name if machine is None else machine,
            kind=snapshot.kind,
        )

    @property
    def size(self) -> int:
        """Bytes of RAM and disk together."""
        return (self.ram_bytes or 0) + (self.disk_bytes or 0)

    def to_json(self) -> dict[str, Any]:
        """Return the node without its screen; sizes in bytes."""
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


def _png(snapshot: InTree) -> bytes | None:
    try:
        return snapshot.png
    except (VMLabError, OSError):
        return None  # a lost picture must not hide the tree


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


class Tree(Shown):
    """The snapshots of a machine and its present, as they were when it was asked.

    Attributes
    ----------
    machine, state, can_undo
        Of whom it is, what that was doing, and whether its last revert can be taken back.
    here
        The id of the snapshot that the present stands on.
    nodes
        The snapshots; first the one that the tree starts from, if it is there.
    lines
        The rows of the drawing, the present among them.
    taken
        When it was asked.
    """

    def __init__(self, owner: HasTree) -> None:
        self.machine = owner.name
        self.state = str(owner.state)
        self.can_undo = bool(owner.can_undo)
        here, root = owner.here, owner.root
        self.here = here.id if here is not None else None
        snapshots = list(owner.snapshots)
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
        self.taken = dt.datetime.now().astimezone()
        present = Node(id=PRESENT, name=self.machine, parent=self.here)
        self.lines = layout([*self.nodes, present])

    def __len__(self) -> int:
        return len(self.nodes)

    def __repr__(self) -> str:
        return f"<Tree of {self.machine}: {len(self)} snapshots>"

    def __str__(self) -> str:
        return view_of(self).text()

    def origin(self, node: Node) -> str:
        """Return where a root comes from, if it is not a snapshot of this machine; else nothing."""
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
