"""Which view shows an object: chosen by its class, never by the name of that."""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch
from pathlib import Path
from typing import Any

from vmlab.compare.screen import ScreenDiff
from vmlab.guest.agent import CommandResult
from vmlab.guest.screen import Screenshot
from vmlab.host.limits import Limits
from vmlab.image import Image
from vmlab.lab import Lab
from vmlab.machine import Machine, Snapshot
from vmlab.machines.networks import Network
from vmlab.machines.proof import Verification
from vmlab.machines.usage import Usage
from vmlab.network.capture import Capture
from vmlab.render import page
from vmlab.render.view import View
from vmlab.scenario import Scenario, ScenarioDiff, State
from vmlab.store.collect import Collected
from vmlab.study.diff import Diff
from vmlab.study.timeline import Timeline
from vmlab.tree import Tree
from vmlab.views.capture import CaptureView
from vmlab.views.commands import CommandView
from vmlab.views.compare_screen import ScreensView
from vmlab.views.diff import DiffView
from vmlab.views.host import LimitsView, UsageView
from vmlab.views.images import ImageTable
from vmlab.views.machines import MachineTable
from vmlab.views.networks import NetworkTable
from vmlab.views.notes import CollectedNote
from vmlab.views.scenarios import ScenarioDiffView, ScenarioView, StateCard
from vmlab.views.screenshot import Picture
from vmlab.views.snapshots import SnapshotCard, VerificationView
from vmlab.views.timeline import TimelineView
from vmlab.views.tree import SnapshotTree

__all__ = ["as_view", "html", "text", "to_json"]


@singledispatch
def as_view(thing: Any) -> View | None:
    """Return how ``thing`` is shown; None if it is nothing of ours."""
    return thing if isinstance(thing, View) else None


@as_view.register
def _(machine: Machine) -> View:
    return MachineTable([machine])


@as_view.register
def _(lab: Lab) -> View:
    return MachineTable(lab.machines, lab.usage())


@as_view.register
def _(snapshot: Snapshot) -> View:
    return SnapshotCard(snapshot)


@as_view.register
def _(tree: Tree) -> View:
    return SnapshotTree(tree)


@as_view.register
def _(image: Image) -> View:
    return ImageTable([image])


@as_view.register
def _(network: Network) -> View:
    return NetworkTable([network])


@as_view.register
def _(scenario: Scenario) -> View:
    return ScenarioView(scenario)


@as_view.register
def _(diff: ScenarioDiff) -> View:
    return ScenarioDiffView(diff)


@as_view.register
def _(state: State) -> View:
    return StateCard(state)


@as_view.register
def _(capture: Capture) -> View:
    return CaptureView(capture)


@as_view.register
def _(usage: Usage) -> View:
    return UsageView(usage)


@as_view.register
def _(limits: Limits) -> View:
    return LimitsView(limits)


@as_view.register
def _(collected: Collected) -> View:
    return CollectedNote(collected)


@as_view.register
def _(verification: Verification) -> View:
    return VerificationView(verification)


@as_view.register
def _(result: CommandResult) -> View:
    return CommandView(result)


@as_view.register
def _(shot: Screenshot) -> View:
    return Picture(shot.png, machine=shot.machine or "guest", taken=shot.taken)


@as_view.register
def _(diff: Diff) -> View:
    return DiffView(diff)


@as_view.register
def _(timeline: Timeline) -> View:
    return TimelineView(timeline)


@as_view.register
def _(screen: ScreenDiff) -> View:
    return ScreensView(screen)


@as_view.register(list)
@as_view.register(tuple)
def _(things: list[Any] | tuple[Any, ...]) -> View | None:
    return MachineTable(things) if things and all(isinstance(t, Machine) for t in things) else None


def html(thing: Any) -> str:
    """Return self-contained HTML."""
    made = as_view(thing)
    return made.html() if made is not None else page.page(f"<pre>{page.esc(thing)}</pre>")


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
