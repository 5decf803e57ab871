"""What the node agent says of a light machine: in the agent's own words, since its own code writes them."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fleet import layout
from fleet.userdata import FILES
from simcloud.light.containers import Connection
from simcloud.vllm_sim import Reader, Request, Response, State, Writer, serve_http

if TYPE_CHECKING:
    from simcloud.light.machine import Machine

PORT = layout.AGENT_PORT
FREE_SHARE = 0.5
"""Of the disk; nothing is really stored on it."""


def _node_agent() -> ModuleType:
    """The file that real nodes run."""
    spec = importlib.util.spec_from_file_location("node_agent", FILES / "agent.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


_agent = _node_agent()


def connection(machine: Machine) -> Connection:
    """The agent's server on one connection."""

    async def respond(request: Request) -> Response:
        seen = _observe(machine)
        if request.path == "/health":
            return Response(seen.to_json().encode(), 200 if seen.ready else 503)
        if request.path == "/metrics":
            return Response(seen.to_prometheus().encode(), content_type="text/plain; version=0.0.4")
        return Response(b"", 404)

    async def connect(reader: Reader, writer: Writer) -> None:
        await serve_http(reader, writer, respond)

    return connect


def _observe(machine: Machine) -> Any:
    fault, gpus = machine.fault(), machine.gpus
    vllm = next((c for c in machine.docker.containers.values() if c.engine), None)
    used = machine.docker.gpu_used()
    disk = machine.boot.disk_gb * 10**9
    return _agent.Observation(
        docker=fault != "docker_dead",
        vllm=_agent.Vllm(
            running=vllm.status == "running",
            healthy=vllm.engine is not None and vllm.engine.state is State.READY,
            port=next((port.published for port in vllm.service.ports), None),
            started_at=vllm.started_at,
        )
        if vllm
        else _agent.Vllm(),
        vllm_restarts=vllm.restarts if vllm else 0,
        gpus=tuple(
            _agent.Gpu(
                index=index,
                name=machine.boot.gpu_model,
                memory_total_bytes=gpus.memory_mib * 2**20,
                memory_used_bytes=int(used * gpus.memory_mib) * 2**20,
                utilization_ratio=0.0,
                temperature_celsius=35.0,
            )
            for index in range(0 if fault in {"driver_missing", "gpu_missing"} else gpus.count)
        ),
        disk_size_bytes=disk,
        disk_free_bytes=int(disk * FREE_SHARE),
        booted_at=machine.booted_at,
    )
