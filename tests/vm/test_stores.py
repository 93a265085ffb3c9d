"""Several stores of one account, under one libvirt daemon: a name that one uses is free in the others."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator

import pytest
from help.bad_lab import copy_image, mark, marks
from help.saboteur import own_account

from vmlab.errors import AlreadyExists
from vmlab.hypervisor import domain as domains
from vmlab.lab import Lab
from vmlab.machine import Machine


@pytest.fixture
def first(ours: Lab) -> Iterator[Machine]:
    """A machine in the first store of an account."""
    with ours.create(f"web-x{uuid.uuid4().hex[:5]}", "tiny") as machine:
        mark(machine, "first")
        machine.snapshot("clean")
        yield machine


@pytest.fixture
def second(ours: Lab) -> Iterator[Lab]:
    """A second store of that account."""
    found = Lab(ours.home.parent / "second", ours.account)
    copy_image(ours, found, "tiny")
    yield found
    for machine in found.machines:
        machine.delete()


def test_the_fixtures_share_one_libvirt(ours: Lab, second: Lab) -> None:
    assert ours.account == own_account(ours.home.parent) == second.account
    assert ours.store.mark == ""
    assert len(second.store.mark) == 4


def test_a_name_may_be_in_two_stores(ours: Lab, first: Machine, second: Lab) -> None:
    name = first.name
    web = second.create(name, "tiny")
    assert {name, f"{name}~{second.store.mark}"} <= set(domains.names(ours.account))
    mark(web, "second")
    web.snapshot("clean")
    mark(web, "third")
    web.revert("clean")
    assert marks(web) == "second second"
    web.undo()
    assert marks(web) == "third third"
    # Its own processes, events and names.
    pids = {first._domain().pid, web._domain().pid}
    assert len(pids - {None}) == 2
    assert web.fork().name == first.fork().name == f"{name}-2"
    web.rename(f"{name}-new")
    assert marks(web) == "third third"
    web.rename(name)
    web.stop()
    assert (web.state, first.state) == ("off", "running")
    web.start()
    web.delete()
    assert marks(first) == "first first"
    assert first._domain().pid in pids
    first.revert("clean")
    # In one store a name is still one machine's.
    with pytest.raises(AlreadyExists, match=name):
        ours.create(name, "tiny")
    ours.machine(f"{name}-2").delete()


def test_a_machine_without_a_mark_stays_what_it_is(second: Lab) -> None:
    """As older versions made them in any store."""
    name = f"old-x{uuid.uuid4().hex[:5]}"
    old = second.create(name, "tiny", start=False)
    record = second.store.machine_folder(name) / "machine.json"
    old._domain().undefine()
    said = json.loads(record.read_text())
    assert said.pop("domain") == f"{name}~{second.store.mark}"
    record.write_text(json.dumps(said))
    old.start()
    mark(old, "old")
    old.snapshot("clean")
    old.revert("clean")
    assert marks(old) == "old old"
    assert domains.names(second.account)[name] == "running"
    fork = old.fork(f"{name}-fork")
    assert domains.names(second.account)[f"{fork.name}~{second.store.mark}"] == "running"
    old.rename(f"{name}-new")
    assert marks(old) == "old old"
    old.delete()
    assert f"{name}-new" not in domains.names(second.account)
