"""``invaders``: a game that is its own operating system. The smallest guest there is."""

from __future__ import annotations

import shutil

from vmlab.images.recipe import Bench, Recipe
from vmlab.images.spec import ImageSpec


def make(bench: Bench) -> ImageSpec:
    """Take the multiboot kernel out of Debian's package; that is all."""
    packages = bench.apt.extract(["grub-invaders"], bench.work)
    shutil.copyfile(bench.work / "boot" / "invaders.exec", bench.folder / "invaders.exec")
    return ImageSpec(
        name=RECIPE.name,
        title=RECIPE.title,
        memory=RECIPE.memory,
        boot={"kernel": "invaders.exec"},
        agent=False,
        tablet=False,
        network=False,
        ready={"screen": True, "settle": 1.0, "timeout": 30},
        packages=packages,
    )


RECIPE = Recipe(
    name="invaders",
    title="GRUB Invaders",
    description="Space Invaders on the bare machine: 4 MiB of RAM, no operating system, on screen in a second.",
    memory=4,
    vcpus=1,
    space=128 << 20,
    make=make,
    needs={"apt-get": "apt", "dpkg-deb": "dpkg"},
)
