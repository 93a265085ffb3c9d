"""Notebooks with a console as others read them: exported, printed, or as the bare file; without a network."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from help.jupyter_page import CELL, Console, Notebook, Server, until, write_notebook
from PIL import Image
from playwright.sync_api import Page, expect

from vmlab.lab import Lab
from vmlab.machine import Machine

VIEW = "application/vnd.jupyter.widget-view+json"


@pytest.fixture
def tiny(lab: Lab, names: Any) -> Machine:
    return lab.create(names("tiny"), "tiny")


def convert(notebook: Path, form: str, *options: str) -> Path:
    """Run nbconvert as a person does."""
    subprocess.run(
        [sys.executable, "-m", "nbconvert", "--to", form, *options, notebook.name],
        cwd=notebook.parent, check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    return notebook.with_suffix(".slides.html" if form == "slides" else ".html")


def shows(page: Page, file: Path, screen: Image.Image) -> None:
    """The page shows the screen, as large as it was, and so does its paper."""
    assert page.context.browser is not None
    # What fetches scripts from elsewhere does not get them, and complains; nothing else is missing.
    reader = page.context.browser.new_context(offline=True).new_page()
    try:
        reader.goto(file.as_uri(), wait_until="domcontentloaded")
        picture = reader.locator("img[src^='data:image/png']")
        expect(picture).to_have_count(1)
        expect(picture).to_have_js_property("naturalWidth", screen.width)
        if not file.name.endswith(".slides.html"):  # whose slides turn by a script from elsewhere
            expect(picture).to_be_visible()
        data = str(picture.get_attribute("src")).split(",", 1)[1]
        shown = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
        assert shown.tobytes() == screen.tobytes()
        paper = reader.pdf()
        assert re.search(
            rb"/Subtype\s*/Image[^>]*/Width %d\b|/Width %d\b[^>]*/Subtype\s*/Image" % (2 * (screen.width,)),
            paper,
        )
    finally:
        reader.context.close()


def saved(notebook: Path) -> tuple[Image.Image, dict[str, Any]]:
    """Return the picture in a file, which is all that GitHub has, and the output."""
    [output] = json.loads(notebook.read_text())["cells"][1]["outputs"]
    data = "".join(output["data"]["image/png"])
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), output["data"]


@pytest.mark.parametrize("form", ["html", "slides"])
def test_what_nbconvert_executes(page: Page, tiny: Machine, tmp_path: Path, form: str) -> None:
    notebook = write_notebook(tmp_path / "run.ipynb", "%load_ext vmlab", f"%vm console {tiny.name}")
    convert(notebook, "notebook", "--execute", "--inplace")
    screen, data = saved(notebook)
    assert screen.size == tiny.screenshot().size
    assert VIEW not in data
    shows(page, convert(notebook, form), screen)


def test_what_jupyterlab_saves(page: Page, jupyter: Server, folder: Path, tiny: Machine) -> None:
    write_notebook(folder / "saved.ipynb", "%load_ext vmlab", f"%vm console {tiny.name}")
    nb = Notebook(page, jupyter.url("saved.ipynb"))
    nb.run(0)
    Console(nb.run(1), tiny.name).expect_live()
    nb.menu("File", "Save Notebook")
    until(lambda: '"image/png"' in (folder / "saved.ipynb").read_text(), "the saved picture", CELL / 1000)
    screen, data = saved(folder / "saved.ipynb")
    assert VIEW not in data
    shows(page, convert(folder / "saved.ipynb", "html"), screen)
