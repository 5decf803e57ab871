"""The embedded clouds for tests: a process of their own, and their controls as methods."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from simcloud import aws
from simcloud.linode import DEV_TOKEN
from simcloud.scaleway import DEV_ACCESS_KEY, DEV_PROJECT_ID, DEV_SECRET_KEY
from simcloud.server import POLL_S, Running, spawn

WAIT_DEADLINE_S = 30.0


@dataclass
class SimCloud:
    """A running emulator."""

    state: Path
    arguments: list[str]
    process: subprocess.Popen[bytes]
    running: Running
    client: httpx.Client = field(init=False)
    secret_key: str = DEV_SECRET_KEY
    project: str = DEV_PROJECT_ID

    def __post_init__(self) -> None:
        self.client = httpx.Client(base_url=f"{self.base_url}/_sim", timeout=30)

    @property
    def base_url(self) -> str:
        return self.running.base_url

    @property
    def scaleway_url(self) -> str:
        return f"{self.base_url}/scaleway"

    @property
    def linode_url(self) -> str:
        """Without the API's version, as Linode's own tools are told."""
        return f"{self.base_url}/linode"

    @property
    def aws_url(self) -> str:
        """The endpoint of every AWS service."""
        return f"{self.base_url}/aws"

    @property
    def environment(self) -> dict[str, str]:
        """The clouds' standard variables, pointing here."""
        return {
            "AWS_ACCESS_KEY_ID": aws.DEV_ACCESS_KEY,
            "AWS_ENDPOINT_URL": self.aws_url,
            "AWS_REGION": "us-east-1",
            "AWS_SECRET_ACCESS_KEY": aws.DEV_SECRET_KEY,
            "LINODE_URL": self.linode_url,
            "LINODE_TOKEN": DEV_TOKEN,
            "SCW_API_URL": self.scaleway_url,
            "SCW_ACCESS_KEY": DEV_ACCESS_KEY,
            "SCW_SECRET_KEY": self.secret_key,
            "SCW_DEFAULT_PROJECT_ID": self.project,
        }

    def console(self, service: str, **given: Any) -> Any:
        """Someone else's client of an AWS service: boto3's, with the owner's keys or those `given`."""
        import boto3  # noqa: PLC0415  most tests do without

        owner = {"aws_access_key_id": aws.DEV_ACCESS_KEY, "aws_secret_access_key": aws.DEV_SECRET_KEY}
        make: Any = boto3.client
        return make(service, endpoint_url=self.aws_url, region_name="us-east-1", **{**owner, **given})

    def set_fault(
        self,
        call: str | None,
        fault: str,
        *,
        node: str | None = None,
        times: int = 1,
        skip: int = 0,
        misses: int = 3,
    ) -> None:
        """Plants a fault; the kinds and fields are those of `simcloud.faults`."""
        planted = {"call": call, "node": node, "fault": fault, "times": times, "skip": skip}
        self._send("POST", "/faults", {**planted, "misses": misses})

    def faults(self) -> dict[str, Any]:
        """The planted faults and the held calls."""
        return self._get("/faults")

    def clear_faults(self) -> None:
        self._send("DELETE", "/faults")

    def wait_until_held(self, call: str) -> None:
        """Returns when a call of this name is being held."""
        deadline = time.monotonic() + WAIT_DEADLINE_S
        while not any(held["call"] == call for held in self.faults()["held"]):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {call} was held within {WAIT_DEADLINE_S:.0f} s")
            time.sleep(POLL_S)

    def release(self) -> None:
        """Lets every held call go on."""
        self._send("POST", "/release")

    def log(self, after: int = 0) -> list[dict[str, Any]]:
        """Requests and events in the order of their numbers."""
        entries: list[dict[str, Any]] = self._get("/log", after=after)["entries"]
        return entries

    def calls(self, name: str | None = None, *, after: int = 0) -> list[dict[str, Any]]:
        """The requests of the log, of one call or of all."""
        return [
            entry for entry in self.log(after) if entry["type"] == "request" and name in (None, entry["call"])
        ]

    def inventory(self, kind: str | None = None) -> list[dict[str, Any]]:
        """What exists, of one kind or of all."""
        objects = self._get("/inventory")["objects"]
        return [thing for thing in objects if kind in (None, thing["kind"])]

    def private_addresses(self) -> dict[str, str]:
        """The loopback address of each machine, by its address in a private network."""
        return {str(private): str(own) for private, own in self._get("/private_addresses").items()}

    def deny(self, *calls: str) -> None:
        """Takes away the permission for these calls, and gives back all others."""
        self._send("PUT", "/permissions", {"denied": list(calls)})

    def set_quotas(self, **quotas: int) -> None:
        self._send("PUT", "/quotas", quotas)

    def set_stock(self, zone: str, type_: str, availability: str, *, cloud: str = "scaleway") -> None:
        self._send(
            "PUT",
            "/stock",
            {"cloud": cloud, "zone": zone, "type": type_, "availability": availability},
        )

    def set_node_fault(self, node: str, fault: str | None) -> None:
        """Makes a node's machine misbehave; None heals it."""
        self._send("PUT", f"/nodes/{node}/fault", {"fault": fault})

    def reset(self) -> None:
        """Removes everything."""
        self._send("POST", "/reset")

    def kill(self) -> None:
        """Ends the emulator as a power cut would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def restart(self) -> None:
        """Starts a killed emulator again on the same state and port."""
        others = [argument for argument in self.arguments if not argument.startswith("--port=")]
        self.arguments = [*others, f"--port={self.running.port}"]
        self.process, self.running = spawn(self.state, self.arguments, detached=False)

    def close(self) -> None:
        """Ends the emulator; its state stays."""
        self.client.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(WAIT_DEADLINE_S)
            except subprocess.TimeoutExpired:
                os.kill(self.process.pid, signal.SIGKILL)
                self.process.wait()
                raise

    def _get(self, path: str, **query: Any) -> dict[str, Any]:
        reply = self.client.get(path, params=query).raise_for_status()
        body: dict[str, Any] = reply.json()
        return body

    def _send(self, method: str, path: str, body: Any = None) -> None:
        reply = self.client.request(method, path, json=body)
        if reply.is_error:
            raise ValueError(f"{method} {path}: {reply.text}")


@contextmanager
def running_simcloud(
    state: Path, *, speed: float = 0.0, port: int = 0, nodes: str = "light", ssh_port: int = 10022
) -> Iterator[SimCloud]:
    """An emulator for the time of a test; it ends with the block, its state stays.

    Args:
        state: directory for everything it keeps.
        speed: factor on the real clouds' delays.
        port: 0 takes a free one.
        nodes: `light`, `vm` (their images built before) or `none`.
        ssh_port: port of the nodes' SSH servers.
    """
    arguments = [f"--speed={speed}", f"--port={port}", f"--nodes={nodes}", f"--ssh-port={ssh_port}"]
    process, running = spawn(state, arguments, detached=False)
    cloud = SimCloud(state, arguments, process, running)
    try:
        yield cloud
    finally:
        cloud.close()
