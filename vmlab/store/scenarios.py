"""The scenarios of a lab, as its store knows them: a folder each, under ``scenarios/``, with their states in it."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vmlab import private
from vmlab.errors import NotFound, RecordDamaged, SnapshotDamaged, VMLabError
from vmlab.records import ScenarioRecord, StateRecord, new_id, read_json, write_json
from vmlab.store.store import Store


def names(store: Store) -> list[str]:
    """Return the names of all scenarios, sorted."""
    return sorted(path.parent.name for path in (store.home / "scenarios").glob("[!.]*/scenario.json"))


def _folder(store: Store, name: str) -> Path:
    return store.home / "scenarios" / name


def _state_folder(store: Store, name: str, state: str) -> Path:
    return _folder(store, name) / "states" / state


def read(store: Store, name: str) -> ScenarioRecord:
    """Return the record of a scenario.

    Raises
    ------
    NotFound
        With the nearest names.
    RecordDamaged
        It cannot be read.
    """
    path = _folder(store, name) / "scenario.json"
    try:
        return ScenarioRecord.from_json(read_json(path))
    except FileNotFoundError:
        raise NotFound.named(
            "scenario", name, names(store), hint="make one of its file: `%vm up FOLDER/scenario.toml`"
        ) from None
    except RecordDamaged as error:
        raise RecordDamaged(
            f"The record of the scenario '{name}' is damaged.",
            hint=f"bring the file back from a backup; or delete the scenario with its machines: `%vm delete {name}`",
            file=path,
            record=error,
        ) from error


def add(store: Store, record: ScenarioRecord) -> None:
    """Add a new scenario; its name must be free."""
    folder = _folder(store, record.name)
    private.folders(folder.parent)
    new = private.folder(folder.with_name(f".new-{record.name}-{new_id()}"))
    try:
        private.folder(new / "states")
        write_json(new / "scenario.json", record.to_json())
        new.rename(folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def save(store: Store, record: ScenarioRecord) -> None:
    """Write the record of a scenario."""
    write_json(_folder(store, record.name) / "scenario.json", record.to_json())


def remove(store: Store, name: str) -> None:
    """Remove a scenario with its states; its machines and networks are gone already."""
    folder = _folder(store, name)
    gone = folder.with_name(f".gone-{name}-{new_id()}")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def states(store: Store, name: str) -> list[StateRecord]:
    """Return the states of a scenario, the oldest first; not those that cannot be read."""
    found = []
    for path in (_folder(store, name) / "states").glob("[!.]*"):
        with contextlib.suppress(VMLabError):
            found.append(state(store, name, path.name))
    return sorted(found, key=lambda state: state.id)


def has_state(store: Store, name: str, state: str) -> bool:
    """Whether a scenario has that state."""
    return _state_folder(store, name, state).is_dir()


def state(store: Store, name: str, state: str) -> StateRecord:
    """Return a state of a scenario.

    Raises
    ------
    NotFound, SnapshotDamaged
    """
    path = _state_folder(store, name, state) / "state.json"
    try:
        return StateRecord.from_json(read_json(path))
    except FileNotFoundError:
        raise NotFound(
            f"The scenario '{name}' has no such state.", hint=f"`%vm tree {name}` shows them"
        ) from None
    except RecordDamaged as error:
        raise _damaged(path, error) from error


def wire(store: Store, name: str, state: str) -> dict[str, Any]:
    """Return what was under way in a state: by network, the cards as ``machine.number``.

    Raises
    ------
    SnapshotDamaged
    """
    path = _state_folder(store, name, state) / "wire.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text())["networks"]
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> SnapshotDamaged:
    return SnapshotDamaged(
        "A file of a scenario's state cannot be read.",
        hint="bring it back from a backup, or go back to another state",
        file=path,
        why=error,
    )


def add_state(store: Store, name: str, record: StateRecord, wire: Mapping[str, Any]) -> None:
    """Add a state; it is there whole, or not at all."""
    folder = _state_folder(store, name, record.id)
    new = private.folder(folder.with_name(f".new-{record.id}"))
    try:
        private.write(new / "wire.json", json.dumps({"networks": wire}))
        write_json(new / "state.json", record.to_json())
        new.rename(folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def save_state(store: Store, name: str, record: StateRecord) -> None:
    """Write what may change of a state: its name, its parent, what it is."""
    write_json(_state_folder(store, name, record.id) / "state.json", record.to_json())


def remove_state(store: Store, name: str, state: str) -> None:
    """Remove a state; the snapshots of machines in it are left to the collection."""
    folder = _state_folder(store, name, state)
    gone = folder.with_name(f".gone-{state}")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def snapshots(store: Store) -> tuple[set[str], int]:
    """Return the snapshots of machines that states refer to, and how many records could not be read."""
    found: set[str] = set()
    unreadable = 0
    for path in (store.home / "scenarios").glob("[!.]*/states/[!.]*/state.json"):
        try:
            found.update(StateRecord.from_json(read_json(path)).members.values())
        except FileNotFoundError:
            continue
        except VMLabError:
            unreadable += 1
    return found, unreadable
