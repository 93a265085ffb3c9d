"""Networks between machines, and the cards that are plugged into them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

from vmlab.render import page, units
from vmlab.render.view import View

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vmlab.machines.networks import Network
    from vmlab.records import Link


def link_words(link: Link) -> str:
    """Return how a link is, in words; nothing for a perfect one."""
    said = [
        "pulled" if link.down else "",
        f"{link.delay * 1000:g} ms" if link.delay or link.jitter else "",
        f"\N{PLUS-MINUS SIGN} {link.jitter * 1000:g} ms" if link.jitter else "",
    ]
    found = [" ".join(word for word in said if word)]
    found.append(f"{link.loss * 100:g} % lost" if link.loss else "")
    found.append(f"{link.rate / 10**6:g} Mbit/s" if link.rate else "")
    return ", ".join(word for word in found if word)


class NetworkTable(View, Sequence["Network"]):
    """Networks as a list that shows as a table, with a row for each card."""

    label = "networks"

    def __init__(self, networks: Iterable[Network]) -> None:
        self.networks = list(networks)

    @overload
    def __getitem__(self, index: int) -> Network: ...
    @overload
    def __getitem__(self, index: slice) -> list[Network]: ...
    def __getitem__(self, index: int | slice) -> Network | list[Network]:
        return self.networks[index]

    def __len__(self) -> int:
        return len(self.networks)

    def __iter__(self) -> Iterator[Network]:
        return iter(self.networks)

    def to_json(self) -> list[dict[str, Any]]:
        """Return one dict for each network."""
        return [network.to_json() for network in self.networks]

    def _rows(self) -> Iterator[tuple[str, ...]]:
        """Yield network, subnet, machine, address, MAC and link of each card; the first two where they begin."""
        for network in self.networks:
            first = network.name, network.subnet
            for card in network.cards:
                yield (*first, card.machine, card.address, card.mac, link_words(card.link))
                first = "", ""
            if not network.cards:
                yield (*first, "–", "", "", "")

    def body(self) -> str:
        """Return the HTML of the table."""
        if not self.networks:
            return '<p class="note">No networks yet: <code>%vm create NAME --nic lan</code> makes one</p>'
        columns = [
            ("Network", ""),
            ("Subnet", ""),
            ("Machine", ""),
            ("Address", ""),
            ("MAC", ""),
            ("Link", ""),
        ]
        rows = [
            page.row(*(page.esc(cell) for cell in row[:4]), (page.esc(row[4]), "dim"), page.esc(row[5]))
            for row in self._rows()
        ]
        return page.table(columns, rows)

    def rich(self) -> RenderableType:
        """Return the table for a terminal."""
        from rich.text import Text

        from vmlab.render import terminal

        if not self.networks:
            return Text("No networks yet: `create NAME --nic lan` makes one.")
        table = terminal.table("NETWORK", "SUBNET", "MACHINE", "ADDRESS", "MAC", "LINK")
        for row in self._rows():
            table.add_row(
                Text(units.clean(row[0]), style="bold"), *(Text(units.clean(cell)) for cell in row[1:])
            )
        return table
