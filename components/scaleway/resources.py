"""Scaleway's part of a node as dynamic resources: each owns one thing and touches nothing else.

| resource        | owns                                                              |
|-----------------|-------------------------------------------------------------------|
| `NodeOwner`     | the random owner id; at delete, whatever still carries it          |
| `SecurityGroup` | the group and its inbound rules                                   |
| `Server`        | the machine: type, image, tags, user data; never size nor power    |
| `RootVolume`    | the size of the SBS volume the image came with                    |
| `Power`         | that the machine runs, and the address it then has                |
| `HostKeys`      | the SSH host keys the machine published                           |

They are thin adapters over `api.ScalewayClient`; a reader looking for HTTP finds it there.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pulumi
from pulumi import Input, Output
from pulumi.dynamic import ConfigureRequest, CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from components.dynamic import CloudProvider, gone
from components.scaleway.api import Rule, ScalewayClient, Timeouts, same_rules, sbs_root_volume_id
from components.scaleway.credentials import Credentials
from components.scaleway.errors import ScalewayError, in_operation
from components.scaleway.models import SecurityGroup as Group
from components.tags import OWNER_TAG, PENDING_TAG
from fleet.progress import Progress, Stage

if TYPE_CHECKING:
    from components.gateway import Opening

GB = 10**9
"""Scaleway sizes volumes in decimal gigabytes."""
MINIMUM_ROOT_VOLUME_GB = 150
"""Below it the image, the weights and the caches do not fit together."""
HOST_KEYS_KEY = "ssh-host-public-keys"
"""User-data key under which a machine publishes its SSH host keys."""

RESIZE_DEADLINE_S = 300.0
"""A resize was seen to take up to 5 s; a minute would already be odd."""
START_DEADLINE_S = 900.0
"""GPU servers were seen to start within 31 s, any server within 114 s; scarce hardware may take longer."""
STOP_DEADLINE_S = 1200.0
"""A power-off was seen to take up to 934 s."""
DETACH_DEADLINE_S = 120.0
"""A volume was seen to stay attached for up to 6 s after its server was deleted."""


class ScalewayProvider(CloudProvider):
    """Adds credentials, by configuration or Scaleway's own environment and file; never by inputs."""

    def configure(self, req: ConfigureRequest) -> None:
        super().configure(req)
        self._credentials = Credentials.of_stack(lambda key: req.config.get(f"scaleway:{key}"))
        seconds = req.config.get("scaleway:timeout")
        self._timeouts = Timeouts(read_s=float(seconds)) if seconds else Timeouts()

    @staticmethod
    def explained(error: Exception, operation: str) -> Exception:
        return in_operation(error, operation)

    def client(self, props: Mapping[str, Any]) -> ScalewayClient:
        """The client of the zone that the resource lives in."""
        return _client(self._credentials, props["zone"], self._timeouts)


@lru_cache(maxsize=64)
def _client(credentials: Credentials, zone: str, timeouts: Timeouts) -> ScalewayClient:
    return ScalewayClient(credentials, zone, timeouts=timeouts)


class NodeStopped(Exception):
    """A node does not get past a stage. The message is its diagnosis."""


@contextmanager
def diagnosed(fault: str, stage: Stage, props: Mapping[str, Any], **ids: str) -> Iterator[None]:
    """Explains what Scaleway refuses meanwhile by a fault of `fleet.diagnosis`, in the words of the gate.

    `ids` are those of its hints. Raises NodeStopped.
    """
    try:
        yield
    except ScalewayError as error:
        # Loaded when something is wrong: it takes longer than a preview may.
        from fleet.diagnosis import Context, Fault, Hints, diagnose  # noqa: PLC0415

        seen, mend = error.told
        context = Context(props["node"], "scaleway", Hints(zone=props["zone"], **ids))
        found = diagnose(Fault[fault], stage, context, [seen, f"Mend: {mend}"])
        raise NodeStopped(str(found)) from None


def _owner(props: Mapping[str, Any]) -> str:
    return f"{OWNER_TAG}={props['owner']}"


# --- owner ----------------------------------------------------------------------------------------------


class NodeOwnerProvider(ScalewayProvider):
    replace_on = frozenset({"zone"})

    def create(self, props: dict[str, Any]) -> CreateResult:
        Progress(props["node"]).reached(Stage.REQUEST_CREATE)
        # The words are for people; the random part keeps two stacks of one name apart.
        return CreateResult(f"{props['label']}/{uuid.uuid4().hex[:12]}", {**props, "surplus": []})

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        return ReadResult(id_, {**props, "surplus": self._surplus(id_, props)})

    def diff(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        found = super().diff(id_, olds, news)
        found.changes = found.changes or bool(olds.get("surplus"))
        return found

    def update(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        client = self.client(news)
        for server_id in self._surplus(id_, news):
            _delete_server(client, server_id, None)
        return UpdateResult({**news, "surplus": []})

    def _surplus(self, id_: str, props: Mapping[str, Any]) -> list[str]:
        """Servers that no state knows and none will adopt: left by a request that took effect after all."""
        servers = self.client(props).list_servers(tags=[f"{OWNER_TAG}={id_}"])
        pending = [server.id for server in servers if PENDING_TAG in server.tags]
        # With no server in state yet, the oldest pending one is adopted by the next create.
        return pending if len(pending) < len(servers) else pending[1:]

    def delete(self, id_: str, props: dict[str, Any]) -> None:
        client, tag = self.client(props), f"{OWNER_TAG}={id_}"
        for server in client.list_servers(tags=[tag]):
            _delete_server(client, server.id, server.root_volume_id)
        for volume in client.list_volumes(tags=[tag]):
            client.delete_volume(volume.id)
        for ip in client.list_ips(tags=[tag]):
            client.delete_ip(ip.id)
        for group in client.list_security_groups(tags=[tag]):
            client.delete_security_group(group.id)


class NodeOwner(Resource, module="scaleway", name="NodeOwner"):
    """The id by which everything of one node is found again, whatever happened to the program.

    It is in state before the first object is created, so an operation that died half-way can be picked up;
    and it goes last, so that deleting a node also deletes what never made it into state.
    """

    def __init__(self, name: str, *, zone: str, node: str, label: str, opts: pulumi.ResourceOptions) -> None:
        props: dict[str, Any] = {"zone": zone, "node": node, "label": label, "surplus": None}
        super().__init__(NodeOwnerProvider(), name, props, opts)


# --- security group -------------------------------------------------------------------------------------


POLICY: Mapping[str, Any] = {
    "stateful": True,
    "inbound_default_policy": "drop",
    "outbound_default_policy": "accept",
    "enable_default_security": True,
}
"""What a group does with traffic that no rule is about: as it is made, and as it has to stay."""


class SecurityGroupProvider(ScalewayProvider):
    replace_on = frozenset({"zone"})
    update_on = frozenset({"name", "tags", "rules", *POLICY})

    def differs(self, key: str, olds: Mapping[str, Any], news: Mapping[str, Any]) -> bool:
        if key == "rules":  # all of them accept, so their order means nothing
            return not same_rules(_rules(olds), _rules(news))
        return super().differs(key, olds, news)

    def create(self, props: dict[str, Any]) -> CreateResult:
        client = self.client(props)
        group = client.create_security_group(
            props["name"], tags=[*props["tags"], _owner(props)], owner_tag=_owner(props)
        )
        client.set_rules(group.id, _rules(props))
        Progress(props["node"]).reached(Stage.PROVIDER_CREATE, f"security group {group.id}")
        return CreateResult(group.id, self._seen(client, client.get_security_group(group.id), props))

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        client = self.client(props)
        group = client.find_security_group(id_, owner_tag=_owner(props))
        return gone() if group is None else ReadResult(id_, self._seen(client, group, props))

    def update(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        client = self.client(news)
        client.update_security_group(
            id_,
            name=news["name"],
            tags=[*news["tags"], _owner(news)],
            **{key: news[key] for key in POLICY},
        )
        client.set_rules(id_, _rules(news))
        return UpdateResult(self._seen(client, client.get_security_group(id_), news))

    def delete(self, id_: str, props: dict[str, Any]) -> None:
        client = self.client(props)
        # A server that never reached the state still uses the group, and nobody else will delete it.
        for server in client.list_servers(tags=[_owner(props), PENDING_TAG]):
            _delete_server(client, server.id, server.root_volume_id)
        client.delete_security_group(id_)

    def _seen(self, client: ScalewayClient, group: Group, props: Mapping[str, Any]) -> dict[str, Any]:
        return {
            **props,
            "name": group.name,
            "tags": [tag for tag in group.tags if tag != _owner(props)],
            **{key: getattr(group, key) for key in POLICY},
            "rules": [_plain(rule) for rule in client.list_rules(group.id)],
        }


def _plain(rule: Rule) -> dict[str, Any]:
    """A rule as state shows it; what is not stated is as in the rules this program makes."""
    port = [rule.dest_port_from, rule.dest_port_to or rule.dest_port_from]
    usual = (rule.direction, rule.action) == ("inbound", "accept")
    return {
        "protocol": rule.protocol,
        "port": port[0] if port[0] == port[1] else port,
        "cidr": rule.ip_range,
        **({} if usual else {"direction": rule.direction, "action": rule.action}),
    }


def _rules(props: Mapping[str, Any]) -> list[Rule]:
    """The inverse of `_plain`, over a resource's rules."""
    rules = []
    for rule in props["rules"]:
        first, last = rule["port"] if isinstance(rule["port"], list) else (rule["port"], rule["port"])
        rules.append(
            Rule(
                ip_range=rule["cidr"],
                dest_port_from=None if first is None else int(first),
                dest_port_to=None if last is None else int(last),
                protocol=rule["protocol"],
                direction=rule.get("direction", "inbound"),
                action=rule.get("action", "accept"),
            )
        )
    return rules


class SecurityGroup(Resource, module="scaleway", name="SecurityGroup"):
    """A stateful group that drops everything inbound but the rules given."""

    def __init__(
        self,
        name: str,
        *,
        zone: str,
        node: str,
        owner: Input[str],
        label: str,
        tags: Sequence[str],
        openings: Sequence[Opening],
        opts: pulumi.ResourceOptions,
    ) -> None:
        rules = [
            {"protocol": "TCP", "port": opening.port, "cidr": cidr}
            for opening in openings
            for cidr in opening.cidrs
        ]
        props: dict[str, Any] = {
            "zone": zone,
            "node": node,
            "owner": owner,
            "name": label,
            "tags": list(tags),
            **POLICY,
            "rules": rules,
        }
        super().__init__(SecurityGroupProvider(), name, props, opts)


# --- server ---------------------------------------------------------------------------------------------


class ServerProvider(ScalewayProvider):
    # User data is not compared: it acts at the first boot alone. What of it shapes the host is in the digest.
    replace_on = frozenset({"zone", "commercial_type", "image", "host_digest"})
    update_on = frozenset({"name", "tags", "security_group_id"})

    def create(self, props: dict[str, Any]) -> CreateResult:
        client = self.client(props)
        self._clear_misfits(client, props)
        server = client.create_server(
            props["name"],
            commercial_type=props["commercial_type"],
            image=props["image"],
            tags=[*props["tags"], _owner(props), PENDING_TAG],
            owner_tag=_owner(props),
            adopt_tag=PENDING_TAG,
            security_group=props["security_group_id"],
        )
        # The volume that the image brings is listed by the server; nothing in the request named it.
        root_volume_id = sbs_root_volume_id(client.get_server(server.id))
        client.set_user_data(server.id, "cloud-init", props["user_data"].encode())
        Progress(props["node"]).reached(
            Stage.PROVIDER_CREATE, f"server {server.id} stopped, root volume {root_volume_id}"
        )
        return CreateResult(server.id, {**props, "root_volume_id": root_volume_id})

    def _clear_misfits(self, client: ScalewayClient, props: Mapping[str, Any]) -> None:
        """Remove what an interrupted create left when the configuration has changed since."""
        for server in client.list_servers(tags=[_owner(props), PENDING_TAG]):
            if (server.commercial_type, server.image_id) != (props["commercial_type"], props["image"]):
                _delete_server(client, server.id, server.root_volume_id)

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        server = self.client(props).find_server(id_, owner_tag=_owner(props))
        if server is None:
            return gone()
        ours = {_owner(props), PENDING_TAG}
        return ReadResult(
            id_,
            {
                **props,
                "name": server.name,
                "commercial_type": server.commercial_type,
                "image": server.image_id,
                "tags": [tag for tag in server.tags if tag not in ours],
                "security_group_id": server.security_group_id,
                "root_volume_id": server.root_volume_id or props["root_volume_id"],
            },
        )

    def update(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        client = self.client(news)
        client.update_server(
            id_,
            name=news["name"],
            tags=[*news["tags"], _owner(news)],
            security_group=news["security_group_id"],
        )
        return UpdateResult({**news, "root_volume_id": olds["root_volume_id"]})

    def delete(self, id_: str, props: dict[str, Any]) -> None:
        _delete_server(self.client(props), id_, props.get("root_volume_id"))


def _delete_server(client: ScalewayClient, server_id: str, root_volume_id: str | None) -> None:
    """Remove a server and the SBS volume it came with; terminating alone leaves the volume, which bills."""
    server = client.find_server(server_id)
    if server is not None:
        root_volume_id = server.root_volume_id or root_volume_id
        if server.state in ("starting", "stopping") and server.state_detail != "terminating":
            # Scaleway refuses every action while another is under way.
            settled = {"running", "stopped", "stopped in place"}
            server = client.wait_server(server_id, until=settled, deadline_s=STOP_DEADLINE_S)
        if server.state == "stopped":
            client.delete_server(server_id)
        elif server.state_detail != "terminating":
            client.server_action(server_id, "terminate")
        client.wait_server_gone(server_id, deadline_s=STOP_DEADLINE_S)
    if root_volume_id is not None:
        client.delete_volume_once_detached(root_volume_id, deadline_s=DETACH_DEADLINE_S)


class Server(Resource, module="scaleway", name="Server"):
    """A machine created stopped, from an image alone, with its user data."""

    root_volume_id: Output[str]

    def __init__(
        self,
        name: str,
        *,
        zone: str,
        node: str,
        owner: Input[str],
        label: str,
        tags: Sequence[str],
        commercial_type: str,
        image: str,
        security_group_id: Input[str],
        user_data: Input[str],
        host_digest: str,
        opts: pulumi.ResourceOptions,
    ) -> None:
        props: dict[str, Any] = {
            "zone": zone,
            "node": node,
            "owner": owner,
            "name": label,
            "tags": list(tags),
            "commercial_type": commercial_type,
            "image": image,
            "security_group_id": security_group_id,
            "user_data": user_data,
            "host_digest": host_digest,
            "root_volume_id": None,
        }
        super().__init__(ServerProvider(), name, props, opts)


# --- root volume ----------------------------------------------------------------------------------------


def _too_large(size_gb: float, wanted_gb: float) -> str:
    return (
        f"root_volume_gb: {wanted_gb:g} is smaller than the {size_gb:g} GB the volume has, and a volume only "
        f"grows. Set root_volume_gb: {size_gb:g}, or rename the node to get a new machine"
    )


class RootVolumeProvider(ScalewayProvider):
    replace_on = frozenset({"zone", "volume_id"})
    update_on = frozenset({"size_gb"})

    def failures(self, olds: Mapping[str, Any], news: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
        wanted = news["size_gb"]
        if wanted < MINIMUM_ROOT_VOLUME_GB:
            yield (
                "size_gb",
                f"root_volume_gb: {wanted:g} is below Scaleway's working minimum of {MINIMUM_ROOT_VOLUME_GB}",
            )
        same_volume = olds.get("volume_id") == news.get("volume_id")
        if same_volume and wanted < olds.get("size_gb", 0):
            yield "size_gb", _too_large(olds["size_gb"], wanted)

    def create(self, props: dict[str, Any]) -> CreateResult:
        return CreateResult(props["volume_id"], self._grown(props["volume_id"], props))

    def update(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        return UpdateResult(self._grown(id_, news))

    def _grown(self, volume_id: str, props: dict[str, Any]) -> dict[str, Any]:
        client, wanted = self.client(props), int(props["size_gb"]) * GB
        stage = Stage.PROVIDER_VOLUME_RESIZE
        with diagnosed("VOLUME_NOT_GROWN", stage, props, volume_id=volume_id):
            settled = {"in_use", "available"}
            volume = client.wait_volume(volume_id, until=settled, deadline_s=RESIZE_DEADLINE_S)
            if volume.size < wanted:
                Progress(props["node"]).reached(stage, f"{volume.size // GB} → {wanted // GB} GB")
                client.grow_volume(volume_id, wanted, tags=[*volume.tags, _owner(props)])
                volume = client.wait_volume_size(volume_id, wanted, deadline_s=RESIZE_DEADLINE_S)
        if volume.size > wanted:
            raise ValueError(_too_large(volume.size // GB, props["size_gb"]))
        return {**props, "size_gb": volume.size // GB}

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        volume = self.client(props).find_volume(id_, owner_tag=_owner(props))
        return gone() if volume is None else ReadResult(id_, {**props, "size_gb": volume.size // GB})

    def delete(self, id_: str, props: dict[str, Any]) -> None:
        """A volume in use goes with its server; one whose server is gone would bill for ever."""
        client = self.client(props)
        volume = client.find_volume(id_)
        if volume is not None and volume.status == "available":
            client.delete_volume(id_)


class RootVolume(Resource, module="scaleway", name="RootVolume"):
    """The size of a server's root volume: grown before the first start or later in place, never shrunk."""

    size_gb: Output[int]

    def __init__(
        self,
        name: str,
        *,
        zone: str,
        node: str,
        owner: Input[str],
        volume_id: Input[str],
        size_gb: int,
        opts: pulumi.ResourceOptions,
    ) -> None:
        props: dict[str, Any] = {
            "zone": zone,
            "node": node,
            "owner": owner,
            "volume_id": volume_id,
            "size_gb": size_gb,
        }
        super().__init__(RootVolumeProvider(), name, props, opts)


# --- power ----------------------------------------------------------------------------------------------


class PowerProvider(ScalewayProvider):
    replace_on = frozenset({"zone", "server_id"})
    update_on = frozenset({"state"})

    def create(self, props: dict[str, Any]) -> CreateResult:
        return CreateResult(props["server_id"], self._running(props["server_id"], props))

    def update(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        return UpdateResult(self._running(id_, {**news, "started": olds.get("started")}))

    def _running(self, server_id: str, props: dict[str, Any]) -> dict[str, Any]:
        client, node = self.client(props), props["node"]
        server = client.get_server(server_id)
        if PENDING_TAG in server.tags:
            # The server is in state now: from here on it is ours, and never adopted again.
            server = client.update_server(server_id, tags=[tag for tag in server.tags if tag != PENDING_TAG])
        if server.state == "stopping":
            server = client.wait_server(
                server_id, until={"stopped", "stopped in place"}, deadline_s=STOP_DEADLINE_S
            )
        was_running = server.state == "running"
        if not was_running:
            Progress(node).reached(Stage.PROVIDER_START)
            with diagnosed("SERVER_NOT_STARTED", Stage.PROVIDER_START, props, server_id=server_id):
                if server.state != "starting":
                    client.server_action(server_id, "poweron")
                client.wait_server(server_id, until={"running"}, deadline_s=START_DEADLINE_S)
        address = client.wait_public_ip(server_id, deadline_s=START_DEADLINE_S)
        Progress(node).reached(Stage.PROVIDER_GET_IP, address)
        Progress(node).reached(Stage.PROVIDER_SECURITY_GROUP, server.security_group_id or "")
        started = props.get("started") if was_running else uuid.uuid4().hex[:12]
        return {**props, "state": "running", "public_ip": address, "started": started or "before"}

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        server = self.client(props).find_server(id_)
        if server is None:
            return gone()
        return ReadResult(id_, {**props, "state": server.state, "public_ip": server.public_ip})

    def delete(self, id_: str, props: dict[str, Any]) -> None:
        """Nothing: a server is stopped by its own deletion, without the minute a power-off takes."""


class Power(Resource, module="scaleway", name="Power"):
    """That a server runs, and the public address it has while it does."""

    public_ip: Output[str]
    started: Output[str]
    """Changes whenever this resource starts the machine."""

    def __init__(
        self, name: str, *, zone: str, node: str, server_id: Input[str], opts: pulumi.ResourceOptions
    ) -> None:
        props: dict[str, Any] = {
            "zone": zone,
            "node": node,
            "server_id": server_id,
            "state": "running",
            "public_ip": None,
            "started": None,
        }
        super().__init__(PowerProvider(), name, props, opts)


# --- host keys ------------------------------------------------------------------------------------------


class HostKeysProvider(ScalewayProvider):
    replace_on = frozenset({"zone", "server_id"})

    def create(self, props: dict[str, Any]) -> CreateResult:
        server_id, stage = props["server_id"], Stage.WORKER_SSH_ACCESSIBLE
        with diagnosed("HOST_KEY_NOT_PUBLISHED", stage, props, server_id=server_id):
            published = self.client(props).wait_user_data(
                server_id, HOST_KEYS_KEY, deadline_s=float(props["deadline_s"]), good=_host_keys
            )
        return CreateResult(server_id, {**props, "keys": _host_keys(published)})

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        # Pinned on purpose: a machine that later publishes another key must not be trusted by that.
        return ReadResult(id_, props) if self.client(props).find_server(id_) else gone()

    def delete(self, id_: str, props: dict[str, Any]) -> None:
        """Nothing: the keys are the machine's."""


def _host_keys(published: bytes) -> list[str]:
    """Type and key of each line that is one."""
    lines = published.decode(errors="replace").splitlines()
    return [" ".join(line.split()[:2]) for line in lines if line.startswith("ssh-") and len(line.split()) > 1]


class HostKeys(Resource, module="scaleway", name="HostKeys"):
    """The SSH host keys a machine published through Scaleway's authenticated API, pinned from then on."""

    keys: Output[Sequence[str]]

    def __init__(
        self,
        name: str,
        *,
        zone: str,
        node: str,
        server_id: Input[str],
        deadline_s: int,
        opts: pulumi.ResourceOptions,
    ) -> None:
        props: dict[str, Any] = {
            "zone": zone,
            "node": node,
            "server_id": server_id,
            "deadline_s": deadline_s,
            "keys": None,
        }
        super().__init__(HostKeysProvider(), name, props, opts)
