"""Booting: how much memory is left at its lowest point, and what is said of a boot that fails."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from help.bad_lab import panic
from PIL import Image as Pillow

from vmlab import private
from vmlab.errors import GuestPanicked
from vmlab.guest import serial
from vmlab.images.recipe import data_file
from vmlab.images.trees import FileTree
from vmlab.lab import Lab
from vmlab.records import read_json, write_json

#: MiB that must be free at the lowest point. The same guest took 13 MiB more with QEMU 10.0.13 than with 10.0.2.
HEADROOM = 26

#: Writes each new lowest point to the serial line, from before the first module until the guest is ready. With the
#: shell's own words only, and from a folder that it holds: what it was started from is soon gone.
WATCH = """
(
	cd /proc
	least=999999
	while :; do
		while read -r what kib unit; do
			[ "$what" != MemAvailable: ] || break
		done <meminfo
		if [ "$kib" -lt $least ]; then
			least=$kib
			echo "least free: $kib"
		fi
	done
) >/dev/ttyS0 &
"""


#: Ends the first program before any driver is loaded: the kernel panics, and cannot tell QEMU.
FAILING = """#!/bin/sh
echo "no root to be found" >/dev/console
exit 3
"""


def start_with(lab: Lab, init: str) -> None:
    """Let ``tiny`` of a fresh lab start with another init in its initramfs."""
    folder = lab.store.image_folder("tiny")
    tree = FileTree()
    tree.file("init", init, 0o755)
    # A second archive behind the first: of two files of one name the kernel takes the later one.
    tree.write_initramfs(folder / "more")
    whole = (folder / "initrd.img").read_bytes() + (folder / "more").read_bytes()
    (folder / "more").unlink()
    (folder / "initrd.img").unlink()  # a link of the store's own
    private.write(folder / "initrd.img", whole)
    # The image knows what its files are.
    image = read_json(folder / "image.json")
    image["sha256"]["initrd.img"] = hashlib.sha256(whole).hexdigest()
    image["bytes"]["initrd.img"] = len(whole)
    write_json(folder / "image.json", image)


def test_a_boot_has_headroom(fresh_lab: Lab) -> None:
    init = data_file("initramfs-init").decode()
    start_with(fresh_lab, init.replace("while read -r module", WATCH + "while read -r module", 1))
    machine = fresh_lab.create("watched-boot", "tiny", bake=False)
    machine.wait_for_agent()
    machine.wait_until_succeeds("test -e /run/vmlab-ready", 120)
    least = [int(kib) // 1024 for kib in re.findall(r"least free: (\d+)", machine.serial())]
    print(f"free at the lowest point: {least[-1]} of {machine.spec.memory} MiB")
    assert least[0] < machine.spec.memory
    assert least[-1] >= HEADROOM


def test_a_boot_that_panics_says_so_at_once_and_what_the_guest_said(fresh_lab: Lab) -> None:
    start_with(fresh_lab, FAILING)
    machine = fresh_lab.create("panics-early", "tiny", bake=False)
    with pytest.raises(GuestPanicked) as caught:
        machine.wait_for_agent(timeout=10_000)
    assert machine.state == "running"  # QEMU was not told
    assert "Attempted to kill init!" in caught.value.evidence["panic"]
    assert "end Kernel panic" in caught.value.evidence["serial_line"]
    assert "no root to be found" in machine.serial()
    assert caught.value.screen == machine.screenshot()
    # What the last boot wrote last says nothing of the next.
    machine.kill()
    machine.start()
    assert serial.panic(machine.domain) is None
    with pytest.raises(GuestPanicked):
        machine.wait_for_agent(timeout=10_000)


def test_a_bake_that_fails_says_what_the_guest_said(fresh_lab: Lab) -> None:
    start_with(fresh_lab, FAILING)
    with pytest.raises(GuestPanicked, match="'tiny' did not come up") as caught:
        fresh_lab.create("never", "tiny")
    assert "Attempted to kill init!" in str(caught.value)
    with Pillow.open(Path(caught.value.evidence["screen"])) as picture:
        assert picture.size == caught.value.screen.size
    assert len(fresh_lab) == 0
    assert not fresh_lab.image("tiny").ready


def test_a_panic_that_the_guest_tells_qemu_is_said_with_its_words(
    lab: Lab, names: Callable[..., str]
) -> None:
    machine = lab.create(names("panics"), "tiny")
    panic(machine)
    with pytest.raises(GuestPanicked) as caught:
        machine.wait_for_agent(timeout=10_000)
    assert "sysrq triggered crash" in caught.value.evidence["panic"]
