"""The records of the store: whole or not at all, and never trusted."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import unicodedata
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from help.small_store import new_machine, new_store
from hypothesis import given
from hypothesis import strategies as st

from vmlab.errors import BadName, VMLabError
from vmlab.hypervisor.domain_xml import Wiring, adapt, build
from vmlab.machines.names import need_machine
from vmlab.machines.ready import HARDWARE, _old_key
from vmlab.records import (
    Hardware,
    Label,
    LayerRecord,
    LimitsRecord,
    MachineRecord,
    Nic,
    Pending,
    RamRecord,
    SnapshotRecord,
    check_label,
    check_name,
    new_id,
    read_json,
    write_json,
)

SPEC = Hardware(memory=96, disks=("vda", "vdb"), kernel="vmlinuz", boot=("disk",))
RAM = RamRecord(size=1 << 20, file_size=1 << 21, pages_offset=4096, base=None, digest="d", devices_digest="e")
EXAMPLES: list[Any] = [
    MachineRecord(
        "web",
        "u",
        "g",
        "m",
        "tiny",
        SPEC,
        layers={"vda": "l"},
        forwards=((8080, 80),),
        pending=Pending("leave", "paused"),
    ),
    SnapshotRecord(
        "s", "snapshot", "u", "web", "tiny", "2026", SPEC, {"vda": "l"}, RAM, "m", "g", pause_ms=3.5
    ),
    SnapshotRecord("s", "snapshot", "u", "web", "tiny", "2026", SPEC, {}, None, "m", "g", pause_ms=3),
    Label("clean", "p", "text", forgotten=True),
    LayerRecord("l", None, "tiny-1/disk.qcow2", 1 << 30),
    LimitsRecord(1, 2, None),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def is_plain(error: VMLabError) -> None:
    assert error.message.endswith(".")


def names_a_better_one(error: BadName) -> None:
    assert error.hint is not None
    better = error.hint.rsplit("'", 2)[1]
    assert check_name("machine", better) == better


@pytest.mark.parametrize("record", EXAMPLES, ids=lambda r: type(r).__name__)
def test_a_record_comes_back_as_it_was(record: Any, tmp_path: Path) -> None:
    write_json(tmp_path / "r.json", record.to_json())
    assert type(record).from_json(read_json(tmp_path / "r.json")) == record
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.parametrize("record", EXAMPLES, ids=lambda r: type(r).__name__)
def test_what_a_newer_version_adds_does_no_harm(record: Any) -> None:
    assert type(record).from_json({**record.to_json(), "colour": "blue"}) == record


@pytest.mark.parametrize("record", EXAMPLES, ids=lambda r: type(r).__name__)
@given(data=st.data())
def test_a_record_of_anything_is_refused_or_used(record: Any, data: st.DataObject) -> None:
    good = json.loads(json.dumps(record.to_json()))
    key = data.draw(st.sampled_from(sorted(good)))
    if data.draw(st.booleans()):
        del good[key]
    else:
        good[key] = data.draw(JSON)
    try:
        type(record).from_json(good)
    except VMLabError as error:
        is_plain(error)


@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_a_file_of_anything_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("any") / "r.json"
    path.write_bytes(content)
    try:
        assert isinstance(read_json(path), dict)
    except VMLabError as error:
        is_plain(error)


def test_a_record_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "r.json", {"format": 2})
    with pytest.raises(VMLabError, match="not written by this version"):
        read_json(tmp_path / "r.json")


def test_a_record_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_json(path, {"format": 1, "a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"format": 1, "a": object()})
    assert read_json(path) == {"format": 1, "a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_whoever_reads_while_it_is_written_gets_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_json(path, {"format": 1, "n": 0, "pad": ""})
    text = (
        "import sys; from pathlib import Path; from vmlab.records import write_json\n"
        "for n in range(200): write_json(Path(sys.argv[1]), {'format': 1, 'n': n, 'pad': 'x' * n * 50})"
    )
    writer = subprocess.Popen([sys.executable, "-c", text, str(path)])
    while writer.poll() is None:
        found = read_json(path)
        assert len(found["pad"]) == found["n"] * 50
    assert read_json(path)["n"] == 199


def test_identifiers_sort_by_time_and_do_not_repeat() -> None:
    made = [new_id() for _ in range(2000)]
    assert len(set(made)) == len(made)
    assert [i[:16] for i in made] == sorted(i[:16] for i in made)


@pytest.mark.parametrize(
    "name", ["clean", "vor dem Umbau", "Übung 3", "до", "第一課", "a (2), fertig!", "<b>", "x" * 80]
)
def test_a_name_that_is_only_shown_holds_any_letters_and_blanks(name: str) -> None:
    assert check_label("snapshot", name) == name
    # An accent may be typed apart from its letter.
    assert check_label("snapshot", unicodedata.normalize("NFD", name)) == name


@pytest.mark.parametrize(
    "name", ["", " ", " a", "a ", "-a", ".a", "a@b", "a\nb", "$a", "{a}", "a'b", "x" * 81, "a\u202eb", 3]
)
def test_a_name_that_cannot_be_typed_or_seen_is_refused(name: str) -> None:
    with pytest.raises(BadName, match="cannot be the name of a snapshot"):
        check_label("snapshot", name)


@given(st.text())
def test_a_name_is_good_for_files_or_refused_with_a_better_one(name: str) -> None:
    try:
        check_name("machine", name)
    except BadName as error:
        names_a_better_one(error)
    else:
        assert len(name.encode()) <= 40
        assert not set(name) & set("/\0 \n@*'\"")
        assert name[0] not in ".-"


def test_what_was_pending_is_read_as_it_was_written_before() -> None:
    old = {"doing": "revert", "pid": 7}
    assert Pending.from_json(old) == Pending("arrive", pid=7)
    assert Pending.from_json({"doing": "snapshot", "layers": {"vda": "l"}, "state": "paused"}) == Pending(
        "copy", "paused", {"vda": "l"}
    )


def test_a_machine_is_read_as_it_was_written_before() -> None:
    old = MachineRecord("web", "u", "g", "m", "tiny", SPEC).to_json()
    for card, network in (("e1000e", "user"), ("virtio", "none")):
        spec = {**old["spec"], "network": network, "nic": card}
        del spec["nics"]
        old.pop("continues", None)
        found = MachineRecord.from_json({**old, "spec": spec, "resume": "s1"})
        assert found.continues == "s1"
        assert found.spec.network == network
        assert found.spec.nics == ((Nic(card, network),) if network == "user" else ())


def test_a_ready_state_that_was_made_before_serves_the_same_hardware(tmp_path: Path) -> None:
    """The key as vmlab 0.1 wrote it, for a network card, for none, and for one that is not the usual."""
    words = {**SPEC.to_json(), "network": "user", "nic": "e1000e"}
    del words["nics"]
    text = json.dumps([HARDWARE, words, [7]], sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert _old_key(replace(SPEC, nics=(Nic("e1000e"),)), [7]) == key
    assert _old_key(replace(SPEC, nics=(Nic("virtio"),)), [7]) != key
    assert _old_key(replace(SPEC, nics=()), [7]) not in (None, key)
    # It knew no such hardware.
    assert _old_key(replace(SPEC, nics=(Nic(), Nic())), [7]) is None


def test_each_network_card_has_a_mac_of_its_own_also_after_a_fork(tmp_path: Path) -> None:
    spec = replace(SPEC, disks=(), nics=(Nic(), Nic("e1000e"), Nic()))
    wiring = Wiring("web", "u", "g", "52:54:00:00:ff:ff", tmp_path, tmp_path / "serial.log")
    macs = ["52:54:00:00:ff:ff", "52:54:00:01:00:00", "52:54:00:01:00:01"]
    xml = build(spec, wiring)
    cards = ET.fromstring(xml).findall("devices/interface")
    assert [card.find("mac").get("address") for card in cards] == macs  # type: ignore[union-attr]
    assert [card.find("model").get("type") for card in cards] == ["virtio", "e1000e", "virtio"]  # type: ignore[union-attr]
    fork = ET.fromstring(adapt(xml, replace(wiring, mac="52:54:00:ff:ff:ff")))
    found = [mac.get("address") for mac in fork.findall("devices/interface/mac")]
    assert found == ["52:54:00:ff:ff:ff", "52:54:00:00:00:00", "52:54:00:00:00:01"]


def test_a_machine_with_something_stuck_to_it_is_said_in_two_words(tmp_path: Path) -> None:
    """As scp writes files of other computers, and we states where they are compared."""
    store = new_store(tmp_path / "store")
    store.add_machine(new_machine(store, "web", store.adopt("img")))
    for name, words in (("web:/etc/hostname", "'web /etc/hostname'"), ("web@clean", "'web clean'")):
        with pytest.raises(BadName, match="'web' is one") as caught:
            need_machine(store, name)
        assert words in (caught.value.hint or "")
    for name in ("db:/etc/hostname", 5, None):
        with pytest.raises(BadName, match="cannot be the name"):
            need_machine(store, name)  # type: ignore[arg-type]
    need_machine(store, "web")
