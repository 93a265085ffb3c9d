"""Debian packages of a pinned suite, from the mirror that this machine's apt is configured with.

Nothing here names a mirror: addresses, proxies, certificates and keys all come from the machine's own apt. Only the
suite is ours, so that an image is the same whether its host is Debian 12 or 13.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from vmlab import private
from vmlab.errors import BuildFailed, HostError
from vmlab.hypervisor.account import Account
from vmlab.images.work import need, run
from vmlab.render.progress import Progress

#: Settings of apt that say how to reach a mirror. The others (index formats, hooks) are this machine's own affair.
_REACH = re.compile(
    r"^Acquire::(?!IndexTargets|Languages|GzipIndexes|CompressionTypes|Changelogs|cdrom)", re.IGNORECASE
)
_SIGNED_BY = re.compile(r"signed-by\s*[=:]\s*(/[^\s\],]+)", re.IGNORECASE)
_POCKETS = ("", "-updates", "-security")


@dataclass(frozen=True)
class Target:
    """One package index that apt is configured to use."""

    release: str
    codename: str
    component: str
    uri: str


def parse_targets(text: str) -> list[Target]:
    """Parse the answer of ``apt-get indextargets`` (see `host_targets`)."""
    targets = []
    for line in text.splitlines():
        kind, release, codename, component, uri = [*line.split("|"), "", "", "", ""][:5]
        if kind == "Packages":
            targets.append(
                Target(release, "" if codename.startswith("$(") else codename, component, uri.rstrip("/"))
            )
    return targets


def host_targets() -> list[Target]:
    """Return the package indexes of this machine's apt; one-line and deb822 sources alike.

    Raises
    ------
    HostError
        If there is no apt here.
    """
    form = "$(CREATED_BY)|$(RELEASE)|$(CODENAME)|$(COMPONENT)|$(REPO_URI)"
    # Without --no-release-info only indexes that were already fetched are listed: none, in a fresh container.
    argv = [need("apt-get", "apt"), "indextargets", "--no-release-info", "--format", form]
    return parse_targets(subprocess.run(argv, capture_output=True, text=True, check=False).stdout)


def host_codename() -> str:
    """Return the codename of this machine's Debian, e.g. ``bookworm``."""
    try:
        text = Path("/etc/os-release").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(r"^VERSION_CODENAME=\"?([\w-]+)", text, re.MULTILINE)
    return found[1] if found else ""


def sources(suite: str, targets: list[Target], host: str) -> list[str]:
    """Return sources.list lines for ``suite``, on the mirrors that ``targets`` name for the ``host``'s suite.

    The main archive and the security archive may be at different addresses; each keeps its own.

    Raises
    ------
    HostError
        If the machine has no Debian mirror configured.
    """
    places: dict[str, str] = {}
    for pocket in _POCKETS:
        # The suite itself first: a machine may have the very suite we want; then the host's; then names such as
        # "stable". Security was called "bookworm/updates" before bookworm.
        wanted = [suite + pocket, host + pocket, "stable" + pocket, "testing" + pocket, "unstable"]
        for name in wanted:
            hit = next(
                (t for t in targets if name in (t.release, t.codename) and t.component == "main"), None
            )
            if hit is not None and (pocket != "-security" or hit.release.endswith(("-security", "/updates"))):
                places[pocket] = hit.uri
                break
    if "" not in places:
        raise HostError(
            "No Debian mirror is configured on this machine.",
            hint="vmlab builds its guests from Debian packages: add a Debian mirror to /etc/apt/sources.list.d",
        )
    places.setdefault("-updates", places[""])
    return [f"deb {places[p]} {suite}{p} main" for p in _POCKETS if p in places]


def reach_settings() -> str:
    """Return apt settings of this machine that say how to reach a mirror (proxies, certificates, retries)."""
    dump = subprocess.run(
        [need("apt-config", "apt"), "dump"], capture_output=True, text=True, check=False
    ).stdout
    return "".join(
        f"{line}\n" for line in dump.splitlines() if _REACH.match(line) and not line.endswith('"";')
    )


def keyrings() -> list[Path]:
    """Return the key files that this machine's apt trusts for Debian."""
    shared = Path("/usr/share/keyrings")
    found = [
        p
        for p in (shared / "debian-archive-keyring.gpg", shared / "debian-archive-keyring.pgp")
        if p.exists()
    ][:1]
    etc = Path("/etc/apt")
    found += sorted(p for p in (etc / "trusted.gpg.d").glob("*") if p.suffix in {".gpg", ".asc"})
    for listing in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]:
        if listing.suffix in {".list", ".sources"} and listing.is_file():
            text = listing.read_text(encoding="utf-8", errors="replace")
            if "debian" in text.lower():
                found += [Path(name) for name in _SIGNED_BY.findall(text)]
    unique = {p.resolve(): p for p in found if p.is_file()}
    if not unique:
        raise HostError(
            "The keys of the Debian archive are not installed.",
            hint="sudo apt-get install debian-archive-keyring",
        )
    return list(unique)


def copy_keyrings(folder: Path) -> Path:
    """Copy the key files into ``folder``, under names that apt reads."""
    private.folders(folder)
    for old in folder.iterdir():
        old.unlink()
    for number, key in enumerate(keyrings()):
        private.copy(key, folder / f"{number:02}-{key.stem}{'.asc' if key.suffix == '.asc' else '.gpg'}")
    return folder


class Apt:
    """A private apt of one suite below ``cache``: own lists, own package files, the machine's mirrors.

    Parameters
    ----------
    cache
        Folder that stays between builds, so that packages are downloaded once.
    """

    def __init__(self, account: Account, cache: Path, suite: str, progress: Progress) -> None:
        self.account = account
        self.suite = suite
        self.progress = progress
        self.sources = sources(suite, host_targets(), host_codename())
        mark = hashlib.sha256("\n".join(self.sources).encode()).hexdigest()[:8]
        self.folder = account.make_dir(cache / "apt" / f"{suite}-{mark}")
        self.archives = self.folder / "archives"
        for name in ("lists/partial", "archives/partial", "parts"):
            private.folders(self.folder / name)
        private.write(self.folder / "status", b"")
        private.write(self.folder / "sources.list", "\n".join(self.sources) + "\n")
        copy_keyrings(self.folder / "keys")
        config = (
            f'Dir::Etc::sourcelist "{self.folder}/sources.list";\nDir::Etc::sourceparts "-";\n'
            f'Dir::Etc::parts "{self.folder}/parts";\nDir::Etc::main "-";\nDir::Etc::preferencesparts "-";\n'
            f'Dir::Etc::preferences "-";\nDir::Etc::trusted "-";\nDir::Etc::trustedparts "{self.folder}/keys";\n'
            f'Dir::State "{self.folder}";\nDir::State::status "{self.folder}/status";\n'
            f'Dir::State::lists "{self.folder}/lists";\nDir::Cache "{self.folder}";\n'
            f'Dir::Cache::archives "{self.archives}";\nAPT::Sandbox::User "";\nAPT::Architecture "amd64";\n'
            'APT::Architectures { "amd64"; };\nAcquire::Languages "none";\nDir::Log "/dev/null";\n'
        )
        self.config = self.folder / "apt.conf"
        private.write(self.config, config + reach_settings())

    def update(self) -> None:
        """Fetch the package lists."""
        self.progress(f"fetching the package lists of {self.suite}", None)
        hint = "see whether 'apt-get update' works on this machine"
        self._apt("apt-get", "update", "-q", what="The package lists could not be fetched", hint=hint)

    def newest(self, pattern: str) -> str:
        """Return the first package that ``pattern``, a meta package such as ``linux-image-amd64``, depends on."""
        answer = self._apt(
            "apt-cache", "depends", "--important", pattern, what=f"There is no package '{pattern}'"
        )
        found = re.search(r"Depends: (\S+)", answer)
        if found is None:
            raise BuildFailed(f"The package '{pattern}' depends on nothing.", output=answer)
        return found[1]

    def download(self, packages: list[str]) -> list[Path]:
        """Download packages (checked by apt against the archive's signatures) and return their files, in that order."""
        self.progress(f"fetching {len(packages)} packages", None)
        wanted = self._apt(
            "apt-get", "download", "--print-uris", *packages, what="The packages could not be found"
        )
        names = re.findall(r"^'[^']+' (\S+\.deb) ", wanted, re.MULTILINE)
        for old in self.archives.glob("*.deb"):
            # Versions that the archive has replaced are of no use to anyone.
            if old.name not in names and any(old.name.startswith(name.split("_")[0] + "_") for name in names):
                old.unlink()
        # apt keeps and checks what is there already.
        self._apt(
            "apt-get",
            "download",
            "-q",
            *packages,
            what="The packages could not be fetched",
            cwd=self.archives,
        )
        by_name = {name.split("_")[0]: self.archives / name for name in names}
        return [by_name[package] for package in packages]

    def missing(self, packages: list[str], status: str, folder: Path) -> list[Path]:
        """Download what a system lacks of these packages, with all that they depend on, and return the files.

        Parameters
        ----------
        status
            The system's ``/var/lib/dpkg/status``.
        folder
            An empty folder for them.
        """
        self.progress(f"fetching {', '.join(packages)}", None)
        private.folders(folder / "archives" / "partial")
        private.write(folder / "status", status)
        self.account.own(folder, recursive=True)
        self._apt(
            "apt-get", "install", "-qy", "--download-only", "--no-install-recommends",
            "-o", f"Dir::State::status={folder / 'status'}", "-o", f"Dir::Cache::archives={folder / 'archives'}",
            *packages, what="The packages could not be fetched", hint="are these the names that Debian has?",
        )  # fmt: skip
        return sorted((folder / "archives").glob("*.deb"))

    def extract(self, packages: list[str], into: Path) -> list[str]:
        """Unpack packages into a folder without running their scripts; return them as ``name version``."""
        files = self.download(packages)
        for number, file in enumerate(files):
            self.progress(f"unpacking {file.name.split('_')[0]}", number / len(files))
            run(
                self.account,
                [need("dpkg-deb", "dpkg"), "-x", file, into],
                what=f"{file.name} could not be unpacked",
            )
        return [f"{f.name.split('_')[0]} {f.name.split('_')[1].replace('%3a', ':')}" for f in files]

    def _apt(
        self, program: str, *words: str, what: str, hint: str | None = None, cwd: Path | None = None
    ) -> str:
        argv = [need(program, "apt"), *words]
        try:
            return run(
                self.account,
                argv,
                what=what,
                hint=hint,
                cwd=cwd or self.folder,
                env={"APT_CONFIG": str(self.config)},
            )
        finally:
            # apt gives what it writes modes of its own choice.
            self.account.put_right(self.folder)
