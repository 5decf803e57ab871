"""Runs the embedded clouds: the web server, its state directory and its end."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from simcloud.app import Clouds, make_app
from simcloud.nodes import NodeBackend

HOST = "127.0.0.1"
START_DEADLINE_S = 30.0
STOP_DEADLINE_S = 15.0
POLL_S = 0.05

MakeBackend = Callable[[], NodeBackend]


class SimcloudError(Exception):
    """The emulator cannot do what was asked; the message says why and what to do."""


@dataclass(frozen=True)
class Running:
    """An emulator at work on a state directory."""

    pid: int
    port: int

    @property
    def base_url(self) -> str:
        return f"http://{HOST}:{self.port}"


class _Protocol(H11Protocol):
    """Hands its transport to the application, which can then reset the connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}


class _StateLock:
    """Says who works on a state directory. The kernel drops it when the process ends, however it ends."""

    def __init__(self, state: Path) -> None:
        self._path = state / "simcloud.json"

    def acquire(self) -> IO[str]:
        """Takes the lock.

        Raises:
            SimcloudError: another emulator has it.
        """
        file = self._path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SimcloudError(
                f"--state {self._path.parent}: an embedded cloud already works there; "
                f"end it with `python -m simcloud down --state {self._path.parent}`"
            ) from error
        file.truncate(0)
        return file

    def owner(self) -> Running | None:
        """The emulator that has the lock and listens, if any."""
        if not self._path.exists():
            return None
        with self._path.open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return self.last()
        return None

    def last(self) -> Running | None:
        """The emulator that wrote here last, running or not. Asking does not touch the lock."""
        text = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
        return Running(**json.loads(text)) if text.endswith("}") else None


def running(state: Path) -> Running | None:
    """The emulator at work on this state directory, if any."""
    return _StateLock(state).owner()


def serve(
    state: Path, *, port: int, clouds: Clouds, make_backend: MakeBackend, ssh_port: int, speed: float
) -> None:
    """Serves until SIGTERM or SIGINT. Port 0 takes a free one; `simcloud.json` then says which.

    Raises:
        SimcloudError: the state directory or the port is taken.
    """
    state.mkdir(parents=True, exist_ok=True)
    with _StateLock(state).acquire() as lock:
        try:
            listener = socket.create_server((HOST, port))
        except OSError as error:
            raise SimcloudError(
                f"--port {port}: cannot listen on {HOST}: {error.strerror}; choose another port"
            ) from error
        app = make_app(state, clouds=clouds, backend=make_backend(), ssh_port=ssh_port, speed=speed)
        server = _Server(app, on_started=lambda: _announce(lock, listener.getsockname()[1]))
        server.run(sockets=[listener])


def _announce(lock: IO[str], port: int) -> None:
    json.dump({"pid": os.getpid(), "port": port}, lock)
    lock.flush()
    print(f"simcloud ready on http://{HOST}:{port}", flush=True)


class _Server(uvicorn.Server):
    def __init__(self, app: ASGIApp, *, on_started: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=_Protocol,
                ws="none",
                lifespan="on",
                log_level="warning",
                access_log=False,
                # Longer than clients keep a connection, so that none is closed under a request.
                timeout_keep_alive=75,
                # Calls held or left unanswered on purpose must not delay the end.
                timeout_graceful_shutdown=1,
            )
        )
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._on_started()


def spawn(
    state: Path, arguments: Iterable[str], *, detached: bool
) -> tuple[subprocess.Popen[bytes], Running]:
    """Starts `python -m simcloud serve` as a process of its own and waits until it answers.

    Args:
        arguments: further arguments of `serve`.
        detached: it outlives this process and its terminal.

    Raises:
        SimcloudError: it ended or did not answer within 30 s; the message has its last words.
    """
    state.mkdir(parents=True, exist_ok=True)
    lock = _StateLock(state)
    if lock.owner():
        raise SimcloudError(f"--state {state}: an embedded cloud already works there")
    output = state / "output.log"
    command = [sys.executable, "-m", "simcloud", "serve", "--state", str(state), *arguments]
    with output.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=detached,
            cwd=Path(__file__).parent.parent,
        )
    deadline = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        found = lock.last()
        if found and found.pid == process.pid and _answers(found):
            return process, found
        time.sleep(POLL_S)
    code = process.poll()
    if code is None:
        process.kill()
        process.wait()
    told = (
        f"ended with status {code}" if code is not None else f"gave no answer within {START_DEADLINE_S:.0f} s"
    )
    raise SimcloudError(
        f"the embedded cloud {told}; its output:\n{output.read_text(errors='replace')[-4000:]}"
    )


def _answers(found: Running) -> bool:
    try:
        return httpx.get(f"{found.base_url}/_sim/health", timeout=5).is_success
    except httpx.TransportError:
        return False


def down(state: Path) -> bool:
    """Ends the emulator of a state directory and removes the directory. Returns whether one was running.

    Raises:
        SimcloudError: it did not end within 15 s.
    """
    found = running(state)
    if found:
        os.kill(found.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_DEADLINE_S
        while running(state):
            if time.monotonic() > deadline:
                raise SimcloudError(
                    f"the embedded cloud (process {found.pid}) did not end within {STOP_DEADLINE_S:.0f} s of "
                    f"SIGTERM; see {state / 'output.log'}, then end it with `kill -9 {found.pid}`"
                )
            time.sleep(POLL_S)
    if state.exists():
        shutil.rmtree(state)
    return found is not None
