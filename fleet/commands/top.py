"""`fleet top`: what the nodes are doing, live."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fleet.commands import nodes, output
from fleet.commands.nodes import Nodes, StackName

if TYPE_CHECKING:
    from rich.table import Table

    from fleet.inventory import FleetNode
    from fleet.top import Row

ONCE_S = 1.0
"""Seconds between the two looks that `--once` takes: rates need two."""


def top(
    wanted: Nodes = "all",
    interval: Annotated[
        float, typer.Option("--interval", "-i", min=0.5, help="Seconds between looks.")
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Show it once instead of live.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one line a look.")] = False,
    stack: StackName = None,
) -> None:
    """Show GPU use, KV-cache use, requests and tokens a second of nodes, from vLLM's and the agent's metrics.

    Example: fleet top --once --json
    """
    with nodes.told():
        chosen = nodes.find(wanted, stack)
    try:
        asyncio.run(_once(chosen, as_json=as_json) if once else _live(chosen, interval, as_json=as_json))
    except KeyboardInterrupt:
        return


async def _once(chosen: Sequence[FleetNode], *, as_json: bool) -> None:
    from fleet.top import watch  # noqa: PLC0415  --help does without

    looks = watch(chosen, ONCE_S)
    await anext(looks)
    rows = await anext(looks)
    await looks.aclose()
    if as_json:
        typer.echo(json.dumps(document(rows)))
    else:
        output.console().print(table(rows))


async def _live(chosen: Sequence[FleetNode], interval: float, *, as_json: bool) -> None:
    from fleet.top import watch  # noqa: PLC0415  --help does without

    if as_json:
        async for rows in watch(chosen, interval):
            typer.echo(json.dumps(document(rows)))
        return
    from rich.live import Live  # noqa: PLC0415  the JSON form does without

    with Live(auto_refresh=False, console=output.console()) as live:
        async for rows in watch(chosen, interval):
            live.update(table(rows), refresh=True)


def document(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as plain values."""
    rates = ("tokens_per_s", "prompt_tokens_per_s")
    return [
        {
            **{key: value for key, value in asdict(row.sample).items() if key != "at"},
            **{name: None if (rate := getattr(row, name)) is None else round(rate, 2) for name in rates},
        }
        for row in rows
    ]


def table(rows: Sequence[Row]) -> Table:
    """The rows for people."""
    from rich.table import Table  # noqa: PLC0415  the JSON form does without
    from rich.text import Text  # noqa: PLC0415

    shown = Table("node", box=None, pad_edge=False)
    for name in ("GPU", "GPU memory", "KV cache", "running", "waiting", "tokens/s", "prompt tokens/s"):
        shown.add_column(name, justify="right")
    shown.add_column("")
    for row in rows:
        seen = row.sample
        shown.add_row(
            seen.node,
            *(_percent(share) for share in (seen.gpu_utilization, seen.gpu_memory, seen.kv_cache)),
            *("-" if count is None else str(count) for count in (seen.running, seen.waiting)),
            *("-" if rate is None else f"{rate:.1f}" for rate in (row.tokens_per_s, row.prompt_tokens_per_s)),
            Text(seen.error, style="red"),
        )
    return output.whole(shown)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
