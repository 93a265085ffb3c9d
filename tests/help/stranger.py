"""A second, real account of this host, and what it can get at."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_PROBE = Path(__file__).with_name("probe.py")
#: Debian's own: everybody can run it, wherever this clone and its environment lie.
_PYTHON = Path(sys.base_prefix) / "bin" / "python3"
#: Folders of the host in which everybody can put something.
SHARED = ("/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue", "/run", "/dev/pts")


@dataclass(frozen=True)
class Stranger:
    """An ordinary account of this host."""

    name: str
    uid: int
    gid: int
    home: Path

    def run(self, argv: list[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program as this account, with nothing of our environment, and return what it printed."""
        env = {
            "HOME": str(self.home),
            "USER": self.name,
            "LOGNAME": self.name,
            "PATH": "/usr/bin:/bin:/usr/sbin:/sbin",
        }
        options = {"cwd": "/", "capture_output": True, "text": True, "timeout": 300} | options
        options["env"] = env | options.get("env", {})
        return subprocess.run(argv, user=self.uid, group=self.gid, extra_groups=[self.gid], **options)

    def can(self, what: str, *args: Any, **options: Any) -> Any:
        """Return what a function of ``probe.py`` answers to this account."""
        told = {"code": _PROBE.read_text(), "what": what, "args": args, "options": options}
        code = (
            "import json, sys; told = json.load(sys.stdin); names = {}; exec(told['code'], names); "
            "print(json.dumps(names[told['what']](*told['args'], **told['options'])))"
        )
        done = self.run([_PYTHON, "-c", code], input=json.dumps(told))
        if done.returncode:
            raise OSError(done.stderr.strip().splitlines()[-1])
        return json.loads(done.stdout)

    def end_all(self) -> None:
        """End all processes of this account: it is ours, made for a test."""
        for _ in range(100):
            left = processes_of(self.uid)
            if not left:
                return
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)


@contextlib.contextmanager
def temporary_account(stem: str = "vmt") -> Iterator[Stranger]:
    """Make an ordinary account with a home that everybody may look into, as is usual; all of it is gone afterwards."""
    if os.geteuid() != 0 or shutil.which("useradd") is None:
        pytest.skip("only root can make a second account")
    name = f"{stem}-{uuid.uuid4().hex[:6]}"
    subprocess.run(["useradd", "--create-home", "--user-group", "--shell", "/bin/sh", name], check=True)
    entry = pwd.getpwnam(name)
    found = Stranger(name, entry.pw_uid, entry.pw_gid, Path(entry.pw_dir))
    found.home.chmod(0o755)
    try:
        yield found
    finally:
        found.end_all()
        subprocess.run(["userdel", "--remove", name], capture_output=True, check=True)


def processes_of(uid: int) -> list[int]:
    """Return the numbers of an account's processes that live."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            if folder.stat().st_uid == uid and state not in "ZX":
                found.append(int(folder.name))
    return found


def everything(*tops: Path) -> list[str]:
    """Return all files and folders of these, themselves included, as root sees them."""
    found = []
    for top in tops:
        found.append(str(top))
        for path, folders, files in os.walk(top):
            found += [f"{path}/{name}" for name in (*folders, *files)]
    return found


def of_account(uid: int) -> list[str]:
    """Return all files, folders, sockets and terminals of an account in the folders that everybody shares."""
    found = []
    for path in everything(*map(Path, SHARED)):
        with contextlib.suppress(OSError):
            if os.lstat(path).st_uid == uid:
                found.append(path)
    return found


def _sockets(pids: list[int]) -> set[str]:
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    link = str(fd.readlink())
                    if link.startswith("socket:["):
                        found.add(link[8:-1])
    return found


def listening(pids: list[int]) -> dict[int, int]:
    """Return the TCP ports that processes listen on: ``{port: number of the process}``."""
    found: dict[int, int] = {}
    for pid in pids:
        sockets = _sockets([pid])
        for table in ("tcp", "tcp6"):
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                    fields = line.split()
                    if fields[3] == "0A" and fields[9] in sockets:
                        found[int(fields[1].rpartition(":")[2], 16)] = pid
    return found


def abstract_sockets(pids: list[int]) -> list[str]:
    """Return the names of the abstract UNIX sockets that processes have: no file, so no permissions, protects them."""
    sockets, found = _sockets(pids), []
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and fields[6] in sockets and fields[7].startswith("@"):
            found.append(fields[7][1:])
    return found


def shared_memory(uid: int) -> list[str]:
    """Return the account's System V memory, semaphores and queues that others may use."""
    found = []
    for kind in ("shm", "sem", "msg"):
        with contextlib.suppress(OSError):
            head, *lines = Path(f"/proc/sysvipc/{kind}").read_text().splitlines()
            names = head.split()
            for line in lines:
                row = dict(zip(names, line.split(), strict=False))
                if int(row["uid"]) == uid and int(row["perms"], 8) & 0o077:
                    found.append(f"{kind} {line.strip()}")
    return found
