"""The records of the store: whole or not at all, and never trusted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmlab.errors import BadName, VMLabError
from vmlab.store.records import (
    Label,
    LayerRecord,
    LimitsRecord,
    MachineRecord,
    MachineSpec,
    RamRecord,
    SnapshotRecord,
    check_name,
    new_id,
    read_json,
    write_json,
)

SPEC = MachineSpec(memory=96, disks=("vda", "vdb"), kernel="vmlinuz", boot=("disk",))
RAM = RamRecord(size=1 << 20, file_size=1 << 21, pages_offset=4096, base=None, digest="d", devices_digest="e")
EXAMPLES: list[Any] = [
    MachineRecord(
        "web", "u", "g", "m", "tiny", SPEC, layers={"vda": "l"}, forwards=((8080, 80),), pending={"a": "b"}
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
        "import sys; from pathlib import Path; from vmlab.store.records import write_json\n"
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
