"""`fleet drift`: where clouds and nodes are no longer what a stack's state says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from fleet import masking
from fleet.commands import output, pulumi
from fleet.commands.objects import ownership
from fleet.drift import Drift
from fleet.drift.cloud import cloud_drift
from fleet.drift.node import expected_nodes, look_at_all
from fleet.drift.report import COLUMNS, Seen, document, markdown
from fleet.masking import Mask

SURPLUS = "surplus"
"""What a retirement found at a refresh; here each object has a line of its own."""
DRIFTED = 3
"""Exit code of drift, so that it is told from a command that could not look."""


def drift(
    stack: Annotated[
        str | None, typer.Option("--stack", "-s", help="Stack; the selected one if left out.")
    ] = None,
    nodes: Annotated[bool, typer.Option(help="Look inside the nodes too.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", help="Write what is new to this file; no file if nothing is.")
    ] = None,
    seen: Annotated[
        Path | None, typer.Option(help="File of what was reported before; only other drift counts as new.")
    ] = None,
) -> None:
    """Compare clouds and nodes with the stack's state; change nothing. Exit code 0: no drift, 3: drift.

    Example: fleet drift --stack prod --seen .fleet/drift-prod.json --markdown drift.md
    """
    try:
        name = stack or pulumi.selected_stack()
        found = list(cloud_drift(pulumi.refresh_events(stack=stack)))
        state = pulumi.read("stack", "export", "--show-secrets", stack=stack)
        config = pulumi.config(stack)
        found = sorted([each for each in found if each.property != SURPLUS] + _surplus(state, config))
        if nodes:
            found += asyncio.run(look_at_all(expected_nodes(state)))
        mask = Mask(masking.of_state(state) | masking.of_config(config))
        found = [each.masked(mask) for each in found]
    except pulumi.PulumiError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error
    new = found
    if seen:
        reported = Seen(seen)
        new = reported.new(found)
        reported.keep(found, datetime.now(UTC))
    if markdown_file and (text := markdown(name, new)):
        markdown_file.write_text(text)
    if as_json:
        typer.echo(json.dumps(document(name, found, new), indent=1))
    else:
        _show(name, found, new)
    raise typer.Exit(DRIFTED if found else 0)


def _surplus(state: Mapping[str, Any], config: Mapping[str, Any]) -> list[Drift]:
    """What carries the stack's owner id and the state does not know. Raises PulumiError."""
    owner = ownership(state, config)
    try:
        objects = owner.surplus() if owner else []
    except Exception as error:
        raise pulumi.PulumiError(f"the clouds did not say what the stack owns: {error}") from error
    return [Drift("cloud", each.node, f"{each.kind} {each.id}", "exists", "no", "yes") for each in objects]


def _show(stack: str, found: Sequence[Drift], new: Sequence[Drift]) -> None:
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    if not found:
        typer.echo(f"{stack}: no drift")
        return
    table = Table(title=f"Drift in {stack}")
    for column in COLUMNS:
        table.add_column(column)
    for each in found:
        table.add_row(*(Text(getattr(each, column)) for column in COLUMNS))
    output.console().print(output.whole(table))
    typer.echo(f"{len(found)} found, {len(new)} new; see docs/runbooks/drift-found.md", err=True)
