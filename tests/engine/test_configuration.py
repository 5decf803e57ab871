"""What the engine hands over as configuration: unknown keys, secrets in clear, a stack of jobs alone."""

from __future__ import annotations

import yaml
from fleets import Fleet
from test_policy_pack import POLICY_PACK, fired


def test_a_misspelt_section_is_refused_before_anything_is_made(fleet: Fleet) -> None:
    fleet.config["bugdet"] = {"max_cost_per_hour": 0.01}
    refused = fleet.run("up", expect_failure=True)
    assert "bugdet: is not a setting; did you mean budget?" in refused.stdout
    assert fleet.left() == []


def test_secrets_in_clear_are_refused(fleet: Fleet) -> None:
    fleet.write()
    path = fleet.stack.folder / f"Pulumi.{fleet.stack.name}.yaml"
    document = yaml.safe_load(path.read_text())
    document["config"]["vllm-fleet:secrets"] = {"api_key": "planted-api-key-0123456789"}
    path.write_text(yaml.safe_dump(document))
    refused = fleet.stack.run("preview", expect_failure=True)
    assert "secrets: are not encrypted; put it in again: pulumi config set --secret" in refused.stdout
    assert "planted-api-key" not in refused.stdout


def test_a_node_with_open_webui_keeps_every_policy(fleet: Fleet) -> None:
    fleet.config["serving"]["webui"] = True
    shown = fleet.run("preview", *POLICY_PACK)
    assert fired(shown) == {}
    assert "can't run policy" not in shown.stdout


def test_a_stack_of_jobs_alone_needs_no_model_and_no_key(fleet: Fleet) -> None:
    del fleet.config["nodes"], fleet.config["serving"]
    fleet.config["jobs"] = {"region": "us-east-1"}
    fleet.write()
    path = fleet.stack.folder / f"Pulumi.{fleet.stack.name}.yaml"
    document = yaml.safe_load(path.read_text())
    del document["config"]["vllm-fleet:secrets"]
    path.write_text(yaml.safe_dump(document))
    shown = fleet.stack.run("preview", *POLICY_PACK)
    assert fired(shown) == {}
    assert "jobs-control" in shown.operations
