"""One snapshot, and what a restored one was compared in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from vmlab.render import page, units
from vmlab.render.view import View
from vmlab.tree import Node
from vmlab.views.tree import smaller

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vmlab.machine import Snapshot
    from vmlab.machines.proof import Verification


class VerificationView(View):
    """What a restored machine was compared in, and whether all was equal."""

    label = "verification"

    #: attribute -> (title, what is compared)
    PARTS: ClassVar = {
        "registers": ("CPU registers", "every register of every CPU"),
        "ram": ("RAM", "digest of every page"),
        "screen": ("Screen", "every pixel"),
        "files": ("Files", "the snapshot's own files, as they were written"),
        "disk_contents": ("Disks", "every byte that the guest sees, down to the image"),
    }
    SIGNS: ClassVar = {
        True: ("✓", "identical", "ok", "green"),
        False: ("✗", "different", "bad", "red"),
        None: ("–", "nothing to compare", "dim", "bright_black"),
    }

    def __init__(self, verification: Verification) -> None:
        self.verification = verification
        self.ok = verification.ok
        self.parts: dict[str, bool | None] = {name: getattr(verification, name) for name in self.PARTS}

    def words(self) -> str:
        """Return the verdict."""
        if not self.ok:
            wrong = [self.PARTS[name][0] for name, equal in self.parts.items() if equal is False]
            return f"not identical: {', '.join(wrong)}"
        rips = ", ".join(f"RIP={rip.removeprefix('0x')}" for rip in self.verification.rip)
        return f"resumed at {rips}, identical" if rips else "identical"

    def _what(self, name: str) -> str:
        title = self.PARTS[name][1]
        if name == "disk_contents" and self.verification.covered:
            return "; ".join(self.verification.covered)
        return (
            f"{title} ({units.size(self.verification.ram_bytes)})"
            if name == "ram" and self.parts[name]
            else title
        )

    def rich(self) -> RenderableType:
        """Return the verdict and a line for each part."""
        from rich.console import Group
        from rich.text import Text

        from vmlab.render import terminal

        table = terminal.table("", "", "", "")
        table.show_header = False
        for name, equal in self.parts.items():
            sign, words, _, colour = self.SIGNS[equal]
            table.add_row(
                Text(sign, style=colour),
                Text(self.PARTS[name][0]),
                Text(words, style=colour),
                Text(self._what(name)),
            )
        subject = f"{self.verification.machine}@{self.verification.snapshot}: "
        verdict = Text(units.clean(subject + self.words()), style="bold green" if self.ok else "bold red")
        return Group(
            verdict, table, *(Text(units.clean(d), style="red") for d in self.verification.differences)
        )

    def body(self) -> str:
        """Return the verdict and a table of the parts."""
        rows = []
        for name, equal in self.parts.items():
            sign, words, kind, _ = self.SIGNS[equal]
            state = f'<span class="{kind}">{sign} {words}</span>'
            rows.append(page.row(page.esc(self.PARTS[name][0]), state, (page.esc(self._what(name)), "dim")))
        subject = f"{self.verification.machine}@{self.verification.snapshot}: "
        verdict = (
            f'<p class="head"><span class="{"ok" if self.ok else "bad"}">{"✓" if self.ok else "✗"}</span> '
            f'<span class="dim">{page.esc(subject)}</span>{page.esc(self.words())}</p>'
        )
        wrong = "".join(f'<p class="note bad">{page.esc(d)}</p>' for d in self.verification.differences)
        return verdict + page.table([("Part", ""), ("", ""), ("Compared", "")], rows) + wrong

    def to_json(self) -> dict[str, Any]:
        """Return the verdict for each part."""
        return dict(self.verification.to_json())


class SnapshotCard(View):
    """One snapshot: what it holds, and for how long the guest stood still for it."""

    label = "snapshot"

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.node = Node.of(snapshot)
        self.pause_ms: float | None = getattr(snapshot, "pause_ms", None)

    def _facts(self) -> list[tuple[str, str]]:
        node = self.node
        ram = f"{units.size(node.ram_bytes)} of RAM" if node.live else "no RAM (offline)"
        holds = f"{ram}, {units.size(node.disk_bytes)} of disk"
        facts = [("holds", "nothing that can be read: it is damaged" if node.kind == "damaged" else holds)]
        if node.created:
            facts.append(("taken", units.absolute(node.created)))
        if self.pause_ms is not None:
            # Always in the same unit, since these are compared.
            facts.append(("guest stood still", f"{self.pause_ms:.0f} ms"))
        if node.description:
            facts.append(("description", node.description))
        return facts

    def rich(self) -> RenderableType:
        """Return the name and the facts on a line."""
        from rich.text import Text

        facts = ", ".join(
            words if key in ("holds", "description") else f"{key} {words}" for key, words in self._facts()
        )
        return Text.assemble(
            (units.clean(f"{self.node.machine}@{self.node.name}"), "bold"), f"  {units.clean(facts)}"
        )

    def body(self) -> str:
        """Return picture and facts."""
        node = self.node
        facts = "".join(f"<dt>{page.esc(k)}</dt><dd>{page.esc(v)}</dd>" for k, v in self._facts())
        small = smaller(node.png) if node.png else None
        shot = page.picture(small, alt=f"screen at {node.name}", kind="thumb") if small else ""
        kind = "live" if node.live else "disk"
        name = f'<span class="dim">{page.esc(node.machine)}@</span>{page.esc(node.name)}'
        return (
            f'<div style="display:flex;gap:12px;align-items:flex-start;padding-left:8px">{shot}<div>'
            f'<p class="head">{name}<span class="pill {"brand" if node.live else "dim"}">{kind}</span></p>'
            f"<dl>{facts}</dl></div></div>"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the snapshot's facts."""
        more = {} if self.pause_ms is None else {"pause_ms": self.pause_ms}
        return {**self.node.to_json(), **more}
