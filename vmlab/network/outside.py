"""A guest's way out: which there are, the sockets of the relay that filters them, and its start.

The folder is ``vmlab-out`` in the account's run folder, for that account alone.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from vmlab import private
from vmlab.errors import HostError
from vmlab.hypervisor.account import SOCKET_PATH_MAX, Account, find_program

#: What goes through the relay: the outside without this host and its site, or with its site.
WAYS = ("internet", "site")
#: The two connections of a QEMU: with its guest's card, and with its user-mode network.
SIDES = ("card", "out")
#: Seconds within which a relay that was started is there.
START_TIMEOUT = 10.0
#: Ended by a signal it is started again at once, by a shell that waits for it: connections of guests go on.
_AGAIN = 'n=0; until "$@"; do n=$((n + 1)); [ $n -lt 100 ] || exit 1; sleep 0.1; done'


def socket_name(way: str, side: str) -> str:
    """Return the name of the socket that a QEMU connects to."""
    return f"{way}.{side}"


def socket_path(account: Account, way: str, side: str) -> Path:
    """Return the socket that a QEMU connects to.

    Raises
    ------
    HostError
        Linux does not allow a path of that length.
    """
    path = folder(account) / socket_name(way, side)
    if len(os.fsencode(path)) > SOCKET_PATH_MAX:
        raise HostError(
            f"The path of a socket is longer than the {SOCKET_PATH_MAX} bytes that Linux allows.",
            hint="set XDG_RUNTIME_DIR to a folder with a shorter path",
            socket=path,
        )
    return path


def folder(account: Account) -> Path:
    """Return the folder of an account's relay."""
    return account.runtime_dir / "vmlab-out"


def is_there(account: Account) -> bool:
    """Whether the relay runs. It stays for a while then."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(os.fspath(folder(account) / socket_name(WAYS[-1], SIDES[-1])))
        except OSError:
            return False
    return True


def begin(account: Account) -> None:
    """Start the relay unless it runs, and wait for nothing; it ends by itself when no guest needs it any more."""
    if is_there(account):
        return
    where = account.make_dir(folder(account))
    socket_path(account, WAYS[0], SIDES[0])
    private.set_mode(where, private.FOLDER)
    # Those who come at once each start one; all but one end at its lock.
    argv = ["/bin/sh", "-c", '"$@" &', "sh"]
    if tini := find_program("tini"):
        argv += [tini, "-s", "--"]
    argv += ["/bin/sh", "-c", _AGAIN, "vmlab-relay", sys.executable, "-m", "vmlab.network.relay", str(where)]
    argv += [str(account.uid), str(account.gid)] if account.is_service else []
    with contextlib.ExitStack() as stack:
        log: Any = subprocess.DEVNULL
        with contextlib.suppress(FileNotFoundError):
            (where / "log").replace(where / "log.old")
        with contextlib.suppress(FileExistsError):
            log = stack.enter_context(private.create(where / "log"))
        subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=Path(__file__).parents[2],
            env=account.environment(),
            start_new_session=True,
            check=False,
        )


def need(account: Account) -> None:
    """Wait until the relay that was begun is there.

    Raises
    ------
    HostError
        It does not come up; with what it said.
    """
    end, pause = time.monotonic() + START_TIMEOUT, 0.005
    while not is_there(account):
        if time.monotonic() > end:
            said = ""
            with contextlib.suppress(OSError):
                said = (folder(account) / "log").read_text(errors="replace")[-2000:]
            raise HostError("The process that filters what guests send does not come up.", log=said)
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)
