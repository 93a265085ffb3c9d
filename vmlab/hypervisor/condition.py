"""What a guest is doing, why, and what can be done about it: the one place that reads run states.

libvirt and QEMU each know a part. libvirt keeps why a guest is off or paused; QEMU alone knows that a guest which
libvirt calls paused has panicked (it was continued from a snapshot of one), sleeps, or cannot go on after an internal
error, and whether a write failed for lack of room.

Run states of QEMU: ``qapi/run-state.json``; of libvirt: ``virDomainState`` and its reasons in ``libvirt-domain.h``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import libvirt

State = Literal["running", "paused", "asleep", "crashed", "off"]

#: What libvirt says, where QEMU need not be asked.
STATES: dict[int, State] = {
    libvirt.VIR_DOMAIN_NOSTATE: "off",
    libvirt.VIR_DOMAIN_RUNNING: "running",
    libvirt.VIR_DOMAIN_BLOCKED: "running",
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_SHUTOFF: "off",
    libvirt.VIR_DOMAIN_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_PMSUSPENDED: "asleep",
}

PANICKED = "its kernel panicked"
ASLEEP = "it has put itself to sleep (S3)"
DISK_FULL = "there is no room left on the host's disk for what it writes"
IO_ERROR = "its disk could not be read or written (I/O error)"

_PAUSED = {
    libvirt.VIR_DOMAIN_PAUSED_IOERROR: IO_ERROR,
    libvirt.VIR_DOMAIN_PAUSED_WATCHDOG: "its watchdog has expired",
    libvirt.VIR_DOMAIN_PAUSED_CRASHED: PANICKED,
    libvirt.VIR_DOMAIN_PAUSED_SHUTTING_DOWN: "it is powering off",
}
_OFF = {
    libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN: "the guest powered off",
    libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED: "it was ended by a command",
    libvirt.VIR_DOMAIN_SHUTOFF_CRASHED: "its QEMU ended by itself or was killed",
    libvirt.VIR_DOMAIN_SHUTOFF_FAILED: "it could not be started",
}
#: QEMU's run states that say more than libvirt's.
_QEMU: dict[str, tuple[State, str]] = {
    "guest-panicked": ("crashed", PANICKED),
    "internal-error": ("crashed", "QEMU cannot go on with it (internal error)"),
    "watchdog": ("paused", _PAUSED[libvirt.VIR_DOMAIN_PAUSED_WATCHDOG]),
    "io-error": ("paused", IO_ERROR),
    "suspended": ("asleep", ASLEEP),
    "shutdown": ("paused", "it has powered off, and its QEMU was told to stay"),
}


@dataclass(frozen=True)
class Condition:
    """What a guest is doing.

    Attributes
    ----------
    state
        ``running``, ``paused``, ``asleep`` (it has put itself to sleep), ``crashed`` or ``off``.
    why
        Why it is paused, asleep, crashed or off, in words that follow a dash or "because"; None where somebody wanted
        it so, or nobody knows.
    """

    state: State
    why: str | None = None

    def way_out(self, name: str) -> str:
        """Return what a person can do about it."""
        if self.state == "crashed":
            return (
                f"go back with `%vm revert {name}`, or boot it anew with `%vm start {name}`; "
                f"to study it as it is: `%vm snapshot {name}`"
            )
        if self.state == "asleep":
            return f"wake it with `%vm resume {name}`"
        if self.state == "paused" and self.why == DISK_FULL:
            return f"make room (`%vm list` shows what is taken), then let it go on with `%vm resume {name}`"
        if self.state == "paused":
            return f"let it go on with `%vm resume {name}`"
        return f"start it with `%vm start {name}`"

    def sentence(self, name: str) -> str:
        """Return what it is doing as a sentence."""
        doing = {"off": "is not running", "asleep": "is asleep", "crashed": "has crashed"}.get(
            self.state, f"is {self.state}"
        )
        subject = f"The guest {name}" if self.state == "crashed" else name
        return f"{subject} {doing}{f': {self.why}' if self.why else ''}."


def judge(state: int, reason: int, status: str | None = None, io: str | None = None) -> Condition:
    """Put together what libvirt and QEMU say.

    Parameters
    ----------
    state, reason
        libvirt's ``virDomainState`` and its reason.
    status
        The status of QEMU's ``query-status``, if it was asked.
    io
        The worst ``io-status`` of its disks: ``ok``, ``failed`` or ``nospace``.
    """
    if state == libvirt.VIR_DOMAIN_SHUTDOWN:
        return Condition("running")
    known = STATES.get(state, "off")
    if known in ("paused", "running") and status in _QEMU:
        found, why = _QEMU[status]
        return Condition(found, DISK_FULL if why == IO_ERROR and io == "nospace" else why)
    if known == "paused":
        return Condition(known, DISK_FULL if io == "nospace" else _PAUSED.get(reason))
    if known == "off":
        return Condition(known, _OFF.get(reason))
    return Condition(known, {"crashed": PANICKED, "asleep": ASLEEP}.get(known))
