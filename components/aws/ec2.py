"""The calls to EC2 that its provider does not make: find by tag, end, start, look before paying."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_exponential_jitter

ALIVE = ("pending", "running", "stopping", "stopped")
"""States of an instance that exists, and whose volume bills."""

STATE_DEADLINE_S = 600.0
"""As long as AWS's own provider waits for an instance."""

DRIVER_MARKS = ("nvidia", "deep learning", "gpu")
"""Words in the name or description of an image that carries NVIDIA's driver."""

Client = Any
"""boto3's client of EC2."""

DEFAULT_SUBNETS = {"Name": "default-for-az", "Values": ["true"]}
"""A filter of EC2 for the default VPC's subnet of each zone."""


class Ec2Error(Exception):
    """EC2 is not as it has to be. The message names what, and the mend."""


def tagged(key: str, value: str) -> dict[str, Any]:
    """A filter of EC2 for a tag."""
    return {"Name": f"tag:{key}", "Values": [value]}


def instances(ec2: Client, key: str, value: str) -> list[dict[str, Any]]:
    """Every instance with the tag that exists."""
    filters = [tagged(key, value), {"Name": "instance-state-name", "Values": list(ALIVE)}]
    pages = ec2.get_paginator("describe_instances").paginate(Filters=filters)
    return [each for page in pages for one in page["Reservations"] for each in one["Instances"]]


def instance(ec2: Client, instance_id: str) -> dict[str, Any] | None:
    """An instance, or None where it does not exist any more."""
    filters = [{"Name": "instance-id", "Values": [instance_id]}]
    found = [
        each for one in ec2.describe_instances(Filters=filters)["Reservations"] for each in one["Instances"]
    ]
    return found[0] if found and found[0]["State"]["Name"] in ALIVE else None


def volume_gb(ec2: Client, key: str, value: str) -> int:
    """Size of the largest volume of the instances with the tag, in AWS's GB (2³⁰ bytes); 0 for none."""
    ids = [each["InstanceId"] for each in instances(ec2, key, value)]
    filters = [{"Name": "attachment.instance-id", "Values": ids}]
    volumes = ec2.describe_volumes(Filters=filters)["Volumes"] if ids else []
    return max((int(each["Size"]) for each in volumes), default=0)


def end_instances(ec2: Client, key: str, value: str) -> None:
    """Terminate every instance with the tag, and wait until they are gone. Raises Ec2Error."""
    ids = [each["InstanceId"] for each in instances(ec2, key, value)]
    if ids:
        ec2.terminate_instances(InstanceIds=ids)
        _until(lambda: not instances(ec2, key, value), f"instances {', '.join(ids)} to be terminated")


def start(ec2: Client, instance_id: str) -> dict[str, Any]:
    """Bring an instance to `running`. Raises Ec2Error."""

    def running() -> bool:
        found = _existing(ec2, instance_id)
        state = found["State"]["Name"]
        if state == "stopped":
            ec2.start_instances(InstanceIds=[instance_id])
        return bool(state == "running")

    _until(running, f"instance {instance_id} to be running")
    return _existing(ec2, instance_id)


def remove_addresses(ec2: Client, key: str, value: str) -> None:
    """Give back every Elastic IP with the tag."""
    for address in ec2.describe_addresses(Filters=[tagged(key, value)])["Addresses"]:
        if "AssociationId" in address:
            ec2.disassociate_address(AssociationId=address["AssociationId"])
        ec2.release_address(AllocationId=address["AllocationId"])


def remove_groups(ec2: Client, key: str, value: str) -> None:
    """Delete every security group with the tag."""
    for group in _groups(ec2, key, value):
        ec2.delete_security_group(GroupId=group)


def remove_unused_groups(ec2: Client, key: str, value: str) -> None:
    """Delete the security groups with the tag that no machine is in.

    One with a machine is no leftover: a machine is made after its group is in the state.
    """
    for group in _groups(ec2, key, value):
        filters = [{"Name": "group-id", "Values": [group]}]
        if not ec2.describe_network_interfaces(Filters=filters)["NetworkInterfaces"]:
            ec2.delete_security_group(GroupId=group)


def _groups(ec2: Client, key: str, value: str) -> list[str]:
    found = ec2.describe_security_groups(Filters=[tagged(key, value)])["SecurityGroups"]
    return [each["GroupId"] for each in found]


def remove_key_pairs(ec2: Client, key: str, value: str) -> None:
    """Delete every key pair with the tag."""
    for pair in ec2.describe_key_pairs(Filters=[tagged(key, value)])["KeyPairs"]:
        ec2.delete_key_pair(KeyName=pair["KeyName"])


def check_place(ec2: Client, path: str, *, type_: str, subnet: str | None, key: str = "subnet") -> list[str]:
    """The zones that a machine can be launched in: the subnet's, or those with the type; without any effect.

    Messages name settings as `path` and then `key`, or `type`. Raises Ec2Error where there are none, or no
    default subnet is in one.
    """
    zones, region = offered_zones(ec2, type_), ec2.meta.region_name
    if not zones:
        raise Ec2Error(f"{path}type: {type_} is offered nowhere in {region}; choose another type or region")
    if subnet is None:
        default_subnet(ec2, type_, f"{path}{key}")
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
    return [zone]


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
    found = profile_of(ec2, instance_id)
    if found and found[1] == profile:
        return found[0]
    if found:
        raise Ec2Error(
            f"jobs.control.existing: {instance_id} has the instance profile {found[1]}, and an instance "
            "has one; take that away first, or leave existing out"
        )
    made = ec2.associate_iam_instance_profile(InstanceId=instance_id, IamInstanceProfile={"Name": profile})
    return str(made["IamInstanceProfileAssociation"]["AssociationId"])


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


def _existing(ec2: Client, instance_id: str) -> dict[str, Any]:
    found = instance(ec2, instance_id)
    if found is None:
        raise Ec2Error(
            f"instance {instance_id} does not exist any more; run `pulumi up` again: it makes a new one"
        )
    return found


def _until(condition: Callable[[], bool], what: str) -> None:
    polling = Retrying(
        retry=retry_if_result(lambda done: not done),
        wait=wait_exponential_jitter(initial=0.1, max=5, jitter=0.1),
        stop=stop_after_delay(STATE_DEADLINE_S),
    )
    try:
        polling(condition)
    except RetryError:
        raise Ec2Error(
            f"waited {STATE_DEADLINE_S:.0f} s for {what}; look at it in the EC2 console, then run this again"
        ) from None
