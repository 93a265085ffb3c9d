"""The notebooks that people begin with run from top to bottom, on real guests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vmlab.lab import Lab

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(lab: Lab, notebook: Path, tmp_path: Path) -> None:
    page = tmp_path / "notebook.html"
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "run_notebook.py", notebook, page], capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert page.stat().st_size > 100_000
