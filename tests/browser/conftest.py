"""What tests in a browser stand on: a JupyterLab, a page, a lab; a failed test leaves a picture of its page."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from help.jupyter_page import Notebook, Server, Troubles, browser_page, chromium, server, write_notebook
from playwright.sync_api import Page

from vmlab.errors import VMLabError
from vmlab.lab import Lab

FAILURES = Path(__file__).parents[2] / ".failures"


@pytest.fixture(scope="session")
def lab() -> Lab:
    """The lab of whoever runs the tests: the other side of what is done in the browser."""
    lab = Lab()
    for name in ("invaders", "tiny", "desktop"):
        if not lab.image(name).built:
            lab.build(name)
        if not lab.image(name).ready:
            lab.image(name).bake()
    return lab


@pytest.fixture
def names(lab: Lab) -> Iterator[Callable[[str], str]]:
    """Make machine names that nobody else has; machines of these names are deleted after the test."""
    made: list[str] = []

    def new(stem: str) -> str:
        made.append(f"{stem}-{uuid.uuid4().hex[:6]}")
        return made[-1]

    yield new
    for name in made:
        with contextlib.suppress(VMLabError):
            lab.machine(name).delete()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the notebooks of a module are."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture(scope="module")
def jupyter(
    request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A running JupyterLab; a module that sets ``BASE_URL`` has it below that."""
    base_url = getattr(request.module, "BASE_URL", "/")
    with server(folder, tmp_path_factory.mktemp("jupyter"), base_url=base_url) as running:
        yield running


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """A page in Chromium."""
    if chromium() is None:
        pytest.skip("there is no Chromium here: scripts/test installs it")
    with browser_page() as page:
        yield page


@pytest.fixture(autouse=True)
def troubles(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test whose page ran into an error in a script, or complained about something of ours."""
    if "page" not in request.fixturenames:
        yield
        return
    found = Troubles(request.getfixturevalue("page"))
    yield
    found.stop()
    assert not found.found, "the page complained:\n" + "\n".join(found.found)


@pytest.fixture
def open_notebook(
    request: pytest.FixtureRequest, folder: Path, jupyter: Server, page: Page
) -> Callable[..., Notebook]:
    """Write a notebook of these cells and open it."""

    def new(*cells: str) -> Notebook:
        path = write_notebook(folder / f"{request.node.name}.ipynb", *cells)
        return Notebook(page, jupyter.url(path.name))

    return new


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Keep what the page looked like when a test failed."""
    report: pytest.TestReport = yield  # type: ignore[assignment]
    page = getattr(item, "funcargs", {}).get("page")
    if report.failed and page is not None:
        FAILURES.mkdir(exist_ok=True)
        path = FAILURES / f"{item.name}.png"
        with contextlib.suppress(Exception):
            page.screenshot(path=path, timeout=5000)
            report.sections.append(("page", f"how the page looked: {path}"))
    return report
