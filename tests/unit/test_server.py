"""The Jupyter server extension without a guest: who gets in, what comes in, what goes out. A real server, real HTTP."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import websocket
import yaml
from jsonschema import Draft202012Validator
from server_process import JupyterProcess, close_code, jupyter_process

from vmlab import errors
from vmlab.server import base
from vmlab.server.routes import API, PART, routes
from vmlab.server.service import Service

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


@pytest.mark.parametrize(("method", "path"), ALL, ids=[f"{m} {p}" for m, p in ALL])
def test_strangers_get_403(server: JupyterProcess, method: str, path: str) -> None:
    assert server.request(method.upper(), path, login="none").status == 403


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
    with jupyter_process(tmp_path / "server", home=tmp_path / "home") as server:
        assert server.api("GET", "lab").status == 200
        time.sleep(0.3)
        events = server.websocket("api/events/subscribe")
        began = time.monotonic()
    assert time.monotonic() - began < 15
    assert server.process.returncode == 0
    events.close()
    log = server.log.read_text()
    for word in ("Traceback", "never awaited", "was destroyed", "ResourceWarning", "Warning: unclosed"):
        assert word not in log, log


# -- what it costs -----------------------------------------------------------------------------------------------


def test_importing_the_extension_is_light() -> None:
    code = "import sys, vmlab.server.app; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"libvirt", "numpy", "PIL", "IPython", "pandas"} & set(done.stdout.split())


def test_usage_of_cpu_is_since_the_last_look() -> None:
    from vmlab.machine import Usage

    class Lab:
        seconds = 10.0

        def usage(self, *, over: float) -> list[Usage]:
            assert over == 0
            return [Usage("web", "running", 0.0, self.seconds, 1, 1, 0, 1, 1)]

    import logging

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
