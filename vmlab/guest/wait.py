"""Wait for something to become true, and say what was seen last when it does not."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from vmlab.errors import VMLabError, WaitTimeout

__all__ = ["seconds", "until"]

T = TypeVar("T")

#: The first pause between two tries, in seconds; each later one is half as long again, up to ``interval``.
FIRST_PAUSE = 0.02


def seconds(value: float) -> str:
    """Return a duration for people: ``0.25 s``, ``12.3 s``, ``130 s``."""
    return f"{value:.2f} s" if value < 1 else f"{value:.1f} s" if value < 100 else f"{value:.0f} s"


def until(
    predicate: Callable[[], T],
    timeout: float | None,
    what: str,
    interval: float = 0.5,
    *,
    evidence: Callable[[], Any] | None = None,
    retry_on: type[VMLabError] | tuple[type[VMLabError], ...] = (),
    hint: str | None = None,
    machine: str | None = None,
) -> T:
    """Call ``predicate`` until it returns something true, and return that.

    It is always called at least once, and once more when the time is up, so that a slow host does not turn a success
    into a failure. The first tries follow each other quickly, later ones every ``interval`` seconds.

    Parameters
    ----------
    predicate
        Called again and again; whatever it raises ends the wait, except ``retry_on``.
    timeout
        Seconds after which to give up; None waits for ever.
    what
        What is waited for, as the end of a sentence: ``"file /run/ready"``, ``"port 80 to be open"``.
    interval
        The longest pause between two tries, in seconds.
    evidence
        Returns what to show when the time is up, such as the last lines of output.
    retry_on
        Errors that only mean "not yet"; the last one is shown when the time is up.
    hint
        The next thing to try, for the error.
    machine
        The machine's name, for the error.

    Raises
    ------
    WaitTimeout
        Carries ``elapsed`` (seconds), ``last`` (the last evidence, error or value) and ``machine``.

    Examples
    --------
    >>> tries = iter([0, 0, 7])
    >>> until(lambda: next(tries), 5, "a lucky number")
    7
    """
    begin = time.monotonic()
    pause = min(FIRST_PAUSE, interval)
    last: Any = None
    while True:
        # Read before the try: a try that began in time counts, however long it took.
        late = timeout is not None and time.monotonic() - begin >= timeout
        error: VMLabError | None = None
        try:
            value = predicate()
        except retry_on as failure:
            error = failure
            last = failure.message
        else:
            if value:
                return value
            last = value
        elapsed = time.monotonic() - begin
        if late:
            raise WaitTimeout(
                f"Waited {seconds(elapsed)} for {what}, in vain"
                + (f" (machine {machine})." if machine else "."),
                hint=hint,
                elapsed=round(elapsed, 3),
                machine=machine,
                last=evidence() if evidence else last,
            ) from error
        if timeout is not None:
            pause = min(pause, max(0.0, timeout - elapsed))
        time.sleep(pause)
        pause = min(max(pause, FIRST_PAUSE) * 1.5, interval)
