"""REST handlers that compare two states: as JSON for programs, as a page for people."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from vmlab.errors import UsageError
from vmlab.server.base import Handler, executing

if TYPE_CHECKING:
    from vmlab.lab import Lab
    from vmlab.study.diff import Diff

T = TypeVar("T")

#: What a page made of a guest's file names, texts and pictures may do in a browser: be looked at.
POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'"


class _ClientGone(Exception):
    """Nobody waits for the answer any more."""


class _Comparing(Handler):
    """What both have in common.

    Nothing is changed, so these are GETs; but presents are caught, and guests run in throw-away forks, which is more
    than to *read* what there is: it takes the right to *execute*, as a console does.
    """

    def initialize(self) -> None:
        """Nobody has gone yet."""
        self._gone = threading.Event()

    async def prepare(self) -> None:  # type: ignore[override]  # as in APIHandler
        """Count it as activity of the user, who waits for it."""
        await super().prepare()
        # Jupyter asks it only of what is no GET; guests must not be run by an address in somebody else's page.
        self.check_xsrf_cookie()
        self._track_activity = True

    def on_connection_close(self) -> None:
        """Compare no further: whoever asked has closed the page, or asks anew."""
        self._gone.set()
        super().on_connection_close()

    async def compare(self, show: Callable[[Diff], T]) -> T | None:
        """Compare what the request names, and return what ``show`` makes of it; None if the client has gone.

        What was caught and forked for it is gone afterwards, however it ends.
        """
        before, after = self._state("before"), self._state("after")
        parts = self._asked_parts()
        service = self.service
        # As the request says it, so that the page knows which comparison is its own.
        subject = f"{before} {after}"

        def work(lab: Lab) -> T:
            from vmlab.study import diff

            tell = service.progress(comparison=subject)

            def say(part: str) -> None:
                if self._gone.is_set():
                    raise _ClientGone
                tell(part, None)

            try:
                with diff.make(lab.store, [before, after]) as made:
                    made.compare(*parts, tell=say)
                    return show(made)
            finally:
                service.done(comparison=subject)

        self.set_header("Cache-Control", "no-store")
        try:
            return await service.work(work)
        except _ClientGone:
            return None

    def _state(self, which: str) -> str:
        text = self.get_query_argument(which, "")
        if not text:
            raise UsageError(
                f"The request does not say what '{which}' is.",
                hint="name a machine, or a snapshot: ?before=web@clean&after=web",
            )
        return text

    def _asked_parts(self) -> list[str]:
        from vmlab.study.diff import USUAL, need_parts

        names = [name for name in self.get_query_argument("layers", "").split(",") if name]
        need_parts(names)
        inside = self.get_query_argument("inside", "false")
        if inside not in ("true", "false"):
            raise UsageError(f"inside: '{inside}' is neither true nor false.")
        return [*(names or USUAL), *(["inside"] if inside == "true" else [])]


class DiffModel(_Comparing):
    """``diff``."""

    @executing
    async def get(self) -> None:
        """Compare two states, and tell how each part came out."""
        # It can be long: written in the thread, too.
        found = await self.compare(lambda made: json.dumps(made.to_json()))
        if found is not None:
            self.finish(found)


class DiffPage(_Comparing):
    """``diff.html``."""

    @executing
    async def get(self) -> None:
        """Compare two states, and send a page that needs nothing else, and that can do nothing."""
        from vmlab.views.diff import DiffView

        found = await self.compare(lambda made: DiffView(made).document())
        if found is not None:
            self.set_header("Content-Security-Policy", POLICY)
            self.finish(found, set_content_type="text/html; charset=utf-8")
