"""A lab with its own store and its own libvirt daemon, for tests that damage, fill and kill."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from help.saboteur import Saboteur, end_daemon, own_lab
from vmlab.engine import mapped_ram
from vmlab.errors import GuestPanicked, VMLabError
from vmlab.guest.wait import until
from vmlab.lab import Lab
from vmlab.machine import Machine
from vmlab.machines.ready import ready_records
from vmlab.store.store import Store


def hardlink(source: Path, target: Path) -> None:
    """Copy a folder, or a file, by hard links."""
    if source.is_dir():
        target.mkdir(0o700, exist_ok=True)
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
    for record in ready_records(source.store, name):
        for top in record.layers.values():
            for layer in old.layer_chain(top):
                for file in (f"{layer.id}.qcow2", f"{layer.id}.json"):
                    how(old.home / "layers" / file, new.home / "layers" / file)
        how(old.snapshot_folder(record.id), new.snapshot_folder(record.id))
    for folder in (new.image_folder(name), new.home / "bases" / base, *(new.home / "snapshots").iterdir()):
        target.account.own(folder)


@pytest.fixture(scope="session")
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
    for _ in range(5):
        # A thread that still asks something may have started the daemon again.
        end_daemon(own)
        shutil.rmtree(home, ignore_errors=True)
        if not home.exists():
            break


@pytest.fixture(scope="session")
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


def panic(machine: Machine) -> None:
    """Let the guest's kernel panic."""
    # On a host under load it may come before the command's own end.
    with contextlib.suppress(GuestPanicked):
        machine.succeed("(sleep 0.3; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 &")
    until(lambda: machine.state == "crashed", 30, "the panic to be noticed")


def halves(store: Store) -> set[str]:
    """Return what is left of snapshots that did not come to be; not what is just being deleted."""
    return {p.name for p in (store.home / "snapshots").glob(".new-*") if not p.name.startswith(".new-gone-")}


def chain_is_sound(machine: Machine) -> bool:
    """Whether qemu-img finds nothing wrong with the disks of a machine that is off."""
    paths = [machine._store.layer_path(layer) for layer in machine._record.layers.values()]
    return all(subprocess.run(["qemu-img", "check", "-q", str(path)]).returncode == 0 for path in paths)


def a_page(path: Path) -> int:
    """Return where a page of the guest's RAM that is not empty stands in a snapshot's file."""
    main = mapped_ram.parse(path).main
    with path.open("rb") as file:
        bitmap = mapped_ram.read_bitmap(file.fileno(), main)
    return main.pages_offset + int(bitmap.nonzero()[0][len(bitmap.nonzero()[0]) // 2]) * mapped_ram.PAGE


@contextlib.contextmanager
def harmed(path: Path, harm: str, at: int | None = None) -> Iterator[None]:
    """Do harm to a copy of a file, which takes its place for a moment; ``at``: where to flip it."""
    kept = path.parent.parent / f".kept-{uuid.uuid4().hex[:6]}"
    path.rename(kept)
    try:
        if harm == "empty":
            path.touch()
        elif harm != "gone":
            subprocess.run(["cp", "--reflink=auto", "--sparse=always", kept, path], check=True)
            path.chmod(0o600)
            size = path.stat().st_size
            with path.open("r+b") as file:
                if harm == "cut":
                    file.truncate(size // 2)
                else:
                    file.seek(size // 2 if at is None else at)
                    data = file.read(64)
                    file.seek(-len(data), os.SEEK_CUR)
                    file.write(bytes(byte ^ 0x55 for byte in data))
        if path.exists():
            shutil.copystat(kept, path)
            shutil.chown(path, kept.stat().st_uid, kept.stat().st_gid)
        yield
    finally:
        path.unlink(missing_ok=True)
        kept.rename(path)
