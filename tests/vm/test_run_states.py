"""Guests that sleep or have panicked: every verb works on them, or is refused before anything is touched."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from help.bad_lab import mark, marks, panic
from help.saboteur import kill

from vmlab.errors import WrongState
from vmlab.guest.wait import until
from vmlab.lab import Lab
from vmlab.machine import Machine
from vmlab.views import dispatch


def put_to_sleep(machine: Machine) -> None:
    machine.succeed("(sleep 0.3; echo mem >/sys/power/state) >/dev/null 2>&1 &")
    until(lambda: machine.state == "asleep", 30, "the guest to sleep")


@pytest.fixture
def asleep(box: Machine) -> Machine:
    mark(box, "second")
    put_to_sleep(box)
    return box


REFUSED: dict[str, Callable[[Machine], object]] = {
    "snapshot": lambda m: m.snapshot("s"),
    "fork": lambda m: m.fork(),
    "diff": lambda m: m.diff("good").files,
    "revert": lambda m: m.revert("good"),
    "rename": lambda m: m.rename(f"{m.name}-x"),
    "pause": lambda m: m.pause(),
    "exec": lambda m: m.execute("true"),
}


def test_a_guest_that_sleeps_is_woken_or_nothing_is_touched(asleep: Machine) -> None:
    pid = asleep.domain.pid
    for verb, call in REFUSED.items():
        with pytest.raises(WrongState, match="asleep") as caught:
            call(asleep)
        assert "resume" in str(caught.value.hint), verb
        assert (asleep.state, asleep.domain.pid) == ("asleep", pid), verb
    assert [s.name for s in asleep.snapshots] == ["good"]
    # (What it does then is not looked at: no timer fires in this guest after it was woken, under emulation.)
    asleep.resume()
    until(lambda: asleep.state == "running", 10, "the guest to be woken")
    assert asleep.domain.pid == pid
    # What gives up the present does not need to keep it.
    asleep.revert("good", keep=False)
    put_to_sleep(asleep)
    asleep.revert("good", keep=False)
    assert marks(asleep) == "first first"


def test_a_guest_that_panicked_is_kept_for_study(box: Machine, ours: Lab) -> None:
    mark(box, "second")
    box.succeed("echo a-text-in-its-RAM >/run/secret")
    panic(box)
    kept = box.snapshot("panicked")
    assert box.state == "crashed"
    assert box.here == kept
    assert ours.search([kept], "a-text-in-its-RAM")[0].matches
    assert box.diff("good").registers.changes
    renamed = f"{box.name}-r"
    box.rename(renamed)
    assert box.state == "crashed"
    box.revert("good")
    assert marks(box) == "first first"
    box.undo()
    assert box.state == "crashed"
    with pytest.raises(WrongState, match="panicked"):
        box.execute("true")
    fork = box.fork(f"{renamed}-f", snapshot=kept)
    try:
        assert fork.state == "crashed"
    finally:
        fork.delete()
    with pytest.raises(WrongState, match="panicked"):
        box.resume()
    box.start()
    box.wait_for_agent()
    assert box.succeed("cat /root/mark").strip() == "second"


def test_why_a_machine_is_off_is_said(box: Machine) -> None:
    assert (box.state, box.why) == ("running", None)
    box.pause()
    assert (box.state, box.why) == ("paused", None)
    box.resume()
    kill(box.domain.pid)
    until(lambda: box.state == "off", 10, "libvirt to notice")
    assert "killed" in str(box.why)
    assert f"{box.name} is off: {box.why}" in dispatch.text(box)
    assert box.to_json()["why"] == box.why
    # No verb waits for libvirt to notice, or says that it ended.
    box.revert("good")
    kill(box.domain.pid)
    box.revert("good")
    kill(box.domain.pid)
    assert box.fork(f"{box.name}-f", snapshot="good").delete() is None
    kill(box.domain.pid)
    box.snapshot("off")
    assert box.state == "off"
    box.start()
    box.wait_for_agent()
    box.stop()
    assert box.why == "the guest powered off"
