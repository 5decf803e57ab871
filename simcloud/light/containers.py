"""The machine's Docker: images, containers that live, die and restart, and the ports they publish."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from simcloud.light import caddy
from simcloud.light.compose import Port, Service
from simcloud.light.disk import Disk
from simcloud.light.log import Log
from simcloud.vllm_flags import BadFlags, Options, parse_options
from simcloud.vllm_sim import (
    Fault,
    Gpus,
    Reader,
    Request,
    Response,
    Simulator,
    State,
    Writer,
    serve_http,
)

Connection = Callable[[Reader, Writer], Awaitable[None]]


class Engine(Protocol):
    """What serves in a container of vLLM's image: the simulator, or vLLM itself."""

    options: Options

    @property
    def state(self) -> State: ...
    async def run(self) -> int:
        """Serve until cancelled; returns the exit status of a program that ends by itself."""
        ...

    async def connection(self, reader: Reader, writer: Writer) -> None:
        """Answer one client of its port."""
        ...


EngineMaker = Callable[[Service, Disk, Callable[[str], None]], Engine]
"""Makes the engine of a container on a machine's disk; it logs line by line."""

PULL_S = 2.0
# Docker doubles the pause between restarts, from 100 ms up to a minute, and forgets after a run of 10 s.
RESTART_FIRST_S, RESTART_MAX_S, RESTART_FORGET_S = 0.1, 60.0, 10.0

LOGINS = "/root/.docker/config.json"

# The repositories that exist, with the tags each has; any other name is refused as a registry would.
_REPOSITORIES = {
    r"(docker\.io/)?vllm/vllm-openai": r"latest|v0\.([5-9]|1\d|2\d|3[0-3])\.\d+(\.post\d+)?(-cu\d+)?",
    r"ghcr\.io/open-webui/open-webui": r"main|latest|v?\d+\.\d+\.\d+",
    r"(docker\.io/)?((library|prom|grafana)/)?[a-z0-9-]+": r"[\w.-]+",
    r"nvcr\.io/nvidia/[a-z0-9/-]+": r"[\w.-]+",
}


class Machine(Protocol):
    """What containers need of the machine they run on."""

    speed: float
    address: str
    gpus: Gpus
    directory: Path
    disk: Disk
    engine: EngineMaker | None
    """What serves in place of the simulator."""

    def fault(self) -> str | None: ...
    def stage(self, name: str, seconds: float) -> None: ...


class DockerError(Exception):
    """The daemon's answer, as the client prints it."""


@dataclass
class Container:
    """One container; `status` is Docker's word."""

    service: Service
    status: str = "created"
    exit_code: int = 0
    restarts: int = 0
    started_at: float = 0.0
    finished_at: float = 0.0
    engine: Engine | None = None
    log: Log = field(default_factory=Log)
    task: asyncio.Task[None] | None = None
    listeners: list[asyncio.Server] = field(default_factory=list)
    clients: set[Writer] = field(default_factory=set)
    """Connections to its program; they end with it."""

    @property
    def name(self) -> str:
        return self.service.container

    @property
    def id(self) -> str:
        return hashlib.sha256(f"{self.name}{self.service.digest}".encode()).hexdigest()

    def hang_up(self) -> None:
        """Close the connections of a program that has ended."""
        for client in self.clients:
            client.close()
        self.clients.clear()

    @property
    def health(self) -> str:
        """Docker's health status; empty without a healthcheck."""
        if not self.service.healthcheck or self.status != "running":
            return ""
        return "healthy" if self.engine is None or self.engine.state is State.READY else "starting"


def image_digest(image: str) -> str:
    """The id Docker shows for an image."""
    return "sha256:" + hashlib.sha256(image.encode()).hexdigest()


def iso(seconds: float) -> str:
    """A Unix time as Docker prints it; 0 is Docker's year 1."""
    if not seconds:
        return "0001-01-01T00:00:00Z"
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


class Docker:
    """The daemon of one machine. Images survive on its disk, containers start again with their unit."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._images = machine.directory / "images.json"
        self._pulling: dict[str, asyncio.Lock] = {}
        self.containers: dict[str, Container] = {}

    @property
    def images(self) -> list[str]:
        return list(json.loads(self._images.read_text())) if self._images.exists() else []

    def check(self) -> None:
        """Raises `DockerError` when the daemon does not answer."""
        if self._machine.fault() == "docker_dead":
            raise DockerError(
                "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. "
                "Is the docker daemon running?"
            )

    async def pull(self, image: str) -> None:
        """Fetch an image that is not here yet; two who ask at once wait for one download."""
        async with self._pulling.setdefault(image, asyncio.Lock()):
            if image in self.images:
                return
            _look_up(image, self._registries())
            began = time.time()
            await asyncio.sleep(PULL_S * self._machine.speed)
            if self._machine.fault() == "disk_full":
                raise DockerError(
                    "failed to register layer: write /usr/local/lib/python3.12/dist-packages/torch/lib/"
                    "libtorch_cuda.so: no space left on device"
                )
            self._images.write_text(json.dumps([*self.images, image]))
            self._machine.stage("image_pull", time.time() - began)

    def _registries(self) -> set[str]:
        """Hosts of the registries that there is a login for."""
        if not self._machine.disk.exists(LOGINS):
            return set()
        return set(json.loads(self._machine.disk.text(LOGINS)).get("auths", {}))

    async def up(self, service: Service, *, recreate: bool = False) -> str:
        """Make the container match its service and run; returns what was done, in Compose's word."""
        await self.pull(service.image)
        there = self.containers.get(service.container)
        if there and there.service.digest == service.digest and not recreate:
            if there.status in {"running", "restarting"}:
                return "Running"
            await self._start(there)
            return "Started"
        if there:
            await self.remove(there.name)
        container = self.containers[service.container] = Container(service)
        await self._start(container)
        return "Recreated" if there else "Started"

    async def download(self, service: Service, model: str, say: Callable[[str], None]) -> int:
        """Fetch a model's weights with a service's image and token; returns the exit status."""
        await self.pull(service.image)
        options = parse_options(["--model", model], {})
        simulator = self._simulator(options, service, "0.9.2", say)
        return await simulator.fetch()

    async def stop(self, name: str) -> None:
        """Stop a container; it stays, exited."""
        container = self.containers[name]
        if container.task and container.status != "exited":
            container.task.cancel()
            with suppress(asyncio.CancelledError):
                await container.task
            container.status, container.exit_code, container.finished_at = "exited", 0, time.time()
        for listener in container.listeners:
            listener.close()
        container.listeners.clear()
        container.hang_up()

    async def restart(self, name: str) -> None:
        await self.stop(name)
        await self._start(self.containers[name])

    async def remove(self, name: str) -> None:
        await self.stop(name)
        del self.containers[name]

    async def close(self) -> None:
        """Power off: containers end without a word."""
        for name in list(self.containers):
            await self.remove(name)

    def published(self) -> Iterator[tuple[Port, Container]]:
        """The ports in use on the machine, with the container behind each."""
        for container in self.containers.values():
            if container.status == "running":
                yield from ((port, container) for port in _ports(container))

    def connection(self, port: int) -> Connection | None:
        """Who answers on a port of the machine's loopback; None: refused."""
        for published, container in self.published():
            if published.published == port and published.host_ip in {"", "0.0.0.0", "::", "127.0.0.1"}:
                if caddy.is_caddy(container.service.image):
                    return _relay(self._machine.address, port)
                return _behind(container, published)
        return None

    async def _at(self, container: Container, name: str, port: int) -> int:
        """A port of the machine's address that leads to a neighbour of the container's, whichever runs."""

        async def connect(reader: Reader, writer: Writer) -> None:
            for other in list(self.containers.values()):
                if other.service.name == name and other.service.project == container.service.project:
                    await _behind(other, Port("", port, port))(reader, writer)
            writer.close()

        listener = await asyncio.start_server(connect, self._machine.address, 0)
        container.listeners.append(listener)
        return int(listener.sockets[0].getsockname()[1])

    def gpu_used(self) -> float:
        """The part of each GPU's memory in use, 0 to 1."""
        return max(
            (
                c.engine.options.gpu_memory_utilization
                for c in self.containers.values()
                if c.engine and c.engine.state is State.READY
            ),
            default=0.0,
        )

    async def _start(self, container: Container) -> None:
        service = container.service
        if service.runtime == "nvidia" and self._machine.fault() in {"driver_missing", "gpu_missing"}:
            raise DockerError(
                "Error response from daemon: failed to create task for container: OCI runtime create failed: "
                "nvidia-container-cli: initialization error: nvml error: driver not loaded: unknown"
            )
        taken = {port.published for port, _ in self.published()}
        for port in _ports(container):
            if port.published in taken or self._machine.fault() == "port_taken":
                raise DockerError(
                    "Error response from daemon: driver failed programming external connectivity on endpoint "
                    f"{container.name}: Bind for {port.host_ip or '0.0.0.0'}:{port.published} failed: "
                    "port is already allocated"
                )
            if port.host_ip in {"", "0.0.0.0", "::"} and not caddy.is_caddy(service.image):
                container.listeners.append(
                    await asyncio.start_server(
                        _behind(container, port), self._machine.address, port.published
                    )
                )
        container.restarts = 0
        container.status, container.started_at = "running", time.time()
        container.task = asyncio.create_task(self._live(container))

    async def _live(self, container: Container) -> None:
        """Run the program again and again, as the restart policy says."""
        pause = RESTART_FIRST_S
        while True:
            container.status, container.started_at = "running", time.time()
            container.exit_code = await self._program(container)
            container.finished_at = time.time()
            container.engine = None
            container.hang_up()
            policy, _, limit = container.service.restart.partition(":")
            wanted = policy in {"always", "unless-stopped"} or (
                policy == "on-failure" and container.exit_code
            )
            if not wanted or (limit and container.restarts >= int(limit)):
                container.status = "exited"
                return
            container.status = "restarting"
            container.restarts += 1
            if container.finished_at - container.started_at > RESTART_FORGET_S:
                pause = RESTART_FIRST_S
            await asyncio.sleep(pause)
            pause = min(pause * 2, RESTART_MAX_S)

    async def _program(self, container: Container) -> int:
        service = container.service
        if caddy.is_caddy(service.image):
            names = caddy.neighbours(service)
            places = {f"{name}:{port}": await self._at(container, name, port) for name, port in names}
            disk, address = self._machine.disk, self._machine.address
            return await caddy.run(service, disk, address, places, container.log.write)
        if "vllm/vllm-openai" not in service.image:
            await asyncio.Event().wait()
        if self._machine.engine:
            container.engine = self._machine.engine(service, self._machine.disk, container.log.write)
            return await container.engine.run()
        tag = re.search(r":v(\d[\d.]*)", service.image)
        version = tag[1] if tag else "0.9.2"
        words = service.command[1:] if service.command[:1] == ("serve",) else service.command
        try:
            options = parse_options(words, service.environment, version)
        except BadFlags as refusal:
            container.log.write(str(refusal))
            return 2
        container.engine = self._simulator(options, service, version, container.log.write)
        return await container.engine.run()

    def _simulator(
        self, options: Options, service: Service, version: str, log: Callable[[str], None]
    ) -> Simulator:
        fault = self._machine.fault()
        return Simulator(
            options,
            version=version,
            hf_token=service.environment.get("HF_TOKEN", ""),
            gpus=self._machine.gpus,
            fault=Fault(fault) if fault in set(Fault) else None,
            speed=self._machine.speed,
            weights=self._machine.directory / "weights",
            log=log,
        )


def _look_up(image: str, logins: set[str]) -> None:
    if image.partition("/")[0] in logins:
        return  # a registry of somebody's own has what he asks for
    reference = re.fullmatch(r"(.+?)(?::([\w.-]+))?(@sha256:[0-9a-f]{64})?", image)
    repository, tag = (reference[1], reference[2]) if reference else (image, None)
    for name, tags in _REPOSITORIES.items():
        if re.fullmatch(name, repository):
            if re.fullmatch(tags, tag or "latest"):
                return
            raise DockerError(
                f"Error response from daemon: manifest for {image} not found: "
                "manifest unknown: manifest unknown"
            )
    raise DockerError(
        f"Error response from daemon: pull access denied for {repository}, repository does not exist or may "
        "require 'docker login': denied: requested access to the resource is denied"
    )


def _ports(container: Container) -> tuple[Port, ...]:
    engine = container.engine
    if container.service.host_network and engine:
        return (Port(engine.options.host, engine.options.port, engine.options.port),)
    return container.service.ports


def _behind(container: Container, port: Port) -> Connection:
    """Docker's proxy accepts at once, and hangs up when nothing in the container listens yet."""

    async def connect(reader: Reader, writer: Writer) -> None:
        engine = container.engine
        if engine and engine.options.port == port.target:
            container.clients.add(writer)
            try:
                await engine.connection(reader, writer)
            finally:
                container.clients.discard(writer)
        elif container.status == "running" and "open-webui" in container.service.image:
            await serve_http(reader, writer, _webui)
        else:
            writer.close()

    return connect


def _relay(address: str, port: int) -> Connection:
    """What a socket of the machine answers."""

    async def pump(source: Reader, target: Writer) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
        target.close()

    async def connect(reader: Reader, writer: Writer) -> None:
        try:
            there, back = await asyncio.open_connection(address, port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(pump(reader, back), pump(there, writer))

    return connect


async def _webui(request: Request) -> Response:
    if request.path == "/health":
        return Response(b'{"status":true}')
    page = b"<!doctype html><title>Open WebUI</title><h1>Open WebUI</h1>"
    return Response(page, content_type="text/html; charset=utf-8")
