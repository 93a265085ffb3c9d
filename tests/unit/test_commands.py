"""The verbs: how they are found, how their words are read, what they ask of the objects."""

from __future__ import annotations

import argparse
import ast
import inspect
import threading
import time

import pytest
from help.fakes import Image, Lab, Machine, QuietUI, lab, stands_for, web  # noqa: F401

from vmlab import commands, machine
from vmlab.commands import _arguments as words
from vmlab.commands import _scripts
from vmlab.commands.ui import TerminalUI
from vmlab.errors import CommandFailed, MachineErrors, NotFound, UsageError, WrongState
from vmlab.guest.agent import CommandResult
from vmlab.study import diff
from vmlab.study.timeline import Timeline

VERBS = """create list start stop kill reboot pause resume delete rename mend link snapshot tree revert undo fork forget
describe verify diff timeline search console exec script put get keys type screenshot serial wait images
import limits doctor collect network up reset suspend capture
help"""


class Recorder(QuietUI):
    streams = True

    def __init__(self):
        self.seen = []

    def output(self, stream, text):
        self.seen.append((stream, text))


def do(lab, line, ui=None):
    name, _, rest = line.partition(" ")
    verb = commands.verb(name)
    return verb.run(lab, commands.parse_line(verb, rest), ui or Recorder())


def test_every_wait_says_what_it_waits_for():
    silent = []
    for verb in commands.verbs().values():
        for node in ast.walk(ast.parse(inspect.getsource(verb.module))):
            if isinstance(node, ast.With):
                for item in node.items:
                    if ast.unparse(item.context_expr).startswith("ui.progress("):
                        # Said at once, told while it goes on, or in the label.
                        words = ast.unparse(item.context_expr.args[0])
                        if (
                            len(item.context_expr.args) < 2
                            and not item.optional_vars
                            and " for " not in words
                        ):
                            silent.append(verb.name)
    assert silent == []


def test_fakes_take_only_what_the_real_ones_take():
    with pytest.raises(TypeError, match="nonsense"):
        Machine("web").stop(nonsense=1)

    class Other:
        def levitate(self):
            """Only a fake can do it."""

    with pytest.raises(AssertionError, match="levitate"):
        stands_for(machine.Machine)(Other)


# finding -----------------------------------------------------------------------------------------------------------


def test_all_verbs_are_found():
    assert set(commands.verbs()) == set(VERBS.split())


def test_each_verb_has_a_place_of_its_own_in_the_help():
    places = [(verb.group, verb.order) for verb in commands.verbs().values()]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("name", VERBS.split())
def test_every_verb_has_help_with_examples_that_parse(name):
    verb = commands.verb(name)
    assert verb.summary
    assert not verb.summary.endswith(".")
    assert len(verb.summary) < 70
    assert verb.examples
    help_text = verb.parser("%vm ").format_help()
    shown = [line.strip() for line in help_text.split("examples:\n")[1].splitlines()]
    for line in shown:
        if not line.startswith("# "):
            magic, first, *_ = line.split(" ", 2)
            assert (magic, first) == ("%vm", name)
            commands.parse_line(verb, line.partition(f" {name}")[2], names={})
    assert verb.summary in help_text
    for typed, _ in verb.examples:
        assert (f"%vm {typed}" in help_text) is not typed.startswith("vmlab ")
        assert f"vmlab {typed.removeprefix('vmlab ')}" in verb.parser("vmlab ").format_help()
    assert verb.group in commands.GROUPS


@pytest.mark.parametrize(
    ("wrong", "right"), [("creat", "create"), ("snapshoot", "snapshot"), ("lst", "list"), ("rev", "revert")]
)
def test_unknown_verb_names_the_nearest(wrong, right):
    with pytest.raises(UsageError) as caught:
        commands.verb(wrong, "%vm ")
    assert f"%vm {right}" in caught.value.hint


# reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("512M", 512 << 20),
        ("1G", 1 << 30),
        ("1.5GiB", 3 << 29),
        ("10 gb", 10 << 30),
        ("4K", 4096),
        ("2t", 2 << 40),
    ],
)
def test_sizes(text, count):
    assert words.size(text) == count


@pytest.mark.parametrize("text", ["10", "12Q", "", "-1G", "0G", "one gigabyte", "1e3M"])
def test_sizes_that_are_none(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"write it like 512M or 10G"):
        words.size(text)


@pytest.mark.parametrize(("text", "mib"), [("512", 512), ("512M", 512), ("1G", 1024), ("1.5G", 1536)])
def test_memory_is_in_mib(text, mib):
    assert words.memory(text) == mib


@pytest.mark.parametrize("text", ["0", "4K", "much"])
def test_memory_that_is_none(text):
    with pytest.raises(argparse.ArgumentTypeError):
        words.memory(text)


@pytest.mark.parametrize("text", ["80", "8080:", ":80", "99999:80", "80:0", "a:b", "1:2:3"])
def test_forwards_that_are_none(text):
    with pytest.raises(argparse.ArgumentTypeError):
        words.forward(text)


def test_seconds():
    assert [words.seconds(t) for t in ("90", "1.5", "2m", "1h", "90s")] == [90, 1.5, 120, 3600, 90]


def test_split_keeps_places_and_expands_nothing():
    line = """web  'a b' "c \\"d\\"" $HOME {x} e\\ f '' *.txt"""
    found = commands.split(line)
    assert [w for w, _ in found] == ["web", "a b", 'c "d"', "$HOME", "{x}", "e f", "", "*.txt"]
    assert all(line[at:].lstrip("'\"")[0] == word[0] for word, at in found if word)


def test_open_quote():
    with pytest.raises(UsageError, match="not closed"):
        commands.split("web 'abc")


def test_create_options_reach_the_lab():
    it = Lab()
    do(
        it,
        "create web desktop --memory 1G --vcpus 2 --disk 10G --add-disk 1G --add-disk 2G --forward 8080:80 -f 2222:22 "
        "--nic lan --nic dmz=10.2.0.9 "
        '--sound --video vga --accel tcg --kernel-args "quiet splash" --boot cdrom,disk --no-start --force --clock now '
        "--reuse",
    )
    [(name, image, options)] = it.created
    assert (name, image) == ("web", "desktop")
    assert options.pop("progress") is not None
    assert options == {
        "memory": 1024, "vcpus": 2, "disk": 10 << 30, "disks": (1 << 30, 2 << 30), "firmware": None,
        "boot": ("cdrom", "disk"), "way_out": None,
        "nics": ("lan", "dmz=10.2.0.9"), "forwards": ((8080, 80), (2222, 22)), "sound": True, "video": "vga",
        "accelerator": "tcg", "kernel_args": "quiet splash", "clock": "now", "start": False, "bake": None,
        "force": True, "reuse": True,
    }  # fmt: skip


def test_create_has_plain_defaults():
    it = Lab()
    do(it, "create web")
    assert it.created[0][1] == "tiny"
    assert {k: v for k, v in it.created[0][2].items() if k != "progress" and v} == {
        "clock": "now",
        "start": True,
    }


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("create", "NAME"),
        ("create web --memory lots", "'lots' is not a size"),
        ("create web --memry 1G", "Did you mean --memory?"),
        ("create web --vcpus 0", "whole number from 1"),
        ("create web --boot floppy", "'floppy' is no place"),
        ("revert web --clock yesterday", "invalid choice"),
        ("wait web --port 80 --file /x", "not allowed with"),
        ("fork web a b --count 3", "2 names do not make 3"),
        ("exec web", "What shall web run?"),
        ("put web /nonexistent/file /x", "There is no /nonexistent/file here"),
        ("describe web a b c", "one text"),
    ],
)
def test_mistakes_are_usage_errors(line, says):
    with pytest.raises(UsageError) as caught:
        do(lab(), line)
    assert says in str(caught.value)


def test_usage_error_carries_the_usage_line_once_and_on_one_line():
    with pytest.raises(UsageError) as caught:
        do(lab(), "rename web")
    assert caught.value.evidence["usage"] == "%vm rename [-h] NAME NEW"


# doing -------------------------------------------------------------------------------------------------------------


def test_several_names_patterns_and_each_only_once():
    it = lab()
    table = do(it, "start 'd*' web db")
    assert [m.name for m in table] == ["db", "desk", "web"]
    assert it.machine("db").done == [("start", {"boot": False, "force": False})]
    assert do(it, "pause web") is it.machine("web")


def test_a_pattern_that_fits_nothing():
    with pytest.raises(NotFound, match="No machine fits 'x"):
        do(lab(), "start x*")


def test_unknown_machine_names_the_nearest():
    with pytest.raises(NotFound, match="did you mean 'web'"):
        do(lab(), "start wbe")


@pytest.mark.parametrize("verb", ["pause", "stop"])  # one after the other, and at once
def test_one_failure_does_not_stop_the_others(verb):
    it = lab()
    it.machine("desk").error = WrongState("desk is off.")
    with pytest.raises(MachineErrors) as caught:
        do(it, f"{verb} '*'")
    assert list(caught.value.errors) == ["desk"]
    assert it.machine("web").done
    assert it.machine("db").done


def test_one_machine_fails_with_its_own_error():
    it = lab()
    it.machine("web").error = WrongState("web is off.")
    with pytest.raises(WrongState):
        do(it, "pause web")


def test_revert_fork_snapshot():
    it = lab()
    machine = it.machine("web")
    assert do(it, "revert web first --clock now --no-keep") is machine
    assert machine.done[-1] == ("revert", "first", {"clock": "now", "keep": False, "force": False})
    assert [m.name for m in do(it, "fork web --count 3 --snapshot clean")] == ["web-1", "web-2", "web-3"]
    assert [m.name for m in do(it, "fork web w1 w2")] == ["w1", "w2"]
    assert do(it, "fork web w1").name == "w1"
    made = do(it, 'snapshot web more -d "a b"')
    assert (made.name, made.description) == ("more", "a b")


def test_forget_looks_all_up_before_it_forgets_one():
    it = lab()
    with pytest.raises(NotFound):
        do(it, "forget web clean nosuch")
    assert not it.machine("web").find("clean").forgotten
    note = do(it, "forget web clean first")
    assert note.to_json() == {"machine": "web", "forgotten": ["clean", "first"]}
    assert it.machine("web").find("clean").forgotten


def test_describe():
    it = lab()
    machine = it.machine("web")
    assert do(it, 'describe web clean "as new"').description == "as new"
    assert do(it, 'describe web "where I am"') is machine.here
    assert machine.here.description == "where I am"
    assert do(it, "describe web clean").description == "as new"
    assert do(it, "describe web clean --name fresh").name == "fresh"
    with pytest.raises(NotFound):
        do(it, "describe web cleen")
    with pytest.raises(NotFound, match="no snapshot yet"):
        do(it, 'describe db "a text"')


@pytest.mark.parametrize(
    ("line", "passed"),
    [
        ("exec web -- ls -la", "ls -la"),
        ("exec web ls -la | grep 'a  b'", "ls -la | grep 'a  b'"),
        ("exec web -- echo $HOME {x} > /tmp/a", "echo $HOME {x} > /tmp/a"),
        ('exec web "dmesg | tail"', "dmesg | tail"),
        ('exec web -- "dmesg | tail"', "dmesg | tail"),
        ("exec web -- -v", "-v"),
        ("exec web -t 5 ls", "-t 5 ls"),
        ("exec web -- sh -- -x", "sh -- -x"),
    ],
)
def test_exec_passes_on_what_was_typed(line, passed):
    it = lab()
    do(it, line)
    assert it.machine("web").done == [("run", passed, None, None)]


def test_exec_options_stand_before_the_name():
    it = lab()
    do(it, "exec -t 5 --user bob web id")
    assert it.machine("web").done == [("run", "id", 5.0, "bob")]


def test_exec_after_a_shell_passes_words_on_as_they_are():
    it = lab()
    verb = commands.verb("exec")
    verb.run(it, commands.parse(verb, ["web", "--", "echo", "a  b", "|"]), QuietUI())
    assert it.machine("web").done[0][1] == ["echo", "a  b", "|"]


def test_a_failing_command_raises_unless_asked_not_to():
    it = lab()
    it.machine("web").result = CommandResult("web", "", 3, "", "", 0)
    it.machine("web").output = [("stdout", "out\n"), ("stderr", "no such thing\n")]
    with pytest.raises(CommandFailed) as caught:
        do(it, "exec web false")
    assert caught.value.evidence["exit_status"] == 3
    assert "out" not in str(caught.value)  # it was shown as it came
    assert do(it, "exec --no-raise web false").exit_status == 3


def script(it, line, body, ui):
    verb = commands.verb("script")
    args = commands.parse_line(verb, line)
    args.body = body
    return verb.run(it, args, ui)


@pytest.mark.parametrize(
    ("err", "streams"),
    [("show", ["stdout", "stderr"]), ("merge", ["stdout", "stdout"]), ("hide", ["stdout"])],
)
def test_script_shows_streams_as_asked(err, streams):
    it, ui = lab(), Recorder()
    it.machine("web").output = [("stdout", "a\n"), ("stderr", "b\n")]
    ended = script(it, f"web --err {err}", "#!/bin/sh\nx", ui)
    assert [stream for stream, _ in ui.seen] == streams
    assert ended.stderr == "b\n"
    assert it.machine("web").done[0][1] == "#!/bin/sh\nx"


def test_script_on_several_prefixes_whole_lines(capsys):
    it = lab()
    for name in ("web", "db"):
        it.machine(name).output = [("stdout", "one\ntw"), ("stdout", "o\n"), ("stderr", "oops")]
    ended = script(it, "web db", "x", TerminalUI())
    out, err = capsys.readouterr()
    for name in ("web", "db "):
        assert [line for line in out.splitlines() if line.startswith(name)] == [
            f"{name} | one", f"{name} | two", f"{name} | exit 0 after 0.25 s",
        ]  # fmt: skip
        assert f"{name} | oops" in err
    assert ended["db"].stdout == "one\ntwo\n"
    assert ended.exit_status == 0


def test_script_on_several_with_failures():
    it = lab()
    it.machine("db").result = CommandResult("db", "", 127, "", "", 0)
    with pytest.raises(CommandFailed, match="1 of 2 machines"):
        script(it, "web db", "x", QuietUI())
    it.machine("db").error = WrongState("db is off.")
    with pytest.raises(MachineErrors, match="db is off"):
        script(it, "web db", "x", QuietUI())


def test_script_without_text():
    with pytest.raises(UsageError, match="There is no script"):
        script(lab(), "web", " \n", QuietUI())


def test_script_from_a_file(tmp_path):
    it = lab()
    (tmp_path / "s.sh").write_text("echo hi")
    do(it, f"script web --file {tmp_path}/s.sh")
    assert it.machine("web").done[0][1] == "echo hi"
    with pytest.raises(UsageError, match="cannot be read"):
        do(it, f"script web --file {tmp_path}/nosuch")


def test_an_interrupt_reaches_every_guest(monkeypatch):
    it = lab()
    machines = [it.machine("web"), it.machine("db")]
    main = threading.main_thread().ident

    def interrupt():
        time.sleep(0.3)
        import signal

        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        _scripts.run_script(machines, "sleep", QuietUI(), timeout=None, errors="show")
    assert time.monotonic() - started < 3
    assert all(machine.interrupted.is_set() for machine in machines)


def test_wait():
    it = lab()
    note = do(it, "wait web --port 80 --timeout 2m")
    assert it.machine("web").done == [("port", 80, 120.0)]
    assert note.to_json()["what"] == "port 80"
    do(it, "wait web")
    assert it.machine("web").done[-1] == ("agent", 60.0)


def test_keys_and_type():
    it = lab()
    do(it, "keys web ctrl-alt-f2 ret")
    do(it, 'type web "ls -la" --enter')
    assert it.machine("web").done == [("keys", "ctrl-alt-f2", "ret"), ("type", "ls -la\n")]


@pytest.fixture
def row(monkeypatch):
    """A lab in which three states are compared, and what it was asked for."""
    asked = {}

    class Row:
        def to_html(self, path):
            asked["html"] = path
            return path

    class Three:
        store, scenarios = None, ()

        def timeline(self, states, **options):
            asked.update(options, states=states)
            return Row()

    monkeypatch.setattr("vmlab.study.which.states", lambda store, words: list(words))
    return Three(), asked


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ("", diff.USUAL),
        ("--all", diff.PARTS),
        ("--inside --files", ("files", "inside")),
        ("--devices", ("registers", "devices")),
    ],
)
def test_diff_of_three_states_takes_the_same_options(row, options, layers):
    lab, asked = row
    do(lab, f"diff s1 s2 s3 {options}")
    assert set(asked["layers"]) == set(layers)
    assert "html" not in asked


def test_diff_of_three_states_is_written(row):
    lab, asked = row
    do(lab, "diff s1 s2 s3 --html x.html")
    assert asked["html"] == "x.html"


@pytest.mark.parametrize("option", ["--baseline", "--strings"])
def test_diff_of_three_states_says_what_it_cannot(row, option):
    with pytest.raises(UsageError, match=f"{option} is for two states"):
        do(row[0], f"diff s1 s2 s3 {option}")
    assert not row[1]


def test_diff_says_when_its_page_cannot_be_written(row, tmp_path):
    lab, _ = row
    timeline = Timeline("everything", ())
    lab.timeline = lambda states, **_: timeline
    do(lab, f"diff s1 s2 s3 --html {tmp_path}/there.html")
    assert "everything never changes" in (tmp_path / "there.html").read_text()
    with pytest.raises(UsageError, match="cannot be written"):
        do(lab, f"diff s1 s2 s3 --html {tmp_path}/nowhere/there.html")


def test_diff_looks_at_strings_only_when_asked(monkeypatch):
    class Made:
        compared, strings_asked = (), False

        def compare(self, *layers, tell=None):
            self.compared = layers

        def part(self, name):
            return argparse.Namespace(result="ram")

        @property
        def strings(self):
            self.strings_asked = True

    monkeypatch.setattr("vmlab.study.which.states", lambda store, words: list(words))
    monkeypatch.setattr("vmlab.study.diff.make", lambda store, words: Made())
    assert not do(argparse.Namespace(store=None, scenarios=()), "diff a b").strings_asked
    made = do(argparse.Namespace(store=None, scenarios=()), "diff a b --strings --files")
    assert made.strings_asked
    assert set(made.compared) == {"files", "ram"}


def test_serial_is_clean():
    shown = do(lab(), "serial web --lines 5")
    assert str(shown) == "5 lines\nlogin: red"


def test_nothing_is_abbreviated():
    with pytest.raises(UsageError):
        do(lab(), "create web --mem 1G")
