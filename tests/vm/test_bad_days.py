"""Bad days: what is killed, full, damaged, gone or silent gives a plain sentence, loses nothing, and leaves the machine usable.

All of it happens in a lab of its own, with its own libvirt daemon, so that it can be damaged and killed at will.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from saboteur import Saboteur, own_lab

from vmlab.errors import VMLabError
from vmlab.lab import Lab
from vmlab.machine import Machine
from vmlab.store.store import Store


def hardlink(source: Path, target: Path) -> None:
    """Copy a folder, or a file, by hard links."""
    if source.is_dir():
        target.mkdir(exist_ok=True)
        for child in source.iterdir():
            hardlink(child, target / child.name)
    elif not target.exists():
        target.hardlink_to(source)


def copy_image(source: Lab, target: Lab, name: str, how: Callable[[Path, Path], None] = hardlink) -> None:
    """Give an image and its ready states to another lab."""
    old, new = source.store, target.store
    base = source.store.adopt(name)
    how(old.image_folder(name), new.image_folder(name))
    how(old.home / "bases" / base, new.home / "bases" / base)
    for record in source.image(name)._ready_records():
        for top in record.layers.values():
            for layer in old.layer_chain(top):
                for file in (f"{layer.id}.qcow2", f"{layer.id}.json"):
                    how(old.home / "layers" / file, new.home / "layers" / file)
        how(old.snapshot_folder(record.id), new.snapshot_folder(record.id))
    for folder in (new.image_folder(name), new.home / "bases" / base, *(new.home / "snapshots").iterdir()):
        target.account.own(folder)


def end_daemon(lab: Lab) -> None:
    """End the libvirt daemon of a lab of our own; guests live on."""
    with contextlib.suppress(OSError, ValueError):
        pid = int((lab.account.runtime_dir / "libvirt" / "libvirtd.pid").read_text())
        os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def ours(lab: Lab) -> Iterator[Lab]:
    """A lab with its own store and libvirt daemon, with the small images and their ready states."""
    for name in ("tiny", "invaders"):
        if not lab.image(name).ready:
            lab.image(name).bake()
    home = lab.account.home / f"bad-{uuid.uuid4().hex[:6]}"
    own = own_lab(home)
    for name in ("tiny", "invaders"):
        copy_image(lab, own, name)
    yield own
    for machine in own.machines:
        with contextlib.suppress(VMLabError):
            machine.delete()
    end_daemon(own)
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def saboteur(ours: Lab) -> Iterator[Saboteur]:
    server = Saboteur(ours.home.parent)
    yield server
    server.close()


@pytest.fixture
def box(ours: Lab) -> Iterator[Machine]:
    """A running tiny machine with a snapshot ``good``, a mark in RAM and one on disk."""
    machine = ours.create(f"box-{uuid.uuid4().hex[:6]}", "tiny")
    mark(machine, "first")
    machine.snapshot("good")
    yield machine
    with contextlib.suppress(VMLabError):
        machine.delete()


def mark(machine: Machine, text: str) -> None:
    """Leave a mark in the guest's RAM and one on its disk."""
    machine.succeed(f"echo {text} >/run/mark; echo {text} >/root/mark; sync")


def marks(machine: Machine) -> str:
    return " ".join(machine.succeed("cat /run/mark /root/mark").split())


def halves(store: Store) -> list[str]:
    """Return what is left of snapshots that did not come to be."""
    return [p.name for p in (store.home / "snapshots").glob(".new-*")]


def died_at_each_step(saboteur: Saboteur, verb: str, machine: str = "", argument: str | None = None, **more: Any) -> Iterator[str]:
    """Do something again and again, with the process killed before its first step, its second ... until it gets through.

    Yields where it was killed.
    """
    for step in range(1, 200):
        wanted = argument.format(step=step) if argument else None
        report = saboteur.run(verb, machine.format(step=step), wanted, step=step, **more)
        if not report["died"]:
            assert "error" not in report, report
            return
        yield f"{step}: {report['at']}"


@pytest.mark.timeout(600)
def test_a_process_killed_anywhere_in_a_snapshot_loses_nothing(saboteur: Saboteur, box: Machine) -> None:
    mark(box, "second")
    for where in died_at_each_step(saboteur, "snapshot", box.name, "half-{step}"):
        box.start()
        assert box.state == "running", where
        assert marks(box) == "second second", where
        for snapshot in box.snapshots[1:]:
            # Whole or not at all.
            assert snapshot.verify().ok, where
            snapshot.forget()
    box.revert("good")
    assert marks(box) == "first first"


@pytest.mark.timeout(600)
def test_a_process_killed_anywhere_in_a_revert_loses_nothing(saboteur: Saboteur, box: Machine) -> None:
    mark(box, "second")
    for where in died_at_each_step(saboteur, "revert", box.name, "good"):
        print(where, box.state, flush=True)
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
