"""Locks between processes and threads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vmlab.errors import Busy
from vmlab.store.locks import locked, remove, waiting

HOLDER = """
import sys
from pathlib import Path
from vmlab.store.locks import locked
with locked(Path(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(path: Path, doing: str = "snapshot") -> subprocess.Popen[str]:
    """Start a process that holds a lock until its standard input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), doing],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def release(process: subprocess.Popen[str]) -> None:
    process.communicate()


def test_a_lock_can_be_taken_again_and_again(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "web.lock"
    for _ in range(3):
        with locked(path, "start"), locked(path, "snapshot"):
            pass
    assert not path.exists()


def test_the_second_is_told_who_holds_it_and_what_for(tmp_path: Path) -> None:
    path = tmp_path / "web.lock"
    holder = hold(path)
    with pytest.raises(Busy) as caught, locked(path, "revert", timeout=0):
        pytest.fail("the lock was given to both")
    release(holder)
    assert "web is busy" in caught.value.message
    assert str(holder.pid) in caught.value.message
    assert "snapshot" in caught.value.message
    assert caught.value.hint


def test_the_second_waits_and_is_told_why(tmp_path: Path) -> None:
    path, said = tmp_path / "web.lock", list[str]()
    holder = hold(path, "forget")

    def tell(text: str) -> None:
        said.append(text)
        release(holder)

    with locked(path, "revert", timeout=60, tell=tell):
        assert holder.poll() is not None
    assert len(said) == 1
    assert str(holder.pid) in said[0]
    assert "forget" in said[0]
    assert "web" in said[0]


def test_a_lock_that_is_no_machines_is_said_by_what_is_done(tmp_path: Path) -> None:
    path = tmp_path / "@store.lock"
    holder = hold(path, "collect what nothing refers to")
    try:
        with pytest.raises(Busy, match="The store is busy") as caught, locked(path, "collect", timeout=0):
            pytest.fail("it is held")
        told = waiting(path, {"pid": holder.pid, "doing": "bake tiny"})
    finally:
        release(holder)
    assert f"process {holder.pid} has been asked to collect what nothing refers to" in caught.value.message
    assert told == f"waiting: process {holder.pid} is to bake tiny"


def test_a_lock_goes_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "web.lock"
    holder = hold(path)
    os.kill(holder.pid, signal.SIGKILL)
    with locked(path, "start", timeout=30):
        holder.wait()
    # What the dead one left in the file fools nobody later.
    assert not path.exists()


def test_a_lock_is_released_by_an_error(tmp_path: Path) -> None:
    path = tmp_path / "web.lock"
    with pytest.raises(KeyboardInterrupt), locked(path, "start"):
        raise KeyboardInterrupt
    with locked(path, "start", timeout=0):
        pass


def test_threads_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    path, inside, most = tmp_path / "web.lock", list[int](), list[int]()

    def work() -> None:
        with locked(path, "work", timeout=60):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.002)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8


def test_a_broken_lock_file_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "web.lock"
    path.write_bytes(b"\xff\xfenot json")
    holder = hold(path)
    path.write_bytes(b"[1, 2")
    with pytest.raises(Busy), locked(path, "x", timeout=0):
        pass
    release(holder)
    with locked(path, "x", timeout=0):
        pass


def test_a_program_that_is_started_meanwhile_does_not_inherit_it(tmp_path: Path) -> None:
    path = tmp_path / "web.lock"
    with locked(path, "start"):
        sleeper = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
        )
    with locked(path, "start", timeout=0):
        pass
    sleeper.communicate()


COUNTER = """
import sys
from pathlib import Path
from vmlab.store.locks import Hold, is_held, locked, remove
lock, count = Path(sys.argv[1]), Path(sys.argv[2])
for _ in range(int(sys.argv[3])):
    with locked(lock, "count", timeout=120):
        count.write_text(str(int(count.read_text()) + 1))
    # Others who look at it, or clear away what the dead left, harm nobody.
    is_held(lock)
    remove(lock)
    Hold(lock.with_suffix(".hold")).release()
"""


def test_no_file_stays_and_never_do_two_hold_one_lock(tmp_path: Path) -> None:
    """Each removes the file that the others wait at, again and again."""
    path, count = tmp_path / "web.lock", tmp_path / "count"
    count.write_text("0")
    argv = [sys.executable, "-c", COUNTER, str(path), str(count), "200"]
    processes = [subprocess.Popen(argv) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert count.read_text() == "800"
    assert [file.name for file in tmp_path.iterdir()] == ["count"]


def test_the_file_of_a_dead_holder_can_be_removed(tmp_path: Path) -> None:
    path = tmp_path / "web.lock"
    holder = hold(path)
    assert not remove(path)
    assert path.exists()
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert path.exists()
    assert remove(path)
    assert not path.exists()
