"""REST handlers of machines."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vmlab.errors import UsageError
from vmlab.server.base import Handler, protected

if TYPE_CHECKING:
    from vmlab.lab import Lab
    from vmlab.machine import Machine


class Machines(Handler):
    """``machines``."""

    @protected
    async def get(self) -> None:
        """List the machines."""
        self.answer(await self.service.read(self.service.machines))

    @protected
    async def post(self) -> None:
        """Make a machine from an image; with progress as events where it takes long."""
        options = self.body("NewMachine")
        image = options.pop("image")
        asked = options.pop("name", None)
        service = self.service

        def create(lab: Lab, name: str) -> dict[str, Any]:
            try:
                return service.machine(
                    lab.create(name, image, progress=service.progress(machine=name), **options)
                )
            finally:
                service.done(machine=name)

        def make(lab: Lab) -> dict[str, Any]:
            if asked is not None:
                return create(lab, asked)
            lab.image(image)
            with service.new_name(lab, image) as name:
                return create(lab, name)

        self.answer(await service.work(make), 201)


class OneMachine(Handler):
    """``machines/<name>``."""

    @protected
    async def get(self, name: str) -> None:
        """Tell what is known of it."""
        self.answer(await self.service.read(lambda lab: self.service.machine(lab.machine(name))))

    @protected
    async def delete(self, name: str) -> None:
        """Delete it with its snapshots."""
        await self.service.work(lambda lab: lab.machine(name).delete())
        self.service.forget(name)
        self.answer_nothing()


def _verb(method: str) -> Callable[[Machine, dict[str, Any]], Any]:
    return lambda machine, options: getattr(machine, method)(**options)


def _keys(machine: Machine, options: dict[str, Any]) -> None:
    machine.keys(*options["keys"])


def _type(machine: Machine, options: dict[str, Any]) -> None:
    machine.type(options["text"])


def _describe(machine: Machine, options: dict[str, Any]) -> None:
    machine.describe(options["description"])


#: What can be done to a machine: the model of the request's body, how it is done, and whether there is an answer.
ACTIONS: dict[str, tuple[str, Callable[[Machine, dict[str, Any]], Any], bool]] = {
    "start": ("Start", _verb("start"), True),
    "stop": ("Stop", _verb("stop"), True),
    "kill": ("Nothing", _verb("kill"), True),
    "pause": ("Nothing", _verb("pause"), True),
    "resume": ("Nothing", _verb("resume"), True),
    "undo": ("Undo", _verb("undo"), True),
    "revert": ("Revert", _verb("revert"), True),
    "rename": ("Rename", _verb("rename"), True),
    "describe": ("Describe", _describe, True),
    "keys": ("Keys", _keys, False),
    "type": ("Type", _type, False),
}


class Action(Handler):
    """``machines/<name>/<action>``."""

    @protected
    async def post(self, name: str, action: str) -> None:
        """Do it, and tell how the machine is then."""
        model, do, answers = ACTIONS[action]
        options = self.body(model)
        service = self.service

        def work(lab: Lab) -> dict[str, Any] | None:
            machine = lab.machine(name)
            do(machine, options)
            # By its own name: a rename has changed it.
            return service.machine(machine) if answers else None

        found = await service.work(work)
        if found is None:
            self.answer_nothing()
        else:
            self.answer(found)


class Fork(Handler):
    """``machines/<name>/fork``."""

    @protected
    async def post(self, name: str) -> None:
        """Make machines that start from its present or from a snapshot of it."""
        options = self.body("Fork")
        if options.get("count") is not None and options.get("names"):
            raise UsageError("Say how many, or which names, not both.", hint="leave out count or names")
        if not options.get("names"):
            options["count"] = options.get("count") or 1
        service = self.service

        def work(lab: Lab) -> list[dict[str, Any]]:
            return [service.machine(m) for m in lab.machine(name).fork(**options)]

        self.answer(await service.work(work), 201)


class Screen(Handler):
    """``machines/<name>/screen.png``."""

    @protected
    async def get(self, name: str) -> None:
        """Send the screen as it is now, or at most a second ago."""
        width = self.width()
        png = await self.service.screen(name, width)
        self.set_header("Cache-Control", "no-cache")
        self.picture(png)


class SerialLog(Handler):
    """``machines/<name>/serial``."""

    @protected
    async def get(self, name: str) -> None:
        """Send what the guest wrote on its serial line, as text."""
        text = await self.service.read(lambda lab: lab.machine(name).serial())
        self.set_header("Cache-Control", "no-cache")
        self.finish(text, set_content_type="text/plain; charset=utf-8")
