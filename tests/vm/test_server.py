"""The Jupyter server extension with real guests: consoles, serial lines, events, and what they cost."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import struct
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import websocket
from help.server_process import JupyterProcess, close_code, jupyter_process
from jsonschema import Draft202012Validator
from PIL import Image

from vmlab.errors import NotFound, SnapshotDamaged
from vmlab.hypervisor.watch import LifecycleWatch, guests_exist
from vmlab.lab import Lab
from vmlab.machine import Machine
from vmlab.server import base


@pytest.fixture(scope="module")
def server(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JupyterProcess]:
    """A Jupyter server of its own process over the lab of the tests."""
    with jupyter_process(tmp_path_factory.mktemp("jupyter") / "server", home=lab.home) as running:
        yield running
    assert "Uncaught exception" not in running.log.read_text()


def valid(model: str, found: Any) -> Any:
    """Refuse what is not the documented model."""
    schemas = base.document()["components"]["schemas"]
    Draft202012Validator(
        {"$ref": f"#/components/schemas/{model}", "components": {"schemas": schemas}}
    ).validate(found)
    return found


class Viewer:
    """A small RFB client (RFC 6143) over the server's WebSocket; RAW encoding only."""

    def __init__(self, server: JupyterProcess, machine: str) -> None:
        self.socket = server.websocket(f"vmlab/consoles/{machine}/vnc", login="cookie")
        self._waiting = b""
        assert self.read(12) == b"RFB 003.008\n"
        self.socket.send_binary(b"RFB 003.008\n")
        self.read(self.read(1)[0])
        self.socket.send_binary(b"\1")
        assert self.read(4) == b"\0\0\0\0"
        self.socket.send_binary(b"\1")
        self.size = struct.unpack(">HH", self.read(4))
        # 16 bytes of the pixels' format: 32 bits, blue first.
        self.read(16)
        self.title = self.read(struct.unpack(">I", self.read(4))[0]).decode()

    def read(self, count: int) -> bytes:
        while len(self._waiting) < count:
            opcode, data = self.socket.recv_data()
            if opcode == websocket.ABNF.OPCODE_CLOSE:
                raise EOFError(struct.unpack(">H", data[:2])[0])
            self._waiting += data
        found, self._waiting = self._waiting[:count], self._waiting[count:]
        return found

    def ask(self, *, whole: bool = True) -> None:
        self.socket.send_binary(struct.pack(">BBHHHH", 3, not whole, 0, 0, *self.size))

    def screen(self) -> Image.Image:
        """Return the whole screen, as RFB shows it."""
        self.ask()
        picture = Image.new("RGB", self.size)
        kind, _, count = struct.unpack(">BBH", self.read(4))
        assert kind == 0
        for _ in range(count):
            x, y, width, height, encoding = struct.unpack(">HHHHi", self.read(12))
            assert encoding == 0
            data = self.read(width * height * 4)
            picture.paste(Image.frombytes("RGB", (width, height), data, "raw", "BGRX"), (x, y))
        return picture

    def type(self, text: str) -> None:
        for letter in text:
            for down in (1, 0):
                self.socket.send_binary(
                    struct.pack(">BBHI", 4, down, 0, 0xFF0D if letter == "\r" else ord(letter))
                )
            time.sleep(0.02)


class Listener:
    """Collects the events that a page gets."""

    def __init__(self, server: JupyterProcess) -> None:
        self.found: list[dict[str, Any]] = []
        self._socket = server.websocket("api/events/subscribe", login="cookie")
        # What a page does first, and what makes the server watch.
        server.api("GET", "lab")
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        time.sleep(0.5)

    def _listen(self) -> None:
        with contextlib.suppress(websocket.WebSocketException, OSError, ValueError):
            while True:
                event = json.loads(self._socket.recv())
                if event["schema_id"] == "urn:vmlab:events:lab:v1":
                    self.found.append(event)

    def wait(self, timeout: float = 15, **wanted: Any) -> dict[str, Any]:
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            for event in list(self.found):
                if all(event.get(key) == value for key, value in wanted.items()):
                    return event
            time.sleep(0.02)
        raise AssertionError((wanted, self.found))

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def events(server: JupyterProcess) -> Iterator[Listener]:
    listener = Listener(server)
    yield listener
    listener.close()


# -- the screen --------------------------------------------------------------------------------------------------


def test_a_console_shows_the_guests_own_pixels(server: JupyterProcess, tiny: Machine) -> None:
    tiny.pause()
    viewer = Viewer(server, tiny.name)
    assert tiny.name in viewer.title
    assert viewer.screen().tobytes() == tiny.screenshot().image.tobytes()
    assert viewer.socket.subprotocol == "binary"


def test_keys_typed_in_a_console_reach_the_guest(server: JupyterProcess, tiny: Machine) -> None:
    viewer = Viewer(server, tiny.name)
    # No shifted keys: what they are is up to the guest's keymap.
    viewer.type("\rtouch /tmp/typed\r")
    tiny.wait_for_file("/tmp/typed", timeout=20)


def test_a_revert_closes_a_console_at_once(server: JupyterProcess, tiny: Machine, events: Listener) -> None:
    taken = server.api("POST", f"machines/{tiny.name}/snapshots", {"name": "clean"})
    assert taken.status == 201
    valid("Snapshot", taken.json)
    viewer = Viewer(server, tiny.name)
    closed: list[float] = []

    def watch() -> None:
        assert close_code(viewer.socket)[0] == 4410
        closed.append(time.monotonic())

    thread = threading.Thread(target=watch)
    thread.start()
    reverted = server.api("POST", f"machines/{tiny.name}/revert", {"snapshot": taken.json["id"]})
    done = time.monotonic()
    thread.join(10)
    assert reverted.status == 200
    assert valid("Machine", reverted.json)["console"] is True
    # Before the new QEMU runs, not when the request is answered.
    assert closed
    assert closed[0] < done
    events.wait(kind="machine", machine=tiny.name, doing="revert")
    events.wait(kind="snapshots", machine=tiny.name)
    assert Viewer(server, tiny.name).size == viewer.size
    tree = valid("Tree", server.api("GET", f"machines/{tiny.name}/snapshots").json)
    assert tree["here"] == taken.json["id"]


def test_a_console_says_why_there_is_none(server: JupyterProcess, tiny: Machine) -> None:
    tiny.kill()
    assert close_code(server.websocket(f"vmlab/consoles/{tiny.name}/vnc"))[0] == 4409
    assert close_code(server.websocket("vmlab/consoles/no-such-machine/vnc"))[0] == 4404
    assert server.api("GET", f"machines/{tiny.name}/screen.png").status == 409


def test_a_client_that_does_not_read_fills_no_memory(server: JupyterProcess, desktop: Machine) -> None:
    viewers = [Viewer(server, desktop.name) for _ in range(3)]
    for viewer in viewers:
        viewer.screen()
    before = server.memory
    width, height = viewers[0].size
    asked = 0
    end = time.monotonic() + 12
    while time.monotonic() < end:
        # Each asks for another whole screen, and none is read. A server that took what QEMU offers would hold it all.
        for viewer in viewers:
            viewer.ask()
        asked += 1
        time.sleep(0.03)
    grown = server.memory - before
    assert asked * width * height * 4 > 100 << 20
    assert grown < 16 << 20, f"{grown >> 20} MiB more"
    # The others are not held up.
    began = time.monotonic()
    assert server.api("GET", f"machines/{desktop.name}").status == 200
    assert time.monotonic() - began < 5


def test_pictures_of_the_screen(server: JupyterProcess, tiny: Machine) -> None:
    tiny.pause()
    path = f"machines/{tiny.name}/screen.png"
    whole = server.api("GET", path)
    assert whole.headers["Content-Type"] == "image/png"
    assert whole.headers["Cache-Control"] == "no-cache"
    picture = Image.open(io.BytesIO(whole.body))
    assert picture.convert("RGB").tobytes() == tiny.screenshot().image.tobytes()
    small = server.api("GET", f"{path}?width=160")
    assert Image.open(io.BytesIO(small.body)).width == 160
    time.sleep(1.1)
    again = server.api("GET", f"{path}?width=160", If_None_Match=small.headers["Etag"])
    assert (again.status, again.body) == (304, b"")


# -- the serial line ---------------------------------------------------------------------------------------------


def _until(opened: websocket.WebSocket, text: bytes, timeout: float = 20) -> bytes:
    found, end = b"", time.monotonic() + timeout
    while text not in found:
        assert time.monotonic() < end, found
        found += opened.recv()
    return found


def _answered(typed: Callable[[], object], looking: websocket.WebSocket, answer: bytes) -> bool:
    """Type; tell whether the answer comes on a page, within some seconds."""
    typed()
    looking.settimeout(5)
    try:
        _until(looking, answer)
    except websocket.WebSocketTimeoutException:
        return False
    return True


def test_a_serial_line_for_many(server: JupyterProcess, tiny: Machine) -> None:
    path = f"vmlab/consoles/{tiny.name}/serial"
    one, two = server.websocket(path), server.websocket(path)
    one.send_binary(b'\recho from-"one"\r')
    _until(one, b"from-one")
    _until(two, b"from-one")
    two.send_binary(b'echo from-"two"\r')
    _until(one, b"from-two")
    # Who comes later sees what was.
    assert b"from-two" in _until(server.websocket(path), b"from-two")
    assert "from-one" in server.api("GET", f"machines/{tiny.name}/serial").body.decode()
    # Others may use it meanwhile, and the pages go on.
    # What is typed at the very moment in which the line changes hands may be lost; a person types it again.
    kernel = partial(tiny.send_serial, 'echo from-"kernel"\n')
    assert any(_answered(kernel, two, b"from-kernel") for _ in range(6))
    page = partial(one.send_binary, b'echo back-"again"\r')
    assert any(_answered(page, two, b"back-again") for _ in range(6))
    tiny.kill()
    assert close_code(one)[0] == 4410


# -- events ------------------------------------------------------------------------------------------------------


def test_what_others_do_is_told(lab: Lab, events: Listener, names: Callable[..., str]) -> None:
    # This process is another than the server's, like a kernel.
    name = names("told")
    machine = lab.create(name, "tiny")
    events.wait(kind="machine", machine=name, state="running", doing=None)
    # Behind the store's back, as virsh does it.
    machine._domain().pause()
    events.wait(kind="machine", machine=name, state="paused", doing=None)
    machine._domain().resume()
    snapshot = machine.snapshot("one")
    events.wait(kind="machine", machine=name, doing="snapshot")
    events.wait(kind="snapshots", machine=name)
    events.found.clear()
    snapshot.describe("the first")
    events.wait(kind="snapshots", machine=name)
    events.found.clear()
    machine.describe("a machine")
    events.wait(kind="machine", machine=name, state="running")
    machine._domain().destroy()
    events.wait(kind="machine", machine=name, state="off")
    machine.delete()
    events.wait(kind="machine-gone", machine=name)


def test_watching_libvirt_can_be_let_go_and_taken_up(lab: Lab, tiny: Machine) -> None:
    heard: list[str | None] = []
    known_as = tiny._domain().known_as

    def wait(count: int) -> None:
        end = time.monotonic() + 5
        while heard.count(known_as) < count and time.monotonic() < end:
            time.sleep(0.01)
        assert heard.count(known_as) >= count

    watch = LifecycleWatch(lab.account, heard.append)
    assert watch.listen()
    assert watch.listen()
    assert guests_exist(lab.account)
    tiny._domain().pause()
    wait(1)
    watch.release()
    assert not watch.listening
    told = len(heard)
    tiny._domain().resume()
    assert len(heard) == told
    assert watch.listen()
    tiny._domain().pause()
    wait(2)
    watch.stop()


# -- the whole API -----------------------------------------------------------------------------------------------


def test_a_life(server: JupyterProcess, events: Listener, names: Callable[..., str], lab: Lab) -> None:
    name, other = names("life"), names("other")
    made = server.api("POST", "machines", {"name": name, "image": "tiny", "description": "x"}, login="cookie")
    assert made.status == 400  # a machine is described afterwards
    made = server.api("POST", "machines", {"name": name, "image": "tiny", "memory": None}, login="cookie")
    assert made.status == 201
    assert valid("Machine", made.json)["state"] == "running"
    events.wait(kind="job", machine=name, done=True)
    assert server.api("POST", "machines", {"name": name, "image": "tiny"}).status == 409
    assert server.api("POST", f"machines/{name}/describe", {"description": "x"}).json["description"] == "x"
    assert server.api("POST", f"machines/{name}/keys", {"keys": ["ret"]}).status == 204
    assert server.api("POST", f"machines/{name}/keys", {"keys": ["no-such"]}).status == 400
    assert server.api("POST", f"machines/{name}/type", {"text": "ls\n"}).status == 204
    assert server.api("POST", f"machines/{name}/pause").json["state"] == "paused"
    assert server.api("POST", f"machines/{name}/resume").json["state"] == "running"
    taken = server.api("POST", f"machines/{name}/snapshots", {"description": "d"}).json
    assert (taken["name"], taken["description"]) == ("s1", "d")
    one = f"snapshots/{taken['id']}"
    assert server.api("POST", f"{one}/rename", {"name": "first"}).json["name"] == "first"
    assert server.api("POST", f"{one}/describe", {"description": "e"}).json["description"] == "e"
    assert valid("Snapshot", server.api("GET", one).json)["name"] == "first"
    assert valid("Verification", server.api("POST", f"{one}/verify").json)["ok"] is True
    assert server.api("GET", f"{one}/screen.png?width=64").headers["Content-Type"] == "image/png"
    forks = server.api("POST", f"machines/{name}/fork", {"names": [other], "snapshot": taken["id"]})
    assert forks.status == 201
    assert [valid("Machine", fork)["name"] for fork in forks.json] == [other]
    assert server.api("POST", f"machines/{name}/undo").status == 404
    for usage in server.api("GET", "usage").json:
        valid("Usage", usage)
    valid("Lab", server.api("GET", "lab").json)
    assert server.api("POST", f"machines/{other}/kill").json["state"] == "off"
    assert server.api("POST", f"machines/{other}/pause").status == 409
    renamed = names("renamed")
    assert server.api("POST", f"machines/{other}/rename", {"name": renamed}).json["name"] == renamed
    events.wait(kind="machine-gone", machine=other)
    events.wait(kind="machine", machine=renamed, state="off", doing=None)
    events.found.clear()
    # By another process, after the rename.
    lab.machine(renamed).describe("still told of")
    events.wait(kind="machine", machine=renamed)
    assert server.api("DELETE", f"machines/{renamed}").status == 204
    assert server.api("DELETE", one).status == 204
    assert server.api("GET", one).status == 404
    assert server.api("DELETE", f"machines/{name}").status == 204
    assert server.api("GET", f"machines/{name}").status == 404


def test_a_machine_without_a_name_gets_one(server: JupyterProcess, lab: Lab) -> None:
    made = server.api("POST", "machines", {"image": "invaders"}).json
    try:
        assert made["name"].startswith("invaders")
        assert made["console"] is True
    finally:
        lab.machine(made["name"]).delete()


def test_work_ends_well_though_its_client_has_gone(server: JupyterProcess, tiny: Machine) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request(
        "POST",
        f"{server.base}vmlab/api/machines/{tiny.name}/snapshots",
        json.dumps({"name": "left"}),
        {"Authorization": f"token {server.token}"},
    )
    time.sleep(0.1)
    connection.close()
    end = time.monotonic() + 20
    while [s.name for s in tiny.snapshots] != ["left"]:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert tiny.state == "running"


def test_questions_are_answered_while_verbs_work(server: JupyterProcess, invaders: Machine) -> None:
    # Without an agent or ACPI it never powers off.
    workers = [
        threading.Thread(target=server.api, args=("POST", f"machines/{invaders.name}/stop", {"timeout": 6}))
        for _ in range(12)
    ]
    for worker in workers:
        worker.start()
    time.sleep(0.5)
    began = time.monotonic()
    seen = server.api("GET", f"machines/{invaders.name}").json
    assert time.monotonic() - began < 2
    assert seen["doing"] == "stop"
    invaders._domain().destroy()
    for worker in workers:
        worker.join(60)


# -- comparing ---------------------------------------------------------------------------------------------------


def leftovers(lab: Lab, machine: Machine) -> list[str]:
    """Return presents of a machine and throw-away forks of its states."""
    store = lab.store
    records = []
    for identity in store.snapshot_ids():
        # It may have gone since it was listed.
        with contextlib.suppress(SnapshotDamaged):
            records.append(store.snapshot(identity))
    ours = {record.id for record in records if record.machine == machine.uuid}
    found = [record.id for record in records if record.id in ours and record.kind == "present"]
    for name in store.machine_names():
        if name.startswith("look-"):
            # Others may be comparing something in the same lab.
            with contextlib.suppress(NotFound):
                found += [name] * (store.machine(name).root in ours)
    return found


def test_a_comparison_as_json_and_as_a_page(
    server: JupyterProcess, tiny: Machine, lab: Lab, events: Listener
) -> None:
    tiny.succeed("echo old >/root/changed; echo gone >/root/removed")
    tiny.snapshot("clean")
    tiny.succeed("echo new >/root/changed; rm /root/removed; echo here >'/root/<img src=x>'")
    query = f"before={tiny.name}@clean&after={tiny.name}"

    found = valid("Diff", server.api("GET", f"diff?{query}", login="cookie").json)
    assert (found["before"]["snapshot"], found["after"]["snapshot"]) == ("clean", None)
    files = found["layers"]["files"]
    assert (found["same"], files["outcome"]) == (False, "different")
    assert "/root/changed" in json.dumps(files["result"])
    assert found["not_compared"] == ["inside"]
    event = events.wait(kind="job", comparison=f"{tiny.name}@clean {tiny.name}", done=False)
    assert event["text"] == "screen"
    events.wait(kind="job", comparison=f"{tiny.name}@clean {tiny.name}", done=True)
    assert leftovers(lab, tiny) == []

    page = server.api("GET", f"diff.html?{query}&layers=files&inside=true", login="cookie")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    # Whatever a guest wrote: nothing runs, nothing is loaded.
    policy = page.headers["Content-Security-Policy"]
    assert policy.startswith("sandbox; default-src 'none'")
    assert "script" not in policy
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert page.headers["Cache-Control"] == "no-store"
    text = page.body.decode()
    assert all(name in text for name in ("/root/changed", "/root/removed", "/root/&lt;img src=x&gt;"))
    assert "<img src=x>" not in text
    assert "Processes" in text or "processes" in text
    assert leftovers(lab, tiny) == []
    assert tiny.state == "running"


def test_a_comparison_ends_when_its_client_goes(server: JupyterProcess, tiny: Machine, lab: Lab) -> None:
    tiny.snapshot("clean")
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request(
        "GET",
        f"{server.base}vmlab/api/diff?before={tiny.name}@clean&after={tiny.name}&inside=true",
        headers={"Authorization": f"token {server.token}"},
    )
    end = time.monotonic() + 20
    while not leftovers(lab, tiny):
        assert time.monotonic() < end
        time.sleep(0.02)
    connection.close()
    end = time.monotonic() + 60
    while leftovers(lab, tiny):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert tiny.state == "running"
    assert [s.name for s in tiny.snapshots] == ["clean"]
