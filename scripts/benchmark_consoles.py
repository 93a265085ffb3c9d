"""Measure consoles: our path through the Jupyter server beside a plain VNC client, and beside websockify.

One client, three ways to the same guest's VNC socket: straight (UNIX socket), through vmlab's server extension, through
websockify. Every round takes all ways in turn, so that a busy host is busy for all. Figures are medians.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import websocket
from rich.console import Console
from rich.table import Table

from vmlab.hypervisor.domain import versions
from vmlab.lab import Lab
from vmlab.machine import Machine

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from help import jupyter_page  # noqa: E402

XK_LEFT, XK_RIGHT, XK_SPACE = 0xFF51, 0xFF53, 0x20
RAW = 0
#: Pixels of the last line of text, where the ship of invaders is.
SHIP_ROWS = 16


class Line(Protocol):
    """Bytes both ways."""

    def send(self, data: bytes) -> None: ...
    def recv(self, count: int) -> bytes: ...
    def close(self) -> None: ...


class Socket:
    """Straight to the guest."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(20)
        self._socket.connect(str(path))

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def recv(self, count: int) -> bytes:
        return self._socket.recv(count)

    def close(self) -> None:
        self._socket.close()


class WebSocket:
    """Through a WebSocket, a message at a time."""

    def __init__(self, url: str, **options: Any) -> None:
        self._socket = websocket.create_connection(
            url, timeout=20, subprotocols=["binary"], skip_utf8_validation=True,
            sockopt=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)], **options,
        )  # fmt: skip

    def send(self, data: bytes) -> None:
        self._socket.send_binary(data)

    def recv(self, _count: int) -> bytes:
        data: bytes = self._socket.recv()
        return data

    def close(self) -> None:
        self._socket.close()


class Vnc:
    """A VNC client that knows one encoding: raw. RFC 6143."""

    def __init__(self, line: Line) -> None:
        self._line, self._have, self.received = line, bytearray(), 0
        self._read(12)
        line.send(b"RFB 003.008\n")
        self._read(self._read(1)[0])
        line.send(b"\x01")  # no authentication: the socket's permissions are
        self._read(4)
        line.send(b"\x01")  # shared
        self.width, self.height = struct.unpack(">HH", self._read(20)[:4])
        self._read(struct.unpack(">I", self._read(4))[0])
        line.send(struct.pack(">BxHi", 2, 1, RAW))
        self.screen = bytearray(self.width * self.height * 4)

    def _read(self, count: int) -> bytes:
        while len(self._have) < count:
            data = self._line.recv(1 << 18)
            if not data:
                raise EOFError("the console was closed")
            self._have += data
        data = bytes(self._have[:count])
        del self._have[:count]
        return data

    def ask(self, *, incremental: bool) -> None:
        """Ask for the screen, or for what changed of it."""
        self._line.send(struct.pack(">BBHHHH", 3, incremental, 0, 0, self.width, self.height))

    def update(self, *, draw: bool = True) -> None:
        """Wait for one update, and draw it."""
        while True:
            kind = self._read(1)[0]
            if kind == 0:
                break
            if kind == 3:
                self._read(struct.unpack(">xxxI", self._read(7))[0])
            elif kind != 2:
                raise ValueError(f"unexpected message {kind}")
        for _ in range(struct.unpack(">xH", self._read(3))[0]):
            x, y, width, height, encoding = struct.unpack(">HHHHi", self._read(12))
            if encoding != RAW:
                raise ValueError(f"unexpected encoding {encoding}")
            pixels = self._read(width * height * 4)
            self.received += len(pixels)
            for row in range(height if draw else 0):
                at = ((y + row) * self.width + x) * 4
                self.screen[at : at + width * 4] = pixels[row * width * 4 : (row + 1) * width * 4]

    def key(self, keysym: int, *, down: bool) -> None:
        """Press a key, or let it go."""
        self._line.send(struct.pack(">BBxxI", 4, down, keysym))

    def bottom(self) -> bytes:
        """Return the pixels of the last line of text."""
        return bytes(self.screen[-self.width * SHIP_ROWS * 4 :])

    def close(self) -> None:
        self._line.close()


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def jupyter_line(server: jupyter_page.Server, name: str, query: str = "vnc") -> Line:
    """Return the way through vmlab's server extension."""
    address = f"ws://127.0.0.1:{server.port}/vmlab/consoles/{urllib.parse.quote(name)}/{query}"
    return WebSocket(address, header=[f"Authorization: token {server.token}"])


@contextlib.contextmanager
def websockify(path: Path) -> Iterator[Callable[[], Line]]:
    """Run websockify on the guest's socket."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = [sys.executable, "-m", "websockify", f"127.0.0.1:{port}", f"--unix-target={path}"]
    running = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield lambda: WebSocket(f"ws://127.0.0.1:{port}/")
    finally:
        running.terminate()
        running.wait()


def follow(client: Vnc, seconds: float) -> None:
    """Draw what changes for some time."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        client.ask(incremental=True)
        client.update()


def key_to_pixel(client: Vnc, keysym: int) -> float | None:
    """Return the milliseconds from a key to the ship's move; None if it did not move (it stood at the edge)."""
    follow(client, 0.15)  # what happened while the other way was measured
    before, took = client.bottom(), None
    started = time.perf_counter()
    # Held until it shows: the game looks at the keyboard now and then, and would miss a short press.
    client.key(keysym, down=True)
    while took is None and time.perf_counter() - started < 1:
        client.ask(incremental=True)
        client.update()
        if client.bottom() != before:
            took = (time.perf_counter() - started) * 1000
    client.key(keysym, down=False)
    follow(client, 0.15)  # until the game has seen that, too
    return took


def latency(lab: Lab, server: jupyter_page.Server, name: str, rounds: int) -> dict[str, list[float]]:
    """Measure key to changed pixel on invaders, straight and through the Jupyter server, in turn."""
    game = lab.create(name, "invaders")
    start = game.snapshot("start")
    figures: dict[str, list[float]] = {"straight": [], "vmlab": []}
    while min(map(len, figures.values())) < rounds:
        # The game would be lost sooner or later.
        start.revert()
        assert game.vnc_socket
        ways = {"straight": Vnc(Socket(game.vnc_socket)), "vmlab": Vnc(jupyter_line(server, name))}
        for client in ways.values():
            client.ask(incremental=False)
            client.update()
        for turn in range(10):
            for way, client in ways.items():
                # Left and right in turn, so that the ship stays away from the edges.
                took = key_to_pixel(client, XK_LEFT if turn % 2 else XK_RIGHT)
                if took is not None:
                    figures[way].append(took)
        for client in ways.values():
            client.close()
    return figures


def full_screens(client: Vnc, seconds: float) -> float:
    """Return the MB per second of whole screens, each asked for when the one before has come."""
    client.ask(incremental=False)
    client.update()
    client.received, started = 0, time.perf_counter()
    while (took := time.perf_counter() - started) < seconds:
        client.ask(incremental=False)
        client.update(draw=False)
    return client.received / took / 1e6


def throughput(
    machine: Machine, server: jupyter_page.Server, rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Measure a stream of whole screens: straight, through the Jupyter server, through websockify."""
    assert machine.vnc_socket
    path = machine.vnc_socket
    figures: dict[str, list[float]] = {"straight": [], "vmlab": [], "websockify": []}
    with websockify(path) as through_websockify:
        ways: dict[str, Callable[[], Line]] = {
            "straight": lambda: Socket(path),
            "vmlab": lambda: jupyter_line(server, machine.name),
            "websockify": through_websockify,
        }
        for _ in range(rounds):
            for way, connect in ways.items():
                client = Vnc(connect())
                figures[way].append(full_screens(client, seconds))
                client.close()
    return figures


def seconds_of(code: str) -> float:
    """Return how many seconds Python says that ``code`` took, in a process of its own."""
    timed = f"import time; t = time.perf_counter(); {code}; print(time.perf_counter() - t)"
    done = subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True, check=True, cwd=ROOT)
    return float(done.stdout.split()[-1])


def imports(rounds: int) -> dict[str, list[float]]:
    """Measure `import vmlab` in a bare Python, and `%load_ext vmlab` in an IPython that is up."""
    load = "shell.run_line_magic('load_ext', 'vmlab')"
    figures: dict[str, list[float]] = {"import vmlab": [], "%load_ext vmlab": []}
    for _ in range(rounds):
        figures["import vmlab"].append(seconds_of("import vmlab") * 1000)
        code = (
            "from IPython.core.interactiveshell import InteractiveShell; "
            f"shell = InteractiveShell.instance(); t = time.perf_counter(); {load}"
        )
        figures["%load_ext vmlab"].append(seconds_of(code) * 1000)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench consoles", description=__doc__.splitlines()[0])
    parser.add_argument("-n", "--rounds", type=int, default=7, help="rounds of each (default 7)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures there")
    args = parser.parse_args()
    lab, mark = Lab(), uuid.uuid4().hex[:6]
    names = [f"bench-game-{mark}", f"bench-desktop-{mark}"]
    found = versions(lab.account)
    about = {
        "QEMU": found["qemu"],
        "CPUs": os.cpu_count(),
        "kernel": platform.release(),
        "rounds": args.rounds,
    }
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder)
        try:
            with jupyter_page.server(own, own / "own") as server:
                say("key to changed pixel, on invaders")
                keys = latency(lab, server, names[0], args.rounds * 10)
                say("stream of whole screens, on desktop")
                stream = throughput(lab.create(names[1], "desktop"), server, args.rounds, 2.0)
        finally:
            for name in names:
                if name in lab:
                    lab.machine(name).delete()
    say("imports")
    started = imports(args.rounds)
    table = Table(title=", ".join(f"{key} {value}" for key, value in about.items()))
    for heading in ("what", "vmlab", "beside", "", "ratio"):
        table.add_column(heading)
    median = statistics.median
    ours, plain = median(keys["vmlab"]), median(keys["straight"])
    table.add_row(
        "key to changed pixel", f"{ours:.1f} ms", f"{plain:.1f} ms", "plain VNC", f"+{ours - plain:.1f} ms"
    )
    ours = median(stream["vmlab"])
    for way in ("websockify", "straight"):
        other = median(stream[way])
        table.add_row("whole screens", f"{ours:.0f} MB/s", f"{other:.0f} MB/s", way, f"{ours / other:.2f}")
    for what, figures in started.items():
        table.add_row(what, f"{median(figures):.0f} ms", "", "", "")
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    if args.json:
        data = {"about": about, "load": os.getloadavg(), "keys": keys, "stream": stream, "imports": started}
        args.json.write_text(json.dumps(data, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
