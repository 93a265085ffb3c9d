"""Finding the verbs, reading their words, running them."""

from __future__ import annotations

import argparse
import difflib
import importlib
import inspect
import pkgutil
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any, NoReturn

from vmlab.errors import UsageError, VMLabError

if TYPE_CHECKING:
    from vmlab.commands.ui import UI

#: The groups of the help, in order, with what stands above them.
GROUPS = {
    "machines": "Machines",
    "scenarios": "Scenarios: several machines and their networks",
    "snapshots": "Snapshots: go back, branch off",
    "inside": "Inside a machine",
    "host": "Images and host",
}


#: The help of an option that ``%vm`` adds where something goes to the guest.
EXPAND = "put the values of {expression} and $name into what goes to the guest, too"


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

    The module's docstring is its help: first line, text, and under ``Examples`` lines of the form ``words of the
    command   # what it does``, or ``vmlab words`` where it works on the command line alone. It has
    ``arguments(parser)`` and ``run(lab, args, ui)``, and may have ``GROUP`` (a key of :data:`GROUPS`), ``ORDER``
    (place in its group), ``NEEDS_LAB = False``, and ``RAW``: the name of an ``argparse.REMAINDER`` argument that
    ``%vm`` passes on as it was typed, quotes and pipes included.
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
        parser = Parser(
            f"{prefix}{self.name}",
            description="\n\n".join(
                _wrapped(part) for part in [f"{self.summary}.", *self.text.split("\n\n")]
            ).strip(),
        )
        self.module.arguments(parser)
        guests = [action for action in parser._actions if getattr(action, "guest", False)]
        if guests and prefix.startswith("%"):
            parser.add_argument("--expand", action="store_true", help=EXPAND)
        # Behind words that are all the guest's a comment would be the guest's, too: there it stands above.
        above = any(action.nargs in ("+", argparse.REMAINDER) for action in guests)
        if lines := self._lines(prefix, above=above):
            parser.epilog = "\n".join(["examples:", *(f"  {line}" for line in lines)])
        return parser

    def _lines(self, prefix: str, *, above: bool) -> list[str]:
        """Return the examples as they are typed behind ``prefix``, each as it can be copied."""
        lines = []
        for words, what in self.examples:
            if words.startswith("vmlab ") and prefix.startswith("%"):
                continue
            line = prefix + words.removeprefix("vmlab ")
            if what and above:
                lines += [f"# {what}", line]
            else:
                lines.append(f"{line}   # {what}" if what else line)
        return lines

    def run(self, lab: Any, args: argparse.Namespace, ui: UI) -> Any:
        """Do it, and return the result; whoever it has to wait for is named through ``ui``."""
        if lab is not None:
            lab.tell = ui.say
        try:
            return self.module.run(lab, args, ui)
        except VMLabError as error:
            error.by_verb = True
            raise


def _wrapped(paragraph: str) -> str:
    width = min(100, shutil.get_terminal_size((100, 40)).columns)
    return "\n".join(textwrap.wrap(" ".join(paragraph.split()), width))


@cache
def verbs() -> dict[str, Verb]:
    """Return all verbs by name, in the order of the help.

    A module whose name is a word of Python ends in an underscore, which is not part of the verb.
    """
    found = []
    for info in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if info.name.startswith("_") or info.name == "ui":
            continue
        module = importlib.import_module(f"{__package__}.{info.name}")
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
