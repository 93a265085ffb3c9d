"""FAT, NTFS and XFS, compared by walking both sides with libyal's readers (LGPL, the extra ``filesystems``).

Those are C libraries, and a damaged file system can bring them down. So they run in a process of their own
(:mod:`vmlab.compare.walk.worker`), with limits of time and memory; nothing that happens there harms this one.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vmlab.compare.blocks import Mapped, Numbers
from vmlab.compare.ext4.differences import Change
from vmlab.compare.walk.node import Node
from vmlab.errors import DiskUnreadable

#: The library for each kind of file system.
LIBRARIES = {"fat": "pyfsfat", "ntfs": "pyfsntfs", "xfs": "pyfsxfs"}
#: Seconds without a sign of life after which a reader is given up.
PATIENCE = 60
#: Bytes that are asked for at once.
_PART = 4 << 20


def readable(kind: str) -> bool:
    """Whether a kind of file system can be walked, with what is installed."""
    return kind in LIBRARIES and importlib.util.find_spec(LIBRARIES[kind]) is not None


class Walk:
    """A file system, or two states of one, read in a process of their own, which ends with this object.

    Parameters
    ----------
    kind
        ``fat``, ``ntfs`` or ``xfs``.
    places
        Where it is, or the two are.
    """

    def __init__(self, kind: str, *places: Mapped) -> None:
        self.kind = kind
        self.label = ""
        #: Sentences about what the result may lack.
        self.notes: list[str] = []
        self._places = [
            (str(side.disk.path), [(s.logical, s.physical, s.length) for s in side.segments])
            for side in places
        ]
        self._lock = threading.Lock()
        ours, theirs = socket.socketpair()
        ours.settimeout(PATIENCE)
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
            # The reader has one thing to do at a time.
            "OPENBLAS_NUM_THREADS": "1",
        }
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "vmlab.compare.walk.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=environment,
                start_new_session=True,
            )
        self._socket, self._file = ours, ours.makefile("rb")
        self._end = weakref.finalize(self, _end, self._process, ours, self._file)

    def open(self) -> list[Walked]:
        """Open what there is, and return a reader for each.

        They hold this object, not the other way round, so that it ends with the last of them.

        Raises
        ------
        DiskUnreadable
            The file system is damaged, or the library cannot read it.
        """
        answer, _ = self.ask({"do": "open", "kind": self.kind, "sides": self._places})
        self.label, self.notes = answer["label"], answer["notes"]
        return [Walked(self, number) for number in range(len(self._places))]

    def changes(self, pages: Numbers, *, related: bool = True) -> list[Change[Node]]:
        """Return what differs between the two, which must be open, sorted by path.

        Parameters
        ----------
        pages
            The pages of 4096 bytes whose bytes differ, ascending.
        related
            Whether the two grew out of one state, so that files can be told by their numbers.

        Raises
        ------
        DiskUnreadable
            The file system is damaged, or the library cannot read it.
        """
        answer, _ = self.ask({"do": "compare", "related": related}, pages.astype("<i8").tobytes())
        self.notes += answer["notes"]
        return [_change(words) for words in answer["changes"]]

    def ask(self, question: dict[str, Any], payload: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """Return the process's answer to a question.

        Raises
        ------
        DiskUnreadable
            The library cannot read what was asked for; or it failed or took too long, and then so do all questions
            after this one.
        """
        with self._lock:
            try:
                self._socket.sendall(json.dumps(question | {"bytes": len(payload)}).encode() + b"\n")
                self._socket.sendall(payload)
                while True:
                    answer = json.loads(self._file.readline())
                    # A sign of life.
                    if answer:
                        break
                data = self._file.read(answer.get("bytes", 0))
            except TimeoutError:
                self._end()
                raise self._failed("its reader did not get on") from None
            except (OSError, ValueError):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(2)
                self._end()
                raise self._failed(f"its reader {_how(self._process.returncode)}") from None
        if "error" in answer:
            raise self._failed(answer["error"])
        return answer, data

    def _failed(self, why: str) -> DiskUnreadable:
        return DiskUnreadable(
            f"The {self.kind} file system cannot be read: {why}.",
            hint="it is damaged, or of a version that the library does not know",
            library=LIBRARIES[self.kind],
        )


def _end(process: subprocess.Popen[bytes], *ends: Any) -> None:
    for end in ends:
        end.close()
    process.kill()
    process.wait()


def _how(status: int | None) -> str:
    if status is not None and status < 0 and -status != signal.SIGKILL:
        return f"crashed (signal {-status})"
    return "ended"


def _change(words: dict[str, Any]) -> Change[Node]:
    before, after = (
        None if pair is None else (os.fsencode(pair[0]), Node.from_json(pair[1]))
        for pair in (words["before"], words["after"])
    )
    link, moved = (None if words[n] is None else os.fsencode(words[n]) for n in ("link_to", "moved_to"))
    return Change(before, after, tuple(words["what"]), words["renamed"], link, moved)


class Walked:
    """A state's file system, with what :class:`~vmlab.compare.filestate.FileState` asks of a file system."""

    def __init__(self, walk: Walk, side: int) -> None:
        self._walk, self._side = walk, side

    def _ask(self, what: str, **words: Any) -> tuple[dict[str, Any], bytes]:
        return self._walk.ask({"do": what, "side": self._side, **words})

    def target(self, node: Node) -> bytes:
        """Return what a symbolic link leads to."""
        return os.fsencode(node.target or "")

    def attributes(self, node: Node) -> dict[bytes, bytes]:
        """Return the extended attributes; of NTFS, its other streams and its security descriptor."""
        answer, _ = self._ask("attributes", key=node.key)
        return {os.fsencode(name): bytes.fromhex(value) for name, value in answer["attributes"].items()}

    def read(self, node: Node, offset: int, length: int) -> bytes:
        """Return bytes of a file's content, fewer at its end."""
        end = min(node.size, offset + length)
        return b"".join(
            self._ask("read", key=node.key, offset=at, length=min(_PART, end - at))[1]
            for at in range(offset, end, _PART)
        )

    def parts(self, node: Node) -> Iterator[bytes]:
        """Yield a file's content in parts."""
        for at in range(0, node.size, _PART):
            yield self.read(node, at, _PART)

    def fingerprint(self, node: Node) -> str:
        """Return what is equal for files of equal content; holes are not read."""
        answer, _ = self._ask("fingerprint", key=node.key)
        return str(answer["fingerprint"])

    def lookup(self, path: bytes) -> Node | None:
        """Return what an absolute path leads to, or None."""
        answer, _ = self._ask("lookup", path=os.fsdecode(path))
        return None if answer["node"] is None else Node.from_json(answer["node"])
