"""Security groups and flexible IPs: `/instance/v1/zones/{zone}/security_groups` and `/ips`."""

from __future__ import annotations

import ipaddress
from typing import Any

from simcloud.cloud import Call, Json, Received, Reply
from simcloud.scaleway import errors
from simcloud.scaleway.model import Ip, Rule, SecurityGroup
from simcloud.scaleway.power import Power
from simcloud.scaleway.resources import (
    NO_CONTENT,
    Resources,
    instance_list,
    instance_time,
    with_tags,
    zone_of,
)

SMTP_RULES = [
    Rule(
        id=f"11111111-2222-4333-8444-00000000000{position}",
        protocol="TCP",
        direction="outbound",
        action="drop",
        ip_range=ip_range,
        dest_port_from=port,
        dest_port_to=None,
    )
    for position, (ip_range, port) in enumerate(
        [(ip_range, port) for ip_range in ("0.0.0.0/0", "::/0") for port in (25, 465, 587)], start=1
    )
]
"""Rules nobody can edit, in every group with the default security on."""

CHOICES = {
    "protocol": ("TCP", "UDP", "ICMP", "ANY"),
    "direction": ("inbound", "outbound"),
    "action": ("accept", "drop"),
}


class Network:
    """The part of the Instance API that is about reaching servers."""

    def __init__(self, resources: Resources, power: Power) -> None:
        self._resources = resources
        self._power = power
        zone = "/instance/v1/zones/{zone}"
        groups, group = zone + "/security_groups", zone + "/security_groups/{security_group_id}"
        ips, ip = zone + "/ips", zone + "/ips/{ip_id}"
        sg, address = "compute_security_groups", "compute_ips"
        self.calls = [
            Call("create_security_group", "POST", groups, self.create_group, sg),
            Call("list_security_groups", "GET", groups, self.list_groups, sg),
            Call("get_security_group", "GET", group, self.get_group, sg),
            Call("update_security_group", "PATCH", group, self.update_group, sg),
            Call("delete_security_group", "DELETE", group, self.delete_group, sg),
            Call("list_rules", "GET", group + "/rules", self.list_rules, sg),
            Call("set_rules", "PUT", group + "/rules", self.set_rules, sg),
            Call("create_ip", "POST", ips, self.create_ip, address),
            Call("list_ips", "GET", ips, self.list_ips, address),
            Call("get_ip", "GET", ip, self.get_ip, address),
            Call("update_ip", "PATCH", ip, self.update_ip, address),
            Call("delete_ip", "DELETE", ip, self.delete_ip, address),
        ]

    def create_group(self, received: Received) -> Reply:
        body = received.json
        if not body.get("name"):
            raise errors.invalid("name", "required key not provided", reason="required")
        group = SecurityGroup(
            zone=zone_of(received),
            project=body.get("project") or self._resources.project,
            name=str(body["name"]),
        )
        self._apply(group, body)
        self._resources.event("security_group", group, "created", None)
        return Reply(201, {"security_group": self._group_shape(group)})

    def list_groups(self, received: Received) -> Reply:
        self._resources.default_security_group(zone_of(received))
        query = received.query
        groups = [
            group
            for group in with_tags(self._resources.security_groups, received)
            if query.get("name", "") in group.name
            and query.get("project", group.project) == group.project
            and query.get("project_default") in (None, str(group.project_default).lower())
        ]
        return instance_list(received, "security_groups", groups, self._group_shape)

    def get_group(self, received: Received) -> Reply:
        return Reply(200, {"security_group": self._group_shape(self._resources.security_group(received))})

    def update_group(self, received: Received) -> Reply:
        group = self._resources.security_group(received)
        self._apply(group, received.json)
        return Reply(200, {"security_group": self._group_shape(group)})

    def delete_group(self, received: Received) -> Reply:
        group = self._resources.security_group(received)
        if any(server.security_group == group.id for server in self._resources.servers):
            raise errors.conflict("Group is in use. You cannot delete it.")
        if group.project_default:
            raise errors.conflict("Group is default group. You cannot delete it.")
        self._resources.security_groups.remove(group.id)
        self._resources.event("security_group", group, "deleted", None)
        return NO_CONTENT

    def list_rules(self, received: Received) -> Reply:
        rules = _rules(self._resources.security_group(received))
        return Reply(200, {"rules": rules}, {"X-Total-Count": str(len(rules))})

    def set_rules(self, received: Received) -> Reply:
        group = self._resources.security_group(received)
        wanted = [rule for rule in received.json.get("rules") or [] if rule.get("editable") is not False]
        group.rules = [_rule(rule, position) for position, rule in enumerate(wanted)]
        self._save(group)
        return Reply(200, {"rules": _rules(group)})

    def create_ip(self, received: Received) -> Reply:
        body = received.json
        if (kind := body.get("type")) not in (None, "routed_ipv4"):
            raise errors.invalid("type", f"{kind} is not emulated, routed_ipv4 is")
        ip = Ip(
            zone=zone_of(received),
            project=body.get("project") or self._resources.project,
            tags=[str(tag) for tag in body.get("tags") or []],
            address=self._resources.free_address(),
            server=None,
        )
        self._attach(ip, body.get("server"))
        self._resources.event("ip", ip, "created", None)
        return Reply(201, {"ip": self._ip_shape(ip)})

    def list_ips(self, received: Received) -> Reply:
        project = received.query.get("project")
        ips = [ip for ip in with_tags(self._resources.ips, received) if project in (None, ip.project)]
        return instance_list(received, "ips", ips, self._ip_shape)

    def get_ip(self, received: Received) -> Reply:
        return Reply(200, {"ip": self._ip_shape(self._resources.ip(received))})

    def update_ip(self, received: Received) -> Reply:
        ip, body = self._resources.ip(received), received.json
        if body.get("tags") is not None:
            ip.tags = [str(tag) for tag in body["tags"]]
        # An absent server changes nothing, a null one detaches.
        self._attach(ip, body.get("server", ip.server))
        return Reply(200, {"ip": self._ip_shape(ip)})

    def delete_ip(self, received: Received) -> Reply:
        ip = self._resources.ip(received)
        self._attach(ip, None)
        self._resources.ips.remove(ip.id)
        self._resources.event("ip", ip, "deleted", None)
        return NO_CONTENT

    def _attach(self, ip: Ip, server_id: str | None) -> None:
        if server_id is not None and self._resources.servers.get(server_id) is None:
            raise errors.not_found("instance_server", server_id)
        touched = {server_id, ip.server} - {None}
        ip.server = server_id
        ip.touch()
        self._resources.ips.put(ip)
        for server in self._resources.servers:
            if server.id in touched:
                self._power.refresh_dynamic_ip(server)
                self._resources.servers.put(server)

    def _apply(self, group: SecurityGroup, body: Json) -> None:
        fields = ("name", "description", "tags", "stateful", "enable_default_security")
        policies = ("inbound_default_policy", "outbound_default_policy")
        for policy in policies:
            if body.get(policy) not in (None, "accept", "drop"):
                raise errors.invalid(policy, "not a valid value")
        for name in (*fields, *policies):
            if body.get(name) is not None:
                setattr(group, name, body[name])
        self._save(group)

    def _save(self, group: SecurityGroup) -> None:
        group.touch()
        self._resources.security_groups.put(group)

    def _group_shape(self, group: SecurityGroup) -> Json:
        return {
            "id": group.id,
            "creation_date": instance_time(group.created),
            "modification_date": instance_time(group.modified),
            "name": group.name,
            "description": group.description,
            "organization": group.project,
            "project": group.project,
            "servers": [
                {"id": server.id, "name": server.name}
                for server in self._resources.servers
                if server.security_group == group.id
            ],
            "stateful": group.stateful,
            "inbound_default_policy": group.inbound_default_policy,
            "outbound_default_policy": group.outbound_default_policy,
            "organization_default": False,
            "project_default": group.project_default,
            "enable_default_security": group.enable_default_security,
            "state": "available",
            "tags": group.tags,
            "zone": group.zone,
        }

    def _ip_shape(self, ip: Ip) -> Json:
        server = self._resources.servers.get(ip.server or "")
        return {
            "id": ip.id,
            "address": ip.address,
            "prefix": None,
            "reverse": ip.reverse,
            "server": {"id": server.id, "name": server.name} if server else None,
            "organization": ip.project,
            "project": ip.project,
            "zone": ip.zone,
            "type": "routed_ipv4",
            "state": "attached" if server else "detached",
            "tags": ip.tags,
            "ipam_id": ip.id,
        }


def _rules(group: SecurityGroup) -> list[Json]:
    def shape(rule: Rule, position: int, *, editable: bool) -> Json:
        return {
            "id": rule.id,
            "protocol": rule.protocol,
            "direction": rule.direction,
            "ip_range": rule.ip_range,
            "dest_ip_range": None,
            "dest_port_from": rule.dest_port_from,
            "dest_port_to": rule.dest_port_to,
            "position": position,
            "editable": editable,
            "action": rule.action,
            "zone": group.zone,
        }

    fixed = SMTP_RULES if group.enable_default_security else []
    return [
        *(shape(rule, position, editable=False) for position, rule in enumerate(fixed, start=1)),
        *(shape(rule, position, editable=True) for position, rule in enumerate(group.rules, start=1)),
    ]


def _rule(wanted: dict[str, Any], position: int) -> Rule:
    problems = {
        f"rules.{position}.{name}": [f"value must be one of {', '.join(choices)}"]
        for name, choices in CHOICES.items()
        if wanted.get(name) not in choices
    }
    for name in ("dest_port_from", "dest_port_to"):
        port = wanted.get(name)
        if port is not None and port < 1:
            problems[f"rules.{position}.{name}"] = ["value must be at least 1"]
        elif port is not None and port > 65535:
            problems[f"rules.{position}.{name}"] = ["value must be at most 65535"]
    try:
        network = ipaddress.ip_network(wanted.get("ip_range") or "", strict=False)
    except ValueError:
        problems[f"rules.{position}.ip_range"] = ["value is not an IP range"]
    if problems:
        raise errors.invalid_fields(problems)
    rule = Rule(
        protocol=wanted["protocol"],
        direction=wanted["direction"],
        action=wanted["action"],
        # A range of one address comes back without its prefix length.
        ip_range=str(network.network_address if network.num_addresses == 1 else network),
        dest_port_from=wanted.get("dest_port_from"),
        dest_port_to=wanted.get("dest_port_to"),
    )
    if wanted.get("id"):
        rule.id = wanted["id"]
    return rule
