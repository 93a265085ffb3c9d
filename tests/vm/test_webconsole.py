"""The web console to real guests, seen from a WebSocket and from the system."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import websocket

from vmlab.lab import Lab
from vmlab.machine import Machine
from vmlab.webconsole import IDLE, PATIENCE
from vmlab.webconsole.__main__ import MOST

HELLO = b"RFB 003.008\n"
Start = Callable[..., "Visitor"]


class Visitor:
    """Somebody who was given the web console's address."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        assert process.stdout is not None
        self.process, self.log = process, log
        self.address = json.loads(process.stdout.readline())["address"]
        self.base, _, self.invitation = self.address.partition("#")
        self.origin = self.base.rstrip("/")

    def post(self, path: str, body: object, origin: str | None = "") -> tuple[int, object]:
        """Return status and answer; the origin is the page's own by default, None sends none."""
        headers = {"Origin": origin or self.origin} if origin is not None else {}
        request = urllib.request.Request(self.base + path, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, None

    def get(self, path: str) -> int:
        try:
            with urllib.request.urlopen(self.base + path, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def enter(self) -> dict[str, str]:
        """Show the invitation; return the keys by machine."""
        status, consoles = self.post("enter", {"invitation": self.invitation})
        assert status == 200
        return {one["machine"]: one["key"] for one in consoles}  # type: ignore[union-attr, index]

    def connect(self, key: str | None, origin: str | None = "") -> websocket.WebSocket:
        query = "" if key is None else f"?token={key}"
        return websocket.create_connection(
            f"{self.base.replace('http', 'ws', 1)}console{query}",
            origin=origin or self.origin if origin is not None else None,
            suppress_origin=origin is None,
            subprotocols=["binary"],
            timeout=10,
        )

    def refused(self, key: str | None, origin: str | None = "") -> int:
        """Return the HTTP status with which a WebSocket is refused."""
        with pytest.raises(websocket.WebSocketBadStatusException) as caught:
            self.connect(key, origin)
        return int(caught.value.status_code)


def closed(line: websocket.WebSocket) -> int:
    """Return the code with which the other side closes."""
    while True:
        opcode, frame = line.recv_data_frame(control_frame=True)
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            return int.from_bytes(frame.data[:2], "big")


@pytest.fixture
def webconsole(lab: Lab, tmp_path: Path) -> Iterator[Start]:
    """Start a web console's process as vmlab.webconsole.start does, with its log kept."""
    made: list[subprocess.Popen[str]] = []

    def start(*machines: str, idle: float = IDLE, patience: float = PATIENCE) -> Visitor:
        log = tmp_path / f"webconsole-{len(made)}.log"
        argv = [sys.executable, "-m", "vmlab.webconsole", f"--home={lab.home}", f"--idle={idle}"]
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [*argv, f"--patience={patience}", "--", *machines],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | {"VMLAB_DEBUG": "1"},
            )
        made.append(process)
        return Visitor(process, log)

    yield start
    for process in made:
        process.terminate()
        assert process.wait(10) == 0
        assert process.stdout is not None
        process.stdout.close()


def test_who_gets_in(webconsole: Start, tiny: Machine) -> None:
    visitor = webconsole(tiny.name)
    assert visitor.base.startswith("http://127.0.0.1:")
    assert visitor.get("") == 200
    assert visitor.get("page.js") == 200
    for path in ("page.html", "__init__.py", "../machine.py", "%2e%2e/machine.py", "console", "nothing"):
        assert visitor.get(path) == 404, path
    wrong = "x" * 43
    for key in (None, "", wrong, visitor.invitation):
        assert visitor.refused(key) == 403, key
    # A wrong or foreign try does not use the invitation up.
    for body in ({"invitation": wrong}, {"invitation": ""}, {"key": visitor.invitation}):
        assert visitor.post("enter", body)[0] in (400, 403)
    for origin in ("http://example.org", visitor.origin.replace("127.0.0.1", "127.0.0.2"), "null", None):
        assert visitor.post("enter", {"invitation": visitor.invitation}, origin)[0] == 403

    key = visitor.enter()[tiny.name]
    line = visitor.connect(key)
    assert line.subprotocol == "binary"
    assert line.recv() == HELLO
    # Somebody else with the same address.
    assert visitor.post("enter", {"invitation": visitor.invitation})[0] == 403
    assert visitor.refused(visitor.invitation) == 403
    for origin in ("http://example.org", "http://localhost", None):
        assert visitor.refused(key, origin) == 403
    # The same page in a second connection; and over the other name of the loopback.
    other = visitor.connect(key, visitor.origin.replace("127.0.0.1", "localhost"))
    assert other.recv() == HELLO
    assert visitor.post("here", {"key": key})[0] == 200
    assert visitor.post("here", {"key": visitor.invitation})[0] == 403
    line.close()
    other.close()

    log = visitor.log.read_text()
    assert "WebSocket connection" in log, "the log says nothing at all"
    for secret in (visitor.invitation, key):
        assert secret not in log
    commands = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(visitor.invitation) not in commands


def test_through_stop_start_and_revert(webconsole: Start, tiny: Machine) -> None:
    visitor = webconsole(tiny.name, "there-is-no-such-machine")
    keys = visitor.enter()
    assert closed(visitor.connect(keys["there-is-no-such-machine"])) == 4404
    clean = tiny.snapshot("clean")
    line = visitor.connect(keys[tiny.name])
    assert line.recv() == HELLO
    before = tiny.vnc_socket
    tiny.revert(clean)
    assert closed(line) == 4410
    assert tiny.vnc_socket != before
    line = visitor.connect(keys[tiny.name])
    assert line.recv() == HELLO
    tiny.kill()
    assert closed(line) == 4410
    assert closed(visitor.connect(keys[tiny.name])) == 4409
    tiny.start()
    assert visitor.connect(keys[tiny.name]).recv() == HELLO


def test_keys_reach_the_guest(webconsole: Start, invaders: Machine) -> None:
    visitor = webconsole(invaders.name)
    line = visitor.connect(visitor.enter()[invaders.name])

    def read(count: int) -> bytes:
        nonlocal rest
        while len(rest) < count:
            rest += line.recv()
        part, rest = rest[:count], rest[count:]
        return part

    rest = b""
    assert read(12) == HELLO
    line.send_binary(HELLO)
    kinds = read(read(1)[0])
    assert 1 in kinds, "no authentication: the socket is ours alone"
    line.send_binary(b"\x01")
    assert read(4) == bytes(4)
    line.send_binary(b"\x01")  # shared
    size = read(24)
    width, height = int.from_bytes(size[:2], "big"), int.from_bytes(size[2:4], "big")
    assert (width, height) == invaders.screenshot().size
    # Until the picture is still, then a key that starts the game.
    before = invaders.screenshot()
    for _ in range(20):
        for down in (1, 0):
            line.send_binary(bytes([4, down, 0, 0]) + (0x20).to_bytes(4, "big"))
            time.sleep(0.1)
        if invaders.screenshot() != before:
            break
    assert invaders.screenshot() != before


def test_it_ends_by_itself(webconsole: Start, tiny: Machine) -> None:
    alone = webconsole(tiny.name, patience=1)
    visited = webconsole(tiny.name, idle=3)
    line = visited.connect(visited.enter()[tiny.name])
    assert alone.process.wait(15) == 0
    time.sleep(4)
    assert visited.process.poll() is None, "somebody is there"
    assert line.recv() == HELLO
    line.close()
    assert visited.process.wait(15) == 0


@pytest.mark.parametrize("end", ["Ctrl-C", "killed"])
def test_from_a_terminal(lab: Lab, tiny: Machine, end: str) -> None:
    argv = [sys.executable, "-m", "vmlab", "--home", str(lab.home), "console", tiny.name]
    environment = {
        name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")
    }
    process = subprocess.Popen(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    assert process.stderr is not None
    said = process.stderr.readline()
    assert said.startswith(f"{tiny.name}: http://127.0.0.1:")
    port = int(said.split(":")[3].split("/")[0])
    assert "Ctrl-C" in process.stderr.readline()
    if end == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)  # its own group: what a terminal does
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out, err) == (0, f"The console of {tiny.name} is closed.\n", "")
    else:
        process.kill()
        # Its end is when nobody has its output open any more.
        assert process.communicate(timeout=20) == ("", "")
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=2)


def test_requests_that_do_not_come_are_not_waited_for(webconsole: Start, tiny: Machine) -> None:
    visitor = webconsole(tiny.name, patience=2)
    port = int(visitor.origin.rpartition(":")[2])

    def connections() -> int:
        argv = ["ps", "-o", "pid=", "--ppid", str(visitor.process.pid)]
        return len(subprocess.run(argv, capture_output=True, text=True).stdout.split())

    most = 0
    with contextlib.ExitStack() as kept:
        for _ in range(MOST + 10):
            line = kept.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            line.sendall(b"GET / HTTP/1.1\r\nHost: ")
        end = time.monotonic() + 120
        while visitor.process.poll() is None:
            assert time.monotonic() < end, "it never ends"
            most = max(most, connections())
            time.sleep(0.1)
    assert 0 < most <= MOST


class Terminal:
    """A terminal in which ``vmlab console --serial`` runs."""

    def __init__(self, lab: Lab, machine: Machine) -> None:
        self._ours, theirs = pty.openpty()
        argv = [sys.executable, "-m", "vmlab", "--home", str(lab.home), "console", machine.name, "--serial"]
        self.process = subprocess.Popen(
            argv, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        self._seen = b""
        self.until(b"Ctrl-] leaves it")

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def until(self, words: bytes) -> None:
        end = time.monotonic() + 30
        while words not in self._seen:
            assert time.monotonic() < end, self._seen
            if select.select([self._ours], [], [], 1)[0]:
                self._seen += os.read(self._ours, 4096)

    def leave(self) -> None:
        assert self.process.poll() is None
        self.type(b"\x1d")
        self.until(b"Left the serial line")
        assert self.process.wait(10) == 0
        os.close(self._ours)


def test_a_terminal_becomes_the_serial_line(lab: Lab, tiny: Machine) -> None:
    tiny.send_serial("echo before-that\n")
    tiny.wait_for_serial("^before-that", 20)
    terminal = Terminal(lab, tiny)
    terminal.until(b"before-that")
    terminal.type(b"echo $((6 * 7))-now\r")
    terminal.until(b"42-now")
    terminal.type(b"\x03")  # Ctrl-C is the guest's; its terminal throws away what was typed before it
    time.sleep(1)
    terminal.type(b"echo again$((1))\r")
    terminal.until(b"again1")
    # A revert is another QEMU with another line; what is typed right after it is not lost.
    tiny.snapshot("s").revert()
    terminal.type(b"echo after$((2))\r")
    terminal.until(b"after2")
    terminal.leave()


def test_a_terminal_shares_the_serial_line(lab: Lab, tiny: Machine) -> None:
    terminal = Terminal(lab, tiny)
    terminal.type(b"echo mine$((1))\r")
    terminal.until(b"mine1")
    # Somebody else types; that is seen here, and the next key takes the line back.
    tiny.send_serial("echo theirs$((2))\n")
    terminal.until(b"theirs2")
    terminal.type(b"cat >/tmp/pasted\r")
    tiny.wait_for_file("/tmp/pasted")
    # More at once than the guest's serial port has room for.
    pasted = "".join(f"line {n:2} of the pasted text, none of which must be lost.\n" for n in range(12))
    assert len(pasted) > 600
    terminal.type(pasted.replace("\n", "\r").encode())
    terminal.until(b"line 11 of the pasted text, none of which must be lost.")
    terminal.type(b"\x04")
    tiny.wait_until_fails("pidof cat")
    assert tiny.execute("cat /tmp/pasted").stdout == pasted
    # What was typed right before leaving arrives.
    tiny.send_serial("echo theirs$((3))\n")
    terminal.type(b"touch /tmp/left\r")
    terminal.leave()
    tiny.wait_for_file("/tmp/left")
