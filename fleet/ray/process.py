"""Brings a machine into its cluster. What is right already is left alone."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from fleet import layout, lifeline, ray
from fleet import spec as specs
from fleet.progress import SYSTEM_CLOCK, Clock, Progress, Stage, pause_s
from fleet.ray.spec import JoinSpec
from fleet.rollout.session import Session
from fleet.ssh import HttpReply, NothingListens, SshError, Timeout

ASK_TIMEOUT_S = 30.0
"""The dashboard asks every machine in turn."""


S = TypeVar("S")


class ClusterFailed(Exception):
    """A machine did not join, or vLLM did not start; the message says what was seen and what to do."""


def files() -> dict[str, bytes]:
    """The units and scripts of a member, by name."""
    return {path.name: path.read_bytes() for path in sorted(ray.FILES.iterdir()) if path.is_file()}


def digest() -> str:
    """Names what `files` holds."""
    return hashlib.sha256(json.dumps({k: v.decode() for k, v in files().items()}).encode()).hexdigest()[:16]


async def join(spec: JoinSpec, token: str, progress: Progress, clock: Clock = SYSTEM_CLOCK) -> None:
    """Install Ray on a machine, start its part, and wait until the head lists it. Raises ClusterFailed."""
    unit = ray.HEAD_UNIT if spec.is_head else ray.WORKER_UNIT
    timeouts = spec.timeouts
    try:
        async with Session(spec.target, timeouts.ssh_s, progress, clock) as session:
            await _set_up(session, spec, progress, clock)
            placed = {
                _place(name): (data, 0o755 if name.endswith(".sh") else 0o644)
                for name, data in files().items()
            }
            placed[ray.SETTINGS_PATH] = (ray.settings_file(spec.address, spec.head_address).encode(), 0o644)
            placed[ray.TOKEN_PATH] = (token.encode(), 0o600)
            placed[ray.REQUIREMENTS_PATH] = (spec.requirements.encode(), 0o644)
            wanted = await place_all(session, placed)
            changed = await session.read_file(ray.STARTED_WITH_PATH) != wanted
            progress.note(
                Stage.WORKER_SSH_INSTALL, "installing Ray" if changed else "Ray's files are unchanged"
            )
            await session.run([_place(ray.SETUP_SCRIPT)], timeout_s=timeouts.install_s)
            await session.run(["systemctl", "enable", unit])
            await session.run(["systemctl", "restart" if changed else "start", unit], timeout_s=60.0)
            await session.write_file(ray.STARTED_WITH_PATH, wanted, mode=0o600)
            await _until_listed(session, spec, unit, token, progress, clock)
    except SshError as error:
        raise ClusterFailed(f"{spec.node}: {error}; run `pulumi up` again once that is fixed") from None


def _place(name: str) -> str:
    folder = layout.UNITS_DIRECTORY if name.endswith(".service") else layout.SCRIPTS_DIRECTORY
    return f"{folder}/{name}"


async def place_all(session: Session, placed: Mapping[str, tuple[bytes, int]]) -> bytes:
    """Write the files that differ from what is there; a digest of all of them."""
    for path, (data, mode) in placed.items():
        if await session.read_file(path) != data:
            await session.write_file(path, data, mode=mode)
    return hashlib.sha256(b"\0".join(data for data, _ in placed.values())).hexdigest().encode()


async def _set_up(session: Session, spec: JoinSpec, progress: Progress, clock: Clock) -> None:
    """Wait until cloud-init is through and the driver answers, which is after a reboot where there is one."""
    started, limit_s = clock.now(), spec.timeouts.install_s
    while True:
        status = await session.run(["cloud-init", "status"], check=False)
        said = status.stdout.strip() or status.stderr.strip()
        if said == "status: error":
            raise ClusterFailed(
                f"{spec.node}: cloud-init failed; it says why: fleet logs {spec.node} --source cloud-init"
            )
        if said in {"status: done", "status: disabled"}:
            driver = await session.run(["nvidia-smi", "--list-gpus"], check=False)
            if driver.exit_status == 0 and driver.stdout.strip():
                progress.reached(Stage.WORKER_SSH_INSTALL, driver.stdout.splitlines()[0])
                return
            said = f"nvidia-smi: {(driver.stderr or driver.stdout).strip() or 'lists no GPU'}"
        waited = clock.now() - started
        if waited >= limit_s:
            raise ClusterFailed(
                f"{spec.node}: not set up within {limit_s:.0f} s ({said}); "
                "see /var/log/cloud-init-output.log on it"
            )
        progress.waiting(Stage.WORKER_SSH_INSTALL, "the installation", said, waited_s=waited, limit_s=limit_s)
        await clock.sleep(pause_s(waited))


async def _until_listed(
    session: Session, spec: JoinSpec, unit: str, token: str, progress: Progress, clock: Clock
) -> None:
    started, limit_s = clock.now(), spec.timeouts.join_s
    async with Session(spec.head, spec.timeouts.ssh_s, progress, clock) as head:
        while True:
            listed, seen = await _members(head, token)
            if spec.address in listed:
                progress.reached(
                    Stage.READY, f"in the cluster of {len(listed)}, {listed[spec.address]:g} GPUs"
                )
                return
            waited = clock.now() - started
            if waited >= limit_s:
                words = ["journalctl", "-u", unit, "-n", "3", "-o", "cat", "--no-pager"]
                journal = (await session.run(words, check=False)).stdout.splitlines()
                raise ClusterFailed(
                    f"{spec.node}: {spec.address} is not in the cluster of {spec.head_address} after "
                    f"{limit_s:.0f} s ({seen}); {unit} said: {' / '.join(journal)}\n"
                    f"  next: is the private network up on both? journalctl -u {unit} on {spec.node}"
                )
            progress.waiting(
                Stage.HEALTH_CHECK, "the head to list it", seen, waited_s=waited, limit_s=limit_s
            )
            await clock.sleep(pause_s(waited))


async def _members(head: Session, token: str) -> tuple[dict[str, float], str]:
    """Who is in the cluster, with their GPUs; and what was seen, for a person."""
    try:
        reply: HttpReply = await head.do(
            lambda node: node.http(
                "GET",
                ray.DASHBOARD_PORT,
                "/api/v0/nodes",
                headers={"Authorization": f"Bearer {token}"},
                timeout_s=ASK_TIMEOUT_S,
            )
        )
    except (NothingListens, Timeout) as error:
        return {}, str(error)
    if reply.status != 200:
        return {}, f"the dashboard answers {reply.status}"
    try:
        listed = ray.members(json.loads(reply.body))
    except (ValueError, KeyError, TypeError):
        return {}, "the dashboard answers something else than a list of nodes"
    return listed, f"it lists {', '.join(listed) or 'nobody'}"


def run_command(
    kind: type[S], secret_variable: str, command: Callable[[S, str], Coroutine[Any, Any, dict[str, str]]]
) -> int:
    """A program of a Command: reads the spec, runs, and prints the report. Returns the exit status."""
    spec, secret = specs.parse(kind, json.load(sys.stdin)), os.environ[secret_variable]
    try:
        report = lifeline.run(command(spec, secret))
    except ClusterFailed as failed:
        sys.stderr.write(f"{failed}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the next `pulumi up` goes on from there\n")
        return lifeline.INTERRUPTED
    sys.stdout.write(json.dumps(report) + "\n")
    return 0
