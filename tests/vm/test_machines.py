"""Machines as people ask for them: hardware, life, names, ports, sound, what they take."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from typing import Any
from urllib.request import urlopen

import pytest

from vmlab.errors import NotFound, UsageError, VMLabError, WrongState
from vmlab.hypervisor.host import free_port
from vmlab.lab import Lab
from vmlab.machine import Machine
from vmlab.views.machines import MachineTable

Names = Callable[..., str]
MIB = 1 << 20


def test_a_machine_is_ready_when_it_is_made(lab: Lab, names: Names) -> None:
    for image in ("tiny", "desktop"):
        machine = lab.create(names(image), image)
        assert machine.state == "running"
        assert machine.here is not None
        assert machine.here.kind == "ready"
        assert machine.succeed("test -e /run/vmlab-ready && echo yes") == "yes\n"
        assert machine.succeed("hostname").strip() == machine.name
        # Its clock is not that of the day on which the image was made.
        assert abs(int(machine.succeed("date +%s")) - time.time()) < 60


def test_hardware_that_was_asked_for(lab: Lab, names: Names) -> None:
    machine = lab.create(
        names("big"),
        "tiny",
        memory=256,
        vcpus=2,
        disk=2 << 30,
        disks=[64 * MIB, 128 * MIB],
        kernel_args="vmlab.test=yes",
        network="none",
        video="virtio",
    )
    machine.wait_for_agent(120)
    assert machine.succeed("nproc") == "2\n"
    assert 190_000 < int(machine.succeed("awk '/MemTotal/ {print $2}' /proc/meminfo")) < 262_144
    sizes = machine.succeed("cat /sys/block/vda/size /sys/block/vdb/size /sys/block/vdc/size").split()
    assert [int(s) * 512 for s in sizes] == [2 << 30, 64 * MIB, 128 * MIB]
    # The file system grows with its disk.
    machine.wait_until_succeeds("test $(df -m / | awk 'NR==2 {print $2}') -gt 1500", 60)
    assert "vmlab.test=yes" in machine.succeed("cat /proc/cmdline")
    assert machine.succeed("ls /sys/class/net").split() == ["lo"]
    # All of it is kept and given back.
    machine.succeed("echo one > /root/file; echo two > /dev/vdb; sync")
    clean = machine.snapshot()
    machine.succeed("rm /root/file; dd if=/dev/zero of=/dev/vdb bs=4k count=1 2>/dev/null; sync")
    machine.revert(clean)
    assert machine.succeed("cat /root/file; head -c 4 /dev/vdb; nproc") == "one\ntwo\n2\n"


def test_another_size_can_be_baked_too(fresh_lab: Lab, names: Names) -> None:
    first = fresh_lab.create(names("baked"), "tiny", memory=160, bake=True)
    second = fresh_lab.create(names("baked"), "tiny", memory=160, bake=True)
    assert first.here == second.here
    nonce = "cat /run/nonce"
    # Both go on from one boot.
    assert first.succeed(nonce) == second.succeed(nonce)
    plain = fresh_lab.create(names("plain"), "tiny", memory=160, bake=False)
    plain.wait_for_agent(120)
    assert plain.here is None
    assert plain.succeed(nonce) != first.succeed(nonce)


def test_start_stop_kill_pause(tiny: Machine) -> None:
    tiny.succeed("echo kept > /root/kept; sync")
    tiny.pause()
    assert tiny.state == "paused"
    with pytest.raises(VMLabError, match=r"paused|answer"):
        tiny.execute("true", timeout=3)
    tiny.resume()
    assert tiny.state == "running"
    tiny.stop()
    assert tiny.state == "off"
    assert tiny.stop().state == "off"
    with pytest.raises(WrongState) as told:
        tiny.execute("true")
    assert "start" in str(told.value)
    tiny.start().wait_for_agent(120)
    assert tiny.succeed("cat /root/kept") == "kept\n"
    tiny.kill()
    assert tiny.state == "off"
    assert tiny.start().start().state == "running"


def test_made_but_not_started(lab: Lab, names: Names) -> None:
    name = names("later")
    machine = lab.create(name, "tiny", start=False)
    assert machine.state == "off"
    assert name in lab
    machine.start().wait_for_agent(120)
    other = names("other")
    machine.stop()
    machine.rename(other)
    assert (machine.name, name in lab, other in lab) == (other, False, True)
    assert machine.start().state == "running"


def test_a_machine_deletes_itself_after_its_block(lab: Lab, names: Names) -> None:
    name = names("brief")
    with lab.create(name, "invaders") as machine:
        assert machine.state == "running"
    with pytest.raises(NotFound):
        lab.machine(name)


def test_ports_are_forwarded_also_after_revert_and_in_forks(lab: Lab, names: Names) -> None:
    web = lab.create(names("web"), "tiny", forwards=[(18080, 80)])
    web.succeed("mkdir -p /srv && echo hello > /srv/index.html && httpd -h /srv -p 80")
    web.wait_for_port(80)

    def page(machine: Machine) -> bytes:
        with urlopen(f"http://127.0.0.1:{machine.forwards[0][0]}/", timeout=30) as answer:
            return answer.read()

    assert page(web) == b"hello\n"
    serving = web.snapshot("serving")
    web.succeed("killall httpd")
    web.revert(serving)
    assert page(web) == b"hello\n"
    fork = serving.fork(names("fork"))
    fork.succeed("echo fork > /srv/index.html")
    assert fork.forwards[0][0] != web.forwards[0][0]
    assert (page(fork), page(web)) == (b"fork\n", b"hello\n")


def test_a_port_that_was_asked_for_is_kept_in_mind(lab: Lab, names: Names) -> None:
    port = free_port()
    web = lab.create(names("web"), "tiny", forwards={port: 80})
    assert web.forwards == ((port, 80),)
    with pytest.raises(UsageError, match=f"Port {port} of this host is taken, by the machine {web.name}"):
        lab.create(names("other"), "tiny", forwards=[(port, 80)])
    any_port = lab.create(names("any"), "tiny", forwards={0: 80})
    assert any_port.forwards[0][0] not in (0, port)
    said: list[str] = []
    lab.tell = said.append
    try:
        web.stop()
        with socket.socket() as somebody:
            somebody.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            somebody.bind(("127.0.0.1", port))
            somebody.listen()
            web.start()
        ((other, _),) = web.forwards
        assert other != port
        assert any(str(port) in text and str(other) in text for text in said)
        # Whoever comes later sees it too, until it is where it was asked for again.
        for text in (web.why, str(MachineTable([web])), MachineTable([web]).html(), web.to_json()["why"]):
            assert f"port {port} of this host was taken: port 80 of {web.name} is at {other}" in str(text)
        web.kill()
        web.start()
        assert web.forwards == ((port, 80),)
        assert web.why is None
    finally:
        lab.tell = lambda _text: None


@pytest.mark.parametrize("forwards", [8080, [80], {80: "http"}, {70000: 80}, [(1, 2, 3)], {8080: 0}])
def test_forwards_that_are_none_say_their_form(lab: Lab, forwards: Any) -> None:
    with pytest.raises(UsageError) as caught:
        lab.create("never-made", "tiny", forwards=forwards)
    assert "{8080: 80}" in str(caught.value.hint)
    assert "never-made" not in lab


def test_sound_is_recorded(lab: Lab, names: Names) -> None:
    desk = lab.create(names("sound"), "desktop", sound="wav", bake=True)
    desk.succeed("timeout 20 sox -q -n -t alsa default synth 2 sine 440 || true", timeout=90)
    file = desk.sound_file
    assert file is not None
    raw = file.read_bytes()[44:]
    samples = struct.unpack(f"<{len(raw) // 2}h", raw[: len(raw) // 2 * 2])
    assert max(samples) > 1000


def test_what_machines_take(lab: Lab, tiny: Machine, invaders: Machine) -> None:
    busy, idle = tiny, invaders
    busy.execute("(timeout 30 sh -c 'while :; do :; done' &)")
    idle.pause()
    one, other = lab.usage([busy, idle], over=1.0)
    assert (one.name, other.name) == (busy.name, idle.name)
    assert one.cpu_percent > 30 > other.cpu_percent
    assert 0 < other.memory_private <= other.memory_pss < one.memory_pss
    assert one.disk > 0
    busy.succeed("head -c 12000000 /dev/urandom > /dev/shm/heavy")
    heavy = busy.snapshot("heavy")
    assert lab.usage([busy], over=0)[0].snapshots == heavy.size > 10 * MIB
    limits = lab.limits()
    assert limits.running >= 1
    assert 0 < limits.memory_taken < limits.memory_total
    assert limits.disk_taken > 10 * MIB
    # Mapped from a snapshot, or QEMU's own: the guest never takes more than it has, however heavy QEMU is.
    busy.kill()
    busy.start(boot=True)
    for each in (one, other, *lab.usage([busy], over=0)):
        assert 0 < each.memory_guest <= each.memory
        assert each.memory_qemu > MIB
        assert each.memory_guest + each.memory_qemu == each.memory_pss


def test_senseless_hardware_is_refused(lab: Lab, names: Names) -> None:
    for options in (
        {"disk": 1},
        {"sound": "loud"},
        {"accelerator": "magic"},
        {"vcpus": 0},
        {"firmware": "x"},
    ):
        name = names("bad")
        with pytest.raises(UsageError):
            lab.create(name, "tiny", **options)  # type: ignore[arg-type]
        assert name not in lab
