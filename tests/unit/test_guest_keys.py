from __future__ import annotations

import string
from typing import Any

import pytest

from vmlab.errors import UsageError
from vmlab.guest import keys


class Recorder:
    """Records what is sent to QEMU's monitor."""

    name = "web"

    def __init__(self) -> None:
        self.events: list[Any] = []

    def qmp(self, execute: str, **arguments: Any) -> None:
        assert execute == "input-send-event"
        self.events += arguments["events"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("ctrl-alt-delete", ["ctrl", "alt", "delete"]),
        ("Ctrl+Alt+Del", ["ctrl", "alt", "delete"]),
        ("shift-a", ["shift", "a"]),
        ("ret", ["ret"]),
        ("Enter", ["ret"]),
        ("f1", ["f1"]),
        ("alt-tab", ["alt", "tab"]),
        ("super-l", ["meta_l", "l"]),
        ("?", ["shift", "slash"]),
        ("-", ["minus"]),
        ("+", ["shift", "equal"]),
        ("ctrl--", ["ctrl", "minus"]),
        ("ctrl-+", ["ctrl", "shift", "equal"]),
        ("ctrl-plus", ["ctrl", "shift", "equal"]),
        ("page_down", ["pgdn"]),
        ("KEY_F24", ["f24"]),
    ],
)
def test_chord(text: str, wanted: list[str]) -> None:
    assert keys.chord(text) == wanted


def test_every_alias_leads_to_keys() -> None:
    for alias in keys.ALIASES:
        assert set(keys.chord(alias)) <= keys.NAMES


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        keys.chord("ctrl-delte")
    assert "'delte'" in caught.value.message
    assert "'delete'" in (caught.value.hint or "")
    for text in ("", "ctrl-", "ctrl-alt-"):
        with pytest.raises(UsageError):
            keys.chord(text)


def test_every_printable_ascii_character_can_be_typed() -> None:
    for char in string.printable.replace("\x0b", "").replace("\x0c", ""):
        (typed,) = keys.text_chords(char)
        assert set(typed) <= keys.NAMES
        assert (len(typed) == 2) == (char.isupper() or char in '~!@#$%^&*()_+{}|:"<>?')
    distinct = {tuple(keys.text_chords(char)[0]) for char in string.printable[:95]}
    assert len(distinct) == 95


def test_a_character_that_is_on_no_us_key_is_named_before_anything_is_typed() -> None:
    domain = Recorder()
    with pytest.raises(UsageError, match=r"'ü'.*U\+00FC"):
        keys.type_text(domain, "fünf")  # type: ignore[arg-type]
    assert domain.events == []


def test_keys_go_down_in_order_and_up_in_reverse() -> None:
    domain = Recorder()
    keys.press(domain, "ctrl-alt-f2", hold=0)  # type: ignore[arg-type]
    seen = [(e["data"]["key"]["data"], e["data"]["down"]) for e in domain.events]
    assert seen == [
        ("ctrl", True),
        ("alt", True),
        ("f2", True),
        ("f2", False),
        ("alt", False),
        ("ctrl", False),
    ]


@pytest.mark.parametrize("length", [320, 400, 720, 768, 1024, 1280, 1920, 3840])
def test_the_tablet_hits_every_pixel(length: int) -> None:
    # Guests compute value * length / 32768, rounded down.
    assert all(keys.scale(at, length) * length // 0x8000 == at for at in range(length))
    assert keys.scale(length - 1, length) <= 0x7FFF


def test_pointer() -> None:
    domain = Recorder()
    pointer = keys.Pointer(domain, (640, 480))  # type: ignore[arg-type]
    pointer.click(10, 20, "right")
    assert [e["type"] for e in domain.events] == ["abs", "abs", "btn", "btn"]
    for bad in ((640, 0), (0, 480), (-1, 0)):
        with pytest.raises(UsageError, match="outside the screen"):
            pointer.move(*bad)
    with pytest.raises(UsageError, match="no mouse button"):
        pointer.click(button="nose")
    domain.events.clear()
    pointer.wheel(-2)
    assert {e["data"]["button"] for e in domain.events} == {"wheel-down"}
    assert len(domain.events) == 4
