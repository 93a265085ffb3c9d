"""Images: their description, the recipes, where packages come from, and trees written without privileges."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
import time
import wave
from pathlib import Path

import pytest

from vmlab import images
from vmlab.errors import BadName, BuildFailed, HostError, ImageMissing, NoSpace, NotFound
from vmlab.hypervisor.account import Account
from vmlab.images import artwork, bootstrap, builder, debian, spec, trees, work
from vmlab.images.disks import fixed_uuid, sha256
from vmlab.images.recipe import data_file
from vmlab.render.progress import quiet
from vmlab.store.store import Store


@pytest.fixture
def me(tmp_path):
    """The account that runs these tests, whoever that is."""
    return Account(
        "me", os.geteuid(), os.getegid(), tmp_path, tmp_path, tmp_path / "socket", is_service=False
    )


def good(**more):
    return spec.ImageSpec(name="small", title="Small", **more).to_json()


# image.json ---------------------------------------------------------------------------------------------------------


def test_a_written_description_reads_back_the_same(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "disk.qcow2").write_bytes(b"x")
    one = spec.ImageSpec("small", "Small", disks=[{"file": "disk.qcow2", "format": "qcow2", "size": 512}])
    one.write(folder)
    assert spec.read(folder) == one
    assert json.loads((folder / "image.json").read_text())["format"] == 1


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"format": 2}, "format"),
        ({"name": "../up"}, "name"),
        ({"memory": 0}, "memory"),
        ({"vcpus": True}, "vcpus"),
        ({"boot": {}}, "boot"),
        ({"boot": {"kernel": "../vmlinuz"}}, "not the name of a file"),
        ({"disks": [{"file": "d", "format": "vmdk", "size": 1}]}, "disk"),
        ({"disks": [{"file": "/etc/passwd", "format": "raw", "size": 512}]}, "not the name of a file"),
        ({"cdroms": [".."]}, "not the name of a file"),
        ({"nic": "token-ring"}, "nic"),
    ],
)
def test_a_wrong_description_is_told_in_words(change, word):
    assert spec.problems(good()) == []
    found = spec.problems(good() | change)
    assert found
    assert word in " ".join(found)


def test_an_image_that_is_gone_damaged_or_incomplete(tmp_path):
    folder = tmp_path / "small"
    with pytest.raises(ImageMissing, match="has not been built"):
        spec.read(folder)
    folder.mkdir()
    (folder / "image.json").write_text("{")
    with pytest.raises(ImageMissing, match="cannot be read"):
        spec.read(folder)
    (folder / "image.json").write_text(json.dumps(good() | {"memory": -1}))
    with pytest.raises(ImageMissing, match="is wrong"):
        spec.read(folder)
    (folder / "image.json").write_text(json.dumps(good(boot={"kernel": "vmlinuz"})))
    with pytest.raises(ImageMissing, match="are gone") as caught:
        spec.read(folder)
    assert caught.value.evidence["missing"] == "vmlinuz"


@pytest.mark.parametrize("name", ["", ".", "..", "-x", "a b", "a/b", "Ä", "UPPER", "x" * 64, "a.", "new\n"])
def test_names_that_cannot_be(name):
    with pytest.raises(BadName):
        spec.check_name(name)


# recipes ------------------------------------------------------------------------------------------------------------


def test_the_builtin_images():
    recipes = images.builtin()
    assert list(recipes) == ["invaders", "tiny", "desktop"]
    for recipe in recipes.values():
        assert recipe.suite == "bookworm"
        assert len(recipe.digest()) == 64
        assert recipe.digest() == recipe.digest()
    assert len({recipe.digest() for recipe in recipes.values()}) == 3


def test_an_unknown_builtin_image_names_the_nearest(me, tmp_path):
    with pytest.raises(NotFound) as caught:
        images.build("dekstop", tmp_path, me)
    assert "desktop" in (caught.value.hint or "")


def test_every_script_for_guests_is_a_valid_one():
    for image in ("tiny", "desktop"):
        for file in (Path(images.__file__).parent / "files" / image).iterdir():
            text = data_file(image, file.name)
            if text.startswith(b"#!/bin/sh"):
                subprocess.run(["/bin/sh", "-n"], input=text, check=True)


def test_no_space_is_refused_with_the_numbers(tmp_path):
    with pytest.raises(NoSpace) as caught:
        builder.check_space(tmp_path, 1 << 60, "desktop")
    assert {"needed", "free"} <= set(caught.value.evidence)


def test_a_failed_build_leaves_nothing_and_the_old_image_stays(me, tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "image.json").write_text("{}")
    with pytest.raises(BuildFailed), builder.new_folder(tmp_path, me, "small", 0) as new:  # noqa: PT012 - the block is what fails
        (new / "half").write_bytes(b"half")
        raise BuildFailed("It broke.")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small"]


def test_only_abandoned_builds_are_removed(tmp_path):
    child = subprocess.Popen(["true"])
    child.wait()
    dead, alive = tmp_path / f".new-tiny-{child.pid}", tmp_path / f".new-tiny-{os.getpid()}"
    dead.mkdir()
    alive.mkdir()
    # Killed between the two renames of a replacement: the old image must come back.
    (tmp_path / f".old-desktop-{child.pid}").mkdir()
    builder.remove_abandoned(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [alive.name, "desktop"]


def test_commit_puts_the_whole_image_in_place_and_retires_the_old(me, tmp_path):
    retired = []
    for text in (b"first", b"second"):
        with builder.new_folder(tmp_path, me, "small", 0) as new:
            (new / "vmlinuz").write_bytes(text)
            one = spec.ImageSpec("small", "Small", boot={"kernel": "vmlinuz"})
            placed = builder.commit(new, tmp_path, me, one, quiet, retire=retired.append)
    assert placed == tmp_path / "small"
    assert (placed / "vmlinuz").read_bytes() == b"second"
    assert (placed / "vmlinuz").stat().st_mode & 0o222 == 0
    assert spec.read(placed).sha256["vmlinuz"] == sha256(placed / "vmlinuz")
    assert [(p / "vmlinuz").read_bytes() for p in retired] == [b"first"]


def placed(home, me, text=b"kernel", name="small", **more):
    """Put an image into a store and return that store."""
    with builder.new_folder(home / "images", me, name, 0) as new:
        (new / "vmlinuz").write_bytes(text)
        one = spec.ImageSpec(name, "Small", boot={"kernel": "vmlinuz"}, **more)
        builder.commit(new, home / "images", me, one, quiet)
    return Store(home, me)


def test_a_base_is_named_by_its_files_alone(me, tmp_path):
    packages = ["busybox 1:1.35.0-4", "libc6 2.36-9"]
    here = placed(tmp_path / "here", me, packages=packages)
    there = placed(tmp_path / "there", me, name="other", memory=64, source="elsewhere")
    base = here.adopt("small")
    assert base == there.adopt("other")
    assert here.base(base)["packages"] == packages
    # Built again, with the same result, it is the same base; with another it is another.
    written = here.image("small")["built"]
    (here.image_folder("small") / "image.json").write_text(
        json.dumps(here.image("small") | {"built": "2001-01-01T00:00:00Z", "title": "New"})
    )
    assert here.image("small")["built"] != written
    assert here.adopt("small") == base
    placed(tmp_path / "here", me, b"another kernel")
    assert here.adopt("small") != base
    assert {p.name for p in (tmp_path / "here" / "bases").iterdir()} == {base, here.base_id("small")}


def test_a_base_keeps_the_name_that_an_older_version_gave_it(me, tmp_path):
    store = placed(tmp_path, me)
    text = (store.image_folder("small") / "image.json").read_bytes()
    old = tmp_path / "bases" / f"small-{hashlib.sha256(text).hexdigest()[:12]}"
    new = tmp_path / "bases" / store.adopt("small")
    new.rename(old)
    assert store.adopt("small") == old.name
    assert [p.name for p in (tmp_path / "bases").iterdir()] == [old.name]


def test_a_program_that_fails_carries_its_last_lines(me):
    seen = []
    with pytest.raises(BuildFailed) as caught:
        work.run(
            me, ["sh", "-c", "echo one; echo two >&2; exit 3"], what="It did not work", on_line=seen.append
        )
    assert caught.value.message == "It did not work."
    assert caught.value.evidence["exit_status"] == 3
    assert caught.value.evidence["output"] == "one\ntwo"
    assert seen == ["one", "two"]


def test_an_interrupt_ends_the_program_with_its_children(me, tmp_path):
    def interrupt(line):
        (tmp_path / "pid").write_text(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work.run(me, ["sh", "-c", "sleep 100 & echo $!; wait"], what="x", on_line=interrupt)
    state = Path("/proc", (tmp_path / "pid").read_text(), "stat")
    # Gone, or dead and waiting for a late reaper; the signal has been sent, and may have to wait for a CPU.
    end = time.monotonic() + 5
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] not in "ZX":
        assert time.monotonic() < end
        time.sleep(0.01)


# where packages come from -------------------------------------------------------------------------------------------

TARGETS = """Packages|trixie|$(CODENAME)|main|http://one.example/debian/
Packages|trixie-updates|trixie-updates|main|http://one.example/debian/
Packages|trixie-security|trixie-security|main|http://two.example/debian-security/
Translations|trixie|trixie|main|http://one.example/debian/
Packages|stable|stable|main|http://other.example/nodesource/
"""


def test_the_suite_is_ours_the_mirror_is_the_machines():
    targets = debian.parse_targets(TARGETS)
    assert len(targets) == 4
    assert debian.sources("bookworm", targets, "trixie") == [
        "deb http://one.example/debian bookworm main",
        "deb http://one.example/debian bookworm-updates main",
        "deb http://two.example/debian-security bookworm-security main",
    ]


def test_a_mirror_of_the_wanted_suite_itself_is_preferred():
    text = TARGETS + "Packages|bookworm|bookworm|main|http://three.example/debian/\n"
    assert (
        debian.sources("bookworm", debian.parse_targets(text), "trixie")[0]
        == "deb http://three.example/debian bookworm main"
    )


def test_no_mirror_is_told():
    with pytest.raises(HostError, match="No Debian mirror"):
        debian.sources("bookworm", [], "bookworm")


def test_this_machines_apt_can_be_read():
    assert all(line.startswith(("Acquire::", "acquire::")) for line in debian.reach_settings().splitlines())
    assert debian.keyrings()


def test_the_ways_to_bootstrap_are_ordered(me, monkeypatch):
    monkeypatch.setattr(bootstrap, "_has_subids", lambda account: True)
    monkeypatch.setattr(bootstrap, "find_program", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert bootstrap.modes(me) == ["unshare", "fakechroot"]
    monkeypatch.setattr(bootstrap, "_has_subids", lambda account: False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert bootstrap.modes(me) == ["root", "fakechroot"]


# trees --------------------------------------------------------------------------------------------------------------


def sample():
    tree = trees.FileTree()
    tree.file("etc/motd", "hello\n")
    tree.link("bin/sh", "busybox")
    tree.character_device("dev/console", 5, 1)
    tree.folder("tmp", mode=0o1777)
    return tree


def test_a_tar_belongs_to_root_and_is_the_same_every_time(tmp_path):
    for name in ("one", "two"):
        sample().write_tar(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    with tarfile.open(tmp_path / "one") as archive:
        members = {m.name: m for m in archive}
        assert all((m.uid, m.gid) == (0, 0) for m in members.values())
        assert list(members) == sorted(members)
        console = members["./dev/console"]
        assert (console.ischr(), console.devmajor, console.devminor) == (True, 5, 1)
        assert members["./tmp"].mode == 0o1777
        assert members["./bin/sh"].linkname == "busybox"
        assert archive.extractfile("./etc/motd").read() == b"hello\n"


def test_an_initramfs_is_what_cpio_reads(tmp_path):
    sample().write_initramfs(tmp_path / "initrd")
    data = (tmp_path / "initrd").read_bytes()
    assert data.startswith(b"070701")
    assert len(data) % 512 == 0
    names, at = [], 0
    while not names or names[-1] != "TRAILER!!!":
        size, length = int(data[at + 54 : at + 62], 16), int(data[at + 94 : at + 102], 16)
        names.append(data[at + 110 : at + 110 + length - 1].decode())
        at += (110 + length + 3) // 4 * 4
        at += (size + 3) // 4 * 4
    assert names == ["bin", "bin/sh", "dev", "dev/console", "etc", "etc/motd", "tmp", "TRAILER!!!"]


def test_modules_come_after_what_they_need(tmp_path):
    for name, needs in {
        "virtio-blk": "virtio,virtio_ring",
        "virtio": "virtio_ring",
        "virtio_ring": "",
        "fat": "",
    }.items():
        (tmp_path / f"{name}.ko").write_bytes(b"\0license=GPL\0depends=" + needs.encode() + b"\0name=x\0")
    modules = trees.Modules(tmp_path)
    order = [p.name for p in modules.closure(["virtio_blk", "built_in"])]
    assert order == ["virtio_ring.ko", "virtio.ko", "virtio-blk.ko"]
    assert len(modules.closure(["*"])) == 4


def test_fixed_uuids_differ_by_name_only():
    assert fixed_uuid("tiny") == fixed_uuid("tiny") != fixed_uuid("desktop")


# artwork ------------------------------------------------------------------------------------------------------------


def test_the_wallpaper_is_a_picture():
    data = artwork.wallpaper(64, 48)
    assert data.startswith(b"\x89PNG")
    assert data[16:24] == (64).to_bytes(4, "big") + (48).to_bytes(4, "big")


def test_the_tune_is_mono_and_as_long_as_it_says():
    with wave.open(io.BytesIO(artwork.tune())) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 44100)
        assert 50 < file.getnframes() / 44100 < 65


def test_buttons_of_the_theme_have_two_states():
    button = artwork.theme()["closeA.xpm"].splitlines()[2]
    width, height = button.strip('",').split()[:2]
    assert (int(width), int(height)) == (22, 2 * artwork.TITLE_HEIGHT)
