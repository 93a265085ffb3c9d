"""The networks of a lab, as its store knows them: a record each, under ``networks/``."""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Iterable

from vmlab import private
from vmlab.errors import BadName, NotFound, RecordDamaged, UsageError
from vmlab.records import WAYS, NetworkRecord, check_name, read_json, write_json
from vmlab.store.store import Store

#: Words that say where a card leads, or that it leads nowhere: no network can be called so.
RESERVED = ("internet", "none", *WAYS)
#: The addresses that are nobody's on the internet (RFC 1918), and those of them that a guest's way out looks like.
_PRIVATE = tuple(map(ipaddress.IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))
_OUTSIDE = ipaddress.IPv4Network("10.0.2.0/24")


def names(store: Store) -> list[str]:
    """Return the names of all networks, sorted."""
    return sorted(path.stem for path in (store.home / "networks").glob("[!.]*.json"))


def check(name: str) -> str:
    """Return ``name`` if it can be a network's.

    Raises
    ------
    BadName
        Otherwise.
    """
    if name in RESERVED:
        raise BadName(
            f"'{name}' cannot be the name of a network: it says how a machine reaches the outside.",
            hint="use another word, such as lan; the way out of a machine is `--way-out¦way_out=`",
        )
    return check_name("network", name)


def read(store: Store, name: str) -> NetworkRecord:
    """Return the record of a network.

    Raises
    ------
    NotFound
        With the nearest names.
    RecordDamaged
        It cannot be read.
    """
    path = store.home / "networks" / f"{name}.json"
    try:
        found = NetworkRecord.from_json(read_json(path))
        ipaddress.IPv4Network(found.subnet)
    except FileNotFoundError:
        raise NotFound.named("network", name, names(store)) from None
    except (RecordDamaged, ValueError) as error:
        raise RecordDamaged(
            f"The record of the network '{name}' is damaged.",
            hint="bring the file back from a backup; or delete it: then it is made anew, with other addresses",
            file=path,
            record=error,
        ) from error
    return found


def make(
    store: Store, name: str, subnet: ipaddress.IPv4Network | None, *, floods: bool = False
) -> NetworkRecord:
    """Make a network; without a subnet it gets the first one that no other network of the lab has.

    Raises
    ------
    UsageError
        These are no addresses for it, or there are none left.
    """
    if subnet is not None and (subnet == _OUTSIDE or not any(subnet.subnet_of(net) for net in _PRIVATE)):
        raise UsageError(
            f"{subnet} cannot be the addresses of a network of your own"
            + (": those are what a guest's way out has." if subnet == _OUTSIDE else "."),
            hint="use private ones, of 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16",
        )
    others = {read(store, other).subnet for other in names(store)}
    made = NetworkRecord(check(name), secrets.token_hex(4), str(subnet or _free(others)), floods)
    write_json(private.folders(store.home / "networks") / f"{name}.json", made.to_json())
    return made


def remove(store: Store, name: str) -> None:
    """Remove the record of a network."""
    (store.home / "networks" / f"{name}.json").unlink(missing_ok=True)


def _free(taken: Iterable[str]) -> str:
    taken = set(taken)
    # Not 10.0, where the way out is.
    for number in range(1, 256):
        if (subnet := f"10.{number}.0.0/24") not in taken:
            return subnet
    raise UsageError("There are 255 networks already.", hint="delete some: `%vm network` lists them")
