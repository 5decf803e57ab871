"""What a stack owns on AWS, found by its owner tag; and how a machine goes with everything that bills."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from components.aws import ec2
from components.aws.api import NOT_PERMITTED, AwsError, client_of
from components.aws.ec2 import Client, Described, tagged
from components.owned import Config, Owned, Place, Removal
from components.tags import NODE_TAG, OWNER_TAG

CLOUD = "aws"
IAM = "iam"
"""Stands for a region in a place: roles are the account's, whatever the region."""
ROLES = "/vllm-fleet/"
"""Path of everything in IAM, which lists by path alone: the owner's id and the node's label follow."""

STATE_TAG = "vllm-fleet-in-state"
"""On the network interface of a machine that the engine has stored. The provider does not manage its tags."""


def inventory(config: Config, zone: str) -> AwsInventory | IamInventory:
    """See `components.owned.inventory`. Raises CredentialsError."""

    def setting(key: str) -> str | None:
        return config(f"aws:{key}")

    if zone == IAM:
        return IamInventory(client_of(setting, "iam", setting("region") or "us-east-1"))
    return AwsInventory(client_of(setting, "ec2", zone))


def role_path(owner: str, label: str) -> str:
    """The path of a node's role and instance profile."""
    return f"{ROLES}{owner}/{label}/"


class AwsInventory:
    """The objects of one region."""

    def __init__(self, api: Client) -> None:
        self._api = api
        self._place = Place(CLOUD, api.meta.region_name)

    def owned(self, owner: str) -> list[Owned]:
        api, by_owner = self._api, [tagged(OWNER_TAG, owner)]
        return [
            *map(self._server, ec2.instances(api, by_owner)),
            *map(self._volume, ec2.volumes(api, by_owner)),
            *map(self._address, api.describe_addresses(Filters=by_owner)["Addresses"]),
            *map(self._group, ec2.groups(api, by_owner)),
            *map(self._key_pair, api.describe_key_pairs(Filters=by_owner)["KeyPairs"]),
        ]

    def labelled(self, labels: Sequence[str]) -> list[Owned]:
        if not labels:
            return []
        return [*map(self._server, ec2.instances(self._api, [{**tagged(NODE_TAG, ""), "Values": [*labels]}]))]

    def remove(self, found: Sequence[Owned]) -> None:
        api, removal = self._api, Removal(found)
        removal.of("server", lambda each: ec2.terminate(api, each.id))
        removal.of("volume", lambda each: ec2.delete_volume(api, each.id))
        removal.of("address", lambda each: ec2.release_address(api, each.id))
        removal.of("security group", lambda each: ec2.delete_group(api, each.id))
        removal.of("key pair", lambda each: ec2.delete_key_pair(api, each.id))
        removal.done()

    def adopt(self, found: Sequence[Owned], owner: str) -> None:
        ids = [each.id for each in found if each.kind != "key pair"]
        names = [each.id for each in found if each.kind == "key pair"]
        if names:
            ids += [each["KeyPairId"] for each in self._api.describe_key_pairs(KeyNames=names)["KeyPairs"]]
        if ids:
            self._api.create_tags(Resources=ids, Tags=[{"Key": OWNER_TAG, "Value": owner}])

    def _server(self, machine: Described) -> Owned:
        type_, state = machine["InstanceType"], machine["State"]["Name"]
        return self._owned(
            "server",
            machine["InstanceId"],
            machine,
            detail=f"{type_}, {state}",
            type=type_,
            running=state in ("pending", "running"),
        )

    def _volume(self, volume: Described) -> Owned:
        attached = [each["InstanceId"] for each in volume.get("Attachments", []) if each.get("InstanceId")]
        return self._owned(
            "volume",
            volume["VolumeId"],
            volume,
            detail=f"{volume['Size']} GB, {volume['State']}",
            size_gb=int(volume["Size"]),
            belongs_to=next(iter(attached), ""),
        )

    def _address(self, address: Described) -> Owned:
        return self._owned("address", address["AllocationId"], address, detail=address["PublicIp"])

    def _group(self, group: Described) -> Owned:
        return self._owned("security group", group["GroupId"], group, detail=group.get("GroupName", ""))

    def _key_pair(self, pair: Described) -> Owned:
        return self._owned("key pair", pair["KeyName"], pair)

    def _owned(self, kind: str, id_: str, described: Described, **more: Any) -> Owned:
        tags = ec2.tags_of(described)
        return Owned(
            kind=kind,
            id=id_,
            name=tags.get("Name", ""),
            label=tags.get(NODE_TAG, ""),
            place=self._place,
            owner=tags.get(OWNER_TAG, ""),
            **more,
        )


class IamInventory:
    """Roles and instance profiles of nodes with `session_manager`; the account's, and billed by nobody."""

    def __init__(self, api: Any) -> None:
        self._api = api
        self._place = Place(CLOUD, IAM)

    def owned(self, owner: str) -> list[Owned]:
        return [
            *self._listed("instance profile", "list_instance_profiles", "InstanceProfiles", owner),
            *self._listed("role", "list_roles", "Roles", owner),
        ]

    def _listed(self, kind: str, operation: str, field: str, owner: str) -> Iterable[Owned]:
        path = f"{ROLES}{owner}/"
        try:
            pages = list(self._api.get_paginator(operation).paginate(PathPrefix=path))
        except AwsError as error:
            if error.code in NOT_PERMITTED:
                return []  # a key without rights on roles has made none
            raise
        name = f"{field.removesuffix('s')}Name"
        return [
            Owned(
                kind=kind,
                id=each[name],
                name=each[name],
                label=each["Path"].removeprefix(path).rstrip("/"),
                place=self._place,
                owner=owner,
            )
            for page in pages
            for each in page[field]
            if each["Path"].startswith(path)
        ]

    def labelled(self, labels: Sequence[str]) -> list[Owned]:
        return []  # no machines

    def remove(self, found: Sequence[Owned]) -> None:
        removal = Removal(found)
        removal.of("instance profile", lambda each: self._remove_profile(each.id))
        removal.of("role", lambda each: self._remove_role(each.id))
        removal.done()

    def adopt(self, found: Sequence[Owned], owner: str) -> None:
        """Nothing: a path cannot be changed. The next update gives the machine a role of its own."""

    def _remove_profile(self, name: str) -> None:
        api, profile = self._api, {"InstanceProfileName": name}
        roles: list[str] = []

        def look() -> None:
            found = api.get_instance_profile(**profile)["InstanceProfile"]["Roles"]
            roles.extend(each["RoleName"] for each in found)

        ec2.unless_gone(look)
        for role in roles:
            ec2.unless_gone(partial(api.remove_role_from_instance_profile, **profile, RoleName=role))
        ec2.unless_gone(partial(api.delete_instance_profile, **profile))

    def _remove_role(self, name: str) -> None:
        api, policies = self._api, list[str]()
        ec2.unless_gone(lambda: policies.extend(api.list_role_policies(RoleName=name)["PolicyNames"]))
        for policy in policies:
            ec2.unless_gone(partial(api.delete_role_policy, RoleName=name, PolicyName=policy))
        ec2.unless_gone(partial(api.delete_role, RoleName=name))


def machines_of(api: Client, label: str) -> list[dict[str, Any]]:
    """The machines of a node (`stack/node`) that exist, whoever owns them, looked for with patience."""
    return ec2.patiently(lambda: ec2.instances(api, [tagged(NODE_TAG, label)]))


def mark_as_stored(api: Client, machine: Mapping[str, Any]) -> None:
    """Note on a machine's network interface that the engine has stored it."""
    interfaces = [each["NetworkInterfaceId"] for each in machine.get("NetworkInterfaces", [])]
    if interfaces:
        api.create_tags(Resources=interfaces[:1], Tags=[{"Key": STATE_TAG, "Value": machine["InstanceId"]}])


def stored(api: Client, machines: Sequence[Described]) -> set[str]:
    """Ids of those of the machines that the engine has once stored."""
    if not machines:
        return set()
    ids = {"Name": "tag:" + STATE_TAG, "Values": [each["InstanceId"] for each in machines]}
    found = api.describe_network_interfaces(Filters=[ids])["NetworkInterfaces"]
    return {ec2.tags_of(each, "TagSet")[STATE_TAG] for each in found}
