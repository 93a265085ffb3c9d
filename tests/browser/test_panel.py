"""The panel in JupyterLab: what is done there is checked in the lab, and what is done to the lab, there."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable

import pytest
from help.jupyter_page import Console, Server, answer, open_lab, press_keys, run_from_palette, until
from help.panel_page import SOON, accept, card, choose, leave, open_panel, press, row, state
from playwright.sync_api import Page, expect

from vmlab.errors import VMLabError
from vmlab.hypervisor.host import free_port
from vmlab.lab import Lab
from vmlab.machine import Machine, Snapshot

BASE_URL = "/user/a%40b/"

Names = Callable[[str], str]

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def tiny(lab: Lab, names: Names) -> Machine:
    return lab.create(names("tiny"), "tiny")


@pytest.fixture
def panel(page: Page, jupyter: Server) -> Page:
    """JupyterLab with the panel open and no tabs."""
    open_panel(page, jupyter.url())
    return page


def test_a_machine_is_made_by_the_form(panel: Page, lab: Lab, names: Names) -> None:
    name = names("form")
    panel.locator("#vmlab-panel .jp-Toolbar").get_by_role("button", name="New").click()
    dialog = panel.locator(".jp-vmlab-create-dialog")
    dialog.get_by_label("Image").select_option("tiny")
    dialog.get_by_label("Name").fill("Not A Name!")
    expect(dialog.locator(".jp-vmlab-wrong")).to_be_visible()
    dialog.get_by_label("Name").fill(name)
    expect(dialog.locator(".jp-vmlab-wrong")).to_have_count(0)
    dialog.get_by_role("button", name="Create Machine").click()
    expect(dialog).to_have_count(0, timeout=90_000)
    state(panel, name, "running")
    assert lab[name].state == "running"
    assert lab[name].image == "tiny"
    expect(card(panel, name).locator("img").first).to_be_visible(timeout=SOON)
    # A second one of that name: the form stays, and says why.
    panel.locator("#vmlab-panel .jp-Toolbar").get_by_role("button", name="New").click()
    dialog.get_by_label("Name").fill(name)
    expect(dialog).to_contain_text("There is a machine of that name already")
    leave(dialog)


def test_buttons_do_what_they_say(panel: Page, lab: Lab, names: Names, tiny: Machine) -> None:
    name = tiny.name
    state(panel, name, "running")
    press(panel, name, "Pause")
    until(lambda: tiny.state == "paused", "paused")
    state(panel, name, "paused")
    press(panel, name, "Resume")
    until(lambda: tiny.state == "running", "running")
    state(panel, name, "running")

    press(panel, name, "Fork")
    until(lambda: forks(tiny), "a fork")
    (fork,) = forks(tiny)
    try:
        state(panel, fork.name, "running")
        assert fork.state == "running"
        assert fork.succeed("cat /run/nonce") == tiny.succeed("cat /run/nonce")
        choose(panel, card(panel, fork.name), "Delete…")
        expect(panel.locator(".jp-Dialog")).to_contain_text("It runs, and is ended at once.")
        leave(panel.locator(".jp-Dialog"))
        assert fork.name in lab
        choose(panel, card(panel, fork.name), "Delete…")
        accept(panel, "Delete Machine")
        expect(card(panel, fork.name)).to_have_count(0, timeout=SOON)
        assert fork.name not in lab
    finally:
        if fork.name in lab:
            fork.delete()

    press(panel, name, "Shut Down")
    until(lambda: tiny.state == "off", "off", 120)
    state(panel, name, "off")
    press(panel, name, "Start")
    until(lambda: tiny.state == "running", "running")
    state(panel, name, "running")


def test_a_port_that_was_taken_is_said(panel: Page, lab: Lab, names: Names) -> None:
    port = free_port()
    machine = lab.create(names("port"), "tiny", forwards={port: 80}, start=False)
    said = card(panel, machine.name).get_by_text(f"port {port} of this host was taken")
    with socket.socket() as somebody:
        somebody.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        somebody.bind(("127.0.0.1", port))
        somebody.listen()
        press(panel, machine.name, "Start")
        expect(said).to_be_visible(timeout=SOON)
    choose(panel, card(panel, machine.name), "Pull the Plug")
    until(lambda: machine.state == "off", "off")
    press(panel, machine.name, "Start")
    until(lambda: machine.state == "running", "running")
    state(panel, machine.name, "running")
    expect(said).to_have_count(0)
    assert machine.forwards == ((port, 80),)


def test_snapshots_are_taken_named_reverted_and_forgotten(
    panel: Page, lab: Lab, names: Names, tiny: Machine
) -> None:
    name = tiny.name
    tiny.succeed("echo first >/run/state")
    press(panel, name, "Take Snapshot")
    until(lambda: len(own(tiny)) == 1, "a snapshot")
    (first,) = own(tiny)
    tiny.succeed("echo second >/run/state")
    card(panel, name).get_by_role("button", name=f"Show the snapshots of {name}").click()
    line = row(panel, first)
    expect(line).to_have_attribute("aria-selected", "true", timeout=SOON)
    expect(line.locator("img")).to_have_js_property("naturalWidth", 160, timeout=SOON)

    choose(panel, line, "Rename")
    editor = line.get_by_role("textbox")
    editor.fill("the-first")
    editor.press("Enter")
    expect(line).to_contain_text("the-first", timeout=SOON)
    until(lambda: [one.name for one in own(tiny)] == ["the-first"], "the new name")
    choose(panel, line, "Describe…")
    panel.locator(".jp-Dialog input").fill("before lunch")
    accept(panel, "Save")
    expect(line).to_contain_text("before lunch", timeout=SOON)
    assert own(tiny)[0].description == "before lunch"

    # Taken by somebody else: it shows.
    second = tiny.snapshot("the-second")
    expect(row(panel, second)).to_have_attribute("aria-selected", "true", timeout=SOON)
    line.get_by_role("button", name=f"Revert {name} to the-first").click()
    # What was left can be brought back, as the notification offers.
    said = panel.locator(".Toastify__toast", has_text="The present that it left is kept")
    expect(said).to_be_visible(timeout=SOON)
    assert tiny.here is not None
    assert tiny.here.name == "the-first"
    assert tiny.execute("cat /run/state").stdout == "first\n"
    expect(line).to_have_attribute("aria-selected", "true", timeout=SOON)
    expect(row(panel, second)).to_have_attribute("aria-selected", "false")
    said.get_by_role("button", name="Undo").click()
    until(lambda: answer(tiny, "cat /run/state") == "second\n", "the state that was left")

    row(panel, second).get_by_role("button", name="Fork from the-second").click()
    until(lambda: forks(tiny), "a fork")
    (fork,) = forks(tiny)
    try:
        state(panel, fork.name, "running")
        assert fork.succeed("cat /run/state") == "second\n"
    finally:
        fork.delete()
    expect(card(panel, fork.name)).to_have_count(0, timeout=SOON)

    choose(panel, row(panel, second), "Forget…")
    accept(panel, "Forget Snapshot")
    expect(row(panel, second)).to_have_count(0, timeout=SOON)
    assert [one.name for one in own(tiny)] == ["the-first"]
    assert second.id not in [one.id for one in tiny.snapshots]


def forks(machine: Machine) -> list[Machine]:
    """Return the machines that go on from a snapshot of another."""
    found = []
    for other in Lab():
        with contextlib.suppress(VMLabError):  # gone meanwhile
            if other != machine and other.here is not None and other.here.machine_name == machine.name:
                found.append(other)
    return found


def own(machine: Machine) -> list[Snapshot]:
    """Return the snapshots that were taken of a machine; the ready state of its image is none of them."""
    return [one for one in machine.snapshots if one.kind == "snapshot" and one.machine_name == machine.name]


def test_what_others_do_shows_by_itself(panel: Page, lab: Lab, names: Names) -> None:
    machine = lab.create(names("other"), "tiny")
    old = machine.name
    state(panel, old, "running")
    machine.pause()
    state(panel, old, "paused")
    machine.resume()
    state(panel, old, "running")
    machine.describe("for the exam")
    expect(card(panel, old)).to_contain_text("for the exam", timeout=SOON)
    new = names("renamed")
    machine.rename(new)
    state(panel, new, "running")
    expect(card(panel, old)).to_have_count(0)
    # Without vmlab: the guest powers itself off.
    lab[new].execute("poweroff")
    state(panel, new, "off")
    lab[new].delete()
    expect(card(panel, new)).to_have_count(0, timeout=SOON)


def test_a_machine_is_renamed_and_its_tab_goes_with_it(
    panel: Page, jupyter: Server, lab: Lab, names: Names, tiny: Machine
) -> None:
    old, new = tiny.name, names("new")
    press(panel, old, "Open Console")
    Console(panel, old).expect_live()
    Console(panel, old).tool("lock")
    card(panel, old).focus()
    card(panel, old).press("F2")
    editor = card(panel, old).get_by_role("textbox")
    editor.fill("no good name")
    editor.press("Enter")
    expect(editor).to_have_attribute("aria-invalid", "true")
    assert old in lab
    editor.fill(new)
    editor.press("Enter")
    state(panel, new, "running")
    assert new in lab
    assert old not in lab
    renamed = Console(panel, new)
    renamed.expect_live()
    expect(panel.locator(".lm-TabBar-tab", has_text=new)).to_be_visible()
    # How it is looked at does not change: not with the name, nor with the page.
    status = renamed.root.locator(".vmlab-console-status")
    expect(status).to_have_text("view only")
    until(lambda: f"vnc:{lab[new].uuid}" in saved_layout(panel, jupyter), "the saved layout", 30)
    open_lab(panel, jupyter.url(reset=False))
    renamed.expect_live()
    expect(status).to_have_text("view only")


def test_a_console_without_a_mouse_and_after_a_reload(panel: Page, jupyter: Server, tiny: Machine) -> None:
    name = tiny.name
    expect(card(panel, name)).to_be_visible(timeout=SOON)
    # From the field that the panel begins with, by Tab alone.
    panel.locator("#vmlab-panel .jp-Toolbar").get_by_role("button", name="New").focus()
    for _ in range(400):
        panel.keyboard.press("Tab")
        if panel.evaluate("document.activeElement.dataset.machine ?? ''") == name:
            break
    else:
        raise AssertionError("Tab does not come to the machine")
    panel.keyboard.press("Enter")
    console = Console(panel, name)
    console.expect_live()
    # Who opens a console wants to work in it.
    expect(console.canvas).to_be_focused()
    press_keys(panel, "echo keyboard-only >/run/arrived\n")
    tiny.wait_until_succeeds("grep -qx keyboard-only /run/arrived", timeout=60)
    console.leave()

    press(panel, name, "Open Console")
    expect(panel.locator(".lm-TabBar-tab", has_text=name)).to_have_count(1)
    choose(panel, card(panel, name), "Open Serial Console")
    Console(panel, name, "Serial line").expect_face("live")
    # Tabs come back; JupyterLab writes its layout a little later.
    until(lambda: f"serial:{tiny.uuid}" in saved_layout(panel, jupyter), "the saved layout", 30)
    open_lab(panel, jupyter.url(reset=False))
    Console(panel, name, "Serial line").expect_face("live")
    panel.locator(".lm-DockPanel-tabBar .lm-TabBar-tab", has_text=re.compile(f"^{name}$")).click()
    Console(panel, name).expect_live()


def saved_layout(page: Page, jupyter: Server) -> str:
    """Return what JupyterLab remembers of its tabs."""
    return page.request.get(f"{jupyter.address}lab/api/workspaces/default?token={jupyter.token}").text()


def test_a_tab_whose_code_could_not_be_loaded(panel: Page, tiny: Machine) -> None:
    """A page remembers which addresses it could not load; the button has to help all the same."""
    code = "**/vmlab/static/console.js*"
    panel.route(code, lambda route: route.abort())
    press(panel, tiny.name, "Open Console")
    again = panel.locator(".jp-vmlab-console-host").get_by_role("button", name="Try again")
    again.click()
    expect(again).to_be_visible(timeout=SOON)
    panel.unroute(code)
    again.click()
    Console(panel, tiny.name).expect_live()


def test_a_tree_that_is_open_when_its_machine_is_replaced(panel: Page, lab: Lab, tiny: Machine) -> None:
    name = tiny.name
    shows = card(panel, name).get_by_role("button", name=f"Show the snapshots of {name}")
    shows.click()
    expect(card(panel, name).get_by_role("tree")).to_be_visible(timeout=SOON)
    tiny.delete()
    expect(card(panel, name)).to_have_count(0, timeout=SOON)
    lab.create(name, "tiny")
    state(panel, name, "running")
    shows.click()
    expect(card(panel, name).get_by_role("treeitem")).to_have_count(2, timeout=SOON)


def test_a_fork_shows_and_renames_the_snapshots_that_it_stands_on(
    panel: Page, names: Names, tiny: Machine
) -> None:
    snapshot = tiny.snapshot("before")
    fork = snapshot.fork(names("fork"))
    state(panel, fork.name, "running")
    card(panel, fork.name).get_by_role("button", name=f"Show the snapshots of {fork.name}").click()
    line = row(panel, snapshot)
    expect(line).to_contain_text("before", timeout=SOON)
    # By somebody else, in the tree of the other machine.
    snapshot.rename("renamed")
    expect(line).to_contain_text("renamed", timeout=SOON)
    choose(panel, line, "Rename")
    editor = line.get_by_role("textbox")
    editor.fill("by-the-fork")
    editor.press("Enter")
    expect(line).to_contain_text("by-the-fork", timeout=SOON)
    until(lambda: [one.name for one in own(tiny)] == ["by-the-fork"], "the new name")


def test_snapshots_by_keyboard_alone(panel: Page, lab: Lab, names: Names, tiny: Machine) -> None:
    """With a description; forks under names; gone back to by the palette. The focus is never lost."""
    name = tiny.name
    state(panel, name, "running")
    card(panel, name).focus()
    panel.keyboard.press("Tab")  # to the first of its buttons, then to the last
    for _ in range(20):
        if panel.evaluate("document.activeElement.ariaLabel") == f"More for {name}":
            break
        panel.keyboard.press("Tab")
    menu = panel.locator(".lm-Menu:visible")
    panel.keyboard.press("Enter")
    expect(menu).to_be_visible()
    panel.keyboard.press("Escape")
    expect(menu).to_have_count(0)
    expect(card(panel, name).get_by_role("button", name=f"More for {name}")).to_be_focused()

    card(panel, name).focus()
    choose(panel, card(panel, name), "Take Snapshot as…")
    panel.keyboard.type("clean")
    panel.keyboard.press("Tab")
    panel.keyboard.type("before the exam")
    panel.keyboard.press("Enter")
    until(lambda: own(tiny), "a snapshot")
    (clean,) = own(tiny)
    assert (clean.name, clean.description) == ("clean", "before the exam")
    expect(card(panel, name)).to_be_focused()

    choose(panel, card(panel, name), "Fork Several…")
    first, second = names("one"), names("two")
    panel.keyboard.type(f"{first} {second}")
    panel.keyboard.press("Enter")
    state(panel, first, "running")
    state(panel, second, "running")
    assert {first, second} <= {one.name for one in forks(tiny)}

    tiny.succeed("touch /run/later")
    run_from_palette(panel, "Revert to a Snapshot")
    dialog = panel.locator(".jp-Dialog")
    dialog.locator("select").select_option(name)
    panel.keyboard.press("Enter")
    expect(dialog).to_contain_text("Snapshot", timeout=SOON)
    dialog.locator("select").select_option(label="snapshot clean")
    panel.keyboard.press("Enter")
    expect(panel.locator(".Toastify__toast", has_text=f"{name} is back at")).to_be_visible(timeout=SOON)
    assert tiny.execute("ls /run/later; echo end").stdout == "end\n"

    # The button that was pressed goes; the keyboard stays with the machine.
    card(panel, name).get_by_role("button", name=f"Pause: {name}").focus()
    panel.keyboard.press("Enter")
    state(panel, name, "paused")
    expect(card(panel, name)).to_be_focused()


def test_images_are_listed(panel: Page, lab: Lab) -> None:
    images = panel.locator("#vmlab-panel .jp-vmlab-images")
    images.locator("summary").click()
    line = images.locator('[data-image="tiny"]')
    expect(line).to_contain_text("starts in a moment")
    line.get_by_role("button", name="New machine of tiny").click()
    dialog = panel.locator(".jp-vmlab-create-dialog")
    expect(dialog.get_by_label("Image")).to_have_value("tiny")
    leave(dialog)
    images.locator("summary").click()


def test_palette_and_status_bar(panel: Page, lab: Lab, tiny: Machine) -> None:
    state(panel, tiny.name, "running")
    item = panel.locator(".jp-vmlab-status-button")

    def said() -> int:
        return int(re.findall(r"\d+", item.get_attribute("title") or "")[0])

    def running() -> int:
        return sum(machine.state == "running" for machine in lab)

    until(lambda: said() == running(), f"the status bar counts what runs: {said()}, {running()}")
    tiny.kill()
    until(lambda: said() == running(), f"the status bar counts what runs: {said()}, {running()}")

    run_from_palette(panel, "Start: Choose a Machine")
    dialog = panel.locator(".jp-Dialog")
    dialog.locator("select").select_option(tiny.name)
    dialog.get_by_role("button", name="Start").click()
    until(lambda: tiny.state == "running", "started by the palette")

    # The item leads to the panel.
    panel.locator('.jp-SideBar [data-id="vmlab-panel"]').click()
    expect(panel.locator("#vmlab-panel")).to_be_hidden()
    item.click()
    expect(panel.locator("#vmlab-panel")).to_be_visible()


def test_an_error_is_shown_with_what_to_do(panel: Page, lab: Lab, tiny: Machine) -> None:
    """The page knows of no damage; the server says what is wrong."""
    snapshot = tiny.snapshot("damaged")
    ram = snapshot.folder / "ram"
    whole = ram.stat()
    card(panel, tiny.name).get_by_role("button", name=f"Show the snapshots of {tiny.name}").click()
    line = row(panel, snapshot)
    expect(line).to_be_visible(timeout=SOON)
    ram.rename(ram.with_name("gone"))
    try:
        line.get_by_role("button", name=f"Revert {tiny.name} to damaged").click()
        toast = panel.locator(".Toastify__toast--error")
        expect(toast).to_be_visible(timeout=SOON)
        expect(toast).to_contain_text("damaged")
        expect(toast).not_to_contain_text("Traceback")
    finally:
        ram.with_name("gone").rename(ram)
    assert ram.stat().st_ino == whole.st_ino
    assert tiny.state == "running"
