"""One guest as libvirt and QEMU know it: its life, its monitor, its agent, its serial line."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
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
from vmlab.hypervisor.connection import connect, lost, translated

_STATES = {
    libvirt.VIR_DOMAIN_NOSTATE: "off",
    libvirt.VIR_DOMAIN_RUNNING: "running",
    libvirt.VIR_DOMAIN_BLOCKED: "running",
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_SHUTOFF: "off",
    libvirt.VIR_DOMAIN_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_PMSUSPENDED: "paused",
}


T = TypeVar("T")

#: The most seconds to wait for libvirt to connect to a guest's agent.
CONNECT_SECONDS = 4


#: Seconds that a QEMU whose guest has powered off may take to end.
ENDING_TIMEOUT = 10.0


@dataclass(frozen=True)
class Event:
    """An event of QEMU's monitor: its name, when QEMU sent it (seconds since the epoch), and what it says."""

    name: str
    at: float
    data: dict[str, Any]


class Events:
    """The events of one guest since this was opened."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def _add(
        self, _connection: object, _domain: object, name: str, seconds: int, micros: int, data: str, _: object
    ) -> None:
        self._queue.put(Event(name, seconds + micros / 1e6, json.loads(data) if data else {}))

    def next(self, timeout: float) -> Event | None:
        """Return the next event, or None if none comes within ``timeout`` seconds."""
        try:
            return self._queue.get(timeout=max(timeout, 0))
        except queue.Empty:
            return None


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
    """

    def __init__(self, account: Account, name: str, serial_log: Path) -> None:
        self.account, self.name, self.serial_log = account, name, serial_log

    def __repr__(self) -> str:
        return f"Domain({self.name!r})"

    def _find(self) -> libvirt.virDomain:
        for attempt in range(2):
            try:
                return connect(self.account).lookupByName(self.name)
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
        """Return ``running``, ``paused``, ``crashed`` or ``off``."""
        try:
            with translated(f"tell the state of {self.name}"):
                return self._state_now()
        except WrongState:
            return "off"
        except HypervisorError:
            # The domain ended between the two calls, or libvirtd was restarted: the second try tells.
            try:
                with translated(f"tell the state of {self.name}"):
                    return self._state_now()
            except WrongState:
                return "off"

    def _state_now(self) -> str:
        end = time.monotonic() + ENDING_TIMEOUT
        while True:
            state = self._find().state()[0]
            # The guest has powered off, and QEMU is still closing its disks: not off before it has.
            if state != libvirt.VIR_DOMAIN_SHUTDOWN or time.monotonic() > end:
                return _STATES.get(state, "running" if state == libvirt.VIR_DOMAIN_SHUTDOWN else "off")
            time.sleep(0.01)

    @property
    def disk_full(self) -> bool:
        """Whether QEMU stopped it because what it writes to its disk could not be written."""
        with contextlib.suppress(WrongState), translated(f"tell the state of {self.name}"):
            state, reason = self._find().state()
            return bool(state == libvirt.VIR_DOMAIN_PAUSED and reason == libvirt.VIR_DOMAIN_PAUSED_IOERROR)
        return False

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

    def pause(self) -> None:
        """Stop its CPUs."""
        with self._running(f"pause {self.name}"):
            self._find().suspend()

    def resume(self) -> None:
        """Let its CPUs run."""
        with self._running(f"resume {self.name}"):
            self._find().resume()

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
    def pid(self) -> int | None:
        """The process number of its QEMU."""
        path = self.account.runtime_dir / "libvirt" / "qemu" / "run" / f"{self.name}.pid"
        with contextlib.suppress(OSError, ValueError):
            pid = int(path.read_text())
            # The file outlives a QEMU that was killed while libvirtd was away.
            if f"guest={self.name}," in Path(f"/proc/{pid}/cmdline").read_text(errors="replace"):
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
        found = Events()
        with translated(f"watch {self.name}"):
            # The connection that found it: the one before may have gone with libvirtd.
            domain = self._find()
            connection = domain.connect()
            handle = libvirt_qemu.qemuMonitorEventRegister(connection, domain, None, found._add, None)
        try:
            yield found
        finally:
            with contextlib.suppress(libvirt.libvirtError):
                libvirt_qemu.qemuMonitorEventDeregister(connection, handle)

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
            text = self._ask_agent(json.dumps(command), timeout)
        except libvirt.libvirtError as error:
            code = error.get_error_code()
            if code in (
                libvirt.VIR_ERR_AGENT_UNRESPONSIVE,
                libvirt.VIR_ERR_AGENT_UNSYNCED,
                libvirt.VIR_ERR_AGENT_COMMAND_TIMEOUT,
            ):
                raise AgentTimeout(
                    f"The guest agent of {self.name} does not answer.",
                    hint="is it still booting? `%vm wait NAME --agent` waits for it; without an agent, "
                    "screenshot, keys and the serial line still work",
                    libvirt=str(error),
                ) from error
            if code in (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN):
                raise self._standing() from error
            if code in (libvirt.VIR_ERR_CONFIG_UNSUPPORTED, libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED):
                raise AgentError(
                    f"{self.name} has no guest agent.",
                    hint="screenshot, keys and the serial line work without one",
                    libvirt=str(error),
                ) from error
            raise AgentError(
                f"The guest agent of {self.name} refused {execute}.", agent=str(error)
            ) from error
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
        state = self.state()
        if state == "crashed":
            return WrongState(
                f"The guest {self.name} has crashed: its kernel panicked.",
                hint=f"go back with `%vm revert {self.name}`, or boot it anew with `%vm start {self.name}`",
            )
        if state == "paused" and self.disk_full:
            return WrongState(
                f"{self.name} is paused, because there is no room left on the disk for what it writes.",
                hint=f"make room (`%vm list` shows what is taken), then let it go on with `%vm resume {self.name}`",
            )
        if state == "paused":
            return WrongState(f"{self.name} is paused.", hint=f"let it go on with `%vm resume {self.name}`")
        return WrongState(f"{self.name} is not running.", hint=f"start it with `%vm start {self.name}`")

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
    found = {}
    with translated("list the machines"):
        for domain in _asked(account, lambda connection: connection.listAllDomains()):
            try:
                found[domain.name()] = _STATES.get(domain.state()[0], "off")
            except libvirt.libvirtError as error:
                # One may end, and be gone, at any moment.
                if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                    raise
    return found


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


def machine_type(account: Account, accelerator: str) -> str:
    """Return the versioned name of QEMU's newest q35 machine: ``pc-q35-10.0``."""
    kind = "kvm" if accelerator == "kvm" else "qemu"
    with translated("tell its machine types"):
        text = _asked(account, lambda c: c.getDomainCapabilities(None, "x86_64", "q35", kind))
    found = ET.fromstring(text).findtext("machine")
    if not found:
        raise HypervisorError("libvirt does not say which q35 machine QEMU has.")
    return found


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
