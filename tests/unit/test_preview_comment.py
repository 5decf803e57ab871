"""The comment of a pull request: everything a reviewer needs, nothing that breaks it, never too long."""

from __future__ import annotations

from typing import Any

from fleet.preview import LONGEST_COMMENT, Preview, comment

NODE = "urn:pulumi:prod::vllm-fleet::vllm-fleet:scaleway:GpuNode::l4-a"


def step(op: str, name: str, type_: str = "command:local:Command", **more: Any) -> dict[str, Any]:
    return {"resourcePreEvent": {"metadata": {"op": op, "urn": f"{NODE}$x::{name}", "type": type_, **more}}}


def said(severity: str, message: str, urn: str = NODE) -> dict[str, Any]:
    return {"diagnosticEvent": {"severity": severity, "message": message, "urn": urn}}


def broken(level: str, name: str) -> dict[str, Any]:
    message = "<{%reset%}>SSH answers named addresses.\nport 22 is open<{%reset%}>"
    event = {"policyName": name, "enforcementLevel": level, "message": message, "resourceUrn": NODE}
    return {"policyEvent": event}


EVENTS = [
    {"preludeEvent": {"config": {"scaleway:secretKey": "planted"}}},
    step("refresh", "l4-a-server"),
    step("same", "l4-a-owner"),
    step(
        "update",
        "l4-a-root-volume",
        old={"inputs": {"size_gb": 200, "zone": "fr-par-2", "__provider": "a"}},
        new={"inputs": {"size_gb": 300, "zone": "fr-par-2", "__provider": "b"}},
    ),
    step("create-replacement", "l4-a-server"),
    step("replace", "l4-a-server", detailedDiff={"image": {}, "host_digest": {}}),
    step("create", "vllm-fleet-prod", type_="pulumi:pulumi:Stack"),
    said("info", "Qwen/Qwen3-8B-AWQ fits: 61,232 tokens\n0.8185 EUR an hour (+0.1)\n"),
    said("info", "1 node, 0.8185 EUR an hour", "urn:pulumi:prod::vllm-fleet::pulumi:pulumi:Stack::s"),
    said("info#err", "progress"),
    said("warning", "\x1b[33mL4-1-24G is scarce <in> fr-par-2\x1b[0m"),
    broken("advisory", "ssh-from-known-addresses"),
]


def test_a_comment_tells_changes_policies_fit_and_cost() -> None:
    text = comment("prod", Preview.of(EVENTS), failed=False)
    assert text.startswith("### `prod`: 1 to update in place, 1 to replace\n")
    assert "| update in place | `l4-a-root-volume` | `command:local:Command` | size_gb |" in text
    assert "| **replace** | `l4-a-server` | `command:local:Command` | host_digest, image |" in text
    assert "- `ssh-from-known-addresses` SSH answers named addresses.<br>port 22 is open (l4-a)" in text
    assert "- l4-a: Qwen/Qwen3-8B-AWQ fits: 61,232 tokens<br>0.8185 EUR an hour (+0.1)" in text
    assert "- 1 node, 0.8185 EUR an hour" in text
    assert "- l4-a: L4-1-24G is scarce &lt;in&gt; fr-par-2" in text
    assert "planted" not in text
    assert "progress" not in text


def test_a_preview_that_failed_says_what_stopped_it() -> None:
    events = [broken("mandatory", "image-pinned"), said("error", "nodes[0].type: …")]
    text = comment("prod", Preview.of(events), failed=True)
    assert text.startswith("### `prod`: ❌ failed\n")
    assert "**Policies that stop it**\n- `image-pinned`" in text
    assert "**Errors**\n- l4-a: nodes[0].type: …" in text


def test_nothing_to_do_is_said_so() -> None:
    assert comment("prod", Preview.of([step("same", "a")]), failed=False) == "### `prod`: no changes\n"


def test_a_long_comment_is_cut_at_a_line() -> None:
    text = comment("prod", Preview.of([said("info", "x" * 300) for _ in range(400)]), failed=False)
    assert len(text) < LONGEST_COMMENT + 100
    assert text.splitlines()[-1] == "…the rest is in the job's log."
