"""The other end of our processes between network cards: a socket to which frames are sent as QEMU sends them."""

from __future__ import annotations

import os
import socket
import struct
import time
from pathlib import Path


def connect(path: Path) -> socket.socket:
    """Connect to a socket as soon as it is there."""
    end = time.monotonic() + 10
    while True:
        line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        line.settimeout(10)
        try:
            line.connect(os.fspath(path))
            return line
        except OSError:
            line.close()
            assert time.monotonic() < end
            time.sleep(0.02)


class Wire:
    """A connection with frames on it, each behind its length."""

    def __init__(self, path: Path) -> None:
        self.socket = connect(path)

    def send(self, *frames: bytes) -> None:
        """Send frames."""
        self.socket.sendall(b"".join(struct.pack(">I", len(f)) + f for f in frames))

    def get(self) -> bytes:
        """Return the next frame."""
        return self._exactly(struct.unpack(">I", self._exactly(4))[0])

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            assert more, "the other side hung up"
            data += more
        return data
