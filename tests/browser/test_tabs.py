"""Tabs of screens, serial lines and comparisons: opened, closed and opened again, by each way that there is."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from help.jupyter_page import Console, Server, open_lab, run_from_palette, until, viewers
from help.panel_page import accept, card, choose, open_panel, press, row
from playwright.sync_api import Locator, Page, WebSocket, expect

from vmlab.lab import Lab
from vmlab.machine import Machine, Snapshot

BASE_URL = "/user/a%40b/"
#: Milliseconds for what the page does when it is told, and for a comparison on a busy host.
SOON, COMPARED = 30_000, 120_000

pytestmark = pytest.mark.timeout(400)


@dataclass
class Subject:
    """A machine and a snapshot of it, and the page that shows them."""

    page: Page
    machine: Machine
    snapshot: Snapshot

    @property
    def card(self) -> Locator:
        return card(self.page, self.machine.name)

    def choose_machine(self, command: str) -> None:
        """Run a command of machines by the palette, and say which."""
        run_from_palette(self.page, f"{command}: Choose a Machine")
        self.page.locator(".jp-Dialog select").select_option(self.machine.name)
        accept(self.page, command)

    def choose_snapshot(self, command: str) -> None:
        """Run a command of snapshots by the palette, and say which."""
        run_from_palette(self.page, command)
        self.page.locator(".jp-Dialog select").select_option(self.machine.name)
        self.page.locator(".jp-Dialog .jp-mod-accept").click()
        self.page.locator(".jp-Dialog select").select_option(
            label=f"snapshot {self.snapshot.name} (it stands on this)"
        )
        accept(self.page, "Choose")

    def open_by_event(self, kind: str) -> None:
        """As a console under a cell does that is popped out."""
        self.page.evaluate(
            "detail => document.dispatchEvent(new CustomEvent('vmlab:open-console', {detail}))",
            {"machine": self.machine.name, "kind": kind},
        )

    def expect_row(self) -> Locator:
        """Open the tree of snapshots, if it is not, and return the row."""
        found = row(self.page, self.snapshot)
        if not found.count():
            self.card.get_by_role("button", name=f"Show the snapshots of {self.machine.name}").click()
        expect(found).to_be_visible(timeout=SOON)
        return found

    def enter(self) -> None:
        self.card.focus()
        self.page.keyboard.press("Enter")


@pytest.fixture
def subject(page: Page, jupyter: Server, lab: Lab, names: Callable[[str], str]) -> Subject:
    machine = lab.create(names("tab"), "tiny")
    snapshot = machine.snapshot("clean")
    open_panel(page, jupyter.url())
    return Subject(page, machine, snapshot)


Way = Callable[[Subject], None]


@dataclass
class Kind:
    """A kind of tab: its title, how one sees that it works, and the ways to open it."""

    title: Callable[[Subject], str]
    works: Callable[[Subject], None]
    ways: dict[str, Way]

    def tab(self, subject: Subject) -> Locator:
        title = re.compile(f"^{re.escape(self.title(subject))}$")
        return subject.page.locator(".lm-DockPanel-tabBar .lm-TabBar-tab", has_text=title)

    def close(self, subject: Subject) -> None:
        self.tab(subject).locator(".lm-TabBar-tabCloseIcon").click()
        expect(self.tab(subject)).to_have_count(0)

    def expect_open(self, subject: Subject) -> None:
        expect(self.tab(subject)).to_have_count(1, timeout=SOON)
        self.works(subject)


def screen_works(subject: Subject) -> None:
    Console(subject.page.locator(".jp-vmlab-console-tab:visible"), subject.machine.name).expect_live()


def serial_works(subject: Subject) -> None:
    scope = subject.page.locator(".jp-vmlab-console-tab:visible")
    Console(scope, subject.machine.name, "Serial line").expect_face("live")


def comparison_works(subject: Subject) -> None:
    """It compares, or has compared; what it says then is the matter of other tests."""
    shown = subject.page.locator(".jp-vmlab-comparison:visible")
    expect(shown.locator("iframe").or_(shown.get_by_role("status"))).to_be_visible(timeout=COMPARED)


KINDS = {
    "screen": Kind(
        lambda s: s.machine.name,
        screen_works,
        {
            "button": lambda s: press(s.page, s.machine.name, "Open Console"),
            "double click": lambda s: s.card.locator(".jp-vmlab-state").dblclick(),
            "key": Subject.enter,
            "menu": lambda s: choose(s.page, s.card, "Open Console"),
            "palette": lambda s: s.choose_machine("Open Console"),
            "cell": lambda s: s.open_by_event("vnc"),
        },
    ),
    "serial line": Kind(
        lambda s: f"{s.machine.name} (serial)",
        serial_works,
        {
            "menu": lambda s: choose(s.page, s.card, "Open Serial Console"),
            "palette": lambda s: s.choose_machine("Open Serial Console"),
            "cell": lambda s: s.open_by_event("serial"),
        },
    ),
    "comparison": Kind(
        lambda s: f"{s.machine.name}: clean → now",
        comparison_works,
        {
            "menu": lambda s: choose(s.page, s.expect_row(), "Compare with the Present"),
            "palette": lambda s: s.choose_snapshot("Compare a Snapshot with the Present"),
        },
    ),
}


def saved_layout(page: Page, jupyter: Server) -> str:
    """Return what JupyterLab remembers of its tabs."""
    return page.request.get(f"{jupyter.address}lab/api/workspaces/default?token={jupyter.token}").text()


@pytest.mark.parametrize("name", KINDS)
def test_a_tab_that_was_closed_is_opened_again(name: str, subject: Subject, jupyter: Server) -> None:
    kind = KINDS[name]
    for way in kind.ways.values():
        way(subject)
        kind.expect_open(subject)
        kind.close(subject)
    # One that has come back with the page, too.
    next(iter(kind.ways.values()))(subject)
    kind.expect_open(subject)
    namespace = "vmlab-comparisons" if name == "comparison" else "vmlab-consoles"
    until(lambda: f'"{namespace}:' in saved_layout(subject.page, jupyter), "the saved layout", 30)
    open_lab(subject.page, jupyter.url(reset=False))
    kind.expect_open(subject)
    kind.close(subject)
    next(iter(kind.ways.values()))(subject)
    kind.expect_open(subject)


def test_tabs_that_were_closed_leave_nothing(subject: Subject) -> None:
    """Thirty of them: what the page holds and what it is connected to is as before."""
    page = subject.page
    sockets: list[WebSocket] = []

    def connected(socket: WebSocket) -> None:
        if "/vmlab/" in socket.url:
            sockets.append(socket)

    page.on("websocket", connected)
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    last = [(kind, [*kind.ways.values()][-1]) for kind in KINDS.values()]

    def rounds(count: int) -> None:
        for _ in range(count):
            for kind, way in last:
                way(subject)
                kind.expect_open(subject)
                kind.close(subject)

    def measured() -> dict[str, float]:
        # Playwright hears of closed connections only while it is asked something.
        until(lambda: page.evaluate("1") and all(socket.is_closed() for socket in sockets), "no connection")
        session.send("HeapProfiler.collectGarbage")
        found: Any = session.send("Performance.getMetrics")
        return {metric["name"]: metric["value"] for metric in found["metrics"]}

    # What is loaded with the first of each kind stays.
    rounds(2)
    before = measured()
    rounds(10)
    after = measured()

    def grown(what: str) -> float:
        return after[what] - before[what]

    # What hangs on a timer or an animation goes some moments later; what leaks never does.
    end = time.monotonic() + 30
    while (grown("Nodes") >= 100 or grown("JSHeapUsedSize") >= 4 << 20) and time.monotonic() < end:
        page.wait_for_timeout(500)
        after = measured()
    assert len(sockets) >= 2 * 10
    assert viewers(subject.machine) == 0
    # One tab alone has about a hundred nodes; a few more or less are JupyterLab's.
    assert grown("Nodes") < 100
    # Most of what is left is code that the browser has compiled meanwhile.
    assert grown("JSHeapUsedSize") < 4 << 20
    page.remove_listener("websocket", connected)
