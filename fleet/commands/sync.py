"""`fleet sync`: files to nodes."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from fleet.commands import nodes
from fleet.commands.nodes import StackName


def sync(
    source: Annotated[str, typer.Argument(help="File or folder here; `folder/` means its content.")],
    where: Annotated[
        str, typer.Argument(help="NODES:DST, the nodes as for `fleet exec`.", metavar="NODES:DST")
    ],
    exclude: Annotated[
        list[str] | None, typer.Option(help="A pattern to leave out, as rsync reads it; may be given again.")
    ] = None,
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove at the destination what the source does not have.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Only say what would change.")] = False,
    max_parallel: Annotated[int, typer.Option(min=1, help="Nodes at once.")] = 8,
    stack: StackName = None,
) -> None:
    """Copy files to nodes with rsync, over SSH with the host keys this stack has pinned.

    Example: fleet sync --exclude '*.pyc' ./prompts/ l4-a:/opt/llm/prompts
    """
    from fleet.sync import Copy, RsyncMissing, split  # noqa: PLC0415  --help does without
    from fleet.sync import sync as copy_to  # noqa: PLC0415

    with nodes.told():
        wanted, destination = split(where)
        copy = Copy(source, destination, tuple(exclude or ()), delete, dry_run)
        chosen = nodes.find(wanted, stack)
        nodes.guard_output(stack)
        try:
            done = asyncio.run(copy_to(chosen, copy, max_parallel=max_parallel))
        except RsyncMissing as error:
            typer.echo(f"fleet: {error}", err=True)
            raise typer.Exit(nodes.WRONG_CALL) from error
    for each in done:
        for line in each.output.splitlines():
            typer.echo(f"{each.node} | {line}")
        if each.exit_status:
            typer.echo(f"{each.node}: rsync ended with {each.exit_status}: {each.error}", err=True)
        elif not each.output:
            typer.echo(f"{each.node} | nothing to do")
    raise typer.Exit(max(each.exit_status for each in done))
