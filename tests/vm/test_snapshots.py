"""The tree of a machine: live and offline snapshots, revert, undo, forget; and that none of it disturbs the rest."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from vmlab.cli import main
from vmlab.errors import NotFound, UsageError
from vmlab.lab import Lab
from vmlab.machine import Machine


def write(machine: Machine, text: str) -> None:
    """Leave a mark in RAM and one on the disk."""
    machine.succeed(f"echo {text} > /dev/shm/mark; echo {text} > /root/mark; sync")


def read(machine: Machine) -> list[str]:
    return machine.succeed("cat /dev/shm/mark /root/mark 2> /dev/null; true").split()


def unique(machine: Machine) -> list[str]:
    """Return what a guest has in memory only since it was booted."""
    return machine.succeed("cat /run/nonce /proc/sys/kernel/random/boot_id").split()


def test_one_tree_of_live_and_offline_snapshots(tiny: Machine) -> None:
    root, nonce = tiny.root, unique(tiny)
    assert root is not None
    assert root.kind == "ready"
    assert tiny.here == root

    write(tiny, "a")
    a = tiny.snapshot("a", "first")
    assert (tiny.here, a.parent, a.live, a.description) == (a, root, True, "first")
    write(tiny, "b")
    b = tiny.snapshot("b")
    tiny.revert(a)
    assert (tiny.here, read(tiny), unique(tiny)) == (a, ["a", "a"], nonce)

    # A second branch from a, which goes on offline.
    write(tiny, "c")
    tiny.stop()
    off = tiny.snapshot("off")
    assert (off.live, off.parent, off.ram_bytes, off.png) == (False, a, 0, None)
    tiny.start()
    tiny.wait_for_agent()
    rebooted = unique(tiny)
    assert rebooted != nonce
    assert read(tiny) == ["c"]
    write(tiny, "d")
    d = tiny.snapshot("d")
    assert d.parent == off

    # From anywhere to anywhere, each as it was: the other branch, back, off, and the image's own state.
    tiny.revert(b)
    assert (tiny.state, read(tiny), unique(tiny)) == ("running", ["b", "b"], nonce)
    tiny.revert("d")
    assert (tiny.state, read(tiny), unique(tiny)) == ("running", ["d", "d"], rebooted)
    tiny.revert(off)
    assert (tiny.state, tiny.here) == ("off", off)
    tiny.revert(root)
    # The kernel makes its boot ID when somebody first asks for it, and there nobody has.
    assert (tiny.state, read(tiny), unique(tiny)[0]) == ("running", [], nonce[0])

    assert [(s.name, s.parent.name if s.parent else None) for s in tiny.snapshots] == [
        ("a", root.name), ("b", "a"), ("off", "a"), ("d", "off"),
    ]  # fmt: skip
    tree = tiny.tree()
    assert {n.name: n.parent for n in tree.nodes} == {
        root.name: None, "a": root.id, "b": a.id, "off": a.id, "d": off.id,
    }  # fmt: skip
    assert tree.here == root.id
    text = str(tree)
    assert all(name in text for name in ("a", "b", "off", "d"))


def test_undo_and_redo(tiny: Machine) -> None:
    with pytest.raises(NotFound):
        tiny.undo()
    write(tiny, "then")
    snapshot = tiny.snapshot()
    write(tiny, "now")
    tiny.succeed(
        "setsid sh -c 'while :; do date +%s > /dev/shm/alive; sleep 0.2; done' < /dev/null > /dev/null 2>&1 &"
    )
    tiny.wait_for_file("/dev/shm/alive")
    tiny.revert(snapshot)
    assert read(tiny) == ["then", "then"]
    tiny.fail("test -e /dev/shm/alive")

    tiny.undo()
    assert (tiny.state, read(tiny), tiny.here) == ("running", ["now", "now"], snapshot)
    # Running indeed: its program goes on.
    tiny.succeed("rm /dev/shm/alive")
    tiny.wait_for_file("/dev/shm/alive")

    tiny.undo()
    assert read(tiny) == ["then", "then"]
    tiny.undo()
    assert read(tiny) == ["now", "now"]


def test_undo_brings_back_only_the_last_present(tiny: Machine) -> None:
    snapshot = tiny.snapshot()
    for text in ("first", "second"):
        write(tiny, text)
        tiny.revert(snapshot)
    tiny.undo()
    assert read(tiny) == ["second", "second"]
    tiny.revert(snapshot, keep=False)
    assert not tiny.can_undo
    with pytest.raises(NotFound):
        tiny.undo()
    assert [s.kind for s in tiny.snapshots] == ["snapshot"]


def test_an_abandoned_present_that_was_off_or_paused_comes_back_so(tiny: Machine) -> None:
    write(tiny, "live")
    snapshot = tiny.snapshot()
    write(tiny, "changed")
    tiny.pause()
    tiny.revert(snapshot)
    assert (tiny.state, read(tiny)) == ("running", ["live", "live"])
    tiny.undo()
    assert tiny.state == "paused"
    tiny.resume()
    assert read(tiny) == ["changed", "changed"]

    tiny.stop()
    tiny.revert(snapshot)
    assert (tiny.state, read(tiny)) == ("running", ["live", "live"])
    tiny.undo()
    assert tiny.state == "off"
    tiny.start()
    tiny.wait_for_agent()
    assert read(tiny) == ["changed"]


def test_a_snapshot_keeps_whether_the_guest_ran(tiny: Machine) -> None:
    tiny.pause()
    paused = tiny.snapshot("paused")
    assert tiny.state == "paused"
    tiny.resume()
    running = tiny.snapshot("running")
    tiny.stop()
    off = tiny.snapshot("off")
    for snapshot, state in ((paused, "paused"), (off, "off"), (running, "running"), (paused, "paused")):
        tiny.revert(snapshot)
        assert tiny.state == state
    # Power on from a paused state, and from none.
    tiny.resume()
    tiny.succeed("true")


def test_any_snapshot_can_be_forgotten(tiny: Machine, lab: Lab) -> None:
    made = []
    for text in "abcd":
        write(tiny, text)
        made.append(tiny.snapshot(text))
    a, b, c, d = made
    folders = {s.name: s.folder for s in made}

    # In the middle, with others on both sides; nobody stands on it.
    b.forget()
    assert [s.name for s in tiny.snapshots] == ["a", "c", "d"]
    assert c.parent == a
    assert not folders["b"].exists()
    for late in (b.forget, lambda: b.rename("again"), lambda: b.describe("again")):
        with pytest.raises(NotFound):
            late()
    for snapshot in (c, a, d):
        tiny.revert(snapshot)
        assert read(tiny) == [snapshot.name] * 2

    # The one that the present's RAM is mapped from: its file stays as long as that is so, and no longer.
    d.forget()
    assert tiny.here == c
    assert folders["d"].exists()
    assert read(tiny) == ["d", "d"]
    write(tiny, "e")
    tiny.revert(a, keep=False)
    lab.collect()
    assert not folders["d"].exists()
    assert read(tiny) == ["a", "a"]

    # The first, and all the others.
    a.forget()
    c.forget()
    assert tiny.snapshots == []
    assert tiny.here == tiny.root
    assert read(tiny) == ["a", "a"]
    assert tiny.snapshot().verify().ok


def test_temporarily(tiny: Machine) -> None:
    write(tiny, "before")
    before = unique(tiny)
    with tiny.temporarily() as same:
        assert same == tiny
        tiny.succeed("rm -rf /root/mark /dev/shm/mark /bin/busybox")
    assert (read(tiny), unique(tiny)) == (["before", "before"], before)

    def fail() -> None:
        with tiny.temporarily():
            write(tiny, "after")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert read(tiny) == ["before", "before"]
    assert tiny.snapshots == []


def test_a_running_machine_is_renamed(tiny: Machine, lab: Lab, names: Callable[..., str]) -> None:
    write(tiny, "here")
    # Before the snapshot: Linux draws the boot ID when it is first read.
    before = unique(tiny)
    snapshot, old, new = tiny.snapshot("s"), tiny.name, names("renamed")
    tiny.rename(new)
    assert tiny.name == new
    assert tiny.state == "running"
    assert old not in lab
    assert (unique(tiny), read(tiny)) == (before, ["here", "here"])
    assert lab.machine(new).snapshots == [snapshot]
    write(tiny, "there")
    tiny.revert("s")
    assert (unique(tiny), read(tiny)) == (before, ["here", "here"])


def clock_behind(machine: Machine) -> float:
    """Return by how many seconds a guest's clock is behind the host's."""
    return time.time() - float(machine.succeed("date +%s"))


def test_the_clock_as_it_was_or_as_it_is(tiny: Machine) -> None:
    tiny.set_clock()
    assert abs(clock_behind(tiny)) < 3
    snapshot = tiny.snapshot()
    taken = time.time()
    time.sleep(8)
    since = time.time() - taken
    tiny.revert(snapshot)
    # It knows nothing of the time between.
    assert clock_behind(tiny) > since - 3
    tiny.revert(snapshot, clock="now")
    assert abs(clock_behind(tiny)) < 3


def test_another_process_and_virsh_find_the_same_machine(tiny: Machine, lab: Lab) -> None:
    write(tiny, "here")
    tiny.snapshot("s")
    write(tiny, "gone")
    code = (
        "import json, sys\n"
        "from vmlab.lab import Lab\n"
        "m = Lab(sys.argv[1]).machine(sys.argv[2])\n"
        "m.revert('s')\n"
        "print(json.dumps([m.uuid, m.state, m.succeed('cat /root/mark').strip(), [s.name for s in m.snapshots]]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(lab.home), tiny.name], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [tiny.uuid, "running", "here", ["s"]]
    assert read(tiny) == ["here", "here"]

    listed = lab.account.run(
        ["virsh", "-c", lab.account.uri, "list", "--all"], capture_output=True, text=True, check=True
    ).stdout
    known_as = tiny._domain().known_as
    assert any(line.split()[1:] == [known_as, "running"] for line in listed.splitlines())
    tiny.stop()
    listed = lab.account.run(
        ["virsh", "-c", lab.account.uri, "domstate", known_as], capture_output=True, text=True, check=True
    ).stdout
    assert listed.strip() == "shut off"


def test_a_machine_keeps_its_own_name_at_the_root_of_its_tree(tiny: Machine) -> None:
    """What its tree starts from is a state of another machine, with that one's name and network card."""
    assert tiny.revert("ready").succeed("hostname").strip() == tiny.name
    assert tiny._record.mac in tiny.succeed("cat /sys/class/net/eth0/address")


def test_what_belongs_to_others_is_not_forgotten_by_the_way(
    tiny: Machine, names: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    own = tiny.snapshot("own")
    fork = own.fork(names("fork"))
    for machine, name in ((tiny, "ready"), (fork, "own")):
        assert main(["--home", str(tiny._store.home), "forget", machine.name, name]) != 0
        assert "not of" in capsys.readouterr().err
    assert tiny.root is not None
    with pytest.raises(UsageError, match="new machines start from"):
        tiny.root.forget()
    assert fork.revert(own).state == "running"
