"""Stand-in for pulumi-resource-linode: `linode:index/instance:Instance` and `linode:index/firewall:Firewall`.

Property names, defaults, checks, and what replaces are those of version 6.8.0, which wraps Linode's
Terraform provider: the image, user data, keys and firewall of a machine cannot change; `booted` is what the
machine is brought to; a firewall changes in place. What the real plugin does by resizing or migrating a
machine (`type`, `region`) is refused, and properties that the program does not use are not served. One thing
differs: a machine that was created but did not come up in time is not in the state afterwards.
"""

import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tools.plugins.base import Call, Props, ProviderError, ResourceType, serve_provider

if TYPE_CHECKING:
    from linode_api4 import LinodeClient

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = float(os.environ.get("LINODE_READ_TIMEOUT_S", "60"))
# The real plugin's own defaults.
CREATE_TIMEOUT_S, UPDATE_TIMEOUT_S, DELETE_TIMEOUT_S = 900.0, 3600.0, 600.0
# How long a call that may succeed a little later is sent again.
PATIENCE_S = 120.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
# The largest that Linode gives.
PAGE_SIZE = 500

NOT_TAKEN = frozenset({408, 409, 429, 503})
"""Refusals after which nothing has happened and the same call may succeed."""
AGAIN = "run the same command again"
FIXES = {
    401: "set linode:token (or LINODE_TOKEN) to a token that is valid",
    403: "give the token read and write access to Linodes and Firewalls; where it is about availability, "
    "choose another region or type",
    404: AGAIN + ", with --refresh: what was asked for is gone",
    429: "wait a minute, then " + AGAIN,
}
FIXES_OF_400 = {
    "POST": "correct the value named; where it is a label, another machine or firewall of the account has it",
    "PUT": "correct the value named",
    "DELETE": "delete it in Linode's Cloud Manager, for it may still bill",
}

PAGE_FIELDS = frozenset({"data", "pages"})
INSTANCE_FIELDS = frozenset({"id", "label", "status", "region", "type", "tags", "ipv4", "specs"})
FIREWALL_FIELDS = frozenset({"id", "label", "status", "rules", "tags"})
"""What a reply must have; without it, it is not Linode's."""


class Failed(ProviderError):
    """A call that did not succeed. `status` is the reply's, None without one; `passing`: it may yet."""

    def __init__(self, message: str, *, status: int | None, passing: bool) -> None:
        super().__init__(message)
        self.status = status
        self.passing = passing


class Api:
    """Linode's API by its vendor's own client, with the timeouts and patience that the client has not."""

    def __init__(self) -> None:
        self._settings: Props = {}

    def configure(self, settings: Props) -> None:
        self._settings = settings

    @cached_property
    def _client(self) -> "LinodeClient":
        # Loaded at the first call: most engine commands ask a plugin for nothing but checks and differences.
        from linode_api4 import LinodeClient  # noqa: PLC0415
        from requests.adapters import HTTPAdapter  # noqa: PLC0415

        class Bounded(HTTPAdapter):
            def send(self, *args: Any, **kwargs: Any) -> Any:
                return super().send(*args, **kwargs | {"timeout": (CONNECT_TIMEOUT_S, READ_TIMEOUT_S)})

        def setting(name: str, variable: str, default: str) -> str:
            return self._settings.get(name) or os.environ.get(variable) or default

        token = setting("token", "LINODE_TOKEN", "")
        if not token:
            raise ProviderError(
                "linode:token is not set; run `pulumi config set --secret linode:token` or set LINODE_TOKEN"
            )
        url = setting("url", "LINODE_URL", "https://api.linode.com").rstrip("/")
        version = setting("apiVersion", "LINODE_API_VERSION", "v4")
        client = LinodeClient(token, base_url=f"{url}/{version}", retry=False)
        # A proxy of the environment cannot reach this machine's own loopback.
        client.session.trust_env = urlsplit(url).hostname != "127.0.0.1"
        for scheme in ("http://", "https://"):
            client.session.mount(scheme, Bounded(pool_maxsize=64))
        return client

    def call(
        self,
        call: Call,
        method: str,
        path: str,
        data: Props | None = None,
        *,
        query: str = "",
        fields: frozenset[str] = frozenset(),
    ) -> Any:
        """Sends a request until it succeeds, cannot succeed, or two minutes have passed.

        `fields` are those that the reply must have.

        Raises:
            Failed: it did not succeed.
            ProviderError: the user interrupted.
        """
        deadline = time.monotonic() + PATIENCE_S
        pauses = _pauses()
        while True:
            try:
                return self._send(method, path, data, query, fields)
            except Failed as failure:
                pause = next(pauses)
                if not failure.passing or time.monotonic() + pause > deadline:
                    raise
            _wait(call, pause, path)

    def _send(self, method: str, path: str, data: Props | None, query: str, fields: frozenset[str]) -> Any:
        from linode_api4 import ApiError  # noqa: PLC0415
        from requests import RequestException  # noqa: PLC0415

        send: Callable[..., Any] = getattr(self._client, method.lower())
        # What may have taken effect must not be sent twice.
        repeatable = method != "POST"
        try:
            reply = send(path + query, **({} if data is None else {"data": data}))
        except ApiError as error:
            reason = "; ".join(map(str, error.errors)) or f"HTTP {error.status}"
            fix = FIXES_OF_400.get(method, AGAIN) if error.status == 400 else FIXES.get(error.status, AGAIN)
            raise Failed(
                f"{method} {path}: Linode refused: {reason} Fix: {fix}",
                status=error.status,
                passing=error.status in NOT_TAKEN
                or "Linode busy." in error.errors
                or (error.status >= 500 and repeatable),
            ) from None
        except RequestException as error:
            raise Failed(
                f"{method} {path}: no reply from Linode ({type(error).__name__}). "
                f"Fix: check the network and linode:url, then {AGAIN}",
                status=None,
                passing=repeatable,
            ) from None
        if not isinstance(reply, dict) or any(reply.get(name) is None for name in fields):
            raise Failed(
                f"{method} {path}: the reply is not as Linode's API documents it. "
                f"Fix: check linode:url and what proxies lie before it, then {AGAIN}",
                status=None,
                passing=repeatable,
            )
        return reply

    def get(self, call: Call, path: str, fields: frozenset[str]) -> Props | None:
        """What lies there, or None where nothing does."""
        try:
            found: Props = self.call(call, "GET", path, fields=fields)
        except Failed as error:
            if error.status == 404:
                return None
            raise
        return found

    def list(self, call: Call, path: str) -> list[Props]:
        """All pages of a list."""
        rows: list[Props] = []
        page, pages = 1, 1
        while page <= pages:
            query = f"?page={page}&page_size={PAGE_SIZE}"
            reply = self.call(call, "GET", path, query=query, fields=PAGE_FIELDS)
            rows += reply["data"]
            page, pages = page + 1, reply["pages"]
        return rows

    def delete(self, call: Call, path: str) -> None:
        """Deletes; what is gone already counts as deleted."""
        try:
            self.call(call, "DELETE", path)
        except Failed as error:
            if error.status != 404:
                raise

    def wait(
        self, call: Call, path: str, until: Callable[[Props | None], bool], deadline_s: float, what: str
    ) -> Props | None:
        """Looks until what lies there will do. Raises ProviderError after `deadline_s` seconds."""
        deadline = time.monotonic() + deadline_s
        pauses = _pauses()
        while not until(found := self.get(call, path, INSTANCE_FIELDS)):
            pause = next(pauses)
            if time.monotonic() + pause > deadline:
                status = found["status"] if found else "gone"
                raise ProviderError(
                    f"{path}: still {status} after {deadline_s:.0f} s of waiting for it to be {what}; "
                    f"Fix: look at it in Linode's Cloud Manager, then {AGAIN}"
                )
            _wait(call, pause, path)
        return found


def _pauses() -> Iterator[float]:
    """Seconds between two looks, ever longer."""
    pause = FIRST_PAUSE_S
    while True:
        yield pause
        pause = min(pause * 1.6, LONGEST_PAUSE_S)


def _wait(call: Call, pause: float, path: str) -> None:
    if call.cancelled.wait(pause):
        raise ProviderError(f"{path}: interrupted")


API = Api()


def _unserved(inputs: Props, served: frozenset[str]) -> dict[str, str]:
    return dict.fromkeys(inputs.keys() - served, "the stand-in plugin does not serve it")


def _bounded(inputs: Props, name: str, least: int, most: int) -> dict[str, str]:
    value = inputs.get(name)
    if isinstance(value, str) and not least <= len(value) <= most:
        return {name: f"{value!r} has {len(value)} characters; Linode takes {least} to {most}"}
    return {}


def _like(seen: list[str], written: list[str] | None) -> list[str]:
    """A set as the program wrote it, if it is the same set: neither order nor case of tags means anything."""
    same = written is not None and sorted(map(str.lower, seen)) == sorted(map(str.lower, written))
    return written if same and written is not None else seen


class Instance(ResourceType):
    """A Linode made from an image."""

    token = "linode:index/instance:Instance"
    replace_on = frozenset(
        {"image", "authorizedKeys", "firewallId", "metadatas", "interfaces", "interfaceGeneration"}
    )
    computed = frozenset(
        {"status", "ipAddress", "ipv4s", "ipv6", "specs", "hostUuid", "hasUserData", "capabilities"}
        | {"configs"}
    )
    inputs = frozenset(
        {"region", "type", "label", "image", "rootPass", "tags", "booted", "watchdogEnabled"}
        | {"authorizedKeys", "firewallId", "metadatas", "interfaces", "interfaceGeneration"}
    )
    defaults: Mapping[str, Any] = {"type": "g6-standard-1", "watchdogEnabled": True}

    def check(self, inputs: Props) -> tuple[Props, dict[str, str]]:
        failures = _unserved(inputs, self.inputs) | _bounded(inputs, "label", 3, 50)
        return {**self.defaults, **inputs}, failures

    def create(self, call: Call, inputs: Props) -> tuple[str, Props]:
        body = {
            "region": inputs["region"],
            "type": inputs["type"],
            "label": inputs.get("label"),
            "image": inputs.get("image"),
            "tags": inputs.get("tags"),
            "booted": inputs.get("booted"),
            "authorized_keys": inputs.get("authorizedKeys"),
            "firewall_id": inputs.get("firewallId"),
        }
        if generation := inputs.get("interfaceGeneration"):
            body["interface_generation"] = generation
        if interfaces := inputs.get("interfaces"):
            names = {"purpose": "purpose", "label": "label", "ipamAddress": "ipam_address"}
            body["interfaces"] = [
                {theirs: each[ours] for ours, theirs in names.items() if ours in each} for each in interfaces
            ]
        if metadatas := inputs.get("metadatas"):
            body["metadata"] = {"user_data": metadatas[0]["userData"]}
        if inputs.get("image"):
            # As the real plugin does where none is given: nobody knows it, so nobody can log in with it.
            body["root_pass"] = inputs.get("rootPass") or secrets.token_urlsafe(48)
        given = {name: value for name, value in body.items() if value is not None}
        made = API.call(call, "POST", "/linode/instances", given, fields=INSTANCE_FIELDS)
        path = f"/linode/instances/{made['id']}"
        off = not inputs.get("image") or inputs.get("booted") is False
        status = "offline" if off else "running"

        def is_up(seen: Props | None) -> bool:
            # What was just made may be said not to exist for a while.
            return seen is not None and seen["status"] == status

        made = API.wait(call, path, is_up, call.timeout_s or CREATE_TIMEOUT_S, status) or made
        if not inputs["watchdogEnabled"]:
            made = API.call(call, "PUT", path, {"watchdog_enabled": False}, fields=INSTANCE_FIELDS)
        return str(made["id"]), inputs | self._outputs(call, made)

    def read(self, call: Call, id_: str, state: Props, inputs: Props) -> tuple[Props, Props] | None:
        seen = API.get(call, f"/linode/instances/{id_}", INSTANCE_FIELDS)
        if seen is None:
            return None
        found = {
            "label": seen["label"],
            "image": seen["image"],
            "region": seen["region"],
            "type": seen["type"],
            "tags": _like(seen["tags"], inputs.get("tags")),
            "watchdogEnabled": seen["watchdog_enabled"],
            # One that is about to run counts as running, as in the real plugin.
            "booted": seen["status"] in ("running", "booting", "rebooting"),
        }
        outputs = state | found | self._outputs(call, seen)
        if not inputs and not state:  # it is imported
            return outputs, {name: value for name, value in found.items() if value is not None}
        known = inputs or {name: state[name] for name in self.inputs & state.keys()}
        # A property that the program leaves to Linode cannot differ from it.
        changed = {name: value for name, value in found.items() if name in known}
        return outputs, known | changed

    def update(self, call: Call, id_: str, state: Props, inputs: Props) -> Props:
        path = f"/linode/instances/{id_}"
        for name in ("type", "region"):
            if inputs[name] != state[name]:
                raise ProviderError(
                    f"{name}: the stand-in plugin cannot turn {state[name]} into {inputs[name]} in place; "
                    f"Fix: have the program replace the instance (replace_on_changes)"
                )
        fields = {"label": "label", "tags": "tags", "watchdogEnabled": "watchdog_enabled"}
        wanted = {
            field: inputs[name]
            for name, field in fields.items()
            if name in inputs and inputs[name] != state.get(name)
        }
        if wanted:
            API.call(call, "PUT", path, wanted)
        for config in state.get("configs") or []:
            # As the real plugin does at every change: with the comments that it saw last.
            given = {"label": config["label"], "comments": config["comments"]}
            API.call(call, "PUT", f"{path}/configs/{config['id']}", given)
        deadline_s = call.timeout_s or UPDATE_TIMEOUT_S
        seen = API.wait(call, path, _has("running", "offline"), deadline_s, "running or offline")
        if seen is not None and (booted := inputs.get("booted")) is not None:
            status, action = ("running", "boot") if booted else ("offline", "shutdown")
            if seen["status"] != status:
                API.call(call, "POST", f"{path}/{action}", {})
                seen = API.wait(call, path, _has(status), deadline_s, status)
        if seen is None:
            raise ProviderError(f"{path}: is gone; Fix: {AGAIN}, with --refresh")
        return state | inputs | self._outputs(call, seen)

    def delete(self, call: Call, id_: str, state: Props) -> None:
        path = f"/linode/instances/{id_}"
        API.delete(call, path)
        API.wait(call, path, lambda seen: seen is None, call.timeout_s or DELETE_TIMEOUT_S, "deleted")

    def _outputs(self, call: Call, seen: Props) -> Props:
        specs = seen["specs"]
        configs = API.list(call, f"/linode/instances/{seen['id']}/configs")
        return {
            "configs": [{name: each[name] for name in ("id", "label", "comments")} for each in configs],
            "status": seen["status"],
            "ipAddress": seen["ipv4"][0],
            "ipv4s": seen["ipv4"],
            "ipv6": seen["ipv6"],
            "hostUuid": seen["host_uuid"],
            "hasUserData": seen["has_user_data"],
            "capabilities": seen["capabilities"],
            "specs": [
                {
                    **{name: specs[name] for name in ("disk", "memory", "vcpus", "gpus", "transfer")},
                    "acceleratedDevices": specs.get("accelerated_devices", 0),
                }
            ],
        }


def _has(*statuses: str) -> Callable[[Props | None], bool]:
    """Whether it is gone or has one of the statuses."""
    return lambda seen: seen is None or seen["status"] in statuses


class Firewall(ResourceType):
    """A firewall with its rules; `linodes` is left to Linode where the program does not name them."""

    token = "linode:index/firewall:Firewall"
    computed = frozenset({"status", "created", "updated", "devices", "linodes"})
    inputs = frozenset(
        {"label", "tags", "disabled", "linodes"}
        | {"inbounds", "inboundPolicy", "outbounds", "outboundPolicy"}
    )
    defaults: Mapping[str, Any] = {"disabled": False, "tags": []}

    def check(self, inputs: Props) -> tuple[Props, dict[str, str]]:
        failures = _unserved(inputs, self.inputs) | _bounded(inputs, "label", 3, 32)
        return {**self.defaults, **inputs}, failures

    def create(self, call: Call, inputs: Props) -> tuple[str, Props]:
        body = {
            "label": inputs["label"],
            "tags": inputs["tags"],
            "rules": _rules(inputs),
            "devices": {"linodes": inputs.get("linodes") or []},
        }
        made = API.call(call, "POST", "/networking/firewalls", body, fields=FIREWALL_FIELDS)
        id_ = str(made["id"])
        if inputs["disabled"]:
            disabled = {"status": "disabled"}
            made = API.call(call, "PUT", f"/networking/firewalls/{id_}", disabled, fields=FIREWALL_FIELDS)
        return id_, inputs | self._outputs(call, made)

    def read(self, call: Call, id_: str, state: Props, inputs: Props) -> tuple[Props, Props] | None:
        seen = API.get(call, f"/networking/firewalls/{id_}", FIREWALL_FIELDS)
        if seen is None:
            return None
        outputs = self._outputs(call, seen)
        known = inputs or {name: state[name] for name in self.inputs & state.keys()}
        found = {
            "label": seen["label"],
            "tags": _like(seen["tags"], known.get("tags")),
            "disabled": seen["status"] == "disabled",
            "inboundPolicy": seen["rules"]["inbound_policy"],
            "outboundPolicy": seen["rules"]["outbound_policy"],
        }
        for name, direction in (("inbounds", "inbound"), ("outbounds", "outbound")):
            if (rules := [_rule_seen(rule) for rule in seen["rules"][direction] or []]) or name in known:
                found[name] = rules
        if "linodes" in known:
            same = sorted(known["linodes"]) == sorted(outputs["linodes"])
            found["linodes"] = known["linodes"] if same else outputs["linodes"]
        return state | outputs | found, known | found

    def update(self, call: Call, id_: str, state: Props, inputs: Props) -> Props:
        path = f"/networking/firewalls/{id_}"
        wanted = {
            "label": inputs["label"],
            "tags": inputs["tags"],
            "status": "disabled" if inputs["disabled"] else "enabled",
        }
        API.call(call, "PUT", path, wanted)
        API.call(call, "PUT", f"{path}/rules", _rules(inputs))
        if "linodes" in inputs:
            devices = {each["entity"]["id"]: each["id"] for each in API.list(call, f"{path}/devices")}
            for linode in set(inputs["linodes"]) - devices.keys():
                API.call(call, "POST", f"{path}/devices", {"id": linode, "type": "linode"})
            for linode in devices.keys() - set(inputs["linodes"]):
                API.delete(call, f"{path}/devices/{devices[linode]}")
        seen = API.get(call, path, FIREWALL_FIELDS)
        if seen is None:
            raise ProviderError(f"{path}: is gone; Fix: {AGAIN}, with --refresh")
        return inputs | self._outputs(call, seen)

    def delete(self, call: Call, id_: str, state: Props) -> None:
        API.delete(call, f"/networking/firewalls/{id_}")

    def _outputs(self, call: Call, seen: Props) -> Props:
        devices = API.list(call, f"/networking/firewalls/{seen['id']}/devices")
        return {
            "status": seen["status"],
            "created": seen["created"],
            "updated": seen["updated"],
            "linodes": [each["entity"]["id"] for each in devices if each["entity"]["type"] == "linode"],
            "devices": [
                {
                    "id": each["id"],
                    "entityId": each["entity"]["id"],
                    "label": each["entity"]["label"],
                    "type": each["entity"]["type"],
                    "url": each["entity"]["url"],
                }
                for each in devices
            ],
        }


def _rules(inputs: Props) -> Props:
    def rule(given: Props) -> Props:
        addresses = {"ipv4": given.get("ipv4s"), "ipv6": given.get("ipv6s")}
        kept: Props = {
            name: given[name] for name in ("action", "label", "protocol", "ports") if name in given
        }
        return {
            **kept,
            "description": given.get("description", ""),
            "addresses": {family: cidrs for family, cidrs in addresses.items() if cidrs},
        }

    return {
        "inbound": [rule(each) for each in inputs.get("inbounds") or []],
        "inbound_policy": inputs["inboundPolicy"],
        "outbound": [rule(each) for each in inputs.get("outbounds") or []],
        "outbound_policy": inputs["outboundPolicy"],
    }


def _rule_seen(rule: Props) -> Props:
    addresses = rule["addresses"] or {}
    seen = {
        "action": rule["action"],
        "label": rule["label"],
        "protocol": rule["protocol"],
        "ports": rule.get("ports"),
        "description": rule.get("description"),
        "ipv4s": addresses.get("ipv4"),
        "ipv6s": addresses.get("ipv6"),
    }
    return {name: value for name, value in seen.items() if value}


if __name__ == "__main__":
    serve_provider([Instance(), Firewall()], configure=API.configure)
