"""vmlab: whole computers as notebook variables.

>>> import vmlab
>>> lab = vmlab.Lab()
>>> web = lab.create("web", "tiny")

In a notebook, ``%load_ext vmlab`` gives ``%vm`` and ``%%vm``; on the command line there is ``vmlab``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from vmlab.render import shown as _shown
from vmlab.render import surface as _surface

if TYPE_CHECKING:
    from vmlab.guest.agent import CommandResult
    from vmlab.guest.screen import Screenshot
    from vmlab.host.limits import Limits
    from vmlab.image import Image
    from vmlab.lab import Lab
    from vmlab.machine import Machine, Snapshot
    from vmlab.machines.usage import Usage
    from vmlab.scenario import Scenario, State
    from vmlab.study.diff import Diff
    from vmlab.study.timeline import Timeline

# Who wants to hear what threads and clean-up have to say sets handlers of their own; nobody else is told.
logging.getLogger(__name__).addHandler(logging.NullHandler())

__version__ = "0.1.0"

# Loaded when first used: Jupyter imports this package only to ask what it offers, and must not pay for libvirt.
_WHERE = {
    "CommandResult": "vmlab.guest.agent",
    "Diff": "vmlab.study.diff",
    "Image": "vmlab.image",
    "Lab": "vmlab.lab",
    "Limits": "vmlab.host.limits",
    "Machine": "vmlab.machine",
    "Scenario": "vmlab.scenario",
    "Screenshot": "vmlab.guest.screen",
    "Snapshot": "vmlab.machine",
    "State": "vmlab.scenario",
    "Timeline": "vmlab.study.timeline",
    "Usage": "vmlab.machines.usage",
    "errors": "vmlab.errors",
}

__all__ = [
    "CommandResult",
    "Diff",
    "Image",
    "Lab",
    "Limits",
    "Machine",
    "Scenario",
    "Screenshot",
    "Snapshot",
    "State",
    "Timeline",
    "Usage",
    "errors",
    "load_ipython_extension",
    "unload_ipython_extension",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'vmlab' has no attribute '{name}'")
    module = import_module(_WHERE[name])
    return module if name == "errors" else getattr(module, name)


def _draw(thing: Any) -> Any:
    from vmlab.views import dispatch

    return dispatch.as_view(thing)


def _show_consoles(machines: Sequence[Machine], kind: _surface.Kind, options: dict[str, Any]) -> Any:
    # Whoever calls Machine.console() may never have loaded %vm; ipywidgets is imported only in a notebook.
    from vmlab import notebook

    return notebook.consoles(machines, kind, options)


_shown.draw = _draw
_surface.surface = _show_consoles


def load_ipython_extension(shell: Any) -> None:
    """Make ``%vm`` and ``%%vm`` available: what ``%load_ext vmlab`` calls."""
    from vmlab import notebook

    notebook.load_ipython_extension(shell)


def unload_ipython_extension(shell: Any) -> None:
    """Undo it: what ``%unload_ext vmlab`` calls."""
    from vmlab import notebook

    notebook.unload_ipython_extension(shell)


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    """Name the Jupyter server extension: what the Jupyter server calls when it starts."""
    from vmlab.server.app import VMLabApp

    return [{"module": "vmlab.server.app", "app": VMLabApp}]


def _jupyter_labextension_paths() -> list[dict[str, str]]:
    """Name the JupyterLab extension's built files: what ``jupyter labextension`` asks for."""
    return [{"src": "labextension", "dest": "vmlab"}]
