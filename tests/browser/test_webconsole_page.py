"""The page of the web console: a console where there is no Jupyter server."""

from __future__ import annotations

from collections.abc import Callable

from help.jupyter_page import Console, press_keys, until
from playwright.sync_api import Page, expect

from vmlab import webconsole
from vmlab.lab import Lab


def test_the_webconsole_lets_one_page_in(page: Page, lab: Lab, names: Callable[[str], str]) -> None:
    machine = lab.create(names("gate"), "tiny")
    running = webconsole.start([machine.name], lab.home)
    try:
        page.goto(running.address)
        console = Console(page, machine.name)
        console.expect_live()
        assert "#" not in page.url, "the invitation stays in the address"
        console.take()
        press_keys(page, "echo through-the-console >/run/arrived\n")
        machine.wait_until_succeeds("grep -qx through-the-console /run/arrived", timeout=60)

        # It comes back by itself after a revert, and after a reload of its page.
        machine.revert(machine.snapshot("kept"))
        console.expect_live()
        page.reload()
        console.expect_live()
        console.take()
        press_keys(page, "echo again >/run/arrived\n")
        machine.wait_until_succeeds("grep -qx again /run/arrived", timeout=60)

        # Whoever else has the address: nothing.
        with page.context.browser.new_context() as other:  # type: ignore[union-attr]
            stranger = other.new_page()
            stranger.goto(running.address)
            expect(stranger.locator("#note")).to_contain_text("it was used already")
            expect(stranger.locator(".vmlab-console")).to_have_count(0)
    finally:
        running.stop()
    until(
        lambda: not machine.domain.qmp("query-vnc")["clients"], "the web console took its connections with it"
    )
