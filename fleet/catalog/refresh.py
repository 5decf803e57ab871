"""Bring the catalog's prices up to date from the clouds' own price APIs, as a diff that a person can read.

A fetcher asks one cloud and returns an `Offer` per zone; `merge` puts offers into the cloud's file. A price
that is missing, zero or negative is unknown (null in the file): $0 in a list must never win a comparison.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

from fleet.catalog.document import Document, Row, render

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_pricing import PricingClient
    from mypy_boto3_pricing.type_defs import FilterTypeDef

TIMEOUT_S = 30.0
"""Seconds one request may take; price lists are a few hundred kilobytes."""
PAGE_SIZE = 100
AWS_VOLUME = "gp3"
LINUX = "Linux/UNIX"
"""What EC2 calls the spot prices of instances whose image costs nothing."""

GetJson = Callable[[str], Any]
"""Path and query → the decoded reply. Raises on any status but 2xx."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a cloud says of one zone. ``hourly``: type → price an hour, None where it gives none."""

    zone: str
    source: str
    hourly: dict[str, float | None]
    stock: dict[str, str] = field(default_factory=dict)
    """Type → the cloud's own word (available, scarce, shortage)."""
    spot: bool = False
    """Whether ``hourly`` is of spare capacity."""
    control: dict[str, float | None] = field(default_factory=dict)
    """The same of the types without GPUs that control instances run on."""
    volume: float | None = None
    """What a GB of a root volume costs a month; None where the cloud was not asked or did not say."""


def scaleway_offers(get: GetJson, zones: Iterable[str]) -> list[Offer]:
    """Prices and stock of GPU types, by ``/products/servers`` and ``/products/servers/availability``."""
    offers = []
    for zone in zones:
        path = f"/instance/v1/zones/{zone}/products/servers"
        servers = {name: entry for name, entry in _servers(get, path) if entry.get("gpu")}
        stock = {name: entry["availability"] for name, entry in _servers(get, f"{path}/availability")}
        offers.append(
            Offer(
                zone,
                f"https://api.scaleway.com{path}",
                {name: _positive(entry.get("hourly_price")) for name, entry in servers.items()},
                {name: stock[name] for name in servers if name in stock},
            )
        )
    return offers


def linode_offers(get: GetJson, listed: Mapping[str, Collection[str]]) -> list[Offer]:
    """Prices and stock of GPU plans by ``/v4/linode/types`` and ``/v4/regions/availability``.

    A plan has one price, with exceptions by region. Of a region the API says only what it has in stock, so
    the plans that the catalog has ``listed`` there keep being priced when they are sold out.
    """
    plans = {entry["id"]: entry for entry in _linode_pages(get, "/v4/linode/types") if entry.get("gpus")}
    stock: dict[str, dict[str, str]] = {zone: {} for zone in listed}
    for row in _linode_pages(get, "/v4/regions/availability"):
        if row["plan"] in plans:
            word = "available" if row["available"] else "shortage"
            stock.setdefault(row["region"], {})[row["plan"]] = word
    offers = []
    for zone, words in sorted(stock.items()):
        here = {name for name, word in words.items() if word == "available"} | set(listed.get(zone, ()))
        hourly = {name: _linode_price(plans[name], zone) for name in sorted(here & set(plans))}
        if hourly:
            known = {name: words[name] for name in hourly if name in words}
            offers.append(Offer(zone, "https://api.linode.com/v4/linode/types", hourly, known))
    return offers


def aws_offers(
    client: PricingClient, zones: Iterable[str], control_types: Collection[str] = ()
) -> list[Offer]:
    """On-demand Linux prices by the Price List API: of GPU instances, of ``control_types``, and of volumes.

    It tells nothing of stock or spot.
    """
    fixed = {
        "operatingSystem": "Linux",
        "preInstalledSw": "NA",
        "tenancy": "Shared",
        "capacitystatus": "Used",
        "marketoption": "OnDemand",
    }
    offers = []
    for zone in zones:
        here = fixed | {"regionCode": zone}
        volume = {"productFamily": "Storage", "volumeApiName": AWS_VOLUME, "regionCode": zone}
        control = _products(client, here, instanceType=sorted(control_types)) if control_types else ()
        offers.append(
            Offer(
                zone,
                "https://api.pricing.us-east-1.amazonaws.com AmazonEC2",
                _aws_hourly(_products(client, here | {"instanceFamily": "GPU instance"})),
                control=_aws_hourly(control),
                volume=next((_aws_price(found, "GB-Mo") for found in _products(client, volume)), None),
            )
        )
    return offers


def aws_spot_offers(
    ec2: Callable[[str], EC2Client], listed: Mapping[str, Collection[str]], now: datetime
) -> list[Offer]:
    """Spot prices that are in force at ``now``, by EC2 itself, in the regions that the account has enabled.

    ``ec2`` gives the client of a region. Each availability zone has its own price; the dearest counts, since
    an instance may come to run in any of them.
    """
    enabled = {region["RegionName"] for region in ec2("us-east-1").describe_regions()["Regions"]}
    offers = []
    for zone in sorted(enabled & set(listed)):
        hourly: dict[str, float | None] = {}
        history = ec2(zone).get_paginator("describe_spot_price_history")
        pages = history.paginate(
            Filters=[{"Name": "instance-type", "Values": sorted(listed[zone])}],
            ProductDescriptions=[LINUX],
            StartTime=now,
        )
        for entry in (entry for page in pages for entry in page["SpotPriceHistory"]):
            price = _positive(entry["SpotPrice"])
            if entry["ProductDescription"] == LINUX and price is not None:
                hourly[entry["InstanceType"]] = max(price, hourly.get(entry["InstanceType"]) or 0)
        source = f"https://ec2.{zone}.amazonaws.com DescribeSpotPriceHistory"
        offers.append(Offer(zone, source, hourly, spot=True))
    return offers


@dataclass(frozen=True, slots=True)
class Refreshed:
    """A cloud's file after a refresh, and what a person should know about it."""

    document: Document
    diff: str
    """Unified diff of the file; empty when nothing changed."""
    unknown_types: tuple[str, ...]
    """GPU types the cloud offers and the catalog has no facts of."""
    stock: dict[tuple[str, str], str]
    """(zone, type) → the cloud's own word."""


def merge(document: Document, offers: Iterable[Offer], today: date) -> Refreshed:
    """Put ``offers`` in place of the prices of their zones; other zones stay, and spot where none is offered.

    A type that a zone listed and no longer does stays listed there without a price, for a person to remove.
    Raises ValueError for a zone whose list came back empty: that is a broken API, not a sale of everything.
    """
    fetched = list(offers)
    replaced = {(offer.zone, offer.spot) for offer in fetched}
    after = document | {
        "price_lists": [
            *(
                entry
                for entry in document["price_lists"]
                if (entry["zone"], entry.get("spot", False)) not in replaced
            ),
            *(entry for offer in fetched if (entry := _price_list(document, offer, today))["hourly"]),
        ]
    }
    for offer in fetched:
        _put_control(after, offer, today)
        _put_volume(after, offer, today)
    return Refreshed(
        after,
        _diff(document, after),
        tuple(sorted({name for offer in fetched for name in offer.hourly} - set(document["types"]))),
        {(offer.zone, name): word for offer in fetched for name, word in offer.stock.items()},
    )


def listed_types(document: Document, *, spot: bool = False) -> dict[str, set[str]]:
    """Zone → the types that the price lists have there, priced or not."""
    listed: dict[str, set[str]] = {}
    for entry in document["price_lists"]:
        if entry.get("spot", False) == spot:
            listed.setdefault(entry["zone"], set()).update(entry["hourly"])
    return listed


def control_types(document: Document) -> set[str]:
    """The types without GPUs that the file prices."""
    return {name for entry in document.get("control_types", ()) for name in entry["hourly"]}


def http_get(base: str, headers: dict[str, str] | None = None) -> GetJson:
    """A `GetJson` over HTTP. Raises httpx.HTTPError naming the URL when there is no 2xx reply within 30 s."""
    import httpx  # noqa: PLC0415  slow to import, and only a refresh needs it

    client = httpx.Client(headers=headers, timeout=TIMEOUT_S, transport=httpx.HTTPTransport(retries=2))

    def get(path: str) -> Any:
        # Joined by hand, as the base may have a path of its own.
        return client.get(base.rstrip("/") + path).raise_for_status().json()

    return get


def _price_list(document: Document, offer: Offer, today: date) -> Row:
    before = listed_types(document, spot=offer.spot).get(offer.zone, set())
    if before and not offer.hourly:
        raise ValueError(
            f"{document['cloud']} {offer.zone}: {offer.source} lists no GPU type any more; "
            "nothing was changed"
        )
    names = {*offer.hourly, *before} & set(document["types"])
    kind = {"spot": True} if offer.spot else {}
    return _dated(offer, today) | kind | {"hourly": {name: offer.hourly.get(name) for name in names}}


def _dated(offer: Offer, today: date) -> Row:
    return {"zone": offer.zone, "source": offer.source, "as_of": today.isoformat()}


def _put_control(document: Document, offer: Offer, today: date) -> None:
    if offer.control:
        kept = [entry for entry in document.get("control_types", ()) if entry["zone"] != offer.zone]
        document["control_types"] = [*kept, _dated(offer, today) | {"hourly": offer.control}]


def _put_volume(document: Document, offer: Offer, today: date) -> None:
    if offer.volume is None:
        return
    kept = [row for row in document["volumes"] if row["zone"] != offer.zone]
    row = {"kind": AWS_VOLUME, "zone": offer.zone, "per_gb_month": offer.volume}
    document["volumes"] = sorted(
        [*kept, row | {"as_of": today.isoformat(), "source": offer.source}], key=lambda row: str(row["zone"])
    )


def _diff(before: Document, after: Document) -> str:
    name = f"{before['cloud']}.json"
    old, new = (render(document).splitlines(keepends=True) for document in (before, after))
    return "".join(difflib.unified_diff(old, new, f"a/{name}", f"b/{name}"))


def _servers(get: GetJson, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Scaleway's pages of ``servers``, one after the other; the last one is not full."""
    page = 1
    while True:
        servers = get(f"{path}?page={page}&per_page={PAGE_SIZE}")["servers"]
        yield from servers.items()
        if len(servers) < PAGE_SIZE:
            return
        page += 1


def _linode_pages(get: GetJson, path: str) -> Iterator[dict[str, Any]]:
    page = pages = 1
    while page <= pages:
        reply = get(f"{path}?page={page}&page_size={PAGE_SIZE}")
        yield from reply["data"]
        page, pages = page + 1, reply["pages"]


def _linode_price(plan: dict[str, Any], region: str) -> float | None:
    exceptions = {entry["id"]: entry for entry in plan.get("region_prices", [])}
    return _positive(exceptions.get(region, plan["price"]).get("hourly"))


def _products(client: PricingClient, equal: Mapping[str, str], **any_of: list[str]) -> Iterator[Row]:
    filters: list[FilterTypeDef] = [
        {"Type": "TERM_MATCH", "Field": name, "Value": value} for name, value in equal.items()
    ]
    filters += [
        {"Type": "ANY_OF", "Field": name, "Value": ",".join(values)} for name, values in any_of.items()
    ]
    for page in client.get_paginator("get_products").paginate(ServiceCode="AmazonEC2", Filters=filters):
        for entry in page["PriceList"]:
            yield json.loads(entry) if isinstance(entry, str) else entry


def _aws_hourly(products: Iterable[Row]) -> dict[str, float | None]:
    return {found["product"]["attributes"]["instanceType"]: _aws_price(found, "Hrs") for found in products}


def _aws_price(product: Row, unit: str) -> float | None:
    for term in product["terms"].get("OnDemand", {}).values():
        for dimension in term["priceDimensions"].values():
            if dimension["unit"] == unit:
                return _positive(dimension["pricePerUnit"].get("USD"))
    return None


def _positive(amount: object) -> float | None:
    """A price as it may be used: finite and above zero, else unknown."""
    try:
        number = float(amount)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number > 0 else None
