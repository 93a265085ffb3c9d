"""Comparing in JupyterLab: from the panel to the tab that shows what differs, in the colours of the theme."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from help.jupyter_page import Server, open_lab
from playwright.sync_api import Locator, Page, expect

from vmlab.lab import Lab
from vmlab.machine import Machine

BASE_URL = "/user/a%40b/"
#: Milliseconds for what the page does when it is told, and for a comparison on a busy host.
SOON, COMPARED = 30_000, 120_000

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def changed(lab: Lab, names: Callable[[str], str]) -> Machine:
    """A machine with a snapshot, in which files were added since, one with a name that is no text."""
    machine = lab.create(names("ct"), "tiny")
    machine.snapshot("clean")
    machine.succeed("echo '<img src=x onerror=alert(1)>' >'/root/<b>added'")
    machine.succeed("touch \"$(printf '/root/\\377\\n~ forged')\"")
    return machine


@pytest.fixture
def panel(page: Page, jupyter: Server) -> Page:
    """JupyterLab with the panel open and no tabs."""
    open_lab(page, jupyter.url())
    side = page.locator('.jp-SideBar [data-id="vmlab-panel"]')
    if "lm-mod-current" not in (side.get_attribute("class") or ""):
        side.click()
    expect(page.locator("#vmlab-panel .jp-vmlab-sums")).to_be_visible(timeout=SOON)
    return page


def card(page: Page, name: str) -> Locator:
    """Return the part of the panel that a machine has."""
    return page.locator(f'.jp-vmlab-card[data-machine="{name}"]')


def choose(page: Page, item: str) -> None:
    """Choose an item of the menu that is open."""
    page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{item}$")).click()


def tab(page: Page) -> Locator:
    """Return the comparison that is in front."""
    return page.locator(".jp-vmlab-comparison:visible")


def expect_report(page: Page, *texts: str) -> None:
    """Wait until a comparison is there that says all this."""
    report = tab(page).frame_locator("iframe").locator("body")
    for text in texts:
        expect(report).to_contain_text(text, timeout=COMPARED)


def test_from_a_snapshot_to_the_present(
    panel: Page, jupyter: Server, changed: Machine, tmp_path: Path
) -> None:
    name = changed.name
    card(panel, name).get_by_role("button", name=f"Show the snapshots of {name}").click()
    panel.get_by_role("button", name="More for the snapshot clean").click()
    choose(panel, "Compare with the Present")
    title = f"{name}: clean → now"
    expect(panel.get_by_role("tab", name=title)).to_be_visible(timeout=SOON)
    expect(tab(panel).get_by_role("status")).to_contain_text(f"Comparing {name}@clean with {name}")
    expect_report(panel, f"{name}@clean → {name} (now)", "Files", "<b>added", "/root/\\xff\\n~ forged")
    frame = tab(panel).locator("iframe")
    assert frame.get_attribute("sandbox") == ""

    toolbar = panel.get_by_role("toolbar", name=f"Comparison {title}")
    # The keyboard goes on from the toolbar into the report.
    toolbar.get_by_role("button", name="Refresh").focus()
    panel.keyboard.press("Tab")
    assert panel.evaluate("document.activeElement.tagName") == "IFRAME"
    panel.keyboard.press("ArrowRight")
    expect(tab(panel).frame_locator("iframe").locator("section:visible")).to_contain_text("path")
    with panel.expect_download() as download:
        toolbar.get_by_role("button", name="Save as HTML").click()
    assert download.value.suggested_filename == f"{name}-clean-now.html"
    download.value.save_as(tmp_path / "saved.html")
    saved = (tmp_path / "saved.html").read_text()
    assert "Content-Security-Policy" in saved
    assert "&lt;b&gt;added" in saved

    toolbar.get_by_role("button", name="Ask Inside Too").click()
    expect(toolbar.get_by_role("button", name="Save as HTML")).to_be_disabled()
    expect_report(panel, "Inside")
    expect(toolbar.get_by_role("button", name="Ask Inside Too")).to_have_attribute("aria-pressed", "true")

    # It comes back with the page, as it was asked for.
    panel.wait_for_timeout(2000)
    panel.goto(jupyter.url(reset=False))
    expect(panel.get_by_role("tab", name=title)).to_be_visible(timeout=COMPARED)
    expect_report(panel, "Inside", "<b>added")

    changed.delete()
    toolbar.get_by_role("button", name="Refresh").click()
    expect(tab(panel).get_by_role("alert")).to_contain_text(
        f"There is no machine named '{name}'", timeout=SOON
    )
    expect(tab(panel).get_by_role("button", name="Try again")).to_be_visible()


def test_a_machine_with_another_in_the_colours_of_the_theme(
    panel: Page, changed: Machine, lab: Lab, names: Callable[[str], str]
) -> None:
    other = changed.fork(names("ct-fork"))
    card(panel, changed.name).get_by_role("button", name=f"More for {changed.name}").click()
    choose(panel, "Compare with…")
    dialog = panel.locator(".jp-Dialog")
    # To fork took a snapshot, on which both stand now.
    expect(dialog.locator("option").first).to_contain_text("(it stands on this)")
    expect(dialog.locator("option", has_text=re.compile("^snapshot clean$"))).to_have_count(1)
    dialog.locator("select").select_option(f"machine {other.name}, now")
    dialog.get_by_role("button", name="Compare").click()
    expect(panel.get_by_role("tab", name=f"{changed.name} → {other.name}")).to_be_visible(timeout=SOON)
    expect_report(panel, f"{changed.name} (now) → {other.name} (now)")

    def background() -> object:
        return panel.evaluate("getComputedStyle(document.body).getPropertyValue('--jp-layout-color0').trim()")

    page = tab(panel).frame_locator("iframe").locator("body")
    expect(page).to_have_css("background-color", "rgb(255, 255, 255)")
    light = background()
    panel.evaluate("document.querySelector('.jp-vmlab-comparison iframe').dataset.old = 'yes'")
    panel.get_by_role("menuitem", name="Settings").click()
    panel.locator(".lm-Menu-itemLabel", has_text=re.compile("^Theme$")).hover()
    choose(panel, "JupyterLab Dark")
    expect(tab(panel).locator("iframe:not([data-old])")).to_be_visible(timeout=SOON)
    assert background() != light
    expect(page).to_have_css("background-color", "rgb(17, 17, 17)")
