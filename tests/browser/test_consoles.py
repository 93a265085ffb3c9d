"""Consoles in cells and in tabs, behind a prefix; what is done in them is checked in the guest."""

from __future__ import annotations

import contextlib
import math
import re
import time
import uuid
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from help.jupyter_page import (
    CELL,
    Console,
    Notebook,
    Server,
    answer,
    open_lab,
    press_chord,
    press_keys,
    until,
    viewers,
)
from PIL import Image
from playwright.sync_api import Page, expect

from vmlab.errors import VMLabError
from vmlab.guest.screen import Screenshot
from vmlab.lab import Lab
from vmlab.machine import Machine

#: As JupyterHub does it; the other modules are at the root.
BASE_URL = "/user/x/"
LOAD = "%load_ext vmlab"
#: Of a console that has the keyboard and the mouse.
HELD = re.compile(r"\bvmlab-held\b")
#: Milliseconds for what the page does by itself.
SOON = 30_000
#: All that a US keyboard has, apart from the quote that quotes it.
CHARACTERS = "".join(chr(code) for code in range(32, 127) if chr(code) != "'")

Names = Callable[[str], str]
Open = Callable[..., Notebook]

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def tiny(lab: Lab, names: Names) -> Machine:
    return lab.create(names("tiny"), "tiny")


@pytest.fixture(scope="module")
def desktop(lab: Lab) -> Iterator[Machine]:
    """One for all tests: nothing that they do to it is in the way of the next."""
    with lab.create(f"desktop-{uuid.uuid4().hex[:6]}", "desktop") as machine:
        yield machine


@pytest.fixture
def show(open_notebook: Open) -> Callable[..., tuple[Notebook, list[Console]]]:
    """Open a notebook with the consoles of machines under its second cell."""

    def new(*machines: Machine, more: tuple[str, ...] = ()) -> tuple[Notebook, list[Console]]:
        words = " ".join(machine.name for machine in machines)
        nb = open_notebook(LOAD, f"%vm console {words}", *more)
        nb.run(0)
        output = nb.run(1)
        consoles = [Console(output, machine.name) for machine in machines]
        for console in consoles:
            # One that is below the page's end is let go after three seconds.
            expect(console.root).to_be_attached(timeout=CELL)
            console.root.scroll_into_view_if_needed()
            console.expect_live()
        return nb, consoles

    return new


Show = Callable[..., tuple[Notebook, list[Console]]]


def pointer(machine: Machine) -> tuple[int, int]:
    """Return where the guest's own X server has the pointer."""
    said = machine.succeed("DISPLAY=:0 xdotool getmouselocation --shell")
    values = dict(line.split("=") for line in said.split())
    return int(values["X"]), int(values["Y"])


def window(machine: Machine, title: str) -> tuple[int, int]:
    """Return where a window is."""
    said = machine.succeed(
        "export DISPLAY=:0; xdotool getwindowgeometry --shell "
        f"$(xdotool search --onlyvisible --name '^{title}$' | head -n 1)"
    )
    values = dict(line.split("=") for line in said.split())
    return int(values["X"]), int(values["Y"])


def click_terminal(console: Console, machine: Machine) -> None:
    """Click the terminal's window, and wait until the guest gives it the keyboard."""
    console.page.mouse.click(*console.place(400, 350))
    machine.wait_until_succeeds(
        "DISPLAY=:0 xdotool getactivewindow getwindowname | grep -qx Terminal", timeout=60
    )


def boot_id(machine: Machine) -> str:
    """Return which boot it is; nothing while there is nobody to ask."""
    return answer(machine, "cat /proc/sys/kernel/random/boot_id")


def difference(canvas: Image.Image, screen: Image.Image) -> int:
    """Return how many pixels differ."""
    assert canvas.size == screen.size
    return int((np.asarray(canvas) != np.asarray(screen.convert("RGB"))).any(axis=2).sum())


def arrives(machine: Machine, console: Console, word: str, file: str = "/run/arrived") -> None:
    """Type a word into the shell on the screen, and wait until the guest has it in a file."""
    press_keys(console.page, f"echo {word} >{file}\n")
    machine.wait_until_succeeds(f"grep -qx {word} {file}", timeout=60)


# -- mouse and keyboard ----------------------------------------------------------------------------------------------


def test_mouse_and_keys_arrive_in_the_desktop(show: Show, desktop: Machine) -> None:
    _, (console,) = show(desktop)
    page = console.page
    console.take()
    for x, y in ((300, 400), (611, 222)):
        aim(console, desktop, x, y)
    # A window is taken by its title and carried elsewhere.
    before = window(desktop, "Clock")
    console.point(before[0] + 40, before[1] - 12)
    page.mouse.down()
    for step in range(1, 11):
        console.point(before[0] + 40 - 8 * step, before[1] - 12 + 30 * step)
        page.wait_for_timeout(30)
    page.mouse.up()
    until(lambda: window(desktop, "Clock") != before, "the window has moved")
    moved = window(desktop, "Clock")
    assert abs(before[0] - 80 - moved[0]) <= 2
    assert abs(before[1] + 300 - moved[1]) <= 2
    # Keys go to the window that is clicked.
    click_terminal(console, desktop)
    press_keys(page, f"printf %s '{CHARACTERS}' >typed\n")
    desktop.wait_until_succeeds("test -s /home/user/typed", timeout=60)
    assert desktop.execute("cat /home/user/typed").stdout == CHARACTERS
    # A key that is held is held in the guest, and not for ever when the console is left with it down.
    desktop.execute("rm -f /home/user/held")
    press_keys(page, "cat >held\n")
    desktop.wait_for_file("/home/user/held", timeout=60)
    page.keyboard.down("x")
    page.mouse.click(5, 5)
    page.keyboard.up("x")
    expect(console.root).not_to_have_class(HELD)
    console.take()
    press_keys(page, "\n")
    page.keyboard.press("Control+KeyD")
    desktop.wait_until_succeeds("test -s /home/user/held", timeout=60)
    assert re.fullmatch("x{1,40}\n", desktop.execute("cat /home/user/held").stdout)


@pytest.mark.parametrize(("width", "ratio"), [(1500, 1), (900, 1), (1000, 2)])
def test_the_mouse_is_exact_when_scaled(show: Show, desktop: Machine, width: int, ratio: float) -> None:
    _, (console,) = show(desktop)
    page = console.page
    with shaped(page, width, 900, ratio):
        console.expect_live()
        console.take()
        size = desktop.screenshot().size
        for x, y in ((0, 0), (size[0] - 1, size[1] - 1), (size[0] // 3, size[1] // 2)):
            aim(console, desktop, x, y)
        console.leave()


def aim(console: Console, machine: Machine, x: int, y: int) -> None:
    """Move the mouse to a pixel of the guest, and wait until it is there in the guest."""
    left, top, scale = console.geometry()
    across, down = console.place(x, y)
    # A mouse is on whole pixels of the page, which may cover more than one of the guest; the rest is exact but for the
    # one pixel that QEMU's tablet, which has 32768 places, may be off.
    wanted = int((math.floor(across) - left) / scale), int((math.floor(down) - top) / scale)
    console.page.mouse.move(math.floor(across), math.floor(down))
    until(
        lambda: max(abs(a - b) for a, b in zip(pointer(machine), wanted, strict=True)) <= 1,
        lambda: f"the pointer is at {pointer(machine)} instead of {wanted}; scale {scale:.3f}",
    )


@contextlib.contextmanager
def shaped(page: Page, width: int, height: int, ratio: float) -> Iterator[None]:
    """Give the page another size, and other pixels."""
    before = page.viewport_size
    session = page.context.new_cdp_session(page)
    session.send(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": ratio, "mobile": False},
    )
    try:
        page.wait_for_function(f"devicePixelRatio === {ratio} && innerWidth === {width}")
        page.wait_for_timeout(300)
        yield
    finally:
        session.detach()
        assert before is not None
        page.set_viewport_size(before)


def test_keys_stay_where_they_are_typed(show: Show, lab: Lab, names: Names) -> None:
    left, right = lab.create(names("left"), "tiny"), lab.create(names("right"), "tiny")
    cells = ("text = 'some text'", "1 + 1")
    nb, consoles = show(left, right, more=cells)
    page = nb.page
    known = (LOAD, f"%vm console {left.name} {right.name}", *cells)
    nb.expect_cells(*known)
    scrolled = page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollTop")
    for machine, other, console in ((left, right, consoles[0]), (right, left, consoles[1])):
        console.take()
        arrives(machine, console, f"only-{machine.name}")
        assert other.execute("cat /run/arrived").stdout != f"only-{machine.name}\n"
        # What would cut, insert, delete, run and leave cells; Ctrl+S stops a terminal, and Ctrl+Q lets it go on.
        keys = "Control+c a b x d d Shift+Enter Escape m y Control+b Control+s Tab z Control+q Control+c"
        for key in keys.split():
            page.keyboard.press(key)
            page.wait_for_timeout(80)
        nb.expect_cells(*known)
        expect(console.canvas).to_be_focused()
        expect(nb.prompt(3)).to_have_text("[ ]:")
        arrives(machine, console, "again")
    assert page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollTop") == scrolled
    # Keys in the bar and in its menus are no commands either.
    consoles[0].tool("power")
    for key in ("d", "d", "b", "Escape"):
        page.keyboard.press(key)
    for console in consoles:
        expect(console.root).not_to_have_class(HELD)
    consoles[1].root.locator('[data-tool="snapshot"]').focus()
    for key in ("d", "d", "b", "x"):
        page.keyboard.press(key)
    nb.expect_cells(*known)
    # And what is typed in a cell reaches no guest.
    seen = [machine.screenshot() for machine in (left, right)]
    nb.cell(2).locator(".cm-content").click()
    page.keyboard.press("End")
    page.keyboard.type(" + 'echo cell'")
    nb.expect_cells(*known[:2], "text = 'some text' + 'echo cell'", known[3])
    page.keyboard.press("Escape")
    page.keyboard.press("b")
    expect(nb.cells).to_have_count(5)
    for machine, before in zip((left, right), seen, strict=True):
        assert machine.screenshot().diff(before).fraction < 0.001, "something was typed in the guest"


@pytest.mark.parametrize("kind", ["Screen", "Serial line"])
def test_keys_are_jupyterlabs_once_the_guest_has_let_go(
    open_notebook: Open, tiny: Machine, kind: str
) -> None:
    option = "--serial " if kind == "Serial line" else ""
    nb = open_notebook(LOAD, f"%vm console {option}{tiny.name}", "1")
    page = nb.page
    nb.run(0)
    console = Console(nb.run(1), tiny.name, kind)
    console.expect_face("live")
    layer = console.shield if kind == "Screen" else console.root.locator(".vmlab-console-stage")
    dirty = page.locator(".lm-DockPanel-tabBar .lm-TabBar-tab.jp-mod-dirty")
    for key in ("Enter", "Space"):
        layer.focus()
        page.keyboard.press(key)
        expect(console.root).to_have_class(HELD)
        press_chord(page)
        expect(console.root).not_to_have_class(HELD)
        expect(layer).to_be_focused()

    expect(dirty).to_have_count(1)
    page.keyboard.press("Control+s")
    expect(dirty).to_have_count(0)
    page.keyboard.press("Control+Shift+c")
    palette = page.locator(".lm-CommandPalette:visible")
    expect(palette).to_be_visible()
    page.keyboard.press("Escape")
    expect(palette).to_have_count(0)
    layer.focus()
    page.keyboard.press("b")
    expect(nb.cells).to_have_count(4)
    # JupyterLab goes to the new cell, in a moment.
    expect(nb.cell(2)).to_be_focused()
    layer.focus()
    expect(nb.cell(1)).to_have_class(re.compile(r"\bjp-mod-active\b"))
    page.keyboard.press("Escape")
    page.keyboard.press("a")
    expect(nb.cells).to_have_count(5)
    # Around the cell of the console, which has not taken a key of these.
    root = nb.cell(2).locator(".vmlab-console")
    expect(root).to_be_visible()
    expect(root).not_to_have_class(HELD)


def test_text_and_chords_are_sent(show: Show, tiny: Machine) -> None:
    _, (console,) = show(tiny)
    console.take()
    console.tool("type")
    text = f"printf %s '{CHARACTERS}' >/run/pasted\n"
    console.root.locator(".vmlab-console-popup textarea").fill(text)
    console.root.locator(".vmlab-console-popup button", has_text=re.compile("^Type$")).click()
    tiny.wait_until_succeeds("test -s /run/pasted", timeout=60)
    until(lambda: tiny.execute("cat /run/pasted").stdout == CHARACTERS, "the whole text")
    expect(console.root.locator(".vmlab-console-popup")).to_have_count(0)
    # tiny reboots at Ctrl-Alt-Del; the console comes back by itself.
    boot = boot_id(tiny)
    console.choose("keys", "Ctrl+Alt+Delete")
    until(lambda: boot_id(tiny) not in ("", boot), "a reboot", 120)
    console.expect_live()


def test_view_only(show: Show, tiny: Machine) -> None:
    nb, (console,) = show(tiny, more=("1",))
    before = nb.cells.count()
    arrives_before = tiny.screenshot()
    console.tool("lock")
    expect(console.root.locator(".vmlab-console-status")).to_have_text("view only")
    console.shield.click()
    for key in ("b", "d", "d", "x"):
        nb.page.keyboard.press(key)
    expect(nb.cells).to_have_count(before)
    assert tiny.screenshot().diff(arrives_before).fraction < 0.001
    # What lies over the screen offers nothing either.
    tiny.pause()
    console.expect_face("paused")
    expect(console.overlay.get_by_role("button")).to_have_count(0)
    tiny.resume()
    console.expect_live()
    console.tool("lock")
    console.take()
    arrives(tiny, console, "unlocked")


# -- snapshots -------------------------------------------------------------------------------------------------------


def test_revert_brings_back_every_pixel(show: Show, desktop: Machine) -> None:
    _, (console,) = show(desktop)
    page = console.page
    desktop.pause()
    try:
        snapshot = desktop.snapshot("pixels")
    finally:
        desktop.resume()
    screen = Screenshot.open(snapshot.png or b"").image
    console.expect_live()
    console.take()
    click_terminal(console, desktop)
    press_keys(page, "clear; ls -la /etc; touch /home/user/mess\n")
    desktop.wait_for_file("/home/user/mess", timeout=60)
    until(lambda: difference(console.picture(), screen) > 1000, "a mess on the screen")

    desktop.revert(snapshot)
    console.expect_face("paused")
    until(lambda: difference(console.picture(), screen) == 0, "the screen of the snapshot, pixel for pixel")
    assert difference(console.picture(), desktop.screenshot().image) == 0
    # By the button over the picture, and the keyboard is still the guest's.
    console.overlay.get_by_role("button").click()
    console.expect_live()
    until(lambda: desktop.state == "running", "running")
    desktop.succeed("test ! -e /home/user/mess")
    expect(console.root).to_have_class(HELD)
    click_terminal(console, desktop)
    press_keys(page, "touch after\n")
    desktop.wait_for_file("/home/user/after", timeout=60)
    desktop.execute("rm -f /home/user/after")


def ship(screen: Image.Image) -> float:
    """Return where the player's ship is; not a number while it is not drawn."""
    pixels = np.asarray(screen.convert("RGB"))[360:].astype(int)
    magenta = (pixels[..., 0] > 100) & (pixels[..., 1] < 80) & (pixels[..., 2] > 100)
    return float(np.nonzero(magenta)[1].mean()) if magenta.any() else math.nan


def test_a_game_is_played_and_reverted(show: Show, lab: Lab, names: Names) -> None:
    machine = lab.create(names("game"), "invaders")
    _, (console,) = show(machine)
    page = console.page

    def place() -> float:
        with contextlib.suppress(VMLabError):  # in the middle of a revert
            return ship(machine.screenshot().image)
        return math.nan

    def steer(key: str, far: Callable[[float], bool]) -> None:
        end = time.monotonic() + 60
        while not far(place()):
            assert time.monotonic() < end, f"{key} moves no ship; it is at {place()}"
            page.keyboard.press(key, delay=150)

    console.take()
    start = place()
    steer("ArrowLeft", lambda at: at < start - 60)
    machine.snapshot("mid-game")
    kept = place()
    steer("ArrowRight", lambda at: at > start + 60)
    page.keyboard.press("Space")

    # In the console's own menu, as a person would.
    console.choose("revert", "mid-game")
    until(lambda: abs(place() - kept) < 12, "the ship is where it was")
    console.expect_live()
    until(lambda: abs(ship(console.picture()) - kept) < 12, "and so it is on the page")
    expect(console.root).to_have_class(HELD)
    steer("ArrowRight", lambda at: at > kept + 60)


# -- what is not seen costs nothing ----------------------------------------------------------------------------------


def test_what_is_not_seen_has_no_connection(show: Show, tiny: Machine) -> None:
    tall = r"print('tall\n' * 300)"
    nb, (console,) = show(tiny, more=(tall,))
    nb.run(2)
    page = nb.page
    console.root.scroll_into_view_if_needed()
    console.expect_live()
    assert viewers(tiny) == 1

    console.tool("minimise")
    until(lambda: viewers(tiny) == 0, "no connection of a minimised console")
    expect(console.root.locator(".vmlab-console-still")).to_be_visible()
    tiny.succeed("echo still-alive >/run/alive")
    console.root.click(position={"x": 60, "y": 50})
    console.expect_live()
    assert viewers(tiny) == 1
    console.take()
    arrives(tiny, console, "restored")
    console.leave()

    scroller = page.locator(".jp-NotebookPanel:visible .jp-WindowedPanel-outer")
    scroller.evaluate("outer => outer.scrollTop = outer.scrollHeight")
    expect(console.root).not_to_be_in_viewport()
    until(lambda: viewers(tiny) == 0, "no connection of a console that is scrolled away")
    scroller.evaluate("outer => outer.scrollTop = 0")
    until(lambda: viewers(tiny) == 1, "a connection again")
    console.expect_live()

    # Behind another tab.
    nb.menu("File", "New Launcher")
    expect(page.locator(".jp-Launcher")).to_be_visible(timeout=SOON)
    until(lambda: viewers(tiny) == 0, "no connection of a console behind another tab")
    page.locator(".lm-DockPanel-tabBar .lm-TabBar-tab").first.click()
    until(lambda: viewers(tiny) == 1, "a connection again")
    console.expect_live()


def test_minimised_and_restored_by_keyboard(show: Show, tiny: Machine) -> None:
    _, (console,) = show(tiny)
    page = console.page
    console.root.locator('[data-tool="minimise"]').focus()
    page.keyboard.press("Enter")
    expect(console.root).to_be_focused()
    expect(console.root).to_have_role("button")
    expect(console.root).to_have_accessible_name(f"Restore the screen of {tiny.name}")
    until(lambda: viewers(tiny) == 0, "no connection of a minimised console")
    page.keyboard.press("Enter")
    console.expect_live()
    expect(console.shield).to_be_focused()
    page.keyboard.press("Enter")
    expect(console.root).to_have_class(HELD)
    arrives(tiny, console, "by-keyboard")


def test_eight_consoles_on_a_page(show: Show, lab: Lab, names: Names) -> None:
    first = lab.create(names("eight"), "tiny")
    machines = [first, *(first.fork(names("eight")) for _ in range(7))]
    _, consoles = show(*machines)
    for console in consoles:
        console.root.scroll_into_view_if_needed()
        console.expect_live()
        colours = console.picture().getcolors(1 << 20)
        assert colours is not None
        assert len(colours) > 1, "an empty screen"
    consoles[-1].take()
    arrives(machines[-1], consoles[-1], "the-eighth")
    for machine in machines[:-1]:
        assert machine.execute("cat /run/arrived").stdout != "the-eighth\n"


# -- what comes and goes ---------------------------------------------------------------------------------------------


def test_states_are_shown_and_help_is_offered(show: Show, tiny: Machine) -> None:
    _, (console,) = show(tiny)
    tiny.pause()
    console.expect_face("paused")
    console.overlay.get_by_role("button", name="Resume").click()
    console.expect_live()
    until(lambda: tiny.state == "running", "running again")

    tiny.kill()
    console.expect_face("off")
    expect(console.overlay).to_contain_text(f"{tiny.name} is off")
    console.overlay.get_by_role("button", name="Start").click()
    until(lambda: tiny.state == "running", "running again")
    console.expect_live()
    tiny.wait_for_agent()
    console.take()
    arrives(tiny, console, "started")

    # Changed from elsewhere: the page hears of it.
    tiny.kill()
    console.expect_face("off")
    tiny.start()
    console.expect_live()
    name = tiny.name
    tiny.delete()
    console.expect_face("gone")
    expect(console.overlay).to_contain_text(f"no machine named {name}")


def test_the_kernel_has_no_say(show: Show, jupyter: Server, tiny: Machine) -> None:
    nb, (console,) = show(tiny, more=("import time\ntime.sleep(60)",))
    page = nb.page
    nb.start(2)
    expect(nb.prompt(2)).to_have_text("[*]:")
    console.take()
    arrives(tiny, console, "busy")
    expect(nb.prompt(2)).to_have_text("[*]:")
    console.leave()

    nb.menu("Kernel", "Restart Kernel…")
    page.locator(".jp-Dialog button.jp-mod-warn, .jp-Dialog button.jp-mod-accept").last.click()
    expect(page.locator(".jp-Dialog")).to_have_count(0)
    nb.wait_for_kernel()
    console.expect_live()
    console.take()
    arrives(tiny, console, "restarted")
    console.leave()

    # A page that is loaded anew has no widget any more; the console needs none.
    nb.menu("File", "Save Notebook")
    expect(page.locator(".jp-NotebookPanel .jp-mod-dirty, .lm-TabBar-tab.jp-mod-dirty")).to_have_count(0)
    again = Notebook(page, page.url)
    console = Console(again.output(1), tiny.name)
    console.expect_live()
    expect(again.output(1)).not_to_contain_text("model not found")
    console.take()
    arrives(tiny, console, "reloaded")
    console.leave()
    console.tool("popout")
    tab = Console(page.locator(".jp-vmlab-console-tab"), tiny.name)
    tab.expect_live()
    expect(tab.canvas).to_be_focused()
    arrives(tiny, tab, "in-a-tab")


def test_a_saved_console_of_a_machine_that_is_gone(show: Show, lab: Lab, tiny: Machine) -> None:
    """A picture, whatever has its name now."""
    nb, _ = show(tiny)
    page, name, width = nb.page, tiny.name, tiny.screenshot().width
    nb.menu("File", "Save Notebook")
    expect(page.locator(".lm-TabBar-tab.jp-mod-dirty")).to_have_count(0)
    tiny.delete()
    lab.create(name, "tiny")
    nb.menu("Kernel", "Restart Kernel…")
    page.locator(".jp-Dialog button.jp-mod-warn, .jp-Dialog button.jp-mod-accept").last.click()
    again = Notebook(page, page.url)
    expect(again.output(1).locator("img")).to_have_js_property("naturalWidth", width, timeout=SOON)
    expect(again.output(1)).not_to_contain_text("model not found")
    expect(again.output(1)).not_to_contain_text("Loading widget")
    expect(again.output(1).locator(".vmlab-console")).to_have_count(0)
    again.output(1).get_by_role("button", name=f"Open {name}").click()
    Console(page.locator(".jp-vmlab-console-tab"), name).expect_live()


def test_the_serial_line(open_notebook: Open, tiny: Machine) -> None:
    nb = open_notebook(LOAD, f"%vm console --serial {tiny.name}", "1")
    page = nb.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    nb.run(0)
    line = Console(nb.run(1), tiny.name, "Serial line")
    line.expect_face("live")
    rows = line.root.locator(".xterm-rows")
    line.root.locator(".xterm-screen").click()
    page.keyboard.type("echo serial-$((40+2)) | tee /run/serial\n")
    tiny.wait_until_succeeds("grep -qx serial-42 /run/serial", timeout=60)
    expect(rows).to_contain_text("serial-42")
    # Keys of commands: not for the notebook.
    for key in ("d", "d", "b", "x", "Control+u"):
        page.keyboard.press(key)
    expect(nb.cells).to_have_count(3)

    # Copy: the word that is double-clicked.
    page.keyboard.type("clear; echo; echo unmistakable\n")
    word = rows.locator("div", has_text=re.compile("^unmistakable"))
    expect(word).to_be_visible(timeout=SOON)
    word.dblclick(position={"x": 30, "y": 6})
    page.keyboard.press("Control+Shift+c")
    until(
        lambda: page.evaluate("navigator.clipboard.readText()") == "unmistakable", "the word in the clipboard"
    )
    # Paste.
    page.evaluate("navigator.clipboard.writeText('echo pasted-text >/run/pasted')")
    page.keyboard.press("Control+Shift+v")
    expect(rows).to_contain_text("pasted-text")
    page.keyboard.press("Enter")
    tiny.wait_until_succeeds("grep -qx pasted-text /run/pasted", timeout=60)
    # It goes on through a revert.
    snapshot = tiny.snapshot("line")
    tiny.revert(snapshot)
    line.expect_face("live")
    line.root.locator(".xterm-screen").click()
    page.keyboard.type("echo after >/run/after\n")
    tiny.wait_until_succeeds("grep -qx after /run/after", timeout=60)


def test_the_serial_line_by_keyboard(open_notebook: Open, tiny: Machine) -> None:
    nb = open_notebook(LOAD, f"%vm console --serial {tiny.name}", "1")
    page = nb.page
    nb.run(0)
    line = Console(nb.run(1), tiny.name, "Serial line")
    line.expect_face("live")
    stage = line.root.locator(".vmlab-console-stage")
    status = line.root.locator(".vmlab-console-status")
    line.root.locator('[data-tool="minimise"]').focus()
    page.keyboard.press("Tab")
    expect(stage).to_be_focused()
    page.keyboard.press("Enter")
    expect(line.root).to_have_class(HELD)
    expect(status).to_have_text("Ctrl+Alt to leave")
    # A shell asks where the cursor is, with its prompt, which is in the log: that is not answered again.
    expect(line.root.locator(".xterm-rows")).not_to_contain_text(re.compile(r"\d+R"))
    # Tab is the guest's: the shell completes the name.
    tiny.succeed("touch /run/tabbed")
    page.keyboard.type("ls /run/tab")
    page.keyboard.press("Tab")
    page.keyboard.type(" >/run/listed\n")
    tiny.wait_until_succeeds("grep -qx /run/tabbed /run/listed", timeout=60)
    press_chord(page)
    expect(line.root).not_to_have_class(HELD)
    expect(stage).to_be_focused()
    page.keyboard.press("Tab")
    expect(line.root.locator(":focus")).to_have_count(0)

    line.tool("minimise")
    expect(line.root).to_have_accessible_name(f"Restore the serial line of {tiny.name}")
    assert line.root.evaluate("root => root.offsetWidth") < 200
    tiny.succeed("echo missed-nothing >/dev/ttyS0")
    line.root.click()
    expect(line.root.locator(".xterm-rows")).to_contain_text("missed-nothing")
    expect(line.root).to_have_accessible_name(f"Serial line of {tiny.name}")


def test_a_console_goes_with_its_machine_when_that_is_renamed(
    show: Show, lab: Lab, names: Names, tiny: Machine
) -> None:
    _, (console,) = show(tiny)
    new = names("renamed")
    lab.machine(tiny.name).rename(new)
    renamed = Console(console.page, new)
    renamed.expect_live()
    expect(console.root).to_have_count(0)
    renamed.take()
    arrives(lab.machine(new), renamed, "renamed")


def test_a_page_that_could_not_load_the_console_tries_again(open_notebook: Open, tiny: Machine) -> None:
    nb = open_notebook(LOAD, f"%vm console {tiny.name}")
    page = nb.page
    page.route("**/vmlab/static/console.js*", lambda route: route.abort())
    nb.run(0)
    output = nb.run(1)
    expect(output).to_contain_text("the Jupyter server cannot be reached")
    page.unroute("**/vmlab/static/console.js*")
    output.get_by_role("button", name="Try again").click()
    console = Console(output, tiny.name)
    console.expect_live()
    expect(output).not_to_contain_text("cannot be reached")
    expect(console.root.locator('[data-tool="popout"]')).to_be_visible()


def test_pictures_where_there_is_no_server(open_notebook: Open, tiny: Machine) -> None:
    nb = open_notebook(LOAD, f"%vm console {tiny.name}")
    page = nb.page
    page.evaluate("document.getElementById('jupyter-config-data').remove()")
    nb.run(0)
    output = nb.run(1)
    screen = output.get_by_role("application", name=f"Screen of {tiny.name}")
    expect(screen.locator("img")).to_have_js_property("naturalWidth", tiny.screenshot().width, timeout=SOON)
    screen.focus()
    expect(output).to_contain_text("Ctrl+Alt, or a click elsewhere, to leave")
    page.keyboard.type("echo by-pictures >/run/arrived\n")
    tiny.wait_until_succeeds("grep -qx by-pictures /run/arrived", timeout=60)
    page.keyboard.press("Tab")
    expect(screen).to_be_focused()
    press_chord(page)
    expect(output.get_by_role("button", name="Minimise")).to_be_focused()


def test_a_tab_whose_machine_was_deleted_says_so(page: Page, jupyter: Server, tiny: Machine) -> None:
    open_lab(page, jupyter.url())
    open_tab(page, tiny)
    console = Console(page, tiny.name)
    console.expect_live()
    page.wait_for_timeout(2000)  # JupyterLab saves its layout a little later
    tiny.delete()
    console.expect_face("gone")
    open_lab(page, jupyter.url(reset=False))
    expect(console.overlay).to_contain_text(f"There is no machine named {tiny.name}", timeout=SOON)


def open_tab(page: Page, machine: Machine) -> None:
    """Open the screen of a machine in a tab, as a console under a cell does."""
    detail = {"machine": machine.name, "kind": "vnc"}
    page.evaluate(
        "detail => document.dispatchEvent(new CustomEvent('vmlab:open-console', {detail}))",
        detail,
    )


def test_the_server_is_restarted(page: Page, jupyter: Server, tiny: Machine) -> None:
    """The last of this module: kernels end with their server."""
    open_lab(page, jupyter.url())
    open_tab(page, tiny)
    console = Console(page, tiny.name)
    console.expect_live()
    page.locator('.jp-SideBar [data-id="vmlab-panel"]').click()
    card = page.locator(f'.jp-vmlab-card[data-machine="{tiny.name}"]')
    expect(card).to_have_attribute("data-state", "running")
    # JupyterLab's own dialog, when the server is away for long: on a busy host it may be.
    away = page.locator(".jp-Dialog", has_text="Server Connection Error")
    page.add_locator_handler(away, lambda dialog: dialog.locator("button").last.click())
    jupyter.stop()
    until(lambda: viewers(tiny) == 0, "the server is gone, and its connections with it")
    expect(console.root).not_to_have_attribute("data-face", "live", timeout=SOON)
    jupyter.start()
    console.expect_live()
    console.take()
    arrives(tiny, console, "restarted")
    tiny.pause()
    expect(card).to_have_attribute("data-state", "paused", timeout=SOON)
    tiny.resume()
