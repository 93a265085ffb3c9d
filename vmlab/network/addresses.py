"""Which addresses a guest may open something to: those of this host, of its site, and of nobody.

What is this host, and what is near it, is read from ``/proc/net``: its addresses, whole nets that the kernel delivers
to itself, and the nets that it reaches without a router.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: The net that QEMU's user-mode network shows to a guest. All of it but the name server leads to this host's loopback.
OWN = (ipaddress.ip_network("10.0.2.0/24"), ipaddress.ip_network("fec0::/64"))
#: No guest opens anything to these: this host, links, groups, what nobody has (RFC 6890), and IPv4 in other clothes.
NEVER: tuple[Network, ...] = (
    *OWN,
    *map(
        ipaddress.ip_network,
        (
            "0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4",
            "::/96", "::ffff:0:0/96", "64:ff9b::/32", "2001::/32", "2002::/16", "fe80::/10", "fec0::/10", "ff00::/8",
        ),
    ),
)  # fmt: skip
#: The site's: private nets (RFC 1918, 4193), those of providers (RFC 6598), for tests and protocols (RFC 2544, 6890).
PRIVATE: tuple[Network, ...] = tuple(
    map(
        ipaddress.ip_network,
        (
            "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "198.18.0.0/15", "192.0.0.0/24",
            "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "192.88.99.0/24", "fc00::/7", "2001:db8::/32",
        ),
    )
)  # fmt: skip

#: Nets larger than that are no neighbourhood, but all the world by way of a tunnel (``0.0.0.0/1 dev wg0``).
_NEAR = {32: 8, 128: 32}

#: Groups of the kernel's messages (``linux/rtnetlink.h``): IPv4 and IPv6 addresses and routes that come and go.
_GROUPS = 0x10 | 0x40 | 0x100 | 0x400
_LOCAL6 = 0x80000000


class Reach:
    """What may be opened from a guest.

    Parameters
    ----------
    site
        Private nets, and those that this host is on, as well.
    own, near
        The nets that are this host, and those that it is on (:func:`of_this_host`, :func:`near_this_host`).
    """

    #: The most answers that are remembered.
    MOST = 4096

    def __init__(self, *, site: bool, own: Iterable[Network], near: Iterable[Network]) -> None:
        refused = [*NEVER, *own] if site else [*NEVER, *own, *PRIVATE, *near]
        self._refused: dict[int, list[tuple[int, int]]] = {4: [], 16: []}
        for net in refused:
            shift = net.max_prefixlen - net.prefixlen
            self._refused[net.max_prefixlen // 8].append((int(net.network_address) >> shift, shift))
        self._known: dict[bytes, bool] = {}

    def allows(self, address: bytes) -> bool:
        """Whether something may be opened to an address: 4 bytes, or 16."""
        found = self._known.get(address)
        if found is None:
            number = int.from_bytes(address, "big")
            found = not any(number >> shift == net for net, shift in self._refused[len(address)])
            if len(self._known) >= self.MOST:
                self._known.clear()
            self._known[address] = found
        return found


def of_this_host(proc: Path = Path("/proc/net")) -> list[Network]:
    """Return all addresses that the kernel delivers to this host itself.

    Raises
    ------
    OSError
        They cannot be read; whoever asked lets nothing out then.
    """
    found: list[Network] = []
    address = ""
    # Not by ``_lines``: a host whose addresses cannot be read must not pass for one that has none.
    for line in (proc / "fib_trie").read_text().splitlines():
        words = line.split()
        if words[:1] == ["|--"]:
            address = words[1]
        elif words[-1:] == ["LOCAL"]:
            found.append(ipaddress.ip_network(address + words[0], strict=False))
    for net, flags, _ in _routes6(proc):
        if flags & _LOCAL6:
            found.append(net)
    return [*found, *(ipaddress.IPv6Network(int(line.split()[0], 16)) for line in _lines(proc / "if_inet6"))]


def near_this_host(proc: Path = Path("/proc/net")) -> list[Network]:
    """Return the nets that this host reaches without a router."""
    found: list[Network] = []
    for line in list(_lines(proc / "route"))[1:]:
        _, net, router, _, _, _, _, mask, *_ = line.split()
        prefix = int(mask, 16).bit_count()
        if int(router, 16) == 0 and prefix >= _NEAR[32]:
            # The kernel writes the four bytes as a number of this machine's own order.
            address = int(net, 16).to_bytes(4, sys.byteorder)
            found.append(ipaddress.IPv4Network((address, prefix), strict=False))
    for net6, flags, router6 in _routes6(proc):
        if not router6 and net6.prefixlen >= _NEAR[128] and not flags & _LOCAL6:
            found.append(net6)
    return found


def _routes6(proc: Path) -> Iterator[tuple[ipaddress.IPv6Network, int, int]]:
    for line in _lines(proc / "ipv6_route"):
        net, prefix, _, _, router, _, _, _, flags, *_ = line.split()
        yield (
            ipaddress.IPv6Network((int(net, 16), int(prefix, 16)), strict=False),
            int(flags, 16),
            int(router, 16),
        )


def _lines(path: Path) -> Iterator[str]:
    try:
        yield from path.read_text().splitlines()
    except FileNotFoundError:
        # A kernel without IPv6.
        return


def changes() -> socket.socket:
    """Return a socket on which the kernel says when addresses or routes of this host have changed."""
    line = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
    line.bind((0, _GROUPS))
    return line
