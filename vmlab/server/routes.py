"""All routes of the extension, in one table; ``openapi.yaml`` describes those of the API, and a test compares them."""

from __future__ import annotations

from typing import Any

from vmlab.server import diffs, labs, machines, snapshots
from vmlab.server.console import ConsoleSocket
from vmlab.server.serial import SerialSocket
from vmlab.server.static import FOLDER, StaticFiles

#: One part of a path, whatever is in it: the core says what may be a name.
PART = r"([^/]+)"

API: list[tuple[str, type[Any]]] = [
    (r"lab", labs.LabState),
    (r"usage", labs.Usages),
    (r"openapi\.yaml", labs.Description),
    (r"machines", machines.Machines),
    (rf"machines/{PART}", machines.OneMachine),
    (rf"machines/{PART}/({'|'.join(machines.ACTIONS)})", machines.Action),
    (rf"machines/{PART}/fork", machines.Fork),
    (rf"machines/{PART}/snapshots", snapshots.Snapshots),
    (rf"machines/{PART}/screen\.png", machines.Screen),
    (rf"machines/{PART}/serial", machines.SerialLog),
    (rf"snapshots/{PART}", snapshots.OneSnapshot),
    (rf"snapshots/{PART}/rename", snapshots.SnapshotRename),
    (rf"snapshots/{PART}/describe", snapshots.SnapshotDescribe),
    (rf"snapshots/{PART}/verify", snapshots.SnapshotVerify),
    (rf"snapshots/{PART}/screen\.png", snapshots.SnapshotScreen),
    (r"diff", diffs.DiffModel),
    (r"diff\.html", diffs.DiffPage),
    (r"images", labs.Images),
    (rf"images/{PART}/build", labs.Build),
]


def routes() -> list[tuple[str, type[Any], dict[str, Any]]]:
    """Return all routes below the server's base URL."""
    return [
        *((f"vmlab/api/{pattern}", handler, {}) for pattern, handler in API),
        (rf"vmlab/consoles/{PART}/vnc", ConsoleSocket, {}),
        (rf"vmlab/consoles/{PART}/serial", SerialSocket, {}),
        (r"vmlab/static/(.+)", StaticFiles, {"path": str(FOLDER)}),
    ]
