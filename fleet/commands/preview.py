"""`fleet preview`: `pulumi preview` with the policy pack, told as a comment for a pull request."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fleet import masking
from fleet.commands import pulumi
from fleet.masking import Mask
from fleet.preview import Preview, comment

POLICY_PACK = Path("policy")


def preview(
    stack: Annotated[
        str | None, typer.Option("--stack", "-s", help="Stack; the selected one if left out.")
    ] = None,
    comment_file: Annotated[
        Path | None, typer.Option("--comment", help="Write the comment here instead of to the terminal.")
    ] = None,
) -> None:
    """Say what an update would change, which policies it breaks, whether models fit and what it costs.

    The policies are as strict as policy/config.STACK.json says. Nothing is written to any cloud. Exit code
    1: the preview failed, or a mandatory policy is broken; the comment says so too.

    Example: fleet preview --stack prod --comment preview.md
    """
    try:
        name = stack or pulumi.selected_stack()
        config = POLICY_PACK / f"config.{name}.json"
        strictness = ["--policy-pack-config", str(config)] if config.exists() else []
        events, went_well = pulumi.preview_events("--policy-pack", str(POLICY_PACK), *strictness, stack=name)
        mask = Mask(masking.of_config(pulumi.config(stack)))
    except pulumi.PulumiError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error
    text = mask(comment(name, Preview.of(events), failed=not went_well))
    if comment_file:
        comment_file.write_text(text)
    else:
        typer.echo(text)
    if not went_well:
        raise typer.Exit(1)
