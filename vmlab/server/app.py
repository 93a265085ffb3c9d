"""The extension as the Jupyter server sees it: it adds the routes, the events, and ends what it began."""

from __future__ import annotations

import logging
import os

from jupyter_server.extension.application import ExtensionApp

from vmlab import language
from vmlab.render import surface
from vmlab.server.base import SERVICE
from vmlab.server.events import SCHEMA_FILE, Watcher
from vmlab.server.routes import routes
from vmlab.server.service import Service


class VMLabApp(ExtensionApp):
    """vmlab in a Jupyter server. It has no settings of its own: ``VMLAB_HOME`` names another store."""

    name = "vmlab"

    def initialize_settings(self) -> None:
        """Make what the handlers share. Neither libvirt nor the store is touched yet."""
        assert self.serverapp is not None
        assert self.serverapp.event_logger is not None
        language.speak("notebook")
        os.environ[surface.SERVED] = "1"  # kernels inherit it
        # What threads and clean-up cannot tell anybody.
        logger = logging.getLogger("vmlab")
        logger.parent = self.log
        self.service = Service(self.log)
        self.serverapp.event_logger.register_event_schema(SCHEMA_FILE)
        self.watcher = Watcher(self.service, self.serverapp.event_logger)
        self.settings[SERVICE] = self.service

    def initialize_handlers(self) -> None:
        """Add the routes."""
        self.handlers.extend(routes())

    async def stop_extension(self) -> None:
        """Close the WebSockets, stop watching, and take no more calls; what machines are being asked to do goes on."""
        self.service.close()
        await self.watcher.end()
