from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from vmlab.errors import UsageError, WaitTimeout, WrongState
from vmlab.guest import serial
from vmlab.guest.serial import PIECE, SerialLog, strip_ansi
from vmlab.machine import Machine
from vmlab.store.locks import locked


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("\x1b[1;32mok\x1b[0m\r\n", "ok\n"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]0;title\x1b\\text", "text"),
        ("\x1b(Bplain\x1b)0\x1b=\x1b>", "plain"),
        ("\x1b[?25l\x1b[2J\x1b[Hx\x1b[6n", "x"),
        ("10%\r20%\r100%\n", "100%\n"),
        ("long line\rshort\n", "shortline\n"),
        ("rubbed\b\b oout\b \b\n", "rubb oou\n"),
        ("a\x1b[", "a"),
        ("bell\x07 nul\x00\ttab\n", "bell nul\ttab\n"),
        ("\x1bP1$r0m\x1b\\after", "after"),
        ("grün\r\n\r\n", "grün\n\n"),
    ],
)
def test_strip_ansi(raw: str, plain: str) -> None:
    assert strip_ansi(raw) == plain


def test_log(tmp_path: Path) -> None:
    log = SerialLog(tmp_path / "serial.log", "web")
    assert (log.position, log.read(), log.text(), log.text(3)) == (0, b"", "", "")
    log.path.write_bytes(b"one\r\n\x1b[31mtwo\x1b[0m\r\nthree")
    assert log.text() == "one\ntwo\nthree"
    assert log.text(2) == "two\nthree"
    assert log.text(0) == ""
    assert "\x1b" in log.text(plain=False)
    assert log.text(since=5) == "two\nthree"
    here = log.position
    with log.path.open("ab") as file:
        file.write(b" four\r\n")
    assert log.text(since=here) == " four\n"
    with pytest.raises(UsageError):
        log.text(-1)


def test_a_log_that_began_anew_is_read_from_its_beginning(tmp_path: Path) -> None:
    log = SerialLog(tmp_path / "serial.log")
    log.path.write_bytes(b"x" * 100)
    here = log.position
    log.path.write_bytes(b"new\n")
    assert log.text(since=here) == "new\n"


def test_wait_for_something_that_comes(tmp_path: Path) -> None:
    log = SerialLog(tmp_path / "serial.log", "web")
    log.path.write_bytes(b"login: \r\n")
    here = log.position

    def later() -> None:
        time.sleep(0.1)
        with log.path.open("ab") as file:
            file.write(b"version 6.1\r\nlogin: ")

    writer = threading.Thread(target=later)
    writer.start()
    assert log.wait_for(r"^version (\S+)$", 5, since=here)[1] == "6.1"
    writer.join()


def test_wait_in_vain_shows_the_last_lines(tmp_path: Path) -> None:
    log = SerialLog(tmp_path / "serial.log", "web")
    log.path.write_bytes(b"Kernel panic\r\n")
    with pytest.raises(WaitTimeout) as caught:
        log.wait_for("login:", 0.05)
    assert "Kernel panic" in caught.value.evidence["last"]
    with pytest.raises(UsageError, match="not a regular expression"):
        log.wait_for("(", 1)


def test_waiting_ends_when_the_machine_is_off(tmp_path: Path) -> None:
    log = SerialLog(tmp_path / "serial.log", "web", lambda: "off")
    log.path.write_bytes(b"reboot: Power down\r\n")
    assert log.wait_for("Power down", 1)
    with pytest.raises(WrongState, match="web is off"):
        log.wait_for("login:", 10)


class Line:
    """A serial line whose guest writes back what it is sent, and is ended by a word of it."""

    def __init__(self, last_word: bytes | None = None, *, echo: bool = True) -> None:
        self.sent = b""
        self.pieces: list[bytes] = []
        self.ended = self.closed = False
        self.last_word, self.echo = last_word, echo
        self.sending: Callable[[], object] = lambda: None
        self._unheard = b""

    def try_send(self, data: bytes) -> int:
        self.sending()
        if not self.ended:
            self.sent += data
            self.pieces.append(data)
            self._unheard += data
        return len(data)

    def recv(self, _size: int) -> bytes:
        data, self._unheard = self._unheard if self.echo else b"", b""
        if self.last_word is not None and self.last_word in self.sent and not data:
            self.ended = True
        return data

    def close(self) -> None:
        self.closed = True


def guest(line: Line) -> SimpleNamespace:
    return SimpleNamespace(name="web", state=lambda: "running", open_serial=lambda: line)


def test_a_text_is_sent_in_pieces_that_a_guest_has_room_for() -> None:
    line = Line()
    serial.send(guest(line), "one\ntwo\r\n" * 20)
    assert line.sent == b"one\rtwo\r" * 20
    assert max(map(len, line.pieces)) <= PIECE
    assert line.closed


def test_a_guest_that_goes_while_it_is_sent_to_is_told() -> None:
    line = Line(b"half", echo=False)
    with pytest.raises(WrongState, match="not all was sent"):
        serial.send(guest(line), "half of it" * 1000)
    assert line.closed
    # What was sent last may be what ends the guest.
    line = Line(b"poweroff\r")
    serial.send(guest(line), "poweroff\n")
    assert line.closed


class Locked(Machine):
    """A machine whose guest is ours."""

    def __init__(self, folder: Path, line: Line) -> None:
        store = SimpleNamespace(
            lock=lambda name, *what, **how: locked(folder / f"{name}.lock", *what, **how),
            lock_path=lambda name: folder / f"{name}.lock",
            machine=lambda name: name,
        )
        super().__init__(store, "web")  # type: ignore[arg-type]
        self.opened = threading.Event()
        self.guest = guest(line)
        self.guest.open_serial = lambda: (self.opened.set(), line)[1]

    def _domain(self):  # type: ignore[no-untyped-def, override]
        return self.guest


def test_the_line_is_never_opened_while_something_is_done_to_the_machine(tmp_path: Path) -> None:
    line = Line()
    machine = Locked(tmp_path, line)
    free_while_sending = []

    def others() -> None:
        with locked(tmp_path / "web.lock", "revert", timeout=5):
            free_while_sending.append(True)

    def in_a_thread() -> None:
        other = threading.Thread(target=others)
        other.start()
        other.join()

    line.sending = in_a_thread
    sender = threading.Thread(target=machine.send_serial, args=("hello\n",))
    with locked(tmp_path / "web.lock", "revert"):
        sender.start()
        assert not machine.opened.wait(0.5)
    sender.join()
    assert machine.opened.is_set()
    assert line.sent == b"hello\r"
    assert free_while_sending == [True]
