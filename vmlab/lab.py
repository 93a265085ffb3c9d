"""The lab: the machines of one user on one host."""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vmlab import hardware
from vmlab.engine import load
from vmlab.errors import MachineErrors, NoMemory, NotFound, UsageError, VMLabError
from vmlab.guest import identity
from vmlab.hypervisor import account as accounts
from vmlab.hypervisor import domain as domains
from vmlab.image import Image, Progress, quiet, ready_key
from vmlab.machine import Machine, Usage
from vmlab.render.shown import Shown
from vmlab.snapshot import Snapshot
from vmlab.store import collect
from vmlab.store.records import LimitsRecord, MachineRecord, MachineSpec, check_name, write_json
from vmlab.store.store import Store, size_text

if TYPE_CHECKING:
    from vmlab.compare.ram import RamSearch
    from vmlab.diff import Diff
    from vmlab.timeline import Timeline

#: Bytes that QEMU itself takes beside the guest's RAM, and the part of mapped RAM that a fork is expected to change.
OVERHEAD = 80 << 20
CHANGED_PART = 0.25
#: Bytes of disk without which a machine that continues a state is not even begun.
FORK_SPACE = 16 << 20
#: Seconds within which a fork gets an address for its new MAC.
ADDRESS_TIMEOUT = 20


@dataclass(frozen=True)
class Limits(Shown):
    """What the host has, what the machines take of it, and what stays reserved; sizes in bytes.

    Attributes
    ----------
    memory_total, memory_available
        RAM of the host, and what programs can still take.
    memory_taken
        RAM that the machines really take (PSS).
    disk_total, disk_free, disk_taken
        The store's disk, and what the store takes.
    cpus, running
        CPUs of the host, and how many machines run.
    reserve_memory, reserve_disk, max_running
        What new guests and snapshots must leave free, and how many guests may run at once.
    """

    memory_total: int
    memory_available: int
    memory_taken: int
    disk_total: int
    disk_free: int
    disk_taken: int
    cpus: int
    running: int
    reserve_memory: int
    reserve_disk: int
    max_running: int | None

    def to_json(self) -> dict[str, Any]:
        """Return the attributes by name."""
        return dict(vars(self))


class Lab(Shown):
    """The machines of one user on one host, and the way to all else.

    Parameters
    ----------
    home
        The store's folder; by default ``$VMLAB_HOME``, else the usual place of this user.

    Examples
    --------
    >>> lab = Lab()  # doctest: +SKIP
    >>> web = lab.create("web", "tiny")  # doctest: +SKIP
    >>> clean = web.snapshot("clean")  # doctest: +SKIP
    >>> web.succeed("rm -rf /srv")  # doctest: +SKIP
    >>> web.revert(clean)  # doctest: +SKIP
    """

    #: Forks whose new identity is being told to them by a thread of this process: by name, which is unique for one
    #: libvirt daemon. ``%vm`` has a lab of its own, and whoever holds another must wait for it all the same.
    identity_threads: ClassVar[dict[str, threading.Thread]] = {}

    def __init__(self, home: str | Path | None = None) -> None:
        self.account = accounts.account()
        self.home = Path(home).absolute() if home is not None else self.account.store
        self.store = Store(self.home, self.account)

    def __repr__(self) -> str:
        return f"<Lab {self.home}: {len(self)} machines>"

    @staticmethod
    def tell(text: str) -> None:
        """Say something to whoever waits; replaced by the notebook and the command line."""

    # -- machines ------------------------------------------------------------------------------------------------

    @property
    def machines(self) -> list[Machine]:
        """All machines, by name; those that vmlab itself made for a moment are not shown."""
        return [Machine(self, name) for name in self.store.machine_names(throwaway=False)]

    def machine(self, name: str) -> Machine:
        """Return the machine of that name.

        Raises
        ------
        NotFound
            With the nearest names.
        """
        self.store.machine(name)
        return Machine(self, name)

    __getitem__ = machine

    def __iter__(self) -> Iterator[Machine]:
        return iter(self.machines)

    def __len__(self) -> int:
        return len(self.store.machine_names())

    def __contains__(self, name: object) -> bool:
        return name in self.store.machine_names()

    def create(
        self,
        name: str,
        image: str = "tiny",
        *,
        memory: int | None = None,
        vcpus: int | None = None,
        disk: int | None = None,
        disks: Sequence[int] = (),
        firmware: str | None = None,
        boot: Sequence[str] | None = None,
        network: str | None = None,
        forwards: Iterable[tuple[int, int]] = (),
        sound: str | bool | None = None,
        video: str | None = None,
        accelerator: str | None = None,
        kernel_args: str | None = None,
        clock: Literal["then", "now"] = "now",
        start: bool = True,
        bake: bool | None = None,
        force: bool = False,
        progress: Progress | None = None,
    ) -> Machine:
        """Make a machine from an image; with the image's own hardware it is up in well under a second.

        Parameters
        ----------
        memory
            RAM in MiB.
        vcpus
            Virtual CPUs.
        disk
            Size of the system disk in bytes; at least the image's.
        disks
            Sizes in bytes of further, empty disks.
        firmware
            ``bios`` or ``uefi``, for an image that boots from a disk.
        boot
            Boot order: any of ``disk``, ``cdrom``, ``network``.
        network
            ``user`` or ``none``.
        forwards
            ``(port on the host's loopback, port in the guest)`` pairs. A port of the host that is taken gives way to
            a free one: see :attr:`Machine.forwards`.
        sound
            ``none``, ``silent`` (True), or ``wav``: recorded to :attr:`Machine.sound_file`.
        video
            libvirt's name of the card: ``vga``, ``virtio``, ``none`` ...
        accelerator
            ``kvm`` or ``tcg``; by default KVM where it really works.
        kernel_args
            Added to the kernel's command line.
        clock
            ``now``: where it starts from a ready state, its agent is told the time. ``then``: its clock goes on from
            the time when the image was baked.
        start
            False: only make it.
        bake
            True: with other hardware than the image's own, too, boot once and keep the ready state for next time.
            False: boot, even if there is a ready state. By default ready states are made and used for the image's own
            hardware.
        force
            Insist where RAM is short.
        progress
            Called with what is being done.

        Raises
        ------
        AlreadyExists, BadName, NotFound, NoMemory, NoSpace, ImageMissing
        """
        check_name("machine", name)
        tell = progress or quiet
        known = self.image(image)
        options = {
            "memory": memory,
            "vcpus": vcpus,
            "disk": disk,
            "disks": disks,
            "firmware": firmware,
            "boot": boot,
            "network": network,
            "sound": sound,
            "video": video,
            "accelerator": accelerator,
            "kernel_args": kernel_args,
        }
        if name in self:
            self._taken(name)
        if not known.built:
            self.build(image, progress=tell)
        spec, sizes = self.hardware(image, **options)
        usual, usual_sizes = self.hardware(image)
        wants_ready = bake if bake is not None else (spec, sizes) == (usual, usual_sizes) and start
        if wants_ready and known._data.get("ready"):
            self.need_memory(spec, mapped=True, force=force)
            ready = known.ready_state(ready_key(spec, sizes)) or known.bake(progress=tell, **options)
            tell(f"starting {name} from the ready state of {image}", None)
            return self._fork_one(
                ready,
                name,
                forwards=tuple(tuple(p) for p in forwards),
                clock=clock,
                start=start,
                hostname=True,
            )
        if start:
            self.need_memory(spec, mapped=False, force=force)
        tell(f"booting {name}" if start else f"making {name}", None)
        return self.boot_new(name, image, spec, sizes, tuple(tuple(p) for p in forwards), start=start)

    def _taken(self, name: str) -> None:
        # The same sentence as the store's, before any slow work.
        from vmlab.errors import AlreadyExists

        raise AlreadyExists(
            f"There is a machine named '{name}' already.",
            hint=f"choose another name, or delete it with `%vm delete {name}`",
        )

    def need_names(self, names: Sequence[str]) -> None:
        """Refuse names for new machines that cannot be, are taken, or are given twice."""
        if len(set(names)) != len(names):
            raise UsageError("A name is given twice.", hint="each machine needs a name of its own")
        for name in names:
            check_name("machine", name)
            self.need_free(name)

    def need_free(self, name: str) -> None:
        """Refuse a name that a machine has, ours or one that only libvirt knows: of another store, or of virsh."""
        from vmlab.errors import AlreadyExists

        if name in self:
            self._taken(name)
        if name in domains.names(self.account):
            raise AlreadyExists(
                f"libvirt has a machine named '{name}' already, which is not of this lab.",
                hint="choose another name (`virsh list --all` shows it)",
                libvirt=self.account.uri,
            )

    def hardware(self, image: str, **options: Any) -> tuple[MachineSpec, list[int]]:
        """Return a machine's hardware and its disks' sizes in bytes; see :func:`vmlab.hardware.plan`."""
        return hardware.plan(self.store, image, **options)

    def boot_new(
        self,
        name: str,
        image: str,
        spec: MachineSpec,
        sizes: list[int],
        forwards: tuple[tuple[int, ...], ...] = (),
        *,
        start: bool = True,
        throwaway: bool = False,
    ) -> Machine:
        """Make a machine of that hardware and boot it; what fails leaves nothing behind."""
        self.store.need_space(64 << 20, "for one more machine")
        record = _new_record(name, image, spec, forwards)
        record.throwaway = throwaway
        machine = Machine(self, name)
        domain = machine._domain()
        with self.store.lock(name, "create"):
            self.need_free(name)
            try:
                files = list(self.store.base(spec.base)["disks"])
                for index, target in enumerate(spec.disks):
                    base = f"{spec.base}/{files[index]}" if index < len(files) else None
                    record.layers[target] = self.store.add_layer(base=base, size=sizes[index]).id
                # With its disks at once: should we die, it is a whole machine that is off.
                self.store.add_machine(record)
                load.define(self.store, record, domain)
                if start:
                    load.boot(self.store, record, domain)
                self.store.save_machine(record)
            except BaseException:
                self._unmake(record, domain)
                raise
        return machine

    def _unmake(self, record: MachineRecord, domain: domains.Domain) -> None:
        with contextlib.suppress(VMLabError):
            if domain.uuid == record.uuid:
                domain.destroy()
                domain.undefine()
        self.store.drop_layers(record.layers)
        with contextlib.suppress(OSError):
            self.store.remove_machine(record.name)

    # -- forks ---------------------------------------------------------------------------------------------------

    def fork(
        self,
        snapshot: Snapshot,
        names: Sequence[str],
        *,
        clock: Literal["then", "now"] = "then",
        force: bool = False,
    ) -> list[Machine]:
        """Make machines that start from a snapshot, all at once.

        Raises
        ------
        MachineErrors
            Some could not be made; the others run.
        """
        self.need_names(names)
        record = self.store.snapshot(snapshot.id)
        load.check(self.store, record)
        self.need_memory(record.spec, mapped=record.ram is not None, count=len(names), force=force)
        self.store.need_space(
            len(names) * FORK_SPACE, f"for {len(names)} more machine{'s' * (len(names) > 1)}"
        )

        def one(name: str) -> Machine | VMLabError:
            try:
                return self._fork_one(snapshot, name, forwards=record.forwards, clock=clock)
            except VMLabError as error:
                return error

        # More threads than CPUs: most of a fork is waiting for QEMU and libvirt.
        with ThreadPoolExecutor(min(len(names), 8), thread_name_prefix="vmlab-fork") as pool:
            made = list(pool.map(one, names))
        failed = {name: m for name, m in zip(names, made, strict=True) if isinstance(m, VMLabError)}
        if failed:
            raise next(iter(failed.values())) if len(names) == 1 else MachineErrors(failed)
        return [m for m in made if isinstance(m, Machine)]

    def _fork_one(
        self,
        snapshot: Snapshot,
        name: str,
        *,
        forwards: tuple[tuple[int, ...], ...],
        clock: Literal["then", "now"] = "then",
        start: bool = True,
        hostname: bool = True,
    ) -> Machine:
        source = self.store.snapshot(snapshot.id)
        record = _new_record(name, source.image, source.spec, forwards)
        record.root = record.here = source.id
        record.address = source.address
        record.resume = source.id if source.ram is not None else None
        machine = Machine(self, name)
        domain = machine._domain()
        self.store.need_space(FORK_SPACE, "for one more machine")
        with self.store.lock(name, "fork"):
            self.need_free(name)
            try:
                record.layers = self.store.add_layers(source.layers)
                # Should we die from here on, it is a whole machine, and a start continues it.
                record.pending = {"doing": "revert", "pid": None} if start and record.resume else None
                self.store.add_machine(record)
                load.define(self.store, record, domain)
                if start and source.ram is not None:
                    load.resume(self.store, record, domain, source)
                record.pending = None
                self.store.save_machine(record)
            except BaseException:
                self._unmake(record, domain)
                raise
        if start and source.ram is not None and source.spec.agent and hostname:
            self.give_identity(machine, record, source.mac, clock)
        return machine

    def give_identity(self, machine: Machine, record: MachineRecord, old_mac: str, clock: str) -> None:
        """Tell a fork its new name, machine ID and MAC through its agent, beside whatever comes next.

        The fork runs already; a first command waits for this. ``old_mac`` is what its card has now.
        """

        def tell() -> None:
            domain = machine._domain()
            try:
                with contextlib.suppress(VMLabError, OSError):
                    found = identity.renew(domain, hostname=record.name, mac=record.mac, old_mac=old_mac)
                    if clock == "now":
                        with contextlib.suppress(VMLabError):
                            identity.set_clock(domain)
                    if record.forwards and "dhcp" in found.done and not self._follow_address(machine):
                        found.failed["forwards"] = "the guest got no address by DHCP"
                    write_json(machine.folder / "identity.json", {"format": 1, **found.to_json()})
            finally:
                self.identity_threads.pop(record.name, None)

        # Not a daemon: a command line that ends at once must not leave a fork with half an identity.
        thread = threading.Thread(target=tell, name=f"vmlab-identity-{record.name}")
        self.identity_threads[record.name] = thread
        thread.start()

    def _follow_address(self, machine: Machine) -> bool:
        """Forward a fork's ports to the address that its new MAC gets by DHCP; False if it gets none in time."""
        end = time.monotonic() + ADDRESS_TIMEOUT
        while time.monotonic() < end:
            with contextlib.suppress(VMLabError):
                found = identity.addresses(machine._domain())
                if found and machine._record.address not in found:
                    with machine._open("forward its ports") as (now, domain):
                        now.address = found[0]
                        load.forward(now, domain, again=True)
                        self.store.save_machine(now)
                    return True
            time.sleep(0.2)
        return False

    def free_names(self, stem: str, count: int) -> list[str]:
        """Return ``count`` names that are not taken: ``web-2``, ``web-3`` ..."""
        stem = re.sub(r"-\d+$", "", stem)[:36]
        taken, number = set(self.store.machine_names()), 2
        found: list[str] = []
        while len(found) < count:
            if (name := f"{stem}-{number}") not in taken:
                found.append(name)
            number += 1
        return found

    # -- snapshots and images ------------------------------------------------------------------------------------

    def find_snapshot(self, identity: str | None) -> Snapshot | None:
        """Return the snapshot with that id, or None if there is none or it is forgotten."""
        if identity is None:
            return None
        with contextlib.suppress(VMLabError, FileNotFoundError):
            if not self.store.label(identity).forgotten:
                return Snapshot(self, self.store.snapshot(identity))
        return None

    @property
    def images(self) -> list[Image]:
        """All images: those that are there, and the built-in ones that are not built yet."""
        from vmlab.images.builder import builtin

        return [Image(self, n) for n in sorted({*self.store.image_names(), *builtin()})]

    def image(self, name: str) -> Image:
        """Return the image of that name, built or not.

        Raises
        ------
        NotFound
            With the nearest names.
        """
        known = {image.name: image for image in self.images}
        if name not in known:
            raise NotFound.named(
                "image", name, known, hint="`%vm images` lists them; `%vm import` adds your own"
            )
        return known[name]

    def build(self, name: str, *, progress: Progress | None = None) -> Image:
        """Build a built-in image, or build it anew; machines made from the old one are not harmed."""
        from vmlab.images import builder

        with self.store.lock(f"image@{name}", f"build {name}", timeout=3600):
            builder.build(name, self.home / "images", self.account, progress or quiet)
        return Image(self, name)

    def import_image(self, name: str, source: str | Path | None = None, **options: Any) -> Image:
        """Make an image of something bootable; see :func:`vmlab.images.importer.import_image`."""
        from vmlab.images import importer

        with self.store.lock(f"image@{name}", f"import {name}", timeout=3600):
            importer.import_image(self.home / "images", self.account, name, source, **options)
        return Image(self, name)

    # -- comparing -----------------------------------------------------------------------------------------------

    def diff(self, before: Snapshot | Machine | str, after: Snapshot | Machine | str | None = None) -> Diff:
        """Compare two states: snapshots, or machines as they are now; layer by layer, each when it is looked at.

        Machines are not touched: a running one stands still for some milliseconds, as for a snapshot, and everything
        that has to be asked is asked in forks that are thrown away.

        Parameters
        ----------
        before, after
            A snapshot, a machine (its present), or a name: ``web``, ``web@clean``; in ``after`` also ``clean``, for a
            snapshot of the same machine. Without ``after``: the snapshot that a machine stands on against its present,
            or a snapshot against the present of its machine.

        Raises
        ------
        NotFound, UsageError
            There are no such states, or they are the same.
        """
        from vmlab import diff

        return diff.make(self, [before] if after is None else [before, after])

    def timeline(
        self,
        states: Sequence[Snapshot | Machine | str],
        *,
        file: str | None = None,
        process: str | None = None,
        register: str | None = None,
        layers: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> Timeline:
        """Tell how several states follow each other: a file, processes, a register; or all layers.

        Parameters
        ----------
        states
            As in :meth:`diff`; a machine alone stands for all its snapshots in the order in which they were taken, and
            its present.
        file, process, register
            One of them: a path, a part of a command line, a name such as ``RIP``.
        layers
            Without one of them: which layers are compared; the usual ones, if none is named.
        """
        from vmlab import diff, timeline

        tell = progress or quiet
        return timeline.make(
            self,
            diff.in_a_row(self, states),
            file=file,
            process=process,
            register=register,
            layers=layers,
            tell=lambda text: tell(text, None),
        )

    def search(self, states: Sequence[Snapshot | Machine | str], what: str | bytes) -> list[RamSearch]:
        """Search the RAM of several states for a text or bytes, and return what was found in each that is live.

        Parameters
        ----------
        states
            As in :meth:`timeline`.
        """
        from vmlab import diff
        from vmlab.compare.ram import search_ram

        # Kept until the search is done: a present goes with its side.
        sides = [diff.Side(self, state) for state in diff.in_a_row(self, states)]
        return search_ram([side.state for side in sides], what)

    # -- the host ------------------------------------------------------------------------------------------------

    def need_memory(self, spec: MachineSpec, *, mapped: bool, count: int = 1, force: bool = False) -> None:
        """Refuse ``count`` more guests where RAM is short.

        A guest that boots may touch all its RAM; one whose RAM is mapped from a snapshot is expected to change a
        quarter.

        Raises
        ------
        NoMemory
            With the numbers.
        """
        if force:
            return
        limits = self.store.limits
        if limits.max_running is not None:
            running = sum(state != "off" for state in domains.names(self.account).values())
            if running + count > limits.max_running:
                raise NoMemory(
                    f"{running} machines run, and this lab is limited to {limits.max_running}.",
                    hint="stop one, raise it with `%vm limits --max-running`, or insist with --force",
                )
        one = int((spec.memory << 20) * (CHANGED_PART if mapped else 1)) + OVERHEAD
        available = load.available_memory()
        reserve = limits.reserve_memory << 20
        if available - reserve < one * count:
            raise NoMemory(
                f"There is too little RAM for {'one more guest' if count == 1 else f'{count} more guests'}: "
                f"it may need {size_text(one * count)}, {size_text(available)} are available, "
                f"and {size_text(reserve)} stay reserved for the host.",
                hint="stop a machine (`%vm list` shows what each takes), ask for less memory, or insist with --force",
            )

    def limits(self) -> Limits:
        """Return what the host has, what the machines take, and what stays reserved."""
        import os

        found = os.statvfs(self.home)
        stored = self.store.limits
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        usages = self.usage(over=0)
        from vmlab.store.store import allocated

        return Limits(
            memory_total=total,
            memory_available=load.available_memory(),
            memory_taken=sum(u.memory_pss for u in usages),
            disk_total=found.f_blocks * found.f_frsize,
            disk_free=self.store.free(),
            disk_taken=allocated(self.home),
            cpus=os.cpu_count() or 1,
            running=sum(u.state == "running" for u in usages),
            reserve_memory=stored.reserve_memory << 20,
            reserve_disk=stored.reserve_disk,
            max_running=stored.max_running,
        )

    def set_limits(
        self,
        *,
        reserve_memory: int | None = None,
        reserve_disk: int | None = None,
        max_running: int | None = None,
    ) -> Limits:
        """Change what stays reserved: MiB of RAM, bytes of disk, and how many guests may run (0: any number)."""
        stored = self.store.limits
        if min(reserve_memory or 0, reserve_disk or 0, max_running or 0) < 0:
            raise UsageError("A limit cannot be negative.")
        stored = LimitsRecord(
            stored.reserve_memory if reserve_memory is None else reserve_memory,
            stored.reserve_disk if reserve_disk is None else reserve_disk,
            stored.max_running if max_running is None else max_running or None,
        )
        self.store.save_limits(stored)
        return self.limits()

    def usage(self, machines: Iterable[Machine] | None = None, over: float = 0.25) -> list[Usage]:
        """Return what each machine takes; CPU is measured over ``over`` seconds, for all of them at once."""
        chosen = list(machines) if machines is not None else self.machines
        before = [m._sample() for m in chosen]
        if over and chosen:
            time.sleep(over)
        found = []
        for machine, (then, seconds) in zip(chosen, before, strict=True):
            now, later = machine._sample()
            percent = max(later - seconds, 0) / (now - then) * 100 if over and now > then else 0.0
            with contextlib.suppress(NotFound):
                found.append(machine._usage(round(percent, 1)))
        return found

    def collect(self) -> collect.Collected:
        """Delete what nothing refers to any more."""
        for name in self.store.machine_names():
            with contextlib.suppress(VMLabError):
                self._sweep(name)
        return collect.collect(self.store)

    def _sweep(self, name: str) -> None:
        """Remove a machine that somebody made for a moment (to bake, to verify) and did not live to remove."""
        if self.store.machine(name).throwaway:
            # A process that was killed lets go of its locks some milliseconds later.
            with self.store.lock(name, "sweep", timeout=0.5):
                record = self.store.machine(name)
                self._unmake(record, Machine(self, name)._domain())
                shutil.rmtree(self.home / "cache" / name, ignore_errors=True)

    def collect_quietly(self) -> None:
        """Collect, where nobody waits for it; the next collection gets what this one did not."""
        with contextlib.suppress(VMLabError, OSError):
            self.collect()

    def check(self) -> Any:
        """Return what this host can do (:func:`vmlab.doctor.examine`)."""
        from vmlab import doctor

        return doctor.examine()


def _new_record(
    name: str, image: str, spec: MachineSpec, forwards: tuple[tuple[int, ...], ...]
) -> MachineRecord:
    return MachineRecord(
        name=name,
        uuid=str(uuid.uuid4()),
        genid=str(uuid.uuid4()),
        # QEMU's own prefix, so that a look at the MAC tells what it is.
        mac="52:54:00:" + ":".join(f"{b:02x}" for b in secrets.token_bytes(3)),
        image=image,
        spec=spec,
        forwards=tuple((int(host), int(guest)) for host, guest in forwards),
    )
