"""Answers to guests that ask for an address (RFC 2131, RFC 2132): who has which is known before, and nothing is kept.

A lease never ends, so nobody has to ask again; and an answer depends on nothing but the question, so a guest that went
back in time gets the same one.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass, field

#: The Ethernet address that answers come from: locally administered, of no machine.
SERVER_MAC = bytes.fromhex("525500000001")
_COOKIE = b"\x63\x82\x53\x63"
_DISCOVER, _OFFER, _REQUEST, _ACK, _NAK, _INFORM = 1, 2, 3, 5, 6, 8
_FOREVER = b"\xff\xff\xff\xff"
#: Of the two headers before DHCP's own.
_IP, _UDP = struct.Struct("!BBHHHBBH4s4s"), struct.Struct("!HHHH")


@dataclass
class Leases:
    """The addresses of a network.

    Attributes
    ----------
    subnet
        Such as ``10.1.0.0/24``; its last address is the one that answers come from.
    given
        The address of each card, by its MAC.
    names
        The address of each name that can be asked for here; with some, guests are told to ask here.
    """

    subnet: ipaddress.IPv4Network
    given: dict[bytes, ipaddress.IPv4Address] = field(default_factory=dict)
    names: dict[str, ipaddress.IPv4Address] = field(default_factory=dict)

    @property
    def server(self) -> ipaddress.IPv4Address:
        """The address that answers come from."""
        return self.subnet.broadcast_address - 1


def is_question(frame: bytes) -> bool:
    """Whether a frame is for a DHCP server; quick, since every frame is asked."""
    return (
        len(frame) > 282
        and frame[12:15] == b"\x08\x00\x45"
        and frame[23] == 17
        and frame[34:38] == b"\x00\x44\x00\x43"
    )


def answer(frame: bytes, leases: Leases) -> bytes | None:
    """Return what is answered to a question; None where there is nothing to say."""
    dhcp = frame[42:]
    if len(dhcp) < 241 or dhcp[0] != 1 or dhcp[1:3] != b"\x01\x06" or dhcp[236:240] != _COOKIE:
        return None
    mac = dhcp[28:34]
    address = leases.given.get(mac)
    options = _options(dhcp[240:])
    kind = options.get(53, b"")
    if address is None or len(kind) != 1:
        return None
    if (server := options.get(54)) is not None and server != leases.server.packed:
        # It has chosen somebody else.
        return None
    if kind[0] == _DISCOVER:
        said = _OFFER
    elif kind[0] == _INFORM:
        said = _ACK
    elif kind[0] == _REQUEST:
        wanted = options.get(50) or dhcp[12:16]
        said = _ACK if wanted == address.packed else _NAK
    else:
        return None
    own = [(53, bytes([said])), (54, leases.server.packed)]
    if said != _NAK:
        own.append((1, leases.subnet.netmask.packed))
        if leases.names:
            own.append((6, leases.server.packed))
        if kind[0] != _INFORM:
            own.append((51, _FOREVER))
    yours = address.packed if said != _NAK and kind[0] != _INFORM else bytes(4)
    body = (
        b"\x02\x01\x06\x00" + dhcp[4:8] + b"\x00\x00" + dhcp[10:12] + dhcp[12:16] + yours
        + leases.server.packed + bytes(4) + dhcp[28:44] + bytes(192) + _COOKIE
        + b"".join(bytes([number, len(value)]) + value for number, value in own) + b"\xff"
    )  # fmt: skip
    body += bytes(max(0, 300 - len(body)))
    # A guest without an address hears what goes to all.
    target = b"\xff" * 4 if said == _NAK or kind[0] != _INFORM else dhcp[12:16]
    udp = _UDP.pack(67, 68, 8 + len(body), 0) + body
    head = _IP.pack(0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, leases.server.packed, target)
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    return mac + SERVER_MAC + b"\x08\x00" + head + udp


def _options(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at < len(data) and data[at] != 255:
        if data[at] == 0:
            at += 1
            continue
        if at + 2 > len(data) or at + 2 + data[at + 1] > len(data):
            break
        found[data[at]] = data[at + 2 : at + 2 + data[at + 1]]
        at += 2 + data[at + 1]
    return found


def checksum(data: bytes) -> int:
    """Return the checksum of a header of IP, which has an even number of bytes (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF ^ total
