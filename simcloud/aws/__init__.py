"""The embedded AWS: moto below `/aws`, with the faults, the log and the machines of the other clouds."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from fleet.catalog import catalog
from simcloud.aws.engine import Moto
from simcloud.aws.jobs import JobBoot, JobMachines, is_job
from simcloud.aws.protocol import CALLS, AwsRequest, conflict_of, not_found_of, recognize, refusal
from simcloud.cloud import ApiError, Call, Cloud, Json, Received, Reply, Simulation
from simcloud.faults import FaultKind, Lag
from simcloud.machines import NoNodes
from simcloud.nodes import Boot

__all__ = ["DEV_ACCESS_KEY", "DEV_SECRET_KEY", "Aws"]

# Shaped like real ones, known to everybody, good for nothing but the embedded cloud.
DEV_ACCESS_KEY = "AKIAEMBEDDEDCLOUD000"
DEV_SECRET_KEY = "embedded/cloud/embedded/cloud/embedded00"  # 40 characters

CLOUD = "aws"

QUOTAS = {"g": "L-DB2E81BA", "p": "L-417A185B"}
"""AWS's codes of its limits on vCPUs on demand, by the first letter of a type."""
DEFAULT_VCPUS = 768
OVER_QUOTA = (
    "You have requested more vCPU capacity than your current vCPU limit of {limit} allows for the instance "
    "bucket that the specified instance type belongs to."
)
TEMPORARY_KEY = "ASIA"
"""Keys that the embedded STS gave out begin like this."""

NODE_TAG = "vllm-fleet-node"

POWER_CALLS = frozenset(
    {
        *("RunInstances", "StartInstances", "StopInstances", "TerminateInstances", "RebootInstances"),
        *("AssociateAddress", "DisassociateAddress"),
    }
)
"""Calls after which another set of machines may be on, or at other addresses."""


class Aws(Cloud):
    """One account on AWS. Signatures are not checked, the access key is."""

    name = CLOUD
    prefix = "/aws"

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._given: set[str] = set()
        self._inner: dict[str, str] = {}
        """Where instances without a public address are, by their id."""
        self._moto = Moto(self._free_address)
        self._on: dict[str, Boot] = {}
        self._jobs = JobMachines(self._job_is_off)
        self._states: dict[str, str] = {}
        self._reconciling = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self.calls = [Call(name, "POST", "", self._answer) for name in sorted(CALLS)]

    def recognize(self, received: Received, method: str) -> Received:
        return recognize(received, method, Call("unknown", method, "", self._answer))

    def authorize(self, received: Received) -> None:
        request = _aws(received)
        if request.access_key != DEV_ACCESS_KEY and not request.access_key.startswith(TEMPORARY_KEY):
            raise refusal(
                request, 403, "InvalidClientTokenId", "The security token included in the request is invalid."
            )
        if request.call.name in self._simulation.conditions.denied_calls:
            raise refusal(
                request, 403, "AccessDenied", f"You are not authorized to perform: {request.call.name}"
            )

    def names(self, received: Received) -> Iterable[str]:
        request = _aws(received)
        # The tags of what is made, in a form: TagSpecification.1.Tag.2.Key and .Value.
        parameters = request.json
        tags = {
            str(value): str(parameters.get(key.removesuffix("Key") + "Value", ""))
            for key, value in parameters.items()
            if key.endswith(".Key")
        }
        if NODE_TAG in tags:
            yield tags[NODE_TAG].rpartition("/")[2]
        # What is called upon, by whatever name the call has for it.
        wanted = {str(value) for value in parameters.values()}
        for instance in self._moto.instances():
            volume = self._moto.volume(instance)
            if instance.id in wanted or (volume and volume.id in wanted):
                yield _node(instance)
                yield instance.id
        for thing in self._moto.things():
            if NODE_TAG in thing.tags and wanted & {thing.id, thing.name}:
                yield thing.tags[NODE_TAG].rpartition("/")[2]
                yield thing.name

    def refusal(self, kind: FaultKind, received: Received) -> Reply:
        request = _aws(received)
        launch = request.call.name == "RunInstances"
        match kind:
            case FaultKind.RATE_LIMITED:
                status = 503 if request.service == "ec2" else 400
                found = status, "Throttling", "Request limit exceeded."
            case FaultKind.UNAVAILABLE:
                found = 503, "ServiceUnavailable", "The server is overloaded and can't handle the request."
            case FaultKind.FORBIDDEN:
                found = 403, "AccessDenied", f"You are not authorized to perform: {request.call.name}"
            case FaultKind.NOT_FOUND:
                found = not_found_of(request)
            case FaultKind.CONFLICT:
                found = conflict_of(request)
            case FaultKind.QUOTA if launch:
                found = 400, "VcpuLimitExceeded", OVER_QUOTA.format(limit=0)
            case FaultKind.QUOTA:
                found = 400, "LimitExceeded", "The limit of this resource has been reached."
            case FaultKind.OUT_OF_STOCK if launch:
                return _no_capacity(request).reply
            case _:
                found = 500, "InternalFailure", "An internal error has occurred"
        return refusal(request, *found).reply

    def not_found(self, received: Received) -> Reply:
        return refusal(
            _aws(received), 400, "InvalidAction", "The action is not valid for this endpoint."
        ).reply

    def inventory(self) -> Iterable[Json]:
        owners: dict[str, str] = {}
        for instance in self._moto.instances():
            if instance.state != "terminated":
                volume = self._moto.volume(instance)
                if volume:
                    owners[volume.id] = _node(instance)
                yield {
                    **_thing("server", instance.id, _tags(instance).get("Name", instance.id)),
                    "zone": instance.availability_zone,
                    "node": _node(instance),
                    "state": instance.state,
                    "bills": instance.state in ("pending", "running"),
                }
        for thing in self._moto.things():
            node = thing.tags.get(NODE_TAG, "").rpartition("/")[2]
            yield {
                **_thing(thing.kind, thing.id, thing.name),
                "node": node or owners.get(thing.id, thing.name),
                "state": "",
                "bills": thing.bills,
            }

    def private_addresses(self) -> Iterable[tuple[str, str]]:
        for instance in self._moto.instances():
            if instance.id in self._on:
                yield str(instance.private_ip), self._on[instance.id].address

    def objects(self) -> frozenset[str]:
        return frozenset(
            [instance.id for instance in self._moto.instances()] + [thing.id for thing in self._moto.things()]
        )

    def hiding(self, lags: Sequence[Lag]) -> AbstractContextManager[None]:
        return self._moto.hiding(lags)

    async def start(self) -> None:
        pass  # moto starts empty, so no machine is to be powered on

    def reset(self) -> None:
        self._jobs.reset()
        self._moto.reset()
        self._given.clear()
        self._inner.clear()
        self._on.clear()
        self._states.clear()

    # --- Inside ---

    def _answer(self, received: Received) -> Reply:
        request = _aws(received)
        if request.call.name == "GetServiceQuota":
            return self._quota(request)
        if request.call.name == "RunInstances" and request.json.get("DryRun") != "true":
            self._refuse_over_quota(request)
            self._refuse_without_stock(request)
        reply = self._moto.answer(request)
        if request.call.name in POWER_CALLS and reply.status < 300:
            rebooted = request.listed("InstanceId") if request.call.name == "RebootInstances" else []
            host = received.headers["host"]
            task = asyncio.get_running_loop().create_task(self._reconcile(f"http://{host}/aws", rebooted))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return reply

    def _quota(self, request: AwsRequest) -> Reply:
        code = str(request.json.get("QuotaCode"))
        if code not in QUOTAS.values():
            raise refusal(request, 400, "NoSuchResourceException", "The specified quota does not exist.")
        limit = self._simulation.conditions.quotas.get(code, DEFAULT_VCPUS)
        quota = {"ServiceCode": "ec2", "QuotaCode": code, "Value": float(limit), "Adjustable": True}
        return Reply(200, {"Quota": quota}, {"Content-Type": "application/x-amz-json-1.1"})

    def _refuse_over_quota(self, request: AwsRequest) -> None:
        """On demand; spot has quotas of its own."""
        code = _quota_of(str(request.json.get("InstanceType")))
        limit = self._simulation.conditions.quotas.get(code)
        if limit is None or request.json.get("InstanceMarketOptions.MarketType") == "spot":
            return
        running = [each for each in self._moto.instances() if each.state in ("pending", "running")]
        types = [each.instance_type for each in running if each.lifecycle != "spot"]
        used = sum(_vcpus(type_) for type_ in types if _quota_of(type_) == code)
        if used + _vcpus(str(request.json.get("InstanceType"))) > limit:
            raise refusal(request, 400, "VcpuLimitExceeded", OVER_QUOTA.format(limit=limit))

    def _refuse_without_stock(self, request: AwsRequest) -> None:
        type_ = request.json.get("InstanceType")
        stock = self._simulation.conditions.stock
        subnet = request.json.get("SubnetId") or request.json.get("NetworkInterface.1.SubnetId")
        zones = {zone for zone, name in self._moto.subnets(request.region) if name == subnet}
        for key, availability in stock.items():
            cloud, zone, out = key.split("/")
            if cloud == CLOUD and out == type_ and availability != "available" and zone in zones:
                raise _no_capacity(request)

    async def _reconcile(self, api_url: str, rebooted: Iterable[str]) -> None:
        """Power on the machines of the instances that run, and power off the others."""
        async with self._reconciling:
            machines = self._simulation.machines
            for instance in list(self._moto.instances()):
                if self._states.get(instance.id) != instance.state:
                    self._states[instance.id] = instance.state
                    self._event(instance, instance.state)
                if self._runs_a_job(instance):
                    await self._reconcile_job(instance, api_url)
                    continue
                on = self._on.get(instance.id)
                address = self._address(instance) if instance.state == "running" else None
                if on and (on.address != address or instance.id in rebooted):
                    await machines.backend.stop(instance.id)
                    on = self._on.pop(instance.id) and None
                if instance.state == "terminated":
                    await machines.remove(instance.id)
                elif address and not on:
                    self._on[instance.id] = boot = self._boot(instance, address)
                    await machines.backend.start(boot)

    def _address(self, instance: Any) -> str:
        """The loopback address of a running instance, which is its public one if it has one."""
        if instance.public_ip:
            return str(instance.public_ip)
        if instance.id not in self._inner:
            self._inner[instance.id] = self._free_address()
        return self._inner[instance.id]

    def _runs_a_job(self, instance: Any) -> bool:
        return not isinstance(self._simulation.machines.backend, NoNodes) and is_job(_user_data(instance))

    async def _reconcile_job(self, instance: Any, api_url: str) -> None:
        machines = self._simulation.machines
        if instance.state == "terminated":
            await self._jobs.stop(instance.id)
            await machines.remove(instance.id)
        elif instance.state == "running":
            directory = machines.directory(instance.id)
            shares = directory.parent.parent / "shares"
            for thing in self._moto.things():
                if thing.kind == "file_system":
                    (shares / thing.id).mkdir(parents=True, exist_ok=True)
            boot = JobBoot(
                instance_id=instance.id,
                user_data=_user_data(instance) or b"",
                launched=instance.launch_time.timestamp(),
                directory=directory,
                shares=shares,
                api_url=api_url,
                access_key=self._moto.key_of_its_role(instance),
            )
            self._jobs.start(boot)

    async def _job_is_off(self, instance_id: str) -> None:
        """A machine that goes off by itself is ended by EC2, or stopped, as its launch said."""
        self._moto.shut_down(instance_id)
        await self._reconcile("", [])

    def _boot(self, instance: Any, address: str) -> Boot:
        type_ = catalog().find(CLOUD, instance.instance_type)
        volume = self._moto.volume(instance)
        key = instance.ec2_backend.key_pairs.get(instance.key_name)
        return Boot(
            cloud=CLOUD,
            server_id=instance.id,
            name=_node(instance),
            address=address,
            user_data=_user_data(instance),
            authorized_keys=(key.public_key.strip(),) if key else (),
            gpu_model=type_.gpu if type_ else "",
            gpu_count=type_.gpu_count if type_ else 0,
            gpu_memory_mib=type_.gpu_memory_mib if type_ else 0,
            disk_gb=volume.size if volume else 8,
            directory=self._simulation.machines.directory(instance.id),
            publish=_publish,
        )

    def _event(self, instance: Any, what: str) -> None:
        self._simulation.journal.event(
            cloud=CLOUD, kind="server", id=instance.id, what=what, node=_node(instance)
        )

    def _free_address(self) -> str:
        address = self._simulation.machines.free_address(self._given)
        self._given.add(address)
        return address


def _aws(received: Received) -> AwsRequest:
    assert isinstance(received, AwsRequest)
    return received


def _quota_of(type_: str) -> str:
    """Empty for a type that no limit here is about."""
    return QUOTAS.get(type_[:1], "")


def _vcpus(type_: str) -> int:
    found = catalog().find(CLOUD, type_)
    return found.vcpus if found else 0


def _no_capacity(request: AwsRequest) -> ApiError:
    return refusal(
        request,
        500,
        "InsufficientInstanceCapacity",
        f"We currently do not have sufficient {request.json.get('InstanceType')} capacity in the "
        "Availability Zone you requested.",
    )


def _tags(instance: Any) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in instance.get_tags()}


def _user_data(instance: Any) -> bytes | None:
    return base64.b64decode(str(instance.user_data)) if instance.user_data else None


def _node(instance: Any) -> str:
    tags = _tags(instance)
    return tags.get(NODE_TAG, "").rpartition("/")[2] or tags.get("Name") or str(instance.id)


async def _publish(key: str, value: bytes) -> None:
    raise NotImplementedError(f"EC2's metadata service takes no {key}: it is read-only")


def _thing(kind: str, id_: str, name: str) -> Json:
    return {"cloud": CLOUD, "kind": kind, "id": id_, "name": name, "zone": None}
