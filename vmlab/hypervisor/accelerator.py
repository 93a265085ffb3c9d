"""Which accelerator guests really get on this host: KVM, or QEMU's own emulation (TCG).

A ``/dev/kvm`` says little: some hosts have one that starts QEMU and runs the firmware, and then hangs or kills every
ordinary operating system. So a tiny guest is run once under KVM (``accelerator.S`` beside this file: what every 64-bit
system does, in 664 bytes), and the verdict is kept until the host boots again or something that matters changes.

The probe guest was tried on both sides: under the kernel's kvm_amd it runs to its end; under a kvm_pvm host without svm
or vmx, where ordinary kernels hang, it stops at its first exception.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import platform
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from vmlab import private
from vmlab.hypervisor.account import Account, account, find_program
from vmlab.hypervisor.host import boot_id

__all__ = ["QEMU", "Verdict", "best_accelerator", "cpu_flags", "probe", "verdict"]

#: The QEMU that vmlab uses.
QEMU = "qemu-system-x86_64"

#: Seconds of CPU time for the probe guest: 0.2 s under TCG and less under KVM; a KVM that needs more is of no use.
PROBE_TIMEOUT = 10.0
#: Seconds by the clock: a busy host is slow, but its KVM may be as good as any.
PROBE_PATIENCE = 60.0

#: Letters that the probe guest prints, and what each proves.
STEPS = {
    "A": "32-bit code",
    "B": "64-bit mode with page tables",
    "C": "an exception",
    "D": "switching page tables",
    "E": "timer interrupts",
    "F": "system calls from user mode",
}

#: isa-debug-exit turns the value 0x10 into this exit status of QEMU.
_SUCCESS = (0x10 << 1) | 1

# accelerator.S, assembled; tests/unit/test_doctor.py compares the two where an assembler is installed.
_IMAGE = base64.b64decode(
    """
6yJmkAKwrRsAAAEA/k9R5AQAEAAAABAAmAIQAJgCEAAAABAAsEHm6fy/AAAgADHAuQAMAADzq8cFAAAgAAcQIADHBQAQIAAHICAAvwAgIAC4hw
AAALkAAgAAiQcFAAAgAIPHCOL0vwAAGAAxwLkABAAA86u42QEQAGajMAAYAGbHBTIAGAAIAGbHBTQAGAAA7sHoEGajNgAYALjMARAAZqMAAhgA
ZscFAgIYAAgAZscFBAIYAADuwegQZqMGAhgADyDgg8ggDyLguAAAIAAPIti5gAAAwA8yDQEBAAAPMA8gwA0BAACADyLADwEVGAIQAOr4ABAACA
BmuBAAjtiOwI7QSMfEAAAfAGa4KAAPANgPARwlIgIQALBC5unMsEPm6b3oAwAADyDYDyLY/8119rBE5umwEeYgsBHmoLAg5iGwKOahsATmIbAC
5qGwAeYhsAHmobD+5iGw/+ahsDTmQ7Cp5kCwBOZA+/SDPCUsAhAAFHL1sEXm6bmBAADAMcC6CAATAA8w/8G4tAEQADHSDzC5hAAAwLgAAgAADz
C9ECcAALmwARAAQbsCAgAASA8HDwXr/A8B+P/NdAYPAfhIDwewRubpsBDm9PTr/VD/BCUsAhAAsCDmIFhIzw8fRAAAAAAAAAAAAAD//wAAAJqv
AP//AAAAks8A//8AAADyzwD//wAAAPqvAGcAMAIQiQAAAAAAAAAAAAA3AOABEAAAAAAA/w8AABgAAAAAAAAAAAAAAAAAAAAeAAAAAAAAAAAAAA
AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
AAAAAA==
    """
)


@dataclass(frozen=True)
class Verdict:
    """What guests are run with, and why.

    Attributes
    ----------
    accelerator
        ``"kvm"`` or ``"tcg"``.
    reason
        One plain sentence.
    fix
        What to do to get KVM, if anything can be done.
    probed
        Whether the probe guest was run for it.
    """

    accelerator: Literal["kvm", "tcg"]
    reason: str
    fix: str | None = None
    probed: bool = False


def best_accelerator(who: Account | None = None) -> Literal["kvm", "tcg"]:
    """Return ``"kvm"`` if ordinary guests really run under it here, else ``"tcg"``. Fast: see :func:`verdict`."""
    return verdict(who).accelerator


def cpu_flags() -> set[str]:
    """Return the flags of the first CPU in ``/proc/cpuinfo``."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("flags"):
                return set(line.partition(":")[2].split())
    return set()


def verdict(who: Account | None = None, *, device: Path = Path("/dev/kvm"), again: bool = False) -> Verdict:
    """Find out what guests of ``who`` can be run with.

    Answers at once where KVM is out of the question, else from the cache, else by the probe guest (0.2 s; at most
    :data:`PROBE_TIMEOUT`, on a busy host :data:`PROBE_PATIENCE`).

    Parameters
    ----------
    who
        The account that QEMU runs as.
    device
        The KVM device; another one only in tests.
    again
        Do not believe the cache.
    """
    who = who or account()
    virtual = bool(cpu_flags() & {"vmx", "svm"})
    try:
        info = device.stat()
    except OSError:
        if not virtual:
            return Verdict(
                "tcg",
                "the CPU offers no virtualisation (no vmx or svm flag): guests run in software emulation",
            )
        return Verdict(
            "tcg",
            f"{device} is missing: guests run in software emulation",
            fix="sudo modprobe kvm_intel or kvm_amd; if that fails, switch virtualisation on in the firmware",
        )
    if not _may_open(who, device):
        return _forbidden(who, device, info, virtual)
    key = _key(who, device, info)
    if not again and (known := _read_cache(who, key)):
        return known
    found = _judge(who, device, virtual)
    _write_cache(who, key, found)
    return found


def _may_open(who: Account, device: Path) -> bool:
    if not who.is_service:
        return os.access(device, os.R_OK | os.W_OK)
    # Asked as the account itself, because access lists count too.
    return who.run(["/bin/sh", "-c", 'test -r "$1" && test -w "$1"', "sh", device]).returncode == 0


def _forbidden(who: Account, device: Path, info: os.stat_result, virtual: bool) -> Verdict:
    reason = (
        f"{device} exists, but the account '{who.name}' may not open it: guests run in software emulation"
    )
    if not virtual:
        # Group membership would only lead to a KVM that most likely cannot run guests.
        reason += " (the CPU has no vmx or svm flag, so KVM would hardly run ordinary guests anyway)"
        return Verdict("tcg", reason)
    import grp

    group = "kvm"
    with contextlib.suppress(KeyError):
        if info.st_gid and info.st_mode & stat.S_IRGRP and info.st_mode & stat.S_IWGRP:
            group = grp.getgrgid(info.st_gid).gr_name
    then = "" if who.is_service else ", then log in again"
    return Verdict("tcg", reason, fix=f"sudo usermod -aG {group} {who.name}{then}")


def _judge(who: Account, device: Path, virtual: bool) -> Verdict:
    if find_program(QEMU) is None:
        return Verdict("tcg", "QEMU is not installed")
    done, said = probe(who, "kvm", device=device)
    if done == "".join(STEPS):
        return Verdict("kvm", "KVM runs guests (a probe guest ran)", probed=True)
    stopped = next((what for letter, what in STEPS.items() if letter not in done), "the end")
    reason = f"{device} exists but does not run ordinary guests (a probe guest stopped before: {stopped})"
    if not virtual:
        reason += "; the CPU shows no vmx or svm flag"
    if said:
        reason += f"; QEMU said: {said}"
    return Verdict("tcg", reason + ": guests run in software emulation", probed=True)


def probe(who: Account, accelerator: str, *, device: Path = Path("/dev/kvm")) -> tuple[str, str]:
    """Run the probe guest; return the letters it printed (see :data:`STEPS`) and QEMU's first complaint."""
    if accelerator == "kvm" and device != Path("/dev/kvm"):
        accelerator += f",device={device}"
    with who.temporary_folder("vmlab-probe-") as folder:
        image, letters, errors = (folder / name for name in ("probe", "letters", "errors"))
        private.write(image, _IMAGE)
        private.write(letters, b"")
        argv = [
            find_program(QEMU) or QEMU,
            *(
                "-accel",
                accelerator,
                "-machine",
                "pc",
                "-cpu",
                "qemu64",
                "-m",
                "16",
                "-nodefaults",
                "-no-user-config",
            ),
            *("-display", "none", "-no-reboot", "-kernel", str(image), "-debugcon", f"file:{letters}"),
            *("-device", "isa-debug-exit,iobase=0xf4,iosize=1"),
        ]
        status: int | None = None
        with private.create(errors) as log:
            try:
                process = who.popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            except OSError as error:
                return "", str(error)
            status = _wait(process, errors)
        said = errors.read_text(errors="replace")
        text = letters.read_text(encoding="ascii", errors="replace")
    complaint = next((s for s in said.splitlines() if s.strip() and "warning:" not in s), "")
    if status != _SUCCESS and text.endswith("F"):
        text = text[:-1]  # printed everything, but did not end as it should
    return text, complaint


def _wait(process: subprocess.Popen[Any], errors: Path) -> int | None:
    """Wait for the probe guest and return QEMU's exit status, None if it had to be ended."""
    end = time.monotonic() + PROBE_PATIENCE
    while time.monotonic() < end and _cpu_seconds(process.pid) < PROBE_TIMEOUT:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(0.05)
        # QEMU does not end after this, it only stops the guest.
        if b"internal error" in errors.read_bytes():
            break
    process.kill()
    process.wait()
    return None


def _cpu_seconds(pid: int) -> float:
    with contextlib.suppress(OSError):
        # The fields behind the program's name: proc_pid_stat(5), 14 and 15.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _key(who: Account, device: Path, info: os.stat_result) -> dict[str, Any]:
    """Everything that, when it changes, can change the verdict."""
    boot = ""
    with contextlib.suppress(OSError):
        boot = boot_id()
    program = find_program(QEMU)
    return {
        "boot": boot,
        "kernel": platform.release(),
        "qemu": [program, Path(program).stat().st_mtime_ns if program else 0],
        "device": [str(device), info.st_mode, info.st_uid, info.st_gid, info.st_rdev],
        "account": who.uid,
        "probe": len(_IMAGE),
    }


def _read_cache(who: Account, key: dict[str, Any]) -> Verdict | None:
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        kept = json.loads((who.cache_dir / "accelerator.json").read_text(encoding="utf-8"))
        if kept["key"] == key:
            return Verdict(**kept["verdict"])
    return None


def _write_cache(who: Account, key: dict[str, Any], found: Verdict) -> None:
    # A cache that cannot be written costs time, nothing else.
    with contextlib.suppress(OSError):
        who.make_dir(who.cache_dir)
        text = json.dumps({"key": key, "verdict": asdict(found)}, indent=1)
        private.replace(who.cache_dir / "accelerator.json", text)


def _assemble() -> bytes:
    """Assemble ``accelerator.S`` with the GNU tools."""
    source = Path(__file__).with_suffix(".S")
    with tempfile.TemporaryDirectory() as folder:
        part, whole, image = (Path(folder, n) for n in ("probe.o", "probe.elf", "probe.bin"))
        subprocess.run(["gcc", "-c", "-o", part, source], check=True)
        subprocess.run(["ld", "-Ttext=0x100000", "-o", whole, part], check=True)
        subprocess.run(["objcopy", "-O", "binary", "-j", ".text", whole, image], check=True)
        return image.read_bytes()


if __name__ == "__main__":
    if sys.argv[1:] == ["--assemble"]:
        print(textwrap.indent("\n".join(textwrap.wrap(base64.b64encode(_assemble()).decode(), 110)), ""))
    else:
        print(json.dumps(asdict(verdict(again=True)), indent=1))
