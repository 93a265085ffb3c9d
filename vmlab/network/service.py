"""A process of ours that QEMUs connect to, one an account: its folder of sockets, its start, and its loop.

It is nobody's child, ends by itself when no QEMU has been there for a while, and is started again when it dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmlab import private
from vmlab.errors import HostError
from vmlab.hypervisor.account import SOCKET_PATH_MAX, Account, find_program

#: Seconds within which a process that was started is there.
START_TIMEOUT = 10.0
#: Seconds without any QEMU after which it ends.
IDLE_EXIT = 60.0
#: Ended by a signal it is started again at once, by a shell that waits for it: connections of guests go on.
_AGAIN = 'n=0; until "$@"; do n=$((n + 1)); [ $n -lt 100 ] || exit 1; sleep 0.1; done'
#: Connections at once: more than any host has guests for. More are not taken.
MOST = 2048
_UCRED = struct.Struct("3i")


@dataclass(frozen=True)
class Service:
    """One of these processes, as those see it who need it.

    Attributes
    ----------
    module
        What it runs.
    name
        Its folder, in the account's run folder, for that account alone.
    probe
        A socket in it that is there whenever the process is.
    what
        What it is for, in an error.
    """

    module: str
    name: str
    probe: str
    what: str

    def folder(self, account: Account) -> Path:
        """Return where its sockets are."""
        return account.runtime_dir / self.name

    def socket_path(self, account: Account, name: str) -> Path:
        """Return a socket that a QEMU connects to.

        Raises
        ------
        HostError
            Linux does not allow a path of that length.
        """
        path = self.folder(account) / name
        if len(os.fsencode(path)) > SOCKET_PATH_MAX:
            raise HostError(
                f"The path of a socket is longer than the {SOCKET_PATH_MAX} bytes that Linux allows.",
                hint="set XDG_RUNTIME_DIR to a folder with a shorter path",
                socket=path,
            )
        return path

    def is_there(self, account: Account) -> bool:
        """Whether the process runs. It stays for a while then."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            try:
                client.connect(os.fspath(self.folder(account) / self.probe))
            except OSError:
                return False
        return True

    def begin(self, account: Account) -> None:
        """Start it unless it runs, and wait for nothing."""
        if self.is_there(account):
            return
        where = account.make_dir(self.folder(account))
        self.socket_path(account, self.probe)
        private.set_mode(where, private.FOLDER)
        # Those who come at once each start one; all but one end at its lock.
        argv = ["/bin/sh", "-c", '"$@" &', "sh"]
        if tini := find_program("tini"):
            argv += [tini, "-s", "--"]
        argv += ["/bin/sh", "-c", _AGAIN, self.name, sys.executable, "-m", self.module, str(where)]
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

    def need(self, account: Account) -> None:
        """Wait until the process that was begun is there.

        Raises
        ------
        HostError
            It does not come up; with what it said.
        """
        end, pause = time.monotonic() + START_TIMEOUT, 0.005
        while not self.is_there(account):
            if time.monotonic() > end:
                said = ""
                with contextlib.suppress(OSError):
                    said = (self.folder(account) / "log").read_text(errors="replace")[-2000:]
                raise HostError(f"The process that {self.what} does not come up.", log=said)
            time.sleep(pause)
            pause = min(pause * 1.5, 0.05)


class Loop:
    """What such a process does: it waits for its sockets, and for those who come to its doors.

    Parameters
    ----------
    uid
        Whose QEMUs may connect, beside our own account's.
    """

    def __init__(self, uid: int) -> None:
        self.guests: set[object] = set()
        self._uid, self._selector, self._seen = uid, selectors.DefaultSelector(), time.monotonic()
        self._doors: list[Callable[[], None]] = []

    def run(self) -> None:
        """Serve until no QEMU has been there for a while, and leave no sockets."""
        while self.guests or time.monotonic() - self._seen < IDLE_EXIT:
            due = self.due()
            patience = None if due is None else max(0.0, due - time.monotonic())
            for key, events in self._selector.select(
                IDLE_EXIT if patience is None and not self.guests else patience
            ):
                key.data(events)
            if due is not None:
                self.tick(time.monotonic())
            if self.guests:
                self._seen = time.monotonic()
        for close in [*self._doors]:
            close()

    def due(self) -> float | None:
        """Return when :meth:`tick` is to be called next, in seconds of :func:`time.monotonic`; None: never."""
        return None

    def tick(self, now: float) -> None:
        """Do what is due by then."""

    def watch(self, what: socket.socket, events: int, then: Callable[[int], None]) -> None:
        """Call ``then`` when it is ready; with no events, not any more."""
        with contextlib.suppress(KeyError):
            self._selector.unregister(what)
        if events:
            self._selector.register(what, events, then)

    def door(self, path: Path, then: Callable[[socket.socket, int], None]) -> Callable[[], None]:
        """Listen at a socket, and call ``then`` with each connection and the number of the process at its other end.

        What is returned closes the door again.
        """
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        listener.bind(os.fspath(path))
        listener.listen(64)

        def accept(_: int) -> None:
            with contextlib.suppress(BlockingIOError):
                connection, _address = listener.accept()
                pid, uid, _gid = _UCRED.unpack(
                    connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
                )
                # Whoever only asks whether we are here keeps us here for a while.
                self._seen = time.monotonic()
                # Root works as another account here, and may do everything anyway.
                if uid not in (self._uid, os.getuid(), 0) or len(self.guests) >= MOST:
                    connection.close()
                    return
                connection.setblocking(False)
                then(connection, pid)

        def close() -> None:
            self._doors.remove(close)
            self.watch(listener, 0, accept)
            listener.close()
            path.unlink(missing_ok=True)

        self.watch(listener, selectors.EVENT_READ, accept)
        self._doors.append(close)
        return close


def serve(make: Callable[[Path, int], Loop]) -> int:
    """Be such a process: ``MODULE FOLDER [UID GID]``; at once over if another one is.

    Parameters
    ----------
    make
        Opens the doors in the folder, for QEMUs of that account.
    """
    folder = Path(sys.argv[1])
    uid = os.getuid()
    if len(sys.argv) > 2:
        uid, gid = int(sys.argv[2]), int(sys.argv[3])
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    with open(private.lock_file(folder / "lock"), "r+b") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        os.umask(0o077)
        for path in folder.iterdir():
            # Of one that was killed.
            if path.is_socket():
                path.unlink(missing_ok=True)
        make(folder, uid).run()
    return 0
