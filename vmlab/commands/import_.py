"""Make an image from anything that boots.

That is a disk (raw, qcow2, VMDK, VDI, VHD, VHDX, QED), compressed or not (gz, bz2, xz, zst, zip), an appliance
(OVA, OVF), an ISO, or a kernel with its initrd. Of an appliance its disks, memory, CPUs, firmware, disk bus and network
card are taken over; what is not is said.

A disk that is built on another, or consists of several files, is made one. The other files must lie in its folder, or
be named with --backing: it could name any file that you may read, and its guest would see what is in it.

A cloud image is given a user, a key and a name at its first boot with --user, --ssh-key, --hostname or
--user-data.

Examples
--------
import debian debian-12-generic-amd64.qcow2 --user me --ssh-key ~/.ssh/id_ed25519.pub
import shop shop.ova
import shop-server web@clean    # a snapshot's disks, never its RAM
import old old.vmdk.xz --disk-bus sata
import rescue rescue.iso --memory 1G
import own --kernel vmlinuz --initrd initrd.img --cmdline "console=ttyS0"
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmlab.commands import _arguments as words
from vmlab.errors import UsageError

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
    from vmlab.image import Image
    from vmlab.lab import Lab

GROUP = "host"
ORDER = 2


def _cloud(args: argparse.Namespace) -> Any:
    """Return the first-boot configuration, or None if nothing of it was given."""
    given = (args.user, args.password, args.ssh_key, args.hostname, args.user_data)
    if not any(given):
        return None
    from vmlab.images.cloudinit import CloudInit

    return CloudInit(
        user=args.user,
        password=args.password,
        ssh_key=[_read(key).strip() for key in args.ssh_key],
        hostname=args.hostname,
        user_data=_read(args.user_data) if args.user_data else None,
    )


def _read(name: str) -> str:
    try:
        return Path(name).expanduser().read_text()
    except OSError as error:
        raise UsageError(f"{name} cannot be read.", reason=error.strerror) from error


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("name", metavar="NAME", help="name of the new image")
    parser.add_argument(
        "source",
        metavar="FILE",
        nargs="?",
        help="disk, CD or appliance: a file, or an address (https://...); or a snapshot, such as web@clean; "
        "may be left out with --kernel",
    )
    parser.add_argument(
        "--clean",
        action="store_true",
        default=None,
        help="of a snapshot: without machine ID, ssh host keys, histories and deleted files",
    )
    parser.add_argument("--sha256", metavar="SUM", help="refuse it unless it has this checksum")
    parser.add_argument(
        "--backing",
        metavar="FILE",
        action="append",
        default=[],
        help="a file that the disk is built on, if it lies in another folder",
    )
    parser.add_argument("-m", "--memory", type=words.memory, metavar="SIZE", help="RAM of its machines")
    parser.add_argument("-c", "--vcpus", type=words.count, metavar="N", help="virtual CPUs of its machines")
    parser.add_argument("--firmware", choices=("bios", "uefi"), help="what boots it")
    parser.add_argument("--kernel", metavar="FILE", help="boot this kernel, with the disk or without")
    parser.add_argument("--initrd", metavar="FILE", help="its initial RAM disk")
    words.free(parser.add_argument("--cmdline", metavar="TEXT", default="", help="its kernel arguments"))
    parser.add_argument(
        "--disk-bus", choices=("virtio", "sata", "scsi", "usb"), help="for guests without virtio: sata"
    )
    parser.add_argument("--nic", metavar="MODEL", help="for guests without virtio: e1000e")
    parser.add_argument("--video", metavar="MODEL", help="screen: vga, virtio, none")
    parser.add_argument("--agent", action="store_true", default=None, help="it runs the QEMU guest agent")
    cloud = parser.add_argument_group("cloud images")
    cloud.add_argument("--user", metavar="USER", help="a user that may use sudo")
    words.free(
        cloud.add_argument(
            "--password", metavar="WORD", help="the user's password, for the screen and the serial line"
        )
    )
    cloud.add_argument(
        "--ssh-key", metavar="FILE", action="append", default=[], help="a public key that may log in"
    )
    cloud.add_argument("--hostname", metavar="NAME", help="name of the host")
    cloud.add_argument("--user-data", metavar="FILE", help="your own cloud-config instead")


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Image:
    """Return the new image."""
    options = {
        name: value
        for name in (
            "sha256",
            "clean",
            "backing",
            "memory",
            "vcpus",
            "firmware",
            "kernel",
            "initrd",
            "cmdline",
            "disk_bus",
            "nic",
            "video",
            "agent",
        )
        if (value := getattr(args, name)) not in (None, "", [])
    }
    if cloud := _cloud(args):
        options["cloud_init"] = cloud
    with ui.progress(f"import {args.name}") as progress:
        return lab.import_image(args.name, args.source, progress=progress, **options)
