"""Measure comparisons: every layer on the desktop guest, beside a full walk of both disks, and beside virt-diff.

A package is installed (unpacked from files of its own, as no network is needed), and ten files are edited. The files
that must be found are known; the figures count only if exactly these are. Figures are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vmlab import throwaway
from vmlab.compare.blocks import Disk
from vmlab.compare.ext4 import Ext4
from vmlab.compare.files import compare_files
from vmlab.compare.partitions import partitions
from vmlab.diff import Side
from vmlab.hypervisor.domain import versions
from vmlab.lab import Lab
from vmlab.machine import Machine
from vmlab.snapshot import Snapshot

#: What stands for a package: that many files in as many folders.
PACKAGE_FILES, PACKAGE_FOLDERS = 120, 12
WORK = f"""
mkdir -p /usr/lib/benchpkg
for d in $(seq {PACKAGE_FOLDERS}); do
  mkdir -p /usr/lib/benchpkg/$d
  for f in $(seq {PACKAGE_FILES // PACKAGE_FOLDERS}); do
    head -c $((f * 700)) /dev/urandom >/usr/lib/benchpkg/$d/file$f
  done
done
n=0
for f in $(find /etc -xdev -type f -size -64k ! -path '/etc/.pwd.lock' | sort | head -n 10); do
  echo "# edited $n" >>"$f" && echo "$f"
  n=$((n + 1))
done
"""


def say(text: str) -> None:
    print(f"... {text}", file=sys.stderr, flush=True)


def timed(act: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    found = act()
    return (time.perf_counter() - started) * 1000, found


def walk(path: Path) -> dict[bytes, tuple[Any, ...]]:
    """Return what a reader that knows nothing of layers has to look at: every inode, every name."""
    disk = Disk(path)
    found: dict[bytes, tuple[Any, ...]] = {}
    for part in partitions(disk):
        if part.kind == "ext":
            volume = Ext4(disk, part.start, part.size)
            for name, inode in volume.walk():
                found[name] = (
                    inode.mode,
                    inode.uid,
                    inode.gid,
                    inode.size,
                    inode.mtime,
                    volume.attributes(inode),
                )
    return found


def full_walk(before: list[Path], after: list[Path]) -> int:
    old, new = walk(before[0]), walk(after[0])
    return sum(old.get(name) != new.get(name) for name in old.keys() | new.keys())


def virt_diff(before: Path, after: Path, folder: Path) -> float | None:
    """Return the seconds that virt-diff takes for the same two disks, or None where it is not installed."""
    if shutil.which("virt-diff") is None:
        return None
    words = ["virt-diff", "--format=qcow2", "-a", str(before), "--format=qcow2", "-A", str(after)]
    env = {**os.environ, "LIBGUESTFS_BACKEND": "direct", "TMPDIR": str(folder)}
    started = time.perf_counter()
    done = subprocess.run(words, capture_output=True, env=env)
    return (time.perf_counter() - started) * 1000 if done.returncode == 0 else None


def measure(lab: Lab, machine: Machine, rounds: int, with_inside: bool) -> dict[str, list[float]]:
    say("preparing: a package of 120 files, ten edited files")
    clean = machine.snapshot("clean")
    edited = machine.script(f"#!/bin/sh\n{WORK}", timeout=300).check().stdout.split()
    work = machine.snapshot("work")
    figures: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        figures.setdefault(name, []).append(value)

    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        forget(lab, clean, work)
        for kept in ("cold", "kept"):
            took, diff = timed(lambda: clean.diff(work).compare())
            add(f"all layers but inside, {kept}", took)
            exact(diff.files, edited)
        forget(lab, clean, work)
        for kept in ("cold", "kept"):
            diff = clean.diff(work)
            took, _ = timed(lambda diff=diff: diff._both(lambda one: one.disks))  # type: ignore[misc]
            add(f"page caches written out, {kept}", took)
        add("files", timed(lambda diff=diff: diff.files)[0])  # type: ignore[misc]
        for layer in ("disk", "ram", "screen"):
            add(layer, timed(lambda layer=layer, diff=diff: diff.part(layer))[0])  # type: ignore[misc]
        add("devices and registers", timed(lambda diff=diff: (diff.registers, diff.devices))[0])  # type: ignore[misc]
        took, side = timed(lambda: Side(lab, machine))
        add("the present, caught", took)
        side.snapshot.close()
        sides = [throwaway.flushed_disks(lab, s._record).paths for s in (clean, work)]
        add("files: overlay-guided", timed(lambda s=sides: compare_files(*s))[0])  # type: ignore[misc]
        add("files: walk of both", timed(lambda s=sides: full_walk(*s))[0])  # type: ignore[misc]
        if with_inside:
            with clean.diff(work) as diff:
                add("inside", timed(lambda diff=diff: diff.part("inside"))[0])  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as name:
        took_virt = virt_diff(sides[0][0], sides[1][0], Path(name))
        if took_virt is not None:
            add("files: virt-diff", took_virt)
    return figures


def forget(lab: Lab, *snapshots: Snapshot) -> None:
    """Delete what was written out of page caches before."""
    for snapshot in snapshots:
        shutil.rmtree(lab.store.compared_folder(snapshot.id), ignore_errors=True)


def exact(files: Any, edited: list[str]) -> None:
    """Refuse figures of a result that is not right."""
    changed = {e.path for e in files.of("changed")}
    added = {
        e.path for e in files.of("added") if e.type == "file" and e.path.startswith("/usr/lib/benchpkg/")
    }
    if not set(edited) <= changed or len(added) != PACKAGE_FILES:
        raise SystemExit(
            f"not exact: {len(added)} of {PACKAGE_FILES} added, missed {sorted(set(edited) - changed)}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench diff", description=__doc__.splitlines()[0])
    parser.add_argument("-n", "--rounds", type=int, default=5, help="how often each is measured (default 5)")
    parser.add_argument("--inside", action="store_true", help="also ask what is inside, which takes long")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures there")
    args = parser.parse_args()
    lab = Lab()
    name = f"bench-diff-{uuid.uuid4().hex[:6]}"
    try:
        figures = measure(lab, lab.create(name, "desktop"), args.rounds, args.inside)
    finally:
        if name in lab:
            lab.machine(name).delete()
    about = {"QEMU": versions(lab.account)["qemu"], "CPUs": os.cpu_count(), "kernel": platform.release()}
    about |= {
        "rounds": args.rounds,
        "MiB of this process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }
    table = Table(title=", ".join(f"{key} {value}" for key, value in about.items()))
    for heading in ("what", "median", "ratio to the guided one"):
        table.add_column(heading)
    median = statistics.median
    guided = median(figures["files: overlay-guided"])
    for what, values in figures.items():
        ratio = f"{median(values) / guided:.1f} x" if what.startswith("files: ") else ""
        table.add_row(what, f"{median(values):.0f} ms", ratio)
    if "files: virt-diff" not in figures:
        table.add_row("files: virt-diff", "not installed", "")
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    if args.json:
        data = {"about": about, "load": os.getloadavg(), "figures": figures}
        args.json.write_text(json.dumps(data, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
