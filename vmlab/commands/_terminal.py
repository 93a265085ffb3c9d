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
from vmlab.guest.serial import SerialLog
from vmlab.render.results import Note

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
    from vmlab.hypervisor.domain import SerialStream
    from vmlab.machine import Machine

#: The key that leaves: Ctrl-], as in ``virsh console`` and telnet.
LEAVE = b"\x1d"
#: Bytes of the log shown at the beginning, so that one sees where one is.
BEFORE = 4096
#: Seconds between two looks for output, and between two looks whether the machine still runs.
LOOK, ALIVE = 0.02, 1.0
#: Seconds within which a machine that is being reverted is there again.
REVERT = 3.0


@contextlib.contextmanager
def _raw(terminal: int) -> Iterator[None]:
    """Pass every key on as it is, Ctrl-C too."""
    before = termios.tcgetattr(terminal)
    try:
        tty.setraw(terminal)
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
    # Opened before the log is read: a little may be seen twice, nothing is missed.
    stream: SerialStream | None = machine.open_serial()
    pid = domain.pid
    end = f"{machine.name} is not running any more."
    try:
        with _raw(keys):
            _write(screen, log.read(max(0, log.position - BEFORE)))
            looked = time.monotonic()
            while stream is not None:
                if select.select([keys], [], [], LOOK)[0]:
                    typed = os.read(keys, 1024)
                    before, leave, _ = typed.partition(LEAVE)
                    if domain.pid != pid:
                        # Reverted; the stream has not noticed yet, and would lose what it is given.
                        stream.close()
                        stream, pid = _again(machine), domain.pid
                        if stream is None:
                            break
                    stream.send(before)
                    if leave or not typed:
                        end = f"Left the serial line of {machine.name}."
                        break
                while data := stream.recv(1 << 16):
                    _write(screen, data)
                if stream.ended:
                    stream.close()
                    stream, pid = _again(machine), domain.pid
                elif time.monotonic() - looked > ALIVE:
                    looked = time.monotonic()
                    if domain.state() not in ("running", "paused"):
                        break
    finally:
        if stream is not None:
            stream.close()
    return Note(f"\n{end}", machine=machine.name)


def _again(machine: Machine) -> SerialStream | None:
    """Open the line of the next QEMU, after a revert; None if none comes."""
    end = time.monotonic() + REVERT
    while time.monotonic() < end:
        # Not there yet, or not yet ours to open.
        with contextlib.suppress(VMLabError):
            return machine.open_serial()
        time.sleep(0.1)
    return None


def _write(screen: int, data: bytes) -> None:
    while data:
        data = data[os.write(screen, data) :]
