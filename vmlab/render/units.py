"""Sizes, durations and times as people read them, and text from users made harmless."""

from __future__ import annotations

import re
from datetime import UTC, datetime

#: Control characters except newline and tab, what turns the direction of writing, line separators of Unicode, and
#: halves of characters, which cannot be written. A name or description must not be able to drive a terminal.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def clean(text: object) -> str:
    """Return ``text`` as a string without control characters; it may have several lines."""
    return _CONTROL.sub("\ufffd", str(text))


def line(text: object, keep: str = "") -> str:
    r"""Return ``text`` as one line that can be printed anywhere.

    What is not printable (newlines, control characters, what turns the direction of writing) is escaped as in ``\n``;
    bytes of a path that are no UTF-8 (see :func:`os.fsdecode`) as in ``\xff``. So is a space behind a space, or a name
    could fill a line with them and go on as if it were the next. Characters in ``keep`` stay.
    """
    shown = str(text)
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() or c in keep else _escaped(c) for c in shown)
    return shown if " " in keep else re.sub(r"(?<= ) ", r"\\x20", shown)


def _escaped(char: str) -> str:
    code = ord(char)
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else char.encode("unicode_escape").decode()


def size(count: float | None) -> str:
    """Return a number of bytes in binary units: ``0 B``, ``4.0 KiB``, ``768 MiB``, ``1.5 GiB``."""
    if count is None:
        return "–"
    value = float(count)
    if abs(value) < 1024:
        return f"{value:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if abs(value) < 1024 or unit == "TiB":
            break
    # Three significant figures are enough to compare, and keep the columns narrow.
    return f"{value:.1f} {unit}" if abs(value) < 9.95 else f"{value:.0f} {unit}"


def duration(seconds: float | None) -> str:
    """Return seconds as ``12 ms``, ``0.42 s``, ``12.3 s``, ``2 min 05 s`` or ``1 h 03 min``."""
    if seconds is None:
        return "–"
    if seconds < 0.1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def percent(value: float | None) -> str:
    """Return ``3 %``; one decimal below ten, so that an idle guest is seen to be idle."""
    if value is None:
        return "–"
    return f"{value:.1f} %" if 0 < value < 9.95 else f"{value:.0f} %"


def _aware(when: datetime) -> datetime:
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def absolute(when: datetime) -> str:
    """Return the local date and time to the second."""
    return _aware(when).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def ago(when: datetime, now: datetime | None = None) -> str:
    """Return how long ago ``when`` was: ``just now``, ``12 s ago``, ``5 min ago``, ``4 days ago``."""
    seconds = ((_aware(now) if now else datetime.now(UTC)) - _aware(when)).total_seconds()
    if seconds < 2:
        return "just now"
    if seconds < 60:
        return f"{seconds:.0f} s ago"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min ago"
    if seconds < 86400:
        return f"{seconds // 3600:.0f} h ago"
    days = int(seconds // 86400)
    return "1 day ago" if days == 1 else f"{days} days ago"
