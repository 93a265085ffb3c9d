"""Music goes on at the note, measured to the sample: what the sound card puts out is recorded by QEMU's wav backend.

The guest plays numbers instead of a tune: the left sample counts up, the right one counts the left one's rounds, so
that every frame in the recording tells its place. It is played at the recording's own rate and full volume, straight to
the card, so that nothing on the way changes a bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from vmlab.lab import Lab
from vmlab.machine import Machine

RATE = 44100
ROUND = 32768
HEADER = 44
#: The device buffer in frames: what QEMU's card takes from the guest at once (hw/audio/ac97.c, 4096 bytes), and
#: the 1024 frames of QEMU's mixer behind it (audio/wavaudio.c), which are no part of a state.
BUFFER = 4096 // 4 + 1024

_WRITE = f"""#!/usr/bin/python3
from array import array
ramp = array("h", range({ROUND}))
with open("/tmp/ramp.raw", "wb") as file:
    for number in range(1, 160):
        both = array("h", bytes(4 * {ROUND}))
        both[0::2] = ramp
        both[1::2] = array("h", [number]) * {ROUND}
        both.tofile(file)
"""


def places(path: Path) -> npt.NDArray[np.int64]:
    """Return which frame of the guest's file each recorded frame is; -1 for silence."""
    # The header of a running QEMU's file says nothing of its length: it is raw behind it.
    data = path.read_bytes()[HEADER:]
    frames = np.frombuffer(data[: len(data) // 4 * 4], "<i2").reshape(-1, 2).astype(np.int64)
    return np.where(frames[:, 1] > 0, (frames[:, 1] - 1) * ROUND + frames[:, 0], -1)


def heard(path: Path) -> npt.NDArray[np.int64]:
    """Return the places of what can be heard."""
    found = places(path)
    return found[found >= 0]


def seamless(found: npt.NDArray[np.int64]) -> bool:
    """Whether every frame follows on the one before: nothing is left out, played twice, or altered."""
    return bool((np.diff(found) == 1).all())


def recording(machine: Machine) -> Path:
    path = machine.sound_file
    assert path is not None
    return path


def wait_for_sound(machine: Machine, frames: int, timeout: float = 60) -> None:
    """Wait until so many audible frames are recorded."""
    end = time.monotonic() + timeout
    while not recording(machine).exists() or len(heard(recording(machine))) < frames:
        assert time.monotonic() < end, machine.execute("cat /tmp/aplay.log").stdout
        time.sleep(0.2)


@pytest.fixture
def player(lab: Lab, names: Callable[..., str]) -> Machine:
    """A desktop that plays the numbers."""
    machine = lab.create(names("player"), "desktop", sound="wav", bake=True)
    assert machine.script(_WRITE, timeout=120).ok
    machine.succeed("amixer -q sset Master 100% unmute; amixer -q sset PCM 100% unmute; true")
    machine.succeed(
        f"setsid aplay -D hw:0,0 -t raw -f S16_LE -c 2 -r {RATE} /tmp/ramp.raw < /dev/null > /tmp/aplay.log 2>&1 &"
    )
    wait_for_sound(machine, RATE)
    return machine


@pytest.mark.timeout(600)
def test_music_goes_on_at_the_sample(player: Machine) -> None:
    # What is recorded is what is played, bit by bit and in order.
    assert seamless(heard(recording(player)))

    player.pause()
    snapshot = player.snapshot("note")
    before = recording(player)
    # QEMU writes the rest of its recording when it ends, and it has not run since.
    player.revert(snapshot, keep=False)
    last = int(heard(before)[-1])

    first = []
    for _ in range(2):
        assert player.state == "paused"
        player.resume()
        wait_for_sound(player, RATE)
        player.pause()
        after = recording(player)
        assert after != before
        player.revert(snapshot, keep=False)
        first.append(int(heard(after)[0]))
        assert seamless(heard(after))
    print(
        f"last before: {last}, first after: {first}, apart: {[f - last - 1 for f in first]} frames of {BUFFER}"
    )
    # The same note each time ...
    assert first[0] == first[1]
    # ... and the one that came next.
    assert abs(first[0] - (last + 1)) <= BUFFER


@pytest.mark.timeout(600)
def test_music_does_not_stop_for_a_snapshot(player: Machine) -> None:
    earlier = int(heard(recording(player))[-1])
    snapshot = player.snapshot("playing")
    wait_for_sound(player, len(heard(recording(player))) + RATE)
    player.pause()
    present = recording(player)
    first = []
    for _ in range(2):
        player.revert(snapshot, keep=False)
        wait_for_sound(player, RATE)
        player.pause()
        after = recording(player)
        first.append(int(heard(after)[0]))
    whole = heard(present)
    # Nothing was played twice or left out while the snapshot was taken.
    assert seamless(whole)
    # A revert goes on between where the snapshot was asked for and where the music is now, always at the same place.
    print(f"asked at {earlier}, reverts go on at {first}, the present went on to {int(whole[-1])}")
    assert first[0] == first[1]
    assert earlier - BUFFER <= first[0] <= int(whole[-1])
