"""Who QEMU runs as, and that account's own libvirt daemon.

QEMU never runs as root. An ordinary user gets libvirt's session mode under their own name. Where we are root (a
container, a CI machine), everything runs as the service account ``vmlab``, whose session daemon we reach through its
socket. Both go the same way from here on: an :class:`Account`, and :func:`ensure_daemon`.

Why we start the daemon ourselves instead of letting libvirt's client do it: under ``tini -s`` (a child subreaper) a
QEMU that has ended is reaped at once. Where PID 1 reaps late (many containers), libvirt otherwise watches the zombie
for about two seconds at each ``destroy``, and so at each revert.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import pwd
import re
import resource
import shutil
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmlab import private
from vmlab.errors import HostError

__all__ = ["SERVICE_ACCOUNT", "Account", "account", "ensure_daemon", "find_program"]

#: The account that everything runs as when we are root. ``scripts/lab`` makes it.
SERVICE_ACCOUNT = "vmlab"

#: Seconds without guests and clients after which the daemon ends by itself, so that nothing is left behind.
IDLE_EXIT = 600

#: Seconds within which a started daemon must answer (first start on a slow disk: 2-3 s).
START_TIMEOUT = 30.0

#: Room for a socket's path in ``struct sockaddr_un``, without the closing NUL.
SOCKET_PATH_MAX = 107

#: Daemons that can manage QEMU, with the name of their socket. One that answers is preferred, then the first installed.
_DAEMONS = (("libvirtd", "libvirt-sock"), ("virtqemud", "virtqemud-sock"))

#: What programs may see of our environment.
_PASSED_ON = re.compile(
    r"HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_\w+|TZ|TMPDIR|LD_LIBRARY_PATH|XDG_\w+|LIBVIRT_\w+|VMLAB_\w+"
)

_SYSTEM_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


def find_program(name: str) -> str | None:
    """Return the path of a program, also from the ``sbin`` folders that an ordinary user's PATH lacks on Debian."""
    return shutil.which(name, path=_search_path())


def _search_path() -> str:
    if os.geteuid() == 0:
        # Root's own folders (/root/bin, pyenv ...) are closed to the service account.
        return os.pathsep.join(_SYSTEM_PATH)
    folders = [f for f in os.environ.get("PATH", "").split(os.pathsep) if f]
    return os.pathsep.join([*folders, *(f for f in _SYSTEM_PATH if f not in folders)])


@dataclass(frozen=True)
class Account:
    """The account that owns QEMU, its libvirt daemon and the store.

    Attributes
    ----------
    name, uid, gid, home
        As in the password file.
    runtime_dir
        Its ``XDG_RUNTIME_DIR``; libvirt's sockets are in ``libvirt/`` below.
    socket
        The libvirt daemon's socket.
    is_service
        True if it is not our own: we are root, and it is the service account.
    """

    name: str
    uid: int
    gid: int
    home: Path
    runtime_dir: Path
    socket: Path
    is_service: bool

    @property
    def uri(self) -> str:
        """libvirt's URI of this account's session daemon (``virsh -c URI`` shows the same machines)."""
        return f"qemu+unix:///session?socket={self.socket}"

    @property
    def cache_dir(self) -> Path:
        """Folder for what can be found out again."""
        if self.is_service:
            return self.home / ".cache" / "vmlab"
        return _xdg("XDG_CACHE_HOME", self.home / ".cache") / "vmlab"

    @property
    def store(self) -> Path:
        """Folder of images, machines and snapshots, if nobody names another: ``$VMLAB_HOME`` or the usual place."""
        if named := os.environ.get("VMLAB_HOME"):
            return Path(named).expanduser().absolute()
        return self.usual_store

    @property
    def usual_store(self) -> Path:
        """The account's first store: where it is unless somebody names another."""
        if self.is_service:
            return self.home / "store"
        return _xdg("XDG_DATA_HOME", self.home / ".local" / "share") / "vmlab"

    @property
    def log(self) -> Path:
        """What the libvirt daemon that we started has said."""
        return self.runtime_dir / "vmlab-libvirtd.log"

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the environment for a program that runs as this account: what it needs of ours, with its folders.

        Not all of ours: there may be tokens and passwords in it, which libvirt's daemon, for as long as it lives, and a
        guest's QEMU have no use for.
        """
        env = {key: value for key, value in os.environ.items() if _PASSED_ON.fullmatch(key)}
        env["PATH"] = _search_path()
        if self.is_service:
            for key in [key for key in env if key.startswith("XDG_")]:
                del env[key]
            env |= {"HOME": str(self.home), "USER": self.name, "LOGNAME": self.name, "SHELL": "/bin/sh"}
        env["XDG_RUNTIME_DIR"] = str(self.runtime_dir)
        return env | dict(extra or {})

    def popen(self, argv: Sequence[str | os.PathLike[str]], **options: Any) -> subprocess.Popen[Any]:
        """Start a program as this account; ``options`` are those of :class:`subprocess.Popen`.

        ``env`` adds to :meth:`environment`. The working directory is the account's home unless named, because root's
        is often closed to it.
        """
        return subprocess.Popen(list(argv), **self._options(options))

    def run(self, argv: Sequence[str | os.PathLike[str]], **options: Any) -> subprocess.CompletedProcess[Any]:
        """Run a program as this account and wait; ``options``: :func:`subprocess.run`'s, and see :meth:`popen`."""
        return subprocess.run(list(argv), **self._options(options))

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        options = dict(options)
        options["env"] = self.environment(options.get("env"))
        # What it writes is for this account alone.
        options.setdefault("umask", 0o077)
        if self.is_service:
            # Python's own setuid in the child instead of runuser(1): no process in between, so that a signal or a
            # timeout reaches the program itself.
            options |= {
                "user": self.uid,
                "group": self.gid,
                "extra_groups": os.getgrouplist(self.name, self.gid),
            }
            options.setdefault("cwd", self.home)
        return options

    def put_right(
        self, path: str | os.PathLike[str], mode: Callable[[Path], int] = lambda _: private.FILE
    ) -> int:
        """Close a folder and all in it to other accounts (:func:`vmlab.private.put_right`)."""
        return private.put_right(Path(path), mode, (self.uid, self.gid))

    def own(self, path: str | os.PathLike[str], *, recursive: bool = False) -> Path:
        """Give a file or folder that we made to this account (for an ordinary user it is), and return its path."""
        path = Path(path)
        if self.is_service:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)
            if recursive and path.is_dir() and not path.is_symlink():
                for folder, folders, files in os.walk(path):
                    for name in (*folders, *files):
                        os.chown(Path(folder, name), self.uid, self.gid, follow_symlinks=False)
        return path

    def make_dir(self, path: str | os.PathLike[str]) -> Path:
        """Make a folder with the missing ones above it, all of them this account's alone, and return it."""
        return private.folders(Path(path), (self.uid, self.gid) if self.is_service else None)

    @contextlib.contextmanager
    def temporary_folder(self, prefix: str) -> Iterator[Path]:
        """Give a folder of this account's alone; it is gone after the block."""
        with tempfile.TemporaryDirectory(prefix=prefix) as name:
            yield self.own(name)

    def close(self) -> None:
        """Close to other accounts what libvirt and we keep outside the store, where somebody left it open.

        libvirt makes its folders as the umask says, and QEMU's sockets (screen, agent, monitor) for the whole group.
        """
        folders = [self.runtime_dir / "libvirt", self.cache_dir]
        if self.is_service:
            folders.append(self.home)
        else:
            cache, config = _xdg("XDG_CACHE_HOME", self.home / ".cache"), self._config_dir
            folders += [cache / "libvirt", config / "libvirt"]
        for folder in folders:
            with contextlib.suppress(OSError):
                if folder.lstat().st_uid == self.uid:
                    private.set_mode(folder, private.FOLDER)

    @property
    def _config_dir(self) -> Path:
        return self.home / ".config" if self.is_service else _xdg("XDG_CONFIG_HOME", self.home / ".config")


def _xdg(variable: str, default: Path) -> Path:
    value = os.environ.get(variable, "")
    return Path(value) if value.startswith("/") else default


@functools.cache
def account() -> Account:
    """Return the account that QEMU runs as: ourselves, or the service account when we are root.

    Raises
    ------
    HostError
        We are root and the service account is missing.
    """
    uid = os.geteuid()
    if uid != 0:
        try:
            entry = pwd.getpwuid(uid)
            name, gid = entry.pw_name, entry.pw_gid
            home = Path(os.environ.get("HOME") or entry.pw_dir)
        except KeyError:
            # A container that runs under a bare number.
            name, gid, home = str(uid), os.getegid(), Path(os.environ.get("HOME") or "/")
        candidates = _runtime_candidates(uid, home)
        return _make(name, uid, gid, home, candidates, is_service=False)
    try:
        entry = pwd.getpwnam(SERVICE_ACCOUNT)
    except KeyError:
        raise HostError(
            f"QEMU does not run as root here, and its account '{SERVICE_ACCOUNT}' does not exist yet.",
            hint="run scripts/lab once; it makes the account",
        ) from None
    home = Path(entry.pw_dir)
    return _make(entry.pw_name, entry.pw_uid, entry.pw_gid, home, [home / "run"], is_service=True)


def _runtime_candidates(uid: int, home: Path) -> list[Path]:
    """Return where an ordinary user's libvirt sockets may be, the likeliest first.

    libvirt takes ``$XDG_RUNTIME_DIR``, else the cache folder. The same user can have the variable in a desktop session
    and lack it after ``su``; two daemons would then manage the same machines, so the usual place is tried too.
    """
    found = []
    for path in (Path(os.environ.get("XDG_RUNTIME_DIR", "")), Path(f"/run/user/{uid}")):
        with contextlib.suppress(OSError):
            info = path.stat()
            # After `su`, the variable may name somebody else's folder.
            if path.is_absolute() and stat.S_ISDIR(info.st_mode) and info.st_uid == uid and path not in found:
                found.append(path)
    return [*found, _xdg("XDG_CACHE_HOME", home / ".cache")]


def _make(
    name: str, uid: int, gid: int, home: Path, runtime_dirs: list[Path], *, is_service: bool
) -> Account:
    installed = next((f for program, f in _DAEMONS if find_program(program)), _DAEMONS[0][1])
    usual = runtime_dirs[0], runtime_dirs[0] / "libvirt" / installed
    known = [(folder, folder / "libvirt" / file) for folder in runtime_dirs for _, file in _DAEMONS]
    runtime_dir, path = next((pair for pair in known if _answers(pair[1])), usual)
    return Account(name, uid, gid, home, runtime_dir, path, is_service)


def _answers(path: Path) -> bool:
    """Whether a daemon listens on the socket ``path``."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(2)
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


def daemon_answers(who: Account) -> bool:
    """Whether the account's libvirt daemon runs; it is not started."""
    return _answers(who.socket)


def ensure_daemon(who: Account | None = None) -> None:
    """Make sure that the account's libvirt daemon answers; start it if it does not.

    The daemon is detached: it survives us, and ends by itself after :data:`IDLE_EXIT` seconds without guests and
    clients. Two processes that ask at once start one.

    Raises
    ------
    HostError
        It is not installed, or does not come up; with the last lines of its log.
    """
    who = who or account()
    who.close()
    if _answers(who.socket):
        return
    program = next((find_program(p) for p, file in _DAEMONS if file == who.socket.name), None)
    if program is None:
        raise HostError(
            "libvirt's daemon is not installed.", hint="run scripts/lab once; it installs what is needed"
        )
    if len(os.fsencode(who.socket)) > SOCKET_PATH_MAX:
        raise HostError(
            f"The path of libvirt's socket is longer than the {SOCKET_PATH_MAX} bytes that Linux allows.",
            hint="set XDG_RUNTIME_DIR to a folder with a shorter path",
            socket=who.socket,
        )
    who.make_dir(who.runtime_dir)
    with _locked(who.runtime_dir / "vmlab-libvirtd.lock"):
        if not _answers(who.socket):
            _start(who, program)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    # No O_TRUNC and no unlink: the file only carries the lock.
    with open(private.lock_file(path), "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _allow_no_core_dumps(who: Account) -> None:
    """Tell libvirt not to ask for core dumps of guests where this session may not have any.

    It asks for unlimited ones by default, and where the hard limit is lower (a shell under sudo, many containers), no
    guest starts. A configuration that is there already is not touched.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if hard == resource.RLIM_INFINITY:
        return
    config = who._config_dir / "libvirt" / "qemu.conf"
    if not config.exists():
        who.make_dir(config.parent)
        why = "# Written by vmlab: core dumps are not allowed here, and libvirt asks for them by default."
        private.replace(config, f"{why}\nmax_core = 0\n")
    elif not re.search(r"^\s*max_core\s*=", config.read_text(), re.MULTILINE):
        raise HostError(
            "libvirt asks for core dumps of guests, which this session may not have (ulimit -Hc), so none would start.",
            hint=f"add the line 'max_core = 0' to {config}",
        )


def _start(who: Account, program: str) -> None:
    _allow_no_core_dumps(who)
    argv = [program, "--timeout", str(IDLE_EXIT)]
    # Without tini everything works too; ending a guest is then slower where PID 1 reaps late.
    if tini := find_program("tini"):
        argv = [tini, "-s", "--", *argv]
    with contextlib.suppress(FileNotFoundError):
        old = who.log.with_suffix(".log.old")
        who.log.replace(old)
        private.set_mode(old, private.FILE)
    env = {
        # Warnings and errors into our file, also where libvirt would choose the journal.
        "LIBVIRT_LOG_OUTPUTS": "3:stderr",
        # With a session bus, libvirt >= 11.2 saves or shuts down all guests when the desktop session ends. A lab
        # goes on; who wants it stopped says so.
        "DBUS_SESSION_BUS_ADDRESS": "disabled:",
    }
    with private.create(who.log) as log:
        process = who.popen(
            argv,
            env=env,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Away from our terminal and process group: Ctrl-C in a notebook must not reach the guests.
            start_new_session=True,
        )
    # Reaps it, should it end (being idle, or restarted) while we live.
    threading.Thread(target=process.wait, name="vmlab-libvirtd-reaper", daemon=True).start()
    started = time.monotonic()
    while time.monotonic() - started < START_TIMEOUT:
        if _answers(who.socket):
            return
        if process.poll() is not None:
            break
        time.sleep(0.02)
    ended = process.returncode
    raise HostError(
        "libvirt's daemon "
        + (
            f"ended at once with status {ended}."
            if ended is not None
            else f"does not answer after {START_TIMEOUT:.0f} s."
        ),
        hint="`%vm doctor` shows what is missing",
        command=" ".join(argv),
        log=_tail(who.log),
    )


def _tail(path: Path) -> str:
    try:
        return path.read_text(errors="replace")[-4000:]
    except OSError as error:
        return str(error)
