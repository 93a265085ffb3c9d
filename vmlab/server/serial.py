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
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from asyncinotify import Inotify, Mask

from vmlab.errors import HypervisorError, VMLabError, WrongState
from vmlab.guest.serial import Typist
from vmlab.hypervisor.console import GONE, NO_LIBVIRT, NOT_RUNNING, lives
from vmlab.server.service import Service
from vmlab.server.sockets import MachineSocket

if TYPE_CHECKING:
    from vmlab.hypervisor.domain import SerialStream
    from vmlab.lab import Lab

#: Bytes from the end of the log that a page gets first, and the most that are read at once.
SCROLLBACK = PIECE = 64 << 10
#: Bytes that may wait to be typed when still more comes: more than anybody types to a guest that does not read.
WAITING = 1 << 20
#: Seconds between two looks at what the line echoes: it comes by the log, too, and only has to be taken away.
DRAIN = 0.05
#: Seconds for which the line is tried, between two tries, and that one waits for whoever works on the machine: during
#: a revert it is not there, or not yet ours to open.
PATIENCE, AGAIN, OPENING = 3.0, 0.1, 1.0


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
        # What blocks is done in threads, by one at a time.
        self._typist, self._typing = Typist(), threading.Lock()
        self._left = False
        self._typed: asyncio.Queue[bytes] = asyncio.Queue()
        self._waiting = 0
        self._tasks: list[asyncio.Task[None]] = []

    def join(self, viewer: SerialSocket) -> None:
        """Watch the line for one more page."""
        self.viewers.add(viewer)
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._watch()), asyncio.create_task(self._write())]
            for task in self._tasks:
                task.add_done_callback(self._ended)

    def leave(self, viewer: SerialSocket) -> None:
        """Let a page go, and with the last one the line."""
        self.viewers.discard(viewer)
        if not self.viewers:
            for task in self._tasks:
                task.cancel()
            self._tasks = []
            self._left = True
            self._service.typists.submit(self._close)
            if self._service.serial_lines.get(self.name) is self:
                del self._service.serial_lines[self.name]

    def gone(self) -> None:
        """Tell the pages that QEMU has ended."""
        for viewer in tuple(self.viewers):
            viewer.gone()

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

    def type(self, data: bytes) -> bool:
        """Send to the guest what a page typed, in its time; False: so much waits that the guest cannot be reading."""
        if self._waiting > WAITING:
            return False
        self._waiting += len(data)
        self._typed.put_nowait(data)
        return True

    async def _write(self) -> None:
        while True:
            data = b""
            with contextlib.suppress(TimeoutError):
                data = await asyncio.wait_for(self._typed.get(), DRAIN if self._typist.has_line else None)
            await self._send(data)
            self._waiting -= len(data)

    async def _send(self, data: bytes) -> None:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                sent = await self._service.type(partial(self._type, data=data))
            except VMLabError:
                if not data or time.monotonic() > end:
                    return
                await asyncio.sleep(AGAIN)
                continue
            end = time.monotonic() + PATIENCE
            data = data[sent:]
            if not data:
                return
            if not sent:
                await asyncio.sleep(DRAIN)

    def _type(self, lab: Lab, data: bytes) -> int:
        machine = lab.machine(self.name)

        def opened() -> SerialStream:
            stream = machine.open_serial(timeout=OPENING)
            if self._left:
                # The last page has gone meanwhile.
                stream.close()
                raise WrongState(f"Nobody types on the serial line of {self.name} any more.")
            return stream

        with self._typing:
            return self._typist.type(machine._domain(), opened, b"" if self._left else data)

    def _close(self) -> None:
        with self._typing:
            self._typist.close()

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._service.log.error("vmlab: the serial line of %s is given up", self.name, exc_info=error)
            for viewer in tuple(self.viewers):
                viewer.end(NO_LIBVIRT, "the serial line cannot be followed; the server's log shows why")


def log_of(lab: Lab, name: str) -> tuple[Path, str]:
    """Return a machine's serial log, and its state."""
    machine = lab.machine(name)
    return machine.folder / "serial.log", machine.state


class SerialSocket(MachineSocket):
    """``consoles/<machine>/serial``: first the end of the log, then what the guest writes; and what the page types.

    Of a machine that does not run it sends the end of the log, and closes with 4409; so it does when more is typed than
    the machine reads. It stays open over a revert, and closes with 4410 when the machine is stopped or deleted.
    """

    _line: SerialLine | None = None
    _alive = False

    async def connect(self, name: str) -> None:
        """Join the machine's line."""
        log, state = await self.service.read(lambda lab: log_of(lab, name))
        self._alive, self._state = lives(state), state
        if self._over.done():
            return
        lines = cast("dict[str, SerialLine]", self.service.serial_lines)
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
        except OSError as error:
            raise HypervisorError(f"The serial log of {line.name} cannot be read.", system=error) from error

    def gone(self) -> None:
        """Close it: QEMU has ended, and no other follows."""
        self.end(GONE, "the guest's QEMU has ended")

    async def on_message(self, message: str | bytes) -> None:
        """Type what the page sends."""
        self.touched()
        if self._line is None or not self._alive:
            return
        if not self._line.type(message.encode() if isinstance(message, str) else message):
            self.end(NOT_RUNNING, "the machine does not read its serial line")

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
