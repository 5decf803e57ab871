"""What the preflight says of GPUs and disks, on machines that light nodes do not have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fleet import compose
from fleet.rollout import preflight
from fleet.rollout.release import Release
from fleet.settings import Serving
from fleet.ssh import Completed

OWN, FOREIGN = "100", "200"


class Machine:
    """Answers commands by their first words."""

    def __init__(self, driver: str = "580.95.05", card: str = "NVIDIA L4", held: Sequence[str] = ()) -> None:
        gpus = [f"{index}, GPU-{index}, 23034, {driver}, {card}" for index in (0, 1)]
        self.answers = {
            "nvidia-smi --query-gpu": "\n".join(gpus),
            "nvidia-smi --query-compute-apps": "\n".join(held),
            "docker top": f"PID\n{OWN}\n",
            "df": "    Avail\n 60000000000\n",
        }

    async def run(self, argv: Sequence[str], **_: Any) -> Completed:
        line = " ".join(argv)
        answer = next((text for start, text in self.answers.items() if line.startswith(start)), None)
        return Completed(tuple(argv), 1 if answer is None else 0, answer or "", "")


def release(**serving: Any) -> Release:
    wanted = Serving(**{"model": "Qwen/Qwen3-8B-AWQ", **serving})
    environment = {**compose.plain_environment(wanted), "VLLM_API_KEY": "planted"}
    return Release(compose.compose_file(wanted).encode(), compose.env_file(environment).encode())


async def gpu_problems(machine: Machine, **serving: Any) -> list[str]:
    node: Any = machine
    return [problem async for problem in preflight.of_gpus(node, release(**serving), release())]


async def test_memory_of_the_container_that_is_replaced_counts_as_free() -> None:
    assert await gpu_problems(Machine(held=[f"GPU-0, {OWN}, 20000", f"GPU-1, {FOREIGN}, 11000"])) == []


async def test_a_gpu_that_others_fill_by_more_than_half_is_refused_where_it_is_used() -> None:
    machine = Machine(held=[f"GPU-1, {FOREIGN}, 11600"])
    (problem,) = await gpu_problems(machine)
    assert problem.startswith("others hold 11600 of 23034 MiB on GPU 1; end them")
    assert await gpu_problems(machine, visible_devices=[0]) == []


async def test_a_driver_that_does_not_tell_processes_apart_is_no_obstacle() -> None:
    assert await gpu_problems(Machine(held=["GPU-0, [N/A], [N/A]"])) == []


async def test_an_image_too_new_for_the_driver_is_refused_before_it_is_pulled() -> None:
    problems = await gpu_problems(Machine(driver="565.57.01"), image="vllm/vllm-openai:v0.20.0")
    assert problems and all("needs driver 580 or newer, the node gets 565" in problem for problem in problems)


async def test_room_is_asked_for_what_is_not_there_yet() -> None:
    node: Any = Machine()
    spec: Any = None
    small = [p async for p in preflight.of_disk(node, spec, release(), first=False)]
    large = release(model="Qwen/Qwen3-32B-AWQ", tensor_parallel_size=2)
    (problem,) = [p async for p in preflight.of_disk(node, spec, large, first=False)]
    assert small == [] and problem.startswith("60 GB of disk are free, image, weights and caches need 6")

    node.answers |= {"docker image inspect": "[]", "test -e": ""}
    assert [p async for p in preflight.of_disk(node, spec, large, first=False)] == []
