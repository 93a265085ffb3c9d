"""Starting machines: from a snapshot, with its RAM mapped copy-on-write; or by booting."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

from vmlab.engine import mapped_ram
from vmlab.engine.save import boot_id, host_cpu
from vmlab.errors import HypervisorError, ImageMissing, SnapshotDamaged, SnapshotIncompatible, VMLabError
from vmlab.hypervisor import domain_xml
from vmlab.hypervisor.account import find_program
from vmlab.hypervisor.domain import Domain, has_machine, versions
from vmlab.store.records import FIRST_ADDRESS, MachineRecord, MachineSpec, SnapshotRecord
from vmlab.store.store import Store

LOAD_TIMEOUT = 60.0


def check(store: Store, record: SnapshotRecord) -> None:
    """Refuse a snapshot that cannot be continued, before anything is touched.

    Sizes are always checked; the contents of the RAM once after each boot of the host, because what was in memory only
    when the host went down may not have reached the disk.

    Raises
    ------
    SnapshotDamaged
        A file is missing or has another size or content than it had.
    SnapshotIncompatible
        It was taken by a newer QEMU, another accelerator, or on another CPU.
    """
    folder = store.snapshot_folder(record.id)
    name = store.label(record.id).name
    for layer in record.layers.values():
        _check_chain(store, layer, f"snapshot '{name}'")
    _check_base(store, record.spec, f"snapshot '{name}'", record.image)
    if record.ram is None:
        return
    have = versions(store.account)["qemu"]
    if _numbers(have)[:2] < _numbers(record.qemu)[:2]:
        raise SnapshotIncompatible(
            f"The snapshot was taken with QEMU {record.qemu}, and this host has {have}, which is older.",
            hint=f"install QEMU {record.qemu} or newer, or boot the machine from its disk with `%vm start --boot NAME`",
        )
    if record.host_cpu and record.host_cpu != host_cpu():
        raise SnapshotIncompatible(
            f"The snapshot was taken on another CPU ({record.host_cpu}) and uses all it has; this one is {host_cpu()}.",
            hint="continue it on a host with that CPU",
        )
    if not has_machine(store.account, record.spec.machine_type, record.spec.accelerator):
        raise SnapshotIncompatible(
            f"The snapshot '{name}' is of a machine of type {record.spec.machine_type} under "
            f"{record.spec.accelerator}, which QEMU {have} on this host does not have.",
            hint=f"install QEMU {record.qemu}, or make a new machine from the image '{record.image}'",
        )
    base = record if record.ram.base is None else store.snapshot(record.ram.base)
    for part in (record, base):
        assert part.ram is not None
        path = store.snapshot_folder(part.id) / "ram"
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise mapped_ram.damaged(path, "is missing") from None
        if size != part.ram.file_size:
            raise mapped_ram.damaged(path, f"has {size} bytes instead of {part.ram.file_size}")
    for file in ("domain.xml", *(["nvram.fd"] if record.nvram else [])):
        if not (folder / file).exists():
            raise mapped_ram.damaged(folder / file, "is missing")
    _check_devices(folder / ("thin" if record.ram.base is None else "ram"), record.ram.devices_digest)
    for part in {record.id: record, base.id: base}.values():
        checked = store.home / "cache" / "checked" / part.id
        if part.boot != boot_id() and not (checked.exists() and checked.read_text() == boot_id()):
            check_contents(store, part)
            with contextlib.suppress(OSError):
                store.account.make_dir(checked.parent)
                checked.write_text(boot_id())


def check_contents(store: Store, record: SnapshotRecord) -> None:
    """Compare the RAM and the devices' state of a snapshot with their fingerprints.

    Raises
    ------
    SnapshotDamaged
        They differ.
    """
    assert record.ram is not None
    path = store.snapshot_folder(record.id) / "ram"
    _check_devices(path, record.ram.devices_digest)
    if record.ram.digest and ram_digest(store, record) != record.ram.digest:
        raise mapped_ram.damaged(path, "does not hold the RAM that was saved any more")


def _check_devices(path: Path, digest: str) -> None:
    import hashlib

    if hashlib.sha256(mapped_ram.device_bytes(path, mapped_ram.parse(path))).hexdigest() != digest:
        raise mapped_ram.damaged(path, "does not hold the state of the devices any more")


def _check_base(store: Store, spec: MachineSpec, what: str, image: str) -> None:
    for file in (spec.kernel, spec.initrd, *spec.cdroms):
        if file and not (store.home / "bases" / spec.base / file).exists():
            raise ImageMissing(
                f"The file {file} that {what} starts with is gone.",
                hint=f"build or import the image '{image}' again and make a new machine",
                file=store.home / "bases" / spec.base / file,
            )


def ram_digest(store: Store, record: SnapshotRecord) -> str:
    """Return the fingerprint of the RAM as the files hold it now."""
    assert record.ram is not None
    chain = [record.id] if record.ram.base is None else [record.ram.base, record.id]
    paths = [store.snapshot_folder(s) / "ram" for s in chain]
    return mapped_ram.digest([(path, mapped_ram.parse(path)) for path in paths])


def _check_chain(store: Store, layer: str, what: str) -> None:
    try:
        for record in store.layer_chain(layer):
            with store.layer_path(record.id).open("rb") as file:
                if file.read(4) != b"QFI\xfb":
                    raise ValueError(file.name)
            if record.base and not (store.home / "bases" / record.base).exists():
                raise ImageMissing(
                    f"A disk that {what} stands on, {record.base}, is gone.",
                    hint=f"bring it back from a backup to {store.home / 'bases'}",
                )
    except (FileNotFoundError, ValueError) as error:
        raise SnapshotDamaged(
            f"A disk layer of {what} is {'damaged' if isinstance(error, ValueError) else 'gone'}.",
            hint="go back to another snapshot (`%vm tree` shows them)",
            layer=getattr(error, "filename", None) or error,
        ) from error


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def wiring(
    store: Store, machine: MachineRecord, *, ram: domain_xml.MappedRam | None = None
) -> domain_xml.Wiring:
    """Return what ties the next start of a machine to its files."""
    folder = store.machine_folder(machine.name)
    return domain_xml.Wiring(
        name=machine.name,
        uuid=machine.uuid,
        genid=machine.genid,
        mac=machine.mac,
        base=store.home / "bases" / machine.spec.base,
        serial_log=folder / "serial.log",
        disks={target: store.layer_path(layer) for target, layer in machine.layers.items()},
        sound_file=folder / f"sound-{machine.starts}.wav" if machine.spec.sound == "wav" else None,
        nvram=folder / "nvram.fd",
        ram=ram,
    )


def boot(store: Store, machine: MachineRecord, domain: Domain) -> None:
    """Start a machine by booting it from its disk or kernel.

    Raises
    ------
    ImageMissing
        A file that it boots from is gone.
    """
    spec = machine.spec
    _check_base(store, spec, machine.name, machine.image)
    for layer in machine.layers.values():
        _check_chain(store, layer, machine.name)
    machine.starts += 1
    domain.create(domain_xml.build(spec, wiring(store, machine)), paused=False)
    machine.address = FIRST_ADDRESS
    machine.mapped = machine.resume = None
    forward(machine, domain)


def define(store: Store, machine: MachineRecord, domain: Domain) -> None:
    """Make a machine known to libvirt also when it does not run."""
    domain.define(domain_xml.build(machine.spec, wiring(store, machine)))


def resume(
    store: Store,
    machine: MachineRecord,
    domain: Domain,
    record: SnapshotRecord,
    *,
    paused: bool = False,
    isolated: bool = False,
) -> None:
    """Start a machine in the state of a live snapshot; its layers must already stand on the snapshot's.

    Parameters
    ----------
    paused
        Leave it stopped before its first instruction.
    isolated
        Nothing that it sends gets out, and nothing gets in; its network card does not notice.

    Raises
    ------
    HypervisorError
        QEMU could not start or did not accept the state; no QEMU is left running.
    """
    assert record.ram is not None
    base = record if record.ram.base is None else store.snapshot(record.ram.base)
    assert base.ram is not None
    folder = store.snapshot_folder(record.id)
    ram = domain_xml.MappedRam(
        path=store.snapshot_folder(base.id) / "ram",
        offset=base.ram.pages_offset,
        size=base.ram.size,
        object_id=mapped_ram.MAPPED_RAM,
        emulator=starter(store),
    )
    stream = folder / ("thin" if record.ram.base is None else "ram")
    if record.nvram:
        _restore_nvram(store, machine, folder)
    machine.starts += 1
    xml = domain_xml.adapt((folder / "domain.xml").read_text(), wiring(store, machine, ram=ram))
    domain.create(xml, paused=True)
    try:
        if isolated and machine.spec.network == "user":
            # Cut on the host's side: the state that is loaded next says that the card's own link is up.
            domain.qmp("set_link", name="hostnet0", up=False)
        domain.qmp("migrate-set-capabilities", capabilities=[{"capability": "mapped-ram", "state": True}])
        domain.qmp("migrate-incoming", uri=f"file:{stream},offset={mapped_ram.STREAM_OFFSET}")
        _wait_loaded(domain)
        domain.qmp("migrate-set-capabilities", capabilities=[{"capability": "mapped-ram", "state": False}])
        forward(machine, domain)
        if not paused:
            domain.resume()
        machine.mapped, machine.resume = record.id, None
    except BaseException as error:
        gone = isinstance(error, VMLabError) and domain.pid is None
        with contextlib.suppress(HypervisorError):
            domain.destroy()
        if gone:
            raise HypervisorError(
                f"QEMU ended while it took up the saved state of {domain.name}.",
                hint="is there room on the disk, and RAM (`%vm limits`)? Otherwise go back to another snapshot",
                libvirt=error,
            ) from error
        raise


def starter(store: Store) -> Path:
    """Return the program that starts QEMU with the mapped RAM as its first object, making it if need be.

    libvirt puts its own RAM first and any arguments of ours last. But while a live snapshot is written, QEMU's CPU
    emulation notices further writes to pages only in the first RAM of all: a snapshot of a busy fork would miss some.
    (``cpu_physical_memory_sync_dirty_bitmap`` passes an offset in the block where ``tlb_reset_dirty_range_all`` wants
    one in all RAM; QEMU 10.0.)
    """
    qemu = find_program("qemu-system-x86_64")
    if qemu is None:
        raise HypervisorError("QEMU is not installed.", hint="`vmlab doctor` shows what is missing")
    # libvirt remembers what a QEMU can do by its path and age: another QEMU needs another starter.
    state = Path(qemu).stat()
    path = store.home / "bin" / f"qemu-{state.st_mtime_ns:x}-{state.st_size:x}"
    if not path.exists():
        store.account.make_dir(path.parent)
        new = path.with_name(f".new-{os.getpid()}-{threading.get_ident()}")
        new.write_text(f'#!/bin/sh\nexec {qemu} ${{VMLAB_RAM:+-object "$VMLAB_RAM"}} "$@"\n')
        new.chmod(0o755)
        store.account.own(new)
        new.replace(path)
    return path


def _restore_nvram(store: Store, machine: MachineRecord, folder: Path) -> None:
    target = store.machine_folder(machine.name) / "nvram.fd"
    new = target.with_name(".nvram.new")
    new.write_bytes((folder / "nvram.fd").read_bytes())
    store.account.own(new)
    new.replace(target)


def is_loaded(domain: Domain) -> bool:
    """Whether a QEMU that was started to continue a state has all of it."""
    with contextlib.suppress(HypervisorError):
        return bool(domain.qmp("query-migrate").get("status") == "completed")
    return False


def _wait_loaded(domain: Domain) -> None:
    started = time.monotonic()
    pause = 0.001
    while True:
        status = domain.qmp("query-migrate").get("status")
        if status == "completed":
            return
        if status == "failed" or time.monotonic() - started > LOAD_TIMEOUT:
            why = domain.qmp("query-migrate").get("error-desc", status)
            raise HypervisorError(f"QEMU did not accept the saved state of {domain.name}.", qemu=why)
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)


def forward(machine: MachineRecord, domain: Domain, *, again: bool = False) -> None:
    """Forward the machine's ports on loopback; a host port that is taken gives way to a free one.

    Parameters
    ----------
    again
        They are forwarded already, but the guest's address has changed.
    """
    if machine.spec.network != "user" or not machine.forwards:
        return
    done = []
    for host, guest in machine.forwards:
        if again:
            domain.hmp(f"hostfwd_remove hostnet0 tcp:127.0.0.1:{host}")
        for port in (host, free_port()):
            answer = domain.hmp(
                f"hostfwd_add hostnet0 tcp:127.0.0.1:{port}-{machine.address}:{guest}"
            ).strip()
            if not answer:
                done.append((port, guest))
                break
        else:
            raise HypervisorError(f"Port {guest} of {machine.name} could not be forwarded.", qemu=answer)
    machine.forwards = tuple(done)


def free_port() -> int:
    """Return a TCP port on loopback that nobody uses now."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def memory_taken(pid: int) -> dict[str, int]:
    """Return the bytes of memory that a process takes: ``{"pss", "private", "shared", "rss"}``.

    PSS counts a page that N processes share as 1/N; private is what ending the process would give back.
    """
    found = {"pss": 0, "private": 0, "shared": 0, "rss": 0}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            key, _, rest = line.partition(":")
            if rest.strip().endswith("kB"):
                value = int(rest.split()[0]) << 10
                if key == "Pss":
                    found["pss"] = value
                elif key == "Rss":
                    found["rss"] = value
                elif key in ("Private_Clean", "Private_Dirty"):
                    found["private"] += value
                elif key in ("Shared_Clean", "Shared_Dirty"):
                    found["shared"] += value
    return found


def available_memory() -> int:
    """Return the bytes of RAM that programs can still take without swapping (MemAvailable, or the cgroup's rest)."""
    found = 0
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            found = int(line.split()[1]) << 10
    with contextlib.suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines():
            # The page cache counts as used there, and is given up when it is needed.
            if line.startswith(("active_file ", "inactive_file ")):
                used -= int(line.split()[1])
        found = min(found, max(limit - max(used, 0), 0))
    return found or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
