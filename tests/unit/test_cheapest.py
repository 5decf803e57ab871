"""`cloud: cheapest`: what is chosen, what is passed over, and how the choice is written down."""

from __future__ import annotations

import re
from datetime import date
from typing import Any

import pytest
import yaml

from fleet import settings
from fleet.cheapest import NoChoiceError, choose, keep, pinned

SECRETS = settings.Secrets.model_validate({"api_key": "k" * 32})
BUDGET = settings.Budget()
# The catalog's prices of Scaleway are of the month before.
TODAY = date(2026, 10, 30)
PIN = settings.Pin(cloud="scaleway", location="fr-par-2", type="L4-1-24G")
WRITTEN = {"cloud": "scaleway", "location": "fr-par-2", "type": "L4-1-24G", "tensor_parallel_size": 1}


def node(**changed: Any) -> settings.CheapestNode:
    asked = {"name": "a", "cloud": "cheapest", "serving": {"model": "Qwen/Qwen3-8B-AWQ"}, **changed}
    return settings.CheapestNode.model_validate(asked)


def test_the_cheapest_server_that_holds_the_model_is_chosen() -> None:
    chosen = choose(node(clouds=["scaleway"]), SECRETS, BUDGET, today=TODAY)
    assert chosen.pin == PIN
    assert chosen.why.startswith("cheapest: L4-1-24G in scaleway fr-par-2 at 0.")
    assert "next is L40S-1-48G" in chosen.why


def test_a_larger_wish_takes_a_larger_server() -> None:
    asked = node(clouds=["scaleway"], concurrency=8)
    assert choose(asked, SECRETS, BUDGET, today=TODAY).pin.type != "L4-1-24G"


def test_a_stale_price_is_passed_over_and_said() -> None:
    why = choose(node(clouds=["scaleway", "linode"]), SECRETS, BUDGET, today=TODAY).why
    assert "passed over is g2-gpu-rtx4000" in why


def test_nothing_is_chosen_by_old_prices_alone() -> None:
    with pytest.raises(NoChoiceError, match="fleet catalog refresh --write"):
        choose(node(clouds=["scaleway"]), SECRETS, BUDGET, today=date(2028, 1, 1))


def test_a_model_that_no_server_holds_is_said() -> None:
    huge = node(clouds=["linode"], serving={"model": "meta-llama/Llama-3.1-405B-Instruct"})
    with pytest.raises(NoChoiceError, match="no single server serves meta-llama"):
        choose(huge, SECRETS, BUDGET, today=TODAY)


def test_what_is_deployed_stays_where_it_is_whatever_became_cheaper() -> None:
    kept = keep(node(), SECRETS, BUDGET, "scaleway", "fr-par-2", "L40S-1-48G")
    assert kept.pin.type == "L40S-1-48G"


def test_what_is_deployed_and_no_longer_suffices_is_not_moved_but_said() -> None:
    grown = node(serving={"model": "Qwen/Qwen3-32B"})
    with pytest.raises(NoChoiceError, match="give the node another name"):
        keep(grown, SECRETS, BUDGET, "scaleway", "fr-par-2", "L4-1-24G")


BLOCK = """\
# our stack
config:
  vllm-fleet:nodes:
    - name: first
      cloud: scaleway   # stays
    - cloud: cheapest   # whatever serves it
      name: a
      tags: [one]  # keep
  vllm-fleet:budget: {max_cost_per_hour: 2}
"""
FLOW = "config:\n  vllm-fleet:nodes: [{name: a, cloud: cheapest, tags: [x]}, {name: b, cloud: cheapest}]"


@pytest.mark.parametrize("text", [BLOCK, FLOW])
def test_a_pin_is_written_under_its_node_and_nothing_else_changes(text: str) -> None:
    after = pinned(text, {"a": PIN})
    before = yaml.safe_load(text)
    for entry in before["config"]["vllm-fleet:nodes"]:
        if entry["name"] == "a":
            entry["pinned"] = WRITTEN
    assert yaml.safe_load(after) == before
    assert re.sub(r"(\n *|, )pinned: \{.*?\}", "", after) == text


def test_several_pins_go_to_their_own_nodes() -> None:
    other = PIN.model_copy(update={"type": "L40S-1-48G"})
    nodes = yaml.safe_load(pinned(FLOW, {"a": PIN, "b": other}))["config"]["vllm-fleet:nodes"]
    assert [entry["pinned"]["type"] for entry in nodes] == ["L4-1-24G", "L40S-1-48G"]


def test_a_node_the_file_does_not_have_is_named() -> None:
    with pytest.raises(NoChoiceError, match="no node elsewhere"):
        pinned(BLOCK, {"elsewhere": PIN})
