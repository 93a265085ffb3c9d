"""Show what machines take of the host, or set what must stay free.

Examples
--------
limits
limits --memory 2G          # leave 2 GiB of RAM free: refuse guests that would not
limits --max-running 8      # at most 8 guests at once; 0 for any number
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from vmlab.commands import _arguments as words

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
    from vmlab.lab import Lab

GROUP = "host"
ORDER = 3


def _number(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of guests")
    return int(text)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("--memory", type=words.memory, metavar="SIZE", help="RAM to leave free, such as 2G")
    parser.add_argument("--disk", type=words.size, metavar="SIZE", help="disk to leave free, such as 10G")
    parser.add_argument(
        "--max-running", type=_number, metavar="N", help="the most guests at once, 0 for any number"
    )


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Any:
    """Return what is taken, and the limits."""
    changes: dict[str, Any] = {}
    if args.memory is not None:
        changes["reserve_memory"] = args.memory
    if args.disk is not None:
        changes["reserve_disk"] = args.disk
    if args.max_running is not None:
        changes["max_running"] = args.max_running
    if changes:
        lab.set_limits(**changes)
    return lab.limits()
