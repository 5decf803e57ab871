"""What a stack owns in its clouds, whether or not state knows of it.

Each cloud's part is the module `components.<cloud>.owned`: it lists by the owner tag and removes in an order
that the cloud accepts. Nothing here imports Pulumi, so commands use it as well as providers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from typing import NamedTuple, Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")

CLOUDS_IN_THREADS = 8
"""Places that are asked at the same time; each is one connection to one cloud."""

Config = Callable[[str], str | None]
"""Gives a stack's setting by its whole key, such as `scaleway:secretKey`."""


class Place(NamedTuple):
    """Where a cloud keeps machines: the unit in which it lists them."""

    cloud: str
    zone: str
    """Zone on Scaleway, region elsewhere."""

    def __str__(self) -> str:
        return f"{self.cloud}/{self.zone}"

    @classmethod
    def parse(cls, text: str) -> Place:
        """The inverse of `str`."""
        cloud, _, zone = text.partition("/")
        return cls(cloud, zone)


@dataclass(frozen=True)
class Owned:
    """One object in a cloud that carries an owner tag."""

    kind: str
    """`server`, `volume`, `address`, `security group`, `firewall`, `private network`, `key pair`, …"""
    id: str
    name: str
    label: str
    """What it was made for, as `stack/node` or `stack/cluster`; empty where the object does not say."""
    place: Place
    owner: str
    detail: str = ""
    """Type and state of a server, size of a volume; for people."""
    type: str | None = None
    """Instance type of a server."""
    size_gb: int = 0
    """Of a volume, in the cloud's own GB."""
    running: bool = False
    belongs_to: str = ""
    """Id of the server that a volume or an address goes with."""

    @property
    def node(self) -> str:
        """The node (or cluster) it was made for."""
        return self.label.rpartition("/")[2]

    def __str__(self) -> str:
        about = ", ".join(part for part in (self.name, self.detail) if part)
        return f"{self.kind} {self.id} in {self.place}" + (f" ({about})" if about else "")


class Inventory(Protocol):
    """A cloud's part, for one place: what `components.<cloud>.owned.inventory(config, zone)` returns."""

    def owned(self, owner: str) -> list[Owned]:
        """Everything here that carries the owner's id; servers first."""
        ...

    def labelled(self, labels: Sequence[str]) -> list[Owned]:
        """Servers that carry one of these node labels (`stack/node`), whoever owns them."""
        ...

    def remove(self, found: Sequence[Owned]) -> None:
        """Delete these and wait until they are gone; what is gone already is fine."""
        ...

    def adopt(self, found: Sequence[Owned], owner: str) -> None:
        """Give these another owner."""
        ...


class StillThere(Exception):
    """Something could not be removed. The message lists each object and the reason; each may still bill."""

    def __init__(self, problems: Sequence[str]) -> None:
        lines = ["not everything is removed, and what is left may bill:", *problems]
        super().__init__("\n".join([*lines, "Fix: correct what is named and run the same command again"]))
        self.problems = tuple(problems)


def inventory(config: Config, place: Place) -> Inventory:
    """The cloud's part for a place."""
    module = import_module(f"components.{place.cloud}.owned")
    made: Inventory = module.inventory(config, place.zone)
    return made


def everything(config: Config, places: Iterable[Place], owner: str) -> list[Owned]:
    """What an owner has in all these places, each object once: some belong to a whole region."""
    found = in_parallel(places, lambda place: inventory(config, place).owned(owner))
    return list({(each.kind, each.id): each for objects in found for each in objects}.values())


def labelled(config: Config, places: Iterable[Place], labels: Sequence[str]) -> list[Owned]:
    """Servers in these places that carry one of the labels, whoever owns them."""
    found = in_parallel(places, lambda place: inventory(config, place).labelled(labels))
    return [each for servers in found for each in servers]


def remove(config: Config, found: Iterable[Owned]) -> None:
    """Delete objects wherever they are. Raises StillThere once everything that can go is gone."""
    by_place: dict[Place, list[Owned]] = {}
    for each in found:
        by_place.setdefault(each.place, []).append(each)
    problems: list[str] = []

    def clear(place: Place) -> None:
        try:
            inventory(config, place).remove(by_place[place])
        except StillThere as error:
            problems.extend(error.problems)
        except Exception as error:  # the other places are cleared all the same
            problems.append(f"{place}: {error}")

    in_parallel(by_place, clear)
    if problems:
        raise StillThere(problems)


class Removal:
    """Deletes what was found, kind by kind; a node of which something stayed is left alone from then on."""

    def __init__(self, found: Sequence[Owned]) -> None:
        self._found = found
        self._problems: list[str] = []
        self._stuck: set[str] = set()

    def of(self, kind: str, delete: Callable[[Owned], object]) -> None:
        """Delete everything of a kind, in parallel; a failure is kept for `done`."""

        def attempt(each: Owned) -> None:
            try:
                delete(each)
            except Exception as error:  # the others are deleted all the same
                self._problems.append(f"{each}: {error}")
                self._stuck.add(each.label)

        ready = [each for each in self._found if each.kind == kind and each.label not in self._stuck]
        in_parallel(ready, attempt)

    def done(self) -> None:
        """Raises StillThere if anything stayed."""
        if self._problems:
            raise StillThere(self._problems)


def in_parallel(items: Iterable[T], do: Callable[[T], R]) -> list[R]:
    """`do` for each item in threads of its own; the first exception is raised once all have ended."""
    with ThreadPoolExecutor(CLOUDS_IN_THREADS) as pool:
        return [future.result() for future in [pool.submit(do, item) for item in items]]
