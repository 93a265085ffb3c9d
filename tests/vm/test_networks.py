"""Networks between real guests: who reaches whom, what a fork does on the wire, and bad days of the switch."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from help.bad_lab import until

from vmlab.errors import AlreadyExists, BadName, NotFound, UsageError, VMLabError, WrongState
from vmlab.lab import Lab
from vmlab.machine import Machine
from vmlab.network.networks import CARDS, SWITCH, socket_name
from vmlab.records import mac_of
from vmlab.store import networks

exhaustive = pytest.mark.skipif("VMLAB_ALL" not in os.environ, reason="exhaustive: scripts/test --all")


@pytest.fixture
def lan(lab: Lab) -> Iterator[str]:
    """The name of a network that goes after the test, with the machines that are on it."""
    name = f"lan-{uuid.uuid4().hex[:6]}"
    yield name
    for network in lab.networks:
        if network.name == name:
            for machine in {card.machine for card in network.cards}:
                lab.machine(machine).delete()
            lab.delete_network(name)


def reaches(machine: Machine, address: str) -> bool:
    return machine.execute(f"ping -c 1 -W 2 {address}").ok


def address(machine: Machine) -> str:
    return machine.spec.nics[-1].address


class Tap:
    """Hears what is sent to all on a network, as a machine that is plugged into it does."""

    def __init__(self, lab: Lab, network: str) -> None:
        identity = networks.read(lab.store, network).id
        self._line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._line.connect(os.fspath(SWITCH.folder(lab.account) / socket_name(identity, CARDS - 1)))
        self.frames: list[bytes] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def send(self, *frames: bytes) -> None:
        self._line.sendall(b"".join(struct.pack(">I", len(frame)) + frame for frame in frames))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._line.shutdown(socket.SHUT_RDWR)

    def sources(self) -> set[str]:
        return {frame[6:12].hex(":") for frame in list(self.frames)}

    def _listen(self) -> None:
        with contextlib.suppress(OSError), self._line.makefile("rb") as stream:
            while len(size := stream.read(4)) == 4:
                self.frames.append(stream.read(struct.unpack(">I", size)[0]))


def test_machines_on_a_network_reach_each_other_and_nobody_else_does(
    lab: Lab, names: Callable[..., str], lan: str
) -> None:
    web = lab.create(names("web"), nics=[lan])
    inner = lab.create(names("inner"), way_out="none", nics=[f"{lan}={other(lab, lan)}"])
    apart = lab.create(names("apart"))
    for machine in (web, inner):
        machine.wait_until_succeeds(f"ip addr | grep -q {address(machine)}", 30)
    assert reaches(web, address(inner))
    assert reaches(inner, address(web))
    assert not reaches(apart, address(web))
    # The way out is as before, and only for whom has one.
    assert reaches(web, "10.0.2.2")
    assert "10.0.2.3" in web.succeed("cat /etc/resolv.conf")
    assert inner.succeed("ls /sys/class/net").split() == ["eth0", "lo"]
    assert inner.succeed("ip route").count("\n") == 1
    # Names with their addresses, as the lab has them.
    (network,) = [n for n in lab.networks if n.name == lan]
    assert {card.machine: card.address for card in network.cards} == {
        web.name: address(web), inner.name: address(inner),
    }  # fmt: skip
    assert web.succeed("cat /sys/class/net/eth1/address").strip() == mac_of(web._record.mac, 1)
    # After a reboot, and from the disk, too.
    inner.reboot()
    inner.wait_until_succeeds(f"ping -c 1 -W 1 {address(web)}", 60)
    # Much at once arrives whole.
    web.succeed("head -c 3000000 /dev/urandom >/dev/shm/big; httpd -p 7000 -h /dev/shm")
    assert (
        inner.succeed(f"wget -q -O - http://{address(web)}:7000/big | sha256sum").split()[0]
        == web.succeed("sha256sum /dev/shm/big").split()[0]
    )
    where = SWITCH.folder(lab.account)
    assert where.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in where.iterdir())


def other(lab: Lab, lan: str) -> str:
    """Return an address of a network that nobody would choose by itself."""
    return networks.read(lab.store, lan).subnet.replace("0/24", "77")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("image", ["tiny", pytest.param("desktop", marks=exhaustive)])
def test_a_fork_is_another_machine_on_the_wire_from_its_first_frame(
    lab: Lab, names: Callable[..., str], lan: str, image: str
) -> None:
    web = lab.create(names("web"), image, nics=[lan])
    peer = lab.create(names("peer"), nics=[lan])
    web.wait_until_succeeds(f"ping -c 1 -W 1 {address(peer)}", 30)
    # It talks all the time, to a peer that does not know it is being forked.
    web.succeed(f"(ping -i 0.1 {address(peer)} >/dev/shm/pings 2>&1 &)")
    web.snapshot("talking")
    web.pause()
    tap = Tap(lab, lan)
    fork = web.fork(names("fork"), snapshot="talking")
    own, origin = mac_of(fork._record.mac, 1), mac_of(web._record.mac, 1)
    assert own != origin
    fork.wait_until_succeeds(f"ip addr show eth1 | grep -q {address(fork)}", 30)
    assert address(fork) != address(web)
    fork.wait_until_succeeds(f"ping -c 1 -W 1 {address(peer)}", 30)
    tap.close()
    assert own in tap.sources()
    # Neither QEMU nor the guest has said that the origin's card is here.
    assert origin not in tap.sources()
    web.resume()
    # Who did not answer for a while is asked again some moments later.
    peer.wait_until_succeeds(f"ping -c 1 -W 1 {address(web)}", 30)
    web.wait_until_succeeds(f"ping -c 1 -W 1 {address(fork)}", 30)
    # Going back changes neither address, and its own state knows them already.
    fork.snapshot("own")
    for machine, state in ((fork, "own"), (web, "talking")):
        machine.revert(state)
        machine.wait_until_succeeds(f"ping -c 1 -W 1 {address(peer)}", 30)
        machine.undo()
    # It goes back to what it was before it was told, and is told again.
    assert fork.root is not None
    fork.revert(fork.root)
    fork.wait_until_succeeds(f"ping -c 1 -W 1 {address(peer)}", 30)
    assert fork.succeed("cat /sys/class/net/eth1/address").strip() == own


def test_a_link_is_slow_lossy_or_pulled_while_the_guest_runs(
    lab: Lab, names: Callable[..., str], lan: str
) -> None:
    web, peer = lab.create(names("web"), nics=[lan]), lab.create(names("peer"), nics=[lan])
    web.wait_until_succeeds(f"ping -c 1 -W 1 {address(peer)}", 30)

    def round_trip() -> float:
        said = web.succeed(f"ping -c 3 -W 5 {address(peer)}")
        return float(said.rpartition("=")[2].split("/")[0])

    peer.link(lan, delay=0.3)
    assert round_trip() >= 600
    # Only what is named changes.
    peer.link(lan, loss=1.0)
    assert peer.spec.nics[-1].link.delay == 0.3
    assert not reaches(web, address(peer))
    peer.link(lan, clear=True)
    assert round_trip() < 600
    peer.link(lan, up=False)
    assert peer.succeed("cat /sys/class/net/eth1/carrier").strip() == "0"
    assert not reaches(web, address(peer))
    # It stays over a revert to a state in which it was in, and over a start from the disk.
    peer.snapshot("pulled")
    peer.link(lan, up=True)
    peer.revert("pulled")
    peer.wait_until_succeeds("[ $(cat /sys/class/net/eth1/carrier) = 1 ]", 10)
    web.wait_until_succeeds(f"ping -c 1 -W 1 {address(peer)}", 10)
    peer.link(lan, up=False)
    peer.kill()
    peer.start(boot=True)
    peer.wait_for_agent(60)
    assert peer.succeed("cat /sys/class/net/eth1/carrier").strip() == "0"
    for wrong in ({"delay": -1.0}, {"loss": 1.1}, {"rate": -5}, {"delay": 1e9}):
        with pytest.raises(UsageError, match="use a number from 0 to"):
            peer.link(lan, **wrong)  # type: ignore[arg-type]
    with pytest.raises(NotFound, match="no card"):
        peer.link("nowhere", delay=0.1)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_switch_that_dies_comes_back_by_itself(
    lab: Lab, names: Callable[..., str], lan: str, number: int
) -> None:
    web, peer = lab.create(names("web"), nics=[lan]), lab.create(names("peer"), nics=[lan])
    web.wait_until_succeeds(f"ping -c 1 -W 1 {address(peer)}", 30)
    (before,) = switches(lab)
    os.kill(before, number)
    until(lambda: switches(lab) not in ([before], []), 20, "another switch")
    web.wait_until_succeeds(f"ping -c 1 -W 1 {address(peer)}", 20)


def switches(lab: Lab) -> list[int]:
    """Return the numbers of the switch processes of an account."""
    found = []
    for path in Path("/proc").glob("[1-9]*"):
        with contextlib.suppress(OSError):
            words = (path / "cmdline").read_bytes().split(b"\0")
            if words[1:3] == [b"-m", b"vmlab.network.switch"] and words[3] == os.fsencode(
                SWITCH.folder(lab.account)
            ):
                found.append(int(path.name))
    return found


def test_a_guest_that_floods_stops_neither_the_others_nor_the_host(
    lab: Lab, names: Callable[..., str], lan: str
) -> None:
    web, peer = lab.create(names("web"), nics=[lan]), lab.create(names("peer"), nics=[lan])
    web.wait_until_succeeds(f"ping -c 1 -W 1 {address(peer)}", 30)
    tap = Tap(lab, lan)
    stop = time.monotonic() + 5
    number = 0
    while time.monotonic() < stop:
        # To all, each from an address of its own.
        tap.send(*(b"\xff" * 6 + b"\x02" + struct.pack(">IB", number + n, 0) + bytes(500) for n in range(50)))
        number += 50
        if number % 5000 == 0:
            time.sleep(0.2)
    assert web.execute(f"ping -c 3 -W 5 {address(peer)}", timeout=60).ok
    tap.close()
    (pid,) = switches(lab)
    assert int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 < 60 << 20


def test_what_makes_no_sense_is_refused_and_leaves_nothing(
    lab: Lab, names: Callable[..., str], lan: str
) -> None:
    here = lab.create(names("here"), nics=[lan], start=False)
    subnet = networks.read(lab.store, lan).subnet.removesuffix(".0/24")
    before = {network.name for network in lab.networks}, {machine.name for machine in lab.machines}
    for asked, error, words in (
        (["internet"], BadName, "way_out"),
        (["none"], BadName, "way_out"),
        (["a b"], BadName, "network"),
        ([f"{lan}=10.300.0.1"], UsageError, "no address"),
        ([f"{lan}="], UsageError, "no address"),
        *(
            ([f"new-{lan}={bad}"], UsageError, "network of your own")
            for bad in (
                "127.0.0.1",
                "0.0.0.0",
                "224.0.0.9",
                "255.255.255.255",
                "169.254.1.1",
                "8.8.8.8",
                "10.0.2.20",
            )
        ),
        ([f"{lan}=192.168.7.7"], UsageError, f"use one from {subnet}.1"),
        ([f"{lan}={subnet}.254"], UsageError, "no address of a card"),
        ([f"{lan}={address(here)}"], UsageError, here.name),
        ([f"{lan}={subnet}.9", f"{lan}={subnet}.9"], UsageError, f"{subnet}.9"),
        ([f"new-{lan}", f"{lan}={address(here)}"], UsageError, here.name),
        ([lan] * 8, UsageError, "8 network cards"),
        ("lan", UsageError, "list"),
    ):
        with pytest.raises(error) as caught:
            lab.create(names("bad"), nics=asked, start=False)  # type: ignore[arg-type]
        assert words in f"{caught.value}", (asked, str(caught.value))
        assert ({n.name for n in lab.networks}, {m.name for m in lab.machines}) == before, asked
    with pytest.raises(WrongState, match=here.name):
        lab.delete_network(lan)
    with pytest.raises(NotFound, match=lan):
        lab.delete_network(lan + "x")
    with pytest.raises(AlreadyExists, match="hardware"):
        lab.create(here.name, reuse=True, start=False)
    assert lab.create(here.name, nics=[lan], reuse=True, start=False) == here


def test_a_machine_whose_network_is_gone_says_so(lab: Lab, names: Callable[..., str], lan: str) -> None:
    web = lab.create(names("web"), nics=[lan], start=False)
    path = lab.store.home / "networks" / f"{lan}.json"
    content = path.read_text()
    for harm in ("", "{}"):
        path.write_text(harm)
        with pytest.raises(VMLabError, match=f"network '{lan}' is damaged"):
            web.start()
        assert web.state == "off"
    path.write_text(content)
    web.start()
    assert web.state == "running"
