"""What happens inside a guest: commands and files, keys and pointer, screen, serial line, identity.

Everything here stands on the small interface `GuestDomain`, which ``vmlab.hypervisor`` provides and which a plain QEMU
with a monitor socket can provide too. Nothing in this package knows libvirt, the store or Jupyter.

=========== =========================================================================
module      subject
=========== =========================================================================
`agent`     run commands and scripts through the guest agent, output as it comes
`transfer`  copy files and folders in and out through the guest agent
`keys`      press keys, type text, move and click the pointer (needs no agent)
`screen`    pictures of the screen, and waiting for one (needs no agent)
`serial`    read, follow and answer the serial line (needs no agent)
`identity`  after a fork: another hostname, machine ID and MAC; set the clock
`wait`      wait for anything, with evidence when it does not happen
`lastwords` what it showed and wrote last, in the error about it
=========== =========================================================================
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

__all__ = ["GuestDomain", "GuestEvent", "GuestEvents", "SerialStream"]


class SerialStream(Protocol):
    """The open serial line of a guest.

    Attributes
    ----------
    ended
        The guest's QEMU is gone, as `recv` has found out; what is sent from now on is lost.
    """

    ended: bool

    def recv(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes that have come, without waiting for more than a moment; empty if none."""

    def try_send(self, data: bytes, /) -> int:
        """Send what there is room for, and return how many bytes that was; 0 until the guest has read."""

    def close(self) -> None:
        """Close the line; the guest does not notice."""


class GuestEvent(Protocol):
    """An event of QEMU's monitor."""

    @property
    def name(self) -> str:
        """Its name: ``RESET``, ``SHUTDOWN``, ``VSERPORT_CHANGE`` ..."""

    @property
    def data(self) -> dict[str, Any]:
        """What it says."""


class GuestEvents(Protocol):
    """The events of a guest since they are listened to."""

    def next(self, timeout: float, /) -> GuestEvent | None:
        """Return the next event, or None if none comes within ``timeout`` seconds."""


class GuestDomain(Protocol):
    """A guest as the functions of this package see it.

    Attributes
    ----------
    name
        The machine's name, for messages.
    """

    name: str

    @property
    def pid(self) -> int | None:
        """The process number of its QEMU, another one after each start and revert; None if there is none."""

    @property
    def serial_log(self) -> Path:
        """The file to which the hypervisor copies all that the guest writes on its serial line."""

    def qmp(self, execute: str, /, **arguments: Any) -> Any:
        """Run a QMP command and return its value; underscores in argument names become dashes."""

    def agent(self, execute: str, /, *, timeout: int = 5, **arguments: Any) -> Any:
        """Run a command of the guest agent and return its value.

        Raises
        ------
        AgentTimeout
            The agent did not answer within ``timeout`` seconds.
        AgentError
            It answered with an error, or cannot be reached.
        """

    def is_running(self) -> bool:
        """Return whether the guest's CPU is running (not off, paused or crashed)."""

    def state(self) -> str:
        """Return the state in one word: ``running``, ``paused``, ``off``, ``crashed``."""

    def overtaken(self) -> str | None:
        """Return what was done to the machine since this was made, and ended what was under way in its guest.

        In words that follow its name: ``was reverted to 'clean' by process 123``; None if nothing was, or nobody knows.
        """

    def events(self) -> AbstractContextManager[GuestEvents]:
        """Listen to the events of QEMU's monitor while the block runs."""

    def open_serial(self) -> SerialStream:
        """Open the serial line."""
