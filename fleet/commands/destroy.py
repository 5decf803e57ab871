"""`fleet destroy NODE`: remove a node from its cloud and from the state, and nothing else."""

from __future__ import annotations

from typing import Annotated

import typer

from fleet.billing import node_urns, protected
from fleet.commands import nodes, objects, pulumi
from fleet.commands.nodes import StackName


def destroy(
    node: Annotated[str, typer.Argument(help="Name of the node.", autocompletion=nodes.complete)],
    stack: StackName = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Remove; without it, list what would be removed.")
    ] = False,
) -> None:
    """Remove one node: its machine, volume, address and firewall, and then its resources in the state.

    The node comes back with the next update while the settings still declare it. Run again after a failure,
    the command goes on where it stopped.

    Example: fleet destroy l4-a --yes
    """
    with nodes.told():
        state = pulumi.read("stack", "export", stack=stack)
        found = objects.ownership(state, pulumi.config(stack))
    urns = node_urns(state, node)
    if protected(state, node):
        typer.echo(
            f"{node} is protected. Fix: set protect: false in its settings, run pulumi up, then this again",
            err=True,
        )
        raise typer.Exit(1)
    mine = [each for each in (found.everything() if found else []) if each.node == node]
    if not urns and not mine:
        typer.echo(f"fleet: no node {node} in the state or in the clouds", err=True)
        raise typer.Exit(nodes.WRONG_CALL)
    for each in mine:
        typer.echo(f"{'removing' if yes else 'would remove'} {each}")
    if not yes:
        typer.echo("Nothing is removed yet; add --yes")
        return
    remove(state, node, stack)


def remove(state: pulumi.State, node: str, stack: str | None) -> None:
    """Delete what a node has in its cloud, then drop it from the state; exits with 1 if anything stays."""
    found = objects.ownership(state, pulumi.config(stack))
    try:
        if found:
            found.remove([each for each in found.everything() if each.node == node])
        if urns := node_urns(state, node):
            pulumi.destroy(urns, stack=stack)
    except Exception as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error
