"""What differs inside two guests: processes, ports, mounts, users, packages, services, modules, settings.

What each of them says is read by :mod:`vmlab.compare.insideparse`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmlab.compare import noise
from vmlab.compare.insideparse import Inside, Key, Row
from vmlab.errors import HostError
from vmlab.render import units

if TYPE_CHECKING:
    import pandas as pd


#: The tables, in the order in which they are shown: name, what one row is called, columns that name a row.
TABLES: dict[str, tuple[str, tuple[str, ...]]] = {
    "processes": ("process", ("pid", "command", "program")),
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
        fields = {name: [_shown(value) for value in pair] for name, pair in self.fields.items()}
        return {"key": _shown_row(self.key), "fields": fields}

    def __str__(self) -> str:
        what = ", ".join(f"{name} {_shown(old)} -> {_shown(new)}" for name, (old, new) in self.fields.items())
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
            "added": [{**_shown_row(row), "noise": self.is_noise(row)} for row in self.new],
            "removed": [{**_shown_row(row), "noise": self.is_noise(row)} for row in self.gone],
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
    """Return a row in one line that can be printed anywhere."""
    return " ".join(str(_shown(value)) for value in row.values() if value not in ("", None))


def _shown(value: Any) -> Any:
    return units.line(value) if isinstance(value, str) else value


def _shown_row(row: Row) -> Row:
    return {name: _shown(value) for name, value in row.items()}


def _has(row: Row, what: object) -> bool:
    values = [one for value in row.values() for one in (value if isinstance(value, tuple) else (value,))]
    if isinstance(what, str):
        return any(what == value or (isinstance(value, str) and what in value) for value in values)
    return what in values


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
            if old[key].get(column) != new[key].get(column)
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
    counts = Counter((row["command"], row["program"], row["user"]) for row in rows.values())
    names = ("command", "program", "user")
    return {key: {"pid": "", **dict(zip(names, key, strict=True)), "count": n} for key, n in counts.items()}
