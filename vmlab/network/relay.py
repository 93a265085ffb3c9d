"""The process between guests and the outside: one an account. ``python -m vmlab.network.relay FOLDER [UID GID]``.

Each QEMU connects twice: with the back end of its guest's card, and with that of its user-mode network; one card of a
machine has a way out. Which two belong together is told by the number of the process at the other end. What comes from
a card goes through the filter, what comes from outside goes to the card. While one of the two is not there, nothing
passes: a QEMU whose relay has died is offline, and connects again by itself.

Memory is bounded: who sends faster than the other side takes is read no further until it does.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from vmlab.network import addresses
from vmlab.network.filter import judge
from vmlab.network.line import LENGTH, Line
from vmlab.network.outside import SIDES, WAYS, socket_name
from vmlab.network.service import Loop, serve

#: Bytes that wait for a side: from where on the other one is not read, and until when.
HIGH, LOW = 512 << 10, 64 << 10


class End(Line):
    """One of the two connections of a QEMU."""

    def __init__(self, relay: Relay, connection: socket.socket, key: tuple[str, int], side: str) -> None:
        self.relay, self.key, self.side = relay, key, side
        self._stopped = False
        super().__init__(relay, connection)

    @property
    def other(self) -> End | None:
        """The other connection of the same QEMU."""
        return self.relay.ends.get((*self.key, SIDES[1 - SIDES.index(self.side)]))

    def taken(self, data: bytes) -> None:
        """Send it on: from outside as it is, from the card what the filter lets pass."""
        other = self.other
        if other is None:
            return
        if self.side == "out":
            other.waiting += data
        else:
            self._filter(data, other)
        other.give()
        self.give()

    def is_full(self) -> bool:
        """Whether the other side has much to take; who has been stopped is read again only when that is much less."""
        other = self.other
        waits = 0 if other is None else len(other.waiting)
        self._stopped = waits > (LOW if self._stopped else HIGH)
        return self._stopped

    def drained(self) -> None:
        """Have the other side read again."""
        if len(self.waiting) <= LOW and (other := self.other) is not None:
            other.listen()

    def drop(self) -> None:
        """Let go of the connection, with what waits for it."""
        super().drop()
        if self.relay.ends.get((*self.key, self.side)) is self:
            other = self.other
            del self.relay.ends[(*self.key, self.side)]
            if other is not None:
                other.listen()

    def _filter(self, data: bytes, other: End) -> None:
        at, reach = 0, self.relay.reach[self.key[0]]
        while at < len(data):
            end = at + 4 + LENGTH.unpack_from(data, at)[0]
            passes, answer = judge(data[at + 4 : end], reach)
            if passes:
                other.waiting += data[at:end]
            elif answer is not None and len(self.waiting) < HIGH:
                self.waiting += LENGTH.pack(len(answer)) + answer
            at = end


class Relay(Loop):
    """All connections, and what may be reached."""

    def __init__(self, folder: Path, uid: int) -> None:
        super().__init__(uid)
        self.ends: dict[tuple[str, int, str], End] = {}
        self.reach: dict[str, addresses.Reach] = {}
        self._kernel = addresses.changes()
        self._look()
        self.watch(self._kernel, selectors.EVENT_READ, self._changed)
        for way in WAYS:
            for side in SIDES:
                self.door(folder / socket_name(way, side), self._come(way, side))

    def _come(self, way: str, side: str) -> Callable[[socket.socket, int], None]:
        def come(connection: socket.socket, pid: int) -> None:
            if (old := self.ends.get((way, pid, side))) is not None:
                old.drop()
            end = self.ends[(way, pid, side)] = End(self, connection, (way, pid), side)
            if end.other is not None:
                end.other.listen()

        return come

    def _changed(self, _: int) -> None:
        with contextlib.suppress(OSError):
            while self._kernel.recv(1 << 16):
                pass
        self._look()

    def _look(self) -> None:
        own, near = addresses.of_this_host(), addresses.near_this_host()
        self.reach = {way: addresses.Reach(site=way == "site", own=own, near=near) for way in WAYS}


if __name__ == "__main__":
    sys.exit(serve(Relay))
