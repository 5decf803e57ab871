"""Commands on many nodes at once: side by side, streamed, limited, each outcome told right."""

from __future__ import annotations

import asyncio
import fcntl
import io
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncssh
import pytest
from light_fleet import light_fleet, until

from fleet.inventory import FleetNode
from fleet.runner import Job, Outcome, Printer, Result, command_line, run, worst


def nothing(_label: str, _stream: str, _lines: list[bytes]) -> None:
    """Output that nobody reads."""


def jobs(nodes: list[FleetNode], command: str) -> list[Job]:
    return [Job(node.name, node, command) for node in nodes]


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Commands that run `flock` on this file wait until the block is left."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


async def lines_of(path: Path, count: int) -> None:
    def there() -> int:
        return len(path.read_text().splitlines()) if path.exists() else 0

    async def enough() -> bool:
        return there() >= count

    await until(enough)


async def test_fifty_nodes_work_side_by_side(tmp_path: Path) -> None:
    started, lock = tmp_path / "started", tmp_path / "lock"
    async with light_fleet(tmp_path, 50) as fleet:
        with held(lock):
            command = f"echo x >> {started}; exec flock -s {lock} true"
            running = asyncio.create_task(run(jobs(fleet.nodes, command), nothing))
            await lines_of(started, 50)  # which they reach only if none waits for another
        results = await running
    assert {result.outcome for result in results} == {Outcome.OK}


async def test_no_more_run_at_once_than_asked(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with light_fleet(tmp_path, 6) as fleet:
        command = f"echo 1 >> {log}; sleep 0.02; echo -1 >> {log}"
        results = await run(jobs(fleet.nodes, command), nothing, max_parallel=2)
    assert worst(results) == 0
    running, most = 0, 0
    for line in log.read_text().split():
        running += int(line)
        most = max(most, running)
    assert most <= 2


async def test_each_way_to_fail_is_told_and_the_others_are_not_held_up(tmp_path: Path) -> None:
    async with light_fleet(tmp_path, 6) as fleet:
        await fleet.backend.stop(fleet.nodes[2].server_id)  # nothing listens there any more
        stranger = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
        fleet.change(3, host_keys=(stranger,))
        fleet.change(4, user="nobody")
        nodes = {node.name: node for node in fleet.nodes}
        commands = {
            "n-0": "sleep 1000",
            "n-1": "echo half; echo no such model >&2; exit 7",
            "n-5": "kill -9 $$",
        }
        results = {
            result.label: result
            for result in await run(
                [Job(name, node, commands.get(name, "true")) for name, node in nodes.items()],
                nothing,
                timeout_s=4,
            )
        }
    assert {name: result.outcome for name, result in results.items()} == {
        "n-0": Outcome.TIMEOUT,
        "n-1": Outcome.FAILED,
        "n-2": Outcome.UNREACHABLE,
        "n-3": Outcome.REFUSED,
        "n-4": Outcome.REFUSED,
        "n-5": Outcome.FAILED,
    }
    assert [results[name].exit_status for name in ("n-0", "n-1", "n-2", "n-5")] == [124, 7, 255, 137]
    assert "no end within 4 s" in results["n-0"].error
    assert "no such model" in results["n-1"].error
    assert "connection refused" in results["n-2"].error
    assert "is pinned" in results["n-3"].error
    assert worst(list(results.values())) == 255


@pytest.mark.parametrize("ends", ["timeout", "interrupt"])
async def test_a_command_that_is_given_up_is_ended_on_its_node(tmp_path: Path, ends: str) -> None:
    marks = tmp_path / "marks"
    command = (
        f"trap 'echo ended >> {marks}; exit 1' TERM; echo started >> {marks}; while :; do sleep 0.1; done"
    )
    async with light_fleet(tmp_path, 1) as fleet:
        timeout_s = 3.0 if ends == "timeout" else None
        running = asyncio.create_task(run(jobs(fleet.nodes, command), nothing, timeout_s=timeout_s))
        await lines_of(marks, 1)
        if ends == "interrupt":
            running.cancel()
        (result,) = await running
    assert result.outcome == (Outcome.TIMEOUT if ends == "timeout" else Outcome.INTERRUPTED)
    assert marks.read_text().split() == ["started", "ended"]


async def test_any_amount_of_output_passes_through_without_being_held(tmp_path: Path) -> None:
    passed, size = 0, 20_000_000

    def count(_label: str, _stream: str, lines: list[bytes]) -> None:
        nonlocal passed
        passed += sum(map(len, lines)) + len(lines)

    async with light_fleet(tmp_path, 1) as fleet:
        tracemalloc.start()
        try:
            (result,) = await run(jobs(fleet.nodes, f"yes 0123456789 | head -c {size}"), count)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert result.outcome == Outcome.OK
    assert size <= passed <= size + 1
    assert peak < 8_000_000  # the node's SSH server is in this process too


async def test_a_reader_that_goes_away_ends_everything(tmp_path: Path) -> None:
    def gone(_label: str, _stream: str, _lines: list[bytes]) -> None:
        raise BrokenPipeError

    async with light_fleet(tmp_path, 2) as fleet:
        with pytest.raises(BrokenPipeError):
            await run(jobs(fleet.nodes, "yes"), gone)


async def test_lines_without_an_end_are_passed_on_in_parts(tmp_path: Path) -> None:
    seen: list[bytes] = []
    async with light_fleet(tmp_path, 1) as fleet:
        await run(
            jobs(fleet.nodes, "head -c 200000 /dev/zero; printf 'a\\nb'"),
            lambda _label, _stream, lines: seen.extend(lines),
        )
    assert max(map(len, seen)) <= 2 * 65536
    assert sum(map(len, seen)) == 200000 + 2
    assert seen[-1] == b"b"


def test_each_line_carries_its_nodes_name() -> None:
    out, err = io.BytesIO(), io.BytesIO()
    printer = Printer(["a", "l4-b"], out, err, colour=False)
    printer("a", "stdout", [b"one", b"two"])
    printer("l4-b", "stderr", [b"oh"])
    assert out.getvalue() == b"a    | one\na    | two\n"
    assert err.getvalue() == b"l4-b | oh\n"


def test_one_word_is_a_line_for_the_shell_and_several_are_kept_apart() -> None:
    assert command_line(["df -h | tail -1"]) == "df -h | tail -1"
    assert command_line(["echo", "two words", "$HOME"]) == "echo 'two words' '$HOME'"


def test_the_worst_status_is_the_runs() -> None:
    results = [Result("a", Outcome.OK, 0, 1.0), Result("b", Outcome.FAILED, 3, 1.0)]
    assert worst(results) == 3
    assert worst([]) == 0


async def test_a_node_without_an_address_is_told_and_not_dialled() -> None:
    node = FleetNode("a", "scaleway", "fr-par-2", "L4-1-24G", None, "vllm", {"vllm": 8000}, "m", "id")
    (result,) = await run(jobs([node], "true"), nothing)
    assert result.outcome == Outcome.UNREACHABLE
    assert "pulumi up" in result.error
