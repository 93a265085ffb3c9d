"""How the comparison of two states looks: tabs in a notebook, sections in a terminal, one HTML file."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from vmlab.render import page, units
from vmlab.render.view import View

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vmlab.compare.ram import RamSearch
    from vmlab.diff import Diff, Part
    from vmlab.timeline import Timeline

#: Rows of a table that are shown; it says how many there are, and JSON and pandas have them all.
ROWS = 200
#: Characters of one file's text diff, and how many files' text diffs are shown.
DIFF_TEXT, DIFF_FILES = 6000, 40

TITLES = {
    "files": "Files",
    "inside": "Inside",
    "screen": "Screen",
    "registers": "CPU",
    "devices": "Devices",
    "ram": "RAM",
    "disk": "Disk",
}
#: Outcome -> sign, and the class of its colour.
_SIGNS = {"same": ("=", "dim"), "different": ("≠", "warn"), "failed": ("!", "bad"), "absent": ("–", "dim")}
_STYLES = {"dim": "bright_black", "warn": "yellow", "bad": "red", "ok": "green"}
_KINDS = {
    "added": ("+", "ok"),
    "removed": ("−", "bad"),
    "changed": ("~", "warn"),
    "renamed": ("→", "brand"),
    "metadata": ("m", "brand"),
    "touched": ("·", "dim"),
}

# Radio buttons and style sheets only: it works in a saved notebook, a mail, and where scripts are not trusted. Where
# style sheets are taken out (GitHub), all tabs are shown one below the other.
_RULES = """
.vml.vml .tabs>input{position:absolute;opacity:0;pointer-events:none}
.vml.vml .tabs>label{display:inline-block;padding:5px 12px;margin:0;cursor:pointer;color:var(--v-dim);
 border-bottom:2px solid transparent;font-weight:500}
.vml.vml .tabs>label:hover{color:var(--v-fg)}
.vml.vml .tabs>input:checked+label{color:var(--v-fg);border-color:var(--v-brand)}
.vml.vml .tabs>input:focus-visible+label{outline:2px solid var(--v-brand);outline-offset:-2px}
.vml.vml .tabs>.panels{border-top:1px solid var(--v-line);padding:8px 0 4px;margin-top:-1px}
.vml.vml .tabs>.panels>section{display:none}
.vml.vml .tabs h4{font-size:13px;font-weight:600;margin:10px 0 2px;padding-left:8px}
.vml.vml .tabs details{margin:4px 0 0;padding-left:8px}
.vml.vml .tabs details>summary{cursor:pointer;color:var(--v-dim)}
.vml.vml .tabs details.in{margin:0;padding:0}
.vml.vml .tabs details.in>summary{color:inherit}
.vml.vml .tabs tr>*{vertical-align:top}
.vml.vml .tabs td code{white-space:pre-wrap;overflow-wrap:anywhere}
.vml.vml .tabs .long{max-height:34em;overflow:auto}
.vml.vml .tabs pre.udiff{max-height:24em;overflow:auto;padding:4px 8px;background:var(--v-soft);border-radius:4px}
.vml.vml .tabs img.map{display:block;margin:4px 8px;max-width:calc(100% - 16px);height:auto;image-rendering:pixelated}
.vml.vml .tabs img.strip{width:100%;height:26px;max-width:64em;border:1px solid var(--v-line)}
"""


class DiffView(View):
    """A comparison: a summary that fits a screen, then each layer."""

    label = "comparison"

    def __init__(self, diff: Diff) -> None:
        self.diff = diff
        # Compares the usual layers if none was yet.
        _ = diff.same

    # -- terminal ------------------------------------------------------------------------------------------------

    def rich(self) -> RenderableType:
        """Return a line for each layer, then what differs in the layers that people read."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        diff = self.diff
        before, after = units.clean(diff.before.title), units.clean(diff.after.title)
        head = Text.assemble((before, "bold"), " → ", (after, "bold"))
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        for name, part in diff.parts.items():
            sign, kind = _SIGNS[part.outcome]
            took = Text(units.duration(part.seconds) if part.seconds else "", "bright_black")
            table.add_row(Text(sign, _STYLES[kind]), name, Text(units.clean(self.line(part))), took)
        blocks: list[RenderableType] = [head, table]
        for part in diff.parts.values():
            write = _TERMINAL.get(part.name)
            if write is not None and part.outcome == "different" and part.result is not None:
                lines = list(write(diff, part.result))
                if lines:
                    blocks += [Text(""), *lines]
        notes = self.notes()
        if notes:
            blocks += [Text(""), *(Text(units.clean(note), "bright_black") for note in notes)]
        return Group(*blocks)

    def line(self, part: Part) -> str:
        """Return what to say of a layer in one line."""
        return f"not compared: {part.why}" if part.outcome == "failed" else self.diff.line(part.name)

    def notes(self) -> list[str]:
        """Return what should be known beside the layers."""
        left = self.diff.left_out
        return ([f"not asked for: {', '.join(left)}"] if left else []) + self.diff.notes

    # -- HTML ----------------------------------------------------------------------------------------------------

    def body(self) -> str:
        """Return the tabs, and the style sheet that they need."""
        group = f"vmld-{uuid.uuid4().hex[:8]}"
        panels = [("Overview", self._overview())]
        parts = [part for part in self.diff.parts.values() if part.outcome != "absent"]
        panels += [(self._tab(part), self._panel(part)) for part in parts]
        rules, tops = [], []
        for number, (title, _) in enumerate(panels):
            rules.append(f"#{group}-{number}:checked~.panels>section:nth-child({number + 1})")
            # Of one layer there is nothing to give an overview of.
            checked = " checked" if number == (len(panels) == 2) else ""
            tops.append(
                f'<input type="radio" name="{group}" id="{group}-{number}"{checked}>'
                f'<label for="{group}-{number}">{title if number else page.esc(title)}</label>'
            )
        inner = "".join(f"<section>{content}</section>" for _, content in panels)
        style = f"{_RULES}{','.join(f'.vml.vml .tabs>{rule}' for rule in rules)}{{display:block}}"
        arrow = f"{page.esc(self.diff.before.title)} → {page.esc(self.diff.after.title)}"
        return (
            f'<style>{style}</style><p class="head">{arrow}</p>'
            f'<div class="tabs">{"".join(tops)}<div class="panels">{inner}</div></div>'
        )

    def document(self) -> str:
        """Return a whole HTML page that needs nothing else."""
        title = page.esc(f"{self.diff.before.title} → {self.diff.after.title}")
        style = (
            "body{margin:24px;background:#fff}@media (prefers-color-scheme:dark){body{background:#14171a}}"
            ":root{color-scheme:light dark}"
        )
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{title}</title><style>{style}</style></head><body>{self.html()}</body></html>\n"
        )

    def to_json(self) -> Any:
        """Return what ``Diff.to_json`` says."""
        return self.diff.to_json()

    def _tab(self, part: Part) -> str:
        sign, kind = _SIGNS[part.outcome]
        return f'<span class="{kind}">{sign}</span> {page.esc(TITLES[part.name])}'

    def _overview(self) -> str:
        rows = []
        for name, part in self.diff.parts.items():
            sign, kind = _SIGNS[part.outcome]
            took = units.duration(part.seconds) if part.seconds else ""
            rows.append(
                page.row(
                    f'<span class="{kind}">{sign}</span> {page.esc(TITLES[name])}',
                    (page.esc(self.line(part)), "w"),
                    (f'<span class="dim small">{took}</span>', "n"),
                )
            )
        notes = "".join(f'<p class="note">{page.esc(note)}</p>' for note in self.notes())
        return page.table([("", ""), ("what differs", ""), ("took", "n")], rows) + notes

    def _panel(self, part: Part) -> str:
        if part.result is None:
            return f'<p class="note bad">{page.esc(self.line(part))}</p>'
        head = f'<p class="note">{page.esc(self.line(part))}</p>'
        if part.why:
            head += f'<p class="note bad">{page.esc(part.why)}</p>'
        with contextlib.suppress(KeyError):
            return head + _PANELS[part.name](self.diff, part.result)
        return head + f"<pre>{page.esc(part.result)}</pre>"


def _more(shown: int, total: int, what: str) -> str:
    return f'<p class="note">… {total - shown:,} more {what}</p>' if total > shown else ""


def _folded(title: str, content: str) -> str:
    return f'<details><summary>{page.esc(title)}</summary><div class="long">{content}</div></details>'


def _sign(kind: str) -> str:
    sign, colour = _KINDS[kind]
    return f'<span class="{colour}" title="{kind}">{sign}</span>'


# -- files -----------------------------------------------------------------------------------------------------------


def _file_parts(diff: Diff, files: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """Return the entries that matter, those that were only touched, and those that change by themselves."""
    noise = diff.noise
    noisy = [entry for entry in files if entry.path in noise]
    rest = [entry for entry in files if entry.path not in noise]
    return (
        [entry for entry in rest if entry.kind != "touched"],
        [entry for entry in rest if entry.kind == "touched"],
        noisy,
    )


def _size(entry: Any) -> str:
    if entry.type != "file":
        return str(entry.type)
    old, new = (None if side is None else side.size for side in (entry.before, entry.after))
    if old is None or new is None or old == new:
        return units.size(new if new is not None else old)
    return f"{units.size(old)} → {units.size(new)}"


def _facts(entry: Any) -> str:
    """Return in words what else differs of a file than its content."""
    said = []
    if entry.old_path is not None:
        said.append(f"was {entry.old_path}")
    if entry.link_to is not None:
        said.append(f"hard link to {entry.link_to}")
    before, after = entry.before, entry.after
    for name in entry.what:
        if before is None or after is None or name in ("content", "mtime"):
            continue
        if name == "mode":
            said.append(f"mode {before.mode:04o} → {after.mode:04o}")
        elif name in ("owner", "group"):
            old, new = (before.uid, after.uid) if name == "owner" else (before.gid, after.gid)
            said.append(f"{name} {old} → {new}")
        elif name in ("target", "type", "flags", "device"):
            said.append(f"{name} {getattr(before, name)} → {getattr(after, name)}")
        else:
            said.append(str(name))
    if before is None and after is not None and after.target is not None:
        said.append(f"→ {after.target}")
    return "; ".join(said)


def _file_rows(entries: Iterable[Any], why: dict[str, str] | None = None, texts: int = 0) -> list[str]:
    """Return rows of a table; the first ``texts`` that are text can be opened to see what differs."""
    rows = []
    for entry in entries:
        name = f"<code>{page.esc(entry.path)}</code>"
        if texts and entry.type == "file" and entry.kind in ("changed", "added", "removed", "renamed"):
            text = entry.text_diff()
            if text:
                texts -= 1
                name = f'<details class="in"><summary>{name}</summary>{_udiff(text)}</details>'
        told = page.esc((why or {}).get(entry.path) or _facts(entry))
        rows.append(page.row(_sign(entry.kind), (name, "w"), (page.esc(_size(entry)), "n"), told))
    return rows


def _files(diff: Diff, files: Any) -> str:
    columns = [("", ""), ("path", ""), ("size", "n"), ("", "")]
    main, touched, noisy = _file_parts(diff, files)
    out = page.table(columns, _file_rows(main[:ROWS], texts=DIFF_FILES)) if main else ""
    out = f'<div class="long">{out}</div>' + _more(ROWS, len(main), "files")
    if touched:
        out += _folded(
            f"{len(touched):,} more that were only touched", page.table(columns, _file_rows(touched[:ROWS]))
        )
    if noisy:
        table = page.table(columns, _file_rows(noisy[:ROWS], diff.noise))
        out += _folded(
            f"{len(noisy):,} more that change by themselves", table + _more(ROWS, len(noisy), "files")
        )
    return out


def _udiff(text: str) -> str:
    lines = []
    for line in text[:DIFF_TEXT].splitlines():
        kind = "dim" if line.startswith(("---", "+++", "@@")) else {"+": "ok", "-": "bad"}.get(line[:1], "")
        lines.append(page.span(line, kind))
    end = "\n…" if len(text) > DIFF_TEXT else ""
    return f'<pre class="udiff">{chr(10).join(lines)}{end}</pre>'


def _terminal_files(diff: Diff, files: Any) -> Iterable[RenderableType]:
    from rich.text import Text

    main, touched, noisy = _file_parts(diff, files)
    for entry in main[: ROWS // 5]:
        sign, kind = _KINDS[entry.kind]
        facts = _facts(entry)
        yield Text.assemble(
            (f"{sign} ", _STYLES.get(kind, "cyan")),
            units.clean(entry.path),
            (f"  {units.clean(facts)}" if facts else "", "bright_black"),
        )
    if len(main) > ROWS // 5:
        yield Text(f"  … {len(main) - ROWS // 5:,} more", "bright_black")
    for rest, what in ((touched, "that were only touched"), (noisy, "that change by themselves")):
        if rest:
            yield Text(f"  {len(rest):,} more {what}", "bright_black")


# -- inside ----------------------------------------------------------------------------------------------------------


def _inside(diff: Diff, inside: Any) -> str:
    out = ""
    for name, table in inside.tables.items():
        rows: list[str] = []
        folded: list[str] = []
        for kind, found in (("added", table.new), ("removed", table.gone), ("changed", table.altered)):
            for row in found:
                (folded if table.is_noise(row) else rows).append(_inside_row(kind, row, table))
        if not rows and not folded:
            continue
        out += f"<h4>{page.esc(name)}</h4>"
        if rows:
            out += (
                f'<div class="long"><table class="plain"><tbody>{"".join(rows[:ROWS])}</tbody></table></div>'
            )
            out += _more(ROWS, len(rows), name)
        if folded:
            content = f'<table class="plain"><tbody>{"".join(folded[:ROWS])}</tbody></table>'
            out += _folded(f"{len(folded)} more that change by themselves", content)
    for name, why in inside.missing.items():
        out += f'<p class="note">{page.esc(name)}: not compared, {page.esc(why)}</p>'
    return out


def _inside_row(kind: str, row: Any, table: Any) -> str:
    key = " ".join(str(value) for value in table.key(row).values() if value != "")
    if kind == "changed":
        what = "; ".join(f"{column}: {old} → {new}" for column, (old, new) in row.fields.items())
    else:
        rest = {name: value for name, value in row.items() if name not in table.key(row) and value != ""}
        what = "; ".join(f"{name} {value}" for name, value in rest.items())
    return page.row(
        _sign(kind), f"<code>{page.esc(key)}</code>", (f'<span class="dim">{page.esc(what)}</span>', "w")
    )


def _terminal_inside(diff: Diff, inside: Any) -> Iterable[RenderableType]:
    from rich.text import Text

    left = ROWS // 5
    for name, table in inside.tables.items():
        for kind, found in (("added", table.new), ("removed", table.gone), ("changed", table.altered)):
            for row in found:
                if table.is_noise(row) or left <= 0:
                    continue
                left -= 1
                sign, colour = _KINDS[kind]
                text = str(row) if kind == "changed" else " ".join(str(v) for v in row.values() if v != "")
                yield Text.assemble(
                    (f"{sign} ", _STYLES.get(colour, "cyan")),
                    (f"{name}: ", "bright_black"),
                    units.clean(text),
                )


# -- machine ---------------------------------------------------------------------------------------------------------


def _screen(_: Diff, screen: Any) -> str:
    from vmlab.render import compare_screen

    made: str = compare_screen.screens(
        screen.before_png,
        screen.after_png,
        screen.diff_png if screen.pixels else None,
        before=screen.before,
        after=screen.after,
        sizes=screen.sizes,
        summary=screen.summary,
    )
    return made


def _registers(_: Diff, registers: Any) -> str:
    many = registers.cpus != (1, 1)
    rows = [
        page.row(
            page.esc(f"CPU {change.cpu} {change.name}" if many else change.name),
            f'<span class="dim">{page.esc(change.group)}</span>',
            f"<code>{page.esc(change.shown(change.before))}</code>",
            f"<code>{page.esc(change.shown(change.after))}</code>",
        )
        for change in registers
    ]
    columns = [("register", ""), ("", ""), ("before", ""), ("after", "")]
    same = f'<p class="note">{registers.total - len(rows):,} registers are the same.</p>'
    return f'<div class="long">{page.table(columns, rows[:ROWS])}</div>{same}'


def _devices(_: Diff, devices: Any) -> str:
    out = ""
    for device in devices.changed:
        rows = [
            page.row(
                page.esc(change.name),
                f"<code>{page.esc(_short(_value(change.before)))}</code>",
                f"<code>{page.esc(_short(_value(change.after)))}</code>",
            )
            for change in device.changes[:ROWS]
        ]
        only = f" (only {device.only})" if device.only else ""
        table = page.table([("field", ""), ("before", ""), ("after", "")], rows)
        out += (
            f"<details open><summary><b>{page.esc(device.name)}</b>{page.esc(only)} "
            f'<code class="dim">{page.esc(device.id)}</code></summary>{table}</details>'
        )
    out = f'<div class="long">{out}</div>'
    if devices.unchanged:
        out += _folded(f"{len(devices.unchanged)} that are the same", page.esc(", ".join(devices.unchanged)))
    if devices.undescribed:
        names = page.esc(", ".join(devices.undescribed))
        out += f'<p class="note">Compared as bytes, for lack of a description: {names}</p>'
    return out


def _value(value: Any) -> str:
    """Return a field of a device as people read it; large numbers in hexadecimal, too."""
    if value is None:
        return "initial"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value} ({value:#x})" if isinstance(value, int) and abs(value) > 0xFFFF else str(value)


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}…"


def _ram(_: Diff, ram: Any) -> str:
    if not ram.pages:
        return ""
    each = units.size(ram.cell_pages * 4096)
    picture = page.picture(ram.heat_map(), alt="changed pages over physical memory", kind="map")
    note = f"Each square is {each}, the first at the top left: grey is unchanged, yellow a little, red all changed."
    rows = [
        page.row(f"<code>{item.address:#011x}</code>", (f"{item.pages:,}", "n"), (units.size(item.size), "n"))
        for item in sorted(ram.ranges, key=lambda item: -item.pages)[:20]
    ]
    table = page.table([("address", ""), ("pages", "n"), ("size", "n")], rows)
    return f'{picture}<p class="note">{page.esc(note)}</p>' + _folded("the longest changed ranges", table)


def _disk(_: Diff, disk: Any) -> str:
    out = ""
    for one in disk:
        strip = page.picture(one.map(), alt=f"changed places of {one.name}", kind="strip")
        out += f'<p class="note">{page.esc(one.summary)}</p>{strip}'
    return out


_PANELS: dict[str, Callable[[Any, Any], str]] = {
    "files": _files,
    "inside": _inside,
    "screen": _screen,
    "registers": _registers,
    "devices": _devices,
    "ram": _ram,
    "disk": _disk,
}
_TERMINAL: dict[str, Callable[[Any, Any], Iterable[RenderableType]]] = {
    "files": _terminal_files,
    "inside": _terminal_inside,
}


# -- several states --------------------------------------------------------------------------------------------------


class TimelineView(View):
    """What something was in several states: a row for each."""

    label = "timeline"

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline

    def rich(self) -> RenderableType:
        """Return a table."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        columns = self.timeline.columns
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bright_black")
        for title in ("", "STATE", *(column.upper() for column in columns)):
            table.add_column(title)
        for moment in self.timeline:
            sign = Text("~", "yellow") if moment.changed else Text(" ")
            cells = [Text(units.clean(moment.values.get(column, ""))) for column in columns]
            if moment.trouble or not moment.values:
                cells = [
                    Text(units.clean(moment.trouble or "–"), "red" if moment.trouble else "bright_black")
                ]
            table.add_row(sign, units.clean(moment.title), *cells[: max(1, len(columns))])
        return Group(Text(units.clean(self.timeline.summary), "bold"), table)

    def body(self) -> str:
        """Return a table; what differs in a file can be opened."""
        columns = self.timeline.columns
        rows = []
        for moment in self.timeline:
            cells = [(page.esc(moment.values.get(column, "–")), "w") for column in columns]
            if moment.trouble:
                cells = [(f'<span class="bad">{page.esc(moment.trouble)}</span>', "w")]
            elif not moment.values:
                cells = [('<span class="dim">–</span>', "") for _ in columns or ("",)]
            title = page.esc(moment.title)
            if moment.detail:
                title = f"<details><summary>{title}</summary>{_udiff(moment.detail)}</details>"
            sign = '<span class="warn">~</span>' if moment.changed else ""
            rows.append(page.row(sign, title, *cells))
        head = [("", ""), ("state", ""), *((column, "") for column in columns)]
        return f'<p class="head">{page.esc(self.timeline.summary)}</p>{page.table(head, rows)}'

    def to_json(self) -> Any:
        """Return what ``Timeline.to_json`` says."""
        return self.timeline.to_json()


class SearchView(View):
    """In which states' RAM something stands, and where."""

    label = "search"

    def __init__(self, found: list[RamSearch]) -> None:
        self.found = found

    def __iter__(self) -> Any:
        return iter(self.found)

    def rich(self) -> RenderableType:
        """Return a sentence for each state, and the first places."""
        from rich.text import Text

        return Text(
            units.clean("\n".join(str(one) for one in self.found) or "There is no live state to search.")
        )

    def body(self) -> str:
        """Return a sentence for each state; its places can be opened."""
        out = ""
        for one in self.found:
            if not one:
                out += f'<p class="note">{page.esc(one.summary)}</p>'
                continue
            rows = [
                page.row(
                    f"<code>{m.address:#012x}</code>",
                    page.esc(m.encoding),
                    f"<code>{page.esc(m.around)}</code>",
                )
                for m in one.matches[:ROWS]
            ]
            table = page.table([("address", ""), ("as", ""), ("around it", "")], rows)
            out += f"<details><summary>{page.esc(one.summary)}</summary>{table}</details>"
        return out or '<p class="note">There is no live state to search.</p>'

    def to_json(self) -> Any:
        """Return what was found in each state."""
        return [one.to_json() for one in self.found]
