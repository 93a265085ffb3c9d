"""Live consoles: who can show one here. The objects ask this, and know nothing of notebooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

from vmlab.errors import UsageError

Kind = Literal["screen", "serial"]

#: In the environment of kernels that a Jupyter server with vmlab starts: its pages have our extension.
SERVED = "VMLAB_JUPYTER_SERVER"


class Named(Protocol):
    """What has a console: a machine."""

    @property
    def name(self) -> str:
        """Its name."""


#: Shows the consoles of some machines and returns them; None where no notebook would show it. The package sets it
#: (``vmlab/__init__.py``), since the notebook side lies above all that calls this.
surface: Callable[[Sequence[Any], Kind, dict[str, Any]], Any | None] | None = None


def show(machines: Sequence[Named], kind: Kind, **options: Any) -> Any:
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
