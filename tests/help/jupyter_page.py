"""A real JupyterLab in a real Chromium, driven as a person would; also used by scripts/take_pictures.py.

Everything that Jupyter writes (settings, workspaces, runtime files) goes into a folder of its own, so that neither a
developer's settings nor the last test's open tabs have a say.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import nbformat
from PIL import Image
from playwright.sync_api import ConsoleMessage, Error, Locator, Page, expect, sync_playwright

from vmlab.errors import VMLabError
from vmlab.machine import Machine

#: Milliseconds: JupyterLab's first start on a busy machine; and a cell that starts a guest.
OPEN, CELL = 90_000, 120_000
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}


def chromium() -> str | None:
    """Return the path of the browser; None if there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Server:
    """A JupyterLab server; with the same port, login and files again after a restart.

    Parameters
    ----------
    folder
        Its files.
    own
        Where what it writes for itself goes.
    environment
        More variables.
    base_url
        The prefix of all its addresses, as JupyterHub gives one to each user.
    python
        The interpreter whose JupyterLab it is.
    """

    def __init__(
        self,
        folder: Path,
        own: Path,
        *,
        environment: Mapping[str, str] | None = None,
        base_url: str = "/",
        python: str = sys.executable,
    ) -> None:
        self.port, self.token, self.base_url = _free_port(), secrets.token_hex(16), base_url
        self.log = own / "jupyter.log"
        self._folder, self._python = folder, python
        self._env = os.environ | {
            "JUPYTER_TOKEN": self.token,
            "JUPYTER_CONFIG_DIR": str(own / "config"),
            "JUPYTER_DATA_DIR": str(own / "data"),
            "JUPYTERLAB_SETTINGS_DIR": str(own / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(own / "workspaces"),
            "IPYTHONDIR": str(own / "ipython"),
            **(environment or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None
        # On a busy host a kernel may take longer than JupyterLab's one second to say what can be completed.
        completer = own / "settings/@jupyterlab/completer-extension/manager.jupyterlab-settings"
        completer.parent.mkdir(parents=True, exist_ok=True)
        completer.write_text(json.dumps({"providerTimeout": 20_000}), encoding="utf-8")

    @property
    def address(self) -> str:
        """Where it is, with the prefix and a slash at the end."""
        return f"http://127.0.0.1:{self.port}{self.base_url}"

    def url(self, path: str = "", *, reset: bool = True) -> str:
        """Return the address of a notebook below the server's folder; of JupyterLab alone without one.

        Parameters
        ----------
        path
            The notebook.
        reset
            Forget which tabs were open.
        """
        tree = f"/tree/{path}" if path else ""
        return f"{self.address}lab{tree}?token={self.token}{'&reset' if reset else ''}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        argv = [self._python, "-m", "jupyterlab", "--no-browser", "--ServerApp.port_retries=0"]
        argv += [f"--ServerApp.port={self.port}", f"--ServerApp.root_dir={self._folder}"]
        argv += [f"--ServerApp.base_url={self.base_url}", "--ServerApp.log_level=WARN"]
        # As scripts/lab does it.
        argv.append("--KernelManager.transport=ipc")
        if os.geteuid() == 0:
            argv.append("--allow-root")
        with self.log.open("ab") as output:
            # Its own group, so that a Ctrl-C for us is not one for it as well: we end it in order.
            process = subprocess.Popen(
                argv,
                env=self._env,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._process = process
        started = time.monotonic()
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.address}api", timeout=2).close()
                break
            if process.poll() is not None or time.monotonic() - started > OPEN / 1000:
                self.stop()
                raise RuntimeError(
                    f"JupyterLab did not start:\n{self.log.read_text(errors='replace')[-3000:]}"
                )
            time.sleep(0.1)

    def stop(self) -> None:
        """End it, and its kernels with it."""
        process, self._process = self._process, None
        if process is None:
            return
        # SIGTERM ends the kernels too, without asking.
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _settings(own: Path, plugin: str, values: dict[str, object]) -> None:
    path = own / "settings" / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


@contextlib.contextmanager
def server(
    folder: Path,
    own: Path,
    *,
    theme: str = "light",
    environment: Mapping[str, str] | None = None,
    base_url: str = "/",
    python: str = sys.executable,
) -> Iterator[Server]:
    """Run JupyterLab over ``folder`` while the block runs; what it writes for itself goes below ``own``."""
    _settings(own, "apputils-extension/themes", {"theme": THEMES[theme]})
    # All cells are in the page at once: the browser is no place to test JupyterLab's scrolling.
    _settings(own, "notebook-extension/tracker", {"windowingMode": "none"})
    # Sockets need short paths.
    with tempfile.TemporaryDirectory(prefix="vmj-") as runtime:
        environment = {"JUPYTER_RUNTIME_DIR": runtime, **(environment or {})}
        found = Server(folder, own, environment=environment, base_url=base_url, python=python)
        try:
            found.start()
            yield found
        finally:
            found.stop()


@contextlib.contextmanager
def browser_page(
    *, width: int = 1280, height: int = 900, scale: float = 1, dark: bool = False
) -> Iterator[Page]:
    """Open an empty page in Chromium."""
    with sync_playwright() as playwright:
        # --no-sandbox: Chromium's own sandbox works neither for root nor in most containers; it sees only our pages.
        browser = playwright.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--disable-gpu", "--font-render-hinting=none"]
        )
        try:
            context = browser.new_context(
                viewport={"width": width, "height": height},
                device_scale_factor=scale,
                color_scheme="dark" if dark else "light",
            )
            page = context.new_page()
            page.set_default_timeout(30_000)
            yield page
        finally:
            browser.close()


def write_notebook(path: Path, *cells: str) -> Path:
    """Write a notebook of code cells; one that begins with ``# `` and has no code is text."""
    nb = nbformat.v4.new_notebook()
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    make = {True: nbformat.v4.new_markdown_cell, False: nbformat.v4.new_code_cell}
    nb.cells = [make[text.startswith("# ")](text) for text in cells]
    nbformat.write(nb, path)
    return path


class Notebook:
    """A notebook that is open in JupyterLab.

    Parameters
    ----------
    page
        An empty page of the browser.
    url
        Its address; None if the page is on its way there.
    """

    def __init__(self, page: Page, url: str | None = None) -> None:
        self.page = page
        # On a busy host JupyterLab sometimes asks which kernel to take although the notebook names it.
        asked = page.locator(".jp-Dialog", has_text="Select Kernel")
        page.add_locator_handler(asked, lambda dialog: dialog.locator(".jp-mod-accept").click())
        if url is not None:
            page.goto(url)
        expect(page.locator(".jp-Notebook .jp-Cell").first).to_be_visible(timeout=OPEN)
        self.wait_for_kernel()

    def wait_for_kernel(self) -> None:
        """Wait until the kernel answers and has nothing to do."""
        status = self.page.locator(".jp-NotebookPanel:visible .jp-Notebook-ExecutionIndicator")
        expect(status).to_have_attribute("data-status", "idle", timeout=OPEN)

    @property
    def cells(self) -> Locator:
        """All cells."""
        return self.page.locator(".jp-NotebookPanel:visible .jp-Notebook .jp-Cell")

    def cell(self, index: int) -> Locator:
        """Return a cell, counted from 0."""
        return self.cells.nth(index)

    def output(self, index: int) -> Locator:
        """Return the output area of a cell."""
        return self.cell(index).locator(".jp-Cell-outputArea")

    def prompt(self, index: int) -> Locator:
        """Return what stands before a cell: ``[ ]:``, ``[*]:`` while it runs, ``[3]:`` when it has ended."""
        return self.cell(index).locator(".jp-InputPrompt")

    def start(self, index: int) -> None:
        """Run a cell, and do not wait for its end."""
        before = self.prompt(index).inner_text()
        for _ in range(5):
            # While JupyterLab still arranges its panels, a click or a key can go astray.
            self.cell(index).locator(".cm-content").click(position={"x": 2, "y": 2})
            self.page.keyboard.press("Control+Enter")
            with contextlib.suppress(AssertionError):
                expect(self.prompt(index)).not_to_have_text(before, timeout=3000)
                return
        raise AssertionError(f"cell {index} does not start")

    def wait(self, index: int, timeout: int = CELL) -> Locator:
        """Wait until a cell has ended, and return its output area."""
        expect(self.prompt(index)).to_have_text(re.compile(r"\[\d+\]:"), timeout=timeout)
        return self.output(index)

    def run(self, index: int, timeout: int = CELL) -> Locator:
        """Run a cell, wait for its end, and return its output area."""
        for _ in range(3):
            self.start(index)
            expect(self.prompt(index)).not_to_have_text("[*]:", timeout=timeout)
            if self.prompt(index).inner_text().strip() != "[ ]:":
                break
            # On a busy host JupyterLab sometimes replaces its connection to a kernel that it has just shown as idle,
            # and what it had sent is lost.
        return self.wait(index, timeout)

    def menu(self, menu: str, item: str) -> None:
        """Choose an item of the menu bar."""
        self.page.locator(".lm-MenuBar-item", has_text=re.compile(f"^{menu}$")).click()
        self.page.locator(".lm-Menu-item", has_text=re.compile(f"^{item}")).first.click()

    def expect_cells(self, *sources: str) -> None:
        """Wait until these are the cells, no more and no fewer, and nothing else is in them."""
        expect(self.cells).to_have_count(len(sources))
        for index, source in enumerate(sources):
            expect(self.cell(index).locator(".cm-content")).to_have_text(source.replace("\n", ""))


def open_lab(page: Page, url: str) -> None:
    """Open JupyterLab, and wait until it is there."""
    page.goto(url)
    expect(page.locator("#jp-main-dock-panel")).to_be_visible(timeout=OPEN)
    expect(page.locator("#jupyterlab-splash")).to_have_count(0, timeout=OPEN)
    if "reset" in url:
        # The launcher, which opens where there are no tabs, takes the focus a moment later, from whoever has it.
        expect(page.locator(".jp-Launcher")).to_be_focused(timeout=OPEN)


def run_from_palette(page: Page, label: str) -> None:
    """Run a command by the palette."""
    search = page.locator(".lm-CommandPalette-input:visible")

    def opened() -> bool:
        # JupyterLab reads its keyboard shortcuts after it has shown its page: a first press may be too early.
        if not search.count():
            page.keyboard.press("Control+Shift+c")
            page.wait_for_timeout(500)
        return search.count() > 0

    until(opened, "the command palette")
    search.fill(label)
    expect(page.locator(".lm-CommandPalette-item:visible")).not_to_have_count(0)
    search.press("Enter")


def until(true: Callable[[], object], what: str | Callable[[], str], seconds: float = 60) -> None:
    """Wait until something outside of the page is so."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise AssertionError(f"{seconds:.0f} s in vain: {what if isinstance(what, str) else what()}")
        time.sleep(0.1)


def answer(machine: Machine, command: str) -> str:
    """Return what a command in the guest says; nothing while there is nobody to ask, as in the middle of a revert."""
    with contextlib.suppress(VMLabError):
        return machine.execute(command).stdout
    return ""


def viewers(machine: Machine) -> int:
    """How many VNC connections QEMU has now."""
    clients: list[Any] = machine.domain.qmp("query-vnc")["clients"]
    return len(clients)


class Troubles:
    """What a page complains about, to whoever opens the browser's developer tools."""

    #: The browser and noVNC tell of connections that fail: to a server that is restarted, to a machine that is off; and
    #: ipywidgets of widgets whose kernel has gone.
    _EXPECTED = re.compile(
        "Failed to load resource|WebSocket connection to|net::ERR_|Failed when connecting|Error: widget model not found"
    )

    def __init__(self, page: Page) -> None:
        self.found: list[str] = []
        self._page = page
        page.on("pageerror", self._failed)
        page.on("console", self._heard)

    def stop(self) -> None:
        """Listen no more."""
        self._page.remove_listener("pageerror", self._failed)
        self._page.remove_listener("console", self._heard)

    def _failed(self, error: Error) -> None:
        stack = error.stack or ""
        # JupyterLab's own requests fail while its server is restarted. And ipywidgets asks a notebook's session for its
        # kernel without looking whether there is one.
        foreign = "Failed to fetch" in error.message or (
            "/@jupyter-widgets/jupyterlab-manager/" in stack and "null (reading 'kernel')" in error.message
        )
        if "/vmlab/" in stack or not foreign:
            self.found.append(f"{error.message}\n{error.stack}")

    def _heard(self, message: ConsoleMessage) -> None:
        where = message.location.get("url", "")
        ours = "vmlab" in message.text or "vmlab" in where
        if message.type == "error" and ours and not self._EXPECTED.match(message.text):
            self.found.append(f"{where}: {message.text}")


#: The key of a US keyboard for each character, and for those above it.
_KEYS = {
    "`": "Backquote", "-": "Minus", "=": "Equal", "[": "BracketLeft", "]": "BracketRight", "\\": "Backslash",
    ";": "Semicolon", "'": "Quote", ",": "Comma", ".": "Period", "/": "Slash", " ": "Space", "\n": "Enter",
    **{char: f"Key{char.upper()}" for char in "abcdefghijklmnopqrstuvwxyz"},
    **{char: f"Digit{char}" for char in "0123456789"},
}  # fmt: skip
_SHIFTED = dict(zip('~_+{}|:"<>?!@#$%^&*()', "`-=[]\\;',./1234567890", strict=True))


def press_keys(page: Page, text: str, *, pace: float = 40) -> None:
    """Type text as fingers do, Shift included: a guest is told of keys, and makes the characters of them itself.

    Parameters
    ----------
    pace
        Milliseconds between two keys. A keyboard remembers sixteen; whoever is faster than the guest loses some.
    """
    for char in text:
        plain = _SHIFTED.get(char, char.lower())
        shift = "Shift+" if plain != char else ""
        page.keyboard.press(f"{shift}{_KEYS[plain]}", delay=pace / 2)
        page.wait_for_timeout(pace / 2)


def press_chord(page: Page) -> None:
    """Press the left Ctrl and Alt and let go."""
    for act, key in (("down", "ControlLeft"), ("down", "AltLeft"), ("up", "AltLeft"), ("up", "ControlLeft")):
        getattr(page.keyboard, act)(key)


class Console:
    """A machine's screen or serial line on the page.

    Parameters
    ----------
    scope
        The part of the page that it is in.
    machine
        Its name.
    kind
        ``Screen`` or ``Serial line``.
    """

    def __init__(self, scope: Page | Locator, machine: str, kind: str = "Screen") -> None:
        self.page = scope if isinstance(scope, Page) else scope.page
        view = {"Screen": "vnc", "Serial line": "serial"}[kind]
        self.root = scope.locator(f'.vmlab-console-{view}[data-machine="{machine}"]')
        self.canvas = self.root.locator(".vmlab-console-screen canvas")
        self.shield = self.root.locator(".vmlab-console-shield")
        self.overlay = self.root.locator(".vmlab-console-overlay")

    def expect_face(self, face: str, timeout: float = CELL) -> None:
        """Wait until it shows this: ``live``, ``off``, ``paused`` ..."""
        expect(self.root).to_have_attribute("data-face", face, timeout=timeout)

    def expect_live(self, timeout: float = CELL) -> None:
        """Wait until the guest's screen is there, and no still picture of it."""
        self.expect_face("live", timeout)
        expect(self.canvas).to_be_visible(timeout=timeout)
        expect(self.root.locator(".vmlab-console-still")).to_be_hidden(timeout=timeout)

    def take(self) -> None:
        """Click it, so that the guest gets keyboard and mouse."""
        self.shield.click()
        expect(self.root).to_have_class(re.compile(r"\bvmlab-held\b"))
        expect(self.canvas).to_be_focused()

    def leave(self) -> None:
        """Press the chord that gives the keyboard back."""
        press_chord(self.page)
        expect(self.root).not_to_have_class(re.compile(r"\bvmlab-held\b"))

    def geometry(self) -> tuple[float, float, float]:
        """Return where on the page the screen begins, from left and from the top, and how much it is scaled."""
        left, top, scale = self.canvas.evaluate(
            "c => { const box = c.getBoundingClientRect(); return [box.left, box.top, box.width / c.width] }"
        )
        return left, top, scale

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return where on the page the middle of a pixel of the guest is."""
        left, top, scale = self.geometry()
        return left + (x + 0.5) * scale, top + (y + 0.5) * scale

    def point(self, x: float, y: float) -> None:
        """Move the mouse to a pixel of the guest."""
        self.page.mouse.move(*self.place(x, y))

    def picture(self) -> Image.Image:
        """Return what the canvas holds, pixel for pixel."""
        data: str = self.canvas.evaluate("canvas => canvas.toDataURL('image/png')")
        return Image.open(io.BytesIO(base64.b64decode(data.partition("base64,")[2]))).convert("RGB")

    def tool(self, name: str) -> None:
        """Press a button of the bar."""
        self.root.locator(f'.vmlab-console-bar [data-tool="{name}"]').click()

    def choose(self, tool: str, item: str) -> None:
        """Choose an item of the menu of a button."""
        self.tool(tool)
        self.root.locator(".vmlab-console-item", has_text=item).first.click()
