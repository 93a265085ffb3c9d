"""OVA and OVF: what is taken over, what is said to be left, and what no archive can do."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from vmlab.errors import BuildFailed, VMLabError
from vmlab.hypervisor.account import Account
from vmlab.images import import_image, read

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")

#: As VMware and VirtualBox write it, shortened.
ITEM = """<Item{more}><rasd:ElementName>{name}</rasd:ElementName><rasd:InstanceID>{id}</rasd:InstanceID>
<rasd:ResourceSubType>{sub}</rasd:ResourceSubType><rasd:ResourceType>{kind}</rasd:ResourceType>{rest}</Item>
"""
OVF = """<?xml version="1.0"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
 xmlns:vmw="http://www.vmware.com/schema/ovf">
<References><File ovf:id="f1" ovf:href="{href}"/></References>
<DiskSection><Info/>
<Disk ovf:diskId="d1" ovf:fileRef="f1" ovf:capacity="3145728" {disk}/>
<Disk ovf:diskId="d2" ovf:capacity="2" ovf:capacityAllocationUnits="byte * 2^20"/></DiskSection>
<VirtualSystem ovf:id="shop"><Info/><Name>Shop server</Name>
<VirtualHardwareSection><Info/>
{items}
<vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="efi"/>
</VirtualHardwareSection></VirtualSystem>
</Envelope>
"""


def item(
    kind: int, name: str = "thing", sub: str = "", more: str = "", number: int = 9, **fields: object
) -> str:
    rest = "".join(f"<rasd:{key}>{value}</rasd:{key}>" for key, value in fields.items())
    return ITEM.format(kind=kind, name=name, sub=sub, rest=rest, id=number, more=more)


def usual() -> list[str]:
    return [
        item(3, "2 CPUs", VirtualQuantity=2),
        item(4, "384 MB", VirtualQuantity=384, AllocationUnits="byte * 2^20"),
        item(6, "SCSI Controller", "lsilogic", number=3),
        item(17, "Disk 1", HostResource="ovf:/disk/d1", Parent=3),
        item(17, "Disk 2", HostResource="/disk/d2", Parent=3),
        item(10, "Ethernet 1", "VmxNet3"),
        item(10, "Ethernet 2", "E1000"),
        item(15, "CD/DVD Drive 1"),
        item(35, "sound", "ensoniq1371"),
    ]


def ovf(href: str = "shop-disk1.vmdk", disk: str = "", items: list[str] | None = None) -> bytes:
    return OVF.format(href=href, disk=disk, items="".join(items or usual())).encode()


@pytest.fixture
def data() -> bytes:
    whole = bytearray(3 << 20)
    whole[510:512] = b"\x55\xaa"
    whole[1 << 20 : (1 << 20) + 9000] = random.Random(1).randbytes(9000)
    return bytes(whole)


@pytest.fixture
def disk(tmp_path: Path, data: bytes) -> bytes:
    """The disk as appliances have it."""
    raw, path = tmp_path / "raw", tmp_path / "vmdk"
    raw.write_bytes(data)
    words = ["qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized"]
    subprocess.run([*words, raw, path], check=True)
    return path.read_bytes()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def take(tmp_path: Path, said: list[str]):
    me = Account("me", os.geteuid(), os.getegid(), tmp_path, tmp_path, tmp_path / "socket", is_service=False)

    def take(source: Path, name: str = "mine", **options: object):
        return import_image(tmp_path / "images", me, name, source, tell=said.append, **options)

    return take


def ova(path: Path, *members: tuple[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def bits(folder: Path, number: int = 0) -> bytes:
    disk = read(folder).disks[number]
    out = folder.parent.parent / "as-read"
    subprocess.run(
        ["qemu-img", "convert", "-f", disk["format"], "-O", "raw", folder / disk["file"], out], check=True
    )
    return out.read_bytes()


def nothing_left(tmp_path: Path) -> bool:
    folder = tmp_path / "images"
    return not folder.exists() or list(folder.iterdir()) == []


def test_an_ova_with_its_hardware(take, said, tmp_path, disk, data):
    text = ovf()
    listed = f"SHA256(shop.ovf)= {hashlib.sha256(text).hexdigest()}\nSHA1(shop-disk1.vmdk)= "
    listed += hashlib.sha1(disk, usedforsecurity=False).hexdigest() + "\n"
    path = ova(
        tmp_path / "shop.ova", ("shop.ovf", text), ("shop.mf", listed.encode()), ("shop-disk1.vmdk", disk)
    )
    folder = take(path)
    image = read(folder)
    assert (image.title, image.memory, image.vcpus) == ("Shop server", 384, 2)
    assert (image.boot, image.disk_bus, image.nic) == ({"firmware": "uefi"}, "sata", "e1000e")
    assert [d["size"] for d in image.disks] == [3 << 20, 2 << 20]
    assert bits(folder) == data
    assert bits(folder, 1) == bytes(2 << 20)
    assert sorted(p.name for p in folder.iterdir()) == ["disk.qcow2", "disk1.qcow2", "image.json"]
    [text] = said
    for words in ("lsilogic", "VmxNet3", "1 further network card", "CD drive", "sound card"):
        assert words in text
    # What a person says counts more than what is in the file.
    image = read(take(path, name="other", memory=512, firmware="bios", disk_bus="virtio", nic="rtl8139"))
    assert (image.memory, image.vcpus, image.boot["firmware"]) == (512, 2, "bios")
    assert (image.disk_bus, image.nic) == ("virtio", "rtl8139")


def test_an_ovf_with_its_disk_beside_it(take, tmp_path, disk, data):
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "shop-disk1.vmdk").write_bytes(disk)
    (folder / "shop.ovf").write_bytes(ovf())
    assert bits(take(folder / "shop.ovf")) == data
    (folder / "shop.mf").write_text(f"SHA256(shop-disk1.vmdk)= {'0' * 64}\n")
    with pytest.raises(BuildFailed, match="checksum"):
        take(folder / "shop.ovf", name="other")


def test_what_names_disks_elsewhere_is_not_followed(take, tmp_path, disk):
    folder = tmp_path / "export"
    folder.mkdir()
    (tmp_path / "secret.vmdk").write_bytes(disk)
    (folder / "link.vmdk").symlink_to(tmp_path / "secret.vmdk")
    names = (str(tmp_path / "secret.vmdk"), "../secret.vmdk", "link.vmdk", "http://127.0.0.1/secret.vmdk", "")
    for name in names:
        (folder / "shop.ovf").write_bytes(ovf(name))
        with pytest.raises(BuildFailed, match="folder"):
            take(folder / "shop.ovf")
        with pytest.raises(BuildFailed, match="missing"):
            take(ova(folder / "shop.ova", ("shop.ovf", ovf(name)), ("shop-disk1.vmdk", disk)))
    assert nothing_left(tmp_path)
    # Named by the person, it is taken.
    (folder / "shop.ovf").write_bytes(ovf("../secret.vmdk"))
    take(folder / "shop.ovf", backing=[tmp_path / "secret.vmdk"])


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_members_that_are_no_files(take, tmp_path, kind):
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(510) + b"\x55\xaa")
    member = tarfile.TarInfo("shop-disk1.vmdk")
    member.type, member.linkname = kind, str(secret)
    with pytest.raises(BuildFailed, match="missing"):
        take(ova(tmp_path / "shop.ova", ("shop.ovf", ovf()), ("", member)))
    assert nothing_left(tmp_path)


def test_an_ova_cannot_write_anywhere(take, tmp_path, disk):
    """Names of members are compared, and never used as names."""
    for name in ("../../planted", str(tmp_path / "planted")):
        take(ova(tmp_path / "x.ova", ("shop.ovf", ovf(name)), (name, disk)), name="x", replace=True)
        assert not list(tmp_path.rglob("planted"))


def test_a_disk_in_an_archive_stands_on_nothing_beside_the_archive(take, tmp_path, data):
    (tmp_path / "below.raw").write_bytes(data)
    overlay = tmp_path / "overlay"
    words = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "below.raw", "-F", "raw", overlay]
    subprocess.run(words, check=True)
    path = ova(tmp_path / "shop.ova", ("shop.ovf", ovf()), ("shop-disk1.vmdk", overlay.read_bytes()))
    with pytest.raises(BuildFailed, match="changes to another disk"):
        take(path)


def test_an_ova_with_a_kernel_gives_its_disks(take, tmp_path, disk, data):
    """It was taken as a raw disk in silence."""
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(bytes(0x202) + b"HdrS" + bytes(512))
    path = ova(tmp_path / "shop.ova", ("shop.ovf", ovf()), ("shop-disk1.vmdk", disk))
    folder = take(path, kernel=kernel, cmdline="quiet")
    assert read(folder).boot == {"kernel": "kernel", "cmdline": "quiet", "firmware": "uefi"}
    assert bits(folder) == data
    with pytest.raises(BuildFailed, match="archive"):
        take(ova(tmp_path / "x.tar", ("readme", b"hello")), name="x", kernel=kernel)


def test_compressed_around_and_inside(take, tmp_path, disk, data):
    path = ova(tmp_path / "shop.ova", ("shop.ovf", ovf()), ("shop-disk1.vmdk", gzip.compress(disk)))
    packed = tmp_path / "shop.ova.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert bits(take(packed)) == data


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"<Envelope", "damaged"),
        (b'<!DOCTYPE x [<!ENTITY a "b">]>' + ovf(), "entities"),
        (ovf().replace(b"<VirtualSystem ", b"<VirtualSystem/><VirtualSystem "), "2 machines"),
        (ovf().replace(b"384<", b"many<"), "damaged"),
        (ovf().replace(b"byte * 2^20</", b"furlongs</"), "damaged"),
        (ovf().replace(b"disk/d1", b"disk/d7"), "damaged"),
        (ovf().replace(b'capacity="2"', b'capacity="99999999999"'), "damaged"),
        (ovf(disk='ovf:parentRef="d2"'), "changes to another disk"),
        (ovf().replace(b'ovf:id="f1"', b'ovf:id="f1" ovf:chunkSize="7"'), "several files"),
        (ovf(items=[item(3, VirtualQuantity=1)]), "no disk"),
    ],
)
def test_descriptions_that_cannot_be(take, tmp_path, disk, text, words):
    with pytest.raises(BuildFailed, match=words):
        take(ova(tmp_path / "shop.ova", ("shop.ovf", text), ("shop-disk1.vmdk", disk)))
    assert nothing_left(tmp_path)


def test_a_checksum_that_differs_and_archives_that_end_early(take, tmp_path, disk):
    wrong = f"SHA256(shop-disk1.vmdk)= {'0' * 64}\n".encode()
    members = [("shop.ovf", ovf()), ("shop.mf", wrong), ("shop-disk1.vmdk", disk)]
    with pytest.raises(BuildFailed, match="checksum"):
        take(ova(tmp_path / "shop.ova", *members))
    path = ova(tmp_path / "shop.ova", members[0], members[2])
    os.truncate(path, 30000)
    with pytest.raises(BuildFailed):
        take(path)
    with pytest.raises(BuildFailed, match="2 descriptions"):
        take(ova(tmp_path / "two.ova", ("a.ovf", ovf()), ("b.ovf", ovf())))
    assert nothing_left(tmp_path)


def test_of_variants_the_usual_one_is_taken(take, tmp_path, disk):
    items = [*usual(), item(4, more=' ovf:configuration="big"', VirtualQuantity=9999)]
    items.insert(0, item(4, more=' ovf:configuration="small"', VirtualQuantity=64))
    variants = b'<Configuration ovf:id="big"/><Configuration ovf:id="small" ovf:default="true"/>'
    section = b"<DeploymentOptionSection>" + variants + b"</DeploymentOptionSection><DiskSection>"
    text = ovf(items=items).replace(b"<DiskSection>", section)
    path = ova(tmp_path / "shop.ova", ("shop.ovf", text), ("shop-disk1.vmdk", disk))
    assert read(take(path)).memory == 64


def test_any_damage_ends_in_a_plain_error(take, tmp_path, disk):
    whole = ova(tmp_path / "shop.ova", ("shop.ovf", ovf()), ("shop-disk1.vmdk", disk)).read_bytes()
    rand = random.Random(5)
    for number in range(100 if os.environ.get("VMLAB_ALL") else 6):
        data = bytearray(whole)
        for _ in range(10):
            data[rand.randrange(4096)] = rand.randrange(256)
        (tmp_path / "broken.ova").write_bytes(data)
        try:
            take(tmp_path / "broken.ova", name=f"x{number}")
        except VMLabError as error:
            assert error.message.endswith(".")  # noqa: PT017 - either way is right
