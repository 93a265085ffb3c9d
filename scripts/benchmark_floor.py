"""The floor of forks: the same QEMU, started by hand, without libvirt and without vmlab.

Its arguments are those of a fork that runs, read from ``/proc``, with sockets, files and disks of its own; it takes up
the same stream over the same mapped RAM. Its disk layers are there before the clock starts: no way of forking is faster
than this one.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vmlab.engine import mapped_ram
from vmlab.hypervisor.account import Account
from vmlab.lab import Lab
from vmlab.machine import Machine, Snapshot

#: Seconds in which a QEMU started by hand has to come up.
PATIENCE = 60.0
#: Arguments of libvirt's own that mean nothing without it; each has one word behind it.
_LIBVIRTS = ("-add-fd", "-name", "-uuid", "-msg")


class Floor:
    """Raw QEMUs that take up a snapshot as its forks do.

    Parameters
    ----------
    lab
        Whose snapshot it is; files are made in its cache and gone after :meth:`close`.
    fork
        A machine that runs as a fork of the snapshot: its arguments are taken.
    snapshot
        What they take up.
    """

    def __init__(self, lab: Lab, fork: Machine, snapshot: Snapshot) -> None:
        self.account: Account = lab.account
        # Short: the path of a UNIX socket has 107 bytes at most.
        self.folder = self.account.make_dir(lab.home / "cache" / f"raw-{uuid.uuid4().hex[:4]}")
        ram = lab.store.snapshot(snapshot.id).ram
        assert ram is not None
        self.stream = lab.store.snapshot_folder(snapshot.id) / ("thin" if ram.base is None else "ram")
        pid = fork.domain.pid
        assert pid is not None
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
        self.words = list(_without_libvirts(words))
        record = lab.store.machine(fork.name)
        self.layers = {
            str(lab.store.layer_path(layer)): lab.store.layer(layer) for layer in record.layers.values()
        }
        self.lab = lab
        self._running: list[RawQemu] = []

    def prepare(self, count: int) -> list[RawQemu]:
        """Make the files of so many QEMUs."""
        made = []
        for _ in range(count):
            folder = self.account.make_dir(self.folder / uuid.uuid4().hex[:4])
            words = self.words
            for number, (path, layer) in enumerate(self.layers.items()):
                assert layer.backing is not None
                own = folder / f"{number}.qcow2"
                below = self.lab.store.layer_path(layer.backing)
                argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", below, own]
                self.account.run(argv, check=True)
                words = [word.replace(path, str(own)) for word in words]
            made.append(RawQemu(self.account, folder, words))
        self._running += made
        return made

    def start(self, made: list[RawQemu]) -> None:
        """Start them all at once, as many threads as there are, and return when all guests run."""
        if len(made) == 1:
            made[0].start(self.stream)
            return
        threads = [threading.Thread(target=one.start, args=(self.stream,)) for one in made]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for one in made:
            if not one.runs:
                raise RuntimeError("a raw QEMU did not start")

    def end(self) -> None:
        """End all that were started."""
        for one in self._running:
            one.end()
        self._running.clear()

    def close(self) -> None:
        """End them and remove their files."""
        self.end()
        subprocess.run(["rm", "-rf", str(self.folder)], check=False)


def _without_libvirts(words: list[str]) -> Iterator[str]:
    """Yield QEMU's arguments with our own files for those that libvirt had opened or made (``%`` is the folder)."""
    rest = iter(words)
    for word in rest:
        if word in _LIBVIRTS:
            next(rest)
            continue
        if word == "-object" or word == "-chardev" or word == "-vnc":
            value = next(rest)
            if '"secret"' in value:
                continue
            value = re.sub(r"fd=\d+,server=on,wait=off", "path=%/SOCKET,server=on,wait=off", value)
            value = value.replace("SOCKET", value.partition("id=")[2].partition(",")[0])
            value = value.replace("logfile=/dev/fdset/0", "logfile=%/serial.log")
            value = re.sub(r"unix:[^,]*", "unix:%/vnc", value)
            yield from (word, value)
            continue
        yield word


class RawQemu:
    """One of them."""

    def __init__(self, account: Account, folder: Path, words: list[str]) -> None:
        self.account, self.folder = account, folder
        self.words = [word.replace("%/", f"{folder}/") for word in words]
        self.process: subprocess.Popen[Any] | None = None
        self.runs = False

    @property
    def pid(self) -> int | None:
        """Its process number."""
        return self.process.pid if self.process else None

    def start(self, stream: Path) -> None:
        """Start it, let it take up the stream, and return when its guest runs."""
        log = (self.folder / "said").open("wb")
        self.process = self.account.popen(self.words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        log.close()
        monitor = self._connect()
        with contextlib.closing(monitor):
            monitor.run("qmp_capabilities")
            able = [{"capability": "mapped-ram", "state": True}, {"capability": "events", "state": True}]
            monitor.run("migrate-set-capabilities", capabilities=able)
            monitor.run("migrate-incoming", uri=f"file:{stream},offset={mapped_ram.STREAM_OFFSET}")
            monitor.wait(lambda e: e["event"] == "MIGRATION" and e["data"]["status"] == "completed")
            monitor.run("cont")
        self.runs = True

    def _connect(self) -> Monitor:
        end = time.monotonic() + PATIENCE
        while True:
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > end:
                said = (self.folder / "said").read_text(errors="replace")
                raise RuntimeError(f"raw QEMU did not start: {said}\n{shlex.join(self.words)}")
            with contextlib.suppress(OSError):
                return Monitor(self.folder / "charmonitor")
            time.sleep(0.001)

    def end(self) -> None:
        """Kill it."""
        if self.process is not None:
            with contextlib.suppress(OSError):
                self.process.send_signal(signal.SIGKILL)
            self.process.wait()


class Monitor:
    """QEMU's monitor over its own socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rb")
        self._events: list[dict[str, Any]] = []
        self._read()

    def _read(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise RuntimeError("raw QEMU closed its monitor")
        found: dict[str, Any] = json.loads(line)
        return found

    def run(self, execute: str, **arguments: Any) -> None:
        """Run a command."""
        self._socket.sendall(json.dumps({"execute": execute, "arguments": arguments}).encode() + b"\n")
        while True:
            answer = self._read()
            if "event" in answer:
                self._events.append(answer)
            elif "error" in answer:
                raise RuntimeError(f"raw QEMU refused {execute}: {answer['error']}")
            else:
                return

    def wait(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Read until an event comes that is wanted."""
        while True:
            event = self._events.pop(0) if self._events else self._read()
            if "event" in event and wanted(event):
                return

    def close(self) -> None:
        """Let go of it."""
        self._lines.close()
        self._socket.close()
