"""What a built-in image is made from, and what its maker is given."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from vmlab.hypervisor.account import Account
from vmlab.images.spec import ImageSpec
from vmlab.render.progress import Progress

if TYPE_CHECKING:
    from vmlab.images.debian import Apt

#: The suite all built-in guests are made of, whatever the host is.
SUITE = "bookworm"


@dataclass
class Bench:
    """The workplace of one build.

    Attributes
    ----------
    folder
        Where the image's files go.
    work
        A folder for everything else; it is deleted at the end.
    """

    account: Account
    folder: Path
    work: Path
    apt: Apt
    progress: Progress


@dataclass(frozen=True)
class Recipe:
    """A built-in image, not yet made.

    Attributes
    ----------
    needs
        Programs that the build runs, each with the Debian package that has it.
    space
        Bytes that the build takes at its peak, in an empty store: measured (``tests/vm/test_recipes.py``).
    parts
        Other modules of this package that its contents depend on.
    make
        Writes the image's files and returns its description.
    """

    name: str
    title: str
    description: str
    memory: int
    vcpus: int
    space: int
    make: Callable[[Bench], ImageSpec] = field(repr=False)
    needs: dict[str, str] = field(default_factory=dict)
    suite: str = SUITE
    parts: tuple[str, ...] = ()

    def digest(self) -> str:
        """Return the SHA-256 of all that decides what the image will be, but the packages' versions."""
        whole = hashlib.sha256(self.suite.encode())
        here = resources.files("vmlab.images")
        for name in (f"{self.name}.py", "trees.py", "disks.py", *self.parts):
            whole.update((here / name).read_bytes())
        folder = here / "files"
        for part in (folder, folder / self.name):
            if part.is_dir():
                for entry in sorted(part.iterdir(), key=lambda e: e.name):
                    if entry.is_file():
                        whole.update(entry.name.encode() + b"\0" + entry.read_bytes())
        return whole.hexdigest()


def data_file(*names: str) -> bytes:
    """Return a file of ``vmlab/images/files``."""
    place = resources.files("vmlab.images") / "files"
    for name in names:
        place = place / name
    return place.read_bytes()
