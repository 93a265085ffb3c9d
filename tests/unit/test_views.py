"""How results look: what is in the HTML, that nothing of the user's gets into it unescaped, the tree's drawing."""

from __future__ import annotations

import base64
import datetime as dt
import inspect
import io
import re

import pytest
from help.fakes import MIB, START, Image, Lab, Machine, Snapshot, Usage, lab, png, web
from help.markup import parse
from help.results import every_view
from IPython.lib.pretty import pretty
from PIL import Image as Pillow

from vmlab import language
from vmlab.compare.ramsearch import Match, RamSearch
from vmlab.errors import VMLabError
from vmlab.guest.agent import CommandResult
from vmlab.machines.proof import Verification
from vmlab.render import page, units
from vmlab.render.shown import Shown
from vmlab.render.view import View
from vmlab.tree import PRESENT, Node, Tree, layout
from vmlab.views import dispatch
from vmlab.views.commands import Ended, Plain, area_html, lines_of, output_html
from vmlab.views.images import ImageTable
from vmlab.views.machines import MachineTable
from vmlab.views.notes import Note, words
from vmlab.views.search import SearchView
from vmlab.views.tree import SnapshotTree, smaller, text_graph

EVIL = '<img src=x onerror="alert(1)">&amp;\x1b[31m\x00'


def evil():
    snapshot = Snapshot(EVIL, EVIL, description=EVIL, machine_name=EVIL, here=True, png=png(), live=False)
    machine = Machine(EVIL, EVIL, image=EVIL, here=snapshot, snapshots=[snapshot])
    broken = Machine(EVIL, error=VMLabError(EVIL))
    result = CommandResult(EVIL, EVIL, 1, EVIL, EVIL, 0.1)
    return {
        "machines": MachineTable([machine, broken]),
        "tree": SnapshotTree(Tree(machine)),
        "snapshot": dispatch.as_view(snapshot),
        "images": ImageTable([Image(EVIL, EVIL, description=EVIL)]),
        "verification": dispatch.as_view(
            Verification(EVIL, EVIL, False, False, None, True, (EVIL,), 1, [EVIL])
        ),
        "result": dispatch.as_view(result),
        "ended": Ended(EVIL, result),
        "note": Note(EVIL),
        "plain": Plain(EVIL, title=EVIL),
        "search": SearchView([RamSearch(EVIL, EVIL, (Match(4096, "utf-8", EVIL),), True)]),
    }


@pytest.mark.parametrize("kind", list(evil()))
def test_what_users_write_is_escaped(kind):
    view = evil()[kind]
    checker = parse(view.html())
    assert not any(attrs.get("src") == "x" for _, attrs in checker.attributes)
    assert "<img src=x" in "".join(checker.words)  # still readable, as text
    assert "\x1b" not in view.text()
    assert "\x00" not in view.text()


def test_areas_escape_too():
    for status in (None, 0, 1):
        parse(
            area_html(
                EVIL, [("stdout", EVIL), ("stderr", EVIL)], status=status, elapsed=1, trouble=EVIL, cut=3
            )
        )


@pytest.mark.parametrize("thing", ["a text", 3, None, {"a": 1}, [EVIL]])
def test_anything_has_html(thing):
    parse(dispatch.html(thing))


def classes(kind=View):
    """Return all classes of views that can be shown."""
    found = {kind} if not inspect.isabstract(kind) else set()
    return found.union(*(classes(below) for below in kind.__subclasses__()))


def test_every_result_is_good_html_and_brings_only_what_it_needs_of_the_style_sheet(tmp_path):
    views = every_view(tmp_path)
    assert {type(view) for view in views.values()} == {
        c for c in classes() if c.__module__.startswith("vmlab.")
    }
    for name, view in views.items():
        checker = parse(view.html())
        assert checker.words, name
        styles = "".join(re.findall(r"<style>(.*?)</style>", view.html(), re.DOTALL))
        # What goes into every output of a notebook; a comparison has tabs and screens to swipe.
        assert len(styles) < (15000 if view.label in ("comparison", "Screens compared") else 4000), name
        assert view.text().strip(), name
        assert not re.search(r"\\x20|\x1b", view.text()), name
    assert len(views["note"].html()) < 1000
    assert page.style(".vml.vml .a>tr:hover,.vml.vml b{x:y}.vml.vml .c{z:w}", '<table class="a b"><tr>') == (
        ".vml.vml .a>tr:hover,.vml.vml b{x:y}"
    )


def test_every_object_that_has_a_view_shows_itself_so():
    shown = [kind for kind in dispatch.as_view.registry if kind.__module__.startswith("vmlab.")]
    assert [kind.__name__ for kind in shown if not issubclass(kind, Shown)] == []
    result = CommandResult("web", "ls", 1, "one\n", "no such file\n", 0.2)
    assert pretty(result) == "\none\nno such file\nexit 1 after 0.20 s"
    assert "no such file" in result._repr_html_()


def test_style_works_in_light_and_dark_and_takes_the_notebooks_theme():
    html = dispatch.html(lab())
    assert "prefers-color-scheme:dark" in html
    for name in ("--jp-content-font-color1", "--jp-success-color1", "--vscode-foreground"):
        assert name in html
    assert re.findall(r"(?<!var\()--v-(\w+):", html).count("fg") == 2
    used = set(re.findall(r"var\(--v-(\w+)\)", html))
    assert used == set(re.findall(r"(?<!var\()--v-(\w+):", html)) <= set(page._COLOURS)


# machines ----------------------------------------------------------------------------------------------------------


def test_machine_table_is_a_sequence_and_says_what_each_takes():
    it = lab()
    table = dispatch.as_view(it)
    assert len(table) == 3
    assert table[0].name == "db"
    assert table["web"].name == "web"
    assert [m.name for m in table[1:]] == ["desk", "web"]
    with pytest.raises(KeyError):
        table["nosuch"]
    text = table.text()
    assert re.search(
        r"web\s+● running\s+tiny\s+0\.4 %\s+20 MiB\s+256 MiB\s+41 MiB\s+3\.0 MiB\s+208 MiB\s+good\s+8080→80",
        text,
    )
    assert re.search(r"db\s+○ off\s+tiny\s+–\s+–\s+256 MiB", text)
    checker = parse(table.html())
    assert "3 machines" in checker.words
    assert ("a", "http://localhost:8080") in [(t, a.get("href")) for t, a in checker.attributes]
    said = "20 MiB of the guest's 256 MiB taken, and 41 MiB by QEMU itself: 61 MiB"
    assert any(said == attributes.get("aria-label") for _, attributes in checker.attributes)


def test_every_state_is_said_in_words_not_only_in_colour():
    for state in ("running", "paused", "off", "suspended", "crashed"):
        table = MachineTable([Machine("m", state)])
        assert state in "".join(parse(table.html()).words)
        assert state in table.text()


def test_one_sick_machine_does_not_hide_the_others():
    table = MachineTable([Machine("ill", error=VMLabError("Its record is lost.")), Machine("well")])
    assert "ill: Its record is lost." in table.text()
    assert "running" in table.text()
    assert table.to_json()[0]["trouble"] == "Its record is lost."


def test_no_machines_yet():
    with language.spoken("shell"):
        assert "vmlab create web" in str(MachineTable([]))
    with language.spoken("notebook"):
        assert "%vm create web" in str(MachineTable([]))
        assert "%vm create web" in "".join(parse(MachineTable([]).html()).words)


def test_json_is_in_bytes():
    [row] = MachineTable([Machine("m")], [Usage("m", "running", memory_pss=5)]).to_json()
    assert row["memory_size"] == 256 * MIB
    assert row["memory_pss"] == 5


# tree --------------------------------------------------------------------------------------------------------------


def drawing(*edges, here=None):
    nodes = [Node(name, name, parent, live=True) for name, parent in edges]
    if here:
        nodes.append(Node(PRESENT, "now", here))
    return [text_graph(line) + line.node.name for line in layout(nodes)]


def test_a_line_of_snapshots_stays_in_one_lane():
    names = [f"s{i:03}" for i in range(200)]  # deeper than recursion would allow with a few frames each
    assert drawing(*zip(names, [None, *names], strict=False)) == [f"● {name}" for name in names]


def test_branches_come_before_what_leads_to_the_present():
    tree = drawing(("a", None), ("b", "a"), ("c", "a"), ("d", "b"), ("e", "b"), ("f", "e"), here="d")
    assert tree == ["● a", "├─● c", "● b", "├─● e", "│ ● f", "● d", "◆ now"]


def test_branches_of_branches():
    tree = drawing(("a", None), ("b", "a"), ("c", "b"), ("d", "b"), ("e", "a"), here="e")
    assert tree == ["● a", "├─● b", "│ ├─● c", "│ ● d", "● e", "◆ now"]


def test_several_roots_lost_parents_and_circles():
    assert drawing(("a", None), ("b", "gone"), here="a") == ["● b", "● a", "◆ now"]
    assert drawing(("a", "b"), ("b", "a"), here="a") == []  # nothing is drawn, but it ends


def test_tree_shows_where_one_is():
    tree = SnapshotTree(Tree(web()))
    lines = tree.text().splitlines()
    order = [line.split()[1] for line in lines[2:8]]
    assert order == ["clean", "first", "<b>broken</b>", "other", "good", "running,"]
    assert lines[4].startswith("├─● <b>broken")
    assert "you are here" in lines[7]
    assert lines[-1].endswith('lab["web"].undo()')  # who reads here has Python alone
    checker = parse(tree.html())
    assert [a for t, a in checker.attributes if a.get("aria-current")]
    times = [a for t, a in checker.attributes if t == "time"]
    assert len(times) == 5
    assert all(a["title"].startswith("2026-11-22") for a in times)
    assert tree.to_json()["here"] == "e"
    assert len(tree.to_json()["snapshots"]) == 5


def test_the_root_of_a_tree_says_where_it_comes_from():
    ready = Snapshot("r", "ready", kind="ready", machine_name="tiny")
    tree = SnapshotTree(Tree(Machine("web", root=ready, here=ready)))
    assert "● ready image tiny" in tree.text()
    assert "No snapshots yet" in tree.text()
    fork = SnapshotTree(Tree(Machine("w2", root=Snapshot("c", "clean", machine_name="web"))))
    assert "● clean of web" in fork.text()


def test_thumbnails_are_small_and_sharp():
    small = smaller(png(1920, 1080))
    assert len(small) < 12_000
    assert Pillow.open(io.BytesIO(small)).size == (176, 99)
    assert smaller(b"no picture") is None
    html = SnapshotTree(Tree(web())).html()
    data = re.findall(r"base64,([A-Za-z0-9+/=]+)", html)
    assert len(data) == 2
    assert all(base64.b64decode(d).startswith(b"\x89PNG") for d in data)
    assert len(html) < 40_000


# others ------------------------------------------------------------------------------------------------------------


def test_verification_says_what_was_compared():
    good = dispatch.as_view(Snapshot("a", "clean").verify())
    assert "resumed at RIP=ffffffff81e0b1c6, identical" in good.text()
    assert good.ok
    assert "✗" not in good.html()
    bad = dispatch.as_view(
        Verification("clean", "web", True, False, True, True, ("1",), 1, ["RAM: 3 pages differ"])
    )
    assert "not identical: RAM" in bad.text()
    assert "3 pages differ" in bad.text()
    parse(bad.html())


def test_snapshot_says_for_how_long_the_guest_stood_still():
    assert "guest stood still 31 ms" in dispatch.text(Snapshot("a", "clean"))


def test_limits():
    from vmlab.host.limits import Limits

    limits = Limits(
        24 << 30, 6 << 30, 1 << 30, 100 << 30, 40 << 30, 5 << 30, 0, 0, 2, 3, 512 * MIB, 1 << 30, 8
    )
    text = dispatch.text(limits)
    assert re.search(r"RAM\s+█+░+\s+18 GiB\s+24 GiB\s+512 MiB\s+machines take 1\.0 GiB", text)
    assert "3 running on 2 CPUs; at most 8 machines may run at once." in text
    parse(dispatch.html(limits))
    assert dispatch.to_json(limits)["max_running"] == 8


def test_collected():
    from vmlab.store.collect import Collected

    assert dispatch.text(Collected(1, 2, 0, 3 * MIB)) == "Freed 3.0 MiB: 1 snapshot and 2 layers."
    assert dispatch.text(Collected()) == "There was nothing to free."


def test_blanks_of_what_was_found_stay():
    view = SearchView([RamSearch("web@clean", "a  b", (Match(0x2E005, "utf-8", "··a  b   c··"),), True)])
    assert view.text() == (
        "The RAM of web@clean contains 'a  b' once.\n    0x000002e005  utf-8  ··a  b   c··"
    )
    assert {"The RAM of web@clean contains 'a  b' once.", "··a  b   c··"} <= set(parse(view.html()).words)


def test_output_as_a_terminal_would_leave_it():
    assert lines_of("10%\r 50%\r100%\nnext\r\n") == ["100%", "next"]
    html = output_html("\x1b[1;31mred <b>\x1b[0m plain\n")
    assert "&lt;b&gt;" in html
    assert "color: #" in html
    assert "\x1b" not in html
    assert output_html("a < b\n") == "a &lt; b"


def test_units():
    assert [units.size(n) for n in (0, 1023, 1024, 9.96 * 1024, 768 * MIB, 3 << 30, None)] == [
        "0 B", "1023 B", "1.0 KiB", "10 KiB", "768 MiB", "3.0 GiB", "–",
    ]  # fmt: skip
    assert [units.duration(s) for s in (0.0314, 0.5, 12.34, 125, 3780)] == [
        "31 ms", "0.50 s", "12.3 s", "2 min 05 s", "1 h 03 min",
    ]  # fmt: skip
    at = START
    steps = [0, 30, 90, 7200, 90000, 400000]
    assert [units.ago(at, at + dt.timedelta(seconds=s)) for s in steps] == [
        "just now", "30 s ago", "1 min ago", "2 h ago", "1 day ago", "4 days ago",
    ]  # fmt: skip
    assert [units.percent(p) for p in (0, 0.44, 97.6, None)] == ["0 %", "0.4 %", "98 %", "–"]


def test_a_line_is_one_line():
    assert units.line("é 漢 😀 <b>") == "é 漢 😀 <b>"
    for text, shown in (
        ("a\nb\tc", "a\\nb\\tc"),
        ("\udcff\ud800", "\\xff\\ud800"),
        ("\u202eexe\u2028\x85\x1b[0m", "\\u202eexe\\u2028\\x85\\x1b[0m"),
        ("a   b ", "a \\x20\\x20b "),
        (7, "7"),
    ):
        assert units.line(text) == shown
    assert units.line("a\tb  c\n", keep=" \t") == "a\tb  c\\n"


def test_clean_text_can_be_written_and_turns_nothing_round():
    text = units.clean("a\nb\tc \udcff\ud800\u202e\u2028\x9b")
    assert text == "a\nb\tc " + "\ufffd" * 5
    assert page.document("\udcff", page.esc("\udcff")).encode()


def test_names_in_a_sentence():
    assert [words(list(n)) for n in ("", "a", "ab", "abc")] == ["nothing", "a", "a and b", "a, b and c"]


def test_colours_only_for_those_who_watch(monkeypatch):
    table = MachineTable([Machine("m")])
    assert "\x1b" not in str(table)
    assert "\x1b[" in table.text(colour=True)


def test_lab_without_usage_of_a_deleted_machine():
    assert "No machines yet" in dispatch.text(Lab())


def test_views_are_chosen_by_class_not_by_its_name():
    # PIL's is an image, too.
    assert dispatch.as_view(Pillow.new("RGB", (1, 1))) is None

    class Lab:
        machines = ()

    assert dispatch.as_view(Lab()) is None
