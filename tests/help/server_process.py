"""A real Jupyter server in a process of its own, with vmlab's extension, and small clients that talk to it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import websocket

#: With a character that has to be quoted: prefixes of JupyterHub users can have one.
PREFIX = "/user/a%40b/"


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class JupyterProcess:
    """A running Jupyter server.

    Attributes
    ----------
    token
        Logs in whoever has it.
    """

    process: subprocess.Popen[bytes]
    port: int
    token: str
    log: Path
    base: str = PREFIX
    cookies: dict[str, str] = field(default_factory=dict)
    sockets: list[websocket.WebSocket] = field(default_factory=list)

    def request(
        self, method: str, path: str, body: Any = None, *, login: str = "token", **headers: str
    ) -> Answer:
        """Send a request to a path below the base URL.

        Parameters
        ----------
        login
            ``token``; ``cookie``, as a page does it, with the XSRF token; ``no-xsrf``: without that; ``none``.
        """
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if login == "token":
            sent["Authorization"] = f"token {self.token}"
        elif login in ("cookie", "no-xsrf"):
            sent["Cookie"] = self.cookie()
            if login == "cookie":
                sent["X-XSRFToken"] = self.cookies["_xsrf"]
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        data = json.dumps(body) if body is not None else ("" if method == "POST" else None)
        connection.request(method, self.base + path, data, sent)
        with connection.getresponse() as answer:
            found = Answer(answer.status, dict(answer.getheaders()), answer.read())
        connection.close()
        return found

    def api(self, method: str, path: str, body: Any = None, **options: str) -> Answer:
        """Send a request to vmlab's API."""
        return self.request(method, f"vmlab/api/{path}", body, **options)

    def cookie(self) -> str:
        """Log in as a browser does, once, and return the cookies."""
        # The login page brings the XSRF token; the token in the URL, that a browser is opened with, the login.
        for query in () if self.cookies else ("", f"?token={self.token}"):
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            connection.request("GET", f"{self.base}login{query}")
            with connection.getresponse() as answer:
                for name, value in answer.getheaders():
                    if name.lower() == "set-cookie":
                        key, _, rest = value.partition("=")
                        self.cookies[key] = rest.partition(";")[0]
            connection.close()
        return "; ".join(f"{key}={value}" for key, value in self.cookies.items())

    def websocket(self, path: str, *, login: str = "token", origin: str | None = None) -> websocket.WebSocket:
        """Open a WebSocket below the base URL."""
        header = [f"Authorization: token {self.token}"] if login == "token" else []
        opened = websocket.create_connection(
            f"ws://127.0.0.1:{self.port}{self.base}{path}",
            header=header,
            cookie=self.cookie() if login == "cookie" else None,
            origin=origin,
            suppress_origin=origin is None,
            subprotocols=["binary"] if "/consoles/" in path else None,
            timeout=60,
        )
        # Closed at the end, not whenever a test lets go of it.
        self.sockets.append(opened)
        return opened

    @property
    def memory(self) -> int:
        """Bytes of RAM that the server has now."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) << 10
        raise AssertionError


def close_code(opened: websocket.WebSocket) -> tuple[int, str]:
    """Read until the server closes, and return its code and reason."""
    while True:
        opcode, data = opened.recv_data()
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            return struct.unpack(">H", data[:2])[0], data[2:].decode()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def jupyter_process(
    folder: Path, *, home: Path | None = None, config: str = "", before: str = ""
) -> Iterator[JupyterProcess]:
    """Run a Jupyter server with vmlab's extension.

    Parameters
    ----------
    folder
        An empty folder for all that it writes.
    home
        The store, by default that of whoever runs the tests.
    config
        More lines of ``jupyter_server_config.py``.
    before
        Python that runs in the process before Jupyter.
    """
    port, token = _free_port(), secrets.token_hex(8)
    for name in ("config", "data", "files"):
        (folder / name).mkdir(parents=True)
    (folder / "config" / "jupyter_server_config.py").write_text(
        f"c.ServerApp.jpserver_extensions = {{'vmlab': True}}\n"
        f"c.ServerApp.base_url = {PREFIX!r}\nc.IdentityProvider.token = {token!r}\n"
        f"c.ServerApp.root_dir = {str(folder / 'files')!r}\n"
        f"c.ServerApp.port = {port}\nc.ServerApp.port_retries = 0\nc.ServerApp.open_browser = False\n"
        f"c.ServerApp.allow_root = True\n{config}\n"
    )
    env = os.environ | {
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTER_RUNTIME_DIR": str(folder / "run"),
        # Not what else is installed for this Python.
        "JUPYTER_NO_CONFIG": "",
        "PYTHONWARNINGS": "default",
    }
    if home is not None:
        env["VMLAB_HOME"] = str(home)
    code = f"{before}\nfrom jupyter_server.serverapp import main\nmain(argv=[])"
    log = folder / "log.txt"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", code], env=env, stdout=out, stderr=subprocess.STDOUT, cwd=folder / "files"
        )
    server = JupyterProcess(process, port, token, log)
    try:
        end = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                if server.request("GET", "api/status").status == 200:
                    break
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield server
    finally:
        for opened in server.sockets:
            opened.shutdown()
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
