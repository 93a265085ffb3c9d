"""Wait until something is so in a machine.

Without an option, until its agent answers and commands can be run.

Examples
--------
wait web                                   # until commands can be run
wait web --port 80 --timeout 30
wait web --serial 'login:'
wait d1 --screen-still                     # until its screen stops changing
wait web --until "test -e /run/done"
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vmlab.commands import _arguments as words
from vmlab.render import units
from vmlab.render.results import Note

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
    from vmlab.lab import Lab
    from vmlab.machine import Machine

GROUP = "inside"
ORDER = 9


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
        return "a still screen", lambda timeout: machine.wait_for_screen(timeout=timeout)
    if args.until:
        return f"'{args.until}'", lambda timeout: machine.wait_until_succeeds(args.until, timeout=timeout)
    return "the agent", machine.wait_for_agent


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.machine(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--agent", action="store_true", help="the guest agent answers (default)")
    what.add_argument("--file", metavar="PATH", help="this file is there")
    what.add_argument("--port", type=words.port, metavar="PORT", help="something listens on this port")
    what.add_argument("--unit", metavar="UNIT", help="this systemd unit is active")
    what.add_argument("--serial", metavar="REGEX", help="this was written on the serial line")
    what.add_argument("--screen-still", action="store_true", help="the screen has stopped changing")
    what.add_argument("--until", metavar="COMMAND", help="this command succeeds")
    words.timeout(parser, default=60.0, help="for how long")


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Note:
    """Return how long it took."""
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
