"""The process in which walks happen: answers questions that come through a socket, until it is closed.

A question is a line of JSON, with ``bytes`` more behind it if it says so; so is an answer. ``{}`` is a sign of life.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from vmlab.compare.blocks import Disk, Mapped, Numbers, Segment
from vmlab.compare.ext4.differences import PAGE
from vmlab.compare.fingerprint import Fingerprint
from vmlab.compare.renames import Pair, pairs
from vmlab.compare.walk.node import Node
from vmlab.compare.walk.readers import COMPRESSED, READERS, SPARSE, Content, DamagedError, Reader, Volume
from vmlab.errors import DiskUnreadable

#: Bounds for what a damaged file system may say.
MOST_FILES = 2_000_000
DEEPEST = 512
MEMORY, CPU_SECONDS = 3 << 30, 900
#: A file may be so many times larger than the file system, if it is compressed.
_MOST_PACKED = 64
_PART = 1 << 20
#: Attributes are cut there when they are shown.
_SHOWN = 64 << 10

Words = dict[str, Any]


class Comparison:
    """Two states of a file system, both walked."""

    def __init__(
        self, readers: list[Reader], pages: Numbers, related: bool, alive: Callable[[], None]
    ) -> None:
        self.readers, self.pages, self.related, self.alive = readers, pages, related, alive
        self.size = max(reader.volume.size for reader in readers)
        #: Names that cannot be read, on each side.
        self.nameless = [0, 0]

    def tree(self, side: int) -> dict[bytes, Node]:
        """Return everything that has a name."""
        reader = self.readers[side]
        root = reader.root()
        top = reader.node(root)
        found, seen = {b"/": top}, {top.key}
        waiting = [(b"/", root, 0)]
        while waiting:
            path, entry, depth = waiting.pop()
            for child in reader.children(entry):
                if len(found) % 256 == 0:
                    self.alive()
                try:
                    name = os.fsencode(child.name)
                except (OSError, UnicodeError):
                    # Names that are no UTF-8 (or no UTF-16): the libraries give none.
                    self.nameless[side] += 1
                    continue
                if name in (b"", b".", b"..") or b"/" in name:
                    raise DamagedError("a name makes no sense")
                node = reader.node(child)
                below = path.rstrip(b"/") + b"/" + name
                if below in found:
                    raise DamagedError("a directory has a name twice")
                found[below] = node
                if len(found) > MOST_FILES or depth > DEEPEST:
                    raise DamagedError("it has more files than vmlab walks through")
                if stat.S_ISDIR(node.mode):
                    if node.key in seen:
                        raise DamagedError("a directory has two names")
                    seen.add(node.key)
                    waiting.append((below, child, depth + 1))
        return found

    def changes(self) -> Iterator[Words]:
        """Yield what differs, sorted by path."""
        before, after = self.tree(0), self.tree(1)
        found = [*self._stayed(before, after), *self._moved(before, after)]
        yield from sorted(found, key=lambda change: os.fsencode((change["after"] or change["before"])[0]))

    def _stayed(self, before: dict[bytes, Node], after: dict[bytes, Node]) -> Iterator[Words]:
        for path in before.keys() & after.keys():
            x, y = before[path], after[path]
            what = self.what(x, y)
            both = stat.S_ISDIR(x.mode) and stat.S_ISDIR(y.mode)
            if both and path != b"/" and x.identity and y.identity and _lasting(x) != _lasting(y):
                what.append("replaced")
            if what:
                yield _change((path, x), (path, y), what)

    def _moved(self, before: dict[bytes, Node], after: dict[bytes, Node]) -> Iterator[Words]:
        identities = [
            {path: node.identity if self.related else None for path, node in tree.items()}
            for tree in (before, after)
        ]
        for pair in pairs(*identities):
            x = None if pair.old is None else (pair.old, before[pair.old])
            y = None if pair.new is None else (pair.new, after[pair.new])
            what = self.what(x[1], y[1]) if x is not None and y is not None else []
            if what or pair.renamed or x is None or y is None:
                yield _change(x, y, what, pair)

    def what(self, x: Node, y: Node) -> list[str]:
        """Return what differs between two files."""
        self.alive()
        if x.format != y.format:
            return ["type"]
        found = []
        if x.format == stat.S_IFREG and (x.size or y.size) and self._content_differs(x, y):
            found.append("content")
        names = ("target", "device", "mode", "uid", "gid")
        words = ("target", "device", "mode", "owner", "group")
        found += [
            word for name, word in zip(names, words, strict=True) if getattr(x, name) != getattr(y, name)
        ]
        if x.attributes != y.attributes or self._streams_differ(x, y):
            found.append("attributes")
        if x.shown_flags != y.shown_flags:
            found.append("flags")
        if x.mtime != y.mtime:
            found.append("mtime")
        return found

    def _content_differs(self, x: Node, y: Node) -> bool:
        if x.size != y.size:
            return True
        a, b = self.readers
        return self.differ(a.content(a.entry(x.key)), b.content(b.entry(y.key)))

    def _streams_differ(self, x: Node, y: Node) -> bool:
        """Return whether the other streams of a file differ (NTFS)."""
        first, second = (
            {k: v for k, v in reader.attributes(reader.entry(node.key)).items() if isinstance(v, Content)}
            if READERS["ntfs"] is type(reader)
            else {}
            for reader, node in zip(self.readers, (x, y), strict=True)
        )
        return first.keys() != second.keys() or any(self.differ(v, second[k]) for k, v in first.items())

    def differ(self, x: Content, y: Content) -> bool:
        """Return whether contents differ; what is in the same bytes of the disk, which are equal, is not read."""
        if x.size != y.size:
            return True
        same = x.extents == y.extents and x.written == y.written and x.inline == y.inline
        untouched = same and not x.inline and not any(self._touched(*extent) for extent in x.extents)
        if untouched and self.readers[0].placed(x):
            return False
        for start, end in self._ranges(x, y):
            for at in range(start, end, _PART):
                self.alive()
                count = min(_PART, end - at)
                p, q = x.read(at, count), y.read(at, count)
                if len(p) != count or len(q) != count:
                    raise DamagedError("a file ends too early")
                if p != q:
                    return True
        return False

    def _touched(self, offset: int, size: int, flags: int) -> bool:
        if flags & SPARSE:
            return False
        first = np.searchsorted(self.pages, offset // PAGE)
        return bool(first < len(self.pages) and self.pages[first] <= (offset + size - 1) // PAGE)

    def fingerprint(self, side: int, key: int) -> str:
        """Return what is equal for files of equal content."""
        reader = self.readers[side]
        content = reader.content(reader.entry(key))
        found = Fingerprint(content.size)
        done = 0
        for start, end in self._ranges(content, content):
            for at in range(max(start, done), end, _PART):
                self.alive()
                count = min(_PART, end - at)
                if len(data := content.read(at, count)) != count:
                    raise DamagedError("a file ends too early")
                found.add(at, data)
            done = max(done, end)
        return str(found)

    def _ranges(self, x: Content, y: Content) -> list[tuple[int, int]]:
        """Return which bytes of two contents of one size must be compared; the others are zeros in both."""
        whole = [(0, x.size)]
        extents = x.extents + y.extents
        if x.inline or y.inline or any(flags & COMPRESSED for _, _, flags in extents):
            if x.size > self.size * _MOST_PACKED:
                raise DamagedError("a file is larger than it can be")
            return whole
        found = []
        for content in (x, y):
            at = 0
            for _, size, flags in content.extents:
                if not flags & SPARSE:
                    found.append((at, min(at + size, x.size)))
                at += size
        if sum(end - start for start, end in found) > 2 * self.size:
            raise DamagedError("a file is larger than it can be")
        return sorted((start, end) for start, end in found if start < end)


def _lasting(node: Node) -> tuple[Any, ...]:
    """Return what tells a directory from another of its name; FAT's time and size may change."""
    assert node.identity is not None
    return node.identity[:3]


def _change(
    before: tuple[bytes, Node] | None,
    after: tuple[bytes, Node] | None,
    what: list[str],
    pair: Pair | None = None,
) -> Words:
    sides = [None if side is None else (os.fsdecode(side[0]), side[1].to_json()) for side in (before, after)]
    return {
        "before": sides[0],
        "after": sides[1],
        "what": what,
        "renamed": pair is not None and pair.renamed,
        "link_to": None if pair is None or pair.link_to is None else os.fsdecode(pair.link_to),
        "moved_to": None if pair is None or pair.moved_to is None else os.fsdecode(pair.moved_to),
    }


class Worker:
    """Answers questions."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.readers: list[Reader] = []
        self._calls = 0

    def alive(self) -> None:
        """Say from time to time that there is no standstill."""
        self._calls += 1
        if self._calls % 64 == 0:
            self.send({})

    def send(self, words: Words, payload: bytes = b"") -> None:
        """Send an answer."""
        self.file.write(
            json.dumps(words | {"bytes": len(payload)} if words else {}).encode() + b"\n" + payload
        )
        self.file.flush()

    def serve(self) -> None:
        """Answer until nobody asks any more."""
        while line := self.file.readline():
            question = json.loads(line)
            payload = self.file.read(question["bytes"])
            try:
                self.send(*getattr(self, question.pop("do"))(question, payload))
            except DiskUnreadable as error:
                self.send({"error": error.message.rstrip(".")})
            except DamagedError as error:
                self.send({"error": str(error)})
            except MemoryError:
                self.send({"error": "it takes too much memory"})
            except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
                # The libraries say everything in one line, call by call; the first says enough.
                self.send({"error": str(error).split(". ")[0] or type(error).__name__})

    def open(self, question: Words, payload: bytes) -> tuple[Words, bytes]:
        """Open the states, one or two."""
        sources = [
            Mapped(Disk(Path(path)), [Segment(*words) for words in segments])
            for path, segments in question["sides"]
        ]
        self.readers = [READERS[question["kind"]](Volume(source)) for source in sources]
        notes = [reader.note for reader in self.readers if reader.note is not None][-1:]
        return {"notes": notes, "label": self.readers[-1].label}, b""

    def compare(self, question: Words, payload: bytes) -> tuple[Words, bytes]:
        """Compare two states."""
        comparison = Comparison(self.readers, np.frombuffer(payload, "<i8"), question["related"], self.alive)
        changes = list(comparison.changes())
        notes = []
        if any(comparison.nameless):
            notes.append(f"names that are no Unicode are not read ({max(comparison.nameless)})")
        return {"changes": changes, "notes": notes}, b""

    def fingerprint(self, question: Words, payload: bytes) -> tuple[Words, bytes]:
        """Return what is equal for files of equal content."""
        comparison = Comparison(self.readers, np.zeros(0, np.int64), False, self.alive)
        return {"fingerprint": comparison.fingerprint(question["side"], question["key"])}, b""

    def attributes(self, question: Words, payload: bytes) -> tuple[Words, bytes]:
        """Return the extended attributes of a file."""
        reader = self.readers[question["side"]]
        found = reader.attributes(reader.entry(question["key"]))
        values = {
            name: (value.read(0, _SHOWN) if isinstance(value, Content) else value).hex()
            for name, value in found.items()
        }
        return {"attributes": values}, b""

    def read(self, question: Words, payload: bytes) -> tuple[Words, bytes]:
        """Return bytes of a file."""
        reader = self.readers[question["side"]]
        content = reader.content(reader.entry(question["key"]))
        return {"read": True}, content.read(question["offset"], question["length"])

    def lookup(self, question: Words, payload: bytes) -> tuple[Words, bytes]:
        """Return what a path leads to."""
        reader = self.readers[question["side"]]
        entry = reader.root()
        for name in filter(None, question["path"].split("/")):
            entry = next((c for c in reader.children(entry) if c.name == name), None)
            if entry is None:
                return {"node": None}, b""
        return {"node": reader.node(entry).to_json()}, b""


def main() -> None:
    """Serve the socket whose number is the only argument."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    # A library that goes round in circles after the one who asked is gone.
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        try:
            Worker(cast("BinaryIO", connection.makefile("rwb"))).serve()
        except BrokenPipeError:
            os._exit(0)


if __name__ == "__main__":
    main()
