"""What lets traffic in and where servers meet: security groups, addresses, private networks."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from components.scaleway.calls import Calls, filters_of, given, matching, merged, path_of
from components.scaleway.models import (
    GatewayNetwork,
    Ip,
    ListedRule,
    PrivateNetwork,
    PrivateNic,
    Rule,
    SecurityGroup,
    editable_rules,
    text,
)

GATEWAY_ZONES = (
    "fr-par-1",
    "fr-par-2",
    "nl-ams-1",
    "nl-ams-2",
    "nl-ams-3",
    "pl-waw-1",
    "pl-waw-2",
    "pl-waw-3",
)
"""Zones that have Public Gateways, as Scaleway's SDK lists them for vpc-gw/v2."""


class Networks(Calls):
    """Security groups, reserved addresses and private networks."""

    # --- security groups ---

    def create_security_group(
        self,
        name: str,
        *,
        marks: Collection[str],
        tags: Collection[str] = (),
        project: str | None = None,
        stateful: bool = True,
        inbound_default_policy: str = "drop",
        outbound_default_policy: str = "accept",
    ) -> SecurityGroup:
        """Create a security group, or return the one that an interrupted run left.

        That one carries all `marks` and no server uses it: one in use is being replaced, and goes when the
        server has its successor.
        """

        def left() -> list[SecurityGroup]:
            return [group for group in self.list_security_groups(tags=marks) if not group.server_ids]

        body = {
            "name": name,
            "project": project or self._project,
            "tags": merged(tags, marks),
            "stateful": stateful,
            "inbound_default_policy": inbound_default_policy,
            "outbound_default_policy": outbound_default_policy,
            "enable_default_security": True,
        }
        return self._create(
            "create_security_group",
            name,
            self._instance("security_groups"),
            body,
            _security_group,
            find=left,
        )

    def get_security_group(self, group_id: str) -> SecurityGroup:
        return self._get(
            "get_security_group", group_id, self._instance("security_groups", group_id), _security_group
        )

    def find_security_group(self, group_id: str, *, owner_tag: str | None = None) -> SecurityGroup | None:
        """The security group, or None if it does not exist: neither by its id nor, if given, by its owner."""

        def listed() -> list[SecurityGroup]:
            owned = self.list_security_groups(tags=[owner_tag]) if owner_tag else ()
            return [each for each in owned if each.id == group_id]

        return self._find(lambda: self.get_security_group(group_id), listed)

    def list_security_groups(
        self, *, tags: Collection[str] = (), name: str | None = None
    ) -> tuple[SecurityGroup, ...]:
        """Security groups that carry all `tags` and, if given, have exactly this `name`; oldest first."""
        path = self._instance("security_groups")
        groups = self._list(
            "list_security_groups",
            name or "",
            path,
            "security_groups",
            SecurityGroup.parse,
            filters=filters_of(tags, name),
        )
        return matching(groups, tags, name)

    def update_security_group(
        self,
        group_id: str,
        *,
        name: str | None = None,
        tags: Collection[str] | None = None,
        stateful: bool | None = None,
        inbound_default_policy: str | None = None,
        outbound_default_policy: str | None = None,
        enable_default_security: bool | None = None,
    ) -> SecurityGroup:
        """Change what is given; `tags` replaces all tags."""
        body = given(
            name=name,
            tags=None if tags is None else list(tags),
            stateful=stateful,
            inbound_default_policy=inbound_default_policy,
            outbound_default_policy=outbound_default_policy,
            enable_default_security=enable_default_security,
        )
        path = self._instance("security_groups", group_id)
        return self._write("update_security_group", group_id, "PATCH", path, _security_group, body=body)

    def delete_security_group(self, group_id: str) -> None:
        """Delete a group that no server uses. One that is gone already is fine."""
        self._delete("delete_security_group", group_id, self._instance("security_groups", group_id))

    def set_rules(self, group_id: str, rules: Iterable[Rule]) -> tuple[Rule, ...]:
        """Replace all rules people can edit, in one step; returns what the group then has."""
        body = {"rules": [rule.request(position) for position, rule in enumerate(rules, start=1)]}
        path = self._instance("security_groups", group_id, "rules")
        return self._write("set_rules", group_id, "PUT", path, _rules, body=body)

    def list_rules(self, group_id: str) -> tuple[Rule, ...]:
        """The rules people can edit, in the order they apply."""
        path = self._instance("security_groups", group_id, "rules")
        return editable_rules(self._list("list_rules", group_id, path, "rules", ListedRule.parse))

    # --- flexible IPs ---

    def list_ips(self, *, tags: Collection[str] = ()) -> tuple[Ip, ...]:
        """Flexible IPs that carry all `tags`."""
        ips = self._list(
            "list_ips", "", self._instance("ips"), "ips", Ip.parse, filters=filters_of(tags, None)
        )
        return tuple(ip for ip in ips if set(tags) <= set(ip.tags))

    def delete_ip(self, ip_id: str) -> None:
        """Release an address. One that is gone already is fine."""
        self._delete("delete_ip", ip_id, self._instance("ips", ip_id))

    # --- private networks ---

    def create_private_network(self, name: str, *, subnet: str, tags: Collection[str]) -> PrivateNetwork:
        """Create a network in the zone's region, or return the one that carries all `tags` already."""
        body = {"name": name, "project_id": self._project, "tags": list(tags), "subnets": [subnet]}
        return self._create(
            "create_private_network",
            name,
            self._vpc("private-networks"),
            body,
            PrivateNetwork.parse,
            find=lambda: self.list_private_networks(tags=tags),
        )

    def list_private_networks(self, *, tags: Collection[str]) -> tuple[PrivateNetwork, ...]:
        """Networks of the region that carry all `tags`."""
        found = self._list(
            "list_private_networks",
            "",
            self._vpc("private-networks"),
            "private_networks",
            PrivateNetwork.parse,
            # The API finds what carries any of several tags; the rest is sorted out below.
            filters={"tags": next(iter(tags))},
            size="page_size",
        )
        return tuple(network for network in found if set(tags) <= set(network.tags))

    def find_private_network(self, network_id: str) -> PrivateNetwork | None:
        """The network, or None where there is none."""
        path = self._vpc("private-networks", network_id)
        return self._find(lambda: self._get("get_private_network", network_id, path, PrivateNetwork.parse))

    def delete_private_network(self, network_id: str) -> None:
        """Delete a network that nothing is in. One that is gone already is fine."""
        self._delete("delete_private_network", network_id, self._vpc("private-networks", network_id))

    def leads_out(self, network_id: str) -> bool:
        """Whether a Public Gateway, of whichever zone of the region, gives the network a default route."""
        return any(
            attached.push_default_route and attached.status == "ready"
            for zone in GATEWAY_ZONES
            if zone.startswith(f"{self._region}-")
            for attached in self._gateways(zone, network_id)
        )

    def _gateways(self, zone: str, network_id: str) -> list[GatewayNetwork]:
        found = self._list(
            "list_gateway_networks",
            network_id,
            path_of("vpc-gw", "v2", "zones", zone, "gateway-networks"),
            "gateway_networks",
            GatewayNetwork.parse,
            filters={"private_network_ids": network_id},
            size="page_size",
        )
        return [attached for attached in found if attached.private_network_id == network_id]

    def create_private_nic(self, server_id: str, network_id: str) -> PrivateNic:
        """Put a server into a network, where it is not in it already."""
        path = self._instance("servers", server_id, "private_nics")
        return self._create(
            "create_private_nic",
            server_id,
            path,
            {"private_network_id": network_id},
            lambda reply: PrivateNic.parse(reply["private_nic"]),
            find=lambda: [
                nic for nic in self.list_private_nics(server_id) if nic.private_network_id == network_id
            ],
        )

    def list_private_nics(self, server_id: str) -> list[PrivateNic]:
        """A server's interfaces in private networks."""
        path = self._instance("servers", server_id, "private_nics")
        return self._list("list_private_nics", server_id, path, "private_nics", PrivateNic.parse)

    def find_private_nic(self, server_id: str, nic_id: str) -> PrivateNic | None:
        """The interface, or None where it or its server is gone."""
        path = self._instance("servers", server_id, "private_nics", nic_id)
        return self._find(
            lambda: self._get(
                "get_private_nic", nic_id, path, lambda reply: PrivateNic.parse(reply["private_nic"])
            )
        )

    def delete_private_nic(self, server_id: str, nic_id: str) -> None:
        """Take a server out of a network. One that is out already is fine."""
        self._delete(
            "delete_private_nic", nic_id, self._instance("servers", server_id, "private_nics", nic_id)
        )

    def wait_private_address(self, nic_id: str, *, deadline_s: float) -> str:
        """The IPv4 address that IPAM gave an interface. Raises DeadlineExceeded."""

        def look() -> list[str]:
            return self._list(
                "list_private_ips",
                nic_id,
                path_of("ipam", "v1", "regions", self._region, "ips"),
                "ips",
                lambda ip: text(ip, "address").partition("/")[0],
                filters={"resource_type": "instance_private_nic", "resource_id": nic_id, "is_ipv6": "false"},
                size="page_size",
            )

        return self._transport.poll(
            look,
            bool,
            deadline_s=deadline_s,
            failure=lambda _, waited: (
                "list_private_ips",
                nic_id,
                f"no private address after {waited:.0f} s",
                "has the private network a subnet with room? run the same command again",
            ),
        )[0]


def _security_group(reply: Any) -> SecurityGroup:
    return SecurityGroup.parse(reply["security_group"])


def _rules(reply: Any) -> tuple[Rule, ...]:
    return editable_rules(map(ListedRule.parse, reply["rules"]))
