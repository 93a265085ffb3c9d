"""The desktop's pictures and its tune, drawn and composed here: no file of anybody else's, the same in every build."""

from __future__ import annotations

import array
import io
import itertools
import math
import random
import struct
import wave
import zlib
from collections.abc import Callable

Colour = tuple[float, float, float]

RATE = 44100  # samples a second: what the emulated sound card takes as it is

#: The sky from top to horizon.
_SKY: list[tuple[float, Colour]] = [
    (0.00, (16, 20, 48)),
    (0.35, (52, 44, 98)),
    (0.60, (137, 74, 128)),
    (0.80, (226, 122, 110)),
    (1.00, (255, 196, 138)),
]
#: Hills from far to near: mean height below the top (of 1), how high they rise, colour.
_HILLS: list[tuple[float, float, Colour]] = [
    (0.66, 0.070, (120, 76, 122)),
    (0.72, 0.060, (86, 60, 108)),
    (0.79, 0.055, (56, 44, 86)),
    (0.87, 0.050, (34, 31, 64)),
    (0.95, 0.035, (20, 21, 44)),
]


def mix(a: Colour, b: Colour, t: float) -> Colour:
    """Return the colour ``t`` of the way from ``a`` to ``b``."""
    t = min(1.0, max(0.0, t))
    return (a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t)


def wallpaper(width: int = 1024, height: int = 768) -> bytes:
    """Return a dusk over hills as a PNG."""
    draw = random.Random(1)
    ridges = [_ridge(width, height, mean, rise, draw) for mean, rise, _ in _HILLS]
    stars = {
        (draw.randrange(width), int(draw.random() ** 1.6 * height * 0.5)): draw.random() for _ in range(260)
    }
    sun_x, sun_y, sun_r = width * 0.70, height * 0.60, height * 0.075
    rows = []
    for y in range(height):
        sky = _gradient(_SKY, y / (height * 0.72))
        row = bytearray()
        for x in range(width):
            far = math.hypot(x - sun_x, y - sun_y)
            colour = mix(sky, (255, 214, 150), 0.55 * math.exp(-far / (height * 0.16)))
            colour = mix((255, 240, 205), colour, far - sun_r)
            if (x, y) in stars:
                colour = mix(colour, (255, 255, 255), stars[x, y] * (1 - y / (height * 0.55)))
            for ridge, (_, _, shade) in zip(ridges, _HILLS, strict=True):
                depth = y - ridge[x]
                if depth > -1:
                    # Mist gathers in the valleys: each range is lighter towards its foot.
                    misty = mix(shade, _gradient(_SKY, 0.75), min(0.30, depth / height))
                    colour = mix(colour, misty, depth + 1)
            row += bytes(int(c + 0.5) for c in colour)
        rows.append(bytes(row))
    return png(width, rows)


def _gradient(stops: list[tuple[float, Colour]], at: float) -> Colour:
    for (low, first), (high, second) in itertools.pairwise(stops):
        if at <= high:
            return mix(first, second, (at - low) / (high - low))
    return stops[-1][1]


def _ridge(width: int, height: int, mean: float, rise: float, draw: random.Random) -> list[float]:
    waves = [(draw.uniform(1.5, 3.0) * 2**k, draw.uniform(0, math.tau), 0.52**k) for k in range(7)]
    return [
        (mean - rise * sum(a * math.sin(f * math.tau * x / width + p) for f, p, a in waves)) * height
        for x in range(width)
    ]


def png(width: int, rows: list[bytes]) -> bytes:
    """Return rows of 8-bit RGB as a PNG file."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    before = bytes(3 * width)
    filtered = bytearray()
    for row in rows:
        # The difference from the row above: a picture of gradients becomes small.
        filtered += b"\2" + bytes((a - b) & 255 for a, b in zip(row, before, strict=True))
        before = row
    head = struct.pack(">IIBBBBB", width, len(rows), 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(filtered), 9))
        + chunk(b"IEND", b"")
    )


def xpm(width: int, height: int, pixel: Callable[[float, float], Colour]) -> str:
    """Return a picture as XPM, the format of IceWM's themes; each pixel is averaged over 16 points of ``pixel``."""
    palette: dict[str, str] = {}
    rows = []
    for y in range(height):
        row = ""
        for x in range(width):
            points = [pixel(x + (i + 0.5) / 4, y + (j + 0.5) / 4) for i in range(4) for j in range(4)]
            mean = [sum(p[k] for p in points) / 16 for k in range(3)]
            colour = "#" + "".join(f"{int(c + 0.5):02x}" for c in mean)
            row += palette.setdefault(colour, f"{len(palette):03x}")
        rows.append(f'"{row}"')
    colours = [f'"{key} c {colour}"' for colour, key in palette.items()]
    return (
        "/* XPM */\nstatic char *picture[] = {\n"
        + ",\n".join([f'"{width} {height} {len(palette)} 3"', *colours, *rows])
        + "};\n"
    )


#: Bach, prelude in C (BWV 846): the notes of each half bar, as MIDI numbers. Each is played as 1 2 3 4 5 3 4 5, twice.
_BARS = [
    (60, 64, 67, 72, 76), (60, 62, 69, 74, 77), (59, 62, 67, 74, 77), (60, 64, 67, 72, 76),
    (60, 64, 69, 76, 81), (60, 62, 66, 69, 74), (59, 62, 67, 74, 79), (59, 60, 64, 67, 72),
    (57, 60, 64, 67, 72), (50, 57, 62, 66, 72), (55, 59, 62, 67, 71), (55, 58, 64, 67, 73),
    (53, 57, 62, 69, 74), (53, 56, 62, 65, 71), (52, 55, 60, 67, 72), (60, 64, 67, 72, 76),
]  # fmt: skip
_NOTE = 0.22  # seconds


def tune() -> bytes:
    """Return the tune as a WAV file: 44.1 kHz, 16 bits, one channel, a little less than a minute."""
    notes = [bar[i] for bar in _BARS for _ in range(2) for i in (0, 1, 2, 3, 4, 2, 3, 4)]
    step = int(_NOTE * RATE)
    mixed = array.array("f", bytes(4 * (step * len(notes) + RATE)))
    plucked = {note: _pluck(440 * 2 ** ((note - 69) / 12)) for note in set(notes)}
    for number, note in enumerate(notes):
        start = number * step
        for offset, value in enumerate(plucked[note]):
            mixed[start + offset] += value
    peak = max(abs(value) for value in mixed)
    samples = array.array("h", (int(value / peak * 30000) for value in mixed))
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.tobytes())
    return out.getvalue()


def _pluck(frequency: float) -> list[float]:
    """Return one second of a soft string: a few harmonics, the higher the sooner gone."""
    harmonics = [(k, 1 / k**1.6, 3.0 + 1.6 * k) for k in range(1, 5)]
    tables = [[math.sin(math.tau * i / 2048) for i in range(2048)]]
    table = tables[0]
    out = []
    for i in range(RATE):
        t = i / RATE
        value = sum(
            a * math.exp(-d * t) * table[int(k * frequency * t * 2048) & 2047] for k, a, d in harmonics
        )
        out.append(value * min(1.0, t / 0.004) * min(1.0, (1 - t) / 0.05))
    return out


#: Colours of the window theme.
ACTIVE: tuple[Colour, Colour] = ((64, 70, 104), (46, 50, 78))
INACTIVE: tuple[Colour, Colour] = ((92, 94, 116), (78, 80, 102))
_BUTTONS: dict[str, Colour] = {
    "close": (240, 98, 94),
    "maximize": (106, 198, 108),
    "minimize": (246, 190, 80),
    "restore": (106, 198, 108),
}
TITLE_HEIGHT = 26


def theme() -> dict[str, str]:
    """Return the pixmaps of the window theme by file name."""
    files = {}
    for letter, (top, bottom) in (("A", ACTIVE), ("I", INACTIVE)):
        bar = _bar(top, bottom)
        for part in "JLSPTMBRQ":
            files[f"title{letter}{part}.xpm"] = xpm(4, TITLE_HEIGHT, bar)
        for name, colour in _BUTTONS.items():
            files[f"{name}{letter}.xpm"] = _button(name, colour if letter == "A" else (140, 142, 160), bar)
    files["taskbar/start.xpm"] = files["taskbar/icewm.xpm"] = files["taskbar/linux.xpm"] = xpm(40, 24, _start)
    return files


def _start(x: float, y: float) -> Colour:
    """Draw the start button: the wallpaper's sun behind a hill."""
    if (
        y > 21 - 9 * math.exp(-(((x - 15) / 5) ** 2)) - 6 * math.exp(-(((x - 26) / 5) ** 2))
        and 6 < x < 34
        and y < 21
    ):
        return (137, 110, 170)
    if math.hypot(x - 21, y - 11) < 7:
        return (255, 206, 140)
    return (26, 28, 46)


def _bar(top: Colour, bottom: Colour) -> Callable[[float, float], Colour]:
    return lambda x, y: mix(top, (255, 255, 255), 0.12) if y < 1 else mix(top, bottom, y / TITLE_HEIGHT)


def _button(name: str, colour: Colour, bar: Callable[[float, float], Colour]) -> str:
    """Return a button, and below it the same pressed, as IceWM wants them."""
    width, radius = 22, 7.0

    def pixel(x: float, y: float) -> Colour:
        pressed, y = y >= TITLE_HEIGHT, y % TITLE_HEIGHT
        dx, dy = x - width / 2, y - TITLE_HEIGHT / 2
        if math.hypot(dx, dy) > radius:
            return bar(x, y)
        face = mix(colour, (0, 0, 0), 0.30 if pressed else 0.0)
        sign = {
            "close": abs(abs(dx) - abs(dy)) < 1.0 and max(abs(dx), abs(dy)) < 3.2,
            "minimize": abs(dy) < 0.8 and abs(dx) < 3.6,
            "maximize": (abs(dy) < 0.8 and abs(dx) < 3.6) or (abs(dx) < 0.8 and abs(dy) < 3.6),
            "restore": max(abs(dx), abs(dy)) < 3.0 and not max(abs(dx), abs(dy)) < 1.7,
        }[name]
        return mix(face, (0, 0, 0), 0.62) if sign else face

    return xpm(width, 2 * TITLE_HEIGHT, pixel)
