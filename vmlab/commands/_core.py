"""Finding the verbs, reading their words, running them."""

from __future__ import annotations

import argparse
import difflib
import importlib
import inspect
import pkgutil
import shutil
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any, NoReturn

from vmlab.errors import UsageError

if TYPE_CHECKING:
    from vmlab.commands.ui import UI

#: The groups of the help, in order, with what stands above them.
GROUPS = {
    "machines": "Machines",
    "snapshots": "Snapshots: go back, branch off",
    "inside": "Inside a machine",
    "host": "Images and host",
}


class HelpAsked(Exception):
    """Somebody asked for help of a verb with ``-h``; not an error."""

    def __init__(self, parser: Parser) -> None:
        super().__init__(parser.prog)
        self.parser = parser


class _Help(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, **_: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help="show this help")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        assert isinstance(parser, Parser)
        raise HelpAsked(parser)


class Parser(argparse.ArgumentParser):
    """An argument parser that raises :class:`UsageError` where argparse ends the process."""

    def __init__(self, prog: str, **options: Any) -> None:
        # Without abbreviations: what is unambiguous today would break when an option is added.
        super().__init__(
            prog,
            add_help=False,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,
        )
        self.add_argument("-h", "--help", action=_Help)

    def error(self, message: str) -> NoReturn:
        """Raise the mistake with the usage line, and the nearest option if one was misspelt."""
        near = ""
        for word in message.split():
            if word.startswith("--") and "unrecognized" in message:
                known = [o for action in self._actions for o in action.option_strings]
                if close := difflib.get_close_matches(word.split("=")[0], known, n=1):
                    near = f" Did you mean {close[0]}?"
        raise UsageError(
            f"{self.prog}: {message}.{near}",
            hint=f"{self.prog} --help explains it",
            usage=" ".join(self.format_usage().removeprefix("usage:").split()),
        )

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Never end the process: in a notebook that would be the kernel."""
        raise UsageError((message or f"{self.prog} ended").strip())

    def print_help(self, file: IO[str] | None = None) -> None:  # type: ignore[override]
        """Print the help; kept for argparse's own callers."""
        raise HelpAsked(self)


@dataclass(frozen=True)
class Verb:
    """A verb: a module of this package.

    The module's docstring is its help: first line, text, and under ``Examples`` lines of the form ``words
    of the command   # what it does``. It has ``arguments(parser)`` and ``run(lab, args, ui)``, and may have
    ``GROUP`` (a key of :data:`GROUPS`), ``ORDER`` (place in its group), ``NEEDS_LAB = False``, and ``RAW``:
    the name of an ``argparse.REMAINDER`` argument that ``%vm`` passes on as it was typed, quotes and pipes
    included.
    """

    name: str
    module: ModuleType

    @property
    def doc(self) -> str:
        """The whole help text."""
        return inspect.cleandoc(self.module.__doc__ or "")

    @property
    def summary(self) -> str:
        """The first line, without its full stop."""
        return self.doc.split("\n", 1)[0].rstrip(".")

    @property
    def text(self) -> str:
        """What stands between the first line and the examples."""
        body = self.doc.split("\n", 1)[1] if "\n" in self.doc else ""
        return body.split("Examples\n--------", 1)[0].strip()

    @property
    def examples(self) -> list[tuple[str, str]]:
        """``(words of the command, what it does)``."""
        if "Examples\n--------" not in self.doc:
            return []
        found = []
        for line in self.doc.split("Examples\n--------", 1)[1].splitlines():
            words, _, what = line.strip().partition("  # ")
            if words:
                found.append((words.strip(), what.strip()))
        return found

    @property
    def group(self) -> str:
        """A key of :data:`GROUPS`."""
        return str(getattr(self.module, "GROUP", "host"))

    @property
    def order(self) -> int:
        """Its place in the group."""
        return int(getattr(self.module, "ORDER", 50))

    @property
    def raw(self) -> str | None:
        """The argument that is passed on as typed."""
        return getattr(self.module, "RAW", None)

    @property
    def needs_lab(self) -> bool:
        """Whether it acts on a lab."""
        return bool(getattr(self.module, "NEEDS_LAB", True))

    def parser(self, prefix: str = "") -> Parser:
        """Return a new parser; ``prefix`` (``%vm `` or ``vmlab ``) stands before the verb in its texts."""
        epilog = "\n".join(
            f"  {prefix}{words}{'   # ' + what if what else ''}" for words, what in self.examples
        )
        parser = Parser(
            f"{prefix}{self.name}",
            description="\n\n".join(
                _wrapped(part) for part in [f"{self.summary}.", *self.text.split("\n\n")]
            ).strip(),
            epilog=f"examples:\n{epilog}" if epilog else None,
        )
        self.module.arguments(parser)
        return parser

    def run(self, lab: Any, args: argparse.Namespace, ui: UI) -> Any:
        """Do it, and return the result; whoever it has to wait for is named through ``ui``."""
        if lab is not None:
            lab.tell = ui.say
        return self.module.run(lab, args, ui)


def _wrapped(paragraph: str) -> str:
    width = min(100, shutil.get_terminal_size((100, 40)).columns)
    return "\n".join(textwrap.wrap(" ".join(paragraph.split()), width))


@cache
def verbs() -> dict[str, Verb]:
    """Return all verbs by name, in the order of the help.

    A module whose name is a word of Python ends in an underscore, which is not part of the verb.
    """
    import vmlab.commands as package

    found = []
    for info in pkgutil.iter_modules(package.__path__):
        if info.name.startswith("_") or info.name == "ui":
            continue
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        found.append(Verb(info.name.rstrip("_"), module))
    groups = list(GROUPS)
    found.sort(key=lambda verb: (groups.index(verb.group), verb.order, verb.name))
    return {verb.name: verb for verb in found}


def verb(name: str, prefix: str = "") -> Verb:
    """Return a verb.

    Raises
    ------
    UsageError
        There is none of that name; says the nearest ones.
    """
    known = verbs()
    if name in known:
        return known[name]
    near = (
        difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        or [v for v in known if v.startswith(name)][:3]
    )
    hint = " or ".join(f"{prefix}{n}" for n in near)
    raise UsageError(
        f"There is no verb '{name}'.",
        hint=f"did you mean {hint}?" if near else f"{prefix}help lists them all",
    )


def parse(found: Verb, words: Sequence[str], prefix: str = "") -> argparse.Namespace:
    """Read the words after the verb.

    Raises
    ------
    UsageError
        They make no sense.
    HelpAsked
        One of them asks for help.
    """
    return found.parser(prefix).parse_args(list(words))


def parse_line(found: Verb, rest: str, prefix: str = "%vm ") -> argparse.Namespace:
    """Read what was typed after the verb in a notebook, where no shell has split it."""
    words = split(rest)
    args = parse(found, [word for word, _ in words], prefix)
    if found.raw and (tail := getattr(args, found.raw)):
        start = words[len(words) - len(tail) + (tail[0] == "--" and len(tail) > 1)][1]
        # One quoted word is the shell text itself, as it would be after a real shell.
        args.typed = None if len(tail) - (tail[0] == "--") == 1 else rest[start:].strip()
    return args


def split(line: str) -> list[tuple[str, int]]:
    """Split a line like a shell, without expansions; return each word with the place where it begins.

    Raises
    ------
    UsageError
        A quote is not closed.
    """
    words: list[tuple[str, int]] = []
    word: list[str] | None = None
    start = 0
    quote = ""
    at = 0
    while at < len(line):
        char = line[at]
        if quote:
            if char == quote:
                quote = ""
            elif char == "\\" and quote == '"' and line[at + 1 : at + 2] in ('"', "\\"):
                at += 1
                word = [*(word or []), line[at]]
            else:
                word = [*(word or []), char]
        elif char.isspace():
            if word is not None:
                words.append(("".join(word), start))
                word = None
        else:
            if word is None:
                word, start = [], at
            if char in "'\"":
                quote = char
            elif char == "\\" and at + 1 < len(line):
                at += 1
                word.append(line[at])
            else:
                word.append(char)
        at += 1
    if quote:
        raise UsageError(f"A quote ({quote}) is not closed.", line=line.strip())
    if word is not None:
        words.append(("".join(word), start))
    return words


Run = Callable[[Any, argparse.Namespace, "UI"], Any]
