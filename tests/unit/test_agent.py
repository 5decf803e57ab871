"""The node agent, run for real beside a machine made of a folder: its processes, its tools, its vLLM."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from fleet.userdata import FILES

TWO_GPUS = "0, NVIDIA L4, 23034, 20000, 37, 55\n1, NVIDIA L4, 23034, 4, [N/A], [N/A]\n"
DEADLINE_S = 20


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Machine:
    """Files and tools that the agent looks at."""

    def __init__(self, directory: Path) -> None:
        self.bin, self.proc = directory / "bin", directory / "proc"
        self.bin.mkdir()
        self.proc.mkdir()
        (self.proc / "stat").write_text("cpu 1 2 3\nbtime 1700000000\n")
        self.tool("nvidia-smi", f"printf '{TWO_GPUS}'")
        self.process(700, "dockerd", "/usr/bin/dockerd", "-H", "fd://")

    def tool(self, name: str, script: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def process(self, pid: int, name: str, *words: str, ticks: int = 1000) -> None:
        folder = self.proc / str(pid)
        folder.mkdir()
        (folder / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in words))
        between = " ".join("0" for _ in range(18))
        (folder / "stat").write_text(f"{pid} ({name}) S {between} {ticks} 0 0\n")

    def end(self, pid: int) -> None:
        shutil.rmtree(self.proc / str(pid))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
async def agent(machine: Machine) -> AsyncIterator[httpx.AsyncClient]:
    port = free_port()
    words = [sys.executable, "-I", FILES / "agent.py", "--port", str(port), "--procfs", machine.proc]
    process = await asyncio.create_subprocess_exec(*words, env={"PATH": f"{machine.bin}:{os.defpath}"})
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=DEADLINE_S) as client:
            await _answering(port)
            yield client
    finally:
        process.kill()
        await process.wait()


async def _answering(port: int) -> None:
    """Return once somebody listens."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.02)
            else:
                return writer.close()


@pytest.fixture
def vllm_port() -> Iterator[int]:
    """An engine whose /health is 200."""

    class Engine(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def serve(machine: Machine, port: int, **options: Any) -> None:
    words = ["python3", "-m", "vllm.entrypoints.openai.api_server", "--model", "m", "--port", str(port)]
    machine.process(4242, "pt_main) (x", *words, **options)


async def health(agent: httpx.AsyncClient) -> tuple[int, dict[str, Any]]:
    reply = await agent.get("/health")
    return reply.status_code, json.loads(reply.text)


async def test_a_node_that_serves_is_healthy(
    agent: httpx.AsyncClient, machine: Machine, vllm_port: int
) -> None:
    serve(machine, vllm_port)
    status, seen = await health(agent)
    assert (status, seen["status"], seen["docker"]) == (200, "ok", True)
    assert seen["vllm"] == {"running": True, "healthy": True, "port": vllm_port, "started_at": 1700000010.0}
    assert [gpu["memory_used_bytes"] for gpu in seen["gpus"]] == [20000 * 2**20, 4 * 2**20]
    assert 0 < seen["disk_free_bytes"] <= seen["disk_size_bytes"]


async def test_a_node_whose_vllm_has_not_started_is_waiting(
    agent: httpx.AsyncClient, machine: Machine
) -> None:
    machine.process(1, "systemd", "/sbin/init", "--port")
    status, seen = await health(agent)
    assert (status, seen["status"], seen["vllm"]["running"]) == (503, "waiting", False)


async def test_a_vllm_that_still_loads_is_running_but_not_healthy(
    agent: httpx.AsyncClient, machine: Machine
) -> None:
    serve(machine, free_port())
    status, seen = await health(agent)
    assert (status, seen["vllm"]["running"], seen["vllm"]["healthy"]) == (503, True, False)


@pytest.mark.parametrize("broken", ["echo 'NVIDIA-SMI has failed'; exit 9", "exit 127"])
async def test_a_node_whose_driver_fails_is_not_healthy(
    agent: httpx.AsyncClient, machine: Machine, vllm_port: int, broken: str
) -> None:
    serve(machine, vllm_port)
    machine.tool("nvidia-smi", broken)
    status, seen = await health(agent)
    assert (status, seen["gpus"]) == (503, [])


async def test_a_node_whose_docker_died_is_not_healthy(
    agent: httpx.AsyncClient, machine: Machine, vllm_port: int
) -> None:
    serve(machine, vllm_port)
    machine.end(700)
    status, seen = await health(agent)
    assert (status, seen["docker"]) == (503, False)


async def test_metrics_are_what_prometheus_reads(
    agent: httpx.AsyncClient, machine: Machine, vllm_port: int
) -> None:
    serve(machine, vllm_port)
    reply = await agent.get("/metrics")
    lines = reply.text.splitlines()
    assert reply.headers["content-type"] == "text/plain; version=0.0.4"
    assert "vllm_fleet_vllm_up 1" in lines
    assert "# TYPE vllm_fleet_vllm_restarts_total counter" in lines
    assert 'vllm_fleet_gpu_memory_used_bytes{gpu="0"} 20971520000' in lines
    assert 'vllm_fleet_gpu_utilization_ratio{gpu="0"} 0.37' in lines
    assert "vllm_fleet_boot_time_seconds 1700000000" in lines
    # What this GPU does not tell is left out.
    assert not [line for line in lines if line.startswith('vllm_fleet_gpu_utilization_ratio{gpu="1"}')]


async def test_many_who_ask_at_once_are_one_look(
    agent: httpx.AsyncClient, machine: Machine, tmp_path: Path
) -> None:
    machine.tool("nvidia-smi", f"echo asked >> {tmp_path}/asked; printf '{TWO_GPUS}'")
    await asyncio.gather(*(agent.get("/metrics") for _ in range(10)))
    assert (tmp_path / "asked").read_text() == "asked\n"


async def test_a_vllm_that_docker_started_anew_is_counted(
    agent: httpx.AsyncClient, machine: Machine, vllm_port: int
) -> None:
    serve(machine, vllm_port)
    assert (await health(agent))[1]["vllm_restarts"] == 0
    machine.end(4242)
    serve(machine, vllm_port, ticks=9000)
    async with asyncio.timeout(DEADLINE_S):
        while (await health(agent))[1]["vllm_restarts"] != 1:  # noqa: ASYNC110  (a folder has no event)
            await asyncio.sleep(0.5)


async def test_anything_else_is_not_found(agent: httpx.AsyncClient) -> None:
    assert (await agent.get("/")).status_code == 404
