"""A store with real disk layers and records, and no guest."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from vmlab import private
from vmlab.hypervisor.account import Account
from vmlab.records import Hardware, Label, MachineRecord, RamRecord, SnapshotRecord, new_id, write_json
from vmlab.store.store import Store


@dataclass(frozen=True)
class Nobody:
    """An account that owns files as they are."""

    usual_store = Path("/nowhere")

    def own(self, path: Path, **_: Any) -> Path:
        return Path(path)

    def make_dir(self, path: Path) -> Path:
        return private.folders(path)


def new_store(home: Path) -> Store:
    """Return a store with an image ``img`` that has one small disk."""
    store = Store(home, cast(Account, Nobody()))
    folder = store.image_folder("img")
    folder.mkdir()
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", folder / "disk.qcow2", "1M"], check=True)
    write_json(
        folder / "image.json",
        {"format": 1, "name": "img", "disks": [{"file": "disk.qcow2", "size": 1 << 20}]},
    )
    return store


def new_machine(store: Store, name: str, base: str, **values: Any) -> MachineRecord:
    spec = Hardware(memory=1, base=base, disks=("vda",))
    return MachineRecord(name, f"uuid-{new_id()}", "g", "m", "img", spec, **values)


def new_snapshot(
    store: Store, machine: MachineRecord, layers: dict[str, str], *, kind: str = "snapshot", live: bool = True,
    base: str | None = None,
) -> str:  # fmt: skip
    identity = new_id()
    ram = RamRecord(1 << 20, 10, 0, base, "d", "e") if live else None
    record = SnapshotRecord(
        identity, kind, machine.uuid, machine.name, "img", "2026", machine.spec, layers, ram, "m", "g"
    )
    with store.new_snapshot(identity) as folder:
        (folder / "ram").write_bytes(b"x" * 10)
        write_json(folder / "label.json", Label(identity, machine.here).to_json())
        write_json(folder / "manifest.json", record.to_json())
    return identity
