"""`fleet tunnel`: a node's vLLM and Open WebUI on this machine's loopback."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from fleet.commands import nodes
from fleet.commands.nodes import OneNode, StackName


def tunnel(
    node: OneNode,
    webui: Annotated[bool, typer.Option("--webui", help="Open Open WebUI in the browser.")] = False,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port of this machine for vLLM; the node's if left out."),
    ] = None,
    stack: StackName = None,
) -> None:
    """Forward a node's vLLM (and Open WebUI) to this machine, and keep that open until Ctrl-C.

    It waits until the services answer, prints their URLs, and connects again when the connection was lost.

    Example: fleet tunnel l4-a --webui
    """
    from fleet.inventory import InventoryError  # noqa: PLC0415  --help does without
    from fleet.ssh import SshError  # noqa: PLC0415
    from fleet.tunnel import PortTaken, forwards, hold  # noqa: PLC0415

    with nodes.told():
        found = nodes.find_one(node, stack)
        wanted = forwards(found.ports, port)
        page = next((forward.url for forward in wanted if forward.service == "webui"), None)
        if webui and page is None:
            raise InventoryError(
                f"{found.name} runs no Open WebUI; set serving.webui: true and run: pulumi up"
            )

        def on_open() -> None:
            typer.echo("open; Ctrl-C closes it")
            if webui and page:
                typer.launch(page)

        try:
            asyncio.run(hold(found, wanted, typer.echo, on_open))
        except KeyboardInterrupt:
            typer.echo("closed")
        except (PortTaken, SshError) as error:
            typer.echo(f"fleet: {error}", err=True)
            raise typer.Exit(1) from error
