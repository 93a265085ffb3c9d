"""The proof that a snapshot continues exactly where it was taken.

A throw-away guest is started from it and stays stopped before its first instruction. Its registers, its screen and,
through a save of its own, all of its RAM are compared with what was recorded when the snapshot was taken.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vmlab.engine import load, mapped_ram, save
from vmlab.engine.mapped_ram import PAGE
from vmlab.errors import VMLabError, WrongState
from vmlab.hypervisor.domain import Domain
from vmlab.render.shown import Shown
from vmlab.store.records import MachineRecord, SnapshotRecord
from vmlab.store.store import Store


@dataclass(frozen=True)
class Verification(Shown):
    """What was compared, and how it came out.

    Attributes
    ----------
    registers, ram, screen
        Whether they equal what was recorded; None where there was nothing to compare (no screen, no digest).
    files
        Whether the snapshot's files still have the content that was written.
    rip
        The address of the instruction that comes next, in hexadecimal, for each CPU.
    differences
        What differs, in words.
    """

    snapshot: str
    machine: str
    registers: bool
    ram: bool | None
    screen: bool | None
    files: bool
    rip: tuple[str, ...]
    ram_bytes: int = 0
    differences: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing differs."""
        return self.registers and self.files and self.ram is not False and self.screen is not False

    def to_json(self) -> dict[str, Any]:
        """Return all of it by name."""
        return {**vars(self), "rip": list(self.rip), "ok": self.ok}

    def __str__(self) -> str:
        where = ", ".join(f"RIP={rip}" for rip in self.rip)
        if self.ok:
            parts = [
                part
                for part, value in (("registers", self.registers), ("RAM", self.ram), ("screen", self.screen))
                if value
            ]
            return f"{self.machine}/{self.snapshot}: resumes at {where}; {', '.join(parts)} identical"
        return f"{self.machine}/{self.snapshot}: NOT identical: {'; '.join(self.differences)}"


def next_instructions(registers: str) -> tuple[str, ...]:
    """Return the instruction pointer of each CPU from QEMU's register dump."""
    return tuple(re.findall(r"\b[RE]IP=([0-9a-f]+)", registers))


def verify(store: Store, record: SnapshotRecord, name: str) -> Verification:
    """Continue a live snapshot in a throw-away guest and compare it, before its first instruction, with the record.

    Raises
    ------
    WrongState
        The snapshot is offline: there is nothing to continue.
    SnapshotDamaged, SnapshotIncompatible
        It cannot be continued at all.
    """
    if record.ram is None:
        raise WrongState(
            f"The snapshot '{name}' is offline: it holds no RAM, so nothing resumes from it.",
            hint="a snapshot of a running machine can be verified",
        )
    load.check(store, record)
    differences: list[str] = []
    folder = store.snapshot_folder(record.id)
    try:
        load.check_contents(store, record)
    except VMLabError as error:
        differences.append(error.message)
    origin, changed, pages = record.ram.origin, record.ram.changed, record.ram.size // PAGE
    if origin and mapped_ram.read_list(folder / "changed", origin, changed, pages) is None:
        # It costs comparisons time, and nothing else; so a revert does not mind.
        differences.append("the list of changed pages is damaged")
    files = not differences
    scratch = store.home / "cache" / f"verify-{uuid.uuid4().hex[:8]}"
    machine = MachineRecord(
        name=scratch.name,
        uuid=str(uuid.uuid4()),
        # The guest's memory holds the generation ID: another one would rightly differ.
        genid=record.genid,
        mac=record.mac,
        image=record.image,
        spec=record.spec,
        throwaway=True,
    )
    store.account.make_dir(scratch)
    held = contextlib.ExitStack()
    held.enter_context(store.lock(machine.name, "verify"))
    store.add_machine(machine)
    domain = Domain(store.account, machine.name, store.machine_folder(machine.name) / "serial.log")
    try:
        machine.layers = store.add_layers(record.layers)
        store.save_machine(machine)
        load.resume(store, machine, domain, record, paused=True)
        registers = domain.hmp("info registers -a").replace("\r", "")
        was = (folder / "registers.txt").read_text()
        if registers != was:
            differences.append("registers: " + _first_difference(was, registers))
        screen = None
        if record.screen is not None:
            domain.qmp("screendump", filename=str(scratch / "screen.ppm"))
            same = save.convert_screen(scratch) == record.screen
            screen = same or _only_cursor(folder / "screen.png", scratch / "screen.png")
            if not screen:
                differences.append("the screen")
        digest = ram_now(store, domain, scratch, save.may_take(store, machine, domain, record.ram.size))
        expected = record.ram.digest or load.ram_digest(store, record)
        if digest != expected:
            differences.append("the RAM")
        return Verification(
            snapshot=name,
            machine=record.machine_name,
            registers=registers == was,
            ram=digest == expected,
            screen=screen,
            files=files,
            rip=next_instructions(registers),
            ram_bytes=record.ram.size,
            differences=differences,
        )
    finally:
        with contextlib.suppress(VMLabError):
            domain.destroy()
        store.drop_layers(machine.layers)
        store.remove_machine(machine.name)
        shutil.rmtree(scratch, ignore_errors=True)
        held.close()


def ram_now(store: Store, domain: Domain, scratch: Path, expected: int) -> str:
    """Return the fingerprint of a stopped guest's RAM, as QEMU itself writes it into ``scratch``; it stays stopped."""
    with domain.events() as events:
        save.write_stream(domain, scratch, expected, store, events)
    path = scratch / "ram"
    try:
        return mapped_ram.digest([(path, mapped_ram.parse(path))])
    finally:
        path.unlink()


def _only_cursor(was: Path, is_now: Path) -> bool:
    """Whether two pictures of a VGA text screen differ only by one character's cell.

    The cursor of text mode blinks in the emulator's drawing, by a phase that is no part of the guest's state and of no
    saved one.
    """
    from PIL import Image, ImageChops

    with Image.open(was) as first, Image.open(is_now) as second:
        if (
            first.size != second.size
            or first.width not in (360, 640, 720)
            or first.height not in (350, 400, 480)
        ):
            return False
        box = ImageChops.difference(first.convert("RGB"), second.convert("RGB")).getbbox()
    return box is None or (box[2] - box[0] <= 9 and box[3] - box[1] <= 16)


def _first_difference(was: str, is_now: str) -> str:
    for old, new in zip(was.splitlines(), is_now.splitlines(), strict=False):
        if old != new:
            return f"'{old.strip()}' became '{new.strip()}'"
    return "another number of CPUs"
