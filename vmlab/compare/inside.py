"""What differs inside two guests: processes, ports, mounts, users, packages, services, modules, settings.

One script asks for all of it (:data:`SCRIPT`, plain POSIX shell: busybox is enough); it is run in forks of the
two states, never in a machine under study. This module knows no guest: it takes what the script printed.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmlab.compare import noise
from vmlab.errors import AgentError, HostError

if TYPE_CHECKING:
    import pandas as pd

#: Each part begins with a line "@@ name". As few programs as can be: each costs tens of milliseconds in an
#: emulated guest. The moving things come first.
SCRIPT = r"""#!/bin/sh
LC_ALL=C
export LC_ALL
part() { printf '\n@@ %s\n' "$1"; }
cd /proc || exit 1
part self; echo $$
part stat; head -v -n 1 [0-9]*/stat
part cmdline; head -v -c 4096 [0-9]*/cmdline
part uid; stat -c '%n %u' [0-9]*
part exe; ls -l [0-9]*/exe
part fd; ls -l [0-9]*/fd | grep -e '^[0-9]*/fd:' -e 'socket:'
part net; head -v -n 100000 net/tcp net/tcp6 net/udp net/udp6 net/raw net/raw6
part mounts; cat self/mounts
part modules; cat modules
part addresses
if command -v ip >/dev/null; then ip -o addr show; else ifconfig; fi
part facts
echo "uptime=$(cat uptime)"
echo "time=$(date +%s)"
echo "hostname=$(cat sys/kernel/hostname)"
echo "kernel=$(uname -srm)"
echo "kernel build=$(uname -v)"
echo "kernel command line=$(cat cmdline)"
echo "boot ID=$(cat sys/kernel/random/boot_id)"
echo "machine ID=$(cat /etc/machine-id)"
echo "clock source=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
echo "timezone=$(readlink /etc/localtime || cat /etc/timezone)"
for f in /etc/os-release /etc/default/locale /etc/locale.conf; do
  if [ -r "$f" ]; then cat "$f"; fi
done
part passwd; cat /etc/passwd
part shadow; cat /etc/shadow
part group; cat /etc/group
part dpkg
if command -v dpkg-query >/dev/null; then
  dpkg-query -W -f '${Package}\t${Architecture}\t${Version}\t${db:Status-Status}\n'
elif command -v rpm >/dev/null; then rpm -qa --qf '%{NAME}\t%{ARCH}\t%{VERSION}-%{RELEASE}\tinstalled\n'
elif command -v apk >/dev/null; then apk list -I | sed 's/^\(.*\)-\([0-9][^ ]*\) \([^ ]*\) .*/\1\t\3\t\2\tinstalled/'
fi
part services
if [ -d /run/systemd/system ]; then
  systemctl list-units --type=service,socket,timer --all --plain --full --no-legend --no-pager
fi
part sysctl; grep -rs . sys
part end
"""

#: What stands in /etc/passwd where the password is in /etc/shadow.
_ELSEWHERE = "x"

#: The tables, in the order in which they are shown: name, what one row is called, columns that name a row.
TABLES: dict[str, tuple[str, tuple[str, ...]]] = {
    "processes": ("process", ("pid", "command")),
    "ports": ("port", ("protocol", "address", "port")),
    "users": ("user", ("name",)),
    "groups": ("group", ("name",)),
    "services": ("service", ("unit",)),
    "modules": ("kernel module", ("name",)),
    "packages": ("package", ("name", "arch")),
    "mounts": ("mount", ("target",)),
    "addresses": ("address", ("interface", "address")),
    "sysctl": ("kernel setting", ("name",)),
    "facts": ("fact", ("name",)),
}

Row = dict[str, Any]
Key = tuple[Any, ...]


@dataclass(frozen=True)
class Inside:
    """What one guest said of itself.

    Attributes
    ----------
    title
        Which state it is.
    tables
        ``{table: {key: row}}``.
    """

    title: str
    tables: dict[str, dict[Key, Row]]

    @property
    def boot(self) -> str:
        """The guest's boot ID: processes can be told apart by their number only within one."""
        return str(self.tables["facts"].get(("boot ID",), {}).get("value", ""))


@dataclass(frozen=True)
class RowChange:
    """A row that both have, with other values.

    Attributes
    ----------
    key
        What names it: ``{"name": "net.ipv4.ip_forward"}``.
    fields
        ``{column: (before, after)}``.
    """

    key: Row
    fields: dict[str, tuple[Any, Any]]

    def to_json(self) -> dict[str, Any]:
        """Return key and fields."""
        return {"key": self.key, "fields": {name: list(pair) for name, pair in self.fields.items()}}

    def __str__(self) -> str:
        what = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in self.fields.items())
        return f"{row_text(self.key)}: {what}"


@dataclass(frozen=True)
class TableDiff:
    """What differs between two tables of the same kind.

    :meth:`added`, :meth:`removed`, :meth:`changed` and :meth:`unchanged` are for assertions: each returns
    something true, or raises an :class:`AssertionError` whose message says what was there instead.

    Attributes
    ----------
    name
        A key of :data:`TABLES`.
    new, gone
        Rows that only the second, and only the first, has.
    altered
        Rows that both have, with other values.
    total
        How many rows the two have.
    noise
        Keys of those of them that change by themselves.
    """

    name: str
    new: tuple[Row, ...] = ()
    gone: tuple[Row, ...] = ()
    altered: tuple[RowChange, ...] = ()
    total: tuple[int, int] = (0, 0)
    noise: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.new or self.gone or self.altered)

    def __len__(self) -> int:
        return len(self.new) + len(self.gone) + len(self.altered)

    def is_noise(self, row: Row | RowChange) -> bool:
        """Whether a row is of those that change by themselves."""
        return row_text(self.key(row)) in self.noise

    def key(self, row: Row | RowChange) -> Row:
        """Return what names a row."""
        return row.key if isinstance(row, RowChange) else {c: row[c] for c in TABLES[self.name][1]}

    @property
    def signal(self) -> int:
        """How many differences are not noise."""
        return sum(not self.is_noise(row) for row in self.rows)

    @property
    def rows(self) -> tuple[Row | RowChange, ...]:
        """All differences."""
        return (*self.new, *self.gone, *self.altered)

    def added(self, what: object) -> list[Row]:
        """Return the new rows in which some value is ``what``, or contains it as text.

        Raises
        ------
        AssertionError
            There are none; says what there is instead.
        """
        return self._must(self.new, what, "appeared")

    def removed(self, what: object) -> list[Row]:
        """Return the rows that went, or raise an :class:`AssertionError`."""
        return self._must(self.gone, what, "went")

    def changed(self, what: object) -> list[Row]:
        """Return the rows that have other values, as key and ``{column: (before, after)}``, or raise."""
        return self._must([{**change.key, **change.fields} for change in self.altered], what, "changed")

    def unchanged(self, what: object = None) -> bool:
        """Return True if nothing differs but what changes by itself; or nothing in which ``what`` is."""
        found = [
            row
            for row in (*self.new, *self.gone)
            if not self.is_noise(row) and (what is None or _has(row, what))
        ]
        found += [c.key for c in self.altered if not self.is_noise(c) and (what is None or _has(c.key, what))]
        if found:
            more = f", and {len(found) - 1} more" if len(found) > 1 else ""
            raise AssertionError(f"The {self.name} are not as they were: {row_text(found[0])}{more}.")
        return True

    def _must(self, rows: Sequence[Row], what: object, verb: str) -> list[Row]:
        found = [row for row in rows if _has(row, what)]
        if found:
            return found
        some = "; ".join(row_text(row) for row in rows[:3]) + (
            f" ... ({len(rows)} in all)" if len(rows) > 3 else ""
        )
        one = TABLES[self.name][0]
        raise AssertionError(f"No {one} {what!r} {verb}: {f'{verb}: {some}' if rows else f'no {one} did'}.")

    def to_json(self) -> dict[str, Any]:
        """Return the rows, and which of them are noise."""
        return {
            "added": [{**row, "noise": self.is_noise(row)} for row in self.new],
            "removed": [{**row, "noise": self.is_noise(row)} for row in self.gone],
            "changed": [{**change.to_json(), "noise": self.is_noise(change)} for change in self.altered],
            "total": list(self.total),
        }


@dataclass(frozen=True)
class InsideDiff:
    """What differs inside two guests.

    Its tables are attributes, too: ``diff.inside.ports.added(4444)``.

    Attributes
    ----------
    before, after
        The titles of the two.
    tables
        A :class:`TableDiff` for each table that both have.
    missing
        Tables that one of them could not give, and why.
    same_boot
        Whether it is one guest, booted once: its processes are then told apart by number and start time, else only by
        their command lines.
    """

    before: str
    after: str
    tables: dict[str, TableDiff]
    missing: dict[str, str] = field(default_factory=dict)
    same_boot: bool = True

    def __bool__(self) -> bool:
        return any(self.tables.values())

    def __getattr__(self, name: str) -> TableDiff:
        tables = self.__dict__.get("tables", {})
        if name in tables:
            return tables[name]  # type: ignore[no-any-return]
        if name in TABLES:
            why = self.__dict__.get("missing", {}).get(name, "was not asked")
            raise AttributeError(f"The table of {name} could not be compared: {why}.")
        raise AttributeError(name)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.tables]

    @property
    def summary(self) -> str:
        """What differs, in one line."""
        parts = []
        for name, table in self.tables.items():
            signs = [
                f"{sign}{count}"
                for sign, rows in (("+", table.new), ("-", table.gone), ("~", table.altered))
                if (count := sum(not table.is_noise(row) for row in rows))
            ]
            if signs:
                parts.append(f"{name} {' '.join(signs)}")
        noisy = sum(len(table) - table.signal for table in self.tables.values())
        text = ", ".join(parts) or ("nothing else" if noisy else "nothing differs")
        return f"{text}; {noisy} that change by themselves" if noisy else text

    def __str__(self) -> str:
        lines = [self.summary]
        for name, table in self.tables.items():
            for sign, rows in (("+", table.new), ("-", table.gone)):
                lines += [f"{name}: {sign} {row_text(row)}" for row in rows if not table.is_noise(row)]
            lines += [f"{name}: ~ {change}" for change in table.altered if not table.is_noise(change)]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return all tables."""
        return {
            "before": self.before,
            "after": self.after,
            "summary": self.summary,
            "same_boot": self.same_boot,
            "tables": {name: table.to_json() for name, table in self.tables.items()},
            "missing": dict(self.missing),
        }

    def to_pandas(self) -> pd.DataFrame:
        """Return one row for each difference: table, what happened, key, column, before, after, noise."""
        try:
            import pandas as pd
        except ImportError:
            raise HostError("pandas is not installed.", hint="`pip install pandas`") from None
        rows = []
        for name, table in self.tables.items():
            for what, found in (("added", table.new), ("removed", table.gone)):
                for row in found:
                    text = row_text(row)
                    pair = (None, text) if what == "added" else (text, None)
                    rows.append((name, what, row_text(table.key(row)), "", *pair, table.is_noise(row)))
            for change in table.altered:
                key, noisy = row_text(change.key), table.is_noise(change)
                rows += [
                    (name, "changed", key, column, *pair, noisy) for column, pair in change.fields.items()
                ]
        columns = ["table", "what", "key", "column", "before", "after", "noise"]
        return pd.DataFrame(rows, columns=columns, dtype=object)


def row_text(row: Row) -> str:
    """Return a row in one line."""
    return " ".join(str(value) for value in row.values() if value not in ("", None))


def _has(row: Row, what: object) -> bool:
    if isinstance(what, str):
        return any(what == value or (isinstance(value, str) and what in value) for value in row.values())
    return what in row.values()


# -- comparing -----------------------------------------------------------------------------------------------------


def compare_inside(before: Inside, after: Inside, noisy: Mapping[str, set[str]] | None = None) -> InsideDiff:
    """Compare what two guests said.

    Parameters
    ----------
    noisy
        ``{table: keys}`` that a baseline found to change by themselves, beside the known ones.
    """
    same_boot = bool(before.boot) and before.boot == after.boot
    tables, missing = {}, {}
    for name in TABLES:
        old, new = before.tables.get(name), after.tables.get(name)
        if old is None or new is None:
            without = before.title if old is None else after.title
            if old is not None or new is not None:
                missing[name] = f"{without} has none"
            continue
        if name == "processes" and not same_boot:
            old, new = _by_command(old), _by_command(new)
        tables[name] = _compare(name, old, new, (noisy or {}).get(name, set()))
    return InsideDiff(before.title, after.title, tables, missing, same_boot)


def _compare(name: str, old: dict[Key, Row], new: dict[Key, Row], noisy: set[str]) -> TableDiff:
    keys = TABLES[name][1]
    altered = []
    for key in old.keys() & new.keys():
        fields = {
            column: (old[key].get(column), new[key].get(column))
            for column in (*old[key], *(c for c in new[key] if c not in old[key]))
            if old[key].get(column) != new[key].get(column) and column not in keys
        }
        if fields:
            altered.append(RowChange({c: new[key][c] for c in keys}, fields))
    appeared = [new[key] for key in _ordered(new.keys() - old.keys())]
    went = [old[key] for key in _ordered(old.keys() - new.keys())]
    altered.sort(key=lambda change: str(change.key))
    texts = {row_text({c: row[c] for c in keys}) for row in (*appeared, *went)}
    texts |= {row_text(change.key) for change in altered}
    found = frozenset(text for text in texts if text in noisy or noise.is_known_inside(name, text))
    return TableDiff(name, tuple(appeared), tuple(went), tuple(altered), (len(old), len(new)), found)


def _ordered(keys: set[Key]) -> list[Key]:
    return sorted(keys, key=lambda key: [(isinstance(part, str), part) for part in key])


def _by_command(rows: dict[Key, Row]) -> dict[Key, Row]:
    """Return processes by command line: in guests that booted apart, numbers mean nothing."""
    counts = Counter((row["command"], row["user"]) for row in rows.values())
    return {key: {"pid": "", "command": key[0], "user": key[1], "count": n} for key, n in counts.items()}


# -- reading what the script printed ---------------------------------------------------------------------------------


def parse(title: str, text: str) -> Inside:
    """Read what :data:`SCRIPT` printed.

    Raises
    ------
    AgentError
        It is not complete.
    """
    parts: dict[str, str] = {}
    name = ""
    lines: list[str] = []
    for line in text.split("\n"):
        if line.startswith("@@ "):
            parts[name] = "\n".join(lines).strip("\n")
            name, lines = line[3:].strip(), []
        else:
            lines.append(line)
    if name != "end":
        raise AgentError(
            f"What the guest of {title} said of itself is not complete.", guest_says=text[-300:] or "nothing"
        )
    users = {row[2]: row[0] for row in _colons(parts.get("passwd", ""), 7)}
    processes = _processes(parts, users)
    tables: dict[str, dict[Key, Row]] = {
        "processes": {(p["pid"], p["started"]): _without(p, "parent", "started", "own") for p in processes},
        "ports": _ports(parts, processes),
        "users": _users(parts),
        "groups": {
            (r[0],): {"name": r[0], "gid": _int(r[2]), "members": r[3]}
            for r in _colons(parts.get("group", ""), 4)
        },
        "mounts": _mounts(parts.get("mounts", "")),
        "modules": {(w[0],): {"name": w[0], "size": _int(w[1])} for w in _words(parts.get("modules", ""), 2)},
        "addresses": _addresses(parts.get("addresses", "")),
        "facts": _facts(parts.get("facts", "")),
        "sysctl": _sysctl(parts.get("sysctl", "")),
    }
    if parts.get("dpkg"):
        tables["packages"] = {
            (w[0], w[1]): {"name": w[0], "arch": w[1], "version": w[2], "state": w[3]}
            for line in parts["dpkg"].splitlines()
            if len(w := line.split("\t")) == 4
        }
    if parts.get("services"):
        tables["services"] = _services(parts["services"])
    return Inside(title, tables)


def _without(row: Row, *columns: str) -> Row:
    return {name: value for name, value in row.items() if name not in columns}


def _int(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _colons(text: str, count: int) -> Iterator[list[str]]:
    for line in text.splitlines():
        row = line.split(":")
        if len(row) >= count and not line.startswith("#"):
            yield row


def _words(text: str, count: int) -> Iterator[list[str]]:
    for line in text.splitlines():
        words = line.split()
        if len(words) >= count:
            yield words


def _files(text: str) -> Iterator[tuple[str, str]]:
    """Yield what ``head -v`` printed, file by file."""
    for piece in re.split(r"(?:^|\n)==> ", "\n" + text)[1:]:
        head, _, body = piece.partition(" <==\n")
        yield head, body


def _processes(parts: dict[str, str], users: dict[str, str]) -> list[Row]:
    found: dict[int, Row] = {}
    for path, body in _files(parts.get("stat", "")):
        number, _, rest = body.partition(" (")
        name, _, fields = rest.rpartition(") ")
        words = fields.split()
        if not number.strip().isdigit() or len(words) < 20:
            continue
        pid = int(path.partition("/")[0]) if path.partition("/")[0].isdigit() else int(number)
        kernel = int(words[6]) & 0x200000
        found[pid] = {
            "pid": pid,
            "user": "",
            "command": f"[{name}]" if kernel else name,
            "program": "",
            "parent": int(words[1]),
            "started": int(words[19]),
        }
    for path, body in _files(parts.get("cmdline", "")):
        words = body.rstrip("\n").rstrip("\0").split("\0")
        if (pid := _pid(path)) in found and any(words):
            found[pid]["command"] = " ".join(word.replace("\n", " ") for word in words)
    for line in parts.get("uid", "").splitlines():
        path, _, uid = line.partition(" ")
        if (pid := _pid(path)) in found:
            found[pid]["user"] = users.get(uid, uid)
    for line in parts.get("exe", "").splitlines():
        if (match := re.search(r"(\d+)/exe -> (.*)$", line)) and (pid := int(match[1])) in found:
            found[pid]["program"] = match[2]
    ours = _ours(found, parts.get("self", ""))
    return [row for pid, row in found.items() if pid not in ours]


def _pid(path: str) -> int:
    number = path.partition("/")[0]
    return int(number) if number.isdigit() else -1


def _ours(found: dict[int, Row], script: str) -> set[int]:
    """Return the processes that are there only because we ask."""
    top = int(script) if script.strip().isdigit() else -1
    # The script's shell, and above it the launcher's, up to the agent that started it.
    while top in found and (parent := found[top]["parent"]) in found:
        if parent <= 1 or not re.match(
            r"(\S*/)?(sh|dash|bash|busybox|setsid|ash)\b", found[parent]["command"]
        ):
            break
        top = parent
    ours = {top}
    while more := {pid for pid, row in found.items() if row["parent"] in ours and pid not in ours}:
        ours |= more
    return ours


def _ports(parts: dict[str, str], processes: list[Row]) -> dict[Key, Row]:
    owners: dict[str, str] = {}
    names = {row["pid"]: row["command"] for row in processes}
    pid = -1
    for line in parts.get("fd", "").splitlines():
        if line.endswith("/fd:"):
            pid = _pid(line)
        elif (match := re.search(r"socket:\[(\d+)\]", line)) and pid in names:
            owners.setdefault(match[1], f"{pid} {names[pid]}")
    found: dict[Key, Row] = {}
    for path, body in _files(parts.get("net", "")):
        protocol = path.rpartition("/")[2]
        for words in _words(body, 10):
            # 0A: listening; 07: a socket of UDP, or a raw one, that is bound.
            if ":" not in words[1] or words[3] != ("0A" if protocol.startswith("tcp") else "07"):
                continue
            host, _, number = words[1].rpartition(":")
            row = {
                "protocol": protocol,
                "address": _address(host),
                "port": int(number, 16),
                "process": owners.get(words[9], ""),
            }
            found[protocol, row["address"], row["port"]] = row
    return found


def _address(text: str) -> str:
    # In the machine's byte order, in words of 32 bits: x86 is what we run.
    data = b"".join(bytes.fromhex(text[at : at + 8])[::-1] for at in range(0, len(text), 8))
    return str(ipaddress.ip_address(data))


def _users(parts: dict[str, str]) -> dict[Key, Row]:
    secrets = {row[0]: row[1] for row in _colons(parts.get("shadow", ""), 2)}
    found: dict[Key, Row] = {}
    for name, secret, uid, gid, title, home, shell in (
        row[:7] for row in _colons(parts.get("passwd", ""), 7)
    ):
        found[name,] = {
            "name": name,
            "uid": _int(uid),
            "gid": _int(gid),
            "title": title,
            "home": home,
            "shell": shell,
            "password": _password(secrets.get(name, secret)),
        }
    return found


def _groups(text: str) -> dict[Key, Row]:
    return {(r[0],): {"name": r[0], "gid": _int(r[2]), "members": r[3]} for r in _colons(text, 4)}


def _password(secret: str) -> str:
    """Say whether there is a password; another one is seen to be another, but none is told."""
    if not secret:
        return "none needed"
    if secret[0] in "!*":
        return "locked"
    # It is in a file that this guest does not have.
    return "unknown" if secret == _ELSEWHERE else f"set ({hashlib.sha256(secret.encode()).hexdigest()[:8]})"


def _mounts(text: str) -> dict[Key, Row]:
    return {
        (_unescape(w[1]), w[0], number): {
            "target": _unescape(w[1]),
            "source": _unescape(w[0]),
            "type": w[2],
            "options": w[3],
        }
        for number, w in _numbered(_words(text, 4), lambda w: (w[1], w[0]))
    }


def _numbered(rows: Iterator[list[str]], of: Callable[[list[str]], Key]) -> Iterator[tuple[int, list[str]]]:
    """Count rows of the same key: one thing may be mounted twice in one place."""
    seen: Counter[Key] = Counter()
    for row in rows:
        yield seen[of(row)], row
        seen[of(row)] += 1


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _addresses(text: str) -> dict[Key, Row]:
    found: dict[Key, Row] = {}
    for words in _words(text, 4):
        if words[0].rstrip(":").isdigit() and words[2] in ("inet", "inet6"):
            found[words[1], words[3]] = {"interface": words[1], "address": words[3]}
    return found


def _facts(text: str) -> dict[Key, Row]:
    names = {
        "PRETTY_NAME": "system",
        "VERSION_ID": "system version",
        "LANG": "locale",
        "LANGUAGE": "language",
    }
    found: dict[Key, Row] = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if not equals or (name.isupper() and name not in names and not name.startswith("LC_")):
            continue
        name = names.get(name, name)
        found[name,] = {"name": name, "value": value.strip().strip('"')}
    return found


def _services(text: str) -> dict[Key, Row]:
    found: dict[Key, Row] = {}
    for words in _words(text.replace("●", " "), 4):
        found[words[0],] = {"unit": words[0], "load": words[1], "active": words[2], "state": words[3]}
    return found


def _sysctl(text: str) -> dict[Key, Row]:
    values: dict[str, list[str]] = {}
    for line in text.splitlines():
        path, colon, value = line.partition(":")
        if colon and path.startswith("sys/"):
            values.setdefault(path[4:].replace("/", "."), []).append(" ".join(value.split()))
    return {(name,): {"name": name, "value": "; ".join(lines)} for name, lines in values.items()}
