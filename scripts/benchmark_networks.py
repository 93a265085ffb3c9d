"""Measure networks: our switch beside QEMU's own ``mcast`` back end, between the same guests; and the switch alone.

Two guests with two further cards each: one on a network of ours, one that QEMU itself joins over a multicast group on
the loopback (which any account of the host can read and write). Every round takes both in turn. Figures are medians.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vmlab.engine import load
from vmlab.hypervisor.domain import versions
from vmlab.lab import Lab
from vmlab.machine import Machine
from vmlab.network.networks import SWITCH, socket_name

#: Bytes of a frame of a usual network, and how many of them are sent through the switch alone.
FRAME, FRAMES = 1514, 200_000
_PORT = 5558


def joined_by_qemu(xml: str) -> str:
    """Return the XML of a machine whose third card QEMU itself joins with others'."""
    return re.sub(
        r"stream,id=vmlabcard2,[^'\"]*",
        f"socket,id=vmlabcard2,mcast=230.0.0.1:{_PORT},localaddr=127.0.0.1",
        xml,
    )


def make(lab: Lab, name: str) -> Machine:
    """Make a machine with a card on each."""
    build = load.domain_xml.build
    load.domain_xml.build = lambda *given: joined_by_qemu(build(*given))
    try:
        # Booted: the XML of a state that is continued is made elsewhere.
        made = lab.create(name, nics=["bench", "bench-mcast"], bake=False)
    finally:
        load.domain_xml.build = build
    made.wait_for_agent(120)
    for card, subnet in ((1, "10.201.0"), (2, "10.202.0")):
        own = 1 if name.endswith("a") else 2
        made.succeed(
            f"ip addr flush dev eth{card}; ip addr add {subnet}.{own}/24 dev eth{card}; ip link set eth{card} up"
        )
    return made


def ping(one: Machine, to: str) -> float:
    """Return the mean round trip in milliseconds."""
    said = one.succeed(f"ping -i 0.02 -c 50 {to} | tail -n 1", timeout=60)
    return float(said.rpartition("=")[2].split("/")[1])


def transfer(one: Machine, to: str, size: int) -> float:
    """Return the MiB a second at which a file arrives from a web server."""
    begin = time.monotonic()
    got = int(one.succeed(f"wget -q -O - http://{to}:7000/big | wc -c", timeout=300))
    assert got == size
    return size / 2**20 / (time.monotonic() - begin)


def switch_alone() -> tuple[float, float]:
    """Return frames a second through a switch of its own, and its memory in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen([sys.executable, "-m", "vmlab.network.switch", folder])
        try:
            where = Path(folder)
            while not (where / "control").exists():
                time.sleep(0.01)
            line = _line(where / "control")
            line.sendall(b'{"open": {"x": {}}}\n')
            line.recv(1000)
            one, two = _line(where / socket_name("x", 0)), _line(where / socket_name("x", 1))
            two.sendall(_framed(b"\xff" * 6 + b"\x02\0\0\0\0\2" + bytes(50)))
            one.recv(1000)
            piece = _framed(b"\x02\0\0\0\0\2" + b"\x02\0\0\0\0\1" + bytes(FRAME - 12)) * 100
            begin = time.monotonic()
            sender = threading.Thread(target=lambda: [one.sendall(piece) for _ in range(FRAMES // 100)])
            sender.start()
            left = len(piece) * FRAMES // 100
            while left > 0:
                two.settimeout(2)
                try:
                    left -= len(two.recv(1 << 20))
                except TimeoutError:
                    break  # what did not fit was dropped
            took = time.monotonic() - begin - (2 if left > 0 else 0)
            sender.join()
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            return (FRAMES - left / (FRAME + 4)) / took, pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        finally:
            process.kill()
            process.wait()


def _line(path: Path) -> socket.socket:
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    line.connect(os.fspath(path))
    return line


def _framed(frame: bytes) -> bytes:
    return struct.pack(">I", len(frame)) + frame


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("-n", type=int, default=5, help="rounds")
    parser.add_argument("--size", type=int, default=16, metavar="MIB", help="size of the file that is sent")
    args = parser.parse_args()
    lab, mark = Lab(), uuid.uuid4().hex[:6]
    made: list[Machine] = []
    found: dict[str, list[float]] = {}

    def note(what: str, measure: Callable[[], float]) -> None:
        found.setdefault(what, []).append(measure())

    try:
        made = [make(lab, f"bench-{mark}-{end}") for end in "ab"]
        one, two = made
        accelerator = one.spec.accelerator
        size = args.size << 20
        two.succeed(f"head -c {size} /dev/urandom >/dev/shm/big; httpd -p 7000 -h /dev/shm")
        for _ in range(args.n):
            for what, to in (("switch", "10.201.0.2"), ("mcast", "10.202.0.2")):
                note(f"ping {what}", lambda to=to: ping(one, to))  # type: ignore[misc]
                note(f"transfer {what}", lambda to=to: transfer(one, to, size))  # type: ignore[misc]
            rate, memory = switch_alone()
            note("frames", lambda rate=rate: rate)  # type: ignore[misc]
            note("memory", lambda memory=memory: memory)  # type: ignore[misc]
        (pid,) = [int(word) for word in subprocess.run(
            ["pgrep", "-f", f"vmlab.network.switch {SWITCH.folder(lab.account)}( |$)"], capture_output=True, text=True
        ).stdout.split()[-1:]]  # fmt: skip
        found["real memory"] = [
            int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        ]
    finally:
        for machine in made:
            machine.delete()
        for network in lab.networks:
            if network.name in ("bench", "bench-mcast") and not network.cards:
                lab.delete_network(network.name)
    median = {what: statistics.median(values) for what, values in found.items()}
    table = Table("what", "switch", "QEMU's mcast", "ratio", box=None)
    for what, unit in (("ping", "ms"), ("transfer", "MiB/s")):
        ours, theirs = median[f"{what} switch"], median[f"{what} mcast"]
        table.add_row(
            f"{what} between guests ({unit})", f"{ours:.2f}", f"{theirs:.2f}", f"{ours / theirs:.2f}"
        )
    table.add_row(f"switch alone, frames of {FRAME} bytes a second", f"{median['frames']:,.0f}", "", "")
    table.add_row("memory of the switch (MiB)", f"{median['real memory']:.1f}", "", "")
    console = Console()
    console.print(table)
    console.print(
        f"{args.n} rounds, medians; QEMU {versions(lab.account)['qemu']}, {os.cpu_count()} CPUs, "
        f"Linux {platform.release()}, two 'tiny', {accelerator}"
    )


if __name__ == "__main__":
    main()
