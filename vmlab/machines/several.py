"""One deed on many: at once or in turn, with all their errors gathered."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from vmlab.errors import MachineErrors, VMLabError

T = TypeVar("T")
R = TypeVar("R")

#: More threads than CPUs: most of a deed is waiting for QEMU and libvirt.
AT_ONCE = 8


def several(
    things: Sequence[T], do: Callable[[T], R], *, name: Callable[[T], str] = str, at_once: int = AT_ONCE
) -> list[R]:
    """Do something to each, even if it fails on some; return the results in order.

    Parameters
    ----------
    name
        What a thing is called, for the errors.
    at_once
        How many at a time, in threads: for what mostly waits. 1: in turn, in this thread.

    Raises
    ------
    VMLabError
        The error itself if there was only one thing, else :class:`MachineErrors` with one for each that failed.
    """
    if len(things) == 1:
        return [do(things[0])]
    results: dict[str, R] = {}
    errors: dict[str, BaseException] = {}
    turn = threading.Semaphore(at_once)

    def one(thing: T) -> None:
        with turn:
            try:
                results[name(thing)] = do(thing)
            except VMLabError as error:
                errors[name(thing)] = error
            except Exception as error:
                if at_once == 1:
                    raise  # a mistake of ours: nothing is gained by going on
                errors[name(thing)] = error

    if at_once == 1:
        for thing in things:
            one(thing)
    else:
        threads = [_thread(one, thing, f"vmlab-{name(thing)}") for thing in things]
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)  # with a timeout, so that Ctrl-C is noticed
    if errors:
        raise MachineErrors(errors)
    return [results[name(thing)] for thing in things]


def _thread(target: Callable[[Any], None], thing: Any, name: str) -> threading.Thread:
    thread = threading.Thread(target=target, args=(thing,), name=name, daemon=True)
    thread.start()
    return thread
