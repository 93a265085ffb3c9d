"""Scripts that run on one machine or several, and what their exit status means."""

from __future__ import annotations

import ctypes
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from vmlab.errors import CommandFailed, MachineErrors

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
    from vmlab.guest.agent import CommandResult
    from vmlab.machine import Machine

#: Seconds that interrupted machines get to stop what they run.
STOPPING = 10.0


def run_script(
    machines: Sequence[Machine],
    text: str,
    ui: UI,
    *,
    timeout: float | None,
    errors: str,
    user: str | None = None,
) -> dict[str, CommandResult]:
    """Run ``text`` on the machines at once, show their output as it comes, return the results by name.

    Parameters
    ----------
    errors
        What to do with standard error: ``show``, ``merge`` with standard output, or ``hide``.

    Raises
    ------
    VMLabError
        The script could not be run; :class:`MachineErrors` if several machines were asked.
    """
    streams = {"stdout": "stdout", "stderr": {"show": "stderr", "merge": "stdout", "hide": None}[errors]}

    def script(machine: Machine, show: Callable[[str, str], None]) -> CommandResult:
        def on_output(stream: str, piece: str) -> None:
            if (where := streams[stream]) is not None:
                show(where, piece)

        return machine.script(text, timeout=timeout, on_output=on_output, user=user)

    if len(machines) == 1:
        return {machines[0].name: script(machines[0], ui.output)}
    return _Together(machines, script, ui).run()


class _Together:
    """A script that runs on several machines, one thread each; only the caller's thread shows anything.

    An interrupt must reach every guest, but Python raises it in the main thread only. So it is raised in each
    worker too, where ``Machine.script`` handles it as it would in the main thread: the process in the guest is
    interrupted, then killed. One machine alone needs no thread, and none of this.
    """

    def __init__(
        self,
        machines: Sequence[Machine],
        script: Callable[[Machine, Callable[[str, str], None]], CommandResult],
        ui: UI,
    ) -> None:
        self._machines = machines
        self._script = script
        self._areas = ui.areas([machine.name for machine in machines])
        self._events: queue.SimpleQueue[tuple[str, str, Any]] = queue.SimpleQueue()
        self._results: dict[str, CommandResult] = {}
        self._failed: dict[str, BaseException] = {}

    def run(self) -> dict[str, CommandResult]:
        threads = [
            threading.Thread(target=self._work, args=(m,), name=f"vmlab-{m.name}", daemon=True)
            for m in self._machines
        ]
        try:
            for thread in threads:
                thread.start()
            self._show()
        except KeyboardInterrupt:
            for thread in threads:
                _interrupt(thread)
            self._show(time.monotonic() + STOPPING)  # a second interrupt ends the wait
            raise
        if self._failed:
            raise MachineErrors(self._failed)
        return {machine.name: self._results[machine.name] for machine in self._machines}

    def _work(self, machine: Machine) -> None:
        started = time.monotonic()
        try:
            result = self._script(
                machine, lambda stream, piece: self._events.put((machine.name, stream, piece))
            )
        except BaseException as error:
            self._events.put((machine.name, "error", (error, time.monotonic() - started)))
        else:
            self._events.put((machine.name, "result", result))

    def _show(self, deadline: float = float("inf")) -> None:
        """Show what the threads report until all have ended."""
        while len(self._results) + len(self._failed) < len(self._machines) and time.monotonic() < deadline:
            try:
                name, kind, what = self._events.get(timeout=0.2)
            except queue.Empty:
                self._areas.tick()
                continue
            if kind == "result":
                self._results[name] = what
                self._areas.done(name, what.status, what.elapsed)
            elif kind == "error":
                error, elapsed = what
                self._failed[name] = error
                self._areas.done(name, None, elapsed, _why(error))
            else:
                self._areas.write(name, kind, what)
                self._areas.tick()


def _interrupt(thread: threading.Thread) -> None:
    """Raise KeyboardInterrupt in ``thread`` when it next runs Python code; nothing if it has ended."""
    if thread.ident is not None and thread.is_alive():
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(KeyboardInterrupt)
        )


def _why(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def check(results: dict[str, CommandResult], what: str) -> None:
    """Raise :class:`CommandFailed` if a status is not 0. The output was seen already and is not repeated."""
    bad = {name: result for name, result in results.items() if result.status != 0}
    if not bad:
        return
    name, result = next(iter(bad.items()))
    if len(results) == 1:
        last = result.stderr.strip().splitlines()[-1:] if what == "command" else []
        raise CommandFailed(
            f"The {what} on {name} ended with status {result.status}{meaning(result.status)}.",
            exit_status=result.status,
            elapsed=f"{result.elapsed:.2f} s",
            last_line=last[0] if last else None,
        )
    raise CommandFailed(
        f"The {what} failed on {len(bad)} of {len(results)} machines.",
        **{name: f"exit {result.status}{meaning(result.status)}" for name, result in bad.items()},
        exit_status=result.status,
    )


def meaning(status: int) -> str:
    """Return what a shell means by a status, where it is fixed."""
    known = {126: "it cannot be executed", 127: "command not found", 137: "killed", 143: "terminated"}
    return f" ({known[status]})" if status in known else ""
