"""`fleet adopt NODE`: take a machine that carries a node's name into this stack instead of buying another."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Annotated

import typer

from fleet.commands import nodes, objects, pulumi
from fleet.commands.nodes import StackName

if TYPE_CHECKING:
    from components.owned import Owned


def adopt(
    node: Annotated[str, typer.Argument(help="Name of the node.", autocompletion=nodes.complete)],
    stack: StackName = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Adopt; without it, show what would be adopted.")
    ] = False,
) -> None:
    """Give a found machine this stack's owner id, so that the next update takes it up.

    It is looked for by its node tag, in every place the stack uses. Whoever managed it before no longer does:
    make sure that nobody else runs updates of that stack.

    Example: fleet adopt l4-a --yes
    """
    with nodes.told():
        found = objects.of_stack(stack)
        if found is None:
            # The first update draws the owner's id, and nothing else yet.
            pulumi.up_only(objects.FLEET_OWNER, stack=stack)
            found = objects.of_stack(stack)
    label = found.label_of(node) if found else None
    if found is None or label is None:
        typer.echo(f"fleet: no node {node} is declared in this stack", err=True)
        raise typer.Exit(nodes.WRONG_CALL)
    others = _others(found, label)
    if not others:
        typer.echo(f"fleet: no other machine carries the name {label}: nothing to adopt", err=True)
        raise typer.Exit(nodes.WRONG_CALL)
    for each in others:
        typer.echo(f"{'adopting' if yes else 'would adopt'} {each}")
    if not yes:
        typer.echo("Nothing is changed yet; add --yes")
        return
    owned = import_module("components.owned")
    for each in others:
        owned.inventory(found.setting, each.place).adopt([each], found.owner)
    typer.echo(f"{node} is adopted. Next: pulumi preview, then pulumi up")


def _others(found: objects.Ownership, label: str) -> list[Owned]:
    """Everything with the label of another owner, where one of its machines is."""
    owned = import_module("components.owned")
    places = [owned.Place.parse(place) for place in found.places]
    machines = [each for each in owned.labelled(found.setting, places, [label]) if each.owner != found.owner]
    return [
        each
        for owner in {machine.owner for machine in machines}
        for each in owned.everything(found.setting, places, owner)
        if each.label == label or each.belongs_to in {machine.id for machine in machines}
    ]
