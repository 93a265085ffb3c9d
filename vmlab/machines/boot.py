"""A new machine that boots."""

from __future__ import annotations

import hashlib
import secrets
import uuid
from collections.abc import Iterable

from vmlab.engine import load
from vmlab.engine.domain import domain_of
from vmlab.machines import networks
from vmlab.machines.names import need_free
from vmlab.machines.unmake import unmake
from vmlab.records import Hardware, MachineRecord
from vmlab.store.store import Store

#: Bytes of disk without which a machine that boots is not even begun.
SPACE = 64 << 20

Forwards = Iterable[tuple[int, ...]]


def new_record(
    name: str, image: str, spec: Hardware, forwards: Forwards, scenario: str | None = None
) -> MachineRecord:
    """Return the record of a new machine, with an identity of its own; a ``scenario``'s member has always the same."""
    own = hashlib.sha256(name.encode()).digest()[:3] if scenario is not None else secrets.token_bytes(3)
    return MachineRecord(
        name=name,
        uuid=str(uuid.uuid4()),
        genid=str(uuid.uuid4()),
        # QEMU's own prefix, so that a look at the MAC tells what it is.
        mac="52:54:00:" + ":".join(f"{b:02x}" for b in own),
        image=image,
        spec=spec,
        forwards=tuple((int(host), int(guest)) for host, guest in forwards),
        scenario=scenario,
    )


def boot_new(
    store: Store,
    name: str,
    image: str,
    spec: Hardware,
    sizes: list[int],
    forwards: Forwards = (),
    *,
    start: bool = True,
    throwaway: bool = False,
    scenario: str | None = None,
) -> None:
    """Make a machine of that hardware and boot it; what fails leaves nothing behind."""
    store.need_space(SPACE, "for one more machine")
    record = new_record(name, image, spec, forwards, scenario)
    record.throwaway = throwaway
    domain = domain_of(store, name)
    with store.lock(name, "create"):
        need_free(store, name)
        try:
            files = list(store.base(spec.base)["disks"])
            for index, target in enumerate(spec.disks):
                base = f"{spec.base}/{files[index]}" if index < len(files) else None
                record.layers[target] = store.add_layer(base=base, size=sizes[index]).id
            # With its disks at once: should we die, it is a whole machine that is off.
            with networks.addressed(store, record):
                store.add_machine(record)
            load.define(store, record, domain)
            if start:
                load.boot(store, record, domain)
            store.save_machine(record)
        except BaseException:
            unmake(store, record, domain)
            raise
