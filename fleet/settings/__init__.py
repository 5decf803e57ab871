"""The stack's configuration: every key, its type, its bounds, and what to do when a value is wrong.

`load` checks the whole configuration at once and either returns frozen settings or raises one
`SettingsError` that lists every problem as `path: value is wrong because …; do …`. It calls no API and
reads no file but the SSH key and the certificates it is told about, so a typing error costs nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from pydantic import TypeAdapter

from fleet.settings.expose import Expose
from fleet.settings.jobs import Jobs
from fleet.settings.network import DIRECT, Network
from fleet.settings.nodes import (
    CLOUDS,
    AmiSource,
    AnyNode,
    AwsNode,
    BaseNode,
    CheapestNode,
    LinodeNode,
    Node,
    Pin,
    ScalewayNode,
    Spot,
)
from fleet.settings.observability import Observability
from fleet.settings.problems import Problem, SettingsError
from fleet.settings.provision import Provision
from fleet.settings.ray import AwsRayCluster, LinodeRayCluster, RayCluster, RayMachines, ScalewayRayCluster
from fleet.settings.reading import Reading, chosen, read
from fleet.settings.serving import Fit, Serving
from fleet.settings.stack import Access, Budget, Health, Rollout, Secrets, StackSettings

__all__ = [
    "CLOUDS",
    "DIRECT",
    "PROJECT",
    "Access",
    "AmiSource",
    "AwsNode",
    "AwsRayCluster",
    "BaseNode",
    "Budget",
    "CheapestNode",
    "ConfigSource",
    "Expose",
    "Fit",
    "Health",
    "Jobs",
    "LinodeNode",
    "LinodeRayCluster",
    "Network",
    "Node",
    "Observability",
    "Pin",
    "Problem",
    "Provision",
    "RayCluster",
    "RayMachines",
    "Reading",
    "Rollout",
    "ScalewayNode",
    "ScalewayRayCluster",
    "Secrets",
    "Serving",
    "SettingsError",
    "Spot",
    "StackSettings",
    "given",
    "load",
    "own_name",
    "parse",
    "read",
    "with_pin",
]

PROJECT = "vllm-fleet"
"""The Pulumi project; its configuration keys are `vllm-fleet:…`."""


def own_name(key: str) -> str | None:
    """A configuration key without the project's name before it, which may be left out; None for others' keys.

    One whose namespace looks like this project's misspelt is given whole: Pulumi would ignore it.
    """
    namespace, separator, name = key.rpartition(":")
    namespace = namespace.removesuffix(":config")  # an old spelling that Pulumi still reads
    if not separator or namespace == PROJECT:
        return name
    near = difflib.SequenceMatcher(None, namespace.casefold(), PROJECT).ratio() > 0.75
    return key if near else None


class ConfigSource(Protocol):
    """The part of a stack's configuration that settings need."""

    def names(self) -> Iterable[str]:
        """The keys of this project that are set, without its name before them."""
        ...

    def get_object(self, key: str) -> Any:
        """The structured value of a key, or None."""
        ...


def load(source: ConfigSource, pins: Mapping[str, Pin] | None = None) -> StackSettings:
    """Read and check the whole configuration.

    A node with `cloud: cheapest` becomes one of the cloud that is pinned in it or, by its name, in `pins`.
    Raises SettingsError naming every wrong value, with its path and the fix.
    """
    return parse(given(source), pins)


def given(source: ConfigSource) -> dict[str, Any]:
    """The configuration as plain values, unknown keys included: those are refused, never ignored."""
    values = {name: source.get_object(name) for name in source.names()}
    return {name: value for name, value in values.items() if value is not None}


def parse(raw: Mapping[str, Any], pins: Mapping[str, Pin] | None = None) -> StackSettings:
    """Check a configuration given as plain values. Raises SettingsError."""
    reading = read(raw, pins)
    if reading.problems or reading.settings is None:
        raise SettingsError(reading.problems)
    return reading.settings


def with_pin(node: CheapestNode, pin: Pin) -> Node:
    """The node with its cloud, place and type as pinned.

    Raises pydantic's ValidationError where that cloud's settings do not take it.
    """
    raw = chosen(node.model_dump(exclude={"pinned"}), {node.name: pin})
    found = TypeAdapter[AnyNode](AnyNode).validate_python(raw)
    assert isinstance(found, Node), "a pin names a cloud"
    return found
