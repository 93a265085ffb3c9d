"""The host: its boot, its CPU, its memory, its ports."""

from __future__ import annotations

import contextlib
import platform
import re
import socket
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
#: Our own control group, as a process in it sees it.
GROUP = Path("/sys/fs/cgroup")


def boot_id() -> str:
    """Return the host's boot ID."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def run_of(pid: int) -> str | None:
    """Return what tells a process from all others that ever were, also of its number: "number start"; None if gone."""
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return f"{pid} {fields[19]} {boot_id()}"
    return None


def is_alive(run: str) -> bool:
    """Whether a process that :func:`run_of` told of is still there."""
    pid = run.partition(" ")[0]
    return pid.isdecimal() and run_of(int(pid)) == run


def host_cpu() -> str:
    """Return the host's CPU model, as /proc/cpuinfo names it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def free_port() -> int:
    """Return a TCP port on loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def memory_taken(pid: int, ram: int = 0) -> dict[str, int]:
    """Return the bytes of memory that a process takes: ``{"pss", "private", "shared", "clean", "guest"}``.

    ``pss`` counts a page that N processes share as 1/N, and leaves out ``clean``: pages of files that only this process
    maps and has not changed, which the kernel drops when it likes (a guest's RAM that a comparison has read in its
    snapshot's file). ``private`` is what ending the process would give back. ``guest`` is the part of ``pss`` that lies
    in mappings of exactly ``ram`` bytes: a guest's RAM is mapped in one piece, and nothing else of QEMU has that size.
    """
    sizes: dict[str, int] = {}
    guest = 0
    with contextlib.suppress(OSError):
        sizes = _sizes(Path(f"/proc/{pid}/smaps_rollup").read_text())
        if ram:
            smaps = Path(f"/proc/{pid}/smaps").read_text()
            heads = list(_MAPPING.finditer(smaps))
            for head, after in zip(heads, [*heads[1:], None], strict=True):
                if int(head[2], 16) - int(head[1], 16) == ram:
                    guest += _taken(_sizes(smaps[head.end() : after.start() if after else None]))
    return {
        "pss": _taken(sizes),
        "private": sizes.get("Private_Dirty", 0),
        "shared": sizes.get("Shared_Clean", 0) + sizes.get("Shared_Dirty", 0),
        "clean": sizes.get("Private_Clean", 0),
        "guest": guest,
    }


_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) .*$", re.MULTILINE)


def _sizes(smaps: str) -> dict[str, int]:
    """Return the bytes that the lines of a mapping name."""
    return {key: int(kib) << 10 for key, kib in re.findall(r"^(\w+): +(\d+) kB$", smaps, re.MULTILINE)}


def _taken(sizes: dict[str, int]) -> int:
    return max(sizes.get("Pss", 0) - sizes.get("Private_Clean", 0), 0)


def _number(path: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text())
    return None


def memory() -> tuple[int, int, bool]:
    """Return what RAM there is for programs.

    Returns
    -------
    tuple
        The bytes that they can still take without swapping; the bytes that there are; whether a control group (a
        container) limits them to less than the host has.
    """
    facts = {}
    for line in MEMINFO.read_text().splitlines():
        key, _, rest = line.partition(":")
        facts[key] = int(rest.split()[0]) << 10 if rest.strip().endswith("kB") else 0
    available, total = facts.get("MemAvailable", 0), facts.get("MemTotal", 0)
    limit, used = _number(GROUP / "memory.max"), _number(GROUP / "memory.current")
    if limit is None or used is None:
        return available, total, False
    with contextlib.suppress(OSError):
        for line in (GROUP / "memory.stat").read_text().splitlines():
            # The page cache counts as used there, and is given up when it is needed.
            if line.startswith(("active_file ", "inactive_file ")):
                used -= int(line.split()[1])
    left = max(limit - max(used, 0), 0)
    return (left, limit, True) if left < available else (available, total, False)


def available_memory() -> int:
    """Return the bytes of RAM that programs can still take without swapping, in this control group."""
    return memory()[0]
