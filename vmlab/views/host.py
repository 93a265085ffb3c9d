"""What the host has, what the machines take of it, and what must stay free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmlab.render import page, units
from vmlab.render.view import View

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vmlab.host.limits import Limits
    from vmlab.machines.usage import Usage


@dataclass(frozen=True)
class Meter:
    """Something finite: how much of it is taken.

    Attributes
    ----------
    used, total
        Bytes, or a count if ``unit`` is not ``bytes``.
    reserve
        What vmlab leaves free, in the same unit.
    """

    name: str
    used: float
    total: float
    reserve: float = 0
    unit: str = "bytes"
    detail: str = ""

    @property
    def share(self) -> float | None:
        """Part that is taken, 0 to 1."""
        return self.used / self.total if self.total else None

    def words(self, value: float) -> str:
        """Return a value with its unit."""
        if self.unit == "bytes":
            return units.size(value)
        return units.percent(value) if self.unit == "%" else f"{value:g}"

    def to_json(self) -> dict[str, Any]:
        """Return the figures."""
        return {"used": self.used, "total": self.total, "reserve": self.reserve, "unit": self.unit}


@dataclass(repr=False)
class HostView(View):
    """Bars of what is taken, and the limits in words."""

    meters: Sequence[Meter]
    limits: dict[str, Any] = field(default_factory=dict)
    sentences: Sequence[str] = ()
    label = "usage and limits"

    def rich(self) -> RenderableType:
        """Return bars for a terminal."""
        from rich.console import Group
        from rich.text import Text

        from vmlab.render import terminal

        table = terminal.table("", "", ">TAKEN", ">OF", ">KEPT FREE", "")
        for meter in self.meters:
            table.add_row(
                Text(meter.name, style="bold"),
                terminal.bar(meter.share, width=24),
                Text(meter.words(meter.used)),
                Text(meter.words(meter.total)),
                Text(meter.words(meter.reserve) if meter.reserve else ""),
                Text(units.clean(meter.detail), style="bright_black"),
            )
        return Group(table, *(Text(units.clean(s)) for s in self.sentences))

    def body(self) -> str:
        """Return bars in a table."""
        rows = []
        for meter in self.meters:
            words = f"{meter.words(meter.used)} of {meter.words(meter.total)} taken"
            rows.append(
                page.row(
                    page.esc(meter.name),
                    (page.bar(meter.share, label=words), "wide"),
                    (meter.words(meter.used), "n"),
                    (meter.words(meter.total), "n"),
                    (meter.words(meter.reserve) if meter.reserve else "", "n"),
                    (page.esc(meter.detail), "dim"),
                )
            )
        columns = [("Host", ""), ("", ""), ("Taken", "n"), ("Of", "n"), ("Kept free", "n"), ("", "")]
        notes = "".join(f'<p class="note">{page.esc(s)}</p>' for s in self.sentences)
        return page.table(columns, rows) + notes

    def to_json(self) -> dict[str, Any]:
        """Return figures and limits."""
        return {"host": {meter.name.lower(): meter.to_json() for meter in self.meters}, "limits": self.limits}


class LimitsView(HostView):
    """What machines take of the host, and what must stay free."""

    def __init__(self, limits: Limits) -> None:
        count = limits.running
        taken = f"machines take {units.size(limits.memory_taken)} of it"
        stored = f"the store takes {units.size(limits.disk_taken)} of it"
        parts = [
            f"{units.size(size)} {what}"
            for size, what in (
                (limits.disk_folded, "is for forks to share memory, and goes when space is short"),
                (limits.disk_freeing, "is being freed"),
            )
            if size
        ]
        if parts:
            stored += f", of which {' and '.join(parts)}"
        at_most = (
            "any number of machines may run"
            if limits.max_running is None
            else (f"at most {limits.max_running} machines may run")
        )
        super().__init__(
            meters=[
                Meter(
                    "RAM",
                    limits.memory_total - limits.memory_available,
                    limits.memory_total,
                    limits.reserve_memory,
                    detail=taken,
                ),
                Meter(
                    "Disk",
                    limits.disk_total - limits.disk_free,
                    limits.disk_total,
                    limits.reserve_disk,
                    detail=stored,
                ),
            ],
            sentences=[f"{count} running on {limits.cpus} CPUs; {at_most} at once."],
        )
        self.limits = limits.to_json()

    def to_json(self) -> dict[str, Any]:
        """Return the figures by name; sizes in bytes."""
        return self.limits


class UsageView(View):
    """What one machine takes now."""

    label = "usage"

    def __init__(self, usage: Usage) -> None:
        self.usage = usage

    def _facts(self) -> list[tuple[str, str]]:
        usage = self.usage
        return [
            (
                "CPU",
                f"{units.percent(usage.cpu_percent)}, {units.duration(usage.cpu_seconds)} since it started",
            ),
            ("memory taken", units.size(usage.memory_pss)),
            ("by the guest", f"{units.size(usage.memory_guest)} of its {units.size(usage.memory)}"),
            ("by QEMU itself", units.size(usage.memory_qemu)),
            ("of it alone", units.size(usage.memory_private)),
            ("shared", units.size(usage.memory_shared)),
            ("disk", f"{units.size(usage.disk)}, and {units.size(usage.snapshots)} for snapshots"),
        ]

    def rich(self) -> RenderableType:
        """Return a line for each figure."""
        from rich.text import Text

        from vmlab.render import terminal

        table = terminal.table("", "")
        table.show_header = False
        for key, words in self._facts():
            table.add_row(Text(key, style="bright_black"), Text(words))
        return table

    def body(self) -> str:
        """Return a list of the figures."""
        return (
            "<dl>"
            + "".join(f"<dt>{page.esc(k)}</dt><dd>{page.esc(v)}</dd>" for k, v in self._facts())
            + "</dl>"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the figures; sizes in bytes."""
        return self.usage.to_json()
