"""Hints in the language of who reads: every one in the source, as a verb, an option and a call."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import vmlab
from vmlab import commands, language
from vmlab.errors import UsageError, WrongState
from vmlab.image import Image
from vmlab.lab import Lab
from vmlab.machine import Machine, Snapshot

SOURCE = Path(vmlab.__file__).parent
SHOWN = re.compile(r"^\w+ ([A-Z]|\.\.\.)|^VERB")


def marked(pattern: str) -> set[str]:
    """Return what stands between backticks in the texts of the package (not its comments and documentation)."""
    found = set()
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        docs = {
            id(node.body[0].value) for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body
            and isinstance(node.body[0], ast.Expr)
        }  # fmt: skip
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                text = "".join(
                    part.value if isinstance(part, ast.Constant) else "web" for part in node.values
                )  # fmt: skip
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
                text = node.value
            else:
                continue
            found |= set(re.findall(pattern, text))
    return found


VERBS = sorted(words.replace("--web", "--all") for words in marked(r"`%vm ([^`]+)`"))
OPTIONS = sorted(marked(r"`([a-z_]+)=`"))


def test_there_are_some():
    assert len(VERBS) > 20
    assert "disks" in OPTIONS


@pytest.mark.parametrize("words", VERBS)
def test_a_verb_is_one_in_words_and_in_python(words):
    name, *rest = words.split()
    verb = commands.verb(name)
    if (rest and rest != ["web"]) or name in ("start", "stop", "revert"):
        options = {option for action in verb.parser()._actions for option in action.option_strings}
        assert {word for word in rest if word.startswith("--")} <= options
    with language.spoken("notebook"):
        assert language.told(f"`%vm {words}`") == f"`%vm {words}`"
    with language.spoken("shell"):
        assert language.told(f"`%vm {words}`") == f"`vmlab {words}`"
    with language.spoken("python"):
        call = language.told(f"`%vm {words}`").strip("`")
    doors = {"lab": Lab, "machine": Machine, "snapshot": Snapshot}
    for node in ast.walk(ast.parse(call, mode="eval")):
        if isinstance(node, ast.Attribute):
            owner = node.value
            if isinstance(owner, ast.Name):
                cls = doors[owner.id]
            elif isinstance(owner, ast.Subscript):
                cls = Machine
            else:
                assert isinstance(owner, ast.Call)
                assert isinstance(owner.func, ast.Attribute)
                cls = {"image": Image, "find": Snapshot}[owner.func.attr]
            assert hasattr(cls, node.attr), call
        if isinstance(node, ast.Call):
            assert isinstance(node.func, ast.Attribute)
            method = next(
                getattr(c, node.func.attr)
                for c in (Lab, Machine, Snapshot, Image)
                if hasattr(c, node.func.attr)
            )
            given = {keyword.arg for keyword in node.keywords}
            assert (
                given <= set(inspect.signature(method).parameters)
                or "options" in inspect.signature(method).parameters
            )


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_is_one_of_some_verb_and_an_argument_of_some_method(name):
    options = {
        option: action.dest
        for verb in commands.verbs().values()
        for action in verb.parser("%vm ")._actions
        for option in action.option_strings
    }
    assert options[language.option(name)] == name
    taken = {
        argument
        for cls in (Lab, Machine, Snapshot)
        for _, method in inspect.getmembers(cls, inspect.isfunction)
        for argument in inspect.signature(method).parameters
    }
    from vmlab.images.importer import import_image

    assert name in taken | set(inspect.signature(import_image).parameters)


def test_an_error_speaks_to_who_reads():
    error = WrongState(
        "web is off.", hint="start it with `%vm start web`, or give `disks=` as `10 << 30¦10G`"
    )
    for reader, verb in (
        ("python", 'lab["web"].start()'),
        ("shell", "vmlab start web"),
        ("notebook", "%vm start web"),
    ):
        with language.spoken(reader):
            error.by_verb = False
            assert str(error).endswith(f"  Next: start it with `{verb}`, or give disks= as 10 << 30")
            error.by_verb = True
            assert str(error).endswith(f"  Next: start it with `{verb}`, or give --add-disk as 10G")
            assert error.to_json()["hint"] in str(error)


def test_a_pipe_and_a_text_with_backticks_stay():
    assert language.told("`%vm` and `a | b`, `x`") == "`%vm` and `a | b`, `x`"
    assert str(UsageError("x", output="`%vm list`")) == "x\n  output: `%vm list`"


def test_no_hint_names_a_verb_as_nobody_types_it():
    bare = re.compile(rf"\b({'|'.join(commands.verbs())}) (web|NAME)\b(?!')|^({'|'.join(commands.verbs())})$")
    found = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.keyword) or node.arg not in ("hint", "fix"):
                continue
            for text in ast.walk(node.value):
                if isinstance(text, ast.JoinedStr):
                    words = "".join(p.value if isinstance(p, ast.Constant) else "web" for p in text.values)
                elif isinstance(text, ast.Constant) and isinstance(text.value, str):
                    words = text.value
                else:
                    continue
                if bare.search(re.sub(r"`[^`]*`", "", words)):
                    found.append(f"{path.name}:{node.value.lineno}: {words}")
    assert not found
