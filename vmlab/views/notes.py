"""Small results: a sentence that says what was done, and names for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vmlab.render import page, units
from vmlab.render.view import View

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vmlab.machine import Machine
    from vmlab.scenario import Scenario
    from vmlab.store.collect import Collected


class Note(View):
    """One sentence that says what was done, with its facts for programs."""

    def __init__(self, text: str, **facts: Any) -> None:
        self.words = text
        self.facts = facts

    def rich(self) -> RenderableType:
        """Return the sentence."""
        from rich.text import Text

        return Text(units.clean(self.words))

    def body(self) -> str:
        """Return the sentence."""
        return f'<p style="margin:0;padding-left:8px">{page.esc(self.words)}</p>'

    def to_json(self) -> dict[str, Any]:
        """Return the facts."""
        return dict(self.facts)


class CollectedNote(Note):
    """What a collection freed, in a sentence."""

    def __init__(self, collected: Collected) -> None:
        facts = collected.to_json()
        pieces = [
            f"{count} {name if count != 1 else name.removesuffix('s')}"
            for name, count in facts.items()
            if name not in ("bytes", "later") and count
        ]
        text = (
            f"Freed {units.size(collected.bytes)}: {words(pieces)}."
            if pieces
            else "There was nothing to free."
        )
        if collected.later:
            text += f" {units.size(collected.later)} more go by themselves within two minutes."
        super().__init__(text, **facts)


# Output of guests
# -----------------------------------------------------------------------------------------------------


def machine_names(machines: Sequence[Machine | Scenario]) -> str:
    """Return names for a sentence: ``web``, ``web and db``, ``a, b and c``."""
    return words([m.name for m in machines])


def words(names: list[str]) -> str:
    """Return names for a sentence."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "nothing"
