"""A state of a guest as files: what every comparison starts from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class State:
    """One of the two sides of a comparison.

    The files are those of a snapshot. They are only read, never changed, and must stay as they are meanwhile; what a
    running machine writes to (its present) is made comparable by a snapshot of it first.

    Attributes
    ----------
    title
        What people call it: ``web/clean``, ``web (present)``.
    ram
        The mapped-ram file with RAM and devices; None for an offline snapshot.
    registers
        QEMU's ``info registers -a``.
    screen
        The screen as a PNG file.
    disks
        The top qcow2 layer of each disk, in the guest's order; what they stand on is found through them.
    memory
        RAM of the guest in MiB.
    ram_base
        The mapped-ram file with the pages that ``ram`` does not hold, where that holds only what changed; else None.
    disk_names
        What the disks are called in the guest: ``vda``, ``vdb`` ...; may be shorter than ``disks``.
    """

    title: str
    ram: Path | None = None
    registers: Path | None = None
    screen: Path | None = None
    disks: list[Path] = field(default_factory=list)
    memory: int = 0
    ram_base: Path | None = None
    disk_names: tuple[str, ...] = ()

    def disk_name(self, number: int) -> str:
        """Return what the guest's disk ``number`` (from 0) is called."""
        return self.disk_names[number] if number < len(self.disk_names) else f"disk {number}"

    @property
    def live(self) -> bool:
        """Whether it holds RAM and devices."""
        return self.ram is not None

    def to_json(self) -> dict[str, Any]:
        """Return the title and what the state has, without paths of this host."""
        return {
            "title": self.title,
            "live": self.live,
            "screen": self.screen is not None,
            "disks": [self.disk_name(number) for number in range(len(self.disks))],
            "memory": self.memory,
        }
