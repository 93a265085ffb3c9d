"""Commands, files, keys, pointer, screen, serial line and identity, in real guests."""

from __future__ import annotations

import _thread
import contextlib
import hashlib
import io
import os
import re
import socket
import subprocess
import sys
import threading
import time
import unicodedata
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from help import half_heard
from help.fakes import QuietUI

from vmlab import commands
from vmlab.errors import (
    AgentError,
    AgentTimeout,
    AlreadyExists,
    CommandFailed,
    NoSpace,
    NotFound,
    OutputTooLarge,
    Overtaken,
    UsageError,
    VMLabError,
    WaitTimeout,
    WrongState,
)
from vmlab.guest import agent, identity, keys, serial, transfer
from vmlab.guest.wait import until
from vmlab.lab import Lab
from vmlab.machine import Machine
from vmlab.store import locks

exhaustive = pytest.mark.skipif("VMLAB_ALL" not in os.environ, reason="exhaustive: scripts/test --all")


@pytest.fixture(scope="module")
def web(lab: Lab) -> Iterator[Machine]:
    """One tiny machine for all tests here that leave nothing behind in it."""
    machine = lab.create(f"guest-{uuid.uuid4().hex[:6]}", "tiny")
    machine.wait_for_agent(120)
    yield machine
    machine.delete()


def leftovers(machine: Machine) -> str:
    """Folders of earlier commands that are still there (that of this command itself is not counted)."""
    time.sleep(0.5)  # a removal that nobody waits for
    folders = " ".join(f"{folder}/vmlab.*" for folder in agent.FOLDERS)
    return machine.execute(
        f'for d in {folders}; do case $0 in "$d"/*) ;; *) ls -d "$d";; esac; done 2>/dev/null'
    ).stdout


# -- commands --------------------------------------------------------------------------------------------------------


def test_execute_keeps_streams_apart_and_tells_the_status(web: Machine) -> None:
    result = web.execute("echo out; echo err >&2; exit 3")
    assert (result.status, result.stdout, result.stderr, result.machine) == (3, "out\n", "err\n", web.name)
    assert web.execute(["printf", "%s|", "a b", "$HOME", "'"]).stdout == "a b|$HOME|'|"
    with pytest.raises(CommandFailed) as caught:
        web.succeed("true", "echo why >&2; false")
    assert "why" in caught.value.evidence["stderr"]
    assert leftovers(web) == ""


def test_a_short_command_takes_few_calls(web: Machine) -> None:
    # One to start it; the others ask whether it has ended, at 8, 20, 38, 65 ... ms: more of them on a busy host.
    calls = [web.execute("true").calls for _ in range(10)]
    assert min(calls) <= 10, calls


def test_the_environment_is_that_of_a_login(web: Machine) -> None:
    said = web.succeed("echo $PATH; echo $HOME; pwd; id -u; echo $LANG").splitlines()
    assert {"/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/bin"} <= set(said[0].split(":"))
    assert said[1:4] == ["/root", "/root", "0"]
    assert "UTF-8" in said[4]
    assert web.execute("echo $GREETING", env={"GREETING": "it's me"}).stdout == "it's me\n"


def test_the_text_of_a_script_is_not_in_the_list_of_processes(web: Machine) -> None:
    # pkill -f in a script must not find the script's own launcher.
    assert web.execute("ps | grep -c 'xyzz[y]'").stdout == "0\n"


def test_output_comes_while_the_command_runs(web: Machine) -> None:
    heard: list[tuple[float, str, str]] = []
    begin = time.monotonic()
    text = "for i in 1 2 3 4; do echo line $i; echo err $i >&2; sleep 0.7; done"
    result = web.script(
        text, on_output=lambda stream, piece: heard.append((time.monotonic() - begin, stream, piece))
    )
    assert heard[0][0] < result.elapsed - 1.2, "the first line came only at the end"
    assert "".join(piece for _, stream, piece in heard if stream == "stdout") == result.stdout
    assert "".join(piece for _, stream, piece in heard if stream == "stderr") == result.stderr
    assert result.stdout == "".join(f"line {i}\n" for i in range(1, 5))
    assert leftovers(web) == ""


def test_scripts_and_interpreters(web: Machine) -> None:
    stopped = web.script("echo one\nfalse\necho two\n")
    assert (stopped.status, stopped.stdout) == (1, "one\n")
    assert web.script("#!/bin/sh\nfalse\necho two\n").stdout == "two\n"
    assert web.script("#!/usr/bin/env -S awk -f\nBEGIN { print 6 * 7 }").stdout == "42\n"
    assert web.script("#!/usr/bin/env awk -f\nBEGIN { print 6 * 7 }").stdout == "42\n"
    missing = web.script("#!/no/such/python\nprint(1)\n")
    assert missing.status == 127
    assert "not found" in missing.stderr
    assert web.script("#" * 200_000 + "\necho long").stdout == "long\n"
    assert web.script("echo 'a\\nb' \"$0\" %s | grep -c vmlab").stdout == "1\n"


def test_input_of_any_size(web: Machine) -> None:
    assert web.execute("cat", input="grün €\n").stdout == "grün €\n"
    assert web.execute("wc -c", input=b"\0" * 300_000).stdout.strip() == "300000"
    assert web.execute("wc -c", input=b"\0" * 2_000_000).stdout.strip() == "2000000"
    assert web.execute("cat").stdout == ""


def test_another_user(web: Machine) -> None:
    web.succeed("grep -q nina /etc/passwd || echo nina:x:1234:1234:Nina:/tmp:/bin/sh >>/etc/passwd")
    result = web.execute("id -un; echo $HOME; cat", user="nina", input="in")
    assert result.stdout.splitlines()[0] == "nina"
    assert result.stdout.endswith("in")
    assert web.execute("true", user="nobody-of-that-name").status != 0
    with pytest.raises(UsageError):
        web.execute("true", user="-x")


@pytest.mark.parametrize("command", ["sleep 1000 & sleep 1000", "trap '' TERM; while :; do sleep 1; done"])
def test_timeout_kills_the_whole_group_and_shows_what_it_said(web: Machine, command: str) -> None:
    begin = time.monotonic()
    with pytest.raises(WaitTimeout) as caught:
        web.execute(f"echo begin; {command}", timeout=1)
    assert caught.value.evidence["stdout"] == "begin\n"
    assert time.monotonic() - begin < 15
    assert web.execute("ps | grep -c '[s]leep 1000'").stdout == "0\n"
    assert leftovers(web) == ""


@pytest.mark.parametrize("user", [None, "nobody"])
def test_interrupt_reaches_the_command(web: Machine, user: str | None) -> None:
    heard: list[str] = []
    timer = threading.Timer(2, _thread.interrupt_main)
    timer.start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        web.script(
            "trap 'echo interrupted; exit 5' INT; echo waiting; while :; do sleep 0.2; done",
            user=user,
            on_output=lambda _, text: heard.append(text),
        )
    assert time.monotonic() - begin < 12
    assert "".join(heard).endswith("waiting\ninterrupted\n")
    assert web.execute("ps | grep -c '[s]leep 0.2'").stdout == "0\n"
    assert leftovers(web) == ""


def test_a_daemon_left_behind_holds_nobody_up(web: Machine) -> None:
    begin = time.monotonic()
    assert web.execute("sleep 654 & echo started").stdout == "started\n"
    assert time.monotonic() - begin < 5
    assert web.execute("ps | grep -c '[s]leep 654'").stdout == "1\n"
    web.execute("kill $(pidof sleep)")


def test_output_of_every_size_arrives_whole(web: Machine) -> None:
    for size in (0, 65_536, 65_537, 3_000_000):
        result = web.execute(f"head -c {size} /dev/zero | tr '\\0' x")
        assert (len(result.stdout), set(result.stdout) <= {"x"}, result.truncated) == (size, True, 0)
    assert leftovers(web) == ""


def test_endless_output_fills_neither_host_nor_guest(web: Machine) -> None:
    with pytest.raises(WaitTimeout) as caught:
        web.execute("while :; do df -Pk /run | tail -n 1 >&2; sleep 1; done & yes", timeout=8)
    said = caught.value.evidence["stdout"]
    assert said.startswith("y\n")
    assert len(said) < agent.KEEP + 200
    used = [
        int(line.split()[4].rstrip("%"))
        for line in caught.value.evidence["stderr"].splitlines()
        if "%" in line
    ]
    assert used
    assert max(used) < 95, "the guest's memory filled up"
    assert leftovers(web) == ""


@pytest.mark.parametrize(
    ("keep", "size"),
    [
        (1 << 20, 3_000_000),
        pytest.param(agent.KEEP, 50_000_000, marks=[exhaustive, pytest.mark.timeout(1200)]),
    ],
)
def test_output_that_is_cut_is_never_given_as_whole(
    web: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int, size: int
) -> None:
    monkeypatch.setattr(agent, "KEEP", keep)
    command = f"yes 0123456789 | head -c {size}"
    whole = (b"0123456789\n" * (size // 11 + 1))[:size]
    with pytest.raises(OutputTooLarge, match="wrote more than is kept") as caught:
        web.succeed(command, timeout=600)
    assert "to=FILE" in (caught.value.hint or "")
    assert caught.value.evidence["stdout"].startswith("0123456789\n")
    for call in (
        lambda: web.fail(f"{command}; false", timeout=600),
        lambda: web.wait_until_succeeds(command, timeout=600),
        lambda: web.execute(command, timeout=600).stdout_bytes,
    ):
        with pytest.raises(OutputTooLarge):
            call()
    result = web.execute(command, to=tmp_path / "out", timeout=600)
    assert (result.ok, result.stdout, result.truncated) == (True, "", 0)
    assert (tmp_path / "out").read_bytes() == whole
    memory = io.BytesIO()
    web.execute(command, to=memory, timeout=600)
    assert memory.getvalue() == whole
    assert b"".join(web.stream(command)) == whole
    assert leftovers(web) == ""


def test_output_in_bytes_and_pieces(web: Machine, tmp_path: Path) -> None:
    result = web.execute(r"printf 'a\377b'; printf '\376' >&2")
    assert (result.stdout_bytes, result.stderr_bytes) == (b"a\xffb", b"\xfe")
    assert result.stdout == "a\ufffdb"
    # Its end is told after what it wrote; what is not asked for waits in the guest, and ends with the iterator.
    pieces = web.stream("echo begin; echo why >&2; exit 3")
    assert next(pieces) == b"begin\n"
    with pytest.raises(CommandFailed) as caught:
        next(pieces)
    assert caught.value.evidence["stderr"] == "why\n"
    endless = web.stream("yes")
    assert next(endless).startswith(b"y\n")
    endless.close()
    # ("[yes]" has ended, and waits for init.)
    assert web.execute("ps | grep -c '[y]es$'").stdout == "0\n"
    with pytest.raises(UsageError, match="cannot be written"):
        web.execute("true", to=tmp_path / "no" / "such")
    with pytest.raises(NoSpace, match="cannot be written"):
        web.execute("yes", to="/dev/full")
    assert web.execute("ps | grep -c '[y]es$'").stdout == "0\n"
    assert leftovers(web) == ""


def test_two_commands_at_once(web: Machine) -> None:
    said: dict[str, str] = {}

    def run(word: str) -> None:
        said[word] = web.execute(f"for i in 1 2 3; do echo {word}; sleep 0.3; done").stdout

    threads = [threading.Thread(target=run, args=(word,)) for word in ("one", "two", "three")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == {word: f"{word}\n" * 3 for word in ("one", "two", "three")}


def test_a_command_goes_on_after_a_pause(web: Machine) -> None:
    timer = threading.Timer(1, web.pause)
    timer.start()
    resume = threading.Timer(4, web.resume)
    resume.start()
    result = web.execute("for i in 1 2 3 4; do echo $i; sleep 0.5; done")
    assert result.stdout == "1\n2\n3\n4\n"
    assert result.elapsed > 3.5


def test_a_machine_killed_under_a_command_is_told(tiny: Machine) -> None:
    kill = threading.Thread(target=tiny.kill)
    with pytest.raises((AgentError, WrongState)) as caught:
        # When the command has said something, it runs.
        tiny.execute("echo begin; sleep 100", timeout=60, on_output=lambda *_: kill.start())
    kill.join()
    assert "stopped while 'echo begin; sleep 100' ran" in str(caught.value)
    with pytest.raises(VMLabError):
        tiny.execute("true")


def test_a_machine_reverted_under_a_command_is_told(tiny: Machine) -> None:
    snapshot = tiny.snapshot("before")
    revert = threading.Thread(target=tiny.revert, args=(snapshot,))
    with pytest.raises((AgentError, WrongState)) as caught:
        # When the command has said something, it runs.
        tiny.execute("echo begin; sleep 100", timeout=60, on_output=lambda *_: revert.start())
    revert.join()
    assert "while" in str(caught.value)
    tiny.wait_for_agent(60)
    assert tiny.execute("echo again").stdout == "again\n"


@pytest.mark.parametrize(
    "command",
    [
        "reboot",
        "poweroff",
        pytest.param("reboot -f", marks=exhaustive),
        pytest.param("echo b >/proc/sysrq-trigger", marks=exhaustive),
    ],
)
def test_a_guest_that_ends_under_a_command_is_no_hang(tiny: Machine, command: str) -> None:
    boot = tiny.succeed("cat /run/nonce")
    with tiny.domain.events() as events:
        with pytest.raises(Overtaken) as caught:
            tiny.execute(f"echo begin; {command}; sleep 100", timeout=90)
        if command == "poweroff":
            assert "powered off while 'echo begin; poweroff; sleep 100' ran" in str(caught.value)
            assert (tiny.state, tiny.why) == ("off", "the guest powered off")
            return
        assert "rebooted while" in str(caught.value)
        # Told as soon as it was reset, and not when its next agent had come.
        seen = []
        while event := events.next(0):
            seen.append((event.name, event.data.get("open")))
        assert ("VSERPORT_CHANGE", True) not in seen
    # What waits for something in the guest waits for its boot too.
    assert tiny.wait_until_succeeds("cat /run/nonce", timeout=120) != boot


@exhaustive
@pytest.mark.parametrize("command", ["reboot", "reboot -f", "poweroff"])
def test_a_guest_that_ends_under_a_copy_is_no_hang(tiny: Machine, tmp_path: Path, command: str) -> None:
    (tmp_path / "big").write_bytes(os.urandom(30_000_000))
    started: list[bool] = []

    def end_it(*_: int) -> None:
        if not started:
            started.append(True)
            tiny.succeed(f"(sleep 0.3; {command}) >/dev/null 2>&1 &")

    how = "powered off" if command == "poweroff" else "rebooted"
    with pytest.raises(Overtaken, match=f"{how} while '/root/big' was copied"):
        tiny.put(tmp_path / "big", "/root/big", progress=end_it)


@exhaustive
def test_waiting_for_a_command_goes_on_over_a_reboot(tiny: Machine) -> None:
    tiny.succeed("(sleep 1; reboot) >/dev/null 2>&1 &")
    tiny.succeed("rm -f /root/done; echo 'sleep 2; : >/root/done' >>/etc/init.d/rcS")
    tiny.wait_for_file("/root/done", timeout=120)


@pytest.mark.parametrize("hard", [False, pytest.param(True, marks=exhaustive)])
def test_reboot_returns_when_commands_can_be_run_again(tiny: Machine, hard: bool) -> None:
    tiny.succeed("echo kept >/root/mark; sync")
    boot, pid = tiny.succeed("cat /run/nonce"), tiny.domain.pid
    assert tiny.reboot(hard=hard) is tiny
    assert tiny.succeed("cat /run/nonce") != boot
    assert tiny.succeed("cat /root/mark") == "kept\n"
    assert tiny.domain.pid == pid
    # Asked while it boots, it hears as soon as it can.
    tiny.domain.reset()
    tiny.reboot(hard=hard)
    assert tiny.execute("true").ok
    # What it is told afterwards is told to a guest that powers off when it powers off.
    tiny.stop()
    assert tiny.state == "off"
    with pytest.raises(WrongState, match="not running"):
        tiny.reboot()


def _put(machine: Machine) -> None:
    assert machine.put(Path(__file__), "/root/") == f"/root/{Path(__file__).name}"


@pytest.mark.parametrize(
    "first",
    [
        lambda machine: machine.succeed("true"),
        pytest.param(_put, marks=exhaustive),
        pytest.param(lambda machine: machine.script("exit 0").check(), marks=exhaustive),
        pytest.param(lambda machine: machine.get("/etc/hostname"), marks=exhaustive),
        pytest.param(lambda machine: machine.set_clock(), marks=exhaustive),
    ],
)
def test_a_guest_that_does_not_hear_yet_is_waited_for(
    lab: Lab,
    names: Callable[..., str],
    first: Callable[[Machine], object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    machine = lab.create(names("boots"), "tiny", bake=False)
    # Within the first second: nobody listens to the power button.
    assert machine.stop().state == "off"
    machine.start()
    first(machine)
    assert machine.execute("true", timeout=1).ok


def test_reboot_without_an_agent_returns_when_it_begins_anew(invaders: Machine) -> None:
    with invaders.domain.events() as events:
        invaders.reboot(hard=True)
        seen = []
        while event := events.next(1):
            seen.append(event.name)
    assert "RESET" in seen
    with pytest.raises(WaitTimeout, match="did not restart within") as caught:
        invaders.reboot(timeout=1)
    assert "--hard" in (caught.value.hint or "")


def elsewhere(machine: Machine, text: str, *, stdin: bool = False) -> subprocess.Popen[str]:
    """Let another process do something to a machine, which it knows as ``m``."""
    code = (
        f"from vmlab.lab import Lab; m = Lab({str(machine._store.home)!r}).machine({machine.name!r})\n{text}"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE if stdin else None,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_what_needs_the_guest_alone_waits_for_who_holds_the_machine(tiny: Machine, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(200_000))
    told: list[str] = []
    said: list[str] = []

    def all_of_it() -> None:
        assert tiny.execute("echo here").stdout == "here\n"
        tiny.keys("shift")
        assert tiny.put(tmp_path / "file", "/root/file") == "/root/file"
        assert tiny.screenshot().width

    # For whom one waits is said.
    tiny._store.tell = said.append
    other = elsewhere(tiny, f"import time\nwith m._store.lock('{tiny.name}', 'revert'): time.sleep(4)")
    until(lambda: locks.holder(tiny._store.lock_path(tiny.name)), 30, "the other one to hold the machine")
    all_of_it()
    assert said == [f"waiting: process {other.pid} is to revert {tiny.name}"]
    assert other.wait() == 0
    # A snapshot harms nothing that is under way.
    other = elsewhere(tiny, "for i in range(4): m.snapshot(f's{i}')")
    while other.poll() is None:
        all_of_it()
    assert other.returncode == 0, other.communicate()[1]
    other = elsewhere(tiny, "for i in range(3): m.revert(f's{i}'); m.undo()")
    while other.poll() is None:
        try:
            all_of_it()
        except Overtaken as error:
            told.append(error.message)
    assert other.returncode == 0, other.communicate()[1]
    all_of_it()
    for sentence in told:
        assert "was reverted to 's" in sentence or "by an undo" in sentence, told


def test_what_is_under_way_when_a_machine_is_taken_elsewhere_is_told_that(tiny: Machine) -> None:
    tiny.snapshot("clean")
    for text, sentence in (
        ("m.revert('clean')", "was reverted to 'clean'{} while 'echo begin; sleep 100' ran"),
        ("m.undo()", "by an undo{} while 'echo begin; sleep 100' ran"),
        ("m.delete()", "was deleted{} while 'echo begin; sleep 100' ran"),
    ):
        others: list[subprocess.Popen[str]] = []
        with pytest.raises(Overtaken) as caught:
            tiny.execute(
                "echo begin; sleep 100",
                on_output=lambda *_: others.append(elsewhere(tiny, text)),  # noqa: B023
            )
        assert others[0].wait(60) == 0, others[0].communicate()[1]
        # Whose it is can be told if they are seen at it; it may be over before one looks again.
        by = f" by process {others[0].pid}"
        assert any(sentence.format(who) in caught.value.message for who in (by, ""))
    with pytest.raises(NotFound):
        tiny.execute("true")


def _fork_of(machine: Machine) -> None:
    fork = machine.fork(f"{machine.name}-f", snapshot="half")
    try:
        assert fork.succeed("cat /proc/sys/kernel/hostname") == f"{fork.name}\n"
    finally:
        fork.delete()


@pytest.mark.parametrize(
    "first",
    [
        lambda machine: machine.revert("half").succeed("true"),
        pytest.param(_fork_of, marks=exhaustive),
        pytest.param(lambda machine: machine.revert("half").reboot().succeed("true"), marks=exhaustive),
        pytest.param(lambda machine: machine.revert("half").stop(), marks=exhaustive),
        pytest.param(lambda machine: machine.revert("half").wait_for_agent(20), marks=exhaustive),
    ],
)
def test_a_state_that_was_kept_in_the_middle_of_a_message_answers(
    tiny: Machine, first: Callable[[Machine], object]
) -> None:
    tiny.succeed("true")
    half_heard.send(tiny.domain)
    tiny.snapshot("half")
    first(tiny)


def test_a_refusal_of_the_agent_is_told_whoever_holds_the_machine(tiny: Machine) -> None:
    tiny.succeed("true")
    other = elsewhere(
        tiny, f"import sys\nwith m._store.lock('{tiny.name}', 'snapshot'): sys.stdin.read()", stdin=True
    )
    until(lambda: locks.holder(tiny._store.lock_path(tiny.name)), 30, "the other one to hold the machine")
    with pytest.raises(AgentError, match="refused guest-file-open"):
        tiny.domain.agent("guest-file-open", path="/nowhere/file", mode="r")
    with pytest.raises(NotFound):
        tiny.get("/nowhere/file")
    assert other.poll() is None
    other.communicate()


@pytest.mark.parametrize("deed", ["revert('clean')", pytest.param("delete()", marks=exhaustive)])
def test_what_the_agent_has_taken_and_not_answered_goes_with_its_guest(tiny: Machine, deed: str) -> None:
    tiny.snapshot("clean")
    tiny.succeed("(sleep 0.5; kill -STOP $(pidof qemu-ga)) >/dev/null 2>&1 &")
    time.sleep(1)
    other = elsewhere(tiny, f"import time\ntime.sleep(2)\nm.{deed}")
    try:
        # Where the agent had not even said that it listens, nothing is lost: the guest that came has done it.
        assert tiny.execute("true").ok
        assert deed != "delete()"
    except Overtaken as error:
        assert re.search(r"was reverted to 'clean'|was deleted", error.message), error  # noqa: PT017
    other.communicate()
    assert other.returncode == 0


def test_without_an_agent_the_hint_names_the_other_ways(invaders: Machine) -> None:
    with pytest.raises(AgentError) as caught:
        invaders.execute("true", timeout=5)
    assert "screenshot" in (caught.value.hint or "")
    with pytest.raises(AgentTimeout):
        agent.wait_for_agent(invaders.domain, 1)


# -- files -----------------------------------------------------------------------------------------------------------


def test_files_go_there_and_back(web: Machine, tmp_path: Path) -> None:
    source = tmp_path / "it's a file"
    source.write_bytes(os.urandom(1000))
    source.chmod(0o750)
    assert transfer.put(web.domain, source, "/root") == "/root/it's a file"
    assert transfer.put(web.domain, source, "/root/other name") == "/root/other name"
    assert "-rwxr-x---" in web.succeed("ls -l '/root/other name'")
    back = transfer.get(web.domain, "/root/other name", tmp_path / "back")
    assert back.read_bytes() == source.read_bytes()
    assert back.stat().st_mode & 0o777 == 0o750
    assert transfer.read_bytes(web.domain, "/proc/version").startswith(b"Linux version 6")
    assert transfer.write_bytes(web.domain, b"", "/root/empty") == "/root/empty"
    assert transfer.read_bytes(web.domain, "/root/empty") == b""
    assert web.execute("ls -A /root | grep -c vmlab").stdout == "0\n"


def test_a_big_file_with_progress(web: Machine, tmp_path: Path) -> None:
    source = tmp_path / "big"
    source.write_bytes(os.urandom(3_000_000))
    seen: list[tuple[int, int]] = []
    transfer.put(web.domain, source, "/root/", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (3_000_000, 3_000_000)
    assert len(seen) > 3
    assert transfer.get(web.domain, "/root/big", tmp_path / "back").read_bytes() == source.read_bytes()
    web.succeed("rm /root/big")


def test_folders(web: Machine, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "grün").write_text("x")
    (tree / "link").symlink_to("sub/grün")
    (tree / "run").write_text("#!/bin/sh\n")
    (tree / "run").chmod(0o755)
    web.succeed("rm -rf /root/tree /root/copy")
    assert transfer.put(web.domain, tree, "/root") == "/root/tree"
    assert transfer.put(web.domain, tree, "/root/copy") == "/root/copy"
    # Once more is once: what was made of it is brought up to date, by whatever name.
    (tree / "more").write_text("m")
    for place in ("/root", "/root/copy", "/root/tree"):
        transfer.put(web.domain, tree, place)
    assert web.succeed("cat /root/copy/link /root/copy/more /root/tree/sub/*") == "xmx"
    assert web.execute("ls -d /root/copy/tree /root/tree/tree").stdout == ""
    # Into a folder of something else it goes under its own name, and so it does where that is said.
    web.succeed("rm -rf /root/other; mkdir /root/other; : >/root/other/file")
    assert transfer.put(web.domain, tree, "/root/other") == "/root/other/tree"
    assert transfer.put(web.domain, tree, "/root/copy/") == "/root/copy/tree"
    (tree / "more").unlink()
    web.succeed("rm -r /root/copy/tree /root/tree/more /root/other")
    # A link to a folder is that folder, by the link's name.
    (tmp_path / "linked").symlink_to(tree)
    assert transfer.put(web.domain, tmp_path / "linked", "/root/") == "/root/linked"
    assert web.succeed("test ! -L /root/linked; cat /root/linked/link") == "x"
    back = transfer.get(web.domain, "/root/tree", tmp_path / "back")
    assert sorted(str(path.relative_to(back)) for path in back.rglob("*")) == [
        "link",
        "run",
        "sub",
        "sub/grün",
    ]
    assert os.access(back / "run", os.X_OK)
    assert (back / "link").is_symlink()
    assert transfer.get(web.domain, "/root/tree", tmp_path / "back") == back / "tree"
    assert transfer.get(web.domain, "/root/tree", back / "tree") == back / "tree"
    assert not (back / "tree" / "tree").exists()
    for what in ("/root/tree", "/root/tree/run"):
        with pytest.raises(NotFound, match="no folder 'new/'"):
            transfer.get(web.domain, what, "new/")


def disk_of(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_holes_stay_holes_and_what_is_left_out_is_said(web: Machine, tmp_path: Path) -> None:
    size = 8 << 20
    tree = tmp_path / "odd"
    tree.mkdir()
    for name in ("sparse", "late"):
        with (tree / f" {name} ").open("wb") as file:
            if name == "sparse":
                file.write(b"begin")
            file.seek(size // 2 + 4097)
            file.write(b"middle" * 1000)
            if name == "sparse":
                file.truncate(size)
    os.utime(tree / " sparse ", (1_500_000_000, 1_500_000_000))
    (tree / "plain").write_text("x")
    os.mkfifo(tree / "fifo")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as line:
        line.bind(str(tree / "socket"))
    web.succeed("rm -rf /root/odd")
    with pytest.warns(UserWarning, match="left out of '.*/odd', .*: fifo, socket$"):
        web.put(tree, "/root/")
    said: list[str] = []
    # Once more into the one that is there, by another way in the guest.
    web.put(tree, "/root/", tell=said.append)
    assert len(said) == 1
    assert web.put(tree / " sparse ", "/root/odd/alone") == "/root/odd/alone"
    assert sorted(web.succeed("ls -A /root/odd").splitlines()) == [" late ", " sparse ", "alone", "plain"]
    for name in (" sparse ", " late ", "alone"):
        local = tree / (name if name != "alone" else " sparse ")
        digest, bytes_, blocks = web.succeed(
            f"cd /root/odd; sha256sum <'{name}' | cut -d' ' -f1; stat -c '%s %b' '{name}'"
        ).split()
        assert digest == hashlib.sha256(local.read_bytes()).hexdigest()
        assert int(bytes_) == local.stat().st_size
        assert int(blocks) * 512 < 1 << 20, name
    assert web.succeed("stat -c %Y '/root/odd/ sparse '").strip() == "1500000000"
    web.succeed("mkfifo /root/odd/pipe; mknod /root/odd/null c 1 3")
    with pytest.warns(UserWarning, match="left out of '/root/odd', .*: null, pipe$"):
        back = web.get("/root/odd", tmp_path / "back")
    web.get("/root/odd/alone", tmp_path / "alone")
    for path, name in (
        (back / " sparse ", " sparse "),
        (back / " late ", " late "),
        (tmp_path / "alone", " sparse "),
    ):
        assert path.read_bytes() == (tree / name).read_bytes()
        assert disk_of(path) < 1 << 20, path
    web.succeed("rm -rf /root/odd")


def test_a_log_that_grows_can_be_copied(web: Machine) -> None:
    web.execute("(while :; do date; done >/tmp/log & echo $! >/tmp/log.pid)")
    try:
        assert transfer.read_bytes(web.domain, "/tmp/log")
    finally:
        web.execute("kill $(cat /tmp/log.pid)")


def test_bad_places(web: Machine, tmp_path: Path) -> None:
    source = tmp_path / "file"
    source.write_bytes(b"x" * 2_000_000)
    domain = web.domain
    with pytest.raises(NotFound, match="no file '/no/such' in"):
        transfer.get(domain, "/no/such", tmp_path)
    for remote in ("/no/such", "/no/such/"):
        with pytest.raises(NotFound, match="no folder '/no"):
            transfer.put(domain, source, remote)
    with pytest.raises(AlreadyExists, match="is a folder"):
        transfer.write_bytes(domain, b"", "/root")
    with pytest.raises(UsageError, match="is a folder"):
        transfer.read_bytes(domain, "/root")
    web.succeed("mkdir -p /tmp/small && mount -t tmpfs -o size=1m small /tmp/small")
    try:
        with pytest.raises(NoSpace) as caught:
            transfer.put(domain, source, "/tmp/small")
        assert caught.value.evidence["free_bytes"] <= 1 << 20
        assert web.succeed("ls -A /tmp/small") == ""
    finally:
        web.succeed("umount /tmp/small")


# -- keys, pointer, screen -------------------------------------------------------------------------------------------


def test_every_character_arrives(web: Machine) -> None:
    text = "".join(chr(code) for code in range(32, 127) if chr(code) != "'")
    web.execute("rm -f /tmp/typed")
    web.keys("ret")
    web.type(f"printf %s '{text}' >/tmp/typed\n")
    web.wait_until_succeeds("test -s /tmp/typed", timeout=30)
    assert web.execute("cat /tmp/typed").stdout == text


def test_long_text_arrives_whole_in_a_busy_guest(web: Machine) -> None:
    line = "The quick Brown Fox jumps over 13 lazy dogs! " * 4
    web.execute("rm -f /tmp/typed")
    web.execute("(while :; do :; done & echo $! >/tmp/busy.pid)")
    try:
        web.type("cat >/tmp/typed\n")
        web.wait_for_file("/tmp/typed", timeout=30)
        for _ in range(3):
            web.type(line + "\n")
        web.wait_until_succeeds(f"test $(wc -c </tmp/typed) -ge {3 * (len(line) + 1)}", timeout=60)
    finally:
        web.execute("kill $(cat /tmp/busy.pid)")
        web.keys("ctrl-d")
    assert web.execute("cat /tmp/typed").stdout == (line + "\n") * 3


def test_screen(web: Machine) -> None:
    before = web.wait_for_screen(settle=0.5, tolerance=0.001, timeout=30)
    assert before.png.startswith(b"\x89PNG")
    assert before.array.shape == (before.height, before.width, 3)
    assert not before.blank
    web.type("clear; echo HELLO\n")
    after = web.wait_for_screen(lambda shot: before.diff(shot).pixels > 100, timeout=30)
    assert before.diff(after).box is not None
    still = web.wait_for_screen(settle=0.5, tolerance=0.001, timeout=30)
    assert web.wait_for_screen(still, tolerance=0.001, timeout=10).diff(still).fraction <= 0.001
    with pytest.raises(WaitTimeout) as caught:
        web.wait_for_screen(lambda _: False, timeout=0.5)
    assert caught.value.screen is not None  # type: ignore[attr-defined]


def test_a_screen_is_still_but_for_what_always_changes(web: Machine) -> None:
    web.type("clear; while :; do printf '\\r%s' $((n = n + 1)); sleep 0.1; done\n")
    web.wait_for_screen(settle=0.2, tolerance=1.0, timeout=30)
    try:
        with pytest.raises(WaitTimeout) as caught:
            web.wait_for_screen(settle=2, timeout=6)
        assert "pixels differ" in caught.value.evidence["last"]
        hint = caught.value.hint or ""
        tolerance = float(hint.split("tolerance=")[1].split(" ")[0])
        assert 0 < tolerance < 0.05
        assert "--area" in hint
        web.wait_for_screen(settle=1, tolerance=max(tolerance, 0.01), timeout=30)
        width, height = web.screenshot().size
        assert (
            web.wait_for_screen(settle=1, area=(0, height // 2, width, height), blank=True, timeout=30).width
            == width
        )
    finally:
        web.keys("ctrl-c")


def test_a_paused_guest_shows_the_same_picture(invaders: Machine) -> None:
    invaders.wait_for_screen(lambda shot: not shot.blank, timeout=30)
    invaders.pause()
    assert invaders.screenshot() == invaders.screenshot()


def test_no_screenshot_of_a_machine_that_is_off(tiny: Machine) -> None:
    tiny.kill()
    with pytest.raises(VMLabError):
        tiny.screenshot()


def test_screenshots_while_a_machine_is_reverted(tiny: Machine) -> None:
    clean = tiny.snapshot("clean")
    over = threading.Event()
    pictures: list[object] = []
    told: list[str] = []
    wrong: list[BaseException] = []

    def look() -> None:
        while not over.is_set():
            try:
                pictures.append(tiny.screenshot())
            except WrongState as error:
                told.append(error.message)
            except BaseException as error:  # shown below; a thread's own end would be overlooked
                wrong.append(error)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(8):
            clean.revert()
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert pictures
    assert not [words for words in told if "is paused" in words], "a paused machine has a screen"


def test_the_pointer_goes_to_the_pixel(desktop: Machine) -> None:
    size = desktop.screenshot().size
    pointer = keys.Pointer(desktop.domain, size)
    for x, y in ((0, 0), (size[0] // 2, size[1] // 3), (size[0] - 1, size[1] - 1)):
        pointer.move(x, y)
        command = "DISPLAY=:0 xdotool getmouselocation 2>/dev/null"
        time.sleep(1)
        said = desktop.execute(command, user=_desktop_user(desktop)).stdout
        assert f"x:{x} y:{y} " in said


def _desktop_user(machine: Machine) -> str | None:
    """The user whose X server it is."""
    names = machine.execute("ls /home").stdout.split()
    return names[0] if names else None


# -- serial line -----------------------------------------------------------------------------------------------------


def test_serial_line(web: Machine) -> None:
    log = serial.SerialLog.of(web.domain)
    here = log.position
    web.send_serial("\n")
    web.send_serial("echo serial-$((40 + 2)) abcdefghijklmnopqrstuvwxyz abcdefghijklmnopqrstuvwxyz\n")
    assert log.wait_for(r"^serial-42 (\w+)", 30, since=here)[1].startswith("abc")
    assert "\x1b" not in web.serial()
    assert "serial-42" in web.serial(5)
    with pytest.raises(WaitTimeout) as caught:
        web.wait_for_serial("never written", timeout=0.5)
    assert "serial-42" in caught.value.evidence["last"]


# -- identity --------------------------------------------------------------------------------------------------------


def test_identity(tiny: Machine) -> None:
    tiny.execute(
        "printf '127.0.1.1 %s %s.local\\n' $(hostname) $(hostname) >>/etc/hosts; echo 0123 >/etc/machine-id"
    )
    mac = "52:54:00:12:ab:cd"
    report = identity.renew(tiny.domain, hostname="fork_1!", mac=mac)
    assert not report.failed, report
    assert report.done["hostname"] == "fork-1"
    assert report.elapsed < 10
    said = tiny.succeed(
        "hostname; cat /etc/hostname; cat /etc/machine-id; cat /sys/class/net/*/address; cat /etc/hosts"
    )
    lines = said.splitlines()
    assert lines[0] == "fork-1"
    assert report.done["machine-id"] in lines
    assert mac in lines
    assert "fork-1 fork-1.local" in said
    assert any("boot ID" in what for what in report.same)
    assert tiny.execute("echo goes on").ok


def test_identity_of_a_machine_without_agent_is_a_report(invaders: Machine) -> None:
    report = identity.renew(invaders.domain, hostname="fork", timeout=5)
    assert report.done == {}
    assert set(report.failed) == {"hostname", "machine-id"}


def test_clock(tiny: Machine) -> None:
    tiny.execute("date -u -s @1500000000")
    moved = identity.set_clock(tiny.domain)
    assert moved > 1_000_000
    assert abs(int(tiny.execute("date +%s").stdout) - time.time()) < 3


@pytest.mark.parametrize("count", [3])
def test_concurrent_agents_of_several_machines(lab: Lab, names: Callable[..., str], count: int) -> None:
    with contextlib.ExitStack() as stack:
        machines = [stack.enter_context(lab.create(names("many"), "tiny")) for _ in range(count)]
        said: dict[str, str] = {}

        def run(machine: Machine) -> None:
            machine.wait_for_agent(120)
            said[machine.name] = machine.execute("echo here").stdout

        threads = [threading.Thread(target=run, args=(machine,)) for machine in machines]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert said == {machine.name: "here\n" for machine in machines}


def test_snapshots_have_names_as_people_write_them(tiny: Machine, lab: Lab) -> None:
    name = "vor dem Umbau, Übung (1)"
    snapshot = tiny.snapshot(unicodedata.normalize("NFD", name))
    assert snapshot.name == name
    with pytest.raises(AlreadyExists) as caught:
        tiny.snapshot(name)
    said = (caught.value.hint or "").split("`%vm ")[1].split("`")[0]
    assert [word for word, _ in commands.split(said)][2] == name
    forget = f"forget {tiny.name} '{name}'"
    for words in (said, f"revert {tiny.name} '{name}'", f'describe {tiny.name} "{name}" "why"', forget):
        verb = commands.verb(words.split()[0])
        verb.run(lab, commands.parse_line(verb, words.split(" ", 1)[1]), QuietUI())
    assert tiny.snapshots == []
