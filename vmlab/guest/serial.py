r"""The serial line of a guest: what it wrote there, waiting for it, and answering. No agent is needed.

QEMU copies all that the guest writes on its serial line into a log file, also while nobody looks. Reading that file
disturbs nobody who has the line open.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from vmlab.errors import UsageError, VMLabError, WrongState
from vmlab.guest import GuestDomain, SerialStream
from vmlab.guest.wait import until

__all__ = ["SerialLog", "Typist", "panic", "read", "send", "strip_ansi", "wait_for"]

#: Bytes of the log that are looked at when lines are asked for from its end.
TAIL = 1 << 16
#: Bytes sent at once, what the queue of a 16550 port holds, and seconds between: what comes faster, a guest loses.
PIECE, PAUSE = 16, 0.01
#: Seconds to keep the line open for the guest's echo.
LINGER = 2.0
#: Pieces of what the guest writes that are taken away before more is sent.
DRAINED = 16

# ECMA-48: control sequences (CSI ... final), strings (OSC, DCS, SOS, PM, APC ... ST or BEL), character sets, two-byte
# escapes. A sequence that is cut off at the end of the text goes too.
_ANSI = re.compile(
    r"""
    \x1b\[ [0-?]* [ -/]* (?:[@-~]|\Z)
  | \x1b[\]PX^_] .*? (?:\x1b\\|\x07|\Z)
  | \x1b[ -/]+ (?:[0-~]|\Z)
  | \x1b (?:[0-~]|\Z)
  | \x9b [0-?]* [ -/]* (?:[@-~]|\Z)
    """,
    re.VERBOSE | re.DOTALL,
)
# What Linux writes when it panics, and the last that it writes before it stops for good (``kernel/panic.c``).
_PANIC = re.compile(r"Kernel panic - not syncing[^\n]*")
_PANICKED = re.compile(r"end Kernel panic - not syncing[^\n]*\s*\Z")
#: Lines of the log that a panic's words are looked for in: a dump of the stack follows them.
DUMP = 200
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_BACKSPACE = re.compile(r"[^\n\x08]\x08(?: \x08)?")


def strip_ansi(text: str) -> str:
    r"""Return a text without escape sequences and control characters, as a person would read it.

    Colours, cursor movements and window titles go; ``\r\n`` becomes a newline; a character that was rubbed out with
    backspace goes; of a line that was written over after ``\r`` the last writing stays.

    >>> strip_ansi("\x1b[1;32mok\x1b[0m\r\n10%\r20%\r\n")
    'ok\n20%\n'
    """
    text = _ANSI.sub("", text).replace("\r\n", "\n")
    while (shorter := _BACKSPACE.sub("", text)) != text:
        text = shorter
    lines = []
    for line in text.split("\n"):
        parts = [part for part in line.rstrip("\r").split("\r") if part]
        # A terminal keeps what the new writing did not reach.
        shown = ""
        for part in parts:
            shown = part + shown[len(part) :]
        lines.append(shown)
    return _CONTROL.sub("", "\n".join(lines))


class SerialLog:
    """The log of a guest's serial line.

    Positions are bytes from the beginning of the log. When the log has become shorter (the machine was started anew
    and its log with it), a position beyond its end means its beginning.

    Parameters
    ----------
    path
        The file; it need not exist yet.
    machine
        The machine's name, for messages.
    state
        Returns the machine's state, so that waiting ends when it is off.
    """

    def __init__(
        self, path: Path, machine: str = "the machine", state: Callable[[], str] | None = None
    ) -> None:
        self.path = path
        self.machine = machine
        self._state = state

    @classmethod
    def of(cls, domain: GuestDomain) -> SerialLog:
        """Return the log of a guest."""
        return cls(domain.serial_log, domain.name, domain.state)

    @property
    def position(self) -> int:
        """The end of the log, now: what is written later begins here."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def read(self, since: int = 0, most: int = -1) -> bytes:
        """Return the bytes from a position to the end, or only the first ``most`` of them."""
        try:
            with self.path.open("rb") as file:
                file.seek(since if since <= self.position else 0)
                return file.read(most)
        except FileNotFoundError:
            return b""

    def text(self, lines: int | None = None, *, since: int = 0, plain: bool = True) -> str:
        """Return what the guest wrote, decoded as UTF-8.

        Parameters
        ----------
        lines
            Only this many lines from the end.
        since
            Only what came after this position.
        plain
            Without escape sequences, see `strip_ansi`.
        """
        if lines is not None:
            if lines < 0:
                raise UsageError("The number of lines cannot be negative.")
            since = max(since, self.position - max(TAIL, 512 * lines))
        text = self.read(since).decode(errors="replace")
        text = strip_ansi(text) if plain else text
        if lines is None:
            return text
        return "".join(text.splitlines(keepends=True)[-lines:]) if lines else ""

    def wait_for(
        self, pattern: str, timeout: float | None = 60, *, since: int = 0, interval: float = 0.2
    ) -> re.Match[str]:
        """Wait until something that the guest wrote matches, and return the match.

        Parameters
        ----------
        pattern
            A regular expression, looked for in the plain text; ``^`` and ``$`` match at lines.
        timeout
            Seconds after which to give up; None waits for ever.
        since
            Look only at what came after this position; take it from `position` before doing what causes the output.
        interval
            Seconds between two looks.

        Raises
        ------
        WaitTimeout
            Carries ``last``: the last lines.
        WrongState
            The machine went off, so nothing more will come.
        UsageError
            The pattern is not a regular expression.
        """
        try:
            expression = re.compile(pattern, re.MULTILINE)
        except re.error as error:
            raise UsageError(f"'{pattern}' is not a regular expression: {error}.") from error

        def look() -> re.Match[str] | None:
            # The state is read first: what the guest wrote before it went off is in the log by then.
            off = self._state is not None and self._state() not in ("running", "paused", "asleep")
            match = expression.search(self.text(since=since))
            if match is None and off:
                raise WrongState(
                    f"{self.machine} is off and did not write '{pattern}' on its serial line.",
                    hint=f"start it with `%vm start {self.machine}`",
                    last=self.text(12, since=since),
                )
            return match

        return (
            until(
                look,
                timeout,
                f"'{pattern}' on the serial line",
                interval,
                evidence=lambda: self.text(12, since=since) or "nothing was written",
                machine=self.machine,
            )
            or _never()
        )


def _never() -> re.Match[str]:
    raise AssertionError("until() returns only what is true")


def _send_piece(stream: SerialStream, data: bytes) -> int:
    # Waits for PAUSE, never for the guest: while that has no room (it is paused), the answer is 0.
    sent = stream.try_send(data[:PIECE])
    time.sleep(PAUSE)
    return sent


class Typist:
    """Somebody who types on a serial line now and then, and reads what comes from the log.

    The line is opened when there is something to send, and again for the next QEMU after a revert, or when somebody
    else has taken it. One thread at a time.
    """

    def __init__(self) -> None:
        self._stream: SerialStream | None = None
        self._pid: int | None = None
        #: Whether an echo of what was sent has come.
        self._heard = False

    @property
    def has_line(self) -> bool:
        """Whether the line is open."""
        return self._stream is not None

    def type(self, domain: GuestDomain, open_serial: Callable[[], SerialStream], data: bytes) -> int:
        """Send the next few bytes as fast as a guest can take them, and return how many that were.

        It is called again and again, with nothing to send as well: what the guest writes has to be taken away. It
        never waits for the guest: while that has no room (it is paused), the answer is 0.

        Raises
        ------
        VMLabError
            The line was taken by somebody else, cannot be had now, or its QEMU is gone. The next call tries again.
        """
        try:
            if self._stream is not None:
                for _ in range(DRAINED):
                    if not self._stream.recv(1 << 16):
                        break
                    self._heard = True
                # Reverted: another QEMU, another line. The stream learns of it somewhat later, and would take what is
                # typed meanwhile and lose it.
                if self._stream.ended or domain.pid != self._pid:
                    self._drop()
            if not data:
                return 0
            if self._stream is None:
                self._pid = domain.pid
                self._stream = open_serial()
            self._heard = False
            return _send_piece(self._stream, data)
        except BaseException:
            self._drop()
            raise

    def close(self) -> None:
        """Let go of the line when the guest has what was sent."""
        if self._stream is not None:
            with contextlib.suppress(VMLabError):
                _linger(self._stream, self._heard)
        self._drop()

    def _drop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()


def send(
    domain: GuestDomain, text: str | bytes, *, open_serial: Callable[[], SerialStream] | None = None
) -> None:
    r"""Write to the guest's serial line, as if typed on a terminal there.

    Parameters
    ----------
    domain
        The guest.
    text
        Text is sent as UTF-8, and each newline as a carriage return, which is what the Return key sends. Bytes are
        sent as they are.
    open_serial
        Opens the line; the guest's own way by default.

    Raises
    ------
    WrongState
        The machine is off, or was reverted or stopped meanwhile.
    """
    data = text if isinstance(text, bytes) else text.replace("\r\n", "\n").replace("\n", "\r").encode()
    if domain.state() not in ("running", "paused", "asleep"):
        raise WrongState(
            f"{domain.name} is off; nobody reads its serial line.",
            hint=f"start it with `%vm start {domain.name}`",
        )
    stream = (open_serial or domain.open_serial)()
    try:
        heard = False
        while data and not stream.ended:
            data = data[_send_piece(stream, data) :]
            heard = bool(stream.recv(4096)) or heard
        heard = _linger(stream, heard)
        # Without an echo nobody knows what has arrived; with one, the text itself may have ended the guest.
        if stream.ended and (data or not heard):
            raise WrongState(
                f"{domain.name} was reverted or stopped meanwhile; not all was sent.",
                hint=f"look at what arrived: `%vm serial {domain.name}`",
            )
    finally:
        stream.close()


def _linger(stream: SerialStream, heard: bool) -> bool:
    """Wait until the echo of what was sent has passed, before a line is closed; return whether anything was heard.

    QEMU looks only once a second whether somebody has opened its terminal, and what was sent is lost with a close
    before that; and its serial port can stop sending for good when its peer goes while it waits to write (seen with
    QEMU 10.0).
    """
    end, quiet = time.monotonic() + LINGER, 0
    while (not heard or quiet < 5) and not stream.ended and time.monotonic() < end:
        time.sleep(0.02)
        if stream.recv(4096):
            heard, quiet = True, 0
        else:
            quiet += 1
    return heard


def read(domain: GuestDomain, lines: int | None = None, *, since: int = 0, plain: bool = True) -> str:
    """Return what the guest wrote on its serial line; see `SerialLog.text`."""
    return SerialLog.of(domain).text(lines, since=since, plain=plain)


def wait_for(
    domain: GuestDomain, pattern: str, timeout: float | None = 60, *, since: int = 0
) -> re.Match[str]:
    """Wait until the serial line shows a regular expression; see `SerialLog.wait_for`."""
    return SerialLog.of(domain).wait_for(pattern, timeout, since=since)


def panic(domain: GuestDomain) -> str | None:
    """Return the words with which the guest's kernel has panicked, if it wrote them on its serial line last.

    That is so also where the guest cannot tell QEMU of a panic: it has no driver for that, or not yet.
    """
    log = SerialLog.of(domain)
    text, pid = log.text(DUMP), domain.pid
    words = _PANIC.findall(_PANICKED.sub("", text))
    if not words or pid is None:
        return None
    try:
        # The log goes on from boot to boot; what an earlier one said last does not count.
        dead = _PANICKED.search(text) is not None and log.path.stat().st_mtime > _started(pid)
    except OSError:  # it has just ended
        return None
    return words[-1] if dead or domain.state() == "crashed" else None


def _started(pid: int) -> float:
    """Return when a process was started, in seconds since the epoch."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - age
