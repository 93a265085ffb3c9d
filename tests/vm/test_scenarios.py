"""Scenarios on real guests: several machines and their networks from one file, and states of all at one moment."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from vmlab.engine import load, save
from vmlab.errors import (
    AlreadyExists,
    CommandFailed,
    HostError,
    NoSpace,
    NotFound,
    Overtaken,
    RecordDamaged,
    SnapshotDamaged,
    UsageError,
    VMLabError,
    WrongState,
)
from vmlab.hypervisor.domain import Domain
from vmlab.lab import Lab
from vmlab.machines.move import Move
from vmlab.network.networks import Freeze
from vmlab.records import ScenarioPending
from vmlab.scenario import Scenario
from vmlab.scenarios.whole import Whole
from vmlab.store import scenarios

exhaustive = pytest.mark.skipif("VMLAB_ALL" not in os.environ, reason="exhaustive: scripts/test --all")

SHOP = """\
vmlab = 1
name = "NAME"
title = "Why is the shop down?"

[networks.lan]
subnet = "10.1.0.0/24"
[networks.dmz]
subnet = "10.2.0.0/24"

[machines.client]
image = "tiny"
nics = ["lan=10.1.0.20"]
setup = "setup/client.sh"

[machines.router]
image = "tiny"
nics = ["lan=10.1.0.1", "dmz=10.2.0.1"]
setup = "setup/router.sh"

[machines.web]
image = "tiny"
nics = ["dmz=10.2.0.10"]
files = { "/srv/index.html" = "files/index.html" }
setup = "setup/web.sh"
"""
FILES = {
    "setup/client.sh": "#!/bin/sh\nip route add default via 10.1.0.1\n",
    "setup/router.sh": "#!/bin/sh\necho 1 > /proc/sys/net/ipv4/ip_forward\n",
    "setup/web.sh": "#!/bin/sh\nip route add default via 10.2.0.1\nhttpd -h /srv\n",
    "files/index.html": "Welcome\n",
}
ASK = "wget -q -O - http://10.2.0.10/"


def pair(name: str, **link: str) -> dict[str, Any]:
    """Return a scenario of two machines on one network."""
    return {
        "vmlab": 1,
        "name": name,
        "networks": {"lan": {"subnet": "10.1.0.0/24"}},
        "machines": {
            "one": {"image": "tiny", "nics": ["lan=10.1.0.11"]},
            "two": {"image": "tiny", "nics": ["lan=10.1.0.12"]},
        },
        "links": {"two.lan": link} if link else {},
    }


@pytest.fixture
def called(lab: Lab) -> Iterator[Callable[..., str]]:
    """Make names of scenarios that go after the test."""
    made: list[str] = []

    def new(stem: str = "s") -> str:
        made.append(f"{stem}{uuid.uuid4().hex[:5]}")
        return made[-1]

    yield new
    for name in [found.name for found in lab.scenarios]:
        if any(name.startswith(stem) for stem in made):
            lab.scenario(name).delete()


@pytest.fixture
def shop(lab: Lab, called: Callable[..., str], tmp_path: Path) -> Scenario:
    """A client, a router and a web server behind it, of a file."""
    (tmp_path / "scenario.toml").write_text(SHOP.replace("NAME", called("shop")))
    for path, content in FILES.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(content)
    return lab.up(tmp_path)


def test_a_file_becomes_machines_that_reach_each_other_and_go_back_together(
    lab: Lab, shop: Scenario, tmp_path: Path
) -> None:
    assert [machine.name for machine in shop] == [f"{shop.name}.{n}" for n in ("client", "router", "web")]
    assert shop.state == "running"
    assert shop["client"].succeed(ASK) == "Welcome\n"
    assert [machine.succeed("hostname").strip() for machine in shop] == ["client", "router", "web"]
    # By name, too: of whoever is in the same network there, of others their first address.
    assert "10.1.0.1" in shop["client"].succeed("nslookup router")
    assert "10.2.0.1" in shop["web"].succeed("nslookup router")
    assert shop["client"].succeed("wget -q -O - http://web/") == "Welcome\n"
    assert not shop["client"].execute("nslookup nobody").ok
    assert (shop.root, shop.here) == (shop.find("start"), shop.find("start"))
    # Once more changes nothing, also where the file has changed: that is only said.
    said: list[str] = []
    shop["web"].succeed("echo Changed > /srv/index.html")
    (tmp_path / "files" / "index.html").write_text("Another\n")
    lab.tell = said.append
    lab.up(tmp_path)
    assert shop["client"].succeed(ASK) == "Changed\n"
    assert any("made from something else" in sentence for sentence in said)
    # What was on the wire: the question goes through the router, and comes back.
    with shop.network("dmz").recording() as seen:
        shop["client"].succeed(ASK)
    assert {"10.1.0.20", "10.2.0.10"} == {
        address for frame in seen.of("tcp") for address in (frame.source, frame.target)
    }
    assert any("80 SYN" in frame.what for frame in seen)
    assert len(shop.network("lan").capture()) > len(seen)
    # What differs, machine by machine.
    differs = shop.diff()
    paths = {name: [change.path for change in found.files] for name, found in differs.machines.items()}
    assert "/srv/index.html" in paths.pop(f"{shop.name}.web")
    assert not any("/srv/index.html" in found for found in paths.values())
    assert not differs.same
    # Break it, and go back; and back to what was broken.
    assert shop.reaches("client", "web")
    assert shop.reaches("client", "web", 80)
    assert not shop.reaches("client", "web", 81)
    shop["router"].succeed("ip link set eth1 down")
    assert not shop.reaches("client", "web", 80)
    assert not shop["client"].execute(ASK).ok
    shop.reset()
    assert shop.reaches("client", "web", 80, timeout=10)
    assert shop["client"].succeed(ASK) == "Welcome\n"
    shop.undo()
    assert shop["web"].succeed("cat /srv/index.html") == "Changed\n"
    assert "eth1" not in shop["router"].succeed("ip -o link show up")
    # Its networks are its own, and go with it.
    assert {network.name for network in shop.networks} == {f"{shop.name}.lan", f"{shop.name}.dmz"}
    shop.delete()
    assert shop.name not in [found.name for found in lab.scenarios]
    assert not any(name.startswith(f"{shop.name}.") for name in lab.store.machine_names())
    assert not any(network.name.startswith(f"{shop.name}.") for network in lab.networks)


def test_a_copy_is_a_universe_of_its_own_in_which_nothing_has_changed(
    lab: Lab, shop: Scenario, called: Callable[..., str], tmp_path: Path
) -> None:
    # Without the times for which addresses are still good.
    cards = "ip -o -4 addr | awk '{print $2, $4}'; cat /sys/class/net/eth*/address"
    known = {machine.name.rpartition(".")[2]: machine.succeed(cards) for machine in shop}
    # A connection that is open goes on in both, and each goes its own way.
    shop["web"].succeed("(sleep 9999 | nc -l -p 7001 > /tmp/heard &) </dev/null >/dev/null 2>&1")
    shop["client"].succeed(
        "echo first > /tmp/line; (tail -f /tmp/line | nc 10.2.0.10 7001 &) </dev/null >/dev/null 2>&1"
    )
    shop["web"].wait_until_succeeds("grep -q first /tmp/heard", 20)
    copy = shop.fork(called("copy"))
    assert [machine.name for machine in copy] == [f"{copy.name}.{n}" for n in ("client", "router", "web")]
    for machine in copy:
        assert machine.succeed(cards) == known[machine.name.rpartition(".")[2]]
        assert machine.succeed("hostname").strip() == machine.name.rpartition(".")[2]
    for found, word in ((shop, "here"), (copy, "there")):
        found["client"].succeed(f"echo {word} >> /tmp/line")
        found["web"].wait_until_succeeds(f"grep -q {word} /tmp/heard", 20)
    assert copy["web"].succeed("cat /tmp/heard") == "first\nthere\n"
    assert shop["web"].succeed("cat /tmp/heard") == "first\nhere\n"
    # Their kernels' random numbers are not the same.
    numbers = [found["web"].succeed("head -c 16 /dev/urandom | od -An -tx1") for found in (shop, copy)]
    assert numbers[0] != numbers[1]
    copy["web"].succeed("echo Copied > /srv/index.html")
    assert (copy["client"].succeed(ASK), shop["client"].succeed(ASK)) == ("Copied\n", "Welcome\n")
    # The origin can go: the copy, its start included, is whole without it.
    shop.delete()
    copy.reset()
    assert copy["client"].succeed(ASK) == "Welcome\n"


def test_the_same_file_under_another_name_starts_where_the_first_one_did(
    lab: Lab, shop: Scenario, called: Callable[..., str], tmp_path: Path
) -> None:
    shop["web"].succeed("echo Changed > /srv/index.html")
    other = lab.up(tmp_path, name=called("other"))
    assert other["client"].succeed(ASK) == "Welcome\n"
    assert other.root is not None
    assert other.root.id == shop.find("start").id


PINGS = "ping -i 0.05 10.1.0.12 > /dev/shm/log 2>&1 &"  # in RAM alone


def sequence(text: str) -> list[int]:
    return [int(found) for found in re.findall(r"seq=(\d+)", text)]


def check_log(scenario: Scenario) -> list[int]:
    """Return the numbers of the answers, each of which must have come once and in its turn."""
    found = sequence(scenario["one"].succeed("cat /dev/shm/log"))
    assert found == list(range(len(found))), found
    return found


@pytest.fixture
def pinging(lab: Lab, called: Callable[..., str]) -> Scenario:
    """Two machines, one of which asks the other one twenty times a second, over a link that takes its time."""
    made = lab.up(pair(called("ping"), delay="80 ms"))
    made["one"].succeed(f"({PINGS}) </dev/null >/dev/null 2>&1")
    time.sleep(1)
    return made


def test_no_frame_is_lost_or_comes_twice_or_from_the_future(pinging: Scenario) -> None:
    """With 80 ms on the way there are always some frames under way: each state must hold them."""
    under_way = 0
    for number in range(2 if "VMLAB_ALL" not in os.environ else 20):
        state = pinging.snapshot(f"state {number}")
        under_way += state.frames
        time.sleep(0.4)
        before = check_log(pinging)
        pinging.revert(state)
        time.sleep(0.4)
        after = check_log(pinging)
        assert after
        pinging.undo()
        time.sleep(0.3)
        assert len(check_log(pinging)) > len(before)
    assert under_way > 0


def test_without_the_freeze_it_shows(pinging: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above is one that can fail: it does so where states are taken and gone to without freezing."""
    monkeypatch.setattr(Whole, "freeze", lambda whole: Freeze(whole.store.account, []))
    wrong = 0
    for number in range(4):
        state = pinging.snapshot(f"state {number}")
        time.sleep(0.4)
        pinging.revert(state)
        time.sleep(0.4)
        found = sequence(pinging["one"].succeed("cat /dev/shm/log"))
        wrong += found != list(range(len(found)))
    assert wrong


def test_connections_between_machines_go_on_in_every_state(lab: Lab, called: Callable[..., str]) -> None:
    found = lab.up(pair(called("tcp")))
    one, two = found["one"], found["two"]
    two.succeed("(sleep 9999 | nc -l -p 7000 > /dev/shm/got &) </dev/null >/dev/null 2>&1")
    one.succeed(
        "(i=0; while :; do i=$((i+1)); echo $i; usleep 20000; done | nc 10.1.0.12 7000 &)"
        " </dev/null >/dev/null 2>&1"
    )
    two.wait_until_succeeds("grep -q '^20$' /dev/shm/got", 20)

    def received() -> int:
        numbers = [int(line) for line in two.succeed("cat /dev/shm/got").splitlines()]
        assert numbers == list(range(1, len(numbers) + 1))
        return len(numbers)

    for round_ in range(2 if "VMLAB_ALL" not in os.environ else 20):
        state = found.snapshot(f"state {round_}")
        at = received()
        time.sleep(0.5)
        found.revert(state)
        back = received()
        two.wait_until_succeeds(f"[ $(wc -l < /dev/shm/got) -gt {max(at, back) + 10} ]", 20)
        received()
    # Ended, kept, and gone on with.
    before = received()
    found.suspend()
    assert (found.state, found["one"].state) == ("suspended", "suspended")
    with pytest.raises(WrongState, match="nothing new to take"):
        found.snapshot()
    found.start()
    two.wait_until_succeeds(f"[ $(wc -l < /dev/shm/got) -gt {before + 10} ]", 20)
    received()


def test_machines_that_booted_are_caught_at_one_moment_too(lab: Lab, called: Callable[..., str]) -> None:
    """Then all of their RAM is written, for as long as that takes; one of them is busy meanwhile."""
    found = lab.up(pair(called("boot"), delay="80 ms"))
    found.stop()
    assert found.state == "off"
    offline = found.snapshot("off")
    found.start(boot=True)
    for machine in found:
        machine.wait_for_agent(120)
        machine.wait_until_succeeds("ip addr | grep -q 10.1.0.1", 60)
    found["two"].succeed("(while :; do :; done &) </dev/null >/dev/null 2>&1")
    found["one"].wait_until_succeeds("ping -c 1 -W 2 10.1.0.12", 30)
    found["one"].succeed(f"({PINGS}) </dev/null >/dev/null 2>&1")
    time.sleep(1)
    for number in range(2):
        state = found.snapshot(f"booted {number}")
        assert state.live
        time.sleep(0.4)
        check_log(found)
        found.revert(state)
        time.sleep(0.4)
        check_log(found)
    # A state in which all were off is one in which nothing is on the wire.
    found.revert(offline)
    assert found.state == "off"
    found.undo()
    time.sleep(0.4)
    check_log(found)
    with pytest.raises(AlreadyExists, match="There is a scenario named"):
        lab.create(found.name)


def test_a_member_has_no_states_of_its_own(
    lab: Lab, called: Callable[..., str], names: Callable[..., str]
) -> None:
    found = lab.up(pair(called("own")))
    one, two = found["one"], found["two"]
    state = found.snapshot("mine")
    for deed in (lambda: one.snapshot("alone"), one.delete, lambda: one.rename("alone")):
        with pytest.raises(WrongState, match="have their states together"):
            deed()
    with pytest.raises(WrongState, match="part of a state of the scenario"):
        one.find("mine").forget()
    with pytest.raises(UsageError, match="'start' is the name of"):
        found.snapshot("start")
    with pytest.raises(UsageError, match="goes back to at a reset"):
        found.find("start").forget()
    with pytest.raises(AlreadyExists):
        found.snapshot("mine")
    # Its part of a state it can go to alone, which is said.
    said: list[str] = []
    lab.tell = said.append
    one.succeed("touch /changed")
    two.succeed("touch /changed")
    one.revert("mine")
    assert any("alone goes back" in sentence for sentence in said)
    assert not one.execute("test -e /changed").ok
    assert two.execute("test -e /changed").ok
    # A fork of it is an ordinary machine whose cables are pulled.
    fork = one.fork(names("fork"), snapshot="mine")
    assert fork.spec.nics[0].network == ""
    assert not fork.execute("ping -c 1 -W 1 10.1.0.12").ok
    fork.snapshot("of its own")
    # States have names, and go.
    state.rename("ours")
    state.describe("both of them")
    assert found.find("ours").description == "both of them"
    assert one.find("ours").description == "both of them"
    later = found.snapshot("later")
    assert later.parent == state
    state.forget()
    assert found.find("later").parent == found.find("start")
    with pytest.raises(NotFound):
        found.revert("ours")
    found.revert("later")
    assert two.execute("test -e /changed").ok


def test_what_cannot_be_made_leaves_nothing(lab: Lab, called: Callable[..., str], tmp_path: Path) -> None:
    wanted = pair(called("bad"))
    (tmp_path / "setup.sh").write_text("#!/bin/sh\necho it breaks >&2\nexit 3\n")
    name = called("bad")
    (tmp_path / "scenario.toml").write_text(
        f'vmlab = 1\nname = "{name}"\n[networks.lan]\n'
        '[machines.one]\nimage = "tiny"\nnics = ["lan"]\nsetup = "setup.sh"\n'
    )
    with pytest.raises(CommandFailed, match="it breaks"):
        lab.up(tmp_path)
    assert name not in [found.name for found in lab.scenarios]
    assert f"{name}.one" not in lab.store.machine_names()
    assert not any(network.name.startswith(name) for network in lab.networks)
    # A name that is taken, before anything is made.
    found = lab.up(wanted)
    with pytest.raises(AlreadyExists):
        found.fork(found.name)
    with pytest.raises(UsageError, match="no dot"):
        found.fork("a.b")


@pytest.fixture(scope="module")
def talkers(lab: Lab) -> Iterator[Scenario]:
    """Two machines, one of which sends numbers to the other one."""
    with lab.up(pair(f"talk{uuid.uuid4().hex[:5]}")) as found:
        found["two"].succeed("(sleep 9999 | nc -l -p 7000 > /dev/shm/got &) </dev/null >/dev/null 2>&1")
        found["one"].succeed(
            "(i=0; while :; do i=$((i+1)); echo $i; usleep 20000; done | nc 10.1.0.12 7000 &)"
            " </dev/null >/dev/null 2>&1"
        )
        found["two"].wait_until_succeeds("grep -q '^5$' /dev/shm/got", 20)
        yield found


@pytest.fixture
def talking(talkers: Scenario) -> Scenario:
    """The same two, on their way, with no state but their start."""
    for state in talkers.snapshots:
        state.forget()
    still_talks(talkers, 1)
    return talkers


def still_talks(found: Scenario, more: int = 5) -> None:
    """Make sure that numbers go on, each once and in its turn."""
    two = found["two"]
    before = len(two.succeed("cat /dev/shm/got").splitlines())
    two.wait_until_succeeds(f"[ $(wc -l < /dev/shm/got) -gt {before + more} ]", 30)
    numbers = [int(line) for line in two.succeed("cat /dev/shm/got").splitlines()]
    assert numbers == list(range(1, len(numbers) + 1))


def failing(real: Callable[..., Any], name: str, *, before: bool = False) -> Callable[..., Any]:
    """Return what does the same, and then (or ``before`` that) fails for the machine of that name.

    For ``""`` it fails at once.
    """

    def fails(one: Any, *args: Any, **options: Any) -> Any:
        known = (getattr(one, "machine", None), getattr(one, "record", None), one, *args)
        wrong = not name or name in [getattr(found, "name", None) for found in known]
        made = real(one, *args, **options) if name and not (before and wrong) else None
        if wrong:
            raise NoSpace("The disk is full.")
        return made

    return fails


@pytest.mark.parametrize(
    ("where", "what"),
    [
        (save.Live, "copy"),
        (save.Live, "stop"),
        (save.Live, "keep"),
        (save.Live, "seal"),
        (scenarios, "add_state"),
    ],
    ids=lambda found: found if isinstance(found, str) else "",
)
def test_a_snapshot_of_which_one_part_fails_is_none(
    talking: Scenario, monkeypatch: pytest.MonkeyPatch, where: Any, what: str
) -> None:
    """As where the disk is full at the last of several saves."""
    found, second = talking, talking["two"].name if where is save.Live else ""
    before = [sorted(state.id for state in found.snapshots), found.here]
    with monkeypatch.context() as patch:
        patch.setattr(where, what, failing(getattr(where, what), second))
        with pytest.raises(VMLabError, match="The disk is full"):
            found.snapshot("all or nothing")
    assert [sorted(state.id for state in found.snapshots), found.here] == before
    for machine in found:
        assert [snapshot.name for snapshot in machine.snapshots] == ["start"]
        assert machine.here == machine.find("start")
    assert found.state == "running"
    still_talks(found)
    found.revert(found.snapshot("all or nothing"))
    still_talks(found)


@pytest.mark.parametrize(
    ("where", "what"),
    [(Move, "keep"), (Move, "turn"), (load, "start_from"), (Domain, "go"), (scenarios, "wire")],
    ids=lambda found: found if isinstance(found, str) else "",
)
def test_a_revert_that_fails_in_one_machine_leaves_all_as_they_were(
    talking: Scenario, monkeypatch: pytest.MonkeyPatch, where: Any, what: str
) -> None:
    found = talking
    second, could = "" if where is scenarios else found["two"].name, found.can_undo
    state = found.snapshot("good")
    for machine in found:
        machine.succeed("touch /dev/shm/present")
    real, calls = getattr(where, what), list[int]()

    def once(*args: Any, **options: Any) -> Any:
        # What brings the present back goes the same way.
        first = not calls
        try:
            # A QEMU that could not be started is not there.
            return (failing(real, second, before=where is load) if first else real)(*args, **options)
        except NoSpace:
            calls.append(1)
            raise

    with monkeypatch.context() as patch:
        patch.setattr(where, what, once)
        with pytest.raises(VMLabError, match="The disk is full"):
            found.revert(state)
    assert found.state == "running"
    assert found.can_undo == could
    for machine in found:
        machine.succeed("test -e /dev/shm/present")
    still_talks(found)
    found.revert(state)
    for machine in found:
        machine.fail("test -e /dev/shm/present")
    still_talks(found)


def test_the_switch_dies_while_it_is_frozen(talking: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    found, real = talking, Freeze.export

    def killed(freeze: Freeze) -> Any:
        assert freeze._line is not None
        pid, _, _ = struct.unpack("3i", freeze._line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        os.kill(pid, signal.SIGKILL)
        return real(freeze)

    with monkeypatch.context() as patch:
        patch.setattr(Freeze, "export", killed)
        with pytest.raises(HostError, match="joins network cards does not answer"):
            found.snapshot("frozen")
    assert [state.name for state in found.snapshots] == []
    still_talks(found)
    found.revert(found.snapshot("frozen"))
    still_talks(found)


def test_two_who_revert_at_once_do_so_one_after_the_other(talking: Scenario) -> None:
    states = [talking.snapshot("a"), talking.snapshot("b")]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(talking.revert, states))
    assert talking.here in states
    assert {machine.here.name for machine in talking if machine.here} == {talking.here.name}  # type: ignore[union-attr]
    still_talks(talking)


def test_a_process_that_dies_leaves_the_present_or_the_state(lab: Lab, called: Callable[..., str]) -> None:
    """What the next verb finds: half a snapshot, and machines of which only one had come to a state."""
    found = lab.up(pair(called("die")))
    record = scenarios.read(lab.store, found.name)
    # Snapshots of machines that belong to no state: who took them died before it was written.
    made = found.snapshot("half")
    record = scenarios.read(lab.store, found.name)
    record.pending = ScenarioPending("keep", made.id, made.members)
    record.here = record.start
    scenarios.save(lab.store, record)
    scenarios.remove_state(lab.store, found.name, made.id)
    again = found.snapshot("half")
    assert [state.name for state in found.snapshots] == ["half"]
    assert again.parent == found.find("start")
    assert found["one"].here == found["one"].find("half")
    # On the way to a state: all are there next, suspended, and go on together.
    found["one"].succeed("touch /dev/shm/present")
    record = scenarios.read(lab.store, found.name)
    record.pending = ScenarioPending("arrive", again.id)
    scenarios.save(lab.store, record)
    found.start()
    assert found.state == "running"
    found["one"].fail("test -e /dev/shm/present")
    assert found["one"].execute("ping -c 1 -W 5 10.1.0.12").ok
    # Whoever goes elsewhere from there, or starts a machine alone, loses no state that has a name.
    for leave in (lambda: found.revert("start"), lambda: (found["one"].start(), found.start())):
        record = scenarios.read(lab.store, found.name)
        record.pending = ScenarioPending("arrive", again.id)
        scenarios.save(lab.store, record)
        found.find("half").describe("held")
        assert found.state == "suspended"
        leave()
        assert found.state == "running"
        assert [state.name for state in found.snapshots] == ["half"]
    # Made, and its start not kept yet.
    record = scenarios.read(lab.store, found.name)
    record.start = None
    scenarios.save(lab.store, record)
    scenarios.remove_state(lab.store, found.name, found.find("start").id)
    lab.up(pair(found.name))
    assert found.root == found.find("start")
    # Half made, it can only be deleted.
    record = scenarios.read(lab.store, found.name)
    record.pending = ScenarioPending("make")
    scenarios.save(lab.store, record)
    assert found.state == "damaged"
    with pytest.raises(WrongState, match="is not whole"):
        found.snapshot()
    found.delete()
    assert found.name not in [one.name for one in lab.scenarios]


KILLED = """
import sys
from vmlab.lab import Lab
from vmlab.machines.move import Move
found = Lab({home!r}).scenario({name!r})
print("begun", flush=True)
{deed}
"""
DEEDS = (
    "found.snapshot()",
    "found.revert()",
    "found.undo()",
    "found.suspend()",
    "found.start()",
    "found.snapshot().forget()",
)


def test_whoever_is_killed_at_work_leaves_a_whole(lab: Lab, talking: Scenario) -> None:
    """A process that takes or goes to a state is killed at any moment: the next verb finds all machines in one state.

    What is one state shows in a connection: numbers go over it, and each must arrive once and in its turn.
    """
    found = talking
    found.snapshot("base")
    found.revert("base")
    moments = random.Random(7)
    for number in range(len(DEEDS) if "VMLAB_ALL" not in os.environ else 60):
        deed = DEEDS[number % len(DEEDS)]
        code = KILLED.format(home=str(lab.home), name=found.name, deed=deed)
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"begun\n"
            time.sleep(moments.uniform(0, 0.9))
            process.kill()
        found.start()
        assert [machine.state for machine in found] == ["running", "running"], deed
        record = scenarios.read(lab.store, found.name)
        assert record.pending is None
        for state in found.snapshots:
            for member, snapshot in state.members.items():
                assert lab.store.snapshot(snapshot).machine_name == f"{found.name}.{member}"
        still_talks(found)
        if not found.can_undo:
            found.revert("base")


def test_a_damaged_record_hides_nothing_and_can_be_deleted(lab: Lab, called: Callable[..., str]) -> None:
    found, other = lab.up(pair(called("hurt"))), lab.up(pair(called("well")))
    state = found.snapshot("lost")
    folder = lab.home / "scenarios" / found.name
    # A state that cannot be read is in no list, and goes to nobody; the others are there.
    (folder / "states" / state.id / "state.json").write_text("{")
    assert [one.name for one in found.snapshots] == []
    with pytest.raises(NotFound):
        found.revert("lost")
    found.reset()
    (folder / "states" / found.find("start").id / "wire.json").write_text("[]")
    with pytest.raises(SnapshotDamaged, match="state cannot be read"):
        found.reset()
    assert found["one"].execute("ping -c 1 -W 5 10.1.0.12").ok
    (folder / "scenario.json").write_text("nonsense")
    assert {found.name, other.name} <= {one.name for one in lab.scenarios}
    assert found.state == "damaged"
    assert f"{found.name}.one" in [machine.name for machine in lab.machines]
    with pytest.raises(RecordDamaged, match="delete the scenario"):
        found.snapshot()
    found.delete()
    assert found.name not in [one.name for one in lab.scenarios]
    assert not any(name.startswith(f"{found.name}.") for name in lab.store.machine_names())
    assert not any(network.name.startswith(f"{found.name}.") for network in lab.networks)
    other.reset()


def test_a_machine_that_was_killed_comes_back_with_the_others(lab: Lab, called: Callable[..., str]) -> None:
    found = lab.up(pair(called("dead")))
    pid = found["two"].domain.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    # A state of what there is: one that runs, and one that is off.
    mixed = found.snapshot("mixed")
    assert found.state == "mixed"
    assert mixed.live
    found.reset()
    assert found.state == "running"
    assert found["one"].execute("ping -c 1 -W 5 10.1.0.12").ok
    found.revert(mixed)
    assert [machine.state for machine in found] == ["running", "off"]
    found.undo()
    assert found["one"].execute("ping -c 1 -W 5 10.1.0.12").ok
    # Suspended, and one of them started alone: then the others are started as they are.
    found.suspend()
    found["one"].start()
    found.start()
    assert found.state == "running"
    assert found["one"].execute("ping -c 1 -W 5 10.1.0.12").ok
    # While it is held by somebody who goes back, whoever uses it waits, or is told.
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(found.reset)
        with contextlib.suppress(Overtaken):
            assert found["two"].succeed("echo here") == "here\n"
        done.result()
