"""The command line: exit statuses, plain errors, JSON, completion, a quick start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from help.fakes import lab

from vmlab import cli
from vmlab.errors import WrongState
from vmlab.guest.agent import CommandResult


@pytest.fixture
def it(monkeypatch):
    made = lab()
    monkeypatch.setattr(cli, "_lab", lambda home: made)
    return made


def test_help_starts_quickly_and_loads_nothing_heavy():
    code = (
        "import sys, vmlab.cli as c; c.main(['revert', '--help']); c.main(['creat']);"
        "print([m for m in ('rich', 'numpy', 'PIL', 'libvirt', 'IPython', 'ipywidgets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    times = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "vmlab", "--help"], capture_output=True, check=True)
        times.append(time.perf_counter() - started)
    assert min(times) < 1.0  # 0.2 s on an idle machine; a busy CI machine gets some more


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_help(argv, capsys):
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert "vmlab create web" in out
    assert "%vm" not in out


def test_help_of_a_verb(capsys):
    assert cli.main(["fork", "--help"]) == 0
    assert "vmlab fork web w1 w2" in capsys.readouterr().out


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("vmlab 0.")


@pytest.mark.parametrize(
    ("argv", "status", "says"),
    [
        (["creat", "x"], 2, "did you mean vmlab create"),
        (["create"], 2, "vmlab create"),
        (["--nosuch"], 2, "--nosuch"),
        (["create", "a", "--memory", "lots"], 2, "'lots' is not a size"),
        (["start", "wbe"], 1, "did you mean 'web'"),
    ],
)
def test_errors_are_plain_and_on_stderr(it, capsys, argv, status, says):
    assert cli.main(argv) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("vmlab: ")
    assert says in err
    assert "Traceback" not in err


def test_errors_name_commands_of_the_command_line(it, capsys):
    it.machine("web").error = WrongState("web is off.", hint="start it with `%vm start web`")
    assert cli.main(["pause", "web"]) == 1
    assert "`vmlab start web`" in capsys.readouterr().err


def test_debug_shows_the_traceback(it, capsys, monkeypatch):
    monkeypatch.setenv("VMLAB_DEBUG", "1")
    assert cli.main(["start", "nosuch"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_mistake_of_ours_is_one_plain_sentence(it, capsys):
    it.machine("web").error = ZeroDivisionError("oops")
    assert cli.main(["pause", "web"]) == 1
    err = capsys.readouterr().err
    assert "mistake in vmlab" in err
    assert "Traceback" not in err


def test_interrupted(it):
    it.machine("web").error = KeyboardInterrupt()
    assert cli.main(["pause", "web"]) == 130


def test_exec_ends_with_the_guests_status(it, capsys):
    machine = it.machine("web")
    machine.output = [("stdout", "out\n"), ("stderr", "err\n")]
    assert cli.main(["exec", "web", "--", "true"]) == 0
    assert capsys.readouterr() == ("out\n", "err\n")
    machine.result = CommandResult("web", "", 42, "", "", 0)
    assert cli.main(["exec", "web", "false"]) == 42
    assert capsys.readouterr() == ("out\n", "err\n")  # nothing of ours, as with ssh
    assert cli.main(["exec", "--no-raise", "web", "false"]) == 42
    assert cli.main(["script", "web", "--file", __file__]) == 42


def test_exec_keeps_its_options_apart_from_the_guests(it):
    cli.main(["exec", "web", "--", "ls", "--json", "-t", "5"])
    assert it.machine("web").done == [("run", ["ls", "--json", "-t", "5"], None, None)]


@pytest.mark.parametrize("argv", [["--json", "list"], ["list", "--json"]])
def test_json_before_or_after_the_verb(it, capsys, argv):
    assert cli.main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert [m["name"] for m in found] == ["db", "desk", "web"]
    assert found[2]["forwards"] == [{"host": 8080, "guest": 80}]


def test_json_of_exec_holds_the_output_and_nothing_else_is_printed(it, capsys):
    it.machine("web").output = [("stdout", "out\n")]
    assert cli.main(["--json", "exec", "web", "true"]) == 0
    assert json.loads(capsys.readouterr().out)["stdout"] == "out\n"


@pytest.mark.parametrize(
    "line",
    ["tree web", "snapshot web n", "verify web clean", "images", "revert web", "fork web a b", "forget web first",
     "serial web", "wait web", "describe web clean", "help", "start web", "start web db"],
)  # fmt: skip
def test_every_kind_of_result_has_json_and_text(it, capsys, line):
    assert cli.main(line.split()) == 0
    text = capsys.readouterr().out
    assert text.strip()
    assert "\x1b" not in text
    assert cli.main([*line.split(), "--json"]) == 0
    json.loads(capsys.readouterr().out)


def test_json_errors(it, capsys):
    assert cli.main(["--json", "start", "nosuch"]) == 1
    assert json.loads(capsys.readouterr().out)["error"] == "NotFound"
    assert cli.main(["--json", "nosuch"]) == 2
    assert json.loads(capsys.readouterr().out)["error"] == "UsageError"


def test_a_closed_pipe_is_no_error(tmp_path):
    command = f"{sys.executable} -m vmlab help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    assert done.stdout.strip() in ("0", "141")


def test_screenshot_is_written_where_no_pictures_can_be_shown(it, capsys, tmp_path, monkeypatch):
    from help.fakes import Machine, png

    from vmlab.guest.screen import Screenshot

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Machine, "screenshot", lambda self: Screenshot.open(png()), raising=False)
    assert cli.main(["screenshot", "web"]) == 0
    assert Path("web.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == "web.png (640×480)\n"
    assert cli.main(["screenshot", "web", "/nonexistent/x.png"]) == 2


def shell_completion(line, home):
    """Ask as bash does, through argcomplete's protocol."""
    read, write = os.pipe()
    env = dict(
        os.environ, _ARGCOMPLETE="1", _ARGCOMPLETE_IFS="\n", COMP_LINE=line, COMP_POINT=str(len(line)), COMP_TYPE="9",
        _ARGCOMPLETE_COMP_WORDBREAKS=" \t\n", _ARGCOMPLETE_STDOUT_FILENAME=str(home / "answer"),
    )  # fmt: skip
    os.close(read), os.close(write)
    code = "import sys; sys.argv[0] = 'vmlab'; from vmlab.cli import main; main()"
    subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    return [word.strip() for word in (home / "answer").read_text().split("\n") if word.strip()]


def test_shell_completion(tmp_path):
    assert {"revert", "rename", "resume"} <= set(shell_completion("vmlab re", tmp_path))
    assert "--memory" in shell_completion("vmlab create web --me", tmp_path)
    assert {"then", "now"} <= set(shell_completion("vmlab revert --clock ", tmp_path))
