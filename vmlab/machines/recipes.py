"""One's own images from a recipe file: built in a throw-away fork of a base, which reaches no network.

A recipe's script is somebody's code, so it runs in that guest and never on the host. Packages are fetched here, from
the signed sources of the base's Debian, by what the guest says it has, and installed there from files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vmlab.errors import AlreadyExists, BuildFailed, CommandFailed, NotFound, UsageError
from vmlab.guest import agent, transfer
from vmlab.hypervisor.domain import Domain
from vmlab.images.builder import builtin
from vmlab.images.debian import Apt
from vmlab.images.spec import check_name
from vmlab.machines import create, imaging, ready, throwaway
from vmlab.machines.hardware import plan
from vmlab.render.progress import Progress
from vmlab.store.store import Store

#: Changed when the same recipe makes another image.
_VERSION = 1
_KEYS = {
    "name": str,
    "title": str,
    "base": str,
    "packages": list,
    "files": dict,
    "script": str,
    "timeout": int,
}
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_LARGEST = 1 << 20  # bytes of a recipe, and of its script
_TIMEOUT = 3600
_PLACE = "/var/vmlab-packages"  # in the guest


@dataclass(frozen=True)
class RecipeFile:
    """What a recipe file says, with the files that it names beside it.

    Attributes
    ----------
    files
        ``{path in the guest: (file here, its mode, its SHA-256)}``.
    script
        What is run in the guest at the end; empty for nothing.
    timeout
        Seconds that the script may take.
    """

    name: str
    title: str
    base: str
    packages: tuple[str, ...]
    files: Mapping[str, tuple[Path, int, str]]
    script: str
    timeout: int

    def digest(self, base: str) -> str:
        """Return the SHA-256 of all that decides what the image will be, but the packages' versions."""
        files = {where: (mode, digest) for where, (_, mode, digest) in self.files.items()}
        whole = [_VERSION, self.name, self.title, base, sorted(self.packages), files, self.script]
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def read(path: Path) -> RecipeFile:
    """Read a recipe file.

    Raises
    ------
    NotFound, UsageError
        It is not there, or says what no recipe says.
    """
    path = path.expanduser().absolute()
    try:
        data = tomllib.loads(_open(path.parent, path.name, _LARGEST).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"The recipe {path.name} cannot be read.", cause=error) from None
    for key, value in data.items():
        if key not in _KEYS:
            raise UsageError(f"The recipe {path.name} says '{key}'.", hint="it can say " + ", ".join(_KEYS))
        if not isinstance(value, _KEYS[key]) or isinstance(value, bool):
            raise UsageError(f"In the recipe {path.name}, {key} is of the wrong kind: {value!r}.")
    name = check_name(data.get("name", path.stem))
    if "base" not in data:
        raise UsageError(f"The recipe {path.name} names no base.", hint='for example: base = "tiny"')
    packages = data.get("packages", [])
    for package in packages:
        if not isinstance(package, str) or _PACKAGE.fullmatch(package) is None:
            raise UsageError(f"In the recipe {path.name}, {package!r} is no name of a package.")
    files = {}
    for where, what in data.get("files", {}).items():
        if not where.startswith("/") or where.endswith("/") or not isinstance(what, str):
            raise UsageError(
                f"In the recipe {path.name}, files has a line that cannot be: {where!r}.",
                hint='for example: "/srv/index.html" = "index.html"',
            )
        content, mode = _open(path.parent, what, 1 << 30), stat.S_IMODE((path.parent / what).stat().st_mode)
        files[where] = (path.parent / what, mode & 0o755, hashlib.sha256(content).hexdigest())
    script = data.get("script", "")
    if script and not script.startswith("#!"):
        script = _open(path.parent, script, _LARGEST).decode()
    timeout = data.get("timeout", _TIMEOUT)
    if timeout < 1:
        raise UsageError(f"In the recipe {path.name}, the script is given no time.")
    return RecipeFile(name, data.get("title", name), data["base"], tuple(packages), files, script, timeout)


def _open(folder: Path, name: str, most: int) -> bytes:
    """Read a file of the recipe's folder or below it; no link is followed out of it."""
    if not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise UsageError(f"A recipe takes files of its own folder only, not '{name}'.")
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        for part in Path(name).parts:
            above, fd = fd, os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=fd)
            os.close(above)
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_size > most:
            raise UsageError(f"'{name}' is no ordinary file, or too large.")
        with open(os.dup(fd), "rb") as file:
            return file.read(most)
    except OSError as error:
        raise NotFound(
            f"The recipe's file '{folder / name}' cannot be opened.", reason=error.strerror
        ) from None
    finally:
        os.close(fd)


def build(store: Store, path: Path, tell: Progress) -> str:
    """Build the image of a recipe file, unless it is what the recipe makes already, and return its name.

    Raises
    ------
    AlreadyExists, BuildFailed, NotFound, UsageError
        Then nothing has changed.
    """
    recipe = read(path)
    if recipe.name in builtin():
        raise AlreadyExists(
            f"'{recipe.name}' is the name of a built-in image.", hint="give the recipe a name"
        )
    if recipe.base not in store.image_names():
        if recipe.base not in builtin():
            raise NotFound.named("image", recipe.base, [*store.image_names(), *builtin()])
        create.build(store, recipe.base, tell)
    spec, sizes = plan(store, recipe.base)
    if not spec.agent or not spec.disks:
        raise UsageError(
            f"'{recipe.base}' cannot be a base: it needs a disk and the guest agent.", hint='base = "tiny"'
        )
    digest = recipe.digest(spec.base)
    if recipe.name in store.image_names():
        there = store.image(recipe.name)
        if not there.get("recipe"):
            raise AlreadyExists(
                f"There is an image '{recipe.name}' that no recipe has made.", hint="choose another name"
            )
        if there["recipe"] == digest:
            store.tell(f"'{recipe.name}' is what its recipe makes already.")
            return recipe.name
    state = ready.ready_for(store, recipe.base, spec, sizes) or ready.bake(
        store, recipe.base, spec, sizes, tell
    )
    with (
        store.lock(f"image@{recipe.name}", f"build {recipe.name}", timeout=3600),
        throwaway.fork(store, state, f"build {recipe.name}", stem="build") as (machine, domain),
    ):
        packages = _install(store, domain, recipe, tell) if recipe.packages else []
        for where, (file, mode, _) in recipe.files.items():
            tell(f"copying {where}", None)
            agent.succeed(domain, f"mkdir -p {shlex.quote(str(Path(where).parent))}")
            transfer.put(domain, file, where)
            agent.succeed(domain, f"chmod {mode:o} {shlex.quote(where)}")
        if recipe.script:
            tell("running the script", None)
            result = agent.script(domain, recipe.script, timeout=recipe.timeout)
            if not result.ok:
                raise BuildFailed(
                    f"The script of the recipe '{recipe.name}' failed.",
                    exit_status=result.status,
                    output=(result.stdout + result.stderr)[-4000:],
                )
        tell("writing the image", None)
        imaging.settle(domain)
        imaging.write(
            store, spec, machine.layers, recipe.name, recipe.base, recipe.title, packages, tell, recipe=digest
        )
    return recipe.name


def _install(store: Store, domain: Domain, recipe: RecipeFile, tell: Progress) -> list[str]:
    """Install the recipe's packages in the guest, and return all that it has then, as ``name version``."""
    try:
        status = agent.succeed(domain, "cat /var/lib/dpkg/status", timeout=60)
        suite = agent.succeed(domain, '. /etc/os-release; echo "$VERSION_CODENAME"').strip()
    except CommandFailed:
        raise UsageError(
            f"'{recipe.base}' has no packages of Debian, so none can be installed.", hint='base = "desktop"'
        ) from None
    apt = Apt(store.account, store.home / "cache", suite, tell)
    apt.update()
    folder = store.account.make_dir(store.home / "cache" / f"{domain.name}-packages")
    try:
        files = apt.missing(list(recipe.packages), status, folder)
        agent.succeed(domain, f"rm -rf {_PLACE}; mkdir {_PLACE}")
        for number, file in enumerate(files):
            tell(f"installing {file.name.split('_')[0]}", number / len(files))
            transfer.put(domain, file, f"{_PLACE}/")
        tell(f"installing {len(files)} packages", None)
        install = f"dpkg --unpack {_PLACE}/*.deb && dpkg --configure --pending" if files else "true"
        result = agent.execute(
            domain, f"{install}; s=$?; rm -rf {_PLACE}; exit $s",
            timeout=recipe.timeout, env={"DEBIAN_FRONTEND": "noninteractive"},
        )  # fmt: skip
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if not result.ok:
        raise BuildFailed(
            f"The packages of the recipe '{recipe.name}' could not be installed.",
            output=(result.stdout + result.stderr)[-4000:],
        )
    return imaging.packages(domain)
