"""Live consoles: who can show one here. The objects ask this, and know nothing of notebooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from vmlab.errors import UsageError

if TYPE_CHECKING:
    from vmlab.machine import Machine

Kind = Literal["screen", "serial"]

#: Shows the consoles of some machines and returns them; None where no notebook would show it. The package sets it
#: (``vmlab/__init__.py``), since the notebook side lies above all that calls this.
surface: Callable[[list[Machine], Kind, dict[str, Any]], Any | None] | None = None


def show(machines: list[Machine], kind: Kind, **options: Any) -> Any:
    """Return live consoles that show themselves under the cell.

    Raises
    ------
    UsageError
        This is no notebook.
    """
    shown = surface(machines, kind, options) if surface is not None else None
    if shown is None:
        words = " ".join(machine.name for machine in machines) + (" --serial" if kind == "serial" else "")
        raise UsageError(
            "A live console needs a notebook.",
            hint=f"`vmlab console {words}` in a terminal shows it; screenshot() takes a picture",
        )
    return shown
