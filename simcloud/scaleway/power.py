"""The life of a server: what happens after an action was accepted."""

from __future__ import annotations

from dataclasses import dataclass

from simcloud.nodes import Boot
from simcloud.scaleway import errors
from simcloud.scaleway.block import Block
from simcloud.scaleway.catalog import GB, TYPES
from simcloud.scaleway.model import DynamicIp, Server, ServerState
from simcloud.scaleway.resources import CLOUD, Resources


@dataclass(frozen=True)
class Delays:
    """Seconds a server stays in each passing state."""

    allocating: float
    provisioning: float
    stopping: float = 36.0
    """Median of recorded power-offs."""
    terminating: float = 5.0
    """Median of recorded terminations."""
    rebooting: float = 10.0
    """Not recorded: a guess."""


# Recorded power-ons: median 5 s without a GPU, 10 to 31 s with one.
CPU_DELAYS = Delays(allocating=2.0, provisioning=3.0)
GPU_DELAYS = Delays(allocating=4.0, provisioning=14.0)

STOPPED_ACTIONS = ["poweron", "backup"]
PASSING_ACTIONS = ["stop_in_place", "backup"]
RUNNING_ACTIONS = ["poweroff", "terminate", "reboot", "stop_in_place", "backup"]
PROTECTED_FROM = frozenset({"poweroff", "stop_in_place", "terminate"})
"""What the flag `protected` refuses. Deleting a stopped server is not among it, as was seen in fr-par-1."""
STOPPED_IN_PLACE_ACTIONS = ["poweron", "poweroff", "terminate", "backup"]


def allowed_actions(server: Server) -> list[str]:
    match server.state:
        case ServerState.STOPPED:
            actions = STOPPED_ACTIONS
        case ServerState.RUNNING:
            actions = RUNNING_ACTIONS
        case ServerState.STOPPED_IN_PLACE:
            actions = STOPPED_IN_PLACE_ACTIONS
        case _:
            actions = PASSING_ACTIONS
    return [action for action in actions if not (server.protected and action in PROTECTED_FROM)]


class Power:
    """Carries servers from state to state. Every step may be taken again after a crash."""

    def __init__(self, resources: Resources, block: Block) -> None:
        self._resources = resources
        self._block = block
        self._machines = resources.simulation.machines
        self._steps = {
            "provision": self._provision,
            "run": self._run,
            "reboot": self._reboot,
            "stop": self._stop,
            "stop_in_place": self._stop_in_place,
            "terminate": self._terminate,
        }

    def act(self, server: Server, action: str) -> None:
        """Accepts an action of the API.

        Raises:
            ApiError: the action is unknown, not allowed in this state, or there is no stock.
        """
        delays = GPU_DELAYS if TYPES[server.commercial_type].gpus else CPU_DELAYS
        known = {"poweron", "poweroff", "stop_in_place", "reboot", "terminate"}
        if action not in known:
            raise errors.invalid("action", f"{action} is not one of {', '.join(sorted(known))}")
        if server.protected and action in PROTECTED_FROM:
            raise errors.precondition("server is protected", precondition="protected_resource")
        if action not in allowed_actions(server):
            needed = "stopped" if action == "poweron" else "running"
            raise errors.precondition(f"server should be {needed}")
        match action:
            case "poweron":
                self.check_stock(server.zone, server.commercial_type)
                self._enter(server, ServerState.STARTING, "allocating node", "provision", delays.allocating)
            case "reboot":
                self._enter(server, ServerState.STARTING, "rebooting", "reboot", delays.rebooting)
            case "poweroff":
                self._enter(server, ServerState.STOPPING, "stopping", "stop", delays.stopping)
            case "stop_in_place":
                self._enter(server, ServerState.STOPPING, "stopping", "stop_in_place", delays.stopping)
            case "terminate":
                self._enter(server, ServerState.STOPPING, "terminating", "terminate", delays.terminating)

    def check_stock(self, zone: str, commercial_type: str) -> None:
        if self.availability(zone, commercial_type) == "shortage":
            raise errors.out_of_stock(commercial_type)

    def availability(self, zone: str, commercial_type: str) -> str:
        """available, scarce or shortage."""
        stock = self._resources.simulation.conditions.stock
        return stock.get(f"{CLOUD}/{zone}/{commercial_type}", "available")

    async def due(self, action: str, server_id: str) -> None:
        """Takes the step whose time has come."""
        server = self._resources.servers.get(server_id)
        if server is not None:
            await self._steps[action](server)

    async def resume(self) -> None:
        """Powers on the machines that ran when the emulator ended."""
        for server in self._resources.servers:
            if server.state is ServerState.RUNNING:
                await self._machines.backend.start(self._boot(server))

    def remove(self, server: Server, *, volumes_at_once: bool) -> None:
        """Deletes the server's record and frees its volumes and IPs."""
        self._resources.servers.remove(server.id)
        self._resources.simulation.timers.cancel(CLOUD, server.id)
        self._resources.event("server", server, "deleted", self._resources.node_of(server))
        for ip in self._resources.ips_of(server):
            ip.server = None
            self._resources.ips.put(ip)
        for volume_id in server.block_volumes.values():
            self._block.release(volume_id, at_once=volumes_at_once)

    async def wipe(self, server_id: str) -> None:
        """Removes the machine of a deleted server."""
        await self._machines.remove(server_id)

    def refresh_dynamic_ip(self, server: Server) -> None:
        """A dynamic IP is there while the server runs, wants one and has no flexible IP."""
        flexible = self._resources.ips_of(server)
        runs = server.state in (ServerState.RUNNING, ServerState.STOPPED_IN_PLACE)
        wanted = runs and server.dynamic_ip_required and not flexible
        if wanted and server.dynamic_ip is None and server.address:
            server.dynamic_ip = DynamicIp(address=server.address)
        elif not wanted:
            server.dynamic_ip = None

    def _enter(self, server: Server, state: ServerState, detail: str, step: str, seconds: float) -> None:
        self._become(server, state, detail)
        self._resources.after(server, step, seconds)

    def _become(self, server: Server, state: ServerState, detail: str = "") -> None:
        server.state, server.state_detail = state, detail
        self.refresh_dynamic_ip(server)
        server.touch()
        self._resources.servers.put(server)
        what = f"{state}: {detail}" if detail else str(state)
        self._resources.event("server", server, what, self._resources.node_of(server))

    async def _provision(self, server: Server) -> None:
        delays = GPU_DELAYS if TYPES[server.commercial_type].gpus else CPU_DELAYS
        with self._resources.simulation.store.transaction():
            self._enter(server, ServerState.STARTING, "provisioning node", "run", delays.provisioning)

    async def _run(self, server: Server) -> None:
        if server.address is None:
            server.address = self._resources.free_address()
        await self._machines.backend.start(self._boot(server))
        # It may have been told to stop meanwhile; that step follows this one.
        if server.state is ServerState.STARTING:
            self._become(server, ServerState.RUNNING, "booting kernel")

    async def _reboot(self, server: Server) -> None:
        await self._machines.backend.stop(server.id)
        await self._run(server)

    async def _stop(self, server: Server) -> None:
        await self._machines.backend.stop(server.id)
        self._become(server, ServerState.STOPPED)

    async def _stop_in_place(self, server: Server) -> None:
        await self._machines.backend.stop(server.id)
        self._become(server, ServerState.STOPPED_IN_PLACE)

    async def _terminate(self, server: Server) -> None:
        await self.wipe(server.id)
        with self._resources.simulation.store.transaction():
            self.remove(server, volumes_at_once=True)

    def _boot(self, server: Server) -> Boot:
        server_type = TYPES[server.commercial_type]
        root = self._resources.volumes.get(server.block_volumes.get("0", ""))
        size = root.size if root else sum(volume.size for volume in server.local_volumes.values())
        flexible = self._resources.ips_of(server)
        address = flexible[0].address if flexible else server.address
        assert address is not None

        async def publish(key: str, value: bytes) -> None:
            current = self._resources.servers.get(server.id)
            if current is not None:
                current.user_data[key] = value
                self._resources.servers.put(current)
                node = self._resources.node_of(current)
                self._resources.event("server", current, f"published user data {key}", node)

        return Boot(
            cloud=CLOUD,
            server_id=server.id,
            name=self._resources.node_of(server),
            address=address,
            user_data=server.user_data.get("cloud-init"),
            authorized_keys=tuple(
                key.public_key for key in self._resources.ssh_keys if key.project == server.project
            ),
            gpu_model=server_type.gpu,
            gpu_count=server_type.gpus,
            gpu_memory_mib=server_type.driver_mib,
            disk_gb=size // GB,
            directory=self._machines.directory(server.id),
            publish=publish,
        )
