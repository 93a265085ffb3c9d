"""What changes by itself in a state: measured in a fork that runs on, idle."""

from __future__ import annotations

import contextlib
import shutil
import time
from typing import Any

from vmlab.compare import inside, noise
from vmlab.compare.files import compare_files
from vmlab.errors import AgentError, VMLabError, WrongState
from vmlab.machines.throwaway import fork
from vmlab.records import read_json, write_json
from vmlab.store.store import Store
from vmlab.study.disks import flushed_disks
from vmlab.study.side import Side, ask

#: How a baseline is written; one of another format is measured anew.
BASELINE_FORMAT = 2


def measure(store: Store, side: Side, seconds: float, *, wide: bool) -> dict[str, Any]:
    """Return what changes by itself in a state: ``{"files": noise.measured(), "inside": {table: [key]}}``.

    From the cache, if it has been measured before.

    Parameters
    ----------
    wide
        Also inside.
    """
    record = side.record
    if record.ram is None:
        raise WrongState(
            f"{side.title} is off, so nothing changes in it by itself.", hint="leave --baseline out"
        )
    folder = store.compared_folder(record.id)
    path = folder / "baseline.json"
    found: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError, VMLabError):
        found = read_json(path)
    if (found.get("format"), found.get("seconds")) != (BASELINE_FORMAT, seconds):
        found = {"format": BASELINE_FORMAT, "seconds": seconds}
    if "files" not in found:
        early = side.disks
        if not early.flushed:
            raise AgentError(f"No baseline can be measured: {early.why}.")
        late = flushed_disks(store, record, idle=seconds)
        if not late.flushed:
            raise AgentError(f"No baseline can be measured: {late.why}.")
        with contextlib.ExitStack() as gone:
            if late.paths:
                gone.callback(shutil.rmtree, late.paths[0].parent, ignore_errors=True)
            found["files"] = noise.measured(compare_files(early.paths, late.paths, record.spec.disks))
    if wide and "inside" not in found:
        with fork(store, record, "measure what changes by itself") as (_, domain):
            time.sleep(seconds)
            later = ask(side.title, domain)
        diff = inside.compare_inside(side.inside, later)
        found["inside"] = {
            name: sorted(inside.row_text(table.key(row)) for row in table.rows)
            for name, table in diff.tables.items()
            if table
        }
    store.account.make_dir(folder)
    write_json(path, found)
    return found
