"""The serial line of a machine: one line, any number of pages that watch it and type on it.

QEMU copies all that the guest writes into a log file, also while nobody looks. That file is what pages are shown: each
reads on from its own place as fast as it can, so a slow one neither loses anything nor fills memory, and to look takes
the line from nobody. Only when somebody types, the line itself is opened, and let go when the last page is closed;
``virsh console`` and :meth:`vmlab.Machine.send_serial` can take it over at any time, and the next key takes it back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from asyncinotify import Inotify, Mask
from tornado.websocket import WebSocketClosedError

from vmlab.errors import HypervisorError, VMLabError
from vmlab.server.service import Service
from vmlab.server.sockets import GONE, NOT_RUNNING, MachineSocket

if TYPE_CHECKING:
    from vmlab.hypervisor.domain import SerialStream
    from vmlab.lab import Lab

#: Bytes from the end of the log that a page gets first, and the most that are read at once.
SCROLLBACK = PIECE = 64 << 10
#: Bytes sent to the guest at once, what the queue of its port holds, and seconds between: it loses what it has no room
#: for. Messages of pages that may wait for that.
TYPED, PAUSE, WAITING = 16, 0.01, 64
#: Seconds between two looks at what the line echoes: it comes by the log, too, and only has to be taken away.
DRAIN = 0.05
#: How often the line is tried, and seconds between: during a revert it is not there, or not yet ours to open.
TRIES, AGAIN = 30, 0.1


class SerialLine:
    """The line of one machine, for all pages.

    Parameters
    ----------
    service
        The lab and its threads.
    name, log
        The machine, and the file that QEMU logs its line to.
    """

    def __init__(self, service: Service, name: str, log: Path) -> None:
        self.name, self.log = name, log
        self._service = service
        self.viewers: set[SerialSocket] = set()
        self._grown = asyncio.Event()
        self._typed: asyncio.Queue[bytes] = asyncio.Queue(WAITING)
        self._tasks: list[asyncio.Task[None]] = []

    def join(self, viewer: SerialSocket) -> None:
        """Watch the line for one more page."""
        self.viewers.add(viewer)
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._watch()), asyncio.create_task(self._write())]

    def leave(self, viewer: SerialSocket) -> None:
        """Let a page go, and with the last one the line."""
        self.viewers.discard(viewer)
        if not self.viewers:
            for task in self._tasks:
                task.cancel()
            self._tasks = []
            if self._service.serial_lines.get(self.name) is self:
                del self._service.serial_lines[self.name]

    @property
    def grown(self) -> asyncio.Event:
        """Set when the log changes after this was asked for."""
        return self._grown

    async def _watch(self) -> None:
        # The folder, not the file: it may not be there yet, or be replaced.
        with Inotify() as inotify:
            inotify.add_watch(self.log.parent, Mask.MODIFY | Mask.CREATE | Mask.MOVED_TO | Mask.ONLYDIR)
            self._tell()
            async for event in inotify:
                if event.name is not None and event.name.name == self.log.name:
                    self._tell()

    def _tell(self) -> None:
        # Whoever waits gets the old event; whoever comes later waits for the next.
        event, self._grown = self._grown, asyncio.Event()
        event.set()

    async def type(self, data: bytes) -> None:
        """Send to the guest what a page typed; waits where the guest does not read as fast."""
        await self._typed.put(data)

    async def _write(self) -> None:
        stream: SerialStream | None = None
        pid: int | None = None
        read = self._service.read

        def step(lab: Lab, data: bytes) -> int:
            nonlocal stream, pid
            try:
                while stream is not None and stream.recv(4096):
                    pass
                machine = lab.machine(self.name)
                domain = machine._domain()
                # Reverted: another QEMU, another line. The stream learns of it somewhat later, and would take what is
                # typed meanwhile and lose it.
                if stream is not None and (stream.ended or domain.pid != pid):
                    stream.close()
                    stream = None
                if not data:
                    return 0
                if stream is None:
                    stream = machine.open_serial()
                    pid = domain.pid
                sent = stream.try_send(data)
            except VMLabError:
                # Taken over by somebody else, or its QEMU is gone.
                if stream is not None:
                    stream.close()
                stream = None
                raise
            return sent

        try:
            while True:
                data = b""
                with contextlib.suppress(TimeoutError):
                    data = await asyncio.wait_for(self._typed.get(), None if stream is None else DRAIN)
                tries = TRIES if data else 1
                while tries:
                    try:
                        sent = await read(lambda lab, piece=data[:TYPED]: step(lab, piece))  # type: ignore[misc]
                    except VMLabError:
                        tries -= 1
                        await asyncio.sleep(AGAIN)
                        continue
                    data = data[sent:]
                    if not data:
                        break
                    await asyncio.sleep(PAUSE if sent else DRAIN)
        finally:
            if stream is not None:
                stream.close()


def log_of(lab: Lab, name: str) -> tuple[Path, str]:
    """Return a machine's serial log, and its state."""
    machine = lab.machine(name)
    return machine.folder / "serial.log", machine.state


class SerialSocket(MachineSocket):
    """``consoles/<machine>/serial``: first the end of the log, then what the guest writes; and what the page types.

    Of a machine that does not run it sends the end of the log, and closes with 4409. It closes with 4410 when QEMU goes
    away.
    """

    _line: SerialLine | None = None
    _alive = False

    async def connect(self, name: str) -> None:
        """Join the machine's line."""
        log, state = await self.service.read(lambda lab: log_of(lab, name))
        self._alive, self._state = state in ("running", "paused", "crashed"), state
        if self.ws_connection is None:
            return
        lines = self.service.serial_lines
        self._line = lines.setdefault(name, SerialLine(self.service, name, log))
        self._line.join(self)

    async def carry(self) -> None:
        """Send the page the log from near its end, and what is added to it."""
        line = self._line
        if line is None:
            return
        loop = asyncio.get_running_loop()
        place: int | None = None
        try:
            while True:
                # Before reading, so that nothing that comes after it is missed.
                grown = line.grown
                data, place = await loop.run_in_executor(self.service.readers, _read, line.log, place)
                if data:
                    await self.write_message(data, binary=True)
                elif self._alive:
                    await grown.wait()
                else:
                    self.end(NOT_RUNNING, f"{line.name} is {self._state}")
                    return
        except WebSocketClosedError:
            return
        except OSError as error:
            raise HypervisorError(f"The serial log of {line.name} cannot be read.", system=error) from error

    def gone(self) -> None:
        """Close it: QEMU has ended."""
        self.end(GONE, "the guest's QEMU has ended")

    async def on_message(self, message: str | bytes) -> None:
        """Type what the page sends."""
        self.touched()
        if self._line is not None and self._alive:
            await self._line.type(message.encode() if isinstance(message, str) else message)

    def disconnect(self) -> None:
        """Leave the line."""
        line, self._line = self._line, None
        if line is not None:
            line.leave(self)


def _read(log: Path, place: int | None) -> tuple[bytes, int]:
    """Return a piece of the log from ``place`` on (None: from near its end), and the place behind it."""
    try:
        with log.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            begin = max(size - SCROLLBACK, 0) if place is None else place
            if begin > size:
                # Begun anew.
                begin = 0
            file.seek(begin)
            data = file.read(PIECE)
    except FileNotFoundError:
        return b"", 0
    if place is None and begin:
        # Not from the middle of a line, where an escape sequence may have begun.
        cut = data.find(b"\n") + 1
        return data[cut:], begin + len(data)
    return data, begin + len(data)
