"""Show the live screen of machines, or their serial line, to work in.

In a notebook they appear under the cell, and go on while cells run and after the kernel has died. In a terminal a
browser page is opened for them: its address works once, on this host only, and ends with Ctrl-C or some minutes after
the page was closed (at IPython's prompt, which is free meanwhile, only then). With --serial the terminal itself
becomes the machine's serial line; Ctrl-] leaves it.

Examples
--------
console web
console web db              # side by side
console web --serial        # the serial line
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import tempfile
import threading
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmlab.commands import _arguments as words
from vmlab.errors import UsageError
from vmlab.views.notes import Note

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
    from vmlab.lab import Lab
    from vmlab.machine import Machine
    from vmlab.webconsole import WebConsole

GROUP = "inside"
ORDER = 7


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.machines(parser)
    parser.add_argument("--serial", action="store_true", help="the serial line instead of the screen")


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Any:
    """Return the consoles; in a terminal stay until they are closed."""
    machines = words.chosen(lab, args.machines)
    if ui.consoles:
        from vmlab.render import surface

        return surface.show(machines, "serial" if args.serial else "screen")
    if args.serial:
        if len(machines) != 1:
            raise UsageError("A terminal is the serial line of one machine at a time.")
        from vmlab.commands import _terminal

        return _terminal.attach(machines[0], ui)
    return _in_browser(lab, machines, ui)


def _in_browser(lab: Lab, machines: list[Machine], ui: UI) -> Note:
    from vmlab import webconsole

    names = ", ".join(machine.name for machine in machines)
    if ui.prompts:
        running = webconsole.start([machine.name for machine in machines], lab.home)
        threading.Thread(target=_wait_for, args=(running,), name="vmlab-console", daemon=True).start()
        ui.say(
            f"{names}: {running.address}\nOpen it once, in one tab; whoever opens it first has the console."
        )
        return Note(
            f"The console of {names} ends some minutes after its page was closed.",
            machines=[machine.name for machine in machines],
        )
    with contextlib.suppress(KeyboardInterrupt):
        running = webconsole.start([machine.name for machine in machines], lab.home, tied=True)
        try:
            ui.say(
                f"{names}: {running.address}\n"
                "Open it once, in one tab; whoever opens it first has the console. Ctrl-C here ends it."
            )
            with _opened(running.address):
                running.process.wait()
        finally:
            running.stop()
    return Note(f"The console of {names} is closed.", machines=[machine.name for machine in machines])


def _wait_for(running: WebConsole) -> None:
    """Open a browser if there can be one, and see the process end."""
    with _opened(running.address):
        running.process.wait()


@contextlib.contextmanager
def _opened(address: str) -> Iterator[None]:
    """Open a browser where there is a screen to show it on."""
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="vmlab-console-") as folder:
        # Through a file that only we can read: the words of a browser's command line are seen by everybody.
        page = Path(folder) / "console.html"
        page.write_text(f'<!doctype html><meta http-equiv="refresh" content="0; url={address}">\n')
        with contextlib.suppress(webbrowser.Error, OSError, subprocess.SubprocessError):
            webbrowser.open(page.as_uri())
        yield
