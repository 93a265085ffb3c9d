"""What a guest says of itself: the script that asks for it, and how to read what it prints.

One script asks for all of it (:data:`SCRIPT`, plain POSIX shell: busybox is enough); it is run in forks of the
two states, never in a machine under study. This module knows no guest: it takes what the script printed.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from vmlab.errors import AgentError

#: The first line is a word that nobody in the guest can know before. Each part begins with a mark, a line "@@ WORD
#: NAME"; within a part, what is of one file, or may have several lines, begins with one without a name. So no name,
#: argument or setting of the guest can pass for something else. busybox' ls shows what cannot be printed as "?"; others
#: are told to escape it. As few programs as can be: each costs tens of milliseconds in an emulated guest. The moving
#: things come first.
SCRIPT = r"""#!/bin/sh
LC_ALL=C
export LC_ALL
read -r word </proc/sys/kernel/random/uuid || exit 1
mark=${0%/*}/mark
printf '\n@@ %s\n' "$word" >"$mark" || exit 1
echo "$word"
part() { printf '\n@@ %s %s\n' "$word" "$1"; }
fact() { printf '\n@@ %s\n%s=%s' "$word" "$1" "$2"; }
each() { for pid in $pids; do echo "$mark" "$pid/$1"; done; }
cd /proc || exit 1
b=
ls -b / >/dev/null 2>&1 && b=b
pids=$(echo [0-9]*)
part self; echo $$ $b
part pids; echo $pids
part stat; head -q -c 4096 $(each stat)
part cmdline; head -q -c 4096 $(each cmdline)
part uid; stat -c '%n %u' [0-9]*
part exe; ls -ln$b [0-9]*/exe
part fd; ls -ln$b [0-9]*/fd | grep -e '^[0-9]*/fd:' -e 'socket:'
part net; head -v -n 100000 net/tcp net/tcp6 net/udp net/udp6 net/raw net/raw6
part mounts; cat self/mounts
part modules; cat modules
part addresses
if command -v ip >/dev/null; then ip -o addr show; else ifconfig; fi
part facts
fact uptime "$(cat uptime)"
fact time "$(date +%s)"
fact hostname "$(cat sys/kernel/hostname)"
fact kernel "$(uname -srm)"
fact 'kernel build' "$(uname -v)"
fact 'kernel command line' "$(cat cmdline)"
fact 'boot ID' "$(cat sys/kernel/random/boot_id)"
fact 'machine ID' "$(cat /etc/machine-id)"
fact 'clock source' "$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
fact timezone "$(readlink /etc/localtime || cat /etc/timezone)"
part release
for f in /etc/os-release /etc/default/locale /etc/locale.conf; do
  if [ -r "$f" ]; then cat "$f"; fi
done
part passwd; cat /etc/passwd
part shadow; cat /etc/shadow
part group; cat /etc/group
part packages
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


#: Its parts, in order.
_PARTS = tuple(re.findall(r"^part (\w+)", SCRIPT, re.MULTILINE))
#: What stands in /etc/passwd where the password is in /etc/shadow.
_ELSEWHERE = "x"
#: The program of what runs in the kernel itself; that of any other process is a path.
KERNEL = "(kernel)"
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


def parse(title: str, text: str) -> Inside:
    """Read what :data:`SCRIPT` printed.

    Raises
    ------
    AgentError
        It is not complete.
    """
    parts = _parts(title, text)
    users: dict[str, str] = {}
    for row in _colons(parts["passwd"][0], 7):
        # The first line of a number gives the name.
        users.setdefault(row[2], row[0])
    processes = _processes(title, parts, users)
    tables: dict[str, dict[Key, Row]] = {
        "processes": {(p["pid"], p["started"]): _without(p, "parent", "started") for p in processes},
        "ports": _ports(parts, processes),
        "users": _users(parts),
        "groups": _table(
            ({"name": r[0], "gid": _int(r[2]), "members": r[3]} for r in _colons(parts["group"][0], 4)),
            "name",
        ),
        "mounts": _mounts(parts["mounts"][0]),
        "modules": _table(
            ({"name": w[0], "size": _int(w[1])} for w in _words(parts["modules"][0], 2)), "name"
        ),
        "addresses": _addresses(parts["addresses"][0]),
        "facts": _facts(parts),
        "sysctl": _sysctl(parts["sysctl"][0]),
    }
    if parts["packages"][0].strip():
        names = ("name", "arch", "version", "state")
        lines = (line.split("\t", 3) for line in _lines(parts["packages"][0]))
        rows = (dict(zip(names, [*line, "", "", ""][:4], strict=True)) for line in lines)
        tables["packages"] = _table(rows, "name", "arch")
    if parts["services"][0].strip():
        tables["services"] = _services(parts["services"][0])
    return Inside(title, tables)


def _parts(title: str, text: str) -> dict[str, list[str]]:
    """Return what stands in each part: before the first mark in it, and behind each."""
    word, _, rest = text.partition("\n")
    name, found = "", {"": [""]}
    if re.fullmatch(r"[0-9a-f-]{36}", word):
        first, *pieces = re.split(rf"\n@@ {word}(?: (\w+))?\n", rest)
        found[""].append(first)
        for mark, piece in zip(pieces[::2], pieces[1::2], strict=True):
            name = mark or name
            found.setdefault(name, []).append(piece)
    del found[""]
    if tuple(found) != _PARTS:
        raise _incomplete(title, text)
    return found


def _incomplete(title: str, text: str) -> AgentError:
    return AgentError(
        f"What the guest of {title} said of itself is not complete.", guest_says=text[-300:] or "nothing"
    )


def _table(rows: Iterable[Row], *columns: str) -> dict[Key, Row]:
    """Return rows by what names them; a further one of the same name is another row, it hides none."""
    seen: Counter[Key] = Counter()
    found: dict[Key, Row] = {}
    for row in rows:
        key = tuple(row[column] for column in columns)
        found[(*key, seen[key]) if seen[key] else key] = row
        seen[key] += 1
    return found


def _lines(text: str) -> Iterator[str]:
    """Yield the lines that say something. Not splitlines(): to a guest only a newline ends a line."""
    return (line for line in text.split("\n") if line.strip())


def _without(row: Row, *columns: str) -> Row:
    return {name: value for name, value in row.items() if name not in columns}


def _int(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _colons(text: str, count: int) -> Iterator[list[str]]:
    """Yield lines of so many fields; those that are missing are empty, as libc has it."""
    for line in _lines(text):
        if not line.startswith("#"):
            yield [*line.strip(" \t").split(":"), *[""] * count][:count]


def _words(text: str, count: int) -> Iterator[list[str]]:
    for line in _lines(text):
        words = [word for word in re.split(r"[ \t]+", line) if word]
        if len(words) >= count:
            yield words


def _processes(title: str, parts: dict[str, list[str]], users: dict[str, str]) -> list[Row]:
    pids = [int(word) for word in parts["pids"][0].split() if word.isdecimal()]
    # What stands before the first mark of a part is nothing.
    stats, commands = parts["stat"][1:], parts["cmdline"][1:]
    if not len(pids) == len(stats) == len(commands):
        raise _incomplete(title, f"{len(pids)} processes, {len(stats)} states, {len(commands)} command lines")
    own, _, escaped = parts["self"][0].strip().partition(" ")
    uids = {_pid(line): line.partition(" ")[2] for line in _lines(parts["uid"][0])}
    programs: dict[int, str] = {}
    for line in _lines(parts["exe"][0]):
        # The first arrow is ls's: nothing before it is of the guest's making.
        if match := re.fullmatch(r"l[^>]* (\d+)/exe -> (.*)", line, re.DOTALL):
            programs.setdefault(int(match[1]), _unescaped(match[2]) if escaped else match[2])
    found: dict[int, Row] = {}
    for pid, stat, command in zip(pids, stats, commands, strict=True):
        if not (stat or command or pid in uids or pid in programs):
            continue  # it ended meanwhile
        name, _, fields = stat.partition(" (")[2].rpartition(") ")
        words = [int(word) if word.lstrip("-").isdecimal() else 0 for word in fields.split(" ")]
        words += [0] * (20 - len(words))
        kernel = bool(words[6] & 0x200000)
        arguments = " ".join(command.rstrip("\0").split("\0"))
        found[pid] = {
            "pid": pid,
            "user": users.get(uids.get(pid, ""), uids.get(pid, "")),
            "command": f"[{name}]" if kernel else arguments or name,
            "program": KERNEL if kernel else programs.get(pid, "unknown"),
            "parent": words[1],
            "started": words[19],
        }
    ours = _ours(found, own)
    return [row for pid, row in found.items() if pid not in ours]


#: What ls -b writes for characters that cannot be printed, beside three octal digits.
_ESCAPES = {"a": b"\a", "b": b"\b", "f": b"\f", "n": b"\n", "r": b"\r", "t": b"\t", "v": b"\v"}


def _unescaped(text: str) -> str:
    r"""Return what ``ls -b`` wrote as ``\n``, ``\303`` or ``\ ``."""

    def byte(match: re.Match[bytes]) -> bytes:
        code = match[1].decode("latin-1")
        return bytes([int(code, 8) & 0xFF]) if len(code) == 3 else _ESCAPES.get(code, match[1])

    data = re.sub(rb"\\([0-7]{3}|.)", byte, text.encode("utf-8", "replace"), flags=re.DOTALL)
    return data.decode("utf-8", "replace")


def _pid(line: str) -> int:
    """Return the number with which a line begins, or -1."""
    match = re.match(r"[0-9]+", line)
    return int(match[0]) if match else -1


def _ours(found: dict[int, Row], script: str) -> set[int]:
    """Return the processes that are there only because we ask."""
    top = int(script) if script.isdecimal() else -1
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


def _ports(parts: dict[str, list[str]], processes: list[Row]) -> dict[Key, Row]:
    owners: dict[str, list[str]] = {}
    names = {row["pid"]: row["command"] for row in processes}
    pid = -1
    for line in _lines(parts["fd"][0]):
        if re.fullmatch(r"[0-9]+/fd:", line):
            pid = _pid(line)
        elif (match := re.fullmatch(r"l[^>]* -> socket:\[(\d+)\]", line)) and pid in names:
            owner = f"{pid} {names[pid]}"
            if owner not in owners.setdefault(match[1], []):
                owners[match[1]].append(owner)
    rows: list[Row] = []
    # Of these files all is written by the kernel, in numbers.
    for piece in re.split(r"(?:^|\n)==> ", parts["net"][0])[1:]:
        path, _, body = piece.partition(" <==\n")
        protocol = path.rpartition("/")[2]
        for words in _words(body, 10):
            # 0A: listening; 07: a socket of UDP, or a raw one, that is bound.
            if words[3] != ("0A" if protocol.startswith("tcp") else "07"):
                continue
            match = re.fullmatch(r"((?:[0-9A-F]{8}){1,4}):([0-9A-F]{4})", words[1])
            if match and len(match[1]) in (8, 32):
                rows.append(
                    {
                        "protocol": protocol,
                        "address": _address(match[1]),
                        "port": int(match[2], 16),
                        "process": ", ".join(owners.get(words[9], [])),
                    }
                )
    # Several may listen at one port; the kernel lists them in no order.
    rows.sort(key=lambda row: row["process"])
    return _table(rows, "protocol", "address", "port")


def _address(text: str) -> str:
    # In the machine's byte order, in words of 32 bits: x86 is what we run.
    data = b"".join(bytes.fromhex(text[at : at + 8])[::-1] for at in range(0, len(text), 8))
    return str(ipaddress.ip_address(data))


def _users(parts: dict[str, list[str]]) -> dict[Key, Row]:
    secrets: dict[str, str] = {}
    for name, secret in _colons(parts["shadow"][0], 2):
        secrets.setdefault(name, secret)
    return _table(
        (
            {
                "name": name,
                "uid": _int(uid),
                "gid": _int(gid),
                "title": title,
                "home": home,
                "shell": shell,
                "password": _password(secrets.get(name, secret) if secret == _ELSEWHERE else secret),
            }
            for name, secret, uid, gid, title, home, shell in _colons(parts["passwd"][0], 7)
        ),
        "name",
    )


def _password(secret: str) -> str:
    """Say whether there is a password; another one is seen to be another, but none is told."""
    if not secret:
        return "none needed"
    if secret[0] in "!*":
        return "locked"
    # It is in a file that this guest does not have.
    return "unknown" if secret == _ELSEWHERE else f"set ({hashlib.sha256(secret.encode()).hexdigest()[:8]})"


def _mounts(text: str) -> dict[Key, Row]:
    rows = (
        {"target": _unescape(w[1]), "source": _unescape(w[0]), "type": w[2], "options": w[3]}
        for w in _words(text, 4)
    )
    return _table(rows, "target", "source")


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _addresses(text: str) -> dict[Key, Row]:
    rows = (
        {"interface": w[1], "address": w[3]}
        for w in _words(text, 4)
        if w[0].rstrip(":").isdecimal() and w[2] in ("inet", "inet6")
    )
    return _table(rows, "interface", "address")


def _facts(parts: dict[str, list[str]]) -> dict[Key, Row]:
    names = {
        "PRETTY_NAME": "system",
        "VERSION_ID": "system version",
        "LANG": "locale",
        "LANGUAGE": "language",
    }
    rows = []
    for text in parts["facts"][1:]:
        name, _, value = text.partition("=")
        rows.append({"name": name, "value": value.strip()})
    for line in _lines(parts["release"][0]):
        name, equals, value = line.partition("=")
        if equals and (name in names or name.startswith("LC_")):
            rows.append({"name": names.get(name, name), "value": value.strip().strip('"')})
    return _table(rows, "name")


def _services(text: str) -> dict[Key, Row]:
    return _table(
        (
            {"unit": w[0], "load": w[1], "active": w[2], "state": w[3]}
            for w in _words(text.replace("●", " "), 4)
        ),
        "unit",
    )


def _sysctl(text: str) -> dict[Key, Row]:
    values: dict[str, list[str]] = {}
    for line in _lines(text):
        path, colon, value = line.partition(":")
        if colon and path.startswith("sys/"):
            values.setdefault(path[4:].replace("/", "."), []).append(" ".join(value.split()))
    return {(name,): {"name": name, "value": "; ".join(lines)} for name, lines in values.items()}
