"""What a machine of a scenario cannot do alone: the machines of a scenario have one tree of states together."""

from __future__ import annotations

import contextlib

from vmlab.errors import NotFound, RecordDamaged, WrongState
from vmlab.store.store import Store


def scenario_of(store: Store, name: str) -> str | None:
    """Return the scenario that a machine is a member of; None of one whose record cannot be read."""
    with contextlib.suppress(NotFound, RecordDamaged):
        return store.machine(name).scenario
    return None


def need_alone(store: Store, name: str, verb: str) -> None:
    """Refuse to do to a machine of a scenario what is done to the scenario.

    Raises
    ------
    WrongState
        It is one; with the command that does it.
    """
    scenario = scenario_of(store, name)
    if scenario is not None:
        hint = {
            "snapshot": f"take one of all of them: `%vm snapshot {scenario}`",
            "delete": f"delete all of it: `%vm delete {scenario}`",
        }.get(verb, "it keeps the name that the scenario's file gives it")
        raise WrongState(
            f"{name} is a machine of the scenario '{scenario}', whose machines have their states together.",
            hint=hint,
        )
