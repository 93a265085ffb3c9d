"""What differs between the registers of the CPUs of two states: QEMU's own report, taken apart."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vmlab.compare import device_names
from vmlab.compare.state import Files
from vmlab.errors import SnapshotDamaged, WrongState

if TYPE_CHECKING:
    import pandas as pd

#: The most that a report may hold. 288 CPUs have some 700 KB.
_MOST = 16 << 20

_CPU = re.compile(r"^\s*CPU#(\d+)\s*$")
_SEGMENT = re.compile(r"^(ES|CS|SS|DS|FS|GS|LDT|TR) *=([0-9a-f]{4}) ([0-9a-f]+) ([0-9a-f]{8}) ([0-9a-f]{8})")
_TABLE = re.compile(r"^(GDT|IDT) *= +([0-9a-f]+) ([0-9a-f]+)")
_FLOAT = re.compile(r"\b(FPR\d)=([0-9a-f]{16}) ([0-9a-f]{4})")
_VECTOR = re.compile(r"\b([XYZ]MM\d\d)=([0-9a-f]{16}(?: [0-9a-f]{16})*)")
_MASK = re.compile(r"\b(Opmask\d\d)=([0-9a-f]+)")
_PLAIN = re.compile(r"\b([A-Z][A-Z0-9_]*) *=([0-9a-f]+)(?=[\s\[\]]|$)")

#: How groups are called and in which order they come.
GROUPS = ("general", "flags", "segment", "control", "debug", "run state", "FPU", "vector")
_GENERAL = re.compile(r"[RE](?:[ABCD]X|[SD]I|[BS]P|IP)|R\d+")
_NARROW = re.compile(r"E(?:[ABCD]X|[SD]I|[BS]P|IP)")
_STATE = ("CPL", "II", "A20", "SMM", "HLT")


@dataclass(frozen=True)
class Register:
    """One register of one CPU.

    Attributes
    ----------
    name
        As the manuals say: ``RAX``, ``CS base``, ``CR3``, ``XMM0``; a single flag is ``ZF``.
    group
        One of :data:`GROUPS`.
    value
        The number.
    digits
        How many hexadecimal digits it is written with; 0 for a flag or a small number.
    """

    name: str
    group: str
    value: int
    digits: int

    def __str__(self) -> str:
        return f"{self.value:0{self.digits}x}" if self.digits else str(self.value)


@dataclass(frozen=True)
class RegisterChange:
    """One register that differs; None where only one of the two reports has it.

    Attributes
    ----------
    cpu
        The number of the CPU.
    name, group
        As in :class:`Register`.
    before, after
        The values.
    digits
        For hexadecimal; 0 for a flag.
    """

    cpu: int
    name: str
    group: str
    before: int | None
    after: int | None
    digits: int

    def shown(self, value: int | None) -> str:
        """Return one of the values as people read it."""
        if value is None:
            return "none"
        text = f"{value:0{self.digits}x}" if self.digits else str(value)
        # Long vectors are read in groups of 64 bits.
        return " ".join(text[at : at + 16] for at in range(0, len(text), 16)) if len(text) > 16 else text

    def to_json(self) -> dict[str, Any]:
        """Return all of it by name; values as text, since JSON has no 64-bit numbers."""
        return {
            "cpu": self.cpu,
            "name": self.name,
            "group": self.group,
            "before": None if self.before is None else self.shown(self.before),
            "after": None if self.after is None else self.shown(self.after),
        }

    def __str__(self) -> str:
        return f"{self.name}: {self.shown(self.before)} -> {self.shown(self.after)}"


@dataclass(frozen=True)
class RegistersDiff:
    """What differs between the registers of two states.

    Attributes
    ----------
    before, after
        The titles of the two.
    changes
        The registers that differ, by CPU and group.
    total
        How many registers were compared.
    cpus
        The number of CPUs of the two.
    """

    before: str
    after: str
    changes: tuple[RegisterChange, ...]
    total: int
    cpus: tuple[int, int]

    def __bool__(self) -> bool:
        return bool(self.changes)

    def __iter__(self) -> Iterator[RegisterChange]:
        return iter(self.changes)

    def __getitem__(self, name: str | tuple[int, str]) -> RegisterChange:
        """Return the change of a register, of CPU 0 or of ``diff[cpu, name]``; KeyError if it did not change."""
        cpu, name = name if isinstance(name, tuple) else (0, name)
        for change in self.changes:
            if change.cpu == cpu and change.name == name:
                return change
        raise KeyError(name)

    def __contains__(self, name: str | tuple[int, str]) -> bool:
        try:
            self[name]
        except KeyError:
            return False
        return True

    @property
    def summary(self) -> str:
        """One sentence."""
        if self.cpus[0] != self.cpus[1]:
            return f"The machine had {self.cpus[0]} CPUs and has {self.cpus[1]}."
        # A single flag is a part of RFLAGS, not one more register.
        names = [change for change in self.changes if change.group != "flags" or change.digits]
        if not names:
            return f"None of the {self.total} registers differs."
        where = f" of {self.cpus[1]} CPUs" if self.cpus[1] > 1 else ""
        return f"{len(names)} of {self.total} registers{where} differ{'s' if len(names) == 1 else ''}."

    def __str__(self) -> str:
        lines, cpu = [self.summary], None
        for change in self.changes:
            if change.cpu != cpu and max(self.cpus) > 1:
                lines.append(f"CPU {change.cpu}")
            cpu = change.cpu
            lines.append(f"    {change}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "before": self.before,
            "after": self.after,
            "summary": self.summary,
            "cpus": list(self.cpus),
            "total": self.total,
            "changes": [change.to_json() for change in self.changes],
        }

    def to_pandas(self) -> pd.DataFrame:
        """Return one row for each register: cpu, group, register, before, after (as text)."""
        import pandas as pd

        rows = [(c.cpu, c.group, c.name, c.shown(c.before), c.shown(c.after)) for c in self.changes]
        return pd.DataFrame(rows, columns=["cpu", "group", "register", "before", "after"])


def parse_registers(text: str) -> list[dict[str, Register]]:
    """Take QEMU's ``info registers -a`` apart.

    Returns
    -------
    list
        For each CPU its registers by name, in the order of :data:`GROUPS`: ``RAX`` ... ``RIP``; ``RFLAGS`` and each of
        its flags; ``CS``, ``CS base``, ``CS limit``, ``CS flags``; ``CR0`` ...; ``FPR0``; ``XMM00``.

    Raises
    ------
    ValueError
        It is no such report.
    """
    cpus: list[dict[str, Register]] = []
    for line in text[:_MOST].replace("\r", "").splitlines():
        if _CPU.match(line):
            cpus.append({})
        elif cpus:
            for register in _line(line):
                cpus[-1][register.name] = register
    if not cpus or not all(any(r.group == "general" for r in cpu.values()) for cpu in cpus):
        raise ValueError("no register report")
    order = {group: number for number, group in enumerate(GROUPS)}
    return [dict(sorted(cpu.items(), key=lambda item: order[item[1].group])) for cpu in cpus]


def _line(line: str) -> Iterator[Register]:
    if match := _SEGMENT.match(line):
        name = match[1]
        for part, group in zip(("", " base", " limit", " flags"), range(2, 6), strict=True):
            yield Register(name + part, "segment", int(match[group], 16), len(match[group]))
        return
    if match := _TABLE.match(line):
        yield Register(f"{match[1]} base", "segment", int(match[2], 16), len(match[2]))
        yield Register(f"{match[1]} limit", "segment", int(match[3], 16), len(match[3]))
        return
    if found := [*_FLOAT.finditer(line)]:
        for match in found:
            # QEMU writes the 64-bit mantissa and then the 16 bits of sign and exponent.
            yield Register(match[1], "FPU", int(match[3] + match[2], 16), 20)
        return
    if found := [*_VECTOR.finditer(line), *_MASK.finditer(line)]:
        for match in found:
            digits = match[2].replace(" ", "")
            yield Register(match[1], "vector", int(digits, 16), len(digits))
        return
    for match in _PLAIN.finditer(line):
        yield from _plain(match[1], match[2])


def _plain(name: str, digits: str) -> Iterator[Register]:
    value = int(digits, 16)
    if name in ("RFL", "EFL"):
        yield Register("RFLAGS", "flags", value, len(digits))
        for flag in device_names.FLAGS:
            yield Register(flag[1], "flags", value >> flag[0] & 1, 0)
    elif name in _STATE:
        yield Register(name, "run state", value, 0)
    elif _GENERAL.fullmatch(name):
        yield Register(name, "general", value, len(digits))
    elif name.startswith("CR") or name == "EFER":
        yield Register(name, "control", value, len(digits))
    elif name.startswith("DR"):
        yield Register(name, "debug", value, len(digits))
    elif name in ("FCW", "FSW", "FTW", "MXCSR", "ST"):
        yield Register(name, "FPU", value, len(digits))
    elif name in ("CCS", "CCD", "CCO"):
        # How far TCG has put off computing the flags; no register.
        return


def read_registers(state: Files) -> list[dict[str, Register]]:
    """Return the registers of each CPU of a live state; see :func:`parse_registers`.

    Raises
    ------
    WrongState
        It is offline.
    SnapshotDamaged
        The report is missing or unreadable.
    """
    if state.registers is None:
        raise WrongState(
            f"{state.title} is offline: it holds no registers.",
            hint="a snapshot of a running machine holds them",
        )
    try:
        return parse_registers(state.registers.read_text(encoding="ascii", errors="replace"))
    except (OSError, ValueError) as error:
        raise SnapshotDamaged(
            f"The registers of {state.title} cannot be read.",
            hint="go back to another snapshot (`%vm tree` shows them)",
            reason=error,
        ) from error


def _same_names(*sides: list[dict[str, Register]]) -> Iterator[list[dict[str, Register]]]:
    """Give registers of a CPU in 32-bit mode their 64-bit names if it is in 64-bit mode in another state."""
    wide = {number for cpus in sides for number, cpu in enumerate(cpus) if "RAX" in cpu}
    for cpus in sides:
        yield [
            {
                new: replace(register, name=new)
                for name, register in cpu.items()
                for new in ("R" + name[1:] if number in wide and _NARROW.fullmatch(name) else name,)
            }
            for number, cpu in enumerate(cpus)
        ]


def compare_registers(before: Files, after: Files) -> RegistersDiff:
    """Compare the registers of all CPUs of two live states.

    Raises
    ------
    WrongState
        One of them is offline.
    SnapshotDamaged
    """
    old, new = _same_names(read_registers(before), read_registers(after))
    changes: list[RegisterChange] = []
    total = 0
    none: Mapping[str, Register] = {}
    for cpu in range(max(len(old), len(new))):
        first = old[cpu] if cpu < len(old) else none
        second = new[cpu] if cpu < len(new) else none
        for name in dict.fromkeys([*first, *second]):
            one, other = first.get(name), second.get(name)
            known = one or other
            assert known is not None
            if known.digits or known.group != "flags":
                total += 1
            if (one and one.value) != (other and other.value):
                changes.append(
                    RegisterChange(
                        cpu,
                        name,
                        known.group,
                        one.value if one else None,
                        other.value if other else None,
                        max(one.digits if one else 0, other.digits if other else 0),
                    )
                )
    return RegistersDiff(before.title, after.title, tuple(changes), total, (len(old), len(new)))
