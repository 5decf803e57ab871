"""`fleet ssh`: a shell on a node, its host key verified."""

from __future__ import annotations

import os
import shutil
from typing import Annotated

import typer

from fleet.commands import nodes
from fleet.commands.nodes import OneNode, StackName


def ssh(
    node: OneNode,
    command: Annotated[
        list[str] | None, typer.Argument(help="A command instead of a shell, after `--`.")
    ] = None,
    stack: StackName = None,
) -> None:
    """Open a shell on a node, or run one command, by OpenSSH with the host key this stack has pinned.

    Example: fleet ssh l4-a -- journalctl -fu vllm.service
    """
    from fleet.ssh import openssh  # noqa: PLC0415  --help does without

    with nodes.told():
        target = nodes.find_one(node, stack).reachable()
    if shutil.which("ssh") is None:
        typer.echo(
            "fleet: ssh is not on PATH; install it, on Debian with: apt install openssh-client", err=True
        )
        raise typer.Exit(nodes.WRONG_CALL)
    # The terminal becomes OpenSSH's own; nothing of this program is left in between.
    os.execvp("ssh", [*openssh(target), *(command or [])])  # noqa: S606  a fixed program, no shell
