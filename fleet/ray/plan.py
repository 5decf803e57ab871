"""How a model is spread over a cluster, judged before any machine exists.

A layer's weights are split over the GPUs of one machine (tensor parallelism), whose links are fast; layers
are split over the machines (pipeline parallelism), which pass on activations alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from fleet.checks import Model, NodeCheck, find_model, request_of
from fleet.compose import serve_arguments
from fleet.fit import FitReport, plan
from fleet.settings import RayCluster, Secrets, Serving


@dataclass(frozen=True)
class Spread:
    """Ranks of one copy of a model, and how well it fits so."""

    tensor_parallel_size: int
    """GPUs of each machine."""
    pipeline_parallel_size: int
    """Machines."""
    report: FitReport | None
    """None where nobody can tell what the model is like."""
    unknown: str = ""
    """Why not."""


def spread(cluster: RayCluster, secrets: Secrets, *, ask_hub: bool = True) -> Spread:
    """The spread that fits and holds the most requests; on a tie, the one with the fewest pipeline stages.

    Where none fits, the one that comes nearest; of a model that nobody knows, all GPUs. What the settings say
    of tensor and pipeline parallelism is not asked: the cluster's size decides.
    """
    try:
        return max(_spreads(cluster, find_model(cluster.serving, secrets, ask_hub=ask_hub)), key=_merit)
    except ValueError as error:
        return Spread(cluster.instance_type().gpu_count, len(cluster.members), None, str(error))


def _merit(found: Spread) -> tuple[bool, float, int]:
    assert found.report
    return found.report.fits, round(found.report.max_concurrency, 2), -found.pipeline_parallel_size


def _spreads(cluster: RayCluster, model: Model) -> Iterator[Spread]:
    kind, machines = cluster.instance_type(), len(cluster.members)
    request = request_of(cluster.serving, model, kind)
    for tensor in range(1, kind.gpu_count + 1):
        for stages in range(1, machines + 1):
            # Tensor parallelism stays within a machine, so the cluster is one pool of its GPUs.
            asked = replace(
                request,
                gpus=kind.gpu_count * machines,
                tensor_parallel_size=tensor,
                pipeline_parallel_size=stages,
            )
            yield Spread(tensor, stages, plan(asked, suggest=False))


def arguments(serving: Serving, spread: Spread) -> list[str]:
    """The arguments of `vllm serve` on the head, over all machines; it listens on loopback alone."""
    own = {
        "tensor_parallel_size": spread.tensor_parallel_size,
        "distributed_executor_backend": "ray",
    }
    # As for a container, but nothing lies between vLLM and these words: no port mapping, no interpolation.
    words = [word.replace("$$", "$") for word in serve_arguments(serving.model_copy(update=own))]
    words[words.index("--host") + 1] = "127.0.0.1"
    words[words.index("--port") + 1] = str(serving.port)
    return [*words, "--pipeline-parallel-size", str(spread.pipeline_parallel_size)]


def check(
    cluster: RayCluster, secrets: Secrets, *, ask_hub: bool = True
) -> tuple[dict[str, NodeCheck], str | None]:
    """What is to be said of each machine, by name, and why the model does not fit, if it does not."""
    checks = {member.name: NodeCheck((), (), member.cost_per_hour()) for member in cluster.members}
    found = spread(cluster, secrets, ask_hub=ask_hub) if cluster.serve else None
    if found is None:
        return checks, None
    if found.report is None:
        said = NodeCheck((), (found.unknown,), checks[cluster.head.name].cost)
        return {**checks, cluster.head.name: said}, None
    if not found.report.fits:
        return checks, (
            f"{cluster.serving.model} does not fit {len(checks)} × {cluster.type}: {found.report.reason}; "
            "raise count, choose a larger type, or shorten serving.max_model_len"
        )
    over = f"{found.tensor_parallel_size} GPUs of each of {found.pipeline_parallel_size} machines"
    said = NodeCheck((f"fit: over {over}: {found.report.reason}",), (), checks[cluster.head.name].cost)
    return {**checks, cluster.head.name: said}, None
