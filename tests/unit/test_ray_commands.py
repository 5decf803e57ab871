"""The daily commands on the machines of a Ray cluster: units run there what containers do elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from light_fleet import light_fleet
from test_ray import TOKEN, spec

from fleet import check, ray
from fleet.check import Status
from fleet.commands.logs import Source, log_command
from fleet.progress import Progress
from fleet.ray.process import join


async def test_a_workers_check_asks_for_its_membership_and_for_no_container(tmp_path: Path) -> None:
    async with light_fleet(tmp_path, 2) as fleet:
        worker = replace(fleet.nodes[1], container="", ports={})
        alone = {each.name: each for each in await check.check_node(worker, "a key")}
        assert alone["cluster"].status is Status.FAILED
        assert alone["cluster"].fix.endswith("then pulumi up")
        for index in (0, 1):
            await join(spec(fleet, index), TOKEN, Progress(f"n-{index}"))
        joined = {each.name: each for each in await check.check_node(worker, "a key")}
        assert joined["cluster"].status is Status.OK
        assert joined.keys() & {"containers", "restarts", "readiness"} == set()


async def test_logs_of_a_member_are_its_units(tmp_path: Path) -> None:
    async with light_fleet(tmp_path, 1) as fleet:
        head = replace(fleet.nodes[0], container="", ports={"ray": ray.DASHBOARD_PORT})
        words = log_command(head, Source.VLLM, 5, follow=False)
        assert "docker" not in words
        assert words.count("-u ") == 3
