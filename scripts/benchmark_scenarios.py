"""Measure scenarios of small guests: up, snapshot, reset, suspend, fork, beside what one would do machine by machine.

Every round takes all in turn. Figures are medians, in milliseconds where nothing else is said.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
import uuid
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from vmlab.hypervisor.domain import versions
from vmlab.lab import Lab
from vmlab.machine import Machine, Snapshot
from vmlab.scenario import Scenario


def wanted(name: str, count: int) -> dict[str, Any]:
    """Return a scenario of so many machines on one network."""
    return {
        "vmlab": 1,
        "name": name,
        "networks": {"lan": {"subnet": "10.203.0.0/24"}},
        "machines": {f"m{n}": {"image": "tiny", "nics": ["lan"]} for n in range(count)},
    }


def took(do: Callable[[], Any]) -> float:
    """Return the milliseconds that something takes."""
    begin = time.monotonic()
    do()
    return (time.monotonic() - begin) * 1000


def pss(machines: list[Machine]) -> float:
    """Return the MiB of RAM that machines take together."""
    return sum(machine.usage(0).memory_pss for machine in machines) / 2**20


def scenario_round(lab: Lab, found: Scenario, figures: dict[str, list[float]]) -> None:
    """Measure what is done to one scenario."""
    count = len(found)

    def note(what: str, value: float) -> None:
        figures.setdefault(f"{what} ({count} machines)", []).append(value)

    state = None

    def take() -> None:
        nonlocal state
        state = found.snapshot()

    note("snapshot, in all", took(take))
    assert state is not None
    note("snapshot, each stands still", state.pause_ms or 0.0)
    note("snapshot, between the first stop and the last", state.skew_ms or 0.0)
    note("reset", took(found.reset))
    note("undo", took(found.undo))
    note("suspend", took(found.suspend))
    note("start from there", took(found.start))
    copies: list[Scenario] = []
    note("one more of it from its start", took(lambda: copies.append(found.fork(snapshot="start"))))
    copies[0].delete()
    state.forget()


def alone_round(lab: Lab, machines: list[Machine], figures: dict[str, list[float]]) -> None:
    """Measure the same on machines that are in no scenario, one after the other."""

    def note(what: str, value: float) -> None:
        figures.setdefault(f"{what} (3 machines, one after the other)", []).append(value)

    snapshots: list[Snapshot] = []
    note("snapshot, in all", took(lambda: snapshots.extend(machine.snapshot() for machine in machines)))
    note("revert", took(lambda: [m.revert(s) for m, s in zip(machines, snapshots, strict=True)]))
    for snapshot in snapshots:
        snapshot.forget()


def memory(lab: Lab, found: Scenario, name: str) -> tuple[float, float]:
    """Return the MiB that eight copies of a scenario take together, and so many machines that booted."""
    copies = found.fork(names=[f"{name}-c{n}" for n in range(8)], snapshot="start")
    time.sleep(3)
    shared = pss([machine for copy in copies for machine in copy])
    for copy in copies:
        copy.delete()
    booted = [lab.create(f"{name}-boot{n}", bake=False, way_out="none") for n in range(2)]
    for machine in booted:
        machine.wait_for_agent(120)
    alone = pss(booted) / len(booted) * len(found) * 8
    for machine in booted:
        machine.delete()
    return shared, alone


def boot_ms(lab: Lab, name: str) -> float:
    """Return the milliseconds that three machines take which boot side by side, until they answer."""
    given = wanted(name, 3)

    def do() -> None:
        made = [
            lab.create(f"{name}-b{n}", bake=False, way_out="none", start=False)
            for n in range(len(given["machines"]))
        ]
        for machine in made:
            machine.start(boot=True)
        for machine in made:
            machine.wait_for_agent(120)

    found = took(do)
    for machine in lab.machines:
        if machine.name.startswith(f"{name}-b"):
            machine.delete()
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", "--rounds", type=int, default=5, help="how often (default: 5)")
    parser.add_argument("--no-memory", action="store_true", help="leave out 24 guests at once")
    args = parser.parse_args()
    lab, name = Lab(), f"bench{uuid.uuid4().hex[:4]}"
    figures: dict[str, list[float]] = {}
    made: list[Scenario] = []
    machines: list[Machine] = []
    try:
        for count in (3, 5):
            given = wanted(f"{name}-{count}", count)
            figures.setdefault(f"up, from nothing ({count} machines)", []).append(
                took(lambda given=given: made.append(lab.up(given)))  # type: ignore[misc]
            )
        machines += [lab.create(f"{name}-a{n}", way_out="none") for n in range(3)]
        for machine in machines:
            machine.revert(machine.snapshot("base"))
        for _ in range(args.rounds):
            for found in made:
                scenario_round(lab, found, figures)
            alone_round(lab, machines, figures)
        figures["boot, until all answer (3 machines)"] = [boot_ms(lab, name)]
        table = Table("what", "median", "least", "most", box=None)
        for what, values in figures.items():
            table.add_row(
                what, f"{statistics.median(values):.1f}", f"{min(values):.1f}", f"{max(values):.1f}"
            )
        console = Console()
        console.print(
            f"QEMU {versions(lab.account)['qemu']}, libvirt {versions(lab.account)['libvirt']}, "
            f"Python {platform.python_version()}, {args.rounds} rounds"
        )
        console.print(table)
        if not args.no_memory:
            shared, alone = memory(lab, made[0], name)
            console.print(
                f"8 copies of 3: {shared:.0f} MiB; 24 that booted would take {alone:.0f}: {shared / alone:.0%}"
            )
    finally:
        for found in made:
            found.delete()
        for machine in machines:
            machine.delete()


if __name__ == "__main__":
    main()
