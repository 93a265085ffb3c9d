"""Several states in a row: what one file, process or register was in each. Made by :meth:`vmlab.Lab.timeline`."""

from __future__ import annotations

import datetime as dt
import difflib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmlab.diff import Diff, Side
from vmlab.errors import DiskUnreadable, HostError, NotFound, UsageError, VMLabError
from vmlab.render.shown import Shown
from vmlab.store.store import size_text

if TYPE_CHECKING:
    import pandas as pd

    from vmlab.compare.files import FileState
    from vmlab.lab import Lab
    from vmlab.machine import Machine
    from vmlab.snapshot import Snapshot


@dataclass(frozen=True)
class Moment:
    """One state of a timeline.

    Attributes
    ----------
    title
        Which state.
    created
        When it was caught: ISO 8601, UTC.
    values
        What was found, by column; empty if there is no such thing in it.
    changed
        Whether it is not what it was in the state before.
    detail
        More text: for a file, what differs from the state before as a unified diff.
    trouble
        Why nothing could be found out.
    """

    title: str
    created: str
    values: dict[str, Any] = field(default_factory=dict)
    changed: bool = False
    detail: str = ""
    trouble: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return all of it by name."""
        return dict(vars(self))


@dataclass(frozen=True)
class Timeline(Shown):
    """What something was in several states, one after the other.

    Attributes
    ----------
    subject
        What was looked at: ``/etc/motd``, ``process sshd``, ``register RIP``, ``everything``.
    moments
        One for each state.
    """

    subject: str
    moments: tuple[Moment, ...]

    def __iter__(self) -> Any:
        return iter(self.moments)

    def __len__(self) -> int:
        return len(self.moments)

    def __getitem__(self, number: int) -> Moment:
        return self.moments[number]

    @property
    def columns(self) -> list[str]:
        """The names of what was found, in the order in which they first come."""
        return list(dict.fromkeys(name for moment in self.moments for name in moment.values))

    @property
    def changes(self) -> list[Moment]:
        """The states in which it is not what it was before."""
        return [moment for moment in self.moments if moment.changed]

    @property
    def summary(self) -> str:
        """One line."""
        count = len(self.changes)
        times = {0: "never changes", 1: "changes once"}.get(count, f"changes {count} times")
        where = f": at {', '.join(moment.title for moment in self.changes[:6])}" if count else ""
        return f"{self.subject} {times} in {len(self.moments)} states{where}"

    def to_json(self) -> dict[str, Any]:
        """Return subject, summary and moments."""
        return {
            "subject": self.subject,
            "summary": self.summary,
            "moments": [moment.to_json() for moment in self.moments],
        }

    def to_pandas(self) -> pd.DataFrame:
        """Return one row for each state."""
        try:
            import pandas as pd
        except ImportError:
            raise HostError("pandas is not installed.", hint="`pip install pandas`") from None
        rows = [
            [m.title, m.created, m.changed, *(m.values.get(c) for c in self.columns)] for m in self.moments
        ]
        return pd.DataFrame(rows, columns=["state", "created", "changed", *self.columns], dtype=object)


Look = Callable[[Side], tuple[dict[str, Any], Any]]


def make(
    lab: Lab,
    states: Sequence[Snapshot | Machine],
    *,
    file: str | None = None,
    process: str | None = None,
    register: str | None = None,
    tell: Callable[[str], None] | None = None,
) -> Timeline:
    """Return the timeline of a file, a process or a register; of all layers, if none is named.

    Parameters
    ----------
    file
        A path: size, mode, owner, time and content.
    process
        A part of command lines: how many processes fit, and which.
    register
        A register's name, as in ``RIP``; ``1:RIP`` is that of the second CPU.
    """
    if (file is not None) + (process is not None) + (register is not None) > 1:
        raise UsageError("A timeline is of one thing.", hint="name a file, a process or a register")
    if len(states) < 2:
        raise UsageError("A timeline needs two states or more.", hint="take snapshots first")
    say = tell or (lambda _: None)
    sides = [Side(lab, state) for state in states]
    if file is not None:
        return Timeline(file, _walk(sides, lambda side: _file(side, file), say, _file_detail))
    if process is not None:
        return Timeline(f"process {process}", _walk(sides, lambda side: _process(side, process), say))
    if register is not None:
        return Timeline(f"register {register}", _walk(sides, lambda side: _register(side, register), say))
    return Timeline("everything", _steps(lab, sides, say))


def _walk(
    sides: list[Side],
    look: Look,
    say: Callable[[str], None],
    detail: Callable[[Any, Any, Side, Side], str] | None = None,
) -> tuple[Moment, ...]:
    found: list[Moment] = []
    last: tuple[Side, Any] | None = None
    for side in sides:
        say(side.title)
        try:
            values, key = look(side)
        except VMLabError as error:
            found.append(Moment(side.title, side.record.created, trouble=error.message))
            if len(found) == len(sides) and last is None:
                # It is not the states' fault.
                raise
            continue
        changed = last is not None and last[1] != key
        text = detail(last[1], key, last[0], side) if detail and changed and last is not None else ""
        found.append(Moment(side.title, side.record.created, values, changed, text))
        last = side, key
    return tuple(found)


def _file(side: Side, path: str) -> tuple[dict[str, Any], Any]:
    state = read_file(side, path)
    if state is None:
        return {}, None
    when = dt.datetime.fromtimestamp(state.mtime / 1e9, dt.UTC).isoformat(timespec="seconds")
    values = {
        "type": state.type,
        "size": size_text(state.size),
        "mode": f"{state.mode:04o}",
        "owner": f"{state.uid}:{state.gid}",
        "modified": when,
        "sha256": (state.sha256 or "")[:12],
    }
    # Not the time: a file that is written anew with the same content is the same.
    return values, _Content(state, (state.type, state.mode, state.uid, state.gid, state.target, state.sha256))


class _Content:
    """A file whose equality is that of its content and attributes."""

    def __init__(self, state: FileState, key: tuple[Any, ...]) -> None:
        self.state, self.key = state, key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Content) and self.key == other.key

    __hash__ = None  # type: ignore[assignment]


def _file_detail(old: _Content | None, new: _Content | None, before: Side, after: Side) -> str:
    from vmlab.compare.files import TEXT_LIMIT

    texts = [b"" if side is None else side.state.read(TEXT_LIMIT + 1) for side in (old, new)]
    if any(b"\0" in data or len(data) > TEXT_LIMIT for data in texts):
        return ""
    first, second = (data.decode("utf-8", "replace").splitlines() for data in texts)
    return "\n".join(difflib.unified_diff(first, second, before.title, after.title, lineterm="", n=2))


def read_file(side: Side, path: str) -> FileState | None:
    """Return a file as a state has it, page cache included, or None if it has no such path.

    Raises
    ------
    NotFound
        The state has no disk.
    DiskUnreadable
        No file system of it can be read.
    """
    from vmlab.compare.blocks import Disk
    from vmlab.compare.ext4 import Ext4
    from vmlab.compare.files import FileState
    from vmlab.compare.partitions import partitions

    if not side.record.spec.disks:
        raise NotFound(f"{side.title} has no disk.")
    read = False
    for name in side.disks.paths:
        disk = Disk(name)
        for part in partitions(disk):
            if part.kind != "ext":
                continue
            read, volume = True, Ext4(disk, part.start, part.size)
            inode = volume.lookup(path.encode("utf-8", "surrogateescape"))
            if inode is not None:
                return FileState.of(volume, inode)
    if not read:
        raise DiskUnreadable(
            f"{side.title} has no file system that vmlab reads by itself (ext2, ext3, ext4)."
        )
    return None


def _process(side: Side, text: str) -> tuple[dict[str, Any], Any]:
    rows = [row for row in side.inside.tables["processes"].values() if text in str(row["command"])]
    if not rows:
        return {}, None
    values = {
        "count": len(rows),
        "pid": ", ".join(str(row["pid"]) for row in rows[:8]),
        "user": ", ".join(dict.fromkeys(str(row["user"]) for row in rows)),
        "command": "; ".join(dict.fromkeys(str(row["command"]) for row in rows[:4])),
    }
    return values, sorted((row["pid"], row["command"]) for row in rows)


def _register(side: Side, name: str) -> tuple[dict[str, Any], Any]:
    from vmlab.compare.registers import read_registers

    cpus = read_registers(side.state)
    number, colon, rest = name.partition(":")
    cpu = int(number) if colon and number.isdigit() else 0
    wanted = rest if colon else name
    if cpu >= len(cpus):
        raise NotFound(f"{side.title} has no CPU {cpu}.")
    by_name = {known.lower(): register for known, register in cpus[cpu].items()}
    register = by_name.get(wanted.lower())
    if register is None:
        raise NotFound.named(f"register of {side.title}", wanted, cpus[cpu])
    return {register.name: str(register)}, register.value


def _steps(lab: Lab, sides: list[Side], say: Callable[[str], None]) -> tuple[Moment, ...]:
    """Compare each state with the one before, all usual layers."""
    found = [Moment(sides[0].title, sides[0].record.created)]
    for before, after in itertools.pairwise(sides):
        say(after.title)
        diff = Diff(lab, before, after).compare()
        values = {
            name: part.why if part.outcome == "failed" else part.summary
            for name, part in diff.parts.items()
            if part.outcome != "absent"
        }
        found.append(Moment(after.title, after.record.created, values, not diff.same))
    return tuple(found)
