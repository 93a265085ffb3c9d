"""The other Debian: a fresh tree of Debian 13, in which all is set up and half of the tour is run, with its QEMU."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from vmlab.images.debian import host_codename, host_targets, reach_settings, sources

ROOT = Path(__file__).parents[2]
#: Where the clone lies in the tree.
CLONE = "srv/vmlab"
#: The first cell of the tour that is not run.
HALF = "## Another way on: forks"
#: How this host reaches its package registries: what a fresh system of a person would have been told, too.
REACH = (
    "usr/local/share/ca-certificates",
    "etc/pip.conf",
    "etc/npmrc",
    "root/.config/pip",
    "root/.npmrc",
    "etc/resolv.conf",
)
# All processes in the tree end, and all that was mounted goes, when the first process of the namespaces ends.
ENTER = """
set -e
mount --rbind /dev "$1/dev"
mount --rbind /sys "$1/sys"
mount -t proc proc "$1/proc"
exec chroot "$1" /bin/sh -c "$2"
"""

pytestmark = [
    pytest.mark.skipif(
        not os.environ.get("VMLAB_ALL"), reason="ten minutes, from the network; scripts/test --all runs it"
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can enter another system's tree"),
    pytest.mark.timeout(3600),
]


def run(tree: Path, command: str) -> str:
    """Run a command in the tree as its root."""
    left_out = ("VMLAB_", "VIRTUAL_ENV", "PYTEST_", "JUPYTER_", "XDG_", "PYENV", "PYTHON")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(left_out)}
    environment |= {
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }
    argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER, "sh", tree, command]
    done = subprocess.run(
        argv,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """A fresh, minimal Debian 13 with a clone of what is tested here."""
    tree = tmp_path / "debian13"
    settings = tmp_path / "reach.conf"
    settings.write_text(reach_settings())
    lines = sources("trixie", host_targets(), host_codename())
    argv = [
        "mmdebstrap",
        "--quiet",
        "--mode=root",
        "--variant=apt",
        "--include=ca-certificates",
        f"--aptopt={settings}",
    ]
    subprocess.run([*argv, "trixie", tree, *lines], check=True, stdin=subprocess.DEVNULL)
    try:
        for name in REACH:
            here, there = Path("/", name), tree / name
            if here.is_dir():
                shutil.copytree(here, there, dirs_exist_ok=True)
            elif here.is_file():
                there.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(here, there)
        files = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        for name in filter(None, files.split("\0")):
            (tree / CLONE / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / CLONE / name)
        yield tree
    finally:
        # Never through a mount: should one have stayed, so does the tree.
        if not any(f" {tree}/" in line for line in Path("/proc/mounts").read_text().splitlines()):
            shutil.rmtree(tree)


def test_a_fresh_debian_13_is_set_up_and_runs_half_of_the_tour(tree: Path) -> None:
    tour = nbformat.read(tree / CLONE / "notebooks/01-tour.ipynb", as_version=4)
    end = next(number for number, cell in enumerate(tour.cells) if cell.source.startswith(HALF))
    assert end > len(tour.cells) // 2
    tour.cells = [*tour.cells[:end], tour.cells[-1]]
    nbformat.write(tour, tree / CLONE / "notebooks/half.ipynb")
    said = run(
        tree,
        f"update-ca-certificates >/dev/null && cd /{CLONE} && scripts/lab --setup && .venv/bin/vmlab doctor && "
        "qemu-system-x86_64 --version && .venv/bin/python scripts/run_notebook.py notebooks/half.ipynb /tmp/half.html",
    )
    assert "QEMU emulator version" in said
    assert "Written: /tmp/half.html" in said
    shown = (tree / "tmp/half.html").read_text()
    assert "Hello from a whole computer." in shown
    assert "my thesis, page 1" in shown
