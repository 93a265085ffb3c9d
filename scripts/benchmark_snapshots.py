"""Measure snapshot, revert, undo, fork and create on real guests, side by side with virsh's own means.

Two guests of the same hardware, made from the same disk and booted, stand beside each other: one is the lab's, one a
plain domain that virsh works on. Each round measures both, so that a busy host is busy for both. Pauses are the time
between STOP and RESUME by QEMU's own clock, for both. Figures are medians.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from benchmark_floor import Floor
from rich.console import Console
from rich.table import Table

from vmlab.errors import VMLabError
from vmlab.hypervisor import domain_xml
from vmlab.hypervisor.domain import Domain, Event, versions
from vmlab.hypervisor.host import memory_taken
from vmlab.lab import Lab
from vmlab.machine import Machine, Snapshot
from vmlab.machines.identity import settle
from vmlab.store.store import allocated

T = TypeVar("T")
MIB = 1 << 20
FORKS, MORE_FORKS = 8, 16

#: virsh's ways to keep a state: what they are called here, and the options.
TAKE = {
    "external --live": ["--live", "--atomic"],
    "external": ["--atomic"],
    "internal": [],
}
SAVE = {"save": [], "save sparse": ["--image-format", "sparse"]}

#: What is shown: (what, ours, virsh's way, its figure, unit). Figures are found by these names in the JSON file.
ROWS: list[tuple[str, str, str, str, str]] = [
    *[("live snapshot: pause", "snapshot pause", way, f"{way} pause", "ms") for way in TAKE],
    *[("live snapshot: total", "snapshot total", way, f"{way} total", "ms") for way in (*TAKE, *SAVE)],
    ("live snapshot: RAM on disk", "snapshot ram", "external --live", "external --live ram", "MiB"),
    ("live snapshot: RAM on disk", "snapshot ram", "save sparse", "save sparse ram", "MiB"),
    ("live snapshot: disk layer", "snapshot disk", "", "", "MiB"),
    *[("revert", "revert", way, name, "ms") for way, name in (
        ("snapshot-revert, external", "revert external --live"), ("snapshot-revert, internal", "revert internal"),
        ("destroy + restore, RAM only", "back save"), ("the same, sparse", "back save sparse"))],
    ("revert, until the agent answers", "revert answers", "snapshot-revert, external",
     "revert external --live answers", "ms"),
    ("revert without keeping the present", "revert drop", "snapshot-revert, external", "revert external --live", "ms"),
    ("undo", "undo", "", "", "ms"),
    ("create from the ready state", "create", "start (boot)", "boot", "ms"),
    ("fork x1", "fork 1", "start (boot)", "boot", "ms"),
    (f"fork x{FORKS}, all of them", f"fork {FORKS}", "", "", "ms"),
    (f"fork x{MORE_FORKS}, all of them", f"fork {MORE_FORKS}", "", "", "ms"),
    ("fork x1 beside others (--beside)", "fork 1 beside", "", "", "ms"),
    ("first snapshot of a fresh fork", "first snapshot", "external --live", "external --live total", "ms"),
    (f"memory of one of {FORKS} forks (PSS)", "fork pss", "a booted guest", "booted pss", "MiB"),
    (f"memory of one of {FORKS} forks (private, changed)", "fork private", "a booted guest", "booted private", "MiB"),
]  # fmt: skip


#: What is the floor of a figure: the same QEMU, started by hand (``benchmark_floor``).
FLOORS = {name: f"raw {name}" for name in ("fork 1", f"fork {FORKS}", f"fork {MORE_FORKS}", "fork 1 beside")}


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def timed(act: Callable[[], T]) -> tuple[float, T]:
    """Return how many milliseconds something took, and its result."""
    started = time.monotonic()
    result = act()
    return (time.monotonic() - started) * 1000, result


def stopped_ms(events: list[Event]) -> float | None:
    """Return for how long the guest stood still: from each STOP to the RESUME after it."""
    total, since, seen = 0.0, None, False
    for event in events:
        if event.name == "STOP" and since is None:
            since = event.at
        elif event.name == "RESUME" and since is not None:
            total, since, seen = total + event.at - since, None, True
    return total * 1000 if seen else None


def dirty(pid: int | None) -> int:
    """Return the bytes of memory that a process alone has and has written to."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Private_Dirty:"):
                return int(line.split()[1]) << 10
    return 0


class VirshError(Exception):
    """virsh refused; its words."""


class Virsh:
    """A plain domain like a machine of the lab's, on which virsh works."""

    def __init__(self, lab: Lab, like: Machine) -> None:
        self.lab, self.spec = lab, like.spec
        self.name = f"bench-virsh-{uuid.uuid4().hex[:6]}"
        self.folder = lab.account.make_dir(lab.home / "cache" / self.name)
        self.domain = Domain(lab.account, self.name, self.folder / "serial.log")
        base = lab.home / "bases" / self.spec.base
        disks = {}
        for target, file in zip(self.spec.disks, lab.store.base(self.spec.base)["disks"], strict=True):
            disks[target] = self.folder / f"{target}.qcow2"
            argv = [
                "qemu-img",
                "create",
                "-q",
                "-f",
                "qcow2",
                "-F",
                "qcow2",
                "-b",
                base / file,
                disks[target],
            ]
            lab.account.run(argv, check=True)
        wiring = domain_xml.Wiring(
            name=self.name,
            uuid=str(uuid.uuid4()),
            genid=str(uuid.uuid4()),
            mac="52:54:00:be:" + ":".join(f"{b:02x}" for b in os.urandom(2)),
            base=base,
            serial_log=self.folder / "serial.log",
            disks=disks,
        )
        xml = self.folder / "domain.xml"
        xml.write_text(domain_xml.build(self.spec, wiring))
        lab.account.own(xml)
        self("define", xml)

    def __call__(self, verb: str, *words: str | Path) -> str:
        """Run virsh as the account that the lab's guests run as, on the same daemon."""
        named = words if verb in ("define", "restore") else (self.name, *words)
        done = self.lab.account.run(
            ["virsh", "-q", "-c", self.lab.account.uri, verb, *named], capture_output=True, text=True
        )
        if done.returncode:
            raise VirshError(" ".join(done.stderr.split()) or f"virsh {verb} failed")
        return str(done.stdout)

    def disk_files(self) -> list[Path]:
        """Return the files that its disks write to now."""
        return [files[0] for files in domain_xml.disk_chains(self.domain.xml()).values()]

    def watched(self, act: Callable[[], Any]) -> tuple[float, float | None]:
        """Return how long something took, and for how long the guest stood still in it; both in milliseconds."""
        seen = []
        with self.domain.events() as events:
            total, _ = timed(act)
            while (event := events.next(0.05)) is not None:
                seen.append(event)
        return total, stopped_ms(seen)

    def close(self) -> None:
        for verb, *words in (
            ("destroy",),
            *(("snapshot-delete", s, "--metadata") for s in self._snapshots()),
            ("undefine", "--managed-save"),
        ):
            with contextlib.suppress(VirshError):
                self(verb, *words)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _snapshots(self) -> list[str]:
        with contextlib.suppress(VirshError):
            return self("snapshot-list", "--name").split()
        return []


class Bench:
    """One guest size: both guests, and the figures that were measured."""

    def __init__(
        self, lab: Lab, image: str, memory: int, fill: int, rounds: int, boots: int, beside: int
    ) -> None:
        self.lab, self.image, self.memory, self.fill = lab, image, memory, fill
        self.rounds, self.boots, self.beside = rounds, boots, beside
        self.figures: dict[str, list[float]] = defaultdict(list)
        self.failures: dict[str, str] = {}
        self.label = f"{image} {memory} MiB" + (f", {fill} MiB filled" if fill else "")

    def add(self, name: str, value: float | None) -> None:
        if value is not None:
            self.figures[name].append(round(value, 2))

    def new_name(self, stem: str) -> str:
        return f"bench-{stem}-{uuid.uuid4().hex[:6]}"

    def wait_ready(self, domain: Domain) -> None:
        """Wait until a booting guest is as far as its image says it is ready."""
        from vmlab.guest import agent

        ready = self.lab.store.image(self.image)["ready"]
        agent.wait_for_agent(domain, 600)
        end = time.monotonic() + 600
        while not agent.execute(domain, ready["command"], timeout=60).ok:
            if time.monotonic() > end:
                raise TimeoutError(f"{domain.name} did not become ready")
            time.sleep(0.2)

    def run(self) -> None:
        with contextlib.ExitStack() as stack:
            for number in range(self.boots):
                last = number == self.boots - 1
                say(f"{self.label}: booting both ({number + 1} of {self.boots})")
                name = self.new_name("lab")
                took, machine = timed(lambda name=name: self._boot(name))  # type: ignore[misc]
                stack.callback(_gone, machine)
                self.add("boot ours", took)
                virsh = Virsh(self.lab, machine)
                stack.callback(virsh.close)
                took, _ = timed(lambda v=virsh: (v("start"), self.wait_ready(v.domain)))  # type: ignore[misc]
                self.add("boot", took)
                if not last:
                    virsh.close()
                    machine.delete()
            self.fill_memory(machine, virsh)
            # What a guest takes that was booted, before anybody has saved it.
            pid = virsh.domain.pid
            assert pid is not None
            self.add("booted pss", memory_taken(pid)["pss"] / MIB)
            self.add("booted private", dirty(pid) / MIB)
            for number in range(self.rounds):
                say(f"{self.label}: round {number + 1} of {self.rounds}")
                self.round(machine, virsh)
            self.forks(machine)
            self.creates()

    def _boot(self, name: str) -> Machine:
        machine = self.lab.create(name, self.image, memory=self.memory, bake=False, force=True)
        try:
            self.wait_ready(machine._domain())
        except BaseException:
            machine.delete()
            raise
        return machine

    def fill_memory(self, machine: Machine, virsh: Virsh) -> None:
        """Fill part of the RAM with random numbers: an idle guest's memory would be mostly empty."""
        if not self.fill:
            return
        from vmlab.guest import agent

        say(f"{self.label}: filling {self.fill} MiB in both")
        for domain in (machine._domain(), virsh.domain):
            agent.succeed(
                domain,
                "mount -o remount,size=90% /dev/shm",
                f"dd if=/dev/urandom of=/dev/shm/fill bs=1M count={self.fill}",
                timeout=1200,
            )

    # -- one round -------------------------------------------------------------------------------------------

    def round(self, machine: Machine, virsh: Virsh) -> None:
        for way, options in TAKE.items():
            # Ours before each of theirs, so that both meet the host in the same mood.
            snapshot = self.ours(machine)
            with self.noting(way):
                self.theirs(virsh, way, options)
            if way == "external --live":
                self.reverts(machine, snapshot)
            snapshot.forget()
        for way, options in SAVE.items():
            with self.noting(way):
                file = virsh.folder / "saved"
                took, _ = timed(lambda o=options, f=file: virsh("save", f, *o))  # type: ignore[misc]
                self.add(f"{way} ram", allocated(file) / MIB)
                back, _ = timed(lambda f=file: virsh("restore", f))  # type: ignore[misc]
                # To go back with it, the present has to be ended first; that leaves the disk as it is, though.
                again, _ = timed(lambda f=file: (virsh("destroy"), virsh("restore", f)))  # type: ignore[misc]
                file.unlink()
                self.add(f"back {way}", again)
                self.add(f"{way} total", took + back)
                self.add(f"{way} alone", took)
                self.add(f"restore {way}", back)

    @contextlib.contextmanager
    def noting(self, way: str) -> Iterator[None]:
        """Note why a way of virsh's does not work here, and go on."""
        try:
            yield
        except VirshError as error:
            if way not in self.failures:
                say(f"virsh, {way}: {error}")
            self.failures.setdefault(way, str(error))

    def ours(self, machine: Machine) -> Any:
        took, snapshot = timed(machine.snapshot)
        self.add("snapshot total", took)
        self.add("snapshot pause", snapshot.pause_ms)
        self.add("snapshot ram", snapshot.ram_bytes / MIB)
        self.add("snapshot disk", snapshot.disk_bytes / MIB)
        return snapshot

    def reverts(self, machine: Machine, snapshot: Any) -> None:
        started = time.monotonic()
        took, _ = timed(lambda: machine.revert(snapshot))
        self.add("revert", took)
        self.answers("revert", machine._domain(), started)
        took, _ = timed(machine.undo)
        self.add("undo", took)
        took, _ = timed(lambda: machine.revert(snapshot, keep=False))
        self.add("revert drop", took)

    def answers(self, name: str, domain: Domain, started: float) -> None:
        """How long it took until a program in the guest did something: the time that page faults cannot hide in."""
        with contextlib.suppress(VMLabError):
            domain.agent("guest-ping", timeout=30)
            self.add(f"{name} answers", (time.monotonic() - started) * 1000)

    def theirs(self, virsh: Virsh, way: str, options: list[str]) -> None:
        name = f"s{uuid.uuid4().hex[:6]}"
        files = virsh.disk_files()
        before = sum(allocated(file) for file in files)
        memory = virsh.folder / f"{name}.ram"
        words: list[str] = [name, *options]
        if way != "internal":
            words += ["--memspec", f"file={memory},snapshot=external"]
            for target in virsh.spec.disks:
                words += [
                    "--diskspec",
                    f"{target},snapshot=external,file={virsh.folder / f'{target}.{name}'}",
                ]
        total, pause = virsh.watched(lambda: virsh("snapshot-create-as", *words))
        self.add(f"{way} total", total)
        self.add(f"{way} pause", pause)
        if way == "internal":
            self.add(f"{way} ram", (sum(allocated(file) for file in files) - before) / MIB)
        else:
            self.add(f"{way} ram", allocated(memory) / MIB)
        try:
            if way != "external":
                started = time.monotonic()
                took, _ = timed(lambda: virsh("snapshot-revert", name, "--running"))
                self.add(f"revert {way}", took)
                self.answers(f"revert {way}", virsh.domain, started)
        finally:
            # Whole where libvirt can, else only its memory of it: what counts is that the next round is not slower.
            try:
                virsh("snapshot-delete", name)
            except VirshError:
                with contextlib.suppress(VirshError):
                    virsh("snapshot-delete", name, "--metadata")
            memory.unlink(missing_ok=True)
            if not virsh.domain.is_running():
                with contextlib.suppress(VirshError):
                    virsh("resume" if virsh.domain.is_active() else "start")

    # -- forks and creates -----------------------------------------------------------------------------------

    def forks(self, machine: Machine) -> None:
        """Fork, each time beside as many raw QEMUs that take up the same snapshot."""
        snapshot = machine.snapshot()
        (like,) = machine.fork(count=1, snapshot=snapshot, force=True)
        try:
            like.succeed("true")
            floor = Floor(self.lab, like, snapshot)
        finally:
            _gone(like)
        with contextlib.closing(floor):
            for number in range(self.rounds):
                say(f"{self.label}: forks, round {number + 1} of {self.rounds}")
                for count in (1, FORKS, MORE_FORKS):
                    self.fork(machine, snapshot, floor, count, f"fork {count}")
            if self.beside:
                say(f"{self.label}: forks beside {self.beside} others")
                with contextlib.ExitStack() as stack:
                    for other in machine.fork(count=self.beside, snapshot=snapshot, force=True):
                        stack.callback(_gone, other)
                        settle(other.name)
                    for _ in range(self.rounds):
                        self.fork(machine, snapshot, floor, 1, "fork 1 beside")

    def fork(self, machine: Machine, snapshot: Snapshot, floor: Floor, count: int, name: str) -> None:
        """Fork once, and once by hand."""
        raw = floor.prepare(count)
        took, _ = timed(lambda: floor.start(raw))
        floor.end()
        self.add(f"raw {name}", took)
        with contextlib.ExitStack() as stack:
            took, made = timed(lambda: machine.fork(count=count, snapshot=snapshot, force=True))
            for fork in made:
                stack.callback(_gone, fork)
            self.add(name, took)
            if name == "fork 1":
                took, _ = timed(made[0].snapshot)
                self.add("first snapshot", took)
            for fork in made:
                # Each has got its own name and done something.
                fork.succeed("true")
            if count == FORKS:
                pids = [fork.domain.pid for fork in made]
                self.add("fork pss", statistics.mean(memory_taken(pid)["pss"] for pid in pids if pid) / MIB)
                self.add("fork private", statistics.mean(dirty(pid) for pid in pids) / MIB)

    def creates(self) -> None:
        say(f"{self.label}: creating from the ready state, booting once if there is none")
        for number in range(self.rounds + 1):
            name = self.new_name("new")
            started = time.monotonic()
            took, machine = timed(
                lambda name=name: self.lab.create(name, self.image, memory=self.memory, bake=True, force=True)  # type: ignore[misc]
            )
            try:
                # The first may have had to make the ready state.
                if number:
                    self.add("create", took)
                    self.answers("create", machine._domain(), started)
                settle(machine.name)
            finally:
                machine.delete()

    def to_json(self) -> dict[str, Any]:
        medians = {name: statistics.median(values) for name, values in self.figures.items() if values}
        return {
            "guest": self.image,
            "memory": self.memory,
            "filled": self.fill,
            "medians": medians,
            "figures": dict(self.figures),
            "virsh_cannot": self.failures,
        }


def _gone(machine: Machine) -> None:
    with contextlib.suppress(VMLabError):
        machine.delete()


def show(results: list[dict[str, Any]], about: dict[str, Any], console: Console) -> None:
    """Print one table of all medians."""
    table = Table(
        title="vmlab beside virsh, and its floor: medians",
        caption=", ".join(f"{k} {v}" for k, v in about.items()),
    )
    for column, side in (("guest", "left"), ("what", "left"), ("vmlab", "right"), ("virsh", "right"),
                         ("virsh's way", "left"), ("x better", "right"),
                         ("raw QEMU", "right"), ("x raw", "right")):  # fmt: skip
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    for result in results:
        medians = result["medians"]
        guest = f"{result['guest']} {result['memory']} MiB" + (
            f"\n{result['filled']} filled" if result["filled"] else ""
        )
        for what, ours, way, theirs, unit in ROWS:
            if ours not in medians:
                continue
            mine, other = medians[ours], medians.get(theirs)
            said = "-" if other is None else f"{other:.0f} {unit}"
            if other is None and theirs and way.split(",")[-1].strip() in result["virsh_cannot"]:
                said = "fails"
            ratio = f"{other / mine:.1f}" if other and mine else ""
            raw = medians.get(FLOORS.get(ours, ""))
            floor = (f"{raw:.0f} {unit}", f"{mine / raw:.2f}") if raw else ("", "")
            table.add_row(guest, what, f"{mine:.0f} {unit}", said, way, ratio, *floor)
            guest = ""
        table.add_section()
    console.print(table)
    for result in results:
        for way, why in result["virsh_cannot"].items():
            console.print(
                f"virsh cannot: {result['guest']} {result['memory']} MiB, {way}: {why}", style="dim"
            )


def parse_guest(lab: Lab, text: str) -> tuple[str, int, int]:
    image, _, rest = text.partition(":")
    memory, _, fill = rest.partition(":")
    if image not in {i.name for i in lab.images}:
        raise SystemExit(f"bench: there is no image '{image}'")
    return image, int(memory) if memory else lab.image(image).memory, int(fill or 0)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.splitlines()[0])
    parser.add_argument(
        "guests", nargs="*", metavar="IMAGE[:MEMORY[:FILL]]",
        help="what to measure on: an image, its RAM in MiB, how much of it to fill with random numbers "
        "(default: desktop desktop:4096:1024)",
    )  # fmt: skip
    parser.add_argument("-n", "--rounds", type=int, help="how often each thing is measured (default 5)")
    parser.add_argument("--boots", type=int, help="how often both are booted (default 1)")
    parser.add_argument(
        "--beside",
        type=int,
        default=0,
        metavar="N",
        help="also fork while so many other forks run (default 0)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="on the tiny guest, with 128 and 512 MiB: a minute or two"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures there")
    args = parser.parse_args()
    # Both end in the clean-up, also where a shell started this in the background and has Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    lab = Lab()
    wanted = args.guests or (["tiny", "tiny:512:128"] if args.quick else ["desktop", "desktop:4096:1024"])
    guests = [parse_guest(lab, text) for text in wanted]
    found = versions(lab.account)
    about = {
        "QEMU": found["qemu"],
        "libvirt": found["libvirt"],
        "accelerator": lab.hardware(guests[0][0])[0].accelerator,
        "CPUs": os.cpu_count(),
        "kernel": platform.release(),
        "store on": filesystem(lab.home),
        "rounds": args.rounds or (3 if args.quick else 5),
    }
    results = []
    try:
        for image, memory, fill in guests:
            rounds = int(str(about["rounds"]))
            bench = Bench(lab, image, memory, fill, rounds, args.boots or 1, args.beside)
            try:
                bench.run()
            finally:
                if bench.figures:
                    results.append(bench.to_json())
    except KeyboardInterrupt:
        say("interrupted; all its guests are gone")
        return 130
    finally:
        if results:
            show(results, about, Console(width=None if sys.stdout.isatty() else 150))
            if args.json:
                data = {"about": about, "load": os.getloadavg(), "results": results}
                args.json.write_text(json.dumps(data, indent=1) + "\n")
    return 0


def filesystem(path: Path) -> str:
    done = subprocess.run(["stat", "-f", "-c", "%T", path], capture_output=True, text=True)
    return done.stdout.strip() or "?"


if __name__ == "__main__":
    sys.exit(main())
