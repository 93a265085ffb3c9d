"""What each verb says in a terminal, held against what a person should read: ``words.txt`` beside this file."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vmlab import cli, commands
from vmlab.errors import VMLabError
from vmlab.lab import Lab
from vmlab.render import progress

TRANSCRIPT = Path(__file__).with_name("words.txt")
#: The names that the transcript uses; each stands for one that nobody else has.
NAMES = ("web", "db", "own", "shop")
#: Stays open until somebody presses Ctrl-C: tests/vm/test_webconsole.py reads what it says.
ELSEWHERE = {"console"}


SCENARIO = """\
vmlab = 1
name = "{name}"
[networks.lan]
subnet = "10.1.0.0/24"
[machines.one]
image = "tiny"
nics = ["lan=10.1.0.11"]
[machines.two]
image = "tiny"
nics = ["lan=10.1.0.12"]
"""


def exchanges() -> Iterator[tuple[str, str]]:
    """Yield each line of the transcript with what follows it."""
    text = "".join(
        line for line in TRANSCRIPT.read_text().splitlines(keepends=True) if not line.startswith("#")
    )
    for exchange in re.split(r"^\$ vmlab ", text, flags=re.MULTILINE)[1:]:
        command, _, said = exchange.partition("\n")
        yield command, said.strip("\n")


def pattern(said: str) -> str:
    """Return a pattern: ``...`` is any text of a line; alone on a line, any lines."""
    lines = [
        r"(?:.*\n)*?" if line == "..." else re.escape(line).replace(re.escape("..."), ".*?") + r"\n"
        for line in said.splitlines()
    ]
    return "".join(lines)


def readable(text: str, names: dict[str, str]) -> str:
    """Return what was said with the transcript's names, and columns as far apart whatever stands in them."""
    for plain, unique in names.items():
        text = text.replace(unique, plain)
    return re.sub(r"(?<=\S) {2,}", "  ", text)


@pytest.fixture
def unique(lab: Lab, names: Callable[..., str]) -> Iterator[dict[str, str]]:
    made = {name: names(name) for name in NAMES}
    yield made
    for name in made.values():
        with contextlib.suppress(VMLabError):
            lab.image(name).delete()
    with contextlib.suppress(VMLabError):
        lab.scenario(made["shop"]).delete()


def test_each_verb_says_what_a_person_should_read(
    unique: dict[str, str],
    lab: Lab,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(progress, "PATIENCE", 1e6)  # how long it took is said elsewhere
    (tmp_path / "disk.img").write_bytes(bytes(510) + b"\x55\xaa" + bytes(1 << 20))
    (tmp_path / "setup.sh").write_text("uname -n\n")
    (tmp_path / unique["shop"]).mkdir()
    (tmp_path / unique["shop"] / "scenario.toml").write_text(SCENARIO.format(name=unique["shop"]))
    wrong = []
    for command, said in exchanges():
        words = re.sub(rf"\b({'|'.join(NAMES)})\b", lambda found: unique[found[0]], command)
        status = cli.main(shlex.split(words))
        out, err = capsys.readouterr()
        text = readable(out if status == 0 else err, unique)
        if not re.fullmatch(pattern(said), text):
            wrong.append(f"$ vmlab {command}\n{text}")
    assert not wrong, "\n".join(wrong)
    # Last, so that who adds a verb sees at once whether what is written of it is so.
    assert {command.split()[0] for command, _ in exchanges()} == set(commands.verbs()) - ELSEWHERE
