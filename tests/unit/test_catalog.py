"""The catalog: its data against a strict model, and what its loader answers."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Literal, Self

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from small_catalog import document, write

from fleet.catalog import CLOUDS, DATA, Catalog, Price, catalog
from fleet.catalog.document import render

ZONE = r"^[a-z0-9-]+$"
SOURCE = r"^https://"
Amount = Annotated[float, Field(gt=0, lt=1000)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Dated(Strict):
    source: str = Field(pattern=SOURCE)
    as_of: str | None

    @field_validator("as_of")
    @classmethod
    def _past_day(cls, value: str | None) -> str | None:
        assert value is None or date(2020, 1, 1) <= date.fromisoformat(value) <= date.today(), value
        return value


class Facts(Strict):
    gpu: str
    gpu_count: int = Field(ge=1, le=16)
    vcpus: int = Field(ge=2, le=512)
    ram_gib: float = Field(ge=8, le=8192)
    scratch_gb: int = Field(default=0, ge=0)
    disk_gib: int | None = Field(default=None, ge=100)
    network_gbps: float | None = Field(default=None, gt=0)
    memory_gb_per_s: int = Field(default=300, ge=300)
    interconnect: Literal["pcie", "nvlink"] = "pcie"
    architecture: Literal["x86_64", "arm64"] = "x86_64"
    local_volumes: bool = False


class PriceList(Dated):
    zone: str = Field(pattern=ZONE)
    spot: Literal[True] | None = None
    hourly: dict[str, Amount | None] = Field(min_length=1)

    @model_validator(mode="after")
    def _dated(self) -> Self:
        assert self.as_of or not any(self.hourly.values()), f"{self.zone}: a price without a date"
        return self


class Volume(Dated):
    as_of: str
    kind: str
    zone: str = Field(pattern=r"^(\*|[a-z0-9-]+)$")
    per_gb_month: Annotated[float, Field(gt=0, lt=1)]


class Address(Dated):
    as_of: str
    zone: str = Field(pattern=r"^(\*|[a-z0-9-]+)$")
    hourly: Annotated[float, Field(gt=0, lt=0.1)]


class File(Strict):
    cloud: str
    currency: Literal["EUR", "USD"]
    deployable: bool
    facts_source: str = Field(pattern=SOURCE)
    root_volume: Literal["billed", "included"]
    types: dict[str, Facts] = Field(min_length=10)
    price_lists: list[PriceList]
    volumes: list[Volume]
    addresses: list[Address]
    control_types: list[PriceList] = []


@pytest.mark.parametrize("cloud", CLOUDS)
def test_every_file_is_well_formed_and_every_price_has_a_source_and_a_date(cloud: str) -> None:
    document = Catalog().read(cloud)
    checked = File.model_validate(document)
    assert checked.cloud == cloud
    for entry in checked.price_lists:
        assert entry.hourly.keys() <= checked.types.keys(), f"{entry.zone}: prices of types without facts"
    assert {facts.gpu for facts in checked.types.values()} <= Catalog().gpus.keys()
    assert (DATA / f"{cloud}.json").read_text(encoding="utf-8") == render(document), (
        "not in the stable layout"
    )


def test_a_type_is_found_with_the_memory_its_driver_reports() -> None:
    found = catalog().find("scaleway", "L4-1-24G")
    assert found is not None
    assert (found.gpu, found.gpu_count, found.gpu_memory_mib) == ("L4", 1, 23034)
    assert found.local_volumes is False
    price = found.price("fr-par-2")
    assert price is not None
    assert (price.amount, price.currency, price.as_of) == (0.7875, "EUR", date(2026, 10, 1))


def test_the_types_that_guides_mix_up_are_told_apart() -> None:
    l40s, l4 = catalog().find("aws", "g6e.xlarge"), catalog().find("aws", "g6.xlarge")
    assert l40s is not None and l4 is not None
    assert (l40s.gpu, l4.gpu) == ("L40S", "L4")
    assert l40s.price("us-east-1") != l4.price("us-east-1")


def test_a_near_miss_is_answered_with_the_right_name() -> None:
    assert catalog().find("scaleway", "L4-1-24") is None
    assert catalog().suggest("scaleway", "l4-1-24")[0] == "L4-1-24G"


def test_an_unknown_cloud_is_refused_with_the_known_ones() -> None:
    with pytest.raises(KeyError, match="scaleway, aws, linode"):
        catalog().types("ovh")


def test_clouds_for_comparison_are_never_deployable() -> None:
    assert {kind.cloud for kind in catalog().types() if not kind.deployable} == {"gcp", "azure"}


def test_the_later_price_counts_and_an_undated_one_is_the_oldest(tmp_path: Path) -> None:
    lists = [
        {"zone": "z", "source": "https://new", "as_of": "2026-02-01", "hourly": {"one": 2.0}},
        {"zone": "z", "source": "https://undated", "as_of": None, "hourly": {"one": 0.1, "two": 9.0}},
        {"zone": "z", "source": "https://old", "as_of": "2026-01-01", "hourly": {"one": 1.0}},
    ]
    prices = write(tmp_path, document(price_lists=lists))
    one, two = prices.find("scaleway", "one"), prices.find("scaleway", "two")
    assert one is not None and two is not None
    assert one.price("z") == Price(2.0, "EUR", date(2026, 2, 1), "https://new")
    assert two.price("z") == Price(9.0, "EUR", None, "https://undated")


@pytest.mark.parametrize("amount", [0, 0.0, -1.5, None])
def test_a_price_of_nothing_is_unknown_and_hides_an_older_one(tmp_path: Path, amount: float | None) -> None:
    lists = [
        {"zone": "z", "source": "https://old", "as_of": "2026-01-01", "hourly": {"one": 1.0}},
        {"zone": "z", "source": "https://new", "as_of": "2026-02-01", "hourly": {"one": amount}},
    ]
    prices = write(tmp_path, document(price_lists=lists))
    one = prices.find("scaleway", "one")
    assert one is not None
    assert one.zones == ("z",)
    assert one.price("z") is None


@pytest.mark.parametrize(("days", "stale"), [(0, False), (90, False), (91, True), (None, True)])
def test_a_price_is_stale_after_ninety_days_or_without_a_date(days: int | None, stale: bool) -> None:
    today = date(2026, 11, 22)
    as_of = None if days is None else today - timedelta(days=days)
    assert Price(1.0, "EUR", as_of, "https://x").stale(today) is stale


def test_one_cloud_is_read_without_the_others(tmp_path: Path) -> None:
    prices = write(tmp_path, document())
    assert prices.types("scaleway")
    with pytest.raises(FileNotFoundError):
        prices.types("aws")
