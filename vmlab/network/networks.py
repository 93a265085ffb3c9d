"""Networks between guests, as those see them who need them: sockets for cards, and words to the switch."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import struct
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Self

from vmlab import private
from vmlab.errors import HostError
from vmlab.hypervisor.account import Account
from vmlab.network.service import Service

#: Network cards that a machine can have.
CARDS = 8
#: The socket at which the switch is told what to do.
CONTROL = "control"
#: Before each frame in a file of a capture: its time in seconds since 1970, and its length.
RECORD = struct.Struct("!dI")
#: What words the switch understands, by a number that its answers carry.
SPEAKS = 2
#: Seconds within which the switch answers.
_TIMEOUT = 10.0

SWITCH = Service("vmlab.network.switch", "vmlab-net", CONTROL, "joins network cards")


def socket_name(network: str, card: int) -> str:
    """Return the name of the socket that a QEMU connects its card of that number to."""
    return f"{network}.{card}"


def ask(account: Account, **word: object) -> dict[str, Any]:
    """Say something to the switch, and return its answer.

    ``open={id: {"subnet": "10.1.0.0/24", "leases": {mac: address}}}`` makes networks, or adds to what they know;
    ``{"names": {name: address}}`` in it are told whoever asks for one, ``{"floods": True}`` makes one a hub.
    ``close=[id]`` takes some away. ``ignore=[pid]`` has nothing of a QEMU carried, nor anything to it, until
    ``listen=[pid]``. ``links={"pid.card": how}`` says how a link is (:class:`vmlab.network.pipe.Pipe`, and its
    ``seed``); None for a perfect one. :class:`Freeze` says the rest.
    The answer is ``{"networks": {id: {"ports": [{"pid", "card", "received", "sent", "dropped", "left"}]}}}``: three
    in frames, and the bytes that its guest has not taken.

    Raises
    ------
    HostError
        It does not answer.
    """
    with _call(account) as line:
        return _say(line, word)


def _call(account: Account) -> socket.socket:
    """Connect to the switch."""
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    line.settimeout(_TIMEOUT)
    try:
        line.connect(os.fspath(SWITCH.folder(account) / CONTROL))
    except OSError as error:
        line.close()
        raise _mute(error) from error
    return line


def _say(line: socket.socket, word: Mapping[str, object]) -> dict[str, Any]:
    """Say something over a connection to the switch, and return its answer."""
    try:
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
        raise _mute(error) from error


def _mute(error: Exception) -> HostError:
    return HostError("The process that joins network cards does not answer.", why=error)


def capture(account: Account, identity: str) -> list[tuple[float, bytes]]:
    """Return what was on a network last: times in seconds since 1970, and frames.

    Nothing where the switch is not there, or has not heard of the network.
    """
    if not SWITCH.is_there(account):
        return []
    with _call(account) as line:
        if identity not in _say(line, {}).get("networks", {}):
            return []
        path = SWITCH.folder(account) / f"capture-{secrets.token_hex(4)}"
        try:
            _say(line, {"capture": {identity: path.name}})
            data = path.read_bytes()
        except OSError as error:
            raise _mute(error) from error
        finally:
            path.unlink(missing_ok=True)
    found, at = [], 0
    while at < len(data):
        when, length = RECORD.unpack_from(data, at)
        at += RECORD.size + length
        found.append((when, data[at - length : at]))
    return found


class Freeze:
    """Some networks while they are frozen: nothing that is sent arrives. They thaw when it is closed, or we die.

    Parameters
    ----------
    identities
        Of the networks; without any, nothing is frozen and nothing under way.

    Raises
    ------
    HostError
        The switch does not answer; from each method, too.
    """

    def __init__(self, account: Account, identities: Sequence[str]) -> None:
        self._account, self._ids = account, list(identities)
        self._line: socket.socket | None = None
        if not self._ids:
            return
        self._line = _call(account)
        self._folder = SWITCH.folder(account)
        try:
            if self._say(freeze=self._ids).get("speaks") != SPEAKS:
                raise HostError(
                    "The process that joins network cards is another version's, and cannot be frozen.",
                    hint="it ends by itself a minute after the last machine on a network was stopped",
                )
        except BaseException:
            self._line.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.thaw()

    def drain(self, pids: Collection[int], seconds: float = 0.05) -> int:
        """Wait until guests have taken what waits for them, then give nothing more; return the bytes that are left.

        Parameters
        ----------
        pids
            Whose cards count: those that are to be caught.
        """
        end = time.monotonic() + seconds
        while (left := self._left(self._say(), pids)) and time.monotonic() < end:
            time.sleep(0.001)
        self._say(silence=self._ids)
        return left

    def _left(self, said: dict[str, Any], pids: Collection[int]) -> int:
        networks = said.get("networks", {})
        ports = [port for identity in self._ids for port in networks.get(identity, {}).get("ports", [])]
        return sum(port["left"] for port in ports if port["pid"] in pids)

    def export(self) -> dict[str, Any]:
        """Return what is under way, by network: who stood still before this has sent all of it."""
        if self._line is None:
            return {}
        path = self._folder / f"wire-{secrets.token_hex(4)}"
        try:
            self._say(export=path.name)
            found: dict[str, Any] = json.loads(path.read_text())
            return found
        except (OSError, ValueError) as error:
            raise _mute(error) from error
        finally:
            path.unlink(missing_ok=True)

    def take_up(self, wire: Mapping[str, Any], cards: Collection[str]) -> None:
        """Let that be under way which was at an :meth:`export`, and nothing else, once these cards are plugged in.

        Parameters
        ----------
        cards
            ``pid.card`` of each.
        """
        if self._line is None:
            return
        self._say(silence=self._ids)
        self._wait_for(set(cards))
        path = self._folder / f"wire-{secrets.token_hex(4)}"
        try:
            private.write(path, json.dumps(wire))
            self._say(**{"import": path.name})
        except OSError as error:
            raise _mute(error) from error
        finally:
            path.unlink(missing_ok=True)

    def _wait_for(self, cards: set[str]) -> None:
        end = time.monotonic() + _TIMEOUT
        while True:
            networks = self._say().get("networks", {})
            there = {
                f"{p['pid']}.{p['card']}" for i in self._ids for p in networks.get(i, {}).get("ports", [])
            }
            if cards <= there:
                return
            if time.monotonic() > end:
                raise HostError(
                    "Not all network cards were plugged in in time.", missing=", ".join(sorted(cards - there))
                )
            time.sleep(0.002)

    def thaw(self) -> None:
        """Let all go on."""
        if self._line is not None:
            line, self._line = self._line, None
            with contextlib.suppress(HostError), line:
                _say(line, {"thaw": self._ids})

    def _say(self, **word: object) -> dict[str, Any]:
        return _say(self._line, word) if self._line is not None else {}


def open_networks(account: Account, words: Mapping[str, Mapping[str, Any]]) -> None:
    """Make sure that the switch is there and has these networks; see :func:`ask`."""
    SWITCH.begin(account)
    SWITCH.need(account)
    ask(account, open=words)
