"""Several states in a row: what one file, process or register was in each. Made by :meth:`vmlab.Lab.timeline`."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmlab.errors import DiskUnreadable, HostError, NotFound, UsageError, VMLabError
from vmlab.machines.history import visible
from vmlab.render import units
from vmlab.render.shown import Shown, view_of
from vmlab.store.store import Store
from vmlab.study.diff import Diff
from vmlab.study.side import Side
from vmlab.study.which import Place, stands_on

if TYPE_CHECKING:
    import pandas as pd

    from vmlab.compare.filestate import FileState


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
    since
        The title of the state before: in a tree that from which it came, not always the one in the row above. Empty if
        there is none.
    """

    title: str
    created: str
    values: dict[str, Any] = field(default_factory=dict)
    changed: bool = False
    detail: str = ""
    trouble: str = ""
    since: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return all of it by name."""
        return dict(vars(self))


@dataclass(frozen=True)
class Timeline(Shown):
    """What something was in several states, each compared with the one before it.

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

    def to_html(self, path: str | Path) -> Path:
        """Write it as one HTML file that needs nothing else, and return its path."""
        target = Path(path)
        target.write_text(view_of(self).document(), encoding="utf-8")
        return target

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
#: What differs between what was found in two states.
Detail = Callable[[Any, Any, Side, Side], str]


def make(
    store: Store,
    states: Sequence[Place],
    *,
    file: str | None = None,
    process: str | None = None,
    register: str | None = None,
    parts: Sequence[str] = (),
    tell: Callable[[str], None] | None = None,
) -> Timeline:
    """Return the timeline of a file, a process or a register; of parts, if none is named.

    Parameters
    ----------
    states
        Each is compared with the one in front of it; all snapshots of a machine and its present, each with that from
        which it came. Where several came from what the tree starts from, that is put in front.
    file
        A path: size, mode, owner, time and content.
    process
        A part of command lines: how many processes fit, and which.
    register
        A register's name, as in ``RIP``; ``1:RIP`` is that of the second CPU.
    parts
        Which parts are compared; the usual ones, if none is named.
    """
    if (file is not None) + (process is not None) + (register is not None) > 1:
        raise UsageError("A timeline is of one thing.", hint="name a file, a process or a register")
    if len(states) < 2:
        raise UsageError("A timeline needs two states or more.", hint="take snapshots first")
    say = tell or (lambda _: None)
    places, before = _in_tree(store, states)
    sides = [Side(store, place) for place in places]

    def walk(look: Look, detail: Detail | None = None) -> tuple[Moment, ...]:
        return _walk(sides, before, look, say, detail)

    if file is not None:
        return Timeline(file, walk(lambda side: _file(side, file), _file_detail))
    if process is not None:
        return Timeline(f"process {process}", walk(lambda side: _process(side, process)))
    if register is not None:
        return Timeline(f"register {register}", walk(lambda side: _register(side, register)))
    return Timeline(", ".join(parts) or "everything", _each_with_the_last(store, sides, before, parts, say))


def _in_tree(store: Store, states: Sequence[Place]) -> tuple[list[Place], list[int | None]]:
    """Return the states, and for each the number of that with which it is compared."""
    found = list(states)
    if found[-1].snapshot is not None:
        return found, [None, *range(len(found) - 1)]
    machine = store.machine(found[-1].machine)
    if [place.snapshot for place in found[:-1]] != [s.id for s in store.snapshots_of(machine.uuid)]:
        return found, [None, *range(len(found) - 1)]
    ways = [_way(store, place) for place in found]
    if visible(store, machine.root) is not None and sum(not set(way) & set(found) for way in ways) > 1:
        found, ways = [Place(machine.root), *found], [[], *ways]
    return found, [next((found.index(s) for s in way if s in found), None) for way in ways]


def _way(store: Store, place: Place) -> list[Place]:
    """Return from what a state came, the nearest first."""
    found: list[Place] = []
    if place.snapshot is None:
        at = stands_on(store, store.machine(place.machine))
    else:
        at = store.label(place.snapshot).parent
    while visible(store, at) is not None and Place(at) not in found:
        assert at is not None
        found.append(Place(at))
        at = store.label(at).parent
    return found


def _walk(
    sides: list[Side], before: list[int | None], look: Look, say: Callable[[str], None], detail: Detail | None
) -> tuple[Moment, ...]:
    found: list[Moment] = []
    known: dict[int, Any] = {}
    for number, side in enumerate(sides):
        say(side.title)
        # One about which nothing could be found out is passed over.
        last = before[number]
        while last is not None and last not in known:
            last = before[last]
        since = "" if last is None else sides[last].title
        try:
            values, key = look(side)
        except VMLabError as error:
            found.append(Moment(side.title, side.record.created, trouble=error.message, since=since))
            if len(found) == len(sides) and not known:
                # It is not the states' fault.
                raise
            continue
        changed = last is not None and known[last] != key
        text = detail(known[last], key, sides[last], side) if detail and changed and last is not None else ""
        found.append(Moment(side.title, side.record.created, values, changed, text, since=since))
        known[number] = key
    return tuple(found)


def _file(side: Side, path: str) -> tuple[dict[str, Any], Any]:
    from vmlab.compare.filestate import HASH_LIMIT

    state = read_file(side, path)
    if state is None:
        return {}, None
    when = dt.datetime.fromtimestamp(state.mtime / 1e9, dt.UTC).isoformat(timespec="seconds")
    values = {
        "type": state.type,
        "size": units.size(state.size),
        "mode": f"{state.mode:04o}",
        "owner": f"{state.uid}:{state.gid}",
        "modified": when,
        "sha256": (state.sha256 or "")[:12] if state.size <= HASH_LIMIT else "",
    }
    more = {"target": state.target, "flags": state.flags, "attributes": ", ".join(state.attributes)}
    values |= {name: value for name, value in more.items() if value}
    # Not the time: a file that is written anew with the same content is the same.
    names = ("type", "mode", "uid", "gid", "target", "device", "flags", "attributes", "fingerprint")
    return values, _Content(state, tuple(getattr(state, name) for name in names))


class _Content:
    """A file whose equality is that of its content and attributes."""

    def __init__(self, state: FileState, key: tuple[Any, ...]) -> None:
        self.state, self.key = state, key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Content) and self.key == other.key

    __hash__ = None  # type: ignore[assignment]


def _file_detail(old: _Content | None, new: _Content | None, before: Side, after: Side) -> str:
    from vmlab.compare.filestate import lines
    from vmlab.compare.textdiff import unified

    first, second = (lines(None if one is None else one.state) for one in (old, new))
    if first is None or second is None:
        return ""
    return (unified(first, second, before.title, after.title, 2) or "").rstrip("\n")


def read_file(side: Side, path: str) -> FileState | None:
    """Return a file as a state has it, page cache included, or None if it has no such path.

    Raises
    ------
    NotFound
        The state has no disk.
    DiskUnreadable
        The path may be where no file system can be read.
    """
    if not (targets := side.record.spec.disks):
        raise NotFound(f"{side.title} has no disk.")
    return find_file(dict(zip(targets, side.disks.paths, strict=True)), path)


def find_file(disks: Mapping[str, Path], path: str) -> FileState | None:
    """Return a file on disks, by their names; as :func:`read_file`."""
    from vmlab.compare.blocks import Disk
    from vmlab.compare.filestate import FileState
    from vmlab.compare.volumes import Volumes, places

    tree = Volumes([place for name, disk in disks.items() for place in places(name, Disk(disk))])
    found = tree.find(path.encode("utf-8", "surrogateescape"))
    for one in found:
        if one.place is not None and one.node is not None:
            return FileState.of(one.place.fs, one.node)
    # Where it is known what is mounted where, the rest does not matter.
    unknown = found[:1] if tree.mounts else found
    if not found or any(one.why for one in unknown):
        why = " ".join(dict.fromkeys(one.why for one in unknown if one.why))
        raise DiskUnreadable(why or "There is no file system that vmlab can read.")
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


def _each_with_the_last(
    store: Store,
    sides: list[Side],
    before: list[int | None],
    parts: Sequence[str],
    say: Callable[[str], None],
) -> tuple[Moment, ...]:
    """Compare each state with the one before it; the usual parts, if none is named."""
    found = []
    for last, side in zip(before, sides, strict=True):
        if last is None:
            found.append(Moment(side.title, side.record.created))
            continue
        say(side.title)
        diff = Diff(store, sides[last], side).compare(*parts)
        values = {
            name: part.why if part.outcome == "failed" else part.summary
            for name, part in diff.parts.items()
            if part.outcome != "absent"
        }
        since = sides[last].title
        found.append(Moment(side.title, side.record.created, values, not diff.same, since=since))
    return tuple(found)
