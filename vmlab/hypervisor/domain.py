"""One guest as libvirt and QEMU know it: its life, its monitor, its agent, its serial line."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import libvirt
import libvirt_qemu

from vmlab.errors import AgentError, AgentTimeout, HypervisorError, WrongState
from vmlab.hypervisor import domain_xml
from vmlab.hypervisor.account import Account
from vmlab.hypervisor.condition import DISK_FULL, IO_ERROR, STATES, Condition, judge
from vmlab.hypervisor.connection import connect, lost, translated

T = TypeVar("T")

#: The most seconds to wait for libvirt to connect to a guest's agent.
CONNECT_SECONDS = 4
#: Seconds that libvirt waits for an agent to say that it listens, before it sends it the first command.
SYNC_SECONDS = 5

#: Seconds that a QEMU whose guest has powered off may take to end.
ENDING_TIMEOUT = 10.0
#: Seconds within which QEMU finds out that what it could not write still cannot be written, and libvirt hears of it:
#: QEMU (10.0) sends no more than one BLOCK_IO_ERROR a second, so the last one may come that much later.
RETRY_SECONDS = 1.5


@dataclass(frozen=True)
class Event:
    """An event of QEMU's monitor: its name, when QEMU sent it (seconds since the epoch), and what it says."""

    name: str
    at: float
    data: dict[str, Any]


class Events:
    """The events of one guest since this was opened."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._queue: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def add(self, event: Event) -> None:
        """Take an event of the guest."""
        self._queue.put(event)

    def next(self, timeout: float) -> Event | None:
        """Return the next event, or None if none comes within ``timeout`` seconds."""
        try:
            return self._queue.get(timeout=max(timeout, 0))
        except queue.Empty:
            return None


class _Ear:
    """Hears the events of all guests of a connection, for all who listen: libvirt takes a callback only once."""

    def __init__(self, connection: libvirt.virConnect) -> None:
        self.connection = connection
        self.listeners: list[Events] = []
        self.handle = libvirt_qemu.qemuMonitorEventRegister(connection, None, None, self._heard, None)

    def _heard(
        self,
        _connection: object,
        domain: libvirt.virDomain,
        event: str,
        seconds: int,
        micros: int,
        data: str,
        _: object,
    ) -> None:
        name = domain.name()
        # Without the lock, which somebody who deregisters may hold.
        for listener in tuple(self.listeners):
            if listener.name == name:
                listener.add(Event(event, seconds + micros / 1e6, json.loads(data) if data else {}))


_ears: list[_Ear] = []
_ears_lock = threading.Lock()


@contextlib.contextmanager
def _listening(connection: libvirt.virConnect, listener: Events) -> Iterator[None]:
    with _ears_lock:
        ear = next((ear for ear in _ears if ear.connection is connection), None)
        if ear is None:
            ear = _Ear(connection)
            _ears.append(ear)
        ear.listeners.append(listener)
    try:
        yield
    finally:
        with _ears_lock:
            ear.listeners.remove(listener)
            if not ear.listeners:
                _ears.remove(ear)
                with contextlib.suppress(libvirt.libvirtError):
                    libvirt_qemu.qemuMonitorEventDeregister(connection, ear.handle)


class Domain:
    """A domain of libvirt, found by name.

    Parameters
    ----------
    account
        Whose session it is in.
    name
        The machine's name.
    serial_log
        The file that its serial line is logged to.
    known_as
        What libvirt knows it as, if that is not its name.
    """

    def __init__(self, account: Account, name: str, serial_log: Path, known_as: str | None = None) -> None:
        self.account, self.name, self.serial_log = account, name, serial_log
        self.known_as = known_as or name
        #: Whether this object has ended its QEMU.
        self.ended = False

    def __repr__(self) -> str:
        return f"Domain({self.name!r})"

    def _find(self) -> libvirt.virDomain:
        for attempt in range(2):
            try:
                return connect(self.account).lookupByName(self.known_as)
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                    break
                if attempt or not lost(error):
                    raise HypervisorError(
                        f"libvirt could not find {self.name}.", libvirt=str(error)
                    ) from error
        raise WrongState(f"{self.name} is not running.", hint=f"start it with `%vm start {self.name}`")

    @contextlib.contextmanager
    def _running(self, doing: str) -> Iterator[None]:
        """Turn libvirt's errors into ours; a guest that does not run is told as such."""
        with translated(doing):
            try:
                yield
            except libvirt.libvirtError as error:
                code = error.get_error_code()
                if (
                    code in (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN)
                    and not self.is_active()
                ):
                    raise self._standing() from error
                raise

    # -- life ----------------------------------------------------------------------------------------------------

    def state(self) -> str:
        """Return ``running``, ``paused``, ``asleep``, ``crashed`` or ``off``."""
        return self.condition().state

    def condition(self) -> Condition:
        """Return what it is doing, and why."""
        doing = f"tell the state of {self.name}"
        try:
            with translated(doing):
                return self._condition_now()
        except WrongState:
            return Condition("off")
        except HypervisorError:
            # The domain ended between the two calls, or libvirtd was restarted: the second try tells.
            try:
                with translated(doing):
                    return self._condition_now()
            except WrongState:
                return Condition("off")

    def _condition_now(self) -> Condition:
        end = time.monotonic() + ENDING_TIMEOUT
        while True:
            domain = self._find()
            state, reason = domain.state()
            # The guest has powered off, and QEMU is still closing its disks: not off before it has.
            if state == libvirt.VIR_DOMAIN_SHUTDOWN and time.monotonic() < end:
                time.sleep(0.01)
                continue
            status = io = None
            if state == libvirt.VIR_DOMAIN_PAUSED:
                # Only QEMU knows why, and whether it is more than that.
                status, io = _asked_why(domain)
            return judge(state, reason, status, io)

    def is_running(self) -> bool:
        """Whether its CPUs run now."""
        return self.state() == "running"

    def is_active(self) -> bool:
        """Whether there is a QEMU process for it."""
        return self.state() != "off"

    def define(self, xml: str) -> None:
        """Make it known to libvirt, or change what libvirt knows, so that it is listed when it does not run."""
        with translated(f"define {self.name}", xml=xml):
            _asked(self.account, lambda connection: connection.defineXML(xml))

    def undefine(self) -> None:
        """Make libvirt forget it; no harm if it is not known."""
        with contextlib.suppress(WrongState, libvirt.libvirtError):
            self._find().undefineFlags(
                libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM | libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            )

    def create(self, xml: str, *, paused: bool) -> None:
        """Start QEMU.

        Raises
        ------
        HypervisorError
            With QEMU's own last words.
        """
        flags = libvirt.VIR_DOMAIN_START_PAUSED if paused else 0
        for attempt in range(2):
            try:
                connect(self.account).createXML(xml, flags)
                return
            except libvirt.libvirtError as error:
                if attempt or not lost(error):
                    raise HypervisorError(
                        f"{self.name} could not be started.", libvirt=_qemu_words(str(error))
                    ) from error

    def destroy(self) -> None:
        """End QEMU at once; no harm if it has ended already."""
        self.ended = True
        with contextlib.suppress(WrongState):
            domain = self._find()
            try:
                domain.destroyFlags(0)
            except libvirt.libvirtError as error:
                if error.get_error_code() not in (
                    libvirt.VIR_ERR_OPERATION_INVALID,
                    libvirt.VIR_ERR_NO_DOMAIN,
                ):
                    raise HypervisorError(
                        f"libvirt could not end {self.name}.", libvirt=str(error)
                    ) from error

    def kill(self) -> None:
        """End QEMU at once, and return when it has let go of its files.

        libvirt notices some tenths of a second later, which `destroy` waits for.
        """
        self.ended = True
        pid = self.pid
        if pid is not None:
            with contextlib.suppress(OSError):
                process = os.pidfd_open(pid)
                try:
                    signal.pidfd_send_signal(process, signal.SIGKILL)
                    ended = select.poll()
                    ended.register(process, select.POLLIN)
                    if ended.poll(ENDING_TIMEOUT * 1000):
                        return
                finally:
                    os.close(process)
        self.destroy()

    def shutdown(self) -> None:
        """Ask the guest to power off: through its agent if there is one, else by the power button."""
        with translated(f"ask {self.name} to shut down"):
            self._find().shutdown()

    def reboot(self) -> None:
        """Ask the guest to restart, through its agent.

        Raises
        ------
        AgentTimeout
            The agent is not there, or does not answer.
        """
        self._ask_to_restart(libvirt.VIR_DOMAIN_REBOOT_GUEST_AGENT)

    def reboot_by_button(self) -> None:
        """Press the guest's power button, and let it start again instead of ending it once it has powered off."""
        self._ask_to_restart(libvirt.VIR_DOMAIN_REBOOT_ACPI_POWER_BTN)

    def _ask_to_restart(self, how: int) -> None:
        with self._running(f"ask {self.name} to restart"):
            try:
                _in_sync(lambda: self._find().reboot(how))
            except libvirt.libvirtError as error:
                if _no_answer(error):
                    raise AgentTimeout(
                        f"The guest agent of {self.name} does not answer.", libvirt=str(error)
                    ) from error
                raise

    def reset(self) -> None:
        """Begin anew at once, as a reset button does; what the guest had not written to its disk is lost."""
        with self._running(f"reset {self.name}"):
            self._find().reset()

    def pause(self) -> None:
        """Stop its CPUs."""
        with self._running(f"pause {self.name}"):
            self._find().suspend()

    def resume(self) -> None:
        """Let its CPUs run; a guest that sleeps is woken.

        Raises
        ------
        WrongState
            It stopped again at once: what had stopped it is still so.
        """
        before = self.condition()
        if before.state == "asleep":
            self.qmp("system_wakeup")
            return
        with self._running(f"resume {self.name}"):
            self._find().resume()
        if before.why in (DISK_FULL, IO_ERROR):
            # QEMU now tries again what had failed.
            self._went_on(before)

    def go(self) -> None:
        """Let a guest run that has just been loaded, and stands still for no other reason."""
        with self._running(f"resume {self.name}"):
            self._find().resume()

    def _went_on(self, before: Condition) -> None:
        """Wait for a moment, and refuse if QEMU has stopped the guest again for what it was stopped for before."""
        end = time.monotonic() + RETRY_SECONDS
        while time.monotonic() < end:
            time.sleep(0.05)
            domain = self._find()
            if domain.state()[0] != libvirt.VIR_DOMAIN_PAUSED:
                continue
            status, _ = _asked_why(domain)
            if status == "running":
                # That event came late: libvirt takes it for a new stop, and would stay at that. It believes a RESUME
                # event alone, which QEMU sends only when it was stopped.
                self.qmp("stop")
                with self._running(f"resume {self.name}"):
                    domain.resume()
                return
            now = self.condition()
            if now.state == "paused":
                raise WrongState(
                    f"{self.name} stopped again at once: {now.why or before.why}.",
                    hint=(now if now.why else before).way_out(self.name),
                )

    # -- what it is ----------------------------------------------------------------------------------------------

    @property
    def uuid(self) -> str | None:
        """The UUID of the domain that libvirt has under this name, or None if it has none."""
        with contextlib.suppress(WrongState), translated(f"find {self.name}"):
            text: str = self._find().UUIDString()
            return text
        return None

    def xml(self, *, portable: bool = False) -> str:
        """Return its XML; ``portable``: without what belongs to this run (sockets, aliases)."""
        flags = libvirt.VIR_DOMAIN_XML_MIGRATABLE if portable else 0
        with translated(f"describe {self.name}"):
            text: str = self._find().XMLDesc(flags | libvirt.VIR_DOMAIN_XML_SECURE)
            return text

    @property
    def vnc_socket(self) -> Path | None:
        """The UNIX socket of its screen, while it runs."""
        path = domain_xml.console_paths(self.xml()).get("vnc")
        return Path(path) if path else None

    @property
    def _pid_file(self) -> Path:
        return self.account.runtime_dir / "libvirt" / "qemu" / "run" / f"{self.known_as}.pid"

    def has_died(self) -> bool:
        """Whether its QEMU is gone, and libvirt does not know it yet."""
        return self._pid_file.exists() and self.pid is None and self.is_active()

    @property
    def pid(self) -> int | None:
        """The process number of its QEMU."""
        with contextlib.suppress(OSError, ValueError):
            pid = int(self._pid_file.read_text())
            # The file outlives a QEMU that was killed while libvirtd was away.
            if f"guest={self.known_as}," in Path(f"/proc/{pid}/cmdline").read_text(errors="replace"):
                return pid
        return None

    def cpu_seconds(self) -> float:
        """Return the CPU time that its QEMU has used."""
        pid = self.pid
        if pid is None:
            return 0.0
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return 0.0

    @property
    def age(self) -> float:
        """Seconds since its QEMU was started; 0 if there is none."""
        pid = self.pid
        if pid is None:
            return 0.0
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return 0.0

    def overtaken(self) -> str | None:
        """Return what was done to the machine meanwhile; None: nothing is known here of others."""
        return None

    # -- monitor -------------------------------------------------------------------------------------------------

    def qmp(self, execute: str, /, **arguments: Any) -> Any:
        """Run a command of QEMU's monitor and return its result; ``_`` in the names of arguments stands for ``-``.

        Raises
        ------
        HypervisorError
            QEMU refused, with its words.
        """
        command: dict[str, Any] = {"execute": execute}
        if arguments:
            command["arguments"] = {key.replace("_", "-"): value for key, value in arguments.items()}
        with self._running(f"run {execute} on {self.name}"):
            answer = json.loads(libvirt_qemu.qemuMonitorCommand(self._find(), json.dumps(command), 0))
        if "error" in answer:
            raise HypervisorError(
                f"QEMU refused {execute} for {self.name}.", qemu=answer["error"].get("desc", answer["error"])
            )
        return answer.get("return")

    def hmp(self, line: str) -> str:
        """Run a line of QEMU's human monitor and return what it prints."""
        with self._running(f"run '{line}' on {self.name}"):
            text: str = libvirt_qemu.qemuMonitorCommand(
                self._find(), line, libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
            )
            return text

    @contextlib.contextmanager
    def events(self) -> Iterator[Events]:
        """Collect the events of its monitor while the block runs."""
        found = Events(self.known_as)
        with contextlib.ExitStack() as stack:
            with translated(f"watch {self.name}"):
                # The connection that found it: the one before may have gone with libvirtd.
                stack.enter_context(_listening(self._find().connect(), found))
            yield found

    def switch_disks(self, layers: dict[str, Path]) -> None:
        """Put existing empty layers over its disks, all at one instant, so that libvirt's XML knows them."""
        flags = (
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
        )
        with self._running(f"switch the disks of {self.name}"):
            self._find().snapshotCreateXML(domain_xml.disk_snapshot(layers), flags)

    def pull(self, target: str, base: Path) -> None:
        """Copy into the file that a disk writes to all that lies between it and ``base``; then it stands on that.

        The guest runs on, or stays paused, in the same QEMU.

        Raises
        ------
        HypervisorError
            It could not be copied: the disk stands on what it stood on.
        """
        with self._running(f"make the disk {target} of {self.name} stand on fewer files"):
            domain = self._find()
            # Relative, as all names of files in the store's disks.
            domain.blockRebase(target, str(base), 0, libvirt.VIR_DOMAIN_BLOCK_REBASE_RELATIVE)
            try:
                while domain.blockJobInfo(target):
                    time.sleep(0.02)
            except BaseException:
                with contextlib.suppress(libvirt.libvirtError):
                    domain.blockJobAbort(target)
                raise
        if domain_xml.disk_chains(self.xml())[target][1] != base:
            raise HypervisorError(f"QEMU could not copy the lower files of the disk {target} of {self.name}.")

    def end_pulls(self) -> None:
        """End what :meth:`pull` of a process that died has left to be done; the disks are right either way."""
        domain = self._find()
        for target in domain_xml.disk_chains(self.xml()):
            with contextlib.suppress(libvirt.libvirtError):
                domain.blockJobAbort(target)

    # -- agent and serial line -----------------------------------------------------------------------------------

    def agent(self, execute: str, /, *, timeout: int = 5, **arguments: Any) -> Any:
        """Run a command of the guest agent and return its result; ``_`` in names of arguments stands for ``-``.

        Raises
        ------
        AgentTimeout
            The agent does not answer, or is not there.
        AgentError
            The agent refused.
        """
        command: dict[str, Any] = {"execute": execute}
        if arguments:
            command["arguments"] = {key.replace("_", "-"): value for key, value in arguments.items()}
        try:
            # Who has less patience than libvirt itself asks again as they like.
            again = timeout >= SYNC_SECONDS
            text = _in_sync(lambda: self._ask_agent(json.dumps(command), timeout), again=again)
        except libvirt.libvirtError as error:
            code = error.get_error_code()
            if _no_answer(error):
                silent = AgentTimeout(
                    f"The guest agent of {self.name} does not answer.",
                    hint="is it still booting? `%vm wait NAME --agent` waits for it; without an agent, "
                    "screenshot, keys and the serial line still work",
                    libvirt=str(error),
                )
                # Before each command libvirt asks whether the agent is there; this is said of the command itself.
                silent.sent = code == libvirt.VIR_ERR_AGENT_COMMAND_TIMEOUT
                raise silent from error
            if code in (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN):
                raise self._standing() from error
            if code in (libvirt.VIR_ERR_CONFIG_UNSUPPORTED, libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED):
                raise AgentError(
                    f"{self.name} has no guest agent.",
                    hint="screenshot, keys and the serial line work without one",
                    libvirt=str(error),
                ) from error
            refusal = AgentError(f"The guest agent of {self.name} refused {execute}.", agent=str(error))
            refusal.answered = code == libvirt.VIR_ERR_AGENT_COMMAND_FAILED
            raise refusal from error
        return json.loads(text).get("return")

    def _ask_agent(self, command: str, timeout: int) -> str:
        # libvirt hears some moments after a guest's start that its agent is there (it comes as an event of QEMU, which
        # waits its turn on a busy host); until then it says "not connected".
        end = time.monotonic() + min(timeout, CONNECT_SECONDS)
        while True:
            try:
                text: str = libvirt_qemu.qemuAgentCommand(self._find(), command, timeout, 0)
                return text
            except libvirt.libvirtError as error:
                if "not connected" not in str(error) or time.monotonic() > end:
                    raise
                time.sleep(0.02)

    def _standing(self) -> WrongState:
        """Return the error for what only a running guest can do."""
        found = self.condition()
        return WrongState(found.sentence(self.name), hint=found.way_out(self.name))

    def open_serial(self) -> SerialStream:
        """Open its serial line for reading and writing; only one may have it at a time."""
        with self._running(f"open the serial line of {self.name}"):
            domain = self._find()
            stream = domain.connect().newStream(libvirt.VIR_STREAM_NONBLOCK)
            domain.openConsole(None, stream, libvirt.VIR_DOMAIN_CONSOLE_FORCE)
        return SerialStream(stream)

    def send_keycodes(self, codes: list[int], hold_ms: int = 0) -> None:
        """Press keys (Linux key codes) together for ``hold_ms``, then let them go."""
        with self._running(f"send keys to {self.name}"):
            self._find().sendKey(libvirt.VIR_KEYCODE_SET_LINUX, hold_ms, codes, len(codes), 0)


class SerialStream:
    """An open serial line.

    Attributes
    ----------
    ended
        QEMU is gone, as `recv` has found out. libvirt goes on taking what is written then, and throws it away.
    """

    def __init__(self, stream: libvirt.virStream) -> None:
        self._stream = stream
        self.ended = False

    def recv(self, count: int) -> bytes:
        """Return up to ``count`` bytes that have come; empty if none."""
        with translated("read the serial line"):
            data = self._stream.recv(count)
        if not isinstance(data, bytes):
            return b""
        self.ended = not data
        return data

    def try_send(self, data: bytes) -> int:
        """Write what there is room for, and return how many bytes that was; 0 until the guest has read."""
        with translated("write to the serial line"):
            return max(int(self._stream.send(data)), 0)

    def close(self) -> None:
        """Let go of the line."""
        with contextlib.suppress(libvirt.libvirtError):
            self._stream.finish()


def _in_sync(ask: Callable[[], T], *, again: bool = True) -> T:
    """Ask the agent something, and once more if it did not say that it listens: nothing has been sent to it then.

    A state may have been kept while the agent had half a message. What libvirt sends first in the guest that goes on
    from there is the other half of that to it: the agent complains of that, which libvirt (11.3) does not take for an
    answer; the second time it is understood.
    """
    try:
        return ask()
    except libvirt.libvirtError as error:
        # An agent that is not connected has the same code.
        if not again or "synchroniz" not in str(error):
            raise
    return ask()


def _no_answer(error: libvirt.libvirtError) -> bool:
    """Whether the guest agent is not there, or does not answer."""
    return error.get_error_code() in (
        libvirt.VIR_ERR_AGENT_UNRESPONSIVE,
        libvirt.VIR_ERR_AGENT_UNSYNCED,
        libvirt.VIR_ERR_AGENT_COMMAND_TIMEOUT,
    ) or "not connected" in str(error)


def _asked_why(domain: libvirt.virDomain) -> tuple[str | None, str | None]:
    """Return QEMU's run state of a paused guest, and the worst state of its disks; None where it is silent."""

    def ask(command: str) -> Any:
        text = libvirt_qemu.qemuMonitorCommand(domain, json.dumps({"execute": command}), 0)
        return json.loads(text).get("return")

    try:
        status = ask("query-status")["status"]
        found = {disk.get("io-status") for disk in ask("query-block")} if status == "io-error" else set()
    except (libvirt.libvirtError, KeyError, TypeError):
        return None, None
    return status, next((worst for worst in ("nospace", "failed") if worst in found), None)


def _asked(account: Account, ask: Callable[[libvirt.virConnect], T]) -> T:
    """Ask libvirt something, and once more over a new connection if libvirtd has been restarted meanwhile."""
    try:
        return ask(connect(account))
    except libvirt.libvirtError as error:
        if not lost(error):
            raise
    return ask(connect(account))


def names(account: Account) -> dict[str, str]:
    """Return ``{name: state}`` of all domains of the account's session, ours and others'."""
    found: dict[str, str] = {}
    with translated("list the machines"):
        for domain in _asked(account, lambda connection: connection.listAllDomains()):
            try:
                found[domain.name()] = STATES.get(domain.state()[0], "off")
            except libvirt.libvirtError as error:
                # One may end, and be gone, at any moment.
                if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                    raise
    return found


def known(account: Account) -> set[str]:
    """Return the names of all domains of the account's session, ours and others'; one question, however many."""
    with translated("list the machines"):
        return {d.name() for d in _asked(account, lambda connection: connection.listAllDomains())}


def is_known(account: Account, name: str) -> bool:
    """Whether the account's session has a domain of that name."""
    with translated(f"look for {name}"):
        try:
            _asked(account, lambda connection: connection.lookupByName(name))
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return False
            raise
        return True


def versions(account: Account) -> dict[str, str]:
    """Return the versions of QEMU and libvirt, as ``{"qemu": "10.0.2", "libvirt": "11.3.0"}``."""

    def text(number: int) -> str:
        return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"

    with translated("tell its version"):
        return _asked(account, lambda c: {"qemu": text(c.getVersion()), "libvirt": text(c.getLibVersion())})


def _qemu_words(message: str) -> str:
    """Shorten libvirt's message to what QEMU printed last."""
    _, _, said = message.partition("process exited while connecting to monitor: ")
    return (said or message).strip()


@dataclass(frozen=True)
class Offer:
    """What QEMU on this host offers a guest.

    Attributes
    ----------
    machine_type
        The versioned name of its newest q35 machine: ``pc-q35-10.0``.
    video
        The video cards, by libvirt's names.
    most_cpus
        How many virtual CPUs a guest may have.
    """

    machine_type: str
    video: frozenset[str]
    most_cpus: int


def offer(account: Account, accelerator: str) -> Offer:
    """Return what QEMU on this host offers guests under ``accelerator`` (``kvm`` or ``tcg``)."""
    kind = "kvm" if accelerator == "kvm" else "qemu"
    with translated("tell what QEMU offers"):
        text = _asked(account, lambda c: c.getDomainCapabilities(None, "x86_64", "q35", kind))
    tree = ET.fromstring(text)
    found = tree.findtext("machine")
    if not found:
        raise HypervisorError("libvirt does not say which q35 machine QEMU has.")
    video = {v.text for v in tree.findall("./devices/video/enum[@name='modelType']/value") if v.text}
    cpus = tree.find("vcpu")
    return Offer(found, frozenset(video), int(cpus.get("max", "1")) if cpus is not None else 1)


_machines: set[tuple[str, str, str]] = set()


def has_machine(account: Account, machine_type: str, accelerator: str) -> bool:
    """Whether QEMU has that machine type under that accelerator here."""
    key = (account.uri, machine_type, accelerator)
    if key not in _machines:
        kind = "kvm" if accelerator == "kvm" else "qemu"
        try:
            _asked(account, lambda c: c.getDomainCapabilities(None, "x86_64", machine_type, kind))
        except libvirt.libvirtError:
            return False
        _machines.add(key)
    return True
