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
from vmlab.guest.serial import SerialLog, Typist
from vmlab.views.notes import Note

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
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
            hint=f"`%vm serial {machine.name}` shows what was written, with --send it writes",
        )
    domain = machine.domain
    if domain.state() not in ("running", "paused", "asleep"):
        raise WrongState(f"{machine.name} is not running.", hint=f"start it with `%vm start {machine.name}`")
    keys, screen = sys.stdin.fileno(), sys.stdout.fileno()
    ui.say(f"The serial line of {machine.name}; Ctrl-] leaves it.")
    log = SerialLog.of(domain)
    shown = max(0, log.position - BEFORE)
    typist = Typist()
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
                try:
                    sent = typist.type(domain, lambda: machine.open_serial(LOOK), typed)
                except VMLabError:
                    sent = 0  # not ours any more, or not there at the moment
                typed = typed[sent:]
                if leaving and not sent:
                    end = f"Left the serial line of {machine.name}."
                    break
                now = time.monotonic()
                if now - looked > ALIVE:
                    looked = now
                    if domain.state() in ("running", "paused", "asleep"):
                        alive = now
                    elif now - alive > REVERT:
                        break
    finally:
        typist.close()
    return Note(f"\n{end}", machine=machine.name)


def _write(screen: int, data: bytes) -> None:
    while data:
        data = data[os.write(screen, data) :]
