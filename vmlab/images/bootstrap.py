"""mmdebstrap: a whole Debian system in a tar file, without being root."""

from __future__ import annotations

import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from vmlab.errors import BuildFailed
from vmlab.hypervisor.account import Account, find_program
from vmlab.images.debian import copy_keyrings, reach_settings
from vmlab.images.recipe import Bench
from vmlab.images.trees import EPOCH
from vmlab.images.work import need, run

#: Lines of mmdebstrap that begin a step, what to call it, and how far the whole is then.
_STEPS = [
    ("running apt-get update", "fetching the package lists", 0.05),
    ("downloading packages with apt", "fetching the base system", 0.10),
    ("extracting archives", "unpacking the base system", 0.16),
    ("installing essential packages", "installing the base system", 0.20),
    ("downloading apt", "fetching packages", 0.30),
    ("installing remaining packages", "fetching and installing packages", 0.36),
    ("running --customize-hook", "setting up", 0.88),
    ("creating tarball", "packing", 0.91),
]
_UNPACKING = re.compile(r"^(?:Unpacking|Setting up) (\S+)")
_INSTALLING = re.compile(r"(\d+) newly installed")


def modes(account: Account) -> list[str]:
    """Return mmdebstrap's modes to try on this host, the best first.

    ``unshare`` needs user namespaces and ids of its own in /etc/subuid; ``fakechroot`` needs only its package. Root, as
    the last resort, is for containers that forbid namespaces: only mmdebstrap then runs as root, never a guest.
    """
    found = []
    if find_program("newuidmap") and _has_subids(account):
        found.append("unshare")
    if os.geteuid() == 0:
        found.append("root")
    if find_program("fakechroot") and find_program("fakeroot"):
        found.append("fakechroot")
    return found


def _has_subids(account: Account) -> bool:
    for file in ("/etc/subuid", "/etc/subgid"):
        try:
            owners = {line.split(":")[0] for line in Path(file).read_text(encoding="utf-8").splitlines()}
        except OSError:
            return False
        if not owners & {account.name, str(account.uid)}:
            return False
    return True


def bootstrap(
    bench: Bench,
    packages: Sequence[str],
    tar: Path,
    overlay: Path,
    programs: Sequence[str],
    *,
    left_out: Sequence[str] = (),
    kept: Sequence[str] = (),
) -> list[str]:
    """Install packages into a new system, lay ``overlay`` over it, run programs in it, and write it as a tar file.

    Returns
    -------
    list[str]
        The packages as ``name version``.

    Raises
    ------
    BuildFailed
        With what each way of doing it said.
    """
    account = bench.account
    ids = "--add-subuids 100000-165535 --add-subgids 100000-165535"
    hint = f"sudo apt-get install uidmap; sudo usermod {ids} {account.name}"
    ways = modes(account)
    if not ways:
        raise BuildFailed(
            "A Debian system cannot be made here without root: there are no sub-ids, and no fakechroot.",
            hint=hint,
        )
    # mmdebstrap's inner root is none of us: what it reads must be open to others, and our store may not be.
    with tempfile.TemporaryDirectory(prefix="vmlab-build-", dir="/var/tmp") as name:
        place = Path(name)
        place.chmod(0o755)
        keys = copy_keyrings(place / "keys")
        (place / "reach.conf").write_text(reach_settings() or "// nothing\n", encoding="utf-8")
        (place / "tmp").mkdir()
        account.own(place, recursive=True)
        # They are public, and read by accounts that are none of ours: the inner root, and apt's own.
        keys.chmod(0o755)
        for key in keys.iterdir():
            key.chmod(0o644)
        (place / "tmp").chmod(0o1777)
        shutil.copyfile(overlay, place / "overlay.tar")
        argv: list[str | Path] = [
            need("mmdebstrap", "mmdebstrap"), "--variant=apt", "--architectures=amd64", "--format=tar",
            f"--include={','.join(packages)}", f"--keyring={keys}", f"--aptopt={place / 'reach.conf'}",
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in left_out),
            *(f"--dpkgopt=path-include={pattern}" for pattern in kept),
            f"--customize-hook=tar-in {place / 'overlay.tar'} /",
            *(f'--customize-hook=chroot "$1" {program}' for program in programs),
            bench.apt.suite, tar,
        ]  # fmt: skip
        env = {
            "SOURCE_DATE_EPOCH": str(EPOCH),
            "TMPDIR": str(place / "tmp"),
            "DEBIAN_FRONTEND": "noninteractive",
        }
        failures: list[BuildFailed] = []
        for mode in ways:
            try:
                words = [*argv[:1], f"--mode={mode}", *argv[1:], *bench.apt.sources]
                follow = _follower(bench)
                run(account, words, what="mmdebstrap failed", on_line=follow, env=env, as_root=mode == "root")
                if mode == "root":
                    account.own(tar)
                return _packages(tar)
            except BuildFailed as error:
                failures.append(error)
                tar.unlink(missing_ok=True)
                shutil.rmtree(place / "tmp", ignore_errors=True)
                (place / "tmp").mkdir(exist_ok=True)
                (place / "tmp").chmod(0o1777)
                bench.progress(f"that did not work ({mode}); trying another way", None)
        evidence = {
            f"{mode}": error.evidence.get("output", "") for mode, error in zip(ways, failures, strict=True)
        }
        raise BuildFailed("The Debian system could not be made.", hint=hint, **evidence) from failures[0]


def _packages(tar: Path) -> list[str]:
    """Return the packages that the setup script has listed in the new system."""
    with tarfile.open(tar) as archive:
        file = archive.extractfile("./usr/share/vmlab/packages")
        assert file is not None
        return [line.replace("\t", " ") for line in file.read().decode().splitlines()]


def _follower(bench: Bench) -> Callable[[str], None]:
    """Return a listener that turns mmdebstrap's output into progress."""
    state = {"base": 0.0, "next": 1.0, "total": 0, "seen": 0}

    def follow(line: str) -> None:
        line = line.strip()
        if found := _INSTALLING.search(line):
            # Each package is unpacked once and set up once.
            state["total"], state["seen"] = 2 * int(found[1]), 0
        elif (found := _UNPACKING.match(line)) and state["total"]:
            state["seen"] = min(state["seen"] + 1, state["total"])
            share = state["seen"] / state["total"]
            bench.progress(
                f"installing {found[1].split(':')[0]}",
                state["base"] + (state["next"] - state["base"]) * share,
            )
        elif line.startswith("I: "):
            for number, (start, step, fraction) in enumerate(_STEPS):
                if line[3:].startswith(start):
                    state["base"], state["total"] = fraction, 0
                    state["next"] = _STEPS[number + 1][2] if number + 1 < len(_STEPS) else 1.0
                    bench.progress(step, fraction)

    return follow
