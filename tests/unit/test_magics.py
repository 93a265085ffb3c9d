"""``%vm`` and ``%%vm`` in a real IPython shell, over a lab in memory; and the notebook's output in a real kernel."""

from __future__ import annotations

import re
import time

import nbformat
import pytest
from help.fakes import lab
from IPython.core.completer import CompletionContext
from IPython.terminal.interactiveshell import TerminalInteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config

from vmlab import commands, notebook
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


# variables and comments ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "name", "description"),
    [
        ('snapshot web "{name}"', "clean 2", ""),
        ("snapshot web '{name}'", "clean 2", ""),
        ("snapshot {both}", "x", ""),
        ("snapshot web $short", "s9", ""),
        ("snapshot web s{i + 1:02d}", "s08", ""),
        ("snapshot web {names['a b']} # {nosuch}", "s9", ""),
        ("snapshot web {f'{short}-{i}'}", "s9-7", ""),
        ("snapshot web $short.1", "s9.1", ""),
        ('snapshot web $short -d "{text}"', "s9", "it's \"so\""),
        ("snapshot $db.name x -d '{db.state!r:>10}'", "x", "     'off'"),
        ("snapshot web x -d 'costs $9, $short, {{i}}'", "x", "costs $9, $short, {i}"),
        ('snapshot web x -d "$$short, {nosuch} $nosuch {i/0}"', "x", "$short, {nosuch} $nosuch {i/0}"),
        ('snapshot web x -d "{broken" --description "a } b"', "x", "a } b"),
        ("snapshot web x --description={short}", "x", "s9"),
        ("{verb} web x", "x", ""),
        ("snapshot web x   # named s1, s2 ...", "x", ""),
        ("snapshot web     # it's named for me", None, ""),
        ("snapshot web x -d '# no comment' # one", "x", "# no comment"),
        ("snapshot web x#1", "x#1", ""),
        ("snapshot web x;", "x", ""),
        ("snapshot web 'x;' ; # quiet", "x;", ""),
    ],
)  # fmt: skip
def test_variables_and_comments(ip, machines, monkeypatch, line, name, description):
    taken = []

    def take(name=None, description="", *, replace=False):
        taken.append((name, description))

    for machine in machines.machines:
        monkeypatch.setattr(machine, "snapshot", take)
    values = {
        "name": "clean 2", "both": "web x", "short": "s9", "i": 7, "names": {"a b": "s9"}, "text": 'it\'s "so"',
        "verb": "snapshot", "db": machines.machine("db"),
    }  # fmt: skip
    for key, value in values.items():
        monkeypatch.setitem(ip.user_ns, key, value)
    ip.run_line_magic("vm", line)
    assert taken == [(name, description)]


def test_variables_of_a_function_and_of_a_loop(ip, machines):
    ip.run_cell(
        "def go(which):\n    %vm pause $which\nfor w in ('web', 'db'):\n    %vm pause {w}\ngo('desk')"
    )
    assert all(machine.done == [("pause",)] for machine in machines.machines)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("start {nosuch}", "no variable 'nosuch'"),
        ("start $nosuch", "no variable 'nosuch'"),
        ("%%vm $nosuch", "no variable 'nosuch'"),
        ("revert web {1/0}", "cannot be worked out .ZeroDivisionError"),
        ("create new --memory {nosuch}", "no variable 'nosuch'"),
        ("create new --memory={nosuch}", "no variable 'nosuch'"),
        ("describe web {nosuch} 'text'", "no variable 'nosuch'"),
        ("{nosuch} web", "no variable 'nosuch'"),
    ],
)
def test_an_unknown_variable_in_the_place_of_a_name(ip, machines, line, says):
    with pytest.raises(UsageError, match=says) as caught:
        ip.run_cell_magic("vm", line[4:], "true") if line[0] == "%" else ip.run_line_magic("vm", line)
    assert "set it first" in caught.value.hint
    assert not any(machine.done for machine in machines.machines)


@pytest.mark.parametrize(
    ("line", "raw", "expanded"),
    [
        ("exec %s web echo $x {x} '$x' # {y}", "echo $x {x} '$x' # {y}", "echo here here 'here' # {y}"),
        ("exec %s web 'echo {x}'", "echo {x}", "echo here"),
        ("exec %s {m} -- echo $HOME {HOME}", "echo $HOME {HOME}", "echo $HOME {HOME}"),
        ("type %s web $x # {x}", "$x # {x}", "here # here"),
        ("keys %s web {x} a", "{x} a", "here a"),
        ("wait %s web --until 'test -e {x}' # why", "test -e {x}", "test -e here"),
        ("wait %s web --serial={x}", "{x}", "here"),
        ("search %s {m} {x} # {nosuch}", "{x}", "here"),
        ("serial %s $m --send $x", "$x", "here"),
    ],
)
def test_what_goes_to_the_guest_is_raw_unless_it_is_to_be_expanded(ip, monkeypatch, line, raw, expanded):
    monkeypatch.setitem(ip.user_ns, "x", "here")
    monkeypatch.setitem(ip.user_ns, "m", "web")
    seen = []

    def see(lab, args, ui):
        words = getattr(args, "typed", None) or next(
            word for name in ("command", "words", "chords", "until", "serial", "text", "send")
            if (word := getattr(args, name, None))
        )  # fmt: skip
        words = words[1:] if words[:1] == ["--"] else words
        seen.append((args.machine, words if isinstance(words, str) else " ".join(words)))

    for expand in ("", "--expand"):
        name = line.split()[0]
        monkeypatch.setattr(commands.verb(name).module, "run", see)
        ip.run_line_magic("vm", line % expand)
    assert seen == [("web", raw), ("web", expanded)]


def test_a_cells_body_is_raw_unless_it_is_to_be_expanded(ip, machines, monkeypatch):
    monkeypatch.setitem(ip.user_ns, "x", "here")
    monkeypatch.setitem(ip.user_ns, "m", "web")
    body = "echo $x {x} ${HOME} # {y}\nf() { true; }\n"
    ip.run_cell(f"%%vm {{m}}  # in $m\n{body}")
    ip.run_cell(f"%%vm --expand $m\n{body}")
    assert [done[1] for done in machines.machine("web").done] == [
        body, "echo here here ${HOME} # {y}\nf() { true; }\n"
    ]  # fmt: skip


def test_a_semicolon_shows_nothing(ip):
    assert ip.run_line_magic("vm", "list;") is None
    assert ip.run_line_magic("vm", "list ; # quiet") is None
    assert ip.run_line_magic("vm", "list") is not None


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
    both = ip.user_ns["x"]
    assert sorted(both) == ["db", "web"]
    assert "CommandResult(" not in repr(both)
    assert re.search(r"web:\nhello\nexit 0 after .*\ndb:", repr(both))
    assert "<strong>web</strong>" in both._repr_html_()


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
        ("%vm re", ["reboot", "resume", "rename", "reset", "revert"]),
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
        ("%%vm web --er", ["--err"]),
        ("%vm exec --e", ["--expand"]),
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
from help.fakes import lab
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
        nbformat.v4.new_code_cell(s) for s in (KERNEL.format(path=str(Path(__file__).parents[1])), *cells)
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
