"""What a scenario's file may say, and what is said of one that makes no sense."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tomllib
from pathlib import Path

import jsonschema
import pytest

from vmlab.errors import NotFound, UsageError
from vmlab.records import Link
from vmlab.scenarios import file

IMAGES = ["desktop", "tiny"]

GOOD = """\
vmlab = 1
name = "shop"
title = "Why is the shop down?"

[networks.lan]
subnet = "10.1.0.0/24"

[networks.dmz]
subnet = "10.2.0.0/24"
floods = true

[machines.client]
image = "tiny"
nics = ["lan"]

[machines.router]
image = "tiny"
memory = "128 MiB"
nics = ["lan=10.1.0.1", "dmz=10.2.0.1"]
setup = "setup/router.sh"

[machines.web]
image = "tiny"
vcpus = 2
nics = ["dmz=10.2.0.10"]
files = { "/etc/motd" = "files/motd" }

[links."web.dmz"]
delay = "20 ms"
loss = "1 %"
rate = "2 Mbit/s"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a scenario's folder, with what the file names."""
    (tmp_path / "setup").mkdir()
    (tmp_path / "setup" / "router.sh").write_text("#!/bin/sh\necho 1 > /proc/sys/net/ipv4/ip_forward\n")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "motd").write_text("Welcome\n")
    (tmp_path / "files" / "link").symlink_to("/etc/passwd")
    (tmp_path / "files" / "away").symlink_to("/etc")
    os.mkfifo(tmp_path / "files" / "fifo")
    (tmp_path / "scenario.toml").write_text(GOOD)
    return tmp_path


def test_a_file_says_what_machines_networks_and_links_there_are(folder: Path) -> None:
    plan = file.read(folder, IMAGES)
    assert plan == file.read(folder / "scenario.toml", IMAGES)
    assert (plan.name, plan.title, list(plan.machines)) == (
        "shop",
        "Why is the shop down?",
        ["client", "router", "web"],
    )
    router, web = plan.machines["router"], plan.machines["web"]
    assert (router.memory, router.nics) == (128, (("lan", "10.1.0.1"), ("dmz", "10.2.0.1")))
    assert router.setup is not None
    assert router.setup.startswith(b"#!/bin/sh")
    assert (web.vcpus, web.files) == (2, {"/etc/motd": b"Welcome\n"})
    assert (plan.networks["lan"].floods, plan.networks["dmz"].floods) == (False, True)
    assert plan.links == {("web", "dmz"): Link(delay=0.02, loss=0.01, rate=2_000_000)}


def test_it_is_known_by_what_it_says_and_what_the_files_hold_that_it_names(folder: Path) -> None:
    first = file.read(folder, IMAGES).digest
    (folder / "files" / "motd").write_text("Come in\n")
    second = file.read(folder, IMAGES).digest
    (folder / "files" / "other").write_text("nobody names it")
    assert file.read(folder, IMAGES).digest == second != first


def test_python_says_the_same_without_a_file() -> None:
    plan = file.read(
        {
            "vmlab": 1,
            "name": "pair",
            "networks": {"lan": {}},
            "machines": {name: {"image": "tiny", "nics": ["lan"]} for name in ("a", "b")},
        },
        IMAGES,
    )
    assert plan.machines["a"].nics == (("lan", ""),)
    with pytest.raises(UsageError, match=r"^The scenario: it has no machines"):
        file.read({"vmlab": 1, "name": "pair"}, IMAGES)


def change(before: str, after: str) -> str:
    assert before in GOOD
    return GOOD.replace(before, after, 1)


WEB = 'nics = ["dmz=10.2.0.10"]'
BAD = {
    "no format": (change("vmlab = 1\n", ""), r"line 1: the first line must be `vmlab = 1`"),
    "another format": (change("vmlab = 1", "vmlab = 2"), r"line 1: the first line must be"),
    "no name": (change('name = "shop"\n', ""), r"line 1: it has no name"),
    "a name that cannot be": (change('"shop"', '"my shop"'), r"line 2: .*cannot be the name of a scenario"),
    "a name with a dot": (change('"shop"', '"my.shop"'), r"line 2: .*no dot"),
    "a name that is no text": (change('"shop"', "7"), r"line 2: the scenario's name is a text"),
    "a misspelt table": (change("[machines.client]", "[machine.client]"), r"did you mean 'machines'\?"),
    "a misspelt key": (change("memory =", "memmory ="), r"line 18: 'memmory'.*did you mean 'memory'"),
    "an unknown key": (change("vcpus = 2", "colour = 2"), r"line 24: 'colour' is not known here; known are image"),
    "arguments of QEMU": (change("vcpus = 2", 'qemu = "-drive x"'), r"'qemu' is not known here"),
    "no image": (change('image = "tiny"\nnics = ["lan"]', 'nics = ["lan"]'), r"line 12: it has no image"),
    "an unknown image": (change('image = "tiny"', 'image = "tinny"'), r"line 13: .*did you mean 'tiny'\?"),
    "an image that is no text": (change('image = "tiny"', "image = 1"), r"line 13: there is no image '1'"),
    "an unknown network": (change('["lan"]', '["lam"]'), r"line 14: there is no network 'lam'; did you mean 'lan'"),
    "cards that are no list": (change('["lan"]', '"lan"'), r"line 14: 'nics' is a list"),
    "cards that are no texts": (change('["lan"]', "[1]"), r"line 14: 'nics' is a list"),
    "too many cards": (change('["lan"]', str(["lan"] * 9).replace("'", '"')), r"8 network cards at most, not 9"),
    "no address": (change("10.2.0.10", "10.2.0.300"), r"line 25: '10.2.0.300' is no address"),
    "an address elsewhere": (change("10.2.0.10", "10.3.0.10"), r"line 25: 10.3.0.10 is no address of a card in"),
    "the switch's address": (change("10.2.0.10", "10.2.0.254"), r"the last one is the switch's"),
    "an address twice": (change("10.2.0.10", "10.2.0.1"), r"line 25: 10.2.0.1 is the address of router already"),
    "an address without a subnet": (
        change('subnet = "10.1.0.0/24"\n', ""),
        r"give \[networks.lan\] a subnet, so that 10.1.0.1",
    ),
    "no subnet": (change("10.1.0.0/24", "10.1.0/24"), r"line 6: '10.1.0/24' cannot be the subnet"),
    "a subnet with a host": (change("10.1.0.0/24", "10.1.0.1/24"), r"line 6: .*cannot be the subnet"),
    "a public subnet": (change("10.1.0.0/24", "8.8.8.0/24"), r"line 6: .*not private"),
    "a subnet that is too small": (change("10.1.0.0/24", "10.1.0.0/31"), r"line 6: .*of another size"),
    "a subnet that is a number": (change('"10.1.0.0/24"', "10"), r"line 6: 10 cannot be the subnet"),
    "a hub that is a text": (change("floods = true", 'floods = "yes"'), r"line 10: 'floods' is true or false"),
    "a network's reserved name": (
        GOOD + "\n[networks.internet]\n",
        r"'internet' cannot be the name of a network",
    ),
    "a way out": (change("floods = true", 'way_out = "internet"'), r"line 10: .*not possible yet"),
    "forwards": (change("vcpus = 2", "forwards = { http = 80 }"), r"line 24: .*no 'forwards' yet"),
    "memory without a unit": (change('"128 MiB"', "128"), r"line 18: 'memory' is a size with its unit"),
    "no memory": (change('"128 MiB"', '"12 KiB"'), r"'memory' is at least 1 MiB"),
    "half a CPU": (change("vcpus = 2", "vcpus = 0.5"), r"line 24: 'vcpus' is a whole number"),
    "a CPU that is true": (change("vcpus = 2", "vcpus = true"), r"line 24: 'vcpus' is a whole number"),
    "a delay without a unit": (change('"20 ms"', "20"), r"line 29: 'delay' is a number with its unit.*\"20 ms\""),
    "a loss over all": (change('"1 %"', '"120 %"'), r"line 30: 120 % is too much"),
    "a rate in bytes": (change('"2 Mbit/s"', '"2 MB/s"'), r"line 31: 'rate' is a number with its unit"),
    "a link to nowhere": (change('"web.dmz"', '"web.lan"'), r"line 28: there is no link 'web.lan'; there are client"),
    "a link of nobody": (change('"web.dmz"', '"wab.dmz"'), r'did you mean \[links."web.dmz"\]'),
    "a path above": (change("setup/router.sh", "../router.sh"), r"line 20: '../router.sh' leaves the folder"),
    "a path from the root": (change("setup/router.sh", "/etc/passwd"), r"line 20: '/etc/passwd' leaves"),
    "a path over a path above": (
        change("setup/router.sh", "setup/../../x"),
        r"line 20: 'setup/../../x' leaves the folder",
    ),
    "a link": (change("files/motd", "files/link"), r"line 26: 'files/link' cannot be read: a link"),
    "a path through a link": (change("files/motd", "files/away/passwd"), r"cannot be read: a link"),
    "a FIFO": (change("files/motd", "files/fifo"), r"line 26: 'files/fifo' cannot be read: it is no file"),
    "a folder": (change("files/motd", "files"), r"line 26: 'files' cannot be read"),
    "no such file": (change("setup/router.sh", "setup/ruoter.sh"), r"line 20: .*ruoter.sh' cannot be read: no such"),
    "a path in the guest that is none": (change('"/etc/motd"', '"motd"'), r"line 26: 'motd' is no path"),
    "files that are a list": (
        change('{ "/etc/motd" = "files/motd" }', '["files/motd"]'),
        r"line 26: 'files' says which file",
    ),
    "machines that are a list": (
        'vmlab = 1\nname = "x"\nmachines = [1]\n',
        r"line 3: 'machines' is a table of tables",
    ),
    "a machine that is a text": (
        'vmlab = 1\nname = "x"\n[machines]\nweb = "tiny"\n',
        r"line 4: 'web' is a table: \[machines.web\]",
    ),
    "no machines": ('vmlab = 1\nname = "x"\n', r"it has no machines"),
    "33 machines": (
        'vmlab = 1\nname = "x"\n' + "".join(f'[machines.m{n}]\nimage = "tiny"\n' for n in range(33)),
        r"it has 33 machines; 32 are possible",
    ),
    "names that are too long": (
        change("[machines.client]", f"[machines.{'c' * 38}]"),
        r"are longer than 39 signs together",
    ),
    "a machine's name with a dot": (change("[machines.client]", '[machines."a.b"]'), r"no dot in it: 'a.b'"),
    "machines with one name": (GOOD + '\n[machines.web]\nimage = "tiny"\n', r"is no TOML: Cannot declare"),
    "no TOML": ("vmlab = 1\nname = shop\n", r"is no TOML: Invalid value \(at line 2"),
    "no text": ("vmlab = 1\0\n", r"is no TOML"),
    "a nest": ("vmlab = " + "[" * 20000, r"is no TOML"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_told_with_its_line(kind: str, folder: Path) -> None:
    text, said = BAD[kind]
    (folder / "scenario.toml").write_text(text)
    with pytest.raises(UsageError) as caught:
        file.read(folder, IMAGES)
    assert str(folder / "scenario.toml") in caught.value.message
    assert re.search(said, caught.value.message), caught.value.message


def test_all_mistakes_are_told_at_once_in_the_order_of_their_lines(folder: Path) -> None:
    text = GOOD.replace("10.2.0.10", "10.9.0.1").replace('"20 ms"', "20").replace("vmlab = 1", "vmlab = 0")
    (folder / "scenario.toml").write_text(text)
    with pytest.raises(UsageError) as caught:
        file.read(folder, IMAGES)
    first, *lines = caught.value.message.splitlines()
    assert first.endswith("has 3 mistakes:")
    assert [re.match(r"  line (\d+):", line)[1] for line in lines] == ["1", "25", "29"]  # type: ignore[index]


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="There is no scenario at"):
        file.read(tmp_path / "nowhere.toml", IMAGES)
    with pytest.raises(NotFound):
        file.read(tmp_path, IMAGES)


def test_another_name_must_be_possible_too(folder: Path) -> None:
    plan = file.read(folder, IMAGES)
    assert file.under_name(plan, "shop-2").name == "shop-2"
    with pytest.raises(UsageError, match="longer than 39 signs"):
        file.under_name(plan, "s" * 37)


def test_editors_know_the_same_words(folder: Path) -> None:
    """The schema refuses nothing that vmlab takes, and knows each word of it and no other."""
    schema = json.loads((Path(file.__file__).parent / "schema.json").read_text())
    check = jsonschema.Draft202012Validator(schema)
    check.check_schema(schema)
    check.validate(tomllib.loads(GOOD))
    for path in Path(__file__).parents[2].glob("notebooks/*/scenario.toml"):
        check.validate(tomllib.loads(path.read_text()))
    parts = {"": schema, **{f"{name}s": schema["$defs"][name] for name in ("network", "machine", "link")}}
    assert {name: set(part["properties"]) for name, part in parts.items()} == {
        name: set(words) for name, words in file._KEYS.items()
    }
    told = 0
    for text, _ in BAD.values():
        with contextlib.suppress(ValueError, RecursionError):
            told += not check.is_valid(tomllib.loads(text))
    # What depends on the folder, on images and on other lines only vmlab can tell.
    assert told > 25
