"""``image.json``: what an image is, as the engine reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vmlab import private
from vmlab.errors import BadName, ImageMissing
from vmlab.store.store import BOOT_FILES, Store

FORMAT = 1
FILE = "image.json"
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
DISK_BUSES = ("virtio", "sata", "ide", "scsi", "usb")
NICS = ("virtio", "e1000e", "e1000", "rtl8139")
VIDEOS = ("vga", "virtio", "qxl", "cirrus", "bochs", "none")


def check_name(name: str) -> str:
    """Return ``name`` if it can be an image's.

    Raises
    ------
    BadName
        If files, libvirt or a command line could not carry it.
    """
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise BadName(
            f"'{name}' cannot be the name of an image.",
            hint="use small letters, digits, '-', '_' and '.', starting and ending with a letter or digit",
        )
    return name


@dataclass
class ImageSpec:
    """The contents of ``image.json``; every path in it is the name of a file beside it."""

    name: str
    title: str
    source: str = "built-in"
    recipe: str = ""
    memory: int = 512  # MiB
    vcpus: int = 1
    boot: dict[str, str] = field(default_factory=lambda: {"firmware": "bios"})
    disks: list[dict[str, Any]] = field(default_factory=list)
    cdroms: list[str] = field(default_factory=list)
    video: str = "vga"
    sound: bool = False
    agent: bool = False
    tablet: bool = True
    network: bool = True
    disk_bus: str = "virtio"
    nic: str = "virtio"
    ready: dict[str, Any] | None = None
    sha256: dict[str, str] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    built: str = ""
    packages: list[str] = field(default_factory=list)
    format: int = FORMAT

    def files(self) -> list[str]:
        """Return the names of all files that the image consists of, without ``image.json``."""
        names = [self.boot[key] for key in BOOT_FILES if key in self.boot]
        return [*names, *(disk["file"] for disk in self.disks), *self.cdroms]

    def to_json(self) -> dict[str, Any]:
        """Return what ``image.json`` holds."""
        whole = asdict(self)
        return {"format": whole.pop("format"), **whole}

    def write(self, folder: Path) -> None:
        """Write ``image.json`` into ``folder``."""
        private.write(folder / FILE, json.dumps(self.to_json(), indent=1) + "\n")


def problems(data: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the contents of an ``image.json``, in plain words; an empty list if nothing is."""
    wrong = []
    if data.get("format") != FORMAT:
        return [f"its format is {data.get('format')!r}; this vmlab knows {FORMAT}"]
    if not isinstance(data.get("name"), str) or _NAME.fullmatch(data["name"]) is None:
        wrong.append(f"its name is {data.get('name')!r}")
    wrong += [
        f"{key} is {data.get(key)!r}, not a positive number"
        for key in ("memory", "vcpus")
        if not _positive(data.get(key))
    ]
    boot = data.get("boot")
    if not isinstance(boot, dict) or not ("kernel" in boot or boot.get("firmware") in ("bios", "uefi")):
        wrong.append("boot names neither a kernel nor a firmware")
    disks = data.get("disks")
    if not isinstance(disks, list):
        wrong.append("disks is not a list")
        disks = []
    for disk in disks:
        if (
            not isinstance(disk, dict)
            or disk.get("format") not in ("qcow2", "raw")
            or not _positive(disk.get("size"))
        ):
            wrong.append(f"a disk is described as {disk!r}")
    for key, known in (("disk_bus", DISK_BUSES), ("nic", NICS), ("video", VIDEOS)):
        if data.get(key) not in known:
            wrong.append(f"{key} is {data.get(key)!r}, not one of {', '.join(known)}")
    names = [boot.get(key) for key in BOOT_FILES if key in boot] if isinstance(boot, dict) else []
    names += [disk.get("file") for disk in disks if isinstance(disk, dict)] + list(data.get("cdroms") or [])
    # A path would reach outside of the folder.
    wrong += [
        f"{n!r} is not the name of a file"
        for n in names
        if not isinstance(n, str) or n in ("", ".", "..") or "/" in n
    ]
    return wrong


def described(store: Store, name: str) -> dict[str, Any]:
    """Return the description of an image in a store, and make sure that it can be used.

    Raises
    ------
    NotFound
        There is no such image.
    ImageMissing
        Its description is gone or damaged.
    """
    data = store.image(name)
    wrong = problems(data)
    if wrong:
        raise ImageMissing(
            f"The description of the image '{name}' is damaged.",
            hint=f"build it again with `%vm images --build {name}`, or import it again; "
            f"`%vm images --delete {name}` deletes it",
            file=store.image_folder(name) / FILE,
            problem="; ".join(wrong),
        )
    return data


def _positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def read(folder: Path) -> ImageSpec:
    """Read and check the ``image.json`` of an image's folder, and that its files are there.

    Raises
    ------
    ImageMissing
        If there is no image, or it is damaged.
    """
    hint = f"build or import it again: `%vm images --build {folder.name}`"
    try:
        data = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ImageMissing(f"The image '{folder.name}' has not been built.", hint=hint) from None
    except (OSError, ValueError) as error:
        raise ImageMissing(f"The image '{folder.name}' cannot be read.", hint=hint, cause=error) from error
    wrong = problems(data) if isinstance(data, dict) else ["it is not an object"]
    if wrong:
        raise ImageMissing(
            f"The description of the image '{folder.name}' is wrong.", hint=hint, problem="; ".join(wrong)
        )
    known = {key: value for key, value in data.items() if key in ImageSpec.__dataclass_fields__}
    spec = ImageSpec(**known)
    gone = [name for name in spec.files() if not (folder / name).is_file()]
    if gone:
        raise ImageMissing(
            f"Files of the image '{folder.name}' are gone.", hint=hint, missing=", ".join(gone)
        )
    return spec
