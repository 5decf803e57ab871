"""`fleet reap`: destroy the nodes that have outlived their `ttl_hours`. For CI and cron."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from fleet.billing import State, lifetimes, node_urns, protected
from fleet.commands import pulumi
from fleet.commands.destroy import remove, reported
from fleet.commands.objects import ownership
from fleet.cost import Lifetime, outlived


def reap(
    stack: Annotated[
        str | None, typer.Option("--stack", "-s", help="Stack; the selected one if left out.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Destroy; else only say what would be.")] = False,
) -> None:
    """Destroy the nodes of a stack that have outlived their ttl_hours; without --yes only list them.

    A node's time starts when its server is made. Run twice, the second run finds nothing left to do.

    Example: fleet reap --stack dev --yes
    """
    try:
        state = pulumi.read("stack", "export", stack=stack)
        nodes = pulumi.read("config", "get", "vllm-fleet:nodes", stack=stack)
        owner = ownership(state, pulumi.config(stack)) if yes else None
    except pulumi.PulumiError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error

    def destroy(node: str) -> None:
        with reported():
            remove(owner, owner.of_node(node) if owner else [], node_urns(state, node), stack)

    if reap_stack(state, nodes, datetime.now(UTC), destroy, yes=yes):
        raise typer.Exit(1)


def reap_stack(
    state: State,
    nodes: list[dict[str, Any]],
    now: datetime,
    destroy: Callable[[str], None],
    *,
    yes: bool,
) -> list[Lifetime]:
    """Destroy what is due and may be destroyed, saying so line by line; return what is due but protected."""
    due = outlived(lifetimes(state, {node["name"]: _ttl_hours(node) for node in nodes}), now)
    kept = [life for life in due if protected(state, life.node)]
    for life in due:
        hours = (now - life.created).total_seconds() / 3600
        age = f"{life.node}: {hours:.1f} h old, ttl_hours is {life.ttl_hours:g}"
        if life in kept:
            typer.echo(
                f"{age}, but it is protected; set protect: false and bring the stack up, then reap", err=True
            )
        else:
            typer.echo(f"{age}: {'destroying it' if yes else 'would be destroyed with --yes'}")
    if not due:
        typer.echo("Nothing has outlived its ttl_hours")
    for life in due if yes else ():
        if life not in kept:
            destroy(life.node)
    return kept


def _ttl_hours(node: dict[str, Any]) -> float | None:
    """The configured hours; `pulumi config set --path` writes a fraction as text."""
    value = node.get("ttl_hours")
    try:
        return None if value is None else float(value)
    except ValueError:
        said = f"nodes.{node['name']}.ttl_hours: {value!r} is no number of hours; give for example 48"
        raise typer.BadParameter(said) from None
