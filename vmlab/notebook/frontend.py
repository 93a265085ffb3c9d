"""What shows the output of the cell that runs."""

from __future__ import annotations

import os
import re
from typing import Any, Literal

from IPython.core.getipython import get_ipython

from vmlab.render import surface

#: ``ours``: a page with our extension. ``foreign``: another page. ``text``: a terminal or a window of text, which
#: replaces no output and shows no page (jupyter console, qtconsole). ``nobody``: a notebook that is only run.
FrontEnd = Literal["ours", "foreign", "text", "nobody"]

#: A message's id as Python's jupyter_client makes them; a page's are UUIDs.
_OF_PYTHON = re.compile(r".+_\d+_\d+")


def front_end() -> FrontEnd:
    """Return what shows the output of the cell that runs in this kernel."""
    try:
        shell: Any = get_ipython()
        asked = shell.get_parent()
        cell = str(asked["metadata"].get("cellId") or "")
        by_python = _OF_PYTHON.fullmatch(asked["header"]["msg_id"]) is not None
        may_ask = bool(asked["content"].get("allow_stdin"))
    except (AttributeError, KeyError, LookupError):  # nothing was run in it yet
        return "nobody"
    if cell:
        # VS Code may use the kernels of a Jupyter server, but shows them in a page of its own.
        return "ours" if surface.SERVED in os.environ and not cell.startswith("vscode") else "foreign"
    # Voila runs a notebook for a page, and Colab has ways of its own.
    served = os.environ.get("SERVER_SOFTWARE", "").startswith("voila") or "COLAB_RELEASE_TAG" in os.environ
    if served or not by_python:
        return "foreign"
    # nbclient, and with it nbconvert and papermill, says that nobody is there to be asked.
    return "text" if may_ask else "nobody"
