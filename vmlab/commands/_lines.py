"""Reading a line that no shell has read: words, comments, and a notebook's variables.

``{expression}`` and ``$name`` are taken as IPython does, but word by word: in quotes a value stays in its word, outside
it may be several, as in a shell; a quote in a value is no quote of the line. ``{{``, ``}}`` and ``$$`` are the signs
themselves, and in single quotes ``$name`` stays as it is. What goes to the guest is not touched at all.
"""

from __future__ import annotations

import argparse
import builtins
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

from vmlab.commands._verbs import Parser, Verb
from vmlab.errors import UsageError
from vmlab.render.shown import Shown

_DOLLAR = re.compile(r"\$([A-Za-z_]\w*)((?:\.[A-Za-z_]\w*)*)")
_PAIRS = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True)
class _Hole:
    """A place for a variable's value: the text that stands there, and the value's text or why there is none."""

    source: str
    value: str | None
    trouble: str
    quoted: bool


@dataclass
class Line:
    """A line that was read."""

    #: Each word with the place where it begins.
    words: list[tuple[str, int]] = field(default_factory=list)
    #: Whether it ends in ``;``: then IPython shows no result.
    silent: bool = False
    #: Whether variables are wanted in what goes to the guest.
    expand: bool = False

    @property
    def texts(self) -> list[str]:
        """The words alone."""
        return [text for text, _ in self.words]


class Places:
    """Which argument of a parser the words of a line are for, one after the other."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.options = {name: action for action in parser._actions for name in action.option_strings}
        self.left = [action for action in parser._actions if not action.option_strings]
        #: An option whose value comes next.
        self.waiting: argparse.Action | None = None
        self._ended = False

    @property
    def rest(self) -> bool:
        """Whether all that comes is one argument, options included."""
        return self.waiting is None and bool(self.left) and self.left[0].nargs == argparse.REMAINDER

    def option(self, word: str) -> argparse.Action | None:
        """Return the option that a word is, also with its value behind it."""
        if self.waiting is not None or self._ended or self.rest or not word.startswith("-"):
            return None
        name = word.partition("=")[0] if word.startswith("--") else word[:2]
        return self.options.get(name)

    def of(self, word: str) -> argparse.Action | None:
        """Return what the next word is for, if it begins like this."""
        return self.waiting or self.option(word) or (self.left[0] if self.left else None)

    def take(self, word: str) -> argparse.Action | None:
        """Go past a word, and return whose value it is: None for an option's own name."""
        if self.waiting is not None:
            action, self.waiting = self.waiting, None
            return action
        if (option := self.option(word)) is not None:
            if option.nargs != 0 and word in self.options:
                self.waiting = option
            return None
        if word == "--" and not self._ended and not self.rest:
            self._ended = True
            return None
        if not self.left:
            return None
        action = self.left[0]
        if action.nargs not in ("+", "*", argparse.REMAINDER):
            self.left.pop(0)
        return action


def parse_line(
    found: Verb, rest: str, prefix: str = "%vm ", names: Mapping[str, Any] | None = None
) -> argparse.Namespace:
    """Read what was typed after the verb in a notebook, where no shell has split it.

    Parameters
    ----------
    names
        The variables whose values can be put in; without them nothing is.

    Raises
    ------
    UsageError
        The words make no sense, or a variable stands for a name and is not known.
    """
    parser = found.parser(prefix)
    line = read(rest, parser, names)
    args = parser.parse_args(line.texts)
    args.silent = line.silent
    if found.raw and (tail := getattr(args, found.raw)):
        separated = tail[0] == "--" and len(tail) > 1
        start = line.words[len(line.words) - len(tail) + separated][1]
        # One quoted word is the shell text itself, as it would be after a real shell.
        typed = rest[start:].strip()
        args.typed = None if len(tail) - separated == 1 else fill(typed, names) if line.expand else typed
    return args


def verb_of(text: str, names: Mapping[str, Any] | None = None) -> tuple[str, str]:
    """Return the verb that a line begins with, and what follows it."""
    at = _past_blanks(text, 0)
    if text[at : at + 1] in ("", "#"):
        return "", ""
    parts, end = _word(text, at, names)
    words = _words_of([part if isinstance(part, str) else _filled(part, free=False) for part in parts])
    name = " ".join(words)
    if name.endswith(";") and not text[end:].strip():
        return name[:-1], ";"
    return name, text[end:]


def read(text: str, parser: Parser, names: Mapping[str, Any] | None = None) -> Line:
    """Read a line of words for ``parser``, with the values of variables."""
    line = _read(text, parser, names, expand=False)
    return _read(text, parser, names, expand=True) if line.expand else line


def _read(text: str, parser: Parser, names: Mapping[str, Any] | None, *, expand: bool) -> Line:
    line = Line()
    places = Places(parser)
    before: argparse.Action | None = None
    at = 0
    while (at := _past_blanks(text, at)) < len(text):
        action = places.of(re.match(r"\S*", text[at:])[0])  # type: ignore[index]  # it always matches
        guests = places.rest or getattr(action, "guest", False)
        if not guests and text[at] == "#":
            break
        parts, end = _word(text, at, names if expand or not guests else None)
        if not guests and text[end - 1] == ";" and re.fullmatch(r"\s*(\s#.*)?", text[end:], re.DOTALL):
            last = parts.pop() if parts else ""
            assert isinstance(last, str)
            line.silent = True
            if last != ";":
                parts.append(last[:-1])
        # A text that may have a name before it: a variable alone in that place is meant as the name.
        names_it = action is not before and getattr(action, "nargs", None) == "*" and len(parts) == 1
        before = action
        free = guests or (getattr(action, "free", False) and not names_it)
        for word in _words_of(
            [part if isinstance(part, str) else _filled(part, free=free) for part in parts]
        ):
            option = places.option(word)
            places.take(word)
            line.expand |= getattr(option, "dest", "") == "expand"
            line.words.append((word, at))
        at = end
    return line


def split(line: str) -> list[tuple[str, int]]:
    """Split a line like a shell, without expansions; return each word with the place where it begins.

    Raises
    ------
    UsageError
        A quote is not closed.
    """
    words = []
    at = 0
    while (at := _past_blanks(line, at)) < len(line):
        parts, end = _word(line, at, None)
        words.append(("".join(str(part) for part in parts), at))
        at = end
    return words


def fill(text: str, names: Mapping[str, Any] | None) -> str:
    """Return a text for the guest with the values of variables; what is none stays as it stands."""
    out, at = "", 0
    while at < len(text):
        piece, at = _sign(text, at, names, quote='"')
        if isinstance(piece, _Hole):
            piece = piece.source if piece.value is None else piece.value
        out += piece
    return out


def _past_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _word(line: str, at: int, names: Mapping[str, Any] | None) -> tuple[list[str | _Hole], int]:
    """Read the word that begins at ``at``; return its parts, and where it ends."""
    parts: list[str | _Hole] = []
    quote = ""
    while at < len(line):
        char = line[at]
        if not quote and char.isspace():
            break
        if char == quote or (not quote and char in "'\""):
            quote = "" if quote else char
            parts.append("")  # a word, even if nothing stands in its quotes
            at += 1
        elif (
            char == "\\" and line[at + 1 : at + 2] and (not quote or (quote == '"' and line[at + 1] in '"\\'))
        ):
            parts.append(line[at + 1])
            at += 2
        else:
            piece, at = _sign(line, at, names, quote=quote)
            parts.append(piece)
    if quote:
        raise UsageError(
            f"A quote ({quote}) is not closed.",
            hint=f"close it, or write \\{quote} where the sign itself is meant",
            line=line.strip(),
        )
    return parts, at


def _sign(text: str, at: int, names: Mapping[str, Any] | None, *, quote: str) -> tuple[str | _Hole, int]:
    """Return the sign or the place for a value that stands at ``at``, and where the next one does."""
    char = text[at]
    if names is None or char not in "{}$" or (char == "$" and quote == "'"):
        return char, at + 1
    if text[at + 1 : at + 2] == char:
        return char, at + 2
    if char == "$" and (match := _DOLLAR.match(text, at)):
        return _by_name(match, names, quoted=bool(quote))
    if char == "{" and (end := _closing(text, at)) and (read := _expression(text[at + 1 : end])):
        value, trouble = _worked_out(*read, names)
        return _Hole(text[at : end + 1], value, trouble, bool(quote)), end + 1
    return char, at + 1


def _by_name(match: re.Match[str], names: Mapping[str, Any], *, quoted: bool) -> tuple[_Hole, int]:
    name, attributes = match[1], match[2]
    if name not in names:
        return _Hole(f"${name}", None, f"There is no variable '{name}'.", quoted), match.end(1)
    value, end = names[name], match.end(1)
    for attribute in attributes.split(".")[1:]:
        if not hasattr(value, attribute):
            break  # $name.png
        value = getattr(value, attribute)
        end += 1 + len(attribute)
    return _Hole(match.string[match.start() : end], _text(value), "", quoted), end


def _closing(text: str, at: int) -> int | None:
    """Return where the brace that opens at ``at`` is closed; None if nowhere."""
    waiting: list[str] = []
    quote = ""
    while at < len(text):
        char = text[at]
        if quote:
            if char == "\\":
                at += 1
            elif char == quote:
                quote = ""
        elif char in "'\"":
            quote = char
        elif char in _PAIRS:
            waiting.append(_PAIRS[char])
        elif waiting and char == waiting[-1]:
            waiting.pop()
            if not waiting:
                return at
        at += 1
    return None


def _expression(source: str) -> tuple[CodeType, str, str] | None:
    """Return the code, the conversion and the format of what stands in braces; None if it is no Python."""
    for place in [len(source), *(i for i, char in enumerate(source) if char in "!:")]:
        match = re.fullmatch(r"(?:!([rsa]))?(?::(.*))?", source[place:], re.DOTALL)
        if match is None or not source[:place].strip():
            continue
        try:
            code = compile(source[:place].strip(), source, "eval")
        except (SyntaxError, ValueError):
            continue
        return code, match[1] or "", match[2] or ""
    return None


def _worked_out(
    code: CodeType, conversion: str, form: str, names: Mapping[str, Any]
) -> tuple[str | None, str]:
    try:
        # The person's own expression, in the person's own kernel.
        value = eval(code, {"__builtins__": builtins, **names})  # noqa: S307
        if conversion:
            value = (ascii if conversion == "a" else repr if conversion == "r" else str)(value)
        return format(value, form) if form else _text(value), ""
    except NameError as error:
        return None, f"There is no variable '{error.name or error}'."
    except Exception as error:
        return None, f"{{{code.co_filename}}} cannot be worked out ({type(error).__name__}: {error})."


def _text(value: Any) -> str:
    """Return a value as a word; machines, snapshots and images stand for their names."""
    name = getattr(value, "name", None) if isinstance(value, Shown) else None
    return name if isinstance(name, str) else str(value)


def _filled(hole: _Hole, *, free: bool) -> _Hole:
    if hole.value is not None:
        return hole
    if free:
        return _Hole(hole.source, hole.source, "", quoted=True)
    sign = hole.source[0]
    raise UsageError(
        hole.trouble,
        hint=f"set it first; where the sign itself is meant, write {sign * 2}",
        at=hole.source,
    )


def _words_of(parts: list[str | _Hole]) -> list[str]:
    """Join parts to words; a value outside quotes may be several, or none."""
    words: list[str] = []
    word: str | None = None
    for part in parts:
        if isinstance(part, str):
            word = (word or "") + part
            continue
        value = part.value or ""
        if part.quoted:
            word = (word or "") + value
            continue
        for i, piece in enumerate(re.split(r"\s+", value)):
            if i and word is not None:
                words.append(word)
                word = None
            if piece:
                word = (word or "") + piece
    return words if word is None else [*words, word]
