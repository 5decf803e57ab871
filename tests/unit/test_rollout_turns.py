"""Which node of an update is switched when, and what the node does when nobody comes back."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fleet.rollout.spec import Queue
from fleet.rollout.store import LEASE_S, RELEASES, Journal
from fleet.rollout.turnstile import RoundFailed, Turnstile, TurnTimeout
from fleet.userdata import FILES


def ignore(whom: str, waited_s: float, limit_s: float) -> None:
    pass


@contextmanager
def members(folder: Path, names: str, max_unavailable: int = 1) -> Iterator[dict[str, Turnstile]]:
    queue = Queue(folder, max_unavailable, limit_s=10)
    joined = {name: Turnstile(queue, name) for name in names}
    yield joined
    for turnstile in joined.values():
        turnstile.leave()


@pytest.mark.parametrize("max_unavailable", [1, 2, 3])
async def test_no_more_than_the_limit_are_switched_at_once_and_in_order(
    tmp_path: Path, max_unavailable: int
) -> None:
    switching: set[str] = set()
    most, order = 0, []

    with members(tmp_path, "edcba", max_unavailable) as joined:

        async def switch(name: str) -> None:
            nonlocal most
            async with joined[name].turn(ignore):
                order.append(name)
                switching.add(name)
                most = max(most, len(switching))
                await asyncio.sleep(0.05)
                switching.discard(name)
            joined.pop(name).leave()

        await asyncio.gather(*map(switch, "edcba"))
    assert most == max_unavailable
    assert sorted(order) == list("abcde")
    if max_unavailable == 1:
        assert order == list("abcde")


async def test_who_is_ready_first_waits_for_those_that_started_with_it(tmp_path: Path) -> None:
    order: list[str] = []
    queue = Queue(tmp_path, settle_s=1.0)

    async def switch(name: str, prepared_after_s: float) -> None:
        turnstile = Turnstile(queue, name)
        await asyncio.sleep(prepared_after_s)
        async with turnstile.turn(ignore):
            order.append(name)
        turnstile.leave()

    await asyncio.gather(switch("c", 0), switch("b", 0.2), switch("a", 0.4))
    assert order == ["a", "b", "c"]


async def test_a_member_that_joins_late_waits_for_the_one_being_switched(tmp_path: Path) -> None:
    with members(tmp_path, "b") as first:
        async with first["b"].turn(ignore):
            with members(tmp_path, "a") as late:
                queue = Queue(tmp_path, limit_s=0)
                late["a"]._queue = queue
                with pytest.raises(TurnTimeout):
                    async with late["a"].turn(ignore):
                        pass


async def test_a_failure_stops_this_round_and_not_the_next(tmp_path: Path) -> None:
    with members(tmp_path, "ab") as joined:
        async with joined["a"].turn(ignore):
            joined["a"].fail()
        joined.pop("a").leave()
        with pytest.raises(RoundFailed, match="a"):
            async with joined["b"].turn(ignore):
                pass
    with members(tmp_path, "b") as again:
        async with again["b"].turn(ignore):
            pass


async def test_a_killed_rollout_holds_nobody_up(tmp_path: Path) -> None:
    (tmp_path / "member-a").touch()
    (tmp_path / "slot-0").touch()
    with members(tmp_path, "b") as joined:
        async with joined["b"].turn(ignore):
            pass


class Node:
    """A node's folder in the middle of a rollout, with tools that only record how they are called."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder / "llm", folder / "calls"
        self.bin = folder / "bin"
        self.bin.mkdir()
        for tool in ("docker", "systemctl"):
            (self.bin / tool).write_text(f'#!/bin/sh\necho "{tool} $*" >>{self.calls}\n')
            (self.bin / tool).chmod(0o755)
        before = self.folder / RELEASES.rpartition("/")[2] / "old"
        before.mkdir(parents=True)
        for name, old, new in (("docker-compose.yml", "old", "new"), (".env", "KEY='old'", "KEY='new'")):
            (before / name).write_text(old)
            (self.folder / name).write_text(new)
        self.rollout = self.folder / "rollout"
        (self.rollout / "lock").mkdir(parents=True)
        (self.rollout / "journal").write_text(str(Journal("gate", "new", "old")))
        self.owner = self.rollout / "lock/owner.json"
        self.owner.write_text("{}")

    def watchdog(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["bash", FILES / "rollout-watchdog.sh", self.folder],
            env={"PATH": f"{self.bin}:{os.environ['PATH']}", "LOOK_S": "0.05"},
        )


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_the_watchdog_puts_the_release_before_back_when_nobody_is_heard_of(node: Node) -> None:
    os.utime(node.owner, (0, 0))
    assert node.watchdog().wait(20) == 0
    assert (node.folder / "docker-compose.yml").read_text() == "old"
    assert (node.folder / ".env").read_text() == "KEY='old'"
    assert (node.folder / ".env").stat().st_mode & 0o777 == 0o600
    assert node.calls.read_text().splitlines() == [
        "docker compose up -d --remove-orphans",
        "systemctl --no-block start vllm.service",
    ]
    assert not (node.rollout / "journal").exists() and not (node.rollout / "lock").exists()


def test_the_watchdog_leaves_a_living_rollout_alone_and_ends_with_it(node: Node) -> None:
    watchdog = node.watchdog()
    with pytest.raises(subprocess.TimeoutExpired):
        watchdog.wait(0.5)
    (node.rollout / "journal").unlink()
    assert watchdog.wait(20) == 0
    assert (node.folder / "docker-compose.yml").read_text() == "new"
    assert not node.calls.exists()


def test_watchdog_and_operator_agree_on_when_a_rollout_is_dead() -> None:
    assert f"LEASE_S:-{LEASE_S}}}" in (FILES / "rollout-watchdog.sh").read_text()
