"""Recipe files: what they may say, and that they take files of their own folder only."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmlab.errors import VMLabError
from vmlab.machines import recipes

BASE = 'base = "tiny"\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_what_a_recipe_says(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("hello")
    (tmp_path / "setup.sh").write_text("#!/bin/sh\ntrue\n")
    text = BASE + 'packages = ["nano"]\nscript = "setup.sh"\nfiles = { "/srv/x" = "index.html" }\n'
    found = recipes.read(write(tmp_path, text))
    assert (found.name, found.base, found.packages, found.script) == (
        "mine",
        "tiny",
        ("nano",),
        "#!/bin/sh\ntrue\n",
    )
    assert recipes.read(write(tmp_path, BASE + 'script = "#!/bin/sh\\ntrue\\n"\n')).script == found.script


def test_the_digest_follows_all_that_counts(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("hello")
    (tmp_path / "setup.sh").write_text("#!/bin/sh\ntrue\n")
    text = BASE + 'packages = ["nano", "less"]\nscript = "setup.sh"\nfiles = { "/srv/x" = "index.html" }\n'
    path = write(tmp_path, text)
    first = recipes.read(path).digest("one")
    write(tmp_path, "# a comment\n" + text.replace('"nano", "less"', '"less", "nano"'))
    assert recipes.read(path).digest("one") == first
    assert recipes.read(path).digest("another base") != first
    for name in ("index.html", "setup.sh"):
        whole = (tmp_path / name).read_text()
        (tmp_path / name).write_text(whole + "more")
        assert recipes.read(path).digest("one") != first
        (tmp_path / name).write_text(whole)
    (tmp_path / "index.html").chmod(0o755)
    assert recipes.read(path).digest("one") != first


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base = ", "cannot be read"),
        ("", "no base"),
        (BASE + "memory = 3\n", "'memory'"),
        ("base = 3\n", "wrong kind"),
        (BASE + 'packages = ["-o x"]\n', "no name of a package"),
        (BASE + "packages = [3]\n", "no name of a package"),
        (BASE + 'name = "../up"\n', "name of an image"),
        (BASE + "timeout = 0\n", "no time"),
        (BASE + 'files = { "relative" = "index.html" }\n', "cannot be"),
        (BASE + 'files = { "/srv/x" = "/etc/passwd" }\n', "own folder"),
        (BASE + 'files = { "/srv/x" = "../secret" }\n', "own folder"),
        (BASE + 'files = { "/srv/x" = "link" }\n', "cannot be opened"),
        (BASE + 'files = { "/srv/x" = "away/secret" }\n', "cannot be opened"),
        (BASE + 'files = { "/srv/x" = "gone" }\n', "cannot be opened"),
        (BASE + 'files = { "/srv/x" = "folder" }\n', "no ordinary file"),
        (BASE + 'script = "link"\n', "cannot be opened"),
    ],
)
def test_what_a_recipe_may_not_say(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "secret").write_text("secret")
    folder = tmp_path / "recipe"
    (folder / "folder").mkdir(parents=True)
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "away").symlink_to(tmp_path)
    with pytest.raises(VMLabError, match=words):
        recipes.read(write(folder, text))
