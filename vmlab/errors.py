"""Everything that vmlab raises on purpose.

Each error says what happened in one plain sentence (``message``), what to do next (``hint``), and carries its
evidence (``evidence``: exit status, last lines of output, numbers). In a notebook only those few lines are shown; the
full traceback stays reachable through ``__cause__`` and ``__traceback__``.

::

    VMLabError
    ├── UsageError            the words of a command make no sense
    ├── NotFound              no machine, snapshot or image of that name (names the nearest)
    ├── AlreadyExists         the name is taken
    ├── BadName               a name that files and libvirt cannot carry
    ├── Busy                  another process is working on this machine
    ├── WrongState            the machine is off, paused, crashed ... for what was asked
    ├── NoSpace               not enough disk
    ├── NoMemory              not enough RAM for one more guest
    ├── RecordDamaged         what the store keeps of a machine, a layer ... cannot be read
    ├── SnapshotDamaged       a file of a snapshot is missing, truncated or altered
    ├── SnapshotIncompatible  this QEMU or CPU cannot continue that snapshot
    ├── DiskUnreadable        a disk, or a file system on it, is damaged or of a kind that vmlab cannot read
    ├── ImageMissing          an image is gone or was never built
    ├── BuildFailed           an image could not be built or imported
    ├── AgentError            the guest agent refused or failed
    │   ├── AgentTimeout      the guest agent did not answer
    │   └── Overtaken         the machine was rebooted, reverted, stopped ... under what was being done in it
    ├── OutputTooLarge        a command in the guest wrote more than is kept, and all of it was asked for
    ├── CommandFailed         a command in the guest ended with another status than expected
    ├── WaitTimeout           something waited for did not happen in time
    ├── GuestPanicked         the guest's kernel panicked
    ├── HypervisorError       libvirt or QEMU failed
    ├── HostError             something is missing on this host
    └── MachineErrors         several machines failed at once; holds one error for each
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from vmlab.language import told

#: Lines of evidence shown for one item, and errors shown of many.
SHOWN_LINES = 12
SHOWN_ERRORS = 4


class VMLabError(Exception):
    """Base of all errors of vmlab.

    Parameters
    ----------
    message
        One plain sentence: what happened.
    hint
        The next thing to try, as :mod:`vmlab.language` says: what is to be typed stands between backticks.
    evidence
        Named facts, shown below the message: numbers, exit status, output.

    Attributes
    ----------
    screen
        What the guest's screen showed (:class:`vmlab.Screenshot`), where that says something.
    """

    screen: Any = None
    #: Whether it is about what was asked with a verb, in ``%vm`` or on the command line.
    by_verb = False

    def __init__(self, message: str, *, hint: str | None = None, **evidence: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.evidence: dict[str, Any] = {k: v for k, v in evidence.items() if v not in (None, "")}

    @property
    def next_step(self) -> str | None:
        """The hint in the language of who reads it: a verb, an option, a call."""
        return told(self.hint, by_verb=self.by_verb) if self.hint else None

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """Return the message, the evidence and the hint, one line each or a short indented block."""
        out = [told(self.message, by_verb=self.by_verb)]
        for key, value in self.evidence.items():
            text = str(value).rstrip()
            label = key.replace("_", " ")
            if "\n" in text:
                rows = text.splitlines()
                cut = rows[-SHOWN_LINES:]
                of_all = f" (last {SHOWN_LINES} of {len(rows)} lines)" if len(rows) > SHOWN_LINES else ""
                out.append(f"  {label}:{of_all}")
                out += [f"    {row}" for row in cut]
            else:
                out.append(f"  {label}: {text}")
        if self.hint:
            out.append(f"  Next: {self.next_step}")
        return out

    def to_json(self) -> dict[str, Any]:
        """Return ``{"error", "message", "hint", "evidence"}`` with printable values."""
        return {
            "error": type(self).__name__,
            "message": self.message,
            "hint": self.next_step,
            "evidence": {
                k: v if isinstance(v, int | float | bool) else str(v) for k, v in self.evidence.items()
            },
        }

    def _render_traceback_(self) -> list[str]:
        # IPython shows these lines instead of a traceback: people want the sentence, not our frames.
        first, *rest = self.lines()
        return [f"{type(self).__name__}: {first}", *rest]

    def __reduce__(self) -> tuple[Any, ...]:
        # Keyword-only arguments would be lost by the default, e.g. on the way back from a worker process.
        return _rebuild, (type(self), self.message, self.hint, self.evidence)


def _rebuild(kind: type[VMLabError], message: str, hint: str | None, evidence: dict[str, Any]) -> VMLabError:
    error = kind.__new__(kind)
    VMLabError.__init__(error, message, hint=hint, **evidence)
    return error


class UsageError(VMLabError):
    """The words of a command make no sense."""


class NotFound(VMLabError):
    """There is no such machine, snapshot or image."""

    @classmethod
    def named(cls, kind: str, name: str, known: Iterable[str], *, hint: str | None = None) -> NotFound:
        """Build the error for an unknown ``name`` of a ``kind``, naming the nearest known ones."""
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        if near:
            hint = "did you mean " + " or ".join(f"'{n}'" for n in near) + "?"
        elif known and hint is None:
            shown = ", ".join(known[:10])
            hint = f"there is: {shown}" + (" ..." if len(known) > 10 else "")
        return cls(f"There is no {kind} named '{name}'.", hint=hint)


class AlreadyExists(VMLabError):
    """The name is taken."""


class BadName(VMLabError):
    """A name that files, libvirt and a command line cannot carry."""


class Busy(VMLabError):
    """Another process is working on the same machine."""


class WrongState(VMLabError):
    """The machine is not in a state in which this can be done."""


class NoSpace(VMLabError):
    """There is not enough room on the disk."""


class NoMemory(VMLabError):
    """There is not enough RAM for one more guest."""


class RecordDamaged(VMLabError):
    """A record of the store is gone or cannot be read; ``evidence`` names the ``file``."""


class SnapshotDamaged(VMLabError):
    """A file of a snapshot is missing, truncated or altered."""


class SnapshotIncompatible(VMLabError):
    """The QEMU, CPU or accelerator of this host cannot continue the snapshot."""


class DiskUnreadable(VMLabError):
    """A disk, or a file system on it, is damaged or of a kind that vmlab cannot read."""


class ImageMissing(VMLabError):
    """An image, or a file of it, is gone or was never built."""


class BuildFailed(VMLabError):
    """An image could not be built or imported."""


class AgentError(VMLabError):
    """The guest agent refused or failed.

    Attributes
    ----------
    answered
        Whether it is the agent itself that has refused, so that nobody else need be waited for.
    """

    answered = False


class AgentTimeout(AgentError):
    """The guest agent did not answer in time.

    Attributes
    ----------
    sent
        Whether it had taken the request, which may thus be done yet.
    """

    sent = False


class Overtaken(AgentError):
    """What was being done in a guest is gone: it rebooted or powered off, or was reverted, stopped, deleted."""


class CommandFailed(VMLabError):
    """A command in the guest ended with another status than expected.

    ``evidence`` holds ``exit_status``, ``stdout``, ``stderr`` and ``elapsed`` (seconds).
    """


class OutputTooLarge(VMLabError):
    """A command in the guest wrote more than is kept, and all of it was asked for.

    ``evidence`` holds what came, its middle left out, as ``stdout`` and ``stderr``.
    """


class WaitTimeout(VMLabError):
    """Something that was waited for did not happen in time."""


class GuestPanicked(VMLabError):
    """The kernel of the guest panicked."""


class HypervisorError(VMLabError):
    """libvirt or QEMU failed."""


class HostError(VMLabError):
    """Something that vmlab needs is missing on this host."""


class MachineErrors(VMLabError):
    """Several machines failed at once.

    Parameters
    ----------
    errors
        What failed, by the machine's name.
    """

    def __init__(self, errors: Mapping[str, BaseException]) -> None:
        shown = {}
        for name in list(errors)[:SHOWN_ERRORS]:
            text = str(errors[name]).strip() or type(errors[name]).__name__
            shown[name] = text.splitlines()[0]
        more = len(errors) - len(shown)
        super().__init__(
            f"{len(errors)} machines failed." if len(errors) > 1 else "1 machine failed.",
            hint=f"... {more} more" if more > 0 else None,
            **shown,
        )
        self.errors = dict(errors)
