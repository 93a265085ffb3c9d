"""Comparisons without guests: what the script inside prints, noise, assertions, and how results look."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmlab import private
from vmlab.compare import insideparse, noise
from vmlab.compare.files import FileChange, FilesDiff, Volume
from vmlab.compare.filestate import FileState
from vmlab.compare.inside import InsideDiff, compare_inside
from vmlab.compare.insideparse import Inside
from vmlab.compare.ramstrings import StringsDiff
from vmlab.errors import AgentError, SnapshotDamaged, UsageError, VMLabError
from vmlab.records import Hardware, Label, SnapshotRecord, new_id, write_json
from vmlab.store import collect
from vmlab.store.locks import Hold, is_held
from vmlab.store.store import Store
from vmlab.study.diff import Diff, Part
from vmlab.study.timeline import Moment, Timeline
from vmlab.views.diff import DiffView
from vmlab.views.timeline import TimelineView

TOKEN = "0b5c1a52-6d3b-4c7e-9f57-0d8f3f1f9d11"


def stat(pid: int, name: str, parent: int, started: int, *, kernel: bool = False) -> str:
    flags = 0x200040 if kernel else 0x400100
    rest = " ".join(["0"] * 12)
    return f"{pid} ({name}) S {parent} 1 1 0 -1 {flags} {rest} {started} 0 0\n"


def script_of(parts: dict[str, str | list[str]]) -> str:
    """Return what the script prints: a part is one text, or one for each file."""
    out = f"{TOKEN}\n"
    for name, body in parts.items():
        sections = ["", *body] if isinstance(body, list) else [body]
        out += f"\n@@ {TOKEN} {name}\n" + f"\n@@ {TOKEN}\n".join(sections)
    return f"{out}\n@@ {TOKEN} end\n"


def parts_of(
    *, port: str = "1F90", more: dict[int, tuple[str, str]] | None = None, forward: int = 1
) -> dict[str, Any]:
    """Return what a small guest says, part by part."""
    processes = {
        1: (stat(1, "init", 0, 1), "/sbin/init\0splash\0"),
        2: (stat(2, "kthreadd", 0, 1, kernel=True), ""),
        30: (stat(30, "we) ird", 1, 500), "/usr/bin/we) ird\0--name=a b\0"),
        40: (stat(40, "qemu-ga", 1, 600), "/usr/sbin/qemu-ga\0"),
        90: (stat(90, "sh", 40, 900), "/bin/sh\0-c\0x\0"),
        91: (stat(91, "sh", 90, 901), "/bin/sh\0/run/vmlab.1/script\0"),
        # It was gone before it could be read.
        92: ("", ""),
        **(more or {}),
    }
    return {
        "self": "91 b\n",
        "pids": " ".join(map(str, processes)) + "\n",
        "stat": [one for one, _ in processes.values()],
        "cmdline": [two for _, two in processes.values()],
        "uid": "1 0\n30 1000\n",
        "exe": "lrwxrwxrwx 1 0 0 0 Jan  1 00:00 1/exe -> /usr/sbin/init\n"
        "lrwxrwxrwx 1 1000 1000 0 Jan  1 00:00 30/exe -> /tmp/x\\ (deleted)\n",
        "fd": "30/fd:\nlrwx------ 1 0 0 64 Jan  1 00:00 3 -> socket:[777]\n",
        "net": "==> net/tcp <==\n"
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        f"   0: 0100007F:{port} 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 777 1 0\n"
        "   1: 0100007F:0016 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 778 1 0\n"
        "\n==> net/udp6 <==\n  sl  local_address                         remote_address        st\n"
        f"   5: {'0' * 32}:0044 {'0' * 32}:0000 07 0:0 00:0 0 0 0 779 2 0 0\n",
        "mounts": "/dev/vda / ext4 rw,relatime 0 0\ntmpfs /mnt/a\\040b tmpfs rw 0 0\n",
        "modules": "dummy 16384 0 - Live 0x0\n",
        "addresses": "1: lo    inet 127.0.0.1/8 scope host lo\n",
        "facts": ["uptime=12.3 1.0", "hostname=web", "boot ID=abc"],
        "release": 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12"\n',
        "passwd": "root:x:0:0:root:/root:/bin/bash\nuser:x:1000:1000::/home/user:/bin/sh\n",
        "shadow": "root:*:1:0:99999:7:::\nuser:$6$salt$hash:1::::::\n",
        "group": "root:x:0:\n",
        "packages": "bash\tamd64\t5.2\tinstalled\n",
        "services": "● broken.service loaded failed failed A broken thing\n"
        "cron.service loaded active running Cron\n",
        "sysctl": f"sys/net/ipv4/ip_forward:{forward}\nsys/kernel/random/uuid:{port}\n",
    }


def said(**changes: Any) -> str:
    """Return what a small guest prints."""
    return script_of(parts_of(**changes))


def test_what_a_guest_says_is_read() -> None:
    found = insideparse.parse("web", said())
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
            insideparse.parse("web", said()[:end])
    # So is what lost its middle: the agent keeps only so much.
    for part in ("net", "users", "stat"):
        parts = {name: body for name, body in parts_of().items() if name != part}
        if part != "users":
            with pytest.raises(AgentError, match="not complete"):
                insideparse.parse("web", script_of(parts))
    with pytest.raises(AgentError, match="not complete"):
        insideparse.parse("web", said().replace(f"\n@@ {TOKEN}\n/sbin/init", "/sbin/init"))


@given(st.text(alphabet="@ \n:=/0123456789abcdef()[]\\>-\t\0\r\x85\u2028", max_size=400), st.integers(0, 3))
def test_nothing_that_a_guest_says_breaks_the_reader(text: str, at: int) -> None:
    # Guests can lie.
    lied = {
        name: [text if n % 4 == at else one for n, one in enumerate(body)] if isinstance(body, list) else text
        for name, body in parts_of().items()
    }
    honest = parts_of()
    for parts in (lied, {**lied, "pids": honest["pids"]}):
        try:
            found = insideparse.parse("x", script_of(parts))
        except AgentError:
            continue
        assert compare_inside(found, found).tables["processes"].new == ()
        assert not compare_inside(found, found)


def guests() -> tuple[Inside, Inside]:
    more = {50: (stat(50, "nc", 1, 1000), "")}
    return insideparse.parse("web@clean", said()), insideparse.parse(
        "web (now)", said(port="115C", more=more, forward=0)
    )


def differing(**parts: Any) -> InsideDiff:
    """Return what differs between the small guest and one in which these parts are others."""
    first = parts_of()
    second = {**first, **parts}
    assert first.keys() == second.keys()
    return compare_inside(insideparse.parse("a", script_of(first)), insideparse.parse("b", script_of(second)))


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
    other = insideparse.parse("db", said().replace("boot ID=abc", "boot ID=def"))
    assert compare_inside(before, after).same_boot
    diff = compare_inside(before, other)
    assert not diff.same_boot
    assert not diff.processes


def test_measured_noise_is_folded_not_hidden() -> None:
    before, after = guests()
    diff = compare_inside(before, after, {"sysctl": {"net.ipv4.ip_forward"}})
    assert diff.sysctl.signal == 0
    assert diff.sysctl.changed("net.ipv4.ip_forward")


def test_a_process_cannot_hide_behind_its_name() -> None:
    names = ["x\n1 (init", "a\nb", "x) S 1 1 1", "\n@@ stat\n", "==> 1/stat <==\n"]
    for name in names:
        more = {50: (stat(50, name[:15], 1, 1000), "")}
        diff = compare_inside(insideparse.parse("a", said()), insideparse.parse("b", said(more=more)))
        assert [(row["pid"], row["command"]) for row in diff.processes.new] == [(50, name[:15])]
        assert not diff.processes.gone
        assert not diff.processes.altered
    # Nor behind its arguments: what stands for the border of two files is known to nobody in the guest.
    evil = f"nc\0\n@@ end\n@@ {TOKEN[:-1]}0\n==> 1/cmdline <==\n/sbin/evil\0"
    more = {50: (stat(50, "nc", 1, 1000), evil)}
    found = insideparse.parse("b", said(more=more))
    assert found.tables["processes"][1, 1]["command"] == "/sbin/init splash"
    assert found.tables["processes"][50, 1000]["command"].startswith("nc \n@@ end")
    # Something of it is seen: then it is there, even if not all can be read.
    torn = insideparse.parse("b", said(more={50: ("nonsense", ""), 51: ("", "nc\0")}))
    assert [row["command"] for row in torn.tables["processes"].values() if row["pid"] in (50, 51)] == [
        "",
        "nc",
    ]


def test_a_program_cannot_forge_the_list_of_programs_or_sockets() -> None:
    exe = (
        "lrwxrwxrwx 1 0 0 0 Jan  1 00:00 30/exe -> /tmp/a\\nlrwxrwxrwx\\ 1/exe\\ ->\\ /bin/b\n"
        "lrwxrwxrwx 1 0 0 0 Jan  1 00:00 40/exe -> /tmp/1/exe\\ ->\\ \\303\\251\n"
    )
    fd = "40/fd:\nlrwx------ 1 0 0 64 Jan  1 00:00 3 -> /tmp/9\\ ->\\ socket:[777]\n" + parts_of()["fd"]
    found = insideparse.parse("x", script_of({**parts_of(), "exe": exe, "fd": fd}))
    programs = {row["pid"]: row["program"] for row in found.tables["processes"].values()}
    assert programs[30] == "/tmp/a\nlrwxrwxrwx 1/exe -> /bin/b"
    assert programs[40] == "/tmp/1/exe -> é"
    assert programs[1] == "unknown"
    assert found.tables["ports"]["tcp", "127.0.0.1", 8080]["process"].startswith("30 ")


def test_a_process_that_became_another_is_seen() -> None:
    parts = parts_of()
    parts["cmdline"][2] = "/tmp/miner\0"
    diff = differing(cmdline=parts["cmdline"])
    assert diff.processes.altered[0].fields == {"command": ("/usr/bin/we) ird --name=a b", "/tmp/miner")}
    assert diff.processes.changed("miner")


def test_no_row_hides_another_of_the_same_name() -> None:
    honest = parts_of()
    # libc takes the first line of a name, others the last.
    diff = differing(passwd="root::0:0:root:/root:/bin/bash\n" + honest["passwd"])
    assert diff.users
    assert diff.users.total == (2, 3)
    for line in ("eve::0:0:::\n", "eve::0:0\n", " eve::0:0:::\n", "eve::0:0:a\x85b:/:/bin/sh\n"):
        diff = differing(passwd=honest["passwd"] + line)
        assert len(diff.users.new) == 1, line
    # What stands in the file itself counts, whatever is in the other.
    [change] = differing(passwd=honest["passwd"].replace("root:x:", "root::")).users.altered
    assert change.fields == {"password": ("locked", "none needed")}
    diff = differing(group="root:x:0:eve\n" + honest["group"])
    assert diff.groups
    assert differing(shadow="root::1::::::\n" + honest["shadow"]).users
    # Two that listen at one port (SO_REUSEPORT), and two that have one socket.
    listener = honest["net"].splitlines(keepends=True)[2]
    net = honest["net"].replace(listener, listener + listener.replace(" 777 ", " 900 "))
    fd = honest["fd"] + "40/fd:\nlrwx------ 1 0 0 64 Jan  1 00:00 3 -> socket:[900]\n"
    diff = differing(net=net, fd=fd)
    assert [row["process"] for row in diff.ports.new] == ["40 /usr/sbin/qemu-ga"]
    assert not diff.ports.altered
    fd = honest["fd"] + "40/fd:\nlrwx------ 1 0 0 64 Jan  1 00:00 3 -> socket:[777]\n"
    [change] = differing(fd=fd).ports.altered
    assert "qemu-ga" in change.fields["process"][1]
    # Separators of Unicode separate nothing here.
    diff = differing(mounts=honest["mounts"] + "tmpfs /mnt/a\u2028b\u3000c tmpfs rw 0 0\n")
    assert [row["target"] for row in diff.mounts.new] == ["/mnt/a\u2028b\u3000c"]


def test_only_the_kernels_threads_are_noise() -> None:
    more = {
        50: (stat(50, "kworker/0:1", 2, 1000, kernel=True), ""),
        51: (stat(51, "[kworker/0:2]", 1, 1000), ""),
        52: (stat(52, "x", 1, 1000), "[kworker/0:3] (kernel)\0"),
        53: (stat(53, "x", 1, 1000), "nc [kworker/0:3]\0"),
    }
    diff = compare_inside(insideparse.parse("a", said()), insideparse.parse("b", said(more=more)))
    assert [row["pid"] for row in diff.processes.new if not diff.processes.is_noise(row)] == [51, 52, 53]
    assert differing(sysctl=parts_of()["sysctl"] + "sys/fs/binfmt_misc/evil:enabled\n").sysctl.signal == 1


def test_what_the_script_prints_is_read(tmp_path: Path) -> None:
    # The script itself, here, with a process whose name is meant to break it.
    name = "x\n1 (init) S"
    code = f"import time; open('/proc/self/comm', 'w').write({name!r}); print(1, flush=True); time.sleep(60)"
    victim = subprocess.Popen(
        [sys.executable, "-c", code, "\n@@ end", "==> 1/cmdline <=="], stdout=subprocess.PIPE
    )
    try:
        assert victim.stdout is not None
        victim.stdout.readline()
        script = tmp_path / "script"
        script.write_text(insideparse.SCRIPT)
        shells = [["/bin/sh"]] + ([["busybox", "sh"]] if shutil.which("busybox") else [])
        for shell in shells:
            done = subprocess.run([*shell, str(script)], capture_output=True, check=True)
            found = insideparse.parse("here", done.stdout.decode(errors="replace"))
            [row] = [row for row in found.tables["processes"].values() if row["pid"] == victim.pid]
            assert row["command"].endswith("\n@@ end ==> 1/cmdline <==")
            assert row["program"] == os.path.realpath(sys.executable)
            assert ("root",) in found.tables["users"]
            # Nothing of what asks, whatever it was made of.
            assert not [row for row in found.tables["processes"].values() if str(script) in row["command"]]
            mine = found.tables["processes"]
            assert any(row["pid"] == os.getpid() for row in mine.values())
            assert found.tables["sysctl"]["kernel.ostype",]["value"] == "Linux"
            assert found.boot
    finally:
        victim.kill()
        victim.wait()


class Content:
    """A file system with one content."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, _inode: object, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]

    def parts(self, _inode: object) -> Iterator[bytes]:
        yield self.data

    def attributes(self, _inode: object) -> dict[bytes, bytes]:
        return {}


def file(
    path: str, kind: str = "changed", what: tuple[str, ...] = ("content", "mtime"), **changes: Any
) -> FileChange:
    """Return a difference of a file."""
    states = []
    for side in ("before", "after"):
        state = FileState("file", 0o644, 0, 0, 10, 0, None, None, "", 1, cast(Any, Content(b"text\n")), None)
        gone = (kind, side) in (("added", "before"), ("removed", "after"))
        states.append(None if gone else replace(state, **changes.get(side, {})))
    rest = {name: value for name, value in changes.items() if name not in ("before", "after")}
    what = what if kind not in ("added", "removed") else ()
    return FileChange(kind, path, states[0], states[1], what, **{"volume": "vda", **rest})


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("/var/log/journal/1/system.journal", True),
        ("/var/log/journal/1/evil", False),
        ("/var/log/wtmp", True),
        ("/home/user/.cache/fontconfig/a.cache-7", True),
        ("/etc/motd", False),
        ("/var/log/wtmp.bak", False),
        ("/home/a/b/.cache/fontconfig/x.cache-7", False),
        ("/var/log/auth.log", False),
        ("/var/cache/man/evil", False),
    ],
)
def test_known_noise(path: str, known: bool) -> None:
    entry = file(path)
    assert (noise.key(entry) in noise.noisy([entry])) is known
    assert noise.key(entry) in noise.noisy([entry], noise.measured([entry]))


def test_what_an_intruder_does_to_a_log_is_no_noise() -> None:
    path = "/var/log/wtmp"
    for entry in (
        file(path, "removed"),
        file(path, "added"),
        file(path, "metadata", ("mode",)),
        file(path, what=("content", "mode", "mtime")),
        file(path, what=("content", "type"), after={"type": "symlink", "target": "/dev/null"}),
        file(path, what=("content", "attributes")),
        # Cut short.
        file(path, after={"size": 3}),
        file("/var/log/journal/1/system.journal", "removed"),
        file("/var/cache/man/index.db", "added"),
        file("/var/log/journal/1/x.journal", "added", after={"mode": 0o4755}),
        file("/var/log/journal/1/x.journal", "added", link_to="/etc/shadow"),
        file("/var/log/journal/1/x.journal", "renamed", (), old_path="/etc/shadow"),
    ):
        # Not even if it is written to by itself.
        measured = noise.measured([file(entry.path)])
        assert noise.noisy([entry], measured) == {}, entry
    journal = file("/var/log/journal/1/system.journal", "added", after={"mode": 0o640})
    assert noise.noisy([journal])
    moved = file("/var/log/journal/1/s@1.journal", "renamed", (), old_path="/var/log/journal/1/s.journal")
    assert noise.noisy([moved])


def test_a_measured_path_is_that_of_one_volume_and_one_kind() -> None:
    odd = "/x\udcff\n"
    seen = json.loads(json.dumps(noise.measured([file("/a"), file(odd, "added")])))
    assert noise.noisy([file("/a")], seen)
    assert noise.noisy([file("/a", what=("mtime",))], seen)
    assert noise.noisy([file(odd, "added")], seen)
    for entry in (
        file("/a", volume="vdb1"),
        file("/a", "removed"),
        file("/b", "added"),
        file(odd, "removed"),
    ):
        assert noise.noisy([entry], seen) == {}


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
    account = SimpleNamespace(own=lambda path: path, make_dir=private.folders)
    store = Store(tmp_path, cast(Any, account))

    def old_present() -> str:
        identity = new_id()
        spec = Hardware(memory=4, base="gone")
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
    """Return a comparison with these parts compared already."""
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
    with pytest.raises(UsageError, match="no part 'soul'"):
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


#: What a guest can call a file, a process or a setting, so that it looks like something else.
NASTY = (
    "x\n~ /etc/shadow",
    "x\r- /etc/passwd",
    "x\x85+ /forged",
    "x\u2028+ /forged",
    "x" + " " * 150 + "~ /etc/shadow",
    "\u202egpj.exe",
    "a\u2066\u2069\u200fb",
    "\udcff\udcfe",
    "\x1b[2J\x1b]0;evil\x07",
    "<img src=x onerror=alert(1)>",
    "</pre></td><script>alert(1)</script>",
    '"><b>',
    "a\0b\tc",
    "é…😀",
)


def with_content(path: str, before: bytes, after: bytes, **rest: Any) -> FileChange:
    return file(
        path,
        before={"_fs": Content(before), "size": len(before)},
        after={"_fs": Content(after), "size": len(after)},
        **rest,
    )


def nasty_diff() -> Diff:
    """Return a comparison in which everything that a guest can name is nasty."""
    entries = []
    for number, name in enumerate(NASTY):
        volume = f"vd{'ab'[number % 2]}1"
        evil = f"{name}\n+++ b\n@@ -1 +1 @@\n".encode("utf-8", "surrogateescape")
        entries += [
            with_content(
                f"/{name}", b"-- a\nsame\n", evil + "\x0c\x0b\x85\u2028same\n".encode(), volume=volume
            ),
            file(f"/l{name}", "added", after={"type": "symlink", "target": name}, volume=volume),
            file(f"/m{name}", "renamed", (), old_path=f"/o{name}", volume=volume),
            file(f"/h{name}", "added", link_to=f"/{name}", volume=volume),
            file(f"/t{name}", "touched", ("mtime",), volume=volume),
            file(f"/var/log/journal/{name.replace('/', '')}/x.journal", volume=volume),
        ]
    files = FilesDiff(tuple(entries), (Volume("vda1", "ext", unread=f"Not read: {NASTY[0]}"),))
    honest = parts_of()
    more = {100 + n: (stat(100 + n, name[:15], 1, 9), name) for n, name in enumerate(NASTY)}
    lines = [name.encode("utf-8", "replace").decode() for name in NASTY]
    second = {
        **parts_of(more=more),
        "passwd": honest["passwd"] + "".join(f"{name}:x:0:0:{name}:/:{name}\n" for name in lines),
        "facts": [*honest["facts"][:1], f"hostname={NASTY[0]}", "boot ID=abc"],
        "mounts": honest["mounts"]
        + "".join(f"{n.replace(' ', '')} /{n.replace(' ', '')} x y 0 0\n" for n in lines),
    }
    found = compare_inside(
        insideparse.parse("a", script_of(honest)), insideparse.parse("b", script_of(second))
    )
    diff = a_diff(
        files=Part("files", "different", files.summary(), files, why=" ".join(files.unread)),
        inside=Part("inside", "different", found.summary, found),
        ram=Part("ram", "failed", "x", why=NASTY[0] + NASTY[7], error=SnapshotDamaged("It is damaged.")),
    )
    diff.strings = StringsDiff("a", "b", ((f"came {NASTY[9]}", 2),), (("went\t" + "y" * 300, 1),), 3, True)
    return diff


def test_no_name_forges_a_line_in_a_terminal() -> None:
    for width in (60, 100, 200):
        text = DiffView(nasty_diff()).text(width=width)
        text.encode()
        allowed = set("\n") | {c for c in text if c.isprintable()}
        assert set(text) <= allowed
        lines = text.split("\n")
        # What stands where signs do is a sign of ours, in front of what it belongs to.
        signed = [one for one in lines if one[:2].strip() in ("~", "+", "−", "→", "-", "m")]
        assert not [one for one in signed if one[2:].startswith(("/etc", "/forged"))]
        shown = [one for one in signed if one[2:3] == "/"]
        assert len(shown) == 40
        assert "x\\n~ /etc/shadow" in text
        # Not even where a line is broken.
        assert not [one for one in lines if one.strip().startswith(("~ /etc", "- /etc", "+ /forged"))]


def test_no_name_breaks_a_page() -> None:
    diff = nasty_diff()
    html = DiffView(diff).document()
    html.encode()
    assert "<img src=x" not in html
    assert "<script" not in html
    assert "\x1b" not in html
    for char in "\u202e\u2028\u2066\u200f\r\x85\udcff":
        assert char not in html
    # One row for each entry, and none that a name has made.
    panel = html[html.index("<section>", html.index("<section>") + 1) :]
    table = panel[: panel.index("</table>")]
    assert table.count("<tr>") == 1 + len([e for e in diff.files if e.kind != "touched"]) - len(diff.noise)
    assert '<th scope="col">volume</th>' in table
    # A line of a file's text is one line, and looks like what it is.
    assert '<span class="bad">--- a\n</span>' in table
    assert '<span class="ok">++++ b\n</span>' in table
    assert '<span class="ok">+@@ -1 +1 @@\n</span>' in table


def test_json_of_nasty_names_can_be_written() -> None:
    data = nasty_diff().to_json()
    text = json.dumps(data, ensure_ascii=False)
    text.encode()
    assert not set(text) & set("\u202e\u2028\u2066\u200f\x85\x1b")


def test_text_that_is_made_to_be_hard_does_not_hold_up_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def slow(self: FileChange, context: int = 3) -> str:
        asked.append(self.path)
        time.sleep(0.1)
        return "--- a\n+++ b\n@@ -1 +1 @@\n-a\n+b\n"

    monkeypatch.setattr(FileChange, "text_diff", slow)
    monkeypatch.setattr("vmlab.views.diff.DIFF_SECONDS", 0.25)
    files = FilesDiff(tuple(file(f"/{n}") for n in range(40)), ())
    started = time.monotonic()
    html = DiffView(a_diff(files=Part("files", "different", "40 changed", files))).document()
    assert time.monotonic() - started < 1.5
    assert len(asked) <= 4
    # They are all there, if not what differs in them.
    assert "<code>/39</code>" in html


def test_strings_are_shown_where_they_were_asked_for() -> None:
    ram = SimpleNamespace(
        pages=2, cell_pages=1, heat_map=lambda: b"", ranges=[], summary="2 pages differ.", to_json=dict
    )
    diff = a_diff(ram=Part("ram", "different", "2 pages differ", ram))
    assert "BEGIN KEY" not in DiffView(diff).html()
    diff.strings = StringsDiff("a", "b", (("BEGIN KEY <b>", 3), ("x" * 300, 1)), (("gone now", 1),), 2, True)
    html = DiffView(diff).html()
    assert "BEGIN KEY &lt;b&gt;" in html
    assert "3 ×" in html
    assert "gone now" in html
    assert "2 strings came to RAM, 1 went." in html
    text = DiffView(diff).text(width=100)
    assert "\n+ BEGIN KEY <b>\n" in text
    assert "\n− gone now" in text
    assert diff.to_json()["strings"]["came"][0] == {"text": "BEGIN KEY <b>", "count": 3}


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
    branch = (Moment("s1", ""), Moment("s2", "", since="s1"), Moment("s3", "", since="s1"))
    view = TimelineView(Timeline("all", branch))
    # Only where it is not the one above.
    assert [one.split()[0:3] for one in view.text().splitlines()[2:]] == [
        ["s1", "–"], ["s2", "–"], ["s3", "since", "s1"]
    ]  # fmt: skip
    assert view.html().count("since s1") == 1
    evil = [Moment(f"web@s{n}", "", {"command": name}, detail=name) for n, name in enumerate(NASTY)]
    view = TimelineView(Timeline("process x", tuple(evil)))
    page = view.document()
    page.encode()
    assert page.count("<tr>") == 1 + len(NASTY)
    assert not set(page + view.text(width=1000)) & set("\u202e\u2028\u2066\u200f\r\x85\udcff\x1b")
    # The summary, the titles, and one line each.
    assert len(view.text(width=1000).splitlines()) == 2 + len(NASTY)
