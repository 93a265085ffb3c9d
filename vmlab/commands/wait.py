"""Wait until something is so in a machine.

Without an option, until its agent answers and commands can be run.

Examples
--------
wait web                                   # until commands can be run
wait web --port 80 --timeout 30
wait web --serial 'login:'
wait web --screen-still                    # until its screen stops changing
wait d1 --screen-still --tolerance 0.2%    # a clock may tick
wait web --until "test -e /run/done"
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vmlab.commands import _arguments as words
from vmlab.errors import UsageError
from vmlab.render import units
from vmlab.views.notes import Note

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
    from vmlab.lab import Lab
    from vmlab.machine import Machine

GROUP = "inside"
ORDER = 10


def _what(machine: Machine, args: argparse.Namespace) -> tuple[str, Callable[[float], Any]]:
    """Return what is waited for, in words, and how."""
    if args.file:
        return f"file {args.file}", lambda timeout: machine.wait_for_file(args.file, timeout=timeout)
    if args.port:
        return f"port {args.port}", lambda timeout: machine.wait_for_port(args.port, timeout=timeout)
    if args.unit:
        return f"unit {args.unit}", lambda timeout: machine.wait_for_unit(args.unit, timeout=timeout)
    if args.serial:
        return f"'{args.serial}' on the serial line", lambda timeout: machine.wait_for_serial(
            args.serial, timeout=timeout
        )
    if args.screen_still:
        return "a still screen", lambda timeout: machine.wait_for_screen(
            timeout=timeout, tolerance=args.tolerance, area=args.area
        )
    if args.until:
        return f"'{args.until}'", lambda timeout: machine.wait_until_succeeds(args.until, timeout=timeout)
    return "the agent", machine.wait_for_agent


def part(text: str) -> float:
    """Return a part of a whole, from 0 to 1, from ``0.1%`` or ``0.001``."""
    number, percent, rest = text.partition("%")
    try:
        value = float(number) / (100 if percent else 1)
    except ValueError:
        value = -1.0
    if rest or not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no part of a whole; 0.1% or 0.001, for example")
    return value


def area(text: str) -> tuple[int, int, int, int]:
    """Return ``(left, top, right, bottom)`` from ``0,0,640,400``."""
    numbers = [word.strip() for word in text.split(",")]
    if len(numbers) != 4 or not all(number.isdecimal() for number in numbers):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no part of a screen; 0,0,640,400 are left, top, right and bottom, in pixels"
        )
    left, top, right, bottom = map(int, numbers)
    return left, top, right, bottom


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.machine(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--agent", action="store_true", help="the guest agent answers (default)")
    what.add_argument("--file", metavar="PATH", help="this file is there")
    what.add_argument("--port", type=words.port, metavar="PORT", help="something listens on this port")
    what.add_argument("--unit", metavar="UNIT", help="this systemd unit is active")
    words.guests(what.add_argument("--serial", metavar="REGEX", help="this was written on the serial line"))
    what.add_argument("--screen-still", action="store_true", help="the screen has stopped changing")
    words.guests(what.add_argument("--until", metavar="COMMAND", help="this command succeeds"))
    parser.add_argument(
        "--tolerance",
        type=part,
        metavar="PART",
        default=0.0,
        help="how much of a still screen may change: 0.1%% or 0.001 (a blinking cursor, a clock)",
    )
    parser.add_argument(
        "--area",
        type=area,
        metavar="LEFT,TOP,RIGHT,BOTTOM",
        help="look at this part of the screen alone, in pixels",
    )
    words.timeout(parser, default=60.0, help="for how long")


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Note:
    """Return how long it took."""
    if (args.tolerance or args.area) and not args.screen_still:
        raise UsageError("--tolerance and --area are for --screen-still.")
    machine = lab.machine(args.machine)
    started = time.monotonic()
    label, act = _what(machine, args)
    with ui.progress(f"wait for {label} of {machine.name}"):
        act(args.timeout)
    elapsed = time.monotonic() - started
    return Note(
        f"{machine.name}: {label} after {units.duration(elapsed)}",
        machine=machine.name,
        what=label,
        elapsed=round(elapsed, 3),
    )
