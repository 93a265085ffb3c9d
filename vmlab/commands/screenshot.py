"""Show a machine's screen, or write it to a PNG file.

Examples
--------
screenshot d1
screenshot d1 d1.png
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmlab.commands import _arguments as words
from vmlab.errors import UsageError
from vmlab.views.notes import Note
from vmlab.views.screenshot import Picture

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
    from vmlab.lab import Lab

GROUP = "inside"
ORDER = 8


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    words.machine(parser)
    parser.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        help="write it there; where no pictures can be shown, NAME.png by default",
    )


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Any:
    """Return the picture, or the file that it was written to."""
    machine = lab.machine(args.machine)
    shot = machine.screenshot()
    if args.file is None and ui.pictures:
        return shot
    picture = Picture(shot.png, machine=machine.name)
    path = Path(args.file or f"{machine.name}.png").expanduser()
    if path.is_dir():
        path /= f"{machine.name}.png"
    try:
        path.write_bytes(shot.png)
    except OSError as error:
        raise UsageError(f"The picture cannot be written to {path}.", reason=error.strerror) from error
    return Note(f"{path} ({picture.width}×{picture.height})", file=str(path), **picture.to_json())
