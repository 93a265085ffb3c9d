"""What an account of this host can get at: run by ``stranger.py`` as that account, with the standard library alone.

Each function returns what it could do; a stranger should get empty answers.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

#: Of a process, what only its own account may see.
PRIVATE = (
    "environ",
    "maps",
    "smaps",
    "smaps_rollup",
    "mem",
    "pagemap",
    "numa_maps",
    "io",
    "auxv",
    "syscall",
    "stack",
)
LINKS = ("cwd", "root", "exe")
FOLDERS = ("fd", "fdinfo", "map_files", "ns")


def paths(wanted: list[str]) -> list[str]:
    """Return which of these files, folders, sockets and devices can be listed, read, written or connected to."""
    return [f"{what} {path}" for path in wanted for what in _can(path)]


def _can(path: str) -> list[str]:
    found = []
    try:
        kind = stat.S_IFMT(os.lstat(path).st_mode)
    except OSError:
        # Not even its name is seen; by its whole path it may be reached all the same.
        kind = 0
    if kind in (0, stat.S_IFDIR):
        with contextlib.suppress(OSError):
            list(Path(path).iterdir())
            found.append("list")
        if kind and os.access(path, os.W_OK):
            found.append("write")
    if kind in (0, stat.S_IFREG, stat.S_IFCHR, stat.S_IFIFO):
        for flags, what in ((os.O_RDONLY, "read"), (os.O_WRONLY, "write")):
            with contextlib.suppress(OSError):
                os.close(os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY))
                if what not in found and "list" not in found:
                    found.append(what)
    if kind in (0, stat.S_IFSOCK):
        for how in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, how) as client:
                client.settimeout(2)
                client.connect(path)
                found.append("connect to")
    return found


def abstract(names: list[str]) -> list[str]:
    """Return which of these abstract sockets answer."""
    found = []
    for name in names:
        for how in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, how) as client:
                client.connect("\0" + name)
                found.append(f"connect to @{name}")
    return found


def processes(pids: list[int]) -> list[str]:
    """Return what can be seen of processes beyond what ``ps`` shows."""
    found = []
    for pid in pids:
        for name in PRIVATE:
            with contextlib.suppress(OSError), open(f"/proc/{pid}/{name}", "rb") as file:
                # Some open, and tell nothing.
                if file.read(64):
                    found.append(f"read /proc/{pid}/{name}")
        for name in LINKS:
            with contextlib.suppress(OSError):
                found.append(f"see /proc/{pid}/{name}: {Path(f'/proc/{pid}/{name}').readlink()}")
        for name in FOLDERS:
            with contextlib.suppress(OSError):
                list(Path(f"/proc/{pid}/{name}").iterdir())
                found.append(f"list /proc/{pid}/{name}")
    return found


def shown(pids: list[int]) -> str:
    """Return all that everybody can see of processes."""
    text = ""
    for pid in pids:
        for name in ("cmdline", "comm", "status", "stat"):
            with contextlib.suppress(OSError):
                text += Path(f"/proc/{pid}/{name}").read_text(errors="replace").replace("\0", " ") + "\n"
    return text


def port(number: int, say: str = "", seconds: float = 1.0) -> str:
    """Connect to a port of the loopback, say something, and return what comes; raise if nobody answers."""
    with socket.create_connection(("127.0.0.1", number), timeout=5) as client:
        client.sendall(say.encode())
        client.settimeout(seconds)
        data = b""
        with contextlib.suppress(OSError):
            while len(data) < 65536 and (more := client.recv(4096)):
                data += more
        return data.decode("latin-1")


def channel(where: int | str, seconds: float = 10.0, mark: str = "") -> str:
    """Subscribe to a ZeroMQ publisher, as a kernel's is, and return all that it says until ``mark`` is in it."""
    with _peer(where, b"SUB") as client:
        client.sendall(b"\x00\x01\x01")
        data, end = b"", time.monotonic() + seconds
        client.settimeout(0.5)
        while time.monotonic() < end and not (mark and mark.encode() in data):
            with contextlib.suppress(TimeoutError):
                more = client.recv(65536)
                if not more:
                    break
                data += more
        return data.decode("latin-1")


def push(where: int, parts: list[str]) -> None:
    """Send a message to a ZeroMQ socket that takes them."""
    with _peer(where, b"PUSH") as client:
        for number, part in enumerate(parts, start=1):
            data = part.encode()
            client.sendall(bytes([number < len(parts), len(data)]) + data)
        client.settimeout(1)
        with contextlib.suppress(OSError):
            client.recv(100)


@contextlib.contextmanager
def _peer(where: int | str, kind: bytes) -> Iterator[socket.socket]:
    with socket.socket(
        socket.AF_INET if isinstance(where, int) else socket.AF_UNIX, socket.SOCK_STREAM
    ) as client:
        client.settimeout(5)
        client.connect(("127.0.0.1", where) if isinstance(where, int) else where)
        # ZMTP 3.0: both greet, without security; then both say READY.
        client.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31))
        _take(client, 64)
        ready = b"\x05READY\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind
        client.sendall(b"\x04" + bytes([len(ready)]) + ready)
        _take(client, _take(client, 2)[1])
        yield client


def _take(client: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = client.recv(count - len(data))
        if not more:
            raise ConnectionResetError("it hung up")
        data += more
    return data
