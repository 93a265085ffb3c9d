"""Every example in the help, the README and the docstrings runs as it stands, on real guests.

Only names of machines and ports are replaced, by ones that are free here: libvirt knows each name once. Where an
example needs something to be there (a snapshot 'clean', a file to copy), it is put there first.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib
import lzma
import os
import pkgutil
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jupyter_client.manager import start_new_kernel

import vmlab
from vmlab import commands
from vmlab.errors import VMLabError
from vmlab.lab import Lab
from vmlab.machine import Machine
from vmlab.store import networks

from .conftest import link_image

ROOT = Path(__file__).parents[2]
ALL = os.environ.get("VMLAB_ALL") == "1"
#: What the examples call machines that are there, and what they make.
THERE, MADE = ("web", "db", "d1"), ("big", "w1", "w2", "server", "desk", "desk-a", "desk-b", "test1")
#: A build, a boot, or all parts compared: with --all.
LONG = (
    "images --build desktop", "images --build all", "create big desktop", "create d1 desktop",
    "reboot web", "reboot --hard", "diff web@clean db@s1 --all", "diff web clean --inside",
)  # fmt: skip
#: These stay until they are ended: tests/vm/test_webconsole.py and tests/vm/test_guest.py hold them.
STAYING = ("vmlab console",)
OVF = """<?xml version="1.0"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData">
<References><File ovf:id="f1" ovf:href="old.vmdk"/></References>
<DiskSection><Info/><Disk ovf:diskId="d1" ovf:fileRef="f1" ovf:capacity="67108864"/></DiskSection>
<VirtualSystem ovf:id="shop"><Info/><Name>Shop</Name><VirtualHardwareSection><Info/>
<Item><rasd:ElementName>Disk 1</rasd:ElementName><rasd:HostResource>ovf:/disk/d1</rasd:HostResource>
<rasd:InstanceID>9</rasd:InstanceID><rasd:ResourceType>17</rasd:ResourceType></Item>
</VirtualHardwareSection></VirtualSystem>
</Envelope>
"""


class Stage:
    """A store of its own, and free names for those of the examples."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.folder = folder
        mark = uuid.uuid4().hex[:4]  # behind the stem, for a name can be a variable, too
        self.names = {name: re.sub(r"^\w+", rf"\g<0>{mark}", name) for name in (*THERE, *MADE)}
        shutil.copytree(ROOT / "notebooks" / "shop", folder / "shop")
        self.ports = {}
        for port in ("8080", "5432"):
            with socket.socket() as one:
                one.bind(("127.0.0.1", 0))
                self.ports[port] = str(one.getsockname()[1])

    def own(self, text: str) -> str:
        """Return a text with our names and port."""
        known = "|".join(sorted(map(re.escape, self.names), key=len, reverse=True))
        text = re.sub(rf"(?<![\w/.-])({known})(?![\w*-])", lambda match: self.names[match[0]], text)
        return re.sub(r"\b(8080|5432)(?=:)", lambda match: self.ports[match[0]], text)

    def there(self, name: str) -> Machine:
        """Return a running machine, made if it is not there."""
        name = self.names[name]
        if name not in self.lab:
            return self.lab.create(name, "tiny")
        machine = self.lab[name]
        if machine.state == "paused":
            return machine.resume()
        if machine.state != "running":
            machine.revert("ready", keep=False)  # without booting
        return machine

    def anew(self, name: str) -> Machine:
        """Return a running machine as it was first: an example before may have left it with another screen."""
        return self.there(name).revert("ready", keep=False)

    def gone(self, *names: str) -> None:
        for name in names:
            with contextlib.suppress(VMLabError):
                self.lab[self.names[name]].delete()

    def end(self) -> None:
        """Delete the scenarios that examples have made."""
        for scenario in self.lab.scenarios:
            if scenario.name in ("shop", "shop-b"):
                scenario.delete()

    def prepare(self, verb: str, words: str) -> None:
        """Put there what an example needs."""
        # What an example before has left switched off, all of them are not to be.
        self.gone(*(MADE if "*" in words else [word for word in words.split() if word in MADE]))
        if verb == "create":
            self.gone(words.split(maxsplit=1)[0])
            return
        if re.search(r"\bshop\b(?!\.)", words) and verb not in ("import", "up"):
            shop = self.lab.up(self.folder / "shop")
            if "before" in words:
                shop.snapshot("before")
            return
        # What follows looks at all machines there are, and deletes some.
        self.end()
        if verb in ("link", "capture"):
            self.gone("web")
            self.lab.create(self.names["web"], "tiny", nics=["lan"])
            return
        if verb == "fork":
            for machine in self.lab.machines:  # of --count
                if machine.name not in [self.names[name] for name in THERE]:
                    machine.delete()
        for name in THERE:
            if re.search(rf"\b{name}\b", words) or "*" in words:
                self.there(name)
        web = self.lab[self.names["web"]] if "web" in words else None
        if web is not None:
            have = {snapshot.name for snapshot in web.snapshots}
            if verb == "snapshot" or "fresh" in words:
                for name in {"clean", "fresh"} & have:
                    web.find(name).forget()
                have -= {"clean"}
            want = {"clean", "s1", "s2", "s3", "first", "second"} if verb != "snapshot" else set()
            for name in sorted(want & set(words.split())) or sorted({"clean"} & want):
                if name not in have:
                    web.snapshot(name)
        {
            "resume": getattr(web, "pause", None),
            "undo": getattr(web, "revert", None),
            "delete": lambda: self.lab.create(self.names["test1"], "tiny") if "test" in words else None,
            "diff": lambda: self.one_of_db() if "@" in words else None,
            "wait": lambda: self.anew("d1" if "d1" in words else "web").succeed(
                "touch /run/done; echo login: >> /dev/ttyS0; pidof httpd || httpd -p 80 -h /tmp; "
                "printf '\\033[?25l' >> /dev/tty0"  # no cursor blinks
            ),
            "network": lambda: self.free_network() if "lan" in words else None,
            "images": lambda: self.old_image() if "old" in words else None,
            "import": lambda: self.image_files(words.split(maxsplit=1)[0]),
        }.get(verb, lambda: None)()  # fmt: skip

    def free_network(self) -> None:
        for network in self.lab.networks:
            for machine in {card.machine for card in network.cards}:
                self.lab[machine].delete()
        if not self.lab.networks:
            networks.make(self.lab.store, "lan", None)

    def one_of_db(self) -> None:
        db = self.there("db")
        if not db.snapshots:
            db.snapshot("s1")

    def old_image(self) -> None:
        self.image_files("old")
        self.lab.import_image("old", self.folder / "debian-12-generic-amd64.qcow2")

    def image_files(self, name: str) -> None:
        """Make the files that an import names, and free the image's name."""
        with contextlib.suppress(VMLabError):
            self.lab.image(name).delete()
        for file in ("vmlinuz", "initrd.img"):
            shutil.copy(self.lab.store.image_folder("tiny") / file, self.folder / file)
        disk = self.folder / "debian-12-generic-amd64.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "64M"], check=True)
        vmdk = self.folder / "old.vmdk"
        subprocess.run(
            ["qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized", disk, vmdk], check=True
        )
        (self.folder / "shop.ovf").write_text(OVF)
        with tarfile.open(self.folder / "shop.ova", "w", format=tarfile.USTAR_FORMAT) as ova:
            for member in ("shop.ovf", vmdk.name):
                ova.add(self.folder / member, member)
        vmdk.with_name(f"{vmdk.name}.xz").write_bytes(lzma.compress(vmdk.read_bytes()))
        (self.folder / "rescue.iso").write_bytes(bytes(32768) + b"\x01CD001\x01" + bytes(1 << 16))


@pytest.fixture(scope="module")
def stage(lab, tmp_path_factory):
    home = lab.account.make_dir(lab.home.parent / f"test-{uuid.uuid4().hex[:8]}")
    folder = tmp_path_factory.mktemp("examples")
    (folder / "setup.sh").write_text("echo set up\n")
    (folder / "mine.toml").write_text('base = "tiny"\nfiles = { "/root/setup.sh" = "setup.sh" }\n')
    (folder / ".ssh").mkdir()
    (folder / ".ssh" / "id_ed25519.pub").write_text("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEa me@host\n")
    subprocess.run(["tar", "-cf", folder / "site.tar", "-C", folder, "setup.sh"], check=True)
    fresh = Lab(home)
    for name in (*("invaders", "tiny"), *(["desktop"] if ALL else [])):
        link_image(lab, fresh, name)
    stage = Stage(fresh, folder)
    yield stage
    stage.end()
    for machine in fresh.machines:
        with contextlib.suppress(VMLabError):
            machine.delete()
    shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def running_kernel(stage: Stage) -> Iterator[Callable[[str], None]]:
    """A kernel in the store of the stage."""
    manager, client = start_new_kernel(
        kernel_name="python3", cwd=str(stage.folder), env={**os.environ, "VMLAB_HOME": str(stage.lab.home)}
    )
    try:
        yield lambda code: run_cell(client, code)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def kernel(stage):
    with running_kernel(stage) as run:
        yield run


def run_cell(client, code: str) -> None:
    said: list[str] = []

    def hear(message) -> None:
        content = message["content"]
        said.append(content.get("text") or "\n".join(content.get("traceback", [])))

    reply = client.execute_interactive(code, timeout=600, output_hook=hear, allow_stdin=False)
    assert reply["content"]["status"] == "ok", f"{code}\n{''.join(said)}"


def shell(stage: Stage, line: str) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ended = subprocess.run(
        ["bash", "-c", line], cwd=stage.folder, capture_output=True, text=True, timeout=600, check=False,
        env={**os.environ, "VMLAB_HOME": str(stage.lab.home), "PATH": path},
    )  # fmt: skip
    assert ended.returncode == 0, f"{line}\n{ended.stdout}{ended.stderr}"


def examples(prefix: str) -> list[tuple[str, str]]:
    """Return the help's examples: verb and line, as the help shows them."""
    found = []
    for name, verb in commands.verbs().items():
        text = verb.parser(prefix).format_help()
        lines = [line.strip() for line in text.split("examples:\n")[1].splitlines()]
        found += [(name, line) for line in lines if not line.startswith("# ")]
    return found


def run_help(stage: Stage, verb: str, line: str, run) -> None:
    if not ALL and any(f" {words}" in line for words in LONG):
        return
    words = line.split(" ", 2)[2] if line.count(" ") > 1 else ""
    stage.prepare(verb, words.split("   #")[0])
    run(stage.own(line))
    if verb == "limits":
        stage.lab.set_limits(reserve_memory=0, reserve_disk=0, max_running=0)


@pytest.mark.timeout(1200 if ALL else 240)
@pytest.mark.parametrize("verb", list(commands.verbs()))
def test_the_help_of_a_magic(stage, kernel, verb):
    kernel("%load_ext vmlab")
    if verb == "import":  # ~/.ssh; not before, for libvirt is found by $HOME
        kernel(f"import os; os.environ['HOME'] = {str(stage.folder)!r}")
    for name, line in examples("%vm "):
        if name == verb:
            run_help(stage, verb, line, kernel)


@pytest.mark.skipif(not ALL, reason="with --all: the same words as above, through a shell")
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("verb", list(commands.verbs()))
def test_the_help_of_the_command_line(stage, verb):
    def run(line: str) -> None:
        shell(stage, line.replace("~/", f"{stage.folder}/"))  # not by $HOME, by which libvirt is found

    for name, line in examples("vmlab "):
        if name == verb and not line.startswith(STAYING):
            run_help(stage, verb, line, run)


@pytest.fixture
def home(lab, tmp_path):
    """The lab of whoever runs the tests, for what needs the desktop's ready state, and names no patterns."""
    stage = Stage(lab, tmp_path)
    yield stage
    stage.end()
    stage.gone(*THERE, *MADE)


@pytest.mark.skipif(not ALL, reason="with --all: the tour does the same on the desktop")
def test_the_readme(home):
    """Its cells in one notebook, from top to bottom; then what it says for a terminal."""
    stage = home
    text = (ROOT / "README.md").read_text()
    with running_kernel(stage) as kernel:
        for cell in re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            kernel(stage.own(cell))
    for block in re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            if line.startswith(".venv/bin/vmlab "):
                shell(stage, stage.own(line.removeprefix(".venv/bin/")))


def docstrings() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = {}
    for info in pkgutil.walk_packages(vmlab.__path__, "vmlab."):
        if info.name.endswith("__main__"):
            continue
        for test in finder.find(importlib.import_module(info.name)):
            if test.examples:
                found[test.filename, test.lineno] = test
    for test in finder.find(vmlab):
        if test.examples and test.name == "vmlab":
            found[test.name, 0] = test
    return list(found.values())


@pytest.mark.parametrize("test", docstrings(), ids=lambda test: test.name)
def test_a_docstring(stage, home, monkeypatch, test):
    monkeypatch.setenv("VMLAB_HOME", str(stage.lab.home))
    needs = {word for example in test.examples for word in re.findall(r"\w+", example.source)}
    assert not any(example.options for example in test.examples), "it runs as it stands, without options"
    values = dict(test.globs)
    if "create" in needs:
        stage.gone("web")
    elif needs & {"web", "domain", "machine"}:
        web = home.lab.create(home.names["desk"], "desktop") if "Pointer" in needs else stage.there("web")
        values |= {stage.names["web"]: web, "machine": web, "domain": web.domain, "lab": stage.lab}
        if "diff" in needs:
            if "clean" not in {snapshot.name for snapshot in web.snapshots}:
                web.snapshot("clean")
            web.succeed("mkdir -p /opt; touch /opt/tool; httpd -p 4444 -h /tmp")
    for example in test.examples:
        example.source, example.want = stage.own(example.source), stage.own(example.want)
    out: list[str] = []
    ended = doctest.DocTestRunner().run(doctest.DocTest(
        test.examples, values, test.name, test.filename, test.lineno, test.docstring
    ), out=out.append)  # fmt: skip
    assert ended.attempted > 0
    assert ended.failed == 0, "".join(out)
