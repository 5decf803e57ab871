"""A change of what is served, by the real engine: in place, in turn, or not at all."""

from __future__ import annotations

import re

from fleets import SECRETS, Fleet

OTHER = "Qwen/Qwen3-4B-AWQ"


def steps(stdout: str, *wanted: str) -> list[str]:
    """`NODE STEP` in the order in which rollouts told of them. The engine repeats every line at its end."""
    told = re.findall(r"(\w+) +50 % WORKER_SSH_ACCESSIBLE +rollout: (\w+)$", stdout, re.MULTILINE)
    return list(dict.fromkeys(f"{node} {step}" for node, step in told if step in wanted))


def test_what_is_served_changes_in_place_as_previewed_and_a_bad_release_is_put_back(fleet: Fleet) -> None:
    fleet.run("up")
    server = fleet.outputs()["nodes"]["a"]["id"]
    fleet.config["serving"] |= {"model": OTHER, "max_model_len": 8192, "image": "vllm/vllm-openai:v0.10.2"}
    shown = fleet.run("preview", "--diff").stdout
    assert '[6]: "--max-model-len"' in shown and '~ [7]: "16384" => "8192"' in shown

    fleet.config["serving"]["dry_run"] = True
    rehearsed = fleet.run("up").stdout
    assert "--max-model-len: 16384 → 8192" in rehearsed and "nothing was changed" in rehearsed
    assert fleet.outputs()["nodes"]["a"]["status"] == "dry run"

    fleet.config["serving"]["dry_run"] = False
    changed = fleet.run("up")
    assert set(changed.operations) & {"a-serving-rollout", "a-server", "a-power", "a-root-volume"} == {
        "a-serving-rollout"
    }
    assert steps(changed.stdout, "switch", "commit") == ["a switch", "a commit"]
    assert (
        fleet.outputs()["nodes"]["a"] | {"status": "ready", "model": OTHER, "id": server}
        == (fleet.outputs()["nodes"]["a"])
    )

    fleet.config["serving"]["model"] = "fault/oom"
    failed = fleet.run("up", expect_failure=True).stdout
    assert "ran out of GPU memory" in failed and "rolled back; release" in failed

    fleet.config["serving"]["model"] = OTHER
    key = "another-planted-key-0123"
    fleet.stack.ask("config", "set", "--secret", "--path", "vllm-fleet:secrets.api_key", key)
    rotated = fleet.run("up").stdout
    assert "VLLM_API_KEY=*** (changed)" in rotated
    said = shown + rehearsed + failed + rotated
    assert not any(secret in said for secret in (*SECRETS.values(), key))


def test_nodes_change_after_the_canary_one_by_one_and_not_beyond_a_failure(fleet: Fleet) -> None:
    fleet.nodes("a", "b", "c")
    fleet.config["rollout"] = {"canary": "c"}
    assert steps(fleet.run("up").stdout, "turn") == []  # who serves nothing yet waits for nobody's turn

    fleet.config["serving"]["max_model_len"] = 8192
    changed = fleet.run("up").stdout
    one_by_one = [f"{node} {step}" for node in "cab" for step in ("switch", "commit")]
    assert steps(changed, "switch", "commit") == one_by_one

    fleet.config["serving"]["model"] = "fault/oom"
    failed = fleet.run("up", expect_failure=True).stdout
    assert steps(failed, "switch", "restore", "commit") == ["c switch", "c restore"]
