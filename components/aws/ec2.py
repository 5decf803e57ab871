"""The calls to EC2 that its provider does not make: find by tag, end, start, look before paying.

What EC2 was just told it may not know when it is asked next: its servers agree within seconds, not at
once. So nothing here is taken for gone after one look, nor for there because it was made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_exponential_jitter

from components.aws.api import AGAIN, AwsError
from components.aws.routes import closed_table

ALIVE = ("pending", "running", "stopping", "stopped")
"""States of an instance that exists, and whose volume bills."""

STATE_DEADLINE_S = 600.0
"""As long as AWS's own provider waits for an instance."""
RELEASE_DEADLINE_S = 120.0
"""For what a terminated machine held: its network interface goes some seconds after it."""
APPEARS_DEADLINE_S = 60.0
"""For all of EC2's servers to know of what was just made."""
GRANTED_DEADLINE_S = 120.0
"""For EC2 to know of an instance profile that was just made."""
LOOKS_AGAIN_S = (0.2, 0.4, 0.9)
"""Pauses before something that is not shown counts as gone."""

BUSY = frozenset(
    {"DependencyViolation", "VolumeInUse", "InvalidIPAddress.InUse"}
    | {"IncorrectState", "IncorrectInstanceState"}
)
"""Refusals that pass by themselves while a machine goes."""

STUCK: Mapping[str, str] = {
    "stopping": "AWS bills its volume alone meanwhile. Fix: stop it by force: "
    "aws ec2 stop-instances --force --instance-ids {id}; then {again}",
    "shutting-down": "AWS bills nothing for it any more. Fix: {again} in some minutes; if it stays so, open "
    "a case with AWS's support",
}
"""What to know and do about an instance that does not leave a state."""

DRIVER_MARKS = ("nvidia", "deep learning", "gpu")
"""Words in the name or description of an image that carries NVIDIA's driver."""

Client = Any
"""boto3's client of EC2."""
Described = Mapping[str, Any]
"""An object as EC2 describes it."""
Filters = Sequence[Mapping[str, Any]]
Found = TypeVar("Found")

DEFAULT_SUBNETS = {"Name": "default-for-az", "Values": ["true"]}
"""A filter of EC2 for the default VPC's subnet of each zone."""


class Ec2Error(Exception):
    """EC2 is not as it has to be. The message names what, and the fix."""


def tagged(key: str, value: str) -> dict[str, Any]:
    """A filter of EC2 for a tag."""
    return {"Name": f"tag:{key}", "Values": [value]}


def tags_of(described: Described, field: str = "Tags") -> dict[str, str]:
    """The tags of an object as EC2 describes it."""
    return {each["Key"]: each["Value"] for each in described.get(field, [])}


def instances(ec2: Client, filters: Filters) -> list[dict[str, Any]]:
    """The instances that exist and that the filters let through."""
    alive = {"Name": "instance-state-name", "Values": list(ALIVE)}
    pages = ec2.get_paginator("describe_instances").paginate(Filters=[*filters, alive])
    return [each for page in pages for one in page["Reservations"] for each in one["Instances"]]


def volumes(ec2: Client, filters: Filters) -> list[dict[str, Any]]:
    """The volumes that exist and that the filters let through."""
    there = {"Name": "status", "Values": ["creating", "available", "in-use", "error"]}
    pages = ec2.get_paginator("describe_volumes").paginate(Filters=[*filters, there])
    return [each for page in pages for each in page["Volumes"]]


def groups(ec2: Client, filters: Filters) -> list[dict[str, Any]]:
    """The security groups that the filters let through."""
    pages = ec2.get_paginator("describe_security_groups").paginate(Filters=[*filters])
    return [each for page in pages for each in page["SecurityGroups"]]


def instance(ec2: Client, instance_id: str) -> dict[str, Any] | None:
    """An instance, or None where it does not exist any more."""
    found = patiently(lambda: _shown(ec2, instance_id))
    return found if found and found["State"]["Name"] in ALIVE else None


def patiently(look: Callable[[], Found]) -> Found:
    """What a look sees; one that sees nothing is repeated, for what is new may not be shown yet."""
    for pause_s in LOOKS_AGAIN_S:
        if found := look():
            return found
        time.sleep(pause_s)
    return look()


def volume_gb(ec2: Client, key: str, value: str) -> int:
    """Size of the largest volume of the instances with the tag, in AWS's GB (2³⁰ bytes); 0 for none."""
    ids = [each["InstanceId"] for each in instances(ec2, [tagged(key, value)])]
    filters = [{"Name": "attachment.instance-id", "Values": ids}]
    return max((int(each["Size"]) for each in (volumes(ec2, filters) if ids else [])), default=0)


def start(ec2: Client, instance_id: str) -> dict[str, Any]:
    """Bring an instance to `running`, and say how it is then. Raises Ec2Error."""
    seen: dict[str, Any] = {}

    def running() -> bool:
        found = _shown(ec2, instance_id)
        if found is None:
            return False
        seen.update(found)
        state = found["State"]["Name"]
        if state not in ALIVE:
            reason = found.get("StateReason", {}).get("Message", "AWS gives no reason")
            raise Ec2Error(
                f"instance {instance_id} is {state}: {reason}. Fix: run `pulumi up` again: it makes a new one"
            )
        if state == "stopped":
            # One that has just stopped may still count as stopping where it is to be started.
            _unless_busy(lambda: ec2.start_instances(InstanceIds=[instance_id]))
        return bool(state == "running")

    if not until(lambda: _shown(ec2, instance_id), APPEARS_DEADLINE_S):
        raise Ec2Error(
            f"instance {instance_id} does not exist any more. Fix: run `pulumi up` again: it makes a new one"
        )
    if not until(running, STATE_DEADLINE_S):
        raise Ec2Error(_still(seen, "running"))
    return seen


def terminate(ec2: Client, instance_id: str) -> None:
    """Terminate an instance and wait until it is gone. Raises Ec2Error."""
    seen: dict[str, Any] = {}

    def gone() -> bool:
        found = patiently(lambda: _shown(ec2, instance_id))
        if found is None:
            return True
        seen.update(found)
        if found["State"]["Name"] in ALIVE:
            _ask_to_terminate(ec2, found)
        return bool(found["State"]["Name"] == "terminated")

    if not until(gone, STATE_DEADLINE_S):
        raise Ec2Error(_still(seen, "terminated"))


def _ask_to_terminate(ec2: Client, machine: Described) -> None:
    instance_id = machine["InstanceId"]
    try:
        if request := machine.get("SpotInstanceRequestId"):
            # A persistent request would launch another machine in its place.
            unless_gone(lambda: ec2.cancel_spot_instance_requests(SpotInstanceRequestIds=[request]))
        unless_gone(lambda: ec2.terminate_instances(InstanceIds=[instance_id]))
    except AwsError as error:
        if error.code == "OperationNotPermitted":
            raise Ec2Error(
                f"instance {instance_id} is protected against termination, and bills. Fix: aws ec2 "
                f"modify-instance-attribute --no-disable-api-termination --instance-id {instance_id}; then "
                f"{AGAIN}"
            ) from None
        if not (error.passing or error.code in BUSY):
            raise


def _still(seen: Described, wanted: str) -> str:
    id_, state = seen["InstanceId"], seen["State"]["Name"]
    known = STUCK.get(state, f"Fix: look at it in the EC2 console, then {AGAIN}")
    return (
        f"instance {id_} is still {state} after {STATE_DEADLINE_S:.0f} s, and not {wanted}: "
        + known.format(id=id_, again=AGAIN)
    )


def delete_volume(ec2: Client, volume_id: str) -> None:
    """Delete a volume, or wait for the end of the instance that takes it along. Raises Ec2Error."""
    by_id = [{"Name": "volume-id", "Values": [volume_id]}]
    seen: dict[str, Any] = {}

    def shown() -> Sequence[Described]:
        found = volumes(ec2, by_id)
        seen.update(*found)
        return found

    try:
        _remove(shown, lambda: ec2.delete_volume(VolumeId=volume_id))
    except AwsError as error:
        if error.code != "VolumeInUse":
            raise
        raise Ec2Error(_still_attached(seen)) from None


def _still_attached(volume: Described) -> str:
    attached: Described = next(iter(volume.get("Attachments", [])), {})
    id_, state = volume["VolumeId"], attached.get("State", "attached")
    return (
        f"volume {id_} is still {state} at {attached.get('InstanceId', 'an instance')} after "
        f"{RELEASE_DEADLINE_S:.0f} s, and bills. Fix: aws ec2 detach-volume --force --volume-id {id_}; then "
        f"{AGAIN}"
    )


def release_address(ec2: Client, allocation: str) -> None:
    """Take an Elastic IP from its instance, if it is at one, and give it back."""
    by_id = [{"Name": "allocation-id", "Values": [allocation]}]

    def shown() -> Sequence[Described]:
        return list(ec2.describe_addresses(Filters=by_id)["Addresses"])

    def release() -> None:
        for at in [each["AssociationId"] for each in shown() if each.get("AssociationId")]:
            unless_gone(lambda at=at: ec2.disassociate_address(AssociationId=at))  # type: ignore[misc]
        ec2.release_address(AllocationId=allocation)

    _remove(shown, release)


def delete_group(ec2: Client, group: str) -> None:
    """Delete a security group once the interfaces of machines that have gone are out of it."""
    by_id = [{"Name": "group-id", "Values": [group]}]
    _remove(lambda: groups(ec2, by_id), lambda: ec2.delete_security_group(GroupId=group))


def delete_key_pair(ec2: Client, name: str) -> None:
    """Delete a key pair by its name."""
    by_name = [{"Name": "key-name", "Values": [name]}]
    _remove(
        lambda: list(ec2.describe_key_pairs(Filters=by_name)["KeyPairs"]),
        lambda: ec2.delete_key_pair(KeyName=name),
    )


def _remove(shown: Callable[[], Sequence[Described]], delete: Callable[[], object]) -> None:
    """Delete something until it is not shown any more. Raises the last refusal of what stays.

    What EC2 shows and says does not exist is deleted again: one of the two is not true yet.
    """
    refused: list[AwsError] = []

    def gone() -> bool:
        if not shown():
            return True
        try:
            unless_gone(delete)
        except AwsError as error:
            if error.code not in BUSY and not error.passing:
                raise
            refused.append(error)
        return False

    if not until(gone, RELEASE_DEADLINE_S):
        raise refused[-1] if refused else Ec2Error(f"EC2 shows what it has deleted. Fix: {AGAIN}")


def check_place(
    ec2: Client,
    path: str,
    *,
    type_: str,
    subnet: str | None,
    public: bool | None,
    key: str = "subnet",
) -> list[str]:
    """The zones that a machine can be launched in: the subnet's, or those with the type; without any effect.

    `public`: whether it gets a public address; None where that is the subnet's choice. Messages name settings
    as `path` and then `key`, or `type`. Raises Ec2Error where there are none, no
    default subnet is in one, or the subnet has no way to the internet.
    """
    zones, region = offered_zones(ec2, type_), ec2.meta.region_name
    if not zones:
        raise Ec2Error(f"{path}type: {type_} is offered nowhere in {region}; choose another type or region")
    if subnet is None:
        chosen = default_subnet(ec2, type_, f"{path}{key}")
        found = ec2.describe_subnets(SubnetIds=[chosen])["Subnets"]
        _check_way_out(ec2, found[0], f"{path}{key}", public=public)
        return zones
    found = ec2.describe_subnets(Filters=[{"Name": "subnet-id", "Values": [subnet]}])["Subnets"]
    if not found:
        raise Ec2Error(
            f"{path}{key}: {subnet} does not exist in {region}; name one of `aws ec2 describe-subnets`"
        )
    zone = found[0]["AvailabilityZone"]
    if zone not in zones:
        raise Ec2Error(
            f"{path}{key}: {subnet} is in {zone}, which does not offer {type_}; "
            f"name a subnet in {' or '.join(zones)}, or choose another type"
        )
    _check_way_out(ec2, found[0], f"{path}{key}", public=public)
    return [zone]


def _check_way_out(ec2: Client, subnet: Described, field: str, *, public: bool | None) -> None:
    closed = closed_table(ec2, subnet, public=public)
    if closed is None:
        return
    id_, table, gateway = subnet["SubnetId"], closed.table, closed.gateway
    if gateway and public:
        raise Ec2Error(
            f"{field}: {id_} routes to the NAT gateway {gateway} (route table {table}), which lets no one "
            "in to a machine's public address. Fix: name a subnet that routes to an internet gateway, or "
            "set public_ip: false and access.jump_host"
        )
    if gateway:
        raise Ec2Error(
            f"{field}: {id_} routes to the internet gateway {gateway} (route table {table}), which lets out "
            "machines with a public address alone, and public_ip is false, so a machine in it can install "
            "nothing. Fix: name a subnet that routes to a NAT gateway, or leave public_ip out"
        )
    internet, nat = "--gateway-id igw-…", "--nat-gateway-id nat-…"
    ways = {True: internet, False: nat, None: f"{internet} (for a NAT gateway: {nat})"}
    raise Ec2Error(
        f"{field}: {id_} has no route to the internet (route table {table}), so a machine in it can install "
        "nothing. Fix: name another subnet, or give it a route: aws ec2 create-route --route-table-id "
        f"{table} --destination-cidr-block 0.0.0.0/0 {ways[public]}"
    )


def check_image(ec2: Client, path: str, *, type_: str, ami: str) -> str:
    """The name of an image that a machine of a type can be made from, and its GPUs used.

    Messages name the setting as `path` and then `ami`. Raises Ec2Error for an image that does not exist, is
    for other processors, or carries no driver.
    """
    images = ec2.describe_images(Filters=[{"Name": "image-id", "Values": [ami]}])["Images"]
    if not images:
        raise Ec2Error(
            f"{path}ami: {ami} does not exist in {ec2.meta.region_name}; leave it out to take the newest"
        )
    image = images[0]
    if image["Architecture"] != "x86_64":
        raise Ec2Error(
            f"{path}ami: {ami} is for {image['Architecture']}, {type_} is x86_64; choose another, or leave "
            "ami out"
        )
    told = f"{image['Name']} {image.get('Description', '')}"
    if not any(mark in told.lower() for mark in DRIVER_MARKS):
        raise Ec2Error(
            f"{path}ami: {ami} ({image['Name']}) carries no NVIDIA driver; "
            "use a Deep Learning Base GPU AMI, or leave ami out"
        )
    return str(image["Name"])


def check_share(efs: Client, ec2: Client, file_system: str, subnets: Sequence[str]) -> None:
    """Whether machines in the subnets, or in the default ones, reach the file system. Raises Ec2Error."""
    there = [
        each for each in efs.describe_file_systems()["FileSystems"] if each["FileSystemId"] == file_system
    ]
    if not there:
        raise Ec2Error(
            f"jobs.file_system: {file_system} does not exist in {ec2.meta.region_name}; "
            "leave it out to make one"
        )
    targets = efs.describe_mount_targets(FileSystemId=file_system)["MountTargets"]
    wanted = {"Name": "subnet-id", "Values": list(subnets)} if subnets else DEFAULT_SUBNETS
    vpc = next((each["VpcId"] for each in ec2.describe_subnets(Filters=[wanted])["Subnets"]), "none")
    places = {each["VpcId"] for each in targets if "VpcId" in each}
    if places and vpc not in places:
        raise Ec2Error(
            f"jobs.file_system: {file_system} is mounted in {', '.join(sorted(places))}, the jobs run in "
            f"{vpc}; name subnets of the former in jobs.subnets, or leave jobs.file_system out to make one"
        )
    if not targets:
        raise Ec2Error(
            f"jobs.file_system: {file_system} has no mount target, so nothing can reach it; make one in {vpc}"
        )


def offered_zones(ec2: Client, type_: str) -> list[str]:
    """Zones of the region that offer the type, whether or not it is in stock."""
    filters = [{"Name": "instance-type", "Values": [type_]}]
    offerings = ec2.describe_instance_type_offerings(LocationType="availability-zone", Filters=filters)
    return sorted(each["Location"] for each in offerings["InstanceTypeOfferings"])


def profile_of(ec2: Client, instance_id: str) -> tuple[str, str] | None:
    """Id of the association and name of the instance profile that an instance has."""
    filters = [{"Name": "instance-id", "Values": [instance_id]}]
    found = ec2.describe_iam_instance_profile_associations(Filters=filters)["IamInstanceProfileAssociations"]
    if not found:
        return None
    return found[0]["AssociationId"], found[0]["IamInstanceProfile"]["Arn"].rpartition("/")[2]


def give_profile(ec2: Client, instance_id: str, profile: str) -> str:
    """Give an instance a profile and return the association's id. Raises Ec2Error if it has another."""
    refused: list[AwsError] = []

    def given() -> bool:
        has = profile_of(ec2, instance_id)
        if has and has[1] != profile:
            raise Ec2Error(
                f"jobs.control.existing: {instance_id} has the instance profile {has[1]}, and an instance "
                "has one; take that away first, or leave existing out"
            )
        if has:
            return True
        try:
            ec2.associate_iam_instance_profile(InstanceId=instance_id, IamInstanceProfile={"Name": profile})
        except AwsError as error:
            # EC2 learns of a profile some seconds after IAM has made it.
            if "Invalid IAM Instance Profile" not in error.seen and not error.not_found:
                raise
            refused.append(error)
        return False

    if not until(given, GRANTED_DEADLINE_S):
        raise refused[-1]
    found = profile_of(ec2, instance_id)
    assert found, "seen a moment ago"
    return found[0]


def default_subnet(ec2: Client, type_: str, field: str = "subnet") -> str:
    """The default subnet of the first zone that offers the type. Raises Ec2Error, naming the `field`."""
    zones = offered_zones(ec2, type_)
    found = ec2.describe_subnets(Filters=[DEFAULT_SUBNETS])["Subnets"]
    subnets = {each["AvailabilityZone"]: str(each["SubnetId"]) for each in found}
    usable = [subnets[zone] for zone in zones if zone in subnets]
    if not usable:
        raise Ec2Error(
            f"{field}: {ec2.meta.region_name} has no default subnet in a zone that offers {type_} "
            f"({', '.join(zones) or 'none does'}); name a subnet, or choose another type or region"
        )
    return usable[0]


def _shown(ec2: Client, instance_id: str) -> dict[str, Any] | None:
    """An instance as EC2 shows it, in whatever state; None where it does not show it."""
    filters = [{"Name": "instance-id", "Values": [instance_id]}]
    shown = ec2.describe_instances(Filters=filters)["Reservations"]
    return next((each for one in shown for each in one["Instances"]), None)


def unless_gone(call: Callable[[], object]) -> None:
    """A call that has nothing to do where what it is about does not exist."""
    try:
        call()
    except AwsError as error:
        if not error.not_found:
            raise


def _unless_busy(call: Callable[[], object]) -> None:
    """A call that is made again with the next look where it comes too early."""
    try:
        call()
    except AwsError as error:
        if not (error.not_found or error.passing or error.code in BUSY):
            raise


def until(condition: Callable[[], object], deadline_s: float) -> bool:
    """Look until the condition holds; whether it did within `deadline_s` seconds.

    A look that gets no answer is repeated like one that sees nothing.
    """
    failed: list[AwsError] = []

    def holds() -> bool:
        failed.clear()
        try:
            return bool(condition())
        except AwsError as error:
            if not error.passing:
                raise
            failed.append(error)
            return False

    polling = Retrying(
        retry=retry_if_result(lambda done: not done),
        wait=wait_exponential_jitter(multiplier=0.1, max=5, jitter=0.1),
        stop=stop_after_delay(deadline_s),
    )
    try:
        return polling(holds)
    except RetryError:
        if failed:
            raise failed[0] from None
        return False
