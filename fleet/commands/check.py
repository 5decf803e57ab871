"""`fleet check`: clouds and nodes on one screen, every ✗ with its fix."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from fleet.commands import nodes, output, pulumi
from fleet.commands.nodes import StackName

if TYPE_CHECKING:
    from fleet.check import CloudProbe, CloudRequest, Finding
    from fleet.inventory import FleetNode
    from fleet.settings import StackSettings

MARKS = {"ok": "[green]✓[/green]", "warning": "[yellow]![/yellow]", "failed": "[red]✗[/red]", "unknown": "?"}

WORDS: Mapping[str, str] = {
    "failed": "failed",
    "warning": "to know of",
    "unknown": "not known",
    "ok": "in order",
}


def check(
    clouds: Annotated[bool, typer.Option("--clouds/--no-clouds", help="Look at the clouds.")] = True,
    on_nodes: Annotated[bool, typer.Option("--nodes/--no-nodes", help="Look at the nodes.")] = True,
    ci: Annotated[
        bool, typer.Option("--ci", help="Look at the repository's environments on GitHub, at nothing else.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    stack: StackName = None,
) -> None:
    """Check a stack: its secrets and state, its clouds (credentials to quota), its nodes (SSH to readiness).

    Nothing is changed. The exit code is 1 if anything failed; each failure comes with its fix.

    Example: fleet check --stack prod --json
    """
    from fleet.check import exit_status  # noqa: PLC0415  --help does without

    with nodes.told():
        if ci:
            findings = _check_ci()
        else:
            findings = _check_stack(stack or pulumi.selected_stack(), clouds=clouds, on_nodes=on_nodes)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        _show(findings)
    raise typer.Exit(exit_status(findings))


def _check_stack(name: str, *, clouds: bool, on_nodes: bool) -> list[Finding]:
    """Raises PulumiError."""
    from fleet.check import check_keeping  # noqa: PLC0415  --help does without

    state, config = nodes.guard_output(name)
    outputs = pulumi.outputs(name)
    findings = check_keeping(name, os.environ, Path())
    findings += asyncio.run(look(config, outputs, clouds=clouds, on_nodes=on_nodes))
    return findings + (surplus(state, config) if clouds else [])


def _check_ci() -> list[Finding]:
    """Raises PulumiError where GitHub cannot be asked."""
    from fleet.ci import CiError, ask_github, check_environments  # noqa: PLC0415  --ci alone needs it

    try:
        return check_environments(Path(".github") / "workflows", ask_github)
    except CiError as error:
        raise pulumi.PulumiError(str(error)) from error


async def look(
    config: Mapping[str, Any], outputs: Mapping[str, Any], *, clouds: bool, on_nodes: bool
) -> list[Finding]:
    """All findings, clouds first. `config` is what `pulumi config --json --show-secrets` prints."""
    from fleet import settings  # noqa: PLC0415  --help does without
    from fleet.check import Finding, Status, check_node  # noqa: PLC0415
    from fleet.inventory import nodes_of  # noqa: PLC0415

    deployed = nodes_of(outputs) if outputs.get("nodes") else ()
    findings, api_key = [], None
    requests: list[tuple[str, CloudRequest]] = []
    try:
        declared = settings.load(nodes.Config(config))
        api_key = declared.secrets.api_key.get_secret_value() if declared.secrets else None
        requests = _requests(declared, config, deployed)
    except settings.SettingsError as error:
        fix = "correct the values named in the stack's configuration"
        findings.append(Finding("configuration", "values", Status.FAILED, str(error), fix))
    found = await asyncio.gather(
        *(asyncio.to_thread(_probe(cloud), request) for cloud, request in requests if clouds),
        *(check_node(node, api_key) for node in deployed if on_nodes),
    )
    return [*findings, *(finding for each in found for finding in each)]


def surplus(state: Mapping[str, Any], config: Mapping[str, Any]) -> list[Finding]:
    """What the stack's owner has in the clouds and the state does not know: it bills, or it was lost."""
    from fleet.check import Finding, Status  # noqa: PLC0415  --help does without
    from fleet.commands.objects import ownership  # noqa: PLC0415

    found = ownership(state, config)
    if found is None:
        return []
    try:
        objects = found.surplus()
    except Exception as error:  # the cloud's own findings say what is wrong with it
        return [Finding("stack", "surplus", Status.UNKNOWN, f"the clouds did not say: {error}")]
    if not objects:
        return [Finding("stack", "surplus", Status.OK, "nothing beside what the state knows")]
    fix = "pulumi up takes a lost machine up again and removes what is in nobody's use"
    return [Finding("stack", "surplus", Status.FAILED, f"not in the state: {each}", fix) for each in objects]


def _requests(
    declared: StackSettings, config: Mapping[str, Any], deployed: Sequence[FleetNode]
) -> list[tuple[str, CloudRequest]]:
    from fleet.check import CloudRequest  # noqa: PLC0415  loaded by now
    from fleet.ssh_key import NoPublicKey, public_key  # noqa: PLC0415

    try:
        key = public_key(declared.access.ssh_private_key_path)
    except NoPublicKey:
        key = None
    existing = frozenset(node.name for node in deployed if node.target)
    # A node whose cloud is still to be chosen is nobody's to look at.
    placed = declared.machines
    by_cloud = {node.cloud: tuple(n for n in placed if n.cloud == node.cloud) for node in placed}
    return [
        (
            cloud,
            CloudRequest(
                config={
                    name.removeprefix(f"{cloud}:"): entry["value"]
                    for name, entry in config.items()
                    if name.startswith(f"{cloud}:")
                },
                nodes=own,
                existing=existing,
                public_key=key,
            ),
        )
        for cloud, own in by_cloud.items()
    ]


def _probe(cloud: str) -> CloudProbe:
    """The cloud's own part, found by its name: what looks after nodes knows no cloud."""
    from fleet.check import Finding, Status  # noqa: PLC0415  loaded by now

    name = f"components.{cloud}.probe"
    try:
        return cast("CloudProbe", import_module(name).probe)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return lambda _: [Finding(cloud, "API", Status.UNKNOWN, "this cloud has no probe yet")]


def _show(findings: Sequence[Finding]) -> None:
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, show_header=False, pad_edge=False)
    subject = ""
    for finding in findings:
        seen = Text(finding.seen)
        if finding.fix:
            seen.append(f"\n→ {finding.fix}", style="bold")
        table.add_row(
            "" if finding.subject == subject else finding.subject, MARKS[finding.status], finding.name, seen
        )
        subject = finding.subject
    console = output.console()
    console.print(output.whole(table))
    console.print(summary(findings))


def summary(findings: Sequence[Finding]) -> str:
    """How many of the findings are what, in one line."""
    statuses = Counter(finding.status.value for finding in findings)
    counts = [f"{count} {WORDS[status]}" for status in WORDS if (count := statuses[status])]
    return ", ".join(counts) or "nothing to look at: the stack has no nodes"
