"""How a scenario looks: its machines, its networks, and its states."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vmlab.render import page, units
from vmlab.render.view import View
from vmlab.views import topology
from vmlab.views.diff import DiffView
from vmlab.views.machines import MachineTable, state_html
from vmlab.views.networks import NetworkTable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vmlab.machines.usage import Usage
    from vmlab.scenario import Scenario, ScenarioDiff, State


class ScenarioView(View):
    """A scenario: what it is doing and where it stands, its machines, its networks."""

    label = "scenario"

    def __init__(self, scenario: Scenario, usage: Iterable[Usage] = ()) -> None:
        self.scenario = scenario
        found = scenario.to_json()
        self.name, self.title, self.state, self.here = (
            str(found["name"]),
            str(found["title"]),
            str(found["state"]),
            found["here"],
        )
        self.machines = MachineTable(scenario.machines, list(usage))
        self.networks = NetworkTable(scenario.networks)
        self._json = found

    @property
    def heading(self) -> str:
        """What a page of its own is called."""
        return self.title or self.name

    def to_json(self) -> dict[str, Any]:
        """Return what is known of it."""
        return self._json

    def _stands(self) -> str:
        return f"stands on {self.here}" if self.here else "has no state yet"

    def body(self) -> str:
        """Return the HTML."""
        title = f" {page.esc(self.title)}" if self.title else ""
        head = (
            f'<p style="margin:0 0 6px 8px"><b>{page.esc(self.name)}</b>{title} '
            f'{state_html(self.state)} <span class="dim">{page.esc(self._stands())}</span></p>'
        )
        return head + self._picture() + self.machines.body()

    def _picture(self) -> str:
        if not len(self.networks):
            return ""
        boxes = [
            topology.Box(row.name, row.name.removeprefix(f"{self.name}."), row.state, row.image)
            for row in self.machines.rows
        ]
        return topology.picture(self.title or self.name, boxes, list(self.networks))

    def rich(self) -> RenderableType:
        """Return the same for a terminal."""
        from rich.console import Group
        from rich.text import Text

        head = Text(units.clean(self.name), style="bold")
        if self.title:
            head.append(f"  {units.clean(self.title)}", style="not bold")
        head.append(f"  {self.state}, {units.clean(self._stands())}", style="not bold")
        parts: list[RenderableType] = [head, self.machines.rich()]
        if len(self.networks):
            parts.append(self.networks.rich())
        return Group(*parts)


class ScenarioDiffView(View):
    """What differs in each machine of a scenario."""

    label = "comparison"

    def __init__(self, diff: ScenarioDiff) -> None:
        self.diff = diff
        self.views = {name: DiffView(found) for name, found in diff.machines.items()}

    def to_json(self) -> dict[str, Any]:
        """Return the comparison of each machine."""
        return self.diff.to_json()

    def body(self) -> str:
        """Return the comparisons, one below the other."""
        return "".join(view.body() for view in self.views.values())

    def rich(self) -> RenderableType:
        """Return the same for a terminal."""
        from rich.console import Group
        from rich.text import Text

        parts: list[RenderableType] = []
        for view in self.views.values():
            parts += [Text(""), view.rich()] if parts else [view.rich()]
        return Group(*parts)


class StateCard(View):
    """A state of a scenario, in a sentence or two."""

    label = "state"

    def __init__(self, state: State) -> None:
        self.state = state

    def to_json(self) -> dict[str, Any]:
        """Return what is known of it."""
        return self.state.to_json()

    def words(self) -> str:
        """Return what it is."""
        state, members = self.state, len(self.state.members)
        said = f"{state.machine_name}@{state.name}: {members} machine{'s' * (members > 1)} at one moment"
        if state.pause_ms is not None:
            said += f"; they stood still for {state.pause_ms:.0f} ms at most"
        if state.skew_ms is not None and members > 1:
            said += f", stopped within {state.skew_ms:.1f} ms of each other"
        if state.frames:
            said += f"; {state.frames} frame{'s' * (state.frames > 1)} under way"
        ram, disk = state.ram_bytes, state.disk_bytes
        said += f"; {units.size(ram)} of RAM and {units.size(disk)} of disks changed."
        return f"{said} {state.description}".rstrip()

    def body(self) -> str:
        """Return the HTML."""
        return f'<p style="margin:0;padding-left:8px">{page.esc(self.words())}</p>'

    def rich(self) -> RenderableType:
        """Return the same for a terminal."""
        from rich.text import Text

        return Text(units.clean(self.words()))
