# PYTHON_ARGCOMPLETE_OK
"""The command line: ``vmlab VERB ...``.

Exit status: 0; 1 something failed; 2 the words make no sense; 130 interrupted; ``exec`` and ``script`` end
with the status that the guest's command had. ``VMLAB_DEBUG=1`` shows tracebacks, and what threads and
clean-up have to say.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmlab import commands, language
from vmlab.commands import HelpAsked, Parser, Verb
from vmlab.commands.ui import TerminalUI
from vmlab.errors import CommandFailed, UsageError, VMLabError

if TYPE_CHECKING:
    from vmlab.lab import Lab

PREFIX = "vmlab "
OK, FAILED, USAGE, PIPE, INTERRUPTED = 0, 1, 2, 141, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(_whole_parser())
    if os.environ.get("VMLAB_DEBUG"):
        logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
        logging.getLogger("vmlab").setLevel(logging.DEBUG)
    try:
        with language.spoken("shell"):
            return _main(words)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # `vmlab list | head`: whoever read has seen enough. Python would complain once more when it closes
        # stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE
    except Exception as error:
        if os.environ.get("VMLAB_DEBUG"):
            traceback.print_exc()
        print(
            f"vmlab: {type(error).__name__}: {error}\n"
            "  Next: this is a mistake in vmlab; VMLAB_DEBUG=1 shows where, please report it",
            file=sys.stderr,
        )
        return FAILED


def _main(words: list[str]) -> int:
    options = argparse.Namespace(json="--json" in words[: _verb_place(words)])
    try:
        options = _global_parser().parse_args(words)
        if options.version:
            from importlib.metadata import version

            print(f"vmlab {version('vmlab')}")
            return OK
        if not options.verb:
            return _show_help()
        verb = commands.verb(options.verb, PREFIX)
        args = _verb_parser(verb).parse_args(options.words)
        options.json = options.json or args.json
        return _run(verb, args, options)
    except HelpAsked as asked:
        if asked.parser.prog == "vmlab":
            return _show_help()
        print(asked.parser.format_help(), end="")
        return OK
    except UsageError as error:
        _complain(error, as_json=options.json)
        return USAGE
    except VMLabError as error:
        _complain(error, as_json=options.json)
        return FAILED


def _run(verb: Verb, args: argparse.Namespace, options: argparse.Namespace) -> int:
    ui = TerminalUI(prefix=PREFIX, json=options.json)
    lab = _lab(options.home) if verb.needs_lab else None
    try:
        result = verb.run(lab, args, ui)
    except CommandFailed as error:
        # It is the guest's command that failed, not ours: its output says why, and its status is ours.
        status = error.evidence.get("exit_status")
        if verb.name not in ("exec", "script") or not isinstance(status, int):
            raise
        if options.json or len(getattr(args, "machines", [""])) > 1:
            _complain(error, as_json=options.json)
        return status
    _show(result, options.json)
    return _status(result)


def _lab(home: str | None) -> Lab:
    from vmlab.lab import Lab  # libvirt comes with it: not for help and mistakes

    return Lab(home=Path(home).expanduser()) if home else Lab()


def _status(result: Any) -> int:
    status = getattr(result, "exit_status", None)
    if isinstance(status, int):
        return status
    return FAILED if getattr(result, "ok", True) is False else OK


def _show(result: Any, as_json: bool) -> None:
    from vmlab.render.view import View, wants_colour

    if not as_json and (result is None or getattr(result, "silent", False)):
        return
    if isinstance(result, View):
        shown = result.to_json() if as_json else result.text(colour=wants_colour(sys.stdout))
    else:
        from vmlab.views import dispatch

        shown = (
            dispatch.to_json(result) if as_json else dispatch.text(result, colour=wants_colour(sys.stdout))
        )
    if as_json:
        print(json.dumps(shown, indent=2, ensure_ascii=False, default=str))
    elif shown:
        print(shown)


def _complain(error: VMLabError, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(error.to_json(), indent=2, ensure_ascii=False, default=str))
    if os.environ.get("VMLAB_DEBUG"):
        traceback.print_exception(error)
        return
    first, *rest = error.lines()
    print("\n".join([f"vmlab: {first}", *rest]), file=sys.stderr)


def _show_help() -> int:
    verb = commands.verb("help")
    _show(verb.run(None, argparse.Namespace(verb=None), TerminalUI(prefix=PREFIX)), as_json=False)
    print(
        "\nOptions before the verb: --home FOLDER (another store), --json (results for programs), --version"
    )
    return OK


def _global_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--home", metavar="FOLDER", help="the store to work on instead of yours")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--version", action="store_true", help="print the version")


def _global_parser() -> Parser:
    parser = Parser("vmlab")
    _global_arguments(parser)
    parser.add_argument("verb", metavar="VERB", nargs="?")
    parser.add_argument("words", nargs=argparse.REMAINDER)
    return parser


def _verb_parser(verb: Verb) -> Parser:
    parser = verb.parser(PREFIX)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def _whole_parser() -> argparse.ArgumentParser:
    """Return one parser with all verbs below it, as argcomplete needs it."""
    parser = argparse.ArgumentParser("vmlab")
    _global_arguments(parser)
    below = parser.add_subparsers(dest="verb", parser_class=argparse.ArgumentParser)
    for verb in commands.verbs().values():
        each = below.add_parser(verb.name, help=verb.summary)
        verb.module.arguments(each)
        each.add_argument("--json", action="store_true")
    return parser


def _verb_place(words: Sequence[str]) -> int:
    """Return where the verb stands, to know which options are ours before they are read."""
    skip = False
    for place, word in enumerate(words):
        if skip:
            skip = False
        elif word == "--home":
            skip = True
        elif not word.startswith("-"):
            return place
    return len(words)


if __name__ == "__main__":
    sys.exit(main())
