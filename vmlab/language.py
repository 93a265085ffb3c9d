"""Hints in the language of who reads them: a notebook's, a command line's, Python's.

A hint is written once, with what is to be typed between backticks:

* `` `%vm start web` `` is a verb: so in a notebook, ``vmlab start web`` on a command line, ``lab["web"].start()`` where
  Python is all there is;
* `` `disks=` `` is an argument: so for who called a method, ``--add-disk`` for who used a verb;
* `` `10 << 30¦10G` `` is a value: the first for who called a method, the second for who used a verb.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Literal

Reader = Literal["notebook", "shell", "python"]

_MARKED = re.compile(r"`(%vm [^`]+|[a-z_]+=|[^`¦]+¦[^`]+)`")
#: Options that are called otherwise than their argument in Python.
OPTIONS = {
    "disks": "--add-disk",
    "forwards": "--forward",
    "accelerator": "--accel",
    "keep": "--no-keep",
    "nics": "--nic",
}
#: Verbs that are about no machine, or called otherwise in Python.
_CALLS = {
    "list": "lab.machines",
    "up": 'lab.up("{0}")',
    "images": "lab.images",
    "images --build": 'lab.build("{0}")',
    "images --delete": 'lab.image("{0}").delete()',
    "import": "lab.import_image(...)",
    "network": "lab.networks",
    "link": 'lab["{0}"].link("{1}", ...)',
    "network --delete": 'lab.delete_network("{0}")',
    "limits": "lab.limits()",
    "limits --memory": "lab.set_limits(reserve_memory=...)",
    "limits --disk": "lab.set_limits(reserve_disk=...)",
    "limits --max-running": "lab.set_limits(max_running=...)",
    "timeline": "lab.timeline(...)",
    "search": "lab.search(...)",
    "doctor": "lab.doctor()",
    "collect": "lab.collect()",
    "exec": 'lab["{0}"].execute(...)',
    "wait": 'lab["{0}"].wait_for_agent()',
    "diff": "lab.diff(...)",
    "forget": 'lab["{0}"].find("{1}").forget()',
    "verify": 'lab["{0}"].find("{1}").verify()',
}

#: Options that have a value.
_VALUED = ("--memory", "--disk", "--snapshot", "--timeout")

_reader: Reader = "python"


def speak(reader: Reader) -> None:
    """Say who reads from now on."""
    global _reader
    _reader = reader


@contextlib.contextmanager
def spoken(reader: Reader) -> Iterator[None]:
    """Say who reads within the block."""
    before = _reader
    speak(reader)
    try:
        yield
    finally:
        speak(before)


def told(text: str, *, by_verb: bool = False) -> str:
    """Return a text for who reads it.

    Parameters
    ----------
    by_verb
        Whether it is about what was asked with a verb, in ``%vm`` or on the command line.
    """

    def one(match: re.Match[str]) -> str:
        marked = match[1]
        if marked.startswith("%vm "):
            return f"`{verb(marked.removeprefix('%vm '))}`"
        if marked.endswith("="):
            return option(marked[:-1]) if by_verb else marked
        return marked.split("¦")[by_verb]

    return _MARKED.sub(one, text)


def option(argument: str) -> str:
    """Return what an argument is called where words are typed."""
    return OPTIONS.get(argument, f"--{argument.replace('_', '-')}")


def verb(words: str) -> str:
    """Return what is typed for a verb, by who reads now."""
    if _reader == "notebook":
        return f"%vm {words}"
    if _reader == "shell":
        return f"vmlab {words}"
    return _call(*words.split())


def _call(verb: str, *rest: str) -> str:
    """Return the call that a verb with its words is in Python."""
    if verb in ("images", "limits", "network") and rest and rest[0].startswith("--"):
        verb, rest = f"{verb} {rest[0]}", rest[1:]
    given: list[str] = []
    keywords: list[str] = []
    words = iter(rest)
    for word in words:
        if not word.startswith("--"):
            given.append(word)
            continue
        value = next(words, "...") if word in _VALUED else "True"
        name = word.removeprefix("--").replace("-", "_")
        keywords.append(f'{name}="{value}"' if word == "--snapshot" else f"{name}={value}")
    if verb in _CALLS and (given or "{" not in _CALLS[verb]):
        return _CALLS[verb].format(*given)
    if verb == "create":
        return f"lab.create({', '.join([*(_quoted(name) for name in given), *keywords])})"
    if not given:
        return f"{'snapshot' if verb == 'forget' else 'machine'}.{verb}()"
    return (
        f"lab[{_quoted(given[0])}].{verb}({', '.join([*(_quoted(name) for name in given[1:]), *keywords])})"
    )


def _quoted(name: str) -> str:
    return f'"{name}"'
