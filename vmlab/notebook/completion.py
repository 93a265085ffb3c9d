"""Completion for ``%vm`` and ``%%vm``: verbs, options, machines, snapshots, images.

It reads the same parsers and completers as the shell's completion. It must answer within the blink of a
key, and must never raise: a mistake here would break typing.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vmlab import commands
from vmlab.errors import UsageError

#: What stands before a verb here.
PREFIX = "%vm "

if TYPE_CHECKING:
    from vmlab.lab import Lab

_LINE = re.compile(r"^\s*(?:[A-Za-z_][\w, ]*=\s*)?%vm[ \t]+(?P<rest>.*)$", re.DOTALL)
_CELL = re.compile(r"^\s*%%vm[ \t]+(?P<rest>[^\n]*)$")


def words_before(text: str) -> tuple[str, str] | None:
    """Return ``(kind, what follows the magic)`` for a text up to the cursor; None if there is no magic.

    The kind is ``line`` or ``cell``.
    """
    if match := _CELL.match(text):
        return "cell", match["rest"]
    if match := _LINE.match(text.rsplit("\n", 1)[-1]):
        return "line", match["rest"]
    return None


def complete(kind: str, rest: str, lab: Callable[[], Lab]) -> list[str]:
    """Return what the last word of ``rest`` could become."""
    try:
        done = [word for word, _ in commands.split(rest)]
    except UsageError:  # inside a quote there is nothing to complete
        return []
    prefix = "" if not rest or rest[-1].isspace() else done.pop()
    if kind == "cell":
        from vmlab.notebook.cellline import cell_parser

        return _arguments(cell_parser(), done, prefix, lab)
    if not done:
        return [name for name in commands.verbs() if name.startswith(prefix)]
    known = commands.verbs()
    if done[0] not in known:
        return []
    return _arguments(known[done[0]].parser(PREFIX), done[1:], prefix, lab)


def _arguments(
    parser: argparse.ArgumentParser, done: list[str], prefix: str, lab: Callable[[], Lab]
) -> list[str]:
    """Walk over the words that are there, and complete the next one."""
    places = commands.Places(parser)
    seen = argparse.Namespace()
    for word in done:
        action = places.take(word)
        if action is not None and action.nargs in ("+", "*"):
            setattr(seen, action.dest, [*getattr(seen, action.dest, []), word])
        elif action is not None:
            setattr(seen, action.dest, word)
    if places.rest:
        return []  # from here on the words are the guest's
    if places.waiting is not None:
        return _values(places.waiting, prefix, seen, lab)
    if prefix.startswith("-"):
        return [name for name in places.options if name.startswith(prefix) and name.startswith("--")]
    found = _values(places.left[0], prefix, seen, lab) if places.left else []
    if not found and not prefix:
        found = [name for name in places.options if name.startswith("--") and name != "--help"]
    return found


def _values(
    action: argparse.Action, prefix: str, seen: argparse.Namespace, lab: Callable[[], Lab]
) -> list[str]:
    if action.choices is not None:
        return [str(choice) for choice in action.choices if str(choice).startswith(prefix)]
    completer: Any = getattr(action, "completer", None)
    if completer is None:
        return []
    seen.lab = lab()
    # A name with blanks is one word in quotes.
    return [
        shlex.quote(value) if " " in value else value
        for value in map(str, completer(prefix=prefix, parsed_args=seen, action=action))
    ]


def matcher(lab: Callable[[], Lab]) -> Any:
    """Return a matcher for ``ip.Completer.custom_matchers``."""
    from IPython.core.completer import (
        CompletionContext,
        SimpleCompletion,
        SimpleMatcherResult,
        context_matcher,
    )

    @context_matcher(identifier="vmlab")  # type: ignore[untyped-decorator, unused-ignore]
    def vmlab_matcher(context: CompletionContext) -> SimpleMatcherResult:
        found: list[str] = []
        fragment = context.token
        with contextlib.suppress(Exception):
            text = "\n".join(context.full_text.split("\n")[: context.cursor_line + 1])
            last = len(text) - len(text.rsplit("\n", 1)[-1])
            if place := words_before(text[: last + context.cursor_position]):
                rest = place[1]
                fragment = re.split(r"\s", rest)[-1]
                found = complete(*place, lab)
        return SimpleMatcherResult(
            completions=[SimpleCompletion(text=word, type="vmlab") for word in found],
            suppress=bool(found),
            matched_fragment=fragment,
            ordered=True,
        )

    return vmlab_matcher
