"""``desktop``: Debian with X, a window manager, a terminal, a clock, eyes, and music."""

from __future__ import annotations

from pathlib import Path

from vmlab.images import artwork
from vmlab.images.bootstrap import bootstrap
from vmlab.images.disks import ext4_disk
from vmlab.images.recipe import Bench, Recipe, data_file
from vmlab.images.spec import ImageSpec
from vmlab.images.tiny import MODULES as BOOT_MODULES
from vmlab.images.trees import FileTree, Modules, initramfs

PACKAGES = [
    "systemd-sysv", "udev", "kmod", "procps", "iproute2", "iputils-ping", "less", "nano", "busybox", "e2fsprogs",
    "qemu-guest-agent", "python3", "xserver-xorg-core", "xserver-xorg-input-libinput", "xinit", "x11-utils", "x11-apps",
    "xterm", "icewm", "fonts-dejavu-core", "xdotool", "sox", "libsox-fmt-alsa", "alsa-utils",
]  # fmt: skip

#: Left out of the packages: manuals and translations, the 3D renderer (LLVM is larger than all of X), and readers of
#: picture formats and fonts that the window manager could load but nobody here has.
_LIB = "/usr/lib/x86_64-linux-gnu"
LEFT_OUT = [
    "/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/lintian/*",
    f"{_LIB}/dri/*", f"{_LIB}/libLLVM*", f"{_LIB}/libz3.so*", f"{_LIB}/libgs.so*", f"{_LIB}/libx265.so*",
    "/usr/share/ghostscript/*", "/usr/share/poppler/*", "/usr/share/groff/*", "/usr/share/sounds/alsa/*",
    "/usr/share/fonts/opentype/*", "/usr/share/fonts/type1/*", "/usr/share/fonts/X11/Type1/*",
]  # fmt: skip
KEPT = ["/usr/share/doc/*/copyright"]

#: Drivers for every device that QEMU's machines usually have; patterns. The rest of Debian's 390 MB is left out.
MODULES = [
    *BOOT_MODULES,
    "virtio*", "9pnet_virtio", "sd_mod", "sr_mod", "ahci", "ata_piix", "nvme", "usb_storage", "loop", "dm_mod",
    "dm_snapshot", "overlay", "fuse", "squashfs", "isofs", "udf", "vfat", "msdos", "nls_*", "autofs4", "configfs",
    "binfmt_misc", "zram", "bochs", "cirrus", "qxl", "psmouse", "usbhid", "hid_generic", "uinput", "joydev", "mousedev",
    "xhci_pci", "ehci_pci", "uhci_hcd", "ohci_pci", "snd_hda_intel", "snd_hda_codec_generic", "snd_intel8x0",
    "snd_usb_audio", "snd_seq", "snd_pcm_oss", "e1000", "e1000e", "8139cp", "8139too", "tun", "veth", "bridge", "dummy",
    "macvlan", "8021q", "bonding", "wireguard", "ip_tables", "iptable_*", "ip6table_*", "xt_*", "nf_*", "nft_*",
    "sch_*", "i2c_i801", "lpc_ich", "i6300esb", "itco_wdt", "qemu_fw_cfg", "sg", "tcp_bbr", "pcspkr",
]  # fmt: skip

SIZE = 4 << 30
CMDLINE = (
    "root=LABEL=vmlab rw console=tty0 console=ttyS0 quiet panic=0 net.ifnames=0 mitigations=off lsm=capability "
    "audit=0 no_timer_check random.trust_cpu=on cryptomgr.notests systemd.show_status=0 consoleblank=0 "
    "vt.global_cursor_default=0"
)

#: Files of vmlab/images/files/desktop and their place in the guest; programs last.
_FILES = {
    "bashrc": "etc/vmlab/bashrc",
    "motd": "etc/vmlab/motd",
    "asoundrc": "etc/asound.conf",
    "xorg.conf": "etc/X11/xorg.conf",
    "Xdefaults": "etc/vmlab/Xdefaults",
    "preferences": "etc/icewm/preferences",
    "menu": "etc/icewm/menu",
    "toolbar": "etc/icewm/toolbar",
    "default.theme": "usr/share/icewm/themes/vmlab/default.theme",
    "getty-autologin.conf": "etc/systemd/system/serial-getty@.service.d/autologin.conf",
    "agent-display.conf": "etc/systemd/system/qemu-guest-agent.service.d/display.conf",
    "vmlab-desktop.service": "etc/systemd/system/vmlab-desktop.service",
    "vmlab-network.service": "etc/systemd/system/vmlab-network.service",
    "vmlab-power.service": "etc/systemd/system/vmlab-power.service",
    "vmlab-grow.service": "etc/systemd/system/vmlab-grow.service",
}
_PROGRAMS = {
    "setup": "etc/vmlab/setup",
    "session": "usr/lib/vmlab/session",
    "user-session": "usr/lib/vmlab/user-session",
    "welcome": "usr/lib/vmlab/welcome",
    "network": "usr/lib/vmlab/network",
    "wait-for-screen": "usr/lib/vmlab/wait-for-screen",
    "music": "usr/local/bin/music",
    "powerbtn": "etc/acpi/PWRF/00000080",
}


def make(bench: Bench) -> ImageSpec:
    """Install the packages in a folder of their own, add ours, and write kernel, initramfs and disk."""
    kernel = bench.apt.newest("linux-image-amd64")
    release = kernel.removeprefix("linux-image-")
    unpacked = bench.work / "kernel"
    packages = bench.apt.extract([kernel, "busybox-static"], unpacked)
    modules = Modules(unpacked / "lib" / "modules" / release)

    bench.progress("drawing the wallpaper and playing the tune", None)
    overlay = bench.work / "overlay.tar"
    own_files(unpacked, release, modules).write_tar(overlay)

    tar = bench.work / "root.tar"
    packages += bootstrap(bench, PACKAGES, tar, overlay, ["/etc/vmlab/setup"], left_out=LEFT_OUT, kept=KEPT)

    bench.progress("writing kernel, initramfs and disk", 0.95)
    (bench.folder / "vmlinuz").write_bytes((unpacked / "boot" / f"vmlinuz-{release}").read_bytes())
    small = initramfs(
        unpacked / "bin" / "busybox", modules.closure(BOOT_MODULES), data_file("initramfs-init").decode()
    )
    small.write_initramfs(bench.folder / "initrd.img")
    ext4_disk(bench.account, tar, bench.folder / "disk.qcow2", SIZE, "desktop")
    return ImageSpec(
        name=RECIPE.name,
        title=RECIPE.title,
        memory=RECIPE.memory,
        boot={"kernel": "vmlinuz", "initrd": "initrd.img", "cmdline": CMDLINE},
        disks=[{"file": "disk.qcow2", "format": "qcow2", "size": SIZE}],
        sound=True,
        agent=True,
        ready={"agent": True, "command": "test -e /run/vmlab-ready", "settle": 3.0, "timeout": 300},
        packages=packages,
    )


def own_files(unpacked: Path, release: str, modules: Modules) -> FileTree:
    """Return what is laid over the installed packages: configuration, artwork, kernel modules."""
    tree = FileTree()
    for table, mode in ((_FILES, 0o644), (_PROGRAMS, 0o755)):
        for name, place in table.items():
            tree.file(place, data_file("desktop", name), mode)
    tree.file("usr/lib/vmlab/udhcpc", data_file("tiny", "udhcpc"), 0o755)
    tree.file("usr/share/vmlab/wallpaper.png", artwork.wallpaper())
    tree.file("usr/share/vmlab/tune.wav", artwork.tune())
    for name, text in artwork.theme().items():
        tree.file(f"usr/share/icewm/themes/vmlab/{name}", text)
    tree.file("etc/systemd/journald.conf.d/vmlab.conf", "[Journal]\nStorage=volatile\nRuntimeMaxUse=8M\n")
    # The loader of each module is found by depmod, in the guest's setup.
    whole = unpacked / "lib" / "modules" / release
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        tree.copy(whole / name, f"usr/lib/modules/{release}/{name}", 0o644)
    for module in modules.closure(MODULES):
        tree.copy(module, f"usr/lib/modules/{release}/{module.relative_to(whole)}", 0o644)
    tree.copy(unpacked / "boot" / f"config-{release}", f"boot/config-{release}", 0o644)
    return tree


RECIPE = Recipe(
    name="desktop",
    title="Debian 12 desktop",
    description="Debian with X, IceWM, a terminal, a clock, eyes that follow the pointer, and music.",
    memory=512,
    vcpus=1,
    space=2200 << 20,
    make=make,
    parts=("artwork.py", "bootstrap.py", "tiny.py"),
    needs={
        "apt-get": "apt",
        "dpkg-deb": "dpkg",
        "mmdebstrap": "mmdebstrap",
        "mke2fs": "e2fsprogs",
        "qemu-img": "qemu-utils",
    },
)
