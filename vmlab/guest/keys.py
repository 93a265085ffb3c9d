"""Press keys, type text, move and click the pointer. Works with any guest: no agent is needed.

Keys are those of a US keyboard: the guest gets key presses, not characters, and translates them by its own layout. With
another layout set in the guest other characters come out.

Pace: QEMU's PS/2 keyboard queues 16 bytes and silently drops what does not fit; a character with shift is 6 bytes. No
fixed pause is right for every host (500 characters typed into an emulated guest without one: 27 lost; on a host with
a load of 7, some were lost at 10 ms each). So the next character is sent when the guest has read the last one, which
the status port of its keyboard controller tells.
"""

from __future__ import annotations

import difflib
import re
import string
import time
from collections.abc import Iterable, Sequence
from typing import Any

from vmlab.errors import UsageError
from vmlab.guest import GuestDomain

__all__ = ["ALIASES", "PACE", "Pointer", "chord", "key_names", "press", "text_chords", "type_text"]

#: Seconds between two typed characters, see `type_text`.
PACE = 0.01
#: The longest that one character waits for the guest to read it, in seconds.
READ_TIMEOUT = 0.5
#: Seconds that the keys of a chord are held.
HOLD = 0.05

#: QEMU's names of keys (QKeyCode in qapi/ui.json), except letters, digits and f1 to f24.
_SPECIAL = """
    shift shift_r alt alt_r ctrl ctrl_r meta_l meta_r menu esc minus equal backspace tab bracket_left
    bracket_right ret semicolon apostrophe grave_accent backslash comma dot slash asterisk spc caps_lock
    num_lock scroll_lock kp_divide kp_multiply kp_subtract kp_add kp_enter kp_decimal kp_0 kp_1 kp_2
    kp_3 kp_4 kp_5 kp_6 kp_7 kp_8 kp_9 kp_comma kp_equals less sysrq print home pgup pgdn end left up
    down right insert delete stop again props undo front copy open paste find cut lf help compose pause
    ro hiragana henkan yen muhenkan katakanahiragana power sleep wake audionext audioprev audiostop
    audioplay audiomute volumeup volumedown mediaselect mail calculator computer ac_home ac_back
    ac_forward ac_refresh ac_bookmarks lang1 lang2
"""
NAMES = frozenset(
    [*_SPECIAL.split(), *string.ascii_lowercase, *string.digits, *(f"f{n}" for n in range(1, 25))]
)

#: What people call keys, and QEMU's name.
ALIASES = {
    "control": "ctrl", "lctrl": "ctrl", "rctrl": "ctrl_r", "strg": "ctrl",
    "lshift": "shift", "rshift": "shift_r", "lalt": "alt", "ralt": "alt_r", "altgr": "alt_r", "option": "alt",
    "super": "meta_l", "win": "meta_l", "windows": "meta_l", "meta": "meta_l", "cmd": "meta_l", "command": "meta_l",
    "super_l": "meta_l", "super_r": "meta_r",
    "enter": "ret", "return": "ret", "escape": "esc", "space": "spc", "blank": "spc",
    "del": "delete", "ins": "insert", "bs": "backspace", "bksp": "backspace",
    "pageup": "pgup", "page_up": "pgup", "prior": "pgup", "pagedown": "pgdn", "page_down": "pgdn", "next": "pgdn",
    "arrowleft": "left", "arrowright": "right", "arrowup": "up", "arrowdown": "down",
    "capslock": "caps_lock", "caps": "caps_lock", "numlock": "num_lock", "scrolllock": "scroll_lock",
    "printscreen": "print", "prtsc": "print", "prtscr": "print", "break": "pause",
    "plus": "shift+equal", "minus_sign": "minus", "period": "dot", "point": "dot", "quote": "apostrophe",
    "backtick": "grave_accent", "grave": "grave_accent", "leftbracket": "bracket_left", "rightbracket": "bracket_right",
    "play": "audioplay", "mute": "audiomute",
}  # fmt: skip

# Characters on the US keyboard, without and with shift.
_PLAIN = {
    "`": "grave_accent", "-": "minus", "=": "equal", "[": "bracket_left", "]": "bracket_right", "\\": "backslash",
    ";": "semicolon", "'": "apostrophe", ",": "comma", ".": "dot", "/": "slash", " ": "spc", "\n": "ret",
    "\t": "tab", "\b": "backspace", "\x1b": "esc",
}  # fmt: skip
_PLAIN |= {c: c for c in string.ascii_lowercase + string.digits}
_SHIFTED = dict(zip('~!@#$%^&*()_+{}|:"<>?', "`1234567890-=[]\\;',./", strict=True))
_SHIFTED |= {c.upper(): c for c in string.ascii_lowercase}

BUTTONS = ("left", "middle", "right", "side", "extra", "wheel-up", "wheel-down", "wheel-left", "wheel-right")


def key_names() -> list[str]:
    """Return every name of a key that `chord` understands, sorted."""
    return sorted(NAMES | ALIASES.keys())


def chord(text: str) -> list[str]:
    """Return QEMU's names for the keys of a chord, in the order in which they are pressed.

    Parameters
    ----------
    text
        Names joined by ``-`` or ``+``: ``"ctrl-alt-delete"``, ``"shift-a"``, ``"ret"``, ``"f1"``; or one character of
        a US keyboard: ``"?"``.

    Raises
    ------
    UsageError
        A name is not known; says which one and the nearest that are.

    Examples
    --------
    >>> chord("Ctrl-Alt-Del")
    ['ctrl', 'alt', 'delete']
    >>> chord("ctrl-plus"), chord("A"), chord("ctrl--")
    (['ctrl', 'shift', 'equal'], ['shift', 'a'], ['ctrl', 'minus'])
    """
    if len(text) == 1:
        return _character(text)
    words = text.strip().replace("+", "-").split("-")
    if len(words) > 2 and words[-2:] == ["", ""]:
        # "ctrl--" and "ctrl-+": the last key is the sign itself
        words = [*words[:-2], text.strip()[-1]]
    keys: list[str] = []
    for word in words:
        keys += _key(word, text)
    return list(dict.fromkeys(keys))


def _key(word: str, text: str) -> list[str]:
    name = word.strip().lower().removeprefix("key_")
    name = ALIASES.get(name, name)
    if name in NAMES:
        return [name]
    if "+" in name and len(name) > 1:
        return name.split("+")
    if len(word) == 1 and (word in _PLAIN or word in _SHIFTED):
        return _character(word)
    near = difflib.get_close_matches(name, key_names(), n=3, cutoff=0.5)
    raise UsageError(
        f"There is no key named '{word}'" + (f" (in '{text}')." if word != text else "."),
        hint=("did you mean " + " or ".join(f"'{n}'" for n in near) + "? " if near else "")
        + "To type text use type.",
    )


def _character(char: str) -> list[str]:
    if char in _PLAIN:
        return [_PLAIN[char]]
    if char in _SHIFTED:
        return ["shift", _PLAIN[_SHIFTED[char]]]
    if char == "\r":
        return ["ret"]
    raise UsageError(
        f"The character {char!r} (U+{ord(char):04X}) is not on a US keyboard, so it cannot be typed.",
        hint="write it to a file with put, send it on the serial line, or use exec with the text as input",
    )


def text_chords(text: str) -> list[list[str]]:
    r"""Return the chords that type a text on a US keyboard.

    Every printable ASCII character, newline (also ``\r\n``), tab, backspace and escape.

    Raises
    ------
    UsageError
        For another character; names it, and nothing is typed.
    """
    return [_character(char) for char in text.replace("\r\n", "\n")]


def _event(key: str, down: bool) -> dict[str, Any]:
    return {"type": "key", "data": {"down": down, "key": {"type": "qcode", "data": key}}}


def press(domain: GuestDomain, *chords: str | Sequence[str], hold: float = HOLD) -> None:
    """Press chords one after the other: all keys of one down in order, a moment, and up in reverse.

    Parameters
    ----------
    domain
        The guest; it must be running for anything to happen.
    chords
        As in `chord`, or a list of QEMU's key names.
    hold
        Seconds that the keys are held.

    Raises
    ------
    UsageError
        A key is not known. Nothing has been pressed then.
    """
    for keys in [chord(c) if isinstance(c, str) else list(c) for c in chords]:
        down = [_event(key, True) for key in keys]
        try:
            domain.qmp("input-send-event", events=down)
            time.sleep(hold)
        finally:
            # A key that stays down would repeat in the guest for ever.
            domain.qmp("input-send-event", events=[_event(key, False) for key in reversed(keys)])
        time.sleep(PACE)


def type_text(domain: GuestDomain, text: str, *, pace: float = PACE) -> None:
    """Type a text on the guest's keyboard, as fast as the guest is known to keep up.

    Parameters
    ----------
    domain
        The guest.
    text
        Printable ASCII, newline, tab. Newlines press Return.
    pace
        Seconds between two characters. Raise it for a guest that loses some.

    Raises
    ------
    UsageError
        A character cannot be typed; names it. Nothing has been typed then.
    """
    patience = 2.0  # for a guest that never reads it: it has another keyboard, or does not run
    for keys in text_chords(text):
        down = [_event(key, True) for key in keys]
        up = [_event(key, False) for key in reversed(keys)]
        domain.qmp("input-send-event", events=down + up)
        time.sleep(pace)
        patience -= _wait_read(domain, min(patience, READ_TIMEOUT))


def _wait_read(domain: GuestDomain, timeout: float) -> float:
    """Wait until the guest has read what its PS/2 keyboard holds; return the seconds that were waited in vain."""
    begin = time.monotonic()
    while time.monotonic() - begin < timeout:
        # Bit 0 of port 0x64: a byte waits to be read. Looking at it changes nothing.
        answer = domain.qmp("human-monitor-command", command_line="i /b 0x64")
        status = re.search(r"= 0x([0-9a-f]+)", answer)
        if status is None or not int(status[1], 16) & 1:
            return 0.0
        time.sleep(0.005)
    return timeout


class Pointer:
    """The guest's pointer: a tablet, so that positions are absolute.

    Parameters
    ----------
    domain
        The guest; it needs a tablet device (images say ``"tablet": true``).
    size
        Width and height of its screen in pixels, as a screenshot shows it.

    Examples
    --------
    >>> Pointer(domain, machine.screenshot().size).click(100, 200)
    """

    def __init__(self, domain: GuestDomain, size: tuple[int, int]) -> None:
        self._domain = domain
        self.size = size

    def _send(self, events: Iterable[dict[str, Any]]) -> None:
        self._domain.qmp("input-send-event", events=list(events))

    def move(self, x: int, y: int) -> None:
        """Move to a pixel, counted from the top left.

        Raises
        ------
        UsageError
            The pixel is outside the screen.
        """
        width, height = self.size
        if not (0 <= x < width and 0 <= y < height):
            raise UsageError(f"({x}, {y}) is outside the screen of {width} x {height} pixels.")
        self._send(
            {"type": "abs", "data": {"axis": axis, "value": scale(at, length)}}
            for axis, at, length in (("x", x, width), ("y", y, height))
        )

    def down(self, button: str = "left") -> None:
        """Press a button: ``left``, ``middle``, ``right``, ``side``, ``extra``."""
        self._send([_button(button, True)])

    def up(self, button: str = "left") -> None:
        """Release a button."""
        self._send([_button(button, False)])

    def click(
        self, x: int | None = None, y: int | None = None, button: str = "left", *, count: int = 1
    ) -> None:
        """Click, once or ``count`` times, after moving there if a position is given."""
        _button(button, True)  # before anything moves
        if x is not None and y is not None:
            self.move(x, y)
            time.sleep(HOLD)
        for _ in range(count):
            self.down(button)
            time.sleep(HOLD)
            self.up(button)
            time.sleep(HOLD)

    def drag(
        self, start: tuple[int, int], end: tuple[int, int], button: str = "left", *, steps: int = 10
    ) -> None:
        """Press at ``start``, move to ``end`` in ``steps``, and release."""
        self.move(*start)
        time.sleep(HOLD)
        self.down(button)
        try:
            for step in range(1, steps + 1):
                time.sleep(HOLD / 2)
                self.move(*(round(a + (b - a) * step / steps) for a, b in zip(start, end, strict=True)))
            time.sleep(HOLD)
        finally:
            self.up(button)

    def wheel(self, clicks: int) -> None:
        """Turn the wheel: up for positive, down for negative numbers."""
        button = "wheel-up" if clicks > 0 else "wheel-down"
        for _ in range(abs(clicks)):
            self._send([_button(button, True), _button(button, False)])
            time.sleep(HOLD / 2)


def scale(at: int, length: int) -> int:
    """Return the tablet's value, 0 to 32767, for a pixel of a screen that is ``length`` pixels long.

    Guests map the 32768 values of the tablet evenly to pixels and round down, so the middle of the pixel is aimed at.
    """
    return int((at + 0.5) * 0x8000 / length)


def _button(name: str, down: bool) -> dict[str, Any]:
    if name not in BUTTONS:
        raise UsageError(f"There is no mouse button '{name}'.", hint="there is: " + ", ".join(BUTTONS))
    return {"type": "btn", "data": {"down": down, "button": name}}
