"""Reads the HTML of results, and holds what must be so for all of it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"img", "br", "hr", "meta", "input"}


class Checker(HTMLParser):
    """Collects tags and words, and checks that every tag is closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.words, self.headers = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "th":
            self.headers.append("")

    def handle_endtag(self, tag):
        assert self.open[-1:] == [tag], (tag, self.open)
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            return
        self.words.append(data)
        if "th" in self.open:
            self.headers[-1] += data


def parse(html):
    """Return what the HTML of a result consists of; fail if it is not as all of it must be."""
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert not checker.open
    assert "script" not in checker.tags
    assert not any(name.startswith("on") for _, attrs in checker.attributes for name in attrs)
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", html)
    for tag, attrs in checker.attributes:
        if tag == "img":
            assert attrs["alt"]
            assert attrs["src"].startswith("data:image/png;base64,")
        if tag == "th":
            assert attrs["scope"] in ("row", "col")
    # An empty header would be read out as one.
    assert all(words.strip() for words in checker.headers), html
    return checker
