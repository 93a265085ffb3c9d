"""What all handlers of one Jupyter server share: the lab, the threads that call it, and what is kept for a moment.

libvirt, the store and guests answer when they can, and Tornado's loop also serves the kernels, so nothing of them is
ever called in the loop. There are groups of threads: verbs (a `stop` that waits for its guest, a build of many
minutes) can fill one, typing on serial lines another, and questions are still answered by the third.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from logging import Logger
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from vmlab.errors import HostError, NotFound, VMLabError
from vmlab.hypervisor.console import lives

if TYPE_CHECKING:
    from vmlab.guest.screen import Screenshot
    from vmlab.lab import Lab
    from vmlab.machine import Machine
    from vmlab.machines.usage import Usage
    from vmlab.render.progress import Progress

T = TypeVar("T")

#: The close code of a WebSocket whose server stops.
GOING_AWAY = 1001
#: Threads that answer questions, threads in which verbs work, and threads that type on serial lines.
READERS, WORKERS, TYPISTS = 8, 32, 8
#: Seconds for which a picture of a screen, and what the machines take, serve everybody who asks.
SCREEN_AGE, USAGE_AGE = 1.0, 0.7
#: Seconds between two reports of progress that say the same with another number.
PROGRESS_EVERY = 0.25


class Endable(Protocol):
    """A WebSocket that is open."""

    def end(self, code: int, reason: str) -> None:
        """Close it, and say why."""


class Line(Protocol):
    """A serial line that pages watch."""

    def gone(self) -> None:
        """Tell them that the machine's QEMU has ended."""


@dataclass
class _Screen:
    taken: float
    screenshot: Screenshot
    thumbnails: dict[int, bytes] = field(default_factory=dict)

    def png(self, width: int | None) -> bytes:
        picture = self.screenshot
        if width is None or width >= picture.width:
            return picture.png
        if width not in self.thumbnails:
            self.thumbnails[width] = picture.thumbnail(width).png
        return self.thumbnails[width]


def _take(lab: Lab, name: str) -> _Screen:
    from vmlab.guest.screen import screenshot

    machine = lab.machine(name)
    # Not machine.screenshot(): that waits until a fork has got its new name, and a look need not.
    picture = screenshot(machine._domain(), machine.folder)
    return _Screen(time.monotonic(), picture)


def _open_lab() -> Lab:
    try:
        from vmlab.lab import Lab
    except ImportError as error:
        raise HostError(
            "vmlab cannot run in this Jupyter server: a part of it is missing.",
            hint="`%vm doctor` shows what is missing; scripts/lab installs it",
            missing=error,
        ) from error
    try:
        return Lab()
    except OSError as error:
        raise HostError(
            "The folder of the machines cannot be used.",
            hint="set VMLAB_HOME to a folder that you may write to, and restart the Jupyter server",
            system=error,
        ) from error


class Service:
    """The lab behind the server's routes.

    Parameters
    ----------
    log
        The Jupyter server's.
    """

    def __init__(self, log: Logger) -> None:
        self.log = log
        #: Called with each event for the pages, from any thread; set by who carries them.
        self.emit: Callable[[dict[str, Any]], None] = lambda _event: None
        #: When somebody asked for something last, by the monotonic clock; and what to call then.
        self.asked = 0.0
        self.on_asked: Callable[[], None] = lambda: None
        #: Open WebSockets, and the serial lines that some of them share, by machine.
        self.sockets: set[Endable] = set()
        self.serial_lines: dict[str, Line] = {}
        self.readers = ThreadPoolExecutor(READERS, "vmlab-read")
        self._workers = ThreadPoolExecutor(WORKERS, "vmlab-work")
        self.typists = ThreadPoolExecutor(TYPISTS, "vmlab-type")
        self._lab: Lab | None = None
        self._opening = threading.Lock()
        self._usage_lock = threading.Lock()
        self._usage: tuple[float, list[Usage]] = (0.0, [])
        #: Pictures that were taken, or are just being taken.
        self._screens: dict[str, asyncio.Future[_Screen]] = {}
        self._naming = threading.Lock()
        self._reserved: set[str] = set()

    def lab(self) -> Lab:
        """Return the lab, opening it when first needed; blocks, so only for threads of :meth:`read` and :meth:`work`.

        Raises
        ------
        HostError
            This host cannot have one; says what is missing.
        """
        lab = self._lab
        if lab is None:
            with self._opening:
                lab = self._lab = self._lab or _open_lab()
        return lab

    async def read(self, ask: Callable[[Lab], T]) -> T:
        """Ask the lab something, in a thread, and return its answer.

        Errors of the lab come through as they are.
        """
        return await self._in_thread(self.readers, ask)

    async def work(self, do: Callable[[Lab], T]) -> T:
        """Have the lab do something that may take long, in a thread, and return its result."""
        return await self._in_thread(self._workers, do)

    async def type(self, do: Callable[[Lab], T]) -> T:
        """Have something typed on a serial line, in a thread, and return the result."""
        return await self._in_thread(self.typists, do)

    async def _in_thread(self, pool: ThreadPoolExecutor, call: Callable[[Lab], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, lambda: call(self.lab()))

    def touch(self) -> None:
        """Note that somebody asks for something."""
        self.asked = time.monotonic()
        self.on_asked()

    def gone(self, name: str) -> None:
        """Tell the pages that watch a machine's serial line that its QEMU has ended."""
        if line := self.serial_lines.get(name):
            line.gone()

    def close(self) -> None:
        """Take no more calls; those that run come to their end. Close the WebSockets, and with them serial lines."""
        for opened in tuple(self.sockets):
            opened.end(GOING_AWAY, "the Jupyter server is being stopped")
        for pool in (self.readers, self._workers):
            pool.shutdown(wait=False, cancel_futures=True)
        # Not cancelled: lines are being let go there.
        self.typists.shutdown(wait=False)

    # -- models --------------------------------------------------------------------------------------------------

    def machine(self, machine: Machine) -> dict[str, Any]:
        """Return the JSON model of a machine: what it knows of itself, what is being done to it, what it shows."""
        from vmlab.store.watch import doing

        model = machine.to_json()
        model["doing"] = doing(machine._store.home, machine.name)
        model["console"] = lives(model["state"]) and machine.spec.video != "none"
        return model

    def machines(self, lab: Lab) -> list[dict[str, Any]]:
        """Return the models of all machines; one that cannot be read does not hide the others."""
        found = []
        for machine in lab.machines:
            try:
                found.append(self.machine(machine))
            except NotFound:
                # Deleted since it was listed.
                continue
            except HostError:
                raise
            except VMLabError as error:
                self.log.warning("vmlab: %s is left out: %s", machine.name, error.message)
        return found

    def usage(self, lab: Lab) -> list[Usage]:
        """Return what each machine takes; its CPU is that since somebody asked before, so nobody has to wait for it."""
        from vmlab.machines.usage import Sample

        with self._usage_lock:
            then, before = self._usage
            now = time.monotonic()
            if now - then < USAGE_AGE:
                return before
            samples = {usage.name: Sample(then, usage.cpu_seconds) for usage in before}
            found = []
            for usage in lab.usage(over=0):
                sample = Sample(now, usage.cpu_seconds)
                percent = sample.percent_since(samples.get(usage.name, sample))
                found.append(replace(usage, cpu_percent=percent))
            self._usage = (now, found)
            return found

    async def screen(self, name: str, width: int | None) -> bytes:
        """Return a machine's screen as PNG, at most a second old, so that many pages cost no more than one.

        All who ask while it is taken wait for the same picture, and for a guest that hangs in the same thread.

        Parameters
        ----------
        width
            The most pixels from left to right; None: as it is.
        """
        taking = self._screens.get(name)
        if taking is None or (taking.done() and time.monotonic() - taking.result().taken > SCREEN_AGE):
            taking = asyncio.ensure_future(self.read(lambda lab: _take(lab, name)))
            self._screens[name] = taking
            taking.add_done_callback(lambda done: self._drop_failed(name, done))
        # One who gives up does not take it from the others.
        screen = await asyncio.shield(taking)
        return await self.read(lambda _: screen.png(width))

    def _drop_failed(self, name: str, taking: asyncio.Future[_Screen]) -> None:
        if (taking.cancelled() or taking.exception()) and self._screens.get(name) is taking:
            del self._screens[name]

    def forget(self, name: str) -> None:
        """Drop what is kept of a machine that is gone."""
        self._screens.pop(name, None)

    # -- work ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def new_name(self, lab: Lab, stem: str) -> Any:
        """Give a free name for a new machine, and keep other requests from choosing it meanwhile."""
        from vmlab.machines.names import name_like

        with self._naming:
            name = name_like(lab.store, stem, self._reserved)
            self._reserved.add(name)
        try:
            yield name
        finally:
            self._reserved.discard(name)

    def progress(self, **subject: str) -> Progress:
        """Return a function that tells the pages how far a long piece of work on ``subject`` is."""
        last: tuple[str, float] = ("", 0.0)

        def tell(text: str, fraction: float | None = None) -> None:
            nonlocal last
            now = time.monotonic()
            if text != last[0] or now - last[1] > PROGRESS_EVERY:
                last = (text, now)
                self.emit({"kind": "job", **subject, "text": text, "fraction": fraction, "done": False})

        return tell

    def done(self, **subject: str) -> None:
        """Tell the pages that a long piece of work has ended, well or not."""
        self.emit({"kind": "job", **subject, "text": "", "fraction": None, "done": True})
