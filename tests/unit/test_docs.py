"""What the documents say is true: links lead somewhere, commands parse, names exist, notebooks carry no outputs."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

import vmlab
from vmlab import cli, commands
from vmlab.notebook.cellline import cell_parser

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
#: Bytes; a picture is part of every clone.
PICTURE = 300_000

#: Named although they are not there: made at run time, or to come.
NOT_THERE = {".venv/bin/vmlab", ".venv", ".failures/", "server/", "compare/"}
TOP = {path.name for path in ROOT.iterdir()}
INSIDE = {path.name for path in (ROOT / "vmlab").iterdir()}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def prose(name: str) -> str:
    return FENCE.sub("", read(name))


def blocks(name: str, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(read(name)) if kind == language]


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    text = read(document)
    links = re.findall(r"\]\(([^)]+)\)", text) + re.findall(r"""(?:src|srcset|href)="([^"]+)\"""", text)
    for link in links:
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = ROOT / path if path else ROOT / document
        assert target.exists(), f"{document} links to {link}"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{document} links to {link}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_are_named_exist(document: str) -> None:
    seen = 0
    for code in re.findall(r"`([^`\n]+)`", prose(document)):
        word = code.split()[0]
        first = word.split("/")[0]
        if word in NOT_THERE or not re.fullmatch(r"\.?[\w.-]+(/[\w.<>*-]+)*/?", word) or "<" in word:
            continue
        if "/" in word and first in TOP:
            places = [ROOT / word]
        elif first in INSIDE and ("/" in word or word.endswith(".py")):
            places = [ROOT / "vmlab" / word]
        elif re.fullmatch(r"[\w-]+\.(py|md|sh|toml|ipynb)", word):
            places = [ROOT / word, *ROOT.glob(f"vmlab/*/{word}"), *ROOT.glob(f"tests/*/{word}")]
        else:
            continue
        seen += 1
        assert any(place.exists() for place in places), f"{document} names {word}"
    assert seen or document == "CHANGELOG.md"


def magic_lines() -> list[str]:
    """Return the lines of README's notebook cells, and what its prose says in code, that call a magic."""
    found = [
        line
        for body in blocks("README.md", "python")
        for line in body.splitlines()
        if re.match(r"%%?vm\b", line)
    ]
    return found + list(re.findall(r"`(%%?vm [^`]+)`", prose("README.md").replace("\n", " ")))


@pytest.mark.parametrize("line", magic_lines())
def test_magics_that_are_shown_parse(line: str) -> None:
    if line.startswith("%%vm "):
        cell_parser().parse_args(line.split()[1:])
        return
    name, _, rest = line.removeprefix("%vm").strip().partition(" ")
    verb = commands.verb(name or "help")
    args = commands.parse_line(verb, rest)
    if verb.name == "help" and getattr(args, "verb", None):
        commands.verb(args.verb)


def test_python_that_is_shown_compiles() -> None:
    # A %%vm cell is a script of the guest; a %vm line stands for a call.
    for body in blocks("README.md", "python"):
        if not body.startswith("%%"):
            compile(re.sub(r"^%.*$", "pass", body, flags=re.MULTILINE), "README.md", "exec")


def command_lines() -> list[str]:
    found = [line for body in blocks("README.md", "sh") for line in body.splitlines() if "vmlab " in line]
    found = [line for line in found if re.match(r"(\.venv/bin/)?vmlab ", line)]
    return found + re.findall(r"`(vmlab [a-z][^`]*)`", prose("README.md") + prose("CONTRIBUTING.md"))


@pytest.mark.parametrize("line", command_lines())
def test_commands_that_are_shown_parse(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    options = cli._global_parser().parse_args(words)
    args = cli._verb_parser(commands.verb(options.verb)).parse_args(options.words)
    if options.verb == "help" and getattr(args, "verb", None):
        commands.verb(args.verb)


def test_all_verbs_are_in_the_table() -> None:
    table = read("README.md").split("## Verbs")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "about" not in line]
    named = {word for row in rows for word in re.findall(r"`(\w+)`", row)}
    assert named == set(commands.verbs())


def test_scripts_that_are_shown_exist_and_can_be_run() -> None:
    for name in {
        name for document in DOCUMENTS for name in re.findall(r"scripts/[a-z]+\b(?!\.)(?!_)", read(document))
    }:
        path = ROOT / name
        assert path.exists(), name
        assert path.stat().st_mode & 0o111, f"{name} is not executable"


def test_options_of_scripts_that_are_shown_exist() -> None:
    for document in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for script, option in re.findall(r"(scripts/\w+) (--[a-z-]+)", read(document)):
            source = read(script)
            if script == "scripts/bench":
                source += "".join(path.read_text() for path in (ROOT / "scripts").glob("benchmark_*.py"))
            assert option in source, f"{document} says {script} {option}"


def test_the_house_is_drawn_as_it_is() -> None:
    drawn = next(body for kind, body in FENCE.findall(read("CONTRIBUTING.md")) if body.startswith("vmlab/\n"))
    named = set(re.findall(r"[a-z_]+(?:/|\.py)", "\n".join(drawn.splitlines()[1:])))
    there = {
        f"{p.name}/" if p.is_dir() else p.name
        for p in (ROOT / "vmlab").iterdir()
        if (p.is_dir() and (p / "__init__.py").exists())
        or (p.suffix == ".py" and not p.name.startswith("__"))
    }
    assert there == {name for name in named if name in there}, f"not drawn: {there - named}"


def tracked(pattern: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", pattern],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    return [ROOT / name for name in listed if (ROOT / name).exists()]


def notebooks() -> list[Path]:
    return tracked("*.ipynb") if (ROOT / ".git").exists() else sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.name)
def test_notebooks_carry_no_outputs(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [], "".join(cell["source"])
            assert cell["execution_count"] is None, "".join(cell["source"])
    assert set(notebook["metadata"]) <= {"kernelspec", "language_info"}


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.name)
def test_magics_in_notebooks_parse(path: Path) -> None:
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            continue
        if source.startswith("%%vm"):
            test_magics_that_are_shown_parse(source.splitlines()[0])
            continue
        for line in source.splitlines():
            if re.match(r"%vm\b", line):
                test_magics_that_are_shown_parse(line)


def test_the_version_is_said_once() -> None:
    assert tomllib.loads(read("pyproject.toml"))["project"]["version"] == vmlab.__version__
    assert json.loads(read("extension/package.json"))["version"] == vmlab.__version__
    assert f"## [{vmlab.__version__}]" in read("CHANGELOG.md")


def test_pictures_are_small_and_used() -> None:
    pictures = sorted((ROOT / "notebooks" / "pictures").glob("*"))
    assert pictures
    text = "".join(read(name) for name in DOCUMENTS)
    for path in pictures:
        assert path.suffix == ".png", path
        assert path.read_bytes().startswith(b"\x89PNG"), path
        assert path.stat().st_size < PICTURE, path
        assert path.name in text, f"nothing shows {path.name}"


def test_a_release_has_each_kind_of_change_once():
    for release in read("CHANGELOG.md").split("\n## ")[1:]:
        kinds = re.findall(r"^### (.+)$", release, re.MULTILINE)
        assert sorted(set(kinds)) == sorted(kinds), release[:40]
