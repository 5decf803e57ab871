"""GPU instance types and their prices, cloud by cloud.

One JSON file a cloud lies in ``data/``; it is read when its cloud is first asked for. A file holds the facts
of each type and dated price lists, each with its source; where two lists price the same thing the later one
counts. A number that nobody published is not there. ``fleet catalog refresh`` brings the files up to date.

Types with NVIDIA GPUs are listed: whole ones (no fractions of a GPU), since CUDA is what the images run on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from functools import cache, cached_property
from pathlib import Path

from fleet.catalog.document import Document, Row

DATA = Path(__file__).parent / "data"
CLOUDS = ("scaleway", "aws", "linode", "gcp", "azure")
LOCATION_KEY = {"scaleway": "zone", "aws": "region", "linode": "region"}
"""What the clouds that this project deploys to call the place a node lives in."""
STALE_AFTER_DAYS = 90


@dataclass(frozen=True, slots=True)
class Price:
    """What one hour costs, and where that was read.

    ``amount`` is in ``currency`` (ISO 4217), before tax. ``as_of`` is None when the source carries no date.
    """

    amount: float
    currency: str
    as_of: date | None
    source: str
    spot: bool = False

    def stale(self, today: date) -> bool:
        """Older than 90 days, or of unknown age."""
        return self.as_of is None or (today - self.as_of).days > STALE_AFTER_DAYS

    def age(self, today: date) -> str:
        """How old it is, in words."""
        return "undated" if self.as_of is None else f"{(today - self.as_of).days} days old"


@dataclass(frozen=True, slots=True)
class Gpu:
    """A model of GPU. ``memory_mib`` is what the driver reports, less than ``nominal_gib`` promises."""

    name: str
    memory_mib: int
    nominal_gib: int
    compute_capability: str
    memory_gb_per_s: int


@dataclass(frozen=True, slots=True)
class InstanceType:
    """A type of server with GPUs.

    ``gpu_memory_mib`` and ``memory_gb_per_s`` are per GPU. ``scratch_gb`` is local NVMe in 10⁹ bytes, lost
    when the server stops. ``disk_gib`` is the root disk that comes with the plan, where the cloud states one.
    ``network_gbps`` is the baseline the cloud states. ``interconnect`` is how the GPUs reach each other:
    ``nvlink`` or ``pcie``. ``local_volumes`` is False where only block volumes can be attached.
    ``deployable`` is False for the clouds that are here for comparison alone.
    """

    cloud: str
    name: str
    gpu: str
    gpu_count: int
    gpu_memory_mib: int
    vcpus: int
    ram_gib: float
    compute_capability: str
    memory_gb_per_s: int
    scratch_gb: int = 0
    disk_gib: int | None = None
    network_gbps: float | None = None
    interconnect: str = "pcie"
    architecture: str = "x86_64"
    local_volumes: bool = False
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
        """An hour's price in ``zone``; None when it is unknown or the type is not offered there."""
        return self.prices.get(zone, (None, None))[spot]


@dataclass(frozen=True, slots=True)
class VolumePrice:
    """What 10⁹ bytes of a block volume cost for a month of 730 hours."""

    kind: str
    per_gb_month: float
    currency: str
    as_of: date | None
    source: str


class CloudCatalog:
    """One cloud's file: its types, its price lists, and what volumes and public addresses cost there."""

    def __init__(self, document: Document, gpus: dict[str, Gpu]) -> None:
        self.cloud: str = document["cloud"]
        self.currency: str = document["currency"]
        self.deployable: bool = document["deployable"]
        self.root_volume_included: bool = document["root_volume"] == "included"
        """True where the plan's price covers the root disk and a public address."""
        self._document = document
        self._gpus = gpus

    @cached_property
    def types(self) -> dict[str, InstanceType]:
        """Every type by its name."""
        prices = self._prices()
        return {
            name: self._type(name, facts, prices.get(name, {}))
            for name, facts in self._document["types"].items()
        }

    def volume_price(self, zone: str) -> VolumePrice | None:
        """What the root volume of a node in ``zone`` costs; None when that is unknown."""
        for row in self._rows("volumes", zone):
            return VolumePrice(row["kind"], row["per_gb_month"], self.currency, _date(row), row["source"])
        return None

    def address_price(self, zone: str) -> Price | None:
        """What a public IPv4 address in ``zone`` costs; None when that is unknown."""
        for row in self._rows("addresses", zone):
            return Price(row["hourly"], self.currency, _date(row), row["source"])
        return None

    def control_price(self, type_name: str, zone: str) -> Price | None:
        """What a type without GPUs costs an hour, that a control instance runs on; None when unknown."""
        for row in self._document.get("control_types", ()):
            if row["zone"] == zone and (amount := row["hourly"].get(type_name)):
                return Price(amount, self.currency, _date(row), row["source"])
        return None

    def _type(
        self, name: str, facts: Row, prices: dict[str, tuple[Price | None, Price | None]]
    ) -> InstanceType:
        gpu = self._gpus[facts["gpu"]]
        # Some boards carry slower memory than the model's usual one.
        facts.setdefault("memory_gb_per_s", gpu.memory_gb_per_s)
        return InstanceType(
            cloud=self.cloud,
            name=name,
            gpu_memory_mib=gpu.memory_mib,
            compute_capability=gpu.compute_capability,
            deployable=self.deployable,
            prices=prices,
            **facts,
        )

    def _rows(self, table: str, zone: str) -> Iterator[Row]:
        for wanted in (zone, "*"):
            yield from (row for row in self._document[table] if row["zone"] == wanted)

    def _prices(self) -> dict[str, dict[str, tuple[Price | None, Price | None]]]:
        found: dict[str, dict[str, tuple[Price | None, Price | None]]] = {}
        # The later list overwrites the earlier one; an undated list counts as the oldest.
        for entry in sorted(self._document["price_lists"], key=lambda entry: entry["as_of"] or ""):
            as_of, spot, zone = _date(entry), entry.get("spot", False), entry["zone"]
            for name, amount in entry["hourly"].items():
                known = amount is not None and amount > 0
                price = Price(amount, self.currency, as_of, entry["source"], spot) if known else None
                on_demand, spot_price = found.setdefault(name, {}).get(zone, (None, None))
                found[name][zone] = (on_demand, price) if spot else (price, spot_price)
        return found


class Catalog:
    """All clouds. Each file is read when it is first needed."""

    def __init__(self, directory: Path = DATA) -> None:
        self._directory = directory
        self._clouds: dict[str, CloudCatalog] = {}

    def cloud(self, cloud: str) -> CloudCatalog:
        """One cloud's part.

        Raises KeyError for a cloud that the catalog does not have.
        """
        if cloud not in CLOUDS:
            raise KeyError(f"cloud: {cloud!r} is not in the catalog; it has {', '.join(CLOUDS)}")
        if cloud not in self._clouds:
            self._clouds[cloud] = CloudCatalog(self.read(cloud), self.gpus)
        return self._clouds[cloud]

    @cached_property
    def gpus(self) -> dict[str, Gpu]:
        """Every model of GPU by its key (``L4``, ``H100``, …)."""
        return {name: Gpu(name=name, **facts) for name, facts in self.read("gpus")["gpus"].items()}

    def find(self, cloud: str, type_name: str) -> InstanceType | None:
        """The type of exactly that name, or None."""
        return self.cloud(cloud).types.get(type_name)

    def suggest(self, cloud: str, type_name: str) -> list[str]:
        """Up to three names of that cloud that resemble ``type_name``, the nearest first."""
        import difflib  # noqa: PLC0415  needed only after a typing error

        names = {name.lower(): name for name in self.cloud(cloud).types}
        return [names[near] for near in difflib.get_close_matches(type_name.lower(), names)]

    def types(self, cloud: str | None = None) -> list[InstanceType]:
        """The types of one cloud, or of all."""
        clouds = CLOUDS if cloud is None else (cloud,)
        return [entry for name in clouds for entry in self.cloud(name).types.values()]

    def read(self, name: str) -> Document:
        """A data file as it is on disk: a cloud's, ``gpus`` or ``exchange``."""
        document: Document = json.loads((self._directory / f"{name}.json").read_bytes())
        return document


@cache
def catalog() -> Catalog:
    """The catalog that comes with this version."""
    return Catalog()


def _date(row: Row) -> date | None:
    return date.fromisoformat(row["as_of"]) if row["as_of"] else None
