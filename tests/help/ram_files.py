"""Mapped-ram files as QEMU writes them, without a QEMU."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np

from vmlab.engine import mapped_ram
from vmlab.engine.mapped_ram import PAGE, STREAM_OFFSET
from vmlab.errors import SnapshotDamaged

MIB = 1 << 20
DEVICES = b"\x04device state and its description" * 40


def write_stream(
    path: Path,
    blocks: dict[str, dict[int, bytes]],
    *,
    sizes: dict[str, int] | None = None,
    machine: str = "pc-q35-10.0",
) -> Path:
    """Write a stream as QEMU does: ``{block: {page number: content}}``."""
    sizes = sizes or {}
    used = {name: sizes.get(name, 16 * PAGE) for name in blocks}
    with path.open("wb") as file:
        file.seek(STREAM_OFFSET)
        file.write(b"QEVM" + struct.pack(">I", 3))
        file.write(b"\x07" + struct.pack(">I", len(machine)) + machine.encode())
        name = b"configuration/capabilities"
        file.write(b"\x05" + bytes([len(name)]) + name + struct.pack(">II", 1, 1) + b"\x0amapped-ram")
        file.write(b"\x01" + struct.pack(">I", 1) + b"\x03ram" + struct.pack(">II", 0, 4))
        file.write(struct.pack(">Q", sum(-(-u // PAGE) * PAGE for u in used.values()) | 4))
        for block, pages in blocks.items():
            count = -(-used[block] // PAGE)
            file.write(bytes([len(block)]) + block.encode() + struct.pack(">Q", used[block]))
            bitmap = file.tell() + 28
            start = -(-(bitmap + -(-count // 64) * 8) // MIB) * MIB
            file.write(struct.pack(">IQQQ", 1, PAGE, bitmap, start))
            bits = np.zeros(-(-count // 64) * 64, bool)
            bits[list(pages)] = True
            file.write(np.packbits(bits, bitorder="little").tobytes())
            for number, content in pages.items():
                file.seek(start + number * PAGE)
                file.write(content.ljust(PAGE, b"\0")[: used[block] - number * PAGE])
            file.truncate(max(os.fstat(file.fileno()).st_size, start + used[block]))
            file.seek(start + used[block])
        file.write(mapped_ram._EOS + b"\x7e" + struct.pack(">I", 1))
        file.write(DEVICES)
    return path


def is_plain(error: SnapshotDamaged) -> None:
    """One sentence, and the next step."""
    assert error.message.endswith(".")
    assert error.hint
