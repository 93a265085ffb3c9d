"""A real QEMU that never runs an instruction: its devices are moved through its monitor, and it writes its state."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

QEMU = shutil.which("qemu-system-x86_64")


class PausedQemu:
    """The monitor of a QEMU started with ``-S``."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self.folder, self.process = folder, process
        self.socket = socket.socket(socket.AF_UNIX)
        end = time.monotonic() + 30
        while True:
            try:
                self.socket.connect(str(folder / "qmp"))
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError((folder / "errors").read_text()) from None
                time.sleep(0.01)
        self.socket.settimeout(30)
        self.file = self.socket.makefile("r")
        self.file.readline()
        self.qmp("qmp_capabilities")

    def qmp(self, name: str, **arguments: Any) -> Any:
        command = {"execute": name, "arguments": arguments}
        self.socket.sendall(json.dumps(command).encode() + b"\n")
        while True:
            answer = json.loads(self.file.readline())
            if "error" in answer:
                raise RuntimeError(answer["error"]["desc"])
            if "return" in answer:
                return answer["return"]

    def hmp(self, line: str) -> str:
        return str(self.qmp("human-monitor-command", **{"command-line": line})).replace("\r", "")

    def out(self, port: int, *values: int) -> None:
        """Write bytes to an I/O port, as the guest's processor would."""
        for value in values:
            self.hmp(f"o /b {port:#x} {value:#x}")

    def save(self, path: Path) -> Path:
        """Write RAM and devices as vmlab does; only once, since QEMU refuses a second time before it ran."""
        made = self.folder / path.name
        capabilities = [{"capability": "mapped-ram", "state": True}]
        self.qmp("migrate-set-capabilities", capabilities=capabilities)
        self.qmp("migrate", uri=f"file:{made},offset=4096")
        while (status := self.qmp("query-migrate").get("status")) != "completed":
            assert status not in ("failed", "cancelled"), status
            time.sleep(0.01)
        shutil.copyfile(made, path)
        return path


@contextlib.contextmanager
def paused_qemu(*arguments: str, files: Sequence[tuple[str, bytes]] = ()) -> Iterator[PausedQemu]:
    """Start a QEMU that stands still, with ``files`` in its working directory; it has ended afterwards."""
    assert QEMU is not None
    folder = Path(tempfile.mkdtemp(prefix="vmlab-test-"))
    folder.chmod(0o777)
    for name, content in files:
        (folder / name).write_bytes(content)
    command = [QEMU, "-S", "-nodefaults", "-display", "none", "-accel", "tcg", *arguments]
    # QEMU never runs as root.
    user = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    with (folder / "errors").open("wb") as errors:
        process = subprocess.Popen(
            [*command, "-qmp", "unix:qmp,server=on,wait=off"], cwd=folder, stderr=errors, **user
        )
    try:
        yield PausedQemu(folder, process)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)
