"""What people call the parts of a simulated PC, by QEMU's names for them."""

from __future__ import annotations

import re

#: QEMU's name of a device -> ours. Names with ``{}`` take the device's number.
DEVICES = {
    "timer": "clock of the virtual machine",
    "cpu_common": "CPU {}, run state",
    "cpu": "CPU {}",
    "kvm-tpr-opt": "task priority (KVM)",
    "kvmclock": "KVM clock",
    "apic": "interrupt controller of CPU {} (APIC)",
    "ioapic": "interrupt controller (I/O APIC)",
    "i8259": "interrupt controller (PIC {})",
    "i8254": "timer (PIT)",
    "hpet": "timer (HPET)",
    "mc146818rtc": "clock (RTC)",
    "pcspk": "PC speaker",
    "dma": "DMA controller {}",
    "ps2kbd": "keyboard",
    "pckbd": "keyboard controller",
    "ps2mouse": "pointer (PS/2 mouse)",
    "vmmouse": "pointer (VMware mouse)",
    "usb-tablet": "pointer (USB tablet)",
    "usb-mouse": "pointer (USB mouse)",
    "usb-kbd": "keyboard (USB)",
    "virtio-input": "pointer (virtio tablet)",
    "port92": "A20 gate and reset (port 92)",
    "serial": "serial port {}",
    "virtio-console": "agent channel and consoles (virtio)",
    "virtio-blk": "disk queue",
    "virtio-scsi": "disk controller (virtio SCSI)",
    "ich9_ahci": "disk controller (SATA)",
    "ide": "disk controller (IDE)",
    "nvme": "disk controller (NVMe)",
    "fdc": "floppy controller",
    "virtio-net": "network card",
    "e1000": "network card",
    "e1000e": "network card",
    "rtl8139": "network card",
    "slirp": "user-mode network",
    "virtio-rng": "random numbers (virtio)",
    "virtio-gpu": "display adapter",
    "virtio-vga": "display adapter",
    "vga": "display adapter",
    "vga-pci": "display adapter",
    "cirrus_vga": "display adapter",
    "qxl": "display adapter",
    "bochs-display": "display adapter",
    "ramfb": "display adapter (RAM)",
    "ac97": "sound",
    "intel-hda": "sound controller",
    "hda-audio": "sound",
    "es1370": "sound",
    "sb16": "sound",
    "virtio-snd": "sound",
    "fw_cfg": "firmware configuration",
    "acpi_build": "ACPI tables",
    "mch": "chipset (memory controller)",
    "ICH9LPC": "chipset (power management)",
    "piix4_pm": "chipset (power management)",
    "ich9_smb": "chipset (SMBus)",
    "PIIX3": "chipset (ISA bridge)",
    "I440FX": "chipset (memory controller)",
    "i2c_bus": "I2C bus {}",
    "PCIHost": "PCI configuration port",
    "PCIBUS": "PCI bus {}",
    "pcie-root-port": "PCI Express port",
    "pcie-pci-bridge": "PCI bridge",
    "xhci": "USB controller",
    "ehci": "USB controller",
    "uhci": "USB controller",
    "vmgenid": "VM generation ID",
    "vmcoreinfo": "crash information",
    "pvpanic-pci": "panic notification",
    "pflash_cfi01": "firmware flash {}",
    "tpm-crb": "TPM",
    "tpm-tis": "TPM",
    "globalstate": "run state of the virtual machine",
}

_GENERAL = ("RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", *(f"R{n}" for n in range(8, 16)))
_SEGMENTS = ("ES", "CS", "SS", "DS", "FS", "GS")

#: Parts of paths that are only how QEMU nests its structures.
_NESTING = re.compile(r"^(?:(?:parent_obj|dev|state|s|d|vga|kbd|env)\.)+")

#: ``(kind of device, pattern of the path without nesting)`` -> name; ``\1`` ... take what the pattern found.
_FIELDS: list[tuple[str, str, str]] = [
    ("timer", r"cpu_ticks_offset", "time stamp counter, offset (ticks)"),
    ("timer", r"cpu_clock_offset", "virtual time (ns)"),
    ("cpu_common", r"halted", "halted"),
    ("cpu_common", r"interrupt_request", "pending interrupts"),
    ("cpu", r"eip", "RIP"),
    ("cpu", r"eflags", "RFLAGS"),
    ("cpu", r"cr\[(\d+)\]", r"CR\1"),
    ("cpu", r"dr\[(\d+)\]", r"DR\1"),
    ("cpu", r"(ldt|tr|gdt|idt)\.(\w+)", r"{\1} \2"),
    ("cpu", r"xmm_regs\[0\]\[(\d+)\]\._q_ZMMReg\[0\]", r"XMM\1, low half"),
    ("cpu", r"xmm_regs\[0\]\[(\d+)\]\._q_ZMMReg\[1\]", r"XMM\1, high half"),
    ("cpu", r"xmm_regs\[1\]\[(\d+)\]\._q_ZMMReg\[(\d)\]", r"YMM\1, part \2"),
    ("cpu", r"fpregs\[(\d+)\]\.tmp.*", r"ST\1"),
    ("cpu", r"(fpuc|fpus|fptag)_?\w*", r"{\1}"),
    ("cpu", r"(efer|star|lstar|cstar|pat|tsc|mxcsr|xcr0)", r"{\1}"),
    ("cpu", r"kernelgsbase", "KERNEL_GS_BASE"),
    ("apic", r"initial_count", "timer, initial count"),
    ("apic", r"initial_count_load_time", "timer, loaded at (ns)"),
    ("apic", r"next_time", "timer, next interrupt (ns)"),
    ("apic", r"timer_expiry", "timer, expires (ns)"),
    ("apic", r"(isr|irr|tmr|lvt|icr)\[(\d+)\]", r"{\1} \2"),
    ("apic", r"tpr", "task priority"),
    ("ioapic", r"ioredtbl\[(\d+)\]", r"line \1, redirection"),
    ("ioapic", r"irr", "requested lines"),
    ("i8254", r"channels\[(\d)\]\.count", r"channel \1, count"),
    ("i8254", r"channels\[(\d)\]\.count_load_time", r"channel \1, loaded at (ns)"),
    ("i8254", r"channels\[(\d)\]\.next_transition_time", r"channel \1, next change (ns)"),
    ("i8254", r"channels\[(\d)\]\.(\w+)", r"channel \1, \2"),
    ("i8259", r"(irr|imr|isr)", r"{\1}"),
    ("mc146818rtc", r"next_alarm_time", "next alarm (ns)"),
    ("mc146818rtc", r"base_rtc", "time it was set to (s)"),
    ("mc146818rtc", r"last_update", "last update (ns)"),
    ("mc146818rtc", r"periodic_timer", "periodic interrupt"),
    ("mc146818rtc", r"cmos_index", "selected register"),
    ("ps2kbd", r"ps2kbd/ledstate\.ledstate", "LEDs"),
    ("ps2kbd", r"scan_enabled", "scanning"),
    ("ps2kbd", r"scancode_set", "scan code set"),
    ("ps2kbd", r"queue\.(\w+)", r"queue, \1"),
    ("ps2kbd", r"write_cmd", "command that waits for its data"),
    ("pckbd", r"write_cmd", "command that waits for its data"),
    ("ps2mouse", r"mouse_d([xyz])", r"movement \1"),
    ("ps2mouse", r"mouse_(\w+)", r"\1"),
    ("ps2mouse", r"queue\.(\w+)", r"queue, \1"),
    ("vmmouse", r"queue\[(\d+)\]", r"queue \1"),
    ("serial", r"divider", "divisor"),
    ("serial", r"rbr", "received byte"),
    ("serial", r"ier", "interrupts enabled"),
    ("serial", r"iir", "interrupt identification"),
    ("serial", r"lcr", "line control"),
    ("serial", r"mcr", "modem control"),
    ("serial", r"lsr", "line status"),
    ("serial", r"msr", "modem status"),
    ("serial", r"scr", "scratch"),
    ("serial", r"fcr_vmstate", "FIFO control"),
    ("ac97", r"bm_regs\[0\]\.(\w+(?:\.\w+)?)", r"recording, {\1}"),
    ("ac97", r"bm_regs\[1\]\.(\w+(?:\.\w+)?)", r"playback, {\1}"),
    ("ac97", r"bm_regs\[2\]\.(\w+(?:\.\w+)?)", r"microphone, {\1}"),
    ("ac97", r"glob_cnt", "global control"),
    ("ac97", r"glob_sta", "global status"),
    ("vga", r"vbe_start_addr", "start of the picture"),
    ("vga", r"palette", "palette"),
    ("ICH9LPC", r"pm\.acpi_regs\.tmr\.overflow_time", "power management timer, overflow"),
    ("ICH9LPC", r"pm\.acpi_regs\.(\w+)\.evt\.sts", r"\1, events"),
    ("ICH9LPC", r"pm\.acpi_regs\.(\w+)\.evt\.en", r"\1, events enabled"),
    ("fw_cfg", r"cur_entry", "selected entry"),
    ("fw_cfg", r"cur_offset\[1\]", "read position"),
    ("globalstate", r"runstate", "state"),
]  # fmt: skip
_COMPILED = [(kind, re.compile(pattern), name) for kind, pattern, name in _FIELDS]

#: What stands in braces in the names above.
_SHORT = {
    "ldt": "LDT", "tr": "TR", "gdt": "GDT", "idt": "IDT", "fpuc": "FPU control", "fpus": "FPU status",
    "fptag": "FPU tags", "efer": "EFER", "star": "STAR", "lstar": "LSTAR", "cstar": "CSTAR", "pat": "PAT",
    "tsc": "TSC", "mxcsr": "MXCSR", "xcr0": "XCR0", "isr": "in service", "irr": "requested", "imr": "masked",
    "tmr": "trigger mode", "lvt": "local vector", "icr": "interrupt command", "civ": "current buffer",
    "lvi": "last valid buffer", "picb": "samples left in the buffer", "piv": "next buffer", "sr": "status",
    "cr": "control", "bdbar": "buffer list", "bd_valid": "buffer loaded", "bd.addr": "buffer address",
    "bd.ctl_len": "buffer length and flags",
}  # fmt: skip

#: Registers of the RTC's memory (MC146818A; 0x32 by ACPI's FADT in QEMU).
CMOS = {
    0x00: "seconds", 0x01: "alarm, seconds", 0x02: "minutes", 0x03: "alarm, minutes", 0x04: "hours",
    0x05: "alarm, hours", 0x06: "day of the week", 0x07: "day", 0x08: "month", 0x09: "year",
    0x0A: "register A (rate)", 0x0B: "register B (interrupts, format)", 0x0C: "register C (interrupt flags)",
    0x0D: "register D", 0x32: "century",
}  # fmt: skip

#: The standard header of PCI configuration space: offset -> (bytes, name).
PCI = {
    0x00: (2, "vendor"), 0x02: (2, "device"), 0x04: (2, "command"), 0x06: (2, "status"), 0x08: (1, "revision"),
    0x0C: (1, "cache line size"), 0x0D: (1, "latency timer"), 0x10: (4, "BAR 0"), 0x14: (4, "BAR 1"),
    0x18: (4, "BAR 2"), 0x1C: (4, "BAR 3"), 0x20: (4, "BAR 4"), 0x24: (4, "BAR 5"), 0x30: (4, "ROM address"),
    0x3C: (1, "interrupt line"), 0x3D: (1, "interrupt pin"),
}  # fmt: skip

#: The queues of virtio devices, in the order of the specification.
QUEUES = {
    "virtio-blk": ("requests",),
    "virtio-net": ("receive", "transmit", "control"),
    "virtio-rng": ("requests",),
    "virtio-input": ("events", "status"),
    "virtio-console": ("receive 0", "transmit 0", "control receive", "control transmit", "receive 1", "transmit 1"),
    "virtio-gpu": ("control", "cursor"),
}  # fmt: skip

#: The flags of RFLAGS: bit, name.
FLAGS = ((0, "CF"), (2, "PF"), (4, "AF"), (6, "ZF"), (7, "SF"), (8, "TF"), (9, "IF"), (10, "DF"), (11, "OF"),
          (14, "NT"), (16, "RF"), (17, "VM"), (18, "AC"), (19, "VIF"), (20, "VIP"), (21, "ID"))  # fmt: skip


def flags(value: int) -> str:
    """Return the flags that are set in RFLAGS, by name: ``PF ZF IF``."""
    return " ".join(name for bit, name in FLAGS if value >> bit & 1)


def leds(value: int) -> str:
    """Return which LEDs of a PS/2 keyboard are on."""
    on = [name for bit, name in ((1, "scroll lock"), (2, "num lock"), (4, "caps lock")) if value & bit]
    return ", ".join(on) or "off"


def device(name: str, instance: int) -> str:
    """Return what people call a device of the stream."""
    kind = name.rpartition("/")[2]
    known = DEVICES.get(kind)
    if known is None:
        return kind if instance == 0 else f"{kind} {instance}"
    return known.format(instance)


def field(kind: str, path: str) -> str:
    """Return what people call a field of a ``kind`` of device; QEMU's own name without its nesting if nothing else."""
    short = _NESTING.sub("", path)
    if kind == "cpu":
        if match := re.fullmatch(r"regs\[(\d+)\]", short):
            return _GENERAL[int(match[1])] if int(match[1]) < len(_GENERAL) else short
        if match := re.fullmatch(r"segs\[([0-5])\]\.(\w+)", short):
            return f"{_SEGMENTS[int(match[1])]} {match[2]}"
    for of_kind, pattern, name in _COMPILED:
        if of_kind == kind and (match := pattern.fullmatch(short)):
            return re.sub(r"\{([\w.]+)\}", lambda m: _SHORT.get(m[1], m[1]), match.expand(name))
    return short
