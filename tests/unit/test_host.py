"""What processes take of their host."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vmlab.hypervisor import host

SIZE = 64 << 20

#: Maps a file privately, as QEMU does a snapshot's RAM, reads all of it, and writes a part.
READER = """
import mmap, sys
file = open(sys.argv[1], "rb")
ram = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
sum(ram[at] for at in range(0, len(ram), 4096))
for at in range(0, int(sys.argv[2]), 4096):
    ram[at] = 1
print("done", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("written", [0, 16 << 20])
def test_what_was_only_read_of_a_file_is_not_taken(tmp_path: Path, written: int) -> None:
    path = tmp_path / "ram"
    with path.open("wb") as file:
        file.write(os.urandom(SIZE))
        # What has not reached the disk yet cannot be dropped.
        os.fsync(file.fileno())
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(path), str(written)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "done\n"
        found = host.memory_taken(reader.pid, SIZE)
        # Python itself takes some 10 MiB.
        assert written <= found["pss"] < written + (32 << 20)
        assert found["private"] >= written
        # Which of it lies in a mapping of that size, as a guest's RAM does.
        assert found["guest"] == written
        assert found["clean"] >= SIZE - written - (1 << 20)
    finally:
        reader.communicate()
    assert host.memory_taken(reader.pid)["pss"] == 0


def test_pages_that_are_shared_count_by_their_share() -> None:
    with mmap.mmap(-1, SIZE) as shared:
        for at in range(0, SIZE, mmap.PAGESIZE):
            shared[at] = 1
        alone = host.memory_taken(os.getpid())["pss"]
        pid = os.fork()
        if pid == 0:
            _ = [shared[at] for at in range(0, SIZE, mmap.PAGESIZE)]
            os.read(0, 0)
            os.kill(os.getpid(), 19)
            os._exit(0)
        os.waitpid(pid, os.WUNTRACED)
        try:
            assert host.memory_taken(os.getpid())["pss"] < alone - SIZE // 3
        finally:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
