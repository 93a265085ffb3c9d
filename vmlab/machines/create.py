"""A new machine: by forking a ready state where there is one for its hardware, else by booting."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from vmlab.errors import AlreadyExists
from vmlab.images import builder
from vmlab.images.disks import disk_info
from vmlab.machines import life, ports, ready
from vmlab.machines.boot import boot_new
from vmlab.machines.fork import fork_one
from vmlab.machines.hardware import Wanted, plan
from vmlab.machines.names import taken
from vmlab.machines.room import need_memory
from vmlab.machines.unmake import collect_quietly
from vmlab.records import check_name
from vmlab.render.progress import Progress
from vmlab.store.store import Store


def build(store: Store, image: str, tell: Progress) -> None:
    """Build a built-in image, or build it anew."""
    with store.lock(f"image@{image}", f"build {image}", timeout=3600):
        builder.build(image, store.home / "images", store.account, tell)
    # What was made of the old one, and nothing stands on.
    collect_quietly(store)


def is_built(store: Store, image: str) -> bool:
    """Whether an image's files are there."""
    return Path(store.image_folder(image), "image.json").exists()


def create(
    store: Store,
    name: str,
    image: str,
    wanted: Wanted,
    *,
    forwards: ports.Forwards,
    clock: str,
    start: bool,
    bake: bool | None,
    force: bool,
    reuse: bool,
    tell: Progress,
    scenario: str | None = None,
) -> None:
    """Make a machine from an image, as a member of a scenario where one is named; see :meth:`vmlab.Lab.create`."""
    check_name("machine", name)
    if name in store.machine_names():
        if not reuse:
            raise taken(name, reuse=True)
        _need_same(store, name, image, wanted, forwards)
        if start:
            life.start(store, name, boot=False, force=force)
        return
    asked = ports.plan(store, forwards)
    if not is_built(store, image) and image in builder.builtin():
        build(store, image, tell)
    spec, sizes = plan(store, image, wanted)
    usual, usual_sizes = plan(store, image)
    # Where its cards lead does not matter to what is in a guest: one ready state serves all.
    wide = spec.unplugged
    as_usual = replace(wide, nics=usual.nics) == usual and sizes == usual_sizes
    wants_ready = bake if bake is not None else as_usual and start
    # Who cannot be told its own MAC must have it from the beginning.
    told = spec.agent or not any(card.plugged for card in spec.nics)
    if wants_ready and told and store.image(image).get("ready"):
        need_memory(store, spec, mapped=True, force=force)
        state = ready.ready_for(store, image, wide, sizes) or ready.bake(store, image, wide, sizes, tell)
        tell(f"starting {name} from the ready state of {image}", None)
        fork_one(
            store, state, name, leading=spec, forwards=asked, clock=clock, start=start, scenario=scenario
        )
        return
    if start:
        need_memory(store, spec, mapped=False, force=force)
    tell(f"booting {name}" if start else f"making {name}", None)
    boot_new(store, name, image, spec, sizes, asked, start=start, scenario=scenario)


def _need_same(store: Store, name: str, image: str, wanted: Wanted, forwards: ports.Forwards) -> None:
    """Refuse a machine that is not what :func:`create` would make; an image that was built anew is the same image.

    Raises
    ------
    AlreadyExists
        It has other hardware; says what differs.
    """
    record = store.machine(name)
    asked = ports.pairs(forwards)
    if record.image != image:
        pairs: dict[str, tuple[Any, Any]] = {"image": (record.image, image)}
    else:
        spec, sizes = plan(store, image, wanted)
        own = [
            disk_info(store.account, store.layer_path(record.layers[target]), "qcow2")["virtual-size"]
            for target in record.spec.disks
        ]
        pairs = {
            field.name.replace("_", " "): (getattr(record.spec, field.name), getattr(spec, field.name))
            for field in fields(spec)
            if field.name not in ("base", "machine_type")
        }
        has, asks = pairs["nics"]
        if len(has) == len(asks):
            # Which address is its own matters only where one was asked for, and how its cable is not at all.
            pairs["nics"] = (
                tuple(
                    replace(card, address=card.address if want.address else "", link=want.link)
                    for card, want in zip(has, asks, strict=True)
                ),
                asks,
            )
        pairs["sizes of its disks"] = (own, sizes)
        pairs["forwarded ports"] = (sorted(record.forwards), sorted(asked))
    differs = {what: f"{has}, not {new}" for what, (has, new) in pairs.items() if has != new}
    if differs:
        raise AlreadyExists(
            f"There is a machine named '{name}' already, with other hardware.",
            hint=f"choose another name, or delete it with `%vm delete {name}`",
            **differs,
        )
