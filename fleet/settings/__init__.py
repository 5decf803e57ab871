"""The stack's configuration: every key, its type, its bounds, and what to do when a value is wrong.

`load` checks the whole configuration at once and either returns frozen settings or raises one
`SettingsError` that lists every problem as `path: value is wrong because …; do …`. It calls no API and
reads no file but the SSH key it is told about, so a typing error costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from pydantic import TypeAdapter, ValidationError

from fleet.catalog import LOCATION_KEY
from fleet.settings.expose import Expose
from fleet.settings.jobs import Jobs
from fleet.settings.nodes import (
    CHEAPEST,
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
from fleet.settings.problems import Problem, SettingsError, problems_of
from fleet.settings.provision import Provision
from fleet.settings.ray import AwsRayCluster, LinodeRayCluster, RayCluster, RayMachines, ScalewayRayCluster
from fleet.settings.serving import Fit, Serving
from fleet.settings.stack import Access, Budget, Health, Rollout, Secrets, StackSettings
from fleet.ssh_key import NoPublicKey, public_key

__all__ = [
    "CLOUDS",
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
    "Node",
    "Observability",
    "Pin",
    "Problem",
    "Provision",
    "RayCluster",
    "RayMachines",
    "Rollout",
    "ScalewayNode",
    "ScalewayRayCluster",
    "Secrets",
    "Serving",
    "SettingsError",
    "Spot",
    "StackSettings",
    "load",
    "parse",
    "with_pin",
]

PROJECT = "vllm-fleet"
"""The Pulumi project; its configuration keys are `vllm-fleet:…`."""


class ConfigSource(Protocol):
    """The part of `pulumi.Config` that settings need."""

    def get_object(self, key: str) -> Any:
        """The structured value of a key, or None."""
        ...


def load(source: ConfigSource, pins: Mapping[str, Pin] | None = None) -> StackSettings:
    """Read and check the whole configuration.

    A node with `cloud: cheapest` becomes one of the cloud that is pinned in it or, by its name, in `pins`.
    Raises SettingsError naming every wrong value, with its path and mend.
    """
    given = {key: source.get_object(key) for key in StackSettings.model_fields}
    return parse({key: value for key, value in given.items() if value is not None}, pins)


def parse(raw: Mapping[str, Any], pins: Mapping[str, Pin] | None = None) -> StackSettings:
    """Check a configuration given as plain values. Raises SettingsError."""
    try:
        settings = StackSettings.model_validate(_with_choices(_with_shared_sections(raw), pins or {}))
    except ValidationError as error:
        raise SettingsError(problems_of(error.errors())) from None
    problems = [
        *_key_file_problems(settings),
        *_architecture_problems(settings),
        *_provision_problems(settings),
    ]
    if problems:
        raise SettingsError(problems)
    return settings


def with_pin(node: CheapestNode, pin: Pin) -> Node:
    """The node with its cloud, place and type as pinned.

    Raises pydantic's ValidationError where that cloud's settings do not take it.
    """
    raw = _chosen(node.model_dump(exclude={"pinned"}), {node.name: pin})
    found = TypeAdapter[AnyNode](AnyNode).validate_python(raw)
    assert isinstance(found, Node), "a pin names a cloud"
    return found


def _with_shared_sections(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Give each node the stack's serving, fit and provision with its own keys put over them."""
    # A stack may be of Ray clusters alone.
    lists = {"nodes": [], **raw} if raw.get("ray") else raw
    return {
        **raw,
        **{
            key: [_inheriting(each, raw) for each in lists[key]]
            for key in ("nodes", "ray")
            if isinstance(lists.get(key), list)
        },
    }


def _inheriting(node: Any, stack: Mapping[str, Any]) -> Any:
    if not isinstance(node, Mapping):
        return node
    merged = dict(node)
    for section in ("serving", "fit", "provision"):
        shared, own = stack.get(section), node.get(section) or {}
        if isinstance(shared, Mapping) and isinstance(own, Mapping):
            merged[section] = {**shared, **own}
    return merged


def _with_choices(raw: dict[str, Any], pins: Mapping[str, Pin]) -> dict[str, Any]:
    """Give each node with `cloud: cheapest` and a pin the cloud, place and type of that pin."""
    nodes = raw.get("nodes")
    return {**raw, "nodes": [_chosen(node, pins) for node in nodes]} if isinstance(nodes, list) else raw


def _chosen(node: Any, pins: Mapping[str, Pin]) -> Any:
    if not isinstance(node, Mapping) or node.get("cloud") != CHEAPEST:
        return node
    try:
        found = CheapestNode.model_validate(node)
    except ValidationError:
        return node  # the check of the whole configuration names what is wrong
    pin = found.pinned or pins.get(found.name)
    if pin is None:
        return node
    own = {key: value for key, value in node.items() if key in BaseNode.model_fields}
    serving = {**own["serving"], "tensor_parallel_size": pin.tensor_parallel_size}
    place = {"cloud": pin.cloud, LOCATION_KEY[pin.cloud]: pin.location, "type": pin.type}
    return {**own, **place, "root_volume_gb": found.root_volume_gb, "serving": serving}


def _architecture_problems(settings: StackSettings) -> list[Problem]:
    missing: dict[Problem, None] = {}  # once, where nodes share it
    for index, node in enumerate(settings.nodes):
        given = node.serving.architecture
        if given and not given.config.expanduser().is_file():
            where = "serving" if given == settings.serving.architecture else f"nodes[{index}].serving"
            mend = f"{given.config} is not a file; give the path of the model's own config.json"
            missing[Problem(f"{where}.architecture.config", mend)] = None
    return list(missing)


def _provision_problems(settings: StackSettings) -> list[Problem]:
    missing: dict[Problem, None] = {}  # once, where nodes share it
    for index, node in enumerate(settings.nodes):
        where = "provision" if node.provision == settings.provision else f"nodes[{index}].provision"
        missing |= {Problem(f"{where}.{key}", mend): None for key, mend in node.provision.missing_files()}
    return list(missing)


def _key_file_problems(settings: StackSettings) -> list[Problem]:
    path = settings.access.ssh_private_key_path
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
    if any(isinstance(node, LinodeNode) for node in (*settings.nodes, *settings.ray)):
        # Scaleway has the public half already; Linode is given it.
        try:
            public_key(path)
        except NoPublicKey as error:
            return [Problem(where, str(error))]
    return []
