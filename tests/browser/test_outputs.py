"""Results in a page: each looks as it would with the whole style sheet, of which it brings only what it needs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from help.results import every_view
from playwright.sync_api import Page

from vmlab.render import page as rendered

#: What the browser makes of each element, and of what stands before it, in all that our style sheets speak of.
LOOKS = """names => [...document.querySelectorAll('.vml, .vml *')].map(element => [null, '::before'].map(part => {
    const style = getComputedStyle(element, part);
    const looks = names.map(name => `${name}: ${style.getPropertyValue(name)}`);
    return `${element.tagName} ${element.className} ${part} ${looks.join('; ')}`;
}).join('\\n'))"""


def looks(page: Page, html: str, names: list[str]) -> list[str]:
    page.set_content(f"<!doctype html><body>{html}</body>")
    return page.evaluate(LOOKS, names)


def test_results_look_as_with_the_whole_style_sheet(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = every_view(tmp_path)
    fewer = {name: view.html() for name, view in views.items()}
    monkeypatch.setattr(rendered, "style", lambda rules, _body: rules)
    whole = {name: view.html() for name, view in views.items()}
    names = sorted(set(re.findall(r"[{;]\s*([a-z][a-z-]*):", "".join(whole.values()))))
    assert {"border", "color", "font", "padding", "width"} <= set(names)
    for name in views:
        seen = looks(page, fewer[name], names)
        assert len(fewer[name]) < len(whole[name])
        assert seen == looks(page, whole[name], names), name
        assert any("color: rgb(31, 35, 40)" in element for element in seen), name
