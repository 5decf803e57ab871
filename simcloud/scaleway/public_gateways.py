"""Public Gateways and the private networks that they lead out of: parts of VPC-GW v2.

Fields and filters are those of Scaleway's SDK (scaleway.vpcgw.v2). Gateways are zonal and serve networks of
the whole region; one that announces a default route does NAT whatever is asked for ("Enabling the default
route also enables masquerading"). Unlike the original, what is made is ready at once.
"""

from __future__ import annotations

from urllib.parse import parse_qs

from simcloud.cloud import Call, Json, Received, Reply
from simcloud.scaleway import errors
from simcloud.scaleway.model import GatewayNetwork, PublicGateway
from simcloud.scaleway.resources import NO_CONTENT, Resources, counted_list, newer_time, zone_of


class PublicGateways:
    """The gateways of a zone, and where they are attached."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        zone = "/vpc-gw/v2/zones/{zone}"
        gateways, attached = zone + "/gateways", zone + "/gateway-networks"
        self.calls = [
            Call("create_gateway", "POST", gateways, self.create, "gateway"),
            Call("create_gateway_network", "POST", attached, self.attach, "gateway_network"),
            Call("list_gateway_networks", "GET", attached, self.list_attached, "gateway_network"),
            Call(
                "delete_gateway_network",
                "DELETE",
                attached + "/{gateway_network_id}",
                self.detach,
                "gateway_network",
            ),
        ]

    def create(self, received: Received) -> Reply:
        body = received.json
        gateway = PublicGateway(
            zone=zone_of(received),
            project=body.get("project_id") or self._resources.project,
            tags=[str(tag) for tag in body.get("tags") or []],
            name=str(body.get("name") or "gw"),
            type=str(body.get("type") or "VPC-GW-S"),
        )
        self._resources.gateways.put(gateway)
        return Reply(200, _gateway_shape(gateway))

    def attach(self, received: Received) -> Reply:
        body, zone = received.json, zone_of(received)
        gateway = self._resources.gateways.get(str(body.get("gateway_id")))
        network = self._resources.private_networks.get(str(body.get("private_network_id")))
        if gateway is None or gateway.zone != zone:
            raise errors.not_found("gateway", str(body.get("gateway_id")))
        if network is None or not zone.startswith(network.region):
            raise errors.not_found("private_network", str(body.get("private_network_id")))
        default_route = bool(body.get("push_default_route"))
        attached = GatewayNetwork(
            zone=zone,
            gateway=gateway.id,
            network=network.id,
            masquerade=default_route or bool(body.get("enable_masquerade")),
            default_route=default_route,
        )
        self._resources.gateway_networks.put(attached)
        return Reply(200, _attached_shape(attached))

    def list_attached(self, received: Received) -> Reply:
        wanted = parse_qs(received.query_string).get("private_network_ids", [])
        found = [
            attached
            for attached in self._resources.gateway_networks
            if attached.zone == zone_of(received) and (not wanted or attached.network in wanted)
        ]
        return counted_list(received, "gateway_networks", found, _attached_shape)

    def detach(self, received: Received) -> Reply:
        id_ = received.params["gateway_network_id"]
        found = self._resources.gateway_networks.get(id_)
        if found is None or found.zone != received.params["zone"]:
            raise errors.not_found("gateway_network", id_)
        self._resources.gateway_networks.remove(id_)
        return NO_CONTENT


def _gateway_shape(gateway: PublicGateway) -> Json:
    made = newer_time(gateway.created)
    return {
        "id": gateway.id,
        "organization_id": gateway.project,
        "project_id": gateway.project,
        "name": gateway.name,
        "type": gateway.type,
        "bandwidth": 100_000_000,
        "status": "running",
        "tags": gateway.tags,
        "ipv4": None,
        "gateway_networks": [],
        "bastion_enabled": False,
        "bastion_port": 61000,
        "smtp_enabled": False,
        "is_legacy": False,
        "ip_mobility_enabled": True,
        "bastion_allowed_ips": [],
        "version": None,
        "can_upgrade_to": None,
        "zone": gateway.zone,
        "created_at": made,
        "updated_at": made,
    }


def _attached_shape(attached: GatewayNetwork) -> Json:
    made = newer_time(attached.created)
    return {
        "id": attached.id,
        "gateway_id": attached.gateway,
        "private_network_id": attached.network,
        "mac_address": "02:00:00:00:00:01",
        "masquerade_enabled": attached.masquerade,
        "status": "ready",
        "push_default_route": attached.default_route,
        "ipam_ip_id": attached.ip,
        "zone": attached.zone,
        "created_at": made,
        "updated_at": made,
    }
