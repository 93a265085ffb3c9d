"""What is damaged in a store: one record never hides another, and no file is used that is not what it was."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pytest
from help.bad_lab import a_page, harmed, mark, marks

from vmlab.compare import blocks
from vmlab.engine import delta, mapped_ram
from vmlab.errors import (
    AlreadyExists,
    ImageMissing,
    NotFound,
    RecordDamaged,
    SnapshotDamaged,
    VMLabError,
)
from vmlab.guest.wait import until
from vmlab.lab import Lab
from vmlab.machine import Machine, Snapshot
from vmlab.machines import digests
from vmlab.views import dispatch

# -- one record -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(ours: Lab) -> Iterator[tuple[Machine, Machine]]:
    """A machine to be damaged, with the snapshots ``good`` and ``second``, and one that is to be left alone."""
    victim, other = (ours.create(f"{stem}-{uuid.uuid4().hex[:6]}", "tiny") for stem in ("victim", "other"))
    for machine in (victim, other):
        mark(machine, "first")
        machine.snapshot("good")
        machine.snapshot("second")
    yield victim, other
    for machine in (victim, other):
        machine.delete()


def _no_format(text: str) -> str:
    return json.dumps({**json.loads(text), "format": 99})


def _of_another_kind(text: str) -> str:
    return json.dumps(
        {key: [value] if isinstance(value, str) else value for key, value in json.loads(text).items()}
    )


#: What is left of a record's text; None: the file is gone.
HARMS: dict[str, Callable[[str], str | bytes | None]] = {
    "gone": lambda text: None,
    "empty": lambda text: "",
    "cut": lambda text: text[: len(text) // 2],
    "flipped": lambda text: bytes(byte ^ 0x55 for byte in text.encode()),
    "of another version": _no_format,
    "of another kind": _of_another_kind,
}

#: A record of the victim, and what is shown as damaged in its place.
RECORDS: dict[str, Callable[[Lab, Machine], Path]] = {
    "machine": lambda lab, machine: machine.folder / "machine.json",
    "manifest": lambda lab, machine: machine.find("good").folder / "manifest.json",
    "label": lambda lab, machine: machine.find("good").folder / "label.json",
    "layer": lambda lab, machine: lab.home / "layers" / f"{machine._record.layers['vda']}.json",
    "image": lambda lab, machine: lab.store.image_folder("invaders") / "image.json",
    "limits": lambda lab, machine: lab.home / "limits.json",
    "identity": lambda lab, machine: machine.folder / "identity.json",
}


def _some(rows: Collection[str], columns: Collection[str]) -> list[tuple[str, str]]:
    """Return all pairs, or without VMLAB_ALL one for each row, with every column in turn."""
    if "VMLAB_ALL" in os.environ:
        return list(itertools.product(rows, columns))
    return list(zip(rows, itertools.cycle(columns), strict=False))


@pytest.mark.parametrize(("record", "harm"), _some(RECORDS, HARMS))
def test_a_damaged_record_hides_nothing_else(
    record: str, harm: str, ours: Lab, pair: tuple[Machine, Machine]
) -> None:
    victim, other = pair
    ours.set_limits()
    if not (victim.folder / "identity.json").exists():
        (victim.folder / "identity.json").write_text('{"format": 1}')
    path = RECORDS[record](ours, victim)
    before = path.read_text()
    left = HARMS[harm](before)
    shutil.copy2(path, path.with_name("kept"))
    path.unlink()
    if isinstance(left, str):
        path.write_text(left)
    elif left is not None:
        path.write_bytes(left)
    try:
        # All that shows several things shows them all.
        assert {victim.name, other.name} <= {machine.name for machine in ours}
        assert len(ours) == len(ours.machines)
        assert {usage.name for usage in ours.usage(over=0)} >= {victim.name, other.name}
        for shown in (dispatch.text(ours), dispatch.html(ours), json.dumps(dispatch.to_json(ours))):
            assert victim.name in shown
            assert other.name in shown
        assert [machine.state for machine in (victim, other)] == [
            "damaged" if record == "machine" else "running",
            "running",
        ]
        assert {image.name for image in ours.images} >= {"tiny", "invaders"}
        assert all(image.to_json() and image.title for image in ours.images)
        assert ours.limits().running >= 1
        assert [s.name for s in other.snapshots] == ["good", "second"]
        ours.collect()
        # The other one can be worked with; a new one can be made.
        assert marks(other) == "first first"
        other.revert("good")
        other.snapshot("third").forget()
        fork = other.fork(snapshot="good")
        assert marks(fork) == "first first"
        fork.delete()
        # It is shown as what it is, with what can be done.
        if record == "machine":
            assert "damaged" in dispatch.text(ours)
            assert f"%vm delete {victim.name}" in str(victim.to_json()["why"])
            assert ours[victim.name] == victim
            for call in (victim.snapshot, victim.stop, victim.tree, lambda: victim.spec):
                with pytest.raises(RecordDamaged, match=victim.name) as caught:
                    call()
                assert str(path) in str(caught.value)
                assert caught.value.hint
            with pytest.raises(AlreadyExists):
                ours.create(victim.name, "tiny")
        elif record == "manifest":
            assert [(s.name, s.kind) for s in victim.snapshots] == [
                ("good", "damaged"),
                ("second", "snapshot"),
            ]
            assert "damaged" in dispatch.text(victim.tree())
            assert "damaged" in dispatch.html(victim.tree())
            for call in (
                lambda: victim.revert("good"),
                victim.find("good").verify,
                lambda: victim.fork(snapshot="good"),
                lambda: victim.find("good").fork("never"),
                lambda: victim.diff("good").to_json(),
            ):
                with pytest.raises(SnapshotDamaged) as damaged:
                    call()
                assert str(path) in str(damaged.value)
                assert damaged.value.hint
        elif record == "image" and harm != "gone":
            assert "damaged" in dispatch.text(ours.image("invaders"))
            with pytest.raises(ImageMissing) as missing:
                ours.create("never", "invaders")
            assert missing.value.hint
        else:
            victim.revert(victim.snapshots[0])
        assert marks(other) == "first first"
    finally:
        path.unlink(missing_ok=True)
        path.with_name("kept").rename(path)
    assert victim.state == "running"
    victim.revert("good")
    assert marks(victim) == "first first"


def test_what_is_damaged_can_be_deleted(ours: Lab, box: Machine) -> None:
    other = ours.create(f"other-{uuid.uuid4().hex[:6]}", "tiny")
    mark(other, "mine")
    box.snapshot("second")
    good, second = box.snapshots
    (good.folder / "manifest.json").unlink()
    box.find("good").forget()
    assert [s.name for s in box.snapshots] == ["second"]
    ours.collect()
    assert not good.folder.exists()
    # Its machine goes with all of it, its guest included.
    pid = box.domain.pid
    assert pid is not None
    text = (box.folder / "machine.json").read_text()
    (box.folder / "machine.json").write_text("{")
    with pytest.raises(RecordDamaged):
        box.revert()
    # What else is known of it makes it whole.
    whole, told = Path(box.folder / "machine.json"), marks(other)
    before = json.loads(text)
    ours[box.name].mend()
    after = json.loads(whole.read_text())
    lost = {"created", "description", "starts", "pending", "forwarded", "whole", "whole_run"}
    assert {k: v for k, v in after.items() if k not in lost} == {
        k: v for k, v in before.items() if k not in lost
    }
    assert box.domain.pid == pid
    box.execute("echo before > /root/mark")
    box.snapshot("mended")
    box.execute("echo after > /root/mark")
    box.revert("mended")
    assert box.succeed("cat /root/mark") == "before\n"
    assert box.find("mended").verify().ok
    # Off, too: libvirt knows its disk as it was before the last revert.
    box.execute("echo later > /root/mark; sync")
    box.stop()
    whole.write_text("{")
    ours[box.name].mend()
    box.start()
    box.wait_for_agent()
    assert box.succeed("cat /root/mark") == "later\n"
    box.find("mended").forget()
    pid = box.domain.pid
    assert marks(other) == told
    whole.write_text("{")
    ours[box.name].delete()
    assert box.name not in ours
    assert box.state == "gone"
    assert not Path(f"/proc/{pid}").exists()
    assert not box.folder.exists()
    # What is new is left alone for a while.
    os.utime(second.folder, (0, 0))
    ours.collect()
    assert not second.folder.exists()
    assert marks(other) == "mine mine"
    other.delete()
    # The name is free.
    ours.create(box.name, "tiny").delete()
    # An image, too.
    folder = ours.store.image_folder("mine")
    shutil.copytree(ours.store.image_folder("tiny"), folder)
    ours.account.own(folder, recursive=True)
    (folder / "image.json").unlink()
    assert ours.image("mine").damaged
    with pytest.raises(ImageMissing):
        ours.create("never", "mine")
    ours.image("mine").delete()
    with pytest.raises(NotFound):
        ours.image("mine")


def test_machines_that_vanish_meanwhile(ours: Lab, box: Machine) -> None:
    fork = box.fork(snapshot="good")
    fork.snapshot("its-own")
    (own,) = fork.snapshots
    machines = ours.machines
    fork.delete()
    assert [machine.state for machine in machines if machine == fork] == ["gone"]
    assert own.machine is None
    assert own.here is False
    assert fork.name in dispatch.text(machines)


# -- one file ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def victim(ours: Lab) -> Iterator[Machine]:
    """A machine at ``second``, with the snapshots ``good`` and ``second``, and an image and base that are its alone.

    Both hold everything, as when much has changed, so that neither stands on the other.
    """
    folder = ours.store.image_folder("mine")
    shutil.copytree(ours.store.image_folder("tiny"), folder)
    description = json.loads((folder / "image.json").read_text())
    sizes = {name: (folder / name).stat().st_size for name in description["sha256"]}
    (folder / "image.json").unlink()
    (folder / "image.json").write_text(json.dumps({**description, "name": "mine", "bytes": sizes}))
    ours.account.own(folder, recursive=True)
    machine = ours.create(f"victim-{uuid.uuid4().hex[:6]}", "mine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delta, "pays", lambda *_: False)
        # The layer below that of ``good`` holds something that nothing above it covers.
        machine.succeed("head -c 300000 /dev/urandom >/root/below; sync")
        below = machine.snapshot("below")
        mark(machine, "first")
        machine.snapshot("good")
        mark(machine, "second")
        machine.snapshot("second")
        below.forget()
    # Nobody waits for the digests of the disks, or asks for them.
    layers = [s._record.layers["vda"] for s in machine.snapshots]
    taken = ours.store.digest_path
    until(lambda: all(taken(layer).exists() for layer in layers), 240, "digests are taken")
    yield machine
    machine.delete()
    ours.image("mine").delete()


def _top(lab: Lab, machine: Machine) -> str:
    return machine.find("good")._record.layers["vda"]


#: The files that the snapshot ``good`` stands on.
FILES: dict[str, Callable[[Lab, Machine], Path]] = {
    **{
        name: lambda lab, machine, name=name: machine.find("good").folder / name  # type: ignore[misc]
        for name in (
            "manifest.json", "label.json", "ram", "thin", "changed", "screen.png", "registers.txt", "domain.xml"
        )
    },
    "layer": lambda lab, machine: lab.store.layer_path(_top(lab, machine)),
    "layer below": lambda lab, machine: lab.store.layer_path(
        lab.store.layer(_top(lab, machine)).backing or ""
    ),
    "layer's record": lambda lab, machine: lab.home / "layers" / f"{_top(lab, machine)}.json",
    "base.json": lambda lab, machine: lab.home / "bases" / machine.spec.base / "base.json",
    "base's disk": lambda lab, machine: lab.home / "bases" / machine.spec.base / "disk.qcow2",
    "base's kernel": lambda lab, machine: lab.home / "bases" / machine.spec.base / str(machine.spec.kernel),
}  # fmt: skip
FILE_HARMS = ("gone", "empty", "cut", "flipped")
ALL = {"revert", "fork", "verify", "registers", "ram", "screen"}
STARTS = {"revert", "fork", "verify"}
#: Which verbs refuse ``good``, or in a diff that part of it, where a file is gone, empty or cut; and where it is
#: flipped. All others work as if nothing were.
REFUSED: dict[str, tuple[set[str], set[str]]] = {
    "manifest.json": (ALL, ALL),
    "label.json": (set(), set()),
    "ram": ({*STARTS, "ram"}, {"verify"}),
    "thin": (STARTS, STARTS),
    "changed": ({"verify"}, {"verify"}),
    "screen.png": ({"verify", "screen"}, {"verify", "screen"}),
    "registers.txt": ({"verify", "registers"}, {"verify", "registers"}),
    "domain.xml": (STARTS, STARTS),
    "layer": (STARTS, {"verify"}),
    "layer below": (STARTS, {"verify"}),
    "layer's record": (ALL, ALL),
    "base.json": (STARTS, STARTS),
    "base's disk": (STARTS, {"verify"}),
    "base's kernel": (STARTS, {"verify"}),
}


def _where(name: str, path: Path, top: Path) -> int | None:
    """Return where a file is flipped, if not in its middle: where there is something that the guest sees.

    ``top``: the file of the disk that stands on all the others.
    """
    if name == "ram":
        return a_page(path)
    if name in ("layer", "layer below", "base's disk"):
        disk = blocks.Disk(top)
        number = [layer.path.resolve() for layer in disk.layers].index(path.resolve())
        region = disk.region(0)
        (own,) = ((region.kind == blocks.PLAIN) & (region.layer == number)).nonzero()
        return int(region.where[own[len(own) // 2]])
    return mapped_ram.parse(path).devices_offset + 500 if name == "thin" else None


def refusal(verb: str, machine: Machine, good: Snapshot) -> VMLabError | str | None:
    """Do a verb with the snapshot ``good``, and return how it is refused; None where it works, which is looked at."""
    try:
        if verb == "verify":
            found = good.verify()
            return None if found.ok else "; ".join(found.differences)
        if verb == "fork":
            fork = machine.fork(snapshot=good)
            assert marks(fork) == "first first"
            fork.delete()
        elif verb == "revert":
            machine.revert(good)
            assert marks(machine) == "first first"
            machine.revert("second")
        else:
            part = machine.diff(good).part(verb)
            return None if part.outcome == "different" else part.error
    except VMLabError as error:
        return error
    return None


@pytest.mark.parametrize(("name", "harm"), _some(FILES, FILE_HARMS))
def test_a_file_is_not_what_it_was(name: str, harm: str, ours: Lab, victim: Machine) -> None:
    good = victim.find("good")
    path = FILES[name](ours, victim)
    refused = REFUSED[name][harm == "flipped"]
    with harmed(path, harm, _where(name, path, ours.store.layer_path(_top(ours, victim)))):
        for verb in ALL:
            found = refusal(verb, victim, good)
            assert (found is not None) == (verb in refused), f"{verb}: {found}"
            if found is not None:
                assert isinstance(found, str | SnapshotDamaged | RecordDamaged | ImageMissing), repr(found)
                # It names the file, and says what is to be done.
                assert path.name in str(found), f"{verb}: {found}"
                assert isinstance(found, str) or found.hint
        # All else works.
        assert victim.name in dispatch.text(ours)
        assert "second" in dispatch.text(victim.tree())
        ours.collect()
        assert victim.state == "running"
        assert marks(victim) == "second second"
        if path.parent == good.folder:
            victim.revert("second")
            assert marks(victim) == "second second"
    # Nor is it lost, if the file comes back.
    found = good.verify()
    assert found.ok
    assert found.disk_contents
    assert "vda: " in found.covered[0]
    assert "disk.qcow2" in found.covered[1]
    assert "disks identical" in str(found)


@pytest.mark.parametrize("harm", FILE_HARMS)
def test_a_log_is_not_what_it_was(harm: str, victim: Machine) -> None:
    """What a guest wrote on its serial line is no part of any state: nothing stands or falls by it."""
    with harmed(victim.folder / "serial.log", harm):
        assert harm not in ("gone", "empty") or victim.serial() == ""
        state = victim.snapshot(f"log {harm}")
        victim.revert(state)
        assert state.verify().ok
        victim.send_serial("echo again-$((1 + 1))\n")
        victim.wait_for_serial("again-2", timeout=60)
        victim.revert("second")
        state.forget()
    assert marks(victim) == "second second"


@pytest.mark.parametrize("name", ["layer", "layer below", "base's disk"])
def test_what_an_offline_snapshot_holds_is_verified(name: str, ours: Lab, victim: Machine) -> None:
    """It has no RAM; its disks are held against the digests that were taken."""
    with victim.fork(snapshot="second") as off:
        off.succeed("dd if=/dev/urandom of=/root/much bs=64k count=16 && sync")
        off.stop()
        snapshot = off.snapshot("off")
        digests.run(ours.store)
        found = snapshot.verify()
        assert found.ok
        assert (found.registers, found.ram, found.screen, found.disk_contents) == (None, None, None, True)
        assert found.rip == ()
        assert str(found) == f"{off.name}@off: disks identical"
        assert "identical" in dispatch.text(found)
        assert "vda: " in found.covered[0]
        disk = blocks.Disk(ours.store.layer_path(snapshot._record.layers["vda"]))
        region = disk.region(0)
        # One of its files that holds something which the guest sees.
        seen = sorted({int(number) for number in region.layer[region.kind == blocks.PLAIN]})
        number = {"layer": seen[0], "layer below": seen[1], "base's disk": seen[-1]}[name]
        assert number == {"layer": 0, "layer below": number, "base's disk": len(disk.layers) - 1}[name]
        (own,) = ((region.kind == blocks.PLAIN) & (region.layer == number)).nonzero()
        path = disk.layers[number].path.resolve()
        with harmed(path, "flipped", int(region.where[own[0]])):
            found = snapshot.verify()
            assert not found.ok
            assert path.name in "; ".join(found.differences)
        with harmed(path, "cut", None), pytest.raises((SnapshotDamaged, ImageMissing)):
            snapshot.verify()
        assert snapshot.verify().ok


@pytest.mark.parametrize("harm", FILE_HARMS[:3])
@pytest.mark.parametrize("name", ["image.json", "disk.qcow2", "vmlinuz"])
def test_a_file_of_an_image_is_not_what_it_was(name: str, harm: str, fresh_lab: Lab) -> None:
    folder = fresh_lab.store.image_folder("mine")
    shutil.copytree(fresh_lab.store.image_folder("tiny"), folder)
    data = json.loads((folder / "image.json").read_text())
    sizes = {file: (folder / file).stat().st_size for file in data["sha256"]}
    (folder / "image.json").unlink()
    (folder / "image.json").write_text(json.dumps({**data, "name": "mine", "bytes": sizes}))
    with harmed(folder / name, harm, None):
        with pytest.raises(ImageMissing, match="mine") as caught:
            fresh_lab.create("never", "mine", start=False)
        assert str(folder / name) in str(caught.value)
        assert caught.value.hint
        assert "never" not in fresh_lab
        assert fresh_lab.image("mine").to_json()
    fresh_lab.create(f"mine-{uuid.uuid4().hex[:6]}", "mine", start=False).delete()
