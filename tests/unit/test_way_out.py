"""What a guest may send outside: the filter, the addresses of a host, and the relay between both ends of a QEMU."""

from __future__ import annotations

import contextlib
import ipaddress
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from help.frames import Wire
from hypothesis import given
from hypothesis import strategies as st

from vmlab.network import addresses
from vmlab.network.addresses import Reach
from vmlab.network.filter import judge
from vmlab.network.outside import socket_name

CARD, ROUTER = bytes.fromhex("525400123456"), bytes.fromhex("52550a000202")
HOST = [
    ipaddress.ip_network("192.0.2.7/32"),
    ipaddress.ip_network("2a00:1::7/128"),
    ipaddress.ip_network("8.8.4.4/32"),
]
NEAR = [ipaddress.ip_network("5.6.0.0/16")]
INTERNET = Reach(site=False, own=HOST, near=NEAR)
SITE = Reach(site=True, own=HOST, near=NEAR)
SYN, SYN_ACK, ACK, RST = 0x02, 0x12, 0x10, 0x04


def ip(target: str, kind: int, content: bytes, *, fragment: int = 0, options: bytes = b"") -> bytes:
    """Return a frame with a packet from the guest."""
    address = ipaddress.ip_address(target)
    if address.version == 6:
        head = struct.pack("!IHBB", 6 << 28, len(content), kind, 64)
        source = ipaddress.ip_address("fec0::15").packed
        return ROUTER + CARD + b"\x86\xdd" + head + source + address.packed + content
    size = 20 + len(options)
    head = struct.pack("!BBHHHBBH", 0x40 + size // 4, 0, size + len(content), 1, fragment, 64, kind, 0)
    head += bytes([10, 0, 2, 15]) + address.packed + options
    return ROUTER + CARD + b"\x08\x00" + head + content


def tcp(target: str, port: int = 80, flags: int = SYN) -> bytes:
    return ip(target, 6, struct.pack("!HHIIBBHHH", 40000, port, 1000, 0, 5 << 4, flags, 1024, 0, 0))


def udp(target: str, port: int) -> bytes:
    return ip(target, 17, struct.pack("!HHHH", 40000, port, 12, 0) + b"text")


def ping(target: str, kind: int | None = None) -> bytes:
    version = ipaddress.ip_address(target).version
    return ip(
        target, 1 if version == 4 else 58, bytes([kind or (8 if version == 4 else 128), 0, 0, 0]) + bytes(8)
    )


OUTSIDE = ("8.8.8.8", "1.1.1.1", "2a00:2::1")
REFUSED = (
    "10.0.2.2", "10.0.2.9", "127.0.0.1", "127.1.2.3", "0.0.0.0", "169.254.169.254", "192.0.2.7", "8.8.4.4",
    "fec0::2", "fec0::9", "::1", "::", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "64:ff9b::7f00:1", "2002:7f00:1::1",
    "fe80::1", "2a00:1::7", "2001:0:1::1",
)  # fmt: skip
PRIVATE = ("10.1.2.3", "172.20.0.1", "192.168.1.1", "100.64.3.4", "5.6.7.8", "fd00::7")


@pytest.mark.parametrize("target", OUTSIDE)
def test_the_outside_is_open(target: str) -> None:
    for frame in (tcp(target), udp(target, 123), ping(target)):
        assert judge(frame, INTERNET) == (True, None)


@pytest.mark.parametrize("target", [*REFUSED, *PRIVATE])
def test_nothing_is_opened_to_this_host_or_its_site_and_the_guest_is_told(target: str) -> None:
    ways = (INTERNET,) if target in PRIVATE else (INTERNET, SITE)
    for reach in ways:
        for frame in (tcp(target), udp(target, 80)):
            passes, answer = judge(frame, reach)
            assert not passes
            assert answer is not None
            check_answer(frame, answer)
        passes, answer = judge(ping(target), reach)
        # The router itself may be asked: it answers without asking anybody.
        assert passes == (target in ("10.0.2.2", "fec0::2"))
        assert passes or answer is not None


@pytest.mark.parametrize("target", PRIVATE)
def test_the_site_is_open_to_who_asked_for_it(target: str) -> None:
    assert judge(tcp(target), SITE) == (True, None)


def test_what_serves_a_guest_itself_is_open_and_nothing_beside_it() -> None:
    fine = [
        udp("255.255.255.255", 67),
        udp("10.0.2.2", 67),
        udp("10.0.2.3", 53),
        tcp("10.0.2.3", 53),
        udp("fec0::3", 53),
    ]
    fine += [
        tcp("fec0::3", 53),
        udp("ff02::1:2", 547),
        ping("10.0.2.3"),
        ping("ff02::1", 135),
        ping("ff02::2", 133),
    ]
    fine.append(
        b"\xff" * 6
        + CARD
        + bytes.fromhex("0806000108000604000152540012345600000000000000000000000000000a000202")
    )
    for frame in fine:
        assert judge(frame, INTERNET) == (True, None), frame.hex()
    other = [
        udp("10.0.2.3", 54),
        tcp("10.0.2.3", 80),
        udp("10.0.2.2", 69),
        udp("fec0::3", 54),
        udp("10.0.2.2", 53),
    ]
    other += [
        udp("224.0.0.251", 5353),
        udp("ff02::fb", 5353),
        udp("255.255.255.255", 68),
        udp("192.168.1.255", 67),
    ]
    for frame in other:
        assert not judge(frame, INTERNET)[0], frame.hex()


def test_who_answers_on_a_forwarded_port_is_let_out() -> None:
    for target in ("10.0.2.2", "192.0.2.7", "192.168.1.5"):
        for flags in (SYN_ACK, ACK, ACK | 8, RST, ACK | 1):
            assert judge(tcp(target, 50000, flags), INTERNET) == (True, None)


def test_what_is_not_understood_to_its_end_stays() -> None:
    whole = tcp("8.8.8.8")
    tag = whole[:12] + b"\x81\x00\0\1" + whole[12:]
    extension = ip("2a00:2::1", 0, bytes([6, 0]) + bytes(6) + tcp("2a00:2::1")[54:])
    content = tcp("8.8.8.8")[34:]
    wrong = [
        tag,
        extension,
        ip("2a00:2::1", 44, bytes(8) + content),
        ip("8.8.8.8", 47, content),
        b"",
        whole[:20],
    ]
    wrong += [ip("8.8.8.8", 6, content, fragment=0x2000), ip("8.8.8.8", 6, content, fragment=1)]
    wrong += [
        ip("8.8.8.8", 6, content, options=bytes(4)),
        ip("8.8.8.8", 6, content[:10]),
        ip("8.8.8.8", 17, bytes(4)),
    ]
    wrong += [ping("8.8.8.8", 5), ping("2a00:2::1", 137), whole[:12] + b"\x80\x35" + whole[14:]]
    short = bytearray(whole)
    short[16:18] = (200).to_bytes(2, "big")  # longer than the frame
    for frame in [*wrong, bytes(short)]:
        assert judge(frame, INTERNET) == (False, None), frame.hex()


@given(st.binary(max_size=120), st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x08\x06", b"\x81\x00"]))
def test_no_frame_upsets_the_filter(content: bytes, kind: bytes) -> None:
    for frame in (content, ROUTER + CARD + kind + content, ROUTER + CARD + b"\x08\x00\x45" + content):
        judge(frame, INTERNET)


@given(st.data())
def test_whatever_is_changed_in_a_frame_none_opens_anything_to_this_host(data: st.DataObject) -> None:
    target = data.draw(st.sampled_from(REFUSED))
    frame = bytearray(data.draw(st.sampled_from([tcp(target), udp(target, 80)])))
    before = bytes(frame)
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(14, len(frame) - 1))] = data.draw(st.integers(0, 255))
    four = frame[12:14] == b"\x08\x00"
    where = slice(30, 34) if four else slice(38, 54)
    frame[where] = before[where]
    if not judge(bytes(frame), INTERNET)[0]:
        return
    kind, content = (frame[23], frame[34:]) if four else (frame[20], frame[54:])
    served = int.from_bytes(content[2:4], "big") in (53, 67)
    pinged = kind in (1, 58) and target in ("10.0.2.2", "fec0::2")
    asked = kind == 58 and content[0] in (133, 135, 136)
    assert served or pinged or asked or (kind == 6 and content[13] & SYN_ACK != SYN)


def check_answer(frame: bytes, answer: bytes) -> None:
    """Hold an answer against what a guest expects: addresses turned round, sums right, its own packet in it."""
    assert answer[:14] == frame[6:12] + frame[:6] + frame[12:14]
    if frame[12:14] == b"\x08\x00":
        assert answer[26:34] == frame[30:34] + frame[26:30]
        assert added(answer[14:34]) == 0xFFFF
        kind, content, pair = answer[23], answer[34:], answer[26:34]
        assert int.from_bytes(answer[16:18], "big") == len(answer) - 14
        pseudo = pair + struct.pack("!BBH", 0, kind, len(content)) if kind == 6 else b""
    else:
        assert answer[22:54] == frame[38:54] + frame[22:38]
        kind, content = answer[20], answer[54:]
        pseudo = answer[22:54] + struct.pack("!II", len(content), kind)
    assert added(pseudo + content) == 0xFFFF
    if kind == 6:
        source, target, _, acknowledged, _, flags = struct.unpack("!HHIIBB", content[:14])
        assert (source, target, acknowledged, flags) == (80, 40000, 1001, RST | ACK)
    else:
        assert content[:2] == (b"\3\x0d" if kind == 1 else b"\1\1")
        assert content[8:] == frame[14 : 14 + len(content) - 8]
        assert len(content) >= 28


def added(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data if len(data) % 2 == 0 else data + b"\0"))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def test_this_host_is_what_the_kernel_delivers_to_it(tmp_path: Path) -> None:
    (tmp_path / "fib_trie").write_text(
        "Local:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 127.0.0.0\n        /8 host LOCAL\n     |-- 192.0.2.7\n"
        "        /32 host LOCAL\n     |-- 198.18.0.0\n        /24 link UNICAST\n"
        "     |-- 203.0.113.0\n        /24 host LOCAL\n"
    )
    (tmp_path / "if_inet6").write_text("20010db8000000000000000000000007 02 40 00 80     eth0\n")
    zero = "0" * 32
    (tmp_path / "ipv6_route").write_text(
        f"20010db8000100000000000000000000 30 {zero} 00 {zero} 00000000 00000001 00000000 80200001       lo\n"
        f"20010db8000000000000000000000000 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001     eth0\n"
        f"20000000000000000000000000000000 03 {zero} 00 {zero} 00000100 00000001 00000000 00000001      wg0\n"
    )
    (tmp_path / "route").write_text(
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\neth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
        "wg0\t00000000\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0\n"
    )
    own, near = addresses.of_this_host(tmp_path), addresses.near_this_host(tmp_path)
    assert {str(net) for net in own} == {
        "127.0.0.0/8", "192.0.2.7/32", "203.0.113.0/24", "2001:db8:1::/48", "2001:db8::7/128",
    }  # fmt: skip
    assert {str(net) for net in near} == {"192.0.2.0/24", "2001:db8::/64"}


def test_a_host_whose_addresses_cannot_be_read_is_not_one_that_has_none(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="fib_trie"):
        addresses.of_this_host(tmp_path)


def test_the_addresses_of_the_host_that_runs_this_are_refused() -> None:
    own = addresses.of_this_host()
    assert ipaddress.ip_network("127.0.0.0/8") in own
    reach = Reach(site=True, own=own, near=[])
    for net in own:
        assert not reach.allows(net.network_address.packed)


class Side(Wire):
    """One end of a QEMU."""

    def __init__(self, folder: Path, way: str, side: str) -> None:
        super().__init__(folder / socket_name(way, side))


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-m", "vmlab.network.relay", str(tmp_path)])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_frames_pass_between_the_two_ends_of_a_process(
    relay: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    card, out = Side(tmp_path, "internet", "card"), Side(tmp_path, "internet", "out")
    # Another way of the same process is another cable.
    site = Side(tmp_path, "site", "out")
    out.send(b"first of the router")
    assert card.get() == b"first of the router"
    card.send(tcp("127.0.0.1"))
    check_answer(tcp("127.0.0.1"), card.get())
    card.send(b"no frame that goes out")
    halves = struct.pack(">I", len(tcp("8.8.8.8"))) + tcp("8.8.8.8")
    card.socket.sendall(halves[:9])
    time.sleep(0.05)
    card.socket.sendall(halves[9:])
    assert out.get() == tcp("8.8.8.8")
    site.socket.settimeout(0.05)
    with pytest.raises(TimeoutError):
        site.get()
    # What is no frame ends the connection, and the next one is as good.
    card.socket.sendall(struct.pack(">I", 1 << 20))
    assert card.socket.recv(10) == b""
    card = Side(tmp_path, "internet", "card")
    out.send(b"to the new one")
    assert card.get() == b"to the new one"


def test_who_does_not_read_fills_no_memory(relay: subprocess.Popen[bytes], tmp_path: Path) -> None:
    card, out = Side(tmp_path, "internet", "card"), Side(tmp_path, "internet", "out")
    out.send(b"hello")
    assert card.get() == b"hello"
    out.socket.settimeout(1)
    frame, sent = bytes(60_000), 0
    with contextlib.suppress(TimeoutError):
        while sent < 64 << 20:
            out.send(frame)
            sent += len(frame)
    assert sent < 8 << 20
    # It is read on when there is room again, and nothing is lost of it.
    for _ in range(sent // len(frame)):
        assert card.get() == frame


def test_one_relay_is_enough_and_another_account_is_not_served(
    relay: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    Side(tmp_path, "internet", "card")
    second = subprocess.run(
        [sys.executable, "-m", "vmlab.network.relay", str(tmp_path)], timeout=20, check=False
    )
    assert second.returncode == 0
    assert relay.poll() is None
    assert all((tmp_path / name).stat().st_mode & 0o077 == 0 for name in ("internet.card", "site.out"))
    relay.send_signal(signal.SIGTERM)
    relay.wait(10)
