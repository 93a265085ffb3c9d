"""Registers: QEMU's own report, taken apart and compared."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import pytest
from help.paused_qemu import QEMU, paused_qemu
from hypothesis import given
from hypothesis import strategies as st

from vmlab.compare.registers import compare_registers, parse_registers, read_registers
from vmlab.compare.state import Files
from vmlab.errors import SnapshotDamaged, WrongState

#: As QEMU 10.0 writes it for a Linux guest in long mode.
LINUX = """
CPU#0
RAX=000000000001ad40 RBX=0000000000000000 RCX=0000000000000000 RDX=4000000000000000
RSI=0000000000000083 RDI=0000000000003c1c RBP=ffffffff86e1aa40 RSP=ffffffff86e03e98
R8 =0000000000023000 R9 =0000000000000007 R10=00000000fffffffb R11=0000000000000001
R12=0000000000000000 R13=0000000000000000 R14=0000000000000000 R15=0000000000014790
RIP=ffffffff85e592eb RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1
ES =0000 0000000000000000 00000000 00000000
CS =0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]
GS =0000 ffff8abc1f000000 00000000 00000000
LDT=0000 0000000000000000 00000000 00008200 DPL=0 LDT
TR =0040 fffffe0000003000 00004087 00008900 DPL=0 TSS64-avl
GDT=     fffffe0000001000 0000007f
IDT=     fffffe0000000000 00000fff
CR0=80050033 CR2=00007f8811254000 CR3=0000000007274000 CR4=000006f0
DR0=0000000000000000 DR1=0000000000000000 DR2=0000000000000000 DR3=0000000000000000
DR6=00000000ffff0ff0 DR7=0000000000000400
CCS=0000000000000044 CCD=0000000000000000 CCO=EFLAGS
EFER=0000000000000d01
FCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001fa0
FPR0=c90fdaa22168c235 4000 FPR1=0000000000000000 0000
XMM00=0000000000003e6a 0000000000000001 XMM01=0000000000003e6a 0000000000000000
"""


def state(folder: Path, name: str, text: str) -> Files:
    (folder / name).write_text(text)
    return Files(name, registers=folder / name)


def test_every_number_of_the_report_has_a_name() -> None:
    (cpu,) = parse_registers(LINUX)
    values = {name: str(register) for name, register in cpu.items()}
    assert values["R8"] == "0000000000023000"
    assert values["RIP"] == "ffffffff85e592eb"
    assert values["RFLAGS"] == "00000246"
    assert [name for name in cpu if cpu[name].group == "flags" and values[name] == "1"] == ["PF", "ZF", "IF"]
    assert (values["CS"], values["CS limit"], values["CS flags"]) == ("0010", "ffffffff", "00af9b00")
    assert values["GS base"] == "ffff8abc1f000000"
    assert (values["TR base"], values["GDT limit"]) == ("fffffe0000003000", "0000007f")
    assert (values["CR3"], values["DR6"], values["EFER"]) == (
        "0000000007274000",
        "00000000ffff0ff0",
        "0000000000000d01",
    )
    # Pi as an 80-bit number: sign and exponent, then the mantissa.
    assert values["FPR0"] == "4000c90fdaa22168c235"
    assert values["XMM00"] == "0000000000003e6a0000000000000001"
    assert (values["HLT"], values["CPL"], values["MXCSR"]) == ("1", "0", "00001fa0")
    assert "CCS" not in cpu


def test_what_differs(tmp_path: Path) -> None:
    other = LINUX.replace("RAX=000000000001ad40", "RAX=0000000000000001").replace(
        "RFL=00000246", "RFL=00000247"
    )
    other = other.replace("XMM01=0000000000003e6a", "XMM01=1000000000003e6a")
    diff = compare_registers(state(tmp_path, "one", LINUX), state(tmp_path, "two", other))
    assert [change.name for change in diff] == ["RAX", "RFLAGS", "CF", "XMM01"]
    assert str(diff["RAX"]) == "RAX: 000000000001ad40 -> 0000000000000001"
    assert str(diff["CF"]) == "CF: 0 -> 1"
    assert diff["XMM01"].shown(diff["XMM01"].after) == "1000000000003e6a 0000000000000000"
    assert "RIP" not in diff
    assert diff.summary.startswith("3 of ")
    assert json.loads(json.dumps(diff.to_json()))["changes"][0] == {
        "cpu": 0, "name": "RAX", "group": "general", "before": "000000000001ad40", "after": "0000000000000001",
    }  # fmt: skip
    same = compare_registers(diff_state := state(tmp_path, "one", LINUX), diff_state)
    assert not same
    assert same.summary.startswith("None of the")


def test_a_cpu_that_went_from_32_to_64_bits_keeps_its_names(tmp_path: Path) -> None:
    old = "\nCPU#0\nEAX=00000001 EBX=00000002 ECX=00000000 EDX=00000000\nEIP=0000fff0 EFL=00000002 [-------] CPL=0\n"
    diff = compare_registers(state(tmp_path, "boot", old), state(tmp_path, "linux", LINUX))
    assert (diff["RAX"].before, diff["RAX"].after) == (1, 0x1AD40)
    assert "EAX" not in diff
    assert diff["R8"].before is None


def test_more_cpus(tmp_path: Path) -> None:
    two = LINUX + LINUX.replace("CPU#0", "CPU#1")
    diff = compare_registers(state(tmp_path, "one", LINUX), state(tmp_path, "two", two))
    assert diff.summary == "The machine had 1 CPUs and has 2."
    assert diff[1, "RAX"].before is None
    moved = two.replace("R9 =0000000000000007", "R9 =0000000000000008")
    diff = compare_registers(state(tmp_path, "two", two), state(tmp_path, "moved", moved))
    assert [(change.cpu, change.name) for change in diff] == [(0, "R9"), (1, "R9")]


def test_what_is_no_report(tmp_path: Path) -> None:
    for text in ("", "CPU#0\n", "hello"):
        with pytest.raises(SnapshotDamaged, match="cannot be read"):
            read_registers(state(tmp_path, "bad", text))
    with pytest.raises(SnapshotDamaged):
        read_registers(Files("gone", registers=tmp_path / "none"))
    with pytest.raises(WrongState, match="offline"):
        read_registers(Files("off"))


@given(st.text(max_size=300) | st.lists(st.sampled_from(LINUX.split(" ")), max_size=60).map(" ".join))
def test_any_text_is_a_report_or_not(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert parse_registers("CPU#0\nRAX=1\n" + text)[0]["RAX"].group == "general"


@pytest.mark.skipif(QEMU is None, reason="needs qemu-system-x86_64")
def test_a_real_report_is_read_whole() -> None:
    """Each hexadecimal number that QEMU writes is in one of the registers."""
    with paused_qemu("-machine", "q35", "-cpu", "max", "-m", "8", "-smp", "2") as qemu:
        report = qemu.hmp("info registers -a")
    cpus = parse_registers(report)
    assert len(cpus) == 2
    assert cpus[0]["EIP"].value == 0xFFF0
    assert cpus[0]["CS base"].value == 0xFFFF0000
    assert cpus[0]["EDX"].value == int(re.findall(r"EDX=([0-9a-f]+)", report)[0], 16)
    written = set(re.findall(r"\b([A-Z][A-Za-z0-9]*) *=", report)) - {"EFL", "RFL", "CCS", "CCD", "CCO"}
    known = {register.split(" ")[0] for register in cpus[0]}
    assert written <= known
