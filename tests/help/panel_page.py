"""The panel of machines and snapshots in JupyterLab, as a person uses it."""

from __future__ import annotations

import re

from playwright.sync_api import Locator, Page, expect

from help.jupyter_page import open_lab
from vmlab.machine import Snapshot

#: Milliseconds for what the page does when it is told.
SOON = 30_000


def open_panel(page: Page, url: str) -> None:
    """Open JupyterLab with the panel beside it."""
    open_lab(page, url)
    side = page.locator('.jp-SideBar [data-id="vmlab-panel"]')
    if "lm-mod-current" not in (side.get_attribute("class") or ""):
        side.click()
    expect(page.locator("#vmlab-panel .jp-vmlab-sums")).to_be_visible(timeout=SOON)


def card(page: Page, name: str) -> Locator:
    """Return the part of the panel that a machine has."""
    return page.locator(f'.jp-vmlab-card[data-machine="{name}"]')


def state(page: Page, name: str, wanted: str) -> None:
    """Wait until the panel shows a machine in a state."""
    expect(card(page, name)).to_have_attribute("data-state", wanted, timeout=SOON)


def press(page: Page, name: str, label: str) -> None:
    """Press a button of a machine's card."""
    button = (
        card(page, name)
        .locator("> .jp-vmlab-card-buttons")
        .get_by_role("button", name=f"{label}: {name}", exact=True)
    )
    expect(button).to_be_enabled(timeout=SOON)
    button.click()


def choose(page: Page, owner: Locator, item: str) -> None:
    """Choose an item of the context menu of a card or of a snapshot."""
    owner.click(button="right", position={"x": 60, "y": 12})
    page.locator(".lm-Menu:visible .lm-Menu-item", has_text=re.compile(f"^{item}")).click()


def row(page: Page, snapshot: Snapshot) -> Locator:
    """Return the row of a snapshot."""
    return page.locator(f'.jp-vmlab-row[data-snapshot="{snapshot.id}"]')


def accept(page: Page, label: str) -> None:
    """Press a button of the dialog."""
    page.locator(".jp-Dialog").get_by_role("button", name=label).click()
    expect(page.locator(".jp-Dialog")).to_have_count(0, timeout=SOON)


def leave(dialog: Locator) -> None:
    """Close a dialog by the Escape key, which it hears once the focus is in it."""
    expect(dialog.locator(":focus")).to_have_count(1, timeout=SOON)
    dialog.page.keyboard.press("Escape")
    expect(dialog).to_have_count(0, timeout=SOON)
