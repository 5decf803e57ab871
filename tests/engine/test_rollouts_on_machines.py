"""What is served changes on a machine that really boots: by the engine, in place, and its clients wait no
longer than for the container itself.

One first boot serves every trial, in the order of this file: each finds the node serving and leaves it so.
"""

from __future__ import annotations

import base64
import copy
import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx
import pytest
import restless_client
from fleets import SECRETS, Fleet
from harness import Result, Running, stacks
from machines import UP_S, Node, booting_fleet, up

pytestmark = [pytest.mark.vm, pytest.mark.timeout(3000)]

MODEL, OTHER = "Qwen/Qwen3-8B-AWQ", "Qwen/Qwen3-4B-AWQ"
KEYS = [SECRETS["api_key"], "another-planted-key-0123", "a-third-planted-key-0123"]
DOMAIN = "llm.example.com"
ANSWERS = "/root/answers"


@dataclass(frozen=True)
class Round:
    """One round of the client's questions; times are the machine's, in seconds."""

    began: float
    ended: float
    served: dict[str, Any] | None


@dataclass(frozen=True)
class Machine:
    """A node that serves, and who changes what it does."""

    fleet: Fleet
    node: Node

    def now(self) -> float:
        return float(self.node.run("date +%s.%N"))

    def rounds(self, since: float) -> list[Round]:
        """What the client met from a moment on."""
        lines = self.node.run(f"cat {ANSWERS}").splitlines(keepends=True)
        rounds = [Round(*json.loads(line)) for line in lines if line.endswith("\n")]
        return [each for each in rounds if each.began >= since]

    def serves(self) -> dict[str, Any]:
        """What answers the client now; waits until something does."""
        found = self.node.run(f"timeout 280 tail --lines=0 --follow {ANSWERS} | grep --max-count=1 version")
        served: dict[str, Any] = json.loads(found)[2]
        return served

    def switched(self, since: float) -> tuple[float, float]:
        """When the container was told to stop, and when its successor said that it is up."""
        template = shlex.quote("{{json .}}")
        told = self.node.run(f"docker events --since {since:.0f} --until $(date +%s) --format {template}")
        events = [json.loads(line) for line in told.splitlines()]
        kills = [
            event
            for event in events
            if event["Action"] == "kill" and event["Actor"]["Attributes"].get("name") == "vllm"
        ]
        pulls = [event for event in events if event["Action"] == "pull"]
        stopped = min(event["timeNano"] for event in kills)
        assert all(event["timeNano"] < stopped for event in pulls), "an image was pulled in the gap"
        log = "docker logs --timestamps vllm 2>&1 | grep 'startup complete' | tail -1 | cut -d' ' -f1"
        return stopped / 1e9, float(self.node.run(f'date --date "$({log})" +%s.%N'))

    def boot(self) -> str:
        return self.node.run("cat /proc/sys/kernel/random/boot_id")

    def set_secret(self, name: str, value: str) -> None:
        self.fleet.stack.ask("config", "set", "--secret", "--path", f"vllm-fleet:secrets.{name}", value)

    def fails(self) -> Result:
        result = self.fleet.start("up").wait(UP_S)
        assert result.code != 0, result.stdout
        return result

    def killed(self, phase: str) -> None:
        """An update whose operator is gone, with all it started, when it has begun a phase."""
        update = self.fleet.start("up")
        update.wait_until(lambda: _said(update, f"rollout: {phase}"), f"the rollout to {phase}")
        update.kill()
        self.fleet.stack.unlock()


def _said(update: Running, words: str) -> bool:
    return update.event_log.exists() and words in update.event_log.read_text()


@pytest.fixture(scope="module")
def machine(engine_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """The node from its first boot, and on it a client that asks without end."""
    at = tmp_path_factory.mktemp("machine")
    with stacks(engine_env, at) as make, booting_fleet(make, at, "scaleway") as fleet:
        fleet.config["serving"] |= {"model": MODEL, "environment": {"VLLM_SIM_SPEED": "0.2"}}
        up(fleet)
        node = Node(fleet)
        script = base64.b64encode(Path(restless_client.__file__).read_bytes()).decode()
        node.run(f"echo {script} | base64 -d >/root/client.py")
        output = f"--property=StandardOutput=append:{ANSWERS}"
        node.run(f"systemd-run --quiet --unit=client {output} python3 /root/client.py {' '.join(KEYS)}")
        yield Machine(fleet, node)


@pytest.fixture
def kept(machine: Machine) -> Iterator[Machine]:
    """The same; what a trial configures is taken back."""
    before = copy.deepcopy(machine.fleet.config)
    yield machine
    machine.fleet.config = before


@dataclass(frozen=True)
class Change:
    """A change of the configuration, and what of it clients see."""

    seen: dict[str, Any]
    serving: Mapping[str, object] = field(default_factory=dict)
    api_key: str = ""


CHANGES = {
    "model": Change({"model": OTHER}, {"model": OTHER}),
    "flag": Change({"max_model_len": 8192}, {"max_model_len": 8192}),
    "image": Change({"version": "0.10.0"}, {"image": "vllm/vllm-openai:v0.10.0"}),
    "key": Change({"key": 1}, api_key=KEYS[1]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_reaches_the_node_in_place_and_clients_wait_for_the_container_alone(
    machine: Machine, change: str
) -> None:
    old, boot = machine.serves(), machine.boot()
    new = old | CHANGES[change].seen
    machine.fleet.config["serving"] |= CHANGES[change].serving
    if CHANGES[change].api_key:
        machine.set_secret("api_key", CHANGES[change].api_key)

    since = machine.now()
    result = up(machine.fleet)
    assert machine.serves() == new

    assert set(result.operations) == {"a-serving-rollout", "a-serving-gate"}
    assert (Node(machine.fleet).outputs["id"], machine.boot()) == (machine.node.outputs["id"], boot)
    stopped, ready = machine.switched(since)
    rounds = machine.rounds(since)
    assert [served for served, _ in groupby(each.served for each in rounds)] == [old, None, new]
    unanswered = [each for each in rounds if each.served is None]
    answered_s = max(each.ended - each.began for each in rounds if each.served)
    print(
        f"{change}: {ready - stopped:.1f} s from stop to ready, without an answer for "
        f"{unanswered[-1].ended - unanswered[0].began:.1f} s"
    )
    # Whoever asks sooner is answered by the old release, and who asks later by the new one. The client asks
    # once in a while: what it began before the new one was up may fail, and its next round must not.
    assert unanswered[0].ended >= stopped
    assert unanswered[-1].began <= ready + restless_client.PAUSE_S + answered_s


BAD = {
    "an image that does not exist": ({"image": "vllm/vllm-openai:v0.99.0"}, "pull", "nothing was switched"),
    "a flag that ends the container": ({"model": "fault/bad-flag"}, "gate", "rolled back"),
    "a model that never loads": ({"model": "fault/hang-loading"}, "gate", "rolled back"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_release_is_undone_and_the_one_before_it_gated(kept: Machine, bad: str) -> None:
    serving, phase, node = BAD[bad]
    before = kept.serves()
    kept.fleet.config["serving"] |= serving
    kept.fleet.config["health"]["ready_timeout_s"] = 120
    since = kept.now()
    said = kept.fails().stdout
    assert f"failed at {phase}" in said and f"node:  {node}; release" in said and "serves, gated in" in said
    assert kept.serves() == before
    assert {each.served["model"] for each in kept.rounds(since) if each.served} == {before["model"]}


def test_an_operator_killed_while_the_node_pulls_leaves_it_serving_and_the_next_update_goes_on(
    machine: Machine,
) -> None:
    before, since = machine.serves(), machine.now()
    old = "vllm/vllm-openai:v0.9.2"
    machine.node.run(f"docker rmi {old}")
    registry = f"{machine.fleet.cloud.base_url}/_sim/mirrors/a/registry"
    # Its layers are there, they are its successor's too; what is left takes until the signal comes.
    httpx.put(registry, json={"bandwidth": 50}).raise_for_status()
    machine.fleet.config["serving"]["image"] = old
    machine.killed("pull")
    httpx.put(registry, json={}).raise_for_status()
    assert machine.serves() == before
    assert None not in [each.served for each in machine.rounds(since)]

    up(machine.fleet)
    assert machine.serves() == before | {"version": "0.9.2"}


def test_an_operator_killed_at_the_gate_of_a_bad_release_is_replaced_by_the_node_itself(
    machine: Machine,
) -> None:
    before, serving = machine.serves(), machine.fleet.config["serving"]
    serving["model"] = "fault/hang-loading"
    machine.killed("gate")
    # The new release never answers: it is the old one that the node has put back.
    assert machine.serves() == before

    serving |= {"model": before["model"], "max_model_len": 4096}
    up(machine.fleet)
    assert machine.serves() == before | {"max_model_len": 4096}


def test_at_the_gateway_the_old_key_and_the_new_one_are_good_until_the_old_is_retired(
    machine: Machine,
) -> None:
    machine.fleet.config["expose"] = {"domain": DOMAIN, "cidrs": ["203.0.113.0/24"], "tls": "internal"}
    machine.set_secret("previous_api_key", KEYS[1])
    machine.set_secret("api_key", KEYS[2])
    up(machine.fleet)
    authority = base64.b64encode(machine.fleet.outputs()["gateway"]["authority"].encode()).decode()
    machine.node.run(f"echo {authority} | base64 -d >/root/authority.crt")

    def answer(key: str) -> str:
        return machine.node.run(
            "curl -sS -o /dev/null -w '%{http_code}' --cacert /root/authority.crt "
            f"--resolve {DOMAIN}:443:127.0.0.1 -H 'Authorization: Bearer {key}' https://{DOMAIN}/v1/models"
        )

    assert [answer(key) for key in KEYS] == ["401", "200", "200"]

    since = machine.now()
    machine.fleet.stack.ask("config", "rm", "--path", "vllm-fleet:secrets.previous_api_key")
    up(machine.fleet)
    assert [answer(key) for key in KEYS] == ["401", "401", "200"]
    assert None not in [each.served for each in machine.rounds(since)], "retiring a key interrupts nobody"


def test_drift_is_silent_until_somebody_changes_the_machine(machine: Machine) -> None:
    for _ in range(3):
        assert machine.fleet.looked_at() == (0, [])

    machine.node.run(
        "sed -i \"s/'0.9'/'0.8'/\" /opt/llm/docker-compose.yml && apt-mark unhold docker.io && "
        "kill -KILL $(docker inspect --format '{{.State.Pid}}' vllm) && "
        "until docker inspect --format '{{.RestartCount}}' vllm | grep --quiet 1; do sleep 1; done"
    )
    machine.serves()
    code, found = machine.fleet.looked_at()
    assert code == 3
    assert {(each["resource"], each["property"], each["now"]) for each in found} == {
        ("/opt/llm/docker-compose.yml", "services.vllm.command --gpu-memory-utilization", "0.8"),
        ("package docker.io", "hold", "may be upgraded"),
        ("container vllm", "restarts", "1"),
    }
