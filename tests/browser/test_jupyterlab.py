"""vmlab in a real JupyterLab, as a person uses it; each test looks at the guest's side too."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable

import pytest
from help.jupyter_page import Notebook
from PIL import Image
from playwright.sync_api import expect

from vmlab.lab import Lab
from vmlab.machine import Machine

LOAD = "%load_ext vmlab"
#: Milliseconds for what the page does by itself.
SOON = 30_000

Names = Callable[[str], str]
Open = Callable[..., Notebook]


def picture(source: str) -> Image.Image:
    """Return the picture that an <img> carries in its address."""
    return Image.open(io.BytesIO(base64.b64decode(source.partition("base64,")[2])))


def in_guest(machine: Machine, words: str) -> bool:
    """Whether a process with these words on its command line runs in the guest."""
    return words in machine.execute("cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout


def test_a_machine_is_created_and_its_screen_seen(open_notebook: Open, lab: Lab, names: Names) -> None:
    name = names("game")
    nb = open_notebook(LOAD, f"%vm create {name} invaders", f"%vm screenshot {name}", "%vm list")
    nb.run(0)
    row = nb.run(1).locator("tr", has_text=name)
    expect(row).to_contain_text("running")
    assert lab[name].state == "running"

    image = nb.run(2).locator("img")
    expect(image).to_be_visible()
    shown = picture(image.get_attribute("src") or "")
    assert shown.size == lab[name].screenshot().size
    assert len(shown.convert("RGB").getcolors(1 << 20) or ()) > 2, "an empty screen"
    assert image.evaluate("image => image.naturalWidth") == shown.width

    lab[name].pause()
    expect(nb.run(3).locator("tr", has_text=name)).to_contain_text("paused")


def test_tab_completes_the_names_of_snapshots(open_notebook: Open, lab: Lab, names: Names) -> None:
    machine = lab.create(names("game"), "invaders")
    machine.snapshot("before-lunch")
    machine.snapshot("after-lunch")
    nb = open_notebook(LOAD, "")
    nb.run(0)
    editor = nb.cell(1).locator(".cm-content")
    editor.click()
    nb.page.keyboard.insert_text(f"%vm revert {machine.name} ")
    nb.page.keyboard.press("Tab")
    offered = nb.page.locator(".jp-Completer-item:visible")
    expect(offered.filter(has_text="before-lunch")).to_be_visible(timeout=SOON)
    expect(offered.filter(has_text="after-lunch")).to_be_visible()
    nb.page.keyboard.press("Escape")
    expect(offered).to_have_count(0)
    nb.page.keyboard.insert_text("bef")
    nb.page.keyboard.press("Tab")
    expect(offered).to_have_count(1)
    nb.page.keyboard.press("Enter")
    expect(editor).to_have_text(f"%vm revert {machine.name} before-lunch", timeout=SOON)
    nb.page.keyboard.press("Control+Enter")
    nb.wait(1)
    assert (lab[machine.name].here or machine.root).name == "before-lunch"  # type: ignore[union-attr]


def test_an_error_is_short_and_says_what_to_do(open_notebook: Open) -> None:
    nb = open_notebook(LOAD, "%vm start no-such-machine", "import vmlab\nvmlab.Lab()['no-such-machine']")
    nb.run(0)
    for index in (1, 2):
        text = nb.run(index).inner_text()
        assert "no machine named 'no-such-machine'" in text
        assert "%vm create no-such-machine" in text
        assert "Traceback" not in text
        assert ".py" not in text
        assert len([line for line in text.splitlines() if line.strip()]) <= 5, text


def test_interrupt_reaches_the_process_in_the_guest(open_notebook: Open, lab: Lab, names: Names) -> None:
    machine = lab.create(names("tiny"), "tiny")
    nb = open_notebook(LOAD, f"%%vm {machine.name}\necho begun\nsleep 1000\necho never")
    nb.run(0)
    nb.start(1)
    expect(nb.output(1)).to_contain_text("begun", timeout=SOON)
    assert in_guest(machine, "sleep 1000")
    nb.menu("Kernel", "Interrupt Kernel")
    output = nb.wait(1, SOON)
    expect(output).to_contain_text("interrupted")
    expect(output).not_to_contain_text("never")
    expect(output).not_to_contain_text("Traceback")
    until = time.monotonic() + 10
    while in_guest(machine, "sleep 1000"):
        assert time.monotonic() < until, "the process outlived the interrupt"
        time.sleep(0.2)


@pytest.mark.timeout(300)
def test_machines_outlive_the_kernel(open_notebook: Open, lab: Lab, names: Names) -> None:
    name = names("tiny")
    nb = open_notebook(
        f"{LOAD}\nimport vmlab\nlab = vmlab.Lab()",
        f"%vm create {name}",
        f"%%vm {name}\necho kept > /run/note; cat /proc/sys/kernel/random/boot_id",
        f"print(lab['{name}'].succeed('cat /run/note /proc/sys/kernel/random/boot_id'))",
    )
    for index in range(3):
        nb.run(index)
    boot = lab[name].succeed("cat /proc/sys/kernel/random/boot_id").strip()
    expect(nb.output(2)).to_contain_text(boot)
    nb.menu("Kernel", "Restart Kernel…")
    nb.page.locator(".jp-Dialog button.jp-mod-warn, .jp-Dialog button.jp-mod-accept").last.click()
    expect(nb.page.locator(".jp-Dialog")).to_have_count(0)
    nb.wait_for_kernel()
    nb.run(0)
    output = nb.run(3)
    expect(output).to_contain_text("kept")
    expect(output).to_contain_text(boot)
