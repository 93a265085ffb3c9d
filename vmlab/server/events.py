"""Events: whatever changes the lab, pages are told, over the Jupyter server's own event bus.

Two sources: the store's folder (records, locks) and libvirt (starts, stops, pauses, crashes). They only say where to
look; a look then tells what there is to say, so a burst of changes is one event, and the last one always tells the
last state.

It begins with the first request of a page. libvirt is let go again when nobody has asked for anything for a while and
no guest runs, so that its daemon can end (see :mod:`vmlab.hypervisor.watch`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmlab.errors import NotFound, RecordDamaged, VMLabError
from vmlab.server.service import Service

if TYPE_CHECKING:
    from jupyter_events import EventLogger

    from vmlab.hypervisor.watch import LifecycleWatch
    from vmlab.lab import Lab
    from vmlab.store.watch import Change

SCHEMA = "urn:vmlab:events:lab:v1"
SCHEMA_FILE = Path(__file__).with_name("events.yaml")

#: Seconds for which changes are gathered before one looks.
GATHER = 0.04
#: Seconds between two looks at whether libvirt is still to be listened to, and without a request until it is not.
ROUND, IDLE = 5.0, 300.0
#: Seconds until what failed is tried again.
AGAIN = 2.0


class Watcher:
    """Watches the lab and tells the pages.

    Parameters
    ----------
    service
        The lab and its threads.
    logger
        The Jupyter server's event logger; it must know :data:`SCHEMA`.
    """

    def __init__(self, service: Service, logger: EventLogger) -> None:
        self._service, self._logger = service, logger
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._looking: dict[str, asyncio.Task[None]] = {}
        #: What is to be looked at: machines, and whether to tell even if neither state nor work has changed.
        self._marked: dict[str, bool] = {}
        #: What was told last of each machine.
        self._told: dict[str, tuple[str, str | None]] = {}
        #: What is told of each snapshot; None: nothing.
        self._snapshots: dict[str, dict[str, Any] | None] = {}
        self._libvirt: LifecycleWatch | None = None
        self._wake = asyncio.Event()
        self._closed = False
        service.emit, service.on_asked = self.emit, self.begin

    # -- telling -------------------------------------------------------------------------------------------------

    def emit(self, event: dict[str, Any]) -> None:
        """Tell the pages; from any thread."""
        if self._loop is not None and not self._closed:
            # The loop may just have ended.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._emit, event)

    def _emit(self, event: dict[str, Any]) -> None:
        if not self._closed:
            self._logger.emit(schema_id=SCHEMA, data=event)

    # -- life ----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin to watch, if it has not begun; in the server's loop."""
        if self._loop is None and not self._closed:
            self._loop = asyncio.get_running_loop()
            self._start(self._watch_store())
            self._start(self._watch_libvirt())

    async def end(self) -> None:
        """Stop watching."""
        self._closed = True
        tasks = [*self._tasks, *self._looking.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._libvirt is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._libvirt.stop)

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- the store -----------------------------------------------------------------------------------------------

    async def _watch_store(self) -> None:
        from vmlab.store.watch import StoreWatch

        missed = False
        while True:
            try:
                home = await self._service.read(lambda lab: lab.home)
                with StoreWatch(home) as watch:
                    if missed:
                        self._emit({"kind": "reload"})
                    async for change in watch.changes():
                        self._changed(change)
            except (VMLabError, OSError) as error:
                # No lab can be had here, or its folder was moved away. Pages that ask are told why.
                self._service.log.debug("vmlab: the store cannot be watched: %s", error)
            missed = True
            await asyncio.sleep(AGAIN)

    def _changed(self, change: Change) -> None:
        if change.what == "lost":
            self._emit({"kind": "reload"})
        elif change.what == "image":
            self._emit({"kind": "images"})
        elif change.what == "snapshot":
            self._start(self._tell_snapshots(change.name))
        elif not change.name.startswith("image@"):
            self.mark(change.name, always=change.what == "machine")
        # Guests may have been started while libvirt was not listened to.
        self._wake.set()

    async def _tell_snapshots(self, identity: str) -> None:
        def what(lab: Lab) -> dict[str, Any] | None:
            record = lab.store.snapshot(identity)
            if record.kind == "ready":
                return {"kind": "images"}
            if record.kind != "snapshot":
                # Kept for undo, or taken for a moment: in no tree.
                return None
            name = next((m.name for m in lab.machines if m.uuid == record.machine), None)
            return {"kind": "snapshots"} | ({"machine": name} if name else {})

        try:
            event = self._snapshots[identity] = await self._service.read(what)
        except (VMLabError, OSError):
            # Gone: what was told of it before is told again.
            event = self._snapshots.pop(identity, {"kind": "snapshots"})
        if event is not None:
            self._emit(event)

    # -- machines ------------------------------------------------------------------------------------------------

    def mark(self, name: str, *, always: bool = False) -> None:
        """Look at a machine soon; ``always``: and tell, whatever is seen."""
        self._marked[name] = always or self._marked.get(name, False)
        if name not in self._looking and not self._closed:
            self._looking[name] = asyncio.create_task(self._look(name))

    async def _look(self, name: str) -> None:
        try:
            # Until nothing is marked any more: a change during a look is looked at again.
            while name in self._marked:
                await self._look_once(name)
        finally:
            # In the same step in which nothing was marked: the next mark begins anew.
            del self._looking[name]

    async def _look_once(self, name: str) -> None:
        await asyncio.sleep(GATHER)
        always = self._marked.pop(name, False)
        try:
            seen = await self._service.read(lambda lab: _state(lab, name))
            if seen is None:
                return
        except NotFound:
            seen = None
        except (VMLabError, OSError) as error:
            self._service.log.debug("vmlab: %s cannot be looked at: %s", name, error)
            return
        if seen is None:
            self._service.gone(name)
            self._service.forget(name)
            if self._told.pop(name, None) is not None or always:
                self._emit({"kind": "machine-gone", "machine": name})
            return
        before, self._told[name] = self._told.get(name), seen
        # Not in the middle of a revert: the line goes on behind it.
        if seen[0] in ("off", "suspended") and seen[1] is None:
            self._service.gone(name)
        if always or seen != before:
            self._emit({"kind": "machine", "machine": name, "state": seen[0], "doing": seen[1]})

    # -- libvirt -------------------------------------------------------------------------------------------------

    async def _watch_libvirt(self) -> None:
        missed = False
        while True:
            self._wake.clear()
            try:
                began = await self._service.read(self._hold_libvirt)
                if began and missed:
                    self._emit({"kind": "reload"})
                missed = missed or began
            except (VMLabError, OSError) as error:
                self._service.log.debug("vmlab: libvirt cannot be watched: %s", error)
            if self._libvirt is None or not self._libvirt.listening:
                # Not with every change of a store, where libvirt cannot be had.
                await asyncio.sleep(AGAIN)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), ROUND)

    def _hold_libvirt(self, lab: Lab) -> bool:
        """Listen to libvirt as long as there is something to hear; in a thread. Return whether it has just begun."""
        from vmlab.hypervisor.watch import guests_exist

        if self._libvirt is None:
            self._libvirt = self._open_libvirt(lab)
        guests = guests_exist(lab.account)
        wanted = guests or time.monotonic() - self._service.asked < IDLE
        if wanted and not self._libvirt.listening:
            # Where guests run and their daemon does not, nobody else would hear how they end.
            return self._libvirt.listen(start=guests)
        if not wanted and self._libvirt.listening:
            self._libvirt.release()
        return False

    def _open_libvirt(self, lab: Lab) -> LifecycleWatch:
        from vmlab.hypervisor.watch import LifecycleWatch

        loop = self._loop
        assert loop is not None

        def told(domain: str | None) -> None:
            name = lab.store.machine_known_as(domain) if domain is not None else None
            if domain is None or name is not None:
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(self._heard, name)

        return LifecycleWatch(lab.account, told)

    def _heard(self, name: str | None) -> None:
        if name is None:
            self._wake.set()
        else:
            # libvirt has guests of others, too.
            self.mark(name)


def _state(lab: Lab, name: str) -> tuple[str, str | None] | None:
    """Return a machine's state and what is done to it; None for one that vmlab made for a moment, which nobody sees."""
    from vmlab.store.watch import doing

    machine = lab.machine(name)
    with contextlib.suppress(RecordDamaged):
        if machine._record.throwaway:
            return None
    return machine.state, doing(lab.home, name)
