"""The optimizer finds what a plain search finds, prefers what it says, and never hides a bad price."""

from __future__ import annotations

import tempfile
from datetime import date, timedelta
from math import ceil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_catalog import ONE, TWO, document, write

from fleet.catalog import Catalog, InstanceType, catalog
from fleet.cost import ExchangeRate, node_cost_per_hour
from fleet.optimizer import Latency, Verdict, Wish, plan

TODAY = date(2026, 11, 22)
RATE = ExchangeRate(1.25, date(2026, 1, 1), "a test")
FREE = {"volumes": [], "addresses": [], "root_volume": "included"}
"""Nothing but servers is billed, so that the sums of a test are its own."""


def prices(
    zone: str, hourly: dict[str, float | None], age_days: int | None = 0, spot: bool = False
) -> dict[str, object]:
    as_of = None if age_days is None else (TODAY - timedelta(days=age_days)).isoformat()
    return {"zone": zone, "source": "https://x", "as_of": as_of, "hourly": hourly} | (
        {"spot": True} if spot else {}
    )


def holds(kind: InstanceType, tensor_parallel: int, quantization: str | None) -> Verdict:
    """A model that needs 30 GiB as it comes and 12 quantized; what is left holds a request each 4 GiB."""
    weights = (12.0 if quantization else 30.0) / tensor_parallel
    left = kind.gpu_memory_mib / 1024 * 0.9 - weights
    if left < 4:
        return Verdict(False, f"{weights:g} GiB of weights leave {max(left, 0):.1f} GiB for the cache")
    return Verdict(True, "", max_concurrency=left * tensor_parallel // 4, weights_gib_per_gpu=weights)


def small(tmp_path: Path, *lists: dict[str, object]) -> Catalog:
    return write(tmp_path, document(price_lists=list(lists), **FREE))


def ask(source: Catalog, **wish: object) -> object:
    return plan(Wish(**({"clouds": ("scaleway",)} | wish)), holds, prices=source, rate=RATE, today=TODAY)  # type: ignore[arg-type]


def test_the_cheapest_way_comes_first_and_every_other_says_why_it_lost(tmp_path: Path) -> None:
    source = small(tmp_path, prices("z", {"one": 1.0, "two": 3.0}))
    found = ask(source, quantizations=(None, "awq"))
    best, *others = found.options
    assert (best.type.name, best.nodes, best.tensor_parallel, best.quantization, best.lost_by) == (
        "one",
        1,
        1,
        "awq",
        "",
    )
    assert [option.type.name for option in others] == ["two"] * 4
    assert all(option.lost_by == "2.0000 EUR an hour dearer (+200%)" for option in others)
    (misfit,) = found.rejected
    assert (misfit.type, misfit.tensor_parallel, misfit.quantization) == ("one", 1, None)
    assert "30 GiB of weights" in misfit.reason


def test_more_requests_than_one_node_holds_take_more_nodes(tmp_path: Path) -> None:
    source = small(tmp_path, prices("z", {"one": 1.0, "two": 3.0}))
    best = ask(source, concurrency=7, quantizations=("awq",)).options[0]
    # An L4 holds two requests, two L40S hold 17 together: one such node beats four of the others.
    assert (best.type.name, best.nodes, best.tensor_parallel) == ("two", 1, 2)
    assert best.concurrency >= 7


def test_of_equal_cost_the_preferred_quantization_wins(tmp_path: Path) -> None:
    source = small(tmp_path, prices("z", {"two": 3.0}))
    assert ask(source, quantizations=(None, "awq")).options[0].quantization is None
    assert ask(source, quantizations=("awq", None)).options[0].quantization == "awq"


def test_an_unknown_price_never_wins_and_says_so(tmp_path: Path) -> None:
    source = small(tmp_path, prices("z", {"two": 3.0, "one": 0}), prices("y", {"one": 2.0}))
    found = ask(source, quantizations=("awq",))
    assert (found.options[0].type.name, found.options[0].zone) == ("one", "y")
    (unknown,) = found.rejected
    assert (unknown.type, unknown.zone) == ("one", "z")
    assert "the price of one in scaleway z is unknown" in unknown.reason


@pytest.mark.parametrize("age", [91, None])
def test_a_stale_price_is_marked_and_not_chosen_unasked(tmp_path: Path, age: int | None) -> None:
    source = small(tmp_path, prices("cheap", {"one": 1.0}, age), prices("fresh", {"one": 2.0}, 90))
    found = ask(source, quantizations=("awq",))
    assert found.options[0].zone == "cheap"
    assert found.options[0].warning == ("price is undated" if age is None else "price is 91 days old")
    assert found.choice().zone == "fresh"
    assert found.choice(accept_stale=True).zone == "cheap"


def test_nothing_fresh_means_no_choice(tmp_path: Path) -> None:
    source = small(tmp_path, prices("z", {"two": 3.0}, None))
    assert ask(source).options
    assert ask(source).choice() is None


def test_a_cloud_for_comparison_is_ranked_but_not_chosen(tmp_path: Path) -> None:
    here = document(price_lists=[prices("z", {"two": 3.0})], **FREE)
    there = document("gcp", price_lists=[prices("z", {"two": 1.0})])
    found = ask(write(tmp_path, here, there), clouds=("scaleway", "gcp"))
    assert (found.options[0].type.cloud, found.options[0].deployable) == ("gcp", False)
    assert found.options[0].cost_per_hour == pytest.approx(1.0 / 1.25)
    assert found.choice().type.cloud == "scaleway"


def test_spot_prices_are_asked_for_on_their_own(tmp_path: Path) -> None:
    source = small(tmp_path, prices("z", {"one": 1.0, "two": 3.0}), prices("z", {"two": 0.5}, spot=True))
    found = ask(source, spot=True, quantizations=("awq",))
    assert {option.type.name for option in found.options} == {"two"}
    assert "the spot price of one" in found.rejected[0].reason


def test_latency_rules_out_cards_whose_memory_is_too_slow(tmp_path: Path) -> None:
    source = small(tmp_path, prices("z", {"one": 1.0, "two": 3.0}))
    # 12 GiB at the L4's 300 GB/s is 23 tokens/s at most, at the L40S' 864 GB/s 67.
    assert ask(source, latency=Latency.STANDARD, quantizations=("awq",)).options[0].type.name == "one"
    found = ask(source, latency=Latency.INTERACTIVE, quantizations=("awq",))
    assert found.options[0].type.name == "two"
    assert "at most 23 tokens/s" in found.rejected[0].reason


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"architecture": "arm64"}, "built for x86_64"),
        ({"gpu": "P100"}, "needs compute capability 7.0, P100 has 6.0"),
    ],
)
def test_types_no_image_runs_on_are_ruled_out(tmp_path: Path, facts: dict[str, str], reason: str) -> None:
    types = {"one": ONE | facts}
    source = write(tmp_path, document(types=types, price_lists=[prices("z", {"one": 1.0})], **FREE))
    found = ask(source, quantizations=("awq",))
    assert not found.options
    assert reason in found.rejected[0].reason


def test_the_host_needs_memory_too(tmp_path: Path) -> None:
    source = small(tmp_path, prices("z", {"one": 1.0}))

    def greedy(kind: InstanceType, tensor_parallel: int, quantization: str | None) -> Verdict:
        return Verdict(True, "", max_concurrency=1, host_ram_gib=64)

    found = plan(Wish(clouds=("scaleway",)), greedy, prices=source, rate=RATE, today=TODAY)
    assert "needs 64 GiB of host memory, the type has 48" in {entry.reason for entry in found.rejected}


AMOUNTS = st.one_of(
    st.none(), st.sampled_from([0.0, -1.0]), st.floats(0.01, 50, allow_nan=False).map(lambda x: round(x, 4))
)
LISTS = st.lists(
    st.builds(
        prices,
        st.sampled_from(["a", "b", "c"]),
        st.dictionaries(st.sampled_from(["one", "two", "six"]), AMOUNTS, min_size=1),
        st.one_of(st.none(), st.integers(0, 400)),
        st.booleans(),
    ),
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(
    euro=LISTS,
    dollar=LISTS,
    concurrency=st.integers(1, 60),
    spot=st.booleans(),
    quantizations=st.permutations([None, "awq"]),
)
def test_its_answer_is_that_of_a_plain_search(
    euro: list[dict[str, object]],
    dollar: list[dict[str, object]],
    concurrency: int,
    spot: bool,
    quantizations: list[str | None],
) -> None:
    types = {"one": ONE, "two": TWO, "six": TWO | {"gpu_count": 6}}
    wish = Wish(
        concurrency, ("scaleway", "aws"), spot=spot, quantizations=tuple(quantizations), latency=Latency.BATCH
    )
    with tempfile.TemporaryDirectory() as directory:
        source = write(
            Path(directory),
            document(types=types, price_lists=euro, **FREE),
            document("aws", types=types, price_lists=dollar, **FREE),
        )
        found = plan(wish, holds, prices=source, rate=RATE, today=TODAY)
        costs = []
        for kind in source.types("scaleway") + source.types("aws"):
            for zone in kind.zones:
                for size in (1, 2, 4, 8):
                    for quantization in quantizations:
                        verdict = holds(kind, size, quantization)
                        each = node_cost_per_hour(kind.cloud, zone, kind.name, 200, spot=spot, prices=source)
                        if size <= kind.gpu_count and verdict.fits and each.total is not None:
                            nodes = ceil(concurrency / verdict.max_concurrency)
                            costs.append(nodes * (each.into("EUR", RATE).total or 0))
    assert [option.cost_per_hour for option in found.options] == pytest.approx(sorted(costs))
    assert all(option.cost_per_hour > 0 and option.concurrency >= concurrency for option in found.options)
    assert all(option.lost_by for option in found.options[1:])


def test_every_type_of_the_real_catalog_is_either_ranked_or_says_why_not() -> None:
    found = plan(Wish(quantizations=(None, "awq")), holds, today=TODAY)
    spoken_of = {(option.type.cloud, option.type.name) for option in found.options}
    spoken_of |= {(entry.cloud, entry.type) for entry in found.rejected}
    assert spoken_of == {(kind.cloud, kind.name) for kind in catalog().types()}
    assert all(entry.reason for entry in found.rejected)
