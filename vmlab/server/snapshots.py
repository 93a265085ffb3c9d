"""REST handlers of snapshots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmlab.errors import NotFound
from vmlab.server.base import Handler, protected

if TYPE_CHECKING:
    from vmlab.lab import Lab
    from vmlab.machine import Snapshot


def find(lab: Lab, identity: str) -> Snapshot:
    """Return the snapshot with that id; one that is damaged can be forgotten, and is refused by all else.

    Raises
    ------
    NotFound
        There is none, or it is forgotten.
    """
    from vmlab.machine import Snapshot
    from vmlab.machines.history import visible
    from vmlab.records import check_name

    # An id becomes a part of a path, and this one came from outside.
    check_name("snapshot", identity)
    found = visible(lab.store, identity)
    if found is None:
        raise NotFound(
            "There is no such snapshot, or it is forgotten.", hint="the tree shows those there are"
        )
    return Snapshot(lab.store, found)


class Snapshots(Handler):
    """``machines/<name>/snapshots``."""

    @protected
    async def get(self, name: str) -> None:
        """Tell the tree."""
        self.answer(await self.service.read(lambda lab: lab.machine(name).tree().to_json()))

    @protected
    async def post(self, name: str) -> None:
        """Take a snapshot."""
        options = self.body("NewSnapshot")
        self.answer(await self.service.work(lambda lab: lab.machine(name).snapshot(**options).to_json()), 201)


class OneSnapshot(Handler):
    """``snapshots/<id>``."""

    @protected
    async def get(self, identity: str) -> None:
        """Tell what is known of it."""
        self.answer(await self.service.read(lambda lab: find(lab, identity).to_json()))

    @protected
    async def delete(self, identity: str) -> None:
        """Forget it."""
        await self.service.work(lambda lab: find(lab, identity).forget())
        self.answer_nothing()


class SnapshotRename(Handler):
    """``snapshots/<id>/rename``."""

    @protected
    async def post(self, identity: str) -> None:
        """Give it another name."""
        name = self.body("Rename")["name"]

        def work(lab: Lab) -> dict[str, Any]:
            snapshot = find(lab, identity)
            snapshot.rename(name)
            return snapshot.to_json()

        self.answer(await self.service.work(work))


class SnapshotDescribe(Handler):
    """``snapshots/<id>/describe``."""

    @protected
    async def post(self, identity: str) -> None:
        """Say what it is."""
        text = self.body("Describe")["description"]

        def work(lab: Lab) -> dict[str, Any]:
            snapshot = find(lab, identity)
            snapshot.describe(text)
            return snapshot.to_json()

        self.answer(await self.service.work(work))


class SnapshotVerify(Handler):
    """``snapshots/<id>/verify``."""

    @protected
    async def post(self, identity: str) -> None:
        """Prove that it continues exactly where it was taken."""
        self.body("Nothing")
        self.answer(await self.service.work(lambda lab: find(lab, identity).verify().to_json()))


class SnapshotScreen(Handler):
    """``snapshots/<id>/screen.png``."""

    @protected
    async def get(self, identity: str) -> None:
        """Send the screen as it was."""
        width = self.width()

        def look(lab: Lab) -> bytes:
            from vmlab.guest.screen import Screenshot

            png = find(lab, identity).png
            if png is None:
                raise NotFound("This snapshot has no picture: it is offline, or its machine has no screen.")
            if width is None:
                return png
            screen = Screenshot.open(png)
            return (screen if width >= screen.width else screen.thumbnail(width)).png

        png = await self.service.read(look)
        # A snapshot never changes, and its id is never used again.
        self.set_header("Cache-Control", "private, max-age=86400")
        self.picture(png)
