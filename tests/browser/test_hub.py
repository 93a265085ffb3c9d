"""Behind a real JupyterHub: two accounts log in, each with a server, a lab and a live console of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from help.hub import Hub, Student, hub, student
from help.jupyter_page import OPEN, Console, Notebook, Troubles, press_keys, write_notebook
from help.panel_page import SOON, card, choose
from playwright.sync_api import Locator, Page, Response, expect

from vmlab.lab import Lab

#: Addresses of ours, on whoever's server.
OURS = re.compile(r"/user/[^/]+/(vmlab|lab/extensions/vmlab)/")
NOTEBOOK = "lab/tree/work.ipynb"
CELLS = ("%load_ext vmlab\n%vm create web tiny\n%vm snapshot web clean", "%vm console web")


@pytest.fixture(scope="module")
def students(lab: Lab) -> Iterator[list[Student]]:
    with ExitStack() as stack:
        found = [stack.enter_context(student(lab, "tiny")) for _ in range(2)]
        for one in found:
            write_notebook(one.account.home / "work.ipynb", *CELLS).chmod(0o666)
        yield found


@pytest.fixture(scope="module")
def running(students: list[Student], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with hub(tmp_path_factory.mktemp("hub"), *students) as found:
        yield found


class Loads:
    """What a page loads of ours: how, and what it did not get."""

    def __init__(self, page: Page) -> None:
        self.kinds: set[str] = set()
        self.refused: list[str] = []
        page.on("response", self._heard)

    def _heard(self, response: Response) -> None:
        if OURS.search(response.url):
            kind = response.request.resource_type
            self.kinds.add(kind)
            if response.status >= 400:
                self.refused.append(f"{response.status} {kind} {response.url}")


def test_two_accounts_work_in_their_consoles(page: Page, running: Hub, students: list[Student]) -> None:
    browser = page.context.browser
    assert browser is not None
    pages = [page, browser.new_context(viewport=page.viewport_size).new_page()]
    loads, troubles = [Loads(one) for one in pages], Troubles(pages[1])
    for one, who in zip(pages, students, strict=True):
        running.log_in(one, who, NOTEBOOK)
    for one, who in zip(pages, students, strict=True):
        name = who.account.name
        one.wait_for_url(f"**/user/{name}/lab/**", timeout=OPEN)
        nb = Notebook(one)
        nb.run(0)
        screen = Console(nb.run(1), "web")
        screen.expect_live()
        screen.take()
        press_keys(one, f"echo {name} >/run/typed\n")
        # Both machines have one name, and each account means its own.
        typed = "until [ -s /run/typed ]; do sleep 0.1; done; cat /run/typed"
        assert who.run("exec", "web", typed).strip() == name
        screen.leave()
    everything_loads(screen := Console(pages[0], "web"), students[0])
    assert not troubles.found
    for one in loads:
        assert not one.refused
        assert one.kinds >= {"script", "fetch"}
    assert "image" in loads[0].kinds
    # Nobody gets at another's server, but what does nothing is for everybody.
    other = students[1].account.name
    assert screen.page.request.get(running.url(other, "vmlab/static/console.js")).status == 200
    assert screen.page.request.get(running.url(other, "vmlab/api/lab")).status == 403


def everything_loads(screen: Console, who: Student) -> None:
    """Open all of ours that has a picture, a frame or a connection of its own."""
    page = screen.page
    screen.tool("revert")
    expect_picture(screen.root.locator(".vmlab-console-item img"))
    page.keyboard.press("Escape")
    screen.tool("minimise")
    with page.expect_response(lambda answer: _is_picture(answer, "machines/web/screen.png")):
        who.run("revert", "web", "clean")

    page.locator('.jp-SideBar [data-id="vmlab-panel"]').click()
    mine = card(page, "web")
    expect_picture(mine.locator("img"))
    mine.get_by_role("button", name="Show the snapshots of web").click()
    expect_picture(page.locator(".jp-vmlab-row-picture img"))
    page.get_by_role("button", name="More for the snapshot clean").click()
    page.locator(".lm-Menu-itemLabel", has_text="Compare with the Present").click()
    report = page.locator(".jp-vmlab-comparison:visible").frame_locator("iframe").locator("body")
    expect(report).to_contain_text("web@clean → web (now)", timeout=2 * SOON)
    choose(page, mine, "Open Serial Console")
    line = Console(page.locator("#jp-main-dock-panel"), "web", "Serial line")
    line.expect_face("live")


def expect_picture(pictures: Locator) -> None:
    """Wait until the first of these pictures is there, not only its place."""
    expect(pictures.first).to_be_visible(timeout=SOON)
    expect(pictures.first).to_have_js_property("complete", True)
    assert pictures.first.evaluate("picture => picture.naturalWidth") > 0


def _is_picture(answer: Response, path: str) -> bool:
    return answer.request.resource_type == "image" and path in answer.url
