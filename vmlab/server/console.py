"""The screen of a machine: a WebSocket that carries its VNC connection."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from tornado.websocket import WebSocketClosedError

from vmlab.errors import HypervisorError, WrongState
from vmlab.server.sockets import GONE, MachineSocket

if TYPE_CHECKING:
    from pathlib import Path

    from vmlab.lab import Lab

#: The most bytes to take from the guest at once; more is slower, because it no longer fits into a CPU's cache.
PIECE = 128 << 10
#: The close code for text where bytes belong (RFC 6455).
NOT_BINARY = 1003


def socket_path(lab: Lab, name: str) -> Path:
    """Return the UNIX socket of a machine's screen. It is another one after each start, so ask each time.

    Raises
    ------
    NotFound
        There is no such machine.
    WrongState
        It does not run, or has no screen.
    """
    machine = lab.machine(name)
    state = machine.state
    path = machine._domain().vnc_socket if state in ("running", "paused", "crashed") else None
    if path is None:
        raise WrongState(f"{name} is {state}." if state != "running" else f"{name} has no screen.")
    return path


class ConsoleSocket(MachineSocket):
    """``consoles/<machine>/vnc``: the bytes of RFB (RFC 6143), as QEMU sends and takes them.

    It closes with 4410 in the moment in which QEMU goes away: the machine was stopped, reverted, or started anew.
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
        if self.ws_connection is None:
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
        except WebSocketClosedError:
            return
        except OSError:
            # Reset: QEMU was killed.
            pass
        self.end(GONE, "the guest's QEMU has ended")

    async def on_message(self, message: str | bytes) -> None:
        """Send QEMU what the page sends; the next message is not read before QEMU has taken this one."""
        self.touched()
        if isinstance(message, str):
            self.end(NOT_BINARY, "RFB is binary")
            return
        if self._guest is None:
            return
        try:
            await asyncio.get_running_loop().sock_sendall(self._guest, message)
        except OSError:
            self.end(GONE, "the guest's QEMU has ended")

    def disconnect(self) -> None:
        """Close QEMU's socket."""
        guest, self._guest = self._guest, None
        if guest is not None:
            # Wakes a sendall that waits for QEMU; closing alone would leave it waiting on a number that is used again.
            guest.shutdown(socket.SHUT_RDWR)
            asyncio.get_running_loop().call_soon(guest.close)
