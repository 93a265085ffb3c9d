"""Networks between guests, as those see them who need them: sockets for cards, and words to the switch."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from typing import Any

from vmlab.errors import HostError
from vmlab.hypervisor.account import Account
from vmlab.network.service import Service

#: Network cards that a machine can have.
CARDS = 8
#: The socket at which the switch is told what to do.
CONTROL = "control"
#: Seconds within which the switch answers.
_TIMEOUT = 10.0

SWITCH = Service("vmlab.network.switch", "vmlab-net", CONTROL, "joins network cards")


def socket_name(network: str, card: int) -> str:
    """Return the name of the socket that a QEMU connects its card of that number to."""
    return f"{network}.{card}"


def ask(account: Account, **word: object) -> dict[str, Any]:
    """Say something to the switch, and return its answer.

    ``open={id: {"subnet": "10.1.0.0/24", "leases": {mac: address}}}`` makes networks, or adds to what they know;
    ``close=[id]`` takes some away. ``ignore=[pid]`` has nothing of a QEMU carried, nor anything to it, until
    ``listen=[pid]``. ``links={"pid.card": how}`` says how a link is (:class:`vmlab.network.pipe.Pipe`, and its
    ``seed``); None for a perfect one.
    The answer is ``{"networks": {id: {"ports": [{"pid", "card", "received", "sent", "dropped"}]}}}``, the last three in
    frames.

    Raises
    ------
    HostError
        It does not answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(_TIMEOUT)
        try:
            line.connect(os.fspath(SWITCH.folder(account) / CONTROL))
            line.sendall(json.dumps(word).encode() + b"\n")
            heard = b""
            while not heard.endswith(b"\n"):
                more = line.recv(1 << 16)
                if not more:
                    raise ConnectionResetError("it hung up")
                heard += more
            found: dict[str, Any] = json.loads(heard)
            return found
        except (OSError, ValueError) as error:
            raise HostError("The process that joins network cards does not answer.", why=error) from error


def open_networks(account: Account, words: Mapping[str, Mapping[str, Any]]) -> None:
    """Make sure that the switch is there and has these networks; see :func:`ask`."""
    SWITCH.begin(account)
    SWITCH.need(account)
    ask(account, open=words)
