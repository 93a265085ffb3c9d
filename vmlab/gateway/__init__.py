"""The stand-alone gateway: live consoles in a browser where no Jupyter server of ours can be reached.

It is a process of its own (websockify listens to signals and makes a child for each connection), on the loopback only.
Its address carries an *invitation* behind the ``#``, which no server and no log ever sees. The first page that shows
the invitation gets a key for each console, kept by that page alone; a second page with the same address is refused.
With its key the page connects as often as it needs to: after a revert, a reboot, a sleeping laptop.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmlab.errors import HostError

__all__ = ["CONSOLE_JS", "Gateway", "start"]

#: The console in the browser; built from ``extension/src/console``.
CONSOLE_JS = Path(__file__).parents[1] / "static" / "console.js"
#: Seconds after which the gateway ends when no page has come at all, and when its page was closed.
PATIENCE, IDLE = 900.0, 180.0


@dataclass(frozen=True)
class Gateway:
    """A running gateway.

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
    own_group: bool = True,
    patience: float = PATIENCE,
    idle: float = IDLE,
) -> Gateway:
    """Start a gateway to the screens of these machines.

    Parameters
    ----------
    machines
        Names of machines; they need not run yet.
    home
        The store that they are in.
    own_group
        Keep it apart from a Ctrl-C that is meant for us.
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
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, *options, "--", *machines],
        stdin=subprocess.DEVNULL,
        # The address comes through a pipe: command lines and environments are seen by others.
        stdout=subprocess.PIPE,
        stderr=None if not own_group else subprocess.DEVNULL,
        text=True,
        start_new_session=own_group,
        preexec_fn=None if own_group else _deaf,
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
        raise HostError("The gateway did not start.", exit_status=process.wait())
    return Gateway(json.loads(line)["address"], process)


def _deaf() -> None:
    # Until websockify listens to it, a Ctrl-C would end the gateway with a traceback in somebody's terminal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
