"""What the console's and the serial line's WebSocket have in common: who may open it, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections.abc import Awaitable
from http.client import responses
from typing import Any, cast

from jupyter_core.utils import ensure_async
from jupyter_server.auth.decorator import ws_authenticated
from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.base.websocket import WebSocketMixin
from tornado import web
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from vmlab.errors import VMLabError
from vmlab.hypervisor.console import NO_LIBVIRT, close_code
from vmlab.server.base import RESOURCE, SERVICE
from vmlab.server.service import Service

#: Bytes of UTF-8 that fit into a close frame beside its code.
REASON_MAX = 123


class MachineSocket(WebSocketMixin, WebSocketHandler, JupyterHandler):
    """A WebSocket to a machine.

    Strangers, pages of other origins, and who may not *execute* get a 403 instead of a WebSocket. Whatever else is in
    the way closes the WebSocket with a code of :mod:`vmlab.hypervisor.console`, because a browser shows a page nothing
    of an HTTP answer. Bytes go both ways unchanged and uncompressed. A page is sent no byte before it has taken the
    last ones, so a slow one slows the guest's side and fills no memory.
    """

    auth_resource = RESOURCE

    def initialize(self) -> None:
        """Begin with nothing to carry."""
        self._task: asyncio.Task[None] | None = None
        # Done when the page has gone, or is told to go.
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

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
        except Exception as error:
            # Tornado would drop the connection, and nobody would call `on_close`.
            self.fail(error)
        else:
            if not self._over.done():
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
        except WebSocketClosedError:
            pass
        except Exception as error:
            # Nobody waits for this task.
            self.fail(error)
        finally:
            self._let_go()

    async def unless_over(self, work: Awaitable[Any]) -> None:
        """Wait for ``work``, or until the page has gone or is told to go.

        As long as `on_message` waits, Tornado reads no more: it does not see a page go, and calls no `on_close`.
        """
        working = asyncio.ensure_future(work)
        await asyncio.wait({working, self._over}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
        else:
            working.cancel()

    def touched(self) -> None:
        """Count what a person did as activity, so that JupyterHub does not cull a server that is only used this way."""
        self.settings["api_last_activity"] = dt.datetime.now(dt.UTC)

    def end(self, code: int, reason: str) -> None:
        """Close it, and say why."""
        self.close(code, reason.encode()[:REASON_MAX].decode(errors="ignore"))

    def fail(self, error: Exception) -> None:
        """Close it, and say what went wrong; what nobody foresaw goes to the server's log."""
        if isinstance(error, VMLabError):
            self.end(close_code(error), error.message)
            return
        # While the server stops, calls are refused.
        if not self._over.done():
            self.log.error("vmlab: %s failed", self.request.path, exc_info=error)
        self.end(NO_LIBVIRT, "something went wrong in vmlab; the server's log shows where")

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        """Close it, also when the page has not answered pings, and let go of everything."""
        super().close(code, reason)
        self._let_go()

    def on_close(self) -> None:
        """Let go of everything."""
        self._let_go()

    def _let_go(self) -> None:
        if self._over.done():
            return
        self._over.set_result(None)
        self.service.sockets.discard(self)
        ping: Any = self.ping_callback
        if ping is not None:
            ping.stop()
        if self._task is not None:
            self._task.cancel()
        with contextlib.suppress(OSError):
            self.disconnect()
