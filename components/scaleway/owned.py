"""What a stack owns on Scaleway, found by its owner tag; and how a server goes with everything that bills."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from components.owned import Config, Owned, Place, Removal
from components.scaleway.api import ScalewayClient, Timeouts
from components.scaleway.credentials import Credentials
from components.scaleway.errors import PermissionDenied, doing
from components.scaleway.models import PrivateNetwork, Server, Volume
from components.tags import NODE_TAG, OWNER_TAG, PENDING_TAG, given_to, value_of

CLOUD = "scaleway"
GB = 10**9
STOP_DEADLINE_S = 1200.0
"""A power-off was seen to take up to 934 s."""
DETACH_DEADLINE_S = 120.0
"""A volume was seen to stay attached for up to 6 s after its server was deleted."""
RUNNING = frozenset({"running", "starting", "stopped in place"})
"""States in which a server bills as a running one: stopped in place keeps its machine."""


def inventory(config: Config, zone: str) -> ScalewayInventory:
    """See `components.owned.inventory`. Raises CredentialsError."""
    credentials = Credentials.of_stack(lambda key: config(f"scaleway:{key}"))
    return ScalewayInventory(client_of(credentials, zone, timeouts_of(config)))


def timeouts_of(config: Config) -> Timeouts:
    """As long as `scaleway:timeout` says, in seconds."""
    seconds = config("scaleway:timeout")
    return Timeouts(read_s=float(seconds)) if seconds else Timeouts()


@lru_cache(maxsize=64)
def client_of(credentials: Credentials, zone: str, timeouts: Timeouts) -> ScalewayClient:
    """One client, with the connections it keeps open, for all that is asked of a zone."""
    return ScalewayClient(credentials, zone, timeouts=timeouts)


class ScalewayInventory:
    """The objects of one zone, and the private networks of its region."""

    def __init__(self, client: ScalewayClient) -> None:
        self._client = client
        self._place = Place(CLOUD, client.zone)

    @doing("read")
    def owned(self, owner: str) -> list[Owned]:
        client, tag = self._client, f"{OWNER_TAG}={owner}"
        servers = client.list_servers(tags=[tag])
        volumes = {volume.id: volume for volume in client.list_volumes(tags=[tag])}
        return [
            *(self._server(server) for server in servers),
            *(self._volume(volume) for volume in volumes.values()),
            # The volume of a server whose creation was cut short has no tag yet.
            *(
                self._owned("volume", server.root_volume_id, "", server.tags, belongs_to=server.id)
                for server in servers
                if server.root_volume_id and server.root_volume_id not in volumes
            ),
            *(self._owned("address", ip.id, ip.address, ip.tags) for ip in client.list_ips(tags=[tag])),
            *(
                self._owned("security group", group.id, group.name, group.tags)
                for group in client.list_security_groups(tags=[tag])
            ),
            *(
                self._owned("private network", network.id, network.name, network.tags)
                for network in self._networks(tag)
            ),
        ]

    def _networks(self, tag: str) -> Sequence[PrivateNetwork]:
        try:
            return self._client.list_private_networks(tags=[tag])
        except PermissionDenied:
            # A key without rights on VPCs has made none; and a network by itself does not bill.
            return ()

    @doing("read")
    def labelled(self, labels: Sequence[str]) -> list[Owned]:
        return [
            self._server(server)
            for label in labels
            for server in self._client.list_servers(tags=[f"{NODE_TAG}={label}"])
        ]

    def remove(self, found: Sequence[Owned]) -> None:
        removal = Removal(found)
        # Nothing goes before what holds it.
        for kind in ("server", "volume", "address", "security group", "private network"):
            removal.of(kind, self._remove)
        removal.done()

    @doing("delete")
    def _remove(self, each: Owned) -> None:
        client = self._client
        match each.kind:
            case "server":
                delete_server(client, each.id, None)
            case "volume":
                client.delete_volume_once_detached(each.id, deadline_s=DETACH_DEADLINE_S)
            case "address":
                client.delete_ip(each.id)
            case "security group":
                client.delete_security_group(each.id)
            case "private network":
                self._remove_network(each)

    def _remove_network(self, network: Owned) -> None:
        """Take what is still in it out of it, which Scaleway asks for, and delete it."""
        for server in self._client.list_servers(tags=[f"{OWNER_TAG}={network.owner}"]):
            for nic in self._client.list_private_nics(server.id):
                if nic.private_network_id == network.id:
                    self._client.delete_private_nic(server.id, nic.id)
        self._client.delete_private_network(network.id)

    def adopt(self, found: Sequence[Owned], owner: str) -> None:
        client = self._client
        for each in found:
            match each.kind:
                case "server":
                    server = client.get_server(each.id)
                    client.update_server(each.id, tags=given_to(owner, server.tags))
                case "volume":
                    volume = client.get_volume(each.id)
                    tags = [*volume.tags, *([f"{NODE_TAG}={each.label}"] if not volume.tags else [])]
                    client.tag_volume(each.id, given_to(owner, tags))
                case "security group":
                    group = client.get_security_group(each.id)
                    client.update_security_group(each.id, tags=given_to(owner, group.tags))

    def _server(self, server: Server) -> Owned:
        state = "not in state yet" if PENDING_TAG in server.tags else server.state
        return self._owned(
            "server",
            server.id,
            server.name,
            server.tags,
            detail=f"{server.commercial_type}, {state}",
            type=server.commercial_type,
            running=server.state in RUNNING,
        )

    def _volume(self, volume: Volume) -> Owned:
        size = volume.size // GB
        return self._owned(
            "volume",
            volume.id,
            volume.name,
            volume.tags,
            detail=f"{size} GB, {volume.status}",
            size_gb=size,
            belongs_to=next(iter(volume.server_ids), ""),
        )

    def _owned(
        self,
        kind: str,
        id_: str,
        name: str,
        tags: Iterable[str],
        *,
        detail: str = "",
        type: str | None = None,
        size_gb: int = 0,
        running: bool = False,
        belongs_to: str = "",
    ) -> Owned:
        tags = tuple(tags)
        return Owned(
            kind=kind,
            id=id_,
            name=name,
            label=value_of(tags, NODE_TAG),
            place=self._place,
            owner=value_of(tags, OWNER_TAG),
            detail=detail,
            type=type,
            size_gb=size_gb,
            running=running,
            belongs_to=belongs_to,
        )


def delete_server(client: ScalewayClient, server_id: str, root_volume_id: str | None) -> None:
    """Remove a server and the SBS volume it came with; terminating alone leaves the volume, which bills."""
    server = client.find_server(server_id)
    if server is not None:
        root_volume_id = server.root_volume_id or root_volume_id
        if root_volume_id is not None:
            _tag_before(client, server, root_volume_id)
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


def _tag_before(client: ScalewayClient, server: Server, volume_id: str) -> None:
    """Give the volume its server's marks while there is one: alone, it is found by nothing else."""
    marks = [tag for tag in server.tags if tag.startswith((f"{OWNER_TAG}=", f"{NODE_TAG}="))]
    volume = client.find_volume(volume_id)
    if volume is not None and not set(marks) <= set(volume.tags):
        client.tag_volume(volume_id, [*volume.tags, *(tag for tag in marks if tag not in volume.tags)])
