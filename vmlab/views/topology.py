"""A picture of machines and the networks between them: each network a line, each machine a box above it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmlab.render import page
from vmlab.views.networks import link_words

if TYPE_CHECKING:
    from vmlab.machines.networks import Network

#: Pixels: of a machine's column and its box, of a row, and of the names of the networks at the left.
_COLUMN, _WIDE, _HIGH, _ROW, _LEFT = 172, 136, 46, 58, 124
#: Letters of a name that there is room for.
_LETTERS = 18


@dataclass(frozen=True)
class Box:
    """A machine in the picture: its name in networks, its own one, what it is doing, what it is made of."""

    name: str
    label: str
    state: str
    image: str


def picture(title: str, boxes: Sequence[Box], networks: Sequence[Network]) -> str:
    """Return an SVG in which nothing is loaded from elsewhere; screen readers are told in words what it shows."""
    column = {box.name: number for number, box in enumerate(boxes)}
    width = _LEFT + max(1, len(boxes)) * _COLUMN
    height = 8 + _HIGH + len(networks) * _ROW + 18
    cards = {
        name: sorted(
            (card.number, row)
            for row, network in enumerate(networks)
            for card in network.cards
            if card.machine == name
        )
        for name in column
    }
    lines: list[str] = []
    for row, network in enumerate(networks):
        lines.append(_network(row, network, column, cards, width))
    parts = [*lines, *(_machine(box, number) for number, box in enumerate(boxes))]
    words = f"{title}: {_words(boxes, networks)}"
    return (
        f'<svg class="net" role="img" aria-label="{page.esc(words)}" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">{"".join(parts)}</svg>'
    )


def _words(boxes: Sequence[Box], networks: Sequence[Network]) -> str:
    label = {box.name: box.label for box in boxes}
    found = []
    for network in networks:
        on = ", ".join(
            f"{label.get(card.machine, card.machine)} {card.address}".strip() for card in network.cards
        )
        found.append(f"network {network.name.rpartition('.')[2]} {network.subnet} joins {on or 'nobody'}")
    return "; ".join([*(f"{box.label} is {box.state}" for box in boxes), *found])


def _left(number: int) -> int:
    return _LEFT + number * _COLUMN + (_COLUMN - _WIDE) // 2


def _machine(box: Box, number: int) -> str:
    x = _left(number)
    kind = {"running": "ok", "paused": "warn", "asleep": "warn", "crashed": "bad", "damaged": "bad"}
    colour = kind.get(box.state, "dim")
    return (
        f"<g><title>{page.esc(f'{box.name}: {box.state}')}</title>"
        f'<rect class="m" x="{x}" y="4" width="{_WIDE}" height="{_HIGH}" rx="6"/>'
        f'<circle class="{colour}" cx="{x + 14}" cy="20" r="4.5"/>'
        f'<text class="b" x="{x + 26}" y="24">{page.esc(_short(box.label))}</text>'
        f'<text class="s" x="{x + 26}" y="40">{page.esc(_short(f"{box.image}, {box.state}"))}</text></g>'
    )


def _network(
    row: int,
    network: Network,
    column: dict[str, int],
    cards: dict[str, list[tuple[int, int]]],
    width: int,
) -> str:
    y = 4 + _HIGH + (row + 1) * _ROW - 18
    name = network.name.rpartition(".")[2]
    parts = [
        f'<text class="b" x="4" y="{y - 3}">{page.esc(_short(name))}</text>',
        f'<text class="s" x="4" y="{y + 13}">{page.esc(network.subnet)}</text>',
        f'<line class="w" x1="{_LEFT - 8}" y1="{y}" x2="{width - 8}" y2="{y}"/>',
    ]
    for card in network.cards:
        if card.machine not in column:
            continue
        own = cards[card.machine]
        place = own.index((card.number, row))
        # Its cables side by side, the first at the left: each ends at a line that lies lower than the ones before.
        x = _left(column[card.machine]) + round(_WIDE * (place + 1) / (len(own) + 1)) - 30
        how = link_words(card.link)
        pulled = " off" if card.link.down else ""
        said = f"{card.address}{f', {how}' if how else ''}, {card.mac}"
        # Not where the next cable goes down.
        side = f'x="{x - 7}" text-anchor="end"' if place < len(own) - 1 else f'x="{x + 7}"'
        parts.append(
            f"<g><title>{page.esc(said)}</title>"
            f'<line class="c{pulled}" x1="{x}" y1="{4 + _HIGH}" x2="{x}" y2="{y}"/>'
            f'<circle class="d{pulled}" cx="{x}" cy="{y}" r="4"/>'
            f'<text class="s" {side} y="{y - 6}">{page.esc(card.address)}</text>'
            + (f'<text class="warn s" {side} y="{y + 14}">{page.esc(how)}</text>' if how else "")
            + "</g>"
        )
    return "".join(parts)


def _short(text: str) -> str:
    return text if len(text) <= _LETTERS else f"{text[: _LETTERS - 1]}…"
