"""Make a machine from an image and start it.

The image is 'tiny' unless you name another; `images` lists them. A machine with the image's own memory and
CPUs starts from its booted state in well under a second; other sizes boot.

Other accounts of this host cannot get at a machine, but for two things: a forwarded port answers every one of
them, and `ps` shows them the machine's name, hardware, kernel arguments and the paths of its files.

Examples
--------
create web                                        # a small guest with a shell
create d1 desktop                                 # a desktop with windows
create big desktop --memory 1G --vcpus 2 --disk 10G
create web --forward 8080:80                      # port 80 of the guest is localhost:8080
create web --way-out none                         # no network at all
create db --nic lan                               # and a card in a network of the lab: `network` lists them
create web --reuse                                # the one that is there, if its hardware is the same
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vmlab.commands import _arguments as words
from vmlab.commands import _names

if TYPE_CHECKING:
    from vmlab.commands.ui import UI
    from vmlab.lab import Lab
    from vmlab.machine import Machine

GROUP = "machines"
ORDER = 1

PLACES = ("disk", "cdrom", "network")


def _order(text: str) -> tuple[str, ...]:
    places = tuple(text.split(","))
    if unknown := [place for place in places if place not in PLACES]:
        raise argparse.ArgumentTypeError(
            f"{unknown[0]!r} is no place to boot from; write some of {','.join(PLACES)}"
        )
    return places


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("name", metavar="NAME", help="name of the new machine")
    words.completed(
        parser.add_argument(
            "image", metavar="IMAGE", nargs="?", default="tiny", help="what to make it from (default: tiny)"
        ),
        _names.images,
    )
    hardware = parser.add_argument_group("hardware")
    hardware.add_argument("-m", "--memory", type=words.memory, metavar="SIZE", help="RAM, such as 512M or 1G")
    hardware.add_argument("-c", "--vcpus", type=words.count, metavar="N", help="virtual CPUs")
    hardware.add_argument(
        "--disk", type=words.size, metavar="SIZE", help="size of the system disk, such as 10G"
    )
    hardware.add_argument(
        "--add-disk",
        dest="disks",
        type=words.size,
        metavar="SIZE",
        action="append",
        default=[],
        help="one more empty disk",
    )
    hardware.add_argument(
        "-f",
        "--forward",
        dest="forwards",
        type=words.forward,
        metavar="HOST:GUEST",
        action="append",
        default=[],
        help="bring a port of the guest to a port of this host, such as 8080:80; 0:80 takes any free one",
    )
    hardware.add_argument(
        "--way-out",
        "--network",
        dest="way_out",
        choices=("internet", "site", "host", "none", "user"),
        metavar="WHERE",
        help="internet (default): the outside, but not this host; site: also private nets; "
        "host: also this host's own ports; none: no network card",
    )
    hardware.add_argument(
        "--nic",
        dest="nics",
        metavar="NETWORK[=ADDRESS]",
        action="append",
        default=[],
        help="one more network card, plugged into a network of the lab, such as lan or lan=10.1.0.20",
    )
    hardware.add_argument(
        "--sound", action=argparse.BooleanOptionalAction, default=None, help="with or without a sound card"
    )
    hardware.add_argument("--video", metavar="MODEL", help="screen: vga, virtio, qxl, none")
    hardware.add_argument(
        "--accel",
        dest="accelerator",
        choices=("kvm", "tcg"),
        help="how its CPU is run; default: the best here",
    )
    booting = parser.add_argument_group("booting")
    booting.add_argument("--firmware", choices=("bios", "uefi"), help="what boots it")
    booting.add_argument("--boot", metavar="ORDER", type=_order, help="where from, such as cdrom,disk")
    words.free(booting.add_argument("--kernel-args", metavar="TEXT", help="more kernel arguments"))
    booting.add_argument(
        "--bake",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="keep the booted state of this size, so that the next one starts at once",
    )
    words.clock(parser, default="now")
    parser.add_argument("--no-start", dest="start", action="store_false", help="make it, but leave it off")
    parser.add_argument(
        "--reuse",
        action="store_true",
        help="use the machine of that name if it is there, with the same hardware",
    )
    words.force(parser)


def run(lab: Lab, args: argparse.Namespace, ui: UI) -> Machine:
    """Return the new machine."""
    with ui.progress(f"create {args.name}") as progress:
        return lab.create(
            args.name,
            args.image,
            memory=args.memory,
            vcpus=args.vcpus,
            disk=args.disk,
            disks=tuple(args.disks),
            firmware=args.firmware,
            boot=args.boot,
            way_out=args.way_out,
            nics=tuple(args.nics),
            forwards=tuple(args.forwards),
            sound=args.sound,
            video=args.video,
            accelerator=args.accelerator,
            kernel_args=args.kernel_args,
            clock=args.clock,
            start=args.start,
            bake=args.bake,
            force=args.force,
            reuse=args.reuse,
            progress=progress,
        )
