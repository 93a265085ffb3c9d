"""``%vm`` and ``%%vm`` in a real IPython shell, over a lab in memory; and the notebook's output in a real kernel."""

from __future__ import annotations

import re
import time

import nbformat
import pytest
from commands_fakes import lab
from IPython.core.completer import CompletionContext
from IPython.terminal.interactiveshell import TerminalInteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config

from vmlab import notebook
from vmlab.errors import CommandFailed, NotFound, UsageError
from vmlab.guest.agent import CommandResult
from vmlab.notebook import completion, ui
from vmlab.notebook.magics import VMMagics


@pytest.fixture(scope="module")
def shell():
    config = Config()
    config.TerminalInteractiveShell.simple_prompt = True
    config.HistoryManager.enabled = False
    TerminalInteractiveShell.clear_instance()
    yield TerminalInteractiveShell.instance(config=config)
    TerminalInteractiveShell.clear_instance()


@pytest.fixture
def ip(shell):
    notebook.load_ipython_extension(shell)
    magics = shell._vmlab[0]
    magics._lab, magics._lab_home = lab(), ""
    yield shell
    notebook.unload_ipython_extension(shell)
    shell.user_ns.pop("x", None)
    shell.config.pop("VMMagics", None)


@pytest.fixture
def machines(ip):
    return ip._vmlab[0]._lab


def complete(shell, text):
    line = text.count("\n")
    column = len(text.rsplit("\n", 1)[-1])
    context = CompletionContext(
        token=re.split(r"[\s]", text)[-1],
        full_text=text,
        cursor_position=column,
        cursor_line=line,
        limit=None,
    )
    return [item.text for item in shell._vmlab[1](context)["completions"]]


# loading -----------------------------------------------------------------------------------------------------------


def test_unloading_leaves_nothing(shell):
    def state():
        manager = shell.magics_manager
        return (
            sorted(manager.magics["line"]), sorted(manager.magics["cell"]), sorted(manager.registry),
            len(shell.Completer.custom_matchers), len(shell.configurables), hasattr(shell, "_vmlab"),
        )  # fmt: skip

    before = state()
    notebook.load_ipython_extension(shell)
    notebook.load_ipython_extension(shell)  # twice is once
    assert "vm" in shell.magics_manager.magics["line"]
    assert len(shell.Completer.custom_matchers) == before[3] + 1
    notebook.unload_ipython_extension(shell)
    assert state() == before
    notebook.unload_ipython_extension(shell)


def test_load_ext(shell):
    shell.run_line_magic("load_ext", "vmlab")
    assert isinstance(shell._vmlab[0], VMMagics)
    shell.run_line_magic("unload_ext", "vmlab")
    assert not hasattr(shell, "_vmlab")


def test_config_chooses_another_store(ip, tmp_path):
    ip.run_line_magic("config", f"VMMagics.home = {str(tmp_path)!r}")
    assert ip._vmlab[0].home == str(tmp_path)


# %vm ---------------------------------------------------------------------------------------------------------------


def test_alone_it_helps(ip):
    shown = ip.run_line_magic("vm", "")
    assert "%vm create web" in str(shown)
    assert "%%vm web" in shown._repr_html_()
    for word in ("revert", "screenshot", "doctor"):
        assert f"<code>{word}</code>" in shown._repr_html_()


@pytest.mark.parametrize("line", ["revert --help", "revert -h", "revert ?", "help revert"])
def test_help_of_a_verb(ip, line):
    assert "%vm revert web clean" in str(ip.run_line_magic("vm", line))


def test_results_are_values(ip, machines):
    ip.run_cell("x = %vm list")
    assert [m.name for m in ip.user_ns["x"]] == ["db", "desk", "web"]
    assert ip.user_ns["x"]["web"] is machines.machine("web")
    ip.run_cell("x = %vm revert web first")
    assert ip.user_ns["x"] is machines.machine("web")


def test_variables_are_not_expanded(ip, machines):
    ip.user_ns["HOME"] = "wrong"
    ip.run_line_magic("vm", "exec web echo $HOME {HOME}")
    assert machines.machine("web").done[0][1] == "echo $HOME {HOME}"


def test_mistakes_render_short(ip):
    for line, error in (("nosuch", UsageError), ("start nosuch", NotFound), ("create", UsageError)):
        with capture_output() as captured:
            result = ip.run_cell(f"%vm {line}")
        assert isinstance(result.error_in_exec, error)
        text = captured.stdout + captured.stderr
        assert "Traceback" not in text
        assert len(text.splitlines()) <= 5


def test_output_comes_first_then_how_it_ended(ip, machines):
    machines.machine("web").output = [("stdout", "hello\n"), ("stderr", "careful\n")]
    with capture_output() as captured:
        ended = ip.run_line_magic("vm", "exec web x")
    assert captured.stdout == "hello\n"
    assert captured.stderr == "careful\n"
    assert str(ended) == "web: exit 0 after 0.25 s"
    assert (ended.status, ended.stdout, ended.stderr) == (0, "hello\n", "careful\n")


# %%vm --------------------------------------------------------------------------------------------------------------


def test_cell_runs_as_script(ip, machines):
    machines.machine("web").output = [("stdout", "hello\n")]
    with capture_output() as captured:
        ip.run_cell("%%vm web --timeout 5\n#!/usr/bin/python3\nprint('$x {y}')\n")
    assert captured.stdout.startswith("hello\n")
    assert machines.machine("web").done == [("run", "#!/usr/bin/python3\nprint('$x {y}')\n", 5.0, None)]


def test_cell_out(ip, machines):
    machines.machine("web").output = [("stdout", "hello\n")]
    with capture_output():
        assert ip.run_cell_magic("vm", "web --out x", "true") is None
        assert isinstance(ip.user_ns["x"], CommandResult)
        assert ip.user_ns["x"].stdout == "hello\n"
        ip.run_cell_magic("vm", "web db --out x", "true")
    assert sorted(ip.user_ns["x"]) == ["db", "web"]


def test_cell_fails_and_still_gives_its_result(ip, machines):
    machines.machine("web").result = CommandResult("web", "", 2, "", "", 0)
    with capture_output() as captured:
        result = ip.run_cell("%%vm web -o x\nfalse")
    assert isinstance(result.error_in_exec, CommandFailed)
    assert "status 2" in captured.stdout + captured.stderr
    assert "Traceback" not in captured.stdout + captured.stderr
    assert ip.user_ns["x"].status == 2
    with capture_output():
        assert ip.run_cell_magic("vm", "web --no-raise", "false").status == 2


@pytest.mark.parametrize(
    ("line", "says"),
    [("", "In which machine"), ("web --out 1x", "name of a variable"), ("nosuch", "no machine")],
)
def test_cell_mistakes(ip, line, says):
    with pytest.raises((UsageError, NotFound), match=says):
        ip.run_cell_magic("vm", line, "true")


# completion --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("%vm re", ["resume", "rename", "revert"]),
        ("%vm start ", ["db", "desk", "web"]),
        ("%vm start web d", ["db", "desk"]),
        ("%vm start web ", ["db", "desk"]),
        ("x = %vm revert web ", ["clean", "first", "<b>broken</b>", "other", "good"]),
        ("%vm revert web --clock ", ["then", "now"]),
        ("%vm revert --clock now web f", ["first"]),
        ("%vm create new de", ["desktop"]),
        ("%vm create new --me", ["--memory"]),
        ("%vm fork web -s o", ["other"]),
        ("%vm images --build a", ["all"]),
        ("%vm help und", ["undo"]),
        ("%vm exec w", ["web"]),
        ("%vm exec web -- l", []),
        ("%vm nosuch ", []),
        ("%vm exec web 'ls ", []),
        ("a = 1\n%vm start w", ["web"]),
        ("%%vm w", ["web"]),
        ("%%vm web --e", ["--err"]),
        ("%%vm web --err m", ["merge"]),
        ("%%vm web d", ["db", "desk"]),
        ("%%vm web\nls w", []),
        ("print(1) # %v", []),
        ("", []),
    ],
)
def test_completion(ip, text, expected):
    assert complete(ip, text) == expected


def test_completion_works_through_ipythons_completer(ip):
    _, matches = ip.complete(text="fi", line="%vm revert web fi", cursor_pos=17)
    assert matches[0] == "first"
    _, matches = ip.complete(text="", line="%vm revert web ", cursor_pos=15)
    assert "clean" in matches
    assert "%time" not in matches


def test_completion_never_raises_and_is_quick(ip, machines, monkeypatch):
    started = time.perf_counter()
    for _ in range(20):
        complete(ip, "%vm revert web ")
    assert (time.perf_counter() - started) / 20 < 0.05
    monkeypatch.setattr(type(machines), "machines", property(lambda self: 1 / 0))
    assert complete(ip, "%vm start ") == ["--boot", "--force"]


def test_completion_opens_no_lab_for_verbs(ip):
    def no_lab():
        raise AssertionError

    assert completion.complete("line", "sta", no_lab) == ["start"]


# in a kernel -------------------------------------------------------------------------------------------------------

KERNEL = """
import sys, time
sys.path.insert(0, {path!r})
from commands_fakes import lab
import vmlab.notebook
ip = get_ipython()
vmlab.notebook.load_ipython_extension(ip)
m = ip._vmlab[0]
m._lab, m._lab_home = lab(), ""
for name in ("web", "db"):
    m._lab.machine(name).output = [("stdout", "<hi>\\n"), ("stderr", "oops\\n")]
"""


def run(cells):
    from pathlib import Path

    from nbclient import NotebookClient

    book = nbformat.v4.new_notebook()
    book.cells = [
        nbformat.v4.new_code_cell(s) for s in (KERNEL.format(path=str(Path(__file__).parent)), *cells)
    ]
    NotebookClient(book, timeout=60, kernel_name="python3", allow_errors=True).execute()
    return [cell.outputs for cell in book.cells[1:]]


def test_in_a_kernel():
    progress, areas, table, failed, quick = run(
        [
            (
                "with m and vmlab.notebook.magics.for_shell(ip).progress('build <it>') as p:\n"
                "    p('unpack', 0.25); time.sleep(1.2)"
            ),
            "%%vm web db\ntrue",
            "%vm list",
            "%vm start nosuch",
            "with vmlab.notebook.magics.for_shell(ip).progress('quick') as p:\n    p('x', 0.5)",
        ]
    )
    # One output that was replaced, drawn by a thread, and readable in the saved file.
    [shown] = progress
    assert "build &lt;it&gt;: done after" in shown["data"]["text/html"]
    assert shown["data"]["text/plain"].startswith("build <it>: done after 1.")
    assert quick == []
    web, db, *rest = areas
    for output, name in ((web, "web"), (db, "db")):
        html = output["data"]["text/html"]
        assert f"<strong>{name}</strong>" in html
        assert "✓ exit 0" in html
        assert "&lt;hi&gt;" in html
        assert f"{name} | <hi>" in output["data"]["text/plain"]
    assert all(output.get("name") != "stderr" for output in rest)
    [out] = table
    assert "<table>" in out["data"]["text/html"]
    assert "MACHINE" in out["data"]["text/plain"]
    [error] = failed
    assert error["output_type"] == "error"
    assert len(error["traceback"]) <= 3


def test_an_area_keeps_only_the_end(monkeypatch):
    shown = []
    monkeypatch.setattr(ui.Output, "show", lambda self, html, text: shown.append((html, text)))
    areas = ui.NotebookAreas(["web"])
    for i in range(5000):
        areas.write("web", "stdout", f"line {i} with some words\n")
        areas.tick()
    areas.done("web", 0, 1.0)
    html, text = shown[-1]
    assert len(html) < 2 * ui.KEPT
    assert "line 4999" in html
    assert "line 10 " not in html
    cut = int(re.search(r"… (\d+) lines before", html)[1])
    assert f"line {cut} " in text
    assert f"line {cut - 1} " not in text
    assert len(shown) < 20


def test_an_interrupt_is_one_line_too(ip, machines):
    machines.machine("web").error = KeyboardInterrupt()
    with capture_output() as captured:
        result = ip.run_cell("%%vm web\ntrue")
    assert isinstance(result.error_in_exec, KeyboardInterrupt)
    assert (captured.stdout + captured.stderr).strip() == "KeyboardInterrupt: interrupted."
