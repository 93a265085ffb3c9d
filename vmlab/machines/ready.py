"""Ready states: an image's machine that has booted, kept so that new machines start from it in a moment."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator

from vmlab import private
from vmlab.engine import save
from vmlab.engine.domain import domain_of
from vmlab.errors import VMLabError
from vmlab.guest.access import GuestAccess
from vmlab.guest.lastwords import last_words
from vmlab.machines import digests, throwaway
from vmlab.machines.guest import Guest
from vmlab.machines.hold import hold
from vmlab.records import Hardware, SnapshotRecord, new_id
from vmlab.render.progress import Progress
from vmlab.store.store import Store

#: Raised when machines of the same specification get other devices, so that ready states are made anew.
HARDWARE = 2


def ready_key(spec: Hardware, sizes: list[int]) -> str:
    """Return what a ready state must have been made with to serve a new machine: the same hardware."""
    data = spec.to_json()
    for card in data["nics"]:
        # They are those of no network.
        card.pop("address")
        card.pop("link")
    text = json.dumps([HARDWARE, data, sizes], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def ready_records(store: Store, image: str) -> list[SnapshotRecord]:
    """Return the ready states of an image, the oldest first."""
    base, found = store.base_id(image), []
    for snapshot_id in store.snapshot_ids():
        with contextlib.suppress(VMLabError):
            record = store.snapshot(snapshot_id)
            if record.kind == "ready" and record.spec.base == base and not store.label(snapshot_id).forgotten:
                found.append(record)
    return found


def ready_state(store: Store, image: str, key: str) -> SnapshotRecord | None:
    """Return the ready state that was made with that hardware (:func:`ready_key`), if there is one."""
    return next((record for record in ready_records(store, image) if record.ready_key == key), None)


def ready_for(store: Store, image: str, spec: Hardware, sizes: list[int]) -> SnapshotRecord | None:
    """Return the ready state for that hardware, if there is one."""
    old = _old_key(spec, sizes)
    return ready_state(store, image, ready_key(spec, sizes)) or (
        ready_state(store, image, old) if old else None
    )


def _old_key(spec: Hardware, sizes: list[int]) -> str | None:
    """Return the key that vmlab 0.1 gave to the same hardware, which it knew with one network card at most."""
    data = spec.to_json()
    cards = data.pop("nics")
    if len(cards) > 1:
        return None
    card = cards[0] if cards else {"model": "virtio", "network": "none"}
    text = json.dumps(
        [HARDWARE, data | {"network": card["network"], "nic": card["model"]}, sizes], sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def bake(store: Store, image: str, spec: Hardware, sizes: list[int], tell: Progress) -> SnapshotRecord:
    """Boot a machine, wait until it is ready, and keep that state; see :meth:`vmlab.Image.bake`."""
    key = ready_key(spec, sizes)
    with store.lock(f"image@{image}", f"bake {image}", timeout=1800, tell=lambda t: tell(t, None)):
        found = ready_for(store, image, spec, sizes)
        if found is not None:
            return found
        tell(f"booting {image} once, to keep its ready state", None)
        name = f"bake-{image[:20]}-{new_id()[-6:]}"
        with throwaway.booted(store, name, image, spec, sizes):
            with _told(store, image, Guest(store, name)) as guest:
                _wait_ready(store.image(image).get("ready") or {"screen": True}, guest, tell)
            tell(f"keeping the ready state of {image}", None)
            with hold(store, name, "bake") as (record, domain):
                made = save.live(store, record, domain, "ready", kind="ready", ready_key=key)
        digests.later(store)
        return store.snapshot(made)


@contextlib.contextmanager
def _told(store: Store, image: str, guest: Guest) -> Iterator[Guest]:
    """Say of a boot that fails what the guest said, and keep a picture of its screen: the guest itself goes."""
    try:
        with last_words(domain_of(store, guest.name), guest.folder):
            yield guest
    except VMLabError as error:
        error.message = f"The image '{image}' did not come up: {error.message}"
        error.hint = f"boot it with other hardware, and look on: `%vm create NAME {image} --memory SIZE`"
        if error.screen is not None:
            picture = private.folders(store.home / "cache" / "boots") / f"{image}.png"
            private.write(picture, error.screen.png)
            error.evidence["screen"] = picture
        raise


def _wait_ready(ready: dict[str, object], guest: GuestAccess, tell: Progress) -> None:
    timeout = float(str(ready.get("timeout", 120)))
    if ready.get("agent"):
        guest.wait_for_agent(timeout)
        if ready.get("command"):
            tell("the guest is up; waiting until it is ready", None)
            guest.wait_until_succeeds(str(ready["command"]), timeout)
        # Let what the boot has started come to rest, or every machine would begin with it.
        time.sleep(float(str(ready.get("settle", 0))))
    else:
        guest.wait_for_screen(settle=float(str(ready.get("settle", 1))), timeout=timeout, tolerance=0.2)
