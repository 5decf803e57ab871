"""What the node agent says of a light machine: health of the containers, memory of the GPUs."""

from __future__ import annotations

import json

from simcloud.light.containers import Connection, Docker
from simcloud.vllm_sim import Gpus, Reader, Request, Response, State, Writer, serve_http

PORT = 8080


def connection(docker: Docker, gpus: Gpus) -> Connection:
    """The agent's server on one connection."""

    async def respond(request: Request) -> Response:
        containers = docker.containers.values()
        ready = any(c.simulator and c.simulator.state is State.READY for c in containers)
        if request.path == "/health":
            body = {
                "status": "ok" if ready else "waiting",
                "containers": {c.name: c.status for c in containers},
            }
            return Response(json.dumps(body).encode(), 200 if ready else 503)
        if request.path != "/metrics":
            return Response(b"", 404)
        used = docker.gpu_used() * gpus.memory_mib * 2**20
        lines = [f"vllm_fleet_vllm_up {int(ready)}"]
        for index in range(gpus.count):
            lines.append(f'vllm_fleet_gpu_memory_used_bytes{{gpu="{index}"}} {used:.0f}')
            lines.append(f'vllm_fleet_gpu_memory_total_bytes{{gpu="{index}"}} {gpus.memory_mib * 2**20}')
        return Response("\n".join([*lines, ""]).encode(), content_type="text/plain; version=0.0.4")

    async def connect(reader: Reader, writer: Writer) -> None:
        await serve_http(reader, writer, respond)

    return connect
