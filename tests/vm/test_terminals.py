"""IPython in a terminal, and kernels whose front end is text (jupyter console): nothing blocks, nothing gets lost."""

from __future__ import annotations

import os
import re
import sys
import urllib.request
from collections.abc import Iterator

import pexpect
import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import start_new_kernel

from vmlab.lab import Lab
from vmlab.machine import Machine

ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+/\S*")


def reached(text: str) -> bool:
    """Whether the web console of an address in ``text`` answers."""
    found = ADDRESS.search(text)
    assert found, text
    with urllib.request.urlopen(found[0].partition("#")[0], timeout=30) as answer:
        return answer.status == 200


def test_ipythons_prompt_is_free_while_a_console_is_open(lab: Lab, tiny: Machine) -> None:
    environment = {
        **os.environ, "VMLAB_HOME": str(lab.home), "PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm", "NO_COLOR": "1",
    }  # fmt: skip
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        environment.pop(name, None)
    words = ["-m", "IPython", "--no-banner", "--colors=NoColor", "--HistoryManager.enabled=False"]
    shell = pexpect.spawn(
        sys.executable, words, env=environment, encoding="utf-8", timeout=90, dimensions=(40, 200)
    )
    try:
        shell.expect(r"In \[1\]:")
        shell.send("%load_ext vmlab\r")
        shell.expect(r"In \[2\]:")
        # The next line is typed before the prompt is there again.
        shell.send(f"%vm console {tiny.name}\r")
        shell.send("'typed ' + 'ahead'\r")
        shell.expect(r"Open it once")
        assert reached(shell.before)
        shell.expect(r"Out\[3\]:.*'typed ahead'")
        shell.expect(r"In \[4\]:")
        shell.send(f"%vm list {tiny.name};\r")
        shell.expect(r"In \[5\]:")
        assert "MACHINE" not in shell.before
        shell.send("%vm snapshot web 'half\r")
        shell.expect("A quote .'. is not closed")
        shell.expect("Next: close it")
    finally:
        shell.close(force=True)


@pytest.fixture
def text_front_end(lab: Lab) -> Iterator[BlockingKernelClient]:
    """A kernel as jupyter console has one: no cells, somebody can be asked, outputs are never replaced."""
    manager, client = start_new_kernel(env={**os.environ, "VMLAB_HOME": str(lab.home)})
    try:
        yield client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def said(client: BlockingKernelClient, code: str) -> tuple[str, str]:
    """Run code; return what such a front end prints, and how it ended. It shows a picture instead of its text."""
    out: list[str] = []

    def hear(message) -> None:
        kind, content = message["msg_type"], message["content"]
        assert kind != "update_display_data", "it would not be shown"
        if kind == "stream":
            out.append(content["text"])
        elif kind in ("display_data", "execute_result") and "image/png" not in content["data"]:
            out.append(content["data"]["text/plain"])
        elif kind == "error":
            out.append("\n".join(content["traceback"]))

    reply = client.execute_interactive(code, timeout=120, output_hook=hear, allow_stdin=True)
    return "".join(out), reply["content"]["status"]


def test_a_text_front_end_is_told_all_in_lines(
    lab: Lab, tiny: Machine, text_front_end: BlockingKernelClient
) -> None:
    assert said(text_front_end, "%load_ext vmlab\nimport vmlab; lab = vmlab.Lab()") == ("", "ok")
    shown, status = said(text_front_end, f"%vm console {tiny.name}")
    assert status == "ok"
    assert reached(shown)
    shown, status = said(text_front_end, f"lab[{tiny.name!r}].console()")
    assert (status, "console" in shown) == ("error", True)
    # What takes long says so in lines, the last of which says how it ended.
    shown, status = said(
        text_front_end,
        "import time\nfrom vmlab.notebook.ui import for_shell\n"
        "with for_shell(get_ipython()).progress('build') as tell:\n"
        "    tell('half', 0.5); time.sleep(1.5)",
    )
    assert re.fullmatch(r"build: half \(50 %\)\nbuild: done after 1\.\d s\n", shown), shown
    shown, _ = said(text_front_end, f"%%vm {tiny.name}\necho from the guest")
    assert "from the guest" in shown
