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
from datetime import date
from typing import TYPE_CHECKING, Any

from fleet.catalog.document import Document, render

if TYPE_CHECKING:
    from mypy_boto3_pricing import PricingClient

TIMEOUT_S = 30.0
"""Seconds one request may take; price lists are a few hundred kilobytes."""
PAGE_SIZE = 100

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


def aws_offers(client: PricingClient, zones: Iterable[str]) -> list[Offer]:
    """On-demand Linux prices of GPU instances by the Price List API. It tells nothing of stock or spot."""
    fixed = {
        "instanceFamily": "GPU instance",
        "operatingSystem": "Linux",
        "preInstalledSw": "NA",
        "tenancy": "Shared",
        "capacitystatus": "Used",
        "marketoption": "OnDemand",
    }
    pages = client.get_paginator("get_products")
    offers = []
    for zone in zones:
        hourly: dict[str, float | None] = {}
        wanted = fixed | {"regionCode": zone}
        reply = pages.paginate(
            ServiceCode="AmazonEC2",
            Filters=[{"Type": "TERM_MATCH", "Field": name, "Value": value} for name, value in wanted.items()],
        )
        for page in reply:
            for entry in page["PriceList"]:
                product = json.loads(entry) if isinstance(entry, str) else entry
                hourly[product["product"]["attributes"]["instanceType"]] = _aws_price(product)
        offers.append(Offer(zone, "https://api.pricing.us-east-1.amazonaws.com AmazonEC2", hourly))
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
    """Put ``offers`` in place of the on-demand prices of their zones; other zones and spot prices stay.

    A type that a zone listed and no longer does stays listed there without a price, for a person to remove.
    Raises ValueError for a zone whose list came back empty: that is a broken API, not a sale of everything.
    """
    fetched = {offer.zone: offer for offer in offers}
    known = document["types"]
    before = listed_types(document)
    kept = [entry for entry in document["price_lists"] if entry["zone"] not in fetched or entry.get("spot")]
    for zone, offer in fetched.items():
        if before.get(zone) and not offer.hourly:
            raise ValueError(
                f"{document['cloud']} {zone}: {offer.source} lists no GPU type any more; nothing was changed"
            )
    fresh = [
        {
            "zone": zone,
            "source": offer.source,
            "as_of": today.isoformat(),
            "hourly": {
                name: offer.hourly.get(name)
                for name in {*offer.hourly, *before.get(zone, ())}
                if name in known
            },
        }
        for zone, offer in fetched.items()
    ]
    after = document | {"price_lists": kept + [entry for entry in fresh if entry["hourly"]]}
    return Refreshed(
        after,
        _diff(document, after),
        tuple(sorted({name for offer in fetched.values() for name in offer.hourly} - set(known))),
        {(offer.zone, name): word for offer in fetched.values() for name, word in offer.stock.items()},
    )


def listed_types(document: Document) -> dict[str, set[str]]:
    """Zone → the types that the on-demand price lists have there, priced or not."""
    listed: dict[str, set[str]] = {}
    for entry in document["price_lists"]:
        if not entry.get("spot"):
            listed.setdefault(entry["zone"], set()).update(entry["hourly"])
    return listed


def http_get(base: str, headers: dict[str, str] | None = None) -> GetJson:
    """A `GetJson` over HTTP. Raises httpx.HTTPError naming the URL when there is no 2xx reply within 30 s."""
    import httpx  # noqa: PLC0415  slow to import, and only a refresh needs it

    client = httpx.Client(headers=headers, timeout=TIMEOUT_S, transport=httpx.HTTPTransport(retries=2))

    def get(path: str) -> Any:
        # Joined by hand, as the base may have a path of its own.
        return client.get(base.rstrip("/") + path).raise_for_status().json()

    return get


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


def _aws_price(product: dict[str, Any]) -> float | None:
    for term in product["terms"].get("OnDemand", {}).values():
        for dimension in term["priceDimensions"].values():
            if dimension["unit"] == "Hrs":
                return _positive(dimension["pricePerUnit"].get("USD"))
    return None


def _positive(amount: object) -> float | None:
    """A price as it may be used: finite and above zero, else unknown."""
    try:
        number = float(amount)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number > 0 else None
