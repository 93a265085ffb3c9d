"""Images that are brought along: kernel and initrd, disks, CDs, UEFI."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pycdlib
import pytest

from vmlab.errors import VMLabError
from vmlab.lab import Lab

Names = Callable[..., str]

#: A boot sector that writes "Hi" on the first serial line and halts: 16-bit code, assembled by hand.
#: mov dx,0x3f8; mov al,'H'; out dx,al; mov al,'i'; out dx,al; mov al,10; out dx,al; hlt; jmp to the hlt
SECTOR = bytes.fromhex("baf803b048eeb069eeb00aeef4ebfd").ljust(510, b"\0") + b"\x55\xaa"


@pytest.fixture
def image(lab: Lab, names: Names) -> Iterator[Callable[[], str]]:
    """Make names for images, which are deleted after the test."""
    made: list[str] = []

    def new() -> str:
        made.append(names("image"))
        return made[-1]

    yield new
    for name in made:
        try:
            lab.image(name).delete()
        except VMLabError:
            continue


def test_kernel_and_initrd(lab: Lab, names: Names, image: Callable[[], str]) -> None:
    tiny = lab.store.image_folder("tiny")
    name = image()
    kernel = tiny / "vmlinuz"
    lab.import_image(
        name,
        tiny / "disk.qcow2",
        kernel=kernel,
        initrd=tiny / "initrd.img",
        cmdline=lab.store.image("tiny")["boot"]["cmdline"],
        memory=128,
        agent=True,
        sha256=hashlib.sha256((tiny / "disk.qcow2").read_bytes()).hexdigest(),
    )
    machine = lab.create(names("imported"), name)
    machine.wait_for_agent(120)
    nonce = machine.succeed("cat /run/nonce")
    machine.snapshot("clean")
    machine.succeed("rm -rf /root /etc/passwd")
    machine.revert("clean")
    assert machine.succeed("cat /run/nonce; test -e /etc/passwd") == nonce


def test_a_raw_disk_without_an_agent(
    lab: Lab, names: Names, image: Callable[[], str], tmp_path: Path
) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(SECTOR.ljust(1 << 20, b"\0"))
    name = image()
    lab.import_image(name, disk, memory=16)
    machine = lab.create(names("raw"), name)
    machine.wait_for_serial("Hi", timeout=60)
    snapshot = machine.snapshot()
    assert snapshot.verify().ok
    assert machine.revert().state == "running"
    assert "Hi" in machine.serial()


def test_a_cd(lab: Lab, names: Names, image: Callable[[], str], tmp_path: Path) -> None:
    iso = pycdlib.PyCdlib()
    iso.new()
    iso.add_fp(BytesIO(SECTOR.ljust(2048, b"\0")), 2048, "/BOOT.;1")
    iso.add_eltorito("/BOOT.;1", bootcatfile="/BOOT.CAT;1", boot_load_size=4)
    path = tmp_path / "boot.iso"
    iso.write(str(path))
    iso.close()
    name = image()
    lab.import_image(name, path, memory=32)
    machine = lab.create(names("cd"), name)
    machine.wait_for_serial("Hi", timeout=60)
    fork = machine.fork(names("cd2"))
    assert fork.state == "running"


def test_uefi(lab: Lab, names: Names, image: Callable[[], str], tmp_path: Path) -> None:
    disk = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "64M"], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 0x55 510 1", "-c", "write -P 0xaa 511 1", disk],
                   check=True, capture_output=True)  # fmt: skip
    name = image()
    lab.import_image(name, disk, firmware="uefi", memory=128)
    machine = lab.create(names("uefi"), name)
    # No loader on the disk: the firmware's own shell.
    machine.wait_for_serial("Shell>", timeout=180)
    machine.type("set vmlab yes\n")
    snapshot = machine.snapshot("shell")
    assert snapshot.verify().ok
    machine.type("set -d vmlab\n")
    machine.revert("shell")
    machine.type("echo answer-%vmlab%\n")
    machine.wait_for_serial("answer-yes", timeout=60)
    machine.kill()
    off = machine.snapshot("off")
    machine.start()
    assert machine.revert(off).state == "off"
    assert machine.revert("shell").state == "running"


def test_a_wrong_checksum_leaves_nothing(lab: Lab, image: Callable[[], str], tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(SECTOR.ljust(1 << 20, b"\0"))
    name = image()
    with pytest.raises(VMLabError, match=r"checksum|SHA"):
        lab.import_image(name, disk, sha256="0" * 64)
    assert name not in {i.name for i in lab.images}
