"""The life of an instance: what happens after a call was accepted."""

from __future__ import annotations

from simcloud.linode import errors
from simcloud.linode.catalog import PLANS
from simcloud.linode.model import PASSING, Event, Instance, Status
from simcloud.linode.resources import CLOUD, Resources
from simcloud.nodes import Boot

# Seconds. None of them was recorded: guesses, in the order of what people report.
PROVISIONING_S = 30.0
BOOTING_S = 10.0
REBOOTING_S = 15.0
SHUTTING_DOWN_S = 10.0
DELETING_S = 5.0
RESIZING_S = 10.0

RESIZE = "resize_disk"
EVENTS_KEPT = 200


class Power:
    """Carries instances from status to status. Every step may be taken again after a crash."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._machines = resources.simulation.machines
        self._steps = {
            "provisioned": self._provisioned,
            "run": self._run,
            "reboot": self._reboot,
            "stop": self._stop,
            "remove": self._remove,
        }

    def provision(self, instance: Instance) -> None:
        self._enter(instance, Status.PROVISIONING, "provisioned", PROVISIONING_S, "linode_create")

    def boot(self, instance: Instance) -> None:
        _refuse(instance, unless=Status.OFFLINE, reason="Linode is already running.")
        self.check_image(instance)
        self._enter(instance, Status.BOOTING, "run", BOOTING_S, "linode_boot")

    def reboot(self, instance: Instance) -> None:
        _refuse(instance, unless=Status.RUNNING, reason="Linode is not running.")
        self._enter(instance, Status.REBOOTING, "reboot", REBOOTING_S, "linode_reboot")

    def shut_down(self, instance: Instance) -> None:
        _refuse(instance, unless=Status.RUNNING, reason="Linode is not running.")
        self._enter(instance, Status.SHUTTING_DOWN, "stop", SHUTTING_DOWN_S, "linode_shutdown")

    def delete(self, instance: Instance) -> None:
        _refuse(instance)
        self._enter(instance, Status.DELETING, "remove", DELETING_S, "linode_delete")

    def resize_disk(self, instance: Instance, number: int, size_mb: int) -> None:
        """Accepts the job whatever the machine does; it fails later unless the machine is off."""
        _refuse(instance)
        self._start_event(instance, "disk_resize")
        self._resources.after(f"{instance.id}/{number}/{size_mb}", RESIZE, RESIZING_S)

    def check_image(self, instance: Instance) -> None:
        if instance.image is None:
            raise errors.refused(400, "Linode has no disks to boot from.")

    async def due(self, action: str, object_id: str) -> None:
        """Takes the step whose time has come."""
        instance_id, *rest = object_id.split("/")
        instance = self._resources.instances.get(instance_id)
        if instance is None:
            return
        if action == RESIZE:
            number, size_mb = map(int, rest)
            self._resize(instance, number, size_mb)
        else:
            await self._steps[action](instance)

    async def resume(self) -> None:
        """Powers on the machines that ran when the emulator ended."""
        for instance in self._resources.instances:
            if instance.status is Status.RUNNING:
                await self._machines.backend.start(self._boot(instance))

    def available(self, region: str, plan: str) -> bool:
        """Whether a new instance of the plan can be had in the region."""
        stock = self._resources.simulation.conditions.stock
        here = region in PLANS[plan].regions
        return here and stock.get(f"{CLOUD}/{region}/{plan}") != "false"

    def _enter(self, instance: Instance, status: Status, step: str, seconds: float, action: str) -> None:
        self._become(instance, status)
        self._start_event(instance, action)
        self._resources.after(instance.id, step, seconds)

    def _become(self, instance: Instance, status: Status) -> None:
        instance.status = status
        instance.touch()
        self._resources.instances.put(instance)
        self._resources.event("server", instance, str(status))

    async def _provisioned(self, instance: Instance) -> None:
        with self._resources.simulation.store.transaction():
            self._end_event(instance, "linode_create")
            if instance.booted:
                self._enter(instance, Status.BOOTING, "run", BOOTING_S, "linode_boot")
            else:
                self._become(instance, Status.OFFLINE)

    async def _run(self, instance: Instance) -> None:
        await self._machines.backend.start(self._boot(instance))
        self._end_event(instance, "linode_boot")
        self._become(instance, Status.RUNNING)

    async def _reboot(self, instance: Instance) -> None:
        await self._machines.backend.stop(instance.id)
        await self._machines.backend.start(self._boot(instance))
        self._end_event(instance, "linode_reboot")
        self._become(instance, Status.RUNNING)

    async def _stop(self, instance: Instance) -> None:
        await self._machines.backend.stop(instance.id)
        self._end_event(instance, "linode_shutdown")
        self._become(instance, Status.OFFLINE)

    async def _remove(self, instance: Instance) -> None:
        await self._machines.remove(instance.id)
        with self._resources.simulation.store.transaction():
            for firewall in self._resources.firewalls_of(instance):
                firewall.devices = [d for d in firewall.devices if d.instance != instance.id]
                self._resources.firewalls.put(firewall)
            self._end_event(instance, "linode_delete")
            self._resources.instances.remove(instance.id)
            self._resources.event("server", instance, "deleted")

    def _resize(self, instance: Instance, number: int, size_mb: int) -> None:
        disk = next((disk for disk in instance.disks if disk.number == number), None)
        others = sum(disk.size_mb for disk in instance.disks if disk.number != number)
        fits = others + size_mb <= PLANS[instance.plan].disk_mb
        done = disk is not None and fits and instance.status is Status.OFFLINE
        if done and disk is not None:
            disk.size_mb = size_mb
            self._resources.instances.put(instance)
        self._end_event(instance, "disk_resize", "finished" if done else "failed")
        what = f"disk resized to {size_mb} MB" if done else "disk resize failed"
        self._resources.event("server", instance, what)

    def _start_event(self, instance: Instance, action: str) -> None:
        for old in list(self._resources.events)[:-EVENTS_KEPT]:
            self._resources.events.remove(old.id)
        self._resources.events.put(Event(action=action, instance=instance.id, label=instance.label))

    def _end_event(self, instance: Instance, action: str, status: str = "finished") -> None:
        for event in self._resources.events:
            if (event.instance, event.action, event.status) == (instance.id, action, "started"):
                event.status = status
                self._resources.events.put(event)

    def _boot(self, instance: Instance) -> Boot:
        plan = PLANS[instance.plan]

        async def publish(key: str, value: bytes) -> None:
            """Linode's metadata service is read-only: what a machine says of itself goes nowhere."""

        return Boot(
            cloud=CLOUD,
            server_id=instance.id,
            name=self._resources.node_of(instance),
            address=instance.address,
            user_data=instance.user_data,
            authorized_keys=tuple(instance.authorized_keys),
            gpu_model=plan.gpu,
            gpu_count=plan.gpus,
            gpu_memory_mib=plan.driver_mib,
            disk_gb=instance.root_mb * 2**20 // 10**9,
            directory=self._machines.directory(instance.id),
            publish=publish,
        )


def _refuse(instance: Instance, *, unless: Status | None = None, reason: str = "") -> None:
    if instance.status in PASSING:
        raise errors.busy()
    if unless is not None and instance.status is not unless:
        raise errors.refused(400, reason)
