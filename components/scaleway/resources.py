"""Scaleway's part of a node as dynamic resources: each owns one thing and touches nothing else.

| resource        | owns                                                              |
|-----------------|-------------------------------------------------------------------|
| `SecurityGroup` | the group and its inbound rules                                   |
| `Server`        | the machine: type, image, tags, user data; never size nor power    |
| `RootVolume`    | the size of the SBS volume the image came with                    |
| `Power`         | that the machine runs, and the address it then has                |
| `HostKeys`      | the SSH host keys the machine published                           |

They are thin adapters over `api.ScalewayClient`; a reader looking for HTTP finds it there. None of them
deletes anything: what was replaced or left over is removed by `components.ownership` once its successor
serves, and everything else with the stack.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pulumi
from pulumi import Input, Output
from pulumi.dynamic import CheckResult, ConfigureRequest, CreateResult, ReadResult, Resource, UpdateResult

from components.dynamic import CloudProvider, gone
from components.ownership import not_ours
from components.scaleway.api import Rule, ScalewayClient, same_rules, sbs_root_volume_id
from components.scaleway.calls import merged
from components.scaleway.credentials import Credentials
from components.scaleway.errors import ScalewayError, in_operation
from components.scaleway.models import SecurityGroup as Group
from components.scaleway.models import Server as FoundServer
from components.scaleway.owned import GB, STOP_DEADLINE_S, client_of, delete_server, timeouts_of
from components.tags import HOST_TAG, NODE_TAG, OWNER_TAG, PENDING_TAG, value_of
from fleet.progress import Progress, Stage

if TYPE_CHECKING:
    from components.gateway import Opening

MINIMUM_ROOT_VOLUME_GB = 150
"""Below it the image, the weights and the caches do not fit together."""
HOST_KEYS_KEY = "ssh-host-public-keys"
"""User-data key under which a machine publishes its SSH host keys."""

RESIZE_DEADLINE_S = 300.0
"""A resize was seen to take up to 5 s; a minute would already be odd."""
START_DEADLINE_S = 900.0
"""GPU servers were seen to start within 31 s, any server within 114 s; scarce hardware may take longer."""
OWN_TAGS = (f"{OWNER_TAG}=", f"{HOST_TAG}=", PENDING_TAG)
"""How the tags begin that are no part of the settings."""


class ScalewayProvider(CloudProvider):
    """Adds credentials, by configuration or Scaleway's own environment and file; never by inputs."""

    def configure(self, req: ConfigureRequest) -> None:
        super().configure(req)
        self._credentials = Credentials.of_stack(lambda key: req.config.get(f"scaleway:{key}"))
        self._timeouts = timeouts_of(req.config.get)

    @staticmethod
    def explained(error: Exception, operation: str) -> Exception:
        return in_operation(error, operation)

    def client(self, props: Mapping[str, Any]) -> ScalewayClient:
        """The client of the zone that the resource lives in."""
        return client_of(self._credentials, props["zone"], self._timeouts)


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

        seen, fix = error.told
        context = Context(props["node"], "scaleway", Hints(zone=props["zone"], **ids))
        found = diagnose(Fault[fault], stage, context, [seen, f"Fix: {fix}"])
        raise NodeStopped(str(found)) from None


def _owner(props: Mapping[str, Any]) -> str:
    return f"{OWNER_TAG}={props['owner']}"


def _marks(props: Mapping[str, Any]) -> list[str]:
    """What everything of a node carries: the stack's owner id and the node's label."""
    return [_owner(props), f"{NODE_TAG}={value_of(props['tags'], NODE_TAG)}"]


def _seen_tags(tags: Sequence[str], props: Mapping[str, Any]) -> dict[str, Any]:
    """Tags as state shows them: those of the settings, and whether the object would be found by its owner."""
    return {
        "owned": _owner(props) in tags,
        "tags": [tag for tag in tags if not tag.startswith(OWN_TAGS)],
    }


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
    update_on = frozenset({"name", "owned", "tags", "rules", *POLICY})

    def differs(self, key: str, olds: Mapping[str, Any], news: Mapping[str, Any]) -> bool:
        if key == "rules":  # all of them accept, so their order means nothing
            return not same_rules(_rules(olds), _rules(news))
        return super().differs(key, olds, news)

    def create(self, props: dict[str, Any]) -> CreateResult:
        Progress(props["node"]).reached(Stage.REQUEST_CREATE)
        client = self.client(props)
        group = client.create_security_group(props["name"], tags=props["tags"], marks=_marks(props))
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
            tags=merged(news["tags"], _marks(news)),
            **{key: news[key] for key in POLICY},
        )
        client.set_rules(id_, _rules(news))
        return UpdateResult(self._seen(client, client.get_security_group(id_), news))

    def _seen(self, client: ScalewayClient, group: Group, props: Mapping[str, Any]) -> dict[str, Any]:
        return {
            **props,
            "name": group.name,
            **_seen_tags(group.tags, props),
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
            "owned": True,
            **POLICY,
            "rules": rules,
        }
        super().__init__(SecurityGroupProvider(), name, props, opts)


# --- server ---------------------------------------------------------------------------------------------


_in_state: dict[tuple[str, str], tuple[str | None, ...]] = {}
"""What kind of server state knows for a node, by owner and label: the engine has its inputs checked before it
has another one created."""


def _kind(props: Mapping[str, Any]) -> tuple[str | None, ...]:
    """What makes two servers interchangeable for a node."""
    return (*_model(props), props.get("private_network_id"))


def _model(props: Mapping[str, Any]) -> tuple[str, ...]:
    """The same without where it is reached."""
    return props["zone"], props["commercial_type"], props["image"], props["host_digest"]


SWITCHES = ("protected", "dynamic_ip_required")
"""What a server is made with and has to keep: that it is removable, and has a public address while it runs or
never has one."""


class ServerProvider(ScalewayProvider):
    # User data is not compared: it acts at the first boot alone. What of it shapes the host is in the digest.
    replace_on = frozenset({"zone", "commercial_type", "image", "host_digest", "private_network_id"})
    update_on = frozenset({"name", "owned", "tags", "security_group_id", *SWITCHES})

    def check(self, olds: dict[str, Any], news: dict[str, Any]) -> CheckResult:
        if olds:
            _in_state[_marks_key(olds)] = _kind(olds)
        return super().check(olds, news)

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Create a server, or take up one of this node's that is in no state.

        That is one left by an interrupted update, or one that state has lost although it may be serving.
        Raises NotOurs for one that another stack of the same name made.
        """
        client = self.client(props)
        server = self._taken_up(client, props) or client.create_server(
            props["name"],
            commercial_type=props["commercial_type"],
            image=props["image"],
            tags=[*props["tags"], f"{HOST_TAG}={props['host_digest']}"],
            marks=[*_marks(props), PENDING_TAG],
            security_group=props["security_group_id"],
            dynamic_ip_required=props["dynamic_ip_required"],
        )
        # The volume that the image brings is listed by the server; nothing in the request named it.
        root_volume_id = sbs_root_volume_id(client.get_server(server.id))
        # From here on the volume is found even when its server is gone.
        client.tag_volume(root_volume_id, merged(props["tags"], _marks(props)))
        if PENDING_TAG in server.tags:
            client.set_user_data(server.id, "cloud-init", props["user_data"].encode())
        Progress(props["node"]).reached(
            Stage.PROVIDER_CREATE, f"server {server.id} {server.state}, root volume {root_volume_id}"
        )
        return CreateResult(server.id, {**props, "root_volume_id": root_volume_id})

    def _taken_up(self, client: ScalewayClient, props: Mapping[str, Any]) -> FoundServer | None:
        """A server of this node that no state knows and that fits, if there is one."""
        owner, label = props["owner"], value_of(props["tags"], NODE_TAG)
        found = client.list_servers(tags=[f"{NODE_TAG}={label}"])
        if strange := [server for server in found if value_of(server.tags, OWNER_TAG) != owner]:
            raise not_ours(props["node"], label, [f"server {each.id}" for each in strange])
        for server in found:
            if PENDING_TAG in server.tags and not _fits(client, server, props):
                # Left by an interrupted create, before the settings were changed again: it never served.
                delete_server(client, server.id, server.root_volume_id)
        if _in_state.get(_marks_key(props)) == _kind(props):
            return None  # another one just like it is asked for
        lost = [each for each in found if PENDING_TAG not in each.tags and _fits(client, each, props)]
        if not lost:
            return None
        server = lost[0]
        Progress(props["node"]).reached(
            Stage.PROVIDER_CREATE,
            f"server {server.id} carries this stack's owner tag; taken instead of a new one",
        )
        return client.update_server(
            server.id,
            name=props["name"],
            tags=_all_tags(props),
            security_group=props["security_group_id"],
        )

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        server = self.client(props).find_server(id_, owner_tag=_owner(props))
        if server is None:
            return gone()
        return ReadResult(
            id_,
            {
                **props,
                "name": server.name,
                "commercial_type": server.commercial_type,
                "image": server.image_id,
                **_seen_tags(server.tags, props),
                "security_group_id": server.security_group_id,
                **{key: getattr(server, key) for key in SWITCHES},
                "root_volume_id": server.root_volume_id or props["root_volume_id"],
            },
        )

    def update(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        client = self.client(news)
        client.update_server(
            id_,
            name=news["name"],
            tags=_all_tags(news),
            security_group=news["security_group_id"],
            **{key: news[key] for key in SWITCHES},
        )
        return UpdateResult({**news, "root_volume_id": olds["root_volume_id"]})

    def delete(self, id_: str, props: dict[str, Any]) -> None:
        """Hand the server over to those who remove: see that it carries the marks by which they find it."""
        client = self.client(props)
        server = client.find_server(id_)
        if server is not None and not set(_marks(props)) <= set(server.tags):
            client.update_server(id_, tags=merged(server.tags, _marks(props)))


def _marks_key(props: Mapping[str, Any]) -> tuple[str, str]:
    return props["owner"], value_of(props["tags"], NODE_TAG)


def _all_tags(props: Mapping[str, Any]) -> list[str]:
    """Everything that a server carries once it is in state."""
    return merged(props["tags"], [*_marks(props), f"{HOST_TAG}={props['host_digest']}"])


def _fits(client: ScalewayClient, server: FoundServer, props: Mapping[str, Any]) -> bool:
    """Whether a server is what a create with these inputs makes."""
    digest = value_of(server.tags, HOST_TAG)
    if (server.zone, server.commercial_type, server.image_id, digest) != _model(props):
        return False
    network = props.get("private_network_id")
    if network is None or server.dynamic_ip_required:
        return network is None and server.dynamic_ip_required
    # One whose creation was cut short is in no network yet.
    return all(nic.private_network_id == network for nic in client.list_private_nics(server.id))


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
        private_network_id: str | None,
        opts: pulumi.ResourceOptions,
    ) -> None:
        """With a `private_network_id`, into which `PrivateNic` puts it, the server has no public address."""
        props: dict[str, Any] = {
            "zone": zone,
            "node": node,
            "owner": owner,
            "name": label,
            "tags": list(tags),
            "owned": True,
            "commercial_type": commercial_type,
            "image": image,
            "security_group_id": security_group_id,
            "protected": False,
            "dynamic_ip_required": private_network_id is None,
            "user_data": user_data,
            "host_digest": host_digest,
            "private_network_id": private_network_id,
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
    # Not the volume's id: an output of the server, which no preview of a change to the server knows.
    replace_on = frozenset({"zone", "server_id"})
    update_on = frozenset({"size_gb", "owned", "tags"})

    def failures(self, olds: Mapping[str, Any], news: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
        wanted = news["size_gb"]
        if wanted < MINIMUM_ROOT_VOLUME_GB:
            yield (
                "size_gb",
                f"root_volume_gb: {wanted:g} is below Scaleway's working minimum of {MINIMUM_ROOT_VOLUME_GB}",
            )
        same_volume = olds.get("server_id") == news.get("server_id")
        if same_volume and wanted < olds.get("size_gb", 0):
            yield "size_gb", _too_large(olds["size_gb"], wanted)

    def create(self, props: dict[str, Any]) -> CreateResult:
        # The volume that the image brings is listed by the server; nothing in the request named it.
        volume_id = sbs_root_volume_id(self.client(props).get_server(props["server_id"]))
        return CreateResult(volume_id, self._grown(volume_id, props))

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
                client.grow_volume(volume_id, wanted)
                volume = client.wait_volume_size(volume_id, wanted, deadline_s=RESIZE_DEADLINE_S)
        if volume.size > wanted:
            raise ValueError(_too_large(volume.size // GB, props["size_gb"]))
        tags = merged(props["tags"], _marks(props))
        if set(volume.tags) != set(tags):
            client.tag_volume(volume_id, tags)
        return {**props, "size_gb": volume.size // GB}

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        volume = self.client(props).find_volume(id_, owner_tag=_owner(props))
        if volume is None:
            return gone()
        return ReadResult(id_, {**props, "size_gb": volume.size // GB, **_seen_tags(volume.tags, props)})


class RootVolume(Resource, module="scaleway", name="RootVolume"):
    """The size of a server's root volume: grown before the first start or later in place, never shrunk.

    Its id is the volume's.
    """

    size_gb: Output[int]

    def __init__(
        self,
        name: str,
        *,
        zone: str,
        node: str,
        owner: Input[str],
        tags: Sequence[str],
        server_id: Input[str],
        size_gb: int,
        opts: pulumi.ResourceOptions,
    ) -> None:
        props: dict[str, Any] = {
            "zone": zone,
            "node": node,
            "owner": owner,
            "tags": list(tags),
            "owned": True,
            "server_id": server_id,
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
        private = props.get("private_ip")
        public = None if private else client.wait_public_ip(server_id, deadline_s=START_DEADLINE_S)
        Progress(node).reached(Stage.PROVIDER_GET_IP, str(public or private))
        Progress(node).reached(Stage.PROVIDER_SECURITY_GROUP, server.security_group_id or "")
        started = props.get("started") if was_running else uuid.uuid4().hex[:12]
        return {**props, "state": "running", "public_ip": public, "started": started or "before"}

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        server = self.client(props).find_server(id_)
        if server is None:
            return gone()
        return ReadResult(id_, {**props, "state": server.state, "public_ip": server.public_ip})

    def delete(self, id_: str, props: dict[str, Any]) -> None:
        """Nothing: a server that goes is terminated running, without the minute a power-off takes."""


class Power(Resource, module="scaleway", name="Power"):
    """That a server runs, and the public address it has while it does."""

    public_ip: Output[str]
    started: Output[str]
    """Changes whenever this resource starts the machine."""

    def __init__(
        self,
        name: str,
        *,
        zone: str,
        node: str,
        server_id: Input[str],
        private_ip: Input[str] | None,
        opts: pulumi.ResourceOptions,
    ) -> None:
        """`private_ip` is that of a server without a public address, for which none is waited for."""
        props: dict[str, Any] = {
            "zone": zone,
            "node": node,
            "server_id": server_id,
            "private_ip": private_ip,
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
