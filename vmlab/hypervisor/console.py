"""What the Jupyter server and the web console both know of consoles: where a screen is, and why there is none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vmlab.errors import BadName, NotFound, VMLabError, WrongState

if TYPE_CHECKING:
    from vmlab.hypervisor.domain import Domain

#: Why a WebSocket to a machine is closed, in codes that the page can explain.
UNKNOWN, NOT_RUNNING, GONE, NO_LIBVIRT = 4404, 4409, 4410, 4503


def close_code(error: VMLabError) -> int:
    """Return the code that tells a page why it cannot have the machine's screen or serial line."""
    if isinstance(error, NotFound | BadName):
        return UNKNOWN
    return NOT_RUNNING if isinstance(error, WrongState) else NO_LIBVIRT


def lives(state: str) -> bool:
    """Whether a machine in that state has a QEMU, and with it what it shows."""
    return state in ("running", "paused", "asleep", "crashed")


def screen_socket(domain: Domain, state: str) -> Path:
    """Return the UNIX socket of a machine's screen. It is another one after each start, so ask each time.

    Raises
    ------
    WrongState
        It does not run, or has no screen.
    """
    path = domain.vnc_socket if lives(state) else None
    if path is None:
        raise WrongState(f"{domain.name} has no screen." if lives(state) else f"{domain.name} is {state}.")
    return path
