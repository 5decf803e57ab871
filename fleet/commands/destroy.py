"""`fleet destroy NODE`: remove a node from its cloud and from the state, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from fleet.billing import node_urns, protected
from fleet.commands import nodes, objects, pulumi
from fleet.commands.nodes import StackName

if TYPE_CHECKING:
    from components.owned import Owned


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
        owner = objects.ownership(state, pulumi.config(stack))
    urns = node_urns(state, node)
    if protected(state, node):
        typer.echo(
            f"{node} is protected. Fix: set protect: false in its settings, run pulumi up, then this again",
            err=True,
        )
        raise typer.Exit(1)
    with reported():
        mine = owner.of_node(node) if owner else []
    if not urns and not mine:
        typer.echo(f"fleet: no node {node} in the state or in the clouds", err=True)
        raise typer.Exit(nodes.WRONG_CALL)
    for each in mine:
        typer.echo(f"{'removing' if yes else 'would remove'} {each}")
    if not yes:
        typer.echo("Nothing is removed yet; add --yes")
        return
    with reported():
        remove(owner, mine, urns, stack)


@contextmanager
def reported() -> Iterator[None]:
    """Ends the command with the message of what a cloud or the engine refused, and exit code 1."""
    try:
        yield
    except Exception as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error


def remove(owner: objects.Ownership | None, mine: list[Owned], urns: list[str], stack: str | None) -> None:
    """Delete what a node has in its cloud, then drop it from the state. Raises StillThere, PulumiError."""
    if owner:
        owner.remove(mine)
    if urns:
        pulumi.destroy(urns, stack=stack)
