"""What one account has, another account of the host cannot read, write, list or connect to."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from help.server_process import jupyter_process
from help.stranger import (
    Stranger,
    abstract_sockets,
    everything,
    listening,
    of_account,
    processes_of,
    shared_memory,
    temporary_account,
)

from vmlab import commands, webconsole
from vmlab.commands.ui import TerminalUI
from vmlab.engine.load import free_port
from vmlab.errors import VMLabError
from vmlab.lab import Lab
from vmlab.machine import Machine

ALL = "VMLAB_ALL" in os.environ
#: Stands in a guest's memory, on its disk, and in a cell's output; never where another account sees it.
SECRET = f"secret-{secrets.token_hex(8)}"


@pytest.fixture(scope="module")
def stranger() -> Iterator[Stranger]:
    with temporary_account() as found:
        yield found


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def get_at(stranger: Stranger, uid: int, pids: list[int], *tops: Path) -> list[str]:
    """Return all that a stranger can get at of an account and its processes."""
    return [
        *stranger.can("paths", everything(*tops)),
        *stranger.can("paths", of_account(uid)),
        *stranger.can("processes", pids),
        *stranger.can("abstract", abstract_sockets(pids)),
        *shared_memory(uid),
    ]


def test_the_stranger_finds_what_is_open(stranger: Stranger, tmp_path: Path) -> None:
    """Else all tests below could not fail."""
    with Lab().account.temporary_folder("vmlab-open-") as folder:
        folder.chmod(0o755)
        (folder / "ram").write_text(SECRET)
        (folder / "ram").chmod(0o666)
        assert stranger.can("paths", everything(folder)) == [
            f"list {folder}", f"read {folder / 'ram'}", f"write {folder / 'ram'}"
        ]  # fmt: skip
        folder.chmod(0o711)
        assert stranger.can("paths", [str(folder / "ram")]) == [
            f"read {folder / 'ram'}",
            f"write {folder / 'ram'}",
        ]
        assert stranger.can("paths", [str(folder)]) == []
    assert stranger.can("processes", [os.getpid()]) == []


# -- root, whose guests run as the account vmlab ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def busy(lab: Lab) -> Iterator[tuple[Lab, Machine, Machine]]:
    """A lab in which something of everything has been made, all under a umask that closes nothing."""
    before = os.umask(0)
    tiny, game = f"tiny-{uuid.uuid4().hex[:6]}", f"game-{uuid.uuid4().hex[:6]}"
    try:
        web = lab.create(tiny, "tiny", forwards=[(free_port(), 80)])
        other = lab.create(game, "invaders", sound="wav")
        web.succeed("pidof httpd || httpd -h /var/www")
        web.succeed(f"echo {SECRET} >/run/secret; echo {SECRET} >/root/secret; sync")
        web.snapshot("one", "with a secret")
        web.revert("one")
        with lab.diff(web, "one") as diff:
            diff.to_json()
        web.screenshot()
        yield lab, web, other
    finally:
        os.umask(before)
        for name in (tiny, game):
            with contextlib.suppress(Exception):
                lab.machine(name).delete()


def test_nothing_of_the_service_account_is_open(
    busy: tuple[Lab, Machine, Machine], stranger: Stranger
) -> None:
    lab, web, game = busy
    account = lab.account
    pids = [p for p in processes_of(account.uid) if p != os.getpid()]
    assert web._domain().pid in pids
    assert get_at(stranger, account.uid, pids, lab.home, account.home, account.runtime_dir) == []
    # Not only by the closed folder at its top.
    for path in map(Path, everything(lab.home)):
        mode = path.lstat().st_mode & 0o7777
        assert mode in ((0o700,) if path.is_dir() else (0o600, 0o400, 0o500)), (path, oct(mode))
        assert path.lstat().st_uid == account.uid, path
    snapshot = lab.store.snapshot_folder(web.snapshots[-1].id)
    frozen = [snapshot / "ram", snapshot / "manifest.json", *(lab.home / "bases").glob("*/*")]
    frozen += [lab.store.layer_path(layer) for layer in lab.store.snapshot(snapshot.name).layers.values()]
    assert {path.stat().st_mode & 0o777 for path in frozen} == {0o400}
    assert game.sound_file is not None
    assert game.sound_file.stat().st_mode & 0o777 == 0o600
    # Of a process, everybody sees its arguments: names and paths, and nothing else.
    assert SECRET not in stranger.can("shown", pids)


def test_only_forwards_answer(busy: tuple[Lab, Machine, Machine], stranger: Stranger) -> None:
    lab, web, _ = busy
    ((host, _),) = web.forwards
    guests = [pid for machine in lab.machines if (pid := machine._domain().pid)]
    daemons = [p for p in processes_of(lab.account.uid) if "qemu-system" not in _program(p)]
    assert daemons
    assert set(listening([*guests, *daemons])) == {h for m in lab.machines for h, _ in m.forwards}
    # What is forwarded is open to everybody on the host: README says so.
    assert "It works" in stranger.can("port", host, "GET / HTTP/1.0\r\n\r\n", seconds=10)


def _program(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
    return "qemu-system, ended"


def test_the_stand_alone_console_lets_no_stranger_in(
    busy: tuple[Lab, Machine, Machine], stranger: Stranger
) -> None:
    lab, web, _ = busy
    running = webconsole.start([web.name], lab.home)
    try:
        port = int(re.search(r":(\d+)/", running.address)[1])  # type: ignore[index]
        pids = [running.process.pid]
        assert set(listening(pids)) == {port}
        assert stranger.can("processes", pids) == []
        assert running.address.partition("#")[2] not in stranger.can("shown", pids)
        upgrade = (
            "Host: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nOrigin: http://127.0.0.1:{port}\r\n\r\n"
        )
        for asked in (f"GET /websockify?token=guess HTTP/1.1\r\n{upgrade}", f"GET / HTTP/1.1\r\n{upgrade}"):
            assert "403" in stranger.can("port", port, asked).splitlines()[0]
        body = json.dumps({"invitation": "guess"})
        origin = f"Origin: http://127.0.0.1:{port}\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        assert "403" in stranger.can("port", port, f"POST /enter HTTP/1.0\r\n{origin}").splitlines()[0]
    finally:
        running.stop()


#: Lines for each verb, with the secret wherever there is a place for one.
LINES = {
    "create": ["create {new} invaders"],
    "list": ["list"],
    "start": ["start {new}"],
    "pause": ["pause {new}"],
    "resume": ["resume {new}"],
    "reboot": ["reboot --hard {web}"],
    "kill": ["kill {new}"],
    "rename": ["rename {new} {new}2"],
    "mend": ["mend {web}"],
    "snapshot": ["snapshot {web} two -d {secret}"],
    "tree": ["tree {web}"],
    "revert": ["revert {web} two"],
    "undo": ["undo {web}"],
    "fork": ["fork {web} {other}"],
    "describe": ["describe {web} two {secret}"],
    "verify": ["verify {web} two"],
    "diff": ["diff {web} two"],
    "timeline": ["timeline {web} one two --file /root/secret"],
    "search": ["search {web} {secret}"],
    "forget": ["forget {web} two"],
    "exec": ["exec {web} -- echo {secret}", "exec {web} 'cat /run/secret; VAR={secret} env'"],
    "script": ["script {web} --file {folder}/{secret}.sh"],
    "put": ["put {web} {folder}/{secret}.sh /root/{secret}"],
    "get": ["get {web} /root/{secret} {folder}/{secret}.back"],
    "keys": ["keys {web} s e c r e t ret"],
    "type": ["type {web} {secret}"],
    "screenshot": ["screenshot {web} {folder}/{secret}.png"],
    "serial": ["serial {web} --send {secret}"],
    "wait": ["wait {web} --until 'echo {secret}'"],
    "images": ["images"],
    "import": ["import {image} {folder}/disk.img --user me --password {secret}"],
    "limits": ["limits"],
    "network": ["network"],
    # Its guest has no card in a network; tests/vm/test_networks.py changes one that has.
    "link": [],
    "up": ["up {folder}/scenario.toml --name {scene}"],
    "capture": ["capture {scene} lan"],
    "suspend": ["suspend {scene}"],
    "reset": ["reset {scene}"],
    "doctor": ["doctor"],
    "collect": ["collect"],
    "help": ["help"],
    # Its program is run by test_the_stand_alone_console_lets_no_stranger_in.
    "console": [],
    "stop": ["stop {other} --timeout 30"],
    "delete": ["delete {new}2"],
}


class Watch:
    """Looks at the arguments and the environment of every process on the host, and of each that we start."""

    def __init__(self, secret: str) -> None:
        self._secret, self._on, self.found = secret, False, set[str]()
        self._thread = threading.Thread(target=self._look)
        # Cannot be taken away again; it does nothing once we are done.
        sys.addaudithook(self._started)

    def __enter__(self) -> Self:
        self._on = True
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._on = False
        self._thread.join()

    def _started(self, event: str, args: tuple[Any, ...]) -> None:
        if self._on and event in ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.system"):
            text = str(args)
            if self._secret in text:
                self.found.add(f"{event} {text}")

    def _look(self) -> None:
        secret = self._secret.encode()
        while self._on:
            for folder in Path("/proc").glob("[1-9]*"):
                for name in ("cmdline", "environ"):
                    with contextlib.suppress(OSError):
                        if secret in (folder / name).read_bytes():
                            self.found.add(f"{folder}/{name} {(folder / 'comm').read_text()}")
            # Whoever is being watched needs a core, too.
            time.sleep(0.01)


def test_no_secret_stands_in_an_argument_or_an_environment(
    busy: tuple[Lab, Machine, Machine], tmp_path: Path
) -> None:
    lab, web, _ = busy
    assert set(LINES) == set(commands.verbs()), "a new verb wants its lines here"
    names = {key: f"{key}-{uuid.uuid4().hex[:6]}" for key in ("new", "other", "image", "scene")}
    (tmp_path / f"{SECRET}.sh").write_text(f"echo {SECRET}\n")
    # A disk that begins with something that could be started.
    (tmp_path / "disk.img").write_bytes(bytes(510) + b"\x55\xaa" + bytes(1 << 20))
    (tmp_path / "scenario.toml").write_text(
        f'vmlab = 1\nname = "x"\ntitle = "{SECRET}"\n[networks.lan]\n[machines.one]\nimage = "tiny"\nnics = ["lan"]\n'
        f'files = {{ "/root/{SECRET}" = "{SECRET}.sh" }}\nsetup = "{SECRET}.sh"\n'
    )
    ui = TerminalUI(json=True)
    try:
        with Watch(SECRET) as watch:
            for name, lines in LINES.items():
                for line in lines:
                    words = line.format(web=web.name, secret=SECRET, folder=tmp_path, **names)
                    verb = commands.verb(name)
                    verb.run(lab, commands.parse_line(verb, words.partition(" ")[2]), ui)
        assert not watch.found
    finally:
        for machine in (names["new"], f"{names['new']}2", names["other"]):
            with contextlib.suppress(VMLabError):
                lab.machine(machine).delete()
        with contextlib.suppress(VMLabError):
            lab.scenario(names["scene"]).delete()
        with contextlib.suppress(VMLabError):
            lab.image(names["image"]).delete()


def test_the_watch_sees_a_secret() -> None:
    """Else the test above could not fail."""
    with Watch("visible-7c1f") as watch:
        subprocess.run(["sh", "-c", "sleep 0.5; : visible-7c1f"])
        subprocess.run(["sleep", "0.5"], env={"TOKEN": "visible-7c1f"})
    seen = " ".join(watch.found)
    assert "subprocess.Popen" in seen
    assert "/cmdline" in seen
    assert "/environ" in seen


# -- Jupyter ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody can look into, as homes are on many hosts."""
    folder = Path("/tmp") / f"vmlab-jupyter-{uuid.uuid4().hex[:6]}"
    folder.mkdir(mode=0o755)
    yield folder
    shutil.rmtree(folder)


def test_a_kernel_over_tcp_is_open_and_over_ipc_it_is_not(
    lab: Lab, stranger: Stranger, open_folder: Path, open_umask: None
) -> None:
    """Why the documentation says ``c.KernelManager.transport = "ipc"``, and what it helps."""
    from jupyter_client.manager import KernelManager

    heard = {}
    for transport in ("tcp", "ipc"):
        # As Jupyter makes its runtime folder.
        run = open_folder / transport
        run.mkdir(mode=0o700)
        manager = KernelManager(transport=transport, connection_file=str(run / "kernel.json"))
        manager.start_kernel(extra_arguments=["--IPKernelApp.log_level=ERROR"])
        client = manager.client()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=60)
            pid = manager.provisioner.pid  # type: ignore[union-attr]
            assert pid is not None
            where = manager.iopub_port if transport == "tcp" else f"{manager.ip}-{manager.iopub_port}"
            with _said_again(client), contextlib.suppress(OSError):
                heard[transport] = stranger.can("channel", where, mark=SECRET)
            # The doctor knows which is which.
            told = lab.check()["Jupyter kernels"]
            assert (str(pid) in told.value) == (transport == "tcp") == ("ipc" in str(told.fix))
            if transport == "ipc":
                assert Path(where).is_socket()  # type: ignore[arg-type]
                assert stranger.can("paths", everything(run)) == []
                assert stranger.can("processes", [pid]) == []
                # A port is left all the same, by which children of the kernel hand in what they print: it says
                # nothing, and takes nothing without a key of 16 random bytes.
                for port in listening([pid]):
                    with _said_again(client), contextlib.suppress(OSError):
                        assert SECRET not in stranger.can("channel", port, seconds=2)
                    stranger.can("push", port, ["k" * 16, "{}", "forged", "forged"])
                published: list[Any] = []
                client.execute_interactive(f"print({SECRET!r})", output_hook=published.append, timeout=30)
                assert SECRET in str(published)
                assert "forged" not in str(published)
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
    assert list(heard) == ["tcp"]
    assert SECRET in heard["tcp"]


@contextlib.contextmanager
def _said_again(client: Any) -> Iterator[None]:
    """Let a kernel print the secret again and again."""
    done = threading.Event()

    def say() -> None:
        while not done.wait(0.2):
            client.execute(f"print({SECRET!r})")

    thread = threading.Thread(target=say)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_jupyter_as_the_lab_starts_it_is_closed(
    busy: tuple[Lab, Machine, Machine], stranger: Stranger, open_folder: Path, open_umask: None
) -> None:
    """Its server, its runtime folder, and a kernel in which the guest's secret was printed."""
    lab, web, _ = busy
    with jupyter_process(open_folder, home=lab.home, config='c.KernelManager.transport = "ipc"') as server:
        kernel = server.request("POST", "api/kernels", {"name": "python3"}).json["id"]
        pids = [server.process.pid, *_children(server.process.pid)]
        assert len(pids) > 1
        run = open_folder / "run"
        assert list(run.glob(f"kernel-{kernel}*"))
        assert stranger.can("paths", everything(run)) == []
        assert stranger.can("processes", pids) == []
        assert stranger.can("abstract", abstract_sockets(pids)) == []
        assert server.token not in stranger.can("shown", pids)
        # The server asks who is there; of the kernel's one port, see above.
        others = {port: pid for port, pid in listening(pids).items() if port != server.port}
        assert server.process.pid not in others.values()
        assert len(others) <= 1
        screen = f"vmlab/api/machines/{web.name}/screen.png"
        for path in ("vmlab/api/lab", screen, "api/kernels", "api/contents", "api/sessions"):
            answer = stranger.can("port", server.port, f"GET {server.base}{path} HTTP/1.0\r\n\r\n")
            assert answer.split()[1] in ("302", "403"), (path, answer)


def _children(pid: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid and fields[0] not in "ZX":
                found.append(int(folder.name))
    return [*found, *(grandchild for child in found for grandchild in _children(child))]


# -- an ordinary account ----------------------------------------------------------------------------------------------

LIFE = """
import json, os, sys
os.umask(0)
from vmlab.lab import Lab
lab, image = Lab(), sys.argv[1]
lab.tell = lambda text: print(text, file=sys.stderr)
machine = lab.create("mine", image)
if image == "tiny":
    machine.succeed("echo " + sys.argv[2] + " >/run/secret")
machine.snapshot("one")
machine.revert("one")
machine.screenshot()
print(json.dumps([str(lab.home), machine._domain().pid]))
"""


def test_nothing_of_an_ordinary_account_is_open(lab: Lab, stranger: Stranger) -> None:
    image = "tiny" if ALL else "invaders"
    with temporary_account("vmo") as owner:
        if owner.run([sys.executable, "-c", "import vmlab.lab"]).returncode:
            pytest.skip("another account cannot run this environment's Python: it lies in a closed folder")
        # As they are in most homes: there before vmlab is, and open.
        usual = [owner.home / name for name in (".cache", ".config", ".local", ".local/share")]
        for folder in usual:
            folder.mkdir(mode=0o755)
        images = owner.home / ".local/share/vmlab/images"
        images.mkdir(parents=True)
        subprocess.run(["cp", "-r", "--reflink=auto", lab.store.image_folder(image), images], check=True)
        subprocess.run(["chown", "-R", f"{owner.uid}:{owner.gid}", *usual], check=True)
        subprocess.run(["chmod", "-R", "a+rX", owner.home / ".local"], check=True)
        done = owner.run([sys.executable, "-c", LIFE, image, SECRET], env={"PYTHONDONTWRITEBYTECODE": "1"})
        assert done.returncode == 0, done.stderr
        # It was open, as older versions made it, and that is said.
        assert "other accounts of this host could read" in done.stderr
        home, qemu = json.loads(done.stdout.splitlines()[-1])
        pids = processes_of(owner.uid)
        assert qemu in pids
        assert listening(pids) == {}
        inside = sorted(set(everything(*usual)) - set(map(str, usual)))
        assert [path for path in inside if path.startswith(home)]
        assert stranger.can("paths", inside) == []
        assert get_at(stranger, owner.uid, pids) == []
        assert SECRET not in stranger.can("shown", pids)
        # The same from the other side: a second ordinary account opens a store of its own, not this one.
        other = stranger.run([sys.executable, "-c", f"from vmlab.lab import Lab; Lab({home!r}).machines"])
        assert other.returncode != 0
