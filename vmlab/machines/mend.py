"""A machine whose record is gone or damaged gets a new one, made of what libvirt, its disk and its snapshots tell."""

from __future__ import annotations

import contextlib
import re
import xml.etree.ElementTree as ET
from pathlib import Path

from vmlab.engine.domain import domain_of
from vmlab.errors import RecordDamaged, VMLabError
from vmlab.hypervisor import domain_xml
from vmlab.records import FIRST_ADDRESS, MachineRecord, SnapshotRecord, check_name
from vmlab.store.store import Store


def mend(store: Store, name: str) -> None:
    """Write a machine's record anew if it cannot be read; see :meth:`vmlab.Machine.mend`."""
    with contextlib.suppress(RecordDamaged):
        store.machine(name)
        return
    check_name("machine", name)
    with store.lock(name, "mend"):
        store.save_machine(_found(store, name))


def _found(store: Store, name: str) -> MachineRecord:
    domain = domain_of(store, name)
    folder = store.machine_folder(name)
    text = domain.xml() if domain.uuid is not None else ""
    if f"{folder}/" not in text:
        raise _lost(name, "libvirt does not know it any more")
    xml = ET.fromstring(text)
    mac = xml.find("devices/interface/mac")
    layers = {target: files[0].stem for target, files in domain_xml.disk_chains(text).items()}
    uuid = str(domain.uuid)
    own = store.snapshots_of(uuid)
    if domain.pid is None:
        layers = _newest(store, name, layers, own)
    try:
        below = [layer.id for top in layers.values() for layer in store.layer_chain(top)]
    except (VMLabError, OSError) as error:
        raise _lost(name, "the record of a layer of its disk is damaged, too") from error
    here = _stood_on(own, below) or _stood_on(_others(store), below)
    like = here or (own[-1] if own else None)
    if like is None:
        raise _lost(name, "there is no snapshot that tells its hardware")
    sounds = [
        int(found[1]) for path in folder.glob("sound-*.wav") if (found := re.search(r"(\d+)", path.name))
    ]
    undone = store.snapshots_of(uuid, ("undo",))
    return MachineRecord(
        name=name,
        uuid=uuid,
        genid=xml.findtext("genid") or like.genid,
        mac=like.mac if mac is None else str(mac.get("address")),
        image=like.image,
        spec=like.spec,
        layers=layers,
        here=None if here is None else here.id,
        root=_root(store, here, uuid),
        mapped=_mapped(store, text),
        undo=undone[-1].id if undone else None,
        forwards=like.forwards if like.machine == uuid else (),
        address=like.address or FIRST_ADDRESS,
        starts=max(sounds, default=0) + 1,
        domain=None if domain.known_as == name else domain.known_as,
    )


def _newest(store: Store, name: str, layers: dict[str, str], own: list[SnapshotRecord]) -> dict[str, str]:
    """Return the layers of a machine that is off: libvirt may know those from before its last revert.

    They are the only ones that neither a snapshot, nor a layer, nor another machine names. Where that is not so for
    sure, nothing is guessed: the present would be another one.
    """
    named: set[str] = set()
    for snapshot in store.snapshot_ids():
        with contextlib.suppress(VMLabError, OSError):
            named.update(store.snapshot(snapshot).layers.values())
    for other in store.machine_names():
        with contextlib.suppress(VMLabError):
            named.update(store.machine(other).layers.values())
    ids = [path.stem for path in (store.home / "layers").glob("[!.]*.qcow2")]
    chains: dict[str, list[str]] = {}
    for layer in ids:
        with contextlib.suppress(VMLabError, OSError):
            chains[layer] = [below.id for below in store.layer_chain(layer)]
            named.update(chains[layer][1:])
    roots = {layer for state in own for layer in state.layers.values()}
    free = [
        layer
        for layer in chains
        if layer not in named and (roots & set(chains[layer]) or layer in layers.values())
    ]
    if sorted(free) == sorted(layers.values()):
        return layers
    if len(free) == len(layers) == 1:
        return dict.fromkeys(layers, free[0])
    raise _lost(name, "it is off, and which of several disk layers is its present nobody can tell")


def _others(store: Store) -> list[SnapshotRecord]:
    """Return the states that machines may have been made from, the oldest first."""
    found = []
    for snapshot in store.snapshot_ids():
        with contextlib.suppress(VMLabError, OSError):
            if (record := store.snapshot(snapshot)).kind in ("ready", "snapshot"):
                found.append(record)
    return found


def _stood_on(states: list[SnapshotRecord], below: list[str]) -> SnapshotRecord | None:
    """Return the state whose layers lie nearest below the present's; the newest of several."""
    found = [state for state in states if state.layers and set(state.layers.values()) <= set(below)]
    return min(reversed(found), key=lambda state: min(map(below.index, state.layers.values())), default=None)


def _root(store: Store, here: SnapshotRecord | None, uuid: str) -> str | None:
    """Return the state of another machine that a tree starts from."""
    while here is not None and here.machine == uuid:
        parent = store.label(here.id).parent
        try:
            here = None if parent is None else store.snapshot(parent)
        except (VMLabError, OSError):
            return None
    return None if here is None else here.id


def _mapped(store: Store, text: str) -> str | None:
    """Return the snapshot whose file a running guest's RAM is mapped from."""
    found = re.search(r"name=['\"]VMLAB_RAM['\"] value=['\"][^'\"]*mem-path=([^,'\"]+)", text)
    snapshot = Path(found[1]).parent.name if found else ""
    return snapshot if snapshot in store.snapshot_ids() else None


def _lost(name: str, why: str) -> RecordDamaged:
    return RecordDamaged(
        f"The record of the machine '{name}' cannot be made anew: {why}.",
        hint=f"bring the file back from a backup, or delete the machine with its snapshots: `%vm delete {name}`",
    )
