"""Every way a node fails to become ready, on a real machine: the gate names it, with the lines that prove it,
and once its cause is gone, what the next update does makes the node ready.

Each trial starts from a snapshot: of a machine that has everything and waits for its `.env` (Scaleway's GPU
image), or of one with nothing installed yet (Linode's plain one).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh
import pytest
import pytest_asyncio
import yaml

from fleet import cloudconfig, compose, gate, layout
from fleet.diagnosis import Diagnosis
from fleet.progress import Progress
from fleet.settings import LinodeNode, Node, ScalewayNode, Secrets
from fleet.ssh import Target
from fleet.userdata import HostKey, HostPart
from simcloud.vm import Snapshot
from simcloud.vm.mirrors import Condition, Fault, Mirror
from simcloud.vm.testing import SSH_PORT, Guest, Lab

pytestmark = [pytest.mark.vm, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(2400)]

API_KEY = "planted-api-key-0123456789"
SERVING: dict[str, Any] = {
    "image": "vllm/vllm-openai:v0.9.2",
    "model": "Qwen/Qwen3-8B-AWQ",
    "environment": {"VLLM_SIM_SPEED": "0"},
}
GATED = "meta-llama/Llama-3.1-8B-Instruct"
DOWN = Condition(fault=Fault.DOWN)


def node(cloud: str, **serving: Any) -> Node:
    settings = SERVING | serving
    if cloud == "linode":
        return LinodeNode.model_validate(
            {
                "cloud": "linode",
                "name": "a",
                "type": "g2-gpu-rtx4000a1-s",
                "region": "us-ord",
                "serving": settings,
            }
        )
    return ScalewayNode.model_validate(
        {"cloud": "scaleway", "name": "a", "type": "L4-1-24G", "serving": settings}
    )


def secrets(**more: str) -> Secrets:
    return Secrets.model_validate({"api_key": API_KEY, **more})


@dataclass(frozen=True)
class Machine:
    """A machine that was booted once, and from which every trial of it starts."""

    guest: Guest
    host_keys: tuple[str, ...]
    snapshot: Snapshot

    async def again(self, lab: Lab) -> Trial:
        guest = await lab.boot_from(self.snapshot, self.guest)
        await guest.until("true", deadline_s=120)
        return Trial(lab, guest, self.host_keys)


@dataclass(frozen=True)
class Trial:
    """One machine, and what an update does to it."""

    lab: Lab
    guest: Guest
    host_keys: tuple[str, ...]

    async def inject(self, fault: str | None) -> None:
        await self.lab.backend.inject(self.guest.boot.name, fault)

    async def write(self, path: str, content: str, mode: str = "0600") -> None:
        encoded = base64.b64encode(content.encode()).decode()
        new = shlex.quote(f"{path}.new")
        await self.guest.run(
            f"echo {encoded} | base64 -d >{new} && chmod {mode} {new} && mv {new} {shlex.quote(path)}"
        )

    async def deliver(self, compose_file: str | None = None, hf_token: str = "", **serving: Any) -> None:
        """The files of a release, as a rollout puts them where the units wait for them."""
        served = node("scaleway", **serving).serving
        given = secrets(**({"hf_token": hf_token} if hf_token else {}))
        await self.write(layout.COMPOSE_PATH, compose_file or compose.compose_file(served), "0644")
        env = compose.env_file({**compose.plain_environment(served), **compose.secret_environment(given)})
        await self.write(layout.ENV_PATH, env)
        await self.guest.run(
            "case $(systemctl is-active vllm.service) in inactive | unknown) ;; "
            "*) systemctl --no-block restart vllm.service ;; esac"
        )

    async def gate(self, **timeouts: float) -> gate.Report:
        factor = self.guest.speed_factor
        limits = {"ssh_s": 300.0, "install_s": 900.0, "ready_s": 420.0, "token_s": 60.0, "reboot_s": 300.0}
        spec = gate.GateSpec(
            "a",
            self.guest.boot.cloud,
            Target(self.guest.boot.address, self.host_keys, "root", SSH_PORT, self.key()),
            SERVING["model"],
            API_KEY,
            timeouts=gate.Timeouts(**{name: limit * factor for name, limit in (limits | timeouts).items()}),
        )
        told = io.StringIO()
        report = await gate.check(spec, Progress("a", stream=told))
        print(told.getvalue())
        return report

    def key(self) -> Path:
        path = self.guest.boot.directory / "key"
        if not path.exists():
            path.touch(0o600)
            path.write_bytes(self.guest.key.export_private_key())
        return path

    async def fails_as(self, fault: str, proof: str) -> Diagnosis:
        diagnosis = (await self.gate()).diagnosis
        assert diagnosis is not None, "the gate passed"
        assert diagnosis.fault == fault, str(diagnosis)
        assert proof in " ".join(diagnosis.seen), str(diagnosis)
        assert API_KEY not in str(diagnosis)
        return diagnosis

    async def is_ready(self) -> None:
        report = await self.gate()
        assert report.ready, str(report.diagnosis)

    async def first_boot_ends_again(self) -> None:
        """Let cloud-init run its last stage as in a first boot: the script of `runcmd`, then its report."""
        await self.write("/var/lib/cloud/instance/scripts/runcmd", f"#!/bin/sh\n{SET_UP}\n", "0700")
        await self.guest.run(
            "rm -f /var/lib/cloud/instance/sem/config_scripts_user* /run/cloud-init/result.json && "
            "systemd-run --quiet --unit=again cloud-init modules --mode=final"
        )
        await self.guest.until("cloud-init status | grep -q running", deadline_s=60)


SET_UP = f"{layout.SCRIPTS_DIRECTORY}/setup.sh"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def waiting(lab: Lab) -> AsyncIterator[Machine]:
    """Everything is installed, no image is pulled, no `.env` has come."""
    user_data = HostPart.scaleway(node("scaleway"), secrets()).user_data().encode()
    guest = await lab.boot("scaleway", user_data)
    lab.backend.mirrors(guest.boot.name)[Mirror.REGISTRY] = DOWN
    await guest.until("cloud-init status | grep -q done", deadline_s=600)
    await guest.run("systemctl stop vllm-prefetch@images.service")
    published = guest.published["ssh-host-public-keys"].decode().splitlines()
    yield Machine(guest, tuple(published), await lab.snapshot(guest, "waiting"))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def bare(lab: Lab) -> AsyncIterator[Machine]:
    """The first boot has written its files; nothing is installed yet."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    public = key.export_public_key().decode().strip()
    host_key = HostKey(key.export_private_key().decode(), public)
    user_data = HostPart.linode(node("linode"), secrets(), host_key).user_data()
    document = cloudconfig.document(cloudconfig.decoded(user_data)) | {"runcmd": [["true"]]}
    del document["power_state"], document["bootcmd"]
    guest = await lab.boot("linode", b"#cloud-config\n" + yaml.safe_dump(document).encode())
    await guest.until("cloud-init status | grep -q done", deadline_s=600)
    yield Machine(guest, (public,), await lab.snapshot(guest, "bare"))


@pytest_asyncio.fixture(loop_scope="session")
async def trial(lab: Lab, waiting: Machine) -> AsyncIterator[Trial]:
    made = await waiting.again(lab)
    yield made
    await made.inject(None)


@dataclass(frozen=True)
class Failure:
    """What is broken before the `.env` comes, what the gate must say, and how it is fixed."""

    fault: str
    proof: str
    broken: Callable[[Trial], Awaitable[None]]
    fixed: Callable[[Trial], Awaitable[None]]


def injected(fault: str, *, then: str = "") -> Callable[[Trial], Awaitable[None]]:
    async def broken(trial: Trial) -> None:
        await trial.inject(fault)
        if then:
            await trial.guest.attempt(then)
        await trial.deliver()

    return broken


async def healed(trial: Trial) -> None:
    await trial.inject(None)


async def room_made(trial: Trial) -> None:
    await trial.inject(None)
    await trial.guest.run("rm -f /var/lib/embedded-cloud-ballast")


def delivered(compose_file: str | None = None, **serving: Any) -> Callable[[Trial], Awaitable[None]]:
    async def deliver(trial: Trial) -> None:
        await trial.deliver(compose_file, **serving)

    return deliver


FAILURES = {
    "the pull is refused": Failure(
        "image_refused", "no basic auth credentials", injected("pull_refused"), healed
    ),
    "the registry is down": Failure("registry_unreachable", "EOF", injected("registry_down"), healed),
    "the disk is full during the pull": Failure(
        "disk_full",
        "no space left on device",
        injected("disk_full", then="systemctl restart docker.service"),
        room_made,
    ),
    "the driver does not load": Failure(
        "driver_not_loaded", "NVIDIA-SMI has failed", injected("driver_missing"), healed
    ),
    "dockerd is dead": Failure(
        "docker_dead",
        "docker",
        injected("docker_dead", then="systemctl restart docker.service"),
        healed,
    ),
    "the compose file is invalid": Failure(
        "compose_invalid",
        "docker-compose.yml",
        delivered("services: {vllm: {image: [not, a, name]}}\n"),
        delivered(),
    ),
    "vLLM exits in a loop": Failure("exit_loop", "restarted", injected("exit_loop"), healed),
    "the token is refused": Failure("token_refused", "401", injected("token_refused"), healed),
    "the token is missing": Failure(
        "token_refused", "gated", delivered(model=GATED, served_model_name=SERVING["model"]), delivered()
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_machine_that_cannot_serve_is_diagnosed_and_fixed(trial: Trial, failure: str) -> None:
    case = FAILURES[failure]
    await case.broken(trial)
    await trial.fails_as(case.fault, case.proof)
    await case.fixed(trial)
    await trial.is_ready()


async def test_recoverable_errors_of_cloud_init_are_told_and_the_next_update_goes_on(trial: Trial) -> None:
    await trial.write("/etc/cloud/cloud.cfg.d/99-wrong.cfg", "power_state: {mode: nonsense}\n")
    await trial.guest.run("rm -f /var/lib/cloud/instance/sem/config_power_state_change*")
    await trial.deliver()
    await trial.first_boot_ends_again()
    await trial.fails_as("cloud_init_degraded", "power state")
    assert (await trial.guest.attempt("cloud-init status")).exit_status == 2
    await trial.is_ready()


async def test_a_reboot_that_never_comes_back_is_told_within_its_deadline(trial: Trial) -> None:
    await trial.inject("reboot_never_returns")
    mirrors = trial.lab.backend.mirrors(trial.guest.boot.name)
    # The gate waits for an image that takes an hour.
    mirrors[Mirror.REGISTRY] = Condition(bandwidth=10_000)
    await trial.deliver()

    async def reboot() -> None:
        await asyncio.sleep(20)
        with contextlib.suppress(OSError, asyncssh.Error):
            await trial.guest.attempt("systemctl reboot")

    rebooting = asyncio.create_task(reboot())
    diagnosis = (await trial.gate(reboot_s=60)).diagnosis
    await rebooting
    assert diagnosis and diagnosis.fault == "reboot_lost", str(diagnosis)
    await trial.inject(None)
    mirrors[Mirror.REGISTRY] = Condition()
    await trial.lab.backend.start(trial.guest.boot)
    await trial.is_ready()


async def test_an_apt_mirror_that_is_down_is_told_and_the_next_update_sets_the_machine_up(
    lab: Lab, bare: Machine
) -> None:
    trial = await bare.again(lab)
    await trial.deliver()
    lab.backend.mirrors(trial.guest.boot.name)[Mirror.APT] = DOWN
    await trial.first_boot_ends_again()
    await trial.fails_as("apt_unreachable", "Failed to fetch")
    assert (await trial.guest.attempt("cloud-init status")).exit_status == 1
    lab.backend.mirrors(trial.guest.boot.name)[Mirror.APT] = Condition()
    boots = "journalctl --list-boots --quiet | wc -l"
    before = int(await trial.guest.run(boots))
    await trial.is_ready()
    assert int(await trial.guest.run(boots)) == before + 1
    assert "nvidia-driver-580-server" in await trial.guest.run("apt-mark showhold")


async def test_a_driver_that_no_archive_has_is_told(lab: Lab, bare: Machine) -> None:
    trial = await bare.again(lab)
    await trial.write(layout.HOST_SETTINGS_PATH, "DRIVER_BRANCH=525\n")
    await trial.first_boot_ends_again()
    await trial.fails_as("package_missing", "nvidia-driver-525-server")
    # As after a corrected setting, on the machine that is there.
    await trial.write(layout.HOST_SETTINGS_PATH, "DRIVER_BRANCH=580\n")
    await trial.deliver()
    await trial.is_ready()
