"""The embedded Scaleway: the calls of Instance v1, Block v1 and IAM v1alpha1 that this project makes."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager

from simcloud.cloud import Cloud, Json, Received, Reply, Simulation, node_name
from simcloud.faults import FaultKind, Lag
from simcloud.scaleway import errors
from simcloud.scaleway.block import SETTLE, Block
from simcloud.scaleway.catalog import TYPES
from simcloud.scaleway.iam import Iam
from simcloud.scaleway.model import ServerState
from simcloud.scaleway.network import Network
from simcloud.scaleway.power import Power
from simcloud.scaleway.private_networks import PrivateNetworks
from simcloud.scaleway.public_gateways import PublicGateways
from simcloud.scaleway.resources import CLOUD, Resources
from simcloud.scaleway.servers import Servers

__all__ = ["DEV_ACCESS_KEY", "DEV_PROJECT_ID", "DEV_SECRET_KEY", "Scaleway"]

# Shaped like real ones, known to everybody, good for nothing but the embedded cloud.
DEV_ACCESS_KEY = "SCWXXXXXXXXXXXXXXXXX"
DEV_SECRET_KEY = "11111111-1111-4111-8111-111111111111"
DEV_PROJECT_ID = "22222222-2222-4222-8222-222222222222"


class Scaleway(Cloud):
    """One project on Scaleway, below `/scaleway`."""

    name = CLOUD
    prefix = "/scaleway"

    def __init__(
        self,
        simulation: Simulation,
        *,
        secret_keys: Iterable[str] = (DEV_SECRET_KEY,),
        project: str = DEV_PROJECT_ID,
    ) -> None:
        self._simulation = simulation
        self._secret_keys = [key.encode() for key in secret_keys]
        self._resources = Resources(simulation, project=project)
        self._block = Block(self._resources)
        self._power = Power(self._resources, self._block)
        self.calls = [
            *Servers(self._resources, self._block, self._power).calls,
            *Network(self._resources, self._power).calls,
            *PrivateNetworks(self._resources).calls,
            *PublicGateways(self._resources).calls,
            *self._block.calls,
            *Iam(self._resources).calls,
        ]

    def authorize(self, received: Received) -> None:
        token = received.headers.get("x-auth-token", "").encode()
        if not any(hmac.compare_digest(token, key) for key in self._secret_keys):
            raise errors.unauthenticated()
        if received.call.name in self._simulation.conditions.denied_calls:
            raise errors.forbidden(received.call.resource, _permission(received))

    def names(self, received: Received) -> Iterable[str]:
        return self._resources.names(received)

    def refusal(self, kind: FaultKind, received: Received) -> Reply:
        resource, id_ = received.call.resource, _resource_id(received)
        match kind:
            case FaultKind.RATE_LIMITED:
                reply = errors.RATE_LIMITED
            case FaultKind.UNAVAILABLE:
                reply = errors.UNAVAILABLE
            case FaultKind.FORBIDDEN:
                reply = errors.forbidden(resource, _permission(received)).reply
            case FaultKind.NOT_FOUND:
                reply = errors.not_found(NOT_FOUND.get(resource, resource), id_).reply
            case FaultKind.CONFLICT:
                reply = errors.transient(NOT_FOUND.get(resource, resource), id_).reply
            case FaultKind.QUOTA:
                quota = TYPES[self._commercial_type(received)].quota
                project = self._resources.project
                reply = errors.quota_exceeded(quota, quota=0, current=0, project=project).reply
            case FaultKind.OUT_OF_STOCK:
                reply = errors.out_of_stock(self._commercial_type(received)).reply
            case _:
                reply = errors.INTERNAL
        return reply

    def not_found(self, received: Received) -> Reply:
        return errors.not_found("route", received.path).reply

    def inventory(self) -> Iterable[Json]:
        resources = self._resources
        for server in resources.servers:
            yield {
                **_thing("server", server.id, server.name, server.zone, resources.node_of(server)),
                "state": server.state,
                # Stopped servers cost nothing; their volumes and flexible IPs do.
                "bills": server.state is not ServerState.STOPPED,
            }
        for volume in resources.volumes:
            yield {
                **_thing("volume", volume.id, volume.name, volume.zone, volume.node),
                "state": volume.status,
                "bills": True,
            }
        for ip in resources.ips:
            server_of_ip = resources.servers.get(ip.server or "")
            yield {
                **_thing(
                    "ip",
                    ip.id,
                    ip.address,
                    ip.zone,
                    resources.node_of(server_of_ip) if server_of_ip else None,
                ),
                "state": "attached" if server_of_ip else "detached",
                "bills": True,
            }
        for group in resources.security_groups:
            if not group.project_default:
                yield {
                    **_thing(
                        "security_group", group.id, group.name, group.zone, node_name(group.name, group.tags)
                    ),
                    "state": "available",
                    "bills": False,
                }
        for network in resources.private_networks:
            yield {
                **_thing("private_network", network.id, network.name, None, None),
                "state": "available",
                "bills": False,
            }
        for gateway in resources.gateways:
            yield {
                **_thing("public_gateway", gateway.id, gateway.name, gateway.zone, None),
                "state": "running",
                "bills": True,
            }
        for key in resources.ssh_keys:
            yield {**_thing("ssh_key", key.id, key.name, None, None), "state": "enabled", "bills": False}

    def private_addresses(self) -> Iterable[tuple[str, str]]:
        for nic in self._resources.private_nics:
            server = self._resources.servers.get(nic.server)
            if server and server.address:
                yield nic.address, server.address

    def objects(self) -> frozenset[str]:
        return self._simulation.store.ids(f"{CLOUD}/")

    def hiding(self, lags: Sequence[Lag]) -> AbstractContextManager[None]:
        return self._simulation.store.hiding(lags)

    async def start(self) -> None:
        await self._power.resume()
        self._simulation.timers.serve(CLOUD, self._due)

    async def _due(self, action: str, object_id: str) -> None:
        if action == SETTLE:
            self._block.settle(object_id)
        else:
            await self._power.due(action, object_id)

    def _commercial_type(self, received: Received) -> str:
        server = self._resources.servers.get(received.params.get("server_id", ""))
        wanted = server.commercial_type if server else str(received.json.get("commercial_type"))
        return wanted if wanted in TYPES else "L4-1-24G"


def _permission(received: Received) -> str:
    return "read" if received.call.method == "GET" else "write"


NOT_FOUND = {
    "compute_servers": "instance_server",
    "compute_security_groups": "instance_security_group",
    "compute_ips": "instance_ip",
    "compute_images": "instance_image",
}
"""What the Instance API calls its resources where it does not find them; the other APIs have one word."""


def _resource_id(received: Received) -> str:
    """The id in the path, the last of several."""
    ids = [value for name, value in received.params.items() if name.endswith("_id")]
    return ids[-1] if ids else ""


def _thing(kind: str, id: str, name: str, zone: str | None, node: str | None) -> Json:
    return {"cloud": CLOUD, "kind": kind, "id": id, "name": name, "zone": zone, "node": node}
