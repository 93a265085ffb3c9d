"""Images: what machines are made from."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vmlab.engine import save
from vmlab.errors import ImageMissing, NotFound, VMLabError
from vmlab.render.shown import Shown
from vmlab.snapshot import Snapshot
from vmlab.store.records import MachineSpec, SnapshotRecord, new_id
from vmlab.store.store import allocated

if TYPE_CHECKING:
    from vmlab.lab import Lab
    from vmlab.machine import Machine

#: Called with what is being done and, where it can be told, how much of it (0 to 1).
Progress = Callable[[str, float | None], None]


def quiet(_text: str, _fraction: float | None = None) -> None:
    """Report progress to nobody."""


#: Raised when machines of the same specification get other devices, so that ready states are made anew.
HARDWARE = 2


def ready_key(spec: MachineSpec, sizes: list[int]) -> str:
    """Return what a ready state must have been made with to serve a new machine: the same hardware."""
    text = json.dumps([HARDWARE, spec.to_json(), sizes], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Image(Shown):
    """What machines are made from: disks, how to boot, and *ready* states, from which they start in a moment.

    The built-in ones exist before they are built; :meth:`vmlab.Lab.build` builds them, as does the first use.
    """

    def __init__(self, lab: Lab, name: str) -> None:
        self._lab = lab
        self.name = name

    def __repr__(self) -> str:
        return f"<Image {self.name}{'' if self.built else ' (not built yet)'}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Image) and (other._lab.home, other.name) == (self._lab.home, self.name)

    def __hash__(self) -> int:
        return hash((self._lab.home, self.name))

    @property
    def _data(self) -> dict[str, Any]:
        return self._lab.store.image(self.name)

    @property
    def _recipe(self) -> Any:
        from vmlab.images.builder import builtin

        return builtin().get(self.name)

    @property
    def built(self) -> bool:
        """Whether its files are there."""
        return (self._lab.store.image_folder(self.name) / "image.json").exists()

    @property
    def current(self) -> bool:
        """Whether it is what its recipe makes now; always, for one that was imported."""
        from vmlab.images.builder import is_current

        return not self.builtin or is_current(self._lab.store.image_folder(self.name))

    @property
    def builtin(self) -> bool:
        """Whether vmlab knows how to build it."""
        return self._recipe is not None

    @property
    def title(self) -> str:
        """What it is, in a few words."""
        return str(self._data["title"] if self.built else self._recipe.title)

    @property
    def description(self) -> str:
        """What it is good for."""
        return str(self._recipe.description if self.builtin else self._data.get("source", ""))

    @property
    def memory(self) -> int:
        """RAM in MiB that its machines get by default."""
        return int(self._data["memory"] if self.built else self._recipe.memory)

    @property
    def vcpus(self) -> int:
        """Virtual CPUs that its machines get by default."""
        return int(self._data["vcpus"] if self.built else self._recipe.vcpus)

    @property
    def size(self) -> int:
        """Bytes on disk of its files; ready states are extra."""
        return allocated(self._lab.store.image_folder(self.name))

    @property
    def ready(self) -> bool:
        """Whether a machine with default hardware starts in a moment."""
        return self.built and bool(self._ready_records())

    def _ready_records(self) -> list[SnapshotRecord]:
        store = self._lab.store
        base, found = store.base_id(self.name), []
        for identity in store.snapshot_ids():
            with contextlib.suppress(VMLabError):
                record = store.snapshot(identity)
                if (
                    record.kind == "ready"
                    and record.spec.base == base
                    and not store.label(identity).forgotten
                ):
                    found.append(record)
        return found

    def ready_state(self, key: str) -> Snapshot | None:
        """Return the ready state that was made with that hardware (:func:`ready_key`), if there is one."""
        for record in self._ready_records():
            if record.ready_key == key:
                return Snapshot(self._lab, record)
        return None

    def bake(self, *, progress: Progress | None = None, **options: Any) -> Snapshot:
        """Boot a machine, wait until it is ready, and keep that state, so that new machines start from it.

        Parameters
        ----------
        options
            Hardware, as in :meth:`vmlab.Lab.create`; by default the image's own.

        Raises
        ------
        WaitTimeout
            It did not become ready; carries what its screen or serial line showed.
        """
        tell = progress or quiet
        lab = self._lab
        spec, sizes = lab.hardware(self.name, **options)
        key = ready_key(spec, sizes)
        with lab.store.lock(
            f"image@{self.name}", f"bake {self.name}", timeout=1800, tell=lambda t: tell(t, None)
        ):
            found = self.ready_state(key)
            if found is not None:
                return found
            tell(f"booting {self.name} once, to keep its ready state", None)
            name = f"bake-{self.name[:20]}-{new_id()[-6:]}"
            with (
                lab.store.lock(name, "bake"),
                lab.boot_new(name, self.name, spec, sizes, throwaway=True) as machine,
            ):
                self._wait_ready(machine, tell)
                tell(f"keeping the ready state of {self.name}", None)
                with machine._open("bake") as (record, domain):
                    identity = save.live(lab.store, record, domain, "ready", kind="ready", ready_key=key)
            return Snapshot(lab, lab.store.snapshot(identity))

    def _wait_ready(self, machine: Machine, tell: Progress) -> None:
        ready = self._data.get("ready") or {"screen": True}
        timeout = float(ready.get("timeout", 120))
        if ready.get("agent"):
            machine.wait_for_agent(timeout)
            if ready.get("command"):
                tell("the guest is up; waiting until it is ready", None)
                machine.wait_until_succeeds(ready["command"], timeout)
            # Let what the boot has started come to rest, or every machine would begin with it.
            time.sleep(float(ready.get("settle", 0)))
        else:
            machine.wait_for_screen(settle=float(ready.get("settle", 1)), timeout=timeout, tolerance=0.2)

    def delete(self) -> None:
        """Delete its files and ready states. Machines made from it are not harmed: they keep what they are built on.

        Raises
        ------
        NotFound
            It is not there.
        """
        store = self._lab.store
        if not self.built:
            raise NotFound(f"The image '{self.name}' is not built, so there is nothing to delete.")
        with store.lock(f"image@{self.name}", f"delete {self.name}"):
            folder = store.image_folder(self.name)
            gone = folder.with_name(f".new-gone-{self.name}-{new_id()}")
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
        self._lab.collect()

    def to_json(self) -> dict[str, Any]:
        """Return what is known of it."""
        return {
            "name": self.name,
            "title": self.title,
            "built": self.built,
            "builtin": self.builtin,
            "ready": self.ready,
            "memory": self.memory,
            "vcpus": self.vcpus,
            "size": self.size,
        }


def missing(name: str) -> ImageMissing:
    """Return the error for an image that is not there and cannot be built."""
    return ImageMissing(
        f"The image '{name}' is not built yet.", hint=f"build it with `%vm images --build {name}`"
    )
