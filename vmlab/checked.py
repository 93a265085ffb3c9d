"""Public methods say what they take when they are given something else, instead of failing somewhere below."""

from __future__ import annotations

import difflib
import functools
import inspect
import os
import re
import types
import typing
from collections import abc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from vmlab.errors import UsageError

Class = TypeVar("Class", bound=type)
Method = TypeVar("Method", bound=Callable[..., Any])

_WORDS = {
    str: "a text", int: "a whole number", float: "a number", bool: "True or False", bytes: "bytes", Path: "a path",
}  # fmt: skip


def checked(cls: Class) -> Class:
    """Let the public methods of a class refuse arguments that are not of the kinds in their signatures.

    Types that are imported for type checkers only are told by its ``_late_types()``, if it has that.
    """
    for name, method in list(vars(cls).items()):
        if inspect.isfunction(method) and not name.startswith("_"):
            if late := getattr(cls, "_late_types", None):
                method.late_types = late  # type: ignore[attr-defined]  # functions have attributes
            setattr(cls, name, _checking(method))
    return cls


def takes_options_of(target: Callable[[], Any]) -> Callable[[Method], Method]:
    """Say that a method hands its ``**options`` on to what ``target()`` is, whose signature says what they are."""

    def mark(method: Method) -> Method:
        method.options_of = target  # type: ignore[attr-defined]  # functions have attributes
        return method

    return mark


def _checking(method: Any) -> Any:
    signature = inspect.signature(method)
    target = getattr(method, "options_of", None)

    @functools.wraps(method)
    def call(*args: Any, **options: Any) -> Any:
        try:
            bound = signature.bind(*args, **options)
        except TypeError as error:
            raise _misfit(method, signature, str(error)) from None
        hints = _hints(method)
        for name, value in bound.arguments.items():
            parameter = signature.parameters[name]
            if parameter.kind is parameter.VAR_KEYWORD and target is not None:
                _check_options(method, target(), value)
                continue
            if name not in hints or parameter.kind is parameter.VAR_KEYWORD:
                continue
            for one in value if parameter.kind is parameter.VAR_POSITIONAL else (value,):
                if not _fits(one, hints[name]):
                    raise _wrong(method, name, one, hints[name])
        return method(*args, **options)

    return call


def _check_options(method: Any, target: Any, options: Mapping[str, Any]) -> None:
    known, hints = inspect.signature(target).parameters, _hints(target)
    for name, value in options.items():
        if name not in known:
            why = f"got an unexpected keyword argument '{name}'"
            raise _misfit(method, inspect.signature(target), why)
        if name in hints and not _fits(value, hints[name]):
            raise _wrong(method, name, value, hints[name], documented=target)


@functools.cache
def _hints(method: Any) -> dict[str, Any]:
    """Return the types of a function's arguments; a class that is imported later is asked of where it is named."""
    plain = inspect.unwrap(method)
    if inspect.isclass(plain):
        return typing.get_type_hints(plain)
    late: dict[str, Any] = getattr(plain, "late_types", dict)()
    taken = {name: kind for name, kind in plain.__annotations__.items() if name != "return"}
    return typing.get_type_hints(types.SimpleNamespace(__annotations__=taken), plain.__globals__, late)


def _fits(value: Any, kind: Any) -> bool:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is typing.Literal:
        return isinstance(value, str) and value in inner
    if kind in (None, types.NoneType):
        return value is None
    if kind is bool:
        return (
            isinstance(value, bool)
            or type(value).__name__ == "bool_"
            or (isinstance(value, int) and value in (0, 1))
        )
    if kind in (int, float):
        return _is_number(value, whole=kind is int)
    if kind is bytes:
        return isinstance(value, bytes | bytearray | memoryview)
    if kind is Path:
        return isinstance(value, os.PathLike)
    if origin is abc.Callable:
        return callable(value)
    if origin is abc.Mapping:
        return isinstance(value, abc.Mapping)
    if origin in (abc.Sequence, abc.Iterable, list, tuple):
        # A text is a sequence of texts for Python alone. What can be gone over only once is not looked into.
        if isinstance(value, str | bytes) or not isinstance(value, abc.Iterable):
            return False
        return not isinstance(value, abc.Collection) or all(_fits(one, inner[0]) for one in value)
    if inspect.isclass(origin):
        return isinstance(value, origin)
    if inspect.isclass(kind) and not getattr(kind, "_is_protocol", False):
        return isinstance(value, kind)
    return True


def _is_number(value: Any, *, whole: bool) -> bool:
    """Whether it is one; numpy's are, too, and 512.0 is a whole one."""
    if isinstance(value, bool | str | bytes) or not hasattr(value, "__float__"):
        return False
    try:
        return not whole or int(value) == value
    except (TypeError, ValueError, OverflowError):
        return False


def _wrong(method: Any, name: str, value: Any, kind: Any, documented: Any = None) -> UsageError:
    shown = repr(value)
    return UsageError(
        f"{method.__name__}() takes {_form(kind)} as {name}, not {shown[:60]}{'...' if len(shown) > 60 else ''}.",
        hint=_described(documented or method, name),
    )


def _misfit(method: Any, signature: inspect.Signature, why: str) -> UsageError:
    own = [name for name in signature.parameters if name != "self"]
    hint = None
    if match := re.search(r"unexpected keyword argument '(\w+)'", why):
        near = difflib.get_close_matches(match[1], own, n=1)
        hint = f"did you mean {near[0]}=?" if near else None
    bare = [one.replace(annotation=one.empty) for one in signature.parameters.values() if one.name != "self"]
    form = f"{method.__name__}{inspect.Signature(bare)}"
    return UsageError(f"{method.__name__}(): {why}.", hint=hint or form)


def _form(kind: Any) -> str:
    """Return a type in words."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_form(one) for one in inner if one is not types.NoneType))
    if origin is typing.Literal:
        return " or ".join(f"'{one}'" for one in inner)
    if origin is abc.Callable:
        return "a function"
    if origin is abc.Mapping:
        return "a mapping"
    if origin in (abc.Sequence, abc.Iterable, list, tuple):
        return "a list"
    if kind in _WORDS:
        return _WORDS[kind]
    return f"a {getattr(kind, '__name__', 'value')}"


def _described(method: Any, name: str) -> str | None:
    """Return what the documentation says of a parameter."""
    lines = inspect.getdoc(method).splitlines() if method.__doc__ else []  # type: ignore[union-attr]
    for i, line in enumerate(lines):
        if name in re.split(r"[ ,]+", line) and lines[i + 1 : i + 2] and lines[i + 1].startswith("    "):
            said = []
            for below in lines[i + 1 :]:
                if not below.startswith("    "):
                    break
                said.append(below.strip())
            return f"{name}: {' '.join(said)}"
    return None
