"""What a node costs, what a budget allows, what has outlived its time, and what a state says is billed."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from small_catalog import document, write
from small_state import node, resource, state

from fleet.billing import billed, lifetimes, node_urns, protected, report
from fleet.cost import (
    Cost,
    ExchangeRate,
    Lifetime,
    Part,
    check_budget,
    default_rate,
    node_cost_per_hour,
    outlived,
)
from fleet.jobs import Job, Result, Status

RATE = ExchangeRate(1.10, date(2026, 1, 1), "a test")


def fixed(amount: float, currency: str = "EUR") -> Cost:
    return Cost((Part("server", amount, date(2026, 1, 1), "https://x"),), currency)


# --- a node ---------------------------------------------------------------------------------------------


def test_a_node_costs_its_server_its_volume_and_its_address() -> None:
    cost = node_cost_per_hour("scaleway", "fr-par-2", "L4-1-24G", 200)
    assert [part.name for part in cost.parts] == ["server", "root volume", "public address"]
    assert cost.total == pytest.approx(0.7875 + 200 * 0.00013 + 0.005, abs=1e-6)
    assert cost.per_month == pytest.approx(730 * (cost.total or 0))
    assert cost.currency == "EUR"
    assert cost.as_of == min(part.as_of for part in cost.parts if part.as_of)


def test_on_linode_disk_and_address_are_in_the_plan() -> None:
    cost = node_cost_per_hour("linode", "us-ord", "g2-gpu-rtx4000a1-s", 200)
    assert [part.name for part in cost.parts] == ["server"]
    assert (cost.total, cost.currency) == (0.52, "USD")


def test_a_stopped_server_still_pays_for_its_volume_but_a_stopped_linode_for_everything() -> None:
    stopped = node_cost_per_hour("scaleway", "fr-par-2", "L4-1-24G", 200, running=False)
    assert [part.name for part in stopped.parts] == ["root volume", "public address"]
    assert node_cost_per_hour("linode", "us-ord", "g2-gpu-rtx4000a1-s", 200, running=False).total == 0.52


def test_a_volume_without_its_server_pays_for_itself_alone() -> None:
    left = node_cost_per_hour("scaleway", "fr-par-2", None, 200)
    assert [part.name for part in left.parts] == ["root volume"]


@pytest.mark.parametrize(
    ("zone", "kind", "spot", "reason"),
    [
        ("fr-par-2", "L5-1-24G", False, "no type 'L5-1-24G'"),
        (
            "nl-ams-1",
            "L4-1-24G",
            False,
            "is not listed in scaleway nl-ams-1; it is in fr-par-1, fr-par-2, pl-waw-2",
        ),
        ("fr-par-2", "L4-1-24G", True, "the spot price of L4-1-24G in scaleway fr-par-2 is unknown"),
    ],
)
def test_an_unknown_price_is_unknown_with_a_reason_and_never_nothing(
    zone: str, kind: str, spot: bool, reason: str
) -> None:
    cost = node_cost_per_hour("scaleway", zone, kind, 200, spot=spot)
    assert cost.total is None
    assert cost.per_month is None
    assert reason in (cost.reason or "")


def test_a_listed_type_without_a_price_is_unknown_until_a_refresh_brings_it() -> None:
    cost = node_cost_per_hour("linode", "us-ord", "g2-gpu-rtx4000a2-hs", 0)
    assert (cost.total, cost.reason) == (
        None,
        "the price of g2-gpu-rtx4000a2-hs in linode us-ord is unknown; "
        "bring it in with: fleet catalog refresh linode",
    )


def test_an_unknown_volume_price_makes_the_whole_unknown(tmp_path: Path) -> None:
    lists = [{"zone": "z", "source": "https://x", "as_of": "2026-01-01", "hourly": {"one": 1.0}}]
    cost = node_cost_per_hour(
        "scaleway", "z", "one", 200, prices=write(tmp_path, document(price_lists=lists))
    )
    assert cost.total is None
    assert cost.reason == "the price of a root volume in scaleway z is unknown"


def test_old_and_undated_prices_are_named() -> None:
    cost = Cost(
        (
            Part("server", 1.0, date(2026, 11, 1), "https://x"),
            Part("root volume", 0.1, date(2026, 1, 1), "https://x"),
            Part("public address", 0.1, None, "https://x"),
        ),
        "EUR",
    )
    assert cost.as_of is None
    assert cost.stale(date(2026, 11, 22)) == [
        "the price of the root volume is of 2026-01-01",
        "the price of the public address is undated",
    ]


def test_currencies_are_converted_at_a_dated_rate() -> None:
    assert fixed(1.10, "USD").into("EUR", RATE).total == pytest.approx(1.0)
    assert default_rate().source.startswith("https://www.ecb.europa.eu/")
    with pytest.raises(ValueError, match="'GBP' is neither EUR nor USD"):
        fixed(1.0).into("GBP", RATE)


# --- a budget -------------------------------------------------------------------------------------------


def test_a_budget_that_holds_says_nothing() -> None:
    costs = {"a": fixed(1.0), "b": fixed(1.1, "USD")}
    assert check_budget(costs, max_cost_per_hour=2.0, max_cost_per_month=1460, rate=RATE) == []
    assert check_budget(costs, rate=RATE) == []


def test_a_broken_budget_shows_its_arithmetic_and_a_limit_that_would_do() -> None:
    (hour, month) = check_budget(
        {"a": fixed(1.0), "b": fixed(1.1, "USD")}, max_cost_per_hour=1.5, max_cost_per_month=1000, rate=RATE
    )
    assert hour.startswith(
        "budget.max_cost_per_hour: 1.50 EUR is below the stack's 2.0000 = a 1.0000 + b 1.0000"
    )
    assert "raise it to 2.00" in hour
    assert "1460.0000 = (a 1.0000 + b 1.0000) * 730 h" in month


def test_an_unknown_cost_breaks_every_budget() -> None:
    (problem,) = check_budget({"a": fixed(1.0), "b": Cost((), "EUR", "no price")}, max_cost_per_hour=1000)
    assert "the cost of node b is unknown (no price)" in problem


# --- time to live ---------------------------------------------------------------------------------------


def test_only_what_has_outlived_its_time_is_due_and_the_longest_overdue_first() -> None:
    now = datetime(2026, 11, 22, 12, tzinfo=UTC)
    old, new = now - timedelta(hours=10), now - timedelta(hours=1)
    late, later = Lifetime("late", old, 9), Lifetime("later", old, 2)
    exact = Lifetime("exact", new, 1)
    keep = [Lifetime("forever", old, None), Lifetime("young", new, 2)]
    assert outlived([late, exact, *keep, later], now) == [later, late, exact]


# --- a state --------------------------------------------------------------------------------------------

OLD = datetime(2026, 10, 1, tzinfo=UTC)
AWS = resource(
    "aws:ec2/instance:Instance",
    "gpu",
    outputs={
        "availabilityZone": "us-east-1b",
        "instanceType": "g6.xlarge",
        "instanceState": "stopped",
        "rootBlockDevice": {"volumeSize": 100},
    },
)
LINODE = resource(
    "linode:index/instance:Instance",
    "lin",
    outputs={"region": "us-ord", "type": "g2-gpu-rtx4000a1-s", "status": "offline"},
)


def test_a_state_tells_running_stopped_and_left_over_apart() -> None:
    found = billed(state(*node("a"), *node("b", power="stopped"), *node("c", server=False), AWS, LINODE))
    assert {
        entry.node: (entry.cloud, entry.zone, entry.type, entry.root_volume_gb, entry.status)
        for entry in found
    } == {
        "a": ("scaleway", "fr-par-2", "L4-1-24G", 200, "running"),
        "b": ("scaleway", "fr-par-2", "L4-1-24G", 200, "stopped, still billed"),
        "c": ("scaleway", "fr-par-2", None, 200, "server gone, volume billed"),
        "gpu": ("aws", "us-east-1", "g6.xlarge", 100, "stopped, still billed"),
        "lin": ("linode", "us-ord", "g2-gpu-rtx4000a1-s", 0, "stopped, still billed"),
    }


def test_a_machine_without_a_public_address_is_not_billed_for_one() -> None:
    top, server, *others = node("a")
    hidden = {**server, "outputs": {**server["outputs"], "dynamic_ip_required": False}}
    parent = resource("vllm-fleet:aws:GpuNode", "gpu")
    boot = resource("pulumi-python:dynamic/aws:FirstBoot", "boot", outputs={"public_ip": False})
    family = [{**each, "parent": parent["urn"]} for each in (AWS, boot)]
    shown = [entry.cost().total for entry in billed(state(*node("a"), AWS))]
    found = [entry.cost().total for entry in billed(state(top, hidden, *others, parent, *family))]
    assert None not in (*shown, *found)
    assert [round((was or 0) - (now or 0), 6) for was, now in zip(shown, found, strict=True)] == [0.005] * 2


def test_month_to_date_follows_the_states_the_stack_went_through() -> None:
    now = datetime(2026, 11, 11, tzinfo=UTC)
    old = node("a", created="2026-10-01T00:00:00Z")
    history = [
        (datetime(2026, 10, 1, tzinfo=UTC), state(*old)),  # bills from the first of the month
        (datetime(2026, 11, 6, tzinfo=UTC), state(*old, *node("b"))),
        (datetime(2026, 11, 10, tzinfo=UTC), state()),
    ]
    one = node_cost_per_hour("scaleway", "fr-par-2", "L4-1-24G", 200).total or 0
    bill = report(history, now)
    assert bill.month_to_date == pytest.approx(one * 24 * (5 + 4 * 2))
    assert (bill.per_hour, bill.rows, bill.unknown) == (0, (), ())


def test_a_state_without_a_past_bills_its_servers_from_when_they_were_made() -> None:
    past = datetime(2000, 1, 1, tzinfo=UTC)
    one = node_cost_per_hour("scaleway", "fr-par-2", "L4-1-24G", 200).total or 0
    bill = report([(past, state(*node("a")))], datetime(2026, 11, 7, tzinfo=UTC))
    assert bill.month_to_date == pytest.approx(one * 24)
    assert bill.per_hour == pytest.approx(one)


def test_a_cost_that_is_unknown_is_named_beside_the_sums() -> None:
    other = resource(
        "aws:ec2/instance:Instance",
        "control",
        outputs={"availabilityZone": "us-east-1a", "instanceType": "m9.large"},
    )
    bill = report([(datetime(2026, 11, 1, tzinfo=UTC), state(other))], datetime(2026, 11, 2, tzinfo=UTC))
    assert bill.unknown == (
        "control: aws has no type 'm9.large' in the catalog with a price in us-east-1; "
        "see: fleet catalog list aws",
    )


def test_a_control_instance_has_its_price_though_it_has_no_gpu() -> None:
    assert node_cost_per_hour("aws", "us-east-1", "t3.large", 30).total == pytest.approx(
        0.0832 + 30 * 0.08 / 730 + 0.005
    )


def job(name: str, launched: datetime, status: Status = Status.RUNNING, **more: Any) -> Job:
    return Job(name, status, "train.sh", launched, "g6.xlarge", price_per_hour=0.8, **more)


def test_jobs_are_billed_for_their_part_of_the_month() -> None:
    now = datetime(2026, 11, 2, tzinfo=UTC)
    ended = datetime(2026, 11, 1, 1, tzinfo=UTC)
    result = Result("succeeded", "", 0, 7200, 1.6, ended)
    found = [
        job("runs", now - timedelta(hours=2)),
        job("over", ended - timedelta(hours=2), Status.SUCCEEDED, result=result),
        job("lost", now - timedelta(hours=3), Status.LOST),
        job("before", ended - timedelta(days=9), Status.FAILED, result=replace(result, ended=OLD)),
    ]
    bill = report([(OLD, state())], now, jobs=found, currency="USD", rate=RATE)
    assert [(each.id, each.per_hour, each.month_to_date) for each in bill.jobs] == [
        ("runs", 0.8, 1.6),
        # It ran for one hour of October and one of November.
        ("over", 0.0, 0.8),
        ("lost", 0.0, None),
    ]
    assert (bill.per_hour, bill.per_month) == (0.8, 0)
    assert bill.month_to_date == pytest.approx(2.4)
    assert bill.unknown == ("lost: nobody knows what this job (lost) cost",)
    euros = report([(OLD, state())], now, jobs=found, rate=RATE)
    assert euros.per_hour == pytest.approx(0.8 / RATE.usd_per_eur)


def test_a_node_is_destroyed_with_all_its_parts_and_nothing_else() -> None:
    exported = state(*node("a"), *node("a2"))
    assert node_urns(exported, "a") == [entry["urn"] for entry in node("a")]
    assert not protected(exported, "a")
    assert protected(state(*node("a", protect=True)), "a")


def test_lifetimes_come_from_when_the_server_was_made_and_the_configured_ttl() -> None:
    (life,) = lifetimes(state(*node("a")), {"a": 48, "gone": 1})
    assert life.ends == datetime(2026, 11, 8, tzinfo=UTC)
    assert lifetimes(state(*node("a")), {})[0].ends is None
