"""A typed client of the Scaleway APIs this program uses: Instance v1, Block v1, and IAM's SSH keys.

Every method raises `ScalewayError` (see `errors`), names itself in it, and repeats what may be repeated:
after a 429, a passing 5xx, a `transient_state`, a timeout or a broken connection. A call that must not take
effect twice is never sent again before the client has looked whether the first one did; objects are found by
a tag that only they carry. Sizes are in bytes, times in seconds.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar
from urllib.parse import quote

from components.scaleway.credentials import Credentials, CredentialsError
from components.scaleway.errors import (
    AuthenticationFailed,
    DeadlineExceeded,
    InvalidArguments,
    NotFound,
    OutOfStock,
    PermissionDenied,
    PreconditionFailed,
    QuotaExceeded,
    RateLimited,
    ScalewayError,
    ServerError,
    StartFailed,
    TransientState,
    UnexpectedReply,
    Unreachable,
)
from components.scaleway.models import (
    Image,
    Ip,
    ListedRule,
    PrivateNetwork,
    PrivateNic,
    Rule,
    SecurityGroup,
    Server,
    ServerType,
    ServerVolume,
    SshKey,
    Volume,
    editable_rules,
    same_rules,
    sbs_root_volume_id,
)

if TYPE_CHECKING:
    import httpx

    from components.scaleway.transport import Params, Transport

__all__ = [
    "AuthenticationFailed",
    "Credentials",
    "CredentialsError",
    "DeadlineExceeded",
    "Image",
    "InvalidArguments",
    "Ip",
    "NotFound",
    "OutOfStock",
    "PermissionDenied",
    "PreconditionFailed",
    "QuotaExceeded",
    "RateLimited",
    "RetryPolicy",
    "Rule",
    "ScalewayClient",
    "ScalewayError",
    "SecurityGroup",
    "Server",
    "ServerError",
    "ServerType",
    "ServerVolume",
    "SshKey",
    "StartFailed",
    "Timeouts",
    "TransientState",
    "UnexpectedReply",
    "Unreachable",
    "Volume",
    "same_rules",
    "sbs_root_volume_id",
]

T = TypeVar("T")
Owned = TypeVar("Owned", Server, SecurityGroup, Ip, PrivateNetwork, PrivateNic)
Tagged = TypeVar("Tagged", Server, SecurityGroup, Volume)
Action = Literal["poweron", "poweroff", "stop_in_place", "reboot", "terminate"]

PAGE_SIZE = 100
"""The most that the Instance and Block APIs put on one page."""

# The states that show that an action was taken up. A reboot leaves no such trace.
ACTED: Mapping[str, AbstractSet[str]] = {
    "poweron": {"starting", "running"},
    "poweroff": {"stopping", "stopped"},
    "stop_in_place": {"stopping", "stopped in place"},
}


@dataclass(frozen=True)
class Timeouts:
    """Seconds for one attempt of one call."""

    connect_s: float = 5.0
    read_s: float = 20.0
    """Without a byte received or taken; creating a server takes the API a few seconds."""


@dataclass(frozen=True)
class RetryPolicy:
    """How long a failing call is tried again, with pauses that double from `first_s` to `max_s` seconds."""

    attempts: int = 8
    budget_s: float = 60.0
    """No attempt begins later than this many seconds after the first."""
    first_s: float = 0.5
    max_s: float = 10.0
    retry_after_max_s: float = 30.0
    """The longest pause that a Retry-After header can ask for."""


class ScalewayClient:
    """The APIs of one zone, as one API key sees them. Safe to share between threads."""

    def __init__(
        self,
        credentials: Credentials,
        zone: str,
        *,
        timeouts: Timeouts | None = None,
        retry: RetryPolicy | None = None,
        transport: httpx.BaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`transport`, `clock` and `sleep` stand in for the network and time in tests."""
        from components.scaleway.transport import Transport  # noqa: PLC0415  # see the module's first lines

        self.zone = zone
        self._project = credentials.project_id
        self._transport: Transport = Transport(
            credentials,
            zone,
            timeouts=timeouts or Timeouts(),
            retry=retry or RetryPolicy(),
            transport=transport,
            clock=clock,
            sleep=sleep,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections kept open."""
        self._transport.close()

    # --- images and products ---

    def get_image(self, image_id: str) -> Image:
        return self._get(
            "get_image",
            image_id,
            self._instance("images", image_id),
            lambda reply: Image.parse(reply["image"]),
        )

    def list_server_types(self) -> dict[str, ServerType]:
        """All commercial types of the zone by name, with price, GPUs and limits."""
        path = self._instance("products", "servers")
        types = self._list("list_server_types", "", path, "servers", lambda item: ServerType.parse(*item))
        return {type_.name: type_ for type_ in types}

    def list_availability(self) -> dict[str, str]:
        """Stock by commercial type: `available`, `scarce` or `shortage`."""
        path = self._instance("products", "servers", "availability")
        return dict(
            self._list(
                "list_availability", "", path, "servers", lambda item: (item[0], item[1]["availability"])
            )
        )

    def list_ssh_keys(self) -> tuple[SshKey, ...]:
        """The project's enabled keys."""
        params = {"project_id": self._project, "disabled": "false"}
        path = _path("iam", "v1alpha1", "ssh-keys")
        return tuple(
            self._list("list_ssh_keys", "", path, "ssh_keys", SshKey.parse, filters=params, size="page_size")
        )

    def get_quota(self, name: str, organization_id: str) -> int | None:
        """The organization's limit of that name; None where there is none."""
        found = self._list(
            "get_quota",
            name,
            _path("iam", "v1alpha1", "quota"),
            "quota",
            lambda row: (row["name"], None if row.get("unlimited") else row.get("limit")),
            filters={"organization_id": organization_id, "quotum_names": name},
            size="page_size",
        )
        return dict(found).get(name)

    # --- servers ---

    def create_server(
        self,
        name: str,
        *,
        commercial_type: str,
        image: str,
        owner_tag: str,
        tags: Collection[str] = (),
        adopt_tag: str | None = None,
        security_group: str | None = None,
        project: str | None = None,
        dynamic_ip_required: bool = True,
        boot_type: str = "local",
    ) -> Server:
        """Create a stopped server from an image alone, or return the one an earlier call left.

        It is found again by `owner_tag` and, where one owner may have two servers during a replacement,
        `adopt_tag`; the server carries both. No `volumes` are ever sent: Scaleway then makes a bootable SBS
        volume by itself.
        """
        marks = [owner_tag] if adopt_tag is None else [owner_tag, adopt_tag]
        body: dict[str, object] = {
            "name": name,
            "commercial_type": commercial_type,
            "image": image,
            "project": project or self._project,
            "tags": _merged(tags, marks),
            "dynamic_ip_required": dynamic_ip_required,
            "boot_type": boot_type,
        }
        if security_group is not None:
            body["security_group"] = security_group
        return self._create(
            "create_server",
            name,
            self._instance("servers"),
            body,
            _server,
            find=lambda: self.list_servers(tags=marks),
        )

    def get_server(self, server_id: str) -> Server:
        return self._get("get_server", server_id, self._instance("servers", server_id), _server)

    def find_server(self, server_id: str) -> Server | None:
        """The server, or None if it does not exist."""
        return _or_none(lambda: self.get_server(server_id))

    def list_servers(self, *, tags: Collection[str] = (), name: str | None = None) -> tuple[Server, ...]:
        """Servers that carry all `tags` and, if given, have exactly this `name`; oldest first."""
        path = self._instance("servers")
        servers = self._list(
            "list_servers", name or "", path, "servers", Server.parse, filters=_filters(tags, name)
        )
        return _matching(servers, tags, name)

    def update_server(
        self,
        server_id: str,
        *,
        name: str | None = None,
        tags: Collection[str] | None = None,
        security_group: str | None = None,
        protected: bool | None = None,
    ) -> Server:
        """Change what is given; `tags` replaces all tags."""
        body = _given(
            name=name,
            tags=None if tags is None else list(tags),
            # The API asks for a name here and does not look at it.
            security_group=None if security_group is None else {"id": security_group, "name": security_group},
            protected=protected,
        )
        path = self._instance("servers", server_id)
        return self._write("update_server", server_id, "PATCH", path, _server, body=body)

    def delete_server(self, server_id: str) -> None:
        """Delete a stopped server; its SBS volume stays. One that is gone already is fine."""
        self._delete("delete_server", server_id, self._instance("servers", server_id))

    def server_action(self, server_id: str, action: Action) -> None:
        """Ask for a change of power; returns when it is accepted, long before it is done.

        It is content if the server already is, or is becoming, what the action makes it.
        """

        def acted() -> bool | None:
            server = self.find_server(server_id)
            if action == "terminate":
                done = server is None or server.state_detail == "terminating"
            else:
                done = server is not None and server.state in ACTED.get(action, ())
            return True if done else None

        try:
            self._write(
                "server_action",
                f"{server_id} {action}",
                "POST",
                self._instance("servers", server_id, "action"),
                lambda _: True,
                body={"action": action},
                settle=acted,
                repeatable=action != "reboot",
            )
        except NotFound:
            if action != "terminate":
                raise

    def wait_server(
        self,
        server_id: str,
        *,
        until: AbstractSet[str],
        deadline_s: float,
        on_progress: Callable[[Server], None] | None = None,
    ) -> Server:
        """Wait for a state; `on_progress` sees each new state or detail.

        Raises `StartFailed` if a start ends in `stopped`, `DeadlineExceeded` after `deadline_s` seconds.
        """
        tell = _on_change(on_progress, lambda server: (server.state, server.state_detail))
        starting = False

        def look() -> Server:
            nonlocal starting
            server = self.get_server(server_id)
            tell(server)
            if starting and server.state == "stopped" and "stopped" not in until:
                raise StartFailed(
                    "wait_server", server.name, self.zone, "the server went from starting back to stopped"
                )
            starting = starting or server.state == "starting"
            return server

        return self._transport.poll(
            look,
            lambda server: server.state in until,
            deadline_s=deadline_s,
            failure=lambda server, waited: (
                "wait_server",
                server.name,
                f"not {_one_of(until)} after {waited:.0f} s, last seen {server.state}"
                + (f" ({server.state_detail})" if server.state_detail else ""),
                StartFailed.default_mend
                if "running" in until
                else "look at the server in Scaleway's console and run the same command again",
            ),
        )

    def wait_server_gone(self, server_id: str, *, deadline_s: float) -> None:
        """Wait until the server does not exist any more. Raises `DeadlineExceeded`."""
        self._transport.poll(
            lambda: self.find_server(server_id),
            lambda server: server is None,
            deadline_s=deadline_s,
            failure=lambda server, waited: (
                "wait_server_gone",
                server.name if server else server_id,
                f"still there after {waited:.0f} s, last seen {server.state if server else 'gone'}",
                "it still bills: terminate it in Scaleway's console, or run `pulumi destroy` again",
            ),
        )

    def wait_public_ip(self, server_id: str, *, deadline_s: float) -> str:
        """Wait until the server has a public IPv4 address and return it. Raises `DeadlineExceeded`."""
        server = self._transport.poll(
            lambda: self.get_server(server_id),
            lambda server: server.public_ip is not None,
            deadline_s=deadline_s,
            failure=lambda server, waited: (
                "wait_public_ip",
                server.name,
                f"no public IPv4 address after {waited:.0f} s, last seen {server.state}",
                "check that the server runs and asks for a dynamic address, and the project's quota of IPs",
            ),
        )
        assert server.public_ip is not None
        return server.public_ip

    # --- user data ---

    def set_user_data(self, server_id: str, key: str, value: bytes) -> None:
        self._transport.perform(
            "set_user_data",
            f"{server_id} {key}",
            "PATCH",
            self._instance("servers", server_id, "user_data", key),
            lambda _: None,
            content=value,
        )

    def get_user_data(self, server_id: str, key: str) -> bytes | None:
        """The value of one key, None if there is no such key. Raises `NotFound` if there is no server."""
        path = self._instance("servers", server_id, "user_data", key)
        try:
            return self._transport.perform(
                "get_user_data", f"{server_id} {key}", "GET", path, lambda response: response.content
            )
        except NotFound as error:
            # A missing server is reported in words, a missing key by an empty reply.
            if error.api_message:
                raise
            return None

    def delete_user_data(self, server_id: str, key: str) -> None:
        self._delete(
            "delete_user_data", f"{server_id} {key}", self._instance("servers", server_id, "user_data", key)
        )

    def wait_user_data(self, server_id: str, key: str, *, deadline_s: float) -> bytes:
        """Wait until the machine has published `key` and return its value. Raises `DeadlineExceeded`."""
        value = self._transport.poll(
            lambda: self.get_user_data(server_id, key),
            bool,
            deadline_s=deadline_s,
            failure=lambda _, waited: (
                "wait_user_data",
                server_id,
                f"the machine has not published {key} after {waited:.0f} s",
                "open the server's console at console.scaleway.com: did it boot, what does cloud-init say?",
            ),
        )
        assert value is not None
        return value

    # --- block volumes ---

    def get_volume(self, volume_id: str) -> Volume:
        return self._get("get_volume", volume_id, self._block(volume_id), Volume.parse)

    def find_volume(self, volume_id: str) -> Volume | None:
        """The volume, or None if it does not exist."""
        return _or_none(lambda: self.get_volume(volume_id))

    def list_volumes(self, *, tags: Collection[str] = (), name: str | None = None) -> tuple[Volume, ...]:
        """SBS volumes that carry all `tags` and, if given, have exactly this `name`; oldest first."""
        # Unlike the Instance API, this one takes several tags as several parameters.
        filters = _given(tags=list(tags) or None, name=name)
        volumes = self._list(
            "list_volumes",
            name or "",
            self._block(),
            "volumes",
            Volume.parse,
            filters=filters,
            size="page_size",
        )
        return _matching(volumes, tags, name)

    def grow_volume(self, volume_id: str, size: int, *, tags: Collection[str] | None = None) -> Volume:
        """Ask for `size` bytes (whole 10⁹); the reply still shows the old size: see `wait_volume_size`."""

        def growing() -> Volume | None:
            volume = self.get_volume(volume_id)
            return volume if volume.size >= size or volume.status in {"updating", "resizing"} else None

        body = _given(size=size, tags=None if tags is None else list(tags))
        return self._write(
            "update_volume",
            volume_id,
            "PATCH",
            self._block(volume_id),
            Volume.parse,
            body=body,
            settle=growing,
        )

    def delete_volume(self, volume_id: str) -> None:
        """Delete a volume that no server uses. One that is gone already is fine."""
        self._delete("delete_volume", volume_id, self._block(volume_id))

    def delete_volume_once_detached(self, volume_id: str, *, deadline_s: float) -> None:
        """Delete a volume whose server is being deleted, as soon as it is free. Raises `DeadlineExceeded`."""
        self._transport.poll(
            lambda: self.find_volume(volume_id),
            lambda volume: volume is None or volume.status in {"available", "error", "deleting", "deleted"},
            deadline_s=deadline_s,
            failure=lambda volume, waited: (
                "delete_volume",
                volume_id,
                f"still {volume.status if volume else 'there'} after {waited:.0f} s",
                "it still bills: detach and delete it in Scaleway's console, or run `pulumi destroy` again",
            ),
        )
        self.delete_volume(volume_id)

    def wait_volume(
        self,
        volume_id: str,
        *,
        until: AbstractSet[str],
        deadline_s: float,
        on_progress: Callable[[Volume], None] | None = None,
    ) -> Volume:
        """Wait for a status. Raises `DeadlineExceeded`, and `PreconditionFailed` for a volume in `error`."""
        return self._wait_volume(
            volume_id, lambda volume: volume.status in until, _one_of(until), deadline_s, on_progress
        )

    def wait_volume_size(
        self,
        volume_id: str,
        size: int,
        *,
        deadline_s: float,
        on_progress: Callable[[Volume], None] | None = None,
    ) -> Volume:
        """Wait until the volume has at least `size` bytes and has settled. Raises as `wait_volume`."""
        return self._wait_volume(
            volume_id,
            lambda volume: volume.size >= size and volume.status in {"available", "in_use"},
            f"{size / 1e9:g} GB",
            deadline_s,
            on_progress,
        )

    def _wait_volume(
        self,
        volume_id: str,
        done: Callable[[Volume], bool],
        what: str,
        deadline_s: float,
        on_progress: Callable[[Volume], None] | None,
    ) -> Volume:
        mend = (
            "check that the API key may change volumes (BlockStorageFullAccess), that the server is stopped "
            "or running and not in between, and the volume's state at console.scaleway.com; then run "
            "`pulumi up` again"
        )

        tell = _on_change(on_progress, lambda volume: (volume.status, volume.size))

        def look() -> Volume:
            volume = self.get_volume(volume_id)
            tell(volume)
            if volume.status == "error" and not done(volume):
                raise PreconditionFailed(
                    "wait_volume", volume_id, self.zone, "the volume is in state error", mend=mend
                )
            return volume

        return self._transport.poll(
            look,
            done,
            deadline_s=deadline_s,
            failure=lambda volume, waited: (
                "wait_volume",
                volume_id,
                f"not {what} after {waited:.0f} s, last seen {volume.status} with {volume.size / 1e9:g} GB",
                mend,
            ),
        )

    # --- security groups ---

    def create_security_group(
        self,
        name: str,
        *,
        owner_tag: str,
        tags: Collection[str] = (),
        project: str | None = None,
        stateful: bool = True,
        inbound_default_policy: str = "drop",
        outbound_default_policy: str = "accept",
    ) -> SecurityGroup:
        """Create a security group, or return the one that an interrupted run left.

        That one carries `owner_tag` and no server uses it: one in use is being replaced, and goes when the
        server has its successor.
        """

        def left() -> list[SecurityGroup]:
            return [group for group in self.list_security_groups(tags=[owner_tag]) if not group.server_ids]

        body = {
            "name": name,
            "project": project or self._project,
            "tags": _merged(tags, [owner_tag]),
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

    def find_security_group(self, group_id: str) -> SecurityGroup | None:
        """The security group, or None if it does not exist."""
        return _or_none(lambda: self.get_security_group(group_id))

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
            filters=_filters(tags, name),
        )
        return _matching(groups, tags, name)

    def update_security_group(
        self,
        group_id: str,
        *,
        name: str | None = None,
        tags: Collection[str] | None = None,
        stateful: bool | None = None,
        inbound_default_policy: str | None = None,
        outbound_default_policy: str | None = None,
    ) -> SecurityGroup:
        """Change what is given; `tags` replaces all tags."""
        body = _given(
            name=name,
            tags=None if tags is None else list(tags),
            stateful=stateful,
            inbound_default_policy=inbound_default_policy,
            outbound_default_policy=outbound_default_policy,
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

    def create_ip(
        self,
        *,
        owner_tag: str,
        tags: Collection[str] = (),
        server_id: str | None = None,
        project: str | None = None,
        type: str = "routed_ipv4",
    ) -> Ip:
        """Reserve a public address, or return the one that carries `owner_tag` already."""
        body = _given(
            project=project or self._project, tags=_merged(tags, [owner_tag]), type=type, server=server_id
        )
        return self._create(
            "create_ip",
            owner_tag,
            self._instance("ips"),
            body,
            lambda reply: Ip.parse(reply["ip"]),
            find=lambda: self.list_ips(tags=[owner_tag]),
        )

    def list_ips(self, *, tags: Collection[str] = ()) -> tuple[Ip, ...]:
        """Flexible IPs that carry all `tags`."""
        ips = self._list("list_ips", "", self._instance("ips"), "ips", Ip.parse, filters=_filters(tags, None))
        return tuple(ip for ip in ips if set(tags) <= set(ip.tags))

    def delete_ip(self, ip_id: str) -> None:
        """Release an address. One that is gone already is fine."""
        self._delete("delete_ip", ip_id, self._instance("ips", ip_id))

    # --- private networks ---

    def create_private_network(self, name: str, *, subnet: str, tag: str) -> PrivateNetwork:
        """Create a network in the zone's region, or return the one that carries `tag` already."""
        body = {"name": name, "project_id": self._project, "tags": [tag], "subnets": [subnet]}
        return self._create(
            "create_private_network",
            name,
            self._vpc("private-networks"),
            body,
            PrivateNetwork.parse,
            find=lambda: self.list_private_networks(tag=tag),
        )

    def list_private_networks(self, *, tag: str) -> tuple[PrivateNetwork, ...]:
        """Networks of the region that carry the tag."""
        found = self._list(
            "list_private_networks",
            "",
            self._vpc("private-networks"),
            "private_networks",
            PrivateNetwork.parse,
            filters={"tags": tag},
            size="page_size",
        )
        return tuple(network for network in found if tag in network.tags)

    def find_private_network(self, network_id: str) -> PrivateNetwork | None:
        """The network, or None where there is none."""
        path = self._vpc("private-networks", network_id)
        return _or_none(lambda: self._get("get_private_network", network_id, path, PrivateNetwork.parse))

    def delete_private_network(self, network_id: str) -> None:
        """Delete a network that nothing is in. One that is gone already is fine."""
        self._delete("delete_private_network", network_id, self._vpc("private-networks", network_id))

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
                nic
                for nic in self._list("list_private_nics", server_id, path, "private_nics", PrivateNic.parse)
                if nic.private_network_id == network_id
            ],
        )

    def find_private_nic(self, server_id: str, nic_id: str) -> PrivateNic | None:
        """The interface, or None where it or its server is gone."""
        path = self._instance("servers", server_id, "private_nics", nic_id)
        return _or_none(
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
                _path("ipam", "v1", "regions", self._region, "ips"),
                "ips",
                lambda ip: str(ip["address"]).partition("/")[0],
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

    # --- how calls are made ---

    @property
    def _region(self) -> str:
        return self.zone.rpartition("-")[0]

    def _vpc(self, *parts: str) -> str:
        return _path("vpc", "v2", "regions", self._region, *parts)

    def _instance(self, *parts: str) -> str:
        return _path("instance", "v1", "zones", self.zone, *parts)

    def _block(self, *parts: str) -> str:
        return _path("block", "v1", "zones", self.zone, "volumes", *parts)

    def _get(self, call: str, resource: str, path: str, parse: Callable[[Any], T]) -> T:
        return self._transport.perform(call, resource, "GET", path, lambda response: parse(response.json()))

    def _write(
        self,
        call: str,
        resource: str,
        method: str,
        path: str,
        parse: Callable[[Any], T],
        *,
        body: object,
        settle: Callable[[], T | None] | None = None,
        repeatable: bool = True,
    ) -> T:
        return self._transport.perform(
            call,
            resource,
            method,
            path,
            lambda response: parse(response.json()),
            body=body,
            settle=settle,
            repeatable=repeatable,
        )

    def _create(
        self,
        call: str,
        resource: str,
        path: str,
        body: object,
        parse: Callable[[Any], Owned],
        *,
        find: Callable[[], Sequence[Owned]],
    ) -> Owned:
        """Post once, whatever happens on the way: what `find` finds first is taken instead."""

        def existing() -> Owned | None:
            return next(iter(find()), None)

        return existing() or self._write(call, resource, "POST", path, parse, body=body, settle=existing)

    def _delete(self, call: str, resource: str, path: str) -> None:
        try:
            self._transport.perform(call, resource, "DELETE", path, lambda _: None)
        except NotFound:
            return

    def _list(
        self,
        call: str,
        resource: str,
        path: str,
        key: str,
        parse: Callable[[Any], T],
        *,
        filters: Params | None = None,
        size: str = "per_page",
    ) -> list[T]:
        """All rows of all pages; of a map, the rows are its items.

        The Instance API gives the total in a header, the others in the body, and some replies nowhere: a page
        that is not full is then the last.
        """

        def read(response: httpx.Response) -> tuple[list[T], int | None]:
            body = response.json()
            page = body[key]
            total = response.headers.get("x-total-count", body.get("total_count"))
            rows = page.items() if isinstance(page, dict) else page
            return [parse(row) for row in rows], None if total is None else int(total)

        found: list[T] = []
        for number in itertools.count(1):
            params = {**(filters or {}), "page": number, size: PAGE_SIZE}
            page, total = self._transport.perform(call, resource, "GET", path, read, params=params)
            found += page
            if not page or (len(found) >= total if total is not None else len(page) < PAGE_SIZE):
                break
        return found


def _path(*parts: str) -> str:
    """A path in which no part can reach beyond its place. Raises `ValueError` for an empty part."""
    if not all(parts):
        raise ValueError(f"an empty id in the path {'/'.join(parts)}")
    return "/" + "/".join(quote(part, safe="") for part in parts)


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _filters(tags: Collection[str], name: str | None) -> dict[str, Any]:
    """The Instance API's list filters: tags in one parameter, and a name that also matches longer ones."""
    return _given(tags=",".join(tags) or None, name=name)


def _merged(tags: Collection[str], marks: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*tags, *marks]))


def _matching(found: Iterable[Tagged], tags: Collection[str], name: str | None) -> tuple[Tagged, ...]:
    wanted = set(tags)
    exact = [item for item in found if wanted <= set(item.tags) and name in {None, item.name}]
    return tuple(sorted(exact, key=lambda item: item.created))


def _or_none(get: Callable[[], T]) -> T | None:
    try:
        return get()
    except NotFound:
        return None


def _on_change(tell: Callable[[T], None] | None, of: Callable[[T], object]) -> Callable[[T], None]:
    """Calls `tell` with what it is given whenever `of` it differs from the time before."""
    last: object = None

    def look(item: T) -> None:
        nonlocal last
        now = of(item)
        if tell is not None and now != last:
            tell(item)
        last = now

    return look


def _one_of(states: AbstractSet[str]) -> str:
    return " or ".join(sorted(states))


def _server(reply: Any) -> Server:
    return Server.parse(reply["server"])


def _security_group(reply: Any) -> SecurityGroup:
    return SecurityGroup.parse(reply["security_group"])


def _rules(reply: Any) -> tuple[Rule, ...]:
    return editable_rules(map(ListedRule.parse, reply["rules"]))
