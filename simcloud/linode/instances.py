"""Instances, and the plans, regions and images they are made of: `/linode`, `/regions`, `/images`."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

from simcloud.cloud import Call, Json, Received, Reply
from simcloud.linode import errors
from simcloud.linode.catalog import IMAGES, PLANS, REGIONS, SWAP_MB, Image, Plan, specs
from simcloud.linode.firewalls import Firewalls
from simcloud.linode.model import Disk, Event, Instance
from simcloud.linode.power import Power
from simcloud.linode.resources import (
    CLOUD,
    EMPTY,
    Resources,
    check_label,
    linode_time,
    listed,
    tags_of,
    texts,
)

LONGEST_LABEL = 64
LONGEST_CONFIG_LABEL = 48
LARGEST_USER_DATA = 16 * 1024
"""Bytes, decoded. The API's own limit is higher; this much is safe."""
LABEL_OF_VLAN = re.compile(r"(?=.{1,64}$)[A-Za-z0-9]+(-[A-Za-z0-9]+)*")
QUOTA = "linodes"
"""Name of the account's limit on instances."""

INSTANCE_FIELDS = {"id", "label", "tags", "region", "image", "group"}
TYPE_FIELDS = {"id", "label", "class", "gpus", "vcpus", "memory", "disk"}
AVAILABILITY_FIELDS = {"region", "plan", "available"}
EVENT_FIELDS = {"id", "action", "status", "created", "entity.id", "entity.type", "seen"}


class Instances:
    """The part of the API that is about instances."""

    def __init__(self, resources: Resources, firewalls: Firewalls, power: Power) -> None:
        self._resources = resources
        self._firewalls = firewalls
        self._power = power
        every = "/linode/instances"
        one = every + "/{instance_id}"
        secret = frozenset({"root_pass", "metadata"})
        self.calls = [
            Call("list_instances", "GET", every, self.list_instances),
            Call("create_instance", "POST", every, self.create_instance, secret_fields=secret),
            Call("get_instance", "GET", one, self.get_instance),
            Call("update_instance", "PUT", one, self.update_instance),
            Call("delete_instance", "DELETE", one, self.delete_instance),
            Call("boot_instance", "POST", one + "/boot", self.boot_instance),
            Call("reboot_instance", "POST", one + "/reboot", self.reboot_instance),
            Call("shutdown_instance", "POST", one + "/shutdown", self.shutdown_instance),
            Call("list_disks", "GET", one + "/disks", self.list_disks),
            Call("get_disk", "GET", one + "/disks/{disk_id}", self.get_disk),
            Call("resize_disk", "POST", one + "/disks/{disk_id}/resize", self.resize_disk),
            Call("list_configs", "GET", one + "/configs", self.list_configs),
            Call("get_config", "GET", one + "/configs/{config_id}", self.get_config),
            Call("update_config", "PUT", one + "/configs/{config_id}", self.update_config),
            Call("list_instance_ips", "GET", one + "/ips", self.list_ips),
            Call("list_types", "GET", "/linode/types", self.list_types),
            Call("get_type", "GET", "/linode/types/{type_id}", self.get_type),
            Call("list_regions", "GET", "/regions", self.list_regions),
            Call("list_region_availability", "GET", "/regions/availability", self.list_availability),
            Call("get_region", "GET", "/regions/{region_id}", self.get_region),
            Call("list_linode_images", "GET", "/images", self.list_images),
            Call("get_linode_image", "GET", "/images/{image_id:path}", self.get_image),
            Call("list_events", "GET", "/account/events", self.list_events),
            Call("get_event", "GET", "/account/events/{event_id}", self.get_event),
            Call("get_profile", "GET", "/profile", self.get_profile),
        ]

    def create_instance(self, received: Received) -> Reply:
        body = received.json
        plan, image = _plan_and_image(body)
        region = str(body["region"])
        label = str(body.get("label") or f"linode{len(list(self._resources.instances)) + 1}")
        self._check_label(label)
        keys = texts(body.get("authorized_keys"))
        if image and not (body.get("root_pass") or keys or body.get("authorized_users")):
            raise errors.refused(400, "Must provide valid root_pass, authorized_keys, or authorized_users")
        user_data = _user_data(body, region, image)
        firewall = None
        if (firewall_id := body.get("firewall_id")) is not None:
            firewall = self._resources.firewalls.get(str(firewall_id))
            if firewall is None:
                raise errors.invalid("firewall_id", f"Firewall {firewall_id} not found")
        self._check_quota()
        if not self._power.available(region, plan.id):
            raise errors.no_stock()

        instance = Instance(
            label=label,
            tags=tags_of(body),
            region=region,
            plan=plan.id,
            image=image.id if image else None,
            address=self._resources.free_address(),
            authorized_keys=keys,
            user_data=user_data,
            booted=bool(image) and body.get("booted") is not False,
            disks=_disks(plan, image, body.get("swap_size")),
            interfaces=_interfaces(body),
        )
        self._resources.instances.put(instance)
        if firewall:
            self._firewalls.attach(firewall, instance)
            self._resources.firewalls.put(firewall)
        self._resources.event("server", instance, "created")
        self._power.provision(instance)
        return Reply(200, self._shape(instance))

    def list_instances(self, received: Received) -> Reply:
        instances = list(self._resources.instances)
        reply = listed(received, [self._shape(instance) for instance in instances], INSTANCE_FIELDS)
        shown = {row["id"] for row in reply.body["data"]}
        for instance in instances:
            if instance.number in shown:
                self._resources.seen(instance)
        return reply

    def get_instance(self, received: Received) -> Reply:
        instance = self._resources.instance(received)
        self._resources.seen(instance)
        return Reply(200, self._shape(instance))

    def update_instance(self, received: Received) -> Reply:
        instance, body = self._resources.instance(received), received.json
        if (label := body.get("label")) not in (None, instance.label):
            self._check_label(label)
            instance.label = label
        if body.get("tags") is not None:
            instance.tags = tags_of(body)
        if body.get("watchdog_enabled") is not None:
            instance.watchdog = bool(body["watchdog_enabled"])
        instance.touch()
        self._resources.instances.put(instance)
        return Reply(200, self._shape(instance))

    def delete_instance(self, received: Received) -> Reply:
        self._power.delete(self._resources.instance(received))
        return EMPTY

    def boot_instance(self, received: Received) -> Reply:
        self._power.boot(self._resources.instance(received))
        return EMPTY

    def reboot_instance(self, received: Received) -> Reply:
        self._power.reboot(self._resources.instance(received))
        return EMPTY

    def shutdown_instance(self, received: Received) -> Reply:
        self._power.shut_down(self._resources.instance(received))
        return EMPTY

    def list_disks(self, received: Received) -> Reply:
        instance = self._resources.instance(received)
        return listed(received, [_disk_shape(instance, disk) for disk in instance.disks], {"id", "label"})

    def get_disk(self, received: Received) -> Reply:
        instance, disk = self._disk(received)
        return Reply(200, _disk_shape(instance, disk))

    def resize_disk(self, received: Received) -> Reply:
        instance, disk = self._disk(received)
        size = received.json.get("size")
        if not isinstance(size, int) or size < 1:
            raise errors.invalid("size", "Must be a positive number of MB")
        self._power.resize_disk(instance, disk.number, size)
        return EMPTY

    def list_configs(self, received: Received) -> Reply:
        instance = self._resources.instance(received)
        configs = [_config(instance)] if instance.disks else []
        return listed(received, configs, {"id", "label"})

    def get_config(self, received: Received) -> Reply:
        return Reply(200, _config(self._configured(received)))

    def update_config(self, received: Received) -> Reply:
        """Changes what a client may know a profile by; what it boots with stays as it is here."""
        instance, body = self._configured(received), received.json
        if body.get("comments") is not None:
            instance.config_comments = str(body["comments"])
        if body.get("label") is not None:
            if not 1 <= len(label := str(body["label"])) <= LONGEST_CONFIG_LABEL:
                raise errors.invalid("label", f"Length must be 1-{LONGEST_CONFIG_LABEL} characters")
            instance.config_label = label
        instance.touch()
        self._resources.instances.put(instance)
        return Reply(200, _config(instance))

    def list_ips(self, received: Received) -> Reply:
        return Reply(200, _ips(self._resources.instance(received)))

    def list_types(self, received: Received) -> Reply:
        return listed(received, [plan.shape() for plan in PLANS.values()], TYPE_FIELDS)

    def get_type(self, received: Received) -> Reply:
        plan = PLANS.get(received.params["type_id"])
        if plan is None:
            raise errors.not_found()
        return Reply(200, plan.shape())

    def list_regions(self, received: Received) -> Reply:
        return listed(received, [region.shape() for region in REGIONS.values()], {"id"})

    def list_availability(self, received: Received) -> Reply:
        rows = [
            {"region": region, "plan": plan.id, "available": self._power.available(region, plan.id)}
            for region in REGIONS
            for plan in PLANS.values()
            if plan.gpus
        ]
        return listed(received, rows, AVAILABILITY_FIELDS)

    def get_region(self, received: Received) -> Reply:
        region = REGIONS.get(received.params["region_id"])
        if region is None:
            raise errors.not_found()
        return Reply(200, region.shape())

    def list_images(self, received: Received) -> Reply:
        return listed(received, [image.shape() for image in IMAGES.values()], {"id", "label", "vendor"})

    def get_image(self, received: Received) -> Reply:
        image = IMAGES.get(received.params["image_id"])
        if image is None:
            raise errors.not_found()
        return Reply(200, image.shape())

    def list_events(self, received: Received) -> Reply:
        newest_first = [_event(event) for event in reversed(list(self._resources.events))]
        for instance in self._resources.instances:
            self._resources.seen(instance)
        return listed(received, newest_first, EVENT_FIELDS)

    def get_event(self, received: Received) -> Reply:
        event = self._resources.events.get(received.params["event_id"])
        if event is None:
            raise errors.not_found()
        if instance := self._resources.instances.get(event.instance):
            self._resources.seen(instance)
        return Reply(200, _event(event))

    def get_profile(self, received: Received) -> Reply:
        return Reply(
            200,
            {
                "uid": 1,
                "username": "vllm-fleet",
                "email": "fleet@example.com",
                "timezone": "UTC",
                "email_notifications": False,
                "restricted": False,
                "two_factor_auth": True,
                "authentication_type": "password",
                "lish_auth_method": "keys_only",
                "authorized_keys": [],
                "verified_phone_number": None,
                "referrals": {},
            },
        )

    def _check_label(self, label: str) -> None:
        taken = {instance.label for instance in self._resources.instances}
        reason = "Label must be unique among your linodes"
        check_label(label, longest=LONGEST_LABEL, taken=taken, taken_reason=reason)

    def _check_quota(self) -> None:
        quota = self._resources.simulation.conditions.quotas.get(f"{CLOUD}_{QUOTA}")
        if quota is not None and len(list(self._resources.instances)) >= quota:
            raise errors.limit_reached()

    def _disk(self, received: Received) -> tuple[Instance, Disk]:
        instance = self._resources.instance(received)
        for disk in instance.disks:
            if str(disk.number) == received.params["disk_id"]:
                return instance, disk
        raise errors.not_found()

    def _configured(self, received: Received) -> Instance:
        """The instance whose configuration profile is asked for."""
        instance = self._resources.instance(received)
        if not instance.disks or str(instance.config) != received.params["config_id"]:
            raise errors.not_found()
        return instance

    def _shape(self, instance: Instance) -> Json:
        return {
            "id": instance.number,
            "label": instance.label,
            "group": "",
            "status": instance.status,
            "created": linode_time(instance.created),
            "updated": linode_time(instance.updated),
            "type": instance.plan,
            "ipv4": [instance.address],
            "ipv6": None,
            "image": instance.image,
            "region": instance.region,
            "site_type": "core",
            "specs": specs(PLANS[instance.plan]),
            "alerts": {
                "cpu": 90 * PLANS[instance.plan].vcpus,
                "network_in": 10,
                "network_out": 10,
                "transfer_quota": 80,
                "io": 10000,
                "system_alerts": [],
                "user_alerts": [],
            },
            "backups": {
                "enabled": False,
                "available": False,
                "schedule": {"day": None, "window": None},
                "last_successful": None,
            },
            "hypervisor": "kvm",
            "watchdog_enabled": instance.watchdog,
            "tags": instance.tags,
            "host_uuid": instance.host_uuid,
            "has_user_data": instance.user_data is not None,
            "placement_group": None,
            "disk_encryption": "enabled",
            "lke_cluster_id": None,
            "capabilities": ["Block Storage Encryption", "Maintenance Policy"],
            "interface_generation": "legacy_config",
            "maintenance_policy": "linode/migrate",
            "locks": [],
        }


def _plan_and_image(body: Json) -> tuple[Plan, Image | None]:
    for field in ("region", "type"):
        if not body.get(field):
            raise errors.invalid(field, f"{field} is required")
    if body["region"] not in REGIONS:
        raise errors.invalid("region", "region is not valid")
    plan = PLANS.get(str(body["type"]))
    if plan is None:
        raise errors.invalid("type", "A valid plan type by that ID was not found")
    image_id = body.get("image")
    if image_id is None:
        return plan, None
    image = IMAGES.get(str(image_id))
    if image is None:
        raise errors.invalid("image", "image is not valid")
    return plan, image


def _user_data(body: Json, region: str, image: Image | None) -> bytes | None:
    encoded = (body.get("metadata") or {}).get("user_data")
    if encoded is None:
        return None
    field = "metadata.user_data"
    if not REGIONS[region].metadata:
        raise errors.invalid("region", "Metadata is not supported in this region")
    if image and not image.cloud_init:
        raise errors.invalid("image", "This image does not support cloud-init")
    try:
        decoded = base64.b64decode(encoded, validate=True)
    except (binascii.Error, TypeError) as error:
        raise errors.invalid(field, "Must be base64 encoded") from error
    if len(decoded) > LARGEST_USER_DATA:
        raise errors.invalid(field, f"Must not exceed {LARGEST_USER_DATA} bytes when decoded")
    return decoded


def _disks(plan: Plan, image: Image | None, swap: Any) -> list[Disk]:
    if image is None:
        return []
    swap_mb = swap if isinstance(swap, int) else SWAP_MB
    root = Disk(label=f"{image.label} Disk", filesystem="ext4", size_mb=plan.disk_mb - swap_mb)
    if not swap_mb:
        return [root]
    return [root, Disk(label=f"{swap_mb} MB Swap Image", filesystem="swap", size_mb=swap_mb)]


def _disk_shape(instance: Instance, disk: Disk) -> Json:
    return {
        "id": disk.number,
        "status": "not ready" if instance.status == "provisioning" else "ready",
        "label": disk.label,
        "created": linode_time(instance.created),
        "updated": linode_time(instance.created),
        "filesystem": disk.filesystem,
        "size": disk.size_mb,
        "disk_encryption": "enabled",
    }


def _interfaces(body: Json) -> list[dict[str, str]]:
    """Interfaces of a machine's configuration: public, and VLANs by label and address."""
    interfaces = body.get("interfaces") or []
    for each in interfaces:
        if each.get("purpose") not in {"public", "vlan"}:
            raise errors.invalid("interfaces", "purpose must be public or vlan")
        if each["purpose"] == "vlan" and not LABEL_OF_VLAN.fullmatch(str(each.get("label"))):
            raise errors.invalid("interfaces", "label must be 1 to 64 letters, digits and single hyphens")
    return [dict(each) for each in interfaces]


def _config(instance: Instance) -> Json:
    slots = dict(zip(("sda", "sdb"), instance.disks, strict=False))
    return {
        "id": instance.config,
        "label": instance.config_label or f"My {instance.disks[0].label} Profile",
        "comments": instance.config_comments,
        "kernel": "linode/grub2",
        "memory_limit": 0,
        "run_level": "default",
        "virt_mode": "paravirt",
        "root_device": "/dev/sda",
        "initrd": None,
        "devices": {
            slot: {"disk_id": slots[slot].number, "volume_id": None} if slot in slots else None
            for slot in (f"sd{letter}" for letter in "abcdefgh")
        },
        "helpers": {
            "updatedb_disabled": True,
            "distro": True,
            "modules_dep": True,
            "network": True,
            "devtmpfs_automount": True,
        },
        "interfaces": [{"id": number, **each} for number, each in enumerate(instance.interfaces, start=1)],
        "created": linode_time(instance.created),
        "updated": linode_time(instance.created),
    }


def _ips(instance: Instance) -> Json:
    public = {
        "address": instance.address,
        "gateway": "127.0.0.1",
        "subnet_mask": "255.255.255.0",
        "prefix": 24,
        "type": "ipv4",
        "public": True,
        "rdns": None,
        "linode_id": instance.number,
        "region": instance.region,
        "vpc_nat_1_1": None,
        "reserved": False,
        "interface_id": None,
    }
    none: list[Json] = []
    ipv4 = {"public": [public], "private": none, "shared": none, "reserved": none, "vpc": none}
    ipv6 = {"slaac": None, "link_local": None, "global": none, "vpc": none}
    return {"ipv4": ipv4, "ipv6": ipv6}


def _event(event: Event) -> Json:
    return {
        "id": int(event.id),
        "action": event.action,
        "created": linode_time(event.created),
        "duration": None,
        "entity": {
            "id": int(event.instance),
            "label": event.label,
            "type": "linode",
            "url": f"/v4/linode/instances/{event.instance}",
        },
        "secondary_entity": None,
        "status": event.status,
        "percent_complete": 0 if event.status == "started" else 100,
        "rate": None,
        "read": False,
        "seen": False,
        "time_remaining": None,
        "username": "vllm-fleet",
        "message": "",
    }
