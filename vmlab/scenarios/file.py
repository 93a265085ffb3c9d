"""What a scenario is made of: read from ``scenario.toml`` and the folder that it lies in.

All mistakes are found before anything is made, and told together, each with its line. A file names no path outside its
folder, and nothing of the host: neither arguments of QEMU nor folders nor ports. What it names is read at once, without
following links, so that what was asked about is what is used.
"""

from __future__ import annotations

import difflib
import hashlib
import ipaddress
import json
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vmlab.errors import BadName, NotFound, UsageError
from vmlab.network.networks import CARDS
from vmlab.records import Link, check_name
from vmlab.store.networks import RESERVED

#: Of the file's format.
FORMAT = 1
#: Machines and networks at most; bytes of the file, of one that it names, and of all those.
MOST, LARGEST_FILE, LARGEST, LARGEST_ALL = 32, 1 << 20, 64 << 20, 256 << 20
#: The longest name of a scenario and a machine together.
LONGEST = 39
#: Words that are verbs' second words, or states of a scenario.
_RESERVED = ("start", "exercise", "trust", "network")
_KEYS: dict[str, tuple[str, ...]] = {
    "": ("vmlab", "name", "title", "description", "networks", "machines", "links"),
    "networks": ("subnet", "floods"),
    "machines": ("image", "memory", "vcpus", "disk", "nics", "files", "setup"),
    "links": ("delay", "jitter", "loss", "rate", "down"),
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(K|M|G|T)i?B")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s)")
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*%")
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG])bit/s", re.IGNORECASE)


@dataclass(frozen=True)
class MachinePlan:
    """A machine of a scenario.

    Attributes
    ----------
    memory
        In MiB; None for its image's. Likewise the next two, the disk in bytes.
    nics
        Its network cards in order: the network, and the address that it is to have there, or nothing.
    files
        Contents by the path in the guest.
    setup
        The script that is run in it once; None for none.
    """

    image: str
    memory: int | None = None
    vcpus: int | None = None
    disk: int | None = None
    nics: tuple[tuple[str, str], ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    setup: bytes | None = None


@dataclass(frozen=True)
class NetworkPlan:
    """A network of a scenario.

    Attributes
    ----------
    subnet
        The addresses of its cards; None for any private ones.
    floods
        Whether it is a hub.
    """

    subnet: ipaddress.IPv4Network | None = None
    floods: bool = False


@dataclass(frozen=True)
class Plan:
    """What a scenario is made of.

    Attributes
    ----------
    links
        How a cable is, by machine and network, where it is not perfect.
    source, digest
        The file it was read from, or nothing; and the SHA-256 of all that it says and names.
    """

    name: str
    machines: Mapping[str, MachinePlan]
    networks: Mapping[str, NetworkPlan]
    links: Mapping[tuple[str, str], Link] = field(default_factory=dict)
    title: str = ""
    description: str = ""
    source: str = ""
    digest: str = ""


def read(source: Path | Mapping[str, Any], images: list[str]) -> Plan:
    """Read a scenario's file; of a folder, the ``scenario.toml`` in it.

    Parameters
    ----------
    source
        The path; or what stands in such a file, as Python has it: then paths in it are in the current folder.
    images
        The images that there are.

    Raises
    ------
    NotFound
        There is no such file.
    UsageError
        It makes no sense; all its mistakes, each with its line.
    """
    if isinstance(source, Mapping):
        folder = os.open(".", os.O_PATH | os.O_DIRECTORY)
        try:
            return _Reader(None, b"", folder, images).read(source)
        finally:
            os.close(folder)
    path = source / "scenario.toml" if source.is_dir() else source
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST_FILE + 1)
        folder = os.open(path.absolute().parent, os.O_PATH | os.O_DIRECTORY)
    except OSError as error:
        raise NotFound(
            f"There is no scenario at {path} ({error.strerror}).",
            hint="name the folder with the scenario.toml, or the file itself",
        ) from error
    try:
        reader = _Reader(path, raw, folder, images)
        return reader.read(reader.parsed())
    finally:
        os.close(folder)


def under_name(plan: Plan, name: str) -> Plan:
    """Return a plan for a scenario of another name.

    Raises
    ------
    BadName, UsageError
        It cannot have that name.
    """
    check_name("scenario", name)
    longest = max(map(len, plan.machines))
    if len(name) + longest > LONGEST:
        raise UsageError(
            f"'{name}' and the names of its machines are longer than {LONGEST} signs together.",
            hint="choose a shorter name",
        )
    return replace(plan, name=name)


class _Reader:
    """Reads one file, and gathers what is wrong with it."""

    def __init__(self, path: Path | None, raw: bytes, folder: int, images: list[str]) -> None:
        self.path, self.raw, self.folder, self.images = path, raw, folder, images
        self.text = raw.decode(errors="replace")
        self.mistakes: list[tuple[int, str]] = []
        self.contents: dict[str, bytes] = {}

    def parsed(self) -> dict[str, Any]:
        if len(self.raw) > LARGEST_FILE:
            raise UsageError(f"{self.path} has more than {LARGEST_FILE >> 20} MiB: that is no scenario.")
        try:
            return tomllib.loads(self.raw.decode())
        except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
            raise UsageError(
                f"{self.path} is no TOML: {error}.", hint="https://toml.io shows how it is written"
            ) from None

    def read(self, data: Mapping[str, Any]) -> Plan:
        self._known((), data, _KEYS[""])
        if data.get("vmlab") != FORMAT:
            self._wrong(("vmlab",), f"the first line must be `vmlab = {FORMAT}`, the format of the file")
        name = self._name("scenario", (), data.get("name"), "name")
        networks = {key: self._network(key, value) for key, value in self._tables(data, "networks").items()}
        machines = {
            key: self._machine(key, value, networks, name)
            for key, value in self._tables(data, "machines").items()
        }
        if not machines:
            self._wrong((), "it has no machines: [machines.web] with an image makes one")
        for kind, count in (("machines", len(machines)), ("networks", len(networks))):
            if count > MOST:
                self._wrong((kind,), f"it has {count} {kind}; {MOST} are possible")
        self._addresses(machines, networks)
        links = dict(
            pair
            for key, value in self._tables(data, "links").items()
            if (pair := self._link(key, value, machines))
        )
        title, description = self._text((), data, "title"), self._text((), data, "description")
        if self.mistakes:
            self._refuse()
        digest = hashlib.sha256(self.raw or json.dumps(data, sort_keys=True).encode())
        for file, content in sorted(self.contents.items()):
            digest.update(f"\0{file}\0{len(content)}\0".encode() + content)
        return Plan(
            name,
            machines,
            networks,
            links,
            title,
            description,
            str(self.path.absolute()) if self.path is not None else "",
            digest.hexdigest(),
        )

    # -- mistakes ------------------------------------------------------------------------------------------------

    def _wrong(self, where: tuple[str, ...], what: str) -> None:
        self.mistakes.append((self._line(where), what))

    def _refuse(self) -> None:
        found = sorted(dict.fromkeys(self.mistakes))
        what = self.path or "The scenario"
        lines = [f"line {line}: {said}" if self.path else said for line, said in found]
        if len(lines) == 1:
            raise UsageError(f"{what}{',' if self.path else ':'} {lines[0]}.")
        raise UsageError(f"{what} has {len(lines)} mistakes:\n  " + "\n  ".join(lines))

    def _line(self, where: tuple[str, ...]) -> int:
        """Return the line at which a key stands, or else what it stands in."""
        best, table = 1, tuple[str, ...]()
        depth = 0
        for number, line in enumerate(self.text.splitlines(), 1):
            if match := re.match(r"\s*\[\[?([^\]]+)\]", line):
                table = _keys(match[1])
            elif match := re.match(r"""\s*((?:"[^"]*"|'[^']*'|[\w.-])+)\s*=""", line):
                at = (*table, *_keys(match[1]))
                if where[: len(at)] == at and len(at) > depth:
                    best, depth = number, len(at)
                continue
            else:
                continue
            if where[: len(table)] == table and len(table) > depth:
                best, depth = number, len(table)
        return best

    def _known(self, where: tuple[str, ...], data: Mapping[str, Any], known: tuple[str, ...]) -> None:
        for key in data:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                did = f"; did you mean '{near[0]}'?" if near else f"; known are {', '.join(known)}"
                self._wrong((*where, key), f"'{key}' is not known here{did}")

    # -- its parts -----------------------------------------------------------------------------------------------

    def _tables(self, data: Mapping[str, Any], key: str) -> dict[str, dict[str, Any]]:
        found = data.get(key, {})
        if not isinstance(found, dict):
            self._wrong((key,), f"'{key}' is a table of tables: [{key}.NAME]")
            return {}
        tables = {}
        for name, value in found.items():
            if isinstance(value, dict):
                tables[name] = value
            else:
                self._wrong((key, name), f"'{name}' is a table: [{key}.{name}]")
        return tables

    def _name(self, kind: str, where: tuple[str, ...], name: Any, key: str = "") -> str:
        where = (*where, key) if key else where
        if not isinstance(name, str):
            self._wrong(
                where, f"it has no {key or 'name'}" if name is None else f"the {kind}'s name is a text"
            )
            return ""
        try:
            check_name(kind, name)
        except BadName as error:
            self._wrong(where, f"{error.message.rstrip('.')}: {error.hint}")
            return ""
        if "." in name:
            self._wrong(where, f"the name of a {kind} has no dot in it: '{name}'")
        elif name in _RESERVED or (kind == "network" and name in RESERVED):
            self._wrong(where, f"'{name}' cannot be the name of a {kind}: the word means something else")
        return name

    def _text(self, where: tuple[str, ...], data: Mapping[str, Any], key: str) -> str:
        value = data.get(key, "")
        if not isinstance(value, str) or len(value) > 2000:
            self._wrong((*where, key), f"'{key}' is a text of at most 2000 signs")
            return ""
        return value

    def _whole(self, where: tuple[str, ...], data: Mapping[str, Any], key: str) -> int | None:
        value = data.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self._wrong((*where, key), f"'{key}' is a whole number from 1 on, not {value!r}")
            return None
        return value

    def _size(self, where: tuple[str, ...], data: Mapping[str, Any], key: str) -> int | None:
        value = data.get(key)
        if value is None:
            return None
        if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
            return int(float(match[1]) * _UNITS[match[2]])
        self._wrong((*where, key), f"'{key}' is a size with its unit, such as \"96 MiB\", not {value!r}")
        return None

    def _network(self, name: str, data: Mapping[str, Any]) -> NetworkPlan:
        where = ("networks", name)
        self._name("network", where, name)
        if "way_out" in data:
            self._wrong(
                (*where, "way_out"), "networks of a scenario lead nowhere else: a way out is not possible yet"
            )
        self._known(where, {k: v for k, v in data.items() if k != "way_out"}, _KEYS["networks"])
        subnet = None
        if (text := data.get("subnet")) is not None:
            try:
                subnet = ipaddress.IPv4Network(text if isinstance(text, str) else "")
                if not subnet.is_private or not 8 <= subnet.prefixlen <= 29:
                    raise ValueError("it is not private, or of another size than /8 to /29")
            except ValueError as error:
                self._wrong(
                    (*where, "subnet"),
                    f'{text!r} cannot be the subnet of a network ({error}); use "10.1.0.0/24"',
                )
                subnet = None
        floods = data.get("floods", False)
        if not isinstance(floods, bool):
            self._wrong((*where, "floods"), f"'floods' is true or false, not {floods!r}")
        return NetworkPlan(subnet, bool(floods))

    def _machine(
        self, name: str, data: Mapping[str, Any], networks: Mapping[str, NetworkPlan], scenario: str
    ) -> MachinePlan:
        where = ("machines", name)
        self._name("machine", where, name)
        if len(scenario) + len(name) > LONGEST:
            self._wrong(
                where,
                f"'{scenario}' and '{name}' are longer than {LONGEST} signs together: choose shorter names",
            )
        for key in ("forwards", "way_out"):
            if key in data:
                self._wrong(
                    (*where, key), f"machines of a scenario have no '{key}' yet: they reach only each other"
                )
        self._known(
            where, {k: v for k, v in data.items() if k not in ("forwards", "way_out")}, _KEYS["machines"]
        )
        image = data.get("image")
        if not isinstance(image, str) or image not in self.images:
            near = difflib.get_close_matches(str(image), self.images, n=1)
            did = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(self.images)}"
            said = f"there is no image '{image}'" if image is not None else "it has no image"
            self._wrong((*where, "image"), f"{said}; {did}")
        memory = self._size(where, data, "memory")
        if memory is not None and memory < 1 << 20:
            self._wrong((*where, "memory"), "'memory' is at least 1 MiB")
        return MachinePlan(
            image=str(image),
            memory=memory >> 20 if memory else None,
            vcpus=self._whole(where, data, "vcpus"),
            disk=self._size(where, data, "disk"),
            nics=self._nics(where, data.get("nics", []), networks),
            files=self._files(where, data.get("files", {})),
            setup=self._inside((*where, "setup"), data["setup"]) if "setup" in data else None,
        )

    def _nics(
        self, where: tuple[str, ...], found: Any, networks: Mapping[str, NetworkPlan]
    ) -> tuple[tuple[str, str], ...]:
        where = (*where, "nics")
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            self._wrong(where, '\'nics\' is a list of networks, such as ["lan", "dmz=10.2.0.1"]')
            return ()
        if len(found) > CARDS:
            self._wrong(where, f"a machine has {CARDS} network cards at most, not {len(found)}")
        nics = []
        for text in found:
            network, equals, address = text.partition("=")
            if network not in networks:
                near = difflib.get_close_matches(network, networks, n=1)
                did = f"; did you mean '{near[0]}'?" if near else f": [networks.{network}] makes one"
                self._wrong(where, f"there is no network '{network}'{did}")
                continue
            if equals:
                try:
                    address = str(ipaddress.IPv4Address(address))
                except ValueError:
                    self._wrong(where, f"'{address}' is no address")
                    continue
            nics.append((network, address))
        return tuple(nics)

    def _addresses(self, machines: Mapping[str, MachinePlan], networks: Mapping[str, NetworkPlan]) -> None:
        taken: dict[tuple[str, str], str] = {}
        for name, machine in machines.items():
            for network, address in machine.nics:
                if not address:
                    continue
                where, subnet = ("machines", name, "nics"), networks[network].subnet
                if subnet is None:
                    self._wrong(where, f"give [networks.{network}] a subnet, so that {address} can be in it")
                elif ipaddress.IPv4Address(address) not in list(subnet.hosts())[:-1]:
                    self._wrong(
                        where,
                        f"{address} is no address of a card in {subnet}"
                        + (" (the last one is the switch's)" if address in map(str, subnet) else ""),
                    )
                elif (other := taken.get((network, address))) is not None:
                    self._wrong(where, f"{address} is the address of {other} already")
                taken[network, address] = name

    def _link(
        self, key: str, data: Mapping[str, Any], machines: Mapping[str, MachinePlan]
    ) -> tuple[tuple[str, str], Link] | None:
        where = ("links", key)
        machine, _, network = key.partition(".")
        self._known(where, data, _KEYS["links"])
        cards = [network for network, _ in machines[machine].nics] if machine in machines else []
        if network not in cards:
            known = [f"{name}.{net}" for name, plan in machines.items() for net, _ in plan.nics]
            near = difflib.get_close_matches(key, known, n=1)
            there = f"; there are {', '.join(known)}" if known else "; no machine has a network card"
            did = f'; did you mean [links."{near[0]}"]?' if near else there
            self._wrong(where, f"there is no link '{key}'{did}")
            return None
        down = data.get("down", False)
        if not isinstance(down, bool):
            self._wrong((*where, "down"), f"'down' is true or false, not {down!r}")
        link = Link(
            delay=self._unit(where, data, "delay", _TIME, {"ms": 0.001, "s": 1.0}, '"20 ms"', 3600.0),
            jitter=self._unit(where, data, "jitter", _TIME, {"ms": 0.001, "s": 1.0}, '"5 ms"', 3600.0),
            loss=self._unit(where, data, "loss", _PART, {}, '"10 %"', 1.0),
            rate=int(
                self._unit(where, data, "rate", _RATE, {"k": 1e3, "m": 1e6, "g": 1e9}, '"2 Mbit/s"', 1e12)
            ),
            down=bool(down),
        )
        return (machine, network), link

    def _unit(
        self,
        where: tuple[str, ...],
        data: Mapping[str, Any],
        key: str,
        form: re.Pattern[str],
        units: Mapping[str, float],
        example: str,
        most: float,
    ) -> float:
        value = data.get(key)
        if value is None:
            return 0.0
        match = form.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None:
            self._wrong((*where, key), f"'{key}' is a number with its unit, such as {example}, not {value!r}")
            return 0.0
        found = float(match[1]) * (units[match[2].lower()] if units else 0.01)
        if found > most:
            self._wrong((*where, key), f"{value} is too much for '{key}'")
            return 0.0
        return found

    # -- files ---------------------------------------------------------------------------------------------------

    def _files(self, where: tuple[str, ...], found: Any) -> dict[str, bytes]:
        where = (*where, "files")
        if not isinstance(found, dict):
            self._wrong(
                where, '\'files\' says which file of the folder comes where: { "/etc/motd" = "files/motd" }'
            )
            return {}
        files = {}
        for target, source in found.items():
            if not target.startswith("/") or target.endswith("/") or "\0" in target:
                self._wrong(
                    (*where, target), f"'{target}' is no path of a file in the guest: it begins with /"
                )
            files[target] = self._inside((*where, target), source)
        return files

    def _inside(self, where: tuple[str, ...], path: Any) -> bytes:
        """Return the content of a file in the folder."""
        if not isinstance(path, str) or not path:
            self._wrong(where, f"{path!r} is no path of a file in the folder")
            return b""
        parts = path.split("/")
        if path.startswith("/") or ".." in parts or "\0" in path:
            self._wrong(where, f"'{path}' leaves the folder of the file; only what lies in it can be used")
            return b""
        if path in self.contents:
            return self.contents[path]
        try:
            content = self._open(parts)
        except OSError as error:
            why = (
                "a link, which is not followed" if error.errno in (40, 20) else (error.strerror or "").lower()
            )
            self._wrong(where, f"'{path}' cannot be read: {why}")
            return b""
        if len(content) > LARGEST or sum(map(len, self.contents.values())) + len(content) > LARGEST_ALL:
            self._wrong(
                where, f"'{path}' is too large: {LARGEST >> 20} MiB a file, {LARGEST_ALL >> 20} MiB for all"
            )
            return b""
        self.contents[path] = content
        return content

    def _open(self, parts: list[str]) -> bytes:
        above, opened = self.folder, list[int]()
        try:
            for part in parts[:-1]:
                above = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
                opened.append(above)
            # Not blocking: a FIFO is no file.
            fd = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=above)
            with os.fdopen(fd, "rb") as file:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise OSError(0, "it is no file")
                return file.read(LARGEST + 1)
        finally:
            for fd in opened:
                os.close(fd)


def _keys(text: str) -> tuple[str, ...]:
    """Return the parts of a dotted key."""
    return tuple(
        a or b or c for a, b, c in re.findall(r'"([^"]*)"|\'([^\']*)\'|([\w-]+)', text) if a or b or c
    )
