"""A guest's way out: which there are, and the process that filters what goes there."""

from __future__ import annotations

from vmlab.network.service import Service

#: What goes through the relay: the outside without this host and its site, or with its site.
WAYS = ("internet", "site")
#: The two connections of a card: its own, and that of its user-mode network.
SIDES = ("card", "out")


def socket_name(way: str, side: str) -> str:
    """Return the name of the socket that a QEMU connects to."""
    return f"{way}.{side}"


RELAY = Service(
    "vmlab.network.relay", "vmlab-out", socket_name(WAYS[-1], SIDES[-1]), "filters what guests send"
)
