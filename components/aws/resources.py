"""What AWS's provider leaves open about a node: what its machine is made from, that it runs, whose it is.

The provider makes the machine, its group and its key. It cannot take up what is there already, and nothing it
made is deleted by the engine (see components/ownership.py). So before a machine is bought, whatever carries
the node's tag is looked at:

- a machine of another owner, or one that state has lost, is refused with the ways out: there would be two;
- a machine that the engine never stored was left by an interrupted run, and is ended;
- the predecessor, which state knows, is left alone until its successor serves.

That the engine has stored a machine is noted on its network interface, whose tags the provider leaves alone.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import pulumi
from pulumi import Input, Output, ResourceHookBinding
from pulumi.dynamic import (
    ConfigureRequest,
    CreateResult,
    ReadResult,
    Resource,
    UpdateResult,
)

from components import own_state
from components.aws import ec2, owned
from components.aws.api import AGAIN, AwsError, client
from components.dynamic import CloudProvider, gone
from components.ownership import NotOurs, not_ours
from components.tags import BOOT_TAG, HOST_TAG, NODE_TAG, OWNER_TAG
from fleet import cloudconfig
from fleet.aws import CredentialsError
from fleet.progress import Progress, Stage

EXPLAINED = (AwsError, CredentialsError, ec2.Ec2Error, NotOurs, ValueError)
"""Errors whose messages are for people."""


class LostMachine(Exception):
    """State does not know a machine that carries its node's tags. The message names it and the ways out."""


class AwsProvider(CloudProvider):
    """Adds credentials, by the provider's own configuration; never by inputs."""

    def configure(self, req: ConfigureRequest) -> None:
        super().configure(req)
        self._config = lambda key: req.config.get(f"aws:{key}")

    def ec2(self, props: Mapping[str, Any]) -> ec2.Client:
        """The client for a resource's region."""
        return client(self._config, "ec2", props["region"])

    @staticmethod
    def explained(error: Exception, operation: str) -> Exception:
        """What is not foreseen names the operation at least."""
        if isinstance(error, EXPLAINED):
            return error
        kind = type(error).__name__
        return AwsError(f"{operation}: a reply of AWS could not be used ({kind}: {error})", AGAIN)


class FirstBootProvider(AwsProvider):
    replace_on = frozenset({"digest", "ami", "region", "subnet", "public_ip"})
    update_on = frozenset({"root_volume_gb"})

    decided = ("made_with", "made_user_data", "host_key", "mark")
    """Outputs that are the same as long as the first boot is."""

    def failures(self, olds: Mapping[str, Any], news: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
        had, wanted = olds.get("root_volume_gb"), news.get("root_volume_gb")
        if isinstance(had, int | float) and isinstance(wanted, int | float) and wanted < had:
            yield (
                "root_volume_gb",
                f"{wanted:g} is less than the {had:g} of the volume, and a volume only grows. "
                f"Set root_volume_gb: {had:g}, or more",
            )

    def differs(self, key: str, olds: Mapping[str, Any], news: Mapping[str, Any]) -> bool:
        if key in ("ami", "subnet") and not news.get(key):
            return False  # none is asked for: the one it was made with stays
        # A machine that was made before there was this setting has a public address.
        olds = {"public_ip": True, **olds}
        return super().differs(key, {**olds, **(olds.get("made_with") or {})}, news)

    def create(self, props: dict[str, Any]) -> CreateResult:
        Progress(props["node"]).reached(Stage.REQUEST_CREATE)
        return CreateResult(uuid.uuid4().hex, {**props, **self._made(props)})

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """What the node's machine was made with, where there is one; else what is decided.

        They differ for a machine that was adopted: state had lost it, and decided anew. A volume that
        somebody has grown will never be smaller again.
        """
        api = self.ec2(props)
        machines = ec2.instances(
            api, [ec2.tagged(OWNER_TAG, props["owner"]), ec2.tagged(NODE_TAG, props["label"])]
        )
        if all(ec2.tags_of(each).get(BOOT_TAG) != props["mark"] for each in machines):
            once = owned.stored(api, machines)
            stored = [each for each in machines if each["InstanceId"] in once]
            props = {**props, **(self._read_back(props, stored[0]) if stored else {})}
        size = ec2.volume_gb(api, BOOT_TAG, props["mark"])
        return ReadResult(id_, {**props, "root_volume_gb": max(size, props["root_volume_gb"])})

    def update(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        for _, reason in self.failures(olds, news):
            raise ValueError(f"root_volume_gb: {reason}")
        return UpdateResult({**news, **{key: olds[key] for key in self.decided}})

    def delete(self, id_: str, props: dict[str, Any]) -> None:
        """Nothing: the machine goes once its successor serves, or with the stack."""

    def _made(self, props: Mapping[str, Any]) -> dict[str, Any]:
        subnet = props.get("subnet") or ec2.default_subnet(self.ec2(props), props["type"])
        return {
            "made_with": {"ami": props.get("ami") or props["newest_ami"], "subnet": subnet},
            "made_user_data": props["user_data"],
            "host_key": host_key_in(props["user_data"]),
            "mark": uuid.uuid4().hex,
        }

    def _read_back(self, props: Mapping[str, Any], machine: ec2.Described) -> dict[str, Any]:
        tags, id_ = ec2.tags_of(machine), machine["InstanceId"]
        told = self.ec2(props).describe_instance_attribute(InstanceId=id_, Attribute="userData")
        user_data = told.get("UserData", {}).get("Value", "")
        return {
            "made_with": {"ami": machine["ImageId"], "subnet": machine["SubnetId"]},
            "made_user_data": user_data,
            "host_key": host_key_in(user_data),
            "mark": tags.get(BOOT_TAG) or uuid.uuid4().hex,
            "digest": tags.get(HOST_TAG) or props["digest"],
        }


def host_key_in(user_data: str) -> str:
    """The public SSH host key that a machine with this user data (base64) shows."""
    document = cloudconfig.document(cloudconfig.decoded(user_data))
    return str(document.get("ssh_keys", {}).get("ed25519_public", ""))


class FirstBoot(Resource, module="aws", name="FirstBoot"):
    """What a machine is made with, decided once: image, subnet, user data and, in it, the SSH host key.

    A newer image, a new key or another model changes nothing here. A change of the host part, of the image or
    subnet that the configuration names, or of whether there is a public address, replaces it, and with it the
    machine.
    """

    made_with: Output[dict[str, str]]
    """`ami` and `subnet`."""
    made_user_data: Output[str]
    """Base64; a secret, for the SSH host key is in it."""
    host_key: Output[str]
    """The public half of it."""
    mark: Output[str]
    """Carried by the machine as BOOT_TAG; another one is another machine."""
    digest: Output[str]
    """Of the host part that the machine was made with."""
    root_volume_gb: Output[int]

    def __init__(
        self,
        name: str,
        *,
        owner: Input[str],
        label: str,
        node: str,
        region: str,
        type: str,
        digest: str,
        user_data: Input[str],
        ami: str | None,
        newest_ami: Input[str],
        subnet: str | None,
        public_ip: bool,
        root_volume_gb: int,
        opts: pulumi.ResourceOptions,
    ) -> None:
        """`label` is `stack/node`."""
        props: dict[str, Any] = {
            "owner": owner,
            "label": label,
            "node": node,
            "region": region,
            "type": type,
            "digest": digest,
            "user_data": user_data,
            "ami": ami,
            "newest_ami": newest_ami,
            "subnet": subnet,
            "public_ip": public_ip,
            "root_volume_gb": root_volume_gb,
            **dict.fromkeys(FirstBootProvider.decided),
        }
        secret = pulumi.ResourceOptions(additional_secret_outputs=["user_data", "made_user_data"])
        super().__init__(FirstBootProvider(), name, props, pulumi.ResourceOptions.merge(opts, secret))


class PowerProvider(AwsProvider):
    replace_on = frozenset({"instance_id"})
    update_on = frozenset({"state"})

    def create(self, props: dict[str, Any]) -> CreateResult:
        api = self.ec2(props)
        found = ec2.start(api, props["instance_id"])
        # Its id is in state by now.
        owned.mark_as_stored(api, found)
        progress = Progress(props["node"])
        progress.reached(Stage.PROVIDER_CREATE, f"instance {props['instance_id']}")
        progress.reached(Stage.PROVIDER_VOLUME_RESIZE, f"root volume {props['root_volume_gb']:g} GB")
        progress.reached(Stage.PROVIDER_START, str(found["Placement"]["AvailabilityZone"]))
        address = found.get("PublicIpAddress") or found.get("PrivateIpAddress", "")
        progress.reached(Stage.PROVIDER_GET_IP, str(address))
        progress.reached(Stage.PROVIDER_SECURITY_GROUP)
        # Not the machine's own id, by which commands see whether state knows the machine.
        return CreateResult(f"power/{props['instance_id']}", self._seen(props, found))

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        found = ec2.instance(self.ec2(props), props["instance_id"])
        return gone() if found is None else ReadResult(id_, self._seen(props, found))

    def update(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        return UpdateResult(self._seen(news, ec2.start(self.ec2(news), news["instance_id"])))

    def delete(self, id_: str, props: dict[str, Any]) -> None:
        """Nothing: the machine goes once its successor serves, or with the stack."""

    def _seen(self, props: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
        # One that is about to run counts as running.
        state = "running" if found["State"]["Name"] == "pending" else found["State"]["Name"]
        return {
            **props,
            "state": state,
            "public_ip": found.get("PublicIpAddress", ""),
            # EC2 counts each start as a launch.
            "started": found["LaunchTime"].isoformat(),
        }


class Power(Resource, module="aws", name="Power"):
    """That a machine runs, and its address: another one after each stop, unless an Elastic IP is on it."""

    public_ip: Output[str]
    """Empty where it has none."""
    started: Output[str]
    """When it was last started."""

    def __init__(
        self,
        name: str,
        *,
        node: str,
        region: str,
        instance_id: Input[str],
        root_volume_gb: int,
        opts: pulumi.ResourceOptions,
    ) -> None:
        props: dict[str, Any] = {
            "node": node,
            "region": region,
            "instance_id": instance_id,
            "root_volume_gb": root_volume_gb,
            "state": "running",
            "public_ip": None,
            "started": None,
        }
        super().__init__(PowerProvider(), name, props, opts)


class ProfileAssociationProvider(AwsProvider):
    replace_on = frozenset({"region", "instance_id"})
    update_on = frozenset({"profile"})

    def create(self, props: dict[str, Any]) -> CreateResult:
        return CreateResult(ec2.give_profile(self.ec2(props), props["instance_id"], props["profile"]), props)

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        found = ec2.profile_of(self.ec2(props), props["instance_id"])
        if found is None:
            return gone()
        return ReadResult(found[0], {**props, "profile": found[1]})

    def update(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        ec2.give_profile(self.ec2(news), news["instance_id"], news["profile"])
        return UpdateResult(news)

    def delete(self, id_: str, props: dict[str, Any]) -> None:
        found = ec2.profile_of(self.ec2(props), props["instance_id"])
        if found and found[1] == props["profile"]:
            self.ec2(props).disassociate_iam_instance_profile(AssociationId=found[0])


class ProfileAssociation(Resource, module="aws", name="ProfileAssociation"):
    """That an instance, which is there already and stays untouched, has an instance profile."""

    def __init__(
        self,
        name: str,
        *,
        region: str,
        instance_id: str,
        profile: Input[str],
        opts: pulumi.ResourceOptions,
    ) -> None:
        props = {"region": region, "instance_id": instance_id, "profile": profile}
        super().__init__(ProfileAssociationProvider(), name, props, opts)


def before_first_boot(name: str) -> pulumi.ResourceHook:
    """A hook for the creation of a first boot, at preview too: refuses in words what EC2 would refuse."""

    async def hook(args: pulumi.ResourceHookArgs) -> None:
        await asyncio.to_thread(run, args.new_inputs or {})

    def run(inputs: Mapping[str, Any]) -> None:
        path, type_ = f"{inputs['node']}: ", inputs["type"]
        api = program_client("ec2", inputs["region"], path)
        subnet, public = inputs.get("subnet"), inputs["public_ip"]
        ec2.check_place(api, path, type_=type_, subnet=subnet, public=public)
        ec2.check_image(api, path, type_=type_, ami=inputs.get("ami") or inputs["newest_ami"])

    return pulumi.ResourceHook(name, hook, pulumi.ResourceHookOptions(on_dry_run=True))


def before_launch(name: str, node: str, label: str, region: str, *, protect: bool) -> pulumi.ResourceHook:
    """A hook for the creation of a machine, at preview too: see the top of this module.

    `label` is `stack/node`. With `protect` nothing is ended: what is found fails the creation.
    """

    async def hook(args: pulumi.ResourceHookArgs) -> None:
        tags = (args.new_inputs or {}).get("tags")
        owner = tags.get(OWNER_TAG) if isinstance(tags, Mapping) else None
        known = await machine_in_state(args.urn)
        await asyncio.to_thread(run, owner if isinstance(owner, str) else "", known)

    def run(owner: str, known: str) -> None:
        if not owner:
            return  # at the first preview: the owner's own hook looks
        api = program_client("ec2", region)
        found = owned.machines_of(api, label)
        if strangers := [each for each in found if ec2.tags_of(each).get(OWNER_TAG) != owner]:
            raise not_ours(node, label, [f"instance {each['InstanceId']}" for each in strangers])
        once = owned.stored(api, found)
        left = [each for each in found if each["InstanceId"] not in {*once, known}]
        lost = [each for each in found if each["InstanceId"] in once] if not known else []
        if lost or (left and protect):
            raise _lost(node, lost or left)
        if not pulumi.runtime.is_dry_run():
            for each in left:
                ec2.terminate(api, each["InstanceId"])

    return pulumi.ResourceHook(name, hook, pulumi.ResourceHookOptions(on_dry_run=True))


def _lost(node: str, machines: Iterable[ec2.Described]) -> LostMachine:
    named = " and ".join(f"instance {each['InstanceId']} ({each['State']['Name']})" for each in machines)
    return LostMachine(
        f"{node}: {named} carries this node's tags and this stack's owner id, but the state does not know "
        f"it. No machine was created. Fix: `fleet adopt {node}` takes it into the state; or "
        f"`fleet destroy {node}` removes it, and the next update makes a new one"
    )


async def machine_in_state(urn: str) -> str:
    """Id of the instance that the stack's state has under a URN; empty where it has none.

    The engine does not tell a hook whether what it creates replaces something.
    """
    known = (await own_state.resources()).get(urn) or {}
    # The last part of the ARN is the id.
    return str((known.get("outputs") or {}).get("arn") or "").rpartition("/")[2]


def before_key_pair(name: str, region: str) -> ResourceHookBinding:
    """What deletes the node's former key pairs just before one is created: a lost one has the same name.

    A key pair acts at the launch of a machine alone.
    """

    async def hook(args: pulumi.ResourceHookArgs) -> None:
        await asyncio.to_thread(run, (args.new_inputs or {})["tags"])

    def run(tags: Mapping[str, str]) -> None:
        api = program_client("ec2", region)
        mine = [ec2.tagged(tag, tags[tag]) for tag in (OWNER_TAG, NODE_TAG)]
        for pair in api.describe_key_pairs(Filters=mine)["KeyPairs"]:
            ec2.delete_key_pair(api, pair["KeyName"])

    return ResourceHookBinding(before_create=[pulumi.ResourceHook(name, hook)])


def program_client(service: str, region: str, path: str = "") -> Any:
    """The client of a service, by the provider's own configuration as the program sees it.

    `path` is where the settings say the region.
    """
    return client(pulumi.Config("aws").get, service, region, path)
