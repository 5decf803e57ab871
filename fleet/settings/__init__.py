"""The stack's configuration: every key, its type, its bounds, and what to do when a value is wrong.

`load` checks the whole configuration at once and either returns frozen settings or raises one
`SettingsError` that lists every problem as `path: value is wrong because …; do …`. It calls no API and
reads no file but the SSH key it is told about, so a typing error costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from fleet.settings.models import Access, Health, Node, ScalewayNode, Secrets, Serving, StackSettings
from fleet.settings.problems import Problem, SettingsError, problems_of

__all__ = [
    "PROJECT",
    "Access",
    "ConfigSource",
    "Health",
    "Node",
    "Problem",
    "ScalewayNode",
    "Secrets",
    "Serving",
    "SettingsError",
    "StackSettings",
    "load",
    "parse",
]

PROJECT = "vllm-fleet"
"""The Pulumi project; its configuration keys are `vllm-fleet:…`."""


class ConfigSource(Protocol):
    """The part of `pulumi.Config` that settings need."""

    def get_object(self, key: str) -> Any:
        """The structured value of a key, or None."""
        ...


def load(source: ConfigSource) -> StackSettings:
    """Read and check the whole configuration.

    Raises SettingsError naming every wrong value, with its path and mend.
    """
    given = {key: source.get_object(key) for key in StackSettings.model_fields}
    return parse({key: value for key, value in given.items() if value is not None})


def parse(raw: Mapping[str, Any]) -> StackSettings:
    """Check a configuration given as plain values. Raises SettingsError."""
    try:
        settings = StackSettings.model_validate(_with_serving_per_node(raw))
    except ValidationError as error:
        raise SettingsError(problems_of(error.errors())) from None
    problems = _key_file_problems(settings.access.ssh_private_key_path)
    if problems:
        raise SettingsError(problems)
    return settings


def _with_serving_per_node(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Give each node the stack's serving with its own keys put over it."""
    merged = dict(raw)
    shared, nodes = raw.get("serving"), raw.get("nodes")
    if isinstance(nodes, list) and isinstance(shared, Mapping):
        merged["nodes"] = [
            {**node, "serving": {**shared, **own}}
            if isinstance(node, Mapping) and isinstance(own := node.get("serving") or {}, Mapping)
            else node
            for node in nodes
        ]
    return merged


def _key_file_problems(path: Path) -> list[Problem]:
    key = path.expanduser()
    where = "access.ssh_private_key_path"
    if not key.is_file():
        return [
            Problem(
                where,
                f"{path} is not a file; name your private key, or make one: ssh-keygen -t ed25519 -f {path}",
            )
        ]
    if key.stat().st_mode & 0o077:
        return [Problem(where, f"{path} can be read by others, so SSH refuses it; run: chmod 600 {path}")]
    return []
