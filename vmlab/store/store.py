"""The store: the folder with images, machines and snapshots.

::

    images/<name>/          image.json and its files: what new machines are made from
    bases/<id>/             the files of an image as machines use them (hard links): an image can be rebuilt or deleted
                            without harm to them
    layers/<id>.qcow2       disk layers; .json says what each stands on. Only a machine's own top layer is ever written
    snapshots/<id>/         manifest.json (never changes), label.json, ram, thin, changed, screen.png, registers.txt,
                            domain.xml
    machines/<name>/        machine.json, serial.log, sounds
    locks/                  one file for each machine
    cache/                  can be deleted at any time

A snapshot is written in ``snapshots/.new-<id>`` and renamed when all of it is there. Nothing is deleted while something
else is built on it: ``vmlab.store.collect`` walks the references.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from vmlab.errors import (
    AlreadyExists,
    HypervisorError,
    ImageMissing,
    NoSpace,
    NotFound,
    SnapshotDamaged,
    VMLabError,
)
from vmlab.hypervisor.account import Account
from vmlab.store import locks
from vmlab.store.records import (
    Label,
    LayerRecord,
    LimitsRecord,
    MachineRecord,
    SnapshotRecord,
    check_name,
    new_id,
    read_json,
    write_json,
)

FOLDERS = ("images", "bases", "layers", "snapshots", "machines", "locks", "cache")


#: On how many layers a disk may stand before a new layer is made over a flat copy, and before a guest that runs is
#: moved to one. libvirt (11.3) can neither start nor, after its own restart, find again a guest with more than 25:
#: QEMU's answer to query-block is then nested deeper than its JSON parser goes.
FLATTEN_AT = 12
SHORTEN_AT = 22
#: Bytes that are set aside for the day on which the disk is full.
SPARE = 256 << 10


def is_full(error: OSError) -> bool:
    """Whether a write failed for lack of room."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def allocated(path: Path) -> int:
    """Return the bytes that a file, or a folder with all in it, really takes on the disk; 0 if it is gone."""
    try:
        if path.is_dir():
            return sum(allocated(child) for child in path.iterdir())
        return path.lstat().st_blocks * 512
    except FileNotFoundError:
        return 0


class Store:
    """The records and files under one folder.

    Parameters
    ----------
    home
        The folder; made if it is not there.
    account
        Who QEMU runs as: all folders belong to it.
    """

    def __init__(self, home: Path, account: Account) -> None:
        self.home, self.account = home, account
        for folder in ("", *FOLDERS):
            path = home / folder
            if not path.is_dir():
                path.mkdir(parents=True, exist_ok=True)
                account.own(path)
        self.keep_spare()

    def __repr__(self) -> str:
        return f"Store({str(self.home)!r})"

    # -- the last bytes of a disk ----------------------------------------------------------------------------------

    @property
    def _spare(self) -> Path:
        return self.home / "cache" / "spare"

    def keep_spare(self) -> None:
        """Keep a little room, so that on a full disk the records can still be written that make room."""
        if not self._spare.exists():
            with contextlib.suppress(OSError):
                self._spare.write_bytes(os.urandom(SPARE))

    def _write(self, path: Path, data: dict[str, Any]) -> None:
        try:
            write_json(path, data)
        except OSError as error:
            if not is_full(error) or not self._spare.exists():
                raise
            self._spare.unlink(missing_ok=True)
            write_json(path, data)

    # -- locks ---------------------------------------------------------------------------------------------------

    def lock(
        self,
        name: str,
        doing: str,
        *,
        timeout: float = locks.DEFAULT_TIMEOUT,
        tell: Callable[[str], None] | None = None,
    ) -> contextlib.AbstractContextManager[None]:
        """Hold the lock of machine ``name`` while ``doing`` something (see :func:`vmlab.store.locks.locked`)."""
        return locks.locked(self.home / "locks" / f"{name}.lock", doing, timeout=timeout, tell=tell)

    def hold_path(self, snapshot: str) -> Path:
        """Return the file by which whoever looks at a present says that it is still needed."""
        return self.home / "locks" / f"present-{snapshot}.hold"

    def compared_folder(self, snapshot: str) -> Path:
        """Return the folder in the cache for what comparing has found out about a snapshot."""
        return self.home / "cache" / "compared" / snapshot

    # -- machines ------------------------------------------------------------------------------------------------

    def machine_folder(self, name: str) -> Path:
        """Return the folder of machine ``name``."""
        return self.home / "machines" / name

    def machine_names(self, *, throwaway: bool = True) -> list[str]:
        """Return the names of all machines, sorted; without those that were made for a moment only, if not wanted."""
        names = sorted(p.parent.name for p in (self.home / "machines").glob("[!.]*/machine.json"))
        return names if throwaway else [name for name in names if not self._is_throwaway(name)]

    def _is_throwaway(self, name: str) -> bool:
        try:
            return self.machine(name).throwaway
        except NotFound:
            return True
        except VMLabError:
            # A damaged record must be seen.
            return False

    def machine(self, name: str) -> MachineRecord:
        """Return the record of machine ``name``, or raise :class:`NotFound` with the nearest names."""
        check_name("machine", name)
        try:
            record = MachineRecord.from_json(read_json(self.machine_folder(name) / "machine.json"))
            # The folder's name is the truth: somebody may have died in the middle of a rename.
            record.name = name
            return record
        except FileNotFoundError:
            raise NotFound.named(
                "machine", name, self.machine_names(), hint=f"make it with `%vm create {name}`"
            ) from None

    def add_machine(self, record: MachineRecord) -> None:
        """Add a new machine; its name must be free."""
        folder = self.machine_folder(record.name)
        try:
            folder.mkdir()
        except FileExistsError:
            if (folder / "machine.json").exists():
                raise AlreadyExists(
                    f"There is a machine named '{record.name}' already.",
                    hint=f"choose another name, or delete it with `%vm delete {record.name}`",
                ) from None
        self.account.own(folder)
        self.save_machine(record)

    def save_machine(self, record: MachineRecord) -> None:
        """Write the record of a machine."""
        self._write(self.machine_folder(record.name) / "machine.json", record.to_json())

    def rename_machine(self, record: MachineRecord, name: str) -> None:
        """Give a machine another name; nothing may be using its folder."""
        check_name("machine", name)
        if (self.machine_folder(name) / "machine.json").exists():
            raise AlreadyExists(f"There is a machine named '{name}' already.", hint="choose another name")
        old = self.machine_folder(record.name)
        old.rename(self.machine_folder(name))
        record.name = name
        self.save_machine(record)

    def remove_machine(self, name: str) -> None:
        """Remove the record of a machine and its folder; what only it used is left to the collection."""
        folder = self.machine_folder(name)
        # Renamed first: half a folder must never look like a machine.
        gone = folder.with_name(f".gone-{name}-{new_id()}")
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    # -- snapshots -----------------------------------------------------------------------------------------------

    def snapshot_folder(self, snapshot: str) -> Path:
        """Return the folder of a snapshot."""
        return self.home / "snapshots" / snapshot

    def snapshot_ids(self) -> list[str]:
        """Return the ids of all snapshots, the oldest first."""
        return sorted(p.parent.name for p in (self.home / "snapshots").glob("[!.]*/manifest.json"))

    def snapshot(self, snapshot: str) -> SnapshotRecord:
        """Return what never changes about a snapshot.

        Raises
        ------
        SnapshotDamaged
            Its manifest is gone or unreadable.
        """
        try:
            return SnapshotRecord.from_json(read_json(self.snapshot_folder(snapshot) / "manifest.json"))
        except (FileNotFoundError, NotADirectoryError, VMLabError) as error:
            name = self.label(snapshot).name
            raise SnapshotDamaged(
                f"The snapshot '{name}' cannot be used: its manifest is gone or damaged.",
                hint=f"bring back {self.snapshot_folder(snapshot) / 'manifest.json'} from a backup, "
                "or go back to another snapshot (`%vm tree` shows them)",
                manifest=error if isinstance(error, VMLabError) else None,
            ) from error

    def label(self, snapshot: str) -> Label:
        """Return what may change about a snapshot; where that is lost, its id serves as its name."""
        try:
            return Label.from_json(read_json(self.snapshot_folder(snapshot) / "label.json"))
        except (FileNotFoundError, VMLabError):
            return Label(snapshot)

    def broken_snapshots(self) -> list[str]:
        """Return the ids of the snapshots whose manifest is gone or damaged."""
        found = []
        for folder in (self.home / "snapshots").glob("[!.]*"):
            try:
                self.snapshot(folder.name)
            except SnapshotDamaged:
                found.append(folder.name)
        return sorted(found)

    def save_label(self, snapshot: str, label: Label) -> None:
        """Write what may change about a snapshot.

        Raises
        ------
        NotFound
            The snapshot is gone.
        """
        if not self.snapshot_folder(snapshot).is_dir():
            raise NotFound(
                f"The snapshot '{label.name}' is gone.", hint="`%vm tree` shows those that are there"
            )
        self._write(self.snapshot_folder(snapshot) / "label.json", label.to_json())

    def snapshots_of(self, machine: str, kinds: tuple[str, ...] = ("snapshot",)) -> list[SnapshotRecord]:
        """Return the snapshots that were taken of a machine (its UUID) and not forgotten, the oldest first."""
        found = []
        for snapshot in self.snapshot_ids():
            with contextlib.suppress(SnapshotDamaged, FileNotFoundError):
                record = self.snapshot(snapshot)
                if record.machine == machine and record.kind in kinds and not self.label(snapshot).forgotten:
                    found.append(record)
        return found

    @contextlib.contextmanager
    def new_snapshot(self, snapshot: str) -> Iterator[Path]:
        """Give a folder to write a snapshot in; it is in place when the block ends well, gone when it does not."""
        folder = self.home / "snapshots" / f".new-{snapshot}"
        folder.mkdir()
        self.account.own(folder)
        try:
            yield folder
            # QEMU wrote as its own account; from here on nobody may change these files.
            for file in folder.iterdir():
                if file.name != "label.json":
                    file.chmod(0o444)
            folder.rename(self.snapshot_folder(snapshot))
            sync_folder(self.home / "snapshots")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    # -- disk layers ---------------------------------------------------------------------------------------------

    def layer_path(self, layer: str) -> Path:
        """Return the file of a disk layer."""
        return self.home / "layers" / f"{layer}.qcow2"

    def layer(self, layer: str) -> LayerRecord:
        """Return what a disk layer stands on."""
        return LayerRecord.from_json(read_json(self.home / "layers" / f"{layer}.json"))

    def layer_chain(self, layer: str | None) -> Iterator[LayerRecord]:
        """Yield a layer and all below it."""
        while layer is not None:
            record = self.layer(layer)
            yield record
            layer = record.backing

    def add_layer(
        self, *, backing: str | None = None, base: str | None = None, size: int | None = None
    ) -> LayerRecord:
        """Make a new, empty disk layer over another layer, over a disk of a base, or over nothing.

        Parameters
        ----------
        backing, base
            What it stands on: a layer, or ``folder/file`` under ``bases/``.
        size
            Bytes that the guest sees; by default those of what it stands on.
        """
        identity = new_id()
        path = self.layer_path(identity)
        argv = ["qemu-img", "create", "-q", "-f", "qcow2"]
        if backing is not None:
            size = size or self.layer(backing).size
            # A relative name, so that the store can be moved as a whole. -u: we know that it is there, and QEMU holds
            # a lock on the layer below.
            argv += ["-u", "-F", "qcow2", "-b", f"{backing}.qcow2"]
        elif base is not None:
            folder, _, file = base.partition("/")
            if not (self.home / "bases" / base).exists():
                raise ImageMissing(
                    f"The disk {file} of the image base {folder} is gone.",
                    hint="build or import the image again",
                )
            found = self.base(folder)
            size = size or found["disks"][file]
            argv += ["-u", "-F", found.get("formats", {}).get(file, "qcow2"), "-b", f"../bases/{base}"]
        assert size is not None
        record = LayerRecord(identity, backing, base, size)
        try:
            run_qemu_img([*argv, str(path), str(size)])
            self.account.own(path)
            write_json(self.home / "layers" / f"{identity}.json", record.to_json())
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return record

    def add_layers(self, below: dict[str, str], *, live: bool = False) -> dict[str, str]:
        """Make a new layer over each of ``below``: ``{target: layer}`` in, the new ones out.

        Parameters
        ----------
        live
            For a guest that runs on them: they must stand on exactly these. Otherwise, where these stand on many
            others, the new ones stand on flat copies instead.
        """
        made: dict[str, str] = {}
        try:
            for target, layer in below.items():
                made[target] = self.add_layer(backing=layer if live else self.shallow(layer)).id
        except BaseException:
            self.drop_layers(made)
            raise
        return made

    def keep_layers(self, layers: dict[str, LayerRecord]) -> dict[str, str]:
        """Write the records of layers whose files are there: ``{target: record}`` in, ``{target: layer}`` out."""
        for record in layers.values():
            write_json(self.home / "layers" / f"{record.id}.json", record.to_json())
        return {target: record.id for target, record in layers.items()}

    def depth(self, layers: dict[str, str]) -> int:
        """Return on how many layers the deepest of these disks stands, itself included."""
        return max((sum(1 for _ in self.layer_chain(layer)) for layer in layers.values()), default=0)

    def shallow(self, layer: str) -> str:
        """Return a frozen layer, or one with the same content where it stands on too many others.

        The copy holds what changed since the image, or, where the layer below has a flat copy already, only what this
        one holds. It is made once.
        """
        if self.depth({"": layer}) < FLATTEN_AT:
            return layer
        record = self.layer(layer)
        if record.flat is not None and self.layer_path(record.flat).exists():
            return record.flat
        chain = list(self.layer_chain(layer))
        below = self.layer(record.backing).flat if record.backing else None
        above = [layer] if below else [part.id for part in chain]
        self.need_space(sum(allocated(self.layer_path(part)) for part in above), "for a flat copy of a disk")
        made = LayerRecord(new_id(), below, None if below else chain[-1].base, record.size)
        path = self.layer_path(made.id)
        try:
            shutil.copyfile(self.layer_path(layer), path)
            # -u: the flat copy of the layer below reads like that layer.
            own = ["-u", "-F", "qcow2", "-b", f"{below}.qcow2"]
            backing = own if below else self._backing_of(chain[-1])
            run_qemu_img(["qemu-img", "rebase", "-f", "qcow2", *backing, str(path)])
            self.account.own(path)
            write_json(self.home / "layers" / f"{made.id}.json", made.to_json())
            write_json(self.home / "layers" / f"{layer}.json", replace(record, flat=made.id).to_json())
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return made.id

    def _backing_of(self, lowest: LayerRecord) -> list[str]:
        """Return qemu-img's words for what the lowest layer of a chain stands on."""
        if lowest.base is None:
            return ["-b", ""]
        folder, _, file = lowest.base.partition("/")
        return [
            "-F",
            self.base(folder).get("formats", {}).get(file, "qcow2"),
            "-b",
            f"../bases/{lowest.base}",
        ]

    def drop_layers(self, layers: dict[str, str]) -> None:
        """Delete layers that nothing refers to yet."""
        for layer in layers.values():
            self.layer_path(layer).unlink(missing_ok=True)
            (self.home / "layers" / f"{layer}.json").unlink(missing_ok=True)

    # -- images and bases ----------------------------------------------------------------------------------------

    def image_folder(self, name: str) -> Path:
        """Return the folder of an image."""
        return self.home / "images" / name

    def image_names(self) -> list[str]:
        """Return the names of the images that are there, sorted."""
        return sorted(p.parent.name for p in (self.home / "images").glob("[!.]*/image.json"))

    def image(self, name: str) -> dict[str, Any]:
        """Return an image's description (``image.json``)."""
        try:
            return read_json(self.image_folder(name) / "image.json")
        except FileNotFoundError:
            raise NotFound.named("image", name, self.image_names()) from None

    def base_id(self, name: str) -> str:
        """Return the id of the base that an image's present content has."""
        text = (self.image_folder(name) / "image.json").read_bytes()
        return f"{name}-{hashlib.sha256(text).hexdigest()[:12]}"

    def adopt(self, name: str) -> str:
        """Make the base of an image if it is not there yet, and return its id.

        Raises
        ------
        ImageMissing
            A file of the image is gone.
        """
        identity = self.base_id(name)
        folder = self.home / "bases" / identity
        if (folder / "base.json").exists():
            return identity
        image, source = self.image(name), self.image_folder(name)
        boot = image.get("boot", {})
        disks = {d["file"]: d["size"] for d in image.get("disks", ())}
        formats = {d["file"]: d.get("format", "qcow2") for d in image.get("disks", ())}
        files = [*disks, *image.get("cdroms", ()), *(boot[k] for k in ("kernel", "initrd") if boot.get(k))]
        new = self.home / "bases" / f".new-{identity}-{os.getpid()}"
        new.mkdir(exist_ok=True)
        try:
            for file in files:
                try:
                    (new / file).hardlink_to(source / file)
                except FileNotFoundError:
                    raise ImageMissing(
                        f"The file {file} of image '{name}' is gone.",
                        hint=f"rebuild it with `%vm images --build {name}`, or import it again",
                    ) from None
            record = {"format": 1, "image": name, "disks": disks, "formats": formats, "files": files}
            write_json(new / "base.json", record)
            for path in (new, *new.iterdir()):
                self.account.own(path)
            with contextlib.suppress(FileExistsError, OSError):
                new.rename(folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        return identity

    def base(self, identity: str) -> dict[str, Any]:
        """Return what a base holds: ``{"image", "disks": {file: size}, "formats": {file: format}, "files"}``."""
        try:
            return read_json(self.home / "bases" / identity / "base.json")
        except FileNotFoundError:
            raise ImageMissing(
                f"The image base {identity} is gone.", hint="build or import the image again"
            ) from None

    # -- room ----------------------------------------------------------------------------------------------------

    @property
    def limits(self) -> LimitsRecord:
        """What is left to the host."""
        with contextlib.suppress(FileNotFoundError):
            return LimitsRecord.from_json(read_json(self.home / "limits.json"))
        return LimitsRecord()

    def save_limits(self, limits: LimitsRecord) -> None:
        """Change what is left to the host."""
        write_json(self.home / "limits.json", limits.to_json())

    def free(self) -> int:
        """Return the bytes that can still be written to the store's disk."""
        found = os.statvfs(self.home)
        return found.f_bavail * found.f_frsize

    def need_space(self, count: int, what: str) -> None:
        """Raise :class:`NoSpace` unless ``count`` bytes can be written and the reserve stays free."""
        free, reserve = self.free(), self.limits.reserve_disk
        if free < count + reserve:
            raise NoSpace(
                f"There is not enough room on the disk {what}: it may need {size_text(count)}, "
                f"{size_text(free)} are free, and {size_text(reserve)} stay reserved.",
                hint="forget snapshots or delete machines (`%vm list` shows what they take), "
                "or lower the reserve with `%vm limits --disk`",
            )


def size_text(count: float) -> str:
    """Return a number of bytes as people say it: ``431 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit in ("B", "KiB") or count >= 10 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def run_qemu_img(argv: list[str]) -> str:
    """Run qemu-img and return what it printed.

    Raises
    ------
    NoSpace, HypervisorError
        With its own words as evidence.
    """
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        if "No space left" in done.stderr:
            raise NoSpace(
                "The disk is full.", hint="forget snapshots or delete machines", qemu_img=done.stderr
            )
        raise HypervisorError(f"qemu-img {argv[1]} failed.", qemu_img=done.stderr, command=" ".join(argv))
    return done.stdout


def image_info(path: Path) -> dict[str, Any]:
    """Return what ``qemu-img info`` says of a disk image; QEMU may be using it."""
    info: dict[str, Any] = json.loads(run_qemu_img(["qemu-img", "info", "-U", "--output=json", str(path)]))
    return info


def sync_folder(path: Path) -> None:
    """Make renames in a folder survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
