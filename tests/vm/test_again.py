"""What is run twice: a notebook from top to bottom, with what its first run made still there."""

from __future__ import annotations

import nbformat
import pytest
from nbclient import NotebookClient

from vmlab.errors import AlreadyExists, VMLabError


def test_a_notebook_that_is_run_twice(lab, names):
    name = names("again")
    cells = [
        f"%load_ext vmlab\nimport vmlab; lab = vmlab.Lab({str(lab.home)!r})",
        f"%vm create {name} --reuse",
        f"%vm revert {name} ready",
        f"lab[{name!r}].succeed('test ! -e /root/run && touch /root/run')",
        f"%vm snapshot {name} clean --replace",
        f"lab[{name!r}].snapshot('later', replace=True)",
    ]
    for _ in range(2):
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
        NotebookClient(nb, timeout=300, kernel_name="python3").execute()
    machine = lab[name]
    assert [snapshot.name for snapshot in machine.snapshots] == ["clean", "later"]
    assert machine.here.name == "later"
    assert machine.here.parent.name == "clean"
    machine.revert("clean")
    assert machine.succeed("ls /root/run") == "/root/run\n"


def test_reuse_takes_only_what_is_the_same(lab, names):
    name = names("same")
    lab.create(name, memory=128, disks=[1 << 20], forwards={0: 80}, start=False)
    again = {"memory": 128, "disks": [1 << 20], "forwards": {0: 80}, "reuse": True}
    for options in (
        {"memory": 96}, {"vcpus": 2}, {"disks": []}, {"disks": [2 << 20]}, {"forwards": {}}, {"sound": True},
        {"image": "invaders"}, {"network": "none"}, {"reuse": False},
    ):  # fmt: skip
        with pytest.raises(AlreadyExists) as caught:
            lab.create(name, **{**again, **options})
        if options != {"reuse": False}:
            assert caught.value.evidence, "says what differs"
        else:
            assert "--reuse" in caught.value.hint
    assert lab[name].state == "off"
    assert lab.create(name, **again, start=False).state == "off"
    machine = lab.create(name, **again)
    assert machine.state == "running"
    machine.wait_for_agent(300)  # it boots: that is not the image's hardware
    began = machine.succeed("cat /proc/uptime")
    machine.pause()
    assert lab.create(name, **again).state == "running"
    assert float(machine.succeed("cat /proc/uptime").split()[0]) > float(began.split()[0]), "it went on"


def test_a_replacement_stands_where_the_old_one_stood(lab, tiny):
    first = tiny.snapshot("first")
    old = tiny.snapshot("clean")
    with pytest.raises(AlreadyExists) as caught:
        tiny.snapshot("clean")
    assert f"%vm snapshot {tiny.name} clean --replace" in caught.value.hint
    later = tiny.snapshot("later")
    tiny.revert(old)
    new = tiny.snapshot("clean", "anew", replace=True)
    assert {snapshot.id for snapshot in tiny.snapshots} == {first.id, later.id, new.id}
    assert (tiny.find("clean").description, tiny.find("clean").parent, tiny.here) == ("anew", first, new)
    assert tiny.find("later").parent == first
    with pytest.raises(VMLabError):
        tiny.find(old.id)
    tiny.revert("later").succeed("true")
    tiny.revert("clean").succeed("true")
