"""`fleet exec`: one command on many nodes."""

from __future__ import annotations

from typing import Annotated

import typer

from fleet.commands import nodes
from fleet.commands.nodes import Nodes, StackName


def execute(
    wanted: Nodes,
    command: Annotated[
        list[str],
        typer.Argument(
            help="The command, after `--`. One word is a line for the shell, several are kept as they are."
        ),
    ],
    stack: StackName = None,
    timeout: Annotated[
        float | None, typer.Option(min=0.1, help="Seconds each node may take; no limit if left out.")
    ] = None,
    max_parallel: Annotated[int, typer.Option(min=1, help="Nodes at work at once.")] = 64,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a summary as JSON; the nodes' output then goes to stderr.")
    ] = False,
) -> None:
    """Run a command on nodes, side by side, as the login user, with the output as it comes.

    The exit code is the worst of the nodes': 124 for a timeout, 255 for a node that cannot be reached.
    Ctrl-C ends the command on the nodes too.

    Example: fleet exec 'l4-*' --timeout 30 -- nvidia-smi
    """
    from fleet.commands.running import run_and_report  # noqa: PLC0415  --help does without
    from fleet.runner import Job, command_line  # noqa: PLC0415

    with nodes.told():
        nodes.guard_output(stack)
        chosen = nodes.find(wanted, stack)
        jobs = [Job(node.name, node, command_line(command)) for node in chosen]
        raise typer.Exit(run_and_report(jobs, timeout_s=timeout, max_parallel=max_parallel, as_json=as_json))
