"""Half a message for a guest's agent, as a state has it that was kept while a message came in."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from pathlib import Path

import pytest

from vmlab.hypervisor.domain import Domain

PIDFD_GETFD = 438
HALF = b'{"execute": "guest-exec", "arguments": {"path": "/bin/sh", "arg": ["-c", "half a comm'


def send(domain: Domain) -> None:
    """Send half a message through libvirt's own connection; skip the test where that may not be taken."""
    pid = int((domain.account.runtime_dir / "libvirt" / "libvirtd.pid").read_text())
    process, libc = os.pidfd_open(pid), ctypes.CDLL(None, use_errno=True)
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            if not str(entry.readlink()).startswith("socket:"):
                continue
            taken = libc.syscall(PIDFD_GETFD, process, int(entry.name), 0)
            if taken < 0:
                pytest.skip(f"libvirt's connections may not be taken: {os.strerror(ctypes.get_errno())}")
            with socket.socket(fileno=taken) as line:
                peer = ""
                with contextlib.suppress(OSError):
                    peer = str(line.getpeername())
                if f"-{domain.known_as[:20]}" in peer and "guest_agent" in peer:
                    assert line.send(HALF) == len(HALF)
                    return
    finally:
        os.close(process)
    raise AssertionError(f"libvirt has no connection to the agent of {domain.name}")
