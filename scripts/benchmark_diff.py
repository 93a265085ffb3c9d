"""Measure comparisons: every layer on the desktop guest, beside full walks of both disks, virt-diff, and memcmp.

A package of 120 files is installed with dpkg, and ten files are edited. What that changed is found out by find and
sha256sum inside the guest, in forks of both states: figures count only if the comparison says exactly the same. Figures
are medians; the most memory that a comparison takes is that of a process which does nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib.util
import json
import mmap
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from vmlab.compare.blocks import Disk
from vmlab.compare.ext4 import Ext4
from vmlab.compare.files import FilesDiff, compare_files
from vmlab.compare.partitions import partitions
from vmlab.compare.ram import compare_ram
from vmlab.engine import mapped_ram
from vmlab.guest import agent, transfer
from vmlab.hypervisor.domain import versions
from vmlab.lab import Lab
from vmlab.machine import Machine, Snapshot
from vmlab.machines.throwaway import fork
from vmlab.study.diff import Diff
from vmlab.study.disks import flushed_disks
from vmlab.study.side import Side
from vmlab.study.which import Place

MIB = 1 << 20
PACKAGE_FILES, PACKAGE_FOLDERS, EDITED = 120, 12, 10
#: MiB that a comparison may take.
MOST_MEMORY = 500
EDIT = f"""
dpkg -i /root/bench.deb >&2 && rm /root/bench.deb
find /etc -xdev -type f -size -64k ! -name '.*' | sort | head -n {EDITED} | while read -r file; do
  echo '# edited' >>"$file" && echo "$file"
done
"""
#: Lists every file of the root file system, which stands still meanwhile: name, type, mode, owner, link, SHA-256.
LIST = r"""
fsfreeze -f /
cd /run
find / -xdev -printf '%p\0%y\0%m %U %G\0%l\0' | gzip -1 >bench.find
find / -xdev -type f -print0 | xargs -0 sha256sum -z | gzip -1 >bench.sums
"""
#: Fills a part of the memory of a large guest; and changes a sixteenth of that.
FILL = """
mkdir -p /run/fill && mount -t tmpfs -o size=90% none /run/fill
dd if=/dev/urandom of=/run/fill/0 bs=1M count=16
for n in $(seq 1 63); do cat /run/fill/0 >/run/fill/$n; done
"""
CHANGE = "for n in 1 2 3 4; do dd if=/dev/urandom of=/run/fill/$n bs=1M count=16; done"
#: What a process does that only compares.
CHILD = """
import json, sys
from pathlib import Path
from vmlab.lab import Lab
with Lab().diff(*sys.argv[1:]) as diff:
    parts = diff.compare().parts.values()
    said = {part.name: {"outcome": part.outcome, "why": part.why, "ms": part.seconds * 1000} for part in parts}
    status = Path("/proc/self/status").read_text()
    print(json.dumps({"peak": int(status.partition("VmHWM:")[2].split()[0]) / 1024, "parts": said}))
"""


class Row(NamedTuple):
    """A figure that is shown: its name in the JSON file, and what it should be at most, or how many times faster."""

    name: str
    most: float | None = None
    unit: str = "ms"


FILES, GUIDED = "files, cold", "files: overlay-guided"
ROWS = [
    Row("all layers but inside, cold", 2000),
    Row("all layers but inside, kept"),
    Row(FILES, 1000),
    Row("files, kept"),
    Row("page caches written out, cold"),
    Row("disk"),
    Row("ram"),
    Row("screen"),
    Row("devices and registers", 100),
    Row("the present, caught"),
    Row("inside"),
    Row("most memory", MOST_MEMORY, "MiB"),
    Row("large guest: ram"),
    Row("large guest: all layers but inside"),
    Row("large guest: most memory", MOST_MEMORY, "MiB"),
]
#: Others' ways to tell which files differ, given both disks; and how many times faster ours should be, all told.
WALKS = {"files: walk, vmlab's reader": None, "files: walk, dissect.extfs": 5, "files: virt-diff": 50}


def say(text: str) -> None:
    print(f"... {text}", file=sys.stderr, flush=True)


def timed(act: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    found = act()
    return (time.perf_counter() - started) * 1000, found


# -- the work, and what it changed -----------------------------------------------------------------------------------


def package(folder: Path) -> Path:
    """Build a Debian package with files of its own."""
    dice = random.Random(1)
    root = folder / "root"
    for number in range(PACKAGE_FILES):
        path = root / "usr/lib/benchpkg" / f"{number % PACKAGE_FOLDERS}" / f"file{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dice.randbytes(700 * (1 + number // PACKAGE_FOLDERS)))
    control = root / "DEBIAN" / "control"
    control.parent.mkdir()
    words = {
        "Package": "benchpkg",
        "Version": "1.0",
        "Architecture": "all",
        "Maintainer": "nobody <nobody@localhost>",
    }
    control.write_text(
        "".join(f"{k}: {v}\n" for k, v in words.items()) + "Description: files for a benchmark\n"
    )
    made = folder / "bench.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", root, made], check=True, capture_output=True)
    return made


def listed(lab: Lab, snapshot: Snapshot) -> dict[str, tuple[str, ...]]:
    """Return what find and sha256sum say in a fork of a snapshot: type, metadata, link and hash by path."""
    with fork(lab.store, snapshot._record, "list its files") as (_, domain):
        agent.script(domain, f"#!/bin/sh\nset -e\n{LIST}", timeout=600).check()
        parts = [
            gunzip(transfer.read_bytes(domain, f"/run/bench.{name}"))
            .decode(errors="surrogateescape")
            .split("\0")
            for name in ("find", "sums")
        ]
    sums = {line[66:]: line[:64] for line in parts[1] if line}
    rows = zip(*[iter(parts[0])] * 4, strict=False)
    return {path: (kind, sums.get(path, ""), link, meta) for path, kind, meta, link in rows}


def gunzip(data: bytes) -> bytes:
    import gzip

    return gzip.decompress(data)


class Truth:
    """Which paths were added, removed, changed in content, and changed in mode or owner only."""

    def __init__(self, before: dict[str, tuple[str, ...]], after: dict[str, tuple[str, ...]]) -> None:
        self.before, self.after = before, after
        both = before.keys() & after.keys()
        self.sets = {
            "added": after.keys() - before.keys(),
            "removed": before.keys() - after.keys(),
            "changed": {path for path in both if before[path][:2] != after[path][:2]},
        }
        self.sets["metadata"] = {path for path in both - self.sets["changed"] if before[path] != after[path]}

    def wrong(self, files: FilesDiff, noise: set[str]) -> list[str]:
        """Return where a comparison says something else, apart from what changes by itself."""
        ours: dict[str, set[str]] = {kind: set() for kind in self.sets}
        for entry in files:
            if entry.kind in ours:
                ours[entry.kind].add(entry.path)
            elif entry.kind == "renamed":
                assert entry.old_path is not None
                if entry.old_path not in self.after:
                    ours["removed"].add(entry.old_path)
                if entry.path not in self.before:
                    ours["added"].add(entry.path)
                elif entry.path in self.sets["changed"]:
                    ours["changed"].add(entry.path)
        return sorted(
            f"{path}: {'not ' if path in self.sets[kind] else 'wrongly '}found as {kind}"
            for kind in ours
            for path in (ours[kind] ^ self.sets[kind]) - noise
        )

    def check(self, diff: Diff) -> None:
        """Refuse figures of a result that is not exact."""
        if wrong := self.wrong(diff.files, noisy(diff)):
            raise SystemExit("not exact:\n" + "\n".join(wrong[:20]))


def noisy(diff: Diff) -> set[str]:
    return {path for _, path, _ in diff.noise}


def prepare(lab: Lab, machine: Machine) -> tuple[Snapshot, Snapshot, Truth]:
    say(f"preparing: a package of {PACKAGE_FILES} files, {EDITED} edited files")
    with tempfile.TemporaryDirectory() as name:
        transfer.put(machine.domain, package(Path(name)), "/root/bench.deb")
        clean = machine.snapshot("clean")
        edited = machine.script(f"#!/bin/sh\nset -e\n{EDIT}", timeout=300).check().stdout.split()
        work = machine.snapshot("work")
    say("asking the guest itself what that changed (find, sha256sum)")
    truth = Truth(listed(lab, clean), listed(lab, work))
    installed = {path for path in truth.sets["added"] if truth.after[path][0] == "f" and "/benchpkg/" in path}
    if len(installed) != PACKAGE_FILES or len(edited) != EDITED or not set(edited) <= truth.sets["changed"]:
        raise SystemExit(f"the work was not done: {len(installed)} installed, {edited} edited")
    sizes = ", ".join(f"{len(found)} {kind}" for kind, found in truth.sets.items())
    say(f"of {len(truth.after)} files: {sizes}")
    return clean, work, truth


# -- others' ways ----------------------------------------------------------------------------------------------------


def walk(path: Path) -> dict[bytes, tuple[Any, ...]]:
    """Return what a reader that knows nothing of layers has to look at: every inode, every name."""
    disk = Disk(path)
    found: dict[bytes, tuple[Any, ...]] = {}
    for part in partitions(disk):
        if part.kind == "ext":
            volume = Ext4(disk, part.start, part.size)
            for name, inode in volume.walk():
                attributes = volume.attributes(inode)
                found[name] = (inode.mode, inode.uid, inode.gid, inode.size, inode.mtime, attributes)
    return found


def dissect_walk(path: Path) -> dict[str, tuple[Any, ...]]:
    """Do the same with a library."""
    from dissect.extfs import ExtFS  # type: ignore[import-not-found,unused-ignore]
    from dissect.hypervisor.disk.qcow2 import QCow2  # type: ignore[import-not-found,unused-ignore]

    argv = ["qemu-img", "info", "-U", "--backing-chain", "--output=json", str(path)]
    chain = json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)
    below = None
    for layer in reversed(chain):
        image = (
            QCow2(Path(layer["filename"]), backing_file=below) if below else QCow2(Path(layer["filename"]))
        )
        below = image.open()
    found: dict[str, tuple[Any, ...]] = {}
    todo = [("", ExtFS(below).get("/"))]
    while todo:
        above, folder = todo.pop()
        for node in folder.iterdir():
            if node.filename not in (".", ".."):
                name, raw = f"{above}/{node.filename}", node.inode
                attributes = [(each.name, each.value) for each in node.xattr]
                found[name] = (raw.i_mode, raw.i_uid, raw.i_gid, node.size, node.mtime_ns, attributes)
                if node.filetype == 0o040000:
                    todo.append((name, node))
    return found


def full_walk(look: Callable[[Path], dict[Any, Any]], before: list[Path], after: list[Path]) -> int:
    old, new = look(before[0]), look(after[0])
    return sum(old.get(name) != new.get(name) for name in old.keys() | new.keys())


def virt_diff(before: Path, after: Path, folder: Path) -> float | None:
    """Return the milliseconds that virt-diff takes for the same two disks, or None where it is not installed."""
    if shutil.which("virt-diff") is None:
        return None
    words = ["virt-diff", "--format=qcow2", "-a", str(before), "--format=qcow2", "-A", str(after)]
    env = {**os.environ, "LIBGUESTFS_BACKEND": "direct", "TMPDIR": str(folder)}
    started = time.perf_counter()
    done = subprocess.run(words, capture_output=True, env=env)
    return (time.perf_counter() - started) * 1000 if done.returncode == 0 else None


_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[int]:
    """Map a file, and give its address."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as area:
        view = np.frombuffer(area, np.uint8)
        yield view.ctypes.data
        del view


def plain_memcmp(first: Path, second: Path) -> int:
    """Compare the populated bytes of a RAM file with those of its copy, and return how many these are.

    With its copy, because memcmp stops at the first difference: so it has to go through all of them.
    """
    layout = mapped_ram.parse(first)
    with first.open("rb") as file:
        held = mapped_ram.read_bitmap(file.fileno(), layout.main)
    edges = np.flatnonzero(np.diff(held.view(np.int8), prepend=0, append=0)) * mapped_ram.PAGE
    with mapped(first) as one, mapped(second) as other:
        for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            at = layout.main.pages_offset + start
            if _memcmp(one + at, other + at, end - start):
                raise SystemExit("a RAM file and its copy differ")
    return int(held.sum()) * mapped_ram.PAGE


def memcmp_rounds(
    add: Callable[[str, float], None], before: Side, after: Side, rounds: int, title: str
) -> None:
    """Measure the comparison of RAM and memcmp in turns: wall clock and CPU time, as MiB of each side a second.

    All that is populated is compared here, as if nothing were known of what the two have in common.
    """
    assert before.state.ram is not None
    states = [replace(side.state, snapshot="", origins=()) for side in (before, after)]
    with tempfile.TemporaryDirectory(dir=before._store.home / "cache") as name:
        copy = Path(name) / "ram"
        subprocess.run(["cp", "--sparse=always", before.state.ram, copy], check=True)
        ways: dict[str, Callable[[], int]] = {
            "ours": lambda: compare_ram(*states).read,
            "memcmp": lambda: plain_memcmp(before.state.ram, copy),  # type: ignore[arg-type]
        }
        for way in ways.values():
            # The page cache is warm for all.
            way()
        for _ in range(rounds):
            for who, way in ways.items():
                wall, cpu = time.perf_counter(), time.process_time()
                size = way() / MIB
                add(f"{title}: {who}, wall", size / (time.perf_counter() - wall))
                add(f"{title}: {who}, CPU", size / (time.process_time() - cpu))


# -- measuring -------------------------------------------------------------------------------------------------------


class Figures(dict[str, list[float]]):
    """Figures by name."""

    def add(self, name: str, value: float) -> None:
        self.setdefault(name, []).append(value)

    def time(self, name: str, act: Callable[[], Any]) -> Any:
        took, found = timed(act)
        self.add(name, took)
        return found


def measure(lab: Lab, machine: Machine, figures: Figures, rounds: int, with_inside: bool) -> None:
    clean, work, truth = prepare(lab, machine)
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for layers, name in (((), "all layers but inside"), (("files",), "files")):
            forget(lab, clean, work)
            for kept in ("cold", "kept"):
                diff = clean.diff(work)
                figures.time(f"{name}, {kept}", partial(diff.compare, *layers))
                truth.check(diff)
        forget(lab, clean, work)
        diff = clean.diff(work)
        figures.time("page caches written out, cold", partial(diff._both, Side.flush))
        diff._wait()
        for layer in ("disk", "ram", "screen"):
            figures.time(layer, partial(diff.part, layer))
        figures.time("devices and registers", partial(both_small, diff))
        figures.time(
            "the present, caught", lambda: Side(lab.store, Place(machine=machine.name))
        ).present.close()
        sides = [flushed_disks(lab.store, snapshot._record).paths for snapshot in (clean, work)]
        figures.time(GUIDED, partial(compare_files, sides[0], sides[1]))
        ours, dissect = list(WALKS)[:2]
        figures.time(ours, partial(full_walk, walk, sides[0], sides[1]))
        if all(importlib.util.find_spec(name) for name in ("dissect", "dissect.extfs", "dissect.hypervisor")):
            figures.time(dissect, partial(full_walk, dissect_walk, sides[0], sides[1]))
        if with_inside:
            with clean.diff(work) as diff:
                figures.time("inside", partial(diff.part, "inside"))
    forget(lab, clean, work)
    figures.add("most memory", alone(machine.name, clean, work)["peak"])
    memcmp_rounds(
        figures.add, Side(lab.store, Place(clean.id)), Side(lab.store, Place(work.id)), rounds, "ram"
    )
    with tempfile.TemporaryDirectory() as folder:
        took = virt_diff(sides[0][0], sides[1][0], Path(folder))
        if took is not None:
            figures.add("files: virt-diff", took)


def measure_large(lab: Lab, machine: Machine, figures: Figures, rounds: int) -> None:
    """Measure a guest with much RAM, 1 GiB of it filled."""
    say(f"filling 1 GiB of a guest with {machine.memory} MiB")
    machine.script(f"#!/bin/sh\nset -e\n{FILL}", timeout=900).check()
    before = machine.snapshot("filled")
    machine.script(f"#!/bin/sh\nset -e\n{CHANGE}", timeout=900).check()
    after = machine.snapshot("changed")
    for number in range(rounds):
        say(f"large guest, round {number + 1} of {rounds}")
        forget(lab, before, after)
        figures.time("large guest: all layers but inside", lambda: before.diff(after).compare())
        ram = figures.time("large guest: ram", lambda: before.diff(after).ram)
    if ram.populated[0] * mapped_ram.PAGE < 1 << 30 or ram.pages * mapped_ram.PAGE < 64 * MIB:
        raise SystemExit(f"the large guest was not filled: {ram}")
    forget(lab, before, after)
    figures.add("large guest: most memory", alone(machine.name, before, after)["peak"])
    memcmp_rounds(figures.add, Side(lab, before), Side(lab, after), rounds, "large guest: ram")


def alone(machine: str, before: Snapshot, after: Snapshot) -> dict[str, Any]:
    """Compare two snapshots in a process that does nothing else, and return the MiB that it took."""
    argv = [sys.executable, "-c", CHILD, f"{machine}@{before.name}", f"{machine}@{after.name}"]
    found: dict[str, Any] = json.loads(subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout)
    failed = [part for part in found["parts"].values() if part["outcome"] == "failed"]
    if failed:
        raise SystemExit(f"not compared: {failed}")
    return found


def both_small(diff: Diff) -> None:
    diff.part("registers")
    diff.part("devices")


def forget(lab: Lab, *snapshots: Snapshot) -> None:
    """Delete what was written out of page caches before."""
    for snapshot in snapshots:
        shutil.rmtree(lab.store.compared_folder(snapshot.id), ignore_errors=True)


# -- showing ---------------------------------------------------------------------------------------------------------


def show(figures: Figures, about: dict[str, Any]) -> None:
    table = Table(title=", ".join(f"{key} {value}" for key, value in about.items()))
    for heading in ("what", "median", "target", "reached"):
        table.add_column(heading)
    middle = {name: statistics.median(values) for name, values in figures.items()}

    def reached(fine: bool) -> str:
        return "yes" if fine else "NO"

    for name, most, unit in ROWS:
        if name in middle:
            target = (f"at most {most:.0f} {unit}", reached(middle[name] <= most)) if most else ("", "")
            table.add_row(name, f"{middle[name]:.0f} {unit}", *target)
    table.add_row(GUIDED, f"{middle[GUIDED]:.0f} ms")
    for name, times in WALKS.items():
        if name not in middle:
            table.add_row(name, "not installed")
            continue
        found = f"{middle[name] / middle[GUIDED]:.1f} x guided, {middle[name] / middle[FILES]:.1f} x cold"
        fine = reached(middle[name] >= times * middle[GUIDED]) if times else ""
        table.add_row(
            f"{name}", f"{middle[name]:.0f} ms ({found})", f"{times} x guided" if times else "", fine
        )
    for title in ("ram", "large guest: ram"):
        for clock in ("wall", "CPU"):
            ours, plain = (middle.get(f"{title}: {who}, {clock}") for who in ("ours", "memcmp"))
            if ours and plain:
                speed = f"{ours / plain:.2f} x ({ours:,.0f} against {plain:,.0f} MiB/s)"
                fine = reached(ours >= plain / 2)
                table.add_row(
                    f"{title}, all of it: speed beside memcmp's, {clock} time", speed, "0.5 x", fine
                )
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench diff", description=__doc__.splitlines()[0])
    parser.add_argument("-n", "--rounds", type=int, default=5, help="how often each is measured (default 5)")
    parser.add_argument("--inside", action="store_true", help="also ask what is inside, which takes long")
    parser.add_argument(
        "--memory", metavar="MIB", type=int, help="also a guest with this much RAM, 1 GiB of it filled (4096)"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures there")
    args = parser.parse_args()
    lab = Lab()
    stem = f"bench-diff-{uuid.uuid4().hex[:6]}"
    figures = Figures()
    try:
        measure(lab, lab.create(stem, "desktop"), figures, args.rounds, args.inside)
        if args.memory:
            lab.machine(stem).delete()
            large = lab.create(f"{stem}-large", "tiny", memory=args.memory, bake=False)
            large.wait_for_agent()
            measure_large(lab, large, figures, args.rounds)
    finally:
        for name in (stem, f"{stem}-large"):
            if name in lab:
                lab.machine(name).delete()
    about = {"QEMU": versions(lab.account)["qemu"], "CPUs": os.cpu_count(), "kernel": platform.release()}
    about |= {"rounds": args.rounds, "load": f"{os.getloadavg()[0]:.1f}"}
    show(figures, about)
    if args.json:
        args.json.write_text(json.dumps({"about": about, "figures": figures}, indent=1) + "\n")
    memory = {name: values[-1] for name, values in figures.items() if name.endswith("most memory")}
    if any(value > MOST_MEMORY for value in memory.values()):
        print(f"a comparison took more than {MOST_MEMORY} MiB: {memory}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
