"""The gate on a vLLM that a systemd unit runs: the unit's state and journal are what it looks at."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable
from itertools import count
from pathlib import Path

import pytest
from fake_node import API_KEY, MODEL, Answer, FakeNode, FastClock

from fleet import gate
from fleet.diagnosis import Fault
from fleet.gate import GateSpec, Report, Timeouts
from fleet.progress import Progress

UNIT = "vllm-ray.service"


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[FakeNode]:
    fake = FakeNode(tmp_path)
    fake.commands["docker inspect"] = Answer(status=1, stderr="Error: No such object")
    fake.commands["systemctl is-system-running"] = Answer("running\n")
    async with fake.running() as running:
        yield running


async def check(node: FakeNode) -> Report:
    clock = FastClock().clock()
    spec = GateSpec(
        "pool-head",
        "aws",
        node.target,
        MODEL,
        API_KEY,
        node.http_port,
        unit=UNIT,
        timeouts=Timeouts(ready_s=600),
    )
    return await gate.check(spec, Progress("pool-head", io.StringIO(), clock=clock), clock=clock)


def states(active: str, restarts: Callable[[], int]) -> Callable[[], Answer]:
    return lambda: Answer(f"ActiveState={active}\nNRestarts={restarts()}\n")


async def test_a_unit_that_answers_is_ready_without_any_container(node: FakeNode) -> None:
    node.commands[f"systemctl show {UNIT}"] = states("active", lambda: 2)
    assert (await check(node)).ready


async def test_a_unit_that_restarts_after_its_first_token_is_not_ready(node: FakeNode) -> None:
    looks = count()
    node.commands[f"systemctl show {UNIT}"] = states("active", lambda: next(looks))
    report = await check(node)
    assert report.diagnosis
    assert report.diagnosis.fault == Fault.UNSTABLE.name.lower()


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory.", Fault.OUT_OF_GPU_MEMORY),
        ("RuntimeError: Engine core initialization failed.", Fault.EXIT_LOOP),
    ],
)
async def test_a_unit_that_ends_again_and_again_is_named_with_its_journal(
    node: FakeNode, line: str, fault: Fault
) -> None:
    looks = count()
    node.http = lambda *_: None
    node.commands[f"systemctl show {UNIT}"] = states("activating", lambda: next(looks))
    node.commands[f"journalctl -u {UNIT}"] = Answer(f"starting\n{line}\n")
    report = await check(node)
    assert report.diagnosis
    assert report.diagnosis.fault == fault.name.lower()
    assert line in " ".join(report.diagnosis.seen)
    if fault is Fault.EXIT_LOOP:
        assert f"journalctl -u {UNIT}" in report.diagnosis.next_command
