"""Private networks and the servers in them: parts of VPC v2, Instance v1 and IPAM v1."""

from __future__ import annotations

from ipaddress import ip_network

from simcloud.cloud import Call, Json, Received, Reply
from simcloud.scaleway import errors
from simcloud.scaleway.model import PrivateNetwork, PrivateNic
from simcloud.scaleway.resources import (
    NO_CONTENT,
    Resources,
    counted_list,
    instance_list,
    instance_time,
    newer_time,
)

FIRST_HOST = 2
"""In a subnet; the gateway has the one before."""


class PrivateNetworks:
    """Networks of a region, interfaces of a zone's servers, and the addresses that IPAM gives them."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        networks = "/vpc/v2/regions/{region}/private-networks"
        nics = "/instance/v1/zones/{zone}/servers/{server_id}/private_nics"
        self.calls = [
            Call("create_private_network", "POST", networks, self.create_network, "private_network"),
            Call("list_private_networks", "GET", networks, self.list_networks, "private_network"),
            Call(
                "get_private_network", "GET", networks + "/{network_id}", self.get_network, "private_network"
            ),
            Call(
                "delete_private_network",
                "DELETE",
                networks + "/{network_id}",
                self.delete_network,
                "private_network",
            ),
            Call("create_private_nic", "POST", nics, self.create_nic, "private_nic"),
            Call("list_private_nics", "GET", nics, self.list_nics, "private_nic"),
            Call("get_private_nic", "GET", nics + "/{nic_id}", self.get_nic, "private_nic"),
            Call("delete_private_nic", "DELETE", nics + "/{nic_id}", self.delete_nic, "private_nic"),
            Call("list_private_ips", "GET", "/ipam/v1/regions/{region}/ips", self.list_ips, "ip"),
        ]

    def create_network(self, received: Received) -> Reply:
        body = received.json
        network = PrivateNetwork(
            region=received.params["region"],
            project=body.get("project_id") or self._resources.project,
            name=str(body.get("name") or "pn"),
            tags=[str(tag) for tag in body.get("tags") or []],
            subnet=str(ip_network((body.get("subnets") or ["172.16.0.0/22"])[0])),
        )
        self._resources.private_networks.put(network)
        return Reply(200, _network_shape(network))

    def list_networks(self, received: Received) -> Reply:
        wanted = {tag for tag in received.query.get("tags", "").split(",") if tag}
        found = [
            network
            for network in self._resources.private_networks
            if network.region == received.params["region"] and wanted <= set(network.tags)
        ]
        return counted_list(received, "private_networks", found, _network_shape)

    def get_network(self, received: Received) -> Reply:
        return Reply(200, _network_shape(self._network(received)))

    def delete_network(self, received: Received) -> Reply:
        network = self._network(received)
        attached = self._resources.gateway_networks
        if any(each.network == network.id for each in (*self._nics(), *attached)):
            raise errors.precondition(
                "Private network must be empty to be deleted",
                status=412,
                precondition="resource_still_in_use",
            )
        self._resources.private_networks.remove(network.id)
        return NO_CONTENT

    def create_nic(self, received: Received) -> Reply:
        server = self._resources.server(received)
        network = self._resources.private_networks.get(str(received.json.get("private_network_id")))
        if network is None or not server.zone.startswith(network.region):
            raise errors.invalid("private_network_id", "is not a private network of this region")
        if any((nic.server, nic.network) == (server.id, network.id) for nic in self._nics()):
            raise errors.conflict("a private nic already exists on this server for this private network")
        taken = {nic.address for nic in self._nics() if nic.network == network.id}
        hosts = (str(host) for host in list(ip_network(network.subnet).hosts())[FIRST_HOST - 1 :])
        nic = PrivateNic(
            server=server.id, network=network.id, address=next(host for host in hosts if host not in taken)
        )
        self._resources.private_nics.put(nic)
        return Reply(201, {"private_nic": self._nic_shape(nic)})

    def list_nics(self, received: Received) -> Reply:
        server = self._resources.server(received)
        found = [nic for nic in self._nics() if nic.server == server.id]
        return instance_list(received, "private_nics", found, self._nic_shape)

    def get_nic(self, received: Received) -> Reply:
        return Reply(200, {"private_nic": self._nic_shape(self._nic(received))})

    def delete_nic(self, received: Received) -> Reply:
        self._resources.private_nics.remove(self._nic(received).id)
        return NO_CONTENT

    def list_ips(self, received: Received) -> Reply:
        wanted = received.query.get("resource_id")
        found = [nic for nic in self._nics() if wanted in {None, nic.id}]
        return counted_list(received, "ips", found, self._ip_shape)

    def _nics(self) -> list[PrivateNic]:
        """The interfaces there are: one goes with its server."""
        return [nic for nic in self._resources.private_nics if self._resources.servers.get(nic.server)]

    def _network(self, received: Received) -> PrivateNetwork:
        network_id = received.params["network_id"]
        found = self._resources.private_networks.get(network_id)
        if found is None or found.region != received.params["region"]:
            raise errors.not_found("private_network", network_id)
        return found

    def _nic(self, received: Received) -> PrivateNic:
        server, nic_id = self._resources.server(received), received.params["nic_id"]
        found = self._resources.private_nics.get(nic_id)
        if found is None or found.server != server.id:
            raise errors.not_found("private_nic", nic_id)
        return found

    def _nic_shape(self, nic: PrivateNic) -> Json:
        server = self._resources.servers.get(nic.server)
        return {
            "id": nic.id,
            "server_id": nic.server,
            "private_network_id": nic.network,
            "mac_address": _mac(nic),
            "state": "available",
            "tags": [],
            "zone": server.zone if server else "",
            "ipam_ip_ids": [nic.ip],
            "creation_date": instance_time(nic.created),
            "modification_date": instance_time(nic.created),
        }

    def _ip_shape(self, nic: PrivateNic) -> Json:
        network = self._resources.private_networks.get(nic.network)
        prefix = network.subnet.partition("/")[2] if network else "32"
        server = self._resources.servers.get(nic.server)
        return {
            "id": nic.ip,
            "address": f"{nic.address}/{prefix}",
            "project_id": self._resources.project,
            "is_ipv6": False,
            "tags": [],
            "reverses": [],
            "region": network.region if network else "",
            "zone": None,
            "created_at": newer_time(nic.created),
            "updated_at": newer_time(nic.created),
            "source": {"private_network_id": nic.network},
            "resource": {
                "type": "instance_private_nic",
                "id": nic.id,
                "mac_address": _mac(nic),
                "name": server.name if server else None,
            },
        }


def _mac(nic: PrivateNic) -> str:
    return "02:00:00:" + ":".join(nic.id[start : start + 2] for start in (0, 2, 4))


def _network_shape(network: PrivateNetwork) -> Json:
    made = newer_time(network.created)
    return {
        "id": network.id,
        "name": network.name,
        "tags": network.tags,
        "organization_id": network.project,
        "project_id": network.project,
        "region": network.region,
        "vpc_id": network.id,
        "dhcp_enabled": True,
        "default_route_propagation_enabled": False,
        "has_object_storage_private_access": False,
        "subnets": [
            {
                "id": network.id,
                "subnet": network.subnet,
                "project_id": network.project,
                "private_network_id": network.id,
                "vpc_id": network.id,
                "created_at": made,
                "updated_at": made,
            }
        ],
        "created_at": made,
        "updated_at": made,
    }
