"""What a link does to frames on their way in one direction: it takes time, loses some, or carries only so much."""

from __future__ import annotations

import base64
import random
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

#: Frames, and bytes of them, that are under way at most: as many as netem of Linux has, and as much as a card's queue.
FRAMES, BYTES = 1000, 4 << 20


class Pipe:
    """One direction of a link. Chance comes from a seed: the same frames meet the same fate again.

    Parameters
    ----------
    how
        ``{"delay": seconds, "jitter": seconds, "loss": 0 to 1, "rate": bits a second or 0 for any, "down": bool}``.
        The delay is up to ``jitter`` longer or shorter; frames keep their order.
    seed
        What chance is made of.
    deliver
        Takes a frame, behind its length, at the other end.
    """

    def __init__(self, how: Mapping[str, Any], seed: str, deliver: Callable[[bytes], None]) -> None:
        self._delay, self._jitter = float(how.get("delay", 0)), float(how.get("jitter", 0))
        self._loss, self._rate = float(how.get("loss", 0)), float(how.get("rate", 0))
        self._down = bool(how.get("down", False))
        self._chance, self._deliver = random.Random(seed), deliver
        self._frames: deque[tuple[float, bytes]] = deque()
        self._bytes, self._free, self._last = 0, 0.0, 0.0

    @property
    def due(self) -> float | None:
        """When the next frame arrives, in the clock that :meth:`push` was told; None if none is under way."""
        return self._frames[0][0] if self._frames else None

    def push(self, frame: bytes, now: float) -> bool:
        """Send a frame on its way, and say whether it will arrive."""
        # Asked for each frame, so that what chance says of the next ones depends on nothing else.
        lost, wide = self._chance.random() < self._loss, self._chance.uniform(-self._jitter, self._jitter)
        if self._down or lost or len(self._frames) >= FRAMES or self._bytes + len(frame) > BYTES:
            return False
        sent = now
        if self._rate:
            sent = self._free = max(now, self._free) + (len(frame) - 4) * 8 / self._rate
        self._last = max(self._last, sent + max(0.0, self._delay + wide))
        self._frames.append((self._last, frame))
        self._bytes += len(frame)
        return True

    def arrive(self, now: float) -> None:
        """Deliver what has arrived by then."""
        while self._frames and self._frames[0][0] <= now:
            frame = self._frames.popleft()[1]
            self._bytes -= len(frame)
            self._deliver(frame)

    def postpone(self, seconds: float) -> None:
        """Let all that is under way arrive later."""
        self._frames = deque((due + seconds, frame) for due, frame in self._frames)
        self._free, self._last = self._free + seconds, self._last + seconds

    def to_json(self, now: float) -> dict[str, Any]:
        """Return what is under way, with the seconds that each frame has left, and what chance will say."""
        return {
            "frames": [[due - now, base64.b64encode(frame).decode()] for due, frame in self._frames],
            "free": self._free - now,
            "last": self._last - now,
            "chance": self._chance.getstate(),
        }

    def take_up(self, found: Mapping[str, Any], now: float) -> None:
        """Let that be under way which was when :meth:`to_json` told it; of ``{}`` nothing."""
        frames = [(now + float(left), base64.b64decode(text)) for left, text in found.get("frames", [])]
        self._frames, self._bytes = deque(frames), sum(len(frame) for _, frame in frames)
        self._free, self._last = now + float(found.get("free", 0.0)), now + float(found.get("last", 0.0))
        if "chance" in found:
            version, state, gauss = found["chance"]
            self._chance.setstate((version, tuple(state), gauss))
