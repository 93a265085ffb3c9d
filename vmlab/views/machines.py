"""Machines: the table with what each really takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, overload

from vmlab.errors import NotFound, RecordDamaged, VMLabError
from vmlab.language import verb
from vmlab.render import page, units
from vmlab.render.view import View

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vmlab.machine import Machine
    from vmlab.machines.usage import Usage

MIB = 1024 * 1024

#: state -> (class in HTML, hollow dot, colour in a terminal, sign in a terminal, what it means)
STATES: dict[str, tuple[str, bool, str, str, str]] = {
    "running": ("ok", False, "green", "●", "running"),
    "paused": ("warn", False, "yellow", "◐", "paused: start goes on, nothing runs meanwhile"),
    "asleep": ("warn", False, "yellow", "◐", "the guest has put itself to sleep: resume wakes it"),
    "suspended": ("brand", True, "blue", "○", "off, with its RAM kept: start goes on where it was"),
    "off": ("dim", True, "bright_black", "○", "off"),
    "mixed": ("warn", False, "yellow", "◐", "its machines are doing different things"),
    "crashed": ("bad", False, "red", "✖", "crashed"),
    "damaged": (
        "bad",
        True,
        "red",
        "✖",
        "its record cannot be read: it can be mended or deleted, and nothing else",
    ),
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
    guest: int | None = None
    """The part of it that is the guest's RAM."""
    qemu: int | None = None
    """The rest of it: QEMU itself, with its devices."""
    disk: int | None = None
    """Bytes on disk of its present."""
    here: str | None = None
    forwards: tuple[tuple[int, int], ...] = ()
    snapshots: int | None = None
    """Bytes on disk of its snapshots."""
    why: str | None = None
    """Why it is in that state; of one that runs, which ports are not where they were asked for."""
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
                guest=usage.memory_guest if alive else None,
                qemu=usage.memory_qemu if alive else None,
                disk=usage.disk,
                snapshots=usage.snapshots,
                here=here.name if here is not None else None,
                forwards=tuple((int(host), int(guest)) for host, guest in machine.forwards),
                why=machine.why,
            )
        except VMLabError as error:
            hint = f" Next: {error.next_step}" if error.hint else ""
            known = isinstance(error, RecordDamaged | NotFound)
            state = machine.state if known else "unknown"
            return cls(name=machine.name, state=state, trouble=f"{error.message}{hint}")

    @property
    def share(self) -> float | None:
        """How much of its RAM the guest really takes, 0 to 1."""
        return self.guest / self.memory if self.guest is not None and self.memory else None

    def to_json(self) -> dict[str, Any]:
        """Return the row; sizes in bytes."""
        return {
            "name": self.name,
            "state": self.state,
            "why": self.why,
            "image": self.image,
            "vcpus": self.vcpus,
            "memory_size": self.memory,
            "memory_pss": self.pss,
            "memory_guest": self.guest,
            "memory_qemu": self.qemu,
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
            return f'<p class="note">{page.esc(self.empty)} Make one: <code>{page.esc(verb(self.hint))}</code></p>'
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
            size, whole, qemu = units.size(row.guest), units.size(row.memory), units.size(row.qemu)
            words = f"{size} of the guest's {whole} taken, and {qemu} by QEMU itself: {units.size(row.pss)}"
            memory = (
                f'{size} <span class="dim small">of {whole} + {qemu} QEMU</span>'
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
        if row.why:
            state += f' <span class="dim small">{page.esc(row.why)}</span>'
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
            return Text(f"{self.empty} Make one: {verb(self.hint)}")
        table = terminal.table(
            "MACHINE",
            "STATE",
            "IMAGE",
            ">CPU",
            ">RAM",
            ">OF",
            ">+QEMU",
            ">DISK",
            ">SNAPSHOTS",
            "HERE",
            "PORTS",
        )
        for row in self.rows:
            _, _, colour, sign, _ = STATES.get(row.state, STATES["off"])
            table.add_row(
                Text(units.clean(row.name), style="bold"),
                Text(f"{sign} {units.clean(row.state)}", style=colour),
                Text(units.clean(row.image)),
                Text(units.percent(row.cpu_percent)),
                Text(units.size(row.guest)),
                Text(units.size(row.memory)),
                Text(units.size(row.qemu)),
                Text(units.size(row.disk)),
                Text(units.size(row.snapshots) if row.snapshots else "–"),
                Text(units.clean(row.here) if row.here else "–"),
                Text(", ".join(f"{a}→{b}" for a, b in row.forwards)),
            )
        reasons = [
            Text(units.clean(f"{row.name} is {row.state}: {row.why}"), style="bright_black")
            for row in self.rows
            if row.why
        ]
        troubles = [
            Text(units.clean(f"{row.name}: {row.trouble}"), style="red") for row in self.rows if row.trouble
        ]
        return Group(table, *reasons, *troubles)
