"""A lab in memory, for what knows no guest: reading words, drawing results, completing names.

What needs a guest is tested on real ones, in ``tests/vm``.
"""

from __future__ import annotations

import datetime as dt
import functools
import inspect
import io
import threading
import time
from dataclasses import dataclass, field

from PIL import Image as Pillow

from vmlab.commands.ui import UI, PrefixedLines
from vmlab.errors import NotFound
from vmlab.guest.agent import CommandResult
from vmlab.image import Image as RealImage
from vmlab.lab import Lab as RealLab
from vmlab.machine import Machine as RealMachine
from vmlab.machine import Snapshot as RealSnapshot
from vmlab.machines.proof import Verification
from vmlab.machines.usage import Usage as RealUsage
from vmlab.render.progress import DrawnProgress
from vmlab.scenario import Scenario as RealScenario
from vmlab.scenario import State as RealState
from vmlab.tree import Tree
from vmlab.views import dispatch

MIB = 1 << 20
START = dt.datetime(2026, 11, 22, 9, 0, tzinfo=dt.UTC)


def png(width=640, height=480, colour=(30, 60, 90)):
    out = io.BytesIO()
    image = Pillow.new("RGB", (width, height), colour)
    for i in range(3):
        image.paste((230, 230, 230), (60 + 170 * i, 80 + 60 * i, 220 + 170 * i, 220 + 60 * i))
        image.paste((60, 110, 190), (60 + 170 * i, 80 + 60 * i, 220 + 170 * i, 96 + 60 * i))
    image.save(out, "PNG")
    return out.getvalue()


def stands_for(real, *own):
    """Hold a fake against the class that it stands for.

    What it has must be there too (but for ``own``, by which tests steer it), and each call must be one that the real
    method would take: else tests of callers would pass that fail with a guest.
    """

    def held(fake):
        there = (
            set(dir(real))
            | set(getattr(real, "__dataclass_fields__", ()))
            | set(real.__init__.__code__.co_names)
        )
        names = {name for name in (*vars(fake), *getattr(fake, "__dataclass_fields__", ())) if name[0] != "_"}
        assert names - there == set(own), f"{fake.__name__}: {sorted((names - there) ^ set(own))}"
        for name in names & there:
            method = vars(fake).get(name)
            assert inspect.isfunction(method) == inspect.isfunction(getattr(real, name, None)), name
            if inspect.isfunction(method):
                setattr(fake, name, _as_the_real_one(method, getattr(real, name)))
        # It looks like what it stands for.
        dispatch.as_view.register(fake, dispatch.as_view.dispatch(real))
        return fake

    return held


def _as_the_real_one(method, real):
    signature = inspect.signature(real)

    @functools.wraps(method)
    def called(*args, **options):
        signature.bind(*args, **options)
        return method(*args, **options)

    return called


@stands_for(RealUsage)
@dataclass
class Usage:
    name: str
    state: str
    cpu_percent: float = 0.4
    cpu_seconds: float = 12.5
    memory_pss: int = 61 * MIB
    memory_guest: int = 20 * MIB
    memory_qemu: int = 41 * MIB
    memory_private: int = 40 * MIB
    memory_shared: int = 80 * MIB
    memory: int = 256 * MIB
    disk: int = 3 * MIB
    snapshots: int = 0


@stands_for(RealSnapshot, "forgotten")
@dataclass(eq=False)
class Snapshot:
    id: str
    name: str
    parent: Snapshot | None = None
    description: str = ""
    live: bool = True
    machine_name: str = "web"
    kind: str = "snapshot"
    created: dt.datetime = START
    ram_bytes: int = 52 * MIB
    disk_bytes: int = MIB
    here: bool = False
    png: bytes | None = None
    pause_ms: float | None = 31.4
    forgotten: bool = False

    def forget(self):
        self.forgotten = True

    def describe(self, text):
        self.description = text

    def rename(self, name):
        self.name = name

    def verify(self):
        return Verification(
            self.name, self.machine_name, True, True, None, True, ("ffffffff81e0b1c6",), 256 * MIB, []
        )


@stands_for(RealMachine, "done", "result", "output", "error", "interrupted", "last_usage")
@dataclass(eq=False)
class Machine:
    name: str
    state: str = "running"
    image: str = "tiny"
    memory: int = 256
    vcpus: int = 1
    forwards: tuple = ()
    here: Snapshot | None = None
    root: Snapshot | None = None
    can_undo: bool = False
    snapshots: list = field(default_factory=list)
    done: list = field(default_factory=list)
    result: CommandResult | None = None
    output: list = field(default_factory=list)
    error: Exception | None = None
    interrupted: threading.Event = field(default_factory=threading.Event)
    last_usage: Usage | None = None

    why = None

    def tree(self):
        return Tree(self)

    def usage(self, over=0.1):
        if self.error:
            raise self.error
        return self.last_usage or Usage(
            self.name, self.state, snapshots=sum(s.ram_bytes for s in self.snapshots)
        )

    def find(self, name):
        for snapshot in self.snapshots:
            if name in (snapshot.name, snapshot.id):
                return snapshot
        raise NotFound.named(f"snapshot of {self.name}", name, [s.name for s in self.snapshots])

    def _did(self, *what, **options):
        if self.error:
            raise self.error
        self.done.append((*what, options) if options else what)
        return self

    def start(self, **options):
        return self._did("start", **options)

    def stop(self, **options):
        return self._did("stop", **options)

    def pause(self):
        return self._did("pause")

    def delete(self):
        self._did("delete")

    def revert(self, snapshot=None, **options):
        return self._did("revert", snapshot, **options)

    def snapshot(self, name=None, description="", *, replace=False):
        made = Snapshot(
            f"id{len(self.snapshots)}", name or "s1", self.here, description, machine_name=self.name
        )
        self.snapshots.append(made)
        return made

    def fork(self, name=None, **options):
        self._did("fork", name, **options)
        names = options.get("names") or [f"{self.name}-{i + 1}" for i in range(options["count"])]
        return [Machine(n) for n in names]

    def keys(self, *chords):
        self._did("keys", *chords)

    def type(self, text):
        self._did("type", text)

    def wait_for_port(self, port, timeout):
        self._did("port", port, timeout)

    def wait_for_agent(self, timeout):
        self._did("agent", timeout)

    def serial(self, lines=None):
        return f"{lines} lines\r\nlogin: \x1b[31mred\x1b[0m\n"

    def execute(self, command, **options):
        return self._run(command, **options)

    def script(self, text, **options):
        return self._run(text, **options)

    def _run(self, command, *, timeout=None, on_output=None, user=None, input=None):
        self.done.append(("run", command, timeout, user))
        if self.error:
            raise self.error
        for stream, text in self.output:
            on_output(stream, text)
        if "sleep" in str(command):  # as the real one does it: an interrupt goes to the guest first
            try:
                while True:
                    time.sleep(0.01)
            except KeyboardInterrupt:
                self.interrupted.set()
                raise
        out = "".join(t for s, t in self.output if s == "stdout")
        err = "".join(t for s, t in self.output if s == "stderr")
        status = self.result.status if self.result else 0
        return CommandResult(self.name, str(command), status, out, err, 0.25)


@stands_for(RealImage)
@dataclass(eq=False)
class Image:
    name: str
    title: str = ""
    memory: int = 256
    vcpus: int = 1
    built: bool = True
    builtin: bool = True
    ready: bool = True
    size: int = 30 * MIB
    description: str = ""
    damaged: str | None = None


@stands_for(RealScenario)
class Scenario:
    """A scenario of machines that are fakes, too."""

    def __init__(self, name, *machines, networks=()):
        self.name, self.machines, self.networks = name, list(machines), list(networks)

    def to_json(self):
        return {"name": self.name, "title": "Why is it <down>?", "state": "mixed", "here": "start"}


@stands_for(RealState)
class State:
    """A state of a scenario."""

    machine_name, name, description = "shop", "before", "the <route> is there"
    members, pause_ms, skew_ms, frames = {"web": "a", "db": "b"}, 31.4, 2.15, 3
    ram_bytes, disk_bytes = 3 * MIB, 64 << 10

    def to_json(self):
        return {"name": self.name, "scenario": "shop"}


@stands_for(RealLab)
class Lab:
    def __init__(self, *machines, home=None):
        self._machines = {m.name: m for m in machines}
        self.home = home
        self.images = [
            Image("desktop", "A desktop with windows", 768, ready=False, size=400 * MIB),
            Image("invaders", "A game without a disk", 4, built=False, ready=False),
            Image("tiny", "Small, with a shell"),
        ]
        self.created = []

    @property
    def machines(self):
        return [self._machines[name] for name in sorted(self._machines)]

    def machine(self, name):
        if name not in self._machines:
            raise NotFound.named("machine", name, self._machines)
        return self._machines[name]

    def __contains__(self, name):
        return name in self._machines

    named = machine

    @property
    def scenarios(self):
        return []

    def scenario(self, name):
        raise NotFound.named("scenario", name, [])

    def usage(self, machines=None, over=0.1):
        return [m.usage() for m in (self.machines if machines is None else machines) if not m.error]

    def create(self, name, image="tiny", **options):
        self.created.append((name, image, options))
        made = Machine(name, image=image)
        self._machines[name] = made
        return made


def web():
    """A machine with a tree of five snapshots and a picture."""
    clean = Snapshot("a", "clean", description="nothing installed yet", live=False, ram_bytes=0)
    later = START + dt.timedelta(minutes=7)
    first = Snapshot("b", "first", clean, png=png(), created=later)
    broken = Snapshot("c", "<b>broken</b>", first, "rm -rf & <script>alert(1)</script>", created=later)
    other = Snapshot("d", "other", first, created=later + dt.timedelta(minutes=1))
    good = Snapshot(
        "e", "good", other, "after the upgrade", png=png(colour=(60, 90, 40)), here=True, created=later
    )
    return Machine(
        "web", here=good, snapshots=[clean, first, broken, other, good], forwards=((8080, 80),), can_undo=True
    )


def lab():
    """Three machines in different states."""
    return Lab(web(), Machine("db", "off", memory=512), Machine("desk", "paused", image="desktop"))


class _Silent(DrawnProgress):
    def draw(self):
        pass

    def end(self, error):
        pass


class QuietUI(UI):
    """Shows nothing: for tests that call verbs and look at what comes back."""

    streams = False

    def progress(self, label, doing=""):
        return _Silent(label, doing)

    def output(self, stream, text):
        pass

    def say(self, text):
        pass

    def areas(self, machines):
        return PrefixedLines(machines, self.output)
