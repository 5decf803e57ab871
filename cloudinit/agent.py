"""Node agent: what Docker, vLLM, GPUs and disk of this machine are doing, as JSON (/health) and for
Prometheus (/metrics). It needs no rights: it looks at processes and nvidia-smi, and asks vLLM on loopback.

Standard library only, since it runs on the machine's own Python.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CACHE_S = 5.0
"""Seconds an observation is given out again: without its daemon, nvidia-smi keeps a GPU busy for one."""
COMMAND_TIMEOUT_S = 10.0
HTTP_TIMEOUT_S = 3.0
MIB = 2**20
GPU_FIELDS = "index,name,memory.total,memory.used,utilization.gpu,temperature.gpu"


@dataclass(frozen=True)
class Gpu:
    index: int
    name: str
    memory_total_bytes: float
    memory_used_bytes: float
    utilization_ratio: float | None
    """None where this GPU does not tell."""
    temperature_celsius: float | None


@dataclass(frozen=True)
class Vllm:
    """The engine's process, and whether it answers."""

    running: bool = False
    healthy: bool = False
    port: int | None = None
    started_at: float | None = None
    """Unix seconds."""


@dataclass(frozen=True)
class Observation:
    docker: bool
    """Whether dockerd runs."""
    vllm: Vllm
    vllm_restarts: int
    """Times vLLM was another process than at the look before, since the agent started."""
    gpus: tuple[Gpu, ...]
    disk_size_bytes: int
    disk_free_bytes: int
    booted_at: float
    """Unix seconds."""

    @property
    def ready(self) -> bool:
        return self.docker and self.vllm.healthy and bool(self.gpus)

    def to_json(self) -> str:
        status = "ok" if self.ready else "waiting"
        return json.dumps({"status": status, **asdict(self)}, indent=2) + "\n"

    def to_prometheus(self) -> str:
        metrics: list[tuple[str, str, list[tuple[str, float]]]] = [
            ("docker_up", "gauge", [("", self.docker)]),
            ("vllm_up", "gauge", [("", self.vllm.healthy)]),
            ("vllm_restarts_total", "counter", [("", self.vllm_restarts)]),
            ("gpus", "gauge", [("", len(self.gpus))]),
            ("disk_size_bytes", "gauge", [("", self.disk_size_bytes)]),
            ("disk_free_bytes", "gauge", [("", self.disk_free_bytes)]),
            ("boot_time_seconds", "gauge", [("", self.booted_at)]),
        ]
        if self.vllm.started_at is not None:
            metrics.append(("vllm_start_time_seconds", "gauge", [("", self.vllm.started_at)]))
        for name in ("memory_total_bytes", "memory_used_bytes", "utilization_ratio", "temperature_celsius"):
            values = [(f'{{gpu="{gpu.index}"}}', getattr(gpu, name)) for gpu in self.gpus]
            metrics.append(
                (f"gpu_{name}", "gauge", [(gpu, value) for gpu, value in values if value is not None])
            )
        lines = []
        for name, kind, values in metrics:
            lines.append(f"# TYPE vllm_fleet_{name} {kind}")
            lines += [f"vllm_fleet_{name}{labels} {float(value):.15g}" for labels, value in values]
        return "\n".join([*lines, ""])


class Machine:
    """Looks at the machine, at most once in `CACHE_S` however many ask."""

    def __init__(self, procfs: Path) -> None:
        self._procfs = procfs
        self._lock = threading.Lock()
        self._latest: tuple[float, Observation] | None = None
        self._last_start: float | None = None
        self._restarts = 0

    def observe(self) -> Observation:
        with self._lock:
            if self._latest is None or time.monotonic() - self._latest[0] > CACHE_S:
                self._latest = time.monotonic(), self._look()
            return self._latest[1]

    def _look(self) -> Observation:
        booted_at = _booted_at(self._procfs)
        processes = list(_processes(self._procfs))
        engine = next((process for process in processes if process.port is not None), None)
        if engine:
            self._restarts += self._last_start is not None and self._last_start != engine.started_s
            self._last_start = engine.started_s
        disk = shutil.disk_usage("/")
        return Observation(
            # Docker's own socket is closed to a user without rights.
            docker=any(process.name == "dockerd" for process in processes),
            vllm=_vllm(engine, booted_at),
            vllm_restarts=self._restarts,
            gpus=_gpus(),
            disk_size_bytes=disk.total,
            disk_free_bytes=disk.free,
            booted_at=booted_at,
        )


@dataclass(frozen=True)
class Process:
    """One of the machine's processes; those in containers are among them."""

    name: str
    words: list[str]
    started_s: float
    """Seconds after the boot."""

    @property
    def port(self) -> int | None:
        """Where vLLM listens, if this is vLLM: as it was really started, whatever the files say."""
        if "--model" not in self.words or "--port" not in self.words[:-1]:
            return None
        port = self.words[self.words.index("--port") + 1]
        return int(port) if port.isdecimal() else None


def _processes(procfs: Path) -> Iterator[Process]:
    for folder in procfs.glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            # The name, in parentheses, may hold anything; the start, in clock ticks, is the 22nd field.
            before, _, after = (folder / "stat").read_text().rpartition(")")
        except OSError:
            continue  # it ended meanwhile
        ticks = int(after.split()[19])
        yield Process(before.partition("(")[2], words, ticks / os.sysconf("SC_CLK_TCK"))


def _booted_at(procfs: Path) -> float:
    lines = (procfs / "stat").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("btime ")))


def _vllm(engine: Process | None, booted_at: float) -> Vllm:
    if engine is None or engine.port is None:
        return Vllm()
    return Vllm(True, _healthy(engine.port), engine.port, booted_at + engine.started_s)


def _healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=HTTP_TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _gpus() -> tuple[Gpu, ...]:
    """None while the driver is missing or broken."""
    gpus = []
    for line in _output(
        "nvidia-smi", f"--query-gpu={GPU_FIELDS}", "--format=csv,noheader,nounits"
    ).splitlines():
        try:
            index, name, total, used, utilization, temperature = (word.strip() for word in line.split(","))
            gpus.append(
                Gpu(
                    int(index),
                    name,
                    float(total) * MIB,
                    float(used) * MIB,
                    None if (percent := _number(utilization)) is None else percent / 100,
                    _number(temperature),
                )
            )
        except ValueError:
            continue  # an error text, not a GPU
    return tuple(gpus)


def _number(word: str) -> float | None:
    """None for what this GPU does not tell (`[N/A]`)."""
    return None if word.startswith("[") else float(word)


def _output(*command: str) -> str:
    """Its standard output; empty when it cannot be run or does not end."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


class Handler(BaseHTTPRequestHandler):
    machine: Machine
    timeout = 10

    def do_GET(self) -> None:
        if self.path == "/health":
            seen = self.machine.observe()
            self._reply(200 if seen.ready else 503, "application/json", seen.to_json())
        elif self.path == "/metrics":
            self._reply(200, "text/plain; version=0.0.4", self.machine.observe().to_prometheus())
        else:
            self._reply(404, "text/plain", "only /health and /metrics\n")

    def _reply(self, status: int, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a line in the journal for every scrape helps nobody."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--procfs", type=Path, default=Path("/proc"))
    options = parser.parse_args()
    Handler.machine = Machine(options.procfs)
    ThreadingHTTPServer(("127.0.0.1", options.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
