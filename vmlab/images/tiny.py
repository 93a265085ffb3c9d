"""``tiny``: Debian's kernel, busybox and the guest agent on a small disk. Boots in seconds; dozens fit in a laptop."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from vmlab.errors import BuildFailed
from vmlab.images.disks import ext4_disk
from vmlab.images.recipe import Bench, Recipe, data_file
from vmlab.images.spec import ImageSpec
from vmlab.images.trees import FileTree, Modules, initramfs

#: Loaded before the disk is mounted, in this order: a panic is told to QEMU from the first one on.
MODULES = [
    "pvpanic_pci", "pvpanic_mmio", "virtio_pci", "virtio_blk", "crc32c_generic", "crc32c_intel", "ext4",
    "virtio_net", "virtio_console", "virtio_rng", "button", "evdev",
]  # fmt: skip
PACKAGES = [
    "busybox-static", "qemu-guest-agent", "e2fsprogs", "libc6", "libglib2.0-0", "libpcre2-8-0", "libnuma1", "libudev1",
    "liburing2", "libext2fs2", "libcom-err2", "libblkid1", "libuuid1", "libcap2", "base-files",
]  # fmt: skip
PROGRAMS = ["usr/sbin/qemu-ga", "sbin/resize2fs"]
#: Files of vmlab/images/files/tiny that are programs, and their place in the guest.
_SCRIPTS = {
    "rcS": "etc/init.d/rcS",
    "udhcpc": "etc/udhcpc.script",
    "ticker": "usr/sbin/ticker",
    "agent": "usr/sbin/agent",
    "shutdown": "bin/shutdown",
    "powerbtn": "etc/acpi/PWRF/00000080",
}
SIZE = 1 << 30
CMDLINE = (
    "root=LABEL=vmlab rw console=tty0 console=ttyS0 quiet panic=0 nokaslr net.ifnames=0 mitigations=off "
    "lsm=capability audit=0 no_timer_check random.trust_cpu=on cryptomgr.notests"
)


def make(bench: Bench) -> ImageSpec:
    """Unpack the packages, take what is needed of them, and write kernel, initramfs and disk."""
    kernel = bench.apt.newest("linux-image-amd64")
    unpacked = bench.work / "unpacked"
    packages = bench.apt.extract([kernel, *PACKAGES], unpacked)
    busybox = unpacked / "bin" / "busybox"

    bench.progress("writing kernel and initramfs", None)
    release = kernel.removeprefix("linux-image-")
    (bench.folder / "vmlinuz").write_bytes((unpacked / "boot" / f"vmlinuz-{release}").read_bytes())
    modules = Modules(unpacked / "lib" / "modules" / release)
    initramfs(busybox, modules.closure(MODULES), data_file("initramfs-init").decode()).write_initramfs(
        bench.folder / "initrd.img"
    )

    bench.progress("writing the disk", None)
    tar = bench.work / "tiny.tar"
    root_tree(unpacked, busybox).write_tar(tar)
    ext4_disk(bench.account, tar, bench.folder / "disk.qcow2", SIZE, "tiny")
    return ImageSpec(
        name=RECIPE.name,
        title=RECIPE.title,
        memory=RECIPE.memory,
        boot={"kernel": "vmlinuz", "initrd": "initrd.img", "cmdline": CMDLINE},
        disks=[{"file": "disk.qcow2", "format": "qcow2", "size": SIZE}],
        agent=True,
        tablet=False,
        ready={"agent": True, "command": "test -e /run/vmlab-ready", "settle": 1.0, "timeout": 120},
        packages=packages,
    )


def root_tree(unpacked: Path, busybox: Path) -> FileTree:
    """Return the files of the guest's disk."""
    tree = FileTree()
    tree.folder(
        "dev", "proc", "sys", "run", "mnt", "home", "srv", "var/log", "var/www", "usr/local/bin", "etc/init.d"
    )
    tree.folder("tmp", mode=0o1777)
    tree.folder("root", mode=0o700)
    tree.character_device("dev/console", 5, 1)
    tree.link("var/run", "/run")
    tree.copy(busybox, "bin/busybox", 0o755)
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for applet in applets:
        # Debian's tools are better where we have them, and dpkg without a package system only confuses.
        if applet not in {"busybox", "dpkg", "dpkg-deb", "rpm", "rpm2cpio", "reboot", "linuxrc"}:
            tree.link(f"bin/{applet}", "busybox")
    tree.link("bin/reboot", "busybox")
    tree.link("sbin", "bin")
    for program in PROGRAMS:
        tree.copy(unpacked / program, f"usr/sbin/{Path(program).name}", 0o755)
    for library in libraries(unpacked, PROGRAMS):
        tree.copy(
            library,
            f"lib/x86_64-linux-gnu/{library.name}",
            0o755 if library.name.startswith("ld-") else 0o644,
        )
    tree.link("lib64", "lib/x86_64-linux-gnu")
    tree.copy(unpacked / "usr" / "lib" / "os-release", "etc/os-release", 0o644)
    for name in ("hostname", "hosts", "passwd", "group", "inittab", "profile", "motd"):
        tree.file(f"etc/{name}", data_file("tiny", name))
    tree.file("etc/shadow", "root::19000:0:99999:7:::\nnobody:*:19000:0:99999:7:::\n", 0o600)
    tree.file("etc/resolv.conf", "")
    tree.file("var/www/index.html", "<h1>It works</h1><p>Served by busybox httpd in a vmlab guest.</p>\n")
    for name, place in _SCRIPTS.items():
        tree.file(place, data_file("tiny", name), 0o755)
    return tree


def libraries(root: Path, programs: list[str]) -> list[Path]:
    """Return the shared libraries that programs below ``root`` load, found by the loader that lies there."""
    loader = root / "lib" / "x86_64-linux-gnu" / "ld-linux-x86-64.so.2"
    path = ":".join(str(root / part) for part in ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"))
    found = {"ld-linux-x86-64.so.2": loader}
    for program in programs:
        argv = [str(loader), "--library-path", path, "--list", str(root / program)]
        answer = subprocess.run(argv, capture_output=True, text=True, check=False)
        if answer.returncode or "not found" in answer.stdout:
            raise BuildFailed(f"{program} lacks a library.", output=answer.stdout + answer.stderr)
        for name, place in re.findall(r"^\s*(\S+) => (\S+)", answer.stdout, re.MULTILINE):
            if not os.path.realpath(place).startswith(os.path.realpath(root)):
                raise BuildFailed(f"{program} would load {place} of this machine.", output=answer.stdout)
            found[Path(name).name] = Path(place)
    return list(found.values())


RECIPE = Recipe(
    name="tiny",
    title="Tiny Linux (Debian kernel, busybox)",
    description="A shell, a disk, a network card and the guest agent in 128 MiB; boots in seconds.",
    # In 96 MiB a boot had 15 MiB left with QEMU 10.0.2 and none with 10.0.13, which has queues of 1024 instead of 128
    # entries for the agent's serial port; Linux puts a page into each.
    memory=128,
    vcpus=1,
    space=750 << 20,
    make=make,
    needs={"apt-get": "apt", "dpkg-deb": "dpkg", "mke2fs": "e2fsprogs", "qemu-img": "qemu-utils"},
)
