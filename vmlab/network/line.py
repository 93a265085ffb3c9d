"""A connection of a QEMU: frames, each behind its length in four bytes, as its ``stream`` back end sends them."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct

from vmlab.network.service import Loop

#: Bytes of one read, and of the longest frame that QEMU sends (its ``NET_BUFSIZE``).
READ, LONGEST = 256 << 10, 4096 + 65536
LENGTH = struct.Struct(">I")


class Line:
    """A connection; ``waiting`` is what has not been given to its QEMU yet.

    Whoever derives from it says what is done with what comes (:meth:`taken`), and may say when no more is taken
    (:meth:`is_full`).
    """

    def __init__(self, loop: Loop, connection: socket.socket) -> None:
        self.loop, self.connection = loop, connection
        self.waiting = bytearray()
        #: The bytes at the beginning of what waits that belong to a frame whose beginning has been given.
        self.begun = 0
        self._rest = b""
        self._events = 0
        loop.guests.add(self)
        self.listen()

    def taken(self, data: bytes) -> None:
        """Do something with the frames that have come, each behind its length."""
        raise NotImplementedError

    def is_full(self) -> bool:
        """Whether nothing more is to be read for now."""
        return False

    def drained(self) -> None:
        """Be told that something of what waited has been given."""

    def drop(self) -> None:
        """Let go of the connection, with what waits for it."""
        if self in self.loop.guests:
            self.loop.guests.discard(self)
            self.loop.watch(self.connection, 0, self._ready)
            self.connection.close()

    def give(self) -> None:
        """Give as much of what waits as is taken."""
        try:
            with contextlib.suppress(BlockingIOError):
                while self.waiting:
                    sent = self.connection.send(self.waiting)
                    self.begun = self._begun_after(sent)
                    del self.waiting[:sent]
        except OSError:
            self.drop()
            return
        self.listen()
        self.drained()

    def _begun_after(self, sent: int) -> int:
        """Return what :attr:`begun` is once that many bytes of what waits have gone."""
        if sent == len(self.waiting):
            return 0
        end = self.begun
        while end < sent:
            end += 4 + LENGTH.unpack_from(self.waiting, end)[0]
        return end - sent

    def listen(self) -> None:
        """Wait for what there is to wait for."""
        if self not in self.loop.guests:
            return
        events = 0 if self.is_full() else selectors.EVENT_READ
        events |= selectors.EVENT_WRITE if self.waiting else 0
        if events != self._events:
            self.loop.watch(self.connection, events, self._ready)
            self._events = events

    def _ready(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self.give()
        if events & selectors.EVENT_READ and self in self.loop.guests:
            try:
                with contextlib.suppress(BlockingIOError):
                    data = self.connection.recv(READ)
                    if not data:
                        raise ConnectionResetError
                    self.taken(self._whole(data))
            except (OSError, ValueError):
                self.drop()

    def _whole(self, data: bytes) -> bytes:
        """Return the frames that are whole now, each behind its length."""
        data, at = self._rest + data, 0
        while len(data) - at >= 4:
            (length,) = LENGTH.unpack_from(data, at)
            if length > LONGEST:
                raise ValueError("This is no frame.")
            if len(data) < at + 4 + length:
                break
            at += 4 + length
        self._rest = data[at:]
        return data[:at]
