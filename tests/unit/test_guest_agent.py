"""The parts of vmlab.guest.agent that need no guest; the rest is in tests/vm/test_guest.py."""

from __future__ import annotations

import subprocess

import pytest

from vmlab.errors import CommandFailed, UsageError
from vmlab.guest import agent


@pytest.mark.parametrize(
    ("text", "interpreter"),
    [
        ("echo hello", "/bin/sh -e"),
        ("#!/bin/sh\n", "/bin/sh"),
        ("#! /usr/bin/python3 -u -X dev\nprint()", "/usr/bin/python3 '-u -X dev'"),
        ("#!/usr/bin/env python3\r\nprint()", "python3"),
        ("#!/usr/bin/env -S awk -f\nBEGIN{}", "awk -f"),
        ("#!/usr/bin/env -i sh\n", "/usr/bin/env -i sh"),
        ("#!/opt/odd $(name)\n", "/opt/odd '$(name)'"),
    ],
)
def test_interpreter(text: str, interpreter: str) -> None:
    assert agent._interpreter(text) == interpreter


def test_a_shebang_without_an_interpreter_is_told() -> None:
    for text in ("#!", "#! \necho"):
        with pytest.raises(UsageError, match="without an interpreter"):
            agent._interpreter(text)


def test_title_is_the_first_line_that_says_something() -> None:
    assert agent._title("#!/bin/sh\n\n  make all  \nmore") == "make all"
    assert agent._title("") == "(empty script)"
    assert len(agent._title("x" * 500)) == 60


def test_utf8_split_over_reads() -> None:
    text = "grün €uro 🙂 end"
    data = text.encode()
    for size in (1, 2, 3, 5):
        heard: list[tuple[str, str]] = []
        stream = agent._Stream("stdout", lambda name, piece: heard.append((name, piece)))  # noqa: B023
        for at in range(0, len(data), size):
            stream.feed(data[at : at + size])
        stream.feed(b"", final=True)
        assert stream.text == text
        assert "".join(piece for _, piece in heard) == text
        assert "\ufffd" not in stream.text


def test_bytes_that_are_not_utf8_are_replaced_also_at_the_end() -> None:
    stream = agent._Stream("stdout", None)
    stream.feed(b"a\xffb\xe2\x82")
    stream.feed(b"", final=True)
    assert stream.text == "a\ufffdb\ufffd"


def test_huge_output_keeps_both_ends_and_says_so() -> None:
    stream = agent._Stream("stdout", None, keep=1000)
    for n in range(1000):
        stream.feed(f"line {n:06}\n".encode())
    text = stream.text
    assert text.startswith("line 000000\n")
    assert text.endswith("line 000999\n")
    assert f"[... {stream.dropped} bytes not kept ...]" in text
    assert stream.dropped + 1000 >= stream.total - 24
    assert len(text) < 1200


def test_check_carries_the_evidence() -> None:
    result = agent.CommandResult("web", "make", 2, "out", "err\n", 1.5)
    with pytest.raises(CommandFailed) as caught:
        result.check()
    assert caught.value.evidence["exit_status"] == 2
    assert caught.value.evidence["stderr"] == "err\n"
    assert "'make' on web failed with exit status 2" in str(caught.value)
    assert not result.ok
    assert str(result) == "out\nerr\n[exit status 2]"
    assert result.to_json()["status"] == 2


@pytest.mark.parametrize(("status", "words"), [(127, "not found"), (137, "KILL"), (126, "not executable")])
def test_the_meaning_of_a_status(status: int, words: str) -> None:
    assert words in agent._meaning(status)


@pytest.mark.parametrize("text", [agent.LAUNCHER, agent.SIGNALLER])
def test_what_runs_in_the_guest_is_valid_shell_and_fits_a_variable(text: str) -> None:
    assert subprocess.run(["sh", "-n", "-c", text], capture_output=True).returncode == 0
    assert "@" not in text.replace('"$@"', "")
    assert len(text) < 10_000


@pytest.mark.parametrize("user", ["", "-x", "a b", "a;b", "$(id)"])
def test_odd_user_names_are_refused(user: str) -> None:
    with pytest.raises(UsageError):
        agent.execute(None, "id", user=user)  # type: ignore[arg-type]


def test_odd_variables_and_nul_are_refused() -> None:
    with pytest.raises(UsageError):
        agent.execute(None, "id", env={"a b": "c"})  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        agent.execute(None, "a\0b")  # type: ignore[arg-type]
