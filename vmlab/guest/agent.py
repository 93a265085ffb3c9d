r"""Run commands in a guest through its agent, with output as it comes.

The agent (qemu-guest-agent) can start a program and say later how it ended, but it hands over output only at the end,
keeps at most 16 MiB of it, and libvirt carries at most 4 MiB in one answer. So a small launcher (`LAUNCHER`, plain
POSIX shell: busybox is enough) runs in the guest: it makes a folder of its own, runs the command in its own session
with output going to files there, and waits. Meanwhile the host reads the files as they grow. When the command has
ended with little output, the launcher hands over what there is together with the exit status and removes its folder:
a short command costs two calls of the agent plus the polls that its running time takes.

Files instead of pipes mean that a command may leave a daemon behind without holding up the caller. So that a command
that never stops writing does not fill the guest's memory, its processes are stopped for a moment whenever a file has
`ROTATE` bytes (the launcher looks after that in the guest, where a slow host does not matter); when the host has read
them the files are emptied, and it goes on.
"""

from __future__ import annotations

import base64
import codecs
import contextlib
import io
import os
import shlex
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from vmlab.errors import (
    AgentError,
    AgentTimeout,
    CommandFailed,
    GuestPanicked,
    NoSpace,
    OutputTooLarge,
    Overtaken,
    UsageError,
    VMLabError,
    WaitTimeout,
    WrongState,
)
from vmlab.guest import GuestDomain, GuestEvents, serial
from vmlab.guest.wait import seconds, until
from vmlab.render.shown import Shown

__all__ = ["CommandResult", "OnOutput", "Target", "execute", "script", "stream", "succeed", "wait_for_agent"]

#: Called with the stream (``"stdout"`` or ``"stderr"``) and a piece of text, as output comes.
OnOutput = Callable[[str, str], None]
#: What takes output: a path on the host, a file open for bytes, or a function that is called with each piece.
Target = str | Path | io.RawIOBase | io.BufferedIOBase | Callable[[bytes], object]

#: Bytes asked for in one read. In base64 it must stay well below the 4 MiB that libvirt carries in one answer.
CHUNK = 1 << 18
#: Output up to this many bytes comes with the exit status instead of through file reads.
INLINE = 1 << 16
#: Bytes sent in one message, before base64. libvirt loses its place in a message that does not fit the buffer of the
#: agent's socket (208 KiB) at once, and then the agent waits for the rest for ever (seen with libvirt 11.3: 140 000
#: bytes arrive, 300 000 do not; its safewrite() on a non-blocking socket).
PIECE = 48 << 10
#: A script or an input longer than this is written to a file in the guest first. Both may be in one message, and JSON
#: can make three bytes of one. (Linux limits one variable to 128 KiB.)
TEXT_MAX = INPUT_MAX = 32 << 10
#: Bytes of a stream after which its file in the guest is emptied.
ROTATE = 2 << 20
#: Bytes of each stream that a result keeps; of more, the first and the last half.
KEEP = 16 << 20
#: Seconds to wait for one answer of the agent while a command runs. A software-emulated guest at full load is slow,
#: but an interrupt has to wait for the answer too.
ANSWER = 10
#: Seconds without any answer of a running guest's agent after which a command is given up.
SILENCE = 60
#: Seconds between TERM (or INT) and KILL.
GRACE = 3.0
#: Seconds between the start and the first poll; each later pause is half as long again.
FIRST_PAUSE = 0.008
#: Longest pause between two polls while output comes, and while none comes, in seconds.
PAUSE_BUSY, PAUSE_QUIET = 0.1, 0.3

NO_AGENT = (
    "is there a guest agent in this image? It may still be starting (wait_for_agent). Without one, use keys, "
    "type, the serial line and screenshot"
)
NOT_ALLOWED = (
    "the guest's agent is configured to refuse this (Red Hat family: BLACKLIST_RPC, BLOCK_RPCS or FILTER_RPC_ARGS in "
    "/etc/sysconfig/qemu-ga); allow it there, or use keys, type and the serial line"
)

# Folders that may take the files of a running command: memory first, so that the guest's disk is not touched.
FOLDERS = ("/run", "/dev/shm", "/tmp", "/var/tmp")  # noqa: S108 - in the guest; the names are random and mkdir is atomic

# Sends $signal to the process group of the command whose folder is named $name. With util-linux, su gives a command a
# session of its own, so the group is read from /proc. Without setsid the group would be the agent's own: then only
# the process itself is meant. A stopped process would not act on what is sent, so it is woken too.
SIGNALLER = r"""
for b in @FOLDERS@; do
  [ -d "$b/$name" ] || continue
  n=0 # a command that was started just now has not said its number yet
  while [ ! -s "$b/$name/pid" ] && [ $n -lt 20 ]; do sleep 0.1; n=$((n + 1)); done
  read -r p <"$b/$name/pid" || exit 1
  group() { read -r x <"/proc/$1/stat" && x=${x##*) } && set -- $x && echo "$3"; } 2>/dev/null
  g=$(group "$p")
  if [ "${g:-$p}" = "$(group $$)" ]; then p="$p"; else p="-${g:-$p}"; fi
  kill "-$signal" "$p"
  case $signal in STOP | KILL) ;; *) kill -CONT "$p" ;; esac
  exit 0
done
exit 1
""".replace("@FOLDERS@", " ".join(FOLDERS))

# The folder may be mounted noexec (Debian's /run is), so the script is an argument of its interpreter.
# It is run by LAUNCH, and what it needs comes in its environment: so neither it nor the script is in the list of
# processes, where pgrep -f and pkill -f in a script would find them. vmlab_name: the folder's name; vmlab_run:
# interpreter and its arguments (quoted); vmlab_user; vmlab_script: the text, or empty when the file is there already.
# The command is *not* put in the background: shells make background commands ignore interrupts.
# The first line that it writes says where the files are, how long they are, and whether they follow (1) or stay (0).
LAUNCH = 'eval "$vmlab_launcher"'
LAUNCHER = r"""
umask 077
for b in @FOLDERS@; do
  if [ -d "$b/$vmlab_name" ] || mkdir "$b/$vmlab_name" 2>/dev/null; then d=$b/$vmlab_name; break; fi
done
[ -n "$d" ] || { echo "no folder to write to (tried @FOLDERS@)" >&2; exit 125; }
[ -z "$vmlab_script" ] || printf '%s\n' "$vmlab_script" >"$d/script" || exit 125
: >"$d/out" && : >"$d/err" || exit 125
run="echo \$\$ >$d/pid; exec $vmlab_run $d/script"
user=$vmlab_user
unset vmlab_launcher vmlab_name vmlab_run vmlab_script vmlab_user
umask 022
echo 0 >/proc/self/oom_score_adj # the agent may be spared when memory runs out, what it runs must not be
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
[ ! -d /run/current-system/sw/bin ] || PATH=/run/current-system/sw/bin:$PATH
HOME=/root
[ -d /root ] || HOME=/
[ ! -r /etc/default/locale ] || . /etc/default/locale
[ ! -r /etc/locale.conf ] || . /etc/locale.conf
USER=root LOGNAME=root TERM=dumb SHELL=/bin/sh LANG=${LANG:-C.UTF-8}
export PATH HOME USER LOGNAME TERM SHELL LANG
[ ! -e "$d/in" ] || exec <"$d/in"
s=setsid su=su
command -v setsid >/dev/null || s=
command -v su >/dev/null || su="busybox su"
big() {
  set -- $(stat -c %s "$d/out" "$d/err" 2>/dev/null)
  [ ${1:-0} -ge @ROTATE@ ] || [ ${2:-0} -ge @ROTATE@ ]
}
guard() {
  t=0.05
  while sleep $t; do
    if big; then
      (name=${d##*/} signal=STOP; @SIGNALLER@)
      while big; do sleep 0.05; done
      (name=${d##*/} signal=CONT; @SIGNALLER@)
      t=0.05
    elif [ $t = 0.05 ]; then t=0.1
    else t=0.3
    fi
  done
}
{
  guard </dev/null >/dev/null & # away from the agent's pipe, which a last sleep would keep open
  g=$!
  if [ -n "$user" ]; then
    run='cd "$HOME" 2>/dev/null || cd /; '$run # not a login shell: what /etc/profile prints is not the command's output
    chown -R "$user" "$d" 2>>"$d/err" && cd / && $s $su -s /bin/sh "$user" -c "$run" >>"$d/out" 2>>"$d/err"
  else
    cd "$HOME"
    $s /bin/sh -c "$run" >>"$d/out" 2>>"$d/err"
  fi
  s=$?
  kill $g
  wait $g
} 2>/dev/null # what a shell says when a child dies of a signal must not mix with the command's errors
set -- $(wc -c <"$d/out") $(wc -c <"$d/err")
if [ $(($1 + $2)) -le @INLINE@ ]; then
  echo "$d $1 $2 1"
  [ "$1" = 0 ] || cat "$d/out"
  [ "$2" = 0 ] || cat "$d/err" >&2
  rm -rf "$d"
else
  echo "$d $1 $2 0"
fi
exit $s
"""
for _name, _value in {
    "SIGNALLER": SIGNALLER,
    "FOLDERS": " ".join(FOLDERS),
    "INLINE": str(INLINE),
    "ROTATE": str(ROTATE),
}.items():
    LAUNCHER = LAUNCHER.replace(f"@{_name}@", _value)


@dataclass(frozen=True)
class CommandResult(Shown):
    """What a command in a guest did.

    Attributes
    ----------
    machine
        The machine's name.
    command
        The command line, or the first line of the script.
    status
        The exit status: 0 for success, 128 + n when signal n ended it.
    stdout, stderr
        What it wrote, decoded as UTF-8 (bytes that are not are replaced).
    elapsed
        Seconds from the call to the result.
    truncated
        Bytes of output that were not kept because there were too many; a notice stands in their place. What must have
        all of it asks :meth:`check`, or has it written to a file (``to=``).
    calls
        Calls of the guest agent that it took.
    """

    machine: str
    command: str
    status: int
    stdout: str
    stderr: str
    elapsed: float
    truncated: int = 0
    calls: int = field(default=0, compare=False)
    _bytes: tuple[bytes, bytes] | None = field(default=None, repr=False, compare=False)

    @property
    def stdout_bytes(self) -> bytes:
        """What it wrote on standard output, byte for byte; raises `OutputTooLarge` if not all of it was kept."""
        kept = self.whole()._bytes
        return kept[0] if kept else self.stdout.encode()

    @property
    def stderr_bytes(self) -> bytes:
        """What it wrote on standard error, byte for byte; raises `OutputTooLarge` if not all of it was kept."""
        kept = self.whole()._bytes
        return kept[1] if kept else self.stderr.encode()

    @property
    def ok(self) -> bool:
        """Whether the exit status is 0."""
        return self.status == 0

    def whole(self) -> CommandResult:
        """Return self, or raise `OutputTooLarge` when not all of its output was kept."""
        if self.truncated:
            raise OutputTooLarge(
                f"'{self.command}' on {self.machine} wrote more than is kept: "
                f"{self.truncated} bytes in the middle are left out.",
                hint="have it written to a file: machine.execute(..., to=FILE), `%vm exec --to FILE`; "
                "or take it piece by piece: machine.stream(...)",
                machine=self.machine,
                stdout=self.stdout,
                stderr=self.stderr,
                elapsed=round(self.elapsed, 3),
            )
        return self

    def check(self) -> CommandResult:
        """Return self, or raise: `CommandFailed` for an exit status other than 0, `OutputTooLarge` for cut output."""
        if self.status != 0:
            raise CommandFailed(
                f"'{self.command}' on {self.machine} failed with exit status {self.status}{_meaning(self.status)}.",
                machine=self.machine,
                exit_status=self.status,
                stdout=self.stdout,
                stderr=self.stderr,
                elapsed=round(self.elapsed, 3),
            )
        return self.whole()

    def to_json(self) -> dict[str, Any]:
        """Return the attributes as a dictionary of plain values."""
        return {
            "machine": self.machine,
            "command": self.command,
            "status": self.status,
            "stdout": self.stdout,
            "stderr": self.stderr,
            "elapsed": round(self.elapsed, 3),
            "truncated": self.truncated,
        }

    def __str__(self) -> str:
        parts = [self.stdout.rstrip("\n"), self.stderr.rstrip("\n")]
        if self.status != 0:
            parts.append(f"[exit status {self.status}{_meaning(self.status)}]")
        return "\n".join(part for part in parts if part)


def _meaning(status: int) -> str:
    """Return what an exit status usually means, or nothing."""
    if status in (126, 127):
        return " (not executable)" if status == 126 else " (command or interpreter not found)"
    if 128 < status < 160:
        names = {
            1: "HUP",
            2: "INT",
            3: "QUIT",
            6: "ABRT",
            8: "FPE",
            9: "KILL",
            11: "SEGV",
            13: "PIPE",
            15: "TERM",
        }
        return f" (ended by signal {names.get(status - 128, status - 128)})"
    return ""


class _Stream:
    """One output stream of a running command: what was read of it, within bounds.

    Parameters
    ----------
    name
        ``stdout`` or ``stderr``.
    on_output
        Called with the name and text as it comes.
    keep
        Bytes to keep; of more, the first and the last half.
    take
        Takes all bytes instead; nothing of them is kept or shown.
    """

    def __init__(
        self,
        name: str,
        on_output: OnOutput | None,
        keep: int | None = None,
        take: Callable[[bytes], object] | None = None,
    ) -> None:
        self.name = name
        self.offset = 0  # bytes read of the file as it is now
        self.total = 0
        self.dropped = 0
        self.handle: int | None = None
        self._half = max(1, (KEEP if keep is None else keep) // 2)
        self._head, self._tail = bytearray(), bytearray()
        self._take = take
        self._on_output = on_output
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes, *, final: bool = False) -> None:
        """Take the next bytes; a character split between two reads waits for its other half to be shown."""
        self.offset += len(data)
        self.total += len(data)
        if self._take is not None:
            if data:
                self._take(data)
            return
        if self._on_output is not None and (text := self._decoder.decode(data, final)):
            self._on_output(self.name, text)
        room = self._half - len(self._head)
        self._head += data[:room]
        self._tail += data[room:]
        # Not at each piece: what lies behind is moved each time.
        if len(self._tail) > 2 * self._half:
            self._trim()

    def ignore(self) -> None:
        """Take nothing more: what took it cannot."""
        self._take = lambda _: None

    def _trim(self) -> None:
        over = max(0, len(self._tail) - self._half)
        self.dropped += over
        del self._tail[:over]

    @property
    def data(self) -> bytes:
        """All that was kept."""
        self._trim()
        return bytes(self._head + self._tail)

    @property
    def text(self) -> str:
        """All that was kept, with a notice where something was left out."""
        self._trim()
        if not self.dropped:
            return (self._head + self._tail).decode(errors="replace")
        notice = f"\n[... {self.dropped} bytes not kept ...]\n"
        return self._head.decode(errors="replace") + notice + self._tail.decode(errors="replace")


class _Running:
    """A command that was started in the guest."""

    def __init__(
        self,
        domain: GuestDomain,
        title: str,
        on_output: OnOutput | None,
        events: GuestEvents,
        take: Callable[[bytes], object] | None = None,
    ) -> None:
        self.domain = domain
        self.title = title
        self._events = events
        self._qemu = domain.pid
        self._agent_there = True
        self._powered_off = False
        #: Nothing of it is in the guest any more, and nobody there to ask.
        self._over = False
        self.token = "vmlab." + os.urandom(8).hex()
        self.out = _Stream("stdout", on_output, take=take)
        self.err = _Stream("stderr", on_output)
        self.begin = time.monotonic()
        self.calls = 0
        self.folder: str | None = None
        self.pid: int | None = None
        self.status: int | None = None
        self._heard = self.begin

    # -- calls of the agent

    def call(self, execute: str, timeout: int = ANSWER, **arguments: Any) -> Any:
        self.calls += 1
        return self.domain.agent(execute, timeout=timeout, **arguments)

    def start(self, interpreter: str, text: str, user: str | None, data: bytes | None) -> None:
        """Start the command; nothing of it runs when this fails."""
        folder = None
        if len(text.encode()) > TEXT_MAX:
            folder = self._folder()
            self._write(f"{folder}/script", text.encode() + b"\n")
            text = ""
        if data is not None and len(data) > INPUT_MAX:
            folder = folder or self._folder()
            self._write(f"{folder}/in", data)
            data = None
        arguments: dict[str, Any] = {"path": "/bin/sh", "capture_output": True}
        arguments["arg"] = ["-c", LAUNCH, "vmlab"]
        arguments["env"] = [
            f"vmlab_launcher={LAUNCHER}",
            f"vmlab_name={self.token}",
            f"vmlab_run={interpreter}",
            f"vmlab_script={text}",
            f"vmlab_user={user or ''}",
        ]
        if data is not None:
            arguments["input_data"] = base64.b64encode(data).decode()
        self._heard = time.monotonic()
        self.pid = int(self.call("guest-exec", **arguments)["pid"])
        # The guest that answered is none that has been reset before, nor one that was replaced before it took this.
        self._qemu = self.domain.pid
        while self._events.next(0) is not None:
            pass

    def _folder(self) -> str:
        """Make the command's folder before its launcher does, for files too big to be sent along."""
        make = (
            f'umask 077; for b in {" ".join(FOLDERS)}; do d="$b/{self.token}"; '
            'mkdir "$d" 2>/dev/null && echo "$d" && break; done'
        )
        folder = self._small(make).strip()
        if not folder:
            raise AgentError(
                f"There is no folder to write to in {self.domain.name}.", tried=" ".join(FOLDERS)
            )
        self.folder = folder
        return folder

    def _small(self, text: str, *args: str) -> str:
        """Run a few lines of shell of our own and return what they wrote."""
        pid = self.call("guest-exec", path="/bin/sh", arg=["-c", text, "vmlab", *args], capture_output=True)[
            "pid"
        ]
        pause = 0.005
        while True:
            answer = self.call("guest-exec-status", pid=pid)
            if answer["exited"]:
                return base64.b64decode(answer.get("out-data", "")).decode(errors="replace")
            time.sleep(pause)
            pause = min(pause * 2, PAUSE_BUSY)

    def _write(self, path: str, data: bytes) -> None:
        handle = self.call("guest-file-open", path=path, mode="w")
        try:
            for at in range(0, len(data), PIECE):
                piece = data[at : at + PIECE]
                wrote = 0
                while wrote < len(piece):
                    rest = base64.b64encode(piece[wrote:]).decode()
                    wrote += int(self.call("guest-file-write", handle=handle, buf_b64=rest)["count"])
        finally:
            self.call("guest-file-close", handle=handle)

    def signal(self, name: str) -> None:
        """Send a signal to the command's processes; that they are gone already is no error."""
        with contextlib.suppress(AgentError, WrongState):
            self._small(f"name={self.token} signal={name}\n{SIGNALLER}")

    # -- following it

    def poll(self) -> bool:
        """Ask whether the command has ended, and take the last output when it has."""
        answer = self.call("guest-exec-status", pid=self.pid)
        self._heard = time.monotonic()
        if not answer["exited"]:
            return False
        data = base64.b64decode(answer.get("out-data", ""))
        errors = base64.b64decode(answer.get("err-data", ""))
        header, _, rest = data.partition(b"\n")
        words = header.decode(errors="replace").split()
        if len(words) != 4:
            # Not to be asked for again: the agent has forgotten it now.
            reason = errors.decode(errors="replace").strip() or f"signal {answer.get('signal', 'unknown')}"
            raise AgentError(
                f"The command could not be run on {self.domain.name}: {reason.splitlines()[-1]}.",
                launcher=reason,
            )
        self.folder = words[0]
        if words[3] == "1":
            self.out.feed(rest[self.out.offset :])
            self.err.feed(errors[self.err.offset :])
            self.folder = None  # the launcher has removed it
        else:
            self.read_all()
        self.out.feed(b"", final=True)
        self.err.feed(b"", final=True)
        self.status = int(answer.get("exitcode", 128 + int(answer.get("signal", 0))))
        return True

    def read(self, stream: _Stream) -> int:
        """Take what there is of a stream, at most one chunk; return how many bytes."""
        if stream.handle is None:
            stream.handle = self._open(stream)
            if stream.handle is None:
                return 0
        answer = self.call("guest-file-read", handle=stream.handle, count=CHUNK)
        self._heard = time.monotonic()
        data = base64.b64decode(answer.get("buf-b64", ""))
        stream.feed(data)
        return len(data)

    def _open(self, stream: _Stream) -> int | None:
        name = "out" if stream.name == "stdout" else "err"
        for base in [self.folder] if self.folder else [f"{b}/{self.token}" for b in FOLDERS]:
            try:
                handle = int(self.call("guest-file-open", path=f"{base}/{name}", mode="r"))
            except AgentTimeout:
                raise
            except AgentError:
                continue  # not made yet, or gone because the command has just ended
            self.folder = base
            return handle
        return None

    def read_all(self) -> int:
        """Take all that there is of both streams; return how many bytes."""
        total = 0
        for stream in (self.out, self.err):
            while size := self.read(stream):
                total += size
        return total

    def read_some(self) -> int:
        """Take what there is, emptying the files in the guest when much has been read."""
        size = self.read(self.out) + self.read(self.err)
        if max(self.out.offset, self.err.offset) >= ROTATE:
            # Nothing may be written between the last read and the emptying, so its processes stand still meanwhile.
            self.signal("STOP")
            empty = ":"
            try:
                size += self.read_all()
                for stream in (self.out, self.err):
                    if stream.handle is not None:
                        self.call("guest-file-seek", handle=stream.handle, offset=0, whence="set")
                    stream.offset = 0
                empty = f": >{self.folder}/out; : >{self.folder}/err"
            finally:
                self._small(f"{empty}\nname={self.token} signal=CONT\n{SIGNALLER}")
        return size

    def follow(self, deadline: float | None) -> bool:
        """Follow the command until it ends (True) or the deadline passes (False)."""
        for _ in self.steps(deadline):
            pass
        return self.status is not None

    def steps(self, deadline: float | None) -> Iterator[None]:
        """Follow the command until it ends or the deadline passes; yield after each look at it."""
        pause, quiet = FIRST_PAUSE, 0
        streaming = False
        time.sleep(pause)  # the launcher alone takes as long
        while True:
            self._listen()
            try:
                if not self._agent_there:
                    raise AgentTimeout(f"The guest agent of {self.domain.name} has ended.")
                if self.poll():
                    return
                # Opening the files costs two calls: only for a command that turns out not to be short.
                streaming = streaming or time.monotonic() - self.begin > 0.15
                size = self.read_some() if streaming else 0
            except (AgentError, WrongState) as error:
                self._silent(error)
                size, pause = 0, PAUSE_BUSY
            yield
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                return
            if size >= CHUNK:
                continue
            quiet = 0 if size else quiet + 1
            limit = PAUSE_BUSY if quiet < 20 else PAUSE_QUIET
            pause = min(pause * 1.5, limit)
            time.sleep(pause if deadline is None else max(0.0, min(pause, deadline - now)))

    def _listen(self) -> None:
        """Take what QEMU has told: whether the agent has its line open, and whether the guest has begun anew.

        A guest that goes down ends its agent first: without the line open it is not asked, only listened to.

        Raises
        ------
        Overtaken
            The guest has rebooted, or is off.
        """
        while (event := self._events.next(0)) is not None:
            if event.name == "RESET":
                self._over = True
                how = "rebooted" if event.data.get("guest") else "was reset"
                raise Overtaken(
                    f"{self.domain.name} {how} while '{self.title}' ran.",
                    hint=f"it is starting again; `%vm wait {self.domain.name}` waits until commands can be run",
                    **self.evidence(),
                )
            if event.name == "VSERPORT_CHANGE":
                self._agent_there = bool(event.data.get("open"))
            elif event.name == "SHUTDOWN":
                self._powered_off = self._powered_off or bool(event.data.get("guest"))
                if (state := self.domain.state()) == "off":
                    self._lost(None, state)
        if (pid := self.domain.pid) is not None and pid != self._qemu:
            self._lost(None, self.domain.state())

    def _silent(self, error: AgentError | WrongState) -> None:
        """Decide about an agent that did not answer, or not with what was asked.

        A paused guest is waited for; a slow one for a while; an answer lost on the way (libvirtd restarted) is
        asked for again. A command that the agent does not know any more, or a machine that is off, is the end.
        """
        state = self.domain.state()
        gone = isinstance(error, Overtaken) or "PID" in str(error)
        if gone or state not in ("running", "paused", "asleep"):
            self._listen()
            self._lost(error, state)
        silence = time.monotonic() - self._heard
        if state == "running" and silence > (SILENCE if isinstance(error, AgentTimeout) else ANSWER):
            raise AgentTimeout(
                f"The guest agent of {self.domain.name} stopped answering while '{self.title}' ran.",
                hint="the guest may be overloaded or its agent stuck; look at its screen, or revert"
                if self._agent_there
                else "its agent has ended, and the guest has neither restarted nor powered off; look at its screen",
                silent_for=seconds(silence),
                agent_says=error.message,
                **self.evidence(),
            ) from error

    def _lost(self, error: AgentError | WrongState | None, state: str) -> NoReturn:
        """Raise the plain error for a command that cannot be followed any more."""
        name = self.domain.name
        self._over = True
        if what := self.domain.overtaken():
            raise Overtaken(
                f"{name} {what} while '{self.title}' ran.", hint="run it again", **self.evidence()
            ) from error
        if state == "crashed":
            raise GuestPanicked(
                f"The kernel of {name} panicked while '{self.title}' ran.",
                hint=f"go back with `%vm revert {name}`",
                **self.evidence(),
            ) from error
        if state not in ("running", "paused", "asleep"):
            how = "powered off" if self._powered_off else "was stopped"
            raise Overtaken(
                f"{name} {how} while '{self.title}' ran.",
                hint=f"start it with `%vm start {name}`",
                **self.evidence(),
            ) from error
        raise Overtaken(
            f"'{self.title}' can no longer be followed: {name} was reverted, or its agent restarted, while it ran.",
            hint="run it again",
            agent_says=error.message if error else None,
            **self.evidence(),
        ) from error

    def evidence(self) -> dict[str, Any]:
        return {
            "machine": self.domain.name,
            "stdout": self.out.text,
            "stderr": self.err.text,
            "elapsed": round(time.monotonic() - self.begin, 3),
        }

    def end(self, first: str) -> None:
        """End the command: signal ``first``, a short wait, then KILL; take its last output."""
        for name in (first, "KILL"):
            self.signal(name)
            with contextlib.suppress(AgentError, WrongState, GuestPanicked):
                if self.pid is None or self.follow(time.monotonic() + GRACE):
                    return

    def clean(self) -> None:
        """Close what is open in the guest and remove the files of the command."""
        if self._over:
            return
        with contextlib.suppress(AgentError, WrongState):
            for stream in (self.out, self.err):
                if stream.handle is not None:
                    handle, stream.handle = stream.handle, None
                    self.call("guest-file-close", handle=handle)
            if self.folder is not None:
                # Not waited for: nobody depends on it.
                self.call("guest-exec", path="/bin/sh", arg=["-c", f"rm -rf {self.folder}"])


def _interpreter(text: str) -> str:
    r"""Return the quoted interpreter and arguments for a script, from its first line.

    As the kernel does it, but ``/usr/bin/env NAME`` is looked up by PATH directly (small guests have no ``env``
    there), and what follows NAME is split into words.

    >>> _interpreter("#!/usr/bin/python3 -u\nprint(1)")
    '/usr/bin/python3 -u'
    >>> _interpreter("echo hello")
    '/bin/sh -e'
    """
    if not text.startswith("#!"):
        return "/bin/sh -e"
    line = text[2:].splitlines()[0].strip() if len(text) > 2 else ""
    words = line.split(maxsplit=1)
    if not words:
        raise UsageError(
            "The first line of the script is '#!' without an interpreter.", hint="for example #!/bin/sh"
        )
    if words[0].endswith("/env") and len(words) == 2:
        rest = words[1]
        parts = shlex.split(rest.removeprefix("-S"))
        plain = bool(parts) and not parts[0].startswith("-") and "=" not in parts[0]
        return shlex.join(parts if plain else [words[0], *parts])
    return " ".join(shlex.quote(word.strip()) for word in words)


def _title(text: str) -> str:
    """Return the first line that says something, shortened, for messages."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#!")]
    first = lines[0] if lines else "(empty script)"
    return first if len(first) <= 60 else first[:57] + "..."


def _run(work: Generator[None, None, CommandResult]) -> CommandResult:
    """Let a command come to its end."""
    try:
        while True:
            next(work)
    except StopIteration as end:
        result: CommandResult = end.value
        return result
    finally:
        work.close()


@contextlib.contextmanager
def _taker(to: Target | None) -> Iterator[Callable[[bytes], object] | None]:
    """Give what takes the output for a target."""
    if to is None or callable(to):
        yield to
    elif isinstance(to, str | Path):
        path = Path(to).expanduser()
        try:
            # Without a buffer: what cannot be written is known at once.
            file = path.open("wb", buffering=0)
        except OSError as error:
            raise UsageError(f"'{path}' cannot be written: {error.strerror}.") from error

        with file:
            yield _writer(file)
    else:
        yield _writer(to)


def _writer(file: io.RawIOBase | io.BufferedIOBase) -> Callable[[bytes], object]:
    def write(data: bytes) -> None:
        left = memoryview(data)
        while left:
            # A file without a buffer takes what it can.
            left = left[file.write(left) or 0 :]

    return write


def _working(
    domain: GuestDomain,
    interpreter: str,
    text: str,
    *,
    timeout: float | None,
    input: str | bytes | None,
    on_output: OnOutput | None,
    user: str | None,
    env: Mapping[str, str] | None,
    title: str,
    to: Target | None,
) -> Generator[None, None, CommandResult]:
    """Run a command; yield after each look at it. Closed before its end, the command is ended."""
    if "\0" in text:
        raise UsageError("A script cannot contain a NUL character.")
    if user is not None and (not user or user.startswith("-") or any(c in user for c in " \t\n:/'\"$`\\;|&")):
        raise UsageError(f"'{user}' cannot be the name of a user.")
    if env:
        for key in env:
            if not key.isidentifier():
                raise UsageError(f"'{key}' cannot be the name of an environment variable.")
        interpreter = (
            "env " + " ".join(f"{key}={shlex.quote(value)}" for key, value in env.items()) + " " + interpreter
        )
    data = input.encode() if isinstance(input, str) else input
    with domain.events() as events, _taker(to) as take:
        run = _Running(domain, title, on_output, events, take)
        try:
            try:
                run.start(interpreter, text, user, data)
            except AgentTimeout as error:
                raise AgentTimeout(
                    f"The guest agent of {domain.name} does not answer.", hint=NO_AGENT, machine=domain.name
                ) from error
            except AgentError as error:
                raise refused(domain, error, "run commands") from error
            # A boot that was waited for is none of the command's time.
            run.begin = time.monotonic()
            yield from run.steps(None if timeout is None else run.begin + timeout)
            if run.status is None:
                run.end("TERM")
                raise WaitTimeout(
                    f"'{title}' on {domain.name} did not end within {seconds(timeout or 0)} and was killed.",
                    hint="give it a longer time: `timeout=`",
                    **run.evidence(),
                )
        except VMLabError:
            raise
        except OSError as error:
            run.out.ignore()
            run.end("TERM")
            raise NoSpace(
                f"The output of '{title}' on {domain.name} cannot be written: {error.strerror or error}; "
                "the command was ended.",
                hint="free some space on this host",
            ) from error
        except BaseException as error:
            # An interrupt belongs to the command in the guest first. A second one, while that ends, comes through at
            # once. Nor does it go on when nobody takes its output any more.
            run.end("INT" if isinstance(error, KeyboardInterrupt) else "TERM")
            raise
        finally:
            run.clean()
    out, err = run.out.text, run.err.text
    return CommandResult(
        machine=domain.name,
        command=title,
        status=run.status if run.status is not None else -1,
        stdout=out,
        stderr=err,
        elapsed=time.monotonic() - run.begin,
        truncated=run.out.dropped + run.err.dropped,
        calls=run.calls,
        _bytes=(run.out.data, run.err.data),
    )


def refused(domain: GuestDomain, error: AgentError, what: str) -> AgentError:
    """Return the plain error for an agent that refuses to do ``what``; errors of other kinds come back as they are."""
    text = str(error)
    if "disabled" in text or "not been found" in text or "not allowed" in text:
        return AgentError(
            f"The guest agent of {domain.name} may not {what}.", hint=NOT_ALLOWED, agent_says=error.message
        )
    if "/bin/sh" in text:
        return AgentError(
            f"{domain.name} has no /bin/sh, so commands cannot be run in it.",
            hint="use keys, type and the serial line",
            agent_says=error.message,
        )
    return error


def execute(
    domain: GuestDomain,
    command: str | Sequence[str],
    *,
    timeout: float | None = 60,
    input: str | bytes | None = None,
    on_output: OnOutput | None = None,
    user: str | None = None,
    env: Mapping[str, str] | None = None,
    to: Target | None = None,
) -> CommandResult:
    """Run a command in the guest and return how it went, whatever its exit status.

    It runs as root (or ``user``) with the PATH of a login, in the home folder, without a terminal, in a session of
    its own. Processes that it leaves in the background go on, and do not hold up the call.

    Parameters
    ----------
    domain
        The guest.
    command
        A command line for ``/bin/sh``, or a program and its arguments, which no shell looks at.
    timeout
        Seconds after which the command and its children are ended (TERM, then KILL); None for no limit.
    input
        What the command reads on its standard input; nothing by default.
    on_output
        Called with ``"stdout"`` or ``"stderr"`` and text as output comes. Within a stream the order is kept; between
        the two it is the order of the polls, every tenth of a second or so.
    user
        Run as this user, in their home folder. Their login shell's profile is not read.
    env
        More environment variables.
    to
        A path on the host, or a file open for bytes: takes what the command writes on its standard output, byte for
        byte, however much that is. ``stdout`` of the result is empty then.

    Raises
    ------
    AgentTimeout
        The agent does not answer.
    AgentError
        It may not run commands.
    Overtaken
        The guest rebooted or powered off, or the machine was stopped or reverted, before the command had ended.
    WaitTimeout
        The time was up; carries ``stdout``, ``stderr`` and ``elapsed``.
    KeyboardInterrupt
        Passed on after the command got an INT, and three seconds later a KILL if it was still there.
    """
    return _run(
        _command(
            domain, command, timeout=timeout, input=input, on_output=on_output, user=user, env=env, to=to
        )
    )


def _command(
    domain: GuestDomain, command: str | Sequence[str], **options: Any
) -> Generator[None, None, CommandResult]:
    line = command if isinstance(command, str) else shlex.join(command)
    text = line if isinstance(command, str) else "exec " + line
    return _working(domain, "/bin/sh", text, title=_title(line), **options)


def stream(
    domain: GuestDomain,
    command: str | Sequence[str],
    *,
    timeout: float | None = None,
    input: str | bytes | None = None,
    user: str | None = None,
    env: Mapping[str, str] | None = None,
) -> Generator[bytes, None, None]:
    """Run a command in the guest and give what it writes on standard output, piece by piece, however much it is.

    It begins when the first piece is asked for, waits in the guest when nobody asks for more, and is ended when the
    iterator is closed. Parameters and errors are those of `execute`; by default there is no time limit.

    Raises
    ------
    CommandFailed
        It ended with another exit status than 0; told after the last piece.
    """
    pieces: list[bytes] = []
    work = _command(
        domain,
        command,
        timeout=timeout,
        input=input,
        on_output=None,
        user=user,
        env=env,
        to=pieces.append,
    )
    try:
        while True:
            try:
                next(work)
            except StopIteration as end:
                yield from pieces
                end.value.check()
                return
            yield from pieces
            pieces.clear()
    finally:
        work.close()


def script(
    domain: GuestDomain,
    text: str,
    *,
    timeout: float | None = None,
    input: str | bytes | None = None,
    on_output: OnOutput | None = None,
    user: str | None = None,
    env: Mapping[str, str] | None = None,
    to: Target | None = None,
) -> CommandResult:
    r"""Run a script in the guest and return how it went, whatever its exit status.

    The first line may name any interpreter that is in the guest (``#!/usr/bin/python3``, ``#!/usr/bin/env perl``).
    Without one it is run by ``/bin/sh -e``: it stops at the first command that fails. Parameters and errors are those
    of `execute`; by default there is no time limit.

    Examples
    --------
    >>> script(domain, "echo $((6 * 7))").stdout
    '42\n'
    """
    return _run(
        _working(
            domain,
            _interpreter(text),
            text,
            timeout=timeout,
            input=input,
            on_output=on_output,
            user=user,
            env=env,
            title=_title(text),
            to=to,
        )
    )


def succeed(domain: GuestDomain, *commands: str | Sequence[str], timeout: float | None = 60) -> str:
    """Run commands one after the other and return what they wrote on standard output.

    Raises
    ------
    CommandFailed
        At the first one with another exit status than 0.
    OutputTooLarge
        One of them wrote more than is kept.
    """
    return "".join(execute(domain, command, timeout=timeout).check().stdout for command in commands)


def wait_for_agent(domain: GuestDomain, timeout: float | None = 300) -> None:
    """Wait until the guest agent answers.

    Raises
    ------
    AgentTimeout
        It did not within ``timeout`` seconds.
    WrongState
        The machine is not running, so it never will.
    GuestPanicked
        Its kernel panicked.
    """

    def answers() -> bool:
        state, said = domain.state(), serial.panic(domain)
        if state == "crashed" or said:
            raise GuestPanicked(
                f"The kernel of {domain.name} panicked.",
                hint=f"go back with `%vm revert {domain.name}`, or boot it anew with `%vm start {domain.name}`",
                panic=said,
            )
        if state not in ("running", "paused", "asleep"):
            raise WrongState(
                f"{domain.name} is {state}; its agent cannot answer.",
                hint=f"start it with `%vm start {domain.name}`",
            )
        try:
            domain.agent("guest-ping", timeout=2)
        except WrongState as error:  # paused, or it went off just now
            raise AgentError(error.message) from error
        return True

    try:
        until(
            answers,
            timeout,
            f"the guest agent of {domain.name}",
            0.5,
            retry_on=AgentError,
            machine=domain.name,
        )
    except WaitTimeout as error:
        state = domain.state()
        raise AgentTimeout(
            f"The guest agent of {domain.name} did not answer within {seconds(timeout or 0)}.",
            hint=f"let it go on with `%vm resume {domain.name}`" if state == "paused" else NO_AGENT,
            **error.evidence,
        ) from error
