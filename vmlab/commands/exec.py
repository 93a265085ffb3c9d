"""Run a command in a machine, and show its output as it comes.

Options stand before the name; everything after it belongs to the guest, comments and {braces} included. On the
command line, the exit status is the guest's.

Examples
--------
exec web -- ls -la /etc
exec web "dmesg | tail"                    # one word in quotes goes through the guest's shell
vmlab exec --stdin web -- tar -x -C /srv < site.tar
exec --user nobody --timeout 10 web id
exec --to etc.tar web "tar -cf - /etc"      # all that it writes, byte for byte
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vmlab.commands import _arguments as words
from vmlab.commands._scripts import check
from vmlab.errors import UsageError
from vmlab.views.commands import Ended

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
    from vmlab.lab import Lab

GROUP = "inside"
ORDER = 1
#: `%vm` passes it on as typed, quotes and pipes included.
RAW = "command"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.timeout(parser, default=None, help="end it after this time")
    parser.add_argument("-u", "--user", metavar="USER", help="as this user instead of root")
    parser.add_argument("-i", "--stdin", action="store_true", help="give it what is piped in as its input")
    parser.add_argument(
        "--to", metavar="FILE", help="write its output to this file instead of showing it, byte for byte"
    )
    parser.add_argument(
        "--no-raise", dest="check", action="store_false", help="a status other than 0 is no error"
    )
    words.machine(parser)
    words.guests(
        parser.add_argument(
            "command", metavar="COMMAND", nargs=argparse.REMAINDER, help="what to run, with its arguments"
        )
    )


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Ended:
    """Return how the command ended."""
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise UsageError(
            f"What shall {args.machine} run?", hint=f"{ui.prefix}exec {args.machine} -- uname -a, for example"
        )
    machine = lab.machine(args.machine)
    # As typed in a notebook, pipes and all; one word is shell text; several were split by a shell and stay
    # as they are.
    line = getattr(args, "typed", None) or (command[0] if len(command) == 1 else command)
    result = machine.execute(
        line,
        timeout=args.timeout,
        user=args.user,
        on_output=ui.output,
        input=ui.input() if args.stdin else None,
        **({"to": args.to} if args.to else {}),
    )
    if args.check:
        check({machine.name: result}, "command")
    return Ended(machine.name, result)
