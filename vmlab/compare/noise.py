"""What changes by itself in a guest that nobody uses: known names here, measured ones from a baseline.

What is noise is told apart and folded, never left out. A name is in these tables only if it changes in every
system, by the system's own work, and says nothing about what somebody did; all else is for a baseline to find
out, which compares a state with its own idle fork. Whoever breaks in can use these names, too: so it is not enough
that a path fits, what happened to it must be what the system does to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from vmlab.compare.files import FileChange

#: What the system does to a file: writes to it; only ever makes it longer; makes new ones of such names, too.
Habit = Literal["written", "longer", "new"]
#: Names one difference of a file: volume, path, kind.
Key = tuple[str, str, str]

#: Files, as patterns over the whole path (``*`` is any name or part of one); why; and what the system does to them.
KNOWN_PATHS: tuple[tuple[str, str, Habit], ...] = (
    ("/var/log/journal/*/*.journal", "the journal", "new"),
    ("/run/log/journal/*/*.journal", "the journal", "new"),
    ("/var/log/wtmp", "who logged in when", "longer"),
    ("/var/log/lastlog", "who logged in last", "longer"),
    ("/var/log/btmp", "failed logins", "longer"),
    ("/run/utmp", "who is logged in", "written"),
    ("/var/lib/systemd/random-seed", "the seed for the next boot", "written"),
    ("/var/lib/urandom/random-seed", "the seed for the next boot", "written"),
    ("/var/lib/systemd/timesync/clock", "the time of the last synchronisation", "written"),
    ("/var/lib/systemd/timers/stamp-*", "when timers ran last", "new"),
    ("/var/lib/systemd/catalog/database", "a cache of the journal's messages", "written"),
    ("/var/lib/dhcp/*.leases", "leases of addresses", "new"),
    ("/var/lib/NetworkManager/*.lease", "leases of addresses", "new"),
    ("/var/lib/NetworkManager/timestamps", "when networks were used last", "written"),
    ("/var/lib/logrotate/status", "when logs were rotated last", "written"),
    ("/var/cache/fontconfig/*.cache-*", "caches of fonts", "new"),
    ("/root/.cache/fontconfig/*.cache-*", "caches of fonts", "new"),
    ("/home/*/.cache/fontconfig/*.cache-*", "caches of fonts", "new"),
    ("/var/cache/ldconfig/aux-cache", "a cache of the dynamic linker", "written"),
    ("/var/cache/man/index.db", "indexes of manuals", "written"),
    ("/var/cache/man/*/index.db", "indexes of manuals", "written"),
    ("/etc/.pwd.lock", "a lock", "written"),
)

#: Patterns over the key of a row (see ``inside.row_text``), by table.
KNOWN_INSIDE: dict[str, tuple[str, ...]] = {
    "facts": ("uptime", "time"),
    # With what stands for the kernel as program: any process can call itself a kernel thread.
    "processes": (r"\d* ?\[kworker/[^\] ]*\] \(kernel\)",),
    "sysctl": (
        r"fs\.(dentry-state|inode-state|inode-nr|file-nr|aio-nr)",
        r"fs\.quota\..*",
        r"kernel\.random\.(uuid|entropy_avail|boot_id)",
        r"kernel\.(ns_last_pid|pty\.nr|perf_event_max_sample_rate|perf_cpu_time_max_percent)",
        r"kernel\.sched_domain\..*max_newidle_lb_cost",
        r"net\.netfilter\.nf_conntrack_count",
        r"net\.ipv4\.(tcp|udp)_mem",
    ),
}

#: What a file is that was only written to.
_WRITTEN = {"content", "mtime", "replaced"}


@cache
def _pattern(glob: str) -> re.Pattern[str]:
    return re.compile("[^/]*".join(re.escape(part) for part in glob.split("*")), re.DOTALL)


def why_known(path: str) -> tuple[str, Habit] | None:
    """Return why a path changes by itself and what the system does to it, or None if it is not known to."""
    for glob, why, habit in KNOWN_PATHS:
        if _pattern(glob).fullmatch(path):
            return why, habit
    return None


def is_known_inside(table: str, key: str) -> bool:
    """Whether a row, named by its key's text, is known to change by itself."""
    return any(re.fullmatch(pattern, key) for pattern in KNOWN_INSIDE.get(table, ()))


def key(entry: FileChange) -> Key:
    """Return what names a difference: two volumes may have the same path."""
    return entry.volume, entry.path, entry.kind


def measured(files: Iterable[FileChange]) -> list[list[str]]:
    """Return what a baseline keeps of the files that changed in an idle fork: volume, path, kind, and what differs."""
    return [[*key(entry), *entry.what] for entry in files]


def noisy(files: Iterable[FileChange], baseline: Iterable[Sequence[str]] = ()) -> dict[Key, str]:
    """Return which of these differences come by themselves, and why.

    Parameters
    ----------
    baseline
        What :func:`measured` returned for an idle fork. The same must have happened to the same path there: a file that
        was written to by itself is not removed by itself.
    """
    seen = {(row[0], row[1], row[2]): set(row[3:]) | {"mtime"} for row in baseline}
    found: dict[Key, str] = {}
    for entry in files:
        if why := _known(entry):
            found[key(entry)] = why
        elif key(entry) in seen and set(entry.what) <= seen[key(entry)] and not _cut(entry):
            found[key(entry)] = "it changed in an idle fork, too"
    return found


def _cut(entry: FileChange) -> bool:
    """Whether it is a log that only grows by itself, and did not."""
    known = why_known(entry.path)
    sizes = [0 if side is None else side.size for side in (entry.before, entry.after)]
    return known is not None and known[1] == "longer" and sizes[1] < sizes[0]


def _known(entry: FileChange) -> str | None:
    """Return why a difference is of those that every system makes, or None."""
    # Where nobody knows where a volume is mounted, its paths say nothing.
    known = why_known(entry.path) if entry.shown == entry.path else None
    if known is None or entry.type != "file" or not set(entry.what) <= _WRITTEN:
        return None
    why, habit = known
    after = entry.after
    if entry.kind == "added":
        plain = after is not None and not after.mode & 0o7111 and entry.link_to is None
        return why if habit == "new" and plain else None
    if entry.kind == "renamed":
        # As a journal that is put aside.
        before_it = why_known(entry.old_path or "")
        return why if habit == "new" and before_it is not None and before_it[0] == why else None
    return why if entry.kind in ("changed", "touched") and not _cut(entry) else None
