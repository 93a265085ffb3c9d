"""The browser's part of vmlab: files that the JupyterLab extension and the notebook's widget both load."""

from __future__ import annotations

from http.client import responses
from pathlib import Path
from typing import Any

from jupyter_server.auth.decorator import allow_unauthenticated
from jupyter_server.base.handlers import JupyterHandler
from tornado import web

#: Where the build puts them.
FOLDER = Path(__file__).parents[1] / "static"


class StaticFiles(JupyterHandler, web.StaticFileHandler):
    """``static/<file>``, for anybody: these files are no secret and do nothing.

    What a page loads by itself has only a cookie to show, and JupyterHub takes no cookie from a script that is
    imported: that is no navigation, and no header with the XSRF token can be sent along.

    A page imports ``static/console.js`` by this one name, so that it holds one copy of it however many consoles it
    shows; so the browser asks each time, and gets a 304 as long as the file is the same.
    """

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer in a word: Jupyter's error page would be seen by nobody, and fails where the URL is no UTF-8."""
        self.finish(responses.get(status_code, "Unknown error"))

    @allow_unauthenticated
    async def get(self, path: str, include_body: bool = True) -> None:
        """Send a file, whatever the Referer: the widget's module, living in a blob, sends none."""
        await web.StaticFileHandler.get(self, path, include_body)

    @allow_unauthenticated
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
