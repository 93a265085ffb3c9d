"""Answers to guests that ask for a name (RFC 1035), or where the answerer is (ARP, RFC 826): nothing is kept.

Only what the file of a scenario says is answered; a name that it does not have is none.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Mapping

from vmlab.network.dhcp import SERVER_MAC, checksum

_ARP = struct.Struct("!HHBBH6s4s6s4s")
_HEAD = struct.Struct("!6H")
_A, _PTR, _AAAA, _ANY = 1, 12, 28, 255
_NO_ERROR, _FORMAT, _NO_NAME, _NOT_DONE = 0, 1, 3, 4
#: Seconds for which an answer may be kept: what is answered may be another state's in a moment.
_LIFE = 1

Names = Mapping[str, ipaddress.IPv4Address]


def answer(frame: bytes, server: ipaddress.IPv4Address, names: Names) -> bytes | None:
    """Return the frame that is answered to one, or None where there is nothing to say.

    Parameters
    ----------
    server
        The address at which names can be asked for.
    names
        The address of each name, in small letters.
    """
    if frame[12:14] == b"\x08\x06":
        return _where(frame, server)
    if len(frame) >= 42 and frame[12:15] == b"\x08\x00\x45" and frame[23] == 17:
        return _name(frame, server, names)
    return None


def _where(frame: bytes, server: ipaddress.IPv4Address) -> bytes | None:
    if len(frame) < 42:
        return None
    hardware, protocol, size, length, asks, mac, address, _, wanted = _ARP.unpack_from(frame, 14)
    if (hardware, protocol, size, length, asks) != (1, 0x0800, 6, 4, 1) or wanted != server.packed:
        return None
    told = _ARP.pack(1, 0x0800, 6, 4, 2, SERVER_MAC, server.packed, mac, address)
    return bytes(mac + SERVER_MAC + b"\x08\x06" + told + bytes(18))


def _name(frame: bytes, server: ipaddress.IPv4Address, names: Names) -> bytes | None:
    source, target = frame[26:30], frame[30:34]
    port, to = struct.unpack_from("!HH", frame, 34)
    # Not a piece of a packet.
    if target != server.packed or to != 53 or frame[20] & 0x3F or frame[21]:
        return None
    said = _respond(frame[42 : 14 + int.from_bytes(frame[16:18], "big")], names)
    if said is None:
        return None
    udp = struct.pack("!HHHH", 53, port, 8 + len(said), 0) + said
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, server.packed, source)
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    return frame[6:12] + SERVER_MAC + b"\x08\x00" + head + udp


def _respond(asked: bytes, names: Names) -> bytes | None:
    if len(asked) < _HEAD.size:
        return None
    number, flags, questions, *_ = _HEAD.unpack_from(asked)
    if flags & 0x8000:
        return None
    # As was asked: recursion, which is offered to whoever wants it.
    flags = 0x8480 | flags & 0x7900
    if flags & 0x7800:
        return _HEAD.pack(number, flags | _NOT_DONE, 0, 0, 0, 0)
    found = _question(asked) if questions == 1 else None
    if found is None:
        return _HEAD.pack(number, flags | _FORMAT, 0, 0, 0, 0)
    name, kind, end = found
    question, answers = asked[_HEAD.size : end], b""
    reverse = {f"{address.reverse_pointer}": known for known, address in names.items()}
    is_known = name in names or name in reverse
    if name in names and kind in (_A, _ANY):
        answers = b"\xc0\x0c" + struct.pack("!HHIH", _A, 1, _LIFE, 4) + names[name].packed
    elif name in reverse and kind in (_PTR, _ANY):
        text = _labels(reverse[name])
        answers = b"\xc0\x0c" + struct.pack("!HHIH", _PTR, 1, _LIFE, len(text)) + text
    head = _HEAD.pack(number, flags | (_NO_ERROR if is_known else _NO_NAME), 1, int(bool(answers)), 0, 0)
    return head + question + answers


def _question(asked: bytes) -> tuple[str, int, int] | None:
    """Return the name that is asked for, in small letters, the kind of answer, and where the question ends."""
    at, labels = _HEAD.size, list[str]()
    while at < len(asked):
        size = asked[at]
        if size > 63 or at + 1 + size > len(asked) or at - _HEAD.size > 255:
            return None
        at += 1
        if size == 0:
            if at + 4 > len(asked):
                return None
            kind, _ = struct.unpack_from("!HH", asked, at)
            return ".".join(labels), kind, at + 4
        labels.append(asked[at : at + size].decode("latin-1").lower())
        at += size
    return None


def _labels(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
