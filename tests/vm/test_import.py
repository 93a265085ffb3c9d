"""Images that are brought along: kernel and initrd, disks, CDs."""

from __future__ import annotations

import hashlib
import os
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


def test_a_vmdk_of_several_files_as_the_account_that_qemu_runs_as(
    lab: Lab, names: Names, image: Callable[[], str], tmp_path: Path
) -> None:
    raw, whole, changes = tmp_path / "disk.raw", tmp_path / "split.vmdk", tmp_path / "changes.vmdk"
    raw.write_bytes(SECTOR.replace(b"\xb0H", b"\xb0h").ljust(1 << 20, b"\0"))
    convert = ["qemu-img", "convert", "-O", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", raw, whole]
    subprocess.run(convert, check=True)
    create = ["qemu-img", "create", "-q", "-f", "vmdk", "-b", "split.vmdk", "-F", "vmdk", changes]
    subprocess.run(create, check=True)
    # What is changed above makes it say "Hi" instead of "hi".
    write = ["qemu-io", "-f", "vmdk", "-c", f"write -P 0x48 {SECTOR.index(b'H')} 1", changes]
    subprocess.run(write, check=True, capture_output=True)
    name = image()
    lab.import_image(name, changes, memory=16)
    machine = lab.create(names("vmdk"), name)
    machine.wait_for_serial("Hi", timeout=60)


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


def test_a_wrong_checksum_leaves_nothing(lab: Lab, image: Callable[[], str], tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(SECTOR.ljust(1 << 20, b"\0"))
    name = image()
    with pytest.raises(VMLabError, match=r"checksum|SHA"):
        lab.import_image(name, disk, sha256="0" * 64)
    assert name not in {i.name for i in lab.images}


def read_disk(lab: Lab, name: str, tmp_path: Path) -> bytes:
    [disk] = lab.store.image(name)["disks"]
    out = tmp_path / f"{name}.raw"
    words = ["qemu-img", "convert", "-f", disk["format"], "-O", "raw"]
    subprocess.run([*words, lab.store.image_folder(name) / disk["file"], out], check=True)
    data = out.read_bytes()
    out.unlink()
    return data


def test_an_image_of_a_snapshot(lab: Lab, names: Names, image: Callable[[], str], tmp_path: Path) -> None:
    said: list[str] = []
    lab = Lab(lab.home)
    lab.tell = said.append
    web = lab.create(names("web"))
    # What is in RAM alone, what is in the page cache alone, what was deleted, and what is the machine's own.
    web.succeed("echo only-in-ram-$((41 + 1)) >/run/mark; echo kept >/root/mark")
    web.succeed("echo deleted-secret-$((6 * 7)) >/root/gone; sync; rm /root/gone; sync")
    web.succeed("mkdir -p /etc/ssh; echo key >/etc/ssh/ssh_host_rsa_key; echo 1234 >/etc/machine-id")
    web.succeed("echo 'mysql -psecret-password' >/root/.ash_history")
    clean = web.snapshot("clean")
    web.succeed("echo later >/root/mark; sync")
    whole, cleaned, off = image(), image(), image()
    lab.import_image(whole, f"{web.name}@clean")
    assert "machine ID, its ssh host keys, histories of commands, deleted files" in said[-1]
    lab.import_image(cleaned, clean, clean=True)
    assert said[-1].startswith("Removed")
    disk = read_disk(lab, whole, tmp_path)
    secrets = (b"deleted-secret-42", b"secret-password", b"only-in-ram-42")
    assert [word for word in secrets if word in disk] == list(secrets[:2])
    disk = read_disk(lab, cleaned, tmp_path)
    assert [(word, disk.index(word)) for word in secrets if word in disk] == []
    made = lab.create(names("new"), cleaned)
    assert made.succeed("cat /root/mark") == "kept\n"
    # It makes itself another machine ID when it boots.
    assert "1234\n" not in made.succeed("cat /etc/machine-id")
    assert made.succeed("ls -d /etc/ssh/* /root/.ash_history 2>/dev/null; true") == ""
    assert lab.image(cleaned).ready
    # The snapshot and its machine are what they were, and the image needs neither.
    assert clean.verify().ok
    assert web.succeed("cat /root/mark") == "later\n"
    with pytest.raises(VMLabError, match="already"):
        lab.import_image(whole, f"{web.name}@clean")
    with pytest.raises(VMLabError, match="no snapshot"):
        lab.import_image(off, f"{web.name}@")
    with pytest.raises(VMLabError, match="hardware"):
        lab.import_image(off, f"{web.name}@clean", memory=1)
    web.kill()
    web.snapshot("off")
    with pytest.raises(VMLabError, match="runs"):
        lab.import_image(off, f"{web.name}@off", clean=True)
    lab.import_image(off, f"{web.name}@off")
    web.delete()
    assert lab.create(names("late"), off, bake=False).succeed("cat /root/mark") == "later\n"


def test_an_image_from_a_recipe_file(
    lab: Lab, names: Names, image: Callable[[], str], tmp_path: Path
) -> None:
    name, said = image(), list[str]()
    lab = Lab(lab.home)
    lab.tell = said.append
    folder = tmp_path / "course"
    (folder / "web").mkdir(parents=True)
    (folder / "web" / "index.html").write_text("first")
    (folder / "setup.sh").write_text(
        "#!/bin/sh\nset -e\nwget -T 2 -q http://10.0.2.2 && exit 9\nls / >/root/seen\n"
    )
    recipe = folder / "mine.toml"
    words = f'name = "{name}"\nbase = "tiny"\nscript = "setup.sh"\n'
    recipe.write_text(words + '[files]\n"/srv/shop/index.html" = "web/index.html"\n')
    built = lab.build(str(recipe))
    assert (built.name, built.builtin, built.current) == (name, False, True)
    first = lab.store.image(name)
    machine = lab.create(names("mine"), name)
    assert machine.succeed("cat /srv/shop/index.html") == "first"
    assert "srv" in machine.succeed("cat /root/seen")
    # It is what its recipe makes; then a file of it changes.
    lab.build(str(recipe))
    assert "already" in said[-1]
    assert lab.store.image(name) == first
    (folder / "web" / "index.html").write_text("second")
    lab.build(str(recipe))
    assert lab.store.image(name)["recipe"] != first["recipe"]
    assert machine.succeed("cat /srv/shop/index.html") == "first"
    # What fails changes nothing, and leaves no guest.
    second = lab.store.image(name)
    (folder / "setup.sh").write_text("#!/bin/sh\necho so it went; exit 3\n")
    with pytest.raises(VMLabError, match="script") as caught:
        lab.build(str(recipe))
    assert "so it went" in caught.value.evidence["output"]
    assert lab.store.image(name) == second
    assert not [n for n in lab.store.machine_names() if n.startswith("build-")]
    recipe.write_text(words + 'packages = ["tree"]\n')
    (folder / "setup.sh").write_text("#!/bin/sh\n")
    with pytest.raises(VMLabError, match="no packages of Debian"):
        lab.build(str(recipe))


@pytest.mark.skipif("VMLAB_ALL" not in os.environ, reason="exhaustive: scripts/test --all")
def test_a_recipe_with_packages(lab: Lab, names: Names, image: Callable[[], str], tmp_path: Path) -> None:
    name = image()
    recipe = tmp_path / "mine.toml"
    recipe.write_text(f'name = "{name}"\nbase = "desktop"\npackages = ["tree"]\n')
    lab.build(str(recipe))
    found = lab.store.image(name)["packages"]
    assert any(line.startswith("tree ") for line in found)
    assert len(found) > 100
    machine = lab.create(names("packed"), name, start=False)
    machine.start()
    machine.wait_for_agent(400)
    assert "0 directories" in machine.succeed("tree /srv")


@pytest.mark.skipif("VMLAB_ALL" not in os.environ, reason="exhaustive: scripts/test --all")
def test_every_host_has_the_same_tiny(lab: Lab, fresh_lab: Lab) -> None:
    """From the same packages; what was built before them differs, and is not compared."""
    first = lab.store.image("tiny")
    fresh_lab.build("tiny")
    if fresh_lab.store.image("tiny")["packages"] != first["packages"]:
        first = fresh_lab.store.image("tiny")
        fresh_lab.build("tiny")
    assert fresh_lab.store.image("tiny")["built"] != first["built"]
    assert fresh_lab.store.image("tiny")["sha256"] == first["sha256"]
