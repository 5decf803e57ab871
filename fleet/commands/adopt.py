"""`fleet adopt NODE`: take a machine that carries a node's name into this stack instead of buying another."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Annotated

import typer

from fleet.commands import nodes, objects, pulumi
from fleet.commands.nodes import StackName

if TYPE_CHECKING:
    from components.owned import Owned


IMPORTED = {
    "aws": ("aws:ec2/instance:Instance", "pulumi-aws"),
    "linode": ("linode:index/instance:Instance", "pulumi-linode"),
}
"""Clouds whose own provider makes the machines, and so has to be told which one to take: type and package.
Elsewhere the next update takes up what carries the stack's owner id."""


def adopt(
    node: Annotated[str, typer.Argument(help="Name of the node.", autocompletion=nodes.complete)],
    stack: StackName = None,
    id_: Annotated[
        str | None, typer.Option("--id", help="Id of the machine, where several carry the node's name.")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Adopt; without it, show what would be adopted.")
    ] = False,
) -> None:
    """Take a machine that carries the node's name into this stack, so that the next update buys no other.

    It is looked for by its node tag, in every place the stack uses: one that another stack made, or one that
    this stack's state has lost. Whoever managed it before no longer does: make sure that nobody else runs
    updates of that stack.

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
        raise _refused(f"no node {node} is declared in this stack")
    with nodes.told():
        others = _others(found, label)
        lost = [each for each in found.surplus() if each.node == node and each.place.cloud in IMPORTED]
        machine = _machine([*others, *lost], id_)
        if machine is None:
            raise _refused(f"no other machine carries the name {label}: nothing to adopt")
        others = [each for each in others if each.owner == machine.owner]
        for each in dict.fromkeys([machine, *others]):
            typer.echo(f"{'adopting' if yes else 'would adopt'} {each}")
        if not yes:
            typer.echo("Nothing is changed yet; add --yes")
            return
        owned = import_module("components.owned")
        for each in others:
            owned.inventory(found.setting, each.place).adopt([each], found.owner)
        if machine.place.cloud in IMPORTED:
            type_, package = IMPORTED[machine.place.cloud]
            component = f"vllm-fleet:{machine.place.cloud}:GpuNode"
            pulumi.take_in(type_, package, f"{node}-server", machine.id, (component, node), stack=stack)
    typer.echo(f"{node} is adopted. Next: pulumi preview, then pulumi up")


def _machine(found: Sequence[Owned], id_: str | None) -> Owned | None:
    """The machine that is meant, None where there is none. Exits where several could be."""
    machines = [each for each in found if each.kind == "server" and id_ in (None, each.id)]
    if len(machines) > 1:
        listed = "; ".join(map(str, machines))
        raise _refused(f"several machines carry the node's name; name one with --id: {listed}")
    return machines[0] if machines else None


def _others(found: objects.Ownership, label: str) -> list[Owned]:
    """Everything with the label of another owner, where one of its machines is."""
    owned = import_module("components.owned")
    places = [owned.Place.parse(place) for place in found.places]
    machines = [each for each in owned.labelled(found.setting, places, [label]) if each.owner != found.owner]
    ids = {machine.id for machine in machines}
    return [
        *machines,
        *(
            each
            for owner in {machine.owner for machine in machines}
            for each in owned.everything(found.setting, places, owner)
            if each.id not in ids and (each.label == label or each.belongs_to in ids)
        ),
    ]


def _refused(reason: str) -> typer.Exit:
    typer.echo(f"fleet: {reason}", err=True)
    return typer.Exit(nodes.WRONG_CALL)
