"""The engine dies at any moment of an update, rollout, replacement or removal; what follows sets all right.

Each trial kills one command while each of several nodes is at a moment of its own, then runs `up` or
`destroy`: one machine for each node in the end, or nothing at all. All of them take long: `make test-kills`.
Every day those of test_kill.py are tried, and two from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from clouds import Moment
from fleets import Fleet
from harness import Running

AT_ITS_GATE = "at-its-gate"
ROLLOUT = ("lock", "preflight", "backup", "upload", "validate", "pull", "prefetch", "turn", "switch", "gate")
"""Steps of a rollout, as its lines name them."""


@dataclass(frozen=True)
class Trial:
    """A command that is killed."""

    command: Sequence[str]
    moments: Mapping[str, Moment]
    """By the name of the node that is then at it."""
    change: Mapping[str, Any] | None = None
    """Of each node's settings, which the command carries out; None where it makes the nodes."""
    gate: bool = False
    """Whether one more node is then at its gate."""


trying = pytest.mark.parametrize(
    "fleet", ["scaleway", pytest.param("linode", marks=pytest.mark.kills)], indirect=True
)


def trials(fleet: Fleet) -> dict[str, Trial]:
    promises = fleet.promises

    def numbered(moments: Sequence[Moment]) -> dict[str, Moment]:
        return {f"m{number}": moment for number, moment in enumerate(moments)}

    return {
        "up": Trial(["up"], numbered(promises.moments), gate=True),
        **{
            f"replace {number}": Trial(["up"], numbered(moments), change=promises.host_part, gate=number == 0)
            for number, moments in enumerate(promises.replacing)
        },
        **{
            f"destroy {number}": Trial(["destroy", "--refresh=false"], numbered(moments), change={})
            for number, moments in enumerate(promises.destroying)
        },
    }


def nodes_of(trial: Trial) -> list[str]:
    return [*trial.moments, *([AT_ITS_GATE] if trial.gate else [])]


def killed(fleet: Fleet, trial: Trial) -> None:
    """Kill the command of a trial when each node is at its moment; what was held goes on afterwards."""
    nodes = nodes_of(trial)
    fleet.nodes(*nodes)
    fleet.config["rollout"] = {"max_unavailable": len(nodes)}
    # Nobody gives up on a held call.
    fleet.provider["scaleway:timeout"] = 120
    fleet.stack.env["LINODE_READ_TIMEOUT_S"] = "120"
    if trial.change is not None:
        fleet.run("up")
        fleet.config["nodes"] = [{**node, **trial.change} for node in fleet.config["nodes"]]
    for node, (call, moment, *skip) in trial.moments.items():
        fleet.cloud.set_fault(call, moment, node=node, skip=sum(skip))
    if trial.gate:
        fleet.cloud.set_node_fault(AT_ITS_GATE, "hang_loading")
    running = fleet.start(*trial.command)
    waiting = [f"::{node}-serving-gate" for node in nodes if node == AT_ITS_GATE]
    running.wait_until(
        lambda: held(fleet) == trial.moments.keys() and all(each in begun(running) for each in waiting),
        "each node to be at its moment",
    )
    running.kill()
    fleet.cloud.release()
    fleet.cloud.clear_faults()
    fleet.cloud.set_node_fault(AT_ITS_GATE, None)
    fleet.stack.unlock()


def held(fleet: Fleet) -> set[str]:
    return {each["node"] for each in fleet.cloud.faults()["held"]}


def begun(running: Running) -> str:
    """What the engine has begun to do, as its events say."""
    events = running.event_log.read_text().splitlines() if running.event_log.exists() else []
    return "\n".join(line for line in events if "resourcePreEvent" in line)


def sets_all_right(fleet: Fleet, then: str, nodes: Sequence[str]) -> None:
    if then == "up":
        fleet.run("up")
        assert fleet.statuses() == {"ready"}
        assert fleet.parts() == fleet.whole(*nodes)
        assert fleet.drift() is None
    fleet.run("destroy")
    assert fleet.left() == []


def everyday(*chosen: str) -> list[Any]:
    """The trials, of which those chosen are tried every day and the others on demand."""
    names = ("up", "replace 0", "replace 1", "destroy 0", "destroy 1")
    return [name if name in chosen else pytest.param(name, marks=pytest.mark.kills) for name in names]


@trying
@pytest.mark.parametrize("name", everyday("destroy 0"))
def test_what_is_killed_is_removed_whole(fleet: Fleet, name: str) -> None:
    trial = trials(fleet)[name]
    killed(fleet, trial)
    sets_all_right(fleet, "destroy", nodes_of(trial))


@trying
@pytest.mark.parametrize("name", everyday("replace 1"))
def test_what_is_killed_is_taken_up_by_the_next_update(fleet: Fleet, name: str) -> None:
    trial = trials(fleet)[name]
    killed(fleet, trial)
    sets_all_right(fleet, "up", nodes_of(trial))


@trying
@pytest.mark.kills
@pytest.mark.parametrize("then", ["up", "destroy"])
@pytest.mark.parametrize("name", everyday())
def test_the_same_where_the_engine_goes_on_after_errors(fleet: Fleet, name: str, then: str) -> None:
    fleet.stack.env["PULUMI_CONTINUE_ON_ERROR"] = "true"
    trial = trials(fleet)[name]
    killed(fleet, trial)
    sets_all_right(fleet, then, nodes_of(trial))


@pytest.mark.kills
@pytest.mark.parametrize("go_on", ["", "true"], ids=["stop at errors", "go on after errors"])
def test_a_rollout_killed_at_any_step_is_made_by_the_next_update(fleet: Fleet, go_on: str) -> None:
    if go_on:
        fleet.stack.env["PULUMI_CONTINUE_ON_ERROR"] = go_on
    else:
        fleet.stack.env.pop("PULUMI_CONTINUE_ON_ERROR", None)
    fleet.run("up")
    for number, step in enumerate(ROLLOUT):
        fleet.config["serving"]["max_model_len"] = 8192 + 16 * number
        running = fleet.start("up")
        running.wait_until(partial(has_said, running, f"rollout: {step}"), step)
        running.kill()
        fleet.stack.unlock()
        fleet.run("up")
        assert fleet.statuses() == {"ready"}
        assert fleet.parts() == fleet.whole("a")
    assert fleet.drift() is None
    fleet.run("destroy")
    assert fleet.left() == []


def has_said(running: Running, line: str) -> bool:
    return running.event_log.exists() and line in running.event_log.read_text()
