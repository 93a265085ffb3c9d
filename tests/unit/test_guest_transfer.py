"""What a hostile guest may send us, and what cannot be copied; real copies are in tests/vm/test_guest.py."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from vmlab.errors import AgentError, NotFound, UsageError
from vmlab.guest import identity, transfer


def archive(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    return info


def test_unpack_keeps_files_links_and_modes(tmp_path: Path) -> None:
    room = tmp_path / "room"
    room.mkdir()
    transfer._unpack(
        archive(
            tmp_path / "a.tar",
            (member("./ro", tarfile.DIRTYPE, mode=0o555), b""),
            (member("./ro/file", mode=0o4755), b"data"),
            (member("./link", tarfile.SYMTYPE, "/etc/passwd"), b""),
            (member("./hard", tarfile.LNKTYPE, "./ro/file"), b""),
            (member("./device", tarfile.CHRTYPE), b""),
        ),
        room,
    )
    assert (room / "ro/file").read_bytes() == b"data"
    assert (room / "ro/file").stat().st_mode & 0o7777 == 0o755
    assert (room / "ro").stat().st_mode & 0o777 == 0o555
    assert os.readlink(room / "link") == "/etc/passwd"  # noqa: PTH115
    assert (room / "hard").samefile(room / "ro/file")
    assert not (room / "device").exists()


@pytest.mark.parametrize(
    "members",
    [
        [(member("../evil"), b"x")],
        [(member("a/../../evil"), b"x")],
        [(member("out", tarfile.SYMTYPE, ".."), b""), (member("out/evil"), b"x")],
        [(member("hard", tarfile.LNKTYPE, "../secret"), b"")],
        [(member("s", tarfile.SYMTYPE, "../secret"), b""), (member("hard", tarfile.LNKTYPE, "s"), b"")],
        [(member("out", tarfile.SYMTYPE, ".."), b""), (member("hard", tarfile.LNKTYPE, "out/secret"), b"")],
    ],
)
def test_unpack_writes_nothing_outside(tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    (tmp_path / "secret").write_text("secret")
    room = tmp_path / "room"
    room.mkdir()
    with pytest.raises(AgentError, match="outside its folder"):
        transfer._unpack(archive(tmp_path / "a.tar", *members), room)
    assert not (tmp_path / "evil").exists()
    assert (tmp_path / "secret").stat().st_nlink == 1


def test_a_file_behind_a_link_is_replaced_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    room = tmp_path / "room"
    room.mkdir()
    transfer._unpack(
        archive(tmp_path / "a.tar", (member("s", tarfile.SYMTYPE, "../secret"), b""), (member("s"), b"evil")),
        room,
    )
    assert (tmp_path / "secret").read_text() == "secret"
    assert (room / "s").read_text() == "evil"


def test_a_directory_member_cannot_follow_a_link_out(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o700)
    room = tmp_path / "room"
    room.mkdir()
    transfer._unpack(
        archive(
            tmp_path / "a.tar",
            (member("d", tarfile.SYMTYPE, "../outside"), b""),
            (member("d", tarfile.DIRTYPE, mode=0o777), b""),
        ),
        room,
    )
    assert outside.stat().st_mode & 0o777 == 0o700


def test_bad_paths(tmp_path: Path) -> None:
    for remote in ("", "relative", "a\nb", "/a\0"):
        with pytest.raises(UsageError):
            transfer.put(None, tmp_path, remote)  # type: ignore[arg-type]
    with pytest.raises(NotFound, match="on this host"):
        transfer.put(None, tmp_path / "missing", "/root")  # type: ignore[arg-type]
    with pytest.raises(NotFound, match="on this host"):
        transfer.get(None, "/etc/hostname", tmp_path / "no" / "file")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", [transfer._RESOLVE, transfer._PLACE, transfer._UNPACK, transfer._DESCRIBE, identity._RENEW]
)
def test_what_runs_in_the_guest_is_valid_shell(text: str) -> None:
    done = subprocess.run(["sh", "-n", "-c", text.replace("@", "")], capture_output=True, text=True)
    assert done.stderr == ""


def test_bad_macs() -> None:
    for mac in ("", "52:54:00", "53:54:00:00:00:01", "52:54:00:00:00:0g"):
        with pytest.raises(UsageError, match="not a MAC"):
            identity.renew(None, mac=mac)  # type: ignore[arg-type]
