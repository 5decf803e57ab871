"""What AWS's provider leaves open about a node: who owns what, what its machine was made from, that it runs.

The provider makes the machine, its group and its key. It cannot pick up what an interrupted run left: such an
object is in no state. So everything a node consists of carries the node's owner tag, and its machine the mark
of its first boot:

- just before a machine, a group, a key pair or an address is created, what is there with the same mark or tag
  is removed: it is in no state, or about to be replaced. A group with a machine in it stays until the machine
  is in the new one;
- a first boot that goes, with the node or because it is replaced, takes every machine with its mark along;
- when the node goes, whatever still carries its owner tag goes with it.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pulumi
from pulumi import Input, Output, ResourceHookBinding
from pulumi.dynamic import ConfigureRequest, CreateResult, ReadResult, Resource, UpdateResult

from components.aws import ec2
from components.aws.api import client
from components.dynamic import CloudProvider, gone
from components.tags import OWNER_TAG
from fleet.progress import Progress, Stage

BOOT_TAG = "vllm-fleet-boot"
"""Carries the mark of the first boot that a machine was made for."""


class AwsProvider(CloudProvider):
    """Adds credentials, by the provider's own configuration; never by inputs."""

    def configure(self, req: ConfigureRequest) -> None:
        super().configure(req)
        self._config = lambda key: req.config.get(f"aws:{key}")

    def ec2(self, props: Mapping[str, Any]) -> ec2.Client:
        """The client for a resource's region."""
        return client(self._config, "ec2", props["region"])


class NodeOwnerProvider(AwsProvider):
    replace_on = frozenset({"region"})

    def create(self, props: dict[str, Any]) -> CreateResult:
        Progress(props["node"]).reached(Stage.REQUEST_CREATE)
        return CreateResult(uuid.uuid4().hex, props)

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        return ReadResult(id_, props)  # it exists in state alone

    def update(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        return UpdateResult(news)

    def delete(self, id_: str, props: dict[str, Any]) -> None:
        ec2.end_instances(self.ec2(props), OWNER_TAG, id_)
        for remove in (ec2.remove_addresses, ec2.remove_groups, ec2.remove_key_pairs):
            remove(self.ec2(props), OWNER_TAG, id_)


class NodeOwner(Resource, module="aws", name="NodeOwner"):
    """The id by which everything of one node is found again. It is in state first, and goes last."""

    def __init__(self, name: str, *, node: str, region: str, opts: pulumi.ResourceOptions) -> None:
        super().__init__(NodeOwnerProvider(), name, {"node": node, "region": region}, opts)


class FirstBootProvider(AwsProvider):
    replace_on = frozenset({"digest", "ami", "region", "subnet"})
    update_on = frozenset({"root_volume_gb"})

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
        return super().differs(key, {**olds, **(olds.get("made_with") or {})}, news)

    def create(self, props: dict[str, Any]) -> CreateResult:
        return CreateResult(uuid.uuid4().hex, {**props, **self._made(props)})

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """It exists in state alone; but a volume that somebody has grown will never be smaller again."""
        size = ec2.volume_gb(self.ec2(props), BOOT_TAG, id_)
        return ReadResult(id_, {**props, "root_volume_gb": max(size, props["root_volume_gb"])})

    def update(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        for _, reason in self.failures(olds, news):
            raise ValueError(f"root_volume_gb: {reason}")
        kept = {key: olds[key] for key in ("made_with", "made_user_data")}
        return UpdateResult({**news, **kept})

    def delete(self, id_: str, props: dict[str, Any]) -> None:
        ec2.end_instances(self.ec2(props), BOOT_TAG, id_)

    def _made(self, props: Mapping[str, Any]) -> dict[str, Any]:
        subnet = props.get("subnet") or ec2.default_subnet(self.ec2(props), props["type"])
        made_with = {"ami": props.get("ami") or props["newest_ami"], "subnet": subnet}
        return {"made_with": made_with, "made_user_data": props["user_data"]}


class FirstBoot(Resource, module="aws", name="FirstBoot"):
    """What a machine is made with, decided once: image, subnet and user data.

    A newer image, a new key or another model changes nothing here. A change of the host part, or of the image
    or subnet that the configuration names, replaces it, and with it the machine. Its id marks the machine.
    """

    made_with: Output[dict[str, str]]
    """`ami` and `subnet`."""
    made_user_data: Output[str]
    """Base64; a secret, for the SSH host key is in it."""
    root_volume_gb: Output[int]

    def __init__(
        self,
        name: str,
        *,
        node: str,
        region: str,
        type: str,
        digest: str,
        user_data: Input[str],
        ami: str | None,
        newest_ami: Input[str],
        subnet: str | None,
        root_volume_gb: int,
        opts: pulumi.ResourceOptions,
    ) -> None:
        props: dict[str, Any] = {
            "node": node,
            "region": region,
            "type": type,
            "digest": digest,
            "user_data": user_data,
            "ami": ami,
            "newest_ami": newest_ami,
            "subnet": subnet,
            "root_volume_gb": root_volume_gb,
            "made_with": None,
            "made_user_data": None,
        }
        secret = pulumi.ResourceOptions(additional_secret_outputs=["user_data", "made_user_data"])
        super().__init__(FirstBootProvider(), name, props, pulumi.ResourceOptions.merge(opts, secret))


class PowerProvider(AwsProvider):
    replace_on = frozenset({"instance_id"})
    update_on = frozenset({"state"})

    def create(self, props: dict[str, Any]) -> CreateResult:
        found = ec2.start(self.ec2(props), props["instance_id"])
        progress = Progress(props["node"])
        progress.reached(Stage.PROVIDER_CREATE, f"instance {props['instance_id']}")
        progress.reached(Stage.PROVIDER_VOLUME_RESIZE, f"root volume {props['root_volume_gb']:g} GB")
        progress.reached(Stage.PROVIDER_START, str(found["Placement"]["AvailabilityZone"]))
        progress.reached(Stage.PROVIDER_GET_IP, str(found.get("PublicIpAddress", "")))
        progress.reached(Stage.PROVIDER_SECURITY_GROUP)
        return CreateResult(props["instance_id"], self._seen(props, found))

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        found = ec2.instance(self.ec2(props), id_)
        return gone() if found is None else ReadResult(id_, self._seen(props, found))

    def update(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        return UpdateResult(self._seen(news, ec2.start(self.ec2(news), id_)))

    def delete(self, id_: str, props: dict[str, Any]) -> None:
        """Nothing: the instance's own deletion ends it."""

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
        ec2.check_place(api, path, type_=type_, subnet=inputs.get("subnet"))
        ec2.check_image(api, path, type_=type_, ami=inputs.get("ami") or inputs["newest_ami"])

    return pulumi.ResourceHook(name, hook, pulumi.ResourceHookOptions(on_dry_run=True))


def before_launch(name: str, node: str, region: str, *, protect: bool) -> pulumi.ResourceHook:
    """A hook for the creation of a machine: ends what an interrupted run left.

    With `protect` nothing is ended: what is found fails the creation.
    """

    async def hook(args: pulumi.ResourceHookArgs) -> None:
        await asyncio.to_thread(run, (args.new_inputs or {})["tags"][BOOT_TAG])

    def run(mark: str) -> None:
        api = program_client("ec2", region)
        if protect and (left := ec2.instances(api, BOOT_TAG, mark)):
            raise RuntimeError(
                f"{node}: protected, and instance {left[0]['InstanceId']} carries its mark but is not in the "
                "state. Fix: bring it in with `pulumi import`, or terminate it; then run this again"
            )
        ec2.end_instances(api, BOOT_TAG, mark)

    return pulumi.ResourceHook(name, hook)


def before_create(
    name: str, region: str, remove: Callable[[ec2.Client, str, str], None]
) -> ResourceHookBinding:
    """What removes the leftovers of an interrupted run just before a resource of their kind is created."""

    async def hook(args: pulumi.ResourceHookArgs) -> None:
        api = program_client("ec2", region)
        await asyncio.to_thread(remove, api, OWNER_TAG, (args.new_inputs or {})["tags"][OWNER_TAG])

    return ResourceHookBinding(before_create=[pulumi.ResourceHook(name, hook)])


def program_client(service: str, region: str, path: str = "") -> Any:
    """The client of a service, by the provider's own configuration as the program sees it.

    `path` is where the settings say the region.
    """
    return client(pulumi.Config("aws").get, service, region, path)
