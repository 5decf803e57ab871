"""A cluster before and after it is there: settings to ranks, ranks to a launch line, machines to members."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from light_fleet import LightFleet, light_fleet

from fleet import gate, layout, ray, settings
from fleet.progress import Progress
from fleet.ray import plan
from fleet.ray.process import ClusterFailed, join
from fleet.ray.release import Release, serve
from fleet.ray.spec import JoinSpec, ServeSpec, Timeouts
from fleet.userdata import HostPart
from simcloud.vllm_flags import parse_options

TOKEN = "0123456789abcdef" * 4


def cluster(tmp_path: Path, **changes: Any) -> settings.RayCluster:
    key = tmp_path / "key"
    key.write_text("a key")
    key.chmod(0o600)
    entry = {"name": "pool", "cloud": "scaleway", "type": "L4-2-24G", "count": 1, **changes}
    return settings.parse(
        {
            "ray": [entry],
            "serving": {"model": "Qwen/Qwen3-32B-AWQ", "max_model_len": 8192},
            "access": {"ssh_cidrs": ["203.0.113.7/32"], "ssh_private_key_path": str(key)},
            "secrets": {"api_key": "a-key-of-16-or-more"},
        }
    ).ray[0]


SECRETS = settings.Secrets.model_validate({"api_key": "a-key-of-16-or-more"})


# --- ranks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "count", "ranks"), [("L4-2-24G", 1, (2, 2)), ("L4-2-24G", 2, (2, 3)), ("H100-1-80G", 3, (1, 4))]
)
def test_layers_are_split_within_machines_and_stages_over_them(
    tmp_path: Path, type_: str, count: int, ranks: tuple[int, int]
) -> None:
    found = plan.spread(cluster(tmp_path, type=type_, count=count), SECRETS)
    assert (found.tensor_parallel_size, found.pipeline_parallel_size) == ranks
    assert found.report is not None
    assert found.report.fits


def test_a_model_too_large_for_the_whole_cluster_is_refused_with_the_fix(tmp_path: Path) -> None:
    small = cluster(tmp_path, type="L4-1-24G", serving={"model": "Qwen/Qwen3-32B"})
    checks, misfit = plan.check(small, SECRETS)
    assert list(checks) == ["pool-head", "pool-w0"]
    assert misfit is not None
    assert misfit.startswith("Qwen/Qwen3-32B does not fit 2 × L4-1-24G: ")
    assert "raise count" in misfit


def test_the_launch_line_has_the_ranks_and_the_simulator_takes_it(tmp_path: Path) -> None:
    found = cluster(tmp_path, count=2, serving={"extra_args": ["--response-role", "$1"]})
    words = plan.arguments(found.serving, plan.spread(found, SECRETS))
    options = parse_options(words, {})
    assert (options.tensor_parallel_size, options.pipeline_parallel_size) == (2, 3)
    assert (options.host, options.port) == ("127.0.0.1", 8000)
    assert words[words.index("--distributed-executor-backend") + 1] == "ray"
    assert words[words.index("--response-role") + 1] == "$1", "nothing interpolates it on the way"


def test_pip_installs_the_vllm_of_the_image_beside_ray() -> None:
    assert ray.requirements("2.53.0", "0.9.2") == "ray[default]==2.53.0\nvllm==0.9.2\n"
    assert ray.requirements("2.53.0", None) == "ray[default]==2.53.0\n"


def test_a_member_boots_as_any_node_and_is_told_over_ssh_what_it_does(tmp_path: Path) -> None:
    alone = HostPart.scaleway(cluster(tmp_path).head, SECRETS)
    member = replace(alone, serves=False)
    document = yaml.safe_load(member.user_data())
    paths = {file["path"] for file in document["write_files"]}
    assert not {layout.COMPOSE_PATH, layout.ENV_PATH} & paths
    assert "Qwen" not in member.user_data(), "no model and no image is fetched ahead"
    assert member.digest() == alone.digest()


# --- machines -------------------------------------------------------------------------------------------


def spec(fleet: LightFleet, index: int, **changes: Any) -> JoinSpec:
    made = JoinSpec(
        node=f"n-{index}",
        target=fleet.target(index),
        address=f"10.77.0.{10 + index}",
        head=fleet.target(0),
        head_address="10.77.0.10",
        requirements="ray[default]==2.53.0\n",
        files="",
        timeouts=Timeouts(ssh_s=20, install_s=20, join_s=5),
    )
    return replace(made, **changes)


def started(fleet: LightFleet, index: int, unit: str) -> float:
    """When a unit of a machine last became what it is."""
    machine = fleet.backend._machines[fleet.boots[index].server_id]
    return machine.systemd.unit(unit).since


async def test_machines_join_the_head_and_stay_untouched_when_told_again(tmp_path: Path) -> None:
    async with light_fleet(tmp_path, 3) as fleet:
        await join(spec(fleet, 0), TOKEN, Progress("n-0"))
        await asyncio.gather(*(join(spec(fleet, index), TOKEN, Progress(f"n-{index}")) for index in (1, 2)))
        before = started(fleet, 0, ray.HEAD_UNIT), started(fleet, 1, ray.WORKER_UNIT)
        for index in (0, 1):
            await join(spec(fleet, index), TOKEN, Progress(f"n-{index}"))
        assert (started(fleet, 0, ray.HEAD_UNIT), started(fleet, 1, ray.WORKER_UNIT)) == before
        # Another release of Ray is a new start.
        await join(spec(fleet, 1, requirements="ray[default]==2.54.0\n"), TOKEN, Progress("n-1"))
        assert started(fleet, 1, ray.WORKER_UNIT) > before[1]


async def test_what_was_interrupted_before_the_restart_is_started_anew_by_the_next_run(
    tmp_path: Path,
) -> None:
    async with light_fleet(tmp_path, 1) as fleet:
        await join(spec(fleet, 0), TOKEN, Progress("n-0"))
        before = started(fleet, 0, ray.HEAD_UNIT)
        # All files are there, and Ray was not told.
        disk = fleet.backend._machines[fleet.boots[0].server_id].disk
        disk.write(ray.STARTED_WITH_PATH, b"another release")
        await join(spec(fleet, 0), TOKEN, Progress("n-0"))
        assert started(fleet, 0, ray.HEAD_UNIT) > before


async def test_a_machine_that_the_head_does_not_list_is_named_with_what_was_seen(tmp_path: Path) -> None:
    async with light_fleet(tmp_path, 2) as fleet:
        await join(spec(fleet, 0), TOKEN, Progress("n-0"))
        with pytest.raises(ClusterFailed, match=r"n-1: .*the dashboard answers 401"):
            await join(spec(fleet, 1), "another token" * 4, Progress("n-1"))


async def test_vllm_is_started_anew_when_its_machines_change_and_only_then(tmp_path: Path) -> None:
    async with light_fleet(tmp_path, 1) as fleet:
        await join(spec(fleet, 0), TOKEN, Progress("n-0"))
        told = ServeSpec("n-0", fleet.target(0), ("10.77.0.10",), ("--model", "Qwen/Qwen3-8B-AWQ"), "")
        first = await serve(told, "VLLM_API_KEY='k'\n", Progress("n-0"))
        since = started(fleet, 0, ray.SERVE_UNIT)
        assert await serve(told, "VLLM_API_KEY='k'\n", Progress("n-0")) == first
        assert started(fleet, 0, ray.SERVE_UNIT) == since
        grown = replace(told, members=("10.77.0.10", "10.77.0.11"))
        assert await serve(grown, "VLLM_API_KEY='k'\n", Progress("n-0")) != first
        assert started(fleet, 0, ray.SERVE_UNIT) > since


async def test_a_machine_that_is_to_go_leaves_before_vllm_is_started_anew(tmp_path: Path) -> None:
    async with light_fleet(tmp_path, 2) as fleet:
        for index in (0, 1):
            await join(spec(fleet, index), TOKEN, Progress(f"n-{index}"))
        told = ServeSpec("n-0", fleet.target(0), ("10.77.0.10",), ("--model", "Qwen/Qwen3-8B-AWQ"), "")
        await serve(told, "VLLM_API_KEY='k'\n", Progress("n-0"))
        worker = fleet.backend._machines[fleet.boots[1].server_id]
        assert worker.systemd.unit(ray.WORKER_UNIT).active == "inactive"
        assert worker.systemd.unit(ray.WORKER_UNIT).since <= started(fleet, 0, ray.SERVE_UNIT)


# --- changes of what is served --------------------------------------------------------------------------

KEY = "VLLM_API_KEY='a-key-of-16-or-more'\n"
MODEL = ("--model", "Qwen/Qwen3-8B-AWQ")
BAD_FLAG = (*MODEL, "--no-such-flag")
READINESS = gate.Timeouts(ssh_s=20, install_s=20, ready_s=10, token_s=5, reboot_s=5)


def told(fleet: LightFleet, *arguments: str) -> ServeSpec:
    return ServeSpec(
        "n-0",
        fleet.target(0),
        ("10.77.0.10",),
        arguments,
        "",
        cloud="scaleway",
        timeouts=Timeouts(ssh_s=20),
        readiness=READINESS,
    )


async def until_serves(fleet: LightFleet, model: str) -> None:
    report = await gate.check(
        gate.GateSpec(
            "n-0",
            "scaleway",
            fleet.target(0),
            model,
            "a-key-of-16-or-more",
            unit=ray.SERVE_UNIT,
            timeouts=READINESS,
        ),
        Progress("n-0"),
    )
    assert report.ready, report.diagnosis


async def test_a_change_that_does_not_pass_the_gate_is_undone_and_says_so(tmp_path: Path) -> None:
    async with light_fleet(tmp_path, 1) as fleet:
        await join(spec(fleet, 0), TOKEN, Progress("n-0"))
        await serve(told(fleet, *MODEL), KEY, Progress("n-0"))
        await until_serves(fleet, MODEL[1])
        with pytest.raises(ClusterFailed) as caught:
            await serve(told(fleet, *BAD_FLAG), KEY, Progress("n-0"))
        said = str(caught.value)
        assert "vLLM refuses its arguments" in said
        assert "--no-such-flag" in said
        assert "rolled back; what served before serves, gated in" in said
        assert "a-key-of-16-or-more" not in said
        await until_serves(fleet, MODEL[1])
        await serve(told(fleet, *MODEL, "--served-model-name", "other"), KEY, Progress("n-0"))
        await until_serves(fleet, "other")


async def test_a_change_whose_operator_died_is_judged_by_the_next_run(tmp_path: Path) -> None:
    async with light_fleet(tmp_path, 1) as fleet:
        await join(spec(fleet, 0), TOKEN, Progress("n-0"))
        await serve(told(fleet, *MODEL), KEY, Progress("n-0"))
        await until_serves(fleet, MODEL[1])
        disk = fleet.backend._machines[fleet.boots[0].server_id].disk
        before = Release(MODEL, KEY, ("10.77.0.10",))
        # It died after the switch, before the gate had an answer.
        await serve(replace(told(fleet, *BAD_FLAG), readiness=None), KEY, Progress("n-0"))
        disk.write(ray.BEFORE_PATH, json.dumps(asdict(before)).encode())
        with pytest.raises(ClusterFailed, match="rolled back"):
            await serve(told(fleet, *BAD_FLAG), KEY, Progress("n-0"))
        await until_serves(fleet, MODEL[1])
        assert not disk.exists(ray.BEFORE_PATH)


async def test_with_fewer_machines_there_is_no_way_back(tmp_path: Path) -> None:
    async with light_fleet(tmp_path, 2) as fleet:
        for index in (0, 1):
            await join(spec(fleet, index), TOKEN, Progress(f"n-{index}"))
        both = replace(told(fleet, *MODEL), members=("10.77.0.10", "10.77.0.11"))
        await serve(both, KEY, Progress("n-0"))
        await until_serves(fleet, MODEL[1])
        # The gate that follows says what is wrong with it.
        await serve(told(fleet, *BAD_FLAG), KEY, Progress("n-0"))
        disk = fleet.backend._machines[fleet.boots[0].server_id].disk
        assert json.loads(disk.text(ray.ARGUMENTS_PATH)) == list(BAD_FLAG)
