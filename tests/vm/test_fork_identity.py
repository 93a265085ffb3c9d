"""A guest that is caught while it is told who it is, and forks of that."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

from vmlab.lab import Lab
from vmlab.machine import Machine


def test_a_fork_is_caught_before_it_knows_its_name(
    tiny: Machine, lab: Lab, names: Callable[..., str]
) -> None:
    tiny.succeed("true")
    name = names("fork")
    # Who tells a fork its name waits for that before a snapshot; another process does not know of it.
    code = "import sys; from vmlab.lab import Lab; lab = Lab(sys.argv[1]); sys.stdin.readline(); "
    code += "lab.machine(sys.argv[2]).snapshot('caught')"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(lab.home), name], stdin=subprocess.PIPE, text=True
    )
    time.sleep(3)
    fork = tiny.fork(name)
    other.communicate("\n")
    assert other.returncode == 0
    caught = fork.find("caught")
    assert caught._record.macs == (tiny._record.mac,)
    children = [*lab.fork(caught, [names("one"), names("two")]), fork]
    for machine in children:
        assert machine.succeed("cat /proc/sys/kernel/hostname /etc/hostname").split() == [machine.name] * 2
        assert machine.succeed("cat /sys/class/net/e*/address").strip() == machine._record.mac
    time.sleep(1)
    # Nothing goes on in them that began in another.
    assert [m.succeed("hostname").strip() for m in children] == [m.name for m in children]
    # Gone back to, it is told its address, and the host its ports, once more.
    fork.revert(caught)
    assert fork.succeed("hostname").strip() == fork.name
    assert fork.succeed("pidof udhcpc")
