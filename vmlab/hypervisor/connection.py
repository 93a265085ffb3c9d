"""The connection to libvirt: one for a process, made when first needed, made again when libvirtd was restarted."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import libvirt

from vmlab.errors import HypervisorError
from vmlab.hypervisor import account as accounts

#: How often to try to reach libvirtd.
OPEN_TRIES = 5

_lock = threading.Lock()
_connections: dict[str, libvirt.virConnect] = {}
_loop_started = False


def _silence(_context: object, _error: object) -> None:
    """Keep libvirt from printing errors: each of them reaches the caller as an exception anyway."""


def _start_event_loop() -> None:
    # libvirt's own loop in a thread suits a notebook: it neither needs nor disturbs asyncio. It must be registered
    # before the first connection is opened, and once a process.
    global _loop_started
    if _loop_started:
        return
    libvirt.registerErrorHandler(_silence, None)
    libvirt.virEventRegisterDefaultImpl()

    def run() -> None:
        while True:
            # An error of one turn (a connection that went away) must not end the loop for the others.
            with contextlib.suppress(libvirt.libvirtError):
                libvirt.virEventRunDefaultImpl()

    threading.Thread(target=run, name="vmlab-libvirt-events", daemon=True).start()
    _loop_started = True


def connect(account: accounts.Account | None = None) -> libvirt.virConnect:
    """Return a living connection to the session libvirtd of ``account``, starting the daemon if needed.

    Raises
    ------
    HypervisorError
        libvirtd cannot be reached.
    HostError
        libvirtd cannot be started here.
    """
    account = account or accounts.account()
    with _lock:
        _start_event_loop()
        known = _connections.get(account.uri)
        if known is not None:
            with contextlib.suppress(libvirt.libvirtError):
                if known.isAlive():
                    return known
            _connections.pop(account.uri, None)
        _connections[account.uri] = connection = _open(account)
        return connection


def disconnect(account: accounts.Account) -> None:
    """Close this process's connection to the account's libvirtd, if any; the next :func:`connect` opens another."""
    with _lock:
        known = _connections.pop(account.uri, None)
    if known is not None:
        with contextlib.suppress(libvirt.libvirtError):
            known.close()


def _open(account: accounts.Account) -> libvirt.virConnect:
    for attempt in range(1, OPEN_TRIES + 1):
        accounts.ensure_daemon(account)
        try:
            connection = libvirt.open(account.uri)
            connection.setKeepAlive(5, 6)
        except libvirt.libvirtError as error:
            # A daemon that is just ending still takes a connection, and drops it.
            if attempt == OPEN_TRIES:
                raise HypervisorError(
                    "libvirt cannot be reached.",
                    hint="`%vm doctor` shows what is missing",
                    libvirt=str(error),
                ) from error
            time.sleep(0.1 * attempt)
        else:
            return connection
    raise AssertionError


#: libvirt's codes for "the connection to the daemon is gone": worth one more try with a new connection.
_LOST = {
    libvirt.VIR_ERR_SYSTEM_ERROR,
    libvirt.VIR_ERR_INTERNAL_ERROR,
    libvirt.VIR_ERR_RPC,
    libvirt.VIR_ERR_NO_CONNECT,
    libvirt.VIR_ERR_INVALID_CONN,
}


def lost(error: libvirt.libvirtError) -> bool:
    """Whether ``error`` means that libvirtd went away, not that it said no."""
    return (
        error.get_error_domain() in (libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE, libvirt.VIR_FROM_STREAMS)
        and error.get_error_code() in _LOST
    )


@contextlib.contextmanager
def translated(doing: str, **evidence: Any) -> Iterator[None]:
    """Turn libvirt's errors into :class:`~vmlab.errors.HypervisorError`: "libvirt could not ``doing``."."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise HypervisorError(f"libvirt could not {doing}.", libvirt=str(error), **evidence) from error
