"""The policy pack under the real engine: what breaks a policy stops a preview, what keeps it passes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from conftest import ROOT

POLICY_PACK = ("--policy-pack", str(ROOT / "policy"))


def rollout(image: str) -> str:
    """A program that brings one container to a node, as a rollout does."""
    compose = json.dumps({"services": {"vllm": {"image": image}}})
    return f"""
        from pulumi_command import local
        local.Command("rollout", create="true", stdin={json.dumps({"compose": compose})!r})
        """


def test_an_image_that_moves_stops_a_preview_and_a_pinned_one_does_not(pulumi: Callable[..., Any]) -> None:
    stack = pulumi(rollout("vllm/vllm-openai:latest"))
    refused = stack.run("preview", *POLICY_PACK, expect_failure=True)
    assert "[mandatory]" in refused.stdout
    assert "image-pinned" in refused.stdout
    assert "vllm: image 'vllm/vllm-openai:latest' moves under you; pin a release tag" in refused.stdout

    stack.program(rollout("vllm/vllm-openai:v0.9.2"))
    assert "image-pinned" not in stack.run("preview", *POLICY_PACK).stdout
