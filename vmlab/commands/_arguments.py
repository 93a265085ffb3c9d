"""Arguments that several verbs share, and the words they are made of: sizes, ports, names."""

from __future__ import annotations

import argparse
import fnmatch
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from vmlab.commands import _names
from vmlab.errors import NotFound, UsageError

if TYPE_CHECKING:
    from vmlab.lab import Lab
    from vmlab.machine import Machine
    from vmlab.scenario import Scenario
    from vmlab.views.machines import MachineTable

MIB = 1024 * 1024
_UNITS = {"": 1, "K": 1024, "M": MIB, "G": 1024 * MIB, "T": 1024 * 1024 * MIB}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(?:i?B)?|B)", re.IGNORECASE)
T = TypeVar("T")
N = TypeVar("N", bound="Machine | Scenario")
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


def thing(parser: argparse.ArgumentParser) -> None:
    """Add ``args.machine``, which may be a scenario's name, too."""
    completed(
        parser.add_argument("machine", metavar="NAME", help="name of the machine, or of a scenario"),
        _names.things,
    )


def things(parser: argparse.ArgumentParser) -> None:
    """Add ``args.machines``, among which may be scenarios, with patterns."""
    completed(
        parser.add_argument(
            "machines",
            metavar="NAME",
            nargs="+",
            help="names of machines and scenarios; * and ? stand for any letters, as in 'web*'",
        ),
        _names.things,
    )


def machines(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Add ``args.machines``, with patterns; a scenario's name stands for all its machines."""
    completed(
        parser.add_argument(
            "machines",
            metavar="NAME",
            nargs="*" if optional else "+",
            help="names of machines; * and ? stand for any letters, as in 'web*', a scenario's name for its machines",
        ),
        _names.things,
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


def need_then(args: argparse.Namespace) -> None:
    """Refuse ``--clock now`` for a scenario, whose clocks keep their offsets."""
    if args.clock == "now":
        raise UsageError(
            "The clocks of a scenario's machines go on together from then.",
            hint="leave --clock out; a machine's own can be set in it",
        )


def force(parser: argparse.ArgumentParser) -> None:
    """Add ``args.force``."""
    parser.add_argument("--force", action="store_true", help="even if the host is short of RAM")


def chosen(lab: Lab, names: Sequence[str]) -> list[Machine]:
    """Return the machines of these names and patterns, each once, in the order given; of a scenario's name, its own.

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
            is_scenario = name not in lab and any(name == one.name for one in lab.scenarios)
            of_it = lab.scenario(name).machines if is_scenario else [lab.machine(name)]
            found |= {one.name: one for one in of_it}
    return list(found.values())


def chosen_things(lab: Lab, names: Sequence[str]) -> list[Machine | Scenario]:
    """Return the machines and scenarios of these names and patterns, each once, in the order given.

    A pattern means whole scenarios, not machines of them.

    Raises
    ------
    NotFound
        There is no such thing, or nothing fits a pattern.
    """
    found: dict[str, Machine | Scenario] = {}
    for name in names:
        if any(sign in name for sign in "*?["):
            scenarios = [scenario.name for scenario in lab.scenarios]
            known = [*_names.all_machines(lab), *scenarios]
            fitting = [
                fit
                for fit in fnmatch.filter(known, name)
                if not any(fit.startswith(f"{scenario}.") for scenario in scenarios)
            ]
            if not fitting:
                raise NotFound(f"No machine fits '{name}'.", hint="`%vm list` shows them all")
            found |= {fit: lab.named(fit) for fit in fitting if fit not in found}
        elif name not in found:
            found[name] = lab.named(name)
    return list(found.values())


def each(machines: Sequence[N], act: Callable[[N], T], *, at_once: bool = False) -> list[T]:
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


def one_or_table(lab: Lab, things: Sequence[Machine | Scenario]) -> Machine | Scenario | MachineTable:
    """Return the only machine or scenario itself, several as a table of machines."""
    if len(things) == 1:
        return things[0]
    return table(lab, [machine for one in things for machine in getattr(one, "machines", [one])])
