"""Forks: machines of their own that share what they have not changed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from vmlab.hypervisor import host
from vmlab.lab import Lab
from vmlab.machine import Machine


def test_a_fork_goes_its_own_way(tiny: Machine, lab: Lab, names: Callable[..., str]) -> None:
    # The kernel makes its boot ID when somebody first asks for it: before they part, here.
    look = "cat /run/nonce /proc/sys/kernel/random/boot_id"
    unique = tiny.succeed(look)
    tiny.succeed("echo common > /root/file; echo common > /dev/shm/file")
    snapshot = tiny.snapshot("start")
    tiny.succeed("echo original > /root/file; echo original > /dev/shm/file")
    fork = tiny.fork(names("fork"), snapshot=snapshot)
    assert fork.root == fork.here == snapshot
    assert fork.snapshots == []
    assert fork.succeed("cat /root/file /dev/shm/file").split() == ["common"] * 2
    fork.succeed("echo fork > /root/file; echo fork > /dev/shm/file")
    assert tiny.succeed("cat /root/file /dev/shm/file").split() == ["original"] * 2

    # The same program goes on in both.
    assert fork.succeed(look) == tiny.succeed(look) == unique

    # A fork has snapshots of its own, and lives on without the one it came from.
    own = fork.snapshot("own")
    child = fork.fork(names("child"))
    tiny.delete()
    assert not snapshot.machine
    fork.revert(own)
    assert fork.succeed("cat /root/file /dev/shm/file").split() == ["fork"] * 2
    assert child.succeed("cat /root/file /dev/shm/file").split() == ["fork"] * 2
    assert own.verify().ok


def test_who_a_fork_is(desktop: Machine, lab: Lab, names: Callable[..., str]) -> None:
    snapshot = desktop.snapshot()
    forks = desktop.fork(names=[names("one"), names("two")], snapshot=snapshot)
    everyone = [desktop, *forks]
    for attribute in ("name", "uuid"):
        assert len({getattr(m, attribute) for m in everyone}) == 3
    for attribute in ("mac", "genid"):
        assert len({getattr(m._record, attribute) for m in everyone}) == 3

    # In the guest: what can be told it, is.
    hosts = [m.succeed("hostname").strip() for m in everyone]
    assert hosts == [m.name for m in everyone]
    assert len({m.succeed("cat /etc/machine-id") for m in everyone}) == 3
    for machine in everyone:
        assert machine.succeed("cat /sys/class/net/e*/address").strip() == machine._record.mac
    # A window still opens, although X knows its clients by the host's name.
    forks[0].succeed("DISPLAY=:0 xdotool getmouselocation")

    # And what cannot, is the same in all: whoever needs it otherwise has to change it in the guest.
    assert len({m.succeed("cat /proc/sys/kernel/random/boot_id") for m in everyone}) == 1
    told = forks[0].identity
    assert told is not None
    assert any("boot ID" in what for what in told["same"])


def random_bytes(machine: Machine) -> str:
    return machine.succeed("head -c 32 /dev/urandom | od -An -v -tx1").replace("\n", "").strip()


def reseeded(machine: Machine) -> int:
    return machine.succeed("dmesg").count("crng reseeded due to virtual machine fork")


def test_forks_get_other_random_numbers(tiny: Machine, names: Callable[..., str]) -> None:
    before = reseeded(tiny)
    snapshot = tiny.snapshot()
    forks = tiny.fork(names=[names("one"), names("two")], snapshot=snapshot)
    # The kernel has been told, through the generation ID; the original has not, since nothing happened to it.
    assert [reseeded(fork) for fork in forks] == [before + 1] * 2
    assert reseeded(tiny) == before
    assert len({random_bytes(m) for m in (tiny, *forks)}) == 3
    # A fork keeps its generation ID: another process that looks at it later sees the same guest.
    assert forks[0]._record.genid in forks[0].domain.xml()


@pytest.mark.timeout(600)
def test_eight_forks_share_the_memory_they_do_not_change(lab: Lab, names: Callable[..., str]) -> None:
    """What a fork really takes, beside the same desktop that was booted."""
    booted = lab.create(names("booted"), "desktop", bake=False)
    booted.wait_for_agent()
    booted.wait_for_file("/run/vmlab-ready", timeout=300)

    def taken(machine: Machine) -> int:
        pid = machine.domain.pid
        assert pid is not None
        return host.memory_taken(pid)["pss"]

    original = taken(booted)
    snapshot = booted.snapshot()
    forks = booted.fork(names=[names("fork") for _ in range(8)], snapshot=snapshot)
    # Each has run: its name was told to it, and it does something.
    assert [fork.succeed("hostname").strip() for fork in forks] == [fork.name for fork in forks]
    mean = sum(taken(fork) for fork in forks) / len(forks)
    assert mean <= original / 4, (
        f"a fork takes {mean / 2**20:.0f} MiB, the original {original / 2**20:.0f} MiB"
    )
    # Nobody has read it all in: the file is mapped, and most of the guest's memory is untouched.
    maps = Path(f"/proc/{forks[0].domain.pid}/maps").read_text()
    assert re.search(rf"rw-p \S+ \S+ \d+ +{re.escape(str(snapshot.folder / 'ram'))}", maps)
