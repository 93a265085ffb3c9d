"""The lab: the machines of one user on one host."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from vmlab.checked import checked, takes_options_of
from vmlab.compare.ramsearch import RamSearch, search_ram
from vmlab.errors import NotFound, UsageError
from vmlab.host import limits
from vmlab.host.doctor import Report, examine
from vmlab.host.limits import Limits
from vmlab.hypervisor import account as accounts
from vmlab.hypervisor.account import Account
from vmlab.image import Image
from vmlab.images import importer
from vmlab.images.builder import builtin
from vmlab.machine import Machine, Snapshot, place
from vmlab.machines import imaging, networks, recipes
from vmlab.machines.create import build, create
from vmlab.machines.fork import fork
from vmlab.machines.hardware import Wanted, plan
from vmlab.machines.history import visible
from vmlab.machines.names import free_names, need_machine
from vmlab.machines.networks import Network
from vmlab.machines.ports import Forwards
from vmlab.machines.unmake import collect
from vmlab.machines.usage import Usage, usage
from vmlab.records import Hardware, SnapshotRecord
from vmlab.render.progress import Progress, quiet
from vmlab.render.shown import Shown
from vmlab.scenario import Scenario
from vmlab.scenarios import build as build_scenario
from vmlab.scenarios import file as scenario_file
from vmlab.store import scenarios as scenario_records
from vmlab.store.collect import Collected
from vmlab.store.store import Store
from vmlab.study.diff import Diff
from vmlab.study.diff import make as make_diff
from vmlab.study.side import Side
from vmlab.study.timeline import Timeline
from vmlab.study.timeline import make as make_timeline
from vmlab.study.which import find, in_a_row


@checked
class Lab(Shown):
    """The machines of one user on one host, and the way to all else.

    Parameters
    ----------
    home
        The store's folder; by default ``$VMLAB_HOME``, else the usual place of this user.
    account
        Who QEMU runs as; by default this user, or the service account where we are root.

    Examples
    --------
    >>> lab = Lab()
    >>> web = lab.create("web", "tiny")
    >>> clean = web.snapshot("clean")
    >>> web.succeed("rm -rf /srv")
    ''
    >>> web.revert(clean)
    <Machine web: running>
    """

    def __init__(self, home: str | Path | None = None, account: Account | None = None) -> None:
        self.account = account or accounts.account()
        self.home = Path(home).absolute() if home is not None else self.account.store
        self.store = Store(self.home, self.account)

    @property
    def tell(self) -> Callable[[str], None]:
        """Says something to whoever waits; set by the notebook and the command line."""
        return self.store.tell

    @tell.setter
    def tell(self, say: Callable[[str], None]) -> None:
        self.store.tell = say

    def __repr__(self) -> str:
        return f"<Lab {self.home}: {len(self)} machines>"

    # -- machines ------------------------------------------------------------------------------------------------

    @property
    def machines(self) -> list[Machine]:
        """All machines, by name; those that vmlab itself made for a moment are not shown."""
        return [Machine(self.store, name) for name in self.store.machine_names(throwaway=False)]

    def machine(self, name: str) -> Machine:
        """Return the machine of that name.

        Raises
        ------
        NotFound
            With the nearest names.
        """
        need_machine(self.store, name)
        return Machine(self.store, name)

    def __getitem__(self, name: str) -> Any:
        """Return the machine, or the scenario, of that name."""
        return self.named(name)

    def __iter__(self) -> Iterator[Machine]:
        return iter(self.machines)

    def __len__(self) -> int:
        return len(self.store.machine_names(throwaway=False))

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
        way_out: str | None = None,
        network: str | None = None,
        nics: Sequence[str] = (),
        forwards: Forwards = (),
        sound: str | bool | None = None,
        video: str | None = None,
        accelerator: str | None = None,
        kernel_args: str | None = None,
        clock: Literal["then", "now"] = "now",
        start: bool = True,
        bake: bool | None = None,
        force: bool = False,
        reuse: bool = False,
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
        way_out
            What the guest may open connections to. ``internet``: the outside, but no address of this host, of its links
            or of private nets. ``site``: also private nets, and those that this host is on. ``host``: also this host,
            and with it all that listens on its loopback, a Jupyter server among it. ``none``: it has no network card.
            Forwarded ports lead in with all but the last.
        network
            The old name of it: ``user`` (``internet``) or ``none``.
        nics
            Networks of the lab that it is plugged into, with a card for each behind that of its way out: ``["lan"]``;
            with the address that the card is to get, ``["lan=10.1.0.20"]``, else a free one is chosen. A network is
            made at its first use; it joins machines and leads nowhere else. The card is given its address by DHCP.
        forwards
            Such as ``{8080: 80}``: port on the host's loopback to port in the guest; or pairs of them; 0 for the host's
            takes any free one. One that is taken is refused now; at a later start it gives way to a free one until the
            next: see :attr:`Machine.forwards`.
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
        reuse
            Where there is a machine of that name with this very hardware, take it as it is, and start it unless
            ``start`` is False.
        progress
            Called with what is being done.

        Raises
        ------
        AlreadyExists, BadName, NotFound, NoMemory, NoSpace, ImageMissing
        """
        self.image(image)
        create(
            self.store,
            name,
            image,
            Wanted(
                memory=memory,
                vcpus=vcpus,
                disk=disk,
                disks=disks,
                firmware=firmware,
                boot=boot,
                way_out=way_out,
                network=network,
                nics=nics,
                sound=sound,
                video=video,
                accelerator=accelerator,
                kernel_args=kernel_args,
            ),
            forwards=forwards,
            clock=clock,
            start=start,
            bake=bake,
            force=force,
            reuse=reuse,
            tell=progress or quiet,
        )
        return Machine(self.store, name)

    @takes_options_of(lambda: Wanted)
    def hardware(self, image: str, **options: Any) -> tuple[Hardware, list[int]]:
        """Return what a machine of an image would be made of, and its disks' sizes in bytes.

        Parameters
        ----------
        options
            Those of :meth:`create` that are about hardware.
        """
        return plan(self.store, image, Wanted(**options))

    def free_names(self, stem: str, count: int) -> list[str]:
        """Return ``count`` names that are not taken: ``web-2``, ``web-3`` ..."""
        return free_names(self.store, stem, count)

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
        made = fork(self.store, self.store.snapshot(snapshot.id), names, clock=clock, force=force)
        return [Machine(self.store, name) for name in made]

    # -- scenarios -----------------------------------------------------------------------------------------------

    @property
    def scenarios(self) -> list[Scenario]:
        """All scenarios, by name."""
        return [Scenario(self.store, name) for name in scenario_records.names(self.store)]

    def scenario(self, name: str) -> Scenario:
        """Return the scenario of that name.

        Raises
        ------
        NotFound
            With the nearest names.
        """
        scenario_records.read(self.store, name)
        return Scenario(self.store, name)

    def named(self, name: str) -> Machine | Scenario:
        """Return the machine or the scenario of that name.

        Raises
        ------
        NotFound
            With the nearest names.
        """
        if name in scenario_records.names(self.store):
            return Scenario(self.store, name)
        return self.machine(name)

    def up(
        self,
        source: str | Path | Mapping[str, Any],
        *,
        name: str | None = None,
        force: bool = False,
        progress: Progress | None = None,
    ) -> Scenario:
        """Make a scenario of what a file says, with all its machines and networks, or start the one that is there.

        Its machines are made side by side, wired, and set up in the order of the file; then its *start* is kept. What
        is there already is never changed: not where the file has changed either (that is said). Where another scenario
        was made from the same file, this is a copy of that one's start.

        Parameters
        ----------
        source
            The folder with a ``scenario.toml``, or that file; or what stands in such a file, as a mapping. The README
            says what that is.
        name
            Another name than the file's.
        force
            Insist where RAM is short.
        progress
            Called with what is being done.

        Raises
        ------
        UsageError
            It makes no sense: all its mistakes, each with its line; nothing was made.
        AlreadyExists, NoMemory, NoSpace, CommandFailed
            It could not be made; nothing of it is left.
        """
        images = [image.name for image in self.images]
        found = scenario_file.read(Path(source) if isinstance(source, str) else source, images)
        if name is not None:
            found = scenario_file.under_name(found, name)
        build_scenario.up(self.store, found, force=force, tell=progress or quiet)
        return Scenario(self.store, found.name)

    # -- networks ------------------------------------------------------------------------------------------------

    @property
    def networks(self) -> list[Network]:
        """The networks between machines, with the cards that are plugged into them."""
        return networks.every(self.store)

    def network(self, name: str) -> Network:
        """Return the network of that name.

        Raises
        ------
        NotFound
            With the nearest names.
        """
        return networks.one(self.store, name)

    def delete_network(self, name: str) -> None:
        """Delete a network that no machine uses any more.

        Raises
        ------
        NotFound
            With the nearest names.
        WrongState
            Machines use it; says which.
        """
        networks.delete(self.store, name)

    # -- snapshots and images ------------------------------------------------------------------------------------

    def find_snapshot(self, snapshot_id: str | None) -> Snapshot | None:
        """Return the snapshot with that id, or None if there is none or it is forgotten."""
        record = visible(self.store, snapshot_id)
        return Snapshot(self.store, record) if record is not None else None

    @property
    def images(self) -> list[Image]:
        """All images: those that are there, and the built-in ones that are not built yet."""
        return [Image(self.store, n) for n in sorted({*self.store.image_names(), *builtin()})]

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
        """Build a built-in image, or build it anew; machines made from the old one are not harmed.

        Parameters
        ----------
        name
            A built-in image, or a recipe file (``mine.toml``), whose image is built unless it is what the recipe makes.
            What a recipe says is in the README; its script runs in a throw-away guest without a network.
        """
        if name.endswith(".toml"):
            return Image(self.store, recipes.build(self.store, Path(name), progress or quiet))
        build(self.store, name, progress or quiet)
        return Image(self.store, name)

    @takes_options_of(lambda: importer.import_image)
    def import_image(
        self, name: str, source: Snapshot | str | Path | None = None, *, clean: bool = False, **options: Any
    ) -> Image:
        """Make an image of something bootable, or of a snapshot.

        Parameters
        ----------
        source
            A disk, a CD or an appliance (:func:`vmlab.images.importer.import_image` has all options); or a snapshot:
            itself, or its name as in ``web@clean``. Of a snapshot the disks are copied, whole, never its RAM.
        clean
            Of a snapshot: remove what is the machine's own (machine ID, ssh host keys, histories of commands, and what
            was deleted but still lies on the disk), in a throw-away fork.
        """
        state = self._state(source)
        with self.store.lock(f"image@{name}", f"import {name}", timeout=3600):
            if state is not None:
                tell, replace = options.pop("progress", None) or quiet, options.pop("replace", False)
                if options:
                    raise UsageError(
                        f"An image of a snapshot has the snapshot's hardware: {next(iter(options))} cannot be chosen.",
                        hint="choose it when a machine is made",
                    )
                title = f"{state.machine_name}@{self.store.label(state.id).name}"
                imaging.from_snapshot(
                    self.store, state, name, title=title, clean=clean, replace=replace, tell=tell
                )
            else:
                if clean:
                    raise UsageError("Only an image of a snapshot can be cleaned.", hint="leave --clean out")
                assert not isinstance(source, Snapshot)
                options.setdefault("tell", self.tell)
                importer.import_image(self.home / "images", self.account, name, source, **options)
        return Image(self.store, name)

    def _state(self, source: object) -> SnapshotRecord | None:
        """Return the snapshot that is to become an image; None if it is a file or an address."""
        if isinstance(source, Snapshot):
            return self.store.snapshot(source.id)
        if not isinstance(source, str) or "/" in source or "@" not in source:
            return None
        if source.partition("@")[0] not in self.store.machine_names() and Path(source).exists():
            return None
        found = find(self.store, source).snapshot
        if found is None:
            raise UsageError(
                f"'{source}' names no snapshot.", hint=f"take one first: `%vm snapshot {source.rstrip('@')}`"
            )
        return self.store.snapshot(found)

    # -- comparing -----------------------------------------------------------------------------------------------

    def diff(self, before: Snapshot | Machine | str, after: Snapshot | Machine | str | None = None) -> Diff:
        """Compare two states: snapshots, or machines as they are now; part by part, each when it is looked at.

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
        states = [place(before)] if after is None else [place(before), place(after)]
        return make_diff(self.store, states)

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
        """Tell how several states follow each other: a file, processes, a register; or all parts.

        Parameters
        ----------
        states
            As in :meth:`diff`; a machine alone stands for all its snapshots in the order in which they were taken, and
            its present.
        file, process, register
            One of them: a path, a part of a command line, a name such as ``RIP``.
        layers
            Without one of them: which parts are compared; the usual ones, if none is named.
        """
        tell = progress or quiet
        return make_timeline(
            self.store,
            in_a_row(self.store, [place(state) for state in states]),
            file=file,
            process=process,
            register=register,
            parts=layers,
            tell=lambda text: tell(text, None),
        )

    def search(self, states: Sequence[Snapshot | Machine | str], what: str | bytes) -> list[RamSearch]:
        """Search the RAM of several states for a text or bytes, and return what was found in each that is live.

        Parameters
        ----------
        states
            As in :meth:`timeline`.
        """
        # Kept until the search is done: a present goes with its side.
        sides = [
            Side(self.store, found) for found in in_a_row(self.store, [place(state) for state in states])
        ]
        return search_ram([side.state for side in sides], what)

    # -- the host ------------------------------------------------------------------------------------------------

    def limits(self) -> Limits:
        """Return what the host has, what the machines take, and what stays reserved."""
        return limits.read(self.store)

    def set_limits(
        self,
        *,
        reserve_memory: int | None = None,
        reserve_disk: int | None = None,
        max_running: int | None = None,
    ) -> Limits:
        """Change what stays reserved: MiB of RAM, bytes of disk, and how many guests may run (0: any number)."""
        limits.change(
            self.store, reserve_memory=reserve_memory, reserve_disk=reserve_disk, max_running=max_running
        )
        return self.limits()

    def usage(self, machines: Iterable[Machine] | None = None, over: float = 0.25) -> list[Usage]:
        """Return what each machine takes; CPU is measured over ``over`` seconds, for all of them at once."""
        names = (
            [m.name for m in machines] if machines is not None else self.store.machine_names(throwaway=False)
        )
        return usage(self.store, names, over)

    def collect(self) -> Collected:
        """Delete what nothing refers to any more."""
        return collect(self.store)

    def doctor(self) -> Report:
        """Return what this host can do, and what is missing."""
        return examine()

    #: Its name until vmlab 0.1.
    check = doctor
