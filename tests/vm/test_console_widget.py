"""Consoles in real kernels with real guests: what a notebook keeps, and what a page without a server gets."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient
from PIL import Image

from vmlab.lab import Lab
from vmlab.machine import Machine

VIEW = "application/vnd.jupyter.widget-view+json"
SAVED = "application/vnd.vmlab.console+json"
STATE = "application/vnd.jupyter.widget-state+json"


def run(*cells: str) -> nbformat.NotebookNode:
    """Run a notebook without a browser, and return it as it would be saved."""
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    NotebookClient(nb, timeout=120, kernel_name="python3").execute()
    return nb


def picture(output: Any) -> Image.Image:
    """Return the picture of an output."""
    return Image.open(io.BytesIO(base64.b64decode(output["data"]["image/png"]))).convert("RGB")


def test_a_saved_notebook_keeps_a_picture(lab: Lab, tiny: Machine, desktop: Machine) -> None:
    size = tiny.screenshot().size
    nb = run(
        f"%load_ext vmlab\nimport vmlab\nlab = vmlab.Lab({str(lab.home)!r})\ntiny = lab[{tiny.name!r}]",
        "one = tiny.console()\none",
        f"%vm console {tiny.name} {desktop.name}",
        f"%vm console {tiny.name} --serial",
        "one.close()",
        "tiny.kill()\ntiny.console()",
    )
    _, one, several, serial, closing, off = (cell.outputs for cell in nb.cells)
    [output] = one
    # Closed later, so the view has gone and the picture stayed.
    assert set(output["data"]) == {"text/plain", "image/png"}
    assert picture(output).size == size
    assert closing == []
    [output] = several
    assert {SAVED, "text/plain", "image/png"} == set(output["data"])
    beside = picture(output)
    assert beside.width == 2 * 480 + 8
    assert len(beside.crop((488, 0, beside.width, beside.height)).getcolors(1 << 20) or ()) > 100, (
        "no desktop"
    )
    for name in (tiny.name, desktop.name):
        assert f"Screen of {name} (running)" in output["data"]["text/plain"]
    [output] = serial
    assert "Serial line of" in output["data"]["text/plain"]
    [output] = off
    assert "image/png" not in output["data"]
    assert f"Screen of {tiny.name} (off)" in output["data"]["text/plain"]
    for widget in nb.metadata["widgets"][STATE]["state"].values():
        assert "iVBOR" not in (state := json.dumps(widget)), "a picture in the state"
        # Its script is saved with each widget.
        assert len(state) < 10_000


class Page:
    """The front end's side of one widget, without a browser."""

    def __init__(self, client: BlockingKernelClient) -> None:
        self.client = client
        self.comm = ""
        self.state: dict[str, Any] = {}

    def execute(self, code: str) -> list[dict[str, Any]]:
        """Run code; return what it displayed."""
        shown: list[dict[str, Any]] = []

        def heard(message: dict[str, Any]) -> None:
            if message["msg_type"] == "comm_open" and "_esm" in message["content"]["data"]["state"]:
                self.comm = message["content"]["comm_id"]
                self.state = message["content"]["data"]["state"]
            elif message["msg_type"] in ("display_data", "error", "stream"):
                shown.append(message["content"])

        # With what a front end says of the cell.
        message = self.client.session.msg("execute_request", {"code": code, "silent": False})
        message["metadata"] = {"cellId": "a-cell"}
        self.client.shell_channel.send(message)
        while True:
            heard(reply := self.client.get_iopub_msg(timeout=60))
            ours = reply["parent_header"].get("msg_id") == message["header"]["msg_id"]
            if ours and reply["content"].get("execution_state") == "idle":
                return shown

    def say(self, **words: Any) -> tuple[dict[str, Any], list[bytes]]:
        """Send a message as the page does, and return the answer."""
        content = {"comm_id": self.comm, "data": {"method": "custom", "content": words}}
        self.client.shell_channel.send(self.client.session.msg("comm_msg", content))
        return self.heard()

    def heard(self, timeout: float = 30) -> tuple[dict[str, Any], list[bytes]]:
        """Return the next message of the widget, and what came with it."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            message = self.client.get_iopub_msg(timeout=timeout)
            assert message["msg_type"] not in ("stream", "error"), message["content"]
            if message["msg_type"] == "comm_msg" and message["content"]["data"].get("method") == "custom":
                return message["content"]["data"]["content"], [bytes(b) for b in message["buffers"]]
        raise AssertionError("no answer")


def until_gone(pid: int) -> None:
    """Wait until there is no such process any more, not even a zombie."""
    end = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < end, f"{pid} is still there"
        time.sleep(0.1)


@pytest.fixture
def page() -> Iterator[Page]:
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        yield Page(client)
    finally:
        client.stop_channels()
        with contextlib.suppress(Exception):
            manager.shutdown_kernel(now=True)


def test_a_page_without_a_server_gets_pictures(lab: Lab, desktop: Machine, page: Page) -> None:
    [shown] = page.execute(f"import vmlab\nvmlab.Lab({str(lab.home)!r})[{desktop.name!r}].console()")
    assert VIEW in shown["data"]
    code, _ = page.say(do="pictures")
    assert "export function pictures" in code["code"]
    first, [png] = page.say(do="look", seen=None)
    screen = Image.open(io.BytesIO(png))
    assert first["what"] == "picture"
    assert screen.size == desktop.screenshot().size
    # Into the terminal, which a busy desktop gives the focus in its own time.
    click = [{"type": kind, "x": 200, "y": 400, "button": "left"} for kind in ("move", "down", "up")]
    assert page.say(do="input", events=click)[0] == {"what": "done"}
    time.sleep(2)
    words = [{"type": "text", "text": "echo From the page > /tmp/said"}, {"type": "keys", "keys": "enter"}]
    assert page.say(do="input", events=words)[0] == {"what": "done"}
    desktop.wait_until_succeeds("grep -q 'From the page' /tmp/said", 40)
    assert page.say(do="input", events=[{"type": "text", "text": "ü"}])[0] == {"what": "done"}
    refused, _ = page.heard()
    assert refused["what"] == "error"
    assert "U+00FC" in refused["message"]
    after, [png] = page.say(do="look", seen=first["seen"])
    assert after["what"] == "picture"
    assert after["seen"] != first["seen"]
    desktop.kill()
    assert page.say(do="look", seen=None)[0]["what"] == "off"
    desktop.delete()
    said = page.say(do="look", seen=None)[0]
    assert said["what"] == "error"
    assert desktop.name in said["message"]


def test_the_webconsoles_address_is_told_and_not_kept(lab: Lab, tiny: Machine, page: Page) -> None:
    page.execute(
        f"import vmlab\nweb = vmlab.Lab({str(lab.home)!r})[{tiny.name!r}]\nshown = web.console()\nshown"
    )
    said, _ = page.say(do="webconsole")
    assert said["what"] == "webconsole", said
    secret = said["address"].partition("#")[2]
    assert len(secret) >= 43
    [state] = page.execute(
        "print(shown.get_state(), shown._repr_mimebundle_(), shown._webconsole.process.pid)"
    )
    assert secret not in state["text"]
    pid = int(state["text"].split()[-1])
    again, _ = page.say(do="webconsole")
    assert again["address"] != said["address"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)

    def running() -> int:
        [printed] = page.execute("print(shown._webconsole.process.pid)")
        return int(printed["text"])

    # One that ends by itself leaves no zombie, and one that still runs ends with its console.
    pid = running()
    os.kill(pid, signal.SIGTERM)
    until_gone(pid)
    page.say(do="webconsole")
    pid = running()
    page.execute("shown.close()")
    until_gone(pid)
