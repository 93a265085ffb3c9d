"""Images: what machines are made from."""

from __future__ import annotations

import contextlib
from typing import Any

from vmlab.checked import checked, takes_options_of
from vmlab.errors import ImageMissing, NotFound
from vmlab.images.builder import builtin, is_current
from vmlab.images.spec import described, read
from vmlab.machine import Snapshot
from vmlab.machines import ready
from vmlab.machines.create import is_built
from vmlab.machines.hardware import Wanted, plan
from vmlab.machines.unmake import collect
from vmlab.render.progress import Progress, quiet
from vmlab.render.shown import Shown
from vmlab.store.store import Store, allocated


@checked
class Image(Shown):
    """What machines are made from: disks, how to boot, and *ready* states, from which they start in a moment.

    The built-in ones exist before they are built; :meth:`vmlab.Lab.build` builds them, as does the first use.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self.name = name

    def __repr__(self) -> str:
        return f"<Image {self.name}{'' if self.built else ' (not built yet)'}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Image) and (other._store.home, other.name) == (self._store.home, self.name)

    def __hash__(self) -> int:
        return hash((self._store.home, self.name))

    @property
    def _data(self) -> dict[str, Any]:
        return described(self._store, self.name)

    @property
    def damaged(self) -> str | None:
        """What is wrong with it, in a sentence, where its description or a file of it is gone or cannot be read."""
        if not self._store.image_folder(self.name).is_dir() or (self.builtin and not self.built):
            return None
        try:
            read(self._store.image_folder(self.name))
        except ImageMissing as error:
            return f"{error.message} Next: {error.hint}"
        return None

    def _told(self, key: str, otherwise: Any) -> Any:
        """Return what its description says; of one that is damaged, what its recipe says."""
        with contextlib.suppress(ImageMissing, NotFound):
            if self.built:
                return self._data.get(key, otherwise)
        return getattr(self._recipe, key, otherwise)

    @property
    def _recipe(self) -> Any:
        return builtin().get(self.name)

    @property
    def built(self) -> bool:
        """Whether its files are there."""
        return is_built(self._store, self.name)

    @property
    def current(self) -> bool:
        """Whether it is what its recipe makes now; always, for one that was imported."""
        return not self.builtin or is_current(self._store.image_folder(self.name))

    @property
    def builtin(self) -> bool:
        """Whether vmlab knows how to build it."""
        return self._recipe is not None

    @property
    def title(self) -> str:
        """What it is, in a few words."""
        return str(self._told("title", self.name))

    @property
    def description(self) -> str:
        """What it is good for."""
        return str(self._recipe.description if self.builtin else self._told("source", ""))

    @property
    def memory(self) -> int:
        """RAM in MiB that its machines get by default."""
        return int(self._told("memory", 0))

    @property
    def vcpus(self) -> int:
        """Virtual CPUs that its machines get by default."""
        return int(self._told("vcpus", 0))

    @property
    def size(self) -> int:
        """Bytes on disk of its files; ready states are extra."""
        return allocated(self._store.image_folder(self.name))

    @property
    def ready(self) -> bool:
        """Whether a machine with default hardware starts in a moment."""
        with contextlib.suppress(ImageMissing, NotFound):
            return self.built and bool(ready.ready_records(self._store, self.name))
        return False

    def ready_state(self, key: str) -> Snapshot | None:
        """Return the ready state that was made with that hardware (``vmlab.machines.ready.ready_key``) or None."""
        record = ready.ready_state(self._store, self.name, key)
        return Snapshot(self._store, record) if record is not None else None

    @takes_options_of(lambda: Wanted)
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
        spec, sizes = plan(self._store, self.name, Wanted(**options))
        return Snapshot(self._store, ready.bake(self._store, self.name, spec, sizes, progress or quiet))

    def delete(self) -> None:
        """Delete its files and ready states. Machines made from it are not harmed: they keep what they are built on.

        Raises
        ------
        NotFound
            It is not there.
        """
        if not self.built and self.name not in self._store.image_names():
            raise NotFound(f"The image '{self.name}' is not built, so there is nothing to delete.")
        self._store.remove_image(self.name)
        collect(self._store)

    def to_json(self) -> dict[str, Any]:
        """Return what is known of it."""
        return {
            "name": self.name,
            "title": self.title,
            "description": self.description,
            "built": self.built,
            "builtin": self.builtin,
            "ready": self.ready,
            "memory": self.memory,
            "vcpus": self.vcpus,
            "size": self.size,
            "damaged": self.damaged,
        }
