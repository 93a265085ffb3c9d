"""A state of a guest, as files: what every comparison starts from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Origin:
    """What a RAM was before it became what it is.

    Attributes
    ----------
    snapshot
        Whose RAM it was; the snapshot itself may be gone.
    changed, digest
        The list of all pages that may have changed since, and its fingerprint (``engine.mapped_ram.read_list``).
    """

    snapshot: str
    changed: Path
    digest: str


@dataclass(frozen=True)
class Files:
    """The files of one of the two states of a comparison: those of a snapshot.

    They are only read, never changed, and must stay as they are meanwhile; what a
    running machine writes to (its present) is made comparable by a snapshot of it first.

    Attributes
    ----------
    title
        What people call it: ``web@clean``, ``web (now)``.
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
    snapshot
        The id of the snapshot whose files these are; may be empty.
    origins
        What ``ram`` came from, that in turn, and so on, as far as it is known.
    """

    title: str
    ram: Path | None = None
    registers: Path | None = None
    screen: Path | None = None
    disks: list[Path] = field(default_factory=list)
    memory: int = 0
    ram_base: Path | None = None
    disk_names: tuple[str, ...] = ()
    snapshot: str = ""
    origins: tuple[Origin, ...] = ()

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
