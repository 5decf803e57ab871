"""The clouds that every promise is tried on: what a test has to know of each to try the same on all."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from harness import wait_for

from simcloud import aws
from simcloud.linode import DEV_TOKEN
from simcloud.testing import SimCloud

PASSING = ("429", "500", "503", "timeout", "reset", "lost_reply")
"""Faults that are over when the same call is sent again."""
LASTING = ("403", "quota", "out_of_stock")
READ_TIMEOUT_S = "3"
"""Seconds that the clients wait for a reply in a test: no call of an embedded cloud takes as long."""
FIRST_READ_TIMEOUT_S = "20"
"""The same for AWS, where moto loads a service when it is asked for it first."""


@dataclass(frozen=True)
class Change:
    """What someone does to a node in its cloud's console."""

    node: str
    """Name of the node that it is tried on."""
    make: Callable[[SimCloud, str], None]
    part: str
    """The resource that has to show it."""
    follow: Mapping[str, Any] | None = None
    """What the configuration has to be changed to, where the program cannot undo it."""


@dataclass(frozen=True)
class Call:
    """A call of an API, as faults are planted on it."""

    said: str
    """How an error names it."""
    fails: tuple[str, ...] = LASTING
    """Kinds of faults that end in an error; after others it is sent again."""


Moment = tuple[str, str] | tuple[str, str, int]
"""A call, whether it is held before or after its effect, and how many such calls of the node pass before."""


@dataclass(frozen=True)
class Cloud:
    """One cloud, as the tests know it."""

    node: Mapping[str, Any]
    """Settings of a small node."""
    root_volume_gb: int
    provider: Callable[[SimCloud], dict[str, Any]]
    """Settings of its provider."""
    secrets: Mapping[str, str]
    """Settings of its provider that nobody may see."""
    parts: frozenset[str]
    """Kinds of the objects that a node consists of, one of each."""
    doors: Callable[[SimCloud, str], set[tuple[int, str]]]
    """(port, range) of what its firewall lets in to a node."""
    changes: tuple[Change, ...]
    host_part: Mapping[str, Any]
    """A change of the settings that needs a new machine."""
    grows: bool
    """Whether a root volume can grow in place."""
    refused_sizes: Mapping[int, str]
    """Root volumes that a node with the settings above cannot have, and what is said."""
    create_server: str
    """The call that makes a machine."""
    creating: Mapping[str, Call]
    """Calls of `up`."""
    deleting: Mapping[str, Call]
    """Calls of `destroy`."""
    removed_by_owner: bool
    """Whether the stack's owner removes its objects, rather than the engine one by one."""
    moments: tuple[tuple[str, str], ...]
    """Calls at which the engine is killed: before their effect (hold) or after it (hold_after)."""
    replacing: tuple[tuple[Moment, ...], ...] = ()
    """The same for machines that are replaced, row by row: its successor comes, then it goes itself."""
    destroying: tuple[tuple[Moment, ...], ...] = ()
    """The same for the removal of everything; the moments of one row can be met at the same time."""


def _id(cloud: SimCloud, kind: str, node: str) -> str:
    (found,) = [thing for thing in cloud.inventory(kind) if thing["node"] == node]
    return str(found["id"])


def _door(port: Any, cidr: str) -> tuple[int, str]:
    return int(port), str(ipaddress.ip_network(cidr))


# --- Scaleway -------------------------------------------------------------------------------------------


def scaleway(cloud: SimCloud, method: str, path: str, body: Any = None) -> Any:
    """A call of Scaleway's console; `path` begins with the API: `instance/…` or `block/…`."""
    api, _, rest = path.partition("/")
    url = f"{cloud.scaleway_url}/{api}/v1/zones/fr-par-2/{rest}"
    reply = httpx.request(method, url, json=body, headers={"X-Auth-Token": cloud.secret_key})
    reply.raise_for_status()
    return reply.json() if reply.content else None


def _scaleway_server(cloud: SimCloud, node: str) -> str:
    return f"instance/servers/{_id(cloud, 'server', node)}"


def _scaleway_group(cloud: SimCloud, node: str) -> str:
    return f"instance/security_groups/{_id(cloud, 'security_group', node)}"


def _scaleway_act(action: str, state: str | None) -> Callable[[SimCloud, str], None]:
    def act(cloud: SimCloud, node: str) -> None:
        server = _scaleway_server(cloud, node)
        scaleway(cloud, "POST", f"{server}/action", {"action": action})

        def done() -> bool:
            if state is None:
                return node not in [thing["node"] for thing in cloud.inventory("server")]
            return bool(scaleway(cloud, "GET", server)["server"]["state"] == state)

        wait_for(done, f"the server of {node} to be {state or 'gone'}")

    return act


def _scaleway_open(cloud: SimCloud, node: str) -> None:
    rule = {"action": "accept", "protocol": "TCP", "direction": "inbound", "ip_range": "0.0.0.0/0"}
    rules = [{**rule, "dest_port_from": 8000, "position": 1}]
    scaleway(cloud, "PUT", f"{_scaleway_group(cloud, node)}/rules", {"rules": rules})


def _scaleway_accept(cloud: SimCloud, node: str) -> None:
    scaleway(cloud, "PATCH", _scaleway_group(cloud, node), {"inbound_default_policy": "accept"})


def _scaleway_rename(cloud: SimCloud, node: str) -> None:
    scaleway(cloud, "PATCH", _scaleway_server(cloud, node), {"name": "mine now"})


def _scaleway_grow(cloud: SimCloud, node: str) -> None:
    volume = f"block/volumes/{_id(cloud, 'volume', node)}"
    scaleway(cloud, "PATCH", volume, {"size": 250 * 10**9})
    # While it is being resized, it still shows its former size.
    wait_for(lambda: scaleway(cloud, "GET", volume)["size"] == 250 * 10**9, "the volume to have grown")


def _scaleway_doors(cloud: SimCloud, node: str) -> set[tuple[int, str]]:
    group = _scaleway_group(cloud, node)
    assert scaleway(cloud, "GET", group)["security_group"]["inbound_default_policy"] == "drop"
    rules = scaleway(cloud, "GET", f"{group}/rules")["rules"]
    return {_door(rule["dest_port_from"], rule["ip_range"]) for rule in rules if rule["editable"]}


def _own(*calls: str) -> dict[str, Call]:
    """Calls of this program's own client, which sends every one of them again as long as it makes sense."""
    return {call: Call(call) for call in calls}


SCALEWAY = Cloud(
    node={"zone": "fr-par-2", "type": "L4-1-24G", "root_volume_gb": 200},
    root_volume_gb=200,
    provider=lambda cloud: {
        "scaleway:apiUrl": cloud.scaleway_url,
        "scaleway:projectId": cloud.project,
        "scaleway:accessKey": "SCWXXXXXXXXXXXXXXXXX",
        "scaleway:zone": "fr-par-2",
        "scaleway:timeout": int(READ_TIMEOUT_S),
    },
    secrets={"scaleway:secretKey": SimCloud.secret_key},
    parts=frozenset({"server", "volume", "security_group"}),
    doors=_scaleway_doors,
    changes=(
        Change("port-opened", _scaleway_open, "security-group"),
        Change("all-let-in", _scaleway_accept, "security-group"),
        Change("powered-off", _scaleway_act("poweroff", "stopped"), "power"),
        Change("renamed", _scaleway_rename, "server"),
        Change("grown", _scaleway_grow, "root-volume", follow={"root_volume_gb": 250}),
        Change("terminated", _scaleway_act("terminate", None), "server"),
    ),
    host_part={"type": "L4-2-24G"},
    grows=True,
    refused_sizes={120: "working minimum of 150", 180: "a volume only grows"},
    create_server="create_server",
    creating=_own(
        "list_security_groups",
        "create_security_group",
        "set_rules",
        "get_security_group",
        "list_rules",
        "list_servers",
        "create_server",
        "get_server",
        "set_user_data",
        "get_volume",
        "update_volume",
        "update_server",
        "server_action",
        "get_user_data",
    ),
    deleting=_own(
        "list_servers",
        "list_volumes",
        "list_ips",
        "list_security_groups",
        "get_server",
        "server_action",
        "get_volume",
        "delete_volume",
        "delete_security_group",
    ),
    removed_by_owner=True,
    moments=(
        ("create_security_group", "hold"),
        ("create_security_group", "hold_after"),
        ("set_rules", "hold_after"),
        ("create_server", "hold"),
        ("create_server", "hold_after"),
        ("set_user_data", "hold"),
        ("set_user_data", "hold_after"),
        ("update_volume", "hold_after"),
        ("update_server", "hold_after"),
        ("server_action", "hold"),
        ("server_action", "hold_after"),
        ("get_user_data", "hold"),
    ),
    replacing=(
        (
            ("create_server", "hold"),
            ("create_server", "hold_after"),
            ("set_user_data", "hold"),
            ("set_user_data", "hold_after"),
            ("update_volume", "hold_after"),
            ("update_volume", "hold_after", 1),
            ("update_server", "hold_after"),
            ("server_action", "hold"),
            ("server_action", "hold_after"),
            ("get_user_data", "hold"),
        ),
        (
            ("server_action", "hold", 1),
            ("server_action", "hold_after", 1),
            ("delete_volume", "hold"),
            ("delete_volume", "hold_after"),
        ),
    ),
    destroying=(
        (
            ("get_volume", "hold"),
            ("server_action", "hold"),
            ("server_action", "hold_after"),
            ("delete_volume", "hold"),
            ("delete_volume", "hold_after"),
        ),
        (("delete_security_group", "hold"), ("delete_security_group", "hold_after")),
    ),
)


# --- Linode ---------------------------------------------------------------------------------------------


def linode(cloud: SimCloud, method: str, path: str, body: Any = None) -> Any:
    """A call of Linode's Cloud Manager."""
    headers = {"Authorization": f"Bearer {DEV_TOKEN}"}
    return httpx.request(method, f"{cloud.linode_url}/v4{path}", json=body, headers=headers).json()


def _linode_server(cloud: SimCloud, node: str) -> str:
    return f"/linode/instances/{_id(cloud, 'server', node)}"


def _linode_firewall(cloud: SimCloud, node: str) -> str:
    return f"/networking/firewalls/{_id(cloud, 'firewall', node)}"


def _linode_open(cloud: SimCloud, node: str) -> None:
    rules = {"inbound": [], "outbound": [], "inbound_policy": "ACCEPT", "outbound_policy": "ACCEPT"}
    linode(cloud, "PUT", f"{_linode_firewall(cloud, node)}/rules", rules)


def _linode_close_outbound(cloud: SimCloud, node: str) -> None:
    firewall = _linode_firewall(cloud, node)
    rules = linode(cloud, "GET", f"{firewall}/rules")
    linode(cloud, "PUT", f"{firewall}/rules", {**rules, "outbound_policy": "DROP"})


def _linode_disable_firewall(cloud: SimCloud, node: str) -> None:
    linode(cloud, "PUT", _linode_firewall(cloud, node), {"status": "disabled"})


def _linode_untag(cloud: SimCloud, node: str) -> None:
    linode(cloud, "PUT", _linode_server(cloud, node), {"tags": []})


def _linode_erase_comments(cloud: SimCloud, node: str) -> None:
    server = _linode_server(cloud, node)
    (profile,) = linode(cloud, "GET", f"{server}/configs")["data"]
    linode(cloud, "PUT", f"{server}/configs/{profile['id']}", {"comments": ""})


def _linode_detach(cloud: SimCloud, node: str) -> None:
    devices = f"{_linode_firewall(cloud, node)}/devices"
    (device,) = linode(cloud, "GET", devices)["data"]
    linode(cloud, "DELETE", f"{devices}/{device['id']}")


def _linode_shut_down(cloud: SimCloud, node: str) -> None:
    server = _linode_server(cloud, node)
    linode(cloud, "POST", f"{server}/shutdown", {})
    wait_for(lambda: linode(cloud, "GET", server)["status"] == "offline", f"{node} to be off")


def _linode_rename(cloud: SimCloud, node: str) -> None:
    linode(cloud, "PUT", _linode_server(cloud, node), {"label": "mine-now"})


def _linode_delete_firewall(cloud: SimCloud, node: str) -> None:
    linode(cloud, "DELETE", _linode_firewall(cloud, node))


def _linode_delete(cloud: SimCloud, node: str) -> None:
    linode(cloud, "DELETE", _linode_server(cloud, node))
    wait_for(lambda: node not in [thing["node"] for thing in cloud.inventory("server")], f"{node} to be gone")


def _linode_doors(cloud: SimCloud, node: str) -> set[tuple[int, str]]:
    (firewall,) = linode(cloud, "GET", f"{_linode_server(cloud, node)}/firewalls")["data"]
    rules = firewall["rules"]
    assert rules["inbound_policy"] == "DROP"
    return {
        _door(rule["ports"], cidr)
        for rule in rules["inbound"]
        for cidrs in rule["addresses"].values()
        for cidr in cidrs
    }


UNCLEAR = ("500", "timeout", "reset", "lost_reply")
"""After these a call may have taken effect. What makes something on Linode is not sent twice then, for its
API knows no client tokens."""

LINODE = Cloud(
    node={"region": "us-ord", "type": "g2-gpu-rtx4000a1-s"},
    root_volume_gb=549,  # the plan's own 512 GiB
    provider=lambda cloud: {"linode:url": cloud.linode_url},
    secrets={"linode:token": DEV_TOKEN},
    parts=frozenset({"server", "firewall"}),
    doors=_linode_doors,
    changes=(
        Change("all-let-in", _linode_open, "firewall"),
        Change("nothing-let-out", _linode_close_outbound, "firewall"),
        Change("firewall-off", _linode_disable_firewall, "firewall"),
        Change("untagged", _linode_untag, "server"),
        Change("note-erased", _linode_erase_comments, "power"),
        Change("detached", _linode_detach, "firewall-attachment"),
        Change("powered-off", _linode_shut_down, "power"),
        Change("renamed", _linode_rename, "server"),
        Change("unprotected", _linode_delete_firewall, "firewall"),
        Change("terminated", _linode_delete, "server"),
    ),
    host_part={"driver_branch": 570},
    grows=False,
    refused_sizes={600: "is more than the disk of g2-gpu-rtx4000a1-s, 549 GB"},
    create_server="create_instance",
    creating={
        "create_firewall": Call("POST /networking/firewalls", (*LASTING, *UNCLEAR)),
        "list_firewall_devices": Call("GET /networking/firewalls"),
        "create_instance": Call("POST /linode/instances", (*LASTING, *UNCLEAR)),
        "get_instance": Call("GET /linode/instances"),
        "list_configs": Call("GET /linode/instances"),
    },
    deleting={
        "list_instances": Call("GET /linode/instances"),
        "list_firewalls": Call("GET /networking/firewalls"),
        "get_instance": Call("GET /linode/instances"),
        "delete_instance": Call("DELETE /linode/instances"),
        "delete_firewall": Call("DELETE /networking/firewalls"),
    },
    removed_by_owner=True,
    moments=(
        ("create_firewall", "hold"),
        ("create_firewall", "hold_after"),
        ("list_firewall_devices", "hold"),
        ("create_instance", "hold"),
        ("create_instance", "hold_after"),
        ("get_instance", "hold"),
        ("update_config", "hold"),
        ("update_config", "hold_after"),
    ),
    replacing=(
        (
            ("create_instance", "hold"),
            ("create_instance", "hold_after"),
            ("update_config", "hold"),
            ("update_config", "hold_after"),
        ),
        (("delete_instance", "hold"), ("delete_instance", "hold_after")),
    ),
    destroying=(
        (("get_instance", "hold"), ("delete_instance", "hold"), ("delete_instance", "hold_after")),
        (("delete_firewall", "hold_after"),),
    ),
)


# --- AWS ------------------------------------------------------------------------------------------------


def _aws_open(cloud: SimCloud, node: str) -> None:
    world = {"IpProtocol": "tcp", "FromPort": 8000, "ToPort": 8000, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    group = _id(cloud, "security_group", node)
    cloud.console("ec2").authorize_security_group_ingress(GroupId=group, IpPermissions=[world])


def _aws_stop(cloud: SimCloud, node: str) -> None:
    cloud.console("ec2").stop_instances(InstanceIds=[_id(cloud, "server", node)])


def _aws_rename(cloud: SimCloud, node: str) -> None:
    tags = [{"Key": "Name", "Value": "mine now"}]
    cloud.console("ec2").create_tags(Resources=[_id(cloud, "server", node)], Tags=tags)


def _aws_expose_metadata(cloud: SimCloud, node: str) -> None:
    cloud.console("ec2").modify_instance_metadata_options(
        InstanceId=_id(cloud, "server", node), HttpTokens="optional", HttpPutResponseHopLimit=2
    )


def _aws_grow(cloud: SimCloud, node: str) -> None:
    cloud.console("ec2").modify_volume(VolumeId=_id(cloud, "volume", node), Size=250)


def _aws_terminate(cloud: SimCloud, node: str) -> None:
    cloud.console("ec2").terminate_instances(InstanceIds=[_id(cloud, "server", node)])


def _aws_doors(cloud: SimCloud, node: str) -> set[tuple[int, str]]:
    found = cloud.console("ec2").describe_instances(InstanceIds=[_id(cloud, "server", node)])
    (interface,) = found["Reservations"][0]["Instances"][0]["NetworkInterfaces"]
    (group,) = interface["Groups"]
    (group,) = cloud.console("ec2").describe_security_groups(GroupIds=[group["GroupId"]])["SecurityGroups"]
    for rule in group["IpPermissions"]:
        assert (rule["FromPort"], rule.get("UserIdGroupPairs", [])) == (rule["ToPort"], [])
    return {
        _door(rule["FromPort"], each["CidrIp"])
        for rule in group["IpPermissions"]
        for each in rule["IpRanges"]
    }


REPEATED = (*LASTING, "lost_reply")
"""What has no client token is sent again after a lost reply, and then refused: it is there already."""

AWS_SERVICES = ("ec2", "iam", "ssm", "sts", "efs", "logs", "servicequotas")

AWS = Cloud(
    node={"type": "g6.xlarge", "root_volume_gb": 200},
    root_volume_gb=200,
    provider=lambda cloud: {
        "aws:region": "us-east-1",
        "aws:accessKey": aws.DEV_ACCESS_KEY,
        "aws:endpoints": [dict.fromkeys(AWS_SERVICES, cloud.aws_url)],
    },
    secrets={"aws:secretKey": aws.DEV_SECRET_KEY},
    parts=frozenset({"server", "volume", "security_group", "key_pair"}),
    doors=_aws_doors,
    changes=(
        Change("port-opened", _aws_open, "security-group"),
        Change("powered-off", _aws_stop, "power"),
        Change("renamed", _aws_rename, "server"),
        Change("metadata-exposed", _aws_expose_metadata, "server"),
        Change("grown", _aws_grow, "server", follow={"root_volume_gb": 250}),
        Change("terminated", _aws_terminate, "server"),
    ),
    host_part={"ami": "ami-0d1a0000000000001"},
    grows=True,
    refused_sizes={180: "a volume only grows"},
    create_server="RunInstances",
    creating={
        "CreateSecurityGroup": Call("ec2 create_security_group", REPEATED),
        "AuthorizeSecurityGroupIngress": Call("ec2 authorize_security_group_ingress", REPEATED),
        "ImportKeyPair": Call("ec2 import_key_pair", REPEATED),
        "RunInstances": Call("ec2 run_instances"),
        "DescribeInstances": Call("ec2 describe_instances"),
        "CreateTags": Call("ec2 CreateTags"),
    },
    deleting={
        "DescribeInstances": Call("ec2 DescribeInstances"),
        "DescribeVolumes": Call("ec2 DescribeVolumes"),
        "DescribeAddresses": Call("ec2 DescribeAddresses"),
        "DescribeKeyPairs": Call("ec2 DescribeKeyPairs"),
        "DescribeSecurityGroups": Call("ec2 DescribeSecurityGroups"),
        # A server's error is waited out for as long as a machine may take to end.
        "TerminateInstances": Call("ec2 TerminateInstances", ("403",)),
        "DeleteSecurityGroup": Call("ec2 DeleteSecurityGroup", ("403",)),
        "DeleteKeyPair": Call("ec2 DeleteKeyPair", ("403",)),
    },
    removed_by_owner=True,
    moments=(
        ("CreateSecurityGroup", "hold"),
        ("CreateSecurityGroup", "hold_after"),
        ("AuthorizeSecurityGroupIngress", "hold"),
        ("ImportKeyPair", "hold_after"),
        ("RunInstances", "hold"),
        ("RunInstances", "hold_after"),
        ("DescribeInstances", "hold"),
        ("CreateTags", "hold"),
        ("CreateTags", "hold_after"),
    ),
)


CLOUDS: Mapping[str, Cloud] = {"scaleway": SCALEWAY, "linode": LINODE, "aws": AWS}
ENVIRONMENT = {"LINODE_READ_TIMEOUT_S": READ_TIMEOUT_S, "AWS_READ_TIMEOUT_S": FIRST_READ_TIMEOUT_S}
