"""How states are got at to be compared: what is kept of them, who waits for whom, and what goes wrong with it."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from vmlab import private
from vmlab.errors import AgentError, VMLabError
from vmlab.machines import throwaway
from vmlab.records import Hardware, Label, RamRecord, SnapshotRecord, write_json
from vmlab.store.store import Store
from vmlab.study import disks
from vmlab.study import side as sides
from vmlab.study.baseline import measure
from vmlab.study.diff import Diff
from vmlab.study.disks import Disks
from vmlab.study.side import Side
from vmlab.study.which import Place

FLUSHED = Disks([Path("/x/vda.qcow2")], True, "with the guest's page cache")
PLAIN = Disks([Path("/x/vda.qcow2")], False, "as they were", "its agent was asleep")


@pytest.fixture
def lab(tmp_path: Path) -> Any:
    """What of a lab is needed where no guest runs: its store."""

    def own(path: Path, **_: Any) -> Path:
        return path

    account = SimpleNamespace(own=own, make_dir=private.folders)
    return SimpleNamespace(store=Store(tmp_path, cast(Any, account)))


def made(folder: Path, *names: str, text: str = "new") -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text(text)
    return folder


def test_flushed_disks_are_kept(tmp_path: Path) -> None:
    new, folder = made(tmp_path / ".new-1", "vda.qcow2", "vdb.qcow2"), tmp_path / "snapshot"
    kept = [folder / "vda.qcow2", folder / "vdb.qcow2"]
    disks._keep(new, folder, kept)
    assert all(path.read_text() == "new" for path in kept)
    assert not new.exists()


def test_flushed_disks_come_to_a_baseline_that_is_kept_already(tmp_path: Path) -> None:
    new, folder = made(tmp_path / ".new-1", "vda.qcow2"), made(tmp_path / "snapshot", "baseline.json")
    disks._keep(new, folder, [folder / "vda.qcow2"])
    assert sorted(path.name for path in folder.iterdir()) == ["baseline.json", "vda.qcow2"]
    assert not new.exists()


def test_disks_that_somebody_else_has_flushed_meanwhile_stay(tmp_path: Path) -> None:
    # Somebody may have opened them.
    new, folder = made(tmp_path / ".new-1", "vda.qcow2"), made(tmp_path / "snapshot", "vda.qcow2", text="old")
    disks._keep(new, folder, [folder / "vda.qcow2"])
    assert (folder / "vda.qcow2").read_text() == "old"
    assert not new.exists()


def test_disks_of_which_one_is_gone_are_replaced_together(tmp_path: Path) -> None:
    new = made(tmp_path / ".new-1", "vda.qcow2", "vdb.qcow2")
    folder = made(tmp_path / "snapshot", "vda.qcow2", text="old")
    kept = [folder / "vda.qcow2", folder / "vdb.qcow2"]
    disks._keep(new, folder, kept)
    assert [path.read_text() for path in kept] == ["new", "new"]


def test_old_flushed_disks_go_and_those_in_use_stay(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disks, "KEPT", 2)
    store = lab.store
    for number in range(6):
        folder = made(store.compared_folder(f"s{number}"), "vda.qcow2")
        # The first three were used long ago, the others are being compared now.
        when = time.time() - (disks.IN_USE * 2 - number if number < 3 else 0)
        os.utime(folder, (when, when))
    disks._prune(store)
    assert sorted(path.name for path in store.compared_folder("x").parent.iterdir()) == ["s3", "s4", "s5"]
    # Whoever finds them uses them from then on.
    old = store.compared_folder("s3")
    os.utime(old, (1, 1))
    assert disks._in_use(old, [old / "vda.qcow2"])
    disks._prune(store)
    assert old.exists()
    assert not disks._in_use(old, [old / "vda.qcow2", old / "vdb.qcow2"])
    assert not disks._in_use(store.compared_folder("gone"), [])


def test_who_waits_for_forks_waits_for_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    gone: list[str] = []

    def unmake(_store: Any, machine: Any, _domain: Any) -> None:
        """Let nothing go before it is told to, and then not without trouble."""
        go_on.wait(30)
        gone.append(machine.name)
        raise VMLabError("libvirt is gone")

    monkeypatch.setattr(throwaway, "unmake", unmake)
    forks = throwaway.Forks()
    for name in ("look-1", "look-2"):
        forks.end(cast(Any, None), cast(Any, SimpleNamespace(name=name)), cast(Any, None))
    assert gone == []
    go_on.set()
    forks.wait()
    assert sorted(gone) == ["look-1", "look-2"]


# -- sides -----------------------------------------------------------------------------------------------------------


def side(lab: Any, name: str) -> Side:
    """Return a side that is a live snapshot of a guest without an agent."""
    ram = RamRecord(4 << 20, 0, 0, None, "", "")
    spec = Hardware(memory=4, base="b", disks=("vda",), agent=False)
    when = "2025-01-01T00:00:00+00:00"
    record = SnapshotRecord(name, "snapshot", "m", "web", "img", when, spec, {"vda": "l"}, ram, "", "")
    folder = lab.store.snapshot_folder(name)
    folder.mkdir()
    write_json(folder / "manifest.json", record.to_json())
    write_json(folder / "label.json", Label(name).to_json())
    return Side(lab.store, Place(name))


def test_both_sides_write_out_at_the_same_time_and_once(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    both, asked = threading.Barrier(2, timeout=20), []

    def flushed(_store: Any, record: SnapshotRecord, **_: Any) -> Disks:
        both.wait()
        asked.append(record.id)
        return FLUSHED if record.id == "new" else PLAIN

    monkeypatch.setattr(sides, "flushed_disks", flushed)
    diff = Diff(lab.store, side(lab, "old"), side(lab, "new"))
    assert diff._both(Side.flush) == (PLAIN, FLUSHED)
    # What fails beside it is no reason to do it again.
    assert "has no guest agent" in diff.part("inside").why
    assert diff.part("files").outcome == "failed"
    assert sorted(asked) == ["new", "old"]
    # Said of what was read, whatever could be had later.
    diff.before._disks = FLUSHED
    assert f"{diff.before.title}: files were read as they were (its agent was asleep)" in diff.notes
    assert not any(diff.after.title in note for note in diff.notes)


def test_what_was_stopped_can_be_asked_again(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[throwaway.Forks] = []

    def flushed(_store: Any, _record: SnapshotRecord, *, forks: throwaway.Forks) -> Disks:
        found.append(forks)
        if forks.stopped:
            raise VMLabError("stopped")
        return FLUSHED

    monkeypatch.setattr(sides, "flushed_disks", flushed)
    one = side(lab, "old")
    one.stop()
    with pytest.raises(VMLabError, match="stopped"):
        one.flush()
    one.wait()
    assert one.disks == FLUSHED
    assert len(set(found)) == 2


def test_a_layer_that_needs_too_much_memory_leaves_the_others(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much() -> None:
        raise MemoryError

    diff = Diff(lab.store, side(lab, "old"), side(lab, "new"))
    monkeypatch.setattr(diff, "_compare_disk", too_much)
    part = diff.part("disk")
    assert part.outcome == "failed"
    assert part.why == "The disk could not be compared: that takes more memory than there is."
    assert diff
    with pytest.raises(VMLabError, match="more memory than there is"):
        _ = diff.disk


def test_no_baseline_of_disks_that_were_not_written_out(lab: Any) -> None:
    one = side(lab, "old")
    one._disks = PLAIN
    with pytest.raises(AgentError, match="No baseline can be measured: its agent was asleep"):
        measure(lab.store, one, 1.0, wide=False)
    assert not lab.store.compared_folder("old").exists()
