"""What users install: the wheel, in an environment of its own, on a computer without Node."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from help.jupyter_page import Console, Notebook, press_keys, server, write_notebook
from playwright.sync_api import Page, expect

from vmlab.lab import Lab

ROOT = Path(__file__).parents[2]
#: JupyterLab's own files, and extensions that vmlab needs, come from the environment of the tests.
SHARE = Path(sys.prefix) / "share" / "jupyter"
EXTENSIONS = ("@jupyter-widgets", "anywidget")

pytestmark = pytest.mark.timeout(400)


@dataclass
class Installed:
    """An environment with the wheel."""

    wheel: Path
    prefix: Path
    env: dict[str, str]

    @property
    def python(self) -> str:
        return str(self.prefix / "bin" / "python")

    def run(self, *words: str) -> str:
        """Run a module of it, and return all that it says."""
        done = subprocess.run(
            [self.python, "-m", *words],
            env=os.environ | self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return re.sub(r"\x1b\[\d*m", "", done.stdout)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """Build and install the wheel without Node. JupyterLab looks for one when it starts, in vain."""
    if not (ROOT / "vmlab" / "static" / "console.js").is_file():
        pytest.skip("extension/ is not built: scripts/test does it")
    base = tmp_path_factory.mktemp("wheel")
    called = base / "node-was-called"
    (base / "bin").mkdir()
    for name in ("node", "npm", "npx", "yarn", "jlpm"):
        program = base / "bin" / name
        program.write_text(f'#!/bin/sh\necho "$0 $*" >>"{called}"\nexit 1\n')
        program.chmod(0o755)
    path = [entry for entry in os.environ["PATH"].split(":") if not entry.startswith(sys.prefix)]
    env = {"PATH": ":".join([str(base / "bin"), *path]), "JUPYTERLAB_DIR": str(SHARE / "lab")}
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={base}", str(ROOT)],
        env=os.environ | env,
        check=True,
    )
    (wheel,) = base.glob("vmlab-*.whl")
    prefix = base / "env"
    venv.create(prefix, symlinks=True)
    made = Installed(wheel, prefix, env)
    # What it depends on is there already. Only what lies in a folder of site-packages: not vmlab itself, which an
    # editable installation finds elsewhere.
    (site,) = prefix.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    subprocess.run(
        [
            *pip,
            "--python",
            made.python,
            "install",
            "--no-deps",
            "--no-index",
            "--ignore-installed",
            str(wheel),
        ],
        env=os.environ | env,
        check=True,
    )
    for name in EXTENSIONS:
        link = prefix / "share" / "jupyter" / "labextensions" / name
        link.symlink_to(SHARE / "labextensions" / name)
    assert not called.exists(), called.read_text()
    yield made
    shutil.rmtree(base, ignore_errors=True)


def test_it_holds_what_is_needed(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as wheel:
        names = set(wheel.namelist())
        licences = wheel.read("vmlab/static/console.js.LICENSES.txt").decode()
        assert wheel.getinfo("vmlab/static/console.js").file_size > 100_000
    for name in ("vmlab/server/openapi.yaml", "vmlab/server/events.yaml", "vmlab/webconsole/page.html"):
        assert name in names
    for word in ("noVNC", "xterm", "Mozilla Public License", "MIT"):
        assert word in licences, f"no {word} among the licences"
    data = {name.partition(".data/data/")[2] for name in names}
    extension = "share/jupyter/labextensions/vmlab/"
    assert {f"{extension}package.json", f"{extension}install.json"} <= data
    assert any(name.startswith(f"{extension}static/remoteEntry") for name in data)
    assert "etc/jupyter/jupyter_server_config.d/vmlab.json" in data
    assert not any("node_modules" in name or name.startswith("vmlab/labextension") for name in names)


def test_jupyter_finds_it(installed: Installed) -> None:
    assert "vmlab" in installed.run("vmlab", "--version")
    extensions = installed.run("jupyterlab.labextensions", "list")
    (line,) = [line for line in extensions.splitlines() if line.strip().startswith("vmlab ")]
    assert "enabled" in line
    assert "OK" in line
    assert str(installed.prefix) in extensions
    servers = installed.run("jupyter_server.extension.serverextension", "list")
    assert "vmlab enabled" in servers
    assert "vmlab" in servers.partition("Validating vmlab")[2]
    assert "OK" in servers.partition("Validating vmlab")[2].splitlines()[1]


def test_it_works_in_jupyterlab(
    installed: Installed, page: Page, lab: Lab, names: Callable[[str], str], tmp_path: Path
) -> None:
    machine = lab.create(names("wheel"), "tiny")
    for name in ("files", "own"):
        (tmp_path / name).mkdir()
    path = write_notebook(
        tmp_path / "files" / "wheel.ipynb",
        "%load_ext vmlab\nimport vmlab; vmlab.__file__",
        f"%vm console {machine.name}",
    )
    with server(
        tmp_path / "files", tmp_path / "own", environment=installed.env, python=installed.python
    ) as jupyter:
        nb = Notebook(page, jupyter.url(path.name))
        expect(nb.run(0)).to_contain_text(str(installed.prefix))
        console = Console(nb.run(1), machine.name)
        console.expect_live()
        console.take()
        press_keys(page, "echo from-the-wheel >/run/arrived\n")
        machine.wait_until_succeeds("grep -qx from-the-wheel /run/arrived", timeout=60)
        page.locator('.jp-SideBar [data-id="vmlab-panel"]').click()
        expect(page.locator(f'.jp-vmlab-card[data-machine="{machine.name}"]')).to_have_attribute(
            "data-state", "running"
        )
