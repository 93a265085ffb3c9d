"""The Jupyter server extension without a guest: who gets in, what comes in, what goes out. A real server, real HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import websocket
import yaml
from help.server_process import JupyterProcess, close_code, jupyter_process
from jsonschema import Draft202012Validator
from PIL import Image

import vmlab.webconsole.__main__ as webconsole
from vmlab import errors
from vmlab.hypervisor.console import close_code as code_for
from vmlab.hypervisor.console import screen_socket
from vmlab.server import base, serial
from vmlab.server.routes import API, PART, routes
from vmlab.server.service import READERS, TYPISTS, Service
from vmlab.server.static import FOLDER

#: What is two things in the REST interface, since it is in Python and on the command line.
TWO_MEANINGS = {
    "boot": "of a new machine, where from; of a start, that it boots",
    "here": "of a machine and a tree, a snapshot; of a snapshot, whether it is that one",
    "snapshots": "of a tree, they themselves; of a usage, the bytes that they take",
}
METHODS = ("get", "head", "post", "put", "patch", "delete")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JupyterProcess]:
    """A server whose lab is empty."""
    folder = tmp_path_factory.mktemp("jupyter")
    with jupyter_process(folder / "server", home=folder / "home") as running:
        yield running
    # Whatever the tests of this module asked for, nothing of it was a mistake in vmlab.
    assert "Uncaught exception" not in running.log.read_text()


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JupyterProcess]:
    """A server whose authorizer lets people look, not touch."""
    folder = tmp_path_factory.mktemp("jupyter")
    config = (
        "from jupyter_server.auth import Authorizer\n"
        "class OnlyRead(Authorizer):\n"
        "    def is_authorized(self, handler, user, action, resource):\n"
        "        return action == 'read' or resource != 'vmlab'\n"
        "c.ServerApp.authorizer_class = OnlyRead\n"
    )
    with jupyter_process(folder / "server", home=folder / "home", config=config) as running:
        yield running


def paths(pattern: str) -> list[str]:
    """Return the paths that a route's pattern stands for, with ``{x}`` where a name goes."""
    pattern = pattern.replace(PART, "{x}").replace("(.+)", "{x}").replace("\\.", ".")
    found = re.search(r"\(([^()]*)\)", pattern)
    if not found:
        return [pattern]
    return [pattern.replace(found[0], word) for word in found[1].split("|")]


def methods(handler: type[Any]) -> list[str]:
    """Return what a handler itself can be asked."""
    return [m for m in METHODS if m in vars(handler)]


ALL = [
    (method, path.replace("{x}", "web"))
    for pattern, handler, _ in routes()
    for path in paths(pattern)
    for method in methods(handler) or ["get"]
]


# -- who gets in -------------------------------------------------------------------------------------------------


#: What a page loads by itself; JupyterHub takes no cookie for it.
FOR_ANYBODY = {("get", "vmlab/static/web"), ("head", "vmlab/static/web")}


@pytest.mark.parametrize(("method", "path"), ALL, ids=[f"{m} {p}" for m, p in ALL])
def test_strangers_get_403(server: JupyterProcess, method: str, path: str) -> None:
    wanted = 404 if (method, path) in FOR_ANYBODY else 403
    assert server.request(method.upper(), path, login="none").status == wanted


def test_the_files_of_a_page_are_for_anybody(server: JupyterProcess) -> None:
    assert len(FOR_ANYBODY & set(ALL)) == 2
    for login in ("none", "no-xsrf", "token"):
        answer = server.request("GET", "vmlab/static/console.js", login=login)
        assert answer.status == 200
        assert answer.body == (FOLDER / "console.js").read_bytes()


def test_there_are_routes_to_test() -> None:
    assert len(ALL) > 25


@pytest.mark.parametrize("kind", ["vnc", "serial"])
def test_websockets_refuse_strangers_and_foreign_origins(server: JupyterProcess, kind: str) -> None:
    path = f"vmlab/consoles/web/{kind}"
    for login, origin in (("none", None), ("cookie", "http://evil.example"), ("none", "http://evil.example")):
        with pytest.raises(websocket.WebSocketBadStatusException) as refused:
            server.websocket(path, login=login, origin=origin)
        assert refused.value.status_code == 403
    opened = server.websocket(path, login="cookie", origin=f"http://127.0.0.1:{server.port}")
    assert opened.subprotocol == "binary"
    assert close_code(opened)[0] == 4404


def test_posts_need_the_xsrf_token(server: JupyterProcess) -> None:
    assert server.api("POST", "machines", {"image": "nothing"}, login="no-xsrf").status == 403
    assert server.api("POST", "machines", {"image": "nothing"}, login="cookie").status == 404
    assert server.api("GET", "machines", login="no-xsrf").json == []


@pytest.mark.parametrize("path", ["diff", "diff.html"])
def test_comparing_needs_the_xsrf_token_or_a_page_of_ours(server: JupyterProcess, path: str) -> None:
    # It is a GET, but guests run for it.
    path = f"{path}?before=web@clean&after=web"
    assert server.api("GET", path, login="no-xsrf").status == 403
    assert server.api("GET", path, login="no-xsrf", Referer="http://evil.example/x").status == 403
    ours = f"http://127.0.0.1:{server.port}{server.base}lab"
    assert server.api("GET", path, login="no-xsrf", Referer=ours).status == 404
    assert server.api("GET", path, login="cookie").status == 404
    assert server.api("GET", path, login="token").status == 404


def test_posts_from_another_origin_are_refused(server: JupyterProcess) -> None:
    answer = server.api(
        "POST", "machines", {"image": "nothing"}, login="cookie", Origin="http://evil.example"
    )
    assert answer.status in (403, 404)
    assert "evil" not in answer.body.decode()
    assert answer.json["error"]["type"] == "HTTPError"


def test_who_may_only_read(reader: JupyterProcess) -> None:
    assert reader.api("GET", "machines").json == []
    for method, path in ALL:
        answer = reader.request(method.upper(), path)
        # A console and a comparison have guests do something: that is to execute.
        wanted = method in ("get", "head") and "consoles" not in path and "/diff" not in path
        assert (answer.status != 403) == wanted, (method, path, answer)
    assert reader.api("POST", "machines", {"image": "tiny"}).json["error"]["type"] == "HTTPError"


# -- what comes in -----------------------------------------------------------------------------------------------

EVIL = [
    "..", "..%2f..%2fetc", "%2fetc%2fpasswd", "web%00", "%2e%2e%2fsnapshots", "w%c3%a9b", "%ff%fe", ".hidden",
    "a" * 300,
]  # fmt: skip
OF_MACHINES = ("machines/{}", "machines/{}/serial", "machines/{}/screen.png", "machines/{}/snapshots")
OF_SNAPSHOTS = ("snapshots/{}", "snapshots/{}/screen.png")


@pytest.mark.parametrize("name", EVIL)
def test_names_reach_no_other_files(server: JupyterProcess, name: str) -> None:
    for path in OF_MACHINES + OF_SNAPSHOTS:
        answer = server.api("GET", path.format(name))
        assert answer.status in (400, 404), (path, answer)
    for path in ("machines/{}", "snapshots/{}"):
        assert server.api("DELETE", path.format(name)).status in (400, 404, 405)
    for path in ("machines/{}/start", "images/{}/build", "snapshots/{}/verify"):
        assert server.api("POST", path.format(name), {}).status in (400, 404, 405)
    for kind in ("vnc", "serial"):
        try:
            opened = server.websocket(f"vmlab/consoles/{name}/{kind}")
        except websocket.WebSocketBadStatusException as refused:
            assert refused.status_code in (400, 403, 404)  # noqa: PT017
        else:
            assert close_code(opened)[0] == 4404


def test_a_file_outside_the_store_is_not_a_snapshot(server: JupyterProcess, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "screen.png").write_bytes(b"secret")
    for path in (str(tmp_path), f"../../../../../../{tmp_path}"):
        quoted = path.replace("/", "%2f")
        assert server.api("GET", f"snapshots/{quoted}").status == 400
        assert b"secret" not in server.api("GET", f"snapshots/{quoted}/screen.png").body


@pytest.mark.parametrize(
    "path", ["..%2f__init__.py", "%2e%2e%2fserver%2fopenapi.yaml", "../__init__.py", "%2fetc%2fpasswd"]
)
def test_static_files_are_only_those(server: JupyterProcess, path: str) -> None:
    assert server.request("GET", f"vmlab/static/{path}").status in (403, 404)


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("machines", {}, "image"),
        ("machines", [], "object"),
        ("machines", {"image": "tiny", "memory": "much"}, "memory"),
        ("machines", {"image": "tiny", "colour": "red"}, "colour"),
        ("machines", {"image": "tiny", "name": "a b"}, "a b"),
        ("machines", {"image": "tiny", "name": "../web"}, "../web"),
        ("machines/web/keys", {"keys": []}, "keys"),
        ("machines/web/start", {"timeout": 3}, "timeout"),
        ("machines/web/fork", {"count": 2, "names": ["a", "b"]}, "not both"),
    ],
)  # fmt: skip
def test_bodies_that_make_no_sense(server: JupyterProcess, path: str, body: Any, says: str) -> None:
    answer = server.api("POST", path, body)
    assert answer.status == 400
    assert says in answer.json["message"]
    valid("Error", answer.json)


@pytest.mark.parametrize("path", ["diff", "diff.html"])
@pytest.mark.parametrize(
    ("query", "status", "says"),
    [
        ("", 400, "before"),
        ("before=web", 400, "after"),
        ("before=web&after=db&layers=files,smell", 400, "smell"),
        ("before=web&after=db&inside=perhaps", 400, "perhaps"),
        ("before=web@clean&after=web", 404, "web"),
        ("before=..%2f..%2fetc&after=web", 400, "etc"),
    ],
)  # fmt: skip
def test_comparisons_that_make_no_sense(
    server: JupyterProcess, path: str, query: str, status: int, says: str
) -> None:
    answer = server.api("GET", f"{path}?{query}")
    assert answer.status == status
    assert says in answer.json["message"]
    valid("Error", answer.json)


def test_a_body_that_is_no_json(server: JupyterProcess) -> None:
    answer = server.request("POST", "vmlab/api/machines", None, Content_Type="application/json")
    assert answer.status == 400  # nothing is like {}: the image is missing
    assert "image" in answer.json["message"]


def test_widths_that_make_no_sense(server: JupyterProcess) -> None:
    for width in ("-1", "0", "15", "99999", "x", "1e3"):
        assert server.api("GET", f"machines/web/screen.png?width={width}").status == 400


# -- what goes out -----------------------------------------------------------------------------------------------


def valid(model: str, found: Any) -> None:
    """Refuse what is not the documented model."""
    schemas = base.document()["components"]["schemas"]
    Draft202012Validator(
        {"$ref": f"#/components/schemas/{model}", "components": {"schemas": schemas}}
    ).validate(found)


def test_an_empty_lab(server: JupyterProcess) -> None:
    lab = server.api("GET", "lab")
    assert lab.status == 200
    valid("Lab", lab.json)
    assert lab.json["machines"] == []
    assert {"invaders", "tiny", "desktop"} <= {image["name"] for image in lab.json["images"]}
    assert server.api("GET", "usage").json == []
    for answer in (server.api("GET", "machines/web"), server.api("GET", "snapshots/abc")):
        assert answer.status == 404
        valid("Error", answer.json)


def test_the_document_names_exactly_the_routes(server: JupyterProcess) -> None:
    document = yaml.safe_load(server.api("GET", "openapi.yaml").body)
    described = {
        (method, re.sub(r"{\w+}", "{x}", path))
        for path, item in document["paths"].items()
        for method in item
        if method in METHODS
    }
    there = {
        (method, f"/{path}")
        for pattern, handler in API
        for path in paths(pattern)
        for method in methods(handler)
    }
    assert described == there


def kind_of(schema: dict[str, Any]) -> str:
    """Return what a property is, in which unit, whether it can be missing or not."""
    kind = schema.get("type", "a choice")
    kinds = sorted(set(kind) - {"null"}) if isinstance(kind, list) else [kind]
    unit = "MiB" if "MiB" in schema.get("description", "") else ""
    return " ".join(
        [schema.get("$ref", "/".join(kinds)).replace("#/components/schemas/Name", "string"), unit]
    )


def test_a_name_means_one_thing_in_all_models() -> None:
    found: dict[str, set[str]] = {}
    for schema in base.document()["components"]["schemas"].values():
        for name, one in schema.get("properties", {}).items():
            found.setdefault(name, set()).add(kind_of(one))
    assert found["memory"] == {"integer MiB"}
    assert found["parent"] == {"string "}
    assert set(TWO_MEANINGS) == {name for name, kinds in found.items() if len(kinds) > 1}


def test_the_document_is_valid() -> None:
    document = base.document()
    for name, schema in document["components"]["schemas"].items():
        Draft202012Validator.check_schema(schema)
        assert set(schema.get("required", ())) <= set(schema.get("properties", ())), name
    # Each reference leads somewhere.
    for reference in re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document)):
        place: Any = document
        for part in reference.split("/"):
            place = place[part]


def test_each_error_has_its_status() -> None:
    kinds = {k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, errors.VMLabError)}
    assert set(base.STATUS) == kinds - {errors.MachineErrors}
    many = errors.MachineErrors({"a": errors.NoMemory("no"), "b": errors.Busy("busy")})
    assert base.status_of(many) == 507
    assert base.status_of(errors.AgentTimeout("slow")) == 504
    model = base.error_model(errors.Busy("busy", hint="wait", seconds=3))
    assert model == {
        "message": "busy",
        "error": {"type": "Busy", "message": "busy", "hint": "wait", "evidence": {"seconds": 3}},
    }


def test_a_host_that_cannot_have_a_lab(tmp_path: Path) -> None:
    before = "import sys; sys.modules['libvirt'] = None"
    with jupyter_process(tmp_path / "server", home=tmp_path / "home", before=before) as server:
        answer = server.api("GET", "lab")
        assert answer.status == 503
        valid("Error", answer.json)
        assert "doctor" in answer.json["error"]["hint"]
        # Jupyter itself is well, and stays so.
        assert server.request("GET", "api/contents").status == 200
        assert close_code(server.websocket("vmlab/consoles/web/vnc"))[0] == 4503
    assert "Uncaught exception" not in server.log.read_text()


def test_the_server_ends_cleanly(tmp_path: Path) -> None:
    with (
        Qemu(tmp_path / "web") as qemu,
        jupyter_process(
            tmp_path / "server", home=tmp_path / "home", before=STAND_INS.format(str(tmp_path))
        ) as server,
    ):
        assert server.api("GET", "lab").status == 200
        time.sleep(0.3)
        events = server.websocket("api/events/subscribe")
        screen = server.websocket("vmlab/consoles/web/vnc")
        qemu.connection()
        # More than it takes: this waits.
        screen.send_binary(b"\4" * (1 << 20))
        lines = [server.websocket("vmlab/consoles/web/serial") for _ in range(2)]
        assert [line.recv() for line in lines] == [b"hello\n"] * 2
        lines[0].send_binary(b"x")
        began = time.monotonic()
    assert time.monotonic() - began < 15
    assert server.process.returncode == 0
    events.close()
    log = server.log.read_text()
    for word in ("Traceback", "never awaited", "was destroyed", "ResourceWarning", "Warning: unclosed"):
        assert word not in log, log


def test_a_store_that_was_away_is_read_again(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with jupyter_process(tmp_path / "server", home=home) as server:
        events = server.websocket("api/events/subscribe")
        assert server.api("GET", "lab").status == 200
        time.sleep(1)
        home.rename(tmp_path / "away")
        time.sleep(0.2)
        (tmp_path / "away").rename(home)
        while json.loads(events.recv()).get("kind") != "reload":
            pass


# -- consoles ----------------------------------------------------------------------------------------------------

#: In the server's process: screens and serial lines are these files, `broken` is a mistake, and it says what it held.
STAND_INS = """
from pathlib import Path
import vmlab.server.console, vmlab.server.serial
from vmlab.server.service import Service

folder = Path({0!r})

def socket_path(lab, name):
    if name == "broken":
        raise RuntimeError("a mistake of ours")
    return folder / name

vmlab.server.console.socket_path = socket_path
(folder / "serial.log").write_text("hello\\n")
vmlab.server.serial.log_of = lambda lab, name: (folder / "serial.log", "running")
close = Service.close

def closing(self):
    print("held at the end:", len(self.sockets), len(self.serial_lines), flush=True)
    close(self)

Service.close = closing
"""


class Qemu:
    """A UNIX socket where a machine's screen is expected."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(20)
        self._connections: list[socket.socket] = []

    def connection(self) -> socket.socket:
        """Return the next connection."""
        connection, _ = self._listener.accept()
        connection.settimeout(20)
        self._connections.append(connection)
        return connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in (*self._connections, self._listener):
            each.close()


def test_only_what_a_person_does_counts_as_activity(tmp_path: Path) -> None:
    with (
        Qemu(tmp_path / "web") as qemu,
        jupyter_process(
            tmp_path / "server", home=tmp_path / "home", before=STAND_INS.format(str(tmp_path))
        ) as server,
    ):
        page = server.websocket("vmlab/consoles/web/vnc")
        guest = qemu.connection()

        def last_after(message: bytes) -> str:
            page.send_binary(message)
            assert guest.recv(1000) == message
            last: str = server.request("GET", "api/status").json["last_activity"]
            return last

        last = last_after(b"RFB 003.008\n")
        # A picture is asked for: the page is open, and nobody may be there.
        assert last_after(b"\3\1" + bytes(8)) == last
        for done in (b"\4\1\0\0\0\0\0a", b"\5" + bytes(5), b"\6" + bytes(7), b"\xff\0\0\1" + bytes(8)):
            before, last = last, last_after(done)
            assert last > before


def test_a_page_that_goes_while_its_guest_does_not_read(tmp_path: Path) -> None:
    with (
        Qemu(tmp_path / "web") as qemu,
        jupyter_process(
            tmp_path / "server", home=tmp_path / "home", before=STAND_INS.format(str(tmp_path))
        ) as server,
    ):
        page = server.websocket("vmlab/consoles/web/vnc")
        guest = qemu.connection()
        page.send_binary(b"\4" * (4 << 20))
        page.shutdown()
        # It goes on showing its screen, until nobody looks any more; else this waits until it fails.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while True:
                guest.sendall(bytes(1 << 16))
    assert "held at the end: 0 0" in server.log.read_text()


def test_a_mistake_ends_a_console_and_says_so(tmp_path: Path) -> None:
    with jupyter_process(
        tmp_path / "server", home=tmp_path / "home", before=STAND_INS.format(str(tmp_path))
    ) as server:
        code, reason = close_code(server.websocket("vmlab/consoles/broken/vnc"))
        assert (code, "log" in reason) == (4503, True)
        assert "a mistake of ours" in server.log.read_text()
    assert "held at the end: 0 0" in server.log.read_text()


def test_a_machine_that_does_not_read_its_serial_line(tmp_path: Path) -> None:
    with jupyter_process(
        tmp_path / "server", home=tmp_path / "home", before=STAND_INS.format(str(tmp_path))
    ) as server:
        page = server.websocket("vmlab/consoles/web/serial")
        page.send_binary(bytes((1 << 20) + 1))
        page.send_binary(b"x")
        assert close_code(page) == (4409, "the machine does not read its serial line")


class Line:
    """A machine's serial line, as libvirt gives it."""

    ended = False

    def __init__(self) -> None:
        self.sent = b""
        self.closed_in: threading.Thread | None = None

    def recv(self, _count: int) -> bytes:
        return b""

    def try_send(self, data: bytes) -> int:
        self.sent += data
        return len(data)

    def close(self) -> None:
        self.closed_in = threading.current_thread()


class Guest:
    """A lab with one machine, whose line opens when ``may_open`` is set."""

    pid = 1

    def __init__(self) -> None:
        self.asked, self.may_open = threading.Event(), threading.Event()
        self.lines: list[Line] = []

    def machine(self, _name: str) -> Guest:
        return self

    def _domain(self) -> Guest:
        return self

    def open_serial(self, timeout: float) -> Line:
        assert timeout < 5
        self.asked.set()
        assert self.may_open.wait(20)
        self.lines.append(Line())
        return self.lines[-1]


class Viewer:
    """A page."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.code = 0

    def end(self, code: int, _reason: str) -> None:
        self.code = code
        self.ended.set()


def in_loop(lab: Any, test: Callable[[Service], Awaitable[None]]) -> None:
    """Run a test in a loop, with a service over a lab."""

    async def run() -> None:
        service = Service(logging.getLogger("vmlab-test"))
        service._lab = lab
        try:
            async with asyncio.timeout(30):
                await test(service)
        finally:
            service.close()

    asyncio.run(run())


async def until(true: Callable[[], object]) -> None:
    """Wait for something."""
    while not true():
        await asyncio.sleep(0.01)


def test_a_line_that_opens_when_its_last_page_has_gone(tmp_path: Path) -> None:
    guest = Guest()

    async def test(service: Service) -> None:
        line, page = serial.SerialLine(service, "web", tmp_path / "serial.log"), Viewer()
        line.join(page)  # type: ignore[arg-type]
        line.type(b"too late")
        await until(guest.asked.is_set)
        line.leave(page)  # type: ignore[arg-type]
        guest.may_open.set()
        await until(lambda: guest.lines and guest.lines[0].closed_in)
        assert guest.lines[0].sent == b""
        assert guest.lines[0].closed_in is not threading.current_thread()

    in_loop(guest, test)


def test_a_line_is_closed_outside_the_loop_also_when_the_server_stops(tmp_path: Path) -> None:
    guest = Guest()
    guest.may_open.set()

    async def test(service: Service) -> None:
        line, page = serial.SerialLine(service, "web", tmp_path / "serial.log"), Viewer()
        line.join(page)  # type: ignore[arg-type]
        text = bytes(range(100))
        line.type(text)
        await until(lambda: guest.lines and guest.lines[0].sent == text)
        line.leave(page)  # type: ignore[arg-type]
        service.close()
        await until(lambda: guest.lines[0].closed_in)
        assert guest.lines[0].closed_in is not threading.current_thread()

    in_loop(guest, test)


def test_a_line_that_cannot_be_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left() -> None:
        raise OSError(24, "inotify instance limit reached")

    monkeypatch.setattr(serial, "Inotify", none_left)

    async def test(service: Service) -> None:
        line, page = serial.SerialLine(service, "web", tmp_path / "serial.log"), Viewer()
        line.join(page)  # type: ignore[arg-type]
        await page.ended.wait()
        assert page.code == 4503

    in_loop(Guest(), test)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.NotFound("no"), 4404),
        (errors.BadName("no"), 4404),
        (errors.WrongState("no"), 4409),
        (errors.HypervisorError("no"), 4503),
        (errors.HostError("no"), 4503),
    ],
)
def test_server_and_webconsole_say_the_same_of_a_machine(
    error: errors.VMLabError, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    assert code_for(error) == code
    doors = webconsole.Doors(["web"])
    doors.enter(doors.invitation)
    keys = webconsole.ConsoleKeys(doors, tmp_path)
    monkeypatch.setattr(webconsole.accounts, "account", fail)
    assert keys.lookup(next(iter(doors.keys))) == ("unix_socket", "")
    assert keys.trouble == (code, "no")


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("running", "web has no screen."),
        ("paused", "web has no screen."),
        ("crashed", "web has no screen."),
        ("off", "web is off."),
        ("suspended", "web is suspended."),
    ],
)
def test_why_there_is_no_screen(state: str, says: str) -> None:
    class Domain:
        name = "web"
        vnc_socket = None

    with pytest.raises(errors.WrongState) as refused:
        screen_socket(Domain(), state)  # type: ignore[arg-type]
    assert refused.value.message == says


# -- who waits for whom ------------------------------------------------------------------------------------------


def test_typing_that_waits_keeps_no_question_waiting() -> None:
    guest = Guest()

    async def test(service: Service) -> None:
        typing = [
            asyncio.ensure_future(service.type(lambda _: guest.open_serial(1))) for _ in range(TYPISTS + 1)
        ]
        await until(guest.asked.is_set)
        assert await service.read(lambda _: "answer") == "answer"
        guest.may_open.set()
        await asyncio.gather(*typing)

    in_loop(guest, test)


def test_a_screen_that_hangs_keeps_no_question_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    from vmlab.guest.screen import Screenshot

    png = Screenshot(Image.new("RGB", (2, 2))).png
    taken: list[str] = []
    go_on = threading.Event()
    trouble: list[errors.VMLabError] = []

    def screenshot(machine: Any, _folder: Path) -> Screenshot:
        taken.append("web")
        assert go_on.wait(20)
        for error in trouble:
            raise error
        return Screenshot.open(png)

    monkeypatch.setattr("vmlab.guest.screen.screenshot", screenshot)

    async def test(service: Service) -> None:
        async def ask(count: int) -> list[Any]:
            looks = [asyncio.ensure_future(service.screen("web", None)) for _ in range(count)]
            await until(lambda: taken)
            assert await service.read(lambda _: "answer") == "answer"
            # One goes away; the others still get theirs.
            looks.pop().cancel()
            go_on.set()
            found = await asyncio.gather(*looks, return_exceptions=True)
            assert taken == ["web"]
            taken.clear()
            go_on.clear()
            return found

        trouble.append(errors.WrongState("web is off."))
        assert await ask(READERS + 2) == trouble * (READERS + 1)
        trouble.clear()
        # What failed is not kept.
        assert await ask(READERS + 2) == [png] * (READERS + 1)
        assert await service.screen("web", 2) == png
        assert taken == []

    class Lab:
        folder = Path()

        def machine(self, _name: str) -> Lab:
            return self

        def _domain(self) -> Lab:
            return self

    in_loop(Lab(), test)


def test_a_new_name_that_takes_long_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def known(_account: object) -> set[str]:
        asked.set()
        assert go_on.wait(20)
        return {"web"}

    monkeypatch.setattr("vmlab.hypervisor.domain.known", known)

    class Lab:
        account = None
        mark = ""
        store: Any = None

        def machine_names(self) -> list[str]:
            return ["web-2"]

    lab = Lab()
    lab.store = lab

    async def test(service: Service) -> None:
        def name() -> str:
            with service.new_name(lab, "web") as found:  # type: ignore[arg-type]
                return str(found)

        naming = asyncio.ensure_future(service.work(lambda _: name()))
        await until(asked.is_set)
        assert await service.read(lambda _: "answer") == "answer"
        go_on.set()
        assert await naming == "web-3"

    in_loop(lab, test)


# -- what it costs -----------------------------------------------------------------------------------------------


def test_importing_the_extension_is_light() -> None:
    code = "import sys, vmlab.server.app; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"libvirt", "numpy", "PIL", "IPython", "pandas"} & set(done.stdout.split())


def test_usage_of_cpu_is_since_the_last_look() -> None:
    from vmlab.machines.usage import Usage

    class Lab:
        seconds = 10.0

        def usage(self, *, over: float) -> list[Usage]:
            assert over == 0
            return [Usage("web", "running", 0.0, self.seconds, 1, 1, 0, 1, 0, 1, 1)]

    service, lab = Service(logging.getLogger()), Lab()
    try:
        assert service.usage(lab)[0].cpu_percent == 0.0  # type: ignore[arg-type]
        then, known = service._usage
        service._usage = (then - 2, known)
        lab.seconds = 11.0
        assert 45 < service.usage(lab)[0].cpu_percent <= 50  # type: ignore[arg-type]
        lab.seconds = 0.1  # started anew
        service._usage = (service._usage[0] - 2, service._usage[1])
        assert service.usage(lab)[0].cpu_percent == 0.0  # type: ignore[arg-type]
    finally:
        service.close()
