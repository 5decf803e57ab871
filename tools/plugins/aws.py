"""Stand-in for pulumi-resource-aws 7.51.1, over the vendor's own client.

It serves the types that the program uses, with the real plugin's property names, defaults and rules of
replacement, and no property that the program does not use. Its calls have deadlines and are repeated by
botocore where nothing can happen twice: a launch carries one client token for all its tries.
"""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, ClassVar

from tools.plugins.base import Call, MadeInPart, Props, ProviderError, ResourceType, serve_provider

CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10, float(os.environ.get("AWS_READ_TIMEOUT_S", "60"))
ATTEMPTS = 6
# The real plugin's own defaults.
CREATE_TIMEOUT_S, UPDATE_TIMEOUT_S, DELETE_TIMEOUT_S = 600.0, 600.0, 1200.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
AGAIN = "run the same command again"
GONE = ("NotFound", "NoSuchEntity", "ResourceNotFoundException", "NotFoundException")

SETTINGS: Props = {}


class Refused(ProviderError):
    """AWS refused a call; `code` is AWS's own word."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def gone(self) -> bool:
        """What was asked for does not exist."""
        return any(word in self.code for word in GONE)


@cache
def client(service: str) -> Any:
    """The vendor's client, loaded at the first call: most commands of the engine make none."""
    import boto3  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415

    endpoints = SETTINGS.get("endpoints") or []
    if isinstance(endpoints, str):
        endpoints = json.loads(endpoints)
    url = next((each[service] for each in endpoints if each.get(service)), None)
    session: Any = boto3.Session(
        aws_access_key_id=SETTINGS.get("accessKey"),
        aws_secret_access_key=SETTINGS.get("secretKey"),
        aws_session_token=SETTINGS.get("token"),
        profile_name=SETTINGS.get("profile"),
        region_name=SETTINGS.get("region") or os.environ.get("AWS_REGION"),
    )
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        max_pool_connections=64,
        # A proxy of the environment cannot reach this machine's own loopback.
        proxies={} if url and url.startswith("http://127.") else None,
    )
    return session.client(service, endpoint_url=url, config=config)


def ask(service: str, operation: str, **arguments: Any) -> Props:
    """Calls AWS. Raises ProviderError naming the call and the fix."""
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415
    from botocore.parsers import ResponseParserError  # noqa: PLC0415

    given = {name: value for name, value in arguments.items() if value is not None}
    try:
        reply: Props = getattr(client(service), operation)(**given)
    except ClientError as error:
        told = error.response["Error"]
        raise Refused(
            f"{service} {operation}: AWS refused: {told['Code']}: {told.get('Message', '')} "
            f"Fix: {_fix(told['Code'])}",
            told["Code"],
        ) from None
    except (BotoCoreError, ResponseParserError, ValueError) as error:
        # A body that cannot be read is among these: the real plugin does not ask again then, either.
        raise ProviderError(
            f"{service} {operation}: no reply from AWS ({error}). "
            f"Fix: check the network, aws:region and the credentials, then {AGAIN}"
        ) from None
    found: Props = _whole(reply, f"{service} {operation}")
    return found


class Reply(dict[str, Any]):
    """What AWS answered. What a resource cannot be without is an error by its name, as in the real plugin."""

    def __init__(self, call: str, content: Mapping[str, Any] = MappingProxyType({})) -> None:
        super().__init__(content)
        self.call = call

    def __missing__(self, key: str) -> Any:
        raise ProviderError(f"{self.call}: AWS replied without {key}. Fix: {AGAIN}")


def _whole(value: Any, call: str) -> Any:
    if isinstance(value, Mapping):
        return Reply(call, {key: _whole(each, call) for key, each in value.items()})
    return [_whole(each, call) for each in value] if isinstance(value, list) else value


def _fix(code: str) -> str:
    match code:
        case "InsufficientInstanceCapacity":
            return "choose another subnet (zone) or type, or try again later"
        case "VcpuLimitExceeded" | "LimitExceeded" | "MaxSpotInstanceCountExceeded":
            return "raise the limit in Service Quotas, or choose another type"
        case "UnauthorizedOperation" | "AccessDenied" | "AccessDeniedException":
            return "give the credentials this permission"
        case "AuthFailure" | "InvalidClientTokenId" | "UnrecognizedClientException" | "ExpiredToken":
            return "give credentials that are valid (aws:profile, or AWS_ACCESS_KEY_ID and its secret)"
        case "OperationNotPermitted":
            return "lift the protection (protect: false), bring that up, then do this"
        case _:
            return f"correct what AWS names, then {AGAIN}"


def until(call: Call, look: Callable[[], Any], deadline_s: float, what: str) -> Any:
    """Looks until it sees something. Raises ProviderError after `deadline_s` seconds."""
    deadline, pause = time.monotonic() + deadline_s, FIRST_PAUSE_S
    while not (found := look()):
        if time.monotonic() + pause > deadline:
            raise ProviderError(
                f"waited {deadline_s:.0f} s for {what}. Fix: look at it in the AWS console, then {AGAIN}"
            )
        if call.cancelled.wait(pause):
            raise ProviderError(f"interrupted while waiting for {what}")
        pause = min(pause * 1.6, LONGEST_PAUSE_S)
    return found


def soon(look: Callable[[], Any]) -> Any:
    """What a look sees; one that sees nothing is repeated, for AWS shows late what is new."""
    for pause_s in (0.1, 0.2, 0.4, 0.8, 1.6):
        if found := look():
            return found
        time.sleep(pause_s)
    return look()


def auto_name(call: Call) -> str:
    """A name like those that Pulumi gives where the program gives none."""
    return f"{call.urn.rpartition('::')[2]}-{uuid.uuid4().hex[:7]}"


def tag_list(tags: Mapping[str, str] | None) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in (tags or {}).items()]


def tag_map(tags: Iterable[Mapping[str, str]] | None) -> dict[str, str]:
    return {each["Key"]: each["Value"] for each in tags or [] if not each["Key"].startswith("aws:")}


def specification(kind: str, tags: Mapping[str, str] | None) -> list[Props] | None:
    return [{"ResourceType": kind, "Tags": tag_list(tags)}] if tags else None


def retag(id_: str, old: Mapping[str, str] | None, new: Mapping[str, str] | None) -> None:
    """Makes an EC2 object's tags the new ones."""
    gone = [{"Key": key} for key in (old or {}).keys() - (new or {}).keys()]
    if gone:
        ask("ec2", "delete_tags", Resources=[id_], Tags=gone)
    if new and new != old:
        ask("ec2", "create_tags", Resources=[id_], Tags=tag_list(new))


def first(service: str, operation: str, field: str, **arguments: Any) -> Props | None:
    """The one thing asked for, or None where AWS has it not."""
    try:
        found = ask(service, operation, **arguments)[field]
    except Refused as error:
        if error.gone:
            return None
        raise
    return found[0] if found else None


def drop(service: str, operation: str, **arguments: Any) -> None:
    """Deletes; what is gone already counts as deleted."""
    try:
        ask(service, operation, **arguments)
    except Refused as error:
        if not error.gone:
            raise


class AwsType(ResourceType):
    """A type whose reads tell what AWS has of the properties that the program gave."""

    inputs: ClassVar[frozenset[str]]
    defaults: ClassVar[Mapping[str, Any]] = {}

    def check(self, inputs: Props) -> tuple[Props, dict[str, str]]:
        unserved = inputs.keys() - self.inputs - {"region"}
        failures = dict.fromkeys(unserved, "the stand-in plugin does not serve it")
        return {**self.defaults, **inputs}, failures

    def seen(self, id_: str, state: Props) -> Props | None:
        """Outputs that AWS has now; None where the object is gone."""
        raise NotImplementedError

    def read(self, call: Call, id_: str, state: Props, inputs: Props) -> tuple[Props, Props] | None:
        seen = self.seen(id_, state)
        if seen is None:
            return None
        known = inputs or {name: state[name] for name in self.inputs & state.keys()}
        if not known:  # an import
            known = self.imported(seen)
            return seen | known, known
        found = {name: _like(seen[name], given) for name, given in known.items() if name in seen}
        return state | seen | found, known | found

    def imported(self, seen: Props) -> Props:
        """The inputs that the real plugin makes of what it sees of an object that is imported."""
        return {name: seen[name] for name in self.inputs & seen.keys() if seen[name] not in (None, "", [])}

    def outputs(self, id_: str, inputs: Props) -> Props:
        """The outputs just after a change."""
        seen: Props | None = soon(lambda: self.seen(id_, inputs))
        if seen is None:
            raise ProviderError(f"{self.token} {id_}: is gone; Fix: {AGAIN}, with --refresh")
        return seen | inputs


def _like(seen: Any, given: Any) -> Any:
    """What is seen, as the program wrote it where it is the same: the order of sets means nothing."""
    if isinstance(given, list) and isinstance(seen, list):
        return given if sorted(map(str, seen)) == sorted(map(str, given)) else seen
    if isinstance(given, dict) and isinstance(seen, dict) and "volumeId" in seen:
        # The program's own keys alone: what it leaves to AWS cannot differ from it.
        return {name: seen[name] for name in given if name in seen}
    return seen


class Instance(AwsType):
    """An EC2 instance with its root volume."""

    token = "aws:ec2/instance:Instance"
    inputs = frozenset(
        {"ami", "instanceType", "keyName", "subnetId", "vpcSecurityGroupIds", "associatePublicIpAddress"}
        | {"iamInstanceProfile", "userDataBase64", "userDataReplaceOnChange", "metadataOptions", "tags"}
        | {"rootBlockDevice", "volumeTags", "disableApiTermination", "instanceMarketOptions", "forceDestroy"}
        | {"instanceInitiatedShutdownBehavior", "userData"}
    )
    replace_on = frozenset(
        {"ami", "keyName", "subnetId", "associatePublicIpAddress", "instanceMarketOptions", "userDataBase64"}
        | {"userData"}
    )
    computed = frozenset(
        {"arn", "availabilityZone", "instanceState", "privateIp", "publicIp", "primaryNetworkInterfaceId"}
    )
    defaults: ClassVar[Mapping[str, Any]] = {"userDataReplaceOnChange": False}

    def create(self, call: Call, inputs: Props) -> tuple[str, Props]:
        if inputs.get("userDataBase64") and not inputs["userDataReplaceOnChange"]:
            raise ProviderError("userDataReplaceOnChange: the stand-in plugin only knows true")
        launched = ask("ec2", "run_instances", **self._launch(inputs), ClientToken=uuid.uuid4().hex)
        id_ = next(iter(launched["Instances"]), Reply("ec2 run_instances"))["InstanceId"]
        self._wait(call, id_, "running", call.timeout_s or CREATE_TIMEOUT_S)
        return id_, self.outputs(id_, inputs)

    def _launch(self, inputs: Props) -> Props:
        image = first("ec2", "describe_images", "Images", ImageIds=[inputs["ami"]])
        if image is None:
            raise ProviderError(f"ami: {inputs['ami']} does not exist in this region; Fix: choose another")
        root, options = inputs.get("rootBlockDevice") or {}, inputs.get("metadataOptions") or {}
        market = inputs.get("instanceMarketOptions")
        public = inputs.get("associatePublicIpAddress")
        network: Props = {
            "SubnetId": inputs.get("subnetId"),
            "SecurityGroupIds": inputs["vpcSecurityGroupIds"],
        }
        if public is not None:
            interface = {"DeviceIndex": 0, "AssociatePublicIpAddress": public, "DeleteOnTermination": True}
            network = {
                "NetworkInterfaces": [
                    interface | {"SubnetId": inputs["subnetId"], "Groups": inputs["vpcSecurityGroupIds"]}
                ]
            }
        profile = inputs.get("iamInstanceProfile")
        names = {
            "volumeSize": "VolumeSize",
            "volumeType": "VolumeType",
            "iops": "Iops",
            "throughput": "Throughput",
            "encrypted": "Encrypted",
            "kmsKeyId": "KmsKeyId",
        }
        ebs = {theirs: root[ours] for ours, theirs in names.items() if ours in root}
        tags = [
            *(specification("instance", inputs.get("tags")) or []),
            *(specification("volume", inputs.get("volumeTags")) or []),
        ]
        return network | {
            "ImageId": inputs["ami"],
            "InstanceType": inputs["instanceType"],
            "MinCount": 1,
            "MaxCount": 1,
            "KeyName": inputs.get("keyName"),
            "UserData": _from_base64(inputs.get("userDataBase64")),
            "IamInstanceProfile": {"Name": profile} if profile else None,
            "DisableApiTermination": inputs.get("disableApiTermination"),
            "InstanceInitiatedShutdownBehavior": inputs.get("instanceInitiatedShutdownBehavior"),
            "MetadataOptions": _metadata_options(options) if options else None,
            "InstanceMarketOptions": _market_options(market) if market else None,
            "BlockDeviceMappings": [
                {
                    "DeviceName": image["RootDeviceName"],
                    "Ebs": ebs | {"DeleteOnTermination": root.get("deleteOnTermination", True)},
                }
            ],
            "TagSpecifications": tags or None,
        }

    def seen(self, id_: str, state: Props) -> Props | None:
        instance = _instance(id_)
        if instance is None or instance["State"]["Name"] in ("terminated", "shutting-down"):
            return None

        def attribute(name: str, field: str) -> Any:
            reply = ask("ec2", "describe_instance_attribute", InstanceId=id_, Attribute=name)
            return reply.get(field, {}).get("Value")

        interface = instance["NetworkInterfaces"][0] if instance.get("NetworkInterfaces") else {}
        volume = _root_volume(instance)
        options = instance["MetadataOptions"]
        profile = instance.get("IamInstanceProfile", {}).get("Arn", "")
        seen: Props = {
            "ami": instance["ImageId"],
            "instanceType": instance["InstanceType"],
            "subnetId": instance.get("SubnetId"),
            "vpcSecurityGroupIds": [each["GroupId"] for each in interface.get("Groups", [])],
            "metadataOptions": {
                "httpEndpoint": options["HttpEndpoint"],
                "httpTokens": options["HttpTokens"],
                "httpPutResponseHopLimit": options["HttpPutResponseHopLimit"],
            },
            "tags": tag_map(instance.get("Tags")),
            "disableApiTermination": attribute("disableApiTermination", "DisableApiTermination"),
            **_user_data(attribute("userData", "UserData"), state),
            "keyName": instance.get("KeyName"),
            "iamInstanceProfile": profile.rpartition("/")[2] or None,
            "arn": f"arn:aws:ec2:{client('ec2').meta.region_name}:{_account()}:instance/{id_}",
            "availabilityZone": instance["Placement"]["AvailabilityZone"],
            "instanceState": instance["State"]["Name"],
            "privateIp": instance.get("PrivateIpAddress"),
            "publicIp": instance.get("PublicIpAddress", ""),
            "primaryNetworkInterfaceId": interface.get("NetworkInterfaceId"),
            # As the real plugin: whether there is an address now. A machine that is off has none.
            "associatePublicIpAddress": bool(interface.get("Association")),
        }
        if volume:
            seen["rootBlockDevice"] = {
                "volumeId": volume["VolumeId"],
                "volumeSize": volume["Size"],
                "volumeType": volume["VolumeType"],
                "iops": volume.get("Iops"),
                "throughput": volume.get("Throughput"),
                "encrypted": volume["Encrypted"],
                "deleteOnTermination": _deleted_with(instance, volume),
            }
            seen["volumeTags"] = tag_map(volume.get("Tags"))
        return seen

    def outputs(self, id_: str, inputs: Props) -> Props:
        outputs = super().outputs(id_, inputs)
        volume = _root_volume(_instance(id_) or {})
        if volume and "rootBlockDevice" in outputs:
            outputs["rootBlockDevice"] = {**outputs["rootBlockDevice"], "volumeId": volume["VolumeId"]}
        return outputs

    def update(self, call: Call, id_: str, state: Props, inputs: Props) -> Props:
        deadline_s = call.timeout_s or UPDATE_TIMEOUT_S

        def changed(name: str) -> bool:
            return bool(inputs.get(name) != state.get(name))

        retag(id_, state.get("tags"), inputs.get("tags"))
        volume = _root_volume(_instance(id_) or {})
        if volume:
            retag(volume["VolumeId"], state.get("volumeTags"), inputs.get("volumeTags"))
            self._grow(call, volume, inputs.get("rootBlockDevice") or {}, deadline_s)
        if changed("vpcSecurityGroupIds"):
            ask("ec2", "modify_instance_attribute", InstanceId=id_, Groups=inputs["vpcSecurityGroupIds"])
        if changed("disableApiTermination"):
            protected = {"Value": bool(inputs.get("disableApiTermination"))}
            ask("ec2", "modify_instance_attribute", InstanceId=id_, DisableApiTermination=protected)
        if changed("metadataOptions"):
            options = _metadata_options(inputs["metadataOptions"])
            ask("ec2", "modify_instance_metadata_options", InstanceId=id_, **options)
        if changed("instanceType"):
            # As the real plugin does: the machine is off meanwhile.
            ask("ec2", "stop_instances", InstanceIds=[id_])
            self._wait(call, id_, "stopped", deadline_s)
            kind = {"Value": inputs["instanceType"]}
            ask("ec2", "modify_instance_attribute", InstanceId=id_, InstanceType=kind)
            ask("ec2", "start_instances", InstanceIds=[id_])
            self._wait(call, id_, "running", deadline_s)
        return self.outputs(id_, inputs)

    def _grow(self, call: Call, volume: Props, wanted: Props, deadline_s: float) -> None:
        fields = {
            "volumeSize": "Size",
            "volumeType": "VolumeType",
            "iops": "Iops",
            "throughput": "Throughput",
        }
        changed = {
            theirs: wanted[ours]
            for ours, theirs in fields.items()
            if ours in wanted and wanted[ours] != volume.get(theirs)
        }
        if not changed:
            return
        id_ = volume["VolumeId"]
        ask("ec2", "modify_volume", VolumeId=id_, **changed)
        until(
            call,
            lambda: (
                first("ec2", "describe_volumes", "Volumes", VolumeIds=[id_], Filters=None)["Size"]  # type: ignore[index]
                == wanted.get("volumeSize", volume["Size"])
            ),
            deadline_s,
            f"volume {id_} to be {wanted.get('volumeSize')} GiB",
        )

    def delete(self, call: Call, id_: str, state: Props) -> None:
        if state.get("forceDestroy"):
            lifted = {"Value": False}
            drop("ec2", "modify_instance_attribute", InstanceId=id_, DisableApiTermination=lifted)
        drop("ec2", "terminate_instances", InstanceIds=[id_])
        self._wait(call, id_, "terminated", call.timeout_s or DELETE_TIMEOUT_S)

    def _wait(self, call: Call, id_: str, state: str, deadline_s: float) -> None:
        def reached() -> bool:
            instance = _instance(id_)
            now = instance["State"]["Name"] if instance else "not shown"
            if now == "not shown" and state == "terminated":
                return True
            if now == "terminated" != state:
                reason = (instance or {}).get("StateReason", {}).get("Message", "no reason was given")
                raise ProviderError(f"instance {id_} ended before it was {state}: {reason}. Fix: {AGAIN}")
            return bool(now == state)

        until(call, reached, deadline_s, f"instance {id_} to be {state}")


def _instance(id_: str) -> Props | None:
    reservation = first("ec2", "describe_instances", "Reservations", InstanceIds=[id_])
    found: Props | None = reservation["Instances"][0] if reservation else None
    return found


def _root_volume(instance: Props) -> Props | None:
    devices = instance.get("BlockDeviceMappings") or []
    root = next((each for each in devices if each["DeviceName"] == instance["RootDeviceName"]), None)
    return first("ec2", "describe_volumes", "Volumes", VolumeIds=[root["Ebs"]["VolumeId"]]) if root else None


def _user_data(encoded: str | None, state: Props) -> Props:
    """Of user data that the program did not give, as of a machine that is imported, the digest alone."""
    data = _from_base64(encoded)
    if data and not state.get("userDataBase64"):
        return {"userData": hashlib.sha1(data).hexdigest()}
    return {"userDataBase64": encoded}


def _deleted_with(instance: Props, volume: Props) -> bool:
    devices = instance.get("BlockDeviceMappings") or []
    return any(
        each["Ebs"].get("DeleteOnTermination", True)
        for each in devices
        if each["Ebs"]["VolumeId"] == volume["VolumeId"]
    )


def _from_base64(text: str | None) -> bytes | None:
    import base64  # noqa: PLC0415 - botocore encodes it again

    return base64.b64decode(text) if text else None


def _metadata_options(options: Props) -> Props:
    names = {
        "httpEndpoint": "HttpEndpoint",
        "httpTokens": "HttpTokens",
        "httpPutResponseHopLimit": "HttpPutResponseHopLimit",
    }
    return {theirs: options[ours] for ours, theirs in names.items() if ours in options}


def _market_options(options: Props) -> Props:
    names = {
        "instanceInterruptionBehavior": "InstanceInterruptionBehavior",
        "maxPrice": "MaxPrice",
        "spotInstanceType": "SpotInstanceType",
    }
    spot = options.get("spotOptions") or {}
    return {
        "MarketType": options["marketType"],
        "SpotOptions": {theirs: spot[ours] for ours, theirs in names.items() if ours in spot},
    }


class SecurityGroup(AwsType):
    """A security group with its rules: one that is added behind its back is seen."""

    token = "aws:ec2/securityGroup:SecurityGroup"
    inputs = frozenset(
        {"name", "namePrefix", "description", "vpcId", "ingress", "egress", "tags", "revokeRulesOnDelete"}
    )
    replace_on = frozenset({"name", "namePrefix", "description", "vpcId"})
    computed = frozenset({"arn", "name", "ownerId"})
    defaults: ClassVar[Mapping[str, Any]] = {"description": "Managed by Pulumi", "revokeRulesOnDelete": False}
    directions: ClassVar[Mapping[str, str]] = {"ingress": "IpPermissions", "egress": "IpPermissionsEgress"}

    def create(self, call: Call, inputs: Props) -> tuple[str, Props]:
        made = ask(
            "ec2",
            "create_security_group",
            GroupName=inputs.get("name") or f"{inputs['namePrefix']}{time.time_ns()}",
            Description=inputs["description"],
            VpcId=inputs.get("vpcId"),
            TagSpecifications=specification("security-group", inputs.get("tags")),
        )
        id_ = made["GroupId"]
        try:
            self._set_rules(id_, inputs)
        except ProviderError as error:
            raise MadeInPart(id_, inputs, error) from None
        return id_, self.outputs(id_, inputs)

    def seen(self, id_: str, state: Props) -> Props | None:
        group = first("ec2", "describe_security_groups", "SecurityGroups", GroupIds=[id_])
        if group is None:
            return None
        rules = {
            ours: _like([_rule_seen(each, id_) for each in group[theirs]], state.get(ours))
            for ours, theirs in self.directions.items()
        }
        return rules | {
            "name": group["GroupName"],
            "description": group["Description"],
            "vpcId": group["VpcId"],
            "tags": tag_map(group.get("Tags")),
            "ownerId": group["OwnerId"],
            "arn": f"arn:aws:ec2:{client('ec2').meta.region_name}:{group['OwnerId']}:security-group/{id_}",
        }

    def update(self, call: Call, id_: str, state: Props, inputs: Props) -> Props:
        retag(id_, state.get("tags"), inputs.get("tags"))
        self._set_rules(id_, inputs)
        return self.outputs(id_, inputs)

    def delete(self, call: Call, id_: str, state: Props) -> None:
        def deleted() -> bool:
            try:
                drop("ec2", "delete_security_group", GroupId=id_)
            except Refused as error:
                if error.code != "DependencyViolation":
                    raise
                return False
            return True

        until(call, deleted, call.timeout_s or DELETE_TIMEOUT_S, f"security group {id_} to be out of use")

    def _set_rules(self, id_: str, inputs: Props) -> None:
        group = soon(lambda: first("ec2", "describe_security_groups", "SecurityGroups", GroupIds=[id_]))
        if group is None:
            raise ProviderError(f"security group {id_} does not exist. Fix: {AGAIN}, with --refresh")
        for ours, theirs in self.directions.items():
            if ours not in inputs:
                continue
            wanted = [_permission(each, id_) for each in inputs[ours]]
            there = [_bare(each) for each in group[theirs]]
            gone = [each for each in there if each not in wanted]
            new = [each for each in wanted if each not in there]
            if gone:
                ask("ec2", f"revoke_security_group_{ours}", GroupId=id_, IpPermissions=gone)
            if new:
                ask("ec2", f"authorize_security_group_{ours}", GroupId=id_, IpPermissions=new)


def _permission(rule: Props, group: str) -> Props:
    """A rule as EC2 takes it."""
    note = {"Description": rule["description"]} if rule.get("description") else {}
    others = [*(rule.get("securityGroups") or []), *([group] if rule.get("self") else [])]
    permission: Props = {
        "IpProtocol": str(rule["protocol"]),
        "IpRanges": [{"CidrIp": cidr, **note} for cidr in rule.get("cidrBlocks") or []],
        "Ipv6Ranges": [{"CidrIpv6": cidr, **note} for cidr in rule.get("ipv6CidrBlocks") or []],
        "UserIdGroupPairs": [{"GroupId": other, **note} for other in others],
    }
    if permission["IpProtocol"] != "-1":
        permission |= {"FromPort": rule["fromPort"], "ToPort": rule["toPort"]}
    return {name: value for name, value in permission.items() if value != []}


def _bare(permission: Props) -> Props:
    """A rule as EC2 tells it, with what it would take of it."""
    pairs = [
        {name: each[name] for name in ("GroupId", "Description") if each.get(name)}
        for each in permission.get("UserIdGroupPairs", [])
    ]
    kept = {name: permission.get(name) for name in ("IpProtocol", "IpRanges", "Ipv6Ranges")}
    kept["UserIdGroupPairs"] = pairs
    if permission["IpProtocol"] != "-1":
        kept |= {"FromPort": permission["FromPort"], "ToPort": permission["ToPort"]}
    return {name: value for name, value in kept.items() if value}


def _rule_seen(permission: Props, group: str) -> Props:
    """A rule as the program writes it."""
    bare = _bare(permission)
    ranges, ranges6 = bare.get("IpRanges", []), bare.get("Ipv6Ranges", [])
    pairs = bare.get("UserIdGroupPairs", [])
    others = [each["GroupId"] for each in pairs]
    rule: Props = {
        "protocol": bare["IpProtocol"],
        "fromPort": bare.get("FromPort", 0),
        "toPort": bare.get("ToPort", 0),
        "cidrBlocks": [each["CidrIp"] for each in ranges],
        "ipv6CidrBlocks": [each["CidrIpv6"] for each in ranges6],
        "securityGroups": [other for other in others if other != group],
        "self": group in others,
        "description": next(
            (each["Description"] for each in [*ranges, *ranges6, *pairs] if "Description" in each), ""
        ),
    }
    return {name: value for name, value in rule.items() if value is not False and value not in ([], "")}


class KeyPair(AwsType):
    """A public key that EC2 puts on machines. Its id is its name."""

    token = "aws:ec2/keyPair:KeyPair"
    inputs = frozenset({"keyName", "publicKey", "tags"})
    replace_on = frozenset({"keyName", "publicKey"})
    computed = frozenset({"keyPairId", "fingerprint", "keyType"})

    def create(self, call: Call, inputs: Props) -> tuple[str, Props]:
        ask(
            "ec2",
            "import_key_pair",
            KeyName=inputs["keyName"],
            PublicKeyMaterial=inputs["publicKey"].encode(),
            TagSpecifications=specification("key-pair", inputs.get("tags")),
        )
        return inputs["keyName"], self.outputs(inputs["keyName"], inputs)

    def seen(self, id_: str, state: Props) -> Props | None:
        pair = first("ec2", "describe_key_pairs", "KeyPairs", KeyNames=[id_])
        return pair and {
            "keyPairId": pair["KeyPairId"],
            "fingerprint": pair["KeyFingerprint"],
            "keyType": pair["KeyType"],
            "tags": tag_map(pair.get("Tags")),
        }

    def update(self, call: Call, id_: str, state: Props, inputs: Props) -> Props:
        retag(state["keyPairId"], state.get("tags"), inputs.get("tags"))
        return self.outputs(id_, inputs)

    def delete(self, call: Call, id_: str, state: Props) -> None:
        drop("ec2", "delete_key_pair", KeyName=id_)


class Eip(AwsType):
    """An address that stays, on an instance."""

    token = "aws:ec2/eip:Eip"
    inputs = frozenset({"domain", "instance", "tags"})
    replace_on = frozenset({"domain"})
    computed = frozenset({"allocationId", "associationId", "publicIp"})

    def create(self, call: Call, inputs: Props) -> tuple[str, Props]:
        made = ask(
            "ec2",
            "allocate_address",
            Domain=inputs.get("domain"),
            TagSpecifications=specification("elastic-ip", inputs.get("tags")),
        )
        if inputs.get("instance"):
            ask("ec2", "associate_address", AllocationId=made["AllocationId"], InstanceId=inputs["instance"])
        return made["AllocationId"], self.outputs(made["AllocationId"], inputs)

    def seen(self, id_: str, state: Props) -> Props | None:
        address = first("ec2", "describe_addresses", "Addresses", AllocationIds=[id_])
        return address and {
            "allocationId": id_,
            "associationId": address.get("AssociationId", ""),
            "publicIp": address["PublicIp"],
            "instance": address.get("InstanceId", ""),
            "tags": tag_map(address.get("Tags")),
        }

    def update(self, call: Call, id_: str, state: Props, inputs: Props) -> Props:
        retag(id_, state.get("tags"), inputs.get("tags"))
        if inputs.get("instance") != state.get("instance"):
            ask(
                "ec2",
                "associate_address",
                AllocationId=id_,
                InstanceId=inputs["instance"],
                AllowReassociation=True,
            )
        return self.outputs(id_, inputs)

    def delete(self, call: Call, id_: str, state: Props) -> None:
        seen = self.seen(id_, state)
        if seen and seen["associationId"]:
            drop("ec2", "disassociate_address", AssociationId=seen["associationId"])
        drop("ec2", "release_address", AllocationId=id_)


class Role(AwsType):
    """An IAM role. Its id is its name."""

    token = "aws:iam/role:Role"
    inputs = frozenset({"name", "path", "assumeRolePolicy", "description", "tags"})
    replace_on = frozenset({"name", "path"})
    computed = frozenset({"name", "arn", "uniqueId"})

    def create(self, call: Call, inputs: Props) -> tuple[str, Props]:
        name = inputs.get("name") or auto_name(call)
        ask(
            "iam",
            "create_role",
            RoleName=name,
            Path=inputs.get("path"),
            AssumeRolePolicyDocument=inputs["assumeRolePolicy"],
            Description=inputs.get("description"),
            Tags=tag_list(inputs.get("tags")),
        )
        return name, self.outputs(name, inputs)

    def seen(self, id_: str, state: Props) -> Props | None:
        try:
            role = ask("iam", "get_role", RoleName=id_)["Role"]
        except Refused as error:
            if error.gone:
                return None
            raise
        return {
            "name": id_,
            "arn": role["Arn"],
            "uniqueId": role["RoleId"],
            "path": role["Path"],
            "assumeRolePolicy": _same_document(
                role["AssumeRolePolicyDocument"], state.get("assumeRolePolicy")
            ),
            "tags": tag_map(role.get("Tags")),
        }

    def update(self, call: Call, id_: str, state: Props, inputs: Props) -> Props:
        if inputs["assumeRolePolicy"] != state.get("assumeRolePolicy"):
            document = inputs["assumeRolePolicy"]
            ask("iam", "update_assume_role_policy", RoleName=id_, PolicyDocument=document)
        if gone := list((state.get("tags") or {}).keys() - (inputs.get("tags") or {}).keys()):
            ask("iam", "untag_role", RoleName=id_, TagKeys=gone)
        if inputs.get("tags"):
            ask("iam", "tag_role", RoleName=id_, Tags=tag_list(inputs["tags"]))
        return self.outputs(id_, inputs)

    def delete(self, call: Call, id_: str, state: Props) -> None:
        drop("iam", "delete_role", RoleName=id_)


def _same_document(seen: Any, given: str | None) -> str:
    """A policy document as the program wrote it, if it says the same."""
    document = json.loads(seen) if isinstance(seen, str) else seen
    return given if given and json.loads(given) == document else json.dumps(document)


class RolePolicy(AwsType):
    """A role's own policy. Its id is `role:policy`."""

    token = "aws:iam/rolePolicy:RolePolicy"
    inputs = frozenset({"name", "role", "policy"})
    replace_on = frozenset({"name", "role"})

    computed = frozenset({"name"})

    def create(self, call: Call, inputs: Props) -> tuple[str, Props]:
        named = {"name": auto_name(call)} | inputs
        self._put(named)
        return f"{named['role']}:{named['name']}", named

    def seen(self, id_: str, state: Props) -> Props | None:
        role, _, name = id_.partition(":")
        try:
            found = ask("iam", "get_role_policy", RoleName=role, PolicyName=name)
        except Refused as error:
            if error.gone:
                return None
            raise
        return {"name": name, "policy": _same_document(found["PolicyDocument"], state.get("policy"))}

    def update(self, call: Call, id_: str, state: Props, inputs: Props) -> Props:
        named = {"name": id_.partition(":")[2]} | inputs
        self._put(named)
        return named

    def delete(self, call: Call, id_: str, state: Props) -> None:
        role, _, name = id_.partition(":")
        drop("iam", "delete_role_policy", RoleName=role, PolicyName=name)

    def _put(self, inputs: Props) -> None:
        ask(
            "iam",
            "put_role_policy",
            RoleName=inputs["role"],
            PolicyName=inputs["name"],
            PolicyDocument=inputs["policy"],
        )


class InstanceProfile(AwsType):
    """What gives an instance its role. Its id is its name."""

    token = "aws:iam/instanceProfile:InstanceProfile"
    inputs = frozenset({"name", "path", "role", "tags"})
    replace_on = frozenset({"name", "path"})
    computed = frozenset({"name", "arn", "uniqueId"})

    def create(self, call: Call, inputs: Props) -> tuple[str, Props]:
        name = inputs.get("name") or auto_name(call)
        ask(
            "iam",
            "create_instance_profile",
            InstanceProfileName=name,
            Path=inputs.get("path"),
            Tags=tag_list(inputs.get("tags")),
        )
        ask("iam", "add_role_to_instance_profile", InstanceProfileName=name, RoleName=inputs["role"])
        return name, self.outputs(name, inputs)

    def seen(self, id_: str, state: Props) -> Props | None:
        try:
            profile = ask("iam", "get_instance_profile", InstanceProfileName=id_)["InstanceProfile"]
        except Refused as error:
            if error.gone:
                return None
            raise
        return {
            "name": id_,
            "arn": profile["Arn"],
            "uniqueId": profile["InstanceProfileId"],
            "path": profile["Path"],
            "role": profile["Roles"][0]["RoleName"] if profile["Roles"] else "",
        }

    def update(self, call: Call, id_: str, state: Props, inputs: Props) -> Props:
        seen = self.seen(id_, state) or {}
        if inputs["role"] != seen.get("role"):
            if seen.get("role"):
                role = seen["role"]
                ask("iam", "remove_role_from_instance_profile", InstanceProfileName=id_, RoleName=role)
            ask("iam", "add_role_to_instance_profile", InstanceProfileName=id_, RoleName=inputs["role"])
        return self.outputs(id_, inputs)

    def delete(self, call: Call, id_: str, state: Props) -> None:
        role = state["role"]
        drop("iam", "remove_role_from_instance_profile", InstanceProfileName=id_, RoleName=role)
        drop("iam", "delete_instance_profile", InstanceProfileName=id_)


class LaunchTemplate(AwsType):
    """What instances of one kind are launched from; a change is a new version, which becomes the default."""

    token = "aws:ec2/launchTemplate:LaunchTemplate"
    inputs = frozenset(
        {
            "name",
            "imageId",
            "instanceType",
            "keyName",
            "userData",
            "vpcSecurityGroupIds",
            "iamInstanceProfile",
        }
        | {"metadataOptions", "blockDeviceMappings", "instanceInitiatedShutdownBehavior", "tags"}
        | {"instanceMarketOptions", "tagSpecifications", "updateDefaultVersion"}
    )
    replace_on = frozenset({"name"})
    computed = frozenset({"arn", "latestVersion", "defaultVersion"})

    def create(self, call: Call, inputs: Props) -> tuple[str, Props]:
        made = ask(
            "ec2",
            "create_launch_template",
            LaunchTemplateName=inputs["name"],
            LaunchTemplateData=_pascal(self._data(inputs)),
            TagSpecifications=specification("launch-template", inputs.get("tags")),
            ClientToken=uuid.uuid4().hex,
        )
        id_ = made["LaunchTemplate"]["LaunchTemplateId"]
        return id_, self.outputs(id_, inputs)

    def seen(self, id_: str, state: Props) -> Props | None:
        found = first("ec2", "describe_launch_templates", "LaunchTemplates", LaunchTemplateIds=[id_])
        if found is None:
            return None
        version = first(
            "ec2",
            "describe_launch_template_versions",
            "LaunchTemplateVersions",
            LaunchTemplateId=id_,
            Versions=["$Default"],
        )
        data = (version or {}).get("LaunchTemplateData", {})
        written = _pascal(self._data(state))
        same = all(data.get(name) == value for name, value in written.items())
        # One that was changed behind its back differs in its image, so that the next update writes it anew.
        drifted = {} if same else {"imageId": data.get("ImageId"), "instanceType": data.get("InstanceType")}
        return drifted | {
            "arn": f"arn:aws:ec2:{client('ec2').meta.region_name}:{_account()}:launch-template/{id_}",
            "latestVersion": found["LatestVersionNumber"],
            "defaultVersion": found["DefaultVersionNumber"],
            "tags": tag_map(found.get("Tags")),
        }

    def update(self, call: Call, id_: str, state: Props, inputs: Props) -> Props:
        retag(id_, state.get("tags"), inputs.get("tags"))
        if self._data(inputs) != self._data(state):
            data = _pascal(self._data(inputs))
            made = ask(
                "ec2",
                "create_launch_template_version",
                LaunchTemplateId=id_,
                LaunchTemplateData=data,
                ClientToken=uuid.uuid4().hex,
            )
            version = str(made["LaunchTemplateVersion"]["VersionNumber"])
            if inputs.get("updateDefaultVersion"):
                ask("ec2", "modify_launch_template", LaunchTemplateId=id_, DefaultVersion=version)
        return self.outputs(id_, inputs)

    def delete(self, call: Call, id_: str, state: Props) -> None:
        drop("ec2", "delete_launch_template", LaunchTemplateId=id_)

    def _data(self, inputs: Props) -> Props:
        data = {
            name: inputs[name]
            for name in self.inputs - {"name", "tags", "updateDefaultVersion"}
            if name in inputs
        }
        renamed = {"vpcSecurityGroupIds": "securityGroupIds"}
        return {renamed.get(name, name): value for name, value in data.items()}


@cache
def _account() -> str:
    return str(ask("sts", "get_caller_identity")["Account"])


def _pascal(value: Any, key: str = "") -> Any:
    """Properties as EC2 names them: `instanceType` is `InstanceType`, and a map of tags a list."""
    if isinstance(value, dict):
        if key == "tags":
            return tag_list(value)
        return {f"{name[0].upper()}{name[1:]}": _pascal(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_pascal(item) for item in value]
    # These are numbers to EC2 and texts to the provider's schema, or the other way round.
    return (
        value == "true" if key in ("encrypted", "deleteOnTermination") and isinstance(value, str) else value
    )


class FileSystem(AwsType):
    """An EFS file system."""

    token = "aws:efs/fileSystem:FileSystem"
    inputs = frozenset({"creationToken", "encrypted", "throughputMode", "performanceMode", "tags"})
    replace_on = frozenset({"creationToken", "encrypted", "performanceMode"})
    computed = frozenset({"arn", "dnsName"})

    def create(self, call: Call, inputs: Props) -> tuple[str, Props]:
        made = ask(
            "efs",
            "create_file_system",
            CreationToken=inputs.get("creationToken") or uuid.uuid4().hex,
            Encrypted=inputs.get("encrypted"),
            ThroughputMode=inputs.get("throughputMode"),
            PerformanceMode=inputs.get("performanceMode"),
            Tags=tag_list(inputs.get("tags")),
        )
        id_ = made["FileSystemId"]
        self._wait(call, id_)
        return id_, self.outputs(id_, inputs)

    def seen(self, id_: str, state: Props) -> Props | None:
        found = first("efs", "describe_file_systems", "FileSystems", FileSystemId=id_)
        region = client("efs").meta.region_name
        return found and {
            "arn": found.get("FileSystemArn"),
            "dnsName": f"{id_}.efs.{region}.amazonaws.com",
            "encrypted": found.get("Encrypted"),
            "throughputMode": found.get("ThroughputMode"),
            "tags": tag_map(found.get("Tags")),
        }

    def update(self, call: Call, id_: str, state: Props, inputs: Props) -> Props:
        if gone := list((state.get("tags") or {}).keys() - (inputs.get("tags") or {}).keys()):
            ask("efs", "untag_resource", ResourceId=id_, TagKeys=gone)
        ask("efs", "tag_resource", ResourceId=id_, Tags=tag_list(inputs.get("tags")))
        if inputs.get("throughputMode") != state.get("throughputMode"):
            mode = inputs.get("throughputMode")
            ask("efs", "update_file_system", FileSystemId=id_, ThroughputMode=mode)
        return self.outputs(id_, inputs)

    def delete(self, call: Call, id_: str, state: Props) -> None:
        drop("efs", "delete_file_system", FileSystemId=id_)
        until(
            call,
            lambda: first("efs", "describe_file_systems", "FileSystems", FileSystemId=id_) is None,
            call.timeout_s or DELETE_TIMEOUT_S,
            f"file system {id_} to be deleted",
        )

    def _wait(self, call: Call, id_: str) -> None:
        def available() -> bool:
            found = first("efs", "describe_file_systems", "FileSystems", FileSystemId=id_)
            return bool(found and found["LifeCycleState"] == "available")

        until(call, available, call.timeout_s or CREATE_TIMEOUT_S, f"file system {id_} to be available")


class MountTarget(AwsType):
    """Where a subnet's machines reach a file system."""

    token = "aws:efs/mountTarget:MountTarget"
    inputs = frozenset({"fileSystemId", "subnetId", "securityGroups"})
    replace_on = frozenset({"fileSystemId", "subnetId"})
    computed = frozenset({"ipAddress", "dnsName", "availabilityZoneName"})

    def create(self, call: Call, inputs: Props) -> tuple[str, Props]:
        made = ask(
            "efs",
            "create_mount_target",
            FileSystemId=inputs["fileSystemId"],
            SubnetId=inputs["subnetId"],
            SecurityGroups=inputs.get("securityGroups"),
        )
        id_ = made["MountTargetId"]

        def available() -> bool:
            found = first("efs", "describe_mount_targets", "MountTargets", MountTargetId=id_)
            return bool(found and found["LifeCycleState"] == "available")

        until(call, available, call.timeout_s or CREATE_TIMEOUT_S, f"mount target {id_} to be available")
        return id_, self.outputs(id_, inputs)

    def seen(self, id_: str, state: Props) -> Props | None:
        found = first("efs", "describe_mount_targets", "MountTargets", MountTargetId=id_)
        if found is None:
            return None
        groups = ask("efs", "describe_mount_target_security_groups", MountTargetId=id_)["SecurityGroups"]
        region = client("efs").meta.region_name
        return {
            "ipAddress": found["IpAddress"],
            "dnsName": f"{found['FileSystemId']}.efs.{region}.amazonaws.com",
            "availabilityZoneName": found.get("AvailabilityZoneName"),
            "securityGroups": groups,
        }

    def update(self, call: Call, id_: str, state: Props, inputs: Props) -> Props:
        groups = inputs.get("securityGroups")
        ask("efs", "modify_mount_target_security_groups", MountTargetId=id_, SecurityGroups=groups)
        return self.outputs(id_, inputs)

    def delete(self, call: Call, id_: str, state: Props) -> None:
        drop("efs", "delete_mount_target", MountTargetId=id_)
        until(
            call,
            lambda: first("efs", "describe_mount_targets", "MountTargets", MountTargetId=id_) is None,
            call.timeout_s or DELETE_TIMEOUT_S,
            f"mount target {id_} to be deleted",
        )


class LogGroup(AwsType):
    """A CloudWatch log group. Its id is its name."""

    token = "aws:cloudwatch/logGroup:LogGroup"
    inputs = frozenset({"name", "retentionInDays", "tags"})
    replace_on = frozenset({"name"})
    computed = frozenset({"arn"})

    def create(self, call: Call, inputs: Props) -> tuple[str, Props]:
        name = inputs["name"]
        ask("logs", "create_log_group", logGroupName=name, tags=inputs.get("tags"))
        self._retain(inputs)
        return name, self.outputs(name, inputs)

    def seen(self, id_: str, state: Props) -> Props | None:
        groups = ask("logs", "describe_log_groups", logGroupNamePrefix=id_)["logGroups"]
        found = next((each for each in groups if each["logGroupName"] == id_), None)
        return found and {"arn": found["arn"], "retentionInDays": found.get("retentionInDays", 0)}

    def update(self, call: Call, id_: str, state: Props, inputs: Props) -> Props:
        self._retain(inputs)
        return self.outputs(id_, inputs)

    def delete(self, call: Call, id_: str, state: Props) -> None:
        drop("logs", "delete_log_group", logGroupName=id_)

    def _retain(self, inputs: Props) -> None:
        if days := inputs.get("retentionInDays"):
            ask(
                "logs",
                "put_retention_policy",
                logGroupName=inputs["name"],
                retentionInDays=days,
            )


def get_parameter(call: Call, inputs: Props) -> Props:
    """`aws:ssm/getParameter:getParameter`"""
    found = ask("ssm", "get_parameter", Name=inputs["name"], WithDecryption=True)["Parameter"]
    kept = {"arn": found["ARN"], "type": found["Type"], "version": found["Version"]}
    return inputs | kept | {"id": inputs["name"], "value": found["Value"], "insecureValue": found["Value"]}


def get_ami(call: Call, inputs: Props) -> Props:
    """`aws:ec2/getAmi:getAmi`"""
    filters = [{"Name": each["name"], "Values": each["values"]} for each in inputs.get("filters") or []]
    images = ask("ec2", "describe_images", Owners=inputs.get("owners"), Filters=filters)["Images"]
    if not images:
        raise ProviderError("getAmi: no image matches; Fix: correct ami_source")
    if len(images) > 1 and not inputs.get("mostRecent"):
        raise ProviderError("getAmi: several images match; Fix: be more specific, or ask for the most recent")
    newest = max(images, key=lambda image: str(image.get("CreationDate")))
    return inputs | {
        "id": newest["ImageId"],
        "imageId": newest["ImageId"],
        "name": newest["Name"],
        "description": newest.get("Description", ""),
        "creationDate": str(newest.get("CreationDate")),
        "architecture": newest["Architecture"],
        "rootDeviceName": newest["RootDeviceName"],
    }


def get_subnet(call: Call, inputs: Props) -> Props:
    """`aws:ec2/getSubnet:getSubnet`"""
    found = first("ec2", "describe_subnets", "Subnets", SubnetIds=[inputs["id"]])
    if found is None:
        raise ProviderError(f"subnet: {inputs['id']} does not exist in this region; Fix: name another")
    return inputs | {
        "arn": found.get("SubnetArn", ""),
        "availabilityZone": found["AvailabilityZone"],
        "cidrBlock": found["CidrBlock"],
        "vpcId": found["VpcId"],
    }


def get_subnets(call: Call, inputs: Props) -> Props:
    """`aws:ec2/getSubnets:getSubnets`"""
    filters = [{"Name": each["name"], "Values": each["values"]} for each in inputs.get("filters") or []]
    found = ask("ec2", "describe_subnets", Filters=filters)["Subnets"]
    return inputs | {"id": client("ec2").meta.region_name, "ids": [each["SubnetId"] for each in found]}


def get_caller_identity(call: Call, inputs: Props) -> Props:
    """`aws:index/getCallerIdentity:getCallerIdentity`"""
    found = ask("sts", "get_caller_identity")
    return {
        "id": found["Account"],
        "accountId": found["Account"],
        "arn": found["Arn"],
        "userId": found["UserId"],
    }


TYPES: list[ResourceType] = [
    *(Instance(), SecurityGroup(), KeyPair(), Eip(), LaunchTemplate()),
    *(Role(), RolePolicy(), InstanceProfile(), FileSystem(), MountTarget(), LogGroup()),
]
FUNCTIONS = {
    "aws:ssm/getParameter:getParameter": get_parameter,
    "aws:ec2/getAmi:getAmi": get_ami,
    "aws:ec2/getSubnet:getSubnet": get_subnet,
    "aws:ec2/getSubnets:getSubnets": get_subnets,
    "aws:index/getCallerIdentity:getCallerIdentity": get_caller_identity,
}

if __name__ == "__main__":
    serve_provider(TYPES, FUNCTIONS, configure=SETTINGS.update)
