"""Comparisons without guests: what the script inside prints, noise, assertions, and how results look."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmlab.compare import inside, noise
from vmlab.compare.inside import Inside, compare_inside
from vmlab.diff import Diff, Part
from vmlab.errors import AgentError, SnapshotDamaged, UsageError, VMLabError
from vmlab.render.diff import DiffView, TimelineView
from vmlab.store import collect
from vmlab.store.locks import Hold, is_held
from vmlab.store.records import Label, MachineSpec, SnapshotRecord, new_id, write_json
from vmlab.store.store import Store
from vmlab.timeline import Moment, Timeline


def stat(pid: int, name: str, parent: int, started: int, *, kernel: bool = False) -> str:
    flags = 0x200040 if kernel else 0x400100
    rest = " ".join(["0"] * 12)
    return f"==> {pid}/stat <==\n{pid} ({name}) S {parent} 1 1 0 -1 {flags} {rest} {started} 0 0\n"


def said(*, port: str = "1F90", extra: str = "", motd: int = 1) -> str:
    """Return what a small guest prints."""
    processes = [
        stat(1, "init", 0, 1),
        stat(2, "kthreadd", 0, 1, kernel=True),
        stat(30, "we) ird", 1, 500),
        stat(40, "qemu-ga", 1, 600),
        stat(90, "sh", 40, 900),
        stat(91, "sh", 90, 901),
        stat(92, "head", 91, 902),
    ]
    return f"""
@@ self
91

@@ stat
{chr(10).join(processes)}{extra}
@@ cmdline
==> 1/cmdline <==
/sbin/init\0splash\0

==> 2/cmdline <==

==> 30/cmdline <==
/usr/bin/we) ird\0--name=a b\0
==> 40/cmdline <==
/usr/sbin/qemu-ga\0
==> 90/cmdline <==
/bin/sh\0-c\0x\0
==> 91/cmdline <==
/bin/sh\0/run/vmlab.1/script\0
@@ uid
1 0
30 1000
@@ exe
lrwxrwxrwx 1 root root 0 Jan  1 00:00 1/exe -> /usr/sbin/init
lrwxrwxrwx 1 user user 0 Jan  1 00:00 30/exe -> /tmp/x (deleted)
@@ fd
30/fd:
lrwx------ 1 root root 64 Jan  1 00:00 3 -> socket:[777]
@@ net
==> net/tcp <==
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:{port} 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 777 1 0 100 0 0 10 0
   1: 0100007F:0016 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 778 1 0 100 0 0 10 0
==> net/udp6 <==
  sl  local_address                         remote_address                        st
   5: 00000000000000000000000000000000:0044 00000000000000000000000000000000:0000 07 0:0 00:0 0 0 0 779 2 0 0
@@ mounts
/dev/vda / ext4 rw,relatime 0 0
tmpfs /mnt/a\\040b tmpfs rw 0 0
@@ modules
dummy 16384 0 - Live 0x0
@@ addresses
1: lo    inet 127.0.0.1/8 scope host lo
@@ facts
uptime=12.3 1.0
hostname=web
boot ID=abc
NAME="Debian"
PRETTY_NAME="Debian GNU/Linux 12"
@@ passwd
root:x:0:0:root:/root:/bin/bash
user:x:1000:1000::/home/user:/bin/sh
@@ shadow
root:*:1:0:99999:7:::
user:$6$salt$hash:1::::::
@@ group
root:x:0:
@@ dpkg
bash\tamd64\t5.2\tinstalled
@@ services
● broken.service loaded failed failed A broken thing
cron.service loaded active running Cron
@@ sysctl
sys/net/ipv4/ip_forward:{motd}
sys/kernel/random/uuid:{port}
@@ end
"""


def test_what_a_guest_says_is_read() -> None:
    found = inside.parse("web", said())
    processes = found.tables["processes"]
    commands = {row["command"] for row in processes.values()}
    # Neither the script, nor the shell that launched it, nor what it runs.
    assert commands == {"/sbin/init splash", "[kthreadd]", "/usr/bin/we) ird --name=a b", "/usr/sbin/qemu-ga"}
    odd = processes[30, 500]
    assert (odd["user"], odd["program"]) == ("user", "/tmp/x (deleted)")
    assert found.tables["ports"]["tcp", "127.0.0.1", 8080]["process"] == "30 /usr/bin/we) ird --name=a b"
    assert ("udp6", "::", 68) in found.tables["ports"]
    # A connection is no listening port.
    assert len(found.tables["ports"]) == 2
    assert found.tables["users"]["root",]["password"] == "locked"
    assert found.tables["users"]["user",]["password"].startswith("set (")
    assert "salt" not in json.dumps([list(t.values()) for t in found.tables.values()])
    assert [row["target"] for row in found.tables["mounts"].values()] == ["/", "/mnt/a b"]
    assert found.tables["services"]["broken.service",]["active"] == "failed"
    assert found.tables["facts"]["system",]["value"] == "Debian GNU/Linux 12"
    assert found.tables["packages"]["bash", "amd64"]["version"] == "5.2"


def test_what_is_cut_off_is_refused() -> None:
    for end in (0, 10, 500, len(said()) - 10):
        with pytest.raises(AgentError, match="not complete"):
            inside.parse("web", said()[:end])


@given(st.text(alphabet="@ \n:=/0123456789abcdef()[]\t\0", max_size=400))
def test_nothing_that_a_guest_says_breaks_the_reader(text: str) -> None:
    # Guests can lie.
    parts = (
        "stat",
        "cmdline",
        "uid",
        "exe",
        "fd",
        "mounts",
        "modules",
        "facts",
        "passwd",
        "group",
        "dpkg",
        "services",
    )
    lines = text.replace("@@", "")
    found = inside.parse("x", "".join(f"@@ {part}\n{lines}\n" for part in parts) + "@@ end\n")
    assert compare_inside(found, found).tables["processes"].new == ()


def guests() -> tuple[Inside, Inside]:
    extra = stat(50, "nc", 1, 1000)
    return inside.parse("web@clean", said()), inside.parse(
        "web (now)", said(port="115C", extra=extra, motd=0)
    )


def test_rows_are_compared() -> None:
    diff = compare_inside(*guests())
    assert diff.processes.added("nc")
    assert diff.ports.added(4444)
    assert diff.ports.removed(8080)
    assert diff.sysctl.changed("net.ipv4.ip_forward")[0]["value"] == ("1", "0")
    assert diff.users.unchanged()
    assert diff.sysctl.signal == 1
    assert len(diff.sysctl) == 2
    assert "processes +1" in diff.summary
    assert "1 that change by themselves" in diff.summary
    assert diff.to_json()["tables"]["ports"]["added"][0]["port"] == 4444


def test_assertions_fail_with_a_sentence() -> None:
    diff = compare_inside(*guests())
    with pytest.raises(AssertionError, match=r"No port 80 appeared: appeared: tcp 127.0.0.1 4444"):
        diff.ports.added(80)
    with pytest.raises(AssertionError, match="No user 'eve' appeared"):
        diff.users.added("eve")
    with pytest.raises(AssertionError, match=r"The ports are not as they were: tcp 127.0.0.1 4444"):
        diff.ports.unchanged()
    with pytest.raises(AttributeError):
        _ = diff.nonsense


def test_processes_of_another_boot_go_by_their_command() -> None:
    before, after = guests()
    other = inside.parse("db", said().replace("boot ID=abc", "boot ID=def"))
    assert compare_inside(before, after).same_boot
    diff = compare_inside(before, other)
    assert not diff.same_boot
    assert not diff.processes


def test_measured_noise_is_folded_not_hidden() -> None:
    before, after = guests()
    diff = compare_inside(before, after, {"sysctl": {"net.ipv4.ip_forward"}})
    assert diff.sysctl.signal == 0
    assert diff.sysctl.changed("net.ipv4.ip_forward")


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("/var/log/journal/1/system.journal", True),
        ("/var/log/wtmp", True),
        ("/home/user/.cache/fontconfig/a.cache-7", True),
        ("/etc/motd", False),
        ("/var/log/wtmp.bak", False),
        ("/home/a/b/.cache/fontconfig/x", False),
        ("/var/log/auth.log", False),
    ],
)
def test_known_noise(path: str, known: bool) -> None:
    assert (noise.why_known(path) is not None) is known
    assert (path in noise.noisy_paths([path])) is known
    assert path in noise.noisy_paths([path], [path])


def test_a_hold_goes_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "x.hold"
    assert not is_held(path)
    hold, other = Hold(path), Hold(path)
    assert is_held(path)
    hold.release()
    assert is_held(path)
    other.release()
    assert not is_held(path)
    code = (
        "from pathlib import Path; from vmlab.store.locks import Hold\n"
        f"hold = Hold(Path({str(path)!r})); print(1, flush=True); input()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    assert is_held(path)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 5
    while is_held(path) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_held(path)
    assert path.exists()


def test_a_present_goes_when_nobody_holds_it(tmp_path: Path) -> None:
    store = Store(tmp_path, cast(Any, SimpleNamespace(own=lambda path, **_: path)))

    def old_present() -> str:
        identity = new_id()
        spec = MachineSpec(memory=4, base="gone")
        record = SnapshotRecord(
            identity, "present", "m", "web", "img", "2025-01-01T00:00:00+00:00", spec, {}, None, "", ""
        )
        with store.new_snapshot(identity) as folder:
            write_json(folder / "label.json", Label("present").to_json())
            write_json(folder / "manifest.json", record.to_json())
        store.compared_folder(identity).mkdir(parents=True)
        os.utime(store.snapshot_folder(identity), (1, 1))
        return identity

    held, left, done = old_present(), old_present(), old_present()
    hold = Hold(store.hold_path(held))
    collect.discard(store, done)
    collect.collect(store)
    assert store.snapshot_ids() == [held]
    assert [path.name for path in (tmp_path / "cache" / "compared").iterdir()] == [held]
    hold.release()
    collect.collect(store)
    assert store.snapshot_ids() == []
    assert not store.hold_path(held).exists()
    assert left != held


def a_diff(**parts: Part) -> Diff:
    """Return a comparison with these layers compared already."""
    sides = [
        SimpleNamespace(
            title=title, disks=SimpleNamespace(flushed=True), to_json=lambda title=title: {"title": title}
        )
        for title in ("web@<clean>", "web (now)")
    ]
    diff = Diff(cast(Any, None), cast(Any, sides[0]), cast(Any, sides[1]))
    diff._parts = dict(parts)
    return diff


SAME = Part("disk", "same", "nothing differs")
ABSENT = Part("screen", "absent", "neither has a screen", why="neither has a screen")
FAILED = Part("ram", "failed", "x", why="the file <ram> is damaged", error=SnapshotDamaged("It is damaged."))


def test_what_could_not_be_compared_is_not_the_same() -> None:
    assert a_diff(disk=SAME).same
    assert not a_diff(disk=SAME)
    assert a_diff(disk=SAME, screen=ABSENT).same
    assert not a_diff(disk=SAME, ram=FAILED).same
    assert a_diff(disk=SAME, ram=FAILED)
    with pytest.raises(SnapshotDamaged):
        _ = a_diff(ram=FAILED).ram
    with pytest.raises(VMLabError, match="no screen to compare"):
        _ = a_diff(screen=ABSENT).screen
    with pytest.raises(UsageError, match="no layer 'soul'"):
        a_diff().part("soul")


def test_a_comparison_shows_itself() -> None:
    found = compare_inside(*guests())
    diff = a_diff(
        disk=SAME,
        ram=FAILED,
        screen=ABSENT,
        inside=Part("inside", "different", found.summary, found, seconds=2),
    )
    text = DiffView(diff).text(width=120)
    assert "not compared: the file <ram> is damaged" in text
    assert "+ ports: tcp 127.0.0.1 4444" in text
    assert "not asked for: files, registers, devices" in text
    html = DiffView(diff).document()
    assert "&lt;clean&gt;" in html
    assert "<ram>" not in html
    # Nothing that a page which is not trusted would refuse, and nothing from elsewhere.
    for word in ("<script", "onclick", "http://", "https://", "@import"):
        assert word not in html
    assert html.count('type="radio"') == 4
    assert html.count("<section>") == 4
    data = json.loads(json.dumps(diff.to_json()))
    assert data["same"] is False
    assert data["layers"]["ram"]["outcome"] == "failed"
    assert data["layers"]["disk"] == {
        "outcome": "same", "summary": "nothing differs", "why": "", "seconds": 0, "result": None
    }  # fmt: skip
    assert set(data["not_compared"]) == {"files", "registers", "devices"}


def test_a_timeline_shows_itself() -> None:
    timeline = Timeline(
        "/etc/<motd>",
        (
            Moment("web@s1", "2025-01-01T00:00:00+00:00"),
            Moment(
                "web@s2",
                "2025-01-02T00:00:00+00:00",
                {"size": "4 B"},
                changed=True,
                detail="--- a\n+++ b\n+<b>x",
            ),
            Moment("web@s3", "2025-01-03T00:00:00+00:00", trouble="The disk is damaged."),
        ),
    )
    assert timeline.summary == "/etc/<motd> changes once in 3 states: at web@s2"
    assert [moment.title for moment in timeline.changes] == ["web@s2"]
    text = TimelineView(timeline).text(width=100)
    assert "The disk is damaged." in text
    html = TimelineView(timeline).html()
    assert "&lt;motd&gt;" in html
    assert "<b>x" not in html
    assert json.dumps(timeline.to_json())
