"""List images, build them, or delete them.

A built-in image is built when the first machine is made from it, or before with --build; then its booted
state is kept, so that machines start at once.

A recipe file says what one's own image is made of: base, packages (from the base's Debian), files, script. The script
runs in a throw-away guest without a network, never on this host.

Examples
--------
images
images --build desktop
images --build all
images --build mine.toml    # one's own, unless it is what its recipe makes already
images --delete old
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vmlab.commands import _arguments as words
from vmlab.commands import _names
from vmlab.views.images import ImageTable
from vmlab.views.notes import Note

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
    from vmlab.lab import Lab

GROUP = "host"
ORDER = 1


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    what = parser.add_mutually_exclusive_group()
    words.completed(
        what.add_argument(
            "--build", metavar="IMAGE", help="build this one now, or 'all', or a recipe file (mine.toml)"
        ),
        _names.images_or_all,
    )
    words.completed(
        what.add_argument("--delete", metavar="IMAGE", help="delete this one; machines keep what they use"),
        _names.images,
    )


def _build(lab: Lab, name: str, ui: UI) -> None:
    """Build one image anew, or all built-in ones that are not what their recipe says, and keep their booted states."""
    if name.endswith(".toml"):
        with ui.progress(f"build {name}") as progress:
            lab.build(name, progress=progress)
        return
    if name == "all":
        chosen = [image for image in lab.images if image.builtin and not (image.ready and image.current)]
        missing = {image.name for image in chosen if not (image.built and image.current)}
    else:
        chosen = [lab.image(name)]
        missing = {name}
    for image in chosen:
        with ui.progress(f"build {image.name}") as progress:
            made = lab.build(image.name, progress=progress) if image.name in missing else image
            if not made.ready:
                made.bake(progress=progress)


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> ImageTable | Note:
    """Return a table of images."""
    if args.build:
        _build(lab, args.build, ui)
    if args.delete:
        lab.image(args.delete).delete()
        return Note(f"Deleted the image {args.delete}.", deleted=args.delete)
    return ImageTable(lab.images)
