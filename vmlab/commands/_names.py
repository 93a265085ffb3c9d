"""Names for completion. These follow argcomplete's convention, must be quick, and never raise.

The lab is taken from ``parsed_args.lab``, where a notebook puts it, or opened from ``parsed_args.home``.
"""

from __future__ import annotations

import contextlib
from argparse import Namespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmlab.lab import Lab


def _lab(parsed_args: Namespace | None) -> Lab:
    lab: Lab | None = getattr(parsed_args, "lab", None)
    if lab is not None:
        return lab
    from vmlab.lab import Lab

    return Lab(home=getattr(parsed_args, "home", None))


def all_machines(lab: Lab) -> list[str]:
    """Return the names of all machines, without asking libvirt where the lab can tell from its store."""
    store: Any = getattr(lab, "store", None)
    if store is not None and hasattr(store, "machine_names"):
        return [str(name) for name in store.machine_names(throwaway=False)]
    return [machine.name for machine in lab.machines]


def _fitting(names: list[str], prefix: str) -> list[str]:
    return [name for name in names if name.startswith(prefix)]


def machines(prefix: str = "", parsed_args: Namespace | None = None, **_: Any) -> list[str]:
    """Return machines that begin with ``prefix`` and are not in the command yet."""
    with contextlib.suppress(Exception):  # completion must never disturb whoever types
        given = getattr(parsed_args, "machines", None) or []
        return [name for name in _fitting(all_machines(_lab(parsed_args)), prefix) if name not in given]
    return []


def snapshots(prefix: str = "", parsed_args: Namespace | None = None, **_: Any) -> list[str]:
    """Return snapshots of the machine that stands before."""
    with contextlib.suppress(Exception):
        name: Any = getattr(parsed_args, "machine", None)
        if name:
            machine = _lab(parsed_args).named(name)
            root = machine.root
            return _fitting([s.name for s in ([root] if root else []) + machine.snapshots], prefix)
    return []


def states(prefix: str = "", parsed_args: Namespace | None = None, **_: Any) -> list[str]:
    """Return machines, and snapshots of the machine that stands first; after ``web@``, snapshots of that one."""
    with contextlib.suppress(Exception):
        lab = _lab(parsed_args)
        name, at, _part = prefix.partition("@")
        if at:
            return _fitting([f"{name}@{s.name}" for s in lab.machine(name).snapshots], prefix)
        given = [word for word in getattr(parsed_args, "states", None) or [] if word != prefix]
        known = all_machines(lab)
        if given:
            machine = lab.machine(given[0].partition("@")[0])
            known = [s.name for s in machine.snapshots] + [n for n in known if n != machine.name]
        return [name for name in _fitting(known, prefix) if name not in given]
    return []


def images(prefix: str = "", parsed_args: Namespace | None = None, **_: Any) -> list[str]:
    """Return images that begin with ``prefix``."""
    with contextlib.suppress(Exception):
        return _fitting([image.name for image in _lab(parsed_args).images], prefix)
    return []


def scenarios(prefix: str = "", parsed_args: Namespace | None = None, **_: Any) -> list[str]:
    """Return scenarios that begin with ``prefix``."""
    with contextlib.suppress(Exception):
        return _fitting([scenario.name for scenario in _lab(parsed_args).scenarios], prefix)
    return []


def things(prefix: str = "", parsed_args: Namespace | None = None, **known: Any) -> list[str]:
    """Return machines and scenarios that begin with ``prefix`` and are not in the command yet."""
    given = getattr(parsed_args, "machines", None) or []
    found = [name for name in scenarios(prefix, parsed_args) if name not in given]
    return [*machines(prefix, parsed_args, **known), *found]


def networks(prefix: str = "", parsed_args: Namespace | None = None, **_: Any) -> list[str]:
    """Return networks that begin with ``prefix``."""
    with contextlib.suppress(Exception):
        return _fitting([network.name for network in _lab(parsed_args).networks], prefix)
    return []


def images_or_all(prefix: str = "", parsed_args: Namespace | None = None, **options: Any) -> list[str]:
    """Return images, and the word ``all``."""
    return images(prefix, parsed_args, **options) + _fitting(["all"], prefix)


def verbs(prefix: str = "", **_: Any) -> list[str]:
    """Return verbs that begin with ``prefix``."""
    from vmlab.commands._verbs import verbs as known

    return _fitting(list(known()), prefix)
