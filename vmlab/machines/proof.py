"""The proof that a snapshot continues exactly where it was taken.

A throw-away guest is started from it and stays stopped before its first instruction. Its registers, its screen and,
through a save of its own, all of its RAM are compared with what was recorded when the snapshot was taken. Of one that
was taken of a machine which was off, the disks are all there is.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vmlab.engine import load, mapped_ram, save, stream
from vmlab.engine.mapped_ram import PAGE
from vmlab.errors import SnapshotDamaged, VMLabError
from vmlab.hypervisor.domain import Domain
from vmlab.machines import digests
from vmlab.machines.throwaway import fork
from vmlab.records import RamRecord, SnapshotRecord
from vmlab.render.shown import Shown
from vmlab.store.store import Store


@dataclass(frozen=True)
class Verification(Shown):
    """What was compared, and how it came out.

    Attributes
    ----------
    registers, ram, screen
        Whether they equal what was recorded; None where there was nothing to compare: no guest ran, it has no screen.
    files
        Whether the snapshot's files still have the content that was written.
    disk_contents
        Whether all disks, down to the image, hold what the guest saw; None where there are none, or nothing to hold
        them against (no digest was taken yet).
    covered
        What was read of the disks, in words.
    rip
        The address of the instruction that comes next, in hexadecimal, for each CPU; none where no guest ran.
    differences
        What differs, in words.
    """

    snapshot: str
    machine: str
    registers: bool | None
    ram: bool | None
    screen: bool | None
    files: bool
    rip: tuple[str, ...] = ()
    ram_bytes: int = 0
    differences: list[str] = field(default_factory=list)
    disk_contents: bool | None = None
    covered: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing differs."""
        return self.files and False not in (self.registers, self.ram, self.screen, self.disk_contents)

    def to_json(self) -> dict[str, Any]:
        """Return all of it by name."""
        return {**vars(self), "rip": list(self.rip), "ok": self.ok}

    def __str__(self) -> str:
        where = ", ".join(f"RIP={rip}" for rip in self.rip)
        if self.ok:
            parts = [
                part
                for part, value in (
                    ("registers", self.registers),
                    ("RAM", self.ram),
                    ("screen", self.screen),
                    ("disks", self.disk_contents),
                )
                if value
            ]
            resumes = f"resumes at {where}; " if where else ""
            return f"{self.machine}@{self.snapshot}: {resumes}{', '.join(parts) or 'its files'} identical"
        return f"{self.machine}@{self.snapshot}: NOT identical: {'; '.join(self.differences)}"


def next_instructions(registers: str) -> tuple[str, ...]:
    """Return the instruction pointer of each CPU from QEMU's register dump."""
    return tuple(re.findall(r"\b[RE]IP=([0-9a-f]+)", registers))


def verify(store: Store, record: SnapshotRecord, name: str) -> Verification:
    """Hold a snapshot's files and disks against what was recorded; and, if it is live, a guest that continues it.

    That is a throw-away guest, which is compared before its first instruction.

    Raises
    ------
    SnapshotDamaged, SnapshotIncompatible
        It cannot be continued at all.
    """
    record = store.snapshot(record.id)
    load.check(store, record)
    differences = _files(store, record)
    files = not differences
    disks = digests.check(store, record)
    differences += disks.differences
    found = Verification(
        snapshot=name,
        machine=record.machine_name,
        registers=None,
        ram=None,
        screen=None,
        files=files,
        disk_contents=disks.same,
        covered=disks.covered,
        differences=differences,
    )
    return found if record.ram is None else _guest(store, record, record.ram, found)


def _files(store: Store, record: SnapshotRecord) -> list[str]:
    """Return what is wrong with the files of a snapshot, in words."""
    differences: list[str] = []
    if record.ram is not None:
        try:
            load.check_contents(store, record)
            if record.ram.base is not None:
                load.check_contents(store, store.snapshot(record.ram.base))
        except VMLabError as error:
            differences.append(error.message)
        origin, changed, pages = record.ram.origin, record.ram.changed, record.ram.size // PAGE
        path = store.snapshot_folder(record.id) / "changed"
        if origin and mapped_ram.read_list(path, origin, changed, pages) is None:
            # It costs comparisons time, and nothing else; so a revert does not mind.
            differences.append("the list of changed pages is damaged")
    for file in record.files:
        try:
            load.need_file(store, record, file)
        except SnapshotDamaged as error:
            differences.append(error.message)
    return differences


def _guest(store: Store, record: SnapshotRecord, recorded: RamRecord, found: Verification) -> Verification:
    """Hold a guest that continues a snapshot against what was recorded, and add how that came out."""
    folder, differences = store.snapshot_folder(record.id), found.differences
    with fork(store, record, "verify", stem="verify", paused=True) as (machine, domain):
        # Of its name, so that a collection finds it, should this process die.
        scratch = store.account.make_dir(store.home / "cache" / machine.name)
        try:
            registers = domain.hmp("info registers -a").replace("\r", "")
            was = _registers(store, record, differences)
            if was is not None and registers != was:
                differences.append("registers: " + _first_difference(was, registers))
            screen = None
            if record.screen is not None:
                save.dump_screen(store, domain, scratch)
                same = save.convert_screen(scratch) == record.screen
                screen = same or _only_cursor(folder / "screen.png", scratch / "screen.png")
                if not screen:
                    differences.append("the screen")
            expected = save.may_take(store, machine, domain, recorded.size)
            digest = ram_now(store, domain, scratch, expected)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    own = recorded.digest if recorded.base is None else ""
    ram = digest == (own or load.ram_digest(store, record))
    if not ram:
        differences.append("the RAM")
    return replace(
        found,
        registers=registers == was,
        ram=ram,
        screen=screen,
        rip=next_instructions(registers),
        ram_bytes=recorded.size,
    )


def _registers(store: Store, record: SnapshotRecord, differences: list[str]) -> str | None:
    """Return the registers as they stand in the file, damaged or not; None where they are lost, which is noted."""
    path = store.snapshot_folder(record.id) / "registers.txt"
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        # Of a file with a digest it was said already.
        if path.name not in record.files:
            differences.append(f"{path} is damaged: {error}")
        return None


def ram_now(store: Store, domain: Domain, scratch: Path, expected: int) -> str:
    """Return the fingerprint of a stopped guest's RAM, as QEMU itself writes it into ``scratch``; it stays stopped."""
    store.need_space(expected, "for the proof")
    with domain.events() as events:
        stream.write(domain, scratch, events)
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

    with contextlib.ExitStack() as stack:
        try:
            first, second = (stack.enter_context(Image.open(path)) for path in (was, is_now))
            first.load()
        except (OSError, SyntaxError, ValueError):
            # The recorded picture is damaged, and its fingerprint is another one.
            return False
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
