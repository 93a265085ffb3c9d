"""The HTML side: one style sheet, and small helpers that escape.

Every output carries those rules of the style sheet that it needs, because a saved notebook, an exported page
and a mail have nothing else to take them from. Colours come from JupyterLab's theme, then from VS Code's, then
from fixed light or dark values.
"""

from __future__ import annotations

import base64
import html
import re
from datetime import datetime
from functools import cache

from vmlab.render import units

#: variable -> (JupyterLab's name, VS Code's name, light, dark)
_COLOURS: dict[str, tuple[str, str, str, str]] = {
    "fg": ("--jp-content-font-color1", "--vscode-foreground", "#1f2328", "#e6e8eb"),
    "dim": ("--jp-ui-font-color2", "--vscode-descriptionForeground", "#5b636d", "#a3abb5"),
    "line": ("--jp-border-color2", "--vscode-widget-border", "#d5d9de", "#3d444d"),
    "soft": ("--jp-layout-color2", "--vscode-textBlockQuote-background", "#f3f5f7", "#22272e"),
    "bg": ("--jp-layout-color0", "--vscode-editor-background", "#ffffff", "#14171a"),
    "ok": ("--jp-success-color1", "--vscode-testing-iconPassed", "#2c7a3f", "#57b36d"),
    "warn": ("--jp-warn-color1", "--vscode-editorWarning-foreground", "#b45f06", "#e09b4a"),
    "bad": ("--jp-error-color1", "--vscode-errorForeground", "#c62828", "#ef7070"),
    "brand": ("--jp-brand-color1", "--vscode-textLink-foreground", "#1769aa", "#6cb2eb"),
}


def _variables(names: set[str], *, dark: bool) -> str:
    return "".join(
        f"--v-{name}:var({jp},var({code},{night if dark else day}));"
        for name, (jp, code, day, night) in _COLOURS.items()
        if name in names
    )


# ".vml.vml" outweighs JupyterLab's own rules for tables in outputs (.jp-RenderedHTMLCommon tbody tr:nth-
# child(..)).
_RULES = """
.vml.vml{color:var(--v-fg);font:13px/1.45 var(--jp-ui-font-family,system-ui,"Segoe UI",sans-serif);
 margin:2px 0 6px;max-width:100%;overflow-x:auto}
.vml.vml table{border-collapse:collapse;border:0;margin:0;font-size:13px;table-layout:auto;width:auto}
.vml.vml tr,.vml.vml tbody tr:nth-child(odd),.vml.vml tbody tr:nth-child(even){background:transparent}
.vml.vml tbody tr:hover{background:var(--v-soft)}
.vml.vml th,.vml.vml td{border:0;padding:5px 18px 5px 0;text-align:left;vertical-align:middle;color:inherit;
 background:transparent;white-space:nowrap;font-size:13px;line-height:1.35}
.vml.vml tr>*:first-child{padding-left:8px}
.vml.vml thead th,.vml.vml thead td{color:var(--v-dim);font-weight:500;font-size:12px;
 border-bottom:1px solid var(--v-line)}
.vml.vml .plain tbody tr+tr>*{border-top:0}
.vml.vml .plain th,.vml.vml .plain td{padding-top:2px;padding-bottom:2px;
 white-space:normal;vertical-align:baseline}
.vml.vml tbody th{font-weight:600}
.vml.vml tbody tr+tr>*{border-top:1px solid color-mix(in srgb,var(--v-line) 45%,transparent)}
.vml.vml tfoot td,.vml.vml tfoot th{color:var(--v-dim);border-top:1px solid var(--v-line);font-weight:500}
.vml.vml td.n,.vml.vml th.n{text-align:right;font-variant-numeric:tabular-nums}
.vml.vml td.w{white-space:normal;min-width:12em;max-width:44em}
.vml.vml .dim{color:var(--v-dim)}
.vml.vml .small{font-size:12px}
.vml.vml .st{display:inline-flex;align-items:center;gap:7px}
.vml.vml .st::before{content:"";width:8px;height:8px;border-radius:50%;background:currentColor;flex:none}
.vml.vml .st.hollow::before{background:transparent;box-shadow:inset 0 0 0 2px currentColor}
.vml.vml .st>span{color:var(--v-fg)}
.vml.vml .pill{display:inline-block;border:1px solid currentColor;border-radius:9px;padding:0 8px;
 font-size:11.5px; line-height:17px;font-weight:500;margin-left:8px;vertical-align:1px}
.vml.vml .bar{display:block;height:4px;border-radius:2px;
 background:color-mix(in srgb,var(--v-dim) 25%,transparent);
 margin-top:3px;overflow:hidden;min-width:72px}
.vml.vml .bar>i{display:block;height:100%;border-radius:2px;background:var(--v-brand)}
.vml.vml .bar>i.warn{background:var(--v-warn)}.vml.vml .bar>i.bad{background:var(--v-bad)}
.vml.vml .bar>i.ok{background:var(--v-ok)}
.vml.vml .wide .bar{height:8px;border-radius:4px;min-width:220px}
.vml.vml .head{font-weight:600;font-size:14px;margin:0 0 4px;padding-left:8px}
.vml.vml caption{text-align:left;caption-side:top}
.vml.vml .columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(31em,1fr));gap:14px 28px;
 margin:12px 0;align-items:start}
.vml.vml .note{color:var(--v-dim);font-size:12px;margin:4px 0 0;padding-left:8px}
.vml.vml code,.vml.vml pre{font-family:var(--jp-code-font-family,ui-monospace,"DejaVu Sans Mono",monospace);
 font-size:12.5px;background:transparent;color:inherit;padding:0}
.vml.vml pre{margin:0;white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.4}
.vml.vml .box{border:1px solid var(--v-line);border-radius:5px;margin:0 0 8px;overflow:hidden}
.vml.vml .box>header{display:flex;align-items:center;gap:12px;background:var(--v-soft);padding:4px 10px}
.vml.vml .box>header>.dim{margin-left:auto}
.vml.vml .box>pre{padding:6px 10px;max-height:26em;overflow:auto}
.vml.vml img.thumb{display:block;width:112px;max-width:none;height:auto;border-radius:3px;
 border:1px solid var(--v-line); margin:0}
.vml.vml img.shot{display:block;max-width:100%;height:auto;
 border:1px solid var(--v-line);border-radius:4px;margin:0}
.vml.vml figure{margin:0}.vml.vml figcaption{color:var(--v-dim);font-size:12px;padding-top:3px}
.vml.vml a{color:var(--v-brand)}
.vml.vml .g{position:relative;padding:0;min-width:var(--w)}
.vml.vml .g i{position:absolute;border:0 solid var(--v-line);box-sizing:border-box}
.vml.vml .g i.v{border-left-width:2px;width:0}
.vml.vml .g i.e{border-left-width:2px;border-bottom-width:2px;border-bottom-left-radius:9px}
.vml.vml .g b{position:absolute;top:50%;width:12px;height:12px;margin:-6px 0 0 -5px;border-radius:50%;
 background:var(--v-bg);border:2px solid var(--v-dim);box-sizing:border-box}
.vml.vml .g b.live{background:var(--v-brand);border-color:var(--v-brand)}
.vml.vml .g b.now{background:var(--v-ok);border-color:var(--v-ok);border-radius:3px;transform:rotate(45deg)}
.vml.vml tr.bare>*{border-top:0!important}
.vml.vml dl{display:grid;grid-template-columns:max-content auto;gap:2px 16px;margin:0;padding-left:8px}
.vml.vml dt,.vml.vml dd{float:none;width:auto;margin:0;max-width:60em}
.vml.vml dt{color:var(--v-dim);font-weight:400;white-space:nowrap}
.vml.vml .ok{color:var(--v-ok)}.vml.vml .warn{color:var(--v-warn)}.vml.vml .bad{color:var(--v-bad)}
.vml.vml .brand{color:var(--v-brand)}
.vml.vml svg.net{display:block;max-width:none;margin:2px 0 6px 8px}
.vml.vml svg.net text{fill:var(--v-fg);font-size:13px}
.vml.vml svg.net text.b{font-weight:600}
.vml.vml svg.net text.s{fill:var(--v-dim);font-size:11px}
.vml.vml svg.net text.warn{fill:var(--v-warn)}
.vml.vml svg.net circle{fill:currentColor}
.vml.vml svg.net .m{fill:var(--v-soft);stroke:var(--v-line)}
.vml.vml svg.net .w{stroke:var(--v-brand);stroke-width:3;stroke-linecap:round}
.vml.vml svg.net .c{stroke:var(--v-dim);stroke-width:1.5}
.vml.vml svg.net .c.off{stroke:var(--v-bad);stroke-dasharray:4 4}
.vml.vml svg.net circle.d{fill:var(--v-brand)}
.vml.vml svg.net circle.d.off{fill:var(--v-bad)}
""".strip()


@cache
def _split(rules: str) -> list[tuple[str, list[set[str]], str]]:
    """Return selectors, the classes (``.x``) and elements that each of a rule's selectors needs, and declarations."""
    found = []
    for selectors, declarations in re.findall(r"([^{}]+)\{([^{}]*)\}", rules):
        needs = []
        for selector in selectors.split(","):
            plain = re.sub(r":{1,2}[\w-]+(\([^)]*\))?", "", selector)
            needs.append(set(re.findall(r"\.?[a-z][\w-]*", plain)) - {".vml"})
        found.append((selectors.strip(), needs, declarations.replace("\n ", "")))
    return found


def style(rules: str, body: str) -> str:
    """Return those of flat ``rules`` (no ``@``) that can apply to something in ``body``."""
    classes = " ".join(re.findall(r'class="([^"]*)"', body)).split()
    there = {f".{name}" for name in classes} | set(re.findall(r"<([a-z][a-z0-9]*)", body)) | {"div"}
    return "".join(
        f"{selectors}{{{declarations}}}"
        for selectors, needs, declarations in _split(rules)
        if any(need <= there for need in needs)
    )


def esc(text: object) -> str:
    """Return ``text`` safe for HTML content and attribute values."""
    return html.escape(units.clean(text), quote=True)


def line(text: object) -> str:
    """Return what others named or wrote as one line (:func:`vmlab.render.units.line`), safe for HTML."""
    return esc(units.line(text))


def code(text: object) -> str:
    """Return the same in the font of code."""
    return f"<code>{line(text)}</code>"


def page(body: str, *, label: str = "") -> str:
    """Wrap ``body`` with what it needs of the style sheet."""
    rules = style(_RULES, body)
    used = set(re.findall(r"var\(--v-(\w+)\)", rules + body))
    day, night = _variables(used, dark=False), _variables(used, dark=True)
    colours = f".vml.vml{{{day}}}@media (prefers-color-scheme:dark){{.vml.vml{{{night}}}}}"
    named = f' role="group" aria-label="{esc(label)}"' if label else ""
    return f'<style>{colours}{rules}</style><div class="vml"{named}>{body}</div>'


def document(title: str, body: str) -> str:
    """Return a whole HTML page of what :func:`page` returned; it needs nothing else, and can be written as UTF-8."""
    style = (
        "body{margin:24px;background:#fff}@media (prefers-color-scheme:dark){body{background:#14171a}}"
        ":root{color-scheme:light dark}"
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{esc(title)}</title><style>{style}</style></head><body>{body}</body></html>\n"
    )


def span(text: object, kind: str = "") -> str:
    """Return an escaped text, in a class if given."""
    return f'<span class="{kind}">{esc(text)}</span>' if kind else esc(text)


def moment(when: datetime) -> str:
    """Return a relative time whose absolute value shows when the pointer is on it."""
    stamp = units.absolute(when)
    return f'<time datetime="{esc(when.isoformat())}" title="{esc(stamp)}">{esc(units.ago(when))}</time>'


def bar(fraction: float | None, *, label: str, kind: str | None = None) -> str:
    """Return a bar of ``fraction`` (0 to 1); amber from 75 %, red from 90 % unless ``kind`` is given."""
    if fraction is None:
        return ""
    share = min(1.0, max(0.0, fraction))
    if kind is None:
        kind = "bad" if share >= 0.9 else "warn" if share >= 0.75 else ""
    return (
        f'<span class="bar" role="img" aria-label="{esc(label)}" title="{esc(label)}">'
        f'<i class="{kind}" style="width:{share * 100:.1f}%"></i></span>'
    )


def picture(png: bytes, *, alt: str, kind: str = "shot") -> str:
    """Return an image with its data inside."""
    data = base64.b64encode(png).decode("ascii")
    return f'<img class="{kind}" alt="{esc(alt)}" src="data:image/png;base64,{data}">'


def table(columns: list[tuple[str, str]], rows: list[str], *, caption: str = "", foot: str = "") -> str:
    """Return a table from ``(title, class)`` columns and ready ``<tr>`` rows; a column may have no title."""
    # An empty header would be read out as one.
    head = "".join(
        f'<th scope="col"{_cls(kind)}>{esc(title)}</th>' if title else f"<td{_cls(kind)}></td>"
        for title, kind in columns
    )
    top = f'<caption class="head">{esc(caption)}</caption>' if caption else ""
    end = f"<tfoot>{foot}</tfoot>" if foot else ""
    return f"<table>{top}<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>{end}</table>"


def row(head: str, *cells: tuple[str, str] | str, kind: str = "") -> str:
    """Return a ``<tr>`` from ready HTML: a row header, then cells, each ``html`` or ``(html, class)``."""
    rest = "".join(f"<td>{c}</td>" if isinstance(c, str) else f"<td{_cls(c[1])}>{c[0]}</td>" for c in cells)
    first = f'<th scope="row">{head}</th>' if head else "<td></td>"
    return f"<tr{_cls(kind)}>{first}{rest}</tr>"


def _cls(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
