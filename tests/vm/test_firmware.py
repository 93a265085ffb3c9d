"""Machines with UEFI: the firmware's variables belong to a state, like its disks."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from help.bad_lab import harmed

from vmlab.errors import HostError, RecordDamaged, SnapshotDamaged
from vmlab.hypervisor import domain_xml
from vmlab.hypervisor.domain_xml import UEFI_VARS
from vmlab.lab import Lab
from vmlab.machine import Machine

pytestmark = pytest.mark.skipif(not UEFI_VARS.exists(), reason="UEFI's firmware (ovmf) is not installed")


@pytest.fixture(scope="module")
def shell(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine in its firmware's shell, with a variable that is kept: snapshots ``shell`` and, when off, ``off``."""
    disk = tmp_path_factory.mktemp("uefi") / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "64M"], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 0x55 510 1", "-c", "write -P 0xaa 511 1", disk],
                   check=True, capture_output=True)  # fmt: skip
    name = f"uefi-{uuid.uuid4().hex[:6]}"
    lab.import_image(name, disk, firmware="uefi", memory=128)
    machine = lab.create(name, name)
    # No loader on the disk: the firmware's own shell.
    machine.wait_for_serial("Shell>", timeout=180)
    says(machine, "yes", "set vmlab yes")
    machine.snapshot("shell")
    machine.kill()
    machine.snapshot("off")
    yield machine
    machine.delete()
    lab.image(name).delete()


def says(machine: Machine, value: str, first: str = "") -> None:
    """Let the firmware's shell say what the variable is."""
    mark = uuid.uuid4().hex[:6]
    for line in (first, f"echo {mark}-%vmlab%"):
        # The line waits until the firmware has taken what came before; a keyboard drops what is too quick for it.
        machine.send_serial(line + "\r")
    machine.wait_for_serial(f"{mark}-{value}$", timeout=60)


def own(machine: Machine) -> Path:
    return machine.folder / "nvram.fd"


def test_a_live_state_has_its_variables(shell: Machine) -> None:
    shell.revert("shell")
    assert shell.find("shell").verify().ok
    says(shell, "", "set -d vmlab")
    shell.revert("shell")
    says(shell, "yes")


def test_a_state_without_ram_has_its_variables(shell: Machine, names: Callable[..., str]) -> None:
    shell.revert("off")
    assert shell.state == "off"
    shell.start()
    shell.kill()
    # Somebody clears them.
    own(shell).write_bytes(UEFI_VARS.read_bytes())
    cleared = shell.snapshot("cleared")
    shell.revert("off")
    fork = shell.fork(names("uefi"), snapshot="off")
    for machine in (shell, fork):
        # Nothing has booted yet; what is kept of it is what it would boot with.
        kept = machine.snapshot("kept")
        assert (kept.folder / "nvram.fd").read_bytes() == (shell.find("off").folder / "nvram.fd").read_bytes()
    fork.start()
    fork.wait_for_serial("Shell>", timeout=180)
    says(fork, "yes")
    shell.undo()
    assert shell.here.name == "cleared"  # type: ignore[union-attr]
    for start in (lambda: shell.revert(cleared), lambda: shell.revert("shell").kill()):
        start()
        shell.snapshot("now")
        variables = (shell.find("now").folder / "nvram.fd").read_bytes()
        assert (variables == UEFI_VARS.read_bytes()) == (shell.find("now").parent == cleared)
        shell.find("now").forget()
    cleared.forget()


def test_an_image_of_it_has_its_variables(shell: Machine, lab: Lab, names: Callable[..., str]) -> None:
    image = names("image")
    mark = "vmlab".encode("utf-16-le")
    assert mark not in UEFI_VARS.read_bytes()
    try:
        for snapshot in ("off", "shell"):
            lab.import_image(image, f"{shell.name}@{snapshot}", replace=True)
            made = lab.create(names("uefi"), image, bake=False)
            assert mark in own(made).read_bytes(), snapshot
            # From then on they are its own.
            made.kill()
            own(made).write_bytes(UEFI_VARS.read_bytes())
            made.start()
            assert mark not in own(made).read_bytes()
    finally:
        for machine in lab.machines:
            if machine.image == image:
                machine.delete()
        lab.image(image).delete()


@pytest.mark.parametrize("harm", ["gone", "empty", "cut", "flipped"])
def test_damaged_variables_are_found(harm: str, shell: Machine) -> None:
    for name in ("shell", "off"):
        snapshot = shell.find(name)
        with harmed(snapshot.folder / "nvram.fd", harm):
            for verb in (
                shell.revert,
                lambda state: shell.fork(snapshot=state),
                lambda state: state.verify(),
            ):
                with pytest.raises(SnapshotDamaged, match=r"nvram\.fd"):
                    verb(snapshot)
        assert snapshot.verify().ok
    shell.revert("off")
    shell.start()
    shell.kill()
    said: list[str] = []
    shell._store.tell = said.append
    with harmed(own(shell), harm):
        if harm in ("empty", "cut"):
            with pytest.raises(RecordDamaged, match="firmware variables") as caught:
                shell.start()
            assert caught.value.evidence["file"] == own(shell)
            assert shell.state == "off"
            # As it says.
            own(shell).unlink()
        shell.start()
        # That some are not what they were nobody can tell: the guest writes to them.
        assert bool(said) == (harm != "flipped")
        shell.kill()
    shell.revert("shell")
    assert shell.state == "running"
    shell.kill()


def test_a_host_without_the_firmware_is_told_so(shell: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    shell.revert("off")
    with monkeypatch.context() as patch:
        for name in ("UEFI_CODE", "UEFI_VARS"):
            patch.setattr(domain_xml, name, UEFI_VARS.with_name("none.fd"))
        with pytest.raises(HostError, match="no UEFI firmware"):
            shell.start()
    shell.start()
    assert shell.state == "running"
    shell.kill()
