"""Pictures of a guest's screen: take them, compare them, wait for one. Works with any guest: no agent is needed."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import io
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image as PillowImage

from vmlab.errors import HypervisorError, UsageError, VMLabError, WaitTimeout, WrongState
from vmlab.guest import GuestDomain
from vmlab.guest.wait import until
from vmlab.render.shown import Shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Difference", "Screenshot", "screenshot", "wait_for_screen"]


@dataclass(frozen=True)
class Difference:
    """What differs between two pictures.

    Attributes
    ----------
    pixels
        How many pixels differ. All of them when the sizes differ.
    total
        How many there are (of the larger picture when the sizes differ).
    box
        ``(left, top, right, bottom)`` of the smallest rectangle around them, right and bottom exclusive; None if equal.
    """

    pixels: int
    total: int
    box: tuple[int, int, int, int] | None

    def __bool__(self) -> bool:
        return self.pixels > 0

    @property
    def fraction(self) -> float:
        """The part of the pixels that differ, from 0 to 1."""
        return self.pixels / self.total if self.total else 0.0

    def __str__(self) -> str:
        if self.box is None:
            return "no pixel differs"
        left, top, right, bottom = self.box
        where = f"x {left}..{right - 1}, y {top}..{bottom - 1}"
        part = f"{self.fraction:.1%}" if self.fraction >= 0.001 else f"{self.fraction * 100:.2g}%"
        return f"{self.pixels} of {self.total} pixels differ ({part}), within {where}"


class Screenshot(Shown):
    """A picture of a guest's screen; a notebook shows it.

    Two of them are equal when every pixel is. Make one with `screenshot`, `Screenshot.open` or from PNG bytes.

    Parameters
    ----------
    image
        The picture; it is converted to RGB.
    machine
        The machine's name, if known.
    png
        The same picture as a PNG file, if it is at hand.
    taken
        When it was taken, if known.
    """

    def __init__(
        self,
        image: PillowImage.Image,
        machine: str | None = None,
        *,
        png: bytes | None = None,
        taken: dt.datetime | None = None,
    ) -> None:
        self._image = image if image.mode == "RGB" else image.convert("RGB")
        self._png = png
        self.machine = machine
        self.taken = taken

    @classmethod
    def open(cls, source: str | Path | bytes) -> Screenshot:
        """Read a picture from a file (PNG, PPM, or any that Pillow knows) or from the bytes of one.

        Raises
        ------
        UsageError
            The file is not there, or not a picture.
        """
        try:
            data = source if isinstance(source, bytes) else Path(source).expanduser().read_bytes()
            image = PillowImage.open(io.BytesIO(data))
            image.load()
        except OSError as error:
            name = "the bytes" if isinstance(source, bytes) else f"'{source}'"
            raise UsageError(
                f"There is no picture in {name}: {error.strerror or 'not a picture format'}."
            ) from error
        return cls(image, png=data if data.startswith(b"\x89PNG") and image.mode == "RGB" else None)

    @property
    def width(self) -> int:
        """Pixels from left to right."""
        return self._image.width

    @property
    def height(self) -> int:
        """Pixels from top to bottom."""
        return self._image.height

    @property
    def size(self) -> tuple[int, int]:
        """``(width, height)`` in pixels."""
        return self._image.size

    @property
    def image(self) -> PillowImage.Image:
        """The picture as a Pillow image, mode RGB."""
        return self._image

    @property
    def png(self) -> bytes:
        """The picture as a PNG file."""
        if self._png is None:
            buffer = io.BytesIO()
            # Level 1: a screen is mostly flat, and higher levels cost ten times the time for a fifth of the size.
            self._image.save(buffer, "PNG", compress_level=1)
            self._png = buffer.getvalue()
        return self._png

    @cached_property
    def array(self) -> NDArray[np.uint8]:
        """The pixels: shape ``(height, width, 3)``, dtype uint8, channels red, green, blue. Read-only."""
        import numpy as np  # slow to import, and most pictures are only looked at

        pixels = np.asarray(self._image)
        pixels.flags.writeable = False
        return pixels

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of size and pixels, so the same for the same picture in another file format."""
        head = f"{self.width}x{self.height} RGB\n".encode()
        return hashlib.sha256(head + self._image.tobytes()).hexdigest()

    @property
    def blank(self) -> bool:
        """Whether the whole screen has one colour: nothing is drawn, or the screen is off."""
        return self._image.getcolors(1) is not None

    def diff(self, other: Screenshot, tolerance: int = 0) -> Difference:
        """Return what differs from another picture.

        Parameters
        ----------
        other
            The picture to compare with.
        tolerance
            A pixel differs when one of its channels (0 to 255) differs by more than this.
        """
        if self.size != other.size:
            width, height = max(self.width, other.width), max(self.height, other.height)
            return Difference(width * height, width * height, (0, 0, width, height))
        import numpy as np

        total = self.width * self.height
        if tolerance:
            changed = (np.abs(self.array.astype(np.int16) - other.array) > tolerance).any(axis=2)
        else:
            changed = (self.array != other.array).any(axis=2)
        rows = np.flatnonzero(changed.any(axis=1))
        if not rows.size:
            return Difference(0, total, None)
        columns = np.flatnonzero(changed.any(axis=0))
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        return Difference(int(changed.sum()), total, box)

    def crop(self, box: tuple[int, int, int, int]) -> Screenshot:
        """Return a part of the picture: ``(left, top, right, bottom)``, right and bottom exclusive."""
        return Screenshot(self._image.crop(box), self.machine, taken=self.taken)

    def thumbnail(self, width: int = 240) -> Screenshot:
        """Return a copy that is at most ``width`` pixels wide."""
        copy = self._image.copy()
        copy.thumbnail((width, width), PillowImage.Resampling.LANCZOS)
        return Screenshot(copy, self.machine, taken=self.taken)

    def save(self, path: str | Path) -> Path:
        """Write the picture to a file; its name's ending decides the format. Return the path.

        Raises
        ------
        UsageError
            It cannot be written there, or the ending is not known.
        """
        target = Path(path).expanduser()
        try:
            if target.suffix.lower() == ".png":
                target.write_bytes(self.png)
            else:
                self._image.save(target)
        except (OSError, ValueError) as error:
            raise UsageError(f"The picture cannot be written to '{target}': {error}.") from error
        return target

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Screenshot):
            return NotImplemented
        return self.size == other.size and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __repr__(self) -> str:
        of = f" of {self.machine}" if self.machine else ""
        return f"<Screenshot{of} {self.width} x {self.height}, {self.sha256[:12]}>"

    def _repr_png_(self) -> tuple[bytes, dict[str, str]]:
        # Beside the HTML: it is what GitHub shows.
        return self.png, {"alt": f"screen of {self.machine}" if self.machine else "screen of a guest"}


def screenshot(domain: GuestDomain, folder: Path) -> Screenshot:
    """Take a picture of the guest's screen, running or paused.

    Parameters
    ----------
    domain
        The guest.
    folder
        A folder in which QEMU may write and from which we can read and delete; the file is gone afterwards.

    Raises
    ------
    WrongState
        The machine is off, or has no screen, or its QEMU was just being replaced by a revert.
    HypervisorError
        QEMU could not write the picture.
    """
    between = WrongState(
        f"{domain.name} is just being stopped, reverted or started; it has no screen at this moment.",
        hint="try again",
    )
    # In this order: a QEMU has its number somewhat before libvirt takes it for running.
    pid = domain.pid
    if domain.state() not in ("running", "paused", "asleep", "crashed"):
        if pid is not None:
            raise between
        raise WrongState(
            f"{domain.name} is off; it has no screen to show.",
            hint=f"start it with `%vm start {domain.name}`",
        )
    path = folder / f".screen-{os.getpid()}-{os.urandom(4).hex()}.ppm"
    try:
        # PPM is written in a few ms; encoding PNG would hold QEMU's main loop, and with it the guest's devices.
        domain.qmp("screendump", filename=str(path))
        with PillowImage.open(path) as image:
            image.load()
            return Screenshot(image, domain.name, taken=dt.datetime.now().astimezone())
    except (HypervisorError, WrongState, OSError) as error:
        # What is told of a QEMU that is not there any more does not help anybody.
        if pid is None or domain.pid != pid:
            raise between from error
        if isinstance(error, WrongState):
            raise
        if isinstance(error, OSError):
            raise HypervisorError(
                f"The picture of {domain.name} cannot be read: {error.strerror or error}.", folder=str(folder)
            ) from error
        if "no QemuConsole" in str(error) or "no console" in str(error).lower() or "no surface" in str(error):
            raise WrongState(
                f"{domain.name} has no screen.", hint="create it with `video=`, or use the serial line"
            ) from error
        raise HypervisorError(
            f"QEMU could not take a picture of {domain.name}.", qemu_says=error.message, folder=str(folder)
        ) from error
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def wait_for_screen(
    domain: GuestDomain,
    folder: Path,
    until_what: Screenshot | str | Path | Callable[[Screenshot], Any] | None = None,
    *,
    settle: float = 1.0,
    timeout: float | None = 60,
    interval: float = 0.25,
    tolerance: float = 0.0,
    area: tuple[int, int, int, int] | None = None,
    blank: bool = False,
) -> Screenshot:
    """Wait for something on the screen and return the picture that shows it.

    Parameters
    ----------
    domain
        The guest.
    folder
        As for `screenshot`.
    until_what
        A picture (or its file): until the screen looks like it. A function: until it returns something true for the
        screen's picture. None: until the screen has not changed for ``settle`` seconds.
    settle
        Seconds without a change, when ``until_what`` is None.
    timeout
        Seconds after which to give up; None waits for ever.
    interval
        Seconds between two pictures.
    tolerance
        The part of the pixels, 0 to 1, that may differ from the picture or between two looks at a "still" screen (a
        blinking cursor, a clock).
    area
        Look at this part alone: ``(left, top, right, bottom)`` in pixels, right and bottom exclusive.
    blank
        Whether a screen of one single colour counts as still; by default it means that nothing is drawn yet.

    Raises
    ------
    WaitTimeout
        Carries ``last``: what was seen, and how much changed. Its ``screen`` attribute is the last picture.
    WrongState
        The machine is off, or has no screen.
    """
    wanted = Screenshot.open(until_what) if isinstance(until_what, str | Path) else until_what
    if isinstance(wanted, Screenshot):
        wanted = _part(wanted, area)
    before: Screenshot | None = None
    change: Difference | None = None
    since = time.monotonic()
    last: Screenshot | None = None

    def look() -> Screenshot | None:
        nonlocal before, since, last, change
        last = screenshot(domain, folder)
        now = _part(last, area)
        if isinstance(wanted, Screenshot):
            return last if now.diff(wanted, 8 if tolerance else 0).fraction <= tolerance else None
        if wanted is not None:
            return last if wanted(now) else None
        moment = time.monotonic()
        found = now.diff(before) if before is not None else None
        if found is None or found.fraction > tolerance or (now.blank and not blank):
            before, since, change = now, moment, found or change
            return None
        return last if moment - since >= settle else None

    def seen() -> str:
        if last is None:
            return ""
        if isinstance(wanted, Screenshot):
            return f"{last!r}: {_part(last, area).diff(wanted)}"
        if wanted is not None:
            return repr(last)
        return f"{last!r}, " + (
            "all one colour"
            if last.blank
            else f"last changed {time.monotonic() - since:.1f} s ago" + (f": {change}" if change else "")
        )

    what = (
        "the screen to look like the picture"
        if isinstance(wanted, Screenshot)
        else "the screen to show what is asked for"
        if wanted is not None
        else f"the screen to be still for {settle:g} s"
    )
    try:
        return (
            until(
                look,
                timeout,
                what,
                interval,
                evidence=seen,
                machine=domain.name,
            )
            or _never()
        )
    except VMLabError as error:
        if isinstance(error, WaitTimeout):
            error.hint = (
                _advice(change)
                if wanted is None and change
                else f"look at it: `%vm screenshot {domain.name}`"
            )
        error.screen = last
        raise


def _part(shot: Screenshot, area: tuple[int, int, int, int] | None) -> Screenshot:
    """Return what is looked at of a picture."""
    if area is None:
        return shot
    left, top, right, bottom = area
    if not (0 <= left < right and 0 <= top < bottom):
        raise UsageError(
            f"{area} is no part of a screen.",
            hint="it is (left, top, right, bottom), for example (0, 0, 640, 400)",
        )
    return shot.crop(area)


def _advice(change: Difference) -> str:
    """Return what to do about a screen that goes on changing so much."""
    enough = math.ceil(change.fraction * 1.2 * 1e4) / 1e4
    return (
        f"where something always changes (a cursor, a clock), let that much pass: tolerance={enough:g} "
        f"(`--tolerance {enough * 100:g}%`), or look at a part without it: area= (`--area`)"
    )


def _never() -> Screenshot:
    raise AssertionError("until() returns only what is true")
