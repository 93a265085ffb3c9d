"""Run a notebook from top to bottom and write it as one HTML file, pictures included.

    python scripts/run_notebook.py NOTEBOOK OUT.html

Shows each cell as it runs. Ends with status 1 if a cell failed; the HTML is written all the same, so that one can see
where. The notebook's file is not changed.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbconvert import HTMLExporter
from traitlets.config import Config

#: Seconds for one cell. The first one may build guests.
CELL_TIMEOUT = 1200


def title(cell: Any) -> str:
    """Return the first line of a cell that says something."""
    lines = [line.strip() for line in cell.source.splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith("#")), lines[0] if lines else "")[:70]


def main(notebook: Path, out: Path) -> int:
    """Run ``notebook``, write ``out``, return the exit status."""
    nb = nbformat.read(notebook, as_version=4)
    cells = [cell for cell in nb.cells if cell.cell_type == "code"]
    started: dict[int, float] = {}

    def before(cell: Any, cell_index: int, **_: Any) -> None:
        if cell.cell_type == "code":
            started[cell_index] = time.monotonic()
            print(f"[{len(started)}/{len(cells)}] {title(cell)}", end=" ", flush=True)

    def after(cell: Any, cell_index: int, **_: Any) -> None:
        if cell_index in started:
            print(f"({time.monotonic() - started[cell_index]:.1f} s)", flush=True)

    status = 0
    with tempfile.TemporaryDirectory(prefix="vmlab-kernel-") as folder:
        # Not over ports of the loopback, where every account of the host could listen. Sockets lie beside this file;
        # without it they lie in the working folder, which is not the same for the kernel and for us.
        channels = {"transport": "ipc", "connection_file": f"{folder}/kernel.json"}
        client = NotebookClient(
            nb,
            timeout=CELL_TIMEOUT,
            # This environment's Python, not a kernel of the same name that is registered elsewhere.
            kernel_name="python3",
            resources={"metadata": {"path": str(notebook.parent)}},
            store_widget_state=False,
            config=Config({"KernelManager": channels}),
            on_cell_execute=before,
            on_cell_executed=after,
        )
        try:
            client.execute()
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            print(f"\nA cell failed:\n{error}", file=sys.stderr)
            status = 1
    exporter = HTMLExporter(embed_images=True)
    # Whole in one file: without the script libraries that the template would fetch from elsewhere.
    exporter.require_js_url = exporter.mathjax_url = ""
    html, _ = exporter.from_notebook_node(nb)
    out.write_text(html, encoding="utf-8")
    print(f"Written: {out} ({out.stat().st_size / 1e6:.1f} MB)")
    return status


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
