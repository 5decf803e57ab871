"""`fleet state repair`: a state in a folder that a crash or a full disk has damaged."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fleet.commands import nodes, pulumi
from fleet.commands.nodes import StackName

if TYPE_CHECKING:
    from fleet.state_files import Damage, StateFiles

app = typer.Typer(no_args_is_help=True)


@app.callback()
def state() -> None:
    """The stack's state in a folder of this machine.

    Example: fleet state repair --stack staging
    """


@app.command()
def repair(
    stack: StackName = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Repair; without it, show what would be done.")
    ] = False,
) -> None:
    """Restore a state that cannot be read from the newest whole copy, and drop unreadable attributes.

    The damaged file is kept beside it. Nothing is changed where nothing is damaged. See
    docs/runbooks/state-damaged.md.

    Example: fleet state repair --stack staging --yes
    """
    from fleet.state_files import StateError  # noqa: PLC0415  --help does without

    with nodes.told():
        files = _files(stack)
        try:
            damage = files.damage()
        except StateError as error:
            raise pulumi.PulumiError(str(error)) from error
        if damage and (holder := files.held_by()):
            raise pulumi.PulumiError(
                f"the stack is locked by {holder}. Fix: wait for that update; if it has ended, "
                "delete the file, then run this again"
            )
    for line in _described(damage):
        typer.echo(line)
    if not damage:
        typer.echo(f"{files.state} is whole; nothing to repair")
    elif not yes:
        typer.echo("Nothing is changed yet; add --yes")
    else:
        files.repair(damage)
        typer.echo(
            "Repaired. What the last steps before the crash made may be missing from it: "
            "run pulumi cancel, then pulumi preview, which finds machines by their owner"
        )


def _files(stack: str | None) -> StateFiles:
    """The files of the stack. Raises PulumiError."""
    import yaml  # noqa: PLC0415  --help does without

    from fleet.safekeeping import BACKEND, local_state  # noqa: PLC0415
    from fleet.state_files import StateFiles  # noqa: PLC0415

    backend = os.environ.get(BACKEND) or _login()
    folder = local_state(backend)
    if folder is None:
        raise pulumi.PulumiError(
            f"the backend is {backend or 'not known'}, and this repairs files in a folder. Fix: its own "
            "versions hold whole states; docs/runbooks/state-damaged.md has the commands"
        )
    try:
        project = str(yaml.safe_load(Path("Pulumi.yaml").read_text(encoding="utf-8"))["name"])
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
        raise pulumi.PulumiError("no Pulumi.yaml here. Fix: run this in the project's folder") from None
    name = stack or os.environ.get("PULUMI_STACK") or pulumi.selected_stack()
    return StateFiles(folder, project, name)


def _login() -> str:
    """The backend that `pulumi login` has chosen; empty for none."""
    home = Path(os.environ.get("PULUMI_HOME") or Path.home() / ".pulumi")
    try:
        return str(json.loads((home / "credentials.json").read_text(encoding="utf-8"))["current"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def _described(damage: Damage) -> list[str]:
    lines = [f"{file} cannot be read: removed, the engine does without" for file in damage.attributes]
    if damage.restore:
        written = datetime.fromtimestamp(damage.restore.written_at, UTC)
        lines.append(
            f"{damage.state} cannot be read: restored from {damage.restore.file}, "
            f"of {written:%Y-%m-%d %H:%M:%S} UTC with {damage.restore.resources} resources"
        )
    return lines
