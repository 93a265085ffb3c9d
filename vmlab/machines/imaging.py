"""Images made of a machine's disks: of a snapshot, never of RAM. What it takes is done in a throw-away fork."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from vmlab import private
from vmlab.engine import load
from vmlab.errors import AlreadyExists, ImageMissing, NotFound, WrongState
from vmlab.guest import agent
from vmlab.hypervisor.domain import Domain
from vmlab.images.builder import builtin, commit, new_folder
from vmlab.images.disks import qemu_img
from vmlab.images.spec import ImageSpec, check_name
from vmlab.machines import throwaway
from vmlab.records import Hardware, SnapshotRecord
from vmlab.render.progress import Progress
from vmlab.store.store import NVRAM, Store, allocated

#: Seconds for cleaning: all that is free in the guest is written once.
_CLEANING = 3600

#: Says what of a guest's own a copy of its disk has.
_LOOK = r"""
first() { [ -s "$1" ]; }
first /etc/machine-id && echo "its machine ID"
for f in /etc/ssh/ssh_host_*_key; do first "$f" && { echo "its ssh host keys"; break; }; done
for f in /root/.ssh/* /home/*/.ssh/*; do first "$f" && { echo "users' ssh keys"; break; }; done
for f in /root/.*_history /home/*/.*_history; do first "$f" && { echo "histories of commands"; break; }; done
true
"""

#: Removes that, but for what users have put into .ssh, and writes zeros over all that is free.
_CLEAN = r"""
rm -f /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub /var/lib/systemd/random-seed
rm -f /root/.*_history /home/*/.*_history
[ ! -e /etc/machine-id ] || : >/etc/machine-id
[ -L /var/lib/dbus/machine-id ] || rm -f /var/lib/dbus/machine-id
# Blocks that ext4 keeps for itself would not be written otherwise.
for kept in /sys/fs/ext4/*/reserved_clusters; do [ ! -e "$kept" ] || echo 0 >"$kept" || true; done
done=
while read -r device folder type options rest; do
  case $device in /dev/*) ;; *) continue ;; esac
  case $options in rw | rw,*) ;; *) continue ;; esac
  case " $done " in *" $device "*) continue ;; esac
  done="$done $device"
  dd if=/dev/zero of="$folder/.vmlab-zeros" bs=1M 2>/dev/null || true # until it is full
  sync
  # What was set aside for writing and not needed is free now.
  cat /dev/zero >>"$folder/.vmlab-zeros" 2>/dev/null || true
  sync
  rm -f "$folder/.vmlab-zeros"
done </proc/mounts
sync
"""
#: Lists packages, where the guest has Debian's list of them.
_PACKAGES = "dpkg-query -W -f '${Package} ${Version}\\n' 2>/dev/null || true"
_FREE = "df -Pk | awk '$1 ~ /^\\/dev\\// && !seen[$1]++ { n += $4 } END { print n + 0 }'"


def from_snapshot(
    store: Store, record: SnapshotRecord, name: str, *, title: str, clean: bool, replace: bool, tell: Progress
) -> None:
    """Make an image of a snapshot's disks; see :meth:`vmlab.Lab.import_image`."""
    need_new(store, name, replace=replace)
    if not record.spec.disks:
        raise WrongState("That machine has no disk, so there is nothing to make an image of.")
    if record.ram is None or not record.spec.agent or record.state == "crashed":
        if clean:
            raise WrongState(
                "Only a guest that runs and has an agent can be cleaned.",
                hint="take the snapshot while the machine runs, or leave --clean out",
            )
        store.tell(f"'{name}' carries all that is on the disk, files that were deleted included.")
        variables = load.need_file(store, record, NVRAM) if record.nvram else None
        write(store, record.spec, record.layers, name, record.image, title, [], tell, variables=variables)
        return
    with throwaway.fork(store, record, f"make the image {name}") as (machine, domain):
        carried = agent.script(domain, _LOOK, timeout=60).stdout.splitlines()
        found = packages(domain)
        if clean:
            tell("removing what is the machine's own", None)
            free = int(agent.succeed(domain, _FREE)) << 10
            store.need_space(free, "to write zeros over what is free in the guest")
            agent.script(domain, _CLEAN, timeout=_CLEANING).check()
            store.tell(f"Removed from '{name}': {', '.join(carried) or 'nothing'}, and deleted files.")
        else:
            store.tell(
                f"'{name}' carries {', '.join([*carried, 'deleted files in free blocks'])}; --clean removes them."
            )
        settle(domain)
        variables = store.nvram_path(machine) if record.nvram else None
        write(store, record.spec, machine.layers, name, record.image, title, found, tell, variables=variables)


def packages(domain: Domain) -> list[str]:
    """Return the packages that a guest has, as ``name version``; none where it has no list as Debian does."""
    return agent.execute(domain, _PACKAGES, timeout=60).stdout.splitlines()


def settle(domain: Domain) -> None:
    """Have a guest of ours write out all that it holds, and end it: its disks are whole then, and in nobody's use."""
    throwaway.write_out(domain)
    domain.pause()
    domain.kill()


def need_new(store: Store, name: str, *, replace: bool) -> None:
    """Refuse a name that an image has, or cannot have.

    Raises
    ------
    AlreadyExists, BadName
    """
    check_name(name)
    if name in builtin():
        raise AlreadyExists(f"'{name}' is the name of a built-in image.", hint="choose another name")
    if not replace and name in store.image_names():
        raise AlreadyExists(
            f"There is an image '{name}' already.", hint="choose another name, or delete that image first"
        )


def write(
    store: Store,
    spec: Hardware,
    layers: dict[str, str],
    name: str,
    parent: str,
    title: str,
    packages: list[str],
    tell: Progress,
    recipe: str = "",
    variables: Path | None = None,
) -> Path:
    """Write disks, each with all that it stands on, as an image with that hardware.

    Parameters
    ----------
    parent
        The image that they were made from; while it is there, the new one is ready when that is.
    variables
        Those of UEFI: a boot loader may be found by them only.
    """
    base = store.base_folder(spec.base)
    usual: Any = {"agent": True, "settle": 2.0, "timeout": 600} if spec.agent else None
    with contextlib.suppress(NotFound, ImageMissing):
        usual = store.image(parent).get("ready") or usual
    boot = {
        "kernel": spec.kernel,
        "initrd": spec.initrd,
        "cmdline": spec.kernel_args,
        "firmware": spec.firmware,
        "variables": NVRAM if variables else None,
    }
    image = ImageSpec(
        name=name,
        title=title,
        source=title,
        recipe=recipe,
        memory=spec.memory,
        vcpus=spec.vcpus,
        boot={key: value for key, value in boot.items() if value},
        cdroms=list(spec.cdroms),
        video=spec.video,
        sound=spec.sound != "none",
        agent=spec.agent,
        tablet=spec.tablet,
        network=bool(spec.nics),
        disk_bus=spec.disk_bus,
        nic=spec.nics[0].model if spec.nics else "virtio",
        ready=usual,
        packages=packages or list(store.base(spec.base).get("packages", [])),
    )
    space = sum(_chain_size(store, layers[target]) for target in spec.disks)
    with new_folder(store.home / "images", store.account, name, space) as folder:
        for number, target in enumerate(spec.disks):
            disk = folder / f"disk{number or ''}.qcow2"
            size = store.layer(layers[target]).size
            doing = f"writing disk {number + 1} of {len(spec.disks)}"

            def on_line(line: str, doing: str = doing) -> None:
                done = line.strip().strip("()").partition("/")[0]
                if done.replace(".", "").isdigit():
                    tell(doing, float(done) / 100)

            top = store.layer_path(layers[target])
            qemu_img(
                store.account, "convert", "-p", "-U", "-f", "qcow2", "-O", "qcow2", top, disk,
                what="The disk could not be written", on_line=on_line,
            )  # fmt: skip
            image.disks.append({"file": disk.name, "format": "qcow2", "size": size})
        for file in (*spec.cdroms, *(f for f in (spec.kernel, spec.initrd) if f)):
            (folder / file).hardlink_to(base / file)
        if variables:
            private.copy(variables, folder / NVRAM)
        return commit(folder, store.home / "images", store.account, image, tell)


def _chain_size(store: Store, top: str) -> int:
    """Return the bytes that a disk takes with all that it stands on."""
    chain = list(store.layer_chain(top))
    sizes = [allocated(store.layer_path(layer.id)) for layer in chain]
    if chain[-1].base:
        sizes.append(allocated(store.base_file(chain[-1].base)))
    return sum(sizes)
