"""QEMU writes a guest's RAM and devices to a file: its migration, while the guest runs on, until it stands still.

Nothing here knows records or layers. What QEMU does not have to write page by page is in :mod:`vmlab.engine.delta`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

from vmlab.engine import mapped_ram
from vmlab.errors import HypervisorError, NoSpace, VMLabError
from vmlab.hypervisor.domain import Domain, Events

log = logging.getLogger(__name__)

#: Threads that write the pages. Two are enough to reach the speed of the page cache on the machines measured.
CHANNELS = 2
#: QEMU stops the guest when what is left can be written in this many milliseconds; when a busy guest dirties its memory
#: faster than that, the bound is raised step by step, so that a snapshot always ends.
DOWNTIME_STEPS_MS = (20, 100, 400, 2000)
STEP_SECONDS = 4.0
#: A migration that was started while the last one was being cleaned up is refused; trying again some milliseconds later
#: works (QEMU's "duplicate yank instance").
START_TRIES = 40
#: What QEMU calls a migration that has not ended, and the seconds that it is given to end when it is cancelled.
_UNDER_WAY = ("setup", "active", "device", "pre-switchover", "cancelling", "wait-unplug")
CANCEL_SECONDS = 10.0
#: Events of a guest that stops for a reason of its own.
_ENDS = ("GUEST_PANICKED", "SHUTDOWN", "RESET", "SUSPEND", "SUSPEND_DISK", "BLOCK_IO_ERROR", "WATCHDOG")
#: Seconds for which a guest that stands still is tried to be let go on.
INSIST_SECONDS = 15.0


@dataclass
class Pause:
    """When the guest stopped and went on, by QEMU's own clock."""

    stopped: float | None = None
    resumed: float | None = None

    @property
    def milliseconds(self) -> float | None:
        """For how long it stood still; None where that is not known."""
        if self.stopped is None or self.resumed is None:
            return None
        return round((self.resumed - self.stopped) * 1000, 1)


def start(domain: Domain, folder: Path) -> None:
    """Let QEMU begin to write RAM and devices into ``folder/ram``; the guest runs on."""
    target = f"file:{folder / 'ram'},offset={mapped_ram.STREAM_OFFSET}"
    _set_capabilities(domain, on=True)
    domain.qmp(
        "migrate-set-parameters",
        max_bandwidth=1 << 50,
        multifd_channels=CHANNELS,
        downtime_limit=DOWNTIME_STEPS_MS[0],
    )
    for attempt in range(START_TRIES):
        try:
            domain.qmp("migrate", uri=target)
            return
        except HypervisorError as error:
            if "yank" not in str(error) or attempt == START_TRIES - 1:
                raise
            time.sleep(0.01)


def finish(domain: Domain, events: Events, pause: Pause) -> None:
    """Wait until QEMU has written all of it; the guest is stopped when this returns.

    Raises
    ------
    NoSpace, HypervisorError
        It could not; nothing is being written any more.
    """
    try:
        _wait(domain, events, pause)
    except BaseException:
        cancel(domain)
        raise


def approach(domain: Domain, seconds: float, little: int) -> None:
    """Wait, for some seconds at most, until at most that many bytes are left to be written, or all are; it runs on.

    A guest that does nothing may stand still by then: QEMU ends by itself when nothing is left.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = domain.qmp("query-migrate")
        ram = found.get("ram", {})
        # Before its first round is over, what is left is not known.
        if found.get("status") not in _UNDER_WAY or (
            ram.get("dirty-sync-count", 0) > 1 and ram.get("remaining", little + 1) <= little
        ):
            return
        time.sleep(0.005)


def write(domain: Domain, folder: Path, events: Events) -> None:
    """Let QEMU write RAM and devices into ``folder/ram``; the guest is stopped when this returns."""
    start(domain, folder)
    finish(domain, events, Pause())


def cancel(domain: Domain) -> None:
    """End a migration to a file, if there is one, and wait until QEMU is done with it."""
    end = time.monotonic() + CANCEL_SECONDS
    with contextlib.suppress(VMLabError):
        if domain.qmp("query-migrate").get("status") not in _UNDER_WAY:
            return
        domain.qmp("migrate_cancel")
        while domain.qmp("query-migrate").get("status") in _UNDER_WAY and time.monotonic() < end:
            time.sleep(0.01)


def halt(domain: Domain, state: str, events: Events, pause: Pause) -> bool:
    """Stop a guest, if it runs, so that its memory can be read; whether it stands as a paused guest does.

    QEMU has then written what it had of its disks.
    """
    if state == "running":
        # As in `go_on`, QEMU's own command.
        domain.qmp("stop")
        while (event := events.next(1.0)) is not None:
            if event.name == "STOP":
                pause.stopped = event.at
                return True
            if event.name in _ENDS:
                break
    return bool(domain.qmp("query-status")["status"] == "paused")


def go_on(
    domain: Domain,
    state: str,
    events: Events | None = None,
    pause: Pause | None = None,
    *,
    streamed: bool = True,
) -> None:
    """Let the guest go on as it was before the snapshot, whatever happened in between.

    Parameters
    ----------
    streamed
        QEMU may have written, or been told to write, a stream.
    """
    with contextlib.suppress(VMLabError):
        if state == "running":
            # QEMU's own command instead of libvirt's: it is some milliseconds faster, and libvirt follows the event.
            _insist(domain, "cont")
            while events is not None and (event := events.next(1.0)) is not None:
                if event.name == "RESUME":
                    if pause is not None:
                        pause.resumed = event.at
                    break
        elif streamed and state == "paused" and domain.qmp("query-status").get("status") == "postmigrate":
            # A paused guest must leave the state after a migration, in which its disks are closed.
            _insist(domain, "cont")
            _insist(domain, "stop")
        if streamed:
            _set_capabilities(domain, on=False)


def _wait(domain: Domain, events: Events, pause: Pause) -> None:
    started, step = time.monotonic(), 1
    while True:
        event = events.next(0.5)
        if event is None:
            # Events get lost when libvirtd is restarted; asking costs little at this pace.
            status = domain.qmp("query-migrate")
            name = status.get("status")
        elif event.name == "STOP":
            pause.stopped = event.at
            continue
        elif event.name == "MIGRATION":
            name = event.data.get("status")
        else:
            continue
        if name == "completed":
            if pause.stopped is None:
                pause.stopped = event.at if event else time.time()
            return
        if name in ("failed", "cancelled"):
            why = domain.qmp("query-migrate").get("error-desc", "")
            if "No space left" in why or "No space" in why or _disk_is_full(domain, why):
                raise NoSpace(
                    f"The disk became full while the snapshot of {domain.name} was written; the guest goes on.",
                    hint="forget snapshots or delete machines, then try again",
                    qemu=why,
                )
            raise HypervisorError(f"QEMU could not write the snapshot of {domain.name}.", qemu=why or name)
        if time.monotonic() - started > STEP_SECONDS * step and step < len(DOWNTIME_STEPS_MS):
            domain.qmp("migrate-set-parameters", downtime_limit=DOWNTIME_STEPS_MS[step])
            step += 1


def _disk_is_full(domain: Domain, why: str) -> bool:
    """Whether a failed write is told by a full disk: QEMU's multifd threads do not always say why they failed."""
    found = os.statvfs(domain.serial_log.parent)
    return "writ" in why.lower() and found.f_bavail * found.f_frsize < 16 << 20


def _set_capabilities(domain: Domain, *, on: bool) -> None:
    names = ("mapped-ram", "multifd")
    domain.qmp("migrate-set-capabilities", capabilities=[{"capability": n, "state": on} for n in names])


def _insist(domain: Domain, command: str) -> None:
    """Run a monitor command that must get through: a libvirtd that is being restarted is waited for."""
    end = time.monotonic() + INSIST_SECONDS
    while True:
        try:
            domain.qmp(command)
            return
        except VMLabError:
            if domain.pid is None or time.monotonic() > end:
                raise
            time.sleep(0.05)
