"""A guest's disks come to stand on fewer layers, while it runs, in the same QEMU.

Every live snapshot adds one. QEMU copies into the layer that it writes to what lies below, as far as that pays; nothing
of the guest ends or stands still for it, neither commands nor connections.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

from vmlab.errors import VMLabError, WrongState
from vmlab.hypervisor.domain import Domain
from vmlab.hypervisor.domain_xml import disk_chains
from vmlab.records import LayerRecord, MachineRecord, Pending
from vmlab.store.store import FLATTEN_AT, MOST_LAYERS, SHORTEN_AT, Store, allocated

log = logging.getLogger(__name__)


def shorten(store: Store, record: MachineRecord, domain: Domain) -> None:
    """Let a guest go on over fewer disk layers, where there are many.

    What fails leaves it on those that it has, until the next time.
    """
    if store.depth(record.layers) < SHORTEN_AT:
        return
    try:
        _shorten(store, record, domain)
    except VMLabError as error:
        log.warning("the disk layers of %s stay as many: %s", record.name, error)


def need_layer(store: Store, record: MachineRecord, domain: Domain) -> None:
    """Make sure that a guest's disks can stand on one more layer; nothing is touched before.

    Raises
    ------
    WrongState
        They stand on as many as there can be, and it could not be helped; says why.
    """
    if store.depth(record.layers) < MOST_LAYERS:
        return
    try:
        _shorten(store, record, domain)
    except VMLabError as error:
        raise WrongState(
            f"The disks of {record.name} stand on {MOST_LAYERS} snapshots in a line, as many as libvirt can manage, "
            f"and could not be made to stand on fewer: {error.message}",
            hint=error.hint
            or f"`%vm revert {record.name}` goes back to the last snapshot, over fewer layers",
        ) from error


def _shorten(store: Store, record: MachineRecord, domain: Domain) -> None:
    record.pending = Pending("shorten")
    store.save_machine(record)
    try:
        for target, layer in record.layers.items():
            chain = list(store.layer_chain(layer))
            if len(chain) >= SHORTEN_AT:
                stays = _first_to_stay(store, chain)
                copied = sum(allocated(store.layer_path(part.id)) for part in chain[1:stays])
                store.need_space(copied, f"to copy what the disk {target} of {record.name} stands on")
                domain.pull(target, _file(store, chain, stays))
    finally:
        _write_down(store, record, domain)
        record.pending = None
        store.save_machine(record)


def _first_to_stay(store: Store, chain: list[LayerRecord]) -> int:
    """Return how many layers of a chain, from the top, become one; the whole length: all that are over the image.

    A layer that holds more than all above it stays, so that nothing is copied again and again however many snapshots
    there will be.
    """
    taken, stays = allocated(store.layer_path(chain[0].id)), 1
    # Of disks without an image, the lowest stays.
    last = len(chain) - (chain[-1].base is None)
    while stays < last:
        size = allocated(store.layer_path(chain[stays].id))
        if size > taken and len(chain) - stays < FLATTEN_AT:
            break
        taken += size
        stays += 1
    return stays


def _file(store: Store, chain: list[LayerRecord], index: int) -> Path:
    """Return the file of a layer of a chain; below the last one lies the image's."""
    if index < len(chain):
        return store.layer_path(chain[index].id)
    return Path(os.path.normpath(store.base_file(str(chain[-1].base))))


def _write_down(store: Store, record: MachineRecord, domain: Domain) -> None:
    """Write down on what the disks of a guest stand now, as libvirt tells it.

    Where nobody can be asked, the longer chain that is written down is right too: it has the same content.
    """
    if not domain.is_active():
        return
    for target, files in disk_chains(domain.xml()).items():
        if target not in record.layers or len(files) < 2:
            continue
        chain = list(store.layer_chain(record.layers[target]))
        below = next((n for n in range(1, len(chain) + 1) if _file(store, chain, n) == files[1]), None)
        if below is not None and below > 1:
            on = chain[below].id if below < len(chain) else None
            made = replace(chain[0], backing=on, base=chain[-1].base if on is None else None)
            store.keep_layers({target: made})


def recover(store: Store, record: MachineRecord, domain: Domain) -> None:
    """Put right what a process left that died while it shortened a chain: it is as long as it is."""
    if domain.is_active():
        domain.end_pulls()
        _write_down(store, record, domain)
