"""Every run state of libvirt and QEMU has its name, its reason and its way out."""

from __future__ import annotations

import libvirt
import pytest

from vmlab.hypervisor.condition import ASLEEP, DISK_FULL, IO_ERROR, PANICKED, judge

PAUSED, OFF = libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_SHUTOFF


@pytest.mark.parametrize(
    ("state", "reason", "status", "io", "name", "why"),
    [
        (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_BOOTED, None, None, "running", None),
        (libvirt.VIR_DOMAIN_BLOCKED, 0, None, None, "running", None),
        # QEMU is still closing its disks.
        (libvirt.VIR_DOMAIN_SHUTDOWN, 0, None, None, "running", None),
        (PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER, "paused", None, "paused", None),
        (PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR, "io-error", "nospace", "paused", DISK_FULL),
        (PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR, "io-error", "failed", "paused", IO_ERROR),
        # QEMU does not answer: what libvirt knows.
        (PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR, None, None, "paused", IO_ERROR),
        (PAUSED, libvirt.VIR_DOMAIN_PAUSED_WATCHDOG, "watchdog", None, "paused", "its watchdog has expired"),
        # Continued from snapshots: libvirt only knows that they do not run.
        (PAUSED, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP, "guest-panicked", None, "crashed", PANICKED),
        (PAUSED, libvirt.VIR_DOMAIN_PAUSED_UNKNOWN, "suspended", None, "asleep", ASLEEP),
        (PAUSED, 0, "internal-error", None, "crashed", "QEMU cannot go on with it (internal error)"),
        (libvirt.VIR_DOMAIN_CRASHED, 0, None, None, "crashed", PANICKED),
        (libvirt.VIR_DOMAIN_PMSUSPENDED, 0, None, None, "asleep", ASLEEP),
        (OFF, libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN, None, None, "off", "the guest powered off"),
        (
            OFF,
            libvirt.VIR_DOMAIN_SHUTOFF_CRASHED,
            None,
            None,
            "off",
            "its QEMU ended by itself or was killed",
        ),
        (OFF, libvirt.VIR_DOMAIN_SHUTOFF_UNKNOWN, None, None, "off", None),
        (libvirt.VIR_DOMAIN_NOSTATE, 0, None, None, "off", None),
    ],
)
def test_run_states(
    state: int, reason: int, status: str | None, io: str | None, name: str, why: str | None
) -> None:
    found = judge(state, reason, status, io)
    assert (found.state, found.why) == (name, why)
    assert "web" in found.sentence("web")
    if why is not None:
        assert why in found.sentence("web")
    assert "%vm" in found.way_out("web")


def test_no_state_of_libvirt_is_unknown() -> None:
    numbers = {
        value
        for key, value in vars(libvirt).items()
        if key.startswith("VIR_DOMAIN_")
        and key.removeprefix("VIR_DOMAIN_")
        in {"NOSTATE", "RUNNING", "BLOCKED", "PAUSED", "SHUTDOWN", "SHUTOFF", "CRASHED", "PMSUSPENDED"}
    }
    assert len(numbers) == libvirt.VIR_DOMAIN_PMSUSPENDED + 1
    for number in numbers:
        assert judge(number, 0).state in {"running", "paused", "asleep", "crashed", "off"}
