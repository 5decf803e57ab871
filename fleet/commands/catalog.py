"""`fleet catalog list` and `fleet catalog refresh`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fleet.catalog import CLOUDS, DATA, InstanceType, catalog
from fleet.commands import output

if TYPE_CHECKING:
    from fleet.catalog.document import Document
    from fleet.catalog.refresh import Offer

app = typer.Typer(
    help="GPU types of the clouds and what they cost.\n\nExample: fleet catalog list --gpu L40S",
    no_args_is_help=True,
)

REFRESHABLE = ("scaleway", "aws", "linode")


@app.command("list")
def list_types(
    cloud: Annotated[str | None, typer.Argument(help=f"One of {', '.join(CLOUDS)}; all if left out.")] = None,
    zone: Annotated[
        str | None, typer.Option(help="Only what this zone or region has, with its price.")
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="Only types with this GPU, for example L4.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List GPU types with their cheapest price, or the price in one zone.

    Example: fleet catalog list scaleway --zone fr-par-2
    """
    if cloud is not None and cloud not in CLOUDS:
        raise typer.BadParameter(
            f"{cloud!r} is not in the catalog; it has {', '.join(CLOUDS)}", param_hint="cloud"
        )
    found = [
        kind
        for kind in catalog().types(cloud)
        if (zone is None or zone in kind.zones) and (gpu is None or kind.gpu.lower() == gpu.lower())
    ]
    rows = [_row(kind, zone, date.today()) for kind in found]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    from rich.table import Table  # noqa: PLC0415

    table = Table("cloud", "type", "GPUs", "GiB each", "vCPU", "RAM GiB", "zone", "per hour", "as of")
    for row in rows:
        price = "unknown" if row["per_hour"] is None else f"{row['per_hour']:.4f} {row['currency']}"
        gpus = f"{row['gpu_count']} x {row['gpu']}"
        memory = f"{row['gpu_memory_mib'] / 1024:.1f}"
        shown = (
            row["cloud"],
            row["type"],
            gpus,
            memory,
            row["vcpus"],
            row["ram_gib"],
            row["zone"],
            price,
            row["as_of"],
        )
        table.add_row(*(str(value) for value in shown))
    output.console().print(output.whole(table))


@app.command()
def refresh(
    clouds: Annotated[
        list[str] | None, typer.Argument(help=f"Of {', '.join(REFRESHABLE)}; all if left out.")
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Write the catalog's files; else only show the diff.")
    ] = False,
    directory: Annotated[
        Path, typer.Option(help="Folder of the catalog's files.", show_default="the program's own")
    ] = DATA,
    scaleway_url: Annotated[
        str, typer.Option(envvar="SCW_API_URL", help="Base of the Scaleway API.")
    ] = "https://api.scaleway.com",
    linode_url: Annotated[
        str, typer.Option(envvar="LINODE_URL", help="Base of the Linode API.")
    ] = "https://api.linode.com",
    aws_url: Annotated[
        str | None, typer.Option(help="Endpoint of the AWS Price List API, and of EC2 for spot.")
    ] = None,
) -> None:
    """Read prices and stock from the clouds' APIs and show what changed as a diff.

    Example: fleet catalog refresh scaleway --write
    """
    from fleet.catalog.document import render  # noqa: PLC0415  `list` does without
    from fleet.catalog.refresh import merge  # noqa: PLC0415

    fetchers: dict[str, Callable[[Document], list[Offer]]] = {
        "scaleway": lambda document: _scaleway(document, scaleway_url),
        "linode": lambda document: _linode(document, linode_url),
        "aws": lambda document: _aws(document, aws_url),
    }
    for cloud in clouds or REFRESHABLE:
        if cloud not in fetchers:
            raise typer.BadParameter(f"{cloud!r} has no price API here; choose of {', '.join(REFRESHABLE)}")
        path = directory / f"{cloud}.json"
        document = json.loads(path.read_bytes())
        try:
            refreshed = merge(document, fetchers[cloud](document), date.today())
        except Exception as error:  # whatever a cloud's client raises, the file stays as it was
            typer.echo(f"{cloud}: prices could not be read, {path.name} is unchanged: {error}", err=True)
            raise typer.Exit(1) from error
        typer.echo(refreshed.diff or f"{cloud}: nothing changed", nl=not refreshed.diff)
        for name in refreshed.unknown_types:
            typer.echo(
                f"{cloud}: {name} is offered but has no facts in {path.name}; add it under types", err=True
            )
        for (zone, name), word in sorted(refreshed.stock.items()):
            if word != "available":
                typer.echo(f"{cloud} {zone}: {name} is in {word}", err=True)
        if write and refreshed.diff:
            path.write_text(render(refreshed.document), encoding="utf-8")


def _row(kind: InstanceType, zone: str | None, today: date) -> dict[str, Any]:
    priced = [
        (place, price) for place in kind.zones if (price := kind.price(place)) and zone in (None, place)
    ]
    place, price = min(priced, key=lambda entry: entry[1].amount, default=(zone or "", None))
    return {
        "cloud": kind.cloud,
        "type": kind.name,
        "gpu": kind.gpu,
        "gpu_count": kind.gpu_count,
        "gpu_memory_mib": kind.gpu_memory_mib,
        "vcpus": kind.vcpus,
        "ram_gib": kind.ram_gib,
        "zone": place,
        "per_hour": price and price.amount,
        "currency": price and price.currency,
        "as_of": ""
        if price is None
        else f"{price.as_of or 'undated'}{' (old)' if price.stale(today) else ''}",
        "source": price and price.source,
        "deployable": kind.deployable,
    }


def _scaleway(document: Document, url: str) -> list[Offer]:
    from fleet.catalog.refresh import http_get, listed_types, scaleway_offers  # noqa: PLC0415

    # The list is public; a key, where there is one, only raises the rate limit.
    key = os.environ.get("SCW_SECRET_KEY")
    return scaleway_offers(http_get(url, {"X-Auth-Token": key} if key else None), listed_types(document))


def _linode(document: Document, url: str) -> list[Offer]:
    from fleet.catalog.refresh import http_get, linode_offers, listed_types  # noqa: PLC0415

    # Without a token Linode's list has said $0 for every GPU plan.
    token = os.environ.get("LINODE_TOKEN")
    return linode_offers(
        http_get(url, {"Authorization": f"Bearer {token}"} if token else None), listed_types(document)
    )


def _aws(document: Document, url: str | None) -> list[Offer]:
    from fleet.aws import Credentials, client  # noqa: PLC0415
    from fleet.catalog.refresh import (  # noqa: PLC0415
        TIMEOUT_S,
        aws_offers,
        aws_spot_offers,
        control_types,
        listed_types,
    )

    credentials = Credentials(endpoints=(("ec2", url), ("pricing", url)) if url else ())

    def asked(service: str, region: str) -> Any:
        return client(service, region, credentials, read_timeout_s=TIMEOUT_S)

    listed = listed_types(document)
    spot = aws_spot_offers(lambda region: asked("ec2", region), listed, datetime.now(UTC))
    # The Price List API answers for all regions from this one.
    prices = asked("pricing", "us-east-1")
    return aws_offers(prices, listed, control_types(document)) + spot
