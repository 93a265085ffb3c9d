"""The process that joins guests' network cards: one an account. ``python -m vmlab.network.switch FOLDER [UID GID]``.

A network is one Ethernet segment; it learns behind which card an address is, as any switch does. Each has a socket for
each number that a card can have in its machine: so the number of the process at the other end says whose card it is,
and a QEMU or a switch that comes back finds its place again without a word.

Nobody waits for a guest that does not read: what is too much for a card is dropped, and counted. Over the socket
``control`` it is told which networks there are (a JSON object a line, and one in answer); it writes that down beside
it, for the one that is started when it dies.

Networks can be *frozen*, so that several guests are caught at one moment: what their cards send is still read, and
held; what waits for a card is still given, until the networks are *silenced*. Then what is under way on them can be
written down, or be replaced by what was written down, and when they are thawed it goes on with the time that it had
left. They thaw by themselves when whoever froze them hangs up.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import ipaddress
import json
import math
import selectors
import socket
import struct
import sys
import termios
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from vmlab import private
from vmlab.network import dhcp, names
from vmlab.network.line import LENGTH, Line
from vmlab.network.networks import CARDS, CONTROL, RECORD, SPEAKS, socket_name
from vmlab.network.pipe import Pipe
from vmlab.network.service import Loop, serve

#: Bytes that wait for a card; what comes beyond is dropped. As much as a TCP connection has under way.
QUEUE = 4 << 20
#: Addresses that are remembered of a card: a guest that makes up more makes the oldest of its own forgotten.
ADDRESSES = 1024
#: Answers of ours to a card until it has taken them.
_ANSWERS = 64 << 10
#: Answers of ours to a card in a second.
_MOST_ANSWERS = 100
#: What comes of reading something that is not what it should be.
_NONSENSE = (ValueError, TypeError, AttributeError, KeyError)
#: Bytes of one word to us.
_WORD = 1 << 20
#: Bytes that a frozen network holds; then its cards are not read any more, and wait.
_HELD = 16 << 20
#: Bytes of frames that are kept of a network to be looked at, and of all networks together.
_KEPT, _KEPT_ALL = 4 << 20, 64 << 20
#: What QEMU itself sends for a guest whose state it has taken up (RARP), and the seconds for which it may do so.
_RARP, _ANNOUNCES = b"\x80\x35", 5.0


class Port(Line):
    """A card that is plugged in."""

    def __init__(self, network: Network, connection: socket.socket, pid: int, card: int) -> None:
        self.network, self.pid, self.card = network, pid, card
        self.key, self._since = f"{pid}.{card}", time.monotonic()
        #: Since when answers are counted, and how many there were.
        self._second, self._answers = 0.0, 0
        self.known: dict[bytes, None] = {}
        self.received = self.sent = self.dropped = 0
        self.pipes: tuple[Pipe, Pipe] | None = None
        super().__init__(network.switch, connection)
        self.set_link(network.switch.links.get(self.key))

    def taken(self, data: bytes) -> None:
        """Hand each frame on to whom it is for."""
        at, size = 0, len(data)
        if self.pid in self.network.switch.ignored:
            return
        now = time.monotonic()
        announces = now - self._since < _ANNOUNCES
        while at < size:
            end = at + 4 + LENGTH.unpack_from(data, at)[0]
            if end - at >= 18 and not (announces and data[at + 16 : at + 18] == _RARP):
                self.received += 1
                if self.network.frozen is not None:
                    self.network.hold(self.key, data[at:end])
                else:
                    self.send(data[at:end], now)
            at = end
        self.network.switch.flush()

    def send(self, frame: bytes, now: float) -> None:
        """Send a frame of this card, behind its length, on its way."""
        if self.pipes is None:
            self._carry(frame)
        elif not self.pipes[0].push(frame, now):
            self.dropped += 1

    def is_full(self) -> bool:
        """Whether nothing more of this card is to be read for now."""
        return self.network.held_bytes > _HELD

    def give(self) -> None:
        """Give as much of what waits as is taken; nothing where the network is silent."""
        if not self.network.silent:
            super().give()

    @property
    def left(self) -> int:
        """Bytes that its QEMU has not taken yet, whether they wait here or in the socket."""
        (sent,) = struct.unpack("i", fcntl.ioctl(self.connection, termios.TIOCOUTQ, bytes(4)))
        return len(self.waiting) + int(sent)

    def read_all(self) -> None:
        """Take all that its guest has sent until now."""
        before = -1
        while self in self.network.ports and before != self.network.held_bytes:
            before = self.network.held_bytes
            self._ready(selectors.EVENT_READ)

    def to_json(self, now: float) -> dict[str, Any]:
        """Return what is under way to and from this card, and which addresses are known to be behind it."""
        return {
            # Not the rest of a frame: its beginning is in the socket, of which nothing comes back.
            "waiting": _text(self.waiting[self.begun :]),
            "known": [mac.hex() for mac in self.known],
            "pipes": [pipe.to_json(now) for pipe in self.pipes or ()],
        }

    def take_up(self, found: Mapping[str, Any], now: float) -> None:
        """Let that be under way which was when :meth:`to_json` told it."""
        self.waiting[self.begun :] = _bytes(found["waiting"])
        for mac in list(self.known):
            self.network.table.pop(mac, None)
        self.known.clear()
        for known in found["known"]:
            self.network.learn(bytes.fromhex(known), self)
        for pipe, told in zip(self.pipes or (), found["pipes"], strict=False):
            pipe.take_up(told, now)

    def _carry(self, frame: bytes) -> None:
        """Hand a frame of this card on to whom it is for."""
        network, target, source = self.network, frame[4:10], frame[10:16]
        network.note(frame)
        table = network.table
        if table.get(source) is not self and not source[0] & 1:
            network.learn(source, self)
        to = table.get(target) if not network.floods else None
        if target == dhcp.SERVER_MAC:
            self._answer(frame[4:])
        elif to is None:
            if network.leases is not None and target[0] & 1:
                self._answer(frame[4:])
            for port in network.ports:
                port.take(frame, self)
        else:
            to.take(frame, self)

    def take(self, frame: bytes, source: Port) -> None:
        """Send a frame, behind its length, to this card."""
        if self is source or self.pid in self.network.switch.ignored:
            return
        if self.pipes is None:
            self._queue(frame)
        elif not self.pipes[1].push(frame, time.monotonic()):
            self.dropped += 1

    def _queue(self, frame: bytes) -> None:
        """Let a frame wait for its guest."""
        if len(self.waiting) + len(frame) > QUEUE:
            self.dropped += 1
            return
        self.sent += 1
        self.waiting += frame
        self.network.switch.reached.add(self)

    def set_link(self, how: Mapping[str, Any] | None) -> None:
        """Let the link be as it is said, in both directions; what is under way arrives now."""
        for pipe in self.pipes or ():
            pipe.arrive(math.inf)
        self.pipes = None
        if how is not None:
            seed = str(how.get("seed", ""))
            self.pipes = Pipe(how, f"{seed} out", self._carry), Pipe(how, f"{seed} in", self._queue)
        self.network.switch.flush()

    def drop(self) -> None:
        """Forget the card and what is known of it."""
        super().drop()
        self.network.ports.discard(self)
        self.network.switch.reached.discard(self)
        for mac in self.known:
            if self.network.table.get(mac) is self:
                del self.network.table[mac]
        self.known.clear()

    def _answer(self, frame: bytes) -> None:
        """Answer a frame that asks us something."""
        leases, now = self.network.leases, time.monotonic()
        if leases is None or len(self.waiting) >= _ANSWERS:
            return
        if now - self._second >= 1:
            self._second, self._answers = now, 0
        if self._answers >= _MOST_ANSWERS:
            return
        if dhcp.is_question(frame):
            said = dhcp.answer(frame, leases)
        elif leases.names:
            said = names.answer(frame, leases.server, leases.names)
        else:
            said = None
        if said is None:
            return
        self._answers += 1
        answer = LENGTH.pack(len(said)) + said
        self.network.note(answer)
        if self.pipes is None:
            self._queue(answer)
        else:
            self.pipes[1].push(answer, now)


class Network:
    """A segment: its cards, and behind which of them an address is."""

    def __init__(self, switch: Switch, identity: str) -> None:
        self.switch, self.identity = switch, identity
        self.ports: set[Port] = set()
        self.doors: list[Callable[[], None]] = []
        self.table: dict[bytes, Port] = {}
        self.leases: dhcp.Leases | None = None
        #: Whether every frame goes to all, as with a hub.
        self.floods = False
        #: Since when it is frozen, in seconds of :func:`time.monotonic`; what its cards have sent since, and its bytes.
        self.frozen: float | None = None
        self.silent = False
        self.held: list[tuple[str, bytes]] = []
        self.held_bytes = 0
        #: What was on it last, each behind its length, with its time.
        self.kept: deque[tuple[float, bytes]] = deque()
        self.kept_bytes = 0

    def note(self, frame: bytes) -> None:
        """Keep a frame to be looked at, and let the oldest go."""
        self.kept.append((time.time(), frame))
        self.kept_bytes += len(frame)
        while self.kept_bytes > self.switch.most_kept:
            self.kept_bytes -= len(self.kept.popleft()[1])

    def capture(self) -> bytes:
        """Return what was kept, each frame behind its record."""
        return b"".join(RECORD.pack(when, len(frame) - 4) + frame[4:] for when, frame in self.kept)

    def hold(self, key: str, frame: bytes) -> None:
        """Keep what a card has sent until the network thaws."""
        self.held.append((key, frame))
        self.held_bytes += len(frame)

    def freeze(self) -> None:
        """Let nothing that is sent arrive any more; what waits for a card is still given."""
        if self.frozen is None:
            self.frozen = time.monotonic()

    def thaw(self) -> None:
        """Let all go on, with the time that it had left."""
        if self.frozen is None:
            return
        now = time.monotonic()
        for port in self.ports:
            for pipe in port.pipes or ():
                pipe.postpone(now - self.frozen)
        self.frozen, self.silent = None, False
        held, self.held, self.held_bytes = self.held, [], 0
        ports = {port.key: port for port in self.ports}
        for key, frame in held:
            if key in ports:
                ports[key].send(frame, now)
        for port in list(self.ports):
            port.give()

    def to_json(self) -> dict[str, Any]:
        """Return what is under way; the network is frozen, and nobody sends any more."""
        assert self.frozen is not None
        for port in list(self.ports):
            port.read_all()
        return {
            "held": [[key, _text(frame)] for key, frame in self.held],
            "ports": {port.key: port.to_json(self.frozen) for port in self.ports},
        }

    def take_up(self, found: Mapping[str, Any]) -> None:
        """Let that be under way which was when :meth:`to_json` told it, and nothing else; the network is frozen."""
        assert self.frozen is not None
        self.table.clear()
        self.held = [(str(key), _bytes(text)) for key, text in found["held"]]
        self.held_bytes = sum(len(frame) for _, frame in self.held)
        nothing = {"waiting": "", "known": [], "pipes": [{}, {}]}
        for port in self.ports:
            port.take_up(found["ports"].get(port.key, nothing), self.frozen)

    def learn(self, mac: bytes, port: Port) -> None:
        """Remember behind which card an address is."""
        if (before := self.table.get(mac)) is not None:
            before.known.pop(mac, None)
        elif len(port.known) >= ADDRESSES:
            oldest = next(iter(port.known))
            del port.known[oldest]
            self.table.pop(oldest, None)
        self.table[mac] = port
        port.known[mac] = None

    def come(self, card: int) -> Callable[[socket.socket, int], None]:
        """Return what plugs in the card of that number of whoever connects."""

        def come(connection: socket.socket, pid: int) -> None:
            for old in [port for port in self.ports if (port.pid, port.card) == (pid, card)]:
                old.drop()
            self.ports.add(Port(self, connection, pid, card))

        return come

    def tell(self) -> dict[str, Any]:
        """Return what there is to say of it."""
        return {
            "ports": [
                {
                    "pid": port.pid, "card": port.card, "received": port.received, "sent": port.sent,
                    "dropped": port.dropped,
                    "left": port.left if self.frozen is not None else len(port.waiting),
                }
                for port in self.ports
            ]
        }  # fmt: skip


class Switch(Loop):
    """All networks of an account."""

    def __init__(self, folder: Path, uid: int) -> None:
        super().__init__(uid)
        self._folder, self._networks = folder, dict[str, Network]()
        self._words: dict[str, dict[str, Any]] = {}
        #: The numbers of QEMUs of which nothing is carried.
        self.ignored: set[int] = set()
        #: How a link is, by the number of its QEMU and that of its card, where it is not perfect.
        self.links: dict[str, dict[str, Any]] = {}
        #: Bytes of frames that are kept of each network.
        self.most_kept = _KEPT
        #: Cards that something waits for.
        self.reached: set[Port] = set()
        # What cannot be read it is told anew.
        with contextlib.suppress(OSError, *_NONSENSE):
            known = json.loads((folder / "networks").read_text())
            self.ignored.update(known["ignored"])
            self.links.update(known["links"])
            self._open(known["networks"])
        self.door(folder / CONTROL, self._listen)

    def due(self) -> float | None:
        """Return when the next frame arrives that is under way."""
        return min(
            (due for pipe in self._pipes() if (due := pipe.due) is not None),
            default=None,
        )

    def tick(self, now: float) -> None:
        """Deliver what has arrived."""
        for pipe in self._pipes():
            pipe.arrive(now)
        self.flush()

    def flush(self) -> None:
        """Give to cards what waits for them."""
        while self.reached:
            self.reached.pop().give()

    def _pipes(self) -> list[Pipe]:
        """Return the pipes in which time goes on."""
        if not self.links:
            return []
        return [pipe for port in self._ports() if port.network.frozen is None for pipe in port.pipes or ()]

    def _ports(self) -> list[Port]:
        return [port for network in self._networks.values() for port in network.ports]

    def _set_links(self, links: dict[str, dict[str, Any] | None]) -> None:
        """Let links be as they are said; None makes one perfect."""
        for key, how in links.items():
            if how is None:
                self.links.pop(key, None)
            else:
                # One that makes no sense is none.
                Pipe(how, "", lambda _: None)
                self.links[key] = how
        for port in self._ports():
            if port.key in links:
                port.set_link(links[port.key])

    def _open(self, words: dict[str, dict[str, Any]]) -> None:
        """Make networks, or tell those that there are which addresses they give."""
        self.most_kept = min(_KEPT, _KEPT_ALL // max(1, len(self._networks.keys() | words.keys())))
        for identity, word in words.items():
            network = self._networks.get(identity)
            if network is None:
                network = self._networks[identity] = Network(self, identity)
                for card in range(CARDS):
                    network.doors.append(
                        self.door(self._folder / socket_name(identity, card), network.come(card))
                    )
            known = self._words.setdefault(identity, {"subnet": None, "leases": {}, "names": {}})
            known["floods"] = network.floods = bool(word.get("floods", known.get("floods", False)))
            known["subnet"] = word.get("subnet") or known["subnet"]
            known["leases"] |= word.get("leases", {})
            known["names"] |= word.get("names", {})
            if known["subnet"]:
                network.leases = dhcp.Leases(
                    ipaddress.IPv4Network(known["subnet"]),
                    {
                        bytes.fromhex(mac.replace(":", "")): ipaddress.IPv4Address(address)
                        for mac, address in known["leases"].items()
                    },
                    {name: ipaddress.IPv4Address(address) for name, address in known["names"].items()},
                )

    def _close(self, identities: list[str]) -> None:
        """Take networks away, and pull the cables of those that are plugged in."""
        for identity in identities:
            self._words.pop(identity, None)
            if (network := self._networks.pop(identity, None)) is not None:
                for port in list(network.ports):
                    port.drop()
                for close in network.doors:
                    close()

    def run(self) -> None:
        """Serve until no card is plugged in any more; the next switch is told anew what there is."""
        super().run()
        (self._folder / "networks").unlink(missing_ok=True)

    def _listen(self, connection: socket.socket, _: int) -> None:
        heard = bytearray()
        #: What whoever is at the other end has frozen.
        frozen: set[str] = set()

        def ready(_: int) -> None:
            try:
                data = connection.recv(1 << 16)
                heard.extend(data)
                if not data or len(heard) > _WORD:
                    raise ValueError("Somebody says nothing, or too much.")
                while (end := heard.find(b"\n")) >= 0:
                    word = json.loads(heard[:end])
                    del heard[: end + 1]
                    said = json.dumps(self._do(word, frozen)).encode() + b"\n"
                    # Whoever does not read an answer of ours does not get it.
                    if connection.send(said) != len(said):
                        raise ValueError("Somebody does not listen.")
            except BlockingIOError:
                return
            except (OSError, *_NONSENSE):
                self.watch(connection, 0, ready)
                connection.close()
                self._thaw(frozen)

        self.watch(connection, selectors.EVENT_READ, ready)

    def _freeze(self, word: Mapping[str, Any], frozen: set[str]) -> None:
        """Do what is said of networks that are frozen, in the order in which it makes sense."""
        for identity in word.get("freeze", []):
            self._networks[identity].freeze()
            frozen.add(identity)
        for identity in word.get("silence", []):
            self._networks[identity].silent = identity in frozen
        # In files: there may be more of it than fits into a word.
        if name := word.get("export"):
            found = {identity: self._networks[identity].to_json() for identity in frozen}
            private.replace(self._folder / Path(name).name, json.dumps(found))
        if name := word.get("import"):
            found = json.loads((self._folder / Path(name).name).read_text())
            for identity in frozen & found.keys():
                self._networks[identity].take_up(found[identity])
        for identity, name in word.get("capture", {}).items():
            private.replace(self._folder / Path(name).name, self._networks[identity].capture())
        self._thaw(word.get("thaw", []))
        frozen.difference_update(word.get("thaw", []))

    def _thaw(self, identities: Iterable[str]) -> None:
        for identity in identities:
            if (network := self._networks.get(identity)) is not None:
                network.thaw()
        self.flush()

    def _do(self, word: dict[str, Any], frozen: set[str]) -> dict[str, Any]:
        self._open(word.get("open", {}))
        self._close(word.get("close", []))
        self.ignored |= {int(pid) for pid in word.get("ignore", [])}
        self.ignored -= {int(pid) for pid in word.get("listen", [])}
        self._set_links(word.get("links", {}))
        self._freeze(word, frozen)
        if word.keys() & {"open", "close", "ignore", "listen", "links"}:
            known = {"networks": self._words, "ignored": sorted(self.ignored), "links": self.links}
            private.replace(self._folder / "networks", json.dumps(known))
        return {
            "speaks": SPEAKS,
            "networks": {identity: network.tell() for identity, network in self._networks.items()},
        }


def _text(data: bytes | bytearray) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


if __name__ == "__main__":
    sys.exit(serve(Switch))
