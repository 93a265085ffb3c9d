"""Whether a frame that a guest sends may go out, and what it is told otherwise.

Behind the filter is QEMU's user-mode network (libslirp), which opens a connection of this host's for each that a guest
opens. What is not understood to its end does not go out: other protocols, tags, fragments, options, extension headers.
A packet of a connection that exists already may go anywhere, or nobody could answer on a forwarded port: libslirp opens
something only for a TCP segment with SYN and without ACK, for a datagram, and for a ping.
"""

from __future__ import annotations

import struct

from vmlab.network.addresses import Reach

_ARP, _IPV4, _IPV6 = b"\x08\x06", b"\x08\x00", b"\x86\xdd"
_ICMP, _TCP, _UDP, _ICMP6 = 1, 6, 17, 58
_SYN, _RST, _ACK = 0x02, 0x04, 0x10
#: Asking for a neighbour or a router, and telling who one is.
_NEIGHBOURS = (133, 135, 136)

# What libslirp itself answers at, without opening anything but a question to this host's name server.
_ROUTER, _NAMES, _ALL = bytes([10, 0, 2, 2]), bytes([10, 0, 2, 3]), b"\xff" * 4
_SITE6 = bytes.fromhex("fec0") + bytes(13)
_ROUTER6, _NAMES6 = _SITE6 + b"\2", _SITE6 + b"\3"
_DHCP6 = bytes.fromhex("ff02" + "00" * 11 + "010002")

PASS: tuple[bool, bytes | None] = (True, None)
DROP: tuple[bool, bytes | None] = (False, None)


def judge(frame: bytes, reach: Reach) -> tuple[bool, bytes | None]:
    """Return whether a guest's frame may go out; if not, the frame that tells the guest so, where there is one."""
    kind = frame[12:14]
    if kind == _IPV4:
        return _ipv4(frame, reach)
    if kind == _IPV6:
        return _ipv6(frame, reach)
    return (kind == _ARP and frame[14:20] == b"\0\1\x08\0\6\4" and len(frame) >= 42), None


def _ipv4(frame: bytes, reach: Reach) -> tuple[bool, bytes | None]:
    if len(frame) < 34 or frame[14] != 0x45:
        return DROP
    length, fragment = int.from_bytes(frame[16:18], "big"), int.from_bytes(frame[20:22], "big")
    if not 20 <= length <= len(frame) - 14 or fragment & 0xBFFF:
        return DROP
    kind, target, content = frame[23], frame[30:34], frame[34 : 14 + length]
    if kind == _UDP and len(content) >= 8:
        port = int.from_bytes(content[2:4], "big")
        fine = (port == 67 and target in (_ROUTER, _ALL)) or (port == 53 and target == _NAMES)
    elif kind == _TCP and len(content) >= 20:
        fine = content[13] & (_SYN | _ACK) != _SYN or (target == _NAMES and content[2:4] == b"\0\x35")
    elif kind == _ICMP and len(content) >= 8 and content[0] == 8:
        fine = target in (_ROUTER, _NAMES)
    else:
        return DROP
    if fine or reach.allows(target):
        return PASS
    if target[0] >= 224:
        return DROP
    return False, _refusal4(frame, kind, content)


def _ipv6(frame: bytes, reach: Reach) -> tuple[bool, bytes | None]:
    if len(frame) < 54 or frame[14] >> 4 != 6:
        return DROP
    length = int.from_bytes(frame[18:20], "big")
    if length > len(frame) - 54:
        return DROP
    kind, target, content = frame[20], frame[38:54], frame[54 : 54 + length]
    if kind == _UDP and len(content) >= 8:
        port = int.from_bytes(content[2:4], "big")
        fine = (port == 547 and target == _DHCP6) or (port == 53 and target == _NAMES6)
    elif kind == _TCP and len(content) >= 20:
        fine = content[13] & (_SYN | _ACK) != _SYN or (target == _NAMES6 and content[2:4] == b"\0\x35")
    elif kind == _ICMP6 and len(content) >= 8:
        if content[0] in _NEIGHBOURS:
            return PASS
        if content[0] != 128:
            return DROP
        fine = target in (_ROUTER6, _NAMES6)
    else:
        return DROP
    if fine or reach.allows(target):
        return PASS
    if target[0] == 0xFF:
        return DROP
    return False, _refusal6(frame, kind, content)


def _refusal4(frame: bytes, kind: int, content: bytes) -> bytes:
    """Return a frame with a reset, or with *administratively prohibited* (RFC 1812, 5.2.7.1)."""
    source, target = frame[26:30], frame[30:34]
    if kind == _TCP:
        reply = _reset(content, target + source)
    else:
        reply, kind = _icmp(3, 13, frame[14:42]), _ICMP
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(reply), 0, 0x4000, 64, kind, 0, target, source)
    head = head[:10] + _sum(head) + head[12:]
    return frame[6:12] + frame[:6] + _IPV4 + head + reply


def _refusal6(frame: bytes, kind: int, content: bytes) -> bytes:
    """Return a frame with a reset, or with *administratively prohibited* (RFC 4443, 3.1)."""
    source, target = frame[22:38], frame[38:54]
    if kind == _TCP:
        reply = _reset(content, target + source)
    else:
        kind, pair = _ICMP6, target + source
        message = frame[14 : 14 + 1200]
        whole = pair + struct.pack("!II", 8 + len(message), _ICMP6)
        reply = _icmp(1, 1, message, whole)
    head = struct.pack("!IHBB", 6 << 28, len(reply), kind, 64) + target + source
    return frame[6:12] + frame[:6] + _IPV6 + head + reply


def _reset(content: bytes, addresses: bytes) -> bytes:
    """Return the segment that answers one which opens a connection (RFC 9293, 3.5.2)."""
    source, target, sequence = struct.unpack("!HHI", content[:8])
    # SYN counts for one; data that came with it is not acknowledged.
    acknowledged = (sequence + 1) & 0xFFFFFFFF
    segment = struct.pack("!HHIIBBHHH", target, source, 0, acknowledged, 5 << 4, _RST | _ACK, 0, 0, 0)
    pseudo = addresses + struct.pack("!II", len(segment), _TCP)
    return segment[:16] + _sum(pseudo + segment) + segment[18:]


def _icmp(kind: int, code: int, message: bytes, pseudo: bytes = b"") -> bytes:
    head = struct.pack("!BBHI", kind, code, 0, 0)
    return head[:2] + _sum(pseudo + head + message) + head[4:] + message


def _sum(data: bytes) -> bytes:
    """Return the Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)
