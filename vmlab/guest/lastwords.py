"""What a guest showed and wrote last, in the error about it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from vmlab.errors import SHOWN_LINES, VMLabError
from vmlab.guest import GuestDomain, screen, serial

__all__ = ["last_words"]


@contextlib.contextmanager
def last_words(domain: GuestDomain, folder: Path) -> Iterator[None]:
    """Give an error that comes out of the block the end of the guest's serial line, and its screen.

    Parameters
    ----------
    folder
        As for `screen.screenshot`.
    """
    try:
        yield
    except VMLabError as error:
        error.evidence.setdefault(
            "serial_line", serial.read(domain, SHOWN_LINES).strip() or "nothing was written"
        )
        with contextlib.suppress(VMLabError):
            error.screen = screen.screenshot(domain, folder)
        raise
