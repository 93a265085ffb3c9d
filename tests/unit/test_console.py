"""Live consoles without a guest: what is saved, what the page may say, whom the web console lets in."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import pty
import re
import select
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from help import fakes
from PIL import Image

import vmlab
from vmlab import commands
from vmlab.commands import _terminal
from vmlab.errors import UsageError, WrongState
from vmlab.guest.screen import Screenshot
from vmlab.notebook import console as consoles
from vmlab.notebook import frontend
from vmlab.notebook.console import SAVED, VIEW, Console, Consoles
from vmlab.records import Hardware
from vmlab.render import surface
from vmlab.webconsole.__main__ import FILES, ConsoleKeys, Doors

TRAITS = {"machine", "uuid", "kind", "mode", "read_only", "minimised"}


class Machine(fakes.Machine):
    """A machine with a screen."""

    uuid = "7c1f0000-0000-4000-8000-000000000000"
    size = (1280, 800)
    spec = Hardware(memory=64, vcpus=1, tablet=True)

    def screenshot(self):
        if self.state == "off":
            raise WrongState(f"{self.name} is off; it has no screen to show.")
        return Screenshot.open(fakes.png(*self.size))


@pytest.fixture
def web():
    return Machine("web")


@pytest.fixture
def said(monkeypatch):
    """What a console sends to its page."""
    sent = []
    monkeypatch.setattr(Console, "send", lambda self, content, buffers=None: sent.append((content, buffers)))
    return sent


def own_traits(console):
    return {name: value for name, value in console.get_state().items() if not name.startswith("_")}


# what is saved -----------------------------------------------------------------------------------------------------


def test_the_script_of_a_widget_is_small():
    assert len(Console._esm.encode()) < 10_000
    assert "export default" in Console._esm


def test_the_state_holds_names_only(web):
    console = Console(web, kind="screen", mode="actual", read_only=True)
    state = own_traits(console)
    assert set(state) - {"layout", "tabbable", "tooltip"} == TRAITS
    assert (state["machine"], state["mode"], state["read_only"]) == ("web", "actual", True)
    console._answer({"do": "look"})
    console._answer({"do": "pictures"})
    assert own_traits(console) == state, "a look has put something into the state"
    assert len(str(console.get_state())) < 12_000


@pytest.mark.parametrize(("size", "width"), [((1280, 800), 1024), ((720, 400), 720)])
def test_a_picture_stands_beside_the_widget(web, size, width):
    web.size = size
    data, metadata = Console(web)._repr_mimebundle_()
    assert set(data) == {SAVED, "text/plain", "image/png"}
    picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    assert picture.width == width
    assert metadata["image/png"]["width"] == width
    for text in (data["text/plain"], metadata["image/png"]["alt"]):
        assert re.match(r"Screen of web \(running\) at 20\d\d-.* when this cell ran\.", text)
    assert "%vm console web" in data["text/plain"]
    assert "vmlab console web" in data["text/plain"]


def test_a_machine_that_is_off_has_words_and_no_picture(web):
    web.state = "off"
    data, metadata = Console(web)._repr_mimebundle_()
    assert set(data) == {SAVED, "text/plain"}
    assert "Screen of web (off)" in data["text/plain"]
    assert metadata == {}


def test_a_serial_line_keeps_its_last_lines(web):
    data, _ = Console(web, kind="serial")._repr_mimebundle_()
    assert set(data) == {SAVED, "text/plain"}
    assert "40 lines" in data["text/plain"]
    assert "%vm console web --serial" in data["text/plain"]


PAGE, CLIENT = "0b2e4c3a-7a50-4f0e-9a58-0f7f6b0d1c11", "7d3f2b1c-77aa_4242_17"


@pytest.mark.parametrize(
    ("cell", "by", "stdin", "served", "front", "view", "model"),
    [
        (
            "1f3c",
            PAGE,
            True,
            True,
            "ours",
            False,
            True,
        ),  # JupyterLab, Notebook 7: our extension finds the widget
        ("1f3c", PAGE, True, False, "foreign", True, True),
        ("vscode-notebook-cell:/a.ipynb#W0", PAGE, True, True, "foreign", True, True),
        (None, PAGE, True, True, "foreign", True, True),  # older pages
        (None, CLIENT, False, True, "nobody", False, False),  # nbclient, nbconvert --execute, papermill
        (None, CLIENT, False, False, "nobody", False, False),
        (None, CLIENT, True, False, "text", False, False),  # jupyter console
    ],
)
def test_a_widgets_view_is_only_where_a_page_needs_it(
    web, monkeypatch, cell, by, stdin, served, front, view, model
):
    class Shell:
        def get_parent(self):
            return {
                "header": {"msg_id": by},
                "metadata": {"cellId": cell} if cell else {},
                "content": {"allow_stdin": stdin},
            }

    monkeypatch.setattr(frontend, "get_ipython", Shell)
    monkeypatch.delenv("SERVER_SOFTWARE", raising=False)
    monkeypatch.delenv(surface.SERVED, raising=False)
    if served:
        monkeypatch.setenv(surface.SERVED, "1")
    assert frontend.front_end() == front
    data, _ = Console(web)._repr_mimebundle_()
    assert (VIEW in data, "model_id" in data[SAVED]) == (view, model)
    assert {"image/png", "text/plain"} < set(data)


def test_several_side_by_side(web):
    db = Machine("db")
    shown = consoles.consoles([web, db], "screen", {"read_only": True})
    assert isinstance(shown, Consoles)
    assert shown["db"].machine == "db"
    assert shown["db"].read_only
    data, _ = shown._repr_mimebundle_()
    picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    assert picture.width == 2 * consoles.WIDTH_BESIDE + 8
    assert "%vm console web db" in data["text/plain"]
    with pytest.raises(KeyError):
        shown["nobody"]


def test_closing_leaves_the_last_picture(web, monkeypatch):
    published = []
    monkeypatch.setattr(
        consoles, "publish_display_data", lambda *bundle, **options: published.append((bundle[0], options))
    )
    console = Console(web)
    console._ipython_display_()
    console.close()
    console.close()
    (first, shown), (last, replaced) = published
    assert SAVED in first
    assert SAVED not in last
    assert "when the console was closed" in last["text/plain"]
    assert "image/png" in last
    assert replaced == {**shown, "update": True}
    console._on_message(console, {"do": "look"}, [])  # a page that has not noticed


# what the page says when it has no server --------------------------------------------------------------------------


def test_pictures_are_sent_when_something_changed(web, said):
    console = Console(web)
    console._answer({"do": "look", "seen": None})
    [(content, buffers)] = said
    assert content["what"] == "picture"
    assert buffers[0].startswith(b"\x89PNG")
    console._answer({"do": "look", "seen": content["seen"]})
    assert said[1] == ({"what": "same"}, None)
    web.state = "off"
    console._answer({"do": "look", "seen": content["seen"]})
    assert said[2][0]["what"] == "off"


def test_input_reaches_the_machine_in_order(web, said):
    Console(web)._answer(
        {"do": "input", "events": [{"type": "text", "text": "ls"}, {"type": "keys", "keys": "ret"}]}
    )
    assert web.done == [("type", "ls"), ("keys", "ret")]
    assert [content["what"] for content, _ in said] == ["done"]


def test_without_a_tablet_clicks_are_refused_and_keys_go_on(web, said):
    web.spec = Hardware(memory=64, vcpus=1, tablet=False)
    events = [{"type": "down", "x": 1, "y": 1, "button": "left"}, {"type": "text", "text": "x"}]
    Console(web)._answer({"do": "input", "events": events})
    assert web.done == [("type", "x")]
    assert "no tablet" in said[-1][0]["message"]


def test_read_only_takes_no_input(web, said):
    Console(web, read_only=True)._answer({"do": "input", "events": [{"type": "text", "text": "x"}]})
    assert web.done == []
    assert said[0][0]["what"] == "error"


@pytest.mark.parametrize(
    "words", [{}, {"do": "nonsense"}, {"do": "input"}, {"do": "input", "events": [{"type": "?"}]}]
)
def test_nonsense_is_answered(web, said, capsys, words):
    Console(web)._answer(words)
    assert said[-1][0]["what"] == "error"
    assert capsys.readouterr() == ("", "")


# where it can be shown ---------------------------------------------------------------------------------------------


def test_plain_python_says_what_to_do():
    code = (
        "import vmlab.machine as m, sys\n"
        "from vmlab.errors import UsageError\n"
        "machine = m.Machine.__new__(m.Machine); machine._name = 'web'\n"
        "m.Machine._record = None\n"
        "try: machine.console(serial=True)\n"
        "except UsageError as error: print(error)\n"
        "print(sorted(set(sys.modules) & {'IPython', 'ipywidgets', 'anywidget'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "vmlab console web --serial" in done.stdout
    assert done.stdout.rstrip().endswith("[]")


def test_widgets_are_loaded_when_one_is_shown():
    code = (
        "import sys; from IPython.core.interactiveshell import InteractiveShell as S\n"
        "S.instance().run_line_magic('load_ext', 'vmlab')\n"
        "print(sorted(set(sys.modules) & {'ipywidgets', 'anywidget', 'websockify'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_terminal_is_one_serial_line():
    verb = commands.verb("console")
    lab = fakes.lab()
    with pytest.raises(UsageError, match="one machine"):
        verb.run(lab, commands.parse(verb, ["web", "db", "--serial"]), fakes.QuietUI())
    with pytest.raises(UsageError, match="needs a terminal"):
        verb.run(lab, commands.parse(verb, ["web", "--serial"]), fakes.QuietUI())


def test_the_package_shows_consoles():
    assert vmlab._surface.surface is not None
    assert vmlab._surface.surface([Machine("web")], "screen", {}) is None  # pytest is no kernel


# a terminal as the serial line -------------------------------------------------------------------------------------


class Guest:
    """A machine that writes without pause into its log and down its line, and keeps what is typed."""

    name, pid = "web", 1
    ended = False

    def __init__(self, log):
        self.serial_log, self.domain = log, self
        self.typed = b""

    def state(self):
        return "running"

    def open_serial(self, _timeout=10.0):
        return self

    def recv(self, _size):
        return b"y\n" * 1000

    def try_send(self, data):
        self.typed += data
        return len(data)

    def close(self):
        pass


def test_a_terminal_is_left_while_the_guest_writes_without_pause(tmp_path, monkeypatch):
    log = tmp_path / "serial.log"
    guest, written, over = Guest(log), threading.Event(), threading.Event()

    def write():
        with log.open("ab") as file:
            while not over.is_set() and file.tell() < 16 << 20:
                file.write(b"y\n" * 50_000)
                file.flush()

    ours, theirs = pty.openpty()

    def see():
        with contextlib.suppress(OSError):  # the other end is closed
            while not over.is_set():
                if select.select([ours], [], [], 0.1)[0] and b"y" in os.read(ours, 1 << 16):
                    written.set()

    def person():
        written.wait(20)
        os.write(ours, b"typed")
        while guest.typed != b"typed" and not over.is_set():
            time.sleep(0.01)
        os.write(ours, b" and left\x1d")

    with os.fdopen(os.dup(theirs)) as keys, os.fdopen(os.dup(theirs), "w") as screen:
        monkeypatch.setattr(sys, "stdin", keys)
        monkeypatch.setattr(sys, "stdout", screen)
        left = []
        threads = [
            threading.Thread(target=run, daemon=True)
            for run in (write, see, person, lambda: left.append(_terminal.attach(guest, fakes.QuietUI())))
        ]
        for thread in threads:
            thread.start()
        threads[-1].join(30)
        over.set()
        for thread in threads[:-1]:
            thread.join(30)
    os.close(ours)
    os.close(theirs)
    assert left
    assert "Left the serial line of web" in left[0].words
    assert guest.typed == b"typed and left"


# whom the web console lets in --------------------------------------------------------------------------------------


def test_an_invitation_works_once():
    doors = Doors(["web", "db"])
    assert doors.enter("") is None
    assert doors.enter(doors.invitation[:-1]) is None
    assert not doors.used
    given = doors.enter(doors.invitation)
    assert given is not None
    assert doors.used
    assert [one["machine"] for one in given] == ["web", "db"]
    assert doors.enter(doors.invitation) is None
    assert [doors.machine(one["key"]) for one in given] == ["web", "db"]


def test_keys_open_nothing_before_somebody_came():
    doors = Doors(["web"])
    [key] = doors.keys
    assert doors.machine(key) is None
    doors.enter(doors.invitation)
    assert doors.machine(key) == "web"
    for wrong in ("", "web", doors.invitation, key + "x", key.swapcase(), "ü"):
        assert doors.machine(wrong) is None


def test_secrets_are_long_and_not_the_same():
    doors, others = Doors(["a", "b"]), Doors(["a", "b"])
    every = [doors.invitation, *doors.keys, others.invitation, *others.keys]
    assert len(set(every)) == 6
    assert all(len(secret) >= 43 for secret in every)


def test_an_unknown_key_leads_nowhere(tmp_path):
    assert ConsoleKeys(Doors(["web"]), tmp_path).lookup("x") is None


def test_only_three_files_can_be_fetched():
    assert set(FILES) == {"/", "/page.js", "/console.js"}
    page = Path(FILES["/"][0]).read_text()
    assert "http" not in page.replace("http-equiv", ""), "the page must need nothing from elsewhere"
