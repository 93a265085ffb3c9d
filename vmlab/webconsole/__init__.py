"""The web console: live consoles in a browser where no Jupyter server of ours can be reached.

It is a process of its own (websockify listens to signals and makes a child for each connection), on the loopback only.
Its address carries an *invitation* behind the ``#``, which no server and no log ever sees. The first page that shows
the invitation gets a key for each console, kept by that page alone; a second page with the same address is refused.
With its key the page connects as often as it needs to: after a revert, a reboot, a sleeping laptop.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmlab.errors import HostError

__all__ = ["CONSOLE_JS", "WebConsole", "start"]

#: The console in the browser; built from ``extension/src/console``.
CONSOLE_JS = Path(__file__).parents[1] / "static" / "console.js"
#: Seconds after which the web console ends when no page has come at all, and when its page was closed.
PATIENCE, IDLE = 900.0, 180.0


@dataclass(frozen=True)
class WebConsole:
    """A running webconsole.

    Attributes
    ----------
    address
        What to open in a browser, once. It lets whoever has it into the guests: show it, never store it.
    process
        Ends when it gets SIGTERM or SIGINT, and by itself when nobody has a page of it open.
    """

    address: str
    process: subprocess.Popen[str]

    def stop(self) -> None:
        """End it, with its connections."""
        self.process.terminate()
        self.process.wait()


def start(
    machines: Sequence[str],
    home: Path,
    *,
    tied: bool = False,
    patience: float = PATIENCE,
    idle: float = IDLE,
) -> WebConsole:
    """Start a web console to the screens of these machines.

    Parameters
    ----------
    machines
        Names of machines; they need not run yet.
    home
        The store that they are in.
    tied
        End it when this process ends, however it does; and let its complaints go where ours go.
    patience, idle
        Seconds after which it ends when no page has come, and when its page was closed.

    Raises
    ------
    HostError
        It did not start, or the page's script was never built.
    """
    if not CONSOLE_JS.is_file() or not CONSOLE_JS.stat().st_size:
        raise HostError(
            "The console's script is not built.", hint="`npm ci && npm run build` in extension/ makes it"
        )
    options = [f"--home={home}", f"--patience={patience}", f"--idle={idle}"]
    if tied:
        options.append("--tied")
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, *options, "--", *machines],
        stdin=subprocess.PIPE if tied else subprocess.DEVNULL,
        # The address comes through a pipe: command lines and environments are seen by others.
        stdout=subprocess.PIPE,
        stderr=None if tied else subprocess.DEVNULL,
        text=True,
        # A Ctrl-C in the terminal is for us alone.
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        with process.stdout as said:
            line = said.readline()
    except BaseException:
        process.kill()
        process.wait()
        raise
    if not line:
        raise HostError("The web console did not start.", exit_status=process.wait())
    return WebConsole(json.loads(line)["address"], process)
