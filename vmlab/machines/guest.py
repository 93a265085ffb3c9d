"""What happens inside a machine's guest, by the machine's name."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmlab.checked import checked
from vmlab.engine.domain import domain_of
from vmlab.errors import (
    AgentError,
    AgentTimeout,
    HypervisorError,
    NotFound,
    Overtaken,
    RecordDamaged,
    WrongState,
)
from vmlab.guest.access import GuestAccess
from vmlab.guest.agent import wait_for_agent
from vmlab.hypervisor.condition import Condition
from vmlab.hypervisor.domain import Domain
from vmlab.machines import identity
from vmlab.records import MachineRecord
from vmlab.store import locks
from vmlab.store.store import Store

if TYPE_CHECKING:
    from vmlab.hypervisor.domain import SerialStream

#: Seconds that somebody who types waits for what is being done to the machine.
OPEN_SERIAL = 10.0
#: What ends the guest that is there, and what is under way in it.
REPLACES = ("revert", "undo", "reset", "suspend", "rename", "delete")
#: Seconds after its start within which a guest that has not answered yet is taken to boot.
BOOT = 300.0


class SharedDomain(Domain):
    """A machine's guest for whoever does not hold the machine.

    Made anew for each thing that is done in the guest. A boot that vmlab has begun is waited for, and so is whoever
    holds the machine where the guest cannot answer meanwhile. What is under way when the guest is replaced by another
    one (a revert, an undo) or ended is told so, and nothing of it reaches the next guest.

    Parameters
    ----------
    store, name
        Where the machine's record is, and its name.
    boots
        Whether it waits for boots: somebody who waits for something in the guest has a time limit of their own.
    """

    def __init__(self, store: Store, name: str, *, boots: bool = True) -> None:
        found = domain_of(store, name)
        super().__init__(found.account, found.name, found.serial_log, found.known_as)
        self._store = store
        self._boots = boots
        self._who: dict[str, object] | None = None
        self._told: str | None = None
        self._began, self._qemu = self._record(), self.pid
        #: Whether the agent has taken anything yet.
        self._under_way = False

    def _record(self) -> MachineRecord | None:
        with contextlib.suppress(NotFound, RecordDamaged):
            return self._store.machine(self.name)
        return None

    def condition(self) -> Condition:
        """Return what it is doing, and why; where it has no QEMU just now, once whoever holds the machine is done."""
        found = super().condition()
        return super().condition() if found.state == "off" and self._wait_for_others() else found

    def agent(self, execute: str, /, *, timeout: int = 5, **arguments: Any) -> Any:
        """Run a command of the guest agent and return its result; see :meth:`.Domain.agent`.

        Raises
        ------
        Overtaken
            The guest that took the commands before is not there any more.
        """
        while True:
            self._need_same()
            try:
                answer = super().agent(execute, timeout=timeout, **arguments)
            except (AgentError, WrongState) as error:
                answered = isinstance(error, AgentError) and error.answered
                sent = isinstance(error, AgentTimeout) and error.sent
                waited = not answered and self._wait_for_others()
                # What was sent may be done: not in the next guest, too.
                self._under_way = self._under_way or sent
                self._need_same()
                if sent and self.pid is None and (what := self._overtaken()):
                    raise self._lost(what) from error
                if answered or sent:
                    raise
                # What was begun in a guest that has restarted since is not in the next one.
                first = isinstance(error, AgentTimeout) and not self._under_way
                if not waited and not (first and self._wait_for_boot()):
                    raise
            else:
                self._under_way = True
                return answer

    def qmp(self, execute: str, /, **arguments: Any) -> Any:
        """Run a command of QEMU's monitor and return its result; see :meth:`.Domain.qmp`."""
        was = self.pid
        try:
            return super().qmp(execute, **arguments)
        except (HypervisorError, WrongState):
            # Whoever held the machine may be done by now: then another QEMU is there.
            if not self._wait_for_others() and self.pid in (None, was):
                raise
        return super().qmp(execute, **arguments)

    def overtaken(self) -> str | None:
        """Return what was done to the machine since this was made, in words that follow its name."""
        return self._overtaken() or self._told

    def _overtaken(self) -> str | None:
        was, now = self._began, self._record()
        if was is None:
            return None
        if now is None or now.uuid != was.uuid:
            name = self._store.machine_of(was.uuid)
            return f"was deleted{self._by()}" if name is None else f"was renamed to {name}{self._by()}"
        if (now.continues, now.mapped, now.starts) == (was.continues, was.mapped, was.starts):
            return None
        at = now.continues or now.mapped
        if at is None:
            return f"was started anew{self._by()}" if self.pid not in (None, self._qemu) else None
        label, target = self._store.label(at), self._store.snapshot(at)
        if target.kind != "undo":
            return f"was reverted to '{label.name}'{self._by()}"
        if now.undo == was.undo:
            return f"goes on in another QEMU process{self._by()}"
        return f"was taken back to its present before by an undo{self._by()}"

    def _by(self) -> str:
        """Return who did it, where somebody was seen who held the machine."""
        who = self._who or locks.holder(self._store.lock_path(self.name))
        return f" by process {who['pid']}" if who and "pid" in who else ""

    def _need_same(self) -> None:
        """Refuse to go on in a guest that is not the one in which something was begun."""
        pid = self.pid
        if pid is None or pid == self._qemu:
            return
        what = self._told = self._overtaken() if self._under_way else None
        # What comes next begins in the guest that is there now.
        self._began, self._qemu, self._under_way = self._record(), pid, False
        if what:
            raise self._lost(what)

    def _lost(self, what: str) -> Overtaken:
        return Overtaken(f"{self.name} {what}; what was being done in it is lost.", hint="do it again")

    def _wait_for_others(self) -> bool:
        """Wait until nobody else holds the machine, or the guest runs again before that; False if nobody does.

        Raises
        ------
        Busy
            Somebody holds it all the time.
        """
        path, begin, told = self._store.lock_path(self.name), time.monotonic(), False
        who = locks.holder(path)
        if who is None:
            return False
        while who is not None:
            self._who, waited = who, time.monotonic() - begin
            if waited > locks.DEFAULT_TIMEOUT:
                raise locks.busy(path, who, waited)
            if not told and waited > locks.TELL_AFTER:
                self._store.tell(locks.waiting(path, who))
                told = True
            time.sleep(0.02)
            if self.pid == self._qemu and super().condition().state == "running":
                break
            who = locks.holder(path)
        return True

    def _wait_for_boot(self) -> bool:
        """Wait until the agent answers, if the guest may still be booting; False at once if not.

        Raises
        ------
        AgentTimeout
            It did not answer in time.
        """
        if not self._boots:
            return False
        self._boots = False  # once, and not for the waiting itself
        record, left = self._record(), BOOT - self.age
        if record is None or not record.spec.agent or record.mapped is not None or left <= 0:
            return False
        if not self.is_running():
            return False
        self._store.tell(f"waiting: {self.name} boots")
        wait_for_agent(self, left)
        return True


@checked
class Guest(GuestAccess):
    """Commands, files, keys, screen and serial line of a machine.

    Parameters
    ----------
    store, name
        Where the machine's record is, and its name.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = name

    @property
    def name(self) -> str:
        """Its name, the same in ``virsh list``."""
        return self._name

    @property
    def folder(self) -> Path:
        """The folder of its own files: serial log, recorded sound."""
        return self._store.machine_folder(self._name)

    @property
    def domain(self) -> Domain:
        """The guest as libvirt and QEMU know it: monitor, agent, serial line."""
        identity.settle(self._name)
        who = locks.holder(self._store.lock_path(self._name))
        if who is not None and who.get("doing") in REPLACES:
            # What is begun now would be lost with the guest that is there.
            with self._store.lock(self._name, "use it"):
                pass
        with contextlib.suppress(RecordDamaged):
            self._store.machine(self._name)
        return self._domain()

    def _domain(self, *, boots: bool = True) -> Domain:
        return SharedDomain(self._store, self._name, boots=boots)

    def open_serial(self, timeout: float = OPEN_SERIAL) -> SerialStream:
        """Open its serial line to write on it; never while something else is done to the machine.

        libvirtd 11.3 was seen to spin for ever, answering nobody, after the line of a QEMU that was just being ended
        had been opened. So this waits for the lock that a revert holds, at most for ``timeout`` seconds.

        Raises
        ------
        Busy, WrongState
            Something takes long; it does not run.
        """
        with self._store.lock(self._name, "open its serial line", timeout=timeout):
            return self._domain().open_serial()
