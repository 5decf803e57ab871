"""`fleet logs`: what vLLM, cloud-init and the node agent write, across nodes."""

from __future__ import annotations

import shlex
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from fleet import ray
from fleet.commands import nodes
from fleet.commands.nodes import Nodes, StackName

if TYPE_CHECKING:
    from fleet.inventory import FleetNode


class Source(StrEnum):
    """Whose log."""

    VLLM = "vllm"
    SERVICE = "service"
    """vllm.service, which starts the containers."""
    CLOUD_INIT = "cloud-init"
    AGENT = "agent"


def logs(
    wanted: Nodes = "all",
    source: Annotated[
        list[Source] | None, typer.Option("--source", help="Whose log; may be given again.")
    ] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Lines of the past to begin with.")] = 20,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", "-f/-F", help="Go on with what is written from now on.")
    ] = True,
    stack: StackName = None,
) -> None:
    """Show and follow the logs of nodes, vLLM's unless told otherwise. Ctrl-C ends it.

    Example: fleet logs l4-a --source vllm --source cloud-init -n 100
    """
    from fleet.commands.running import run_and_report  # noqa: PLC0415  --help does without
    from fleet.runner import Job  # noqa: PLC0415

    sources = source or [Source.VLLM]
    with nodes.told():
        nodes.guard_output(stack)
        jobs = [
            Job(
                node.name if len(sources) == 1 else f"{node.name} {each}",
                node,
                log_command(node, each, lines, follow=follow),
            )
            for node in nodes.find(wanted, stack)
            for each in sources
        ]
        raise typer.Exit(run_and_report(jobs, max_parallel=len(jobs)))


def log_command(node: FleetNode, source: Source, lines: int, *, follow: bool) -> str:
    """The command line that prints the log on the node."""
    journal = ["journalctl", "-n", str(lines), *(["-f"] if follow else []), "--no-pager", "-u"]
    words = {
        Source.VLLM: [
            "docker",
            "logs",
            "--tail",
            str(lines),
            *(["--follow"] if follow else []),
            node.container,
        ]
        if node.container
        else [*journal, ray.SERVE_UNIT, "-u", ray.HEAD_UNIT, "-u", ray.WORKER_UNIT],
        Source.SERVICE: [*journal, "vllm.service"],
        Source.AGENT: [*journal, "vllm-agent.service"],
        Source.CLOUD_INIT: [
            *("tail", "-n", str(lines), *(["-F"] if follow else [])),
            "/var/log/cloud-init-output.log",
        ],
    }[source]
    return shlex.join(words if node.reachable().user == "root" else ["sudo", "-n", *words])
