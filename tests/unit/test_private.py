"""What vmlab keeps on the host's disk is one account's alone: folders 0700, files 0600, what is frozen 0400."""

from __future__ import annotations

import ast
import json
import logging
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from vmlab import private
from vmlab.errors import HostError
from vmlab.hypervisor import account as accounts
from vmlab.hypervisor.account import Account
from vmlab.records import write_json
from vmlab.store import locks, opening
from vmlab.store.store import Store

ROOT = Path(__file__).parents[2]
NOBODY = 65534

#: What makes, changes or copies files and folders by path.
MAKERS = {
    "mkdir", "makedirs", "write_text", "write_bytes", "touch", "chmod", "lchmod", "copyfile", "copy", "copy2",
    "copytree", "mkstemp", "mkfifo", "mknod", "symlink_to",
}  # fmt: skip
#: Modules that make files otherwise, and why they may.
ELSEWHERE = {
    # What a person names is theirs.
    "study/diff.py": "saves where a person says",
    "study/timeline.py": "saves where a person says",
    "network/capture.py": "saves where a person says",
    "guest/screen.py": "saves where a person says",
    "guest/agent.py": "writes output to where a person says",
    "guest/transfer.py": "copies files to where a person says",
    "commands/screenshot.py": "saves where a person says",
    "scenarios/build.py": "its folder is a temporary one, 0700",
    "commands/console.py": "its folder is a temporary one, 0700",
    # A build writes in a folder of the account's alone, which `builder.commit` closes file by file.
    "images/artwork.py": "in a build's folder",
    "images/bootstrap.py": "in a build's folder",
    "images/desktop.py": "in a build's folder",
    "images/invaders.py": "in a build's folder",
    "images/tiny.py": "in a build's folder",
    "images/trees.py": "in a build's folder",
}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o777], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    (tmp_path / "old").touch(0o666)
    private.folders(tmp_path / "a" / "b")
    private.folder(tmp_path / "a" / "c")
    private.create(tmp_path / "new").close()
    os.close(private.lock_file(tmp_path / "lock"))
    private.write(tmp_path / "old", "x")
    private.replace(tmp_path / "whole", "x")
    private.copy(tmp_path / "whole", tmp_path / "copy")
    private.replace(tmp_path / "program", "x", mode=private.PROGRAM)
    write_json(tmp_path / "record.json", {})
    hold = locks.Hold(tmp_path / "locks" / "present.hold")
    with locks.locked(tmp_path / "locks" / "web.lock", "test"):
        found = {str(p.relative_to(tmp_path)): oct(mode(p)) for p in tmp_path.rglob("*")}
    hold.release()
    assert found == {
        **dict.fromkeys(("a", "a/b", "a/c", "locks"), "0o700"),
        **dict.fromkeys(("new", "lock", "old", "whole", "copy", "record.json"), "0o600"),
        **dict.fromkeys(("locks/web.lock", "locks/present.hold"), "0o600"),
        "program": "0o500",
    }
    private.freeze(tmp_path / "whole")
    assert mode(tmp_path / "whole") == 0o400
    private.thaw(tmp_path / "whole")
    assert mode(tmp_path / "whole") == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files for others")
def test_what_root_makes_belongs_to_the_owner_of_the_folder(tmp_path: Path) -> None:
    os.chown(tmp_path, NOBODY, NOBODY)
    private.folders(tmp_path / "a" / "b")
    private.write(tmp_path / "a" / "b" / "file", "x")
    private.replace(tmp_path / "a" / "record", "x")
    os.close(private.lock_file(tmp_path / "a" / "lock"))
    assert {(p.stat().st_uid, p.stat().st_gid) for p in tmp_path.rglob("*")} == {(NOBODY, NOBODY)}


def test_links_are_neither_followed_nor_given_away(tmp_path: Path) -> None:
    # Whoever owns the folder may put there what they like, while root writes into it.
    theirs = tmp_path / "theirs"
    theirs.write_text("keep")
    theirs.chmod(0o644)
    store = private.folder(tmp_path / "store")
    for name in ("write", "replace", "lock", "freeze"):
        (store / name).symlink_to(theirs)
    (store / "hard").hardlink_to(theirs)
    private.write(store / "write", "x")
    private.replace(store / "replace", "x")
    with pytest.raises(OSError, match="symbolic"):
        private.lock_file(store / "lock")
    with pytest.raises(OSError, match=r"[Nn]ot supported|symbolic"):
        private.freeze(store / "freeze")
    owner = (NOBODY, NOBODY) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    before = theirs.stat().st_uid
    private.put_right(store, lambda _: private.FILE, owner)
    assert theirs.read_text() == "keep"
    assert theirs.stat().st_uid == before
    if os.geteuid() == 0:
        assert mode(theirs) == 0o644


def _makes_files(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name, owner = node.func.attr, node.func.value
        if ast.unparse(owner) in ("private", "self.service"):
            continue
        opens = name == "open" and any(
            isinstance(a, ast.Constant) and isinstance(a.value, str) and set(a.value) & set("wxa")
            for a in node.args[:2]
        )
        makes = name == "open" and "O_CREAT" in ast.unparse(node)
        # `replace` of a text has two arguments, `copy` of a mapping none.
        if opens or makes or (name in MAKERS and not (name == "copy" and not node.args)):
            found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)[:80]}")
    return found


def test_one_place_makes_files() -> None:
    wrong, unused = [], set(ELSEWHERE)
    for path in sorted((ROOT / "vmlab").rglob("*.py")):
        name = str(path.relative_to(ROOT / "vmlab"))
        found = _makes_files(path)
        unused -= {name} if found else set()
        if name not in ELSEWHERE and name != "private.py":
            wrong += found
    assert not wrong, "make it with vmlab.private:\n" + "\n".join(wrong)
    assert not unused, f"need not be excepted any more: {unused}"


# --- opening a store ---


@pytest.fixture
def account() -> Account:
    accounts.account.cache_clear()
    return accounts.account()


@pytest.fixture
def home(account: Account) -> Iterator[Path]:
    with account.temporary_folder("vmlab-test-") as folder:
        yield folder / "store"


def old_store(home: Path, *, write: Callable[[Path, str], Any] = Path.write_text) -> None:
    """Make a store as it was before: open, and partly root's."""
    machine = {"layers": {"vda": "top"}}
    for name, text in {
        "images/img/image.json": "{}",
        "images/img/disk.qcow2": "x",
        "bases/img-1/disk.qcow2": "x",
        "bases/img-1/base.json": "{}",
        "layers/top.qcow2": "x",
        "layers/top.json": "{}",
        "layers/below.qcow2": "x",
        "snapshots/1/ram": "x",
        "snapshots/1/label.json": "{}",
        "snapshots/.new-2/ram": "x",
        "machines/web/machine.json": json.dumps(machine),
        "machines/web/serial.log": "x",
        "machines/bad/machine.json": "{",
        "cache/apt/archives/x.deb": "x",
        "bin/qemu-1": "#!/bin/sh",
        "limits.json": '{"format": 1}',
    }.items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, text)
        path.chmod(0o644)
    for folder in (home, *(p for p in home.rglob("*") if p.is_dir())):
        folder.chmod(0o755)


def test_an_old_store_is_closed_when_it_is_opened_and_it_is_said_once(
    home: Path, account: Account, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    old_store(home)
    store = Store(home, account)
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 1
    assert str(home) in caplog.text
    said: list[str] = []
    store.tell = store.tell = said.append
    assert said == [caplog.messages[0]]
    everything = [home, *home.rglob("*")]
    assert {(p.stat().st_uid, p.stat().st_gid) for p in everything} == {(account.uid, account.gid)}
    assert {mode(p) for p in everything if p.is_dir()} == {0o700}
    frozen = {str(p.relative_to(home)) for p in everything if mode(p) == 0o400}
    assert frozen == {
        "images/img/disk.qcow2", "bases/img-1/disk.qcow2", "bases/img-1/base.json", "layers/below.qcow2",
        "snapshots/1/ram",
    }  # fmt: skip
    assert mode(home / "bin/qemu-1") == 0o500
    others = {mode(p) for p in everything if p.is_file()} - {0o400, 0o500}
    assert others == {0o600}
    # What was done is not done, and not even looked for, again.
    caplog.clear()
    monkeypatch.setattr(private, "put_right", lambda *_: pytest.fail("walked once more"))
    Store(home, account)
    assert not caplog.records


def test_a_new_store_is_closed(home: Path, account: Account, umask: int) -> None:
    store = Store(home, account)
    assert {mode(p) for p in (home, *home.rglob("*")) if p.is_dir()} == {0o700}
    assert {mode(p) for p in home.rglob("*") if p.is_file()} == {0o600}
    assert {p.stat().st_uid for p in (home, *home.rglob("*"))} == {account.uid}
    assert store.home == home


def test_what_else_lies_in_its_folder_is_left_alone(home: Path, account: Account) -> None:
    account.make_dir(home)
    (home / "thesis.tex").write_text("x")
    (home / "thesis.tex").chmod(0o644)
    home.chmod(0o755)
    Store(home, account)
    assert (mode(home), mode(home / "thesis.tex")) == (0o755, 0o644)
    assert mode(home / "snapshots") == 0o700


def test_a_second_user_of_jupyterhub_is_refused(
    home: Path, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store(home, account)
    monkeypatch.setenv("JUPYTERHUB_USER", "ann")
    Store(home, account)
    monkeypatch.setenv("JUPYTERHUB_USER", "bob")
    with pytest.raises(HostError, match=r"ann's, and you are bob") as caught:
        Store(home, account)
    assert "VMLAB_HOME" in (caught.value.hint or "")
    # On the command line there is no such name.
    monkeypatch.delenv("JUPYTERHUB_USER")
    Store(home, account)
    monkeypatch.setenv("JUPYTERHUB_USER", "ann")
    Store(home, account)


MOUNTS = """\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 0:5 / /dev rw,nosuid shared:2 - devtmpfs udev rw
40 21 0:40 / /home rw shared:9 - nfs4 server:/home rw,vers=4.2
41 40 8:2 / /home/ann/local\\040disk rw - xfs /dev/sdb1 rw
42 21 0:42 / /mnt/win rw - cifs //server/share rw
43 21 0:43 / /mnt/ssh rw - fuse.sshfs ann@host: rw,user_id=1000
44 21 0:44 / /mnt/twice rw - ext4 /dev/sdc rw
45 21 0:45 / /mnt/twice rw - fuseblk /dev/sdd rw
"""


@pytest.mark.parametrize(
    ("path", "kind", "refused"),
    [
        ("/var/lib/vmlab/store", "ext4", False),
        ("/homes/x", "ext4", False),
        ("/home/ann/.local/share/vmlab", "nfs4", True),
        ("/home/ann/local disk/store", "xfs", False),
        ("/mnt/win/store", "cifs", True),
        ("/mnt/ssh", "fuse.sshfs", True),
        ("/mnt/twice/store", "fuseblk", True),
    ],
)
def test_a_disk_that_does_not_keep_accounts_apart_is_refused(
    path: str, kind: str, refused: bool, monkeypatch: pytest.MonkeyPatch, home: Path, account: Account
) -> None:
    assert opening.filesystem(Path(path), MOUNTS) == kind
    monkeypatch.setattr(opening, "filesystem", lambda _: kind)
    if refused:
        with pytest.raises(HostError, match=kind) as caught:
            Store(home, account)
        assert "VMLAB_HOME" in (caught.value.hint or "")
        assert not home.exists()
    else:
        Store(home, account)


def test_the_kernels_own_table_is_understood() -> None:
    assert opening.filesystem(Path("/proc/self")) == "proc"


def test_a_disk_that_takes_no_permissions_is_refused(home: Path) -> None:
    # As FAT does: what is asked for is done without a word, and changes nothing.
    def make_dir(path: Path) -> Path:
        path.mkdir(0o755, parents=True, exist_ok=True)
        path.chmod(0o755)
        return path

    with pytest.raises(HostError, match="permissions"):
        Store(home, cast(Account, SimpleNamespace(make_dir=make_dir, own=lambda path: path)))
