"""Comparing states of real guests: what somebody did is found, and the machine under study notices nothing."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vmlab.errors import NotFound, SnapshotDamaged, UsageError, VMLabError, WrongState
from vmlab.lab import Lab
from vmlab.machine import Machine, Snapshot
from vmlab.store.locks import is_held
from vmlab.study import present
from vmlab.views import dispatch

INTRUSION = """
useradd -m -s /bin/bash eve
echo 'call me' >>/etc/motd
modprobe dummy
echo 1 >/proc/sys/net/ipv4/ip_forward
(setsid busybox nc -ll -p 4444 -e /bin/sh </dev/null >/dev/null 2>&1 &)
(setsid python3 -c 'import time; time.sleep(10000)' miner </dev/null >/dev/null 2>&1 &)
sleep 1
"""


def leftovers(lab: Lab, machine: Machine) -> list[str]:
    """Return throw-away forks of a machine's states, presents of it, and what belongs to them."""
    store = lab.store
    ours = {identity for identity in store.snapshot_ids() if store.snapshot(identity).machine == machine.uuid}
    found = [identity for identity in ours if store.snapshot(identity).kind == "present"]
    for name in store.machine_names():
        if name.startswith("look-"):
            # Other tests, or people, may be comparing something in the same lab.
            with contextlib.suppress(NotFound):
                found += [name] * (store.machine(name).root in ours)
    holds = {path.name: path for path in (lab.home / "locks").glob("*.hold")}
    return found + [name for name, path in holds.items() if not is_held(path)]


def test_an_intruder_is_found_in_a_machine_that_stands_still(desktop: Machine, lab: Lab) -> None:
    clean = desktop.snapshot("clean")
    desktop.script(f"#!/bin/sh\n{INTRUSION}").check()
    # Only in the page cache when the machine is stopped: nothing has written it out.
    desktop.succeed("echo secret >/root/just-now; mkdir -p /opt/kit; echo tool >/opt/kit/tool")
    # A guest that stands still can answer nothing: whatever is asked is asked of others.
    desktop.pause()
    registers = desktop.domain.hmp("info registers -a")
    layers = dict(desktop._record.layers)
    with lab.diff(clean, desktop) as diff:
        diff.compare("files", "inside", "screen", "registers", "devices", "ram", "disk")
        assert {part.outcome for part in diff.parts.values()} <= {"same", "different"}, diff.summary
        assert diff
        assert not diff.same

        assert "call me" in (diff.files.changed("/etc/motd").text_diff() or "")
        assert diff.files.added("/root/just-now").after is not None
        assert diff.files.added("/root/just-now").after.read() == b"secret\n"  # type: ignore[union-attr]
        assert diff.files.added("/opt/kit/tool")
        assert diff.files.added("/home/eve")
        assert diff.files.unchanged("/usr/bin")
        with pytest.raises(AssertionError, match="/etc/hostname was not added: it was there before"):
            diff.files.added("/etc/hostname")

        assert diff.inside.users.added("eve")
        assert diff.inside.ports.added(4444)[0]["process"].endswith("nc -ll -p 4444 -e /bin/sh")
        assert diff.inside.processes.added("miner")
        assert diff.inside.modules.added("dummy")
        assert diff.inside.sysctl.changed("net.ipv4.ip_forward")
        assert diff.inside.packages.unchanged()
        assert diff.inside.mounts.unchanged()
        # What looks at the guest is no part of what it shows.
        assert not [row for row in diff.inside.processes.new if "vmlab" in str(row)]
        with pytest.raises(AssertionError, match="No port 8080 appeared: appeared: tcp"):
            diff.inside.ports.added(8080)

        assert diff.ram.pages
        assert any("nc -ll -p 4444" in text for text, _ in diff.strings.came)
        assert json.dumps(diff.to_json())
        assert "not asked for" not in diff.summary
        assert [part for part in diff.to_json()["layers"].values() if part["outcome"] == "failed"] == []
        assert diff.to_json()["strings"]["came_total"] == len(diff.strings.came)
        if importlib.util.find_spec("pandas"):
            frames = diff.to_pandas()
            assert frames.keys() == diff.parts.keys()
            assert all(len(frame.columns) > 1 for frame in frames.values())
    assert desktop.state == "paused"
    assert desktop.domain.hmp("info registers -a") == registers
    assert desktop._record.layers == layers
    desktop.resume()
    assert desktop.succeed("cat /root/just-now") == "secret\n"
    assert leftovers(lab, desktop) == []


def test_a_running_machine_goes_on(tiny: Machine, lab: Lab) -> None:
    clean = tiny.snapshot("clean")
    tiny.succeed("echo new >/root/new")
    before = tiny._record
    pid, uptime = tiny.domain.pid, float(tiny.succeed("cut -d' ' -f1 /proc/uptime"))
    for _ in range(3):
        with tiny.diff(clean) as diff:
            assert diff.files.added("/root/new")
            assert diff.to_json()["layers"]["files"]["outcome"] == "different"
            assert not [m.name for m in lab.machines if m.name.startswith("look-")]
    after = tiny._record
    # The same process on the same disks, in the same place of the same tree.
    assert tiny.domain.pid == pid
    assert after.layers == before.layers
    assert (after.here, after.undo, after.root) == (before.here, before.undo, before.root)
    assert [s.name for s in tiny.snapshots] == ["clean"]
    assert float(tiny.succeed("cut -d' ' -f1 /proc/uptime")) > uptime
    assert leftovers(lab, tiny) == []


def test_disks_with_much_on_them_get_new_layers(tiny: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    clean = tiny.snapshot()
    tiny.succeed("echo new >/root/new")
    before = tiny._record.layers
    monkeypatch.setattr(present, "COPIED", 0)
    with tiny.diff(clean) as diff:
        assert diff.files.added("/root/new")
    assert tiny._record.layers != before
    tiny.succeed("echo more >/root/more; sync; cat /root/new")
    tiny.stop()
    with tiny.diff(clean) as diff:
        assert diff.files.added("/root/more")
    tiny.start()
    tiny.wait_for_agent()
    assert tiny.succeed("cat /root/new /root/more") == "new\nmore\n"


def test_the_same_state_is_the_same(tiny: Machine, names: Callable[..., str]) -> None:
    tiny.pause()
    first = tiny.snapshot("first")
    fork = first.fork(names("fork"))
    with first.diff(tiny) as diff:
        assert diff.part("registers").outcome == "same" or diff.registers
        assert diff.compare("disk").part("disk").outcome == "same"
        assert diff.files.unchanged("/root")
    with fork.diff() as diff:
        assert diff.before.title == f"{tiny.name}@first"
        assert diff.part("disk").outcome in ("same", "different")


def test_a_paused_machine_stays_whole(tiny: Machine, lab: Lab) -> None:
    clean = tiny.snapshot("clean")
    tiny.succeed("echo one >/root/one")
    tiny.pause()
    registers = tiny.domain.hmp("info registers -a")
    for _ in range(2):
        with tiny.diff(clean) as diff:
            assert diff.files.added("/root/one")
            assert diff.ram.pages
    assert tiny.domain.hmp("info registers -a") == registers
    held = tiny.snapshot("held")
    assert held.verify().ok
    with clean.diff(held) as diff:
        assert diff.files.added("/root/one")
    tiny.resume()
    tiny.succeed("echo two >/root/two; sync")
    tiny.stop()
    with tiny.diff(held) as diff:
        assert diff.files.added("/root/two")


def test_a_new_machine_knows_its_name_before_it_is_looked_at(lab: Lab, names: Callable[..., str]) -> None:
    # %vm has a lab of its own: what one is still telling a new machine, the other must wait for.
    name = names("tiny")
    Lab().create(name, "tiny")
    machine = lab.machine(name)
    clean = machine.snapshot("clean")
    machine.succeed("echo x >/root/x")
    with machine.diff(clean) as diff:
        assert diff.files.added("/root/x")
        assert diff.files.unchanged("/etc")


def test_two_machines_and_names(tiny: Machine, lab: Lab, names: Callable[..., str]) -> None:
    start = tiny.snapshot("start")
    other = tiny.fork(names("other"), snapshot=start)
    other.succeed("echo mine >/root/mine")
    with lab.diff(tiny.name, other.name) as diff:
        assert diff.files.added("/root/mine")
        # Both are told who they are; that differs, too.
        assert diff.files.get("/etc/hostname") is None or diff.files.changed("/etc/hostname")
    other.snapshot("own")
    with lab.diff(f"{tiny.name}@start", f"{other.name}@own") as diff:
        assert diff.files.added("/root/mine")
    with tiny.diff("start") as diff:
        assert (diff.before.title, diff.after.title) == (f"{tiny.name}@start", f"{tiny.name} (now)")
    with pytest.raises(NotFound, match="neither a snapshot of") as caught:
        tiny.diff("strat")
    assert "start" in str(caught.value.hint)
    assert other.name in str(caught.value.hint)
    with pytest.raises(UsageError, match="the same state"):
        lab.diff(start, start)


def test_machines_that_are_off(tiny: Machine, lab: Lab) -> None:
    live = tiny.snapshot("live")
    tiny.succeed("echo off >/root/off")
    tiny.stop()
    with tiny.diff(live) as diff:
        diff.compare()
        assert diff.files.added("/root/off")
        # A layer that only one of the two has is not the same, and not different: it cannot be compared.
        assert diff.part("ram").outcome == "failed"
        assert "has no running guest" in diff.part("ram").why
        assert not diff.same
        with pytest.raises(WrongState, match="no running guest"):
            _ = diff.inside
    one = tiny.snapshot("one")
    with tiny.diff(one) as diff:
        assert diff.compare().same
        assert diff.part("ram").outcome == "absent"
        assert not diff
    assert leftovers(lab, tiny) == []


def test_a_guest_without_agent_and_disk(invaders: Machine) -> None:
    clean = invaders.snapshot()
    time.sleep(0.3)
    with invaders.diff(clean) as diff:
        diff.compare("files", "inside", "registers", "ram", "screen")
        assert diff.part("files").outcome == "absent"
        assert diff.part("inside").outcome == "failed"
        assert "no guest agent" in diff.part("inside").why
        assert diff.ram.pages
        assert "not compared: " in diff.summary


def test_a_guest_that_has_crashed(tiny: Machine, lab: Lab) -> None:
    clean = tiny.snapshot()
    tiny.succeed("echo x >/root/x; sync; (sleep 1; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 </dev/null &")
    deadline = time.monotonic() + 60
    while tiny.state != "crashed":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with tiny.diff(clean) as diff:
        diff.compare()
        assert diff.files.added("/root/x")
        assert any("the guest has crashed" in note for note in diff.notes)
        # What a kernel had in its RAM when it panicked is there to be looked at.
        assert diff.part("ram").outcome == "different"
    assert tiny.state == "crashed"
    assert leftovers(lab, tiny) == []


def test_a_layer_that_fails_leaves_the_others(fresh_lab: Lab, names: Callable[..., str]) -> None:
    with fresh_lab.create(names("tiny"), "tiny") as machine:
        clean = machine.snapshot("clean")
        machine.succeed("echo x >/root/x; sync")
        second = machine.snapshot("second")
        for name in ("registers.txt", "ram"):
            path = second.folder / name
            path.chmod(0o644)
            with path.open("r+b") as file:
                file.truncate(5000)
                file.write(os.urandom(4096))
        with clean.diff(second) as diff:
            diff.compare()
            assert {n for n, p in diff.parts.items() if p.outcome == "failed"} >= {
                "registers",
                "ram",
                "devices",
            }
            with pytest.raises(SnapshotDamaged):
                _ = diff.ram
            # No fork can be started of it, so its page cache is lost: the files are read, and it is told how.
            assert diff.files.added("/root/x")
            assert any("page cache is missing" in note for note in diff.notes), diff.notes
            assert not diff.same


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
def test_an_ended_comparison_leaves_nothing(end: signal.Signals, desktop: Machine, lab: Lab) -> None:
    desktop.snapshot("clean")
    before = desktop._record
    words = [sys.executable, "-m", "vmlab", "diff", desktop.name, "clean", "--inside"]
    running = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not [n for n in leftovers(lab, desktop) if n.startswith("look-")] and running.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert running.poll() is None, "it was over before it could be ended"
        time.sleep(0.5)
        running.send_signal(end)
        running.wait(timeout=120)
    finally:
        running.kill()
    if end is signal.SIGKILL:
        lab.collect()
        for name in leftovers(lab, desktop):
            # A collection leaves alone for a minute what may have been made just now.
            for path in (lab.store.snapshot_folder(name), lab.home / "locks" / name):
                with contextlib.suppress(FileNotFoundError):
                    os.utime(path, (1, 1))
        lab.collect()
    assert leftovers(lab, desktop) == []
    assert desktop.state == "running"
    assert desktop._record.layers == before.layers
    assert desktop.succeed("echo fine") == "fine\n"


def test_what_a_guest_calls_things_forges_nothing(tiny: Machine, tmp_path: Path) -> None:
    clean = tiny.snapshot("clean")
    tiny.script(
        "#!/bin/sh\n"
        """touch "$(printf '/root/x\\n~ shadow')" "$(printf '/root/\\377')" "$(printf '/root/\\342\\200\\256gpj')"\n"""
        """sh -c 'printf "x\\n1 (init" >/proc/self/comm; while :; do sleep 1000; done' </dev/null >/dev/null 2>&1 &\n"""
        "echo 'root::0:0:second:/:/bin/sh' >>/etc/passwd\n"
        "sleep 0.3\n"
    ).check()
    with tiny.diff(clean) as diff:
        diff.compare("files", "inside")
        assert [row["title"] for row in diff.inside.users.new] == ["second"]
        table = diff.inside.processes
        commands = {row["command"] for row in table.new if not table.is_noise(row)}
        gone = {row["command"] for row in table.gone if not table.is_noise(row)}
        assert any("sleep 1000" in command for command in commands)
        # No other init. (Some processes come and go: a new machine asks for an address anew, and ext4 ends a thread.)
        others = (commands | gone) - {"[ext4lazyinit]"}
        assert not [one for one in others if "init" in one and "sleep 1000" not in one]
        page = diff.to_html(tmp_path / "diff.html").read_text("utf-8")
        text, data = dispatch.text(diff), json.dumps(diff.to_json(), ensure_ascii=False)
        for shown in (page, text):
            assert "/root/x\\n~ shadow" in shown
            assert "/root/\\xff" in shown
            assert "/root/\\u202egpj" in shown
        for shown in (page, text, data, diff.summary):
            shown.encode()
            assert "\u202e" not in shown
        assert not [one for one in text.splitlines() if one.startswith("~ shadow")]


def test_what_changes_by_itself(tiny: Machine, lab: Lab) -> None:
    # A guest that keeps a log of its own.
    tiny.succeed("(while sleep 0.3; do date >>/root/ticks; done) >/dev/null 2>&1 </dev/null &")
    tiny.wait_until_succeeds("test -s /root/ticks")
    clean = tiny.snapshot("clean")
    tiny.succeed("echo mine >/root/mine; sleep 1")
    with tiny.diff(clean) as diff:
        diff.baseline(seconds=3)
        assert any(path == "/root/ticks" for _, path, _ in diff.noise)
        assert not any(path == "/root/mine" for _, path, _ in diff.noise)
        # Folded, not hidden.
        assert diff.files.changed("/root/ticks")
        assert "change by themselves" in diff.summary
    assert (lab.store.compared_folder(clean.id) / "baseline.json").exists()
    clean.forget()
    lab.collect()
    assert not lab.store.compared_folder(clean.id).exists()


def test_what_was_written_out_is_kept_with_the_snapshot(tiny: Machine, lab: Lab) -> None:
    tiny.succeed("echo one >/root/one")
    first = tiny.snapshot("first")
    tiny.succeed("echo two >/root/two")
    second = tiny.snapshot("second")
    with first.diff(second) as diff:
        assert diff.files.added("/root/two")
    for snapshot in (first, second):
        assert list(lab.store.compared_folder(snapshot.id).glob("*.qcow2"))
    started = time.monotonic()
    with first.diff(second) as diff:
        assert diff.files.added("/root/two")
        assert "/root/one" not in diff.files
    assert time.monotonic() - started < 5


def test_disks_can_be_written_out_again_beside_a_baseline(tiny: Machine, lab: Lab) -> None:
    clean = tiny.snapshot("clean")
    tiny.succeed("echo one >/root/one")
    second = tiny.snapshot("second")
    with clean.diff(second) as diff:
        diff.baseline(seconds=0.5)
    folder = lab.store.compared_folder(clean.id)
    for path in folder.glob("*.qcow2"):
        path.unlink()
    for _ in range(2):
        with clean.diff(second) as diff:
            assert diff.files.added("/root/one")
            assert not [note for note in diff.notes if "page cache" in note]
    assert (folder / "baseline.json").exists()
    assert list(folder.glob("*.qcow2"))


def standing_on(lab: Lab, snapshot: Snapshot) -> set[str]:
    """Return the disk layers that stand on those of a snapshot."""
    found = set()
    for path in (lab.home / "layers").glob("*.json"):
        # Other tests delete theirs at any time.
        with contextlib.suppress(FileNotFoundError, VMLabError):
            if lab.store.layer(path.stem).backing in snapshot._record.layers.values():
                found.add(path.stem)
    return found


def test_nothing_of_the_forks_is_left_when_a_layer_is_there(tiny: Machine, lab: Lab) -> None:
    first = tiny.snapshot("first")
    tiny.succeed("echo two >/root/two")
    second = tiny.snapshot("second")
    with first.diff(second) as diff:
        for look in (lambda: diff.files, lambda: diff.inside, lambda: diff.baseline(0.1)):
            look()
            assert leftovers(lab, tiny) == []
            assert standing_on(lab, second) == set(tiny._record.layers.values())


def test_a_timeline(tiny: Machine, lab: Lab, tmp_path: Path) -> None:
    tiny.snapshot("s1")
    tiny.succeed("echo a >/root/log")
    tiny.snapshot("s2")
    tiny.succeed("echo b >>/root/log; sleep 12345 >/dev/null 2>&1 </dev/null &")
    tiny.snapshot("s3")
    history = lab.timeline([tiny], file="/root/log")
    assert [bool(m.values) for m in history] == [False, True, True, True]
    assert [m.changed for m in history] == [False, True, True, False]
    assert "+b" in history[2].detail
    sleepers = lab.timeline([tiny, "s2", "s3"], process="sleep 12345")
    assert [m.values.get("count", 0) for m in sleepers] == [0, 1]
    assert len(lab.timeline([tiny, "s1", "s2", "s3"], register="rip")) == 3
    with pytest.raises(NotFound, match="register"):
        lab.timeline([tiny, "s1", "s2"], register="rup")
    steps = lab.timeline([tiny, "s1", "s2", "s3"])
    assert "1 added" in steps[1].values["files"]
    found = {
        one.title.partition("@")[2]: bool(one) for one in lab.search([tiny, "s1", "s2", "s3"], "sleep 12345")
    }
    assert found == {"s1": False, "s2": False, "s3": True}
    with lab.diff(f"{tiny.name}@s1", f"{tiny.name}@s3") as diff:
        page = diff.to_html(tmp_path / "diff.html").read_text()
        assert "/root/log" in page
        assert "<script" not in page
        assert 'src="http' not in page
