"""Builds an image in a folder of its own and puts it into place, whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from vmlab import private
from vmlab.errors import BuildFailed, NoSpace, NotFound
from vmlab.hypervisor.account import Account
from vmlab.images import desktop, invaders, tiny
from vmlab.images.debian import Apt
from vmlab.images.disks import sha256
from vmlab.images.recipe import Bench, Recipe
from vmlab.images.spec import FILE, ImageSpec, problems, read
from vmlab.images.work import need
from vmlab.render.progress import Progress, quiet

_RECIPES = (invaders.RECIPE, tiny.RECIPE, desktop.RECIPE)


def builtin() -> dict[str, Recipe]:
    """Return the recipes of the built-in images by name, the smallest first."""
    return {recipe.name: recipe for recipe in _RECIPES}


def recipe_for(name: str) -> Recipe:
    """Return a built-in image's recipe.

    Raises
    ------
    NotFound
        If there is none of that name.
    """
    recipes = builtin()
    if name not in recipes:
        raise NotFound.named("built-in image", name, recipes)
    return recipes[name]


def is_current(folder: Path) -> bool:
    """Return whether an image's folder holds a built-in image made by the recipe as it is now."""
    recipe = builtin().get(folder.name)
    try:
        return recipe is not None and read(folder).recipe == recipe.digest()
    except Exception:
        return False


def build(
    name: str,
    images_dir: Path,
    account: Account,
    progress: Progress = quiet,
    *,
    retire: Callable[[Path], None] | None = None,
) -> Path:
    """Build a built-in image, replacing what is there, and return its folder.

    Parameters
    ----------
    images_dir
        The store's ``images``; downloads are kept in ``cache`` beside it.
    progress
        Called with each step in words and its fraction (0..1, or None where unknown).
    retire
        Called with the folder of the image that was replaced, by then under another name; by default it is deleted.

    Raises
    ------
    BuildFailed, HostError, NoSpace, NotFound
        Then nothing has changed.
    """
    recipe = recipe_for(name)
    for program, package in recipe.needs.items():
        need(program, package)
    with new_folder(images_dir, account, name, recipe.space) as folder:
        work = account.make_dir(folder / "work")
        apt = Apt(account, images_dir.parent / "cache", recipe.suite, progress)
        apt.update()
        spec = recipe.make(Bench(account, folder, work, apt, progress))
        spec.recipe = recipe.digest()
        shutil.rmtree(work)
        return commit(folder, images_dir, account, spec, progress, retire=retire)


@contextmanager
def new_folder(images_dir: Path, account: Account, name: str, space: int) -> Iterator[Path]:
    """Give a ``.new-`` folder to make an image in; it is deleted if that fails."""
    account.make_dir(images_dir)
    remove_abandoned(images_dir)
    check_space(images_dir, space, name)
    folder = images_dir / f".new-{name}-{os.getpid()}"
    if folder.exists():
        shutil.rmtree(folder)
    account.make_dir(folder)
    try:
        yield folder
    except OSError as error:
        if error.errno == 28:  # ENOSPC
            raise NoSpace(f"The disk is full; the image '{name}' was not made.", folder=images_dir) from error
        raise BuildFailed(f"The image '{name}' could not be made.", cause=error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def commit(
    folder: Path,
    images_dir: Path,
    account: Account,
    spec: ImageSpec,
    progress: Progress,
    *,
    retire: Callable[[Path], None] | None = None,
) -> Path:
    """Describe, hash, protect and flush what lies in ``folder``, and rename it to its place."""
    progress("checksums", None)
    for file in spec.files():
        spec.sha256[file] = sha256(folder / file)
        spec.bytes[file] = (folder / file).stat().st_size
    spec.built = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    wrong = problems(spec.to_json())
    if wrong:
        raise BuildFailed(f"The image '{spec.name}' came out wrong.", problem="; ".join(wrong))
    spec.write(folder)
    # Machines get overlays; a mistake should not be able to write to what they are based on.
    account.put_right(folder, lambda path: private.FILE if path.name == FILE else private.FROZEN)
    flush(folder)
    target = images_dir / spec.name
    old = images_dir / f".old-{spec.name}-{os.getpid()}"
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    folder.rename(target)
    flush(images_dir, files=False)
    if old.exists():
        (retire or shutil.rmtree)(old)
    return target


def flush(folder: Path, *, files: bool = True) -> None:
    """Have the kernel write a folder, and its files, to the disk before going on."""
    for path in [*(p for p in folder.iterdir() if files and p.is_file()), folder]:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def remove_abandoned(images_dir: Path) -> None:
    """Delete what interrupted builds left, if the process that built is gone."""
    for folder in [*images_dir.glob(".new-*-*"), *images_dir.glob(".old-*-*")]:
        number = folder.name.rpartition("-")[2]
        if number.isdigit() and not _lives(int(number)):
            if (
                folder.name.startswith(".old-")
                and not (images_dir / folder.name[5:].rpartition("-")[0]).exists()
            ):
                # Killed between the two renames: the old image is still the image.
                folder.rename(images_dir / folder.name[5:].rpartition("-")[0])
                continue
            shutil.rmtree(folder, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def check_space(folder: Path, needed: int, name: str) -> None:
    """Refuse to start what the disk cannot hold.

    Raises
    ------
    NoSpace
        With the numbers.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise NoSpace(
            f"There is not enough disk space to make the image '{name}'.",
            hint="delete machines, snapshots or images that are not needed, or set VMLAB_HOME to a larger disk",
            needed=f"{needed / 1e9:.1f} GB",
            free=f"{free / 1e9:.1f} GB",
            folder=folder,
        )


__all__ = ["FILE", "build", "builtin", "is_current", "recipe_for"]
