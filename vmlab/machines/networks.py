"""Networks between machines: cards are plugged into them, get addresses there, and keep them."""

from __future__ import annotations

import contextlib
import ipaddress
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vmlab.engine import load
from vmlab.errors import HostError, NotFound, UsageError, VMLabError, WrongState
from vmlab.machines.hold import hold
from vmlab.network import networks as switch
from vmlab.network.capture import Capture
from vmlab.records import Link, MachineRecord, NetworkRecord, Nic, mac_of
from vmlab.render.shown import Shown
from vmlab.store import networks, scenarios
from vmlab.store.store import Store

#: What is locked while an address is chosen, until the machine that has it is there.
_LOCK = "@networks"


@dataclass(frozen=True)
class Card:
    """A network card that is plugged into a network."""

    machine: str
    number: int
    mac: str
    address: str
    link: Link

    def to_json(self) -> dict[str, Any]:
        """Return the attributes by name."""
        return {**vars(self), "link": self.link.to_json()}


@dataclass(frozen=True)
class Network(Shown):
    """A network between machines of the lab: one Ethernet segment, which leads nowhere else.

    Attributes
    ----------
    subnet
        The addresses that its cards are given, such as ``10.1.0.0/24``.
    cards
        Those that are plugged in, of machines that run and of machines that are off.
    """

    name: str
    subnet: str
    cards: tuple[Card, ...]
    store: Store | None = field(default=None, repr=False, compare=False)

    def capture(self) -> Capture:
        """Return what was on it last, 4 MiB at most; as a context manager see :meth:`recording`."""
        assert self.store is not None
        identity = networks.read(self.store, self.name).id
        return Capture(self.name, switch.capture(self.store.account, identity))

    @contextlib.contextmanager
    def recording(self) -> Iterator[Capture]:
        """Capture what is on it during the block: what is given holds it afterwards."""
        begun, found = time.time(), Capture(self.name, [])
        try:
            yield found
        finally:
            found.raw += [(when, data) for when, data in self.capture().raw if when >= begun]

    def of(self, machine: str) -> Network:
        """Return it with the cards of one machine.

        Raises
        ------
        NotFound
            It has none.
        """
        own = tuple(card for card in self.cards if card.machine == machine)
        if not own:
            raise no_card(machine, self.name, [])
        return replace(self, cards=own)

    def to_json(self) -> dict[str, Any]:
        """Return the attributes by name."""
        return {"name": self.name, "subnet": self.subnet, "cards": [card.to_json() for card in self.cards]}


def no_card(machine: str, network: str, known: Sequence[str]) -> NotFound:
    """Return the error that a machine has no card in a network; ``known``: those in which it has."""
    return NotFound(
        f"{machine} has no card in a network '{network}'.",
        hint=f"it has cards in {', '.join(known)}"
        if known
        else f"make a machine with one: `--nic {network}¦nics=['{network}']`",
    )


def wanted(cards: Sequence[str]) -> list[Nic]:
    """Return the cards that are asked for as ``NETWORK`` or ``NETWORK=ADDRESS``.

    Raises
    ------
    UsageError, BadName
        One of them makes no sense.
    """
    found = []
    for text in cards:
        name, equals, address = text.partition("=")
        networks.check(name)
        if equals:
            try:
                address = str(ipaddress.IPv4Address(address))
            except ValueError:
                raise UsageError(
                    f"'{address}' is no address of a card.",
                    hint="write it as `--nic lan=10.1.0.20¦nics=['lan=10.1.0.20']`",
                ) from None
        found.append(Nic(network=name, address=address))
    return found


@contextlib.contextmanager
def addressed(store: Store, record: MachineRecord) -> Iterator[None]:
    """Give each card of a new machine an address in its network, making that if need be; the block adds the machine.

    Raises
    ------
    UsageError
        An address that was asked for is not to be had.
    """
    if record.throwaway or not any(card.plugged for card in record.spec.nics):
        yield
        return
    with store.lock(_LOCK, f"plug in {record.name}"):
        made: list[str] = []
        try:
            nics: list[Nic] = []
            for card in record.spec.nics:
                if card.plugged:
                    _need_own(store, card.plugged, record.scenario)
                    if card.plugged not in networks.names(store):
                        near = f"{card.address}/24" if card.address else None
                        subnet = ipaddress.IPv4Network(near, strict=False) if near else None
                        networks.make(store, card.plugged, subnet)
                        made.append(card.plugged)
                    taken = _taken(store, card.plugged) | {n.address: record.name for n in nics}
                    card = replace(
                        card, address=_address(networks.read(store, card.plugged), card.address, taken)
                    )
                nics.append(card)
            record.spec = replace(record.spec, nics=tuple(nics))
            yield
        except BaseException:
            for name in made:
                networks.remove(store, name)
            raise


def _need_own(store: Store, network: str, scenario: str | None) -> None:
    """Refuse to plug a machine into a network of a scenario that it is no member of."""
    of = network.rpartition(".")[0]
    if of != (scenario or "") and of in scenarios.names(store):
        raise UsageError(
            f"'{network}' is a network of the scenario '{of}', for its own machines.",
            hint="choose another name; a network of that name is made",
        )


def _address(network: NetworkRecord, asked: str, taken: dict[str, str]) -> str:
    subnet = ipaddress.IPv4Network(network.subnet)
    # The last one is that of the switch, which answers who asks for an address.
    free = list(subnet.hosts())[:-1]
    if not asked:
        # From 10 on: a person gives the first ones to routers.
        found = next((str(a) for a in (*free[9:], *free[:9]) if str(a) not in taken), None)
        if found is None:
            raise UsageError(
                f"The network '{network.name}' has no address left.", hint="make another network"
            )
        return found
    if ipaddress.IPv4Address(asked) not in free:
        raise UsageError(
            f"{asked} is no address of a card in the network '{network.name}', which has {subnet}.",
            hint=f"use one from {free[0]} to {free[-1]}",
        )
    if asked in taken:
        raise UsageError(
            f"{asked} is the address of {taken[asked]} in the network '{network.name}'.",
            hint="leave it out, and a free one is taken",
        )
    return asked


def _taken(store: Store, network: str) -> dict[str, str]:
    return {card.address: card.machine for card in cards(store, network)}


def cards(store: Store, network: str) -> list[Card]:
    """Return the cards that are plugged into a network, but for those of machines whose record cannot be read."""
    found = []
    for name in store.machine_names(throwaway=False):
        with contextlib.suppress(VMLabError):
            record = store.machine(name)
            found += [
                Card(name, number, mac_of(record.mac, number), card.address, card.link)
                for number, card in enumerate(record.spec.nics)
                if card.plugged == network
            ]
    return found


def every(store: Store) -> list[Network]:
    """Return all networks of the lab."""
    return [one(store, name) for name in networks.names(store)]


def one(store: Store, name: str) -> Network:
    """Return a network.

    Raises
    ------
    NotFound
        With the nearest names.
    """
    return Network(name, networks.read(store, name).subnet, tuple(cards(store, name)), store)


def full_name(store: Store, machine: str, network: str) -> str:
    """Return the name of a network: of a scenario's machine, also by its name in the scenario."""
    record = store.machine(machine)
    own = f"{record.scenario}.{network}"
    return own if record.scenario and any(card.plugged == own for card in record.spec.nics) else network


#: What a link is allowed at most: an hour on the way, and as much a second as no guest sends.
_MOST = {"delay": 3600.0, "jitter": 3600.0, "loss": 1.0, "rate": 1 << 40}


def link(store: Store, name: str, network: str, *, clear: bool = False, **changes: Any) -> None:
    """Change how a machine's cables to a network are; see :meth:`vmlab.Machine.link`."""
    for what, value in changes.items():
        if not 0 <= value <= _MOST.get(what, 1):
            raise UsageError(
                f"{value} cannot be the {what} of a link.", hint=f"use a number from 0 to {_MOST[what]}"
            )
    network = full_name(store, name, network)
    with hold(store, name, f"change its link to {network}") as (record, domain):
        if not any(card.plugged == network for card in record.spec.nics):
            raise no_card(name, network, sorted({card.plugged for card in record.spec.nics if card.plugged}))
        record.spec = replace(
            record.spec,
            nics=tuple(
                replace(card, link=replace(Link() if clear else card.link, **changes))
                if card.plugged == network
                else card
                for card in record.spec.nics
            ),
        )
        store.save_machine(record)
        if domain.pid is not None:
            load.open_ways(store, record)
            load.tell_links(store, record, domain)


def delete(store: Store, name: str) -> None:
    """Delete a network that no card is plugged into.

    Raises
    ------
    NotFound
    WrongState
        There are some; with the machines whose they are.
    """
    with store.lock(_LOCK, f"delete the network {name}"):
        record = networks.read(store, name)
        used = sorted({card.machine for card in cards(store, name)})
        if used:
            raise WrongState(
                f"The network '{name}' is used by {', '.join(used)}.",
                hint=f"delete the machines first: `%vm delete {used[0]}`",
            )
        networks.remove(store, name)
        with contextlib.suppress(HostError):
            if switch.SWITCH.is_there(store.account):
                switch.ask(store.account, close=[record.id])
