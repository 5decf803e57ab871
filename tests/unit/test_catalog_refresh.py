"""A refresh changes in a cloud's file just what its price API changed, and trusts no price of nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import boto3
import httpx
import pytest
from botocore.stub import ANY, Stubber
from small_catalog import document
from starlette.testclient import TestClient

from fleet.catalog import Catalog
from fleet.catalog.refresh import (
    GetJson,
    Offer,
    Refreshed,
    aws_offers,
    aws_spot_offers,
    http_get,
    linode_offers,
    listed_types,
    merge,
    scaleway_offers,
)
from simcloud.app import make_app
from simcloud.cloud import Cloud, Simulation
from simcloud.linode import DEV_TOKEN, Linode
from simcloud.linode import catalog as simulated_linode
from simcloud.machines import NoNodes
from simcloud.scaleway import DEV_SECRET_KEY, Scaleway
from simcloud.scaleway import catalog as simulated

TODAY = date(2026, 11, 22)
KEYS = {"X-Auth-Token": DEV_SECRET_KEY, "Authorization": f"Bearer {DEV_TOKEN}"}
"""What the embedded clouds let in."""


def lines(diff: str) -> list[str]:
    """The changed lines of a unified diff, without its headers."""
    return [line for line in diff.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]


def replies(pages: dict[str, Any]) -> GetJson:
    """A `GetJson` over literals, keyed by path and page."""

    def get(path: str) -> Any:
        url = urlsplit(path)
        return pages[f"{url.path}#{parse_qs(url.query)['page'][0]}"]

    return get


# --- merge ----------------------------------------------------------------------------------------------


OLD = document(
    price_lists=[
        {"zone": "a", "source": "https://x", "as_of": "2026-11-22", "hourly": {"one": 1.0, "two": 2.0}},
        {"zone": "b", "source": "https://x", "as_of": "2026-01-01", "hourly": {"one": 1.0}},
        {"zone": "a", "source": "https://x", "as_of": "2026-01-01", "spot": True, "hourly": {"one": 0.1}},
    ]
)


def test_the_same_prices_on_the_same_day_are_no_diff() -> None:
    assert merge(OLD, [Offer("a", "https://x", {"two": 2.0, "one": 1.0})], TODAY).diff == ""


def test_a_changed_price_is_one_changed_line() -> None:
    refreshed = merge(OLD, [Offer("a", "https://x", {"one": 1.0, "two": 2.5})], TODAY)
    assert lines(refreshed.diff) == ['-    "two": 2.0', '+    "two": 2.5']
    assert refreshed.diff.startswith("--- a/scaleway.json\n+++ b/scaleway.json\n")


def test_a_confirmed_price_is_dated_anew_and_other_zones_and_spot_stay() -> None:
    refreshed = merge(OLD, [Offer("b", "https://x", {"one": 1.0})], TODAY)
    assert lines(refreshed.diff) == ['-   "as_of": "2026-01-01",', '+   "as_of": "2026-11-22",']


def test_a_type_that_is_no_longer_listed_has_no_price_any_more() -> None:
    refreshed = merge(OLD, [Offer("a", "https://x", {"one": 1.0})], TODAY)
    assert lines(refreshed.diff) == ['-    "two": 2.0', '+    "two": null']


def test_a_type_without_facts_is_reported_not_added() -> None:
    refreshed = merge(OLD, [Offer("a", "https://x", {"one": 1.0, "two": 2.0, "three": 3.0})], TODAY)
    assert (refreshed.diff, refreshed.unknown_types) == ("", ("three",))


def test_an_emptied_price_list_stops_the_refresh() -> None:
    with pytest.raises(
        ValueError, match="scaleway a: https://x lists no GPU type any more; nothing was changed"
    ):
        merge(OLD, [Offer("a", "https://x", {})], TODAY)


# --- fetchers -------------------------------------------------------------------------------------------

PRODUCTS = "/instance/v1/zones/fr-par-2/products/servers"


def test_scaleway_is_read_page_by_page_and_only_its_gpu_types() -> None:
    first = {f"CPU-{number}": {"gpu": 0, "hourly_price": 0.1} for number in range(100)}
    stock = {f"CPU-{number}": {"availability": "available"} for number in range(100)}
    second = {"L4-1-24G": {"gpu": 1, "hourly_price": 0.7875}, "L4-2-24G": {"gpu": 2, "hourly_price": 0}}
    get = replies(
        {
            f"{PRODUCTS}#1": {"servers": first},
            f"{PRODUCTS}#2": {"servers": second},
            f"{PRODUCTS}/availability#1": {"servers": stock},
            f"{PRODUCTS}/availability#2": {"servers": {"L4-1-24G": {"availability": "scarce"}}},
        }
    )
    (offer,) = scaleway_offers(get, ["fr-par-2"])
    assert offer.hourly == {"L4-1-24G": 0.7875, "L4-2-24G": None}
    assert offer.stock == {"L4-1-24G": "scarce"}


def linode(plans: list[dict[str, Any]], rows: list[tuple[str, str, bool]]) -> GetJson:
    availability = [{"region": region, "plan": plan, "available": there} for region, plan, there in rows]
    return replies(
        {
            "/v4/linode/types#1": {"data": plans[:1], "page": 1, "pages": 2},
            "/v4/linode/types#2": {"data": plans[1:], "page": 2, "pages": 2},
            "/v4/regions/availability#1": {"data": availability, "page": 1, "pages": 1},
        }
    )


def test_linode_prices_follow_the_region_and_stock_does_not_hide_a_price() -> None:
    exceptions = [{"id": "id-cgk", "hourly": 0.62}]
    get = linode(
        [
            {"id": "small", "gpus": 1, "price": {"hourly": 0.52}, "region_prices": exceptions},
            {"id": "free", "gpus": 1, "price": {"hourly": 0.0}, "region_prices": []},
            {"id": "g6-nanode-1", "gpus": 0, "price": {"hourly": 0.0075}, "region_prices": []},
        ],
        [
            ("id-cgk", "small", True),
            ("us-ord", "small", False),
            ("us-ord", "free", True),
            ("us-ord", "g6-nanode-1", True),
            ("us-west", "small", False),
        ],
    )
    offers = {offer.zone: offer for offer in linode_offers(get, {"us-ord": {"small"}})}
    assert {zone: offer.hourly for zone, offer in offers.items()} == {
        "id-cgk": {"small": 0.62},
        "us-ord": {"free": None, "small": 0.52},
    }
    assert offers["us-ord"].stock == {"free": "available", "small": "shortage"}


def boto(service: str) -> Any:
    """A client that asks nobody: for a stub."""
    factory: Any = boto3.client
    return factory(service, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")


def product(name: str, *dimensions: dict[str, Any]) -> str:
    terms = {"OnDemand": {"T": {"priceDimensions": {str(i): entry for i, entry in enumerate(dimensions)}}}}
    return json.dumps({"product": {"attributes": {"instanceType": name}}, "terms": terms})


def test_aws_is_asked_for_shared_linux_gpu_instances_of_one_region() -> None:
    client = boto("pricing")
    listed = [
        product("g6.xlarge", {"unit": "Hrs", "pricePerUnit": {"USD": "0.8048000000"}}),
        product("p5e.48xlarge", {"unit": "Hrs", "pricePerUnit": {"USD": "0.0000000000"}}),
        json.dumps({"product": {"attributes": {"instanceType": "p6.48xlarge"}}, "terms": {}}),
    ]
    with Stubber(client) as stub:
        for found in (listed, []):
            reply = {"PriceList": found}
            stub.add_response("get_products", reply, {"ServiceCode": "AmazonEC2", "Filters": ANY})
        (offer,) = aws_offers(client, ["us-east-1"])
    assert offer.hourly == {"g6.xlarge": 0.8048, "p5e.48xlarge": None, "p6.48xlarge": None}


def test_aws_tells_what_volumes_and_control_instances_cost() -> None:
    client = boto("pricing")
    control = product("t3.large", {"unit": "Hrs", "pricePerUnit": {"USD": "0.0928"}})
    volume = product("", {"unit": "GB-Mo", "pricePerUnit": {"USD": "0.088"}})
    with Stubber(client) as stub:
        for listed in ([], [control], [volume]):
            reply = {"PriceList": listed}
            stub.add_response("get_products", reply, {"ServiceCode": "AmazonEC2", "Filters": ANY})
        (offer,) = aws_offers(client, ["eu-west-1"], ["t3.large"])
    assert (offer.control, offer.volume) == ({"t3.large": 0.0928}, 0.088)
    old = document(
        volumes=[{"kind": "gp3", "zone": "b", "per_gb_month": 0.08, "as_of": None, "source": "https://x"}],
        control_types=[{"zone": "b", "source": "https://x", "as_of": None, "hourly": {"t3.large": 0.08}}],
        price_lists=[],
    )
    now = merge(old, [replace(offer, zone="a"), replace(offer, zone="b", volume=None)], TODAY).document
    assert [(row["zone"], row["per_gb_month"], row["as_of"]) for row in now["volumes"]] == [
        ("a", 0.088, "2026-11-22"),
        ("b", 0.08, None),
    ]
    assert sorted((row["zone"], row["hourly"]["t3.large"]) for row in now["control_types"]) == [
        ("a", 0.0928),
        ("b", 0.0928),
    ]


def spot_price(zone: str, type_: str, price: str, description: str = "Linux/UNIX") -> dict[str, str]:
    return {
        "AvailabilityZone": zone,
        "InstanceType": type_,
        "SpotPrice": price,
        "ProductDescription": description,
    }


def test_spot_prices_are_the_dearest_of_a_regions_zones_and_only_where_the_account_may_look() -> None:
    client = boto("ec2")
    history = [
        spot_price("us-east-1a", "one", "0.31"),
        spot_price("us-east-1b", "one", "0.29"),
        spot_price("us-east-1a", "two", "0.0"),
        spot_price("us-east-1a", "two", "0.00001", "Linux/UNIX (Amazon VPC)"),
    ]
    asked: list[str] = []

    def ec2(region: str) -> Any:
        asked.append(region)
        return client

    with Stubber(client) as stub:
        regions = {"Regions": [{"RegionName": "us-east-1"}, {"RegionName": "us-east-2"}]}
        stub.add_response("describe_regions", regions, {})
        wanted = [{"Name": "instance-type", "Values": ["one", "two"]}]
        stub.add_response(
            "describe_spot_price_history",
            {"SpotPriceHistory": history},
            {"Filters": wanted, "ProductDescriptions": ["Linux/UNIX"], "StartTime": ANY},
        )
        listed = {"us-east-1": {"one", "two"}, "me-south-1": {"one"}}
        (offer,) = aws_spot_offers(ec2, listed, datetime(2026, 11, 22, tzinfo=UTC))
    assert asked == ["us-east-1", "us-east-1"]
    assert (offer.zone, offer.spot, offer.hourly) == ("us-east-1", True, {"one": 0.31})


def test_spot_prices_take_the_place_of_spot_prices_alone() -> None:
    refreshed = merge(OLD, [Offer("a", "https://x", {"one": 0.2}, spot=True)], TODAY)
    assert lines(refreshed.diff) == [
        '-   "as_of": "2026-01-01",',
        '+   "as_of": "2026-11-22",',
        '-    "one": 0.1',
        '+    "one": 0.2',
    ]


def test_a_refused_request_is_an_error_that_names_its_url(tmp_path: Path) -> None:
    with pytest.raises(httpx.HTTPError):
        http_get("http://127.0.0.1:9")("/v4/linode/types?page=1")


# --- the embedded clouds --------------------------------------------------------------------------------


def embedded(folder: Path, cloud: Callable[[Simulation], Cloud], prefix: str) -> Iterator[GetJson]:
    app = make_app(
        folder, clouds=lambda simulation: [cloud(simulation)], backend=NoNodes(), ssh_port=10022, speed=0
    )
    with TestClient(app, headers=KEYS) as http:
        yield lambda path: http.get(f"{prefix}{path}").raise_for_status().json()


@pytest.fixture
def embedded_scaleway(tmp_path: Path) -> Iterator[GetJson]:
    yield from embedded(tmp_path, Scaleway, "/scaleway")


@pytest.fixture
def embedded_linode(tmp_path: Path) -> Iterator[GetJson]:
    yield from embedded(tmp_path, Linode, "/linode")


def test_what_the_embedded_scaleway_changes_is_what_the_catalog_changes(
    embedded_scaleway: GetJson, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = merge(
        Catalog().read("scaleway"), scaleway_offers(embedded_scaleway, ["fr-par-2"]), TODAY
    ).document
    assert "L4-1-24G" in listed_types(before)["fr-par-2"]
    assert merge(before, scaleway_offers(embedded_scaleway, ["fr-par-2"]), TODAY).diff == ""
    dearer = replace(simulated.TYPES["L4-1-24G"], hourly_price=0.9)
    monkeypatch.setitem(simulated.TYPES, "L4-1-24G", dearer)
    refreshed = merge(before, scaleway_offers(embedded_scaleway, ["fr-par-2"]), TODAY)
    assert lines(refreshed.diff) == ['-    "L4-1-24G": 0.7875,', '+    "L4-1-24G": 0.9,']


def test_what_the_embedded_linode_changes_is_what_the_catalog_changes(
    embedded_linode: GetJson, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetched(document: dict[str, Any]) -> Refreshed:
        return merge(document, linode_offers(embedded_linode, listed_types(document)), TODAY)

    before = fetched(Catalog().read("linode")).document
    assert fetched(before).diff == ""
    name = "g2-gpu-rtx4000a1-s"
    monkeypatch.setitem(simulated_linode.PLANS, name, replace(simulated_linode.PLANS[name], hourly=0.6))
    changed = lines(fetched(before).diff)
    zones = [zone for zone, types in listed_types(before).items() if name in types]
    assert sorted(changed) == sorted([f'-    "{name}": 0.52,', f'+    "{name}": 0.6,'] * len(zones))
