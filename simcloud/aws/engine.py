"""moto in this process: loaded at the first request, seeded, and held to what EC2 really does.

moto keeps everything in memory, so nothing of this cloud survives a restart of the emulator. What it is
laxer in than EC2, and what the project relies on, is added here: client tokens, volumes that never shrink,
termination protection, groups in use and left, throughput of volumes, what roles may do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from simcloud.aws import iam
from simcloud.aws.protocol import AwsRequest, refusal
from simcloud.cloud import Reply
from simcloud.faults import Lag

ACCOUNT = "123456789012"
AMIS = Path(__file__).parent / "amis.json"

DLAMI = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-{os}/latest/ami-id"
PARAMETERS = {
    DLAMI.format(os="ubuntu-22.04"): "ami-0d1a0000000000003",
    DLAMI.format(os="amazon-linux-2023"): "ami-0d1a0000000000002",
    "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64": "ami-0a120000000000001",
}
"""Public parameters of AWS, in every region, for the images that are here."""

OTHER_KINDS = [
    ("role", "iam", "roles"),
    ("instance_profile", "iam", "instance_profiles"),
    ("file_system", "efs", "file_systems_by_id"),
    ("log_group", "logs", "groups"),
]
"""Kind, service, and the attribute of moto's backend that holds them by id."""

HOP_BY_HOP = {"content-length", "connection", "transfer-encoding", "server", "date"}


@dataclass(frozen=True)
class Thing:
    """Something that exists in the account."""

    kind: str
    id: str
    name: str
    tags: dict[str, str]
    bills: bool = True


class Moto:
    """moto's application and its objects."""

    def __init__(self, free_address: Callable[[], str]) -> None:
        """`free_address` gives the addresses that instances are reached at."""
        self._free_address = free_address
        self._client: Any = None
        self._tokens: dict[tuple[str, str], tuple[str, Reply]] = {}
        self._routed: set[str] = set()
        """Regions whose default VPC leads to the internet, as AWS's do and moto's do not."""

    @property
    def loaded(self) -> bool:
        return self._client is not None

    def answer(self, request: AwsRequest) -> Reply:
        """What AWS replies. Raises ApiError for a refusal that moto would not make."""
        self._load()
        self._check_rights(request)
        known = self._known_launch(request)
        if known:
            return known
        for check in (
            self._volume_shrinks,
            self._group_in_use,
            self._key_is_unknown,
            self._role_is_elsewhere,
        ):
            check(request)
        self._route_default_vpc(request)
        former = self._metadata_options(request)
        reply = self._ask(request)
        if reply.status < 300:
            self._complete(request, reply)
            self._keep_metadata_options(request, former)
        return reply

    def instances(self) -> Iterator[Any]:
        """Every instance of every region, terminated ones included."""
        for backend in self._backends("ec2"):
            for reservation in backend.reservations.values():
                yield from reservation.instances

    def subnets(self, region: str) -> Iterator[tuple[str, str]]:
        """(zone, id) of each subnet of a region."""
        for backend in self._backends("ec2"):
            if backend.region_name == region:
                for of_zone in backend.subnets.values():
                    yield from ((subnet.availability_zone, subnet.id) for subnet in of_zone.values())

    def volume(self, instance: Any) -> Any:
        """An instance's root volume, or None."""
        device = instance.block_device_mapping.get(instance.root_device_name)
        return instance.ec2_backend.volumes.get(device.volume_id) if device else None

    def key_of_its_role(self, instance: Any) -> str | None:
        """A temporary access key of the role that an instance has, as its metadata service gives it."""
        profile = instance.ec2_backend.iam_instance_profile_associations.get(instance.id)
        if profile is None:
            return None
        role = profile.iam_instance_profile.roles[0]
        given = self._global("sts").assume_role("us-east-1", instance.id, role.arn, "", 3600, "")
        return str(given.access_key_id)

    def shut_down(self, instance_id: str) -> None:
        """What comes of an instance whose system has gone off."""
        instance = next(each for each in self.instances() if each.id == instance_id)
        if instance.instance_initiated_shutdown_behavior == "terminate":
            instance.ec2_backend.terminate_instances([instance_id])
        else:
            instance.stop()
        reason = "Client.InstanceInitiatedShutdown"
        instance.state_reason = type(instance.state_reason)(f"{reason}: Instance initiated shutdown", reason)

    def things(self) -> Iterator[Thing]:
        """Everything that a stack can leave behind, but instances."""
        for backend in self._backends("ec2"):
            groups = [group for of_vpc in backend.groups.values() for group in of_vpc.values()]
            yield from (Thing("volume", each.id, each.id, _tags(each)) for each in backend.volumes.values())
            for each in backend.addresses:
                yield Thing("ip", each.allocation_id, each.public_ip, _tags(each))
            for each in groups:
                if each.name != "default":
                    yield Thing("security_group", each.id, each.name, _tags(each), bills=False)
            for each in backend.key_pairs.values():
                yield Thing("key_pair", each.id, each.key_name, _tags(each), bills=False)
            for each in backend.launch_templates.values():
                yield Thing("launch_template", each.id, each.name, _tags(each), bills=False)
        for kind, service, attribute in OTHER_KINDS:
            for backend in self._backends(service):
                for id_, each in getattr(backend, attribute).items():
                    yield Thing(kind, id_, getattr(each, "name", None) or id_, {}, bills=service != "iam")

    @contextmanager
    def hiding(self, lags: Sequence[Lag]) -> Iterator[None]:
        """In the block, moto does not know of instances, volumes, groups and keys that a lag hides.

        It has no difference between lists and look-ups: AWS's calls describe both.
        """
        taken: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        for backend in self._backends("ec2") if lags else ():
            tables = (backend.reservations, backend.volumes, backend.key_pairs, *backend.groups.values())
            for holder in tables:
                hidden = {key for key, each in holder.items() if _hidden(each, lags)}
                if hidden:
                    taken.append((holder, dict(holder)))
                    for key in hidden:
                        del holder[key]
        try:
            yield
        finally:
            for holder, whole in taken:
                made = {key: each for key, each in holder.items() if key not in whole}
                holder.clear()
                holder.update(whole | made)

    def reset(self) -> None:
        """Forgets everything but its seeds."""
        self._tokens.clear()
        self._routed.clear()
        if self.loaded:
            from moto.core.base_backend import BackendDict  # noqa: PLC0415
            from moto.core.model_instances import reset_model_data  # noqa: PLC0415

            BackendDict.reset()
            reset_model_data()

    # --- Inside ---

    def _load(self) -> None:
        """moto takes seconds to import: only who asks AWS for something waits for it."""
        if self.loaded:
            return
        # Its own list of 1300 images takes ten seconds to load.
        os.environ["MOTO_AMIS_PATH"] = str(AMIS)
        os.environ["MOTO_ENABLE_AMI_VALIDATION"] = "true"
        os.environ["MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION"] = "true"
        from moto.ec2.models import elastic_ip_addresses, elastic_network_interfaces  # noqa: PLC0415
        from moto.moto_server.werkzeug_app import (  # noqa: PLC0415
            DomainDispatcherApplication,
            create_backend_app,
        )
        from werkzeug.test import Client  # noqa: PLC0415

        # An instance is reached at the loopback address of its machine.
        elastic_network_interfaces.random_public_ip = self._free_address
        elastic_ip_addresses.random_ip = self._free_address
        self._client = Client(DomainDispatcherApplication(create_backend_app))

    def _ask(self, request: AwsRequest) -> Reply:
        if request.service == "ssm":
            self._seed_parameters(request.region)
        headers = [
            (name, value) for name, value in request.headers.items() if name not in HOP_BY_HOP | {"host"}
        ]
        response = self._client.open(
            path=request.path.removeprefix("/aws") or "/",
            query_string=request.query_string,
            method=request.method,
            headers=headers,
            data=request.raw,
            base_url=f"http://{request.service}.{request.region}.amazonaws.com",
        )
        kept = {name: value for name, value in response.headers.items() if name.lower() not in HOP_BY_HOP}
        return Reply(response.status_code, response.get_data(), kept)

    def _backends(self, service: str) -> Iterator[Any]:
        """The service's backend of each region that was asked so far."""
        if self.loaded:
            from moto.backends import get_backend  # noqa: PLC0415

            yield from get_backend(service)[ACCOUNT].values()

    def _ec2(self, request: AwsRequest) -> Any:
        from moto.backends import get_backend  # noqa: PLC0415

        return get_backend("ec2")[ACCOUNT][request.region]

    def _route_default_vpc(self, request: AwsRequest) -> None:
        if request.service != "ec2" or request.region in self._routed:
            return
        self._routed.add(request.region)
        ec2 = self._ec2(request)
        vpc = ec2.get_default_vpc()
        gateway = ec2.create_internet_gateway()
        ec2.attach_internet_gateway(gateway.id, vpc.id)
        tables = ec2.route_tables.values()
        main = next(each for each in tables if each.vpc_id == vpc.id and each.main_association_id)
        ec2.create_route(main.id, "0.0.0.0/0", gateway_id=gateway.id)

    def _seed_parameters(self, region: str) -> None:
        from moto.backends import get_backend  # noqa: PLC0415
        from moto.ssm.models import Parameter  # noqa: PLC0415

        parameters = get_backend("ssm")[ACCOUNT][region]._parameters
        for name, value in PARAMETERS.items():
            if all(each.value != value for each in parameters[name]):
                made = Parameter(
                    account_id=ACCOUNT,
                    name=name,
                    value=value,
                    parameter_type="String",
                    description=None,
                    allowed_pattern=None,
                    keyid=None,
                    last_modified_date=0,
                    version=1,
                    data_type="text",
                )
                parameters[name].append(made)

    def _check_rights(self, request: AwsRequest) -> None:
        """What an assumed role may do; keys of the account may do everything."""
        role = self._role_of(request.access_key)
        if role is None or request.call.name == "GetCallerIdentity":
            return
        policies = iam.documents(self._global("iam"), role)
        for asked in iam.needed(request, self._ec2(request), self._role_of_profile):
            if not iam.permitted(policies, asked):
                raise refusal(request, 403, "AccessDenied", f"{role} is not authorized to perform: {asked}")

    def _role_of(self, access_key: str) -> str | None:
        sts = self._global("sts")
        assumed = next((each for each in sts.assumed_roles if each.access_key_id == access_key), None)
        return assumed.role_arn.rpartition("/")[2] if assumed else None

    def _role_of_profile(self, profile: str) -> str:
        found = self._global("iam").get_instance_profile(profile.rpartition("/")[2])
        return str(found.roles[0].arn)

    def _global(self, service: str) -> Any:
        """The backend of a service that has no regions."""
        from moto.backends import get_backend  # noqa: PLC0415

        return get_backend(service)[ACCOUNT]["aws"]

    def _known_launch(self, request: AwsRequest) -> Reply | None:
        """The first reply to a client token, given again to the same request."""
        token = str(request.json.get("ClientToken"))
        if request.call.name != "RunInstances" or (request.region, token) not in self._tokens:
            return None
        first, reply = self._tokens[request.region, token]
        if first != _launch(request):
            raise refusal(
                request,
                400,
                "IdempotentParameterMismatch",
                "The parameters do not match those of the earlier request with this client token",
            )
        return reply

    def _volume_shrinks(self, request: AwsRequest) -> None:
        if request.call.name != "ModifyVolume" or "Size" not in request.json:
            return
        volume = self._ec2(request).volumes.get(request.json["VolumeId"])
        if volume and int(request.json["Size"]) < volume.size:
            raise refusal(
                request, 400, "InvalidParameterValue", "New size cannot be smaller than existing size"
            )

    def _group_in_use(self, request: AwsRequest) -> None:
        if request.call.name != "DeleteSecurityGroup":
            return
        group = request.json.get("GroupId")
        living = [instance for instance in self.instances() if instance.state != "terminated"]
        used = {each.id for instance in living for nic in instance.nics.values() for each in nic.group_set}
        if group in used:
            raise refusal(request, 400, "DependencyViolation", f"resource {group} has a dependent object")

    def _key_is_unknown(self, request: AwsRequest) -> None:
        key = request.json.get("KeyName")
        if request.call.name == "RunInstances" and key and key not in self._ec2(request).key_pairs:
            raise refusal(request, 400, "InvalidKeyPair.NotFound", f"The key pair '{key}' does not exist")

    def _role_is_elsewhere(self, request: AwsRequest) -> None:
        if request.call.name != "RemoveRoleFromInstanceProfile":
            return
        profile, role = request.json["InstanceProfileName"], request.json["RoleName"]
        profiles = self._global("iam").instance_profiles.values()
        if not any(each.name == profile and role in [has.name for has in each.roles] for each in profiles):
            said = f"Role {role} cannot be found in Instance Profile {profile}."
            raise refusal(request, 404, "NoSuchEntity", said)

    def _complete(self, request: AwsRequest, reply: Reply) -> None:
        """What moto leaves out of an effect."""
        match request.call.name:
            case "RunInstances":
                if token := request.json.get("ClientToken"):
                    self._tokens[request.region, token] = (_launch(request), reply)
                for instance_id in re.findall(rb"<instanceId>(i-[0-9a-f]+)</instanceId>", reply.body):
                    self._launched(request, self._ec2(request).get_instance(instance_id.decode()))
            case "StartInstances":
                for instance_id in request.listed("InstanceId"):
                    self._ec2(request).get_instance(instance_id).launch_time = datetime.now(UTC)
            case "ModifyInstanceAttribute" if "DisableApiTermination.Value" in request.json:
                instance = self._ec2(request).get_instance(request.json["InstanceId"])
                instance.disable_api_termination = request.json["DisableApiTermination.Value"] == "true"
            case "ModifyInstanceAttribute" if request.listed("GroupId"):
                instance = self._ec2(request).get_instance(request.json["InstanceId"])
                for nic in instance.nics.values():
                    nic._group_set = list(instance.security_groups)

    def _metadata_options(self, request: AwsRequest) -> dict[str, Any]:
        """An instance's options before they are modified."""
        if request.call.name != "ModifyInstanceMetadataOptions":
            return {}
        wanted = request.json["InstanceId"]
        instance = next((each for each in self.instances() if each.id == wanted), None)
        return dict(vars(instance.metadata_options)) if instance else {}

    def _keep_metadata_options(self, request: AwsRequest, former: dict[str, Any]) -> None:
        """moto forgets the options that a request leaves out."""
        for name, value in former.items():
            options = self._ec2(request).get_instance(request.json["InstanceId"]).metadata_options
            if getattr(options, name) is None:
                setattr(options, name, value)

    def _launched(self, request: AwsRequest, instance: Any) -> None:
        instance.launch_time = datetime.now(UTC)
        instance.disable_api_termination = request.json.get("DisableApiTermination") == "true"
        throughput = request.json.get("BlockDeviceMapping.1.Ebs.Throughput")
        iops = request.json.get("BlockDeviceMapping.1.Ebs.Iops")
        if volume := self.volume(instance):
            if volume.volume_type == "gp3":
                volume.throughput = int(throughput or 125)
            volume.iops = int(iops) if iops else volume.iops
        if template := iam.template(request.json, self._ec2(request)):
            self._of_template(instance, template.latest_version().data)

    def _of_template(self, instance: Any, data: Mapping[str, Any]) -> None:
        """What moto does not take over from a launch template."""
        behaviour = data.get("InstanceInitiatedShutdownBehavior")
        instance.instance_initiated_shutdown_behavior = behaviour or "stop"
        metadata = data.get("MetadataOptions") or {}
        instance.metadata_options.http_tokens = metadata.get("HttpTokens", "optional")
        if (data.get("InstanceMarketOptions") or {}).get("MarketType") == "spot":
            instance.lifecycle = "spot"
        if name := (data.get("IamInstanceProfile") or {}).get("Name"):
            instance.ec2_backend.associate_iam_instance_profile(instance.id, name)
        # It adds a root of its own beside the template's.
        wanted = {each["DeviceName"] for each in data.get("BlockDeviceMappings") or []}
        for device, extra in list(instance.block_device_mapping.items()):
            if wanted and device not in wanted:
                instance.ec2_backend.detach_volume(extra.volume_id, instance.id, device)
                instance.ec2_backend.delete_volume(extra.volume_id)


def _launch(request: AwsRequest) -> str:
    """What a client token stands for."""
    return str(sorted(request.json.items()))


def _hidden(thing: Any, lags: Sequence[Lag]) -> bool:
    """Whether a lag hides a thing, or every instance of a reservation."""
    ids = [each.id for each in getattr(thing, "instances", [thing])]
    return any(lag.hides(id_, listed=True) for lag in lags for id_ in ids)


def _tags(thing: Any) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in thing.get_tags()}
