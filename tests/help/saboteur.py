"""Operations that die in the middle, as whole processes do: by SIGKILL, before any step that leaves a trace.

``python saboteur.py`` is a small server: each line on its standard input asks for one operation and names the step
before which the process that does it kills itself. It forks for each, so that an operation costs no start of Python.
The steps are the places where something outside the process changes: a monitor command, a libvirt call, a record
written, a file renamed, a disk layer made.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import vmlab.engine.delta
import vmlab.engine.load
import vmlab.engine.stream
import vmlab.store.qcow2
from vmlab.errors import HypervisorError, VMLabError
from vmlab.hypervisor import account as accounts
from vmlab.hypervisor.domain import Domain
from vmlab.lab import Lab


@dataclass(frozen=True)
class OwnAccount(accounts.Account):
    """The account of the tests with another home: so with a libvirt daemon of its own, which may be killed."""

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        env = super().environment()
        for key in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
            env.pop(key, None)
        return env | {"HOME": str(self.home)} | dict(extra or {})


def own_account(home: Path) -> OwnAccount:
    usual = accounts.account()
    run = home / "run"
    others = {"home": home, "runtime_dir": run, "socket": run / "libvirt" / usual.socket.name}
    own = OwnAccount(**{**asdict(usual), **others})
    own.make_dir(home)
    return own


def own_lab(home: Path) -> Lab:
    return Lab(home / "store", own_account(home))


def kill(pid: int | None) -> None:
    """Kill a process that is not our child, and wait until it is gone."""
    if pid is None:
        return
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, signal.SIGKILL)
        while not Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].startswith((" Z", " X")):
            time.sleep(0.005)


def end_daemon(lab: Lab) -> None:
    """End the libvirt daemon of a lab of our own; guests live on."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        kill(int((lab.account.runtime_dir / "libvirt" / "libvirtd.pid").read_text()))


# -- in the process that dies ------------------------------------------------------------------------------------------

STEPS = (
    (Domain, "qmp"),
    (Domain, "hmp"),
    (Domain, "create"),
    (Domain, "define"),
    (Domain, "undefine"),
    (Domain, "destroy"),
    (Domain, "pause"),
    (Domain, "resume"),
    (Domain, "go"),
    (Domain, "switch_disks"),
    (Domain, "pull"),
    (vmlab.engine.delta.Delta, "copy"),
    (vmlab.engine.delta.Delta, "catch"),
    (vmlab.engine.delta.Delta, "seal"),
    (vmlab.engine.stream, "_wait"),
    (vmlab.engine.load, "_wait_loaded"),
    (vmlab.store.qcow2, "write_empty"),
    (pathlib.Path, "rename"),
    (pathlib.Path, "replace"),
    (pathlib.Path, "unlink"),
)


class Steps:
    """Counts the steps of an operation, and acts before one of them."""

    def __init__(self, last: int | str | None, act: Callable[[], None]) -> None:
        self.last, self.act, self.count, self.at, self.seen = last, act, 0, "", list[str]()

    def before(self, label: str) -> None:
        if label == "qmp query-migrate" and self.seen[-1:] == [label]:
            return  # how often it is asked is chance
        self.count += 1
        self.seen.append(label)
        if self.last in (self.count, label):
            self.at = label
            self.act()

    def watch(self, owner: Any, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(original)
        def step(*args: Any, **kwargs: Any) -> Any:
            # Of a record's new name, .machine.json.PID.RANDOM, only what is the same each time.
            file = args[0].name.split(".")[1] if owner is pathlib.Path and "." in args[0].name else ""
            detail = args[1] if name in ("qmp", "hmp") else file
            self.before(f"{name} {detail}".strip())
            return original(*args, **kwargs)

        setattr(owner, name, step)


def _pays(pays: Callable[[int, int], bool], whole: bool, changed: int, base: int) -> bool:
    return pays(changed, base) and not whole


def operate(order: dict[str, Any]) -> None:
    lab = own_lab(Path(order["home"]))
    victim = order.get("victim", "process")

    def act() -> None:
        if victim == "process":
            print(json.dumps({"died": True, "at": steps.at}), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        elif victim == "interrupt":
            # As Ctrl-C does it.
            os.kill(os.getpid(), signal.SIGINT)
        elif victim == "refusal":
            raise HypervisorError(f"{steps.at} was refused.")
        elif victim == "qemu":
            kill(lab.machine(order["machine"]).domain.pid)
        else:
            end_daemon(lab)

    vmlab.engine.delta.pays = functools.partial(_pays, vmlab.engine.delta.pays, order.get("whole", False))
    steps = Steps(order["step"], act)
    for owner, name in STEPS:
        # No file refuses anything; a disk that is full has tests of its own.
        if victim != "refusal" or owner is not pathlib.Path:
            steps.watch(owner, name)
    verb, name, argument = order["verb"], order["machine"], order.get("argument")
    try:
        if verb == "create":
            lab.create(name, argument)
        elif verb == "boot":
            lab.create(name, argument, bake=False)
        elif verb == "bake":
            lab.image(argument).bake(memory=order.get("memory"))
        elif verb == "forget":
            lab.machine(name).find(argument).forget()
        elif verb == "verify":
            lab.machine(name).find(argument).verify()
        else:
            getattr(lab.machine(name), verb)(*([argument] if argument is not None else []))
    except (VMLabError, KeyboardInterrupt) as error:
        report = {"error": str(error), "kind": type(error).__name__}
    else:
        report = {}
    print(json.dumps({"died": False, "at": steps.at, "steps": steps.seen, **report}), flush=True)


def serve() -> None:
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                operate(json.loads(line))
            except BaseException as error:
                report = {
                    "died": False,
                    "at": "",
                    "steps": [],
                    "error": repr(error),
                    "kind": type(error).__name__,
                }
                print(json.dumps(report), flush=True)
            finally:
                sys.stdout.flush()
                os._exit(0)
        os.waitpid(pid, 0)


# -- in the test -------------------------------------------------------------------------------------------------------


class Saboteur:
    """The server's other end."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(
        self,
        verb: str,
        machine: str = "",
        argument: str | None = None,
        *,
        step: int | str | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """Do ``verb``, with the ``victim`` killed before a step: this process, ``qemu`` or ``libvirtd``.

        The step is given by its number, or by its name for the first of that name. ``interrupt`` is Ctrl-C instead;
        with ``refusal`` libvirt or QEMU does not do that step. With ``whole`` all of the RAM is kept, as when much of
        it has changed. Tells ``died`` and ``at``, or the ``steps`` that there
        are, ``error`` and its ``kind``.
        """
        order = {
            "home": str(self.home),
            "verb": verb,
            "machine": machine,
            "argument": argument,
            "step": step,
            **more,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


if __name__ == "__main__":
    serve()
