"""Bad days: what is killed, full, damaged, gone or silent gives a plain sentence, loses nothing, and leaves the machine usable.

All of it happens in a lab of its own, with its own libvirt daemon, so that it can be damaged and killed at will.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bad_lab import chain_is_sound, copy_image, halves, mark, marks
from saboteur import Saboteur, end_daemon, kill, own_lab

from vmlab.engine import mapped_ram
from vmlab.errors import (
    AgentError,
    AgentTimeout,
    Busy,
    HypervisorError,
    ImageMissing,
    NoSpace,
    NotFound,
    SnapshotDamaged,
    SnapshotIncompatible,
    VMLabError,
    WrongState,
)
from vmlab.lab import Lab
from vmlab.machine import Machine
from vmlab.store.records import write_json


# -- killed in the middle ----------------------------------------------------------------------------------------------


def each_step(
    saboteur: Saboteur, verb: str, machine: str = "", argument: str | None = None, **more: Any
) -> Iterator[dict[str, Any]]:
    """Do something again and again, with the process killed before its first step, its second ... until it gets through.

    Yields what became of it: where it was killed, or with another ``victim``, how it ended. ``{}`` in the words stands
    for the number of the step.
    """
    for step in range(1, 200):
        wanted = argument.format(step) if argument else None
        report = saboteur.run(verb, machine.format(step), wanted, step=step, **more)
        if not report["at"]:
            assert "error" not in report, report
            return
        report["step"] = step
        yield report
    raise AssertionError("it never came to its end")


def test_the_process_is_killed_anywhere_in_a_snapshot(saboteur: Saboteur, box: Machine) -> None:
    mark(box, "second")
    for where in each_step(saboteur, "snapshot", box.name, "half-{}"):
        box.start()
        assert box.state == "running", where
        assert marks(box) == "second second", where
        for snapshot in box.snapshots[1:]:
            # Whole or not at all.
            assert snapshot.verify().ok, where
            snapshot.forget()
    box.revert("good")
    assert marks(box) == "first first"


def test_the_process_is_killed_anywhere_in_a_revert(saboteur: Saboteur, box: Machine) -> None:
    mark(box, "second")
    for where in each_step(saboteur, "revert", box.name, "good"):
        if box.state == "running":
            # Nobody has noticed: what is done from here on must not be lost by what comes next.
            found = marks(box)
            mark(box, "worked")
            box.start()
            assert marks(box) == "worked worked", where
        else:
            box.start()
            found = marks(box)
        assert found in ("first first", "second second"), where
        if found == "first first":
            box.undo()
            assert marks(box) == "second second", where
        mark(box, "second")
    assert marks(box) == "first first"
    box.undo()
    assert marks(box) == "second second"


def test_the_process_is_killed_anywhere_in_an_offline_snapshot(saboteur: Saboteur, ours: Lab) -> None:
    with ours.create(f"off-{uuid.uuid4().hex[:6]}", "tiny", start=False) as off:
        for where in each_step(saboteur, "snapshot", off.name, "half-{}"):
            frozen = {layer for snapshot in off.snapshots for layer in snapshot._record.layers.values()}
            # The machine never writes to the disk of a snapshot.
            assert not frozen & set(off._record.layers.values()), where
        assert len(off.snapshots) >= 1
        off.revert(off.snapshots[0])
        assert chain_is_sound(off)


@pytest.mark.parametrize("verb", ["fork", "rename"])
def test_the_process_is_killed_anywhere_in(verb: str, saboteur: Saboteur, ours: Lab, box: Machine) -> None:
    """A machine comes to be, or to its new name, as a whole; the original goes on."""
    mark(box, "second")
    name, new = box.name, f"{verb}{uuid.uuid4().hex[:4]}-"
    try:
        for where in each_step(saboteur, verb, name, new + "{}"):
            here = new + str(where["step"])
            if here in ours:
                assert ours.machine(here).start().state == "running", where
                assert marks(ours.machine(here)) == "second second", where
                if verb == "rename":
                    ours.machine(here).rename(name)
                else:
                    ours.machine(here).delete()
            box = ours.machine(name)
            assert box.start().state == "running", where
            assert marks(box) == "second second", where
            assert box.find("good"), where
    finally:
        for machine in ours.machines:
            if machine.name.startswith(new):
                machine.delete()


def test_the_process_is_killed_anywhere_in_create_and_delete(saboteur: Saboteur, ours: Lab) -> None:
    stem = f"new{uuid.uuid4().hex[:4]}-"
    for where in each_step(saboteur, "create", stem + "{}", "tiny"):
        if (name := stem + str(where["step"])) in ours:
            assert ours.machine(name).start().succeed("echo up") == "up\n", where
    made = [machine for machine in ours.machines if machine.name.startswith(stem)]
    assert made
    for machine in made[1:]:
        machine.delete()
    for where in each_step(saboteur, "delete", made[0].name):
        with contextlib.suppress(NotFound):
            ours.machine(made[0].name)
            continue
        # It is gone as a whole; for the rest of the steps another one.
        made[0] = ours.create(made[0].name, "tiny")
        assert made[0].state == "running", where
    assert made[0].name not in ours


def test_what_a_killed_process_made_for_a_moment_is_swept(saboteur: Saboteur, ours: Lab, box: Machine) -> None:
    for step in (8, 12):
        assert saboteur.run("verify", box.name, "good", step=step)["died"]
    left = [m.name for m in ours.machines if m.name.startswith("verify-")]
    assert left
    ours.collect()
    assert not [m.name for m in ours.machines if m.name.startswith("verify-")]
    assert not list((ours.home / "cache").glob("verify-*"))
    assert box.find("good").verify().ok


def test_an_interrupt_anywhere_in_a_snapshot(saboteur: Saboteur, ours: Lab, box: Machine) -> None:
    mark(box, "second")
    for where in each_step(saboteur, "snapshot", box.name, "half-{}", victim="interrupt"):
        # The guest runs without anybody's help.
        assert box.state == "running", where
        assert marks(box) == "second second", where
        assert all(s.verify().ok for s in box.snapshots[1:]), where
        for snapshot in box.snapshots[1:]:
            snapshot.forget()
        assert not halves(ours.store), where


def test_an_interrupt_anywhere_in_a_revert(saboteur: Saboteur, box: Machine) -> None:
    mark(box, "second")
    for where in each_step(saboteur, "revert", box.name, "good", victim="interrupt"):
        assert box.state == "running", where
        if marks(box) == "first first":
            box.undo()
        assert marks(box) == "second second", where


def test_qemu_is_killed_anywhere_in_a_snapshot(saboteur: Saboteur, ours: Lab, box: Machine) -> None:
    good = box.find("good")
    for where in each_step(saboteur, "snapshot", box.name, "half-{}", victim="qemu"):
        if "error" in where:
            assert where["kind"] == "HypervisorError", where
            assert "ended while" in where["error"], where
            assert "Next:" in where["error"], where
        for snapshot in box.snapshots[1:]:
            assert snapshot.verify().ok, where
            snapshot.forget()
        assert not halves(ours.store), where
        assert box.state == "off", where
        assert chain_is_sound(box), where
        box.revert(good)
        assert marks(box) == "first first", where


def test_qemu_is_killed_anywhere_in_a_revert(saboteur: Saboteur, ours: Lab, box: Machine) -> None:
    mark(box, "second")
    ready = box.snapshot("ready")
    for where in each_step(saboteur, "revert", box.name, "good", victim="qemu"):
        if "error" in where:
            assert where["kind"] in ("HypervisorError", "WrongState"), where
            assert "Next:" in where["error"], where
        assert not halves(ours.store), where
        if box.state == "running":
            assert marks(box) in ("first first", "second second"), where
        box.revert(ready)
        assert marks(box) == "second second", where


def test_what_was_on_the_disk_is_there_after_qemu_was_killed(box: Machine) -> None:
    mark(box, "second")
    kill(box.domain.pid)
    assert box.state == "off"
    with pytest.raises(WrongState, match="is not running"):
        box.execute("true")
    box.start()
    box.wait_for_agent()
    assert box.succeed("cat /root/mark") == "second\n"


# -- libvirtd ----------------------------------------------------------------------------------------------------------


def test_libvirtd_is_restarted(ours: Lab, box: Machine) -> None:
    mark(box, "second")
    end_daemon(ours)
    assert box.state == "running"
    assert marks(box) == "second second"
    end_daemon(ours)
    assert {m.name: m.state for m in ours}[box.name] == "running"
    end_daemon(ours)
    snapshot = box.snapshot()
    assert snapshot.pause_ms is not None
    end_daemon(ours)
    box.revert("good")
    assert marks(box) == "first first"
    end_daemon(ours)
    assert snapshot.verify().ok
    end_daemon(ours)
    fork = box.fork(snapshot=snapshot)
    assert marks(fork) == "second second"
    end_daemon(ours)
    fork.delete()


def test_libvirtd_is_killed_in_a_snapshot(saboteur: Saboteur, ours: Lab, box: Machine) -> None:
    mark(box, "second")
    steps = saboteur.run("snapshot", box.name, "whole")["steps"]
    for step in (steps.index("_wait") + 1, steps.index("switch_disks") + 1, steps.index("qmp cont") + 1):
        report = saboteur.run("snapshot", box.name, f"half-{step}", step=step, victim="libvirtd")
        if "error" in report:
            assert report["kind"] == "HypervisorError", report
            assert f"half-{step}" not in [s.name for s in box.snapshots]
        assert box.state == "running", report
        assert marks(box) == "second second", report
        assert not halves(ours.store)
    assert box.snapshot().verify().ok
