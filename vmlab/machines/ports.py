"""Ports of the host's loopback that lead into a guest: what is asked for, and whether it can be had."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Mapping

from vmlab.errors import UsageError, VMLabError
from vmlab.store.store import Store

#: How forwards are given: ``{8080: 80}`` or ``[(8080, 80)]``.
Forwards = Mapping[int, int] | Iterable[Iterable[int]]

FORM = "write the host's port and the guest's, as in `{8080: 80}¦8080:80`; 0 for the host's is any free one"


def plan(store: Store, forwards: Forwards) -> tuple[tuple[int, int], ...]:
    """Return the ports that a new machine asks for: ``(port on the host's loopback or 0 for any, port in the guest)``.

    Raises
    ------
    UsageError
        They are no ports, or one of the host's is taken; says by which machine, if it is one of ours.
    """
    asked = pairs(forwards)
    hosts = [host for host, _ in asked if host]
    if len(set(hosts)) != len(hosts):
        raise UsageError("A port of the host can lead to one port only.", hint=FORM)
    for host in hosts:
        _need_free(store, host)
    return asked


def pairs(forwards: Forwards) -> tuple[tuple[int, int], ...]:
    """Return what was given as pairs, whether they are free or not."""
    found = []
    try:
        for pair in forwards.items() if isinstance(forwards, Mapping) else forwards:
            host, guest = pair
            found.append((int(host), int(guest)))
    except (TypeError, ValueError):
        raise UsageError(f"{forwards!r} are no forwarded ports.", hint=FORM) from None
    for host, guest in found:
        if not 0 <= host <= 65535 or not 1 <= guest <= 65535:
            raise UsageError(f"{host}:{guest} are no ports: they go from 1 to 65535.", hint=FORM)
    return tuple(found)


def _need_free(store: Store, port: int) -> None:
    with socket.socket() as probe:
        # As QEMU does it: a port whose connections are just being closed can be had.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            return
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise VMLabError(f"Port {port} of this host cannot be used.", system=error) from error
            why = "is taken" if error.errno == errno.EADDRINUSE else "may not be used by this account"
    holder = next(
        (name for name in store.machine_names() if port in [host for host, _ in _had(store, name)]), None
    )
    raise UsageError(
        f"Port {port} of this host {why}{f', by the machine {holder}' if holder else ''}.",
        hint="choose another one, or 0 for any that is free: `forwards={0: 80}¦--forward 0:80`",
    )


def _had(store: Store, name: str) -> tuple[tuple[int, int], ...]:
    try:
        return store.machine(name).forwarded
    except VMLabError:
        return ()
