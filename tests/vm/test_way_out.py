"""Outside, but not this host: what real guests reach, and who reaches them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from help.bad_lab import until

from vmlab.lab import Lab
from vmlab.machine import Machine
from vmlab.network import addresses, outside

SECRET = "for this host alone"


class Victim:
    """A service of this host: who connects is told a secret, and noted."""

    def __init__(self, family: socket.AddressFamily, address: str) -> None:
        self.listener = socket.socket(family, socket.SOCK_STREAM)
        self.listener.bind((address, 0))
        self.listener.listen()
        self.port = self.listener.getsockname()[1]
        self.came: list[str] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, (whom, *_) = self.listener.accept()
                self.came.append(whom)
                with client, contextlib.suppress(OSError):
                    client.sendall(SECRET.encode())


@pytest.fixture(scope="module")
def victims() -> Iterator[tuple[Victim, Victim | None]]:
    four, six = Victim(socket.AF_INET, "0.0.0.0"), None
    with contextlib.suppress(OSError):
        six = Victim(socket.AF_INET6, "::1")
    yield four, six
    four.listener.close()
    if six is not None:
        six.listener.close()


def tries(machine: Machine, victims: tuple[Victim, Victim | None]) -> dict[str, str]:
    """Let a guest try every way to this host, and return what it got, by address."""
    four, six = victims
    own = [
        str(net.network_address)
        for net in addresses.of_this_host()
        if net.version == 4 and net.prefixlen == 32
    ]
    where = {a: four.port for a in ("10.0.2.2", "10.0.2.3", "10.0.2.4", *own) if a != "127.0.0.1"}
    if six is not None:
        machine.succeed("ip -6 addr add fec0::99/64 dev eth0")
        machine.wait_until_succeeds("ping -6 -c 1 -W 1 fec0::2", 60)
        where["fec0::2"] = six.port
    script = "".join(
        f"echo {address} $(timeout 5 nc {address} {port} </dev/null 2>&1)\n"
        for address, port in where.items()
    )
    lines = machine.succeed(script).splitlines()
    return {address: said for address, _, said in (line.partition(" ") for line in lines)}


def test_a_guest_reaches_nothing_of_this_host(
    lab: Lab, names: Callable[..., str], victims: tuple[Victim, Victim | None]
) -> None:
    four, six = victims
    open_one = lab.create(names("open"), "tiny", way_out="host")
    got = tries(open_one, victims)
    # So it was for all of them; the test sees it.
    assert got["10.0.2.2"] == SECRET
    assert six is None or got["fec0::2"] == SECRET
    before = len(four.came), 0 if six is None else len(six.came)
    machines = [lab.create(names("inner"), "tiny"), lab.create(names("site"), "tiny", way_out="site")]
    machines[0].snapshot("clean")
    machines.append(machines[0].fork(names("fork"), snapshot="clean"))
    for machine in machines:
        # It is told so, and need not wait.
        got = tries(machine, victims)
        assert all("refused" in said or "No route" in said for said in got.values()), got
    machines[0].revert("clean")
    assert SECRET not in tries(machines[0], victims).values()
    assert (len(four.came), 0 if six is None else len(six.came)) == before
    # Which way it has is the machine's own, whatever state it goes back to.
    open_one.snapshot("now")
    open_one.revert("now")
    assert open_one.execute(f"timeout 10 nc 10.0.2.2 {four.port} </dev/null").stdout == SECRET
    assert open_one.spec.network == "host"


def test_what_leads_in_still_does_and_outlives_the_relay(tiny_web: Machine) -> None:
    account = tiny_web._store.account
    ((port, _),) = tiny_web.forwards

    def page() -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
            return bytes(answer.read())

    assert page() == b"a page\n"
    tiny_web.snapshot("served")
    tiny_web.revert("served")
    assert page() == b"a page\n"
    for number in (signal.SIGKILL, signal.SIGTERM):
        (relay,) = relays(outside.RELAY.folder(account))
        os.kill(relay, number)
        until(lambda: relays(outside.RELAY.folder(account)) not in ([relay], []), 20, "another relay")  # noqa: B023
        assert page() == b"a page\n"
    assert tiny_web.succeed("nslookup localhost 10.0.2.3 2>&1 | grep -c Server") == "1\n"


def test_a_machine_that_virsh_started_has_a_way_out_once_it_is_looked_at(tiny_web: Machine) -> None:
    account = tiny_web._store.account
    tiny_web.stop()
    where = outside.RELAY.folder(account)
    for number in relays(where):
        # As if it had ended by itself.
        for path in where.glob("*.*"):
            path.unlink(missing_ok=True)
        shell = int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(shell, signal.SIGKILL)
        os.kill(number, signal.SIGKILL)
    until(lambda: not relays(where), 10, "the relay to end")
    tiny_web.domain._find().create()
    tiny_web.wait_for_agent()
    tiny_web.usage()
    until(lambda: bool(relays(where)), 10, "the relay")
    until(lambda: tiny_web.execute("ping -c 1 -W 1 10.0.2.2").ok, 20, "the router to answer")


def test_nobody_else_may_use_its_sockets(tiny_web: Machine) -> None:
    where = outside.RELAY.folder(tiny_web._store.account)
    assert where.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in where.iterdir())


@pytest.fixture
def tiny_web(lab: Lab, names: Callable[..., str]) -> Machine:
    machine = lab.create(names("web"), "tiny", forwards={0: 80})
    machine.succeed("mkdir -p /www; echo a page > /www/index.html; httpd -p 80 -h /www")
    return machine


def relays(folder: Path) -> list[int]:
    """Return the numbers of the relay processes of an account."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                words = (process / "cmdline").read_bytes().split(b"\0")
                if words[1:3] == [b"-m", b"vmlab.network.relay"] and words[3] == os.fsencode(folder):
                    found.append(int(process.name))
    return found
