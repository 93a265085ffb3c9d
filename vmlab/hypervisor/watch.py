"""Hearing from libvirt when a guest starts, stops, pauses or crashes, whoever made it.

The session's libvirtd ends by itself when it has had neither guests nor clients for a while
(:data:`vmlab.hypervisor.account.IDLE_EXIT`), and a client that only listens would keep it alive for ever. So whoever
watches lets go (:meth:`LifecycleWatch.release`) when there is nothing to hear, and :func:`guests_exist` tells without
a connection when it is worth listening again.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import libvirt

from vmlab.hypervisor import account as accounts
from vmlab.hypervisor.connection import connect, disconnect


def guests_exist(account: accounts.Account) -> bool:
    """Whether QEMU runs for any guest of the account's session, as its libvirtd has noted; asks no daemon."""
    run = account.runtime_dir / "libvirt" / "qemu" / "run"
    with contextlib.suppress(OSError):
        return any(path.suffix == ".pid" for path in run.iterdir())
    return False


class LifecycleWatch:
    """Tells of each change in the life of the guests of an account's session.

    Parameters
    ----------
    account
        Whose session.
    told
        Called with the name of the guest, or with None when the connection was lost and events may have been missed;
        in libvirt's thread, so it must not block.
    """

    def __init__(self, account: accounts.Account, told: Callable[[str | None], None]) -> None:
        self.account, self._told = account, told
        self._lock = threading.Lock()
        self._connection: Any = None
        self._handle: int | None = None

    @property
    def listening(self) -> bool:
        """Whether events arrive."""
        return self._connection is not None

    def listen(self, *, start: bool = False) -> bool:
        """Begin to listen; no harm if it does already. Return whether it listens.

        Parameters
        ----------
        start
            Start libvirt's daemon if it does not run; otherwise there is nothing to listen to.

        Raises
        ------
        HypervisorError, HostError
            libvirt cannot be reached.
        """
        with self._lock:
            if self._connection is not None:
                return True
            if not start and not accounts.daemon_answers(self.account):
                return False
            connection = connect(self.account)
            try:
                handle = connection.domainEventRegisterAny(
                    None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle, None
                )
                connection.registerCloseCallback(self._closed, None)
            except libvirt.libvirtError:
                # It was just going away; the next attempt gets a new one.
                return False
            self._connection, self._handle = connection, handle
            return True

    def release(self) -> None:
        """Stop listening, and close this process's connection to libvirt, so that its daemon may end."""
        self.stop()
        disconnect(self.account)

    def stop(self) -> None:
        """Stop listening; nothing is told from here on."""
        with self._lock:
            connection, handle = self._connection, self._handle
            self._connection = self._handle = None
        if connection is not None:
            with contextlib.suppress(libvirt.libvirtError):
                connection.unregisterCloseCallback()
            with contextlib.suppress(libvirt.libvirtError):
                connection.domainEventDeregisterAny(handle)

    def _lifecycle(self, _connection: object, domain: Any, _event: int, _detail: int, _: object) -> None:
        if self.listening:
            self._told(domain.name())

    def _closed(self, connection: object, _reason: int, _: object) -> None:
        # In libvirt's thread, which must not wait for a lock that a caller of libvirt holds.
        if self._connection is not None:
            self._connection = self._handle = None
            self._told(None)
        del connection
