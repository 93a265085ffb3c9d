"""The examination of the host, the probe guest, and the account that QEMU runs as."""

from __future__ import annotations

import dataclasses
import json
import os
import pwd
import shutil
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vmlab.errors import HostError
from vmlab.host import doctor
from vmlab.host.doctor import Finding, Report
from vmlab.hypervisor import accelerator, account, host
from vmlab.hypervisor.account import Account

GUESTS = shutil.which("qemu-system-x86_64") is not None


@pytest.fixture
def who() -> Account:
    account.account.cache_clear()
    return account.account()


@pytest.fixture
def elsewhere(who: Account, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    """The account as if it were at home in an empty folder, with a short path as sockets need it."""
    home = who.make_dir(Path("/tmp") / f"vmlab-test-{os.getpid()}")
    who.own(home)
    run = home / "run"
    yield dataclasses.replace(who, home=home, runtime_dir=run, socket=run / "libvirt" / "libvirt-sock")
    shutil.rmtree(home, ignore_errors=True)


# --- account ---


def test_qemu_never_runs_as_root(who: Account) -> None:
    assert who.uid != 0
    done = who.run(["id", "-u"], capture_output=True, text=True)
    assert int(done.stdout) == who.uid


def test_run_gives_the_account_its_own_folders(who: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMLAB_TEST_MARK", "kept")
    # Tokens and passwords are nothing for libvirt's daemon, which lives on with what it was given.
    monkeypatch.setenv("JUPYTER_TOKEN", "secret")
    script = 'echo "$HOME|$XDG_RUNTIME_DIR|$VMLAB_TEST_MARK|$MORE|$JUPYTER_TOKEN"; umask'
    done = who.run(["sh", "-c", script], capture_output=True, text=True, env={"MORE": "added"})
    assert done.stdout.split() == [f"{who.home}|{who.runtime_dir}|kept|added|", "0077"]


def test_made_folders_belong_to_the_account(elsewhere: Account) -> None:
    made = elsewhere.make_dir(elsewhere.home / "a" / "b" / "c")
    assert {p.stat().st_uid for p in (made, made.parent, made.parent.parent)} == {elsewhere.uid}
    (made / "file").write_text("x")
    elsewhere.own(made.parent, recursive=True)
    assert (made / "file").stat().st_uid == elsewhere.uid


def test_the_store_can_be_moved(who: Account, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VMLAB_HOME", raising=False)
    assert who.store != tmp_path
    monkeypatch.setenv("VMLAB_HOME", str(tmp_path))
    assert who.store == tmp_path


def test_root_without_the_service_account_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> pwd.struct_passwd:
        raise KeyError(name)

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(pwd, "getpwnam", unknown)
    account.account.cache_clear()
    try:
        with pytest.raises(HostError, match="does not exist") as caught:
            account.account()
        assert "scripts/lab" in (caught.value.hint or "")
    finally:
        account.account.cache_clear()


def test_an_ordinary_user_gets_the_usual_runtime_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, home = tmp_path / "run", tmp_path / "home"
    mine.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(mine))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert account._runtime_candidates(os.getuid(), home)[0] == mine
    # After `su`, the variable names somebody else's folder.
    assert mine not in account._runtime_candidates(os.getuid() + 1, home)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    assert account._runtime_candidates(987654, home) == [home / ".cache"]


# --- libvirt's daemon ---


@pytest.mark.skipif(
    account.find_program("libvirtd") is None, reason="libvirt is not installed here; scripts/test installs it"
)
def test_a_daemon_is_started_once_and_answers(elsewhere: Account) -> None:
    failures: list[BaseException] = []

    def start() -> None:
        try:
            account.ensure_daemon(elsewhere)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    pids = [
        int(process.name)
        for process in Path("/proc").iterdir()
        if process.name.isdigit()
        and _environment(process).get("XDG_RUNTIME_DIR") == str(elsewhere.runtime_dir)
    ]
    names = [Path(f"/proc/{pid}/comm").read_text().strip() for pid in pids]
    try:
        assert names.count("libvirtd") == 1
        assert {Path(f"/proc/{pid}").stat().st_uid for pid in pids} == {elsewhere.uid}
        # A session of its own: Ctrl-C here does not reach it.
        assert os.getsid(pids[names.index("libvirtd")]) != os.getsid(0)
        if account.find_program("tini"):
            assert "tini" in names
    finally:
        os.kill(pids[names.index("libvirtd")], 15)


def _environment(process: Path) -> dict[str, str]:
    try:
        text = (process / "environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(pair.split("=", 1) for pair in text.split("\0") if "=" in pair)


def test_a_daemon_that_does_not_start_shows_its_log(
    elsewhere: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = elsewhere.home / "libvirtd"
    broken.write_text("#!/bin/sh\necho 'no room on the moon' >&2\nexit 7\n")
    broken.chmod(0o755)
    found = {"libvirtd": str(broken)}
    monkeypatch.setattr(account, "find_program", found.get)
    with pytest.raises(HostError, match="status 7") as caught:
        account.ensure_daemon(elsewhere)
    assert "no room on the moon" in str(caught.value)


def test_no_daemon_installed(elsewhere: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account, "find_program", lambda _: None)
    with pytest.raises(HostError, match="not installed"):
        account.ensure_daemon(elsewhere)


def test_a_socket_path_that_linux_refuses(elsewhere: Account) -> None:
    long = elsewhere.home / ("x" * 120)
    with pytest.raises(HostError, match="longer than"):
        account.ensure_daemon(
            dataclasses.replace(elsewhere, runtime_dir=long, socket=long / "libvirt" / "libvirt-sock")
        )


def test_a_daemon_that_answers_is_used(elsewhere: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere.make_dir(elsewhere.socket.parent)
    monkeypatch.setattr(account, "_start", lambda *_: pytest.fail("started another one"))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(elsewhere.socket))
        server.listen()
        account.ensure_daemon(elsewhere)


# --- accelerator ---


@pytest.mark.skipif(not shutil.which("gcc"), reason="no assembler here; scripts/test installs one")
def test_the_probe_guest_is_its_source() -> None:
    assert accelerator._assemble() == accelerator._IMAGE


@pytest.mark.skipif(not GUESTS, reason="QEMU is not installed here; scripts/test installs it")
def test_the_probe_guest_runs_where_guests_run(who: Account) -> None:
    # Software emulation runs every guest, so a probe that failed here would say nothing about KVM.
    assert accelerator.probe(who, "tcg") == ("ABCDEF", "")


def test_no_device_means_software_emulation_at_once(
    who: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerator, "probe", lambda *_, **__: pytest.fail("no need to probe"))
    monkeypatch.setattr(accelerator, "cpu_flags", lambda: {"vmx"})
    found = accelerator.verdict(who, device=tmp_path / "kvm")
    assert found.accelerator == "tcg"
    assert "modprobe" in (found.fix or "")
    monkeypatch.setattr(accelerator, "cpu_flags", lambda: {"fpu"})
    found = accelerator.verdict(who, device=tmp_path / "kvm")
    assert (found.accelerator, found.fix) == ("tcg", None)


def test_a_device_without_permission_names_the_group(
    who: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(accelerator, "_may_open", lambda *_: False)
    monkeypatch.setattr(accelerator, "cpu_flags", lambda: {"svm"})
    found = accelerator.verdict(who, device=device)
    assert found.accelerator == "tcg"
    assert f"usermod -aG kvm {who.name}" in (found.fix or "")
    # Where KVM would hardly work anyway, nobody is sent to change groups.
    monkeypatch.setattr(accelerator, "cpu_flags", lambda: {"fpu"})
    assert accelerator.verdict(who, device=device).fix is None


@pytest.mark.parametrize(
    ("letters", "expected", "words"),
    [("ABCDEF", "kvm", "runs guests"), ("AB", "tcg", "an exception"), ("", "tcg", "32-bit code")],
)
def test_the_probe_decides_and_is_remembered(
    elsewhere: Account, monkeypatch: pytest.MonkeyPatch, letters: str, expected: str, words: str
) -> None:
    device = elsewhere.home / "kvm"
    device.touch(mode=0o666)
    device.chmod(0o666)
    runs = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(elsewhere.home / "cache"))
    monkeypatch.setattr(accelerator, "find_program", lambda _: "/bin/sh")

    def probe(*_: object, **__: object) -> tuple[str, str]:
        runs.append(1)
        return letters, "KVM internal error"

    monkeypatch.setattr(accelerator, "probe", probe)
    found = accelerator.verdict(elsewhere, device=device)
    assert (found.accelerator, found.probed) == (expected, True)
    assert words in found.reason
    assert accelerator.verdict(elsewhere, device=device) == found
    assert len(runs) == 1
    # Other permissions, another verdict perhaps.
    device.chmod(0o606)
    accelerator.verdict(elsewhere, device=device)
    assert len(runs) == 2
    # A cache that cannot be read is no cache.
    (elsewhere.cache_dir / "accelerator.json").write_text("{")
    accelerator.verdict(elsewhere, device=device)
    assert len(runs) == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a device node")
@pytest.mark.skipif(not GUESTS or not Path("/dev/kvm").exists(), reason="this host has no /dev/kvm to try")
def test_the_hosts_own_kvm_is_judged_by_running_a_guest(
    elsewhere: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(elsewhere.home / "cache"))
    device = elsewhere.home / "kvm"
    os.mknod(device, stat.S_IFCHR | 0o666, Path("/dev/kvm").stat().st_rdev)
    device.chmod(0o666)
    letters: list[str] = []
    probe = accelerator.probe

    def recorded(*args: Any, **options: Any) -> tuple[str, str]:
        letters.append(probe(*args, **options)[0])
        return letters[-1], ""

    monkeypatch.setattr(accelerator, "probe", recorded)
    found = accelerator.verdict(elsewhere, device=device)
    assert found.probed
    assert letters[0].startswith("AB"), "even a KVM that cannot run guests gets as far as 64-bit mode"
    assert (found.accelerator == "kvm") == (letters[0] == "ABCDEF")


# --- report ---


def test_the_whole_examination_here() -> None:
    report = doctor.examine()
    names = [check.name for check in report.findings]
    assert len(names) == len(set(names))
    assert {"architecture", "QEMU", "libvirt", "accelerator", "memory", "disk", "image builders"} <= set(
        names
    )
    whole = json.loads(json.dumps(report.to_json()))
    assert whole["ok"] == report.ok
    assert report.accelerator in {"kvm", "tcg"}
    # Whoever is told that something is missing is told what to do.
    assert all(check.fix for check in report.findings if check.ok is False)
    assert report.summary in str(report)
    assert "<table" in report._repr_html_()


def test_nothing_installed_is_a_report_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (doctor, accelerator, account):
        monkeypatch.setattr(module, "find_program", lambda _: None)
    report = doctor.examine()
    assert not report.ok
    assert [report[name].ok for name in ("QEMU", "libvirt", "libvirt daemon", "image builders")] == [
        False
    ] * 4
    assert report.accelerator == "tcg"
    assert "Missing: QEMU" in report.summary


@pytest.mark.parametrize(
    ("version", "ok"), [("8.2.2", False), ("9.0.0", True), ("10.0.2", True), ("11.0.50", True)]
)
def test_qemu_must_be_new_enough(monkeypatch: pytest.MonkeyPatch, version: str, ok: bool) -> None:
    monkeypatch.setattr(doctor, "find_program", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(
        doctor, "_ask", lambda *_: f"QEMU emulator version {version} (Debian 1:{version}+dfsg-1)\n"
    )
    check = doctor._qemu()
    assert check.ok is ok
    assert bool(check.fix) is not ok


@pytest.fixture
def ram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say what a host has: MiB available, and the limits of a control group by the names of its files."""

    def say(available: int, **group: str) -> None:
        monkeypatch.setattr(host, "MEMINFO", tmp_path / "meminfo")
        monkeypatch.setattr(host, "GROUP", tmp_path)
        (tmp_path / "meminfo").write_text(f"MemTotal: {8 << 20} kB\nMemAvailable: {available << 10} kB\n")
        for name, text in group.items():
            (tmp_path / f"memory.{name}").write_text(text)

    return say


@pytest.mark.parametrize(("free", "ok"), [(100, False), (800, None), (4000, True)])
def test_memory(ram: Callable[..., None], free: int, ok: bool | None) -> None:
    ram(free)
    assert doctor._memory().ok is ok


def test_a_containers_limit_counts(ram: Callable[..., None]) -> None:
    ram(7800, max=str(1 << 30), current=str(900 << 20))
    assert doctor._memory().ok is False
    assert host.available_memory() == 124 << 20
    # What is only page cache there can be had: for the doctor as for who makes a machine.
    ram(7800, stat=f"active_file {800 << 20}\ninactive_file 0\n")
    assert doctor._memory().ok is None
    assert host.available_memory() == 924 << 20


def test_a_store_in_memory_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DISK_NEEDED", 0)
    monkeypatch.setattr(doctor, "DISK_ADVISED", 0)
    assert doctor._disk(Path(__file__).parent).ok is True
    found = doctor._disk(Path("/dev/shm/vmlab-store"))
    assert found.ok is None
    assert "tmpfs" in found.detail
    assert "VMLAB_HOME" in found.fix


def test_a_report_in_a_terminal_and_in_html_is_plain_and_escaped() -> None:
    report = Report(
        [
            Finding("a", True, "fine"),
            Finding("b", None, "so <so>", "because"),
            Finding("c", False, "gone", fix="x & y"),
        ]
    )
    text = str(report)
    assert "so <so>" in text
    assert "Next: x & y" in text
    assert "Missing: c." in text
    assert "so &lt;so&gt;" in report._repr_html_()
    with pytest.raises(KeyError):
        report["d"]
