"""Snapshots of a machine: live, with RAM, devices and CPUs; or of its disks alone."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from vmlab.engine import delta, interrupts, mapped_ram
from vmlab.errors import HypervisorError, NoSpace, VMLabError, WrongState
from vmlab.hypervisor.domain import Domain, Events, versions
from vmlab.store.records import (
    Label,
    LayerRecord,
    MachineRecord,
    RamRecord,
    SnapshotRecord,
    new_id,
    now,
    write_json,
)
from vmlab.store.store import Store, allocated

#: Threads that write the pages. Two are enough to reach the speed of the page cache on the machines measured.
CHANNELS = 2
#: QEMU stops the guest when what is left can be written in this many milliseconds; when a busy guest dirties its memory
#: faster than that, the bound is raised step by step, so that a snapshot always ends.
DOWNTIME_STEPS_MS = (20, 100, 400, 2000)
STEP_SECONDS = 4.0
#: A migration that was started while the last one was being cleaned up is refused; trying again some milliseconds later
#: works (QEMU's "duplicate yank instance").
START_TRIES = 40
#: What QEMU calls a migration that has not ended, and the seconds that it is given to end when it is cancelled.
_UNDER_WAY = ("setup", "active", "device", "pre-switchover", "cancelling", "wait-unplug")
CANCEL_SECONDS = 10.0
#: Seconds for which a guest that stands still is tried to be let go on.
INSIST_SECONDS = 15.0


def boot_id() -> str:
    """Return the host's boot ID."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def host_cpu() -> str:
    """Return the host's CPU model, as /proc/cpuinfo names it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


@dataclass
class _Pause:
    """When the guest stopped and went on, by QEMU's own clock."""

    stopped: float | None = None
    resumed: float | None = None

    @property
    def milliseconds(self) -> float | None:
        if self.stopped is None or self.resumed is None:
            return None
        return round((self.resumed - self.stopped) * 1000, 1)


def offline(
    store: Store,
    machine: MachineRecord,
    name: str,
    description: str,
    kind: str = "snapshot",
    identity: str | None = None,
) -> str:
    """Freeze the disks of a machine that is off, and return the new snapshot's id; the machine gets new layers.

    It holds no RAM; what a suspended machine would continue is a snapshot already.
    """
    identity = identity or new_id()
    record, lower = _record(store, machine, identity, kind, ram=None), machine.layers
    # The machine moves to its new layers first: if we die before the snapshot is there, they were made for nothing; the
    # other way round, the machine would go on writing to the snapshot's disks.
    machine.layers = store.add_layers(lower)
    try:
        store.save_machine(machine)
        with store.new_snapshot(identity) as folder:
            _keep_nvram(store, machine, folder)
            _finish(folder, record, Label(name, machine.here, description))
    except BaseException:
        with interrupts.held():
            upper, machine.layers = machine.layers, lower
            store.save_machine(machine)
            store.drop_layers(upper)
        raise
    if kind == "snapshot":
        machine.here = identity
        store.save_machine(machine)
    return identity


def glimpse(
    store: Store, machine: MachineRecord, domain: Domain, state: str, identity: str, most: int
) -> SnapshotRecord:
    """Keep the present of a machine for a moment, to look at it, and return the hidden snapshot.

    The machine goes on as it was, on the same disks unless their top layers hold more than ``most`` bytes: then it gets
    new ones, as in any snapshot. ``state`` is what the machine is doing.
    """
    size = sum(allocated(store.layer_path(layer)) for layer in machine.layers.values())
    small = size <= most
    if state == "off" and not small:
        offline(store, machine, "present", "", kind="present", identity=identity)
        return store.snapshot(identity)
    if state not in ("running", "paused"):
        # What is off, or has crashed and stands still, writes to no disk.
        store.need_space(size, "to look at it")
        record = _record(store, machine, identity, "present", ram=None)
        record = replace(record, layers=store.keep_layers(copy_layers(store, machine.layers)), state=state)
        with store.new_snapshot(identity) as folder:
            _finish(folder, record, Label("present", machine.here))
        return record
    base = mapped_base(store, machine)
    if state == "paused" and small and base is not None:
        # After a migration QEMU gives a paused guest back only by letting it run for a moment; this way it never does.
        with contextlib.suppress(delta.NotPossible):
            return _glimpse_paused(store, machine, domain, base, identity)
    live(store, machine, domain, "present", kind="present", identity=identity, copy=small)
    return store.snapshot(identity)


def _glimpse_paused(
    store: Store, machine: MachineRecord, domain: Domain, base: SnapshotRecord, identity: str
) -> SnapshotRecord:
    with store.new_snapshot(identity) as folder:
        thin = store.snapshot_folder(base.id) / "thin"
        delta.write(domain, thin, folder, store.need_space, goes_on=True)
        layers = store.keep_layers(copy_layers(store, machine.layers))
        screen = _take_screen(domain, folder)
        record = _delta_record(store, machine, domain, base, folder, identity, "present")
        record = replace(
            record, layers=layers, state="paused", screen=convert_screen(folder) if screen else None
        )
        _finish(folder, record, Label("present", machine.here))
    return record


def live(
    store: Store,
    machine: MachineRecord,
    domain: Domain,
    name: str,
    description: str = "",
    *,
    kind: str = "snapshot",
    keep_running: bool = True,
    parent: str | None = None,
    state: str | None = None,
    ready_key: str | None = None,
    identity: str | None = None,
    copy: bool = False,
) -> str:
    """Take a live snapshot of a machine and return its id; the guest goes on as it was, running or paused.

    Parameters
    ----------
    keep_running
        False where the guest is ended next (a revert): its disks are frozen as they are, and it stays stopped.
    state
        What the guest was doing before it was paused for this; by default what it is doing.
    parent
        What the snapshot hangs on in the tree; by default where the machine stands.
    identity
        The new snapshot's id; by default a new one.
    copy
        Copy what the top layers of its disks hold while it stands still, instead of putting new ones over them: the
        machine's disks stay what they are, for a snapshot that will be gone in a moment.

    Raises
    ------
    NoSpace
        The disk is, or became, full. The guest goes on.
    HypervisorError
        QEMU or libvirt failed. The guest goes on unless it was QEMU that ended.
    """
    started = time.monotonic()
    now_is = domain.state()
    if now_is not in ("running", "paused"):
        raise WrongState(f"{machine.name} is {now_is}; a live snapshot needs a running or paused guest.")
    state = state or now_is
    identity = identity or new_id()
    size = machine.spec.memory << 20
    pid = domain.pid
    pause = _Pause()
    upper: dict[str, str] = {}
    copies: dict[str, LayerRecord] = {}
    with store.new_snapshot(identity) as folder, domain.events() as events:
        if keep_running:
            if not copy:
                upper = store.add_layers(machine.layers, live=True)
            # Whoever finds this after a crash continues on the upper layers: empty, or written to, they are right.
            machine.pending = {"doing": "snapshot", "layers": upper, "state": state}
            store.save_machine(machine)
        try:
            write_stream(domain, folder, may_take(store, machine, domain, size), store, events, pause)
            if upper:
                domain.switch_disks({target: store.layer_path(layer) for target, layer in upper.items()})
            elif copy:
                copies = copy_layers(store, machine.layers)
            registers = domain.hmp("info registers -a")
            screen = _take_screen(domain, folder) if kind != "undo" else None
            _keep_nvram(store, machine, folder)
        finally:
            if keep_running:
                with interrupts.held():
                    go_on(domain, state, events, pause)
                    machine.layers, machine.pending = present_layers(store, machine, domain, upper), None
                    store.save_machine(machine)
        with ThreadPoolExecutor(1, thread_name_prefix="vmlab-changed") as pool:
            # The kernel takes some 10 ms for 1 GiB to tell; what else there is to do takes longer.
            changed = pool.submit(_list_changed, store, machine, domain, pid, folder)
            (folder / "registers.txt").write_text(registers.replace("\r", ""))
            (folder / "domain.xml").write_text(domain.xml(portable=True))
            if screen is not None:
                screen = convert_screen(folder)
            ram = seal(folder, size, fingerprint=kind not in ("undo", "present"))
            origin, digest = changed.result()
        ram = replace(ram, origin=origin, changed=digest)
        record = _record(store, machine, identity, kind, ram)
        if copy:
            layers = store.keep_layers(copies)
        else:
            layers = record.layers if not keep_running else _lower(store, machine.layers)
        record = replace(
            record,
            layers=layers,
            screen=screen,
            state=state,
            pause_ms=pause.milliseconds,
            total_ms=round((time.monotonic() - started) * 1000, 1),
            ready_key=ready_key,
        )
        _finish(folder, record, Label(name, parent if parent is not None else machine.here, description))
    if kind == "snapshot":
        machine.here = identity
        store.save_machine(machine)
    return identity


def copy_layers(store: Store, layers: dict[str, str]) -> dict[str, LayerRecord]:
    """Copy the files of disk layers that nobody writes to now, over what they stand on.

    QEMU has written all that it had in memory when it stopped the guest. ``Store.keep_layers`` writes the records: not
    here, where a guest may stand still for it.
    """
    made = {}
    for target, layer in layers.items():
        record = replace(store.layer(layer), id=new_id(), flat=None)
        path = store.layer_path(record.id)
        with store.layer_path(layer).open("rb") as source, path.open("xb") as file:
            size = os.fstat(source.fileno()).st_size
            os.ftruncate(file.fileno(), size)
            mapped_ram.copy_range(source.fileno(), file.fileno(), 0, size)
        store.account.own(path)
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
        from vmlab.hypervisor.domain_xml import disk_files

        files = {path.stem for path in disk_files(domain.xml()).values()} if domain.is_active() else None
    except VMLabError:
        files = None
    # When QEMU is gone, the upper layers are right whether it had come to them or not.
    if files is None or set(upper.values()) <= files:
        return upper
    store.drop_layers(upper)
    return machine.layers


def present(store: Store, machine: MachineRecord, domain: Domain, state: str) -> str:
    """Keep a stopped guest's present before a revert abandons it, and return the id of the hidden snapshot.

    Where its RAM is mapped from a snapshot, only the pages that it changed are written. ``state`` is what it was doing
    before it was stopped for this.
    """
    base = mapped_base(store, machine)
    if base is not None:
        with contextlib.suppress(delta.NotPossible):
            return _present_delta(store, machine, domain, base, state)
    return live(store, machine, domain, "before the revert", kind="undo", keep_running=False, state=state)


def mapped_base(store: Store, machine: MachineRecord) -> SnapshotRecord | None:
    """Return the snapshot whose file a running machine's RAM is mapped from, or None if it booted."""
    if machine.mapped is None:
        return None
    with contextlib.suppress(VMLabError):
        record = store.snapshot(machine.mapped)
        if record.ram is not None and record.ram.base is not None:
            record = store.snapshot(record.ram.base)
        if record.ram is not None and (store.snapshot_folder(record.id) / "thin").exists():
            return record
    return None


def _list_changed(
    store: Store, machine: MachineRecord, domain: Domain, pid: int | None, folder: Path
) -> tuple[str | None, str]:
    """Write which pages a guest has changed since its RAM was mapped; return from which snapshot, and the fingerprint.

    Called when its RAM has been written, whether it runs on or not: as long as ``pid``, the QEMU that wrote it, lives,
    a page that was changed stays changed. What has not been changed by now was not when it was written, so it is what
    the origin has. Nothing is listed where that cannot be told; comparisons then read all.
    """
    base = mapped_base(store, machine)
    if base is None or base.ram is None or pid is None:
        return None, ""
    size = machine.spec.memory << 20
    try:
        address = delta.mapped_at(pid, store.snapshot_folder(base.id) / "ram", base.ram.pages_offset, size)
        pages = delta.changed(pid, address, size // mapped_ram.PAGE)
    except delta.NotPossible:
        return None, ""
    # No guest has run without a change: a page map that tells of none may be one that tells nothing.
    if domain.pid != pid or not pages.any():
        return None, ""
    return base.id, mapped_ram.write_list(folder / "changed", base.id, pages)


def _present_delta(
    store: Store, machine: MachineRecord, domain: Domain, base: SnapshotRecord, state: str
) -> str:
    started = time.monotonic()
    identity = new_id()
    with store.new_snapshot(identity) as folder:
        delta.write(domain, store.snapshot_folder(base.id) / "thin", folder, store.need_space)
        # No picture: nobody sees one of a present that waits for an undo, and it is a tenth of a revert's time.
        record = _delta_record(store, machine, domain, base, folder, identity, "undo")
        record = replace(record, state=state, total_ms=round((time.monotonic() - started) * 1000, 1))
        _finish(folder, record, Label("before the revert", machine.here))
    return identity


def _delta_record(
    store: Store,
    machine: MachineRecord,
    domain: Domain,
    base: SnapshotRecord,
    folder: Path,
    identity: str,
    kind: str,
) -> SnapshotRecord:
    """Add registers and XML to a folder with a delta in it, and describe it."""
    (folder / "registers.txt").write_text(domain.hmp("info registers -a").replace("\r", ""))
    (folder / "domain.xml").write_text(domain.xml(portable=True))
    _keep_nvram(store, machine, folder)
    layout = mapped_ram.parse(folder / "ram")
    with (folder / "ram").open("rb") as file:
        pages = mapped_ram.read_bitmap(file.fileno(), layout.main)
    ram = RamRecord(
        size=machine.spec.memory << 20,
        file_size=layout.size,
        pages_offset=layout.main.pages_offset,
        base=base.id,
        digest="",
        devices_digest=_devices_digest(folder / "ram", layout),
        origin=base.id,
        changed=mapped_ram.write_list(folder / "changed", base.id, pages),
    )
    return _record(store, machine, identity, kind, ram)


def may_take(store: Store, machine: MachineRecord, domain: Domain, size: int) -> int:
    """Return the most bytes of RAM that a snapshot of the guest can take: what it has of its own, and what it maps."""
    base = mapped_base(store, machine)
    below = allocated(store.snapshot_folder(base.id) / "ram") if base is not None else 0
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


def write_stream(
    domain: Domain, folder: Path, expected: int, store: Store, events: Events, pause: _Pause | None = None
) -> None:
    """Let QEMU write RAM and devices into ``folder/ram``; the guest is stopped when this returns."""
    pause = pause or _Pause()
    store.need_space(expected, "for this snapshot")
    target = f"file:{folder / 'ram'},offset={mapped_ram.STREAM_OFFSET}"
    _set_capabilities(domain, on=True)
    domain.qmp(
        "migrate-set-parameters",
        max_bandwidth=1 << 50,
        multifd_channels=CHANNELS,
        downtime_limit=DOWNTIME_STEPS_MS[0],
    )
    for attempt in range(START_TRIES):
        try:
            domain.qmp("migrate", uri=target)
            break
        except HypervisorError as error:
            if "yank" not in str(error) or attempt == START_TRIES - 1:
                raise
            time.sleep(0.01)
    try:
        _wait(domain, events, pause)
    except BaseException:
        cancel(domain)
        raise


def ended(domain: Domain, error: BaseException) -> HypervisorError | None:
    """Return the error that tells that a guest has ended under our hands, if that is why ``error`` came."""
    if not isinstance(error, HypervisorError | WrongState):
        return None
    with contextlib.suppress(VMLabError):
        # Our own look at the process: libvirt hears of its end some moments later.
        if domain.pid is None or not domain.is_active():
            return HypervisorError(
                f"{domain.name} ended while this was done: its QEMU process is gone. Its snapshots are as they were.",
                hint=f"boot it with `%vm start {domain.name}`, or go back with `%vm revert {domain.name}`",
            )
    return None


def cancel(domain: Domain) -> None:
    """End a migration to a file, if there is one, and wait until QEMU is done with it."""
    end = time.monotonic() + CANCEL_SECONDS
    with contextlib.suppress(VMLabError):
        if domain.qmp("query-migrate").get("status") not in _UNDER_WAY:
            return
        domain.qmp("migrate_cancel")
        while domain.qmp("query-migrate").get("status") in _UNDER_WAY and time.monotonic() < end:
            time.sleep(0.01)


def _set_capabilities(domain: Domain, *, on: bool) -> None:
    names = ("mapped-ram", "multifd")
    domain.qmp("migrate-set-capabilities", capabilities=[{"capability": n, "state": on} for n in names])


def _wait(domain: Domain, events: Events, pause: _Pause) -> None:
    started, step = time.monotonic(), 1
    while True:
        event = events.next(0.5)
        if event is None:
            # Events get lost when libvirtd is restarted; asking costs little at this pace.
            status = domain.qmp("query-migrate")
            name = status.get("status")
        elif event.name == "STOP":
            pause.stopped = event.at
            continue
        elif event.name == "MIGRATION":
            name = event.data.get("status")
        else:
            continue
        if name == "completed":
            if pause.stopped is None:
                pause.stopped = event.at if event else time.time()
            return
        if name in ("failed", "cancelled"):
            why = domain.qmp("query-migrate").get("error-desc", "")
            if "No space left" in why or "No space" in why or domain_disk_full(domain, why):
                raise NoSpace(
                    f"The disk became full while the snapshot of {domain.name} was written; the guest goes on.",
                    hint="forget snapshots or delete machines, then try again",
                    qemu=why,
                )
            raise HypervisorError(f"QEMU could not write the snapshot of {domain.name}.", qemu=why or name)
        if time.monotonic() - started > STEP_SECONDS * step and step < len(DOWNTIME_STEPS_MS):
            domain.qmp("migrate-set-parameters", downtime_limit=DOWNTIME_STEPS_MS[step])
            step += 1


def domain_disk_full(domain: Domain, why: str) -> bool:
    """Whether a failed write is told by a full disk: QEMU's multifd threads do not always say why they failed."""
    found = os.statvfs(domain.serial_log.parent)
    return "writ" in why.lower() and found.f_bavail * found.f_frsize < 16 << 20


def go_on(domain: Domain, state: str, events: Events | None = None, pause: _Pause | None = None) -> None:
    """Let the guest go on as it was before the snapshot, whatever happened in between."""
    with contextlib.suppress(VMLabError):
        if state == "running":
            # QEMU's own command instead of libvirt's: it is some milliseconds faster, and libvirt follows the event.
            _insist(domain, "cont")
            while events is not None and (event := events.next(1.0)) is not None:
                if event.name == "RESUME":
                    if pause is not None:
                        pause.resumed = event.at
                    break
        elif domain.qmp("query-status").get("status") == "postmigrate":
            # A paused guest must leave the state after a migration, in which its disks are closed.
            domain.qmp("cont")
            domain.qmp("stop")
        _set_capabilities(domain, on=False)


def _insist(domain: Domain, command: str) -> None:
    """Run a monitor command that must get through: a libvirtd that is being restarted is waited for."""
    end = time.monotonic() + INSIST_SECONDS
    while True:
        try:
            domain.qmp(command)
            return
        except VMLabError:
            if domain.pid is None or time.monotonic() > end:
                raise
            time.sleep(0.05)


def _take_screen(domain: Domain, folder: Path) -> str | None:
    """Let QEMU write the screen; None for a machine without one."""
    with contextlib.suppress(HypervisorError):
        domain.qmp("screendump", filename=str(folder / "screen.ppm"))
        return "taken"
    return None


def convert_screen(folder: Path) -> str:
    """Turn ``screen.ppm`` into ``screen.png`` and return the fingerprint of its pixels."""
    from PIL import Image

    source = folder / "screen.ppm"
    with Image.open(source) as picture:
        picture.load()
        digest = hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()
        picture.save(folder / "screen.png", compress_level=3)
    source.unlink()
    return digest


def _keep_nvram(store: Store, machine: MachineRecord, folder: Path) -> None:
    source = store.machine_folder(machine.name) / "nvram.fd"
    if source.exists():
        (folder / "nvram.fd").write_bytes(source.read_bytes())


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
    store: Store, machine: MachineRecord, identity: str, kind: str, ram: RamRecord | None
) -> SnapshotRecord:
    return SnapshotRecord(
        id=identity,
        kind=kind,
        machine=machine.uuid if kind != "ready" else "",
        machine_name=machine.name,
        image=machine.image,
        created=now(),
        spec=machine.spec,
        layers=dict(machine.layers),
        ram=ram,
        mac=machine.mac,
        genid=machine.genid,
        forwards=machine.forwards,
        address=machine.address,
        nvram=(store.machine_folder(machine.name) / "nvram.fd").exists(),
        qemu=versions(store.account)["qemu"],
        host_cpu=host_cpu() if machine.spec.cpu == "host-passthrough" else "",
        boot=boot_id(),
    )


def _finish(folder: Path, record: SnapshotRecord, label: Label) -> None:
    """Write the label, and the manifest last."""
    write_json(folder / "label.json", label.to_json())
    write_json(folder / "manifest.json", record.to_json())


def sizes(store: Store, record: SnapshotRecord) -> tuple[int, int]:
    """Return the bytes on disk of a snapshot's RAM and of its own disk layers."""
    folder = store.snapshot_folder(record.id)
    ram = allocated(folder / "ram") + allocated(folder / "thin")
    return ram, sum(allocated(store.layer_path(layer)) for layer in record.layers.values())


__all__ = [
    "boot_id",
    "cancel",
    "convert_screen",
    "copy_layers",
    "ended",
    "glimpse",
    "go_on",
    "host_cpu",
    "live",
    "mapped_base",
    "may_take",
    "offline",
    "present",
    "present_layers",
    "resident",
    "seal",
    "sizes",
    "write_stream",
]
