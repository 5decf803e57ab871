"""Firewalls, their rules and what is behind them: `/networking/firewalls`."""

from __future__ import annotations

from typing import Any

from simcloud.cloud import Call, Json, Received, Reply
from simcloud.linode import errors
from simcloud.linode.model import Device, Firewall, Instance, Rules
from simcloud.linode.resources import EMPTY, Resources, check_label, linode_time, listed, tags_of

FIELDS = {"id", "label", "tags"}
DEVICE_FIELDS = {"id"}
POLICIES = ("ACCEPT", "DROP")
PROTOCOLS = ("TCP", "UDP", "ICMP", "IPENCAP")
LONGEST_LABEL = 32


class Firewalls:
    """The part of the API that is about firewalls."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        every = "/networking/firewalls"
        one = every + "/{firewall_id}"
        of_instance = "/linode/instances/{instance_id}/firewalls"
        self.calls = [
            Call("list_firewalls", "GET", every, self.list_firewalls),
            Call("create_firewall", "POST", every, self.create_firewall),
            Call("get_firewall", "GET", one, self.get_firewall),
            Call("update_firewall", "PUT", one, self.update_firewall),
            Call("delete_firewall", "DELETE", one, self.delete_firewall),
            Call("get_firewall_rules", "GET", one + "/rules", self.get_rules),
            Call("update_firewall_rules", "PUT", one + "/rules", self.update_rules),
            Call("list_firewall_devices", "GET", one + "/devices", self.list_devices),
            Call("create_firewall_device", "POST", one + "/devices", self.create_device),
            Call("delete_firewall_device", "DELETE", one + "/devices/{device_id}", self.delete_device),
            Call("list_instance_firewalls", "GET", of_instance, self.list_of_instance),
            Call("update_instance_firewalls", "PUT", of_instance, self.update_of_instance),
        ]

    def list_firewalls(self, received: Received) -> Reply:
        return listed(received, [self._shape(firewall) for firewall in self._resources.firewalls], FIELDS)

    def create_firewall(self, received: Received) -> Reply:
        body = received.json
        if not isinstance(body.get("rules"), dict):
            raise errors.invalid("rules", "rules is required")
        label = str(body.get("label") or "")
        self._check_label(label)
        firewall = Firewall(label=label, tags=tags_of(body), rules=_rules(body["rules"]))
        for number in (body.get("devices") or {}).get("linodes") or []:
            self.attach(firewall, self._instance(number))
        self._resources.firewalls.put(firewall)
        self._resources.event("firewall", firewall, "created")
        return Reply(200, self._shape(firewall))

    def get_firewall(self, received: Received) -> Reply:
        return Reply(200, self._shape(self._resources.firewall(received)))

    def update_firewall(self, received: Received) -> Reply:
        firewall, body = self._resources.firewall(received), received.json
        if (label := body.get("label")) not in (None, firewall.label):
            self._check_label(label)
            firewall.label = label
        if body.get("tags") is not None:
            firewall.tags = tags_of(body)
        if body.get("status") is not None:
            if body["status"] not in ("enabled", "disabled"):
                raise errors.invalid("status", "Must be one of enabled, disabled")
            firewall.status = body["status"]
        self._put(firewall)
        return Reply(200, self._shape(firewall))

    def delete_firewall(self, received: Received) -> Reply:
        firewall = self._resources.firewall(received)
        self._resources.firewalls.remove(firewall.id)
        self._resources.event("firewall", firewall, "deleted")
        return EMPTY

    def get_rules(self, received: Received) -> Reply:
        return Reply(200, _rules_shape(self._resources.firewall(received)))

    def update_rules(self, received: Received) -> Reply:
        firewall = self._resources.firewall(received)
        firewall.rules = _rules(received.json)
        firewall.version += 1
        self._put(firewall)
        return Reply(200, _rules_shape(firewall))

    def list_devices(self, received: Received) -> Reply:
        firewall = self._resources.firewall(received)
        return listed(received, [self._device(device) for device in firewall.devices], DEVICE_FIELDS)

    def create_device(self, received: Received) -> Reply:
        firewall, body = self._resources.firewall(received), received.json
        if body.get("type") != "linode":
            raise errors.invalid("type", "Must be linode")
        device = self.attach(firewall, self._instance(body.get("id")))
        self._put(firewall)
        return Reply(200, self._device(device))

    def delete_device(self, received: Received) -> Reply:
        firewall = self._resources.firewall(received)
        left = [device for device in firewall.devices if str(device.number) != received.params["device_id"]]
        if len(left) == len(firewall.devices):
            raise errors.not_found()
        firewall.devices = left
        self._put(firewall)
        return EMPTY

    def list_of_instance(self, received: Received) -> Reply:
        firewalls = self._resources.firewalls_of(self._resources.instance(received))
        return listed(received, [self._shape(firewall) for firewall in firewalls], FIELDS)

    def update_of_instance(self, received: Received) -> Reply:
        instance, wanted = self._resources.instance(received), received.json.get("firewall_ids")
        if not isinstance(wanted, list):
            raise errors.invalid("firewall_ids", "firewall_ids is required")
        if len(wanted) > 1:
            raise errors.invalid("firewall_ids", "A Linode can have one active firewall")
        if missing := set(wanted) - {firewall.number for firewall in self._resources.firewalls}:
            raise errors.invalid("firewall_ids", f"Firewall {missing.pop()} not found")
        for firewall in self._resources.firewalls:
            others = [device for device in firewall.devices if device.instance != instance.id]
            if firewall.number in wanted:
                others.append(Device(instance=instance.id))
            if len(others) != len(firewall.devices):
                firewall.devices = others
                self._put(firewall)
        return self.list_of_instance(received)

    def attach(self, firewall: Firewall, instance: Instance) -> Device:
        """Puts the instance behind the firewall. Raises ApiError if it is behind one already."""
        if self._resources.firewalls_of(instance):
            raise errors.refused(400, f"Linode {instance.id} is already assigned to a firewall.")
        device = Device(instance=instance.id)
        firewall.devices.append(device)
        return device

    def _check_label(self, label: str) -> None:
        taken = {firewall.label for firewall in self._resources.firewalls}
        check_label(label, longest=LONGEST_LABEL, taken=taken)

    def _instance(self, number: Any) -> Instance:
        found = self._resources.instances.get(str(number))
        if found is None:
            raise errors.invalid("id", f"Linode {number} not found")
        return found

    def _put(self, firewall: Firewall) -> None:
        firewall.touch()
        self._resources.firewalls.put(firewall)

    def _shape(self, firewall: Firewall) -> Json:
        return {
            "id": firewall.number,
            "label": firewall.label,
            "created": linode_time(firewall.created),
            "updated": linode_time(firewall.updated),
            "status": firewall.status,
            "rules": _rules_shape(firewall),
            "tags": firewall.tags,
            "entities": [self._device(device)["entity"] for device in firewall.devices],
        }

    def _device(self, device: Device) -> Json:
        instance = self._resources.instances.get(device.instance)
        return {
            "id": device.number,
            "created": linode_time(device.created),
            "updated": linode_time(device.created),
            "entity": {
                "id": int(device.instance),
                "type": "linode",
                "label": instance.label if instance else None,
                "url": f"/v4/linode/instances/{device.instance}",
                "parent_entity": None,
            },
        }


def _rules_shape(firewall: Firewall) -> Json:
    return {
        **firewall.rules.model_dump(),
        "version": firewall.version,
        "fingerprint": firewall.rules.fingerprint,
    }


def _rules(body: Json) -> Rules:
    for direction in ("inbound", "outbound"):
        if body.get(f"{direction}_policy") not in POLICIES:
            raise errors.invalid(f"rules.{direction}_policy", "Must be one of ACCEPT, DROP")
        for number, rule in enumerate(body.get(direction) or []):
            where = f"rules.{direction}[{number}]"
            if rule.get("protocol") not in PROTOCOLS:
                raise errors.invalid(f"{where}.protocol", f"Must be one of {', '.join(PROTOCOLS)}")
            if rule.get("action") not in POLICIES:
                raise errors.invalid(f"{where}.action", "Must be one of ACCEPT, DROP")
            if not 3 <= len(rule.get("label") or "") <= LONGEST_LABEL:
                raise errors.invalid(f"{where}.label", f"Length must be 3-{LONGEST_LABEL} characters")
    return Rules(
        inbound=[_rule(rule) for rule in body.get("inbound") or []],
        inbound_policy=body["inbound_policy"],
        outbound=[_rule(rule) for rule in body.get("outbound") or []],
        outbound_policy=body["outbound_policy"],
    )


def _rule(rule: Json) -> Json:
    """A rule as the API gives it back: what is empty is left out."""
    addresses = {family: given for family, given in (rule.get("addresses") or {}).items() if given}
    kept = {key: rule[key] for key in ("action", "label", "ports", "description") if rule.get(key)}
    return {"protocol": rule["protocol"], "addresses": addresses, **kept}
