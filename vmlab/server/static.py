"""The browser's part of vmlab: files that the JupyterLab extension and the notebook's widget both load."""

from __future__ import annotations

from http.client import responses
from pathlib import Path
from typing import Any

from jupyter_server.base.handlers import JupyterHandler
from tornado import web

from vmlab.server.base import RESOURCE, protected

#: Where the build puts them.
FOLDER = Path(__file__).parents[1] / "static"


class StaticFiles(JupyterHandler, web.StaticFileHandler):
    """``static/<file>``, for who has logged in.

    A page imports ``static/console.js`` by this one name, so that it holds one copy of it however many consoles it
    shows; so the browser asks each time, and gets a 304 as long as the file is the same.
    """

    auth_resource = RESOURCE

    def get_login_url(self) -> str:
        """Refuse strangers: a script has no use for a login page."""
        raise web.HTTPError(403)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer in a word: Jupyter's error page would be seen by nobody, and fails where the URL is no UTF-8."""
        self.finish(responses.get(status_code, "Unknown error"))

    @protected
    async def get(self, path: str, include_body: bool = True) -> None:
        """Send a file.

        Without a look at the Referer, which the widget's module, living in a blob, does not send: these files are no
        secret and do nothing.
        """
        await web.StaticFileHandler.get(self, path, include_body)

    @protected
    async def head(self, path: str) -> None:
        """Tell of a file."""
        await web.StaticFileHandler.get(self, path, include_body=False)

    def set_extra_headers(self, path: str) -> None:
        """Let the browser keep it, and ask."""
        self.set_header("Cache-Control", "no-cache")

    def compute_etag(self) -> str | None:
        """Tell versions apart by size and time; Tornado would remember the first content for as long as it runs."""
        info: Any = Path(self.absolute_path).stat() if self.absolute_path else None
        return f'"{info.st_size:x}-{info.st_mtime_ns:x}"' if info else None
