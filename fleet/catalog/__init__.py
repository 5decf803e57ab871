"""GPU instance types and their prices, cloud by cloud.

One JSON file a cloud lies in ``data/``; it is read when its cloud is first asked for. A file holds the facts of each type
and dated price lists, each with its source: a number that nobody published is not there. ``fleet catalog refresh``
(:mod:`fleet.catalog.refresh`) brings the files up to date.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from functools import cache, cached_property
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"
CLOUDS = ("scaleway", "aws", "linode", "gcp", "azure")
STALE_AFTER_DAYS = 90


@dataclass(frozen=True, slots=True)
class Price:
    """What one hour of something costs, and where that was read.

    ``amount`` is in ``currency`` (ISO 4217) before tax. ``as_of`` is None when the source carries no date.
    """

    amount: float
    currency: str
    as_of: date | None
    source: str
    spot: bool = False

    def stale(self, today: date) -> bool:
        """Older than 90 days, or of unknown age."""
        return self.as_of is None or (today - self.as_of).days > STALE_AFTER_DAYS


@dataclass(frozen=True, slots=True)
class Gpu:
    """One model of GPU.

    ``memory_mib`` is the total that the driver reports (``nvidia-smi``'s memory.total), less than the marketing number;
    ``nominal_gib`` is that number.
    """

    name: str
    memory_mib: int
    nominal_gib: int
    compute_capability: str
    source: str


@dataclass(frozen=True, slots=True)
class InstanceType:
    """A type of server with GPUs.

    ``scratch_gb`` is local NVMe in decimal GB that is lost when the server stops. ``network_gbps`` is the sustained
    bandwidth the cloud states, None where it states none. ``interconnect`` is how the GPUs of one server reach each other:
    ``nvlink`` or ``pcie``. ``disk_gb`` is a root disk included in the price (0: the root is a volume billed apart).
    ``local_volumes`` is False where the cloud attaches block volumes only. ``deployable`` is False for the clouds that are
    listed for comparison alone.
    """

    cloud: str
    name: str
    gpu: str
    gpu_count: int
    gpu_memory_mib: int
    vcpus: int
    ram_gib: float
    scratch_gb: int = 0
    disk_gb: int = 0
    network_gbps: float | None = None
    interconnect: str = "pcie"
    local_volumes: bool = False
    retired: bool = False
    deployable: bool = True
    prices: dict[str, tuple[Price | None, Price | None]] = field(
        default_factory=dict, compare=False, repr=False
    )
    """Zone or region → (on demand, spot); None where no price is known."""

    @property
    def zones(self) -> tuple[str, ...]:
        """The zones (Scaleway) or regions (elsewhere) that list this type, sorted."""
        return tuple(sorted(self.prices))

    def price(self, zone: str, *, spot: bool = False) -> Price | None:
        """The price of an hour in ``zone``, or None when it is unknown or the type is not offered there."""
        return self.prices.get(zone, (None, None))[spot]


@dataclass(frozen=True, slots=True)
class VolumePrice:
    """What one decimal GB of a block volume costs for a month of 730 hours in ``zone`` (``*``: everywhere)."""

    kind: str
    zone: str
    per_gb_month: float
    currency: str
    as_of: date | None
    source: str


class CloudCatalog:
    """One cloud's file: types, price lists, and what volumes and public addresses cost."""

    def __init__(self, document: dict[str, Any], gpus: dict[str, Gpu]) -> None:
        self.cloud: str = document["cloud"]
        self.deployable: bool = document["deployable"]
        self._document = document
        self._gpus = gpus

    @cached_property
    def types(self) -> dict[str, InstanceType]:
        """Every type by its name, in the file's order."""
        prices = self._prices_by_type()
        return {
            name: InstanceType(
                cloud=self.cloud,
                name=name,
                gpu_memory_mib=self._gpus[facts["gpu"]].memory_mib,
                deployable=self.deployable,
                prices=prices.get(name, {}),
                **facts,
            )
            for name, facts in self._document["types"].items()
        }

    def volume_price(self, zone: str) -> VolumePrice | None:
        """The price of the root volume a node gets in ``zone``; None when it is unknown."""
        return next((VolumePrice(**row | {"as_of": _date(row)}) for row in self._rows("volumes", zone)), None)

    def address_price(self, zone: str) -> Price | None:
        """The price of one public IPv4 address in ``zone``; None when it is unknown."""
        return next(
            (
                Price(row["hourly"], row["currency"], _date(row), row["source"])
                for row in self._rows("addresses", zone)
            ),
            None,
        )

    def _rows(self, table: str, zone: str) -> Iterator[dict[str, Any]]:
        rows = self._document.get(table, [])
        for wanted in (zone, "*"):
            yield from (row for row in rows if row["zone"] == wanted)

    def _prices_by_type(self) -> dict[str, dict[str, tuple[Price | None, Price | None]]]:
        # Where two lists price the same thing the later one counts; an undated list comes before all others.
        lists = sorted(self._document["price_lists"], key=lambda entry: entry["as_of"] or "")
        found: dict[str, dict[str, tuple[Price | None, Price | None]]] = {}
        for entry in lists:
            as_of, spot = _date(entry), entry.get("spot", False)
            for name, amount in entry["hourly"].items():
                price = (
                    Price(amount, entry["currency"], as_of, entry["source"], spot)
                    if amount and amount > 0
                    else None
                )
                zones = found.setdefault(name, {})
                on_demand, spot_price = zones.get(entry["zone"], (None, None))
                zones[entry["zone"]] = (on_demand, price) if spot else (price, spot_price)
        return found


class Catalog:
    """All clouds; each file is read when first needed."""

    def __init__(self, directory: Path = DATA) -> None:
        self._directory = directory
        self._clouds: dict[str, CloudCatalog] = {}

    def cloud(self, cloud: str) -> CloudCatalog:
        """One cloud's part of the catalog.

        Raises KeyError for a cloud that the catalog does not have.
        """
        if cloud not in CLOUDS:
            raise KeyError(f"cloud: {cloud!r} is not in the catalog; it has {', '.join(CLOUDS)}")
        if cloud not in self._clouds:
            self._clouds[cloud] = CloudCatalog(self._read(cloud), self.gpus)
        return self._clouds[cloud]

    @cached_property
    def gpus(self) -> dict[str, Gpu]:
        """Every GPU model by its key (``L4``, ``H100``, …)."""
        return {name: Gpu(name=name, **facts) for name, facts in self._read("gpus").items()}

    def find(self, cloud: str, type_name: str) -> InstanceType | None:
        """The type of that exact name, or None."""
        return self.cloud(cloud).types.get(type_name)

    def suggest(self, cloud: str, type_name: str) -> list[str]:
        """Up to three names of that cloud which resemble ``type_name``, the nearest first."""
        names = {name.lower(): name for name in self.cloud(cloud).types}
        return [names[near] for near in difflib.get_close_matches(type_name.lower(), names)]

    def types(self, cloud: str | None = None) -> list[InstanceType]:
        """The types of one cloud, or of all."""
        clouds = CLOUDS if cloud is None else (cloud,)
        return [entry for name in clouds for entry in self.cloud(name).types.values()]

    def _read(self, name: str) -> Any:
        return json.loads((self._directory / f"{name}.json").read_bytes())


@cache
def catalog() -> Catalog:
    """The catalog that ships with this version."""
    return Catalog()


def _date(row: dict[str, Any]) -> date | None:
    return date.fromisoformat(row["as_of"]) if row["as_of"] else None
