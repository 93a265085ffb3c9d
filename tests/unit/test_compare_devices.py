"""Devices by name: a real QEMU's streams, taken apart by their own description, and never trusted."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from help.paused_qemu import QEMU, paused_qemu
from help.ram_files import is_plain, write_stream
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmlab.compare import device_names, vmstate
from vmlab.compare.devices import compare_devices, read_devices, virtio
from vmlab.compare.state import Files
from vmlab.engine import mapped_ram
from vmlab.errors import SnapshotDamaged, WrongState

pytestmark = pytest.mark.skipif(QEMU is None, reason="needs qemu-system-x86_64")

MACHINE = (
    "-machine", "pc-q35-10.0,usb=off", "-m", "8", "-vga", "std", "-serial", "null", "-smp", "2",
    "-device", "virtio-blk-pci,drive=d", "-drive", "if=none,id=d,driver=null-co,size=1M",
    "-rtc", "base=2026-01-02T03:04:05,clock=vm",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two states of one machine that never ran: as it starts, and with some devices moved through their ports."""
    path = tmp_path_factory.mktemp("devices")
    with paused_qemu("-machine", "none") as qemu:
        if "pc-q35-10.0" not in str(qemu.qmp("query-machines")):
            pytest.skip("this QEMU does not know the machine type pc-q35-10.0")
    with paused_qemu(*MACHINE) as qemu:
        qemu.save(path / "before")
    with paused_qemu(*MACHINE) as qemu:
        qemu.out(0x60, 0xED, 0x06)  # keyboard: LEDs num lock and caps lock
        qemu.out(0x70, 0x03)  # RTC: the alarm's minutes
        qemu.out(0x71, 0x42)
        qemu.out(0x3FB, 0x83)  # serial: divisor 1
        qemu.out(0x3F8, 1)
        qemu.out(0x3F9, 0)
        qemu.out(0x3FB, 0x03)
        qemu.out(0x43, 0x34)  # timer: channel 0 counts from 0x1234
        qemu.out(0x40, 0x34, 0x12)
        qemu.out(0x21, 0xFB)  # interrupt controller: all masked but line 2
        qemu.save(path / "after")
    return path


@pytest.fixture(scope="module")
def before(folder: Path) -> Files:
    return Files("web/before", folder / "before")


@pytest.fixture(scope="module")
def after(folder: Path) -> Files:
    return Files("web/after", folder / "after")


def without_description(path: Path, target: Path) -> Path:
    """Write the stream as QEMU does when it writes only devices: nothing behind the last of them."""
    data = path.read_bytes()
    target.write_bytes(data[: data.rindex(b"\6", 0, data.index(b'{"configuration"'))])
    return target


def test_what_was_moved_is_named(before: Files, after: Files) -> None:
    diff = compare_devices(before, after)
    seen = {
        (device.name, change.name): (change.before, change.after)
        for device in diff
        for change in device.changes
    }
    assert seen["keyboard", "LEDs"] == ("0 (off)", "6 (num lock, caps lock)")
    assert seen["clock (RTC)", "alarm, minutes"][1] == "42"
    assert seen["serial port 0", "divisor"] == ("12 (9600 baud)", "1 (115200 baud)")
    assert seen["timer (PIT)", "channel 0, count"] == (65536, 0x1234)
    assert seen["interrupt controller (PIC 0)", "masked"][1] == 0xFB
    assert "disk queue" in diff.unchanged
    assert "display adapter" in diff.unchanged
    assert not diff.undescribed
    assert "keyboard" in diff
    assert "ps2kbd" in diff
    assert diff["ps2kbd"] == diff["keyboard"]
    assert "display adapter" not in diff
    assert f"of {len(diff.changed) + len(diff.unchanged)} devices differ" in diff.summary
    json.dumps(diff.to_json())


def test_a_state_does_not_differ_from_itself(before: Files) -> None:
    diff = compare_devices(before, before)
    assert not diff
    assert diff.summary.startswith("None of the")


def test_it_is_fast(before: Files, after: Files) -> None:
    compare_devices(before, after)
    started = time.perf_counter()
    compare_devices(before, after)
    # A tenth of this where nothing else runs.
    assert time.perf_counter() - started < 0.5


def test_every_byte_has_a_name(before: Files) -> None:
    """The sizes of all fields are the whole of each section; the CPU's are those of the architecture at reset."""
    devices = read_devices(before)
    assert devices.own_description
    assert devices.machine_type == "pc-q35-10.0"
    for device in devices.devices:
        assert device.described
        assert device.fields or not device.data
    cpu = devices.by_name["cpu", 1].fields
    assert cpu["env.eip"].value == 0xFFF0
    assert cpu["env.segs[1].selector"].value == 0xF000
    assert device_names.field("cpu", "env.segs[1].base") == "CS base"
    assert [device_names.field("cpu", f"env.regs[{n}]") for n in (0, 4, 15)] == ["RAX", "RSP", "R15"]


def test_virtio_is_taken_apart(before: Files) -> None:
    device = next(d for d in read_devices(before).devices if d.kind == "virtio-blk")
    fields = virtio(device.kind, next(iter(device.fields.values())).raw)
    assert fields is not None
    assert fields["status"] == 0  # no driver has come yet
    assert fields["queue 'requests', size"] == 256
    assert fields["queue 'requests', position"] == 0
    assert fields["PCI configuration"][:4] == bytes.fromhex("f41a0110")


def test_a_stream_without_description_borrows_one(before: Files, after: Files, tmp_path: Path) -> None:
    bare = Files("web/bare", without_description(after.ram, tmp_path / "bare"))  # type: ignore[arg-type]
    borrowed, own = compare_devices(before, bare), compare_devices(before, after)
    assert [device.name for device in borrowed] == [device.name for device in own]
    assert not borrowed.undescribed
    for device in own:
        if device.id == "ps2kbd":
            # Its LEDs are in a subsection that the first state did not write, so nothing says what it holds.
            assert any(change.path.startswith("ps2kbd/") for change in borrowed["keyboard"].changes)
        else:
            assert borrowed[device.name] == device
    # With its base beside it, nothing else is needed.
    based = Files("web/based", bare.ram, ram_base=before.ram)
    assert [d.described for d in read_devices(based).devices] == [True] * len(own.changed + own.unchanged)


def test_without_any_description_bytes_are_compared(before: Files, after: Files, tmp_path: Path) -> None:
    one = Files("one", without_description(before.ram, tmp_path / "one"))  # type: ignore[arg-type]
    two = Files("two", without_description(after.ram, tmp_path / "two"))  # type: ignore[arg-type]
    diff = compare_devices(one, two)
    assert [device.name for device in diff] == [device.name for device in compare_devices(before, after)]
    assert set(diff.undescribed) == {device.name for device in diff}


def test_an_offline_state_has_no_devices(before: Files) -> None:
    with pytest.raises(WrongState, match="offline"):
        compare_devices(before, Files("web/off"))


def test_pandas(before: Files, after: Files) -> None:
    pytest.importorskip("pandas")
    table = compare_devices(before, after).to_pandas()
    assert list(table.columns) == ["device", "field", "before", "after", "id", "path"]
    assert "LEDs" in set(table["field"])


def test_names_of_registers_and_flags() -> None:
    assert device_names.flags(0x246) == "PF ZF IF"
    assert device_names.device("0000:00:1f.2/ich9_ahci", 0) == "disk controller (SATA)"
    assert device_names.device("something-new", 3) == "something-new 3"
    assert device_names.field("ac97", "bm_regs[1].picb") == "playback, samples left in the buffer"


@pytest.fixture(scope="module")
def small(before: Files, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The real devices behind a small RAM, so that thousands of damaged ones can be written."""
    assert before.ram is not None
    devices = mapped_ram.device_bytes(before.ram, mapped_ram.parse(before.ram))
    path = write_stream(tmp_path_factory.mktemp("small") / "ram", {"pc.ram": {}})
    start = mapped_ram.parse(path).devices_offset
    path.write_bytes(path.read_bytes()[:start] + devices)
    return path, start


fuzzed = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def use(path: Path, describers: tuple[Path, ...] = ()) -> None:
    """Do all that a comparison does; a plain error or values, and nothing else."""
    try:
        for device in vmstate.read(path, describers).devices:
            assert len(device.fields) >= 0
            for field in device.fields.values():
                assert field.value is None or isinstance(field.value, int | bytes | str)
        if describers:
            compare_devices(Files("a", path), Files("b", describers[0]))
    except SnapshotDamaged as error:
        is_plain(error)


@fuzzed
@given(data=st.data())
def test_damaged_devices_give_an_error_or_values(
    small: tuple[Path, int], tmp_path: Path, data: st.DataObject
) -> None:
    source, start = small
    content = bytearray(source.read_bytes())
    json_at = content.rindex(b'{"configuration"')
    for _ in range(data.draw(st.integers(1, 4))):
        # Half of the damage in the description.
        low, high = data.draw(st.sampled_from([(start, json_at), (json_at - 6, len(content) - 1)]))
        at = data.draw(st.integers(low, high))
        new = data.draw(
            st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 4, bytes(4), b"9999999"])
        )
        content[at : at + len(new)] = new
    path = tmp_path / "damaged"
    path.write_bytes(content)
    use(path)
    use(path, (source,))


@fuzzed
@given(cut=st.floats(0, 1))
def test_cut_devices_give_an_error_or_values(small: tuple[Path, int], tmp_path: Path, cut: float) -> None:
    source, start = small
    content = source.read_bytes()
    path = tmp_path / "cut"
    path.write_bytes(content[: start + int(cut * (len(content) - start - 1))])
    use(path)
    use(path, (source,))


@fuzzed
@given(
    description=st.recursive(
        st.none() | st.booleans() | st.integers(-1, 1 << 70) | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["name", "type", "size", "array_len", "index", "struct", "fields", "subsections"]
                ),
                inner,
            )
        ),
        max_leaves=30,
    )
)
def test_a_description_of_anything_gives_an_error_or_values(
    small: tuple[Path, int], tmp_path: Path, description: object
) -> None:
    source, start = small
    devices = [
        {"name": "timer", "instance_id": 0, "vmsd_name": "timer", "version": 2, "fields": [description]}
    ]
    text = json.dumps({"devices": devices}).encode()
    content = source.read_bytes()
    end = content.index(b"\x7e", start + 40)
    path = tmp_path / "described"
    path.write_bytes(content[: end + 5] + b"\0\6" + len(text).to_bytes(4, "big") + text)
    use(path)
