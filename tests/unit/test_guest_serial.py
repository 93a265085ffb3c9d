from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from vmlab.errors import UsageError, WaitTimeout, WrongState
from vmlab.guest.serial import SerialLog, strip_ansi


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
