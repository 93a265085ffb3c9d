"""Importing: what is understood, what is refused and how it is said, and what a cloud image is told."""

from __future__ import annotations

import email
import hashlib
import http.server
import json
import os
import shutil
import struct
import subprocess
import threading

import pycdlib
import pytest

from vmlab.errors import AlreadyExists, BuildFailed, NotFound, UsageError
from vmlab.hypervisor.account import Account
from vmlab.images import CloudInit, import_image, read
from vmlab.images.sources import parse_checksum, parse_source

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJxY somebody@somewhere"


@pytest.fixture
def me(tmp_path):
    """The account that runs these tests, whoever that is."""
    return Account(
        "me", os.geteuid(), os.getegid(), tmp_path, tmp_path, tmp_path / "socket", is_service=False
    )


@pytest.fixture
def take(me, tmp_path):
    """Import into a store of this test's own."""

    def take(source=None, name="mine", **options):
        return import_image(tmp_path / "images", me, name, source, **options)

    return take


@pytest.fixture
def raw(tmp_path):
    """A disk with a boot sector and one partition that fills it."""
    path = tmp_path / "disk.raw"
    sector = bytearray(512)
    struct.pack_into("<BxxxBxxxII", sector, 446, 0x80, 0x83, 1, 2047)
    sector[510:] = b"\x55\xaa"
    path.write_bytes(bytes(sector) + bytes(1 << 20)[512:])
    return path


@pytest.fixture
def qcow2(tmp_path, raw):
    path = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path], check=True)
    return path


@pytest.fixture
def iso(tmp_path):
    path = tmp_path / "cd.iso"
    disc = pycdlib.PyCdlib()
    disc.new(vol_ident="DEMO")
    disc.write(str(path))
    disc.close()
    return path


@pytest.fixture
def web(tmp_path):
    """A web server of this test's folder; ``/short`` breaks off."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def do_GET(self):
            if self.path == "/short":
                self.send_response(200)
                self.send_header("Content-Length", "1000000")
                self.end_headers()
                self.wfile.write(b"x" * 1000)
            else:
                super().do_GET()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def nothing_left(tmp_path):
    folder = tmp_path / "images"
    return not folder.exists() or list(folder.iterdir()) == []


# what is taken ------------------------------------------------------------------------------------------------------


def test_a_raw_disk(take, raw):
    folder = take(raw, memory=256, firmware="uefi", disk_bus="sata", nic="e1000e")
    image = read(folder)
    assert image.disks == [{"file": "disk.img", "format": "raw", "size": 1 << 20}]
    assert (image.boot, image.memory, image.disk_bus, image.nic) == (
        {"firmware": "uefi"},
        256,
        "sata",
        "e1000e",
    )
    assert (folder / "disk.img").read_bytes() == raw.read_bytes()
    assert (folder / "disk.img").stat().st_mode & 0o222 == 0
    assert image.sha256["disk.img"] == hashlib.sha256(raw.read_bytes()).hexdigest()
    assert not image.agent
    assert image.ready is None


def test_a_qcow2_disk_by_file_url_with_its_checksum(take, qcow2):
    for algorithm in ("sha256", "sha512"):
        digits = hashlib.new(algorithm, qcow2.read_bytes()).hexdigest()
        folder = take(f"file://{qcow2}", name=algorithm, sha256=digits.upper())
        assert read(folder).disks[0]["format"] == "qcow2"


def test_a_cd_comes_with_an_empty_disk(take, iso):
    image = read(take(iso, disk_size=1 << 30))
    assert image.cdroms == ["cd.iso"]
    assert image.disks == [{"file": "disk.qcow2", "format": "qcow2", "size": 1 << 30}]
    assert read(take(iso, name="bare", disk_size=0)).disks == []


def test_a_kernel_with_initrd_and_disk(take, tmp_path):
    kernel, initrd, disk = tmp_path / "vmlinuz", tmp_path / "initrd", tmp_path / "root.ext4"
    kernel.write_bytes(bytes(0x202) + b"HdrS" + bytes(512))
    initrd.write_bytes(b"070701")
    disk.write_bytes(bytes(1000))  # a file system has no boot sector, and needs none with a kernel
    image = read(take(disk, kernel=kernel, initrd=initrd, cmdline="root=/dev/vda"))
    assert image.boot == {"kernel": "kernel", "initrd": "initrd", "cmdline": "root=/dev/vda"}
    assert image.disks[0]["size"] == 1024
    assert read(take(kernel=kernel, name="alone")).disks == []


def test_holes_stay_holes(take, tmp_path, raw):
    big = tmp_path / "big.raw"
    big.write_bytes(raw.read_bytes())
    os.truncate(big, 1 << 30)
    copy = take(big) / "disk.img"
    assert copy.stat().st_size == 1 << 30
    assert copy.stat().st_blocks * 512 < 4 << 20


def test_from_the_web_with_progress(take, web, qcow2):
    seen = []
    folder = take(f"{web}/disk.qcow2", progress=lambda step, fraction: seen.append((step, fraction)))
    assert (folder / "disk.qcow2").read_bytes() == qcow2.read_bytes()
    assert any(fraction == 1.0 and "fetching disk.qcow2" in step for step, fraction in seen)


def test_replace_retires_the_old_one(take, raw, qcow2):
    take(raw)
    with pytest.raises(AlreadyExists):
        take(qcow2)
    assert read(take(qcow2, replace=True)).disks[0]["format"] == "qcow2"


# what is refused ----------------------------------------------------------------------------------------------------


def test_a_checksum_that_differs(take, raw, tmp_path):
    with pytest.raises(BuildFailed, match="checksum") as caught:
        take(raw, sha256="0" * 64)
    assert caught.value.evidence["expected"] == "0" * 64
    assert nothing_left(tmp_path)


def test_hardware_that_no_machine_has_is_refused(take, raw, tmp_path):
    for options in ({"disk_bus": "ide"}, {"nic": "ne2000"}, {"firmware": "coreboot"}):
        with pytest.raises(UsageError, match="There is no"):
            take(raw, **options)
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("text", ["", "abc", "g" * 64, "0" * 63])
def test_what_is_no_checksum(text):
    with pytest.raises(UsageError):
        parse_checksum(text)


def test_a_qcow2_on_another_disk(take, tmp_path, qcow2):
    overlay = tmp_path / "overlay.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", qcow2, "-F", "qcow2", overlay], check=True
    )
    with pytest.raises(BuildFailed, match="changes to another disk") as caught:
        take(overlay)
    assert "qemu-img convert" in (caught.value.hint or "")
    assert nothing_left(tmp_path)


def test_a_qcow2_that_points_to_a_secret_is_not_followed(take, tmp_path):
    """A made-up image names a file of the host as its backing file, which does not even exist as a disk."""
    secret = tmp_path / "secret"
    secret.write_text("password")
    trap = tmp_path / "trap.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", secret, "-F", "raw", trap, "1M"], check=True
    )
    with pytest.raises(BuildFailed, match="another disk"):
        take(trap)


def test_a_qcow2_with_its_data_elsewhere(take, tmp_path):
    disk = tmp_path / "meta.qcow2"
    option = f"data_file={tmp_path / 'data'},data_file_raw=on"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", option, disk, "1M"], check=True)
    with pytest.raises(BuildFailed, match="another file"):
        take(disk)


def test_damaged_and_truncated_qcow2(take, tmp_path, qcow2):
    data = qcow2.read_bytes()
    qcow2.write_bytes(data[: len(data) // 2])
    with pytest.raises(BuildFailed, match=r"cut short|damaged"):
        take(qcow2)
    broken = bytearray(data)
    broken[48:56] = b"\xff" * 8  # where the refcount table is said to be
    qcow2.write_bytes(broken)
    with pytest.raises(BuildFailed, match=r"damaged|cannot be read"):
        take(qcow2)
    assert nothing_left(tmp_path)


def test_truncated_raw_and_cd(take, raw, iso):
    os.truncate(raw, 1 << 19)
    with pytest.raises(BuildFailed, match="cut short") as caught:
        take(raw)
    assert caught.value.evidence["should_be"] == 1 << 20
    os.truncate(iso, iso.stat().st_size - 4096)
    with pytest.raises(BuildFailed, match="cut short"):
        take(iso)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"", "is empty"),
        (b"Dear reader, " * 100, "neither a disk nor a CD"),
        (b"\xfd7zXZ\0" + bytes(600), "cannot be unpacked"),
        (b"KDMV" + bytes(600), "VMDK"),
        (b"vhdxfile" + bytes(600), "damaged"),
        (b"QFI\xfb" + bytes(6), "damaged"),
    ],
)
def test_what_is_no_disk(take, tmp_path, start, words):
    path = tmp_path / "thing"
    path.write_bytes(start)
    with pytest.raises(BuildFailed, match=words):
        take(path)


def test_what_is_no_kernel(take, tmp_path):
    (tmp_path / "text").write_text("hello")
    with pytest.raises(BuildFailed, match="no kernel"):
        take(kernel=tmp_path / "text")


def test_missing_files_name_the_nearest(tmp_path, raw):
    with pytest.raises(NotFound) as caught:
        parse_source(tmp_path / "dsik.raw")
    assert "disk.raw" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="not an ordinary file"):
        parse_source("/dev/null")
    with pytest.raises(UsageError, match="not an ordinary file"):
        parse_source(tmp_path)
    with pytest.raises(UsageError, match="ftp"):
        parse_source("ftp://example.org/disk")
    with pytest.raises(UsageError, match="another machine"):
        parse_source("file://elsewhere/disk")


def test_passwords_in_addresses_are_not_kept():
    assert (
        parse_source("https://me:secret@example.org/disk.img?token=1").text == "https://example.org/disk.img"
    )


def test_the_web_says_no_or_breaks_off(take, web, tmp_path):
    with pytest.raises(BuildFailed, match="404"):
        take(f"{web}/nothing")
    (tmp_path / "short").write_bytes(b"x")  # for the question how large it is
    with pytest.raises(BuildFailed, match=r"ended early|broke"):
        take(f"{web}/short")
    with pytest.raises(BuildFailed, match="cannot be fetched"):
        take("http://127.0.0.1:1/disk")
    assert nothing_left(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cmdline": "quiet"},
        {"initrd": "x"},
        {"kernel": "x", "firmware": "openboot"},
        {"kernel": "x", "memory": 0},
        {"kernel": "x", "vcpus": True},
        {"kernel": "x", "nic": "modem"},
        {"kernel": "x", "disk_size": 1},
    ],
)
def test_options_that_make_no_sense(take, options):
    with pytest.raises(UsageError):
        take(**options)


def test_builtin_names_are_kept_free(take, raw):
    with pytest.raises(AlreadyExists, match="built-in"):
        take(raw, name="tiny")


# cloud-init ---------------------------------------------------------------------------------------------------------


def seed_of(folder):
    """Return the files of an image's seed, read as a guest would."""
    disc = pycdlib.PyCdlib()
    disc.open(str(folder / "seed.iso"))
    assert disc.pvd.volume_identifier.strip() == b"CIDATA"
    found = {}
    for name in ("meta-data", "user-data"):
        with disc.open_file_from_iso(joliet_path=f"/{name}") as file:
            found[name] = file.read().decode()
        with disc.open_file_from_iso(rr_path=f"/{name}") as file:
            assert file.read().decode() == found[name]
    disc.close()
    return found


def config_of(text):
    first, _, rest = text.partition("\n")
    assert first == "#cloud-config"
    return json.loads(rest)  # JSON is YAML


def test_the_seed_tells_user_key_password_and_name(take, raw):
    folder = take(raw, cloud_init=CloudInit("ada", KEY, "lovelace", "engine"))
    assert read(folder).cdroms == ["seed.iso"]
    assert (folder / "seed.iso").stat().st_mode & 0o777 == 0o400
    seed = seed_of(folder)
    assert json.loads(seed["meta-data"])["local-hostname"] == "engine"
    default, ada = config_of(seed["user-data"])["users"]
    assert default == "default"
    assert (ada["name"], ada["ssh_authorized_keys"], ada["plain_text_passwd"]) == ("ada", [KEY], "lovelace")
    assert ada["lock_passwd"] is False


def test_without_a_user_the_images_own_gets_key_and_password(take, raw):
    seed = seed_of(
        take(raw, name="web_1", cloud_init=CloudInit(ssh_key=f"{KEY}\n# work\n{KEY}\n", password="x"))
    )
    config = config_of(seed["user-data"])
    assert config["ssh_authorized_keys"] == [KEY, KEY]
    assert (config["password"], config["chpasswd"], config["ssh_pwauth"]) == ("x", {"expire": False}, True)
    assert "users" not in config
    assert json.loads(seed["meta-data"])["local-hostname"] == "web-1"


def test_user_data_alone_is_passed_on_as_it_is():
    script = "#!/bin/sh\ntouch /done\n"
    assert CloudInit(user_data=script).files("x")["user-data"].decode() == script


def test_user_data_beside_ours_is_a_message_of_parts():
    message = email.message_from_bytes(
        CloudInit(password="x", user_data="#!/bin/sh\necho hi\n").files("x")["user-data"]
    )
    assert [part.get_content_type() for part in message.get_payload()] == [
        "text/cloud-config",
        "text/x-shellscript",
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"user": "Root User"},
        {"hostname": "a_b"},
        {"hostname": "-x"},
        {"ssh_key": "hello"},
        {"user_data": "echo hi"},
    ],
)
def test_a_seed_that_makes_no_sense(options):
    with pytest.raises(UsageError):
        CloudInit(**options)
