"""The screen of a machine: a WebSocket that carries its VNC connection."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from vmlab.errors import HypervisorError, WrongState
from vmlab.hypervisor.console import GONE, screen_socket
from vmlab.server.sockets import MachineSocket

if TYPE_CHECKING:
    from pathlib import Path

    from vmlab.lab import Lab

#: The most bytes to take from the guest at once; more is slower, because it no longer fits into a CPU's cache.
PIECE = 128 << 10
#: The close code for text where bytes belong (RFC 6455).
NOT_BINARY = 1003
#: The first bytes of what a person does: a key, the pointer, a text to paste, a key as QEMU's extension has it.
DONE_BY_PERSON = (4, 5, 6, 255)


def socket_path(lab: Lab, name: str) -> Path:
    """Return the UNIX socket of a machine's screen; see :func:`vmlab.hypervisor.console.screen_socket`.

    Raises
    ------
    NotFound
        There is no such machine.
    """
    machine = lab.machine(name)
    return screen_socket(machine._domain(), machine.state)


class ConsoleSocket(MachineSocket):
    """``consoles/<machine>/vnc``: the bytes of RFB (RFC 6143), as QEMU sends and takes them.

    It closes with 4410 in the moment in which QEMU goes away: the machine was stopped, reverted, or started anew. With
    1003 it closes when the page sends text.
    """

    _guest: socket.socket | None = None

    async def connect(self, name: str) -> None:
        """Connect to QEMU's socket."""
        path = await self.service.read(lambda lab: socket_path(lab, name))
        guest = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        guest.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(guest, str(path))
        except (FileNotFoundError, ConnectionError) as error:
            guest.close()
            # It ended between the two.
            raise WrongState(f"{name} does not run.") from error
        except OSError as error:
            guest.close()
            raise HypervisorError(f"The screen of {name} cannot be reached.", system=error) from error
        if self._over.done():
            # The page has gone meanwhile.
            guest.close()
            return
        self._guest = guest

    async def carry(self) -> None:
        """Send the page what QEMU sends, each piece when the one before is on its way."""
        if self._guest is None:
            return
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(self._guest, PIECE):
                await self.write_message(data, binary=True)
        except OSError:
            # Reset: QEMU was killed.
            pass
        self.end(GONE, "the guest's QEMU has ended")

    async def on_message(self, message: str | bytes) -> None:
        """Send QEMU what the page sends; the next message is not read before QEMU has taken this one."""
        if isinstance(message, str):
            self.end(NOT_BINARY, "RFB is binary")
            return
        if self._guest is None:
            return
        # Not the rest: a page asks for pictures as long as it is open.
        if message and message[0] in DONE_BY_PERSON:
            self.touched()
        try:
            await self.unless_over(asyncio.get_running_loop().sock_sendall(self._guest, message))
        except OSError:
            self.end(GONE, "the guest's QEMU has ended")

    def disconnect(self) -> None:
        """Close QEMU's socket."""
        guest, self._guest = self._guest, None
        if guest is not None:
            # First, because the loop knows it by its number, which the next connection may get.
            loop = asyncio.get_running_loop()
            loop.remove_reader(guest)
            loop.remove_writer(guest)
            guest.close()
