"""The process between guests and the outside: one an account. ``python -m vmlab.network.relay FOLDER [UID GID]``.

Each QEMU connects twice: with the back end of its guest's card, and with that of its user-mode network. Which two
belong together is told by the number of the process at the other end. What comes from a card goes through the filter,
what comes from outside goes to the card. While one of the two is not there, nothing passes: a QEMU whose relay has died
is offline, and connects again by itself.

Memory is bounded: who sends faster than the other side takes is read no further until it does.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

from vmlab import private
from vmlab.network import addresses
from vmlab.network.filter import judge
from vmlab.network.outside import SIDES, WAYS, socket_name

#: Seconds without any guest after which it ends.
IDLE_EXIT = 60.0
#: Bytes that wait for a side: from where on the other one is not read, and until when.
HIGH, LOW = 512 << 10, 64 << 10
#: Bytes of one read, and of the longest frame that QEMU sends (its ``NET_BUFSIZE``).
READ, LONGEST = 256 << 10, 4096 + 65536
#: Connections at once: more than any host has guests for. More are not taken.
MOST = 2048
_UCRED = struct.Struct("3i")
_LENGTH = struct.Struct(">I")


class End:
    """One of the two connections of a QEMU."""

    def __init__(self, relay: Relay, connection: socket.socket, way: str, side: str, pid: int) -> None:
        self.relay, self.connection, self.way, self.side, self.key = relay, connection, way, side, (way, pid)
        self.waiting = bytearray()
        self._rest = b""
        self._events, self._stopped = 0, False
        self.listen()

    @property
    def other(self) -> End | None:
        """The other connection of the same QEMU."""
        return self.relay.ends.get((*self.key, SIDES[1 - SIDES.index(self.side)]))

    def ready(self, events: int) -> None:
        """Give what waits, and take what has come."""
        try:
            if events & selectors.EVENT_WRITE:
                self._give()
            if events & selectors.EVENT_READ:
                self._take()
        except (OSError, ValueError):
            self.relay.drop(self)

    def _take(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data = self.connection.recv(READ)
            if not data:
                raise ConnectionResetError
            data, other = self._whole(data), self.other
            if other is None:
                return
            if self.side == "out":
                other.waiting += data
            else:
                self._filter(data, other)
            for end in (other, self):
                try:
                    end._give()
                except OSError:
                    self.relay.drop(end)

    def _whole(self, data: bytes) -> bytes:
        """Return the frames that are whole now, each behind its length."""
        data, at = self._rest + data, 0
        while len(data) - at >= 4:
            (length,) = _LENGTH.unpack_from(data, at)
            if length > LONGEST:
                raise ValueError("This is no frame.")
            if len(data) < at + 4 + length:
                break
            at += 4 + length
        self._rest = data[at:]
        return data[:at]

    def _filter(self, data: bytes, other: End) -> None:
        at, reach = 0, self.relay.reach[self.way]
        while at < len(data):
            end = at + 4 + _LENGTH.unpack_from(data, at)[0]
            passes, answer = judge(data[at + 4 : end], reach)
            if passes:
                other.waiting += data[at:end]
            elif answer is not None and len(self.waiting) < HIGH:
                self.waiting += _LENGTH.pack(len(answer)) + answer
            at = end

    def _give(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self.waiting:
                del self.waiting[: self.connection.send(self.waiting)]
        self.listen()
        if len(self.waiting) <= LOW and (other := self.other) is not None:
            other.listen()

    def listen(self) -> None:
        """Wait for what there is to wait for."""
        other = self.other
        waits = 0 if other is None else len(other.waiting)
        # Who has been stopped is read again only when much less waits.
        self._stopped = waits > (LOW if self._stopped else HIGH)
        events = 0 if self._stopped else selectors.EVENT_READ
        events |= selectors.EVENT_WRITE if self.waiting else 0
        if events != self._events:
            self.relay.watch(self.connection, events, self.ready)
            self._events = events


class Relay:
    """All connections, and what may be reached."""

    def __init__(self, folder: Path, uid: int) -> None:
        self.ends: dict[tuple[str, int, str], End] = {}
        self.reach: dict[str, addresses.Reach] = {}
        self._uid, self._selector, self._seen = uid, selectors.DefaultSelector(), time.monotonic()
        self._kernel = addresses.changes()
        self._look()
        self.watch(self._kernel, selectors.EVENT_READ, self._changed)
        for way in WAYS:
            for side in SIDES:
                path = folder / socket_name(way, side)
                path.unlink(missing_ok=True)
                listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                listener.bind(os.fspath(path))
                listener.listen(64)
                self.watch(listener, selectors.EVENT_READ, self._door(listener, way, side))

    def run(self) -> None:
        """Serve until nobody has been there for a while."""
        while self.ends or time.monotonic() - self._seen < IDLE_EXIT:
            for key, events in self._selector.select(None if self.ends else IDLE_EXIT):
                key.data(events)
            if self.ends:
                self._seen = time.monotonic()

    def watch(self, what: socket.socket, events: int, then: Callable[[int], None]) -> None:
        """Call ``then`` when it is ready; with no events, not any more."""
        with contextlib.suppress(KeyError):
            self._selector.unregister(what)
        if events:
            self._selector.register(what, events, then)

    def drop(self, end: End) -> None:
        """Let go of a connection, with what waited for it."""
        if self.ends.get((*end.key, end.side)) is not end:
            return
        other = end.other
        del self.ends[(*end.key, end.side)]
        self.watch(end.connection, 0, end.ready)
        end.connection.close()
        if other is not None:
            other.listen()

    def _door(self, listener: socket.socket, way: str, side: str) -> Callable[[int], None]:
        def accept(_: int) -> None:
            with contextlib.suppress(BlockingIOError):
                connection, _address = listener.accept()
                pid, uid, _gid = _UCRED.unpack(
                    connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
                )
                # Whoever only asks whether we are here keeps us here for a while.
                self._seen = time.monotonic()
                if uid not in (self._uid, os.getuid()) or len(self.ends) >= MOST:
                    connection.close()
                    return
                connection.setblocking(False)
                if (old := self.ends.get((way, pid, side))) is not None:
                    self.drop(old)
                end = self.ends[(way, pid, side)] = End(self, connection, way, side, pid)
                if end.other is not None:
                    end.other.listen()

        return accept

    def _changed(self, _: int) -> None:
        with contextlib.suppress(OSError):
            while self._kernel.recv(1 << 16):
                pass
        self._look()

    def _look(self) -> None:
        own, near = addresses.of_this_host(), addresses.near_this_host()
        self.reach = {way: addresses.Reach(site=way == "site", own=own, near=near) for way in WAYS}


def main() -> int:
    """Serve; at once over if another one does."""
    folder = Path(sys.argv[1])
    uid = os.getuid()
    if len(sys.argv) > 2:
        uid, gid = int(sys.argv[2]), int(sys.argv[3])
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    with open(private.lock_file(folder / "lock"), "r+b") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        os.umask(0o077)
        Relay(folder, uid).run()
        for way in WAYS:
            for side in SIDES:
                (folder / socket_name(way, side)).unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
