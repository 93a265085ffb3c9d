"""A store that the oldest version made is opened by the newest: nobody loses a machine or a snapshot to an update.

Exhaustive (``scripts/test --all``): the old version is built from this repository's history, and builds its own guest.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmlab.lab import Lab

#: The version whose stores must go on to open: main as it was on 26 November 2026.
OLDEST = "07a1d54f6d3bc88230c257e02aeda53bdac49aa4"
ROOT = Path(__file__).parents[2]

#: Makes a store: a machine with a tree that was reverted and can be undone, and one that is off.
MAKE = """
import sys
from vmlab import Lab

assert sys.prefix in __import__("vmlab").__file__, "this is not the old version"
mark = sys.argv[1]
lab = Lab()
web = lab.create(f"web-{mark}", "tiny")
web.succeed("echo first >/root/mark; echo first >/run/mark; sync")
first = web.snapshot("first", "as it was")
web.succeed("echo second >/root/mark; echo second >/run/mark; sync")
web.snapshot("second")
web.succeed("echo third >/root/mark; echo third >/run/mark; sync")
web.revert("first")
off = lab.create(f"off-{mark}", "tiny")
off.succeed("echo off >/root/mark; sync")
off.kill()
off.snapshot("disk")
"""


def marks(machine: object) -> str:
    return " ".join(machine.succeed("cat /run/mark /root/mark").split())  # type: ignore[attr-defined]


@pytest.fixture
def old(tmp_path: Path) -> Iterator[tuple[Lab, str]]:
    """A store that the oldest version has made, and the mark in the names of its machines."""
    known = subprocess.run(["git", "cat-file", "-e", OLDEST], cwd=ROOT, capture_output=True)
    if known.returncode:
        pytest.skip(f"this clone has no history that reaches back to {OLDEST[:7]}")
    source = tmp_path / "source"
    source.mkdir()
    archive = subprocess.run(["git", "archive", OLDEST], cwd=ROOT, capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", source], input=archive.stdout, check=True)
    # What it depends on is what we depend on, and its JavaScript is not needed: the build is content with ours.
    env = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    for built in ("static", "labextension"):
        shutil.copytree(ROOT / "vmlab" / built, source / "vmlab" / built, dirs_exist_ok=True)
    pip = [sys.executable, "-m", "pip"]
    wheels = tmp_path / "wheels"
    subprocess.run(
        [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", wheels, source],
        env=env,
        check=True,
    )
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    packages = next(venv.glob("lib/python*/site-packages"))
    (wheel,) = wheels.glob("vmlab-*.whl")
    subprocess.run(
        [*pip, "install", "--quiet", "--no-deps", "--no-index", "--target", packages, wheel],
        env=env,
        check=True,
    )
    (packages / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
    usual = Lab()
    home = usual.home.parent / f"old-{uuid.uuid4().hex[:6]}"
    mark = uuid.uuid4().hex[:6]
    try:
        subprocess.run(
            [venv / "bin" / "python", "-c", MAKE, mark],
            env=os.environ | {"VMLAB_HOME": str(home)},
            check=True,
            cwd="/",
        )
        yield Lab(home), mark
    finally:
        if home.exists():
            for machine in Lab(home).machines:
                machine.delete()
        shutil.rmtree(home, ignore_errors=True)


@pytest.mark.skipif("VMLAB_ALL" not in os.environ, reason="exhaustive: scripts/test --all")
@pytest.mark.timeout(900)
def test_a_store_of_the_oldest_version_opens_in_the_newest(old: tuple[Lab, str]) -> None:
    lab, mark = old
    web, off = lab.machine(f"web-{mark}"), lab.machine(f"off-{mark}")
    assert {m.name: m.state for m in lab} == {web.name: "running", off.name: "off"}
    assert [s.name for s in web.snapshots] == ["first", "second"]
    assert web.find("first").description == "as it was"
    # Nobody else reads it, whatever it was.
    for path in lab.home.rglob("*"):
        assert path.is_symlink() or not path.stat().st_mode & 0o077, path
    assert marks(web) == "first first"
    web.undo()
    assert marks(web) == "third third"
    # States that it kept with the old way out go on with the new one.
    with socket.create_server(("127.0.0.1", 0)) as victim:
        victim.settimeout(2)
        port = victim.getsockname()[1]
        assert web.execute(f"timeout 10 nc 10.0.2.2 {port} </dev/null").status
        with pytest.raises(TimeoutError):
            victim.accept()
    assert web.find("second").verify().ok
    web.revert("second")
    assert marks(web) == "second second"
    with web.find("first").diff("second") as diff:
        assert diff.files.changed("/root/mark")
    fork = web.fork(f"fork-{mark}", snapshot="first")
    assert marks(fork) == "first first"
    web.snapshot("third")
    off.start()
    off.wait_for_agent()
    assert off.succeed("cat /root/mark") == "off\n"
    web.rename(f"new-{mark}")
    assert marks(web) == "second second"
