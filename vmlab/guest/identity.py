"""Give a forked guest an identity of its own, as far as its agent allows, and set its clock.

A fork is the same guest a second time: whatever the original had in RAM and on disk, the fork has too. What can be
changed from outside while it runs is changed here; the report says what was, and what stays the same in both.
"""

from __future__ import annotations

import math
import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vmlab.errors import AgentError, AgentTimeout, UsageError
from vmlab.guest import GuestDomain
from vmlab.guest.agent import execute, refused, script
from vmlab.records import mac_of

__all__ = ["Identity", "addresses", "renew", "set_clock"]

_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}")

# Prints one line for each thing: "done WHAT VALUE", "failed WHAT WHY" or "same WHAT". $1 host name, $2 machine ID, $3 a
# word by which this run is known if there may be another; then a line for each network card, then the rest. Files and
# ioctl where possible: hostnamectl and the like go through D-Bus, which takes seconds in an emulated guest. Nothing
# here may wait for the network.
_RENEW = r"""
say() { printf '%s\n' "$*"; }
host=$1 id=$2 mine=$3

# A guest that was caught while it was told something else goes on with that first. What runs is known by the first line
# of its script, which stands in the environment of whoever started it, before it does anything.
others() {
  for f in $(grep -ls 'vmlab-identity ' /proc/[0-9]*/environ 2>/dev/null); do
    grep -qs "vmlab-identity $mine" "$f" || return 0
  done
  grep -qs 'vmlab-dhc[p]' /proc/[0-9]*/cmdline
}
if [ -n "$mine" ]; then
  n=0
  while others && [ $n -lt 200 ]; do sleep 0.05; n=$((n + 1)); done
fi

if [ -n "$host" ]; then
  old=$(cat /proc/sys/kernel/hostname)
  if printf %s "$host" >/proc/sys/kernel/hostname 2>/dev/null || hostname "$host"; then
    why=
    if [ -f /etc/hostname ]; then printf '%s\n' "$host" >/etc/hostname || why="not kept over a reboot"; fi
    if [ -f /etc/hosts ] && [ -n "$old" ]; then
      h=$(awk -v o="$old" -v n="$host" '/^[ \t]*#/ { print; next }
        { for (i = 2; i <= NF; i++) {
            if ($i == o) $i = n
            else if (index($i, o ".") == 1) $i = n substr($i, length(o) + 1)
          }
          print }
        ' /etc/hosts) && [ -n "$h" ] && printf '%s\n' "$h" >/etc/hosts
    fi
    say "done hostname $host $why"
    # An X server lets clients in by a cookie that is filed under the host's name: file it under the new one too, or no
    # new window opens.
    if command -v xauth >/dev/null; then
      for f in /root/.Xauthority /home/*/.Xauthority /run/user/*/Xauthority /run/user/*/gdm/Xauthority; do
        [ -f "$f" ] || continue
        xauth -n -f "$f" list 2>/dev/null | while read -r name kind key; do
          case $name in "$old"/unix:*)
            own=$(stat -c %u:%g "$f")
            xauth -n -f "$f" add "$host/unix:${name##*:}" "$kind" "$key" 2>/dev/null &&
              chown "$own" "$f" && say "done X-cookie $f"
          esac
        done
      done
    fi
  else
    say "failed hostname the guest refused"
  fi
fi

if [ -n "$id" ]; then
  if [ -e /etc/machine-id ] || [ -d /run/systemd/system ]; then
    # Written in place: systemd may have mounted something over it.
    if printf '%s\n' "$id" 2>/dev/null >/etc/machine-id; then
      say "done machine-id $id"
      [ ! -d /run/systemd/system ] || say "same machine-id in programs that have read it, such as the journal"
    else
      say "failed machine-id /etc is read-only"
    fi
  fi
  f=/var/lib/dbus/machine-id
  if [ -f "$f" ] && [ ! -L "$f" ]; then printf '%s\n' "$id" >"$f"; fi
fi

# The process of that program which asks for the card's address.
client() {
  for f in $(grep -ls "$1" /proc/[0-9]*/cmdline 2>/dev/null); do
    case " $(tr '\0' ' ' <"$f" 2>/dev/null)" in *[/\ ]"$1 "*" $nic "*) f=${f%/*}; echo "${f##*/}"; return; esac
  done
  return 1
}

# $1 number of the card, $2 its MAC, $3 what that may be so far
renew() {
  mark=; [ "$1" = 0 ] || mark=-$1
  mac=$2 oldmacs=$3 nic=
  for n in /sys/class/net/*; do
    [ -e "$n/device" ] && [ -r "$n/address" ] || continue
    read -r a <"$n/address"
    case " $oldmacs " in "  " | *" $a "*) nic=${n##*/}; break; esac
  done
  if [ -z "$nic" ]; then
    say "failed mac$mark no network card${oldmacs:+ with $oldmacs}"
  elif [ "$a" = "$mac" ]; then
    say "done mac$mark $mac $nic"
  else
    set_mac() {
      if command -v ip >/dev/null; then ip link set dev "$nic" address "$mac"; else ifconfig "$nic" hw ether "$mac"; fi
    }
    # The kernel then tells the network by itself that the address has moved to another card; without that, whoever
    # knows the old MAC goes on sending to it.
    echo 1 2>/dev/null >"/proc/sys/net/ipv4/conf/$nic/arp_notify"
    # virtio changes it while up; other cards must be down, which loses routes until DHCP has run.
    if set_mac 2>/dev/null; then
      say "done mac$mark $mac $nic"
    else
      ip link set dev "$nic" down 2>/dev/null
      if why=$(set_mac 2>&1); then say "done mac$mark $mac $nic"; else say "failed mac$mark $why"; fi
      ip link set dev "$nic" up 2>/dev/null
    fi
    # In the background: a lease may take seconds, or never come.
    how=
    if command -v networkctl >/dev/null && pidof systemd-networkd >/dev/null; then how="networkctl renew $nic"
    elif command -v nmcli >/dev/null && pidof NetworkManager >/dev/null; then how="nmcli device reapply $nic"
    elif p=$(client udhcpc); then
      # Told to renew, it would go on under the MAC that it read when it started. Who has a parent is started by that.
      how="kill $p"
      grep -qs '^PPid:[^0-9]*1$' "/proc/$p/status" && how="$how; sleep 0.1; exec $(tr '\0' ' ' <"/proc/$p/cmdline")"
    elif p=$(pidof dhcpcd 2>/dev/null); then how="dhcpcd -n $nic"
    elif p=$(client dhclient); then how="ifdown --force $nic; ifup --force $nic"
    fi
    if [ -n "$how" ]; then
      ( (exec /bin/sh -c "$how" vmlab-dhcp) </dev/null >/dev/null 2>&1 & )
      say "done dhcp$mark asked: $how"
    else
      say "same address${mark:+ of $nic} no DHCP client is running"
    fi
  fi
}

"""
_REST = r"""
for f in /etc/ssh/ssh_host_*_key; do [ ! -f "$f" ] || { say "same SSH host keys"; break; }; done
exit 0
"""

#: What no fork can get from outside while it runs.
ALWAYS = (
    "secrets and random numbers that programs hold in memory (TLS sessions, tokens); vmgenid reseeds the kernel's only",
    "boot ID, open connections, and files with unique names on disk",
    "serial number and UUID that firmware showed at boot (dmidecode), until a cold start",
)


@dataclass(frozen=True)
class Identity:
    """What a fork got of its own, and what it still shares with its origin.

    Attributes
    ----------
    machine
        The machine's name.
    done
        What was changed, and to what: ``hostname``, ``machine-id``, ``mac``, ``dhcp``, ``X-cookie``.
    failed
        What should have been changed, and why it was not.
    same
        What stays duplicated.
    elapsed
        Seconds it took.
    """

    machine: str
    done: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    same: tuple[str, ...] = ALWAYS
    elapsed: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the attributes as a dictionary of plain values."""
        return {
            "machine": self.machine,
            "done": self.done,
            "failed": self.failed,
            "same": list(self.same),
            "elapsed": round(self.elapsed, 3),
        }

    def __str__(self) -> str:
        rows = [f"{self.machine}: {what} is now {value}" for what, value in self.done.items()]
        rows += [f"{self.machine}: {what} was not changed: {why}" for what, why in self.failed.items()]
        return "\n".join(rows + [f"{self.machine}: still the same: {what}" for what in self.same])


def renew(
    domain: GuestDomain,
    *,
    hostname: str | None = None,
    machine_id: bool = True,
    mac: str | None = None,
    old_macs: Sequence[str] = (),
    cards: int = 1,
    after_another: bool = False,
    timeout: float = 20,
) -> Identity:
    """Give a forked guest another host name, machine ID and MAC, and let it ask for an address again.

    One command in the guest; it works with busybox and with systemd, and leaves alone what is not there. It does not
    raise for a guest that cannot be changed: the report says so, since the fork itself is good.

    Parameters
    ----------
    domain
        The guest, running.
    hostname
        The new host name: letters, digits and ``-``. Characters that a host name cannot have become ``-``.
    machine_id
        Whether to make a new ``/etc/machine-id``, where there is one.
    mac
        The new MAC of the network card, as in ``52:54:00:12:34:56``. The card's state holds the old one, whatever
        QEMU's command line says, so it has to be changed in the guest.
    old_macs
        One of them the card has now; without any the first card is changed.
    cards
        How many network cards the guest has: the MACs of the others follow those of the first.
    after_another
        The guest may have been caught while it was told something else: it comes to the end of that first, which may
        take as long once more.
    timeout
        Seconds for all of it.

    Raises
    ------
    UsageError
        ``mac`` is not the address of a single card.
    """
    for address in (mac, *old_macs):
        if address is not None and not _MAC.fullmatch(address.lower()):
            raise UsageError(f"'{address}' is not a MAC address.", hint="for example 52:54:00:12:34:56")
    name = re.sub(r"[^A-Za-z0-9-]+", "-", hostname or "").strip("-")[:63].rstrip("-")
    if name and not _HOSTNAME.fullmatch(name):
        name = ""
    wanted = {
        "hostname": name,
        "machine-id": uuid.uuid4().hex if machine_id else "",
        "mac": (mac or "").lower(),
    }
    begin = time.monotonic()
    mine = uuid.uuid4().hex
    words = " ".join(f"'{word}'" for word in (name, wanted["machine-id"], mine if after_another else ""))
    changes = [
        f"renew {number} '{mac_of(wanted['mac'], number)}' '{' '.join(mac_of(m.lower(), number) for m in old_macs)}'\n"
        for number in range(cards if mac else 0)
    ]
    text = f"#!/bin/sh\n# vmlab-identity {mine}\nset -- {words}\n{_RENEW}{''.join(changes)}{_REST}"
    try:
        result = script(domain, text, timeout=timeout * (1 + after_another))
    except AgentError as error:
        why = "the agent does not answer" if isinstance(error, AgentTimeout) else error.message
        failed = {what: why for what, value in wanted.items() if value}
        return Identity(domain.name, failed=failed, elapsed=time.monotonic() - begin)
    done: dict[str, str] = {}
    failed = {}
    same: list[str] = []
    for line in result.stdout.splitlines():
        verb, _, rest = line.partition(" ")
        what, _, value = rest.partition(" ")
        if verb == "done":
            done[what] = value.strip()
        elif verb == "failed":
            failed[what] = value.strip()
        elif verb == "same":
            same.append(rest)
    return Identity(domain.name, done, failed, (*same, *ALWAYS), time.monotonic() - begin)


def addresses(domain: GuestDomain, mac: str | None = None) -> list[str]:
    """Return the IPv4 addresses that the guest's agent tells, without loopback; those of one card by its MAC."""
    return [
        address["ip-address"]
        for card in domain.agent("guest-network-get-interfaces")
        if mac in (None, card.get("hardware-address"))
        for address in card.get("ip-addresses", ())
        if address["ip-address-type"] == "ipv4" and not address["ip-address"].startswith("127.")
    ]


def set_clock(domain: GuestDomain, when: float | None = None, *, timeout: int = 10) -> float:
    """Set the guest's clock, and return by how many seconds it was moved (positive: forward).

    Parameters
    ----------
    domain
        The guest, running.
    when
        Seconds since 1970 (UTC); None for the host's time now.
    timeout
        Seconds for each answer of the agent.

    Raises
    ------
    AgentTimeout
        The agent does not answer.
    AgentError
        The agent may not set the clock.
    """
    try:
        before = int(domain.agent("guest-get-time", timeout=timeout)) / 1e9
        asked = time.time()
        target = when if when is not None else asked
        try:
            domain.agent("guest-set-time", timeout=timeout, time=int(target * 1e9))
        except AgentTimeout:
            raise
        except AgentError:
            # Without /sbin/hwclock in the guest the agent refuses, or sets the clock and then fails: look what it did.
            now = int(domain.agent("guest-get-time", timeout=timeout)) / 1e9
            if abs(now - target - (time.time() - asked)) > 1:
                _set_by_date(domain, when, timeout)
    except AgentTimeout:
        raise
    except AgentError as error:
        raise refused(domain, error, "set the clock") from error
    return target - before


def _set_by_date(domain: GuestDomain, when: float | None, timeout: int) -> None:
    """Set the clock with ``date``, which counts whole seconds: wait for the next one to begin."""
    now = time.time()
    target = now if when is None else when
    time.sleep(-target % 1)
    result = execute(domain, f"date -u -s @{math.ceil(target)} && {{ hwclock -w -u; :; }}", timeout=timeout)
    if result.status != 0:
        raise AgentError(f"The clock of {domain.name} could not be set.", guest_says=result.stderr)
