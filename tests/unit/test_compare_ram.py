"""RAM compared page by page, against what numpy says of the whole; search and strings."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from help.paused_qemu import QEMU, paused_qemu
from help.ram_files import is_plain, write_stream
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vmlab.compare import ram, ramsearch, ramstrings
from vmlab.compare.memory import physical
from vmlab.compare.ram import compare_ram
from vmlab.compare.ramsearch import find_in_ram, search_ram
from vmlab.compare.ramstrings import compare_strings
from vmlab.compare.state import Files, Origin
from vmlab.engine import mapped_ram
from vmlab.engine.mapped_ram import PAGE, STREAM_OFFSET
from vmlab.errors import SnapshotDamaged, UsageError, WrongState

GIB = 1 << 30
COUNT = 16

contents = st.dictionaries(
    st.integers(0, COUNT - 1),
    st.sampled_from([b"", b"a", b"b" * PAGE, bytes(4000) + b"end", bytes(PAGE - 1) + b"\1"]),
    max_size=COUNT,
)
many = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def whole(*layers: dict[int, bytes]) -> np.ndarray:
    """Return what the guest sees of layers, the lowest first."""
    out = np.zeros((COUNT, PAGE), np.uint8)
    for layer in layers:
        for number, content in layer.items():
            out[number] = np.frombuffer(content.ljust(PAGE, b"\0"), np.uint8)
    return out


def written(path: Path, pages: dict[int, bytes], *, count: int = COUNT) -> Path:
    return write_stream(path, {"pc.ram": pages}, sizes={"pc.ram": count * PAGE})


def state(path: Path, pages: dict[int, bytes], *, count: int = COUNT, base: Path | None = None) -> Files:
    return Files(path.name, written(path, pages, count=count), ram_base=base)


@many
@given(base=contents, one=contents, other=contents, based=st.sampled_from(["none", "first", "both", "on it"]))
def test_it_finds_exactly_what_differs(
    tmp_path: Path, base: dict[int, bytes], one: dict[int, bytes], other: dict[int, bytes], based: str
) -> None:
    """Whole files, one over the other, two over one base: as numpy compares all of the memory."""
    below = written(tmp_path / "base", base)
    first = state(tmp_path / "one", one, base=below if based in ("first", "both") else None)
    second = state(tmp_path / "other", other, base=below if based == "both" else None)
    left = whole(base, one) if first.ram_base else whole(one)
    right = whole(base, other) if second.ram_base else whole(other)
    if based == "on it":
        second = Files("over one", second.ram, ram_base=first.ram)
        right = whole(one, other)
    diff = compare_ram(first, second)
    expected = (left != right).any(axis=1)
    assert diff.changed.tolist() == expected.tolist()
    assert diff.pages == expected.sum()
    assert diff.differing == (left != right).sum()
    assert diff.filled == (expected & ~left.any(axis=1)).sum()
    assert diff.emptied == (expected & ~right.any(axis=1)).sum()
    pages = [item.address // PAGE + n for item in diff.ranges for n in range(item.pages)]
    assert pages == np.flatnonzero(expected).tolist()
    json.dumps(diff.to_json())


def test_what_two_states_share_is_not_read(tmp_path: Path) -> None:
    """Over one base only the pages are read that one of the two has for itself."""
    base = written(tmp_path / "base", dict.fromkeys(range(COUNT), b"base"))
    first = state(tmp_path / "one", {1: b"x", 2: b"y"}, base=base)
    second = state(tmp_path / "two", {2: b"y", 9: b"z"}, base=base)
    diff = compare_ram(first, second)
    assert diff.read == 3 * PAGE
    assert [(item.address, item.pages) for item in diff.ranges] == [(PAGE, 1), (9 * PAGE, 1)]
    assert compare_ram(first, Files("base", base)).read == 2 * PAGE
    assert compare_ram(first, first).read == 0
    assert (
        compare_ram(Files("base", base), Files("copy", written(tmp_path / "copy", {}))).read == COUNT * PAGE
    )


def origin(path: Path, snapshot: str, pages: set[int]) -> Origin:
    mask = np.zeros(COUNT, bool)
    mask[list(pages)] = True
    return Origin(snapshot, path, mapped_ram.write_list(path, snapshot, mask))


numbers = st.sets(st.integers(0, COUNT - 1), max_size=6)


@many
@given(
    base=contents,
    changes=st.lists(contents, min_size=4, max_size=4),
    more=st.lists(numbers, min_size=4, max_size=4),
    gone=st.booleans(),
    harm=st.sampled_from([None, "bit", "short", "long", "gone", "other origin"]),
    which=st.integers(0, 3),
)
def test_lists_of_changed_pages_alter_no_result(
    tmp_path: Path,
    base: dict[int, bytes],
    changes: list[dict[int, bytes]],
    more: list[set[int]],
    gone: bool,
    harm: str | None,
    which: int,
) -> None:
    """A tree of states, each with a list of at least what it changed; one list may be damaged, and is then not used."""
    states = {"root": Files("root", written(tmp_path / "root", base), snapshot="root")}
    seen = {"root": base}
    changed = []
    # root -> a -> b -> c, and root -> d
    for number, (name, parent) in enumerate({"a": "root", "b": "a", "c": "b", "d": "root"}.items()):
        seen[name] = seen[parent] | changes[number]
        step = origin(tmp_path / f"{name}.changed", parent, more[number] | set(changes[number]))
        changed.append(step.changed)
        states[name] = Files(
            name,
            written(tmp_path / name, seen[name]),
            snapshot=name,
            origins=(step, *states[parent].origins),
        )
    if gone:
        # What "a" came from is not known any more.
        states["c"] = replace(states["c"], origins=states["c"].origins[:2])
    path = changed[which]
    data = path.read_bytes()
    if harm == "bit":
        path.write_bytes(bytes([data[0] ^ 4]) + data[1:])
    elif harm == "short":
        path.write_bytes(data[:-1])
    elif harm == "long":
        path.write_bytes(data + b"\0")
    elif harm == "gone":
        path.unlink()
    elif harm == "other origin":
        # A list is good for one origin only, whatever a manifest says.
        names = "abcd"
        held = states[names[which]]
        wrong = replace(held.origins[0], snapshot="b" if which == 3 else "d")
        states[names[which]] = replace(held, origins=(wrong,))
    for one, other in permutations(states, 2):
        quick = compare_ram(states[one], states[other])
        full = compare_ram(states[one], replace(states[other], snapshot="", origins=()))
        assert quick.changed.tolist() == (whole(seen[one]) != whole(seen[other])).any(axis=1).tolist()
        assert quick.occupied.tolist() == full.occupied.tolist()
        assert quick.to_json() == full.to_json()
        assert quick.read <= full.read


def test_only_pages_in_a_list_are_read(tmp_path: Path) -> None:
    pages = dict.fromkeys(range(COUNT), b"base")
    root = Files("root", written(tmp_path / "root", pages), snapshot="root")
    one, two, three = (
        Files(name, written(tmp_path / name, pages | own), snapshot=name, origins=(step,))
        for name, own, step in (
            ("one", {1: b"x"}, origin(tmp_path / "1", "root", {1, 2})),
            ("two", {9: b"y"}, origin(tmp_path / "2", "root", {2, 9})),
            ("three", {1: b"x", 3: b"z"}, origin(tmp_path / "3", "one", {3})),
        )
    )
    assert compare_ram(root, one).read == 2 * PAGE
    assert compare_ram(one, two).read == 3 * PAGE
    assert compare_ram(three, one).read == PAGE
    # What "three" came from came from something, but its list is not known here.
    assert compare_ram(three, two).read == COUNT * PAGE
    assert compare_ram(replace(three, origins=three.origins + one.origins), two).read == 4 * PAGE
    assert compare_ram(one, replace(root, snapshot="")).read == COUNT * PAGE


def test_more_than_one_segment_and_thread(tmp_path: Path) -> None:
    count = ram.SEGMENT * 9 + 5
    pages = {n: b"same %d" % n for n in range(count)}
    other = {**pages, 3: b"x", ram.SEGMENT: b"x", count - 1: b"x"}
    diff = compare_ram(state(tmp_path / "a", pages, count=count), state(tmp_path / "b", other, count=count))
    assert np.flatnonzero(diff.changed).tolist() == [3, ram.SEGMENT, count - 1]
    assert diff.summary == f"3 of {count:,} pages of RAM differ (12 KiB; 23 bytes changed)."


def test_another_size(tmp_path: Path) -> None:
    diff = compare_ram(state(tmp_path / "a", {1: b"x"}, count=8), state(tmp_path / "b", {1: b"x", 12: b"y"}))
    assert diff.pages == 0
    assert diff
    assert diff.summary == "The RAM was 32 KiB and is 64 KiB; in what both have, no page of RAM differs."


def test_the_heat_map_shows_where(tmp_path: Path) -> None:
    diff = compare_ram(state(tmp_path / "a", {0: b"x", 1: b"x"}), state(tmp_path / "b", {0: b"x", 1: b"y"}))
    image = Image.open(io.BytesIO(diff.heat_map()))
    assert image.mode == "RGBA"
    side = image.width // 8
    grey, red, empty = (image.getpixel((side * n + side // 2, side // 2)) for n in range(3))
    assert grey[0] < grey[2]
    assert grey[3] > empty[3]
    assert red[0] > 150 > red[2]
    assert red[3] == 255
    assert diff.cell_pages == 1


def test_physical_addresses_leave_room_for_devices() -> None:
    """As QEMU lays out the RAM of q35 and i440fx."""
    assert physical(GIB, 2 * GIB, "pc-q35-10.0") == GIB
    assert physical(2 * GIB, 4 * GIB, "pc-q35-10.0") == 4 * GIB
    assert physical(2 * GIB - 1, 4 * GIB, "pc-q35-10.0") == 2 * GIB - 1
    assert physical(2 * GIB, 2 * GIB + GIB // 2, "pc-q35-10.0") == 2 * GIB
    assert physical(3 * GIB, 4 * GIB, "pc-i440fx-10.0") == 4 * GIB


def test_search_crosses_pages_and_holes(tmp_path: Path) -> None:
    one = state(
        tmp_path / "a",
        {
            2: bytes(PAGE - 3) + b"nee",
            3: b"dle" + bytes(50) + "Grüße".encode("utf-16-le"),
            6: b"\0\0mark\0\0",
            9: b"x" * PAGE,
            15: bytes(PAGE - 2) + b"az",
        },
    )
    assert find_in_ram(one, "needle").addresses == [3 * PAGE - 3]
    assert [(m.address, m.encoding) for m in find_in_ram(one, "Grüße")] == [(3 * PAGE + 53, "utf-16")]
    # Zeros of a page that no file holds are memory, too.
    assert find_in_ram(one, b"\0\0\0\0mark").addresses == [6 * PAGE - 2]
    assert find_in_ram(one, b"xx" + bytes(2 * PAGE)).addresses == [10 * PAGE - 2]
    assert find_in_ram(one, bytes(3 * PAGE - 8) + b"x").addresses == [9 * PAGE - (3 * PAGE - 8)]
    # Behind the end, there is none.
    assert not find_in_ram(one, b"az\0")
    assert find_in_ram(one, b"az").addresses == [16 * PAGE - 2]
    assert find_in_ram(one, "needle").matches[0].around.count("needle") == 1
    some = find_in_ram(one, "x", limit=10)
    assert len(some) == 10
    assert not some.complete
    assert some.summary == "The RAM of a contains 'x' more than 10 times."
    assert [r.title for r in search_ram([one, Files("off")], "needle")] == ["a"]
    json.dumps(some.to_json())


@many
@given(
    pages=contents,
    base=contents,
    needle=st.sampled_from(
        [b"a", b"bb", b"end", b"d\0\0", b"\0a", b"\1", b"b" * 5000, b"\1" + bytes(PAGE) + b"a"]
    ),
)
def test_search_finds_what_is_there(
    tmp_path: Path, pages: dict[int, bytes], base: dict[int, bytes], needle: bytes
) -> None:
    memory = whole(base, pages).tobytes()
    expected, at = [], memory.find(needle)
    while at >= 0:
        expected.append(at)
        at = memory.find(needle, at + 1)
    one = state(tmp_path / "one", pages, base=written(tmp_path / "base", base))
    found = find_in_ram(one, needle, limit=1 << 20)
    assert found.addresses == expected
    assert found.complete


def test_long_runs_are_searched_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ramsearch, "SEARCH_CHUNK", 2 * PAGE)
    pages = {n: bytes([65 + n]) * PAGE for n in range(COUNT)}
    one = state(tmp_path / "a", pages)
    for n in range(1, COUNT):
        assert find_in_ram(one, pages[n - 1][-5:] + pages[n][:5]).addresses == [n * PAGE - 5]
    assert find_in_ram(one, pages[3][-1:] + pages[4] + pages[5][:1]).addresses == [4 * PAGE - 1]


def test_nothing_cannot_be_searched(tmp_path: Path) -> None:
    one = state(tmp_path / "a", {})
    for what in ("", b"", b"\0\0", "\0"):
        with pytest.raises(UsageError, match="nothing to search"):
            find_in_ram(one, what)
    with pytest.raises(UsageError, match="at most"):
        find_in_ram(one, bytes(2 << 20) + b"x")
    with pytest.raises(WrongState, match="offline"):
        find_in_ram(Files("off"), "x")


def test_strings_that_came_and_went(tmp_path: Path) -> None:
    one = state(tmp_path / "a", {1: b"good morning\0\1stays here", 2: b"it moved", 5: b"not touched"})
    two = state(tmp_path / "b", {1: b"stays here\0secret word", 2: b"tiny", 3: b"it moved",
                                 4: "wide text".encode("utf-16-le"), 5: b"not touched"})  # fmt: skip
    diff = compare_strings(one, two, compare_ram(one, two))
    assert [text for text, _ in diff.came] == ["secret word", "wide text"]
    assert diff.went == (("good morning", 1),)
    assert diff.complete
    assert diff.pages == 4
    json.dumps(diff.to_json())


def test_strings_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ramstrings, "STRING_PAGES", 2)
    one = state(tmp_path / "a", {})
    two = state(tmp_path / "b", {n: b"string number %d" % n for n in (1, 4, 7, 9)})
    diff = compare_strings(one, two, compare_ram(one, two))
    assert len(diff.came) == 2
    assert not diff.complete
    assert "not all" in diff.summary


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    one = state(tmp_path / "a", {1: b"x"})
    with pytest.raises(SnapshotDamaged, match="is missing"):
        compare_ram(one, Files("b", tmp_path / "none"))
    with pytest.raises(WrongState, match="offline"):
        compare_ram(one, Files("off"))
    other = written(tmp_path / "other", {}, count=4)
    with pytest.raises(SnapshotDamaged, match="another size"):
        compare_ram(one, Files("b", one.ram, ram_base=other))


def test_pandas(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    one, two = state(tmp_path / "a", {1: b"here"}), state(tmp_path / "b", {})
    diff = compare_ram(one, two)
    assert diff.to_pandas().to_dict("records") == [{"address": PAGE, "pages": 1, "size": PAGE}]
    assert find_in_ram(one, "here").to_pandas()["address"].tolist() == [PAGE]


@pytest.mark.skipif(QEMU is None, reason="needs qemu-system-x86_64")
def test_a_real_qemu_and_its_own_dump(tmp_path: Path) -> None:
    """What QEMU has at an address is found there, and what differs is what its dumps of the memory say."""
    states, dumps = [], []
    for name, word in (("before", b"first words"), ("after", b"other words and more")):
        loader = ("-device", "loader,file=word,addr=0x234ffb,force-raw=on", "-m", "16")
        with paused_qemu("-machine", "q35", *loader, files=[("word", word)]) as qemu:
            qemu.hmp(f'pmemsave 0 {16 << 20} "dump"')
            dumps.append(np.frombuffer((qemu.folder / "dump").read_bytes(), np.uint8).reshape(-1, PAGE))
            states.append(Files(name, qemu.save(tmp_path / name)))
    assert find_in_ram(states[0], b"first words").addresses == [0x234FFB]
    assert find_in_ram(states[1], "other words").addresses == [0x234FFB]
    assert not find_in_ram(states[1], "first words")
    diff = compare_ram(*states)
    differs = (dumps[0] != dumps[1]).any(axis=1)
    # Between 640 KiB and 1 MiB the processor sees video memory and firmware instead of this RAM.
    differs[0xA0:0x100] = diff.changed[0xA0:0x100]
    assert diff.changed.tolist() == differs.tolist()
    assert diff.changed[0x234:0x236].all()


@many
@given(data=st.data())
def test_a_damaged_file_gives_an_error_or_a_result(tmp_path: Path, data: st.DataObject) -> None:
    good = state(tmp_path / "good", {1: b"x" * PAGE, 7: b"y"})
    assert good.ram is not None
    content = bytearray(good.ram.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(STREAM_OFFSET, STREAM_OFFSET + 200))
        content[at : at + 4] = data.draw(st.binary(min_size=4, max_size=4) | st.just(b"\xff" * 4))
    (tmp_path / "bad").write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2]))])
    bad = Files("bad", tmp_path / "bad")
    try:
        diff = compare_ram(good, bad)
        diff.heat_map()
        compare_strings(good, bad, diff)
        find_in_ram(bad, "y")
    except SnapshotDamaged as error:
        is_plain(error)
