"""Machines: the table with what each really takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, overload

from vmlab.errors import VMLabError
from vmlab.render import page, units
from vmlab.render.view import View

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vmlab.machine import Machine, Usage

MIB = 1024 * 1024

#: state -> (class in HTML, hollow dot, colour in a terminal, sign in a terminal, what it means)
STATES: dict[str, tuple[str, bool, str, str, str]] = {
    "running": ("ok", False, "green", "●", "running"),
    "paused": ("warn", False, "yellow", "◐", "paused: start goes on, nothing runs meanwhile"),
    "suspended": ("brand", True, "blue", "○", "off, with its RAM kept: start goes on where it was"),
    "off": ("dim", True, "bright_black", "○", "off"),
    "crashed": ("bad", False, "red", "✖", "crashed"),
}


def state_html(state: str) -> str:
    """Return a coloured dot and the word."""
    kind, hollow, _, _, meaning = STATES.get(state, STATES["off"])
    return (
        f'<span class="st {kind}{" hollow" if hollow else ""}" title="{page.esc(meaning)}">'
        f"<span>{page.esc(state)}</span></span>"
    )


@dataclass(frozen=True)
class MachineRow:
    """What the table shows of one machine, as it was when it was asked."""

    name: str
    state: str
    image: str = ""
    vcpus: int | None = None
    memory: int | None = None
    """Bytes of RAM that the guest has."""
    cpu_percent: float | None = None
    pss: int | None = None
    """Bytes of the host's RAM it really takes: what it alone has, plus its part of what it shares."""
    disk: int | None = None
    """Bytes on disk of its present."""
    here: str | None = None
    forwards: tuple[tuple[int, int], ...] = ()
    snapshots: int | None = None
    """Bytes on disk of its snapshots."""
    trouble: str = ""

    @classmethod
    def of(cls, machine: Machine, usage: Usage | None = None) -> MachineRow:
        """Read ``machine``; if it cannot be read the row says why, so that it does not hide the others."""
        try:
            usage = usage or machine.usage()
            here = machine.here
            alive = usage.state in ("running", "paused", "crashed")
            return cls(
                name=machine.name,
                state=usage.state,
                image=machine.image,
                vcpus=machine.vcpus,
                memory=usage.memory,
                cpu_percent=usage.cpu_percent if alive else None,
                pss=usage.memory_pss if alive else None,
                disk=usage.disk,
                snapshots=usage.snapshots,
                here=here.name if here is not None else None,
                forwards=tuple((int(host), int(guest)) for host, guest in machine.forwards),
            )
        except VMLabError as error:
            return cls(name=machine.name, state="unknown", trouble=error.message)

    @property
    def share(self) -> float | None:
        """How much of its RAM the guest really takes, 0 to 1."""
        return self.pss / self.memory if self.pss is not None and self.memory else None

    def to_json(self) -> dict[str, Any]:
        """Return the row; sizes in bytes."""
        return {
            "name": self.name,
            "state": self.state,
            "image": self.image,
            "vcpus": self.vcpus,
            "memory": self.memory,
            "memory_pss": self.pss,
            "cpu_percent": self.cpu_percent,
            "disk": self.disk,
            "snapshots": self.snapshots,
            "here": self.here,
            "forwards": [{"host": a, "guest": b} for a, b in self.forwards],
            **({"trouble": self.trouble} if self.trouble else {}),
        }


class MachineTable(View, Sequence["Machine"]):
    """Machines as a list that shows as a table.

    Parameters
    ----------
    usages
        What they take, if it was measured for all at once; else each is measured, which takes a moment.

    Examples
    --------
    ``for machine in table: ...``, ``table[0]``, ``table["web"]`` and ``len(table)`` work as expected.
    """

    empty = "No machines yet."
    hint = "create web"
    label = "machines"

    def __init__(self, machines: Iterable[Machine], usages: Iterable[Usage] = (), *, title: str = "") -> None:
        self.machines = list(machines)
        self.title = title
        known = {usage.name: usage for usage in usages}
        self.rows = [MachineRow.of(m, known.get(m.name)) for m in self.machines]
        self.taken = datetime.now().astimezone()

    @overload
    def __getitem__(self, index: int | str) -> Machine: ...
    @overload
    def __getitem__(self, index: slice) -> list[Machine]: ...
    def __getitem__(self, index: int | str | slice) -> Machine | list[Machine]:
        if isinstance(index, str):
            for machine in self.machines:
                if machine.name == index:
                    return machine
            raise KeyError(index)
        return self.machines[index]

    def __len__(self) -> int:
        return len(self.machines)

    def __iter__(self) -> Iterator[Machine]:
        return iter(self.machines)

    def to_json(self) -> list[dict[str, Any]]:
        """Return one dict for each machine."""
        return [row.to_json() for row in self.rows]

    def _total(self, name: str) -> float | None:
        known = [value for row in self.rows if (value := getattr(row, name)) is not None]
        return sum(known) if known else None

    def body(self) -> str:
        """Return the HTML of the table."""
        if not self.rows:
            return (
                f'<p class="note">{page.esc(self.empty)} Make one: <code>%vm {page.esc(self.hint)}</code></p>'
            )
        columns = [
            ("Machine", ""),
            ("State", ""),
            ("Image", ""),
            ("CPU", "n"),
            ("Memory taken", ""),
            ("Disk", "n"),
            ("Snapshots", "n"),
            ("You are here", ""),
            ("Ports", ""),
        ]
        foot = ""
        if len(self.rows) > 1:
            foot = (
                f'<tr><th scope="row">{len(self.rows)} machines</th><td></td><td></td>'
                f'<td class="n">{units.percent(self._total("cpu_percent"))}</td>'
                f"<td>{units.size(self._total('pss'))}</td>"
                f'<td class="n">{units.size(self._total("disk"))}</td>'
                f'<td class="n">{units.size(self._total("snapshots") or None)}</td><td></td><td></td></tr>'
            )
        table = page.table(columns, [self._row(row) for row in self.rows], caption=self.title, foot=foot)
        return f'{table}<p class="note">as of {self.taken:%H:%M:%S}</p>'

    @staticmethod
    def _row(row: MachineRow) -> str:
        memory = '<span class="dim">–</span>'
        if row.pss is not None:
            words = f"{units.size(row.pss)} of {units.size(row.memory)} taken, QEMU itself included"
            # More than the guest has: QEMU itself weighs more than a small guest.
            beyond = " + QEMU" if row.share is not None and row.share > 1 else ""
            memory = (
                f'{units.size(row.pss)} <span class="dim small">of {units.size(row.memory)}{beyond}</span>'
                f"{page.bar(row.share, label=words, kind='')}"
            )
        elif row.memory:
            memory = f'<span class="dim">– of {units.size(row.memory)}</span>'
        ports = ", ".join(
            f'<a href="http://localhost:{host}" target="_blank" rel="noopener" '
            f'title="port {guest} of the guest">{host}→{guest}</a>'
            for host, guest in row.forwards
        )
        state = state_html(row.state)
        if row.trouble:
            state += f' <span class="bad small">⚠ {page.esc(row.trouble)}</span>'
        return page.row(
            page.esc(row.name),
            state,
            (page.esc(row.image), "dim"),
            (units.percent(row.cpu_percent), "n"),
            memory,
            (units.size(row.disk), "n"),
            (units.size(row.snapshots) if row.snapshots else '<span class="dim">–</span>', "n"),
            page.esc(row.here) if row.here else '<span class="dim">–</span>',
            ports,
        )

    def rich(self) -> RenderableType:
        """Return a table for a terminal."""
        from rich.console import Group
        from rich.text import Text

        from vmlab.render import terminal

        if not self.rows:
            return Text(f"{self.empty} Make one: {self.hint}")
        table = terminal.table(
            "MACHINE", "STATE", "IMAGE", ">CPU", ">TAKEN", ">OF", ">DISK", ">SNAPSHOTS", "HERE", "PORTS"
        )
        for row in self.rows:
            _, _, colour, sign, _ = STATES.get(row.state, STATES["off"])
            table.add_row(
                Text(units.clean(row.name), style="bold"),
                Text(f"{sign} {units.clean(row.state)}", style=colour),
                Text(units.clean(row.image)),
                Text(units.percent(row.cpu_percent)),
                Text(units.size(row.pss)),
                Text(units.size(row.memory)),
                Text(units.size(row.disk)),
                Text(units.size(row.snapshots) if row.snapshots else "–"),
                Text(units.clean(row.here) if row.here else "–"),
                Text(", ".join(f"{a}→{b}" for a, b in row.forwards)),
            )
        troubles = [
            Text(units.clean(f"{row.name}: {row.trouble}"), style="red") for row in self.rows if row.trouble
        ]
        return Group(table, *troubles)
