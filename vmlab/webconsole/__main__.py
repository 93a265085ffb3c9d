"""The web console's process: websockify with a page, a token plugin and limits of our own. See the package."""

from __future__ import annotations

import argparse
import hmac
import json
import logging
import multiprocessing
import os
import secrets
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from websockify.auth_plugins import ExpectOrigin
from websockify.token_plugins import BasePlugin
from websockify.websocketproxy import ProxyRequestHandler, WebSocketProxy

from vmlab.errors import VMLabError
from vmlab.hypervisor import account as accounts
from vmlab.hypervisor.console import GONE, NOT_RUNNING, close_code, screen_socket
from vmlab.hypervisor.domain import Domain
from vmlab.store.store import Store
from vmlab.webconsole import CONSOLE_JS, IDLE, PATIENCE

HERE = Path(__file__).parent
#: Everything that can be fetched: what is not named here does not exist.
FILES = {
    "/": (HERE / "page.html", "text/html; charset=utf-8"),
    "/page.js": (HERE / "page.js", "text/javascript; charset=utf-8"),
    "/console.js": (CONSOLE_JS, "text/javascript; charset=utf-8"),
}
#: The most that a page may send to us, in bytes.
LONGEST = 1000
#: Seconds between two pings, so that no tunnel takes the line for dead.
HEARTBEAT = 30
#: Seconds that a request may take to come, and connections at once: each is a process, and whoever is on this host can
#: make one.
REQUEST, MOST = 10, 64


class Doors:
    """Who may come in: one invitation for one page, then a key for each machine.

    All is made before the first connection, so that every child process has it; only whether the invitation was used
    is shared with those that come later.
    """

    def __init__(self, machines: Sequence[str]) -> None:
        self.invitation = secrets.token_urlsafe(32)
        self.keys = {secrets.token_urlsafe(32): name for name in machines}
        self._used = multiprocessing.get_context("fork").Value("b", 0)

    @property
    def used(self) -> bool:
        """Whether somebody has come."""
        return bool(self._used.value)

    def enter(self, invitation: str) -> list[dict[str, str]] | None:
        """Return ``{"machine", "key"}`` of every console for the right invitation, the first time; else None."""
        if not hmac.compare_digest(invitation.encode(), self.invitation.encode()):
            return None
        with self._used.get_lock():
            if self._used.value:
                return None
            self._used.value = 1
        return [{"machine": name, "key": key} for key, name in self.keys.items()]

    def machine(self, key: str) -> str | None:
        """Return the machine that a key opens; None for any other text."""
        for known, name in self.keys.items():
            if self.used and hmac.compare_digest(key.encode(), known.encode()):
                return name
        return None


class ConsoleKeys(BasePlugin):  # type: ignore[misc]  # websockify has no types
    """websockify's token plugin: a key leads to the VNC socket that the machine has *now*.

    The path holds libvirt's number of the running guest, so it is another one after every start and revert. libvirt is
    asked in the child process, never before a fork.
    """

    def __init__(self, doors: Doors, home: Path) -> None:
        super().__init__(None)
        self._doors = doors
        self._home = home
        #: Close code and reason, when there is nothing to connect to.
        self.trouble = (NOT_RUNNING, "")

    def lookup(self, token: str) -> tuple[str, str] | None:
        """Return ``("unix_socket", path)``; the path is empty where there is no screen; None refuses the key."""
        name = self._doors.machine(token)
        if name is None:
            return None
        path = ""
        try:
            account = accounts.account()
            store = Store(self._home, account)
            known_as = store.machine(name).known_as
            domain = Domain(account, name, store.machine_folder(name) / "serial.log", known_as)
            path = str(screen_socket(domain, domain.state()))
        except VMLabError as error:
            self.trouble = (close_code(error), error.message[:100])
        return "unix_socket", path


class Handler(ProxyRequestHandler):  # type: ignore[misc]
    """Serves the page, lets the first one in, and connects it."""

    server: WebConsoleServer
    path: str
    server_version = "vmlab"
    sys_version = ""
    timeout = REQUEST

    def validate_connection(self) -> None:
        """Refuse a WebSocket without a key that we gave, before it is one."""
        try:
            super().validate_connection()
        except self.server.EClose:
            self.send_error(HTTPStatus.FORBIDDEN)
            # Not the error that was raised: its text is the key, and it would be logged.
            raise self.server.EClose("refused") from None
        finally:
            self.path = urlsplit(self.path).path
            self.requestline = f"{self.command} {self.path} {self.request_version}"

    def new_websocket_client(self) -> None:
        """Connect, and say by the close code why a connection ends or cannot be."""
        if not self.server.unix_target:
            raise self.CClose(*self.server.token_plugin.trouble)
        # Of a page that looks on, nothing may come for hours.
        self.request.settimeout(None)
        try:
            super().new_websocket_client()
        except OSError as error:
            raise self.CClose(GONE, "the guest's QEMU went away") from error
        except self.CClose as close:
            # websockify says "Target closed", and 1011 when the socket was there and nobody behind it.
            if close.args[0] == 1011 or close.args[1] == "Target closed":
                raise self.CClose(GONE, "the guest's QEMU went away") from close
            raise

    def do_GET(self) -> None:  # noqa: N802 - http.server's name
        """Serve one of our three files."""
        found = FILES.get(urlsplit(self.path).path)
        if found is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self._answer(HTTPStatus.OK, found[0].read_bytes(), found[1])

    def do_HEAD(self) -> None:  # noqa: N802 - http.server's name
        """Answer as little as possible."""
        self.send_error(HTTPStatus.METHOD_NOT_ALLOWED)

    def do_POST(self) -> None:  # noqa: N802 - http.server's name
        """Take ``/enter {"invitation"}`` from a new page, ``/here {"key"}`` from one that is still open."""
        self.auth_connection()
        try:
            said = json.loads(self.rfile.read(min(LONGEST, int(self.headers.get("Content-Length", 0)))))
            word = str(said["invitation" if self.path == "/enter" else "key"])
        except (ValueError, KeyError, TypeError):
            self.send_error(HTTPStatus.BAD_REQUEST)
            return
        if self.path == "/enter" and (consoles := self.server.doors.enter(word)) is not None:
            self._answer(HTTPStatus.OK, json.dumps(consoles).encode(), "application/json")
        elif self.path == "/here" and self.server.doors.machine(word):
            self._answer(HTTPStatus.OK, b"{}", "application/json")
        else:
            self.send_error(HTTPStatus.FORBIDDEN)

    def _answer(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; "
            f"img-src 'self' data: blob:; connect-src {self.server.connects}; frame-ancestors 'none'; base-uri 'none'",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            # A connection kept open would look like a page that is there.
            "Connection": "close",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True


class WebConsoleServer(WebSocketProxy):  # type: ignore[misc]
    """Ends by itself when no page has come or the last was closed.

    Parameters
    ----------
    listener
        A socket on the loopback that listens already, so that nobody can take its port meanwhile.
    tied
        End at the end of standard input as well: whoever started us is gone.
    """

    def __init__(
        self, listener: socket.socket, doors: Doors, home: Path, *, patience: float, idle: float, tied: bool
    ) -> None:
        port = listener.getsockname()[1]
        hosts = [f"{host}:{port}" for host in ("127.0.0.1", "localhost")]
        self.doors = doors
        self.connects = " ".join(["'self'", *(f"ws://{host}" for host in hosts)])
        self._patience, self._idle, self._tied = patience, idle, tied
        self._seen = time.monotonic()
        super().__init__(
            Handler,
            listen_fd=listener.fileno(),
            web=str(HERE),
            token_plugin=ConsoleKeys(doors, home),
            auth_plugin=ExpectOrigin(" ".join(f"http://{host}" for host in hosts)),
            heartbeat=HEARTBEAT,
        )

    def poll(self) -> None:
        """End when nobody was here for long; called before each connection is taken, and once a second.

        A child process is a page that is connected. With too many of them the next has to wait.
        """
        while True:
            if self._tied and select.select([sys.stdin], [], [], 0)[0]:
                self.terminate()
            now, children = time.monotonic(), len(multiprocessing.active_children())
            if children:
                self._seen = now
            if now - self._seen > (self._idle if self.doors.used else self._patience):
                self.terminate()
            if children < MOST:
                return
            time.sleep(0.2)

    def top_new_client(self, startsock: socket.socket, address: Any) -> None:
        """Serve a connection, in the child process, which ends like any other program."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        super().top_new_client(startsock, address)


def main() -> None:
    """Serve until told to stop; the first line on standard output is the address, as JSON."""
    parser = argparse.ArgumentParser("vmlab.webconsole")
    parser.add_argument("machines", nargs="+")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--patience", type=float, default=PATIENCE)
    parser.add_argument("--idle", type=float, default=IDLE)
    parser.add_argument("--tied", action="store_true")
    args = parser.parse_args()
    if os.environ.get("VMLAB_DEBUG"):
        logging.basicConfig(level=logging.DEBUG)
    # websockify makes a process for each connection; what they inherit must be what we have.
    multiprocessing.set_start_method("fork")
    listener = socket.create_server(("127.0.0.1", 0))
    doors = Doors(args.machines)
    server = WebConsoleServer(
        listener, doors, args.home, patience=args.patience, idle=args.idle, tied=args.tied
    )
    port = listener.getsockname()[1]
    print(json.dumps({"address": f"http://127.0.0.1:{port}/#{doors.invitation}"}), flush=True)
    # Whoever started us has closed the other end, and nothing more is for them.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    server.start_server()


if __name__ == "__main__":
    main()
