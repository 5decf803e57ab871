"""The example stacks are what they say: valid, fitting, within budget, and safe where they should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fleet import settings
from fleet.checks import check

ROOT = Path(__file__).parents[2]
SECRETS = {"api_key": "planted-api-key-0123456789"}


def example(stack: str, tmp_path: Path) -> settings.StackSettings:
    document = yaml.safe_load((ROOT / f"Pulumi.{stack}.example.yaml").read_text())["config"]
    key = tmp_path / "key"
    key.touch(mode=0o600)
    prefix = "vllm-fleet:"
    raw: dict[str, Any] = {
        name.removeprefix(prefix): value for name, value in document.items() if name.startswith(prefix)
    }
    raw["access"]["ssh_private_key_path"] = str(key)
    return settings.parse(raw | {"secrets": SECRETS})


@pytest.mark.parametrize("stack", ["staging", "prod"])
def test_an_example_stack_is_valid_fits_and_keeps_its_budget(stack: str, tmp_path: Path) -> None:
    config = example(stack, tmp_path)
    found = check(config)
    assert found.keys() == {node.name for node in config.nodes}
    assert [warning for each in found.values() for warning in each.warnings] == []


def test_production_is_protected_and_staging_ends_by_itself(tmp_path: Path) -> None:
    assert all(node.protect for node in example("prod", tmp_path).nodes)
    assert all(node.ttl_hours for node in example("staging", tmp_path).nodes)


@pytest.mark.parametrize("stack", ["dev", "staging", "prod"])
def test_each_stack_says_how_strict_its_policies_are(stack: str) -> None:
    config = json.loads((ROOT / "policy" / f"config.{stack}.json").read_text())
    assert config["all"] == ("advisory" if stack == "dev" else "mandatory")
