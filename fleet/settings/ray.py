"""Ray clusters: what they have beside what each of their machines has."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field, model_validator

from fleet.settings.nodes import AwsNode, LinodeNode, Node, ScalewayNode
from fleet.settings.provision import RAY_VERSION
from fleet.settings.section import Section
from fleet.settings.serving import Serving
from fleet.settings.values import NodeName, PrivateNetwork, wrong

LONGEST_CLUSTER_NAME = 25
OLDEST_RAY_WITH_TOKENS = (2, 52)
"""Ray's "Token authentication"; before it, who reaches a cluster can run anything on it."""


def _cluster_name(value: str) -> str:
    if len(value) > LONGEST_CLUSTER_NAME:
        raise wrong(
            "is too long: its machines are named {value}-head and {value}-w0, and a node name has up to 30 "
            "characters; use {longest} or fewer",
            value=value,
            longest=LONGEST_CLUSTER_NAME,
        )
    return value


def _ray_version(value: str) -> str:
    major, minor, _ = value.split(".")
    if (int(major), int(minor)) < OLDEST_RAY_WITH_TOKENS:
        raise wrong("checks no token, which Ray does from 2.52; use {default}", default=RAY_VERSION)
    return value


class RayMachines(Section):
    """What a Ray cluster has beside what each of its machines has."""

    name: Annotated[NodeName, AfterValidator(_cluster_name)]
    """Name of the cluster: its machines are `name-head`, `name-w0`, `name-w1`, …"""
    count: int = Field(default=1, ge=0, le=31)
    """Workers, beside the head. A change touches the machines that come or go, and vLLM's own start."""
    serve: bool = True
    """Serve the model over all GPUs of the cluster; false leaves the cluster to other work."""
    ray_version: Annotated[str, AfterValidator(_ray_version)] = Field(
        default=RAY_VERSION, pattern=r"^\d+\.\d+\.\d+$"
    )
    """Release of Ray from PyPI."""
    network: PrivateNetwork = "10.77.0.0/24"
    """Private network of the cluster, where its cloud lets one choose: Scaleway and Linode."""

    machine: ClassVar[type[Node]]
    """What each of its machines is."""

    @property
    def head(self) -> Node:
        """The machine that the others join, and that vLLM answers on."""
        return self._member("head")

    @property
    def workers(self) -> tuple[Node, ...]:
        """The machines beside it."""
        return tuple(self._member(f"w{index}") for index in range(self.count))

    @property
    def members(self) -> tuple[Node, ...]:
        """All machines, the head first."""
        return (self.head, *self.workers)

    def _member(self, role: str) -> Node:
        own = {key: getattr(self, key) for key in self.machine.model_fields}
        return self.machine(**{**own, "name": f"{self.name}-{role}"})

    @model_validator(mode="after")
    def _vllm_has_a_release(self) -> RayMachines:
        serving: Serving = self.serving  # type: ignore[attr-defined]  # of the machine's settings
        if self.serve and serving.vllm_version is None:
            raise wrong(
                "serving.image: {image} names no vLLM release, which a cluster installs from PyPI; "
                "use a tag such as vllm/vllm-openai:v0.33.0",
                image=serving.image,
            )
        return self


class ScalewayRayCluster(RayMachines, ScalewayNode):
    """A Ray cluster on Scaleway, over a VPC private network."""

    machine = ScalewayNode

    @model_validator(mode="after")
    def _one_address_to_be_reached_at(self) -> ScalewayRayCluster:
        """In place of a node's own rule: the cluster's private network is made with it."""
        if not self.public_ip or self.private_network is not None:
            field = "private_network" if self.private_network else "public_ip"
            raise wrong(
                "{field}: a Ray cluster on Scaleway makes a private network of its own, which neither a jump "
                "host nor a Public Gateway is in; leave public_ip and private_network out",
                field=field,
            )
        return self


class LinodeRayCluster(RayMachines, LinodeNode):
    """A Ray cluster on Linode, over a VLAN."""

    machine = LinodeNode


class AwsRayCluster(RayMachines, AwsNode):
    """A Ray cluster on AWS, over the private addresses of its subnet."""

    machine = AwsNode


RayCluster = ScalewayRayCluster | LinodeRayCluster | AwsRayCluster
