"""How the objects that people hold show themselves at the end of a cell: mixed into their classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vmlab.render.view import View

#: Makes the view of an object, None for what is none of ours. The package sets it (``vmlab/__init__.py``), since how
#: objects look (:mod:`vmlab.views`) lies above them.
draw: Callable[[Any], View | None] | None = None


def view_of(thing: Any) -> View:
    """Return how one of our objects is shown."""
    made = draw(thing) if draw is not None else None
    if made is None:
        raise TypeError(f"nothing says how a {type(thing).__name__} is shown")
    return made


class Shown:
    """Shows itself as HTML in a notebook and as text in IPython's terminal; drawn only when it is looked at."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # IPython takes the nearest class that has this or a __repr__; ours have a __repr__ of their own.
        cls._repr_pretty_ = Shown._repr_pretty_  # type: ignore[method-assign]

    def _repr_html_(self) -> str:
        return view_of(self).html()

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        view_of(self)._repr_pretty_(printer, cycle)
