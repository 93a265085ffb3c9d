"""A terminal becomes the serial line of a machine."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vmlab.errors import UsageError, VMLabError, WrongState
from vmlab.guest.serial import SerialLog, linger, send_piece
from vmlab.render.results import Note

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
    from vmlab.hypervisor.domain import SerialStream
    from vmlab.machine import Machine

#: The key that leaves: Ctrl-], as in ``virsh console`` and telnet.
LEAVE = b"\x1d"
#: Bytes of the log shown at the beginning, so that one sees where one is, and the most that are shown at once.
BEFORE, PIECE = 4096, 1 << 16
#: Seconds between two looks for output, and between two looks whether the machine still runs.
LOOK, ALIVE = 0.02, 1.0
#: Seconds within which a machine that is being reverted is there again.
REVERT = 3.0


@contextlib.contextmanager
def _raw(terminal: int) -> Iterator[None]:
    """Pass every key on as it is, Ctrl-C too."""
    before = termios.tcgetattr(terminal)
    try:
        # Not tty's default, which throws away what was typed since the command was started.
        tty.setraw(terminal, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def attach(machine: Machine, ui: UI) -> Note:
    """Connect standard input and output with the serial line, until Ctrl-] or until the machine goes off.

    Raises
    ------
    UsageError
        Nobody types here.
    WrongState
        The machine is off.
    """
    if sys.stdin is None or not sys.stdin.isatty() or not sys.stdout.isatty():
        raise UsageError(
            "An interactive serial line needs a terminal.",
            hint=f"`vmlab serial {machine.name}` shows what was written, with --send it writes",
        )
    domain = machine.domain
    if domain.state() not in ("running", "paused"):
        raise WrongState(f"{machine.name} is not running.", hint=f"start it with `%vm start {machine.name}`")
    keys, screen = sys.stdin.fileno(), sys.stdout.fileno()
    ui.say(f"The serial line of {machine.name}; Ctrl-] leaves it.")
    log = SerialLog.of(domain)
    shown = max(0, log.position - BEFORE)
    line = _Line(machine)
    typed, sent, leaving = b"", 0, False
    looked = alive = time.monotonic()
    end = f"{machine.name} is not running any more."
    try:
        with _raw(keys):
            while True:
                if shown > log.position:
                    shown = 0  # begun anew
                # A piece a turn: between any two the keys are heard, however much the guest writes.
                data = log.read(shown, PIECE)
                shown += len(data)
                _write(screen, data)
                if not leaving and select.select([keys], [], [], 0 if data or sent else LOOK)[0]:
                    new = os.read(keys, 1024)
                    before, leave, _ = new.partition(LEAVE)
                    typed += before
                    leaving = bool(leave) or not new
                sent = line.send(typed)
                typed = typed[sent:]
                if leaving and not sent:
                    end = f"Left the serial line of {machine.name}."
                    break
                now = time.monotonic()
                if now - looked > ALIVE:
                    looked = now
                    if domain.state() in ("running", "paused"):
                        alive = now
                    elif now - alive > REVERT:
                        break
    finally:
        line.close()
    return Note(f"\n{end}", machine=machine.name)


class _Line:
    """The line itself, for typing only: what the guest writes is read from the log, which disturbs nobody.

    It is opened when there is something to send, and again for the next QEMU after a revert, or when somebody else has
    taken it.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._domain = machine.domain
        self._stream: SerialStream | None = None
        self._pid: int | None = None
        self._heard = False

    def send(self, data: bytes) -> int:
        """Send a piece and return how many bytes that was; 0 while the line cannot be had or the guest has no room."""
        try:
            if self._stream is not None:
                # The echo; it is shown from the log.
                self._heard = bool(self._stream.recv(1 << 16)) or self._heard
                # Reverted; the stream may not have noticed yet, and would lose what it is given.
                if self._stream.ended or self._domain.pid != self._pid:
                    self._drop()
            if not data:
                return 0
            if self._stream is None:
                self._pid, self._heard = self._domain.pid, False
                self._stream = self._machine.open_serial(LOOK)
            return send_piece(self._stream, data)
        except VMLabError:
            # Not ours any more, or not there at the moment.
            self._drop()
            return 0

    def close(self) -> None:
        """Let go of the line when the guest has what was sent."""
        if self._stream is not None:
            with contextlib.suppress(VMLabError):
                linger(self._stream, self._heard)
        self._drop()

    def _drop(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = None


def _write(screen: int, data: bytes) -> None:
    while data:
        data = data[os.write(screen, data) :]
