"""How the comparison of two states looks: tabs in a notebook, sections in a terminal, one HTML file."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from vmlab.render import page, units
from vmlab.render.units import line
from vmlab.render.view import View
from vmlab.views import compare_screen

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vmlab.compare.ramstrings import StringsDiff
    from vmlab.study.diff import Diff, Part

#: Rows of a table that are shown; it says how many there are, and JSON and pandas have them all.
ROWS = 200
#: Characters of one file's text diff, how many files' text diffs are shown, and the seconds that all of them may take:
#: what is compared was written by a guest, which may have made it as hard as it can be.
DIFF_TEXT, DIFF_FILES, DIFF_SECONDS = 6000, 40, 2.0

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
TABS = """
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
.vml.vml .tabs code{unicode-bidi:isolate}
.vml.vml .tabs td code{white-space:pre-wrap;overflow-wrap:anywhere}
.vml.vml .tabs .long{max-height:34em;overflow:auto}
.vml.vml .tabs pre.udiff{max-height:24em;overflow:auto;padding:4px 8px;background:var(--v-soft);border-radius:4px}
.vml.vml .tabs pre.udiff>span{display:block;padding-left:2ch;text-indent:-2ch}
.vml.vml .tabs img.map{display:block;margin:4px 8px;max-width:calc(100% - 16px);height:auto;image-rendering:pixelated}
.vml.vml .tabs img.strip{width:100%;height:26px;max-width:64em;border:1px solid var(--v-line)}
"""


class DiffView(View):
    """A comparison: a summary that fits a screen, then each part."""

    label = "comparison"

    def __init__(self, diff: Diff) -> None:
        self.diff = diff
        # Compares the usual parts if none was yet.
        _ = diff.same

    # -- terminal ------------------------------------------------------------------------------------------------

    def rich(self) -> RenderableType:
        """Return a line for each part, then what differs in the parts that people read."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        diff = self.diff
        before, after = line(diff.before.title), line(diff.after.title)
        head = Text.assemble((before, "bold"), " → ", (after, "bold"))
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        for name, part in diff.parts.items():
            sign, kind = _SIGNS[part.outcome]
            took = Text(units.duration(part.seconds) if part.seconds else "", "bright_black")
            table.add_row(Text(sign, _STYLES[kind]), name, Text(line(self.line(part))), took)
        blocks: list[RenderableType] = [head, table]
        for part in diff.parts.values():
            write = _TERMINAL.get(part.name)
            if write is not None and part.outcome == "different" and part.result is not None:
                rows = list(write(diff, part.result))
                if rows:
                    blocks += [Text(""), _listing(rows)]
        notes = self.notes()
        if notes:
            blocks += [Text(""), _listing([("", "", Text(line(note), "bright_black")) for note in notes])]
        return Group(*blocks)

    def line(self, part: Part) -> str:
        """Return what to say of a part in one line."""
        return f"not compared: {part.why}" if part.outcome == "failed" else self.diff.line(part.name)

    def notes(self) -> list[str]:
        """Return what should be known beside the parts."""
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
            # Of one part there is nothing to give an overview of.
            checked = " checked" if number == (len(panels) == 2) else ""
            tops.append(
                f'<input type="radio" name="{group}" id="{group}-{number}"{checked}>'
                f'<label for="{group}-{number}">{title if number else page.esc(title)}</label>'
            )
        inner = "".join(f"<section>{content}</section>" for _, content in panels)
        tabs = f'<div class="tabs">{"".join(tops)}<div class="panels">{inner}</div></div>'
        shown = ",".join(f".vml.vml .tabs>{rule}" for rule in rules)
        arrow = f"{page.line(self.diff.before.title)} → {page.line(self.diff.after.title)}"
        return (
            f"<style>{page.style(TABS, tabs)}{shown}{{display:block}}</style>"
            f'<p class="head">{arrow}</p>{tabs}'
        )

    @property
    def heading(self) -> str:
        """The two states."""
        return f"{line(self.diff.before.title)} → {line(self.diff.after.title)}"

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
                    (page.line(self.line(part)), "w"),
                    (f'<span class="dim small">{took}</span>', "n"),
                )
            )
        notes = "".join(f'<p class="note">{page.line(note)}</p>' for note in self.notes())
        return page.table([("part", ""), ("what differs", ""), ("took", "n")], rows) + notes

    def _panel(self, part: Part) -> str:
        if part.result is None:
            return f'<p class="note bad">{page.line(self.line(part))}</p>'
        head = f'<p class="note">{page.line(self.line(part))}</p>'
        if part.why:
            head += f'<p class="note bad">{page.line(part.why)}</p>'
        with contextlib.suppress(KeyError):
            return head + _PANELS[part.name](self.diff, part.result)
        return head + f"<pre>{page.esc(part.result)}</pre>"


# What a guest names and writes goes through page.line(), page.code() or line(): then it is one line, whatever it is.

#: A row in a terminal: sign, its colour, text.
_Row = tuple[str, str, Any]


def _listing(rows: Iterable[_Row]) -> RenderableType:
    """Return rows in two columns: where a long text is broken, what follows never stands where signs do."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(width=1)
    table.add_column(overflow="fold")
    for sign, colour, text in rows:
        table.add_row(Text(sign, colour), text)
    return table


def _more(shown: int, total: int, what: str) -> str:
    return f'<p class="note">… {total - shown:,} more {what}</p>' if total > shown else ""


def _folded(title: str, content: str) -> str:
    return f'<details><summary>{page.esc(title)}</summary><div class="long">{content}</div></details>'


def _sign(kind: str) -> str:
    sign, colour = _KINDS[kind]
    return f'<span class="{colour}" title="{kind}">{sign}</span>'


# -- files -----------------------------------------------------------------------------------------------------------


def _noise(diff: Diff, entry: Any) -> str | None:
    """Return why a difference comes by itself, or None if it does not."""
    return diff.noise.get((entry.volume, entry.path, entry.kind))


def _file_parts(diff: Diff, files: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """Return the entries that matter, those that were only touched, and those that change by themselves."""
    noisy = [entry for entry in files if _noise(diff, entry) is not None]
    rest = [entry for entry in files if _noise(diff, entry) is None]
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


def _facts(entry: Any) -> list[tuple[str, list[str]]]:
    """Return what else differs of a file than its content: in our words, and then in the guest's."""
    said: list[tuple[str, list[str]]] = []
    if entry.old_path is not None:
        said.append(("was", [entry.old_path]))
    if entry.link_to is not None:
        said.append(("hard link to", [entry.link_to]))
    before, after = entry.before, entry.after
    for name in entry.what:
        if before is None or after is None or name in ("content", "mtime"):
            continue
        if name == "mode":
            said.append((f"mode {before.mode:04o} → {after.mode:04o}", []))
        elif name in ("owner", "group"):
            old, new = (before.uid, after.uid) if name == "owner" else (before.gid, after.gid)
            said.append((f"{name} {old} → {new}", []))
        elif name in ("target", "type", "flags", "device"):
            said.append((name, [str(getattr(side, name)) for side in (before, after)]))
        else:
            said.append((str(name), []))
    if before is None and after is not None and after.target is not None:
        said.append(("→", [after.target]))
    return said


def _facts_html(entry: Any) -> str:
    return "; ".join(
        " ".join([page.esc(words), " → ".join(page.code(text) for text in texts)]).rstrip()
        for words, texts in _facts(entry)
    )


def _facts_text(entry: Any) -> str:
    return "; ".join(
        " ".join([words, " → ".join(map(line, texts))]).rstrip() for words, texts in _facts(entry)
    )


def _many_volumes(files: Any) -> bool:
    return len({entry.volume for entry in files}) > 1


def _file_rows(diff: Diff, entries: Iterable[Any], *, volumes: bool, texts: int = 0) -> list[str]:
    """Return rows of a table; the first ``texts`` that are text can be opened to see what differs."""
    rows = []
    until = time.monotonic() + DIFF_SECONDS
    for entry in entries:
        name = page.code(entry.shown)
        if texts and entry.type == "file" and entry.kind in ("changed", "added", "removed", "renamed"):
            if time.monotonic() > until:
                texts = 0
            elif text := entry.text_diff():
                texts -= 1
                name = f'<details class="in"><summary>{name}</summary>{udiff(text)}</details>'
        told = page.esc(_noise(diff, entry) or "") or _facts_html(entry)
        volume = [f'<span class="dim">{page.line(entry.volume)}</span>'] if volumes else []
        rows.append(page.row(_sign(entry.kind), (name, "w"), (page.esc(_size(entry)), "n"), *volume, told))
    return rows


def _files(diff: Diff, files: Any) -> str:
    volumes = _many_volumes(files)
    columns = [("", ""), ("path", ""), ("size", "n"), *([("volume", "")] if volumes else []), ("", "")]
    main, touched, noisy = _file_parts(diff, files)
    rows = _file_rows(diff, main[:ROWS], volumes=volumes, texts=DIFF_FILES)
    out = page.table(columns, rows) if main else ""
    out = f'<div class="long">{out}</div>' + _more(ROWS, len(main), "files")
    for rest, what in ((touched, "that were only touched"), (noisy, "that change by themselves")):
        if rest:
            table = page.table(columns, _file_rows(diff, rest[:ROWS], volumes=volumes))
            out += _folded(f"{len(rest):,} more {what}", table + _more(ROWS, len(rest), "files"))
    return out


def udiff(text: str) -> str:
    """Return a unified diff as HTML, its lines in colour."""
    lines = []
    for number, one in enumerate(text[:DIFF_TEXT].rstrip("\n").split("\n")):
        # Only the first two are names: a line that was removed may begin with "-- ".
        head = number < 2 or one.startswith("@@")
        kind = "dim" if head else {"+": "ok", "-": "bad"}.get(one[:1], "")
        # Blocks, whose further lines are indented; and lines where there is no style sheet.
        shown = page.esc(line(one, keep=" \t"))
        lines.append(f'<span class="{kind}">{shown}\n</span>')
    end = "…" if len(text) > DIFF_TEXT else ""
    return f'<pre class="udiff">{"".join(lines)}{end}</pre>'


def _terminal_files(diff: Diff, files: Any) -> Iterable[_Row]:
    from rich.text import Text

    main, touched, noisy = _file_parts(diff, files)
    volumes = _many_volumes(files)
    for entry in main[: ROWS // 5]:
        sign, kind = _KINDS[entry.kind]
        facts = "; ".join(filter(None, [_facts_text(entry), f"on {line(entry.volume)}" if volumes else ""]))
        text = Text.assemble(line(entry.shown), (f"  {facts}" if facts else "", "bright_black"))
        yield sign, _STYLES.get(kind, "cyan"), text
    if len(main) > ROWS // 5:
        yield "", "", Text(f"… {len(main) - ROWS // 5:,} more", "bright_black")
    for rest, what in ((touched, "that were only touched"), (noisy, "that change by themselves")):
        if rest:
            yield "", "", Text(f"{len(rest):,} more {what}", "bright_black")


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
        out += f'<p class="note">{page.esc(name)}: not compared, {page.line(why)}</p>'
    return out


def _inside_row(kind: str, row: Any, table: Any) -> str:
    # Of what runs, the program is told beside it.
    key = {name: value for name, value in table.key(row).items() if name != "program"}
    if kind == "changed":
        what = [
            f"{page.esc(name)} {_or_none(old)} → {_or_none(new)}" for name, (old, new) in row.fields.items()
        ]
    else:
        rest = {name: value for name, value in row.items() if name not in key and value != ""}
        what = [f"{page.esc(name)} {page.code(value)}" for name, value in rest.items()]
    names = " ".join(page.code(value) for value in key.values() if value != "")
    return page.row(_sign(kind), names, (f'<span class="dim">{"; ".join(what)}</span>', "w"))


def _or_none(value: Any) -> str:
    return "–" if value in ("", None) else page.code(value)


def _terminal_inside(diff: Diff, inside: Any) -> Iterable[_Row]:
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
                yield (
                    sign,
                    _STYLES.get(colour, "cyan"),
                    Text.assemble((f"{name}: ", "bright_black"), line(text)),
                )


# -- machine ---------------------------------------------------------------------------------------------------------


def _screen(_: Diff, screen: Any) -> str:
    return compare_screen.compared(screen)


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
                page.code(_short(_value(change.before))),
                page.code(_short(_value(change.after))),
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
    return text if len(text) <= 80 else f"{text[:79]}…"


def _ram(diff: Diff, ram: Any) -> str:
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
    out = f'{picture}<p class="note">{page.esc(note)}</p>' + _folded("the longest changed ranges", table)
    strings = _strings(diff)
    if strings is None:
        return out
    out += f'<h4>strings</h4><p class="note">{page.esc(strings.summary)}</p>'
    for kind, title, found in _string_kinds(strings):
        rows = [
            page.row(
                _sign(kind),
                (f"<code>{page.esc(line(text, keep=' '))}</code>", "w"),
                (f"{count:,} ×" if count > 1 else "", "n"),
            )
            for text, count in found[:ROWS]
        ]
        if rows:
            table = f'<table class="plain"><tbody>{"".join(rows)}</tbody></table>'
            out += _folded(f"{len(found):,} that {title}", table + _more(ROWS, len(found), "strings"))
    return out


def _strings(diff: Diff) -> StringsDiff | None:
    """Return what strings came and went, if that was asked for: it is no part, and takes a second."""
    found: StringsDiff | None = vars(diff).get("strings")
    return found


def _string_kinds(strings: StringsDiff) -> Sequence[tuple[str, str, Sequence[tuple[str, int]]]]:
    return ("added", "came", strings.came), ("removed", "went", strings.went)


def _terminal_ram(diff: Diff, _: Any) -> Iterable[_Row]:
    from rich.text import Text

    strings = _strings(diff)
    if strings is None:
        return
    yield "", "", Text(strings.summary, "bright_black")
    for kind, title, found in _string_kinds(strings):
        sign, colour = _KINDS[kind]
        for text, _count in found[: ROWS // 10]:
            yield sign, _STYLES[colour], Text(_short(line(text, keep=" ")))
        if len(found) > ROWS // 10:
            yield "", "", Text(f"… {len(found) - ROWS // 10:,} more that {title}", "bright_black")


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
_TERMINAL: dict[str, Callable[[Any, Any], Iterable[_Row]]] = {
    "files": _terminal_files,
    "inside": _terminal_inside,
    "ram": _terminal_ram,
}


# -- several states --------------------------------------------------------------------------------------------------
