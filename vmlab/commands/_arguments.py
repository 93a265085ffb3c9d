"""Arguments that several verbs share, and the words they are made of: sizes, ports, names."""

from __future__ import annotations

import argparse
import fnmatch
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from vmlab.commands import _names
from vmlab.errors import NotFound

if TYPE_CHECKING:
    from vmlab.lab import Lab
    from vmlab.machine import Machine
    from vmlab.views.machines import MachineTable

MIB = 1024 * 1024
_UNITS = {"": 1, "K": 1024, "M": MIB, "G": 1024 * MIB, "T": 1024 * 1024 * MIB}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(?:i?B)?|B)", re.IGNORECASE)
T = TypeVar("T")
Completer = Callable[..., list[str]]


def size(text: str) -> int:
    """Return bytes from ``10G``, ``512M`` or ``1.5GiB``; a number alone is refused as ambiguous."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write it like 512M or 10G")
    count = int(float(match[1]) * _UNITS[(match[2] or "").upper()])
    if count <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no room at all; write it like 512M or 10G")
    return count


def memory(text: str) -> int:
    """Return RAM in MiB from ``512M``, ``1G``, or a number of MiB, as in Python."""
    count = int(text) if re.fullmatch(r"\d+", text.strip()) else size(text) // MIB
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is less than 1 MiB of RAM; write it like 512M or 1G")
    return count


def count(text: str) -> int:
    """Return a whole number from 1."""
    if not re.fullmatch(r"\d+", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def seconds(text: str) -> float:
    """Return a time in seconds from ``90``, ``1.5``, ``90s``, ``2m`` or ``1h``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)?", text.strip())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time; write seconds, or 90s, 2m, 1h")
    return float(match[1]) * {"s": 1, "m": 60, "min": 60, "h": 3600}[match[2] or "s"]


def port(text: str) -> int:
    """Return a port number."""
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; ports are 1 to 65535")
    return int(text)


def forward(text: str) -> tuple[int, int]:
    """Return ``(host port, guest port)`` from ``8080:80``; ``0:80`` takes any free one of the host."""
    host, colon, guest = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not HOST:GUEST; 8080:80 brings port 80 of the guest to port 8080"
        )
    return 0 if host == "0" else port(host), port(guest)


def completed(action: argparse.Action, completer: Completer) -> argparse.Action:
    """Give ``action`` a completer, where argcomplete and our own completion look for it."""
    action.completer = completer  # type: ignore[attr-defined]  # argcomplete's convention
    return action


def guests(action: argparse.Action) -> argparse.Action:
    """Say that the words of ``action`` go to the guest: no variables are put in, and ``#`` begins no comment."""
    action.guest = True  # type: ignore[attr-defined]  # read by _lines, as a completer is by argcomplete
    return action


def free(action: argparse.Action) -> argparse.Action:
    """Say that the words of ``action`` are free text: what is no variable stays as it stands."""
    action.free = True  # type: ignore[attr-defined]  # as above
    return action


def machine(parser: argparse.ArgumentParser, *, help: str = "name of the machine") -> None:
    """Add ``args.machine``."""
    completed(parser.add_argument("machine", metavar="NAME", help=help), _names.machines)


def machines(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Add ``args.machines``, with patterns."""
    completed(
        parser.add_argument(
            "machines",
            metavar="NAME",
            nargs="*" if optional else "+",
            help="names of machines; * and ? stand for any letters, as in 'web*'",
        ),
        _names.machines,
    )


def snapshot(parser: argparse.ArgumentParser, *, optional: bool, help: str) -> None:
    """Add ``args.snapshot``."""
    completed(
        parser.add_argument("snapshot", metavar="SNAPSHOT", nargs="?" if optional else None, help=help),
        _names.snapshots,
    )


def timeout(parser: argparse.ArgumentParser, *, default: float | None, help: str) -> None:
    """Add ``args.timeout``, in seconds."""
    until = f" (default: {default:g})" if default is not None else ""
    parser.add_argument(
        "-t", "--timeout", type=seconds, metavar="SECONDS", default=default, help=help + until
    )


def clock(parser: argparse.ArgumentParser, default: str = "then") -> None:
    """Add ``args.clock``."""
    parser.add_argument(
        "--clock",
        choices=("then", "now"),
        default=default,
        help=f"the guest's clock: as it was then, or set to now through the agent (default: {default})",
    )


def force(parser: argparse.ArgumentParser) -> None:
    """Add ``args.force``."""
    parser.add_argument("--force", action="store_true", help="even if the host is short of RAM")


def chosen(lab: Lab, names: Sequence[str]) -> list[Machine]:
    """Return the machines of these names and patterns, each once, in the order given.

    Raises
    ------
    NotFound
        There is no such machine, or nothing fits a pattern.
    """
    found: dict[str, Machine] = {}
    known: list[str] | None = None
    for name in names:
        if any(sign in name for sign in "*?["):
            known = _names.all_machines(lab) if known is None else known
            fitting = fnmatch.filter(known, name)
            if not fitting:
                raise NotFound(f"No machine fits '{name}'.", hint="`%vm list` shows them all")
            found |= {fit: lab.machine(fit) for fit in fitting if fit not in found}
        elif name not in found:
            found[name] = lab.machine(name)
    return list(found.values())


def each(machines: Sequence[Machine], act: Callable[[Machine], T], *, at_once: bool = False) -> list[T]:
    """Do ``act`` on every machine, even if it fails on some; return the results in order.

    Parameters
    ----------
    at_once
        In threads: for what mostly waits, such as a shutdown.
    """
    from vmlab.machines.several import several

    return several(machines, act, name=lambda machine: machine.name, at_once=len(machines) if at_once else 1)


def table(lab: Lab, machines: Sequence[Machine]) -> MachineTable:
    """Return machines as a table, what they take measured for all at once."""
    from vmlab.views.machines import MachineTable

    return MachineTable(machines, lab.usage(list(machines)))


def one_or_table(lab: Lab, machines: Sequence[Machine]) -> Machine | MachineTable:
    """Return the only machine itself, several as a table."""
    return machines[0] if len(machines) == 1 else table(lab, machines)
