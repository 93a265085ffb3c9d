"""One of each kind of result, as a person gets to see them."""

from __future__ import annotations

from types import SimpleNamespace

from help.fakes import MIB, Image, Machine, Scenario, Snapshot, State, Usage, lab, png, web
from vmlab.commands import _verbs
from vmlab.commands.ui import TerminalUI
from vmlab.compare.files import FileChange, FilesDiff
from vmlab.compare.filestate import FileState
from vmlab.compare.ramsearch import Match, RamSearch
from vmlab.compare.screen import compare_screens
from vmlab.compare.state import Files
from vmlab.errors import SnapshotDamaged, VMLabError
from vmlab.guest.agent import CommandResult
from vmlab.guest.screen import Screenshot
from vmlab.host.doctor import Finding, Report
from vmlab.host.limits import Limits
from vmlab.machines.networks import Card, Network
from vmlab.machines.proof import Verification
from vmlab.network.capture import Capture
from vmlab.records import Link
from vmlab.scenario import ScenarioDiff
from vmlab.store.collect import Collected
from vmlab.study.diff import Diff, Part
from vmlab.study.timeline import Moment, Timeline
from vmlab.views import dispatch
from vmlab.views.commands import Ended, EndedMany, Plain
from vmlab.views.host import HostView, Meter
from vmlab.views.machines import MachineTable
from vmlab.views.notes import Note
from vmlab.views.scenarios import ScenarioDiffView, ScenarioView, StateCard
from vmlab.views.search import SearchView

LAN = Network(
    "lan", "10.1.0.0/24", (Card("web", 1, "52:54:00:12:34:57", "10.1.0.10", Link(delay=0.2, loss=0.1)),)
)


def every_view(folder):
    """Return results by what they are: at least one of each class of view. Screens are written to ``folder``."""
    result = CommandResult("web", "ls", 1, "\x1b[31mred\x1b[0m\n", "no such file\n", 0.2)
    good = CommandResult("db", "ls", 0, "plain\n", "", 0.2)
    snapshot = Snapshot("a", "clean", description="nothing yet", png=png())
    limits = Limits(
        24 << 30, 6 << 30, 1 << 30, 100 << 30, 40 << 30, 5 << 30, 1 << 28, 0, 2, 3, 512 * MIB, 1 << 30, 8
    )
    ui = TerminalUI(prefix="%vm ")
    help_verb = _verbs.verb("help")
    views = {
        "machines": lab(),
        "no machines": MachineTable([]),
        "a sick machine": MachineTable([Machine("ill", error=VMLabError("Its record is lost.")), web()]),
        "tree": web().tree(),
        "snapshot": snapshot,
        "images": dispatch.as_view(Image("tiny", "Small", description="with a shell")),
        "networks": dispatch.as_view(LAN),
        "scenario": ScenarioView(Scenario("shop", web(), networks=[LAN])),
        "state": StateCard(State()),
        "capture": Capture(
            "shop.lan",
            [
                (
                    1.0,
                    bytes.fromhex("ffffffffffff525400000001080600010800060400015254000000010a010009")
                    + bytes(6)
                    + bytes([10, 1, 0, 20]),
                ),
                (2.5, b"<script>alert(1)</script>"),
            ],
        ),
        "a scenario's comparison": ScenarioDiffView(ScenarioDiff("shop", {"shop.web": _comparison(folder)})),
        "verification": snapshot.verify(),
        "a failed verification": Verification(
            "s", "web", False, True, None, True, ("1",), 1, ["RAM differs"]
        ),
        "result": result,
        "ended": Ended("web", result),
        "ended, several": EndedMany({"web": result, "db": good}),
        "note": Note("web: pressed ret"),
        "collected": Collected(1, 2, 0, 3 * MIB),
        "serial line": Plain("login: \x1b[31mred\x1b[0m\r\n", title="web, serial line"),
        "text": Plain("login: "),
        "usage": Usage("web", "running"),
        "limits": limits,
        "host": HostView([Meter("CPU", 50, 100, unit="%")]),
        "doctor": Report(
            [Finding("KVM", None, "TCG", "no KVM"), Finding("tini", False, "gone", fix="get it")]
        ),
        "search": SearchView(
            [
                RamSearch("web@clean", "a  b", (Match(4096, "utf-8", "··a  b··"),), True),
                RamSearch("web (now)", "a  b", (), True),
            ]
        ),
        "screenshot": Screenshot.open(png()),
        "screens": _screens(folder),
        "help": help_verb.run(None, SimpleNamespace(verb=None), ui),
        "help of a verb": help_verb.run(None, SimpleNamespace(verb="list"), ui),
        "comparison": _comparison(folder),
        "timeline": Timeline(
            "/etc/motd",
            (
                Moment("web@s1", "2025-01-01T00:00:00+00:00"),
                Moment(
                    "web@s2",
                    "2025-01-02T00:00:00+00:00",
                    {"size": "4 B", "modified": "2025-01-01T23:59:00+00:00"},
                    changed=True,
                    detail="--- a\n+++ b\n@@ -1 +1 @@\n-a\n+b\n",
                ),
                Moment("web@s3", "2025-01-03T00:00:00+00:00", trouble="The disk is damaged."),
            ),
        ),
    }
    return {name: dispatch.as_view(thing) for name, thing in views.items()}


def _screens(folder):
    """Return two screens compared."""
    sides = []
    for title, colour in (("web@clean", (30, 60, 90)), ("web (now)", (90, 60, 30))):
        path = folder / f"{title}.png"
        path.write_bytes(png(colour=colour))
        sides.append(Files(title=title, screen=path))
    return compare_screens(*sides)


class _Content:
    """A file system with one content."""

    def read(self, _inode, offset, length):
        return b"text\n"[offset : offset + length]

    def parts(self, _inode):
        yield b"text\n"

    def attributes(self, _inode):
        return {}


def _comparison(folder):
    """Return a comparison with a part of each outcome, its files of each kind."""

    def state(size=10, mode=0o644):
        return FileState("file", mode, 0, 0, size, 0, None, None, "", 1, _Content(), None)

    files = FilesDiff(
        (
            FileChange("added", "/etc/new", None, state(), (), volume="vda"),
            FileChange("removed", "/etc/old", state(), None, (), volume="vda"),
            FileChange("metadata", "/etc/x", state(), state(mode=0o600), ("mode",), volume="vda"),
            FileChange("touched", "/etc/y", state(), state(), ("mtime",), volume="vdb"),
        ),
        (),
    )
    sides = [
        SimpleNamespace(title=title, disks=SimpleNamespace(flushed=True), to_json=dict)
        for title in ("web@clean", "web (now)")
    ]
    diff = Diff(None, *sides)
    screens = _screens(folder)
    diff._parts = {
        "files": Part("files", "different", "2 added", files, seconds=0.5),
        "screen": Part("screen", "different", screens.summary, screens),
        "ram": Part("ram", "failed", "x", why="the file is damaged", error=SnapshotDamaged("It is damaged.")),
        "disk": Part("disk", "same", "nothing differs"),
    }
    return diff
