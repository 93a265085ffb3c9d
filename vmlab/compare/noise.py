"""What changes by itself in a guest that nobody uses: known names here, measured ones from a baseline.

What is noise is told apart and folded, never left out. A name is in these tables only if it changes in every
system, by the system's own work, and says nothing about what somebody did; all else is for a baseline to find
out, which compares a state with its own idle fork.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

#: Files and folders, as patterns over the whole path: ``*`` is any name or part of one, ``**`` any depth; and why.
KNOWN_PATHS: tuple[tuple[str, str], ...] = (
    ("/var/log/journal/**", "the journal"),
    ("/run/log/journal/**", "the journal"),
    ("/var/log/wtmp", "who logged in when"),
    ("/var/log/lastlog", "who logged in last"),
    ("/var/log/btmp", "failed logins"),
    ("/run/utmp", "who is logged in"),
    ("/var/lib/systemd/random-seed", "the seed for the next boot"),
    ("/var/lib/urandom/random-seed", "the seed for the next boot"),
    ("/var/lib/systemd/timesync/clock", "the time of the last synchronisation"),
    ("/var/lib/systemd/timers/**", "when timers ran last"),
    ("/var/lib/systemd/catalog/database", "a cache of the journal's messages"),
    ("/var/lib/dhcp/*.leases", "leases of addresses"),
    ("/var/lib/NetworkManager/*.lease", "leases of addresses"),
    ("/var/lib/NetworkManager/timestamps", "when networks were used last"),
    ("/var/lib/logrotate/status", "when logs were rotated last"),
    ("/var/cache/fontconfig/**", "caches of fonts"),
    ("/root/.cache/fontconfig/**", "caches of fonts"),
    ("/home/*/.cache/fontconfig/**", "caches of fonts"),
    ("/var/cache/ldconfig/aux-cache", "a cache of the dynamic linker"),
    ("/var/cache/man/**", "indexes of manuals"),
    ("/etc/.pwd.lock", "a lock"),
)

#: Patterns over the key of a row, by table.
KNOWN_INSIDE: dict[str, tuple[str, ...]] = {
    "facts": ("uptime", "time"),
    "processes": (r".*\[kworker/.*",),
    "sysctl": (
        r"fs\.(dentry-state|inode-state|inode-nr|file-nr|aio-nr)",
        r"fs\.(quota|binfmt_misc)\..*",
        r"kernel\.random\.(uuid|entropy_avail|boot_id)",
        r"kernel\.(ns_last_pid|pty\.nr|perf_event_max_sample_rate|perf_cpu_time_max_percent)",
        r"kernel\.sched_domain\..*max_newidle_lb_cost",
        r"net\.netfilter\.nf_conntrack_count",
        r"net\.ipv4\.(tcp|udp)_mem",
    ),
}


@cache
def _pattern(glob: str) -> re.Pattern[str]:
    parts = (
        ".*" if part == "**" else "[^/]*" if part == "*" else re.escape(part)
        for part in re.split(r"(\*\*|\*)", glob)
    )
    return re.compile("".join(parts))


def why_known(path: str) -> str | None:
    """Return why a path changes by itself, or None if it is not known to."""
    for glob, why in KNOWN_PATHS:
        if _pattern(glob).fullmatch(path):
            return why
    return None


def is_known_inside(table: str, key: str) -> bool:
    """Whether a row, named by its key's text, is known to change by itself."""
    return any(re.fullmatch(pattern, key) for pattern in KNOWN_INSIDE.get(table, ()))


def noisy_paths(paths: Iterable[str], measured: Iterable[str] = ()) -> dict[str, str]:
    """Return which of these paths change by themselves, and why.

    Parameters
    ----------
    measured
        Paths that a baseline saw changing in an idle fork.
    """
    seen = set(measured)
    found: dict[str, str] = {}
    for path in paths:
        if why := why_known(path):
            found[path] = why
        elif path in seen:
            found[path] = "it changed in an idle fork, too"
    return found
