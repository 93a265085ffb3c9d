"""What the console's and the serial line's WebSocket have in common: who may open it, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from http.client import responses
from typing import Any, cast

from jupyter_core.utils import ensure_async
from jupyter_server.auth.decorator import ws_authenticated
from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.base.websocket import WebSocketMixin
from tornado import web
from tornado.websocket import WebSocketHandler

from vmlab.errors import BadName, NotFound, VMLabError, WrongState
from vmlab.server.base import RESOURCE, SERVICE
from vmlab.server.service import Service

#: Why a socket is closed, in codes that the page can explain.
UNKNOWN, NOT_RUNNING, GONE, NO_LIBVIRT = 4404, 4409, 4410, 4503
#: Bytes of UTF-8 that fit into a close frame beside its code.
REASON_MAX = 123


def close_code(error: VMLabError) -> int:
    """Return the code that tells a page why it cannot have the machine's line."""
    if isinstance(error, NotFound | BadName):
        return UNKNOWN
    return NOT_RUNNING if isinstance(error, WrongState) else NO_LIBVIRT


class MachineSocket(WebSocketMixin, WebSocketHandler, JupyterHandler):
    """A WebSocket to a machine.

    Strangers, pages of other origins, and who may not *execute* get a 403 instead of a WebSocket. Whatever else is in
    the way closes the WebSocket with a code of this module, because a browser shows a page nothing of an HTTP answer.
    Bytes go both ways unchanged and uncompressed. Neither way is a byte read before the last ones are gone, so a slow
    reader slows the other side and fills no memory.
    """

    auth_resource = RESOURCE

    def initialize(self) -> None:
        """Begin with nothing to carry."""
        self._task: asyncio.Task[None] | None = None

    @property
    def service(self) -> Service:
        """The lab and its threads."""
        return cast("Service", self.settings[SERVICE])

    def set_default_headers(self) -> None:
        """Set none: a WebSocket is no page."""

    @ws_authenticated
    async def get(self, *args: Any, **kwargs: Any) -> None:
        """Open it for who may."""
        may = await ensure_async(self.authorizer.is_authorized(self, self.current_user, "execute", RESOURCE))
        if not may:
            raise web.HTTPError(403)
        await super().get(*args, **kwargs)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer in a word: Jupyter's error page would be seen by nobody, and fails where the URL is no UTF-8."""
        self.finish(responses.get(status_code, "Unknown error"))

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        """Agree to ``binary``, which is all that there is."""
        return "binary" if "binary" in subprotocols else None

    async def open(self, name: str) -> None:
        """Connect it with the machine."""
        # Pings it, too: reverse proxies end what is silent for a minute.
        super().open()
        self.set_nodelay(True)
        self.service.touch()
        self.service.sockets.add(self)
        try:
            await self.connect(name)
        except VMLabError as error:
            self.end(close_code(error), error.message)
        else:
            if self.ws_connection is not None:
                self._task = asyncio.create_task(self._carried())

    async def connect(self, name: str) -> None:
        """Connect with machine ``name``."""
        raise NotImplementedError

    async def carry(self) -> None:
        """Carry what comes from the machine, until that ends."""
        raise NotImplementedError

    def disconnect(self) -> None:
        """Let go of the machine."""
        raise NotImplementedError

    async def _carried(self) -> None:
        try:
            await self.carry()
        except VMLabError as error:
            self.end(close_code(error), error.message)

    def touched(self) -> None:
        """Count what a person did as activity, so that JupyterHub does not cull a server that is only used this way."""
        self.settings["api_last_activity"] = dt.datetime.now(dt.UTC)

    def end(self, code: int, reason: str) -> None:
        """Close it, and say why."""
        self.close(code, reason.encode()[:REASON_MAX].decode(errors="ignore"))

    def on_close(self) -> None:
        """Let go of everything."""
        self.service.sockets.discard(self)
        ping: Any = self.ping_callback
        if ping is not None:
            ping.stop()
        if self._task is not None:
            self._task.cancel()
        with contextlib.suppress(OSError):
            self.disconnect()
