"""What is made sure of when a store is opened: that its disk keeps files apart, whose it is, and that it is closed.

A look at each opening is one small file, ``store.json``; the rest is done when that does not say that it was done.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vmlab import private
from vmlab.errors import HostError, VMLabError
from vmlab.hypervisor.account import Account
from vmlab.records import FORMAT, read_json, write_json

FOLDERS = ("images", "bases", "layers", "snapshots", "machines", "locks", "cache")
MARK = "store.json"
#: What may lie at the top of a store; where there is anything else, the folder itself is left as it is.
_OURS = {*FOLDERS, "bin", MARK, "limits.json", "lost+found"}
#: Grows when stores must be put right once more.
_CLOSED = 1

_MOVE = "set VMLAB_HOME to a folder on a disk of this host, or use `vmlab --home FOLDER`"

log = logging.getLogger(__name__)


def open_store(home: Path, account: Account) -> str:
    """Make the folders of a store, or put right those that are there; return what should be said of it, or nothing.

    Raises
    ------
    HostError
        It lies on a disk that cannot keep it to one account, or it is another JupyterHub user's.
    """
    mark = _read(home)
    user = os.environ.get("JUPYTERHUB_USER") or mark.get("hub_user")
    _refuse_second_user(home, mark.get("hub_user"), user)
    wanted: dict[str, Any] = {"closed": _CLOSED, "hub_user": user}
    if home.is_dir():
        wanted["device"] = home.stat().st_dev
        if all(mark.get(key) == value for key, value in wanted.items()):
            return ""
    _refuse_disk(home)
    account.make_dir(home)
    wanted["device"] = home.stat().st_dev
    news = ""
    top = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Two that open it at once do it one after the other.
        fcntl.flock(top, fcntl.LOCK_EX)
        if _read(home).get("closed") != _CLOSED:
            news = _close(home, account)
        write_json(home / MARK, {"format": FORMAT, **wanted})
    finally:
        os.close(top)
    if news:
        # A Jupyter server has nobody else to tell.
        log.warning("%s", news)
    return news


def _read(home: Path) -> dict[str, Any]:
    try:
        return read_json(home / MARK)
    except (OSError, VMLabError):
        return {}


def _refuse_second_user(home: Path, first: str | None, user: str | None) -> None:
    if first is not None and user != first:
        raise HostError(
            f"This store is JupyterHub's user {first}'s, and you are {user}: both servers run under one account here, "
            "so each could read the other's guests.",
            hint="let JupyterHub start each user's server under an account of their own; "
            "a server that is one person's alone can set VMLAB_HOME to another folder",
            store=home,
        )


def _close(home: Path, account: Account) -> str:
    """Close a store to other accounts, and return a sentence if it was open."""
    if {path.name for path in home.iterdir()} <= _OURS:
        was_open = home.stat().st_mode & 0o077 != 0
        account.own(home)
        private.set_mode(home.resolve(), private.FOLDER)
    else:
        was_open = True
    mode, changed = modes(home), 0
    for path in [home / name for name in (*FOLDERS, "bin", "limits.json")]:
        if path.exists():
            changed += account.put_right(path, mode)
        elif path.name in FOLDERS:
            account.make_dir(path)
        if path.exists() and path.stat().st_mode & 0o077:
            raise HostError(
                f"The disk of {home} does not keep files to one account: it does not take their permissions.",
                hint=_MOVE,
            )
    if not changed or not was_open:
        return ""
    return (
        f"other accounts of this host could read the store {home} ({changed} files and folders); "
        "it is closed to them now"
    )


def modes(home: Path) -> Callable[[Path], int]:
    """Return a function that says which mode a file of a store should have."""
    written = _written(home)

    def mode(path: Path) -> int:
        folder, *rest = path.relative_to(home).parts
        frozen = (
            folder == "bases"
            or (folder == "images" and path.name != "image.json")
            or (folder == "snapshots" and path.name != "label.json" and not rest[0].startswith(".new-"))
            or (folder == "layers" and path.suffix == ".qcow2" and path.stem not in written)
        )
        return private.PROGRAM if folder == "bin" else private.FROZEN if frozen else private.FILE

    return mode


def _written(home: Path) -> set[str]:
    """Return the layers that machines write to; as well as can be told where a record is damaged."""
    found: set[str] = set()
    for file in (home / "machines").glob("*/machine.json"):
        try:
            record = json.loads(file.read_bytes())
            found.update(
                record["layers"].values(), ((record.get("pending") or {}).get("layers") or {}).values()
            )
        except (OSError, ValueError, LookupError, AttributeError, TypeError):
            continue
    return found


# -- its disk --------------------------------------------------------------------------------------------------------


def _refuse_disk(home: Path) -> None:
    there = next(path for path in (home, *home.parents) if path.exists()).resolve()
    kind = filesystem(there)
    if kind in ("nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse", "fuseblk") or kind.startswith("fuse."):
        raise HostError(
            f"The store {home} would lie on a disk of the kind '{kind}', which keeps neither files to one account "
            "nor locks as vmlab needs them.",
            hint=_MOVE,
        )


def filesystem(path: Path, mounts: str | None = None) -> str:
    """Return the kind of file system that a path without links lies on: ``ext4``, ``nfs4``, ``fuse.sshfs``.

    ``mounts`` is the kernel's table of mounts (``/proc/self/mountinfo``).
    """
    if mounts is None:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    best, kind = -1, ""
    for line in mounts.splitlines():
        place, _, rest = line.partition(" - ")
        # Blanks and the like are written as \040.
        point = Path(
            place.split(" ")[4].encode().decode("unicode_escape").encode("latin-1").decode(errors="replace")
        )
        if path.is_relative_to(point) and len(point.parts) >= best:
            # The last one of a place covers those below it.
            best, kind = len(point.parts), rest.split(" ")[0]
    return kind
