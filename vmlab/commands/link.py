"""Show or change how a machine's cable to a network is.

Only what is named changes, in both directions, also while the machine runs; it stays over restarts and reverts. With
--down the cable is pulled, which the guest sees.

Examples
--------
link web lan
link web lan --delay 200ms --loss 10%
link web lan --rate 2M --jitter 20ms
link web lan --down
link web lan --clear        # a perfect link again
"""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from vmlab.commands import _arguments as words
from vmlab.commands import _names
from vmlab.views.networks import NetworkTable

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
    from vmlab.lab import Lab

GROUP = "machines"
ORDER = 12


def _time(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(ms|s)", text.strip())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time; write it like 200ms or 1.5s")
    return float(match[1]) / {"ms": 1000, "s": 1}[match[2]]


def _part(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?%", text.strip())
    if not match or float(match[1]) > 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a part of frames; write it like 10%")
    return float(match[1]) / 100


def _rate(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMG])(?:bit(?:/s)?)?", text.strip())
    if not match:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of bits a second; write it like 500k or 2M"
        )
    return round(float(match[1]) * {"k": 10**3, "M": 10**6, "G": 10**9}[match[2]])


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.machine(parser)
    words.completed(parser.add_argument("network", metavar="NETWORK", help="the network"), _names.networks)
    parser.add_argument("--delay", type=_time, metavar="TIME", help="how long a frame is under way")
    parser.add_argument("--jitter", type=_time, metavar="TIME", help="by how much that varies")
    parser.add_argument("--loss", type=_part, metavar="PART", help="how many frames are lost, such as 10%%")
    parser.add_argument("--rate", type=_rate, metavar="BITS", help="bits a second, such as 2M")
    state = parser.add_mutually_exclusive_group()
    state.add_argument("--up", action="store_true", default=None, help="put the cable in again")
    state.add_argument("--down", dest="up", action="store_false", default=None, help="pull it")
    parser.add_argument("--clear", action="store_true", help="make it a perfect link, but for what is named")


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> NetworkTable:
    """Return the network with the machine's cards."""
    machine = lab.machine(args.machine)
    changes = {
        what: getattr(args, what)
        for what in ("delay", "jitter", "loss", "rate", "up")
        if getattr(args, what) is not None
    }
    if changes or args.clear:
        machine.link(args.network, clear=args.clear, **changes)
    from vmlab.machines.networks import full_name

    network = full_name(lab.store, machine.name, args.network)
    return NetworkTable([lab.network(network).of(machine.name)])
