"""What the commands that work on nodes share: finding them, completing their names, telling what is wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fleet.commands import pulumi

if TYPE_CHECKING:
    from fleet.inventory import FleetNode

WRONG_CALL = 2
"""Exit code when nothing was done because the call, the stack or the nodes named are wrong."""


def complete(incomplete: str) -> list[str]:
    """Names of nodes for the shell, from the stack files in this folder: asking the state takes a second."""
    import yaml  # noqa: PLC0415  completion alone needs it

    names = {"all"}
    for path in Path().glob("Pulumi.*.yaml"):
        config = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("config", {})
        names |= {node["name"] for node in config.get("vllm-fleet:nodes", ())}
    done, comma, last = incomplete.rpartition(",")
    return [f"{done}{comma}{name}" for name in sorted(names) if name.startswith(last)]


Nodes = Annotated[
    str,
    typer.Argument(
        metavar="NODES", help="Names, patterns (l4-*), @cloud, or all; with commas.", autocompletion=complete
    ),
]
OneNode = Annotated[str, typer.Argument(help="Name of the node.", autocompletion=complete)]
StackName = Annotated[str | None, typer.Option("--stack", "-s", help="Stack; the selected one if left out.")]


def guard_output(stack: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Mask what this command prints from now on: it shows what nodes and logs say. Raises PulumiError.

    Returns what it had to read for that, secrets in clear: the stack's state and its configuration.
    """
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  --help does without

    from fleet import masking  # noqa: PLC0415

    with ThreadPoolExecutor() as both:
        reading = both.submit(pulumi.read, "stack", "export", "--show-secrets", stack=stack)
        config = pulumi.config(stack)
        state = reading.result()
    known = masking.of_state(state) | masking.of_config(config)
    masking.guard_output(known | masking.of_environment(os.environ))
    return state, config


def find(wanted: str, stack: str | None) -> tuple[FleetNode, ...]:
    """The nodes of the stack that `wanted` names. Raises InventoryError, PulumiError."""
    from fleet.inventory import nodes_of, select  # noqa: PLC0415  --help does without

    return select(nodes_of(pulumi.outputs(stack)), wanted)


def find_one(wanted: str, stack: str | None) -> FleetNode:
    """The one node that `wanted` names. Raises InventoryError, PulumiError."""
    from fleet.inventory import nodes_of, only  # noqa: PLC0415  --help does without

    return only(nodes_of(pulumi.outputs(stack)), wanted)


class Config:
    """What `pulumi config --json` prints, in the shape that settings are read from."""

    def __init__(self, printed: Mapping[str, Any]) -> None:
        self._printed = printed

    def names(self) -> list[str]:
        """See `fleet.settings.ConfigSource`."""
        from fleet.settings import own_name  # noqa: PLC0415  --help does without

        return [name for key in self._printed if (name := own_name(key)) is not None]

    def get_object(self, key: str) -> Any:
        """See `fleet.settings.ConfigSource`."""
        entry = self._printed.get(key if ":" in key else f"vllm-fleet:{key}", {})
        # A structured secret is printed as text alone.
        if "objectValue" in entry or not entry.get("value"):
            return entry.get("objectValue")
        try:
            return json.loads(entry["value"])
        except ValueError:
            return entry["value"]  # plain text: the check of all settings says what is wrong with it


@contextmanager
def told() -> Iterator[None]:
    """Ends the command with the message of what is wrong with the call, the stack or a node."""
    from fleet.inventory import InventoryError  # noqa: PLC0415  --help does without

    try:
        yield
    except (pulumi.PulumiError, InventoryError) as error:
        typer.echo(f"fleet: {error}", err=True)
        raise typer.Exit(WRONG_CALL) from error
