"""What was on a network: frames with their times, what they are, and who talked to whom. Read by dpkt.

All that is shown of a frame came from a guest, or from a file: whoever shows it escapes it.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, overload

from vmlab.render.shown import Shown

#: The longest text about a frame.
_LONGEST = 120


@dataclass(frozen=True)
class Frame:
    """A frame.

    Attributes
    ----------
    time
        When the switch had it, in seconds since 1970.
    data
        Its bytes, from the Ethernet header on.
    source, target
        Addresses of IP, else MACs.
    kind
        ``ARP``, ``ICMP``, ``TCP``, ``UDP``, ``DNS``, ``DHCP`` ..., ``?`` where it cannot be read.
    ports
        The ports of source and target; None where there are none.
    what
        What it says, in a few words.
    """

    time: float
    data: bytes
    source: str
    target: str
    kind: str
    ports: tuple[int, int] | None
    what: str

    @property
    def when(self) -> dt.datetime:
        """The time, in UTC."""
        return dt.datetime.fromtimestamp(self.time, dt.UTC)

    def to_json(self) -> dict[str, Any]:
        """Return the attributes by name, with the bytes' number instead of them."""
        return {
            "time": self.when.isoformat(),
            "source": self.source,
            "target": self.target,
            "kind": self.kind,
            "ports": list(self.ports) if self.ports else None,
            "bytes": len(self.data),
            "what": self.what,
        }


@dataclass(frozen=True)
class Conversation:
    """Frames between two, in both directions; ``began`` is the time of the first."""

    one: str
    other: str
    kind: str
    frames: int
    bytes: int
    began: float

    def to_json(self) -> dict[str, Any]:
        """Return the attributes by name."""
        return dict(vars(self))


class Capture(Shown, Sequence[Frame]):
    """The frames that were on a network, the oldest first."""

    def __init__(self, network: str, raw: Sequence[tuple[float, bytes]]) -> None:
        self.network, self.raw = network, list(raw)

    def __repr__(self) -> str:
        return f"<Capture of {self.network}: {len(self)} frames>"

    @cached_property
    def frames(self) -> list[Frame]:
        """All of them, read."""
        return [read(time, data) for time, data in self.raw]

    @overload
    def __getitem__(self, index: int) -> Frame: ...
    @overload
    def __getitem__(self, index: slice) -> list[Frame]: ...
    def __getitem__(self, index: int | slice) -> Frame | list[Frame]:
        return self.frames[index]

    def __len__(self) -> int:
        return len(self.raw)

    def __iter__(self) -> Iterator[Frame]:
        return iter(self.frames)

    def of(self, word: str) -> list[Frame]:
        """Return the frames of a kind, or from or to an address: ``"arp"``, ``"10.1.0.20"``."""
        return [
            frame
            for frame in self.frames
            if word.upper() == frame.kind.upper() or word in (frame.source, frame.target)
        ]

    @property
    def conversations(self) -> list[Conversation]:
        """Who talked to whom, in the order in which they began."""
        found: dict[tuple[str, str, str], list[Frame]] = {}
        for frame in self.frames:
            one, other = sorted((frame.source, frame.target))
            found.setdefault((one, other, frame.kind), []).append(frame)
        return [
            Conversation(
                frames[0].source,
                frames[0].target,
                kind,
                len(frames),
                sum(len(f.data) for f in frames),
                frames[0].time,
            )
            for (_, _, kind), frames in found.items()
        ]

    def to_pcapng(self, file: IO[bytes]) -> None:
        """Write it as Wireshark and tcpdump read it."""
        from dpkt import pcapng

        writer = pcapng.Writer(file, snaplen=262144)
        for time, data in self.raw:
            writer.writepkt(data, time)

    def save(self, path: str | Path) -> Path:
        """Write it to a file, as :meth:`to_pcapng`, and return its path."""
        path = Path(path).expanduser()
        with path.open("wb") as file:
            self.to_pcapng(file)
        return path

    def to_json(self) -> dict[str, Any]:
        """Return the frames."""
        return {"network": self.network, "frames": [frame.to_json() for frame in self.frames]}


def read(time: float, data: bytes) -> Frame:
    """Read a frame; one that cannot be read is told as such."""
    try:
        return _read(time, data)
    except Exception as error:  # a library that reads what a stranger made: whatever it raises
        what = f"cannot be read ({type(error).__name__})"
        return Frame(time, data, data[6:12].hex(":"), data[:6].hex(":"), "?", None, what)


def _read(time: float, data: bytes) -> Frame:
    import dpkt

    found = dpkt.ethernet.Ethernet(data)
    inner = found.data
    if isinstance(inner, dpkt.arp.ARP):
        asks, tells = _address(inner.spa), _address(inner.tpa)
        what = f"who has {tells}?" if inner.op == 1 else f"{asks} is at {inner.sha.hex(':')}"
        return Frame(time, data, asks, tells, "ARP", None, what)
    if isinstance(inner, dpkt.ip.IP | dpkt.ip6.IP6):
        kind, ports, what = _packet(inner)
        return Frame(time, data, _address(inner.src), _address(inner.dst), kind, ports, what[:_LONGEST])
    if found.type in (0x0800, 0x0806, 0x86DD):
        # dpkt leaves what is cut as it is.
        raise ValueError("no packet")
    kind = f"0x{found.type:04x}"
    return Frame(time, data, found.src.hex(":"), found.dst.hex(":"), kind, None, f"{len(data)} bytes")


def _packet(packet: Any) -> tuple[str, tuple[int, int] | None, str]:
    """Return the kind of a packet of IP, its ports, and what it says."""
    import dpkt

    inner = packet.data
    if isinstance(inner, dpkt.tcp.TCP):
        names = (("SYN", 2), ("FIN", 1), ("RST", 4), ("PSH", 8), ("ACK", 16))
        flags = " ".join(name for name, bit in names if inner.flags & bit)
        said = f", {len(inner.data)} bytes" if inner.data else ""
        return "TCP", (inner.sport, inner.dport), f"{inner.sport} → {inner.dport} {flags}{said}"
    if isinstance(inner, dpkt.udp.UDP):
        ports = (inner.sport, inner.dport)
        if 53 in ports:
            return "DNS", ports, _names(dpkt.dns.DNS(bytes(inner.data)))
        if 67 in ports and 68 in ports:
            return "DHCP", ports, "asks for an address" if inner.dport == 67 else "is told its address"
        return "UDP", ports, f"{inner.sport} → {inner.dport}, {len(inner.data)} bytes"
    if isinstance(inner, dpkt.icmp.ICMP):
        words = {0: "answers", 3: "cannot be reached", 5: "goes another way", 8: "asks", 11: "took too long"}
        number = getattr(inner.data, "seq", None) if inner.type in (0, 8) else None
        said = words.get(inner.type, f"type {inner.type}")
        return "ICMP", None, said if number is None else f"{said}, number {number}"
    if isinstance(inner, dpkt.icmp6.ICMP6):
        return "ICMP6", None, f"type {inner.type}"
    return f"IP {packet.p}", None, f"{len(bytes(inner))} bytes"


def _names(said: Any) -> str:
    asked = ", ".join(question.name for question in said.qd)
    if not said.qr:
        return f"who is {asked}?"
    answers = [_address(answer.rdata) for answer in said.an if answer.type in (1, 28)]
    none = "no such name" if said.rcode == 3 else "nothing"
    return f"{asked} is {', '.join(answers)}" if answers else f"{asked}: {none}"


def _address(raw: bytes) -> str:
    return str(ipaddress.ip_address(raw))
