"""Networks between guests: the switch at its sockets, and what it answers who asks for an address."""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dpkt import pcapng
from help.frames import Wire, connect
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmlab.network import capture, dhcp, names, service
from vmlab.network.capture import Capture
from vmlab.network.networks import CARDS, CONTROL, RECORD, socket_name
from vmlab.network.pipe import Pipe
from vmlab.network.switch import Switch

ALL = b"\xff" * 6


def mac(number: int) -> bytes:
    return bytes.fromhex("525400000000")[:5] + bytes([number])


def frame(target: bytes, source: bytes, content: bytes = b"content") -> bytes:
    return target + source + b"\x88\xb5" + content


class Card(Wire):
    """A card of a QEMU."""

    def __init__(self, folder: Path, network: str, card: int = 0) -> None:
        super().__init__(folder / socket_name(network, card))

    def hears_nothing(self) -> bool:
        self.socket.settimeout(0.1)
        try:
            with contextlib.suppress(TimeoutError):
                return not self.socket.recv(1, socket.MSG_PEEK)
            return True
        finally:
            self.socket.settimeout(10)


def tell(folder: Path, **word: object) -> dict[str, Any]:
    with connect(folder / CONTROL) as line:
        line.sendall(json.dumps(word).encode() + b"\n")
        found: dict[str, Any] = json.loads(line.makefile().readline())["networks"]
        return found


def start(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "vmlab.network.switch", str(folder)])


@pytest.fixture
def switch(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = start(tmp_path)
    try:
        tell(tmp_path, open={"lan": {}, "dmz": {}})
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_frame_goes_to_whom_it_is_for_and_to_all_while_nobody_knows_where_that_is(
    switch: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    cards = [Card(tmp_path, "lan", number) for number in range(3)]
    other = Card(tmp_path, "dmz")
    cards[0].send(frame(ALL, mac(0)))
    assert [card.get() for card in cards[1:]] == [frame(ALL, mac(0))] * 2
    cards[1].send(frame(mac(0), mac(1)))
    assert cards[0].get() == frame(mac(0), mac(1))
    # Nobody has heard of this one yet.
    cards[0].send(frame(mac(2), mac(0), b"?"))
    assert cards[1].get() == cards[2].get() == frame(mac(2), mac(0), b"?")
    # A card that moved is where it spoke last, and one that is pulled is nowhere.
    cards[2].send(frame(mac(0), mac(1), b"moved"))
    assert cards[0].get() == frame(mac(0), mac(1), b"moved")
    cards[0].send(frame(mac(1), mac(0), b"to the new place"))
    assert cards[2].get() == frame(mac(1), mac(0), b"to the new place")
    cards[2].socket.close()
    time.sleep(0.1)
    cards[0].send(frame(mac(1), mac(0), b"to anyone"))
    assert cards[1].get() == frame(mac(1), mac(0), b"to anyone")
    assert all(card.hears_nothing() for card in (*cards[:2], other))


def test_frames_come_whole_and_in_order_however_they_are_cut(
    switch: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    one, two = Card(tmp_path, "lan", 0), Card(tmp_path, "lan", 1)
    frames = [
        frame(ALL, mac(1), os.urandom(size)) for size in (0, 1, 46, 1500, 9000, 65000, *range(1, 4000, 37))
    ]
    data = b"".join(struct.pack(">I", len(f)) + f for f in frames)
    for at in range(0, len(data), 777):
        one.socket.sendall(data[at : at + 777])
    assert [two.get() for _ in frames] == frames
    # What is no frame ends the connection of whoever sent it, and of nobody else.
    one.socket.sendall(struct.pack(">I", 1 << 20))
    assert one.socket.recv(10) == b""
    one = Card(tmp_path, "lan", 0)
    one.send(b"short", frame(ALL, mac(1), b"again"))
    assert two.get() == frame(ALL, mac(1), b"again")


def test_who_does_not_read_holds_nobody_up_and_fills_no_memory(
    switch: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    sender, deaf, hears = (Card(tmp_path, "lan", number) for number in range(3))
    hears.send(frame(ALL, mac(2)))
    assert sender.get() == deaf.get() == frame(ALL, mac(2))
    big = frame(ALL, mac(0), bytes(60_000))
    for number in range(300):
        sender.send(big, frame(mac(2), mac(0), str(number).encode()))
        got = [hears.get(), hears.get()]
        assert got == [big, frame(mac(2), mac(0), str(number).encode())]
    ports = {port["card"]: port for port in tell(tmp_path)["lan"]["ports"]}
    assert ports[1]["dropped"] > 100
    assert ports[2]["dropped"] == 0
    assert memory(switch.pid) < 40 << 20
    # It hears what waits, and then what is new.
    deaf.socket.settimeout(0.2)
    with contextlib.suppress(TimeoutError):
        while True:
            deaf.get()
    deaf.socket.settimeout(10)
    sender.send(frame(mac(1), mac(0), b"hear"))
    assert deaf.get() == frame(mac(1), mac(0), b"hear")


def test_who_makes_up_addresses_makes_nobody_else_forgotten(
    switch: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    storm, victim, peer = (Card(tmp_path, "lan", number) for number in range(3))
    victim.send(frame(ALL, mac(1)))
    assert peer.get() == frame(ALL, mac(1))
    before = memory(switch.pid)
    for number in range(200):
        storm.send(
            *(
                frame(mac(9), b"\x02" + struct.pack(">IB", number * 100 + n, 1), b"x")
                for n in range(100)
            )
        )  # fmt: skip
        for card in (victim, peer):
            for _ in range(100):
                card.get()
    peer.send(frame(mac(1), mac(2), b"only for it"))
    heard = victim.get()
    while heard[14:] == b"x" or heard == frame(ALL, mac(1)):
        heard = victim.get()
    assert heard == frame(mac(1), mac(2), b"only for it")
    assert memory(switch.pid) < before + (4 << 20)


def test_who_is_ignored_neither_speaks_nor_hears_also_after_the_switch_has_died(
    switch: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    pid = os.getpid()
    tell(tmp_path, ignore=[pid])
    one, two = Card(tmp_path, "lan", 0), Card(tmp_path, "lan", 1)
    one.send(frame(ALL, mac(0)))
    assert two.hears_nothing()
    switch.kill()
    switch.wait()
    again = start(tmp_path)
    try:
        one, two = Card(tmp_path, "lan", 0), Card(tmp_path, "lan", 1)
        one.send(frame(ALL, mac(0)))
        assert two.hears_nothing()
        tell(tmp_path, listen=[pid])
        one.send(frame(ALL, mac(0), b"now"))
        assert two.get() == frame(ALL, mac(0), b"now")
    finally:
        again.kill()
        again.wait()


def test_it_ends_by_itself_when_no_card_is_left_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "IDLE_EXIT", 3.0)
    ends = Switch(tmp_path, os.getuid())
    serving = threading.Thread(target=ends.run)
    serving.start()
    tell(tmp_path, open={"lan": {}, "dmz": {}})
    card = Card(tmp_path, "dmz")
    tell(tmp_path, close=["lan"])
    serving.join(4)
    assert serving.is_alive()
    card.socket.close()
    serving.join(30)
    assert not serving.is_alive()
    assert list(tmp_path.iterdir()) == []


def memory(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def test_a_switch_that_died_goes_on_where_it_was(switch: subprocess.Popen[bytes], tmp_path: Path) -> None:
    tell(tmp_path, open={"lan": {"subnet": "10.1.0.0/24", "leases": {"52:54:00:00:00:01": "10.1.0.7"}}})
    switch.kill()
    switch.wait()
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(os.fspath(tmp_path / "old.0"))
    again = start(tmp_path)
    try:
        one, two = Card(tmp_path, "lan", 0), Card(tmp_path, "lan", CARDS - 1)
        one.send(question(1, mac(1)))
        assert told(two.get()) is None
        assert told(one.get())["address"] == "10.1.0.7"  # type: ignore[index]
        # What was left of one that is gone is cleared away, and once is enough.
        assert not (tmp_path / "old.0").exists()
        assert (
            subprocess.run([sys.executable, "-m", "vmlab.network.switch", tmp_path], timeout=20).returncode
            == 0
        )
        assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.iterdir())
        # One that is closed takes its cables with it.
        assert set(tell(tmp_path, close=["lan"])) == {"dmz"}
        assert one.socket.recv(1) == b""
        assert not (tmp_path / socket_name("lan", 0)).exists()
    finally:
        again.send_signal(signal.SIGTERM)
        again.wait(10)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[1]",
        '{"networks": 7, "ignored": [], "links": {}}',
        '{"networks": {"a": 3}}',
        '{"networks": {}, "ignored": [], "links": {"1.0": 7}}',
    ],
)
def test_what_it_wrote_down_is_damaged(tmp_path: Path, content: str) -> None:
    (tmp_path / "networks").write_text(content)
    process = start(tmp_path)
    try:
        assert "lan" in tell(tmp_path, open={"lan": {}})
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("word", [b"{}\n" * 3 + b"nonsense\n", b"[1]\n", b'{"open": 7}\n', b"x" * (2 << 20)])
def test_no_word_upsets_it(switch: subprocess.Popen[bytes], tmp_path: Path, word: bytes) -> None:
    with connect(tmp_path / CONTROL) as line, contextlib.suppress(OSError):
        line.sendall(word)
        while line.recv(1 << 16):
            pass
    assert set(tell(tmp_path)) == {"lan", "dmz"}


# -- links -------------------------------------------------------------------------------------------------------------


def sent(
    how: dict[str, Any], frames: int, *, every: float = 0.0, size: int = 1000, seed: str = "s"
) -> list[tuple[int, float]]:
    """Send frames through a pipe by a clock of our own; return which of them arrive, and after how long."""
    now, arrived = 0.0, list[tuple[int, float]]()
    pipe = Pipe(how, seed, lambda frame: arrived.append((int.from_bytes(frame[4:8], "big"), now)))
    for number in range(frames):
        while (due := pipe.due) is not None and due <= number * every:
            now = due
            pipe.arrive(now)
        now = number * every
        pipe.push(bytes(4) + number.to_bytes(4, "big") + bytes(size - 4), now)
    while (due := pipe.due) is not None:
        now = due
        pipe.arrive(now)
    return [(number, at - number * every) for number, at in arrived]


def test_a_link_delays_loses_and_limits_as_it_is_told() -> None:
    assert sent({}, 3) == [(0, 0.0), (1, 0.0), (2, 0.0)]
    assert {round(after, 9) for _, after in sent({"delay": 0.2}, 100, every=0.01)} == {0.2}
    spread = [after for _, after in sent({"delay": 0.2, "jitter": 0.05}, 900, every=1.0)]
    assert 0.15 <= min(spread) < 0.155
    assert 0.245 < max(spread) <= 0.25
    # Wherever jitter would have one overtake another, they keep their order.
    jittery = sent({"delay": 0.2, "jitter": 0.2}, 900, every=0.001)
    assert [number for number, _ in jittery] == list(range(900))
    got = sent({"loss": 0.1}, 10_000, every=0.001)
    assert 9_000 - 100 < len(got) < 9_000 + 100
    # 100 frames of 1000 bytes at 1 Mbit/s are 0.8 s.
    assert sent({"rate": 10**6}, 100)[-1] == (99, pytest.approx(0.8))
    assert sent({"down": True}, 10) == []
    # What is too much is not kept.
    assert len(sent({"delay": 10}, 5000)) == 1000
    assert len(sent({"delay": 10}, 500, size=60_000)) == (4 << 20) // 60_004


def test_chance_repeats_itself() -> None:
    how = {"loss": 0.3, "delay": 0.1, "jitter": 0.05}
    assert sent(how, 500, every=0.01) == sent(how, 500, every=0.01)
    assert sent(how, 500, every=0.01) != sent(how, 500, every=0.01, seed="another")
    # Which frames are lost is one thing, how long the others take another.
    assert [n for n, _ in sent({"loss": 0.3}, 500)] == [n for n, _ in sent(how, 500, every=0.01)]


def test_links_of_a_card_by_word_in_both_directions(switch: subprocess.Popen[bytes], tmp_path: Path) -> None:
    slow, fast = Card(tmp_path, "lan", 0), Card(tmp_path, "lan", 1)
    key = f"{os.getpid()}.0"

    def takes(one: Card, two: Card) -> float:
        begin = time.monotonic()
        one.send(frame(ALL, mac(0)))
        assert two.get() == frame(ALL, mac(0))
        return time.monotonic() - begin

    takes(slow, fast)
    tell(tmp_path, links={key: {"delay": 0.3, "seed": "s"}})
    assert takes(slow, fast) >= 0.3
    assert takes(fast, slow) >= 0.3
    # Also for a switch that died meanwhile, and a card that comes back.
    switch.kill()
    switch.wait()
    again = start(tmp_path)
    try:
        slow, fast = Card(tmp_path, "lan", 0), Card(tmp_path, "lan", 1)
        assert takes(slow, fast) >= 0.3
        # What is under way when it changes arrives.
        slow.send(frame(ALL, mac(0), b"under way"))
        time.sleep(0.1)
        tell(tmp_path, links={key: {"down": True}})
        assert fast.get() == frame(ALL, mac(0), b"under way")
        slow.send(frame(ALL, mac(0)))
        fast.send(frame(ALL, mac(1)))
        assert fast.hears_nothing()
        assert slow.hears_nothing()
        tell(tmp_path, links={key: None})
        slow.send(frame(ALL, mac(0), b"up"))
        assert fast.get() == frame(ALL, mac(0), b"up")
        # Nonsense changes nothing.
        for how in ({"delay": "x"}, {"loss": []}, 7):
            with connect(tmp_path / CONTROL) as line:
                line.sendall(json.dumps({"links": {key: how}}).encode() + b"\n")
                assert line.recv(10) == b""
        slow.send(frame(ALL, mac(0), b"still up"))
        assert fast.get() == frame(ALL, mac(0), b"still up")
    finally:
        again.kill()
        again.wait()


# -- addresses ---------------------------------------------------------------------------------------------------------

LEASES = dhcp.Leases(ipaddress.IPv4Network("10.1.0.0/24"), {mac(1): ipaddress.IPv4Address("10.1.0.7")})


def question(kind: int, source: bytes, *options: tuple[int, bytes], client: str = "0.0.0.0") -> bytes:
    """Return what a DHCP client sends."""
    own = b"".join(bytes([n, len(v)]) + v for n, v in [(53, bytes([kind])), *options])
    body = (
        b"\x01\x01\x06\x00" + b"abcd" + b"\0\0\x80\0" + ipaddress.IPv4Address(client).packed
        + bytes(12) + source + bytes(10) + bytes(192) + b"\x63\x82\x53\x63" + own + b"\xff"
    )  # fmt: skip
    body += bytes(300 - len(body))
    udp = struct.pack("!HHHH", 68, 67, 8 + len(body), 0) + body
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0) + bytes(4) + b"\xff" * 4
    return ALL + source + b"\x08\x00" + head + udp


def told(said: bytes | None) -> dict[str, Any] | None:
    """Return what a client understands of an answer; None for what is none."""
    if said is None or said[34:38] != b"\x00\x43\x00\x44":
        return None
    assert said[12:14] == b"\x08\x00"
    total = sum(struct.unpack("!10H", said[14:34]))
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF
    assert int.from_bytes(said[16:18], "big") == len(said) - 14
    assert int.from_bytes(said[38:40], "big") == len(said) - 34
    dhcp_, options, at = said[42:], {}, 240
    assert dhcp_[4:8] == b"abcd"
    while dhcp_[at] != 255:
        options[dhcp_[at]] = dhcp_[at + 2 : at + 2 + dhcp_[at + 1]]
        at += 2 + dhcp_[at + 1]
    return {
        "to": said[:6], "kind": options[53][0], "address": str(ipaddress.IPv4Address(dhcp_[16:20])),
        "mask": options.get(1), "lease": options.get(51), "router": options.get(3),
    }  # fmt: skip


def test_each_card_gets_the_address_that_it_is_to_have_and_no_way_out() -> None:
    mask, forever = b"\xff\xff\xff\x00", b"\xff" * 4
    wanted = (50, bytes([10, 1, 0, 7]))
    offered = {"to": mac(1), "kind": 2, "address": "10.1.0.7", "mask": mask, "lease": forever, "router": None}
    assert told(dhcp.answer(question(1, mac(1)), LEASES)) == offered
    given = told(dhcp.answer(question(3, mac(1), wanted, (54, bytes([10, 1, 0, 254]))), LEASES))
    assert given == {**offered, "kind": 5}
    assert told(dhcp.answer(question(3, mac(1), client="10.1.0.7"), LEASES)) == given
    # One that had another address before is told to ask anew.
    assert told(dhcp.answer(question(3, mac(1), (50, bytes([10, 0, 2, 15]))), LEASES))["kind"] == 6  # type: ignore[index]
    for nothing in (
        question(1, mac(2)),
        question(3, mac(1), wanted, (54, bytes([10, 9, 9, 9]))),
        question(7, mac(1)),
        question(1, mac(1))[:200],
    ):
        assert dhcp.answer(nothing, LEASES) is None


@given(st.data())
def test_no_question_upsets_it(data: st.DataObject) -> None:
    asked = bytearray(question(data.draw(st.integers(0, 9)), mac(1), (50, bytes([10, 1, 0, 7]))))
    for _ in range(data.draw(st.integers(0, 6))):
        asked[data.draw(st.integers(0, len(asked) - 1))] = data.draw(st.integers(0, 255))
    sent = bytes(asked[: data.draw(st.integers(0, len(asked)))])
    if dhcp.is_question(sent):
        dhcp.answer(sent, LEASES)


# -- names --------------------------------------------------------------------------------------------------------

SUBNET = {"subnet": "10.1.0.0/24", "leases": {}, "names": {"web": "10.1.0.20", "db": "10.2.0.5"}}


def asked(name: str, kind: int = 1, number: int = 7, *, flags: int = 0x0100) -> bytes:
    """Return a frame that asks the switch for a name."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"
    query = struct.pack("!6H", number, flags, 1, 0, 0, 0) + labels + struct.pack("!HH", kind, 1)
    udp = struct.pack("!HHHH", 4000, 53, 8 + len(query), 0) + query
    addresses = ipaddress.IPv4Address("10.1.0.9").packed + ipaddress.IPv4Address("10.1.0.254").packed
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + addresses
    return dhcp.SERVER_MAC + mac(0) + b"\x08\x00" + head + udp


def name_told(said: bytes) -> tuple[int, int, bytes]:
    """Return the number, the code and the answers of what came."""
    assert said[:12] == mac(0) + dhcp.SERVER_MAC
    assert dhcp.checksum(said[14:34]) == 0
    assert (
        said[26:34] == ipaddress.IPv4Address("10.1.0.254").packed + ipaddress.IPv4Address("10.1.0.9").packed
    )
    number, flags, _, answers = struct.unpack("!4H", said[42:50])
    at = 54
    while said[at]:
        at += 1 + said[at]
    return number, flags & 15, said[at + 5 :] if answers else b""


def test_names_of_a_scenario_are_answered_and_no_others(
    switch: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    one, two = Card(tmp_path, "lan", 0), Card(tmp_path, "lan", 1)
    tell(tmp_path, open={"lan": SUBNET})
    # Where to ask is asked for first.
    arp = struct.pack(
        "!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, mac(0), bytes([10, 1, 0, 9]), bytes(6), bytes([10, 1, 0, 254])
    )
    one.send(ALL + mac(0) + b"\x08\x06" + arp)
    assert one.get()[22:32] == dhcp.SERVER_MAC + bytes([10, 1, 0, 254])
    assert two.get()[12:14] == b"\x08\x06"
    one.send(
        asked("WEB"), asked("db"), asked("web", 28), asked("nobody"), asked("20.0.1.10.in-addr.arpa", 12)
    )
    answers = [name_told(one.get()) for _ in range(5)]
    assert [code for _, code, _ in answers] == [0, 0, 0, 3, 0]
    assert answers[0][2][-4:] == ipaddress.IPv4Address("10.1.0.20").packed
    assert answers[1][2][-4:] == ipaddress.IPv4Address("10.2.0.5").packed
    assert answers[2][2] == b""
    assert answers[4][2].endswith(b"\x03web\0")
    # Nobody else hears of it; on a network without names nobody answers.
    assert two.hears_nothing()
    other = Card(tmp_path, "dmz", 0)
    other.send(asked("web"))
    assert other.hears_nothing()


def test_whoever_asks_without_end_gets_a_hundred_answers_a_second(
    switch: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    one = Card(tmp_path, "lan", 0)
    tell(tmp_path, open={"lan": SUBNET})
    one.send(*[asked("web", number=number) for number in range(1000)])
    found = 0
    while not one.hears_nothing():
        one.get()
        found += 1
    assert 100 <= found <= 300


@given(data=st.binary(max_size=300), cut=st.integers(0, 90))
def test_nonsense_about_names_is_no_harm(data: bytes, cut: int) -> None:
    known = {"web": ipaddress.IPv4Address("10.1.0.20")}
    server = ipaddress.IPv4Address("10.1.0.254")
    for frame in (data, asked("web")[:cut], asked("web")[:cut] + data, asked("web")[:54] + data):
        said = names.answer(frame, server, known)
        assert said is None or len(said) < 600


# -- captures -----------------------------------------------------------------------------------------------------


def captured(folder: Path, network: str = "lan") -> Capture:
    tell(folder, capture={network: "capture"})
    data, at, found = (folder / "capture").read_bytes(), 0, []
    while at < len(data):
        when, length = RECORD.unpack_from(data, at)
        at += RECORD.size + length
        found.append((when, data[at - length : at]))
    return Capture(network, found)


def test_what_was_on_a_network_can_be_looked_at(switch: subprocess.Popen[bytes], tmp_path: Path) -> None:
    one, two = Card(tmp_path, "lan", 0), Card(tmp_path, "lan", 1)
    tell(tmp_path, open={"lan": SUBNET})
    begun = time.time()
    one.send(asked("web"), frame(ALL, mac(0), b"to all"), b"\xff" * 12 + b"\x08\x00\x45" + bytes(3))
    one.get()
    two.get()
    two.get()
    found = captured(tmp_path)
    assert [seen.kind for seen in found] == ["DNS", "DNS", "0x88b5", "?"]
    assert [seen.what for seen in found][:2] == ["who is web?", "web is 10.1.0.20"]
    assert begun <= found[0].time <= time.time()
    first = found.conversations[0]
    assert (first.one, first.other, first.frames) == ("10.1.0.9", "10.1.0.254", 2)
    assert len(found.of("dns")) == len(found.of("10.1.0.9")) == 2
    # As others read it.
    path = found.save(tmp_path / "lan.pcapng")
    with path.open("rb") as file:
        assert [data for _, data in pcapng.Reader(file)] == [data for _, data in found.raw]
    assert len(captured(tmp_path, "dmz")) == 0


def test_no_more_is_kept_than_there_is_room_for(switch: subprocess.Popen[bytes], tmp_path: Path) -> None:
    one, two = Card(tmp_path, "lan", 0), Card(tmp_path, "lan", 1)
    for number in range(200):
        one.send(frame(ALL, mac(0), struct.pack(">I", number) + bytes(60000)))
        two.get()
    found = captured(tmp_path).raw
    assert sum(len(data) for _, data in found) <= 4 << 20
    numbers = [struct.unpack(">I", data[14:18])[0] for _, data in found]
    assert numbers == list(range(200 - len(numbers), 200))
    assert len(numbers) > 60


@given(data=st.binary(max_size=200), cut=st.integers(0, 90))
def test_whatever_was_on_a_network_is_read_or_told_as_what_cannot_be(data: bytes, cut: int) -> None:
    for raw in (data, asked("web")[:cut], asked("web")[:42] + data, asked("web")[:cut] + data):
        found = capture.read(0.0, raw)
        assert found.kind
        assert len(found.what) <= 120
        assert json.dumps(found.to_json())


# -- frozen ------------------------------------------------------------------------------------------------------


class Freeze:
    """Somebody who freezes networks, and hangs up at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.line = connect(folder / CONTROL)
        self.answers = self.line.makefile()

    def tell(self, **word: object) -> dict[str, Any]:
        self.line.sendall(json.dumps(word).encode() + b"\n")
        found: dict[str, Any] = json.loads(self.answers.readline())["networks"]
        return found

    def export(self) -> dict[str, Any]:
        self.tell(export="state")
        found: dict[str, Any] = json.loads((self.folder / "state").read_text())
        return found

    def take_up(self, state: dict[str, Any]) -> None:
        (self.folder / "state").write_text(json.dumps(state))
        self.tell(**{"import": "state"})

    def hang_up(self) -> None:
        self.answers.close()
        self.line.close()


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [frame(ALL, mac(0), struct.pack(">I", number)) for number in range(start, start + count)]


def test_what_a_frozen_network_holds_goes_on_in_order_when_it_thaws_and_others_do_not_notice(
    switch: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    one, two = Card(tmp_path, "lan", 0), Card(tmp_path, "lan", 1)
    other = [Card(tmp_path, "dmz", 0), Card(tmp_path, "dmz", 1)]
    freeze = Freeze(tmp_path)
    freeze.tell(freeze=["lan"])
    one.send(*numbered(5))
    other[0].send(frame(ALL, mac(9), b"goes on"))
    assert other[1].get() == frame(ALL, mac(9), b"goes on")
    assert two.hears_nothing()
    held = freeze.export()["lan"]["held"]
    assert len(held) == 5
    freeze.tell(thaw=["lan"])
    assert [two.get() for _ in range(5)] == numbered(5)
    one.send(*numbered(1, 5))
    assert two.get() == numbered(1, 5)[0]


def test_a_network_thaws_when_whoever_froze_it_is_gone(
    switch: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    one, two = Card(tmp_path, "lan", 0), Card(tmp_path, "lan", 1)
    freeze = Freeze(tmp_path)
    freeze.tell(freeze=["lan"], silence=["lan"])
    one.send(*numbered(3))
    assert two.hears_nothing()
    freeze.hang_up()
    assert [two.get() for _ in range(3)] == numbered(3)


def test_what_was_written_down_takes_the_place_of_what_has_come_since(
    switch: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    one, two = Card(tmp_path, "lan", 0), Card(tmp_path, "lan", 1)
    freeze = Freeze(tmp_path)
    freeze.tell(freeze=["lan"])
    one.send(*numbered(3))
    state = freeze.export()
    freeze.tell(thaw=["lan"])
    assert [two.get() for _ in range(3)] == numbered(3)
    # A future that will be abandoned: what is under way in it must never arrive.
    freeze.tell(freeze=["lan"])
    one.send(*numbered(4, 100))
    freeze.export()
    freeze.take_up(state)
    freeze.tell(thaw=["lan"])
    assert [two.get() for _ in range(3)] == numbered(3)
    assert two.hears_nothing()


def test_frames_on_a_slow_link_keep_the_time_that_they_had_left(
    switch: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    one, two = Card(tmp_path, "lan", 0), Card(tmp_path, "lan", 1)
    tell(tmp_path, links={f"{os.getpid()}.1": {"delay": 0.6, "seed": "s"}})
    one.send(*numbered(3))
    time.sleep(0.2)
    freeze = Freeze(tmp_path)
    freeze.tell(freeze=["lan"])
    state = freeze.export()
    left = [time_left for time_left, _ in state["lan"]["ports"][f"{os.getpid()}.1"]["pipes"][1]["frames"]]
    assert len(left) == 3
    assert all(0 < seconds <= 0.45 for seconds in left)
    # While it is frozen no time goes by.
    time.sleep(0.7)
    assert two.hears_nothing()
    freeze.take_up(state)
    freeze.tell(thaw=["lan"])
    assert [two.get() for _ in range(3)] == numbered(3)


def test_chance_goes_on_where_it_was(switch: subprocess.Popen[bytes], tmp_path: Path) -> None:
    one, two = Card(tmp_path, "lan", 0), Card(tmp_path, "lan", 1)
    tell(tmp_path, links={f"{os.getpid()}.1": {"loss": 0.5, "seed": "s"}})

    def arrives() -> list[int]:
        one.send(*numbered(60), frame(ALL, mac(0), b"end"))
        for _ in range(40):
            # The last one may be lost, too.
            one.send(frame(ALL, mac(0), b"end"))
        found = []
        while not two.hears_nothing():
            got = two.get()
            if got[14:] != b"end":
                found.append(struct.unpack(">I", got[14:])[0])
        return found

    one.send(*numbered(7))
    time.sleep(0.1)
    while not two.hears_nothing():
        two.get()
    freeze = Freeze(tmp_path)
    freeze.tell(freeze=["lan"])
    state = freeze.export()
    freeze.tell(thaw=["lan"])
    first = arrives()
    freeze.tell(freeze=["lan"])
    freeze.take_up(state)
    freeze.tell(thaw=["lan"])
    assert arrives() == first
    assert 10 < len(first) < 50


def test_what_a_guest_has_not_taken_is_written_down_whole_and_only_once(
    switch: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    one, two = Card(tmp_path, "lan", 0), Card(tmp_path, "lan", 1)
    # More than a socket holds: the second card's QEMU does not read.
    frames = [frame(ALL, mac(0), struct.pack(">I", number) + bytes(8000)) for number in range(200)]
    one.send(*frames)
    time.sleep(0.3)
    freeze = Freeze(tmp_path)
    left = freeze.tell(freeze=["lan"], silence=["lan"])["lan"]["ports"]
    assert {port["card"]: port["left"] > 0 for port in left} == {0: False, 1: True}
    state = freeze.export()
    taken_up = base64.b64decode(state["lan"]["ports"][f"{os.getpid()}.1"]["waiting"])
    (length,) = struct.unpack(">I", taken_up[:4])
    assert length == len(frames[0])
    freeze.tell(thaw=["lan"])
    assert [two.get() for _ in frames] == frames


def test_a_silent_network_gives_nothing(switch: subprocess.Popen[bytes], tmp_path: Path) -> None:
    one, two = Card(tmp_path, "lan", 0), Card(tmp_path, "lan", 1)
    freeze = Freeze(tmp_path)
    freeze.tell(freeze=["lan"], silence=["lan"])
    one.send(*numbered(2))
    state = freeze.export()
    state["lan"]["ports"][f"{os.getpid()}.1"]["waiting"] = base64.b64encode(
        b"".join(struct.pack(">I", len(f)) + f for f in numbered(2, 50))
    ).decode()
    freeze.take_up(state)
    assert two.hears_nothing()
    freeze.tell(thaw=["lan"])
    # What was given last before the cut comes before what was sent.
    assert [two.get() for _ in range(4)] == [*numbered(2, 50), *numbered(2)]


def test_what_qemu_itself_announces_is_on_no_wire(switch: subprocess.Popen[bytes], tmp_path: Path) -> None:
    one, two = Card(tmp_path, "lan", 0), Card(tmp_path, "lan", 1)
    one.send(ALL + mac(0) + b"\x80\x35" + bytes(46), frame(ALL, mac(0), b"the guest's"))
    assert two.get() == frame(ALL, mac(0), b"the guest's")


@given(
    words=st.lists(
        st.tuples(st.sampled_from(["send", "freeze", "export", "import", "thaw"]), st.integers(1, 20)),
        max_size=30,
    )
)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_at_whatever_moment_nothing_is_lost_or_comes_twice_or_from_the_future(
    switch: subprocess.Popen[bytes], tmp_path: Path, words: list[tuple[str, int]]
) -> None:
    one, two = Card(tmp_path, "lan", 0), Card(tmp_path, "lan", 1)
    freeze = Freeze(tmp_path)
    sent, heard = [], []
    kept: tuple[dict[str, Any], list[bytes], list[bytes]] | None = None
    frozen, number = False, 0
    for what, count in words:
        if what == "send":
            frames = numbered(count, number)
            number += count
            one.send(*frames)
            sent += frames
            if not frozen:
                heard += [two.get() for _ in frames]
        elif what == "freeze" and not frozen:
            freeze.tell(freeze=["lan"])
            frozen = True
        elif what == "export" and frozen:
            kept = freeze.export(), list(sent), list(heard)
        elif what == "import" and frozen and kept is not None:
            # All that has been read by now belongs to the present that is left.
            freeze.export()
            freeze.take_up(kept[0])
            sent, heard = list(kept[1]), list(kept[2])
        elif what == "thaw" and frozen:
            freeze.tell(thaw=["lan"])
            frozen = False
            heard += [two.get() for _ in range(len(sent) - len(heard))]
            assert heard == sent
    freeze.hang_up()
    heard += [two.get() for _ in range(len(sent) - len(heard))]
    assert heard == sent
    for card in (one, two):
        card.socket.close()
