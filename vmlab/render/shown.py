"""How the objects that people hold show themselves at the end of a cell: mixed into their classes."""

from __future__ import annotations

from typing import Any


class Shown:
    """Shows itself as HTML in a notebook and as text in IPython's terminal; drawn only when it is looked at."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # IPython takes the nearest class that has this or a __repr__; ours have a __repr__ of their own.
        cls._repr_pretty_ = Shown._repr_pretty_  # type: ignore[method-assign]

    def _repr_html_(self) -> str:
        from vmlab.render import html

        return html(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        from vmlab.render import as_view

        made = as_view(self)
        if made is None:
            printer.text(repr(self))
        else:
            made._repr_pretty_(printer, cycle)
