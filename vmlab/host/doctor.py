"""What this host can do for guests, and what is missing: behind ``vmlab doctor`` and ``Lab.doctor()``.

Everything is tried for real where that is cheap: libvirt's daemon is asked, a probe guest is run for the accelerator, a
dead process is waited for. Nothing here changes the host, but for starting libvirt's daemon and caching the probe's
verdict.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmlab.errors import VMLabError
from vmlab.hypervisor import accelerator, account, host
from vmlab.hypervisor.accelerator import best_accelerator
from vmlab.hypervisor.account import Account, find_program
from vmlab.render import page, units
from vmlab.render.view import View
from vmlab.store.opening import filesystem

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["MIN_LIBVIRT", "MIN_QEMU", "Finding", "Report", "best_accelerator", "examine"]

#: mapped-ram with multifd, which live snapshots are made of, came with QEMU 9.0.
MIN_QEMU = (9, 0)
#: Reverting and merging external snapshots came with libvirt 9.9 and settled in 10.0.
MIN_LIBVIRT = (10, 0)
#: ``mke2fs -d`` reads tar files since then; the guests' disks are made that way.
MIN_E2FSPROGS = (1, 47, 1)

MIB = 1024**2
GIB = 1024**3
#: Free memory below which not even a small guest fits, and below which the desktop guest gets tight.
RAM_NEEDED, RAM_ADVISED = 256 * MIB, 1536 * MIB
#: Free disk below which nothing works, and below which snapshots soon have no room.
DISK_NEEDED, DISK_ADVISED = 1 * GIB, 8 * GIB
#: Room that libvirt's sockets of a guest need below the home folder.
_SOCKET_TAIL = len("/.config/libvirt/qemu/lib/domain-99999-aaaaaaaaaaaaaaaaaaaa/monitor.sock")
#: Seconds after which a PID 1 that has not reaped a dead orphan counts as slow.
_LATE_REAPER = 0.3

#: What nearly always repairs a missing program.
_SETUP = "scripts/lab --setup"


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes
    ----------
    name
        What: one or two words.
    ok
        True: good. None: works, but see ``detail``. False: something needed is missing.
    value
        What was found, in a few words.
    detail
        What that means, if it is not obvious.
    fix
        The next thing to do, if something can be done: a command where possible.
    """

    name: str
    ok: bool | None
    value: str
    detail: str = ""
    fix: str | None = None


class Report(View):
    """What one examination found; shows itself in a terminal and in a notebook.

    Attributes
    ----------
    findings
        In the order of reading.
    accelerator
        What guests are run with: ``"kvm"`` or ``"tcg"``.
    """

    label = "what this host can do"

    def __init__(self, findings: Iterable[Finding], accelerator: str = "tcg") -> None:
        self.findings = list(findings)
        self.accelerator = accelerator

    @property
    def ok(self) -> bool:
        """Whether nothing that is needed is missing."""
        return all(found.ok is not False for found in self.findings)

    @property
    def checks(self) -> list[Finding]:
        """The findings, by the name that they had until vmlab 0.1."""
        return self.findings

    def __getitem__(self, name: str) -> Finding:
        for found in self.findings:
            if found.name == name:
                return found
        raise KeyError(name)

    @property
    def summary(self) -> str:
        """One sentence for all of it."""
        missing = [found.name for found in self.findings if found.ok is False]
        if missing:
            return f"Guests cannot run here yet. Missing: {', '.join(missing)}."
        how = "hardware acceleration (KVM)" if self.accelerator == "kvm" else "software emulation (TCG)"
        return f"Guests run here, with {how}."

    def rich(self) -> RenderableType:
        """Return a line for each finding, and what to do below it."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for found in self.findings:
            mark, style = {True: ("ok", "green"), None: ("note", "yellow"), False: ("MISSING", "bold red")}[
                found.ok
            ]
            text = Text(found.value)
            if found.detail:
                text.append(f"\n{found.detail}", style="bright_black")
            if found.fix:
                text.append(f"\nNext: {found.fix}", style="cyan")
            table.add_row(Text(mark, style=style), Text(found.name, style="bold"), text)
        return Group(table, Text(""), Text(self.summary, style="bold"))

    def body(self) -> str:
        """Return a table."""
        rows = []
        for found in self.findings:
            mark, kind = {True: ("ok", "ok"), None: ("note", "warn"), False: ("missing", "bad")}[found.ok]
            words = page.esc(found.value)
            if found.detail:
                words += f'<div class="dim small">{page.esc(found.detail)}</div>'
            if found.fix:
                words += f'<div class="small">Next: <code>{page.esc(found.fix)}</code></div>'
            state = f'<span class="st {kind}"><span>{mark}</span></span>'
            rows.append(page.row(page.esc(found.name), state, (words, "w")))
        return (
            page.table([("Host", ""), ("", ""), ("", "")], rows)
            + f'<p class="note">{page.esc(self.summary)}</p>'
        )

    def to_json(self) -> dict[str, Any]:
        """Return ``{"ok", "accelerator", "summary", "findings": [{"name", "ok", "value", "detail", "fix"}]}``.

        ``checks`` is what the findings were called until vmlab 0.1.
        """
        findings = [asdict(found) for found in self.findings]
        return {
            "ok": self.ok,
            "accelerator": self.accelerator,
            "summary": self.summary,
            "findings": findings,
            "checks": findings,
        }


def examine(store: Path | None = None, *, again: bool = False) -> Report:
    """Look at this host.

    Parameters
    ----------
    store
        Folder of the lab, if it is not the usual one.
    again
        Run the accelerator's probe guest even if its verdict of this boot is known.

    Returns
    -------
    Report
        ``report.ok`` is False if something needed is missing. Nothing is raised for what is missing.
    """
    try:
        who: Account | None = account.account()
        problem: VMLabError | None = None
    except VMLabError as error:
        who, problem = None, error
    # What waits (for a process, for the daemon) goes on beside the rest.
    with ThreadPoolExecutor(3) as pool:
        reaping = pool.submit(_reaping)
        verdict = (
            pool.submit(accelerator.verdict, who, again=again)
            if who and find_program(accelerator.QEMU)
            else None
        )
        daemon = pool.submit(_daemon, who) if who else None
        findings = [_architecture(), _account(who, problem), _qemu(), _libvirt()]
        if daemon:
            findings.append(_result("libvirt daemon", daemon))
        if verdict:
            findings.append(_accelerator(verdict))
        findings += [_memory(), _disk(store or (who.store if who else Path("/")))]
        findings += [_builders(), *_limits(who), _kernels()]
        findings.append(_result("reaping", reaping))
    name = "tcg"
    if verdict and not verdict.exception():
        name = verdict.result().accelerator
    return Report(findings, name)


def _result(name: str, future: Future[Finding]) -> Finding:
    # An examination that fails itself is a finding, not a crash.
    error = future.exception()
    return (
        Finding(name, None, "could not be examined", f"{type(error).__name__}: {error}")
        if error
        else future.result()
    )


def _version(text: str) -> tuple[int, ...] | None:
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part) for part in found.groups() if part) if found else None


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)


def _ask(*argv: str) -> str:
    """Return what a program prints about itself, "" if it is not there or does not run."""
    path = find_program(argv[0])
    if path is None:
        return ""
    try:
        done = subprocess.run([path, *argv[1:]], capture_output=True, text=True, errors="replace", timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


def _read(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    return ""


def _architecture() -> Finding:
    machine = platform.machine()
    ok = machine == "x86_64"
    return Finding("architecture", ok, machine, "" if ok else "vmlab so far runs only on x86_64 (amd64)")


def _account(who: Account | None, problem: VMLabError | None) -> Finding:
    if who is None:
        message = problem.message if problem else "unknown"
        return Finding("account", False, "none", message, _SETUP)
    if who.is_service:
        return Finding("account", True, who.name, f"we are root; QEMU runs as '{who.name}', home {who.home}")
    return Finding("account", True, who.name)


def _qemu() -> Finding:
    path = find_program(accelerator.QEMU)
    version = _version(_ask(accelerator.QEMU, "--version"))
    least = _dotted(MIN_QEMU)
    if path is None:
        return Finding(
            "QEMU", False, f"{accelerator.QEMU} is not installed", f"needed: {least} or newer", _SETUP
        )
    if version is None:
        return Finding("QEMU", False, f"{path} does not say its version", fix=_SETUP)
    if version < MIN_QEMU:
        return Finding("QEMU", False, _dotted(version), f"too old; needed: {least} or newer", _SETUP)
    return Finding("QEMU", True, f"{_dotted(version)} ({path})")


def _libvirt() -> Finding:
    # Without importing libvirt: that is the hypervisor package's own business, and may fail.
    try:
        binding = importlib.metadata.version("libvirt-python")
    except importlib.metadata.PackageNotFoundError:
        return Finding("libvirt", False, "the Python package libvirt-python is not installed", fix=_SETUP)
    version = _version(_ask("libvirtd", "--version") or _ask("virtqemud", "--version"))
    if version is None:
        return Finding("libvirt", False, "libvirt's daemon (libvirtd) is not installed", fix=_SETUP)
    if version < MIN_LIBVIRT:
        return Finding(
            "libvirt", False, _dotted(version), f"too old; needed: {_dotted(MIN_LIBVIRT)} or newer", _SETUP
        )
    return Finding("libvirt", True, f"{_dotted(version)}, Python binding {binding}")


def _daemon(who: Account) -> Finding:
    name = "libvirt daemon"
    if _libvirt().ok is False:
        return Finding(name, False, "not started, because libvirt is missing", fix=_SETUP)
    try:
        from vmlab.hypervisor.connection import connect

        connection = connect(who)
        machines = len(connection.listAllDomains())
    except VMLabError as error:
        return Finding(name, False, "does not answer", "\n".join(error.lines()[:6]), error.hint)
    except Exception as error:
        # libvirt's own exception class belongs to the hypervisor package.
        return Finding(
            name,
            False,
            "does not answer",
            str(error),
            "vmlab doctor --json, and see the log: " + str(who.log),
        )
    noun = "machine" if machines == 1 else "machines"
    return Finding(name, True, f"answers, {machines} {noun}", who.uri)


def _accelerator(future: Future[accelerator.Verdict]) -> Finding:
    name = "accelerator"
    if error := future.exception():
        return Finding(name, None, "TCG (software emulation)", f"the probe guest could not be run: {error}")
    verdict = future.result()
    if verdict.accelerator == "kvm":
        return Finding(name, True, "KVM", verdict.reason)
    # Everything works without KVM, only slower: a note, not a fault.
    return Finding(name, None, "TCG (software emulation)", verdict.reason, verdict.fix)


def _memory() -> Finding:
    free, total, limited = host.memory()
    detail = "limited by the control group (container)" if limited else ""
    value = f"{units.size(free)} available of {units.size(total)}"
    if free < RAM_NEEDED:
        return Finding(
            "memory", False, value, detail or "too little for any guest", "stop guests or other programs"
        )
    if free < RAM_ADVISED:
        return Finding("memory", None, value, detail or "enough for small guests; tight for the desktop")
    return Finding("memory", True, value, detail)


def _disk(store: Path) -> Finding:
    there = next((p for p in (store, *store.parents) if p.exists()), Path("/"))
    usage = shutil.disk_usage(there)
    value = f"{units.size(usage.free)} free for {store}"
    if usage.free < DISK_NEEDED:
        return Finding(
            "disk",
            False,
            value,
            "too little for images and snapshots",
            "make room, or set VMLAB_HOME elsewhere",
        )
    if usage.free < DISK_ADVISED:
        return Finding("disk", None, value, "a live snapshot of the desktop takes about half a gigabyte")
    if filesystem(there.resolve()) == "tmpfs":
        return Finding(
            "disk",
            None,
            value,
            "it is in memory (tmpfs): all is gone when the host restarts, and when it is full, guests end instead "
            "of waiting for room",
            "set VMLAB_HOME to a folder on a disk",
        )
    return Finding("disk", True, value)


def _builders() -> Finding:
    name = "image builders"
    needs = {"apt-get": "apt", "dpkg-deb": "dpkg", "mke2fs": "e2fsprogs", "qemu-img": "qemu-utils"}
    # The recipes know better; but the examination must also work where they cannot be loaded.
    with contextlib.suppress(Exception):
        from vmlab.images import builtin

        for recipe in builtin().values():
            needs |= recipe.needs
    missing = sorted({package for program, package in needs.items() if find_program(program) is None})
    if missing:
        fix = "sudo apt-get install " + " ".join(missing)
        return Finding(
            name, False, f"not installed: {', '.join(missing)}", "needed to build the built-in images", fix
        )
    version = _version(_ask("mke2fs", "-V"))
    if version is not None and version < MIN_E2FSPROGS:
        least = _dotted(MIN_E2FSPROGS)
        return Finding(
            name, False, f"mke2fs {_dotted(version)}", f"too old to read tar files; needed: {least}", _SETUP
        )
    return Finding(name, True, f"present (mke2fs {_dotted(version)})" if version else "present")


def _limits(who: Account | None) -> list[Finding]:
    """Return what the kernel allows an ordinary user: not needed, but it explains other behaviour."""
    findings = [_tini(), _ptrace(), _userfaultfd(), _cgroups()]
    if who:
        findings.append(_socket_paths(who))
    return findings


def _tini() -> Finding:
    if path := find_program("tini"):
        return Finding("tini", True, path)
    detail = "where PID 1 reaps late, ending a guest takes about two seconds longer without it"
    return Finding("tini", None, "not installed", detail, "sudo apt-get install tini")


def _ptrace() -> Finding:
    scope = _read("/proc/sys/kernel/yama/ptrace_scope")
    words = {
        "": "unrestricted (no Yama)",
        "0": "unrestricted (Yama 0)",
        "1": "children only (Yama 1)",
        "2": "root only (Yama 2)",
        "3": "nobody (Yama 3)",
    }
    return Finding("ptrace", True, words.get(scope, f"Yama {scope}"))


def _userfaultfd() -> Finding:
    if _read("/proc/sys/vm/unprivileged_userfaultfd") == "1" or os.access(
        "/dev/userfaultfd", os.R_OK | os.W_OK
    ):
        if os.geteuid() == 0 and _read("/proc/sys/vm/unprivileged_userfaultfd") != "1":
            return Finding("userfaultfd", True, "root only", "vmlab does not depend on it")
        return Finding("userfaultfd", True, "available to ordinary users")
    return Finding("userfaultfd", True, "not for ordinary users", "vmlab does not depend on it")


def _cgroups() -> Finding:
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        return Finding("control groups", True, "version 2")
    if Path("/sys/fs/cgroup/memory").is_dir():
        return Finding("control groups", True, "version 1")
    return Finding("control groups", True, "none", "session guests are not limited by them anyway")


def _socket_paths(who: Account) -> Finding:
    longest = max(len(os.fsencode(who.home)) + _SOCKET_TAIL, len(os.fsencode(who.socket)))
    left = account.SOCKET_PATH_MAX - longest
    if left < 0:
        return Finding(
            "socket paths",
            False,
            f"{-left} bytes too long",
            f"Linux allows {account.SOCKET_PATH_MAX} bytes, and QEMU's sockets lie below {who.home}",
            "use an account whose home folder has a shorter path",
        )
    return Finding("socket paths", True, f"{left} bytes to spare")


def _kernels() -> Finding:
    """Look whether Jupyter's kernels of ours that run now can be listened to by other accounts."""
    open_ones, count = [], 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            if folder.stat().st_uid != os.geteuid():
                continue
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            # Whatever starts a kernel tells it the file that says how to talk to it.
            file = next((word for word in words if re.search(r"(^|/)kernel[^/]*\.json$", word)), None)
            if file is not None:
                transport = json.loads((folder / "cwd" / file).read_bytes()).get("transport")
                count += 1
                if transport == "tcp":
                    open_ones.append(folder.name)
    if not open_ones:
        return Finding("Jupyter kernels", True, "none talks over TCP" if count else "none runs")
    return Finding(
        "Jupyter kernels",
        None,
        f"{len(open_ones)} of {count} talk over TCP (process {', '.join(open_ones)})",
        "every account of this host can read what their cells print",
        'put c.KernelManager.transport = "ipc" into jupyter_server_config.py (scripts/lab does that), '
        "and restart Jupyter",
    )


def _reaping() -> Finding:
    """Measure how long a dead orphan stays a zombie."""
    done = subprocess.run(
        ["/bin/sh", "-c", "sleep 0.05 >/dev/null 2>&1 & echo $!"], capture_output=True, text=True
    )
    orphan = Path("/proc", done.stdout.strip(), "stat")
    end: float | None = None
    started = time.monotonic()
    while time.monotonic() - started < 4:
        try:
            # The state is the first word behind the name, which may itself hold spaces and brackets.
            state = orphan.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]
        except OSError:
            break
        if state == "Z" and end is None:
            end = time.monotonic()
        time.sleep(0.01)
    late = time.monotonic() - end if end is not None else 0.0
    if late < _LATE_REAPER:
        return Finding("reaping", True, "dead processes are collected at once")
    value = f"PID 1 collects dead processes late ({late:.1f} s)"
    if find_program("tini"):
        return Finding(
            "reaping", True, value, "guests are not concerned: vmlab runs libvirt's daemon under tini"
        )
    return Finding(
        "reaping", None, value, "ending a guest, hence reverting, waits for it", "sudo apt-get install tini"
    )
