"""A real JupyterLab in a real Chromium, driven as a person would; also used by scripts/take_pictures.py.

Everything that Jupyter writes (settings, workspaces, runtime files) goes into a folder of its own, so that neither a
developer's settings nor the last test's open tabs have a say.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
from playwright.sync_api import Locator, Page, expect, sync_playwright

#: Milliseconds: JupyterLab's first start on a busy machine; and a cell that starts a guest.
OPEN, CELL = 90_000, 120_000
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}


def chromium() -> str | None:
    """Return the path of the browser; None if there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@dataclass(frozen=True)
class Server:
    """A running JupyterLab server."""

    port: int
    token: str

    def url(self, path: str) -> str:
        """Return the address of a notebook below the server's folder."""
        return f"http://127.0.0.1:{self.port}/lab/tree/{path}?token={self.token}&reset"


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
    folder: Path, own: Path, *, theme: str = "light", environment: dict[str, str] | None = None
) -> Iterator[Server]:
    """Run JupyterLab over ``folder`` while the block runs; what it writes for itself goes below ``own``."""
    _settings(own, "apputils-extension/themes", {"theme": THEMES[theme]})
    # All cells are in the page at once: the browser is no place to test JupyterLab's scrolling.
    _settings(own, "notebook-extension/tracker", {"windowingMode": "none"})
    found = Server(_free_port(), secrets.token_hex(16))
    env = os.environ | {
        "JUPYTER_TOKEN": found.token,
        "JUPYTER_CONFIG_DIR": str(own / "config"),
        "JUPYTER_DATA_DIR": str(own / "data"),
        "JUPYTER_RUNTIME_DIR": str(own / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(own / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(own / "workspaces"),
        "IPYTHONDIR": str(own / "ipython"),
        **(environment or {}),
    }
    argv = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ServerApp.port_retries=0"]
    argv += [f"--ServerApp.port={found.port}", f"--ServerApp.root_dir={folder}", "--ServerApp.log_level=WARN"]
    if os.geteuid() == 0:
        argv.append("--allow-root")
    log = own / "jupyter.log"
    with log.open("wb") as output:
        # Its own group, so that a Ctrl-C for us is not one for it as well: we end it in order.
        process = subprocess.Popen(
            argv,
            env=env,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        started = time.monotonic()
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{found.port}/api", timeout=2).close()
                break
            if process.poll() is not None or time.monotonic() - started > OPEN / 1000:
                raise RuntimeError(f"JupyterLab did not start:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.1)
        yield found
    finally:
        # SIGTERM ends the kernels too, without asking.
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


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
        Its address.
    """

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        # On a busy host JupyterLab sometimes asks which kernel to take although the notebook names it.
        asked = page.locator(".jp-Dialog", has_text="Select Kernel")
        page.add_locator_handler(asked, lambda dialog: dialog.locator(".jp-mod-accept").click())
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
        self.start(index)
        return self.wait(index, timeout)

    def menu(self, menu: str, item: str) -> None:
        """Choose an item of the menu bar."""
        self.page.locator(".lm-MenuBar-item", has_text=re.compile(f"^{menu}$")).click()
        self.page.locator(".lm-Menu-item", has_text=re.compile(f"^{item}")).first.click()
