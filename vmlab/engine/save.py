"""Snapshots of a machine: live, with RAM, devices and CPUs; or of its disks alone."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from vmlab import private
from vmlab.engine import delta, emulated, interrupts, mapped_ram, stream
from vmlab.engine.ground import Ground
from vmlab.engine.ground import find as find_ground
from vmlab.engine.ground import newest as newest_ground
from vmlab.errors import HypervisorError, NoSpace, VMLabError, WrongState
from vmlab.hypervisor.domain import Domain, versions
from vmlab.hypervisor.host import boot_id, host_cpu, run_of
from vmlab.records import (
    Label,
    LayerRecord,
    MachineRecord,
    Pending,
    RamRecord,
    SnapshotRecord,
    new_id,
    now,
    write_json,
)
from vmlab.store import telling
from vmlab.store.store import NVRAM, Store, allocated

if TYPE_CHECKING:
    from vmlab.engine.memory import Pages

#: The files of a snapshot that are read whole before they are used.
SMALL = ("domain.xml", "registers.txt", "screen.png", NVRAM)
#: The most bytes that a picture of a screen takes.
SCREEN = 64 << 20
#: Bytes of RAM that several guests that are stopped at one moment may have left to write, and the seconds for which
#: that is waited for while they run.
LITTLE, APPROACH = 4 << 20, 10.0
#: What a guest may be doing whose RAM can be saved. QEMU (10.0) aborts when a guest that sleeps is let go on after a
#: migration ("invalid runstate transition: 'postmigrate' -> 'suspended'"), and nobody wakes
#: a guest without leaving a trace in it.
ALIVE = ("running", "paused", "crashed")


def offline(
    store: Store,
    machine: MachineRecord,
    name: str,
    description: str,
    kind: str = "snapshot",
    snapshot_id: str | None = None,
) -> str:
    """Freeze the disks of a machine that is off, and return the new snapshot's id; the machine gets new layers.

    It holds no RAM; what a suspended machine would continue is a snapshot already.
    """
    snapshot_id = snapshot_id or new_id()
    record, lower = _record(store, machine, snapshot_id, kind, ram=None), machine.layers
    # The machine moves to its new layers first: if we die before the snapshot is there, they were made for nothing; the
    # other way round, the machine would go on writing to the snapshot's disks.
    machine.layers = store.add_layers(lower)
    try:
        store.save_machine(machine)
        with store.new_snapshot(snapshot_id) as folder:
            _keep_nvram(store, machine, folder)
            _finish(folder, record, Label(name, machine.here, description))
    except BaseException:
        with interrupts.held():
            upper, machine.layers = machine.layers, lower
            store.save_machine(machine)
            store.drop_layers(upper)
        raise
    if kind == "snapshot":
        machine.here = snapshot_id
        store.save_machine(machine)
    return snapshot_id


def glimpse(
    store: Store, machine: MachineRecord, domain: Domain, state: str, snapshot_id: str, most: int
) -> SnapshotRecord:
    """Keep the present of a machine for a moment, to look at it, and return the hidden snapshot.

    The machine goes on as it was, on the same disks unless their top layers hold more than ``most`` bytes: then it gets
    new ones, as in any snapshot. ``state`` is what the machine is doing.
    """
    if state == "asleep":
        raise asleep(machine.name, "look at it")
    size = sum(allocated(store.layer_path(layer)) for layer in machine.layers.values())
    small = size <= most
    if state == "off" and not small:
        offline(store, machine, "present", "", kind="present", snapshot_id=snapshot_id)
        return store.snapshot(snapshot_id)
    ground = find_ground(store, machine, domain)
    if state == "off" or (state == "crashed" and ground is None):
        # It writes to no disk. A guest that has crashed over RAM of its own would not stand as it does after a
        # migration; a snapshot of it, which starts it anew, has that RAM.
        store.need_space(size, "to look at it")
        record = _record(store, machine, snapshot_id, "present", ram=None)
        record = replace(record, layers=store.keep_layers(copy_layers(store, machine.layers)), state=state)
        with store.new_snapshot(snapshot_id) as folder:
            _finish(folder, record, Label("present", machine.here))
        return record
    if state != "running" and (small or state == "crashed") and ground is not None:
        # After a migration QEMU gives a paused guest back only by letting it run for a moment; this way it never does.
        with contextlib.suppress(delta.NotPossible):
            return _glimpse_stopped(store, machine, domain, ground, snapshot_id, state)
    live(store, machine, domain, "present", kind="present", snapshot_id=snapshot_id, copies=small)
    return store.snapshot(snapshot_id)


def asleep(name: str, doing: str) -> WrongState:
    """Return the error for what cannot be done to a guest that sleeps."""
    return WrongState(
        f"{name} is asleep (S3), and QEMU cannot save a guest in that state; nothing was touched ({doing}).",
        hint=f"wake it with `%vm resume {name}`, then try again",
    )


def _glimpse_stopped(
    store: Store, machine: MachineRecord, domain: Domain, ground: Ground, snapshot_id: str, state: str
) -> SnapshotRecord:
    base = ground.base
    with store.new_snapshot(snapshot_id) as folder:
        delta_file = delta.Delta(domain, store.snapshot_folder(base.id), folder, ground.others)
        pages = delta.write(delta_file, store.need_space, goes_on=True)
        layers = store.keep_layers(copy_layers(store, machine.layers))
        screen = _take_screen(domain, folder)
        record = _delta_record(store, machine, domain, base, folder, snapshot_id, "present", pages)
        record = replace(
            record, layers=layers, state=state, screen=convert_screen(folder) if screen else None
        )
        _finish(folder, record, Label("present", machine.here))
    return record


class Live:
    """A live snapshot of one machine while it is taken; its lock is held.

    It is taken in phases, so that several machines can be taken side by side: each is *copied* while its guest runs,
    *stopped*, *kept* while it stands still, *released*, and *sealed* when it runs again. As a context manager it takes
    itself back where a phase fails: the guest goes on, and nothing is left of the snapshot.

    Parameters
    ----------
    kind
        Of the snapshot: see :class:`vmlab.records.SnapshotRecord`.
    keep_running
        False where the guest is ended next (a revert): its disks are frozen as they are, and it stays stopped.
    state
        What the guest was doing before it was paused for this; by default what it is doing.
    snapshot_id
        The new snapshot's id; by default a new one.
    copies
        Copy what the top layers of its disks hold while it stands still, instead of putting new ones over them: the
        machine's disks stay what they are, for a snapshot that will be gone in a moment.

    Raises
    ------
    WrongState
        There is no guest whose RAM could be saved.
    """

    def __init__(
        self,
        store: Store,
        machine: MachineRecord,
        domain: Domain,
        *,
        kind: str = "snapshot",
        keep_running: bool = True,
        state: str | None = None,
        snapshot_id: str | None = None,
        copies: bool = False,
    ) -> None:
        now_is = domain.state()
        if now_is == "asleep":
            raise asleep(machine.name, "snapshot")
        # A guest that has crashed must not be let go on: after a migration, it would be "running".
        if now_is not in (("running", "paused") if keep_running else ALIVE):
            raise WrongState(f"{machine.name} is {now_is}; a live snapshot needs a running or paused guest.")
        self.store, self.machine, self.domain = store, machine, domain
        self.kind, self.keep_running, self.copies = kind, keep_running, copies
        self.state = state or now_is
        self.id = snapshot_id or new_id()
        self.pid = domain.pid
        self.run = run_of(self.pid or 0) or ""
        self.pause = stream.Pause()
        self._started = time.monotonic()
        self._upper: dict[str, str] = {}
        self._copied: dict[str, LayerRecord] = {}
        self._registers = ""
        self._devices = b""
        self._delta: delta.Delta | None = None
        self._base: SnapshotRecord | None = None
        self._has_screen = False
        self._to_release = False
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._folder = self._open.enter_context(self.store.new_snapshot(self.id))
        try:
            self._events = self._open.enter_context(self.domain.events())
        except BaseException as error:
            self._open.__exit__(type(error), error, error.__traceback__)
            raise
        self._open.callback(self.release)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._open.__exit__(kind, error, trace)

    def copy(self, *, whole: bool = True) -> None:
        """Copy what it has changed, or let QEMU begin to write all of its RAM; the guest runs on.

        Parameters
        ----------
        whole
            False: what needs all of its RAM is left to :meth:`approach`.
        """
        store, machine = self.store, self.machine
        if self.keep_running:
            if not self.copies:
                self._upper = store.add_layers(machine.layers, live=True)
            # Whoever finds this after a crash continues on the upper layers: empty, or written to, they are right.
            machine.pending = Pending("copy", self.state, self._upper)
            self._to_release = True
            store.save_machine(machine)
        if not self._copy_changes() and whole:
            self._copy_all()

    def _copy_changes(self) -> bool:
        """Copy what it has changed since its base, if it has one and that pays; whether it did."""
        if self.kind == "ready" or not self.keep_running:
            return False
        store, machine, domain = self.store, self.machine, self.domain
        ground = newest_ground(store, machine, domain, self.run)
        if ground is None or (self.state == "paused" and domain.qmp("query-status")["status"] != "paused"):
            return False
        folder = store.snapshot_folder(ground.base.id)
        most = allocated(folder / "ram")
        with contextlib.suppress(delta.NotPossible):
            found = self._open.enter_context(delta.Delta(domain, folder, self._folder, ground.others))
            waiting = found.waiting()
            # Much of it may be what the base has; but to read more than that has costs more than it saves.
            if waiting <= most:
                store.need_space(waiting + SCREEN, "for this snapshot")
                found.copy()
                if delta.pays(found.size, most):
                    self._delta, self._base = found, ground.base
                    return True
        (self._folder / "ram").unlink(missing_ok=True)
        return False

    def _copy_all(self) -> None:
        self.store.need_space(
            may_take(self.store, self.machine, self.domain, self._size), "for this snapshot"
        )
        stream.start(self.domain, self._folder)

    def approach(self) -> None:
        """Let QEMU write all of the RAM, if need be, until so little is left that the guest can be stopped any moment.

        It may stand still by then: QEMU ends by itself when nothing is left.
        """
        if self._delta is None:
            self._copy_all()
            stream.approach(self.domain, APPROACH, LITTLE)

    def stop(self, *, at_once: bool = False) -> None:
        """Wait until the rest is so little that the guest can stand still for it, and until it is written.

        Parameters
        ----------
        at_once
            Stop the guest now, whatever the rest is, and write it then.
        """
        if at_once and self._delta is None and self.state == "running":
            self.domain.qmp("stop")
        if self._delta is not None:
            if stream.halt(self.domain, self.state, self._events, self.pause):
                return
            # It has crashed, or the like: that stands only in the stream of a migration.
            self._delta.drop()
            self._delta = None
            self._copy_all()
        stream.finish(self.domain, self._events, self.pause)
        if self.state == "running":
            emulated.put_right(self.domain, self._folder)

    def keep(self) -> None:
        """Freeze its disks, and keep registers and screen, while the guest stands still."""
        if self._delta is None:
            self._keep()
            return
        with ThreadPoolExecutor(1, thread_name_prefix="vmlab-delta") as pool:
            caught = pool.submit(self._delta.catch)
            self._devices = delta.devices(self.domain, self._folder, goes_on=True)
            self._keep()
            caught.result()

    def _keep(self) -> None:
        if self._upper:
            self.domain.switch_disks(
                {target: self.store.layer_path(layer) for target, layer in self._upper.items()}
            )
        elif self.copies:
            self._copied = copy_layers(self.store, self.machine.layers)
        self._registers = self.domain.hmp("info registers -a")
        self._has_screen = self.kind != "undo" and _take_screen(self.domain, self._folder)
        _keep_nvram(self.store, self.machine, self._folder)

    def release(self) -> None:
        """Let the guest go on as it was, on whichever layers QEMU has come to; not where it is ended next."""
        if not self._to_release:
            return
        store, machine = self.store, self.machine
        with interrupts.held():
            stream.go_on(self.domain, self.state, self._events, self.pause, streamed=self._delta is None)
            machine.layers, machine.pending = present_layers(store, machine, self.domain, self._upper), None
            store.save_machine(machine)
            self._to_release = False

    def seal(self, label: Label, ready_key: str | None = None) -> SnapshotRecord:
        """Make its file fit for mapping, write down what it is, and return that; the guest may be running."""
        store, machine, folder = self.store, self.machine, self._folder
        with ThreadPoolExecutor(1, thread_name_prefix="vmlab-ram") as pool:
            sealed = pool.submit(self._seal_ram)
            private.write(folder / "registers.txt", self._registers.replace("\r", ""))
            private.write(folder / "domain.xml", self.domain.xml(portable=True))
            screen = convert_screen(folder) if self._has_screen else None
            ram = sealed.result()
        record = _record(store, machine, self.id, self.kind, ram)
        if self.copies:
            layers = store.keep_layers(self._copied)
        else:
            layers = _lower(store, machine.layers) if self.keep_running else record.layers
        record = replace(
            record,
            layers=layers,
            screen=screen,
            state=self.state,
            pause_ms=self.pause.milliseconds,
            total_ms=round((time.monotonic() - self._started) * 1000, 1),
            ready_key=ready_key,
        )
        _finish(folder, record, label)
        return record

    def _seal_ram(self) -> RamRecord:
        store, machine, folder = self.store, self.machine, self._folder
        fingerprint = self.kind not in ("undo", "present")
        if self._delta is not None and self._base is not None:
            self._delta.seal(self._devices)
            return _delta_ram(machine, self._base, folder, self._delta.pages, fingerprint=fingerprint)
        origin, changed = _list_changed(store, machine, self.domain, self.pid, folder)
        ram = seal(folder, self._size, fingerprint=fingerprint)
        return replace(ram, origin=origin, changed=changed)

    def stand(self) -> None:
        """Let the machine's record stand on it, once it is there."""
        machine = self.machine
        machine.here = self.id
        if self._delta is None:
            # What comes next holds what differs from this one.
            machine.whole, machine.whole_run = self.id, self.run
        self.store.save_machine(machine)

    @property
    def _size(self) -> int:
        return self.machine.spec.memory << 20


def live(
    store: Store,
    machine: MachineRecord,
    domain: Domain,
    name: str,
    description: str = "",
    *,
    ready_key: str | None = None,
    **how: Any,
) -> str:
    """Take a live snapshot of a machine and return its id; the guest goes on as it was, running or paused.

    Parameters
    ----------
    how
        As in :class:`Live`.

    Raises
    ------
    NoSpace
        The disk is, or became, full. The guest goes on.
    HypervisorError
        QEMU or libvirt failed. The guest goes on unless it was QEMU that ended.
    """
    with Live(store, machine, domain, **how) as taking:
        taking.copy()
        taking.stop()
        taking.keep()
        taking.release()
        taking.seal(Label(name, machine.here, description), ready_key)
    if taking.kind == "snapshot":
        taking.stand()
    return taking.id


def copy_layers(store: Store, layers: dict[str, str]) -> dict[str, LayerRecord]:
    """Copy the files of disk layers that nobody writes to now, over what they stand on.

    QEMU has written all that it had in memory when it stopped the guest. ``Store.keep_layers`` writes the records: not
    here, where a guest may stand still for it.
    """
    made = {}
    for target, layer in layers.items():
        record = replace(store.layer(layer), id=new_id(), flat=None, file_size=None)
        path = store.layer_path(record.id)
        with store.layer_path(layer).open("rb") as source, private.create(path) as file:
            size = os.fstat(source.fileno()).st_size
            os.ftruncate(file.fileno(), size)
            mapped_ram.copy_range(source.fileno(), file.fileno(), 0, size)
        made[target] = record
    return made


def _lower(store: Store, layers: dict[str, str]) -> dict[str, str]:
    return {target: store.layer(layer).backing or "" for target, layer in layers.items()}


def present_layers(
    store: Store, machine: MachineRecord, domain: Domain, upper: dict[str, str]
) -> dict[str, str]:
    """Return the layers that the machine writes to now, and drop those that were made for nothing."""
    if not upper:
        return machine.layers
    try:
        from vmlab.hypervisor.domain_xml import disk_chains

        chains = disk_chains(domain.xml()).values() if domain.is_active() else None
        files = {chain[0].stem for chain in chains} if chains is not None else None
    except VMLabError:
        files = None
    # When QEMU is gone, the upper layers are right whether it had come to them or not.
    if files is None or set(upper.values()) <= files:
        return upper
    store.drop_layers(upper)
    return machine.layers


def recover(store: Store, machine: MachineRecord, domain: Domain, pending: Pending) -> None:
    """Put right what a process left that died while it took a live snapshot: the guest goes on, on the right layers."""
    if domain.is_active():
        stream.cancel(domain)
        stream.go_on(domain, pending.state)
    machine.layers = present_layers(store, machine, domain, pending.layers)


def keep_present(store: Store, machine: MachineRecord, domain: Domain, state: str) -> str:
    """Keep a stopped guest's present before a revert abandons it, and return the id of the hidden snapshot.

    Where its RAM is mapped from a snapshot, only the pages that it changed are written. ``state`` is what it was doing
    before it was stopped for this.
    """
    # That it has crashed stands only in the stream of a migration.
    ground = find_ground(store, machine, domain) if state != "crashed" else None
    if ground is not None:
        with contextlib.suppress(delta.NotPossible):
            return _present_delta(store, machine, domain, ground, state)
    return live(store, machine, domain, "before the revert", kind="undo", keep_running=False, state=state)


def _list_changed(
    store: Store, machine: MachineRecord, domain: Domain, pid: int | None, folder: Path
) -> tuple[str | None, str]:
    """Write which pages a guest has changed since its RAM was mapped; return from which snapshot, and the fingerprint.

    Called when its RAM has been written, whether it runs on or not: as long as ``pid``, the QEMU that wrote it, lives,
    a page that was changed stays changed. What has not been changed by now was not when it was written, so it is what
    the origin has. Nothing is listed where that cannot be told; comparisons then read all.
    """
    ground = find_ground(store, machine, domain)
    if ground is None or ground.base.ram is None or pid is None:
        return None, ""
    base, size = ground.base, machine.spec.memory << 20
    try:
        address = delta.mapped_at(pid, ground.mapped, ground.base.ram.pages_offset, size)
        pages = delta.changed(pid, address, size // mapped_ram.PAGE)
    except delta.NotPossible:
        return None, ""
    # No guest has run without a change: a page map that tells of none may be one that tells nothing.
    if domain.pid != pid or not pages.any():
        return None, ""
    if ground.others is not None:
        pages = pages | ground.others
    return base.id, mapped_ram.write_list(folder / "changed", base.id, pages)


def _present_delta(store: Store, machine: MachineRecord, domain: Domain, ground: Ground, state: str) -> str:
    started = time.monotonic()
    snapshot_id, base = new_id(), ground.base
    with store.new_snapshot(snapshot_id) as folder:
        delta_file = delta.Delta(domain, store.snapshot_folder(base.id), folder, ground.others)
        pages = delta.write(delta_file, store.need_space)
        # No picture: nobody sees one of a present that waits for an undo, and it is a tenth of a revert's time.
        record = _delta_record(store, machine, domain, base, folder, snapshot_id, "undo", pages)
        record = replace(record, state=state, total_ms=round((time.monotonic() - started) * 1000, 1))
        _finish(folder, record, Label("before the revert", machine.here))
    return snapshot_id


def _delta_record(
    store: Store,
    machine: MachineRecord,
    domain: Domain,
    base: SnapshotRecord,
    folder: Path,
    snapshot_id: str,
    kind: str,
    pages: Pages,
) -> SnapshotRecord:
    """Add registers and XML to a folder with a delta in it, and describe it."""
    private.write(folder / "registers.txt", domain.hmp("info registers -a").replace("\r", ""))
    private.write(folder / "domain.xml", domain.xml(portable=True))
    _keep_nvram(store, machine, folder)
    return _record(store, machine, snapshot_id, kind, _delta_ram(machine, base, folder, pages))


def _delta_ram(
    machine: MachineRecord, base: SnapshotRecord, folder: Path, pages: Pages, *, fingerprint: bool = False
) -> RamRecord:
    """Describe a delta in a folder, of which these pages differ from the base's, and list them."""
    path = folder / "ram"
    layout = mapped_ram.parse(path)
    return RamRecord(
        size=machine.spec.memory << 20,
        file_size=layout.size,
        pages_offset=layout.main.pages_offset,
        base=base.id,
        digest=mapped_ram.held_digest(path, layout) if fingerprint else "",
        devices_digest=_devices_digest(path, layout),
        origin=base.id,
        changed=mapped_ram.write_list(folder / "changed", base.id, pages),
    )


def may_take(store: Store, machine: MachineRecord, domain: Domain, size: int) -> int:
    """Return the most bytes of RAM that a snapshot of the guest can take: what it has of its own, and what it maps."""
    ground = find_ground(store, machine, domain)
    below = allocated(ground.mapped) if ground is not None else 0
    return min(size, resident(domain, size) + below)


def resident(domain: Domain, size: int) -> int:
    """Return the most bytes of RAM that a snapshot of the guest can take now: what its QEMU has in memory."""
    pid = domain.pid
    if pid is not None:
        with contextlib.suppress(OSError, ValueError):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    return min(size, int(line.split()[1]) << 10)
    return size


def _take_screen(domain: Domain, folder: Path) -> bool:
    """Let QEMU write the screen; whether it has one."""
    with contextlib.suppress(HypervisorError):
        domain.qmp("screendump", filename=str(folder / "screen.ppm"))
        return True
    return False


def dump_screen(store: Store, domain: Domain, folder: Path) -> None:
    """Let QEMU write the screen as ``screen.ppm``.

    Raises
    ------
    NoSpace
        There is no room for it.
    """
    try:
        domain.qmp("screendump", filename=str(folder / "screen.ppm"))
    except HypervisorError as error:
        # QEMU only says that it could not write.
        if store.free() < SCREEN:
            raise NoSpace(
                f"The disk is full: the screen of {domain.name} could not be written.",
                hint="forget snapshots or delete machines (`%vm list` shows what they take), then try again",
                qemu=error,
            ) from error
        raise


def convert_screen(folder: Path) -> str:
    """Turn ``screen.ppm`` into ``screen.png`` and return the fingerprint of its pixels."""
    from PIL import Image

    source = folder / "screen.ppm"
    with Image.open(source) as picture:
        picture.load()
        digest = hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()
        with private.create(folder / "screen.png") as file:
            picture.save(file, "PNG", compress_level=3)
    source.unlink()
    return digest


def _keep_nvram(store: Store, machine: MachineRecord, folder: Path) -> None:
    source = store.nvram_path(machine)
    if source.exists():
        private.copy(source, folder / NVRAM)


def seal(folder: Path, size: int, *, fingerprint: bool = True) -> RamRecord:
    """Make the file that QEMU wrote fit for mapping, write its thin copy, and describe both.

    A present that is kept for an undo goes without a fingerprint of its RAM: it may never be looked at.
    """
    path = folder / "ram"
    layout = mapped_ram.parse(path)
    mapped_ram.scrub(path, layout)
    mapped_ram.make_thin(path, folder / "thin", layout)
    return RamRecord(
        size=size,
        file_size=layout.size,
        pages_offset=layout.main.pages_offset,
        base=None,
        digest=mapped_ram.digest([(path, layout)]) if fingerprint else "",
        devices_digest=_devices_digest(path, layout),
    )


def _devices_digest(path: Path, layout: mapped_ram.Layout) -> str:
    return hashlib.sha256(mapped_ram.device_bytes(path, layout)).hexdigest()


def _record(
    store: Store, machine: MachineRecord, snapshot_id: str, kind: str, ram: RamRecord | None
) -> SnapshotRecord:
    return SnapshotRecord(
        id=snapshot_id,
        kind=kind,
        machine=machine.uuid if kind != "ready" else "",
        machine_name=machine.name,
        image=machine.image,
        created=now(),
        spec=machine.spec,
        layers=dict(machine.layers),
        ram=ram,
        mac=machine.mac,
        macs=telling.macs(store, machine.name, snapshot_id),
        genid=machine.genid,
        forwards=machine.forwards,
        address=machine.address,
        nvram=store.nvram_path(machine).exists(),
        qemu=versions(store.account)["qemu"],
        host_cpu=host_cpu() if machine.spec.cpu == "host-passthrough" else "",
        boot=boot_id(),
        scenario=machine.scenario,
    )


def _finish(folder: Path, record: SnapshotRecord, label: Label) -> None:
    """Write the label, and the manifest last."""
    there = [name for name in SMALL if (folder / name).exists()]
    record = replace(record, files={name: file_digest(folder / name) for name in there})
    label = replace(label, machine=record.machine, kind=record.kind)
    write_json(folder / "label.json", label.to_json())
    write_json(folder / "manifest.json", record.to_json())


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a small file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sizes(store: Store, record: SnapshotRecord) -> tuple[int, int]:
    """Return the bytes on disk of a snapshot's RAM and of its own disk layers."""
    folder = store.snapshot_folder(record.id)
    ram = allocated(folder / "ram") + allocated(folder / "thin")
    return ram, sum(allocated(store.layer_path(layer)) for layer in record.layers.values())
