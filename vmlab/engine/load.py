"""Starting machines: from a snapshot, with its RAM mapped copy-on-write; or by booting."""

from __future__ import annotations

import contextlib
import hashlib
import time
from pathlib import Path
from typing import Any

from vmlab import private
from vmlab.engine import fold, mapped_ram, save
from vmlab.errors import (
    HypervisorError,
    ImageMissing,
    NotFound,
    RecordDamaged,
    SnapshotDamaged,
    SnapshotIncompatible,
    VMLabError,
)
from vmlab.hypervisor import domain_xml
from vmlab.hypervisor.account import find_program
from vmlab.hypervisor.domain import Domain, has_machine, versions
from vmlab.hypervisor.host import boot_id, free_port, host_cpu
from vmlab.network import networks, outside
from vmlab.records import FIRST_ADDRESS, Hardware, Link, MachineRecord, Nic, SnapshotRecord, mac_of
from vmlab.store import networks as network_records
from vmlab.store import scenarios
from vmlab.store.store import NVRAM, Store

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
    if record.kind == "damaged":
        # Says how, and what to do.
        store.snapshot(record.id)
    folder = store.snapshot_folder(record.id)
    name = store.label(record.id).name
    for layer in record.layers.values():
        _check_chain(store, layer, f"snapshot '{name}'")
    _check_base(store, record.spec, f"snapshot '{name}'")
    if record.ram is None:
        if record.nvram:
            need_file(store, record, NVRAM)
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
    for file in ("domain.xml", *([NVRAM] if record.nvram else [])):
        need_file(store, record, file)
    _check_devices(folder / ("thin" if record.ram.base is None else "ram"), record.ram.devices_digest)
    for part in {record.id: record, base.id: base}.values():
        checked = store.home / "cache" / "checked" / part.id
        if part.boot != boot_id() and not (checked.exists() and checked.read_bytes() == boot_id().encode()):
            check_contents(store, part)
            with contextlib.suppress(OSError):
                private.folders(checked.parent)
                private.write(checked, boot_id())


def need_file(store: Store, record: SnapshotRecord, name: str) -> Path:
    """Return the path of a small file of a snapshot, and make sure that it is what was written.

    Raises
    ------
    SnapshotDamaged
        It is not, or is gone.
    """
    path = store.snapshot_folder(record.id) / name
    try:
        digest = save.file_digest(path)
    except OSError as error:
        why = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise mapped_ram.damaged(path, why) from error
    if record.files.get(name, digest) != digest:
        raise mapped_ram.damaged(path, "does not hold what was written any more")
    return path


def check_contents(store: Store, record: SnapshotRecord) -> None:
    """Compare the RAM and the devices' state of a snapshot with their fingerprints; not what it stands on.

    Raises
    ------
    SnapshotDamaged
        They differ.
    """
    assert record.ram is not None
    path = store.snapshot_folder(record.id) / "ram"
    _check_devices(path, record.ram.devices_digest)
    layout = mapped_ram.parse(path)
    take = mapped_ram.held_digest if record.ram.base is not None else lambda *file: mapped_ram.digest([file])
    if record.ram.digest and take(path, layout) != record.ram.digest:
        raise mapped_ram.damaged(path, "does not hold the RAM that was saved any more")


def _check_devices(path: Path, digest: str) -> None:
    if hashlib.sha256(mapped_ram.device_bytes(path, mapped_ram.parse(path))).hexdigest() != digest:
        raise mapped_ram.damaged(path, "does not hold the state of the devices any more")


def _check_base(store: Store, spec: Hardware, what: str) -> None:
    for file in (spec.kernel, spec.initrd, *spec.cdroms):
        if file:
            check_base_file(store, spec.base, file, what)


def ram_digest(store: Store, record: SnapshotRecord) -> str:
    """Return the fingerprint of the RAM as the files hold it now."""
    assert record.ram is not None
    chain = [record.id] if record.ram.base is None else [record.ram.base, record.id]
    paths = [store.snapshot_folder(s) / "ram" for s in chain]
    return mapped_ram.digest([(path, mapped_ram.parse(path)) for path in paths])


def _check_chain(store: Store, layer: str, what: str) -> None:
    try:
        for record in store.layer_chain(layer):
            path = store.layer_path(record.id)
            with path.open("rb") as file:
                if file.read(4) != b"QFI\xfb" or record.file_size not in (None, path.stat().st_size):
                    raise RecordDamaged("It is not what it was when it was frozen.", file=path)
            if record.base:
                base, _, name = record.base.partition("/")
                check_base_file(store, base, name, what)
    except (FileNotFoundError, RecordDamaged) as error:
        found = error.evidence.get("file") if isinstance(error, RecordDamaged) else error.filename
        raise SnapshotDamaged(
            f"A disk layer of {what} is {'damaged' if isinstance(error, RecordDamaged) else 'gone'}.",
            hint="bring the file back from a backup, or go back to a snapshot that does not stand on it "
            "(`%vm tree` shows them)",
            file=found,
            why=error.message if isinstance(error, RecordDamaged) else None,
        ) from error


def check_base_file(store: Store, base: str, name: str, what: str) -> None:
    """Make sure that a file of an image is there, and as long as it was when machines began to stand on it.

    Raises
    ------
    ImageMissing
        It is not.
    """
    path = store.base_folder(base) / name
    wanted = store.base(base).get("bytes", {}).get(name)
    size = path.stat().st_size if path.is_file() else None
    if size is None or wanted not in (None, size):
        why = "is gone" if size is None else f"has {size} bytes instead of {wanted}"
        raise ImageMissing(
            f"The file {name} that {what} stands on {why}.",
            hint="bring it back from a backup; or build or import its image again and make a new machine",
            file=path,
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def wiring(
    store: Store,
    machine: MachineRecord,
    *,
    ram: domain_xml.MappedRam | None = None,
    isolated: bool = False,
) -> domain_xml.Wiring:
    """Return what ties the next start of a machine to its files and sockets."""
    folder = store.machine_folder(machine.name)
    return domain_xml.Wiring(
        name=machine.known_as,
        uuid=machine.uuid,
        genid=machine.genid,
        mac=machine.mac,
        base=store.base_folder(machine.spec.base),
        serial_log=folder / "serial.log",
        disks={target: store.layer_path(layer) for target, layer in machine.layers.items()},
        sound_file=folder / f"sound-{machine.starts}.wav" if machine.spec.sound == "wav" else None,
        nvram=folder / NVRAM,
        ram=ram,
        emulator=starter(store),
        cables=_cables(store, machine, isolated=isolated),
    )


def _cables(store: Store, machine: MachineRecord, *, isolated: bool) -> tuple[domain_xml.Cable, ...]:
    """Return what lies between a machine's network cards and where they lead."""
    qemu = _numbers(versions(store.account)["qemu"])
    again = "reconnect-ms=100" if qemu[:2] >= (9, 2) else "reconnect=1"
    cables = []
    for number, card in enumerate(machine.spec.nics):
        if isolated or not card.network:
            cables.append(domain_xml.Cable(number))
        elif card.plugged:
            name = networks.socket_name(network_records.read(store, card.plugged).id, number)
            cables.append(
                domain_xml.Cable(number, networks.SWITCH.socket_path(store.account, name), None, again)
            )
        elif (way := _way(card)) is not None:
            card_end, out = (
                outside.RELAY.socket_path(store.account, outside.socket_name(way, side))
                for side in outside.SIDES
            )
            cables.append(domain_xml.Cable(number, card_end, out, again))
    return tuple(cables)


def _way(card: Nic) -> str | None:
    """Return the way out through the relay that a card has."""
    way = {"user": "internet"}.get(card.network, card.network)
    return way if way in outside.WAYS else None


def open_ways(store: Store, machine: MachineRecord) -> bool:
    """Begin what a machine's cards lead to, and say whether it has need of the relay, which is not waited for."""
    if words := _words(store, machine):
        networks.open_networks(store.account, words)
    needed = any(_way(card) for card in machine.spec.nics)
    if needed:
        outside.RELAY.begin(store.account)
    return needed


def _words(store: Store, machine: MachineRecord) -> dict[str, dict[str, Any]]:
    """Return what the switch is to know of a machine's networks."""
    found: dict[str, dict[str, Any]] = {}
    for number, card in enumerate(machine.spec.nics):
        if card.plugged:
            network = network_records.read(store, card.plugged)
            word = found.setdefault(
                network.id, {"subnet": network.subnet, "floods": network.floods, "leases": {}}
            )
            if card.address:
                word["leases"][mac_of(machine.mac, number)] = card.address
    for name in _networks_of(store, machine.scenario):
        # In each network of its scenario it has a name, which stands for its address there, else its first one.
        network = network_records.read(store, f"{machine.scenario}.{name}")
        own = [card.address for card in machine.spec.nics if card.address]
        here = [card.address for card in machine.spec.nics if card.plugged == network.name and card.address]
        if own:
            word = found.setdefault(network.id, {"subnet": network.subnet, "floods": network.floods})
            word["names"] = {machine.hostname.lower(): (here or own)[0]}
    return found


def _networks_of(store: Store, scenario: str | None) -> tuple[str, ...]:
    """Return the networks of a scenario, if it is there."""
    with contextlib.suppress(NotFound):
        return scenarios.read(store, scenario).networks if scenario else ()
    return ()


def boot(store: Store, machine: MachineRecord, domain: Domain) -> None:
    """Start a machine by booting it from its disk or kernel.

    Raises
    ------
    ImageMissing
        A file that it boots from is gone.
    """
    spec = machine.spec
    _check_base(store, spec, machine.name)
    for layer in machine.layers.values():
        _check_chain(store, layer, machine.name)
    if spec.firmware == "uefi":
        _ready_nvram(store, machine)
    machine.starts += 1
    store.ready_layers(machine)
    if open_ways(store, machine):
        outside.RELAY.need(store.account)
    domain.create(domain_xml.build(spec, wiring(store, machine)), paused=False)
    plug(store, machine, domain, up=True)
    _show_links(machine, domain)
    machine.address = FIRST_ADDRESS
    machine.mapped = machine.continues = None
    forward(store, machine, domain)


def define(store: Store, machine: MachineRecord, domain: Domain) -> None:
    """Make a machine known to libvirt also when it does not run."""
    domain.define(domain_xml.build(machine.spec, wiring(store, machine)))


def start_from(
    store: Store,
    machine: MachineRecord,
    domain: Domain,
    record: SnapshotRecord,
    *,
    paused: bool = False,
    isolated: bool = False,
    shared: bool = False,
) -> None:
    """Start a machine in the state of a live snapshot; its layers must already stand on the snapshot's.

    Parameters
    ----------
    paused
        Leave it stopped before its first instruction.
    isolated
        Nothing that it sends gets out, and nothing gets in; its network card does not notice.
    shared
        It is one of several: a delta is mapped, too, where it is folded.

    Raises
    ------
    HypervisorError
        QEMU could not start or did not accept the state; no QEMU is left running.
    """
    assert record.ram is not None
    base = record if record.ram.base is None else store.snapshot(record.ram.base)
    assert base.ram is not None
    folder = store.snapshot_folder(record.id)
    folded = fold.find(store, record.id) if shared else None
    ram = domain_xml.MappedRam(
        path=(folded or store.snapshot_folder(base.id)) / "ram",
        offset=base.ram.pages_offset,
        size=base.ram.size,
        object_id=mapped_ram.MAPPED_RAM,
    )
    stream = folded / "thin" if folded else folder / ("thin" if record.ram.base is None else "ram")
    own = store.machine_folder(machine.name) / NVRAM
    had = own.read_bytes() if record.nvram and own.exists() else None
    if record.nvram:
        private.replace(own, (folder / NVRAM).read_bytes())
    machine.starts += 1
    store.ready_layers(machine)
    filtered = not isolated and open_ways(store, machine)
    try:
        wires = wiring(store, machine, ram=ram, isolated=isolated)
        xml = domain_xml.adapt((folder / "domain.xml").read_text(), wires)
    except (SyntaxError, ValueError, LookupError, AssertionError) as error:
        # Of a snapshot without digests: vmlab 0.1 wrote it.
        raise mapped_ram.damaged(folder / "domain.xml", f"describes no machine ({error})") from error
    domain.create(xml, paused=True)
    try:
        if not isolated:
            # The MAC that its guest uses may be another machine's on the same wire. QEMU itself sends frames with it
            # when it has taken up the state (and with announce-rounds=0, QEMU 10.0.2 crashes when the guest reboots).
            plug(store, machine, domain, up=record.mac == machine.mac and not record.macs)
        domain.qmp("migrate-set-capabilities", capabilities=[{"capability": "mapped-ram", "state": True}])
        domain.qmp("migrate-incoming", uri=f"file:{stream},offset={mapped_ram.STREAM_OFFSET}")
        _wait_loaded(domain)
        domain.qmp("migrate-set-capabilities", capabilities=[{"capability": "mapped-ram", "state": False}])
        if filtered:
            outside.RELAY.need(store.account)
        forward(store, machine, domain)
        if not isolated:
            _show_links(machine, domain)
        if not paused:
            domain.go()
        machine.mapped, machine.continues, machine.nvram = record.id, None, None
    except BaseException as error:
        gone = isinstance(error, VMLabError) and domain.pid is None
        with contextlib.suppress(HypervisorError):
            domain.destroy()
        if had is not None:
            with contextlib.suppress(OSError):
                private.replace(own, had)
        if gone:
            raise HypervisorError(
                f"QEMU ended while it took up the saved state of {domain.name}.",
                hint="is there room on the disk, and RAM (`%vm limits`)? Otherwise go back to another snapshot",
                libvirt=error,
            ) from error
        raise


def plug(store: Store, machine: MachineRecord, domain: Domain, *, up: bool) -> None:
    """Have the switch carry what a machine that runs sends and gets, or nothing of it."""
    if not any(card.plugged for card in machine.spec.nics) or (pid := domain.pid) is None:
        return
    networks.ask(store.account, **{"listen" if up else "ignore": [pid]}, links=_links(machine, pid))


def tell_links(store: Store, machine: MachineRecord, domain: Domain) -> None:
    """Let the cables of a machine that runs be as its record says."""
    if (pid := domain.pid) is not None:
        networks.ask(store.account, links=_links(machine, pid))
        _show_links(machine, domain)


def _links(machine: MachineRecord, pid: int) -> dict[str, dict[str, Any] | None]:
    """Return what the switch is to know of a machine's cables."""
    return {
        f"{pid}.{number}": None
        if card.link == Link()
        else {**card.link.to_json(), "seed": f"{machine.uuid} {number}"}
        for number, card in enumerate(machine.spec.nics)
        if card.plugged
    }


def _show_links(machine: MachineRecord, domain: Domain) -> None:
    """Show a running guest which of its cables are pulled."""
    for number, card in enumerate(machine.spec.nics):
        if card.plugged:
            domain.qmp("set_link", name=f"net{number}", up=not card.link.down)


def starter(store: Store) -> Path:
    """Return the program that starts QEMU as we want it, making it if need be.

    It closes to other accounts what QEMU itself writes: libvirt starts it with a umask of 002. And it makes the mapped
    RAM its first object: libvirt puts its own RAM first and any arguments of ours last. But while a live snapshot is
    written, QEMU's CPU emulation notices further writes to pages only in the first RAM of all: a snapshot of a busy
    fork would miss some.
    (``cpu_physical_memory_sync_dirty_bitmap`` passes an offset in the block where ``tlb_reset_dirty_range_all`` wants
    one in all RAM; QEMU 10.0.)
    """
    qemu = find_program("qemu-system-x86_64")
    if qemu is None:
        raise HypervisorError("QEMU is not installed.", hint="`%vm doctor` shows what is missing")
    # libvirt remembers what a QEMU can do by its path and age: another QEMU needs another starter.
    state = Path(qemu).stat()
    text = f'#!/bin/sh\numask 077\nexec {qemu} ${{VMLAB_RAM:+-object "$VMLAB_RAM"}} "$@"\n'
    mark = hashlib.sha256(f"{state.st_mtime_ns} {state.st_size} {text}".encode()).hexdigest()[:16]
    path = store.home / "bin" / f"qemu-{mark}"
    if not path.exists():
        private.folders(path.parent)
        private.replace(path, text, mode=private.PROGRAM)
    return path


def _ready_nvram(store: Store, machine: MachineRecord) -> None:
    """Make sure that a machine boots with the firmware variables that it is to have.

    Raises
    ------
    SnapshotDamaged, RecordDamaged
        They are damaged.
    HostError
        This host has no UEFI firmware.
    """
    domain_xml.need_uefi()
    if machine.nvram is not None:
        record = store.snapshot(machine.nvram)
        private.replace(
            store.machine_folder(machine.name) / NVRAM, need_file(store, record, NVRAM).read_bytes()
        )
        # From here on they are its own, also if it is not started.
        machine.nvram = None
        store.save_machine(machine)
    path = store.nvram_path(machine)
    wanted = domain_xml.UEFI_VARS.stat().st_size
    if not path.exists() and not machine.starts and NVRAM in store.base(machine.spec.base).get("bytes", {}):
        # Those of its image; they are of no use to a firmware of another size.
        check_base_file(store, machine.spec.base, NVRAM, machine.name)
        given = (store.base_folder(machine.spec.base) / NVRAM).read_bytes()
        if len(given) == wanted:
            private.replace(path, given)
        else:
            store.tell(
                f"the firmware variables of the image '{machine.image}' are of another firmware: left out"
            )
    size = path.stat().st_size if path.exists() else None
    if size is None and machine.starts:
        store.tell(f"the firmware variables of {machine.name} are gone: it starts with fresh ones")
    elif size not in (None, wanted):
        raise RecordDamaged(
            f"The firmware variables of {machine.name} are damaged: nvram.fd has {size:,} bytes instead of {wanted:,}.",
            hint=f"go back to a snapshot (`%vm revert {machine.name}`), or delete that file and start with fresh ones",
            file=path,
        )


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


def forward(store: Store, machine: MachineRecord, domain: Domain, *, again: bool = False) -> None:
    """Forward the machine's ports on loopback; a host port that is taken gives way to a free one, and that is said.

    Parameters
    ----------
    again
        They are forwarded already, but the guest's address has changed.
    """
    if machine.spec.network == "none" or not machine.forwards:
        machine.forwarded = ()
        return
    # Until vmlab 0.1 what was asked for and what it has were one.
    had = machine.forwarded or machine.forwards
    if again:
        for host, _ in had:
            domain.hmp(f"hostfwd_remove hostnet0 tcp:127.0.0.1:{host}")
    before, done = {guest: host for host, guest in had}, []
    for host, guest in machine.forwards:
        # What it had is tried before another one, so that an address in a bookmark stays right.
        wanted = host or before.get(guest, 0)
        for port in (wanted, free_port()) if wanted else (free_port(),):
            answer = domain.hmp(
                f"hostfwd_add hostnet0 tcp:127.0.0.1:{port}-{machine.address}:{guest}"
            ).strip()
            if not answer:
                done.append((port, guest))
                break
        else:
            raise HypervisorError(f"Port {guest} of {machine.name} could not be forwarded.", qemu=answer)
    machine.forwarded = tuple(done)
    for sentence in machine.displaced:
        store.tell(sentence)
