"""`fleet provision`: the phases of nodes that are there, looked at or run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fleet.commands import nodes
from fleet.commands.nodes import Nodes, StackName

if TYPE_CHECKING:
    from fleet.inventory import FleetNode
    from fleet.provision.process import Report
    from fleet.provision.spec import ProvisionSpec


def _known(names: list[str] | None) -> list[str]:
    from fleet.provision.phases import NAMES  # noqa: PLC0415  --help does without

    for name in names or ():
        if name not in NAMES:
            raise typer.BadParameter(f"{name!r} is no phase; use one of: {', '.join(NAMES)}")
    return names or []


def provision(
    wanted: Nodes = "all",
    plan: Annotated[bool, typer.Option("--plan", help="Only look, and say what would run.")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(help="A phase to run and no other; may be given again.", callback=_known),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    max_parallel: Annotated[int, typer.Option(min=1, help="Nodes at once.")] = 8,
    stack: StackName = None,
) -> None:
    """Bring nodes to what `provision` in the stack's configuration says. `pulumi up` does the same.

    Each phase looks at the machine first: what is there already stays as it is, and a run after a failure
    goes on where that stopped. The exit code is 1 if a phase failed.

    Example: fleet provision 'l4-*' --plan
    """
    with nodes.told():
        _, config = nodes.guard_output(stack)
        specs = specs_of(nodes.find(wanted, stack), config)
    reports = asyncio.run(_run(specs, plan=plan, only=only or [], max_parallel=max_parallel))
    if as_json:
        typer.echo(json.dumps([asdict(report) for report in reports], indent=1))
    else:
        for line in table(reports):
            typer.echo(line)
    failed = [report for report in reports if report.failed]
    for report in failed:
        typer.echo(report.failure_text(), err=True)
    raise typer.Exit(1 if failed else 0)


def specs_of(chosen: Sequence[FleetNode], config: Mapping[str, Any]) -> list[ProvisionSpec]:
    """What each node is to be given by a configuration, as `pulumi config --json --show-secrets` prints it.

    Raises InventoryError for a node that cannot be reached or that the configuration does not have.
    """
    from fleet import network, settings  # noqa: PLC0415  --help does without
    from fleet.inventory import InventoryError  # noqa: PLC0415
    from fleet.provision.phases import phases_of  # noqa: PLC0415
    from fleet.provision.spec import ProvisionSpec  # noqa: PLC0415

    try:
        declared = settings.load(nodes.Config(config))
    except settings.SettingsError as error:
        raise InventoryError(str(error)) from None
    wanted = {node.name: node.provision for node in declared.nodes}
    specs = []
    for node in chosen:
        if node.name not in wanted:
            raise InventoryError(
                f"{node.name} is not in the configuration any more; the next `up` removes it"
            )
        given, target = wanted[node.name], node.reachable()
        specs.append(
            ProvisionSpec(
                node=node.name,
                cloud=node.cloud,
                target=target,
                phases=phases_of(given, target.user, network.lines(declared.network)),
                ssh_tries=given.ssh.tries,
                ssh_pause_s=given.ssh.pause_s,
                boot_s=float(declared.health.install_timeout_s),
            )
        )
    return specs


async def _run(
    specs: Sequence[ProvisionSpec], *, plan: bool, only: Sequence[str], max_parallel: int
) -> list[Report]:
    from fleet.progress import Progress  # noqa: PLC0415  --help does without
    from fleet.provision.process import provision as run  # noqa: PLC0415

    free = asyncio.Semaphore(max_parallel)

    async def one(spec: ProvisionSpec) -> Report:
        async with free:
            return await run(spec, Progress(spec.node), plan=plan, only=only)

    return await asyncio.gather(*map(one, specs))


def table(reports: Sequence[Report]) -> list[str]:
    """A line for each phase of each node."""
    rows = [
        (report.node, phase.phase, str(phase.outcome), phase.note)
        for report in reports
        for phase in report.phases
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    return [
        "  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[3]]).rstrip()
        for row in rows
    ]
