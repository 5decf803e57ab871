"""vLLM itself as the program of a light node's container, with its arguments, environment and port."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx

from simcloud.light.compose import Service
from simcloud.light.containers import EngineMaker
from simcloud.light.disk import Disk
from simcloud.vllm_sim import BadFlags, Options, Reader, State, Writer, parse_options
from tools import vllm_cpu

CPU = ("--enforce-eager", "--distributed-executor-backend", "uni")
"""What a start on a CPU is spared: compilation, and workers of their own."""
STOP_S = 30.0
"""Seconds for vLLM to end after SIGTERM."""


def environment(models: Path) -> dict[str, str]:
    """What vLLM's process needs beside what its container is given; weights come from `models` alone."""
    return {
        "PATH": f"{vllm_cpu.folder() / 'bin'}:{os.environ['PATH']}",
        "HOME": str(models),
        "HF_HOME": str(models),
        "HF_HUB_OFFLINE": "1",
        "VLLM_CACHE_ROOT": str(models / "cache"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }


def maker(models: Path, transcript: Path | None = None) -> EngineMaker:
    """For `LightNodes(engine=…)`; `transcript` takes the logs of every container as well."""
    return partial(Vllm, models, transcript)


class Vllm:
    """One process of `vllm serve`, until `run` is cancelled."""

    def __init__(
        self,
        models: Path,
        transcript: Path | None,
        service: Service,
        disk: Disk,
        log: Callable[[str], None],
    ) -> None:
        self._log = log
        self._transcript = transcript
        self._environment = {**service.environment, **environment(models)}
        self._words = [_on_host(word, service, disk) for word in service.command]
        self.options = _options(self._words, service)
        self.state = State.STARTING
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])

    async def run(self) -> int:
        """Serve; returns the exit status of a process that ends by itself."""
        # A container has a network of its own; here the process has a port of its own.
        words = [*self._words, *CPU, "--host", "127.0.0.1", "--port", str(self._port)]
        process = await asyncio.create_subprocess_exec(
            vllm_cpu.program(),
            "serve",
            *words,
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            limit=2**20,
        )
        reading = asyncio.create_task(self._read(process))
        watching = asyncio.create_task(self._watch())
        try:
            return await process.wait()
        finally:
            watching.cancel()
            self.state = State.EXITED
            await _end(process)
            await reading

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            text = line.decode(errors="replace").rstrip("\n")
            self._log(text)
            if self._transcript:
                with self._transcript.open("a") as file:
                    file.write(f"{text}\n")

    async def _watch(self) -> None:
        """The container's health check."""
        self.state = State.LOADING
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self._port}") as client:
            while self.state is not State.READY:
                with suppress(httpx.HTTPError):
                    if (await client.get("/health")).status_code == 200:
                        self.state = State.READY
                await asyncio.sleep(0.2)

    async def connection(self, reader: Reader, writer: Writer) -> None:
        """As Docker's proxy: hangs up while nothing listens."""
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_pump(reader, back), _pump(there, writer))


def _options(words: list[str], service: Service) -> Options:
    """What the machine must know of the command line; of one that vLLM refuses, what it says by itself."""
    try:
        return parse_options(words, service.environment, vllm_cpu.VERSION)
    except BadFlags:
        return replace(parse_options(["--model", "none"], service.environment, vllm_cpu.VERSION), port=8000)


def _on_host(word: str, service: Service, disk: Disk) -> str:
    """A word with the paths of the container's volumes as they are on this machine."""
    for volume in service.document.get("volumes", ()):
        source, target, *_ = str(volume).split(":")
        word = word.replace(f"{target}/", f"{disk.locate(source)}/")
    return word


async def _end(process: asyncio.subprocess.Process) -> None:
    """End the process, and what it has started: they are a group of their own."""
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            pass
        os.killpg(process.pid, signal.SIGKILL)


async def _pump(source: Reader, target: Writer) -> None:
    with suppress(OSError):
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
    target.close()
