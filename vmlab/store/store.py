"""The store: the folder with images, machines and snapshots.

::

    images/<name>/          image.json and its files: what new machines are made from
    bases/<id>/             the files of an image as machines use them (hard links), named by their digests: an image
                            can be rebuilt or deleted without harm to them
    layers/<id>.qcow2       disk layers; .json says what each stands on. Only a machine's own top layer is ever written;
                            .digest is that of a frozen one's disk (``vmlab.compare.digest``)
    snapshots/<id>/         manifest.json (never changes), label.json, ram, thin, changed, screen.png, registers.txt,
                            domain.xml
    machines/<name>/        machine.json, serial.log, sounds
    locks/                  one file for each machine
    bin/                    the program that starts QEMU
    cache/                  can be deleted at any time
    store.json              what was made sure of when it was opened (``vmlab.store.opening``)
    limits.json             what is left to the host

A snapshot is written in ``snapshots/.new-<id>`` and renamed when all of it is there. Nothing is deleted while something
else is built on it: ``vmlab.store.collect`` walks the references.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from vmlab import private
from vmlab.errors import (
    AlreadyExists,
    HypervisorError,
    ImageMissing,
    NoSpace,
    NotFound,
    RecordDamaged,
    SnapshotDamaged,
    VMLabError,
)
from vmlab.hypervisor.account import Account
from vmlab.records import (
    Hardware,
    Label,
    LayerRecord,
    LimitsRecord,
    MachineRecord,
    SnapshotRecord,
    check_name,
    new_id,
    now,
    read_json,
    when,
    write_json,
)
from vmlab.render import units
from vmlab.store import locks, opening, places, qcow2

#: The files that an image's ``boot`` names: the last holds the variables that UEFI begins with.
BOOT_FILES = ("kernel", "initrd", "variables")
#: The file with the variables of UEFI, of a machine, of a state, or of an image.
NVRAM = "nvram.fd"
#: On how many layers a disk may stand before a new layer is made over a flat copy, before those of a guest that runs
#: are made one, and at most: libvirt (11.3) can neither start nor, after its own restart, find again a guest with more
#: than 25, the image's file included. QEMU's answer to query-block is then nested deeper than its JSON parser goes.
FLATTEN_AT = 12
SHORTEN_AT = 22
MOST_LAYERS = 24
#: Bytes that are set aside for the day on which the disk is full.
SPARE = 256 << 10


log = logging.getLogger(__name__)


def _link_whole(source: Path, target: Path, image: str, wanted: int | None) -> None:
    """Link a file of an image, and make sure that it is as long as it was when the image was made."""
    try:
        size = source.stat().st_size
        if size and wanted in (None, size):
            target.hardlink_to(source)
            return
        why = "is empty" if not size else f"has {size} bytes instead of {wanted}"
    except FileNotFoundError:
        why = "is gone"
    raise ImageMissing(
        f"The file {source.name} of image '{image}' {why}.",
        hint=f"build it again with `%vm images --build {image}`, or import it again",
        file=source,
    )


def _holds(folder: Path, record: str) -> bool:
    """Whether a folder is one of ours: it has its record, or something without it, which is then damaged."""
    with contextlib.suppress(OSError):
        return (folder / record).exists() or any(folder.iterdir())
    return False


def _files_of(image: dict[str, Any]) -> list[str]:
    """Return the names of the files that an image's machines use, the disks in their order first."""
    boot = image.get("boot", {})
    booted = [boot[key] for key in BOOT_FILES if boot.get(key)]
    return [*(d["file"] for d in image.get("disks", ())), *image.get("cdroms", ()), *booted]


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
        self._tell: Callable[[str], None] = lambda _text: None
        #: What opening it has done that somebody should hear of.
        self._news = opening.open_store(home, account)
        for folder in opening.FOLDERS:
            private.folders(home / folder)
        self.keep_spare()

    def __repr__(self) -> str:
        return f"Store({str(self.home)!r})"

    @property
    def tell(self) -> Callable[[str], None]:
        """Says something to whoever waits; set by the notebook and the command line."""
        return self._tell

    @tell.setter
    def tell(self, say: Callable[[str], None]) -> None:
        self._tell = say
        if self._news:
            say(self._news)
            self._news = ""

    # -- the last bytes of a disk ----------------------------------------------------------------------------------

    @property
    def _spare(self) -> Path:
        return self.home / "cache" / "spare"

    def keep_spare(self) -> None:
        """Keep a little room, so that on a full disk the records can still be written that make room."""
        if not self._spare.exists():
            with contextlib.suppress(OSError):
                private.write(self._spare, os.urandom(SPARE))

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
        return locks.locked(self.lock_path(name), doing, timeout=timeout, tell=tell or self.tell)

    def lock_path(self, name: str) -> Path:
        """Return the file that is locked while something is done to machine ``name``."""
        return self.home / "locks" / f"{name}.lock"

    def hold_path(self, snapshot: str) -> Path:
        """Return the file by which whoever looks at a present says that it is still needed."""
        return self.home / "locks" / f"present-{snapshot}.hold"

    def folded_folder(self, snapshot: str = "") -> Path:
        """Return where a snapshot is folded into its base for forks to share; without one, where all of them are."""
        return self.home / "cache" / "folded" / snapshot

    def compared_folder(self, snapshot: str = "") -> Path:
        """Return the folder in the cache for what comparing has found out about a snapshot; without one, about all."""
        return self.home / "cache" / "compared" / snapshot

    # -- machines ------------------------------------------------------------------------------------------------

    @property
    def mark(self) -> str:
        """What stands behind the names of this store's machines in libvirt, which several stores of an account share.

        Nothing for the account's first store.
        """
        home = os.path.realpath(self.home)
        if home == os.path.realpath(self.account.usual_store):
            return ""
        return hashlib.sha256(os.fsencode(home)).hexdigest()[:4]

    def _marked(self, name: str) -> str | None:
        return f"{name}~{self.mark}" if self.mark else None

    def domain_name(self, name: str) -> str:
        """Return what libvirt knows machine ``name`` as; where its record is gone, what it would be for a new one."""
        with contextlib.suppress(VMLabError):
            return self.machine(name).known_as
        return self._marked(name) or name

    def machine_known_as(self, domain: str) -> str | None:
        """Return the name of the machine that libvirt knows under that name; None if it is another store's."""
        name, _, mark = domain.partition("~")
        return name if mark in ("", self.mark) else None

    def machine_folder(self, name: str) -> Path:
        """Return the folder of machine ``name``."""
        return self.home / "machines" / name

    def nvram_path(self, machine: MachineRecord) -> Path:
        """Return the file with the firmware variables that a machine has, or boots with."""
        folder = self.snapshot_folder(machine.nvram) if machine.nvram else self.machine_folder(machine.name)
        return folder / NVRAM

    def machine_names(self, *, throwaway: bool = True) -> list[str]:
        """Return the names of all machines, sorted; without those that were made for a moment only, if not wanted."""
        names = sorted(p.name for p in (self.home / "machines").glob("[!.]*") if _holds(p, "machine.json"))
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
        """Return the record of machine ``name``.

        Raises
        ------
        NotFound
            With the nearest names.
        RecordDamaged
            The machine is there, but its record is gone or unreadable.
        """
        check_name("machine", name)
        file = self.machine_folder(name) / "machine.json"
        try:
            record = MachineRecord.from_json(read_json(file))
            # The folder's name is the truth: somebody may have died in the middle of a rename.
            self._call(record, name)
            return record
        except (FileNotFoundError, NotADirectoryError, RecordDamaged) as error:
            if not isinstance(error, RecordDamaged) and name not in self.machine_names():
                raise NotFound.named(
                    "machine", name, self.machine_names(), hint=f"make it with `%vm create {name}`"
                ) from None
            raise RecordDamaged(
                f"The record of the machine '{name}' is gone or damaged.",
                hint=f"have it made anew from what else is known of the machine: `%vm mend {name}`; or bring the file "
                f"back from a backup; or delete the machine with its snapshots: `%vm delete {name}`",
                file=file,
                record=error.message if isinstance(error, RecordDamaged) else None,
            ) from error

    def machine_of(self, uuid: str) -> str | None:
        """Return the name of the machine with that UUID; None if there is none."""
        return next((record.name for record in self._readable() if record.uuid == uuid), None)

    def is_stood_on(self, snapshot: str) -> bool:
        """Whether a machine's present stands on that snapshot."""
        return any(record.here == snapshot for record in self._readable() if not record.throwaway)

    def _readable(self) -> Iterator[MachineRecord]:
        """Yield the records of all machines that can be read; one may be deleted at any moment, or be damaged."""
        for name in self.machine_names():
            with contextlib.suppress(VMLabError):
                yield self.machine(name)

    def add_machine(self, record: MachineRecord) -> None:
        """Add a new machine; its name must be free."""
        record.domain = self._marked(record.name)
        folder = self.machine_folder(record.name)
        # Its record is there as soon as its folder is: a folder without one is a machine that is damaged.
        new = private.folder(folder.with_name(f".new-{record.name}-{new_id()}"))
        try:
            self._write(new / "machine.json", record.to_json())
            # Over an empty folder at most.
            new.rename(folder)
        except OSError as error:
            shutil.rmtree(new, ignore_errors=True)
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise AlreadyExists(
                f"There is a machine named '{record.name}' already.",
                hint=f"choose another name, or delete it with `%vm delete {record.name}`",
            ) from None

    def save_machine(self, record: MachineRecord) -> None:
        """Write the record of a machine."""
        self._write(self.machine_folder(record.name) / "machine.json", record.to_json())

    def rename_machine(self, record: MachineRecord, name: str) -> None:
        """Give a machine another name; nothing may be using its folder."""
        check_name("machine", name)
        if name in self.machine_names():
            raise AlreadyExists(f"There is a machine named '{name}' already.", hint="choose another name")
        old = self.machine_folder(record.name)
        old.rename(self.machine_folder(name))
        self._call(record, name)
        self.save_machine(record)

    def _call(self, record: MachineRecord, name: str) -> None:
        """Let a record have another name; a machine without a mark, as older versions made them, stays so."""
        if record.name != name:
            record.name, record.domain = name, self._marked(name) if record.domain else None

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
        return places.snapshot_folder(self.home, snapshot)

    def snapshot_folders(self) -> list[Path]:
        """Return the folders of all snapshots, damaged or not."""
        return list(places.snapshot_folder(self.home).glob("[!.]*"))

    def snapshot_ids(self) -> list[str]:
        """Return the ids of all snapshots, the oldest first."""
        return sorted(p.name for p in self.snapshot_folders() if (p / "manifest.json").exists())

    def snapshot(self, snapshot: str) -> SnapshotRecord:
        """Return what never changes about a snapshot.

        Raises
        ------
        SnapshotDamaged
            Its manifest is gone or unreadable.
        """
        try:
            return SnapshotRecord.from_json(read_json(self.snapshot_folder(snapshot) / "manifest.json"))
        except (FileNotFoundError, NotADirectoryError, RecordDamaged) as error:
            name = self.label(snapshot).name
            raise SnapshotDamaged(
                f"The snapshot '{name}' cannot be used: its manifest is gone or damaged.",
                hint="bring the file back from a backup, forget the snapshot, "
                "or go back to another one (`%vm tree` shows them)",
                file=self.snapshot_folder(snapshot) / "manifest.json",
                manifest=error.message if isinstance(error, RecordDamaged) else None,
            ) from error

    def label(self, snapshot: str) -> Label:
        """Return what may change about a snapshot; where that is lost, its id serves as its name."""
        try:
            return Label.from_json(read_json(self.snapshot_folder(snapshot) / "label.json"))
        except (FileNotFoundError, NotADirectoryError, RecordDamaged):
            return Label(snapshot)

    def damaged_snapshots(self) -> list[str]:
        """Return the ids of the snapshots whose manifest is gone or damaged."""
        found = []
        for folder in self.snapshot_folders():
            try:
                self.snapshot(folder.name)
            except SnapshotDamaged:
                # Not one that is just being deleted.
                if folder.exists():
                    found.append(folder.name)
        return sorted(found)

    def damaged(self, snapshot: str) -> SnapshotRecord:
        """Return a record that stands for one that cannot be read: with whose it is, and what can be told besides."""
        label = self.label(snapshot)
        machine = label.machine
        if not machine and not label.kind:
            # Written by vmlab 0.1, or lost; a live one has the machine's definition, too.
            with contextlib.suppress(OSError):
                text = (self.snapshot_folder(snapshot) / "domain.xml").read_text(errors="replace")
                found = re.search(r"<uuid>([0-9a-f-]{36})</uuid>", text)
                machine = found[1] if found else ""
        return SnapshotRecord(
            id=snapshot,
            kind="damaged",
            machine=machine,
            machine_name=self.machine_of(machine) or "" if machine else "",
            image="",
            created=self._when(snapshot),
            spec=Hardware(memory=0),
            layers={},
            ram=None,
            mac="",
            genid="",
        )

    def damaged_of(self, machine: MachineRecord) -> list[SnapshotRecord]:
        """Return stand-ins for the damaged snapshots of a machine that are not forgotten, the oldest first."""
        found = []
        for snapshot in self.damaged_snapshots():
            label = self.label(snapshot)
            if label.forgotten or label.kind not in ("", "snapshot"):
                continue
            record = self.damaged(snapshot)
            if record.machine == machine.uuid or (not record.machine and machine.here == snapshot):
                found.append(record)
        return found

    def _when(self, snapshot: str) -> str:
        """Return when a snapshot was taken, as its id tells, or else its folder."""
        try:
            return when(snapshot).isoformat(timespec="milliseconds")
        except ValueError:
            with contextlib.suppress(OSError):
                stamp = self.snapshot_folder(snapshot).stat().st_mtime
                return dt.datetime.fromtimestamp(stamp, dt.UTC).isoformat(timespec="milliseconds")
            return now()

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
        """Give a folder to write a snapshot in; it is in place when the block ends well, gone when it does not.

        What it holds, and the disk layers that it stands on, nobody may change from then on.

        The layers of a present that is kept for an undo are frozen later, by :meth:`ready_layers`: QEMU is still there,
        and if the revert fails it opens them for writing once more.
        """
        folder = private.folder(self.snapshot_folder(f".new-{snapshot}"))
        # Whoever finds it knows by this that it is being written.
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(held, fcntl.LOCK_SH)
            yield folder
            for file in folder.iterdir():
                if file.name != "label.json":
                    private.freeze(file)
            record = SnapshotRecord.from_json(read_json(folder / "manifest.json"))
            if record.kind != "undo":
                self._freeze(record.layers, anew=True)
            folder.rename(self.snapshot_folder(snapshot))
            sync_folder(folder.parent)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            os.close(held)

    def remove_image(self, name: str) -> None:
        """Remove an image's folder; machines that stand on its base keep that."""
        with self.lock(f"image@{name}", f"delete {name}"):
            folder = self.image_folder(name)
            gone = folder.with_name(f".new-gone-{name}-{new_id()}")
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    # -- disk layers ---------------------------------------------------------------------------------------------

    def layer_path(self, layer: str) -> Path:
        """Return the file of a disk layer."""
        return self.home / "layers" / f"{layer}.qcow2"

    def digest_path(self, layer: str) -> Path:
        """Return the file with the digest of a frozen layer's disk."""
        return self.layer_path(layer).with_suffix(".digest")

    def layer(self, layer: str) -> LayerRecord:
        """Return what a disk layer stands on.

        Raises
        ------
        RecordDamaged
            Its record is gone or unreadable.
        """
        file = self.home / "layers" / f"{layer}.json"
        try:
            return LayerRecord.from_json(read_json(file))
        except (FileNotFoundError, RecordDamaged) as error:
            raise RecordDamaged(
                f"The record of the disk layer {layer} is gone or damaged.",
                hint="bring the file back from a backup, or go back to a snapshot that does not stand on it "
                "(`%vm tree` shows them)",
                file=file,
                record=error.message if isinstance(error, RecordDamaged) else None,
            ) from error

    def layer_chain(self, layer: str | None) -> Iterator[LayerRecord]:
        """Yield a layer and all below it."""
        while layer is not None:
            record = self.layer(layer)
            yield record
            layer = record.backing

    def ready_layers(self, machine: MachineRecord) -> None:
        """Let QEMU write to the layers of a machine that is about to start, and to no others.

        Its own may be frozen, where something failed after they were and the machine came back to them; those of the
        present that its last revert left may not be yet.
        """
        with contextlib.suppress(SnapshotDamaged):
            if machine.undo is not None:
                self._freeze(self.snapshot(machine.undo).layers)
        for layer in machine.layers.values():
            self._thaw(layer)

    def _freeze(self, layers: dict[str, str], *, anew: bool = False) -> None:
        """Let nobody write to layers any more, and note how long they are; ``anew``: they were written to until now."""
        for layer in layers.values():
            # Whoever needs one that is gone or damaged says so.
            with contextlib.suppress(FileNotFoundError, RecordDamaged):
                private.freeze(self.layer_path(layer))
                record = self.layer(layer)
                if anew or record.file_size is None:
                    self._save_layer(replace(record, file_size=self.layer_path(layer).stat().st_size))

    def _thaw(self, layer: str) -> None:
        with contextlib.suppress(FileNotFoundError, RecordDamaged):
            private.thaw(self.layer_path(layer))
            record = self.layer(layer)
            if record.file_size is not None:
                self._save_layer(replace(record, file_size=None))
                self.digest_path(layer).unlink(missing_ok=True)

    def _save_layer(self, record: LayerRecord) -> None:
        self._write(self.home / "layers" / f"{record.id}.json", record.to_json())

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
        below, kind = None, "qcow2"
        if backing is not None:
            size = size or self.layer(backing).size
            # A relative name, so that the store can be moved as a whole.
            below = f"{backing}.qcow2"
        elif base is not None:
            folder, _, file = base.partition("/")
            if not self.base_file(base).exists():
                raise ImageMissing(
                    f"The disk {file} of the image base {folder} is gone.",
                    hint="build or import the image again",
                )
            found = self.base(folder)
            size = size or found["disks"][file]
            below, kind = self._from_layers(base), found.get("formats", {}).get(file, "qcow2")
        assert size is not None
        record = LayerRecord(identity, backing, base, size)
        try:
            qcow2.write_empty(path, size, below, kind)
            write_json(self.home / "layers" / f"{identity}.json", record.to_json())
        except OSError as error:
            path.unlink(missing_ok=True)
            if is_full(error):
                raise NoSpace(
                    "The disk is full.", hint="forget snapshots or delete machines", system=error
                ) from error
            raise
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
            private.copy(self.layer_path(layer), path)
            # -u: the flat copy of the layer below reads like that layer.
            own = ["-u", "-F", "qcow2", "-b", f"{below}.qcow2"]
            backing = own if below else self._backing_of(chain[-1])
            run_qemu_img(["qemu-img", "rebase", "-f", "qcow2", *backing, str(path)])
            private.freeze(path)
            self._save_layer(replace(made, file_size=path.stat().st_size))
            self._save_layer(replace(record, flat=made.id))
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
            self._from_layers(lowest.base),
        ]

    def drop_layers(self, layers: dict[str, str]) -> None:
        """Delete layers that nothing refers to yet."""
        for layer in layers.values():
            self.layer_path(layer).unlink(missing_ok=True)
            (self.home / "layers" / f"{layer}.json").unlink(missing_ok=True)

    # -- images and bases ----------------------------------------------------------------------------------------

    def base_folder(self, base: str) -> Path:
        """Return the folder of a base."""
        return places.base_folder(self.home, base)

    def base_folders(self) -> list[Path]:
        """Return the folders of all bases, damaged or not."""
        return list(places.base_folder(self.home).glob("[!.]*"))

    def base_file(self, name: str) -> Path:
        """Return a file of a base, which ``name`` says as layers do: ``folder/file``."""
        base, _, file = name.partition("/")
        return self.base_folder(base) / file

    def _from_layers(self, name: str) -> str:
        """Return a file of a base as a layer names it: relative, so that the store can be moved as a whole."""
        return os.path.relpath(self.base_file(name), self.layer_path("x").parent)

    def image_folder(self, name: str) -> Path:
        """Return the folder of an image."""
        return self.home / "images" / name

    def image_names(self) -> list[str]:
        """Return the names of the images that are there, sorted."""
        return sorted(p.name for p in (self.home / "images").glob("[!.]*") if _holds(p, "image.json"))

    def image(self, name: str) -> dict[str, Any]:
        """Return an image's description (``image.json``); what is in it is for ``vmlab.images.spec`` to judge.

        Raises
        ------
        NotFound
            With the nearest names.
        ImageMissing
            The image is there, but its description is gone or unreadable.
        """
        file = self.image_folder(name) / "image.json"
        try:
            return read_json(file)
        except (FileNotFoundError, NotADirectoryError, RecordDamaged) as error:
            if not isinstance(error, RecordDamaged) and name not in self.image_names():
                raise NotFound.named("image", name, self.image_names()) from None
            raise ImageMissing(
                f"The description of the image '{name}' is gone or damaged.",
                hint=f"build it again with `%vm images --build {name}`, or import it again; "
                f"`%vm images --delete {name}` deletes it",
                file=file,
                record=error.message if isinstance(error, RecordDamaged) else None,
            ) from error

    def base_id(self, name: str) -> str:
        """Return the id of the base that an image's present content has: a digest of the digests of its files."""
        text = (self.image_folder(name) / "image.json").read_bytes()
        # Until vmlab 0.1 the time of the build was in it. Machines and ready states that stand on such a base keep it.
        old = f"{name}-{hashlib.sha256(text).hexdigest()[:12]}"
        if (self.base_folder(old) / "base.json").exists():
            return old
        image = self.image(name)
        try:
            digests = {file: str(image["sha256"][file]) for file in _files_of(image)}
        except (KeyError, TypeError, AttributeError):
            # Whoever reads it says what is wrong.
            return old
        return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:32]

    def adopt(self, name: str) -> str:
        """Make the base of an image if it is not there yet, and return its id.

        Raises
        ------
        ImageMissing
            A file of the image is gone.
        """
        identity = self.base_id(name)
        folder = self.base_folder(identity)
        if (folder / "base.json").exists():
            return identity
        image, source = self.image(name), self.image_folder(name)
        disks = {d["file"]: d["size"] for d in image.get("disks", ())}
        formats = {d["file"]: d.get("format", "qcow2") for d in image.get("disks", ())}
        files = _files_of(image)
        new = self.base_folder(f".new-{identity}-{os.getpid()}")
        private.folders(new)
        try:
            for file in files:
                _link_whole(source / file, new / file, name, image.get("bytes", {}).get(file))
            sizes = {file: (new / file).stat().st_size for file in files}
            record = {
                "format": 1,
                "image": name,
                "disks": disks,
                "formats": formats,
                "files": files,
                "bytes": sizes,
                "sha256": image.get("sha256", {}),
                "packages": image.get("packages", []),
            }
            write_json(new / "base.json", record)
            private.freeze(new / "base.json")
            with contextlib.suppress(FileExistsError, OSError):
                new.rename(folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        return identity

    def base(self, identity: str) -> dict[str, Any]:
        """Return what a base holds.

        ``{"image", "disks": {file: size that the guest sees}, "formats": {file: format}, "files", "bytes": {file: bytes
        of the file}, "sha256": {file: digest}, "packages": ["name version"]}``; the last three are missing where vmlab
        0.1 made it.
        """
        file = self.base_folder(identity) / "base.json"
        try:
            return read_json(file)
        except (FileNotFoundError, NotADirectoryError, RecordDamaged) as error:
            raise ImageMissing(
                f"The image base {identity} is {'damaged' if isinstance(error, RecordDamaged) else 'gone'}.",
                hint="bring the file back from a backup, or build or import the image again",
                file=file,
            ) from error

    # -- room ----------------------------------------------------------------------------------------------------

    @property
    def limits(self) -> LimitsRecord:
        """What is left to the host."""
        try:
            return LimitsRecord.from_json(read_json(self.home / "limits.json"))
        except RecordDamaged as error:
            # It must keep nobody from working.
            log.warning("the usual limits hold, since %s cannot be read: %s", "limits.json", error.message)
        except FileNotFoundError:
            pass
        return LimitsRecord()

    def save_limits(self, limits: LimitsRecord) -> None:
        """Change what is left to the host."""
        write_json(self.home / "limits.json", limits.to_json())

    def free(self) -> int:
        """Return the bytes that can still be written to the store's disk."""
        found = os.statvfs(self.home)
        return found.f_bavail * found.f_frsize

    def need_space(self, count: int, what: str) -> None:
        """Raise :class:`NoSpace` unless ``count`` bytes can be written and the reserve stays free.

        What is there only so that forks share more memory goes first.
        """
        free, reserve = self.free(), self.limits.reserve_disk
        if free < count + reserve and self.folded_folder().exists():
            for folder in self.folded_folder().glob("[!.]*"):
                shutil.rmtree(folder, ignore_errors=True)
            free = self.free()
        if free < count + reserve:
            raise NoSpace(
                f"There is not enough room on the disk {what}: it may need {units.size(count)}, "
                f"{units.size(free)} are free, and {units.size(reserve)} stay reserved.",
                hint="forget snapshots or delete machines (`%vm list` shows what they take), "
                "or lower the reserve with `%vm limits --disk`",
            )


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


def sync_folder(path: Path) -> None:
    """Make renames in a folder survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
