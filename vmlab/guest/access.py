"""What can be done in a guest, as methods of the machine: commands, files, keys, screen, serial line."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmlab.checked import checked, takes_options_of
from vmlab.errors import AgentTimeout, CommandFailed, Overtaken
from vmlab.guest import GuestDomain, SerialStream
from vmlab.guest.wait import until

if TYPE_CHECKING:
    from vmlab.guest.agent import CommandResult, OnOutput, Target
    from vmlab.guest.keys import Pointer
    from vmlab.guest.screen import Screenshot


def _module(name: str) -> Any:
    """Return a module of this package; they are imported when they are needed, as the methods do."""
    return importlib.import_module(f"vmlab.guest.{name}")


@checked
class GuestAccess:
    """Mixed into :class:`vmlab.Machine`."""

    @staticmethod
    def _late_types() -> dict[str, Any]:
        agent, screen = _module("agent"), _module("screen")
        return {
            "CommandResult": agent.CommandResult,
            "OnOutput": agent.OnOutput,
            "Screenshot": screen.Screenshot,
            "Target": agent.Target,
        }

    @property
    def name(self) -> str:
        """The machine's name."""
        raise AssertionError

    @property
    def domain(self) -> GuestDomain:
        """The guest."""
        raise AssertionError

    def _domain(self, *, boots: bool = True) -> GuestDomain:
        """Return the guest for looking only: without waiting until a new fork has been told who it is.

        With ``boots`` its agent is waited for while it boots.
        """
        raise AssertionError

    @property
    def folder(self) -> Path:
        """A folder in which QEMU may write."""
        raise AssertionError

    # -- commands and files --------------------------------------------------------------------------------------

    def execute(
        self,
        command: str | Sequence[str],
        *,
        timeout: float | None = 60,
        input: str | bytes | None = None,
        on_output: OnOutput | None = None,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        to: Target | None = None,
    ) -> CommandResult:
        """Run a command in the guest and return its status and output; see :func:`vmlab.guest.agent.execute`."""
        from vmlab.guest import agent

        return agent.execute(
            self.domain, command, timeout=timeout, input=input, on_output=on_output, user=user, env=env, to=to
        )

    def script(
        self,
        text: str,
        *,
        timeout: float | None = None,
        input: str | bytes | None = None,
        on_output: OnOutput | None = None,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        to: Target | None = None,
    ) -> CommandResult:
        """Run a script in the guest, by the interpreter that its first line names; see :func:`.agent.script`."""
        from vmlab.guest import agent

        return agent.script(
            self.domain, text, timeout=timeout, input=input, on_output=on_output, user=user, env=env, to=to
        )

    def stream(
        self,
        command: str | Sequence[str],
        *,
        timeout: float | None = None,
        input: str | bytes | None = None,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Generator[bytes, None, None]:
        """Run a command and give what it writes, piece by piece, in bytes; see :func:`vmlab.guest.agent.stream`."""
        from vmlab.guest import agent

        return agent.stream(self.domain, command, timeout=timeout, input=input, user=user, env=env)

    def succeed(self, *commands: str | Sequence[str], timeout: float | None = 60) -> str:
        """Run commands that must succeed and return what they printed.

        Raises
        ------
        CommandFailed, OutputTooLarge
            One of them did not; it wrote more than is kept (16 MiB).
        """
        from vmlab.guest import agent

        return agent.succeed(self.domain, *commands, timeout=timeout)

    def fail(self, *commands: str | Sequence[str], timeout: float | None = 60) -> str:
        """Run commands that must fail and return what they printed, on both streams.

        Raises
        ------
        CommandFailed
            One of them succeeded.
        """
        said = ""
        for command in commands:
            result = self.execute(command, timeout=timeout)
            if result.ok:
                raise CommandFailed(
                    f"'{command}' on {self.name} succeeded; it was expected to fail.",
                    exit_status=0,
                    stdout=result.stdout,
                    elapsed=round(result.elapsed, 3),
                )
            said += result.whole().stdout + result.stderr
        return said

    def wait_until_succeeds(self, command: str | Sequence[str], timeout: float | None = 60) -> str:
        """Run a command again and again until it succeeds, and return what it printed then.

        A guest that still boots, or reboots meanwhile, is waited for too.

        Raises
        ------
        WaitTimeout
            It never did; carries what it said last.
        """
        return self._until_status(command, timeout, ok=True)

    def wait_until_fails(self, command: str | Sequence[str], timeout: float | None = 60) -> str:
        """Run a command again and again until it fails, and return what it printed then."""
        return self._until_status(command, timeout, ok=False)

    def _until_status(self, command: str | Sequence[str], timeout: float | None, *, ok: bool) -> str:
        from vmlab.guest import agent

        last: list[CommandResult] = []
        self.domain  # noqa: B018 - a new fork knows who it is when this returns

        def tried() -> bool:
            last[:] = [agent.execute(self._domain(boots=False), command, timeout=timeout)]
            return last[0].ok is ok

        until(
            tried,
            timeout,
            f"'{command}' to {'succeed' if ok else 'fail'}",
            evidence=lambda: (last[0].stdout + last[0].stderr) if last else "its agent did not answer",
            retry_on=(AgentTimeout, Overtaken),
            machine=self.name,
        )
        return last[0].whole().stdout

    def wait_for_agent(self, timeout: float | None = 300) -> None:
        """Wait until the guest agent answers; if it does not, the error says what the guest showed and wrote last."""
        from vmlab.guest import agent
        from vmlab.guest.lastwords import last_words

        self.domain  # noqa: B018 - a new fork knows who it is when this returns
        domain = self._domain(boots=False)
        with last_words(domain, self.folder):
            agent.wait_for_agent(domain, timeout)

    def wait_for_file(self, path: str, timeout: float | None = 60) -> None:
        """Wait until a file or folder exists in the guest."""
        import shlex

        self._until_status(f"test -e {shlex.quote(path)}", timeout, ok=True)

    def wait_for_port(self, port: int, timeout: float | None = 60) -> None:
        """Wait until something in the guest listens on a TCP port, on any of its addresses."""
        # From the kernel's own table, so that it works without ss or netstat; 0A is LISTEN.
        listening = f":{port:04X} [0-9A-F]*:0000 0A"
        self._until_status(
            f"cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | grep -qi '{listening}'", timeout, ok=True
        )

    def wait_for_unit(self, unit: str, timeout: float | None = 60) -> None:
        """Wait until a systemd unit is active."""
        import shlex

        self._until_status(f"systemctl is-active {shlex.quote(unit)}", timeout, ok=True)

    @takes_options_of(lambda: _module("transfer").put)
    def put(self, local: str | Path, remote: str, **options: Any) -> Any:
        """Copy a file or folder into the guest; see :func:`vmlab.guest.transfer.put`."""
        from vmlab.guest import transfer

        return transfer.put(self.domain, local, remote, **options)

    @takes_options_of(lambda: _module("transfer").get)
    def get(self, remote: str, local: str | Path | None = None, **options: Any) -> Any:
        """Copy a file or folder out of the guest; see :func:`vmlab.guest.transfer.get`."""
        from vmlab.guest import transfer

        return transfer.get(self.domain, remote, local, **options)

    def set_clock(self) -> None:
        """Set the guest's clock to the host's, through its agent."""
        from vmlab.guest import identity

        identity.set_clock(self.domain)

    # -- without an agent ----------------------------------------------------------------------------------------

    def keys(self, *chords: str) -> None:
        """Press keys: ``keys("ctrl-alt-delete")``, ``keys("a", "ret")``; see :func:`vmlab.guest.keys.press`."""
        from vmlab.guest import keys

        keys.press(self.domain, *chords)

    def type(self, text: str) -> None:
        """Type a text on the guest's keyboard (US layout); see :func:`vmlab.guest.keys.type_text`."""
        from vmlab.guest import keys

        keys.type_text(self.domain, text)

    @property
    def pointer(self) -> Pointer:
        """The guest's pointer, for a guest with a tablet: ``.move(x, y)``, ``.click()``, ``.drag()``, in pixels."""
        from vmlab.guest import keys

        return keys.Pointer(self.domain, self.screenshot().size)

    def screenshot(self) -> Screenshot:
        """Return a picture of the screen, which shows itself in a notebook."""
        from vmlab.guest import screen

        return screen.screenshot(self._domain(), self.folder)

    @takes_options_of(lambda: _module("screen").wait_for_screen)
    def wait_for_screen(
        self,
        until_what: Screenshot | str | Path | Callable[[Screenshot], Any] | None = None,
        *,
        settle: float = 1.0,
        timeout: float | None = 60,
        **options: Any,
    ) -> Screenshot:
        """Wait for a picture, a condition or stillness; see :func:`vmlab.guest.screen.wait_for_screen`."""
        from vmlab.guest import screen

        return screen.wait_for_screen(
            self.domain, self.folder, until_what, settle=settle, timeout=timeout, **options
        )

    def serial(self, lines: int | None = None) -> str:
        """Return what the guest wrote on its serial line; only the last ``lines`` if given."""
        from vmlab.guest import serial

        return serial.read(self._domain(), lines)

    def send_serial(self, text: str) -> None:
        """Write to the guest's serial line."""
        from vmlab.guest import serial

        serial.send(self.domain, text, open_serial=self.open_serial)

    def open_serial(self) -> SerialStream:
        """Open the serial line to write on it."""
        return self.domain.open_serial()

    @takes_options_of(lambda: _module("serial").wait_for)
    def wait_for_serial(self, pattern: str, timeout: float | None = 60, **options: Any) -> Any:
        """Wait until the serial line shows a regular expression; see :func:`vmlab.guest.serial.wait_for`."""
        from vmlab.guest import serial

        return serial.wait_for(self.domain, pattern, timeout=timeout, **options)
