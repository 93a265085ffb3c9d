"""How results look: in a notebook (HTML), in a terminal (rich), for programs (JSON). Nothing here knows Jupyter.

The objects that people hold call :func:`html` from ``_repr_html_``, and :func:`text` from ``_repr_pretty_``
if they like; the command line calls :func:`text` and :func:`to_json`. Imports are lazy, since a script that
only drives machines draws nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmlab.render.view import View

__all__ = ["as_view", "html", "text", "to_json"]


def _machine(machine: Any) -> View:
    from vmlab.render.machines import MachineTable

    return MachineTable([machine])


def _lab(lab: Any) -> View:
    from vmlab.render.machines import MachineTable

    machines = lab.machines
    return MachineTable(machines, lab.usage())


def _snapshot(snapshot: Any) -> View:
    from vmlab.render.results import SnapshotCard

    return SnapshotCard(snapshot)


def _tree(tree: Any) -> View:
    from vmlab.render.tree import SnapshotTree

    return SnapshotTree(tree.machine)


def _image(image: Any) -> View:
    from vmlab.render.images import ImageTable

    return ImageTable([image])


def _usage(usage: Any) -> View:
    from vmlab.render.host import UsageView

    return UsageView(usage)


def _limits(limits: Any) -> View:
    from vmlab.render.host import LimitsView

    return LimitsView(limits)


def _collected(collected: Any) -> View:
    from vmlab.render.results import CollectedNote

    return CollectedNote(collected)


def _verification(verification: Any) -> View:
    from vmlab.render.results import VerificationView

    return VerificationView(verification)


def _result(result: Any) -> View:
    from vmlab.render.results import CommandView

    return CommandView(result)


def _screenshot(shot: Any) -> View:
    from vmlab.render.results import Picture

    return Picture(shot.png, machine=str(getattr(shot, "machine", "") or "guest"))


def _diff(diff: Any) -> View:
    from vmlab.render.diff import DiffView

    return DiffView(diff)


def _timeline(timeline: Any) -> View:
    from vmlab.render.diff import TimelineView

    return TimelineView(timeline)


#: By the name of the class: the classes stand above this module and are not imported here.
_VIEWS: dict[str, Callable[[Any], View]] = {
    "Lab": _lab,
    "Machine": _machine,
    "Snapshot": _snapshot,
    "Tree": _tree,
    "Image": _image,
    "Usage": _usage,
    "Limits": _limits,
    "Collected": _collected,
    "Verification": _verification,
    "CommandResult": _result,
    "Screenshot": _screenshot,
    "Diff": _diff,
    "Timeline": _timeline,
}


def as_view(thing: Any) -> View | None:
    """Return how ``thing`` is shown; None if it is nothing of ours."""
    from vmlab.render.view import View

    if isinstance(thing, View):
        return thing
    for kind in type(thing).__mro__:
        if make := _VIEWS.get(kind.__name__):
            return make(thing)
    if isinstance(thing, list | tuple) and thing and all(type(item).__name__ == "Machine" for item in thing):
        from vmlab.render.machines import MachineTable

        return MachineTable(thing)
    return None


def html(thing: Any) -> str:
    """Return self-contained HTML."""
    made = as_view(thing)
    if made is not None:
        return made.html()
    from vmlab.render import page

    return page.page(f"<pre>{page.esc(thing)}</pre>")


def text(thing: Any, *, colour: bool = False, width: int | None = None) -> str:
    """Return what a terminal shows; without escape sequences unless ``colour``."""
    made = as_view(thing)
    return made.text(colour=colour, width=width) if made is not None else str(thing)


def to_json(thing: Any) -> Any:
    """Return plain values that the ``json`` module can write."""
    made = as_view(thing)
    if made is not None:
        return made.to_json()
    if hasattr(thing, "to_json"):
        return thing.to_json()
    if isinstance(thing, Mapping):
        return {str(key): to_json(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple | set | frozenset):
        return [to_json(item) for item in thing]
    return str(thing) if isinstance(thing, Path | bytes) else thing
